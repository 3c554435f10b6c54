// Element types: their names in options and case files, sizes, error bounds and conversions.
// SPDX-License-Identifier: MIT
#ifndef BENCH_TYPES_H
#define BENCH_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vkmqa/vkmqa.h>

typedef struct TypeTraits {
    const char* name;  // in options and in kv_type of a case file
    const char* dtype; // in safetensors, or null
    VkmqaType type;    // VKMQA_TYPE_DEFAULT: this version of the library does not have it
    uint32_t bytes;    // of an element; 0 for block types
    double nmseBound;  // allowed error of an output computed through this type
    double lseBound;   // relative part of the allowed error of lse; negative: lse is not judged
} TypeTraits;

const TypeTraits* typeByName(const char* name);   // null when there is none
const TypeTraits* typeByDtype(const char* dtype); // null when there is none
const TypeTraits* typeTraits(VkmqaType type);
const char* typeNames(void); // all names, for messages

// Elements of a stored type to f32 and back; encoding rounds to nearest even.
void decodeElements(const TypeTraits* traits, const void* data, size_t count, float* values);
void encodeElements(const TypeTraits* traits, const float* values, size_t count, void* data);

uint16_t encodeHalf(float value);
float decodeHalf(uint16_t bits);

// Deterministic, roughly normal values, already representable in f16, as elements of the type.
void fillRandom(const TypeTraits* traits, uint64_t seed, size_t count, void* data);

#endif

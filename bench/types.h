// Element types: their names in options and case files, sizes, error bounds and conversions.
// SPDX-License-Identifier: MIT
#ifndef BENCH_TYPES_H
#define BENCH_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vkmqa/vkmqa.h>

enum { BLOCK_ELEMENTS = 32 }; // of a block type, with one f16 scale

typedef struct TypeTraits {
    const char* name;  // in options and in kv_type of a case file
    const char* dtype; // in safetensors, or null: of a cache only
    VkmqaType type;
    uint32_t bytes;      // of an element; 0 for block types
    uint32_t blockBytes; // of a block's codes; 0 for types without blocks
    // Allowed error of an output computed through this type: against attention on the values as they were
    // before they were stored in it, and on those that it stores.
    double nmseBound, storedBound;
    double
        lseBound; // relative part of the allowed error of lse; negative: only that of stored values is judged
} TypeTraits;

const TypeTraits* typeByName(const char* name);   // null when there is none
const TypeTraits* typeByDtype(const char* dtype); // null when there is none
const TypeTraits* typeTraits(VkmqaType type);
const char* typeNames(void);   // all names, for messages
const char* ioTypeNames(void); // those of queries, outputs and appended rows
bool isIoType(const TypeTraits* traits);

// Elements of a type without blocks to f32 and back; encoding rounds to nearest even.
void decodeElements(const TypeTraits* traits, const void* data, size_t count, float* values);
void encodeElements(const TypeTraits* traits, const float* values, size_t count, void* data);

uint16_t encodeHalf(float value);
float decodeHalf(uint16_t bits);

// ---- random.c: deterministic, roughly normal values of unit variance ----

// Of a type without blocks the values are representable in f16 (or rounded from such), `scale` times what is
// stored. Of a block type these are codes. bytes: a multiple of an element's.
void fillRandom(const TypeTraits* traits, double scale, uint64_t seed, size_t bytes, void* data);
// The scales of a block type's plane that fillRandom has filled with codes.
void fillRandomScales(const TypeTraits* traits, uint64_t seed, size_t bytes, void* data);
uint64_t nextRandom(uint64_t* state); // state is not 0

#endif

// Element types: one row each, and the conversions that the host needs.
// SPDX-License-Identifier: MIT
#include "types.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

// Bounds on the normalised mean squared error of an output: the roundings of the type and nothing more.
static const TypeTraits table[] = {
    {"f32", "F32", VKMQA_TYPE_F32, 4, 1e-10, 0},
    {"f16", "F16", VKMQA_TYPE_F16, 2, 1e-6, 0x1p-11},
    {"bf16", "BF16", VKMQA_TYPE_DEFAULT, 2, 3e-5, 0x1p-8},
    {"fp8_e4m3", NULL, VKMQA_TYPE_DEFAULT, 1, 5e-3, -1},
    {"q8_0", NULL, VKMQA_TYPE_DEFAULT, 0, 1e-3, -1},
    {"q4_0", NULL, VKMQA_TYPE_DEFAULT, 0, 1e-1, -1},
};
enum { TYPE_COUNT = sizeof(table) / sizeof(table[0]) };

const TypeTraits* typeByName(const char* name) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

const TypeTraits* typeByDtype(const char* dtype) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (table[i].dtype && strcmp(table[i].dtype, dtype) == 0)
            return &table[i];
    return NULL;
}

const TypeTraits* typeTraits(VkmqaType type) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (table[i].type == type && type != VKMQA_TYPE_DEFAULT)
            return &table[i];
    return &table[1];
}

const char* typeNames(void) { return "f32, f16, bf16, fp8_e4m3, q8_0, q4_0"; }

uint16_t encodeHalf(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
        return sign | 0x7E00u;
    if (magnitude >= 0x477FF000u) // rounds to 65536 or more
        return sign | 0x7C00u;
    if (magnitude < 0x38800000u) { // a subnormal: units of 2^-24, rounded to even by the FPU
        float scaled;
        memcpy(&scaled, &magnitude, 4);
        return sign | (uint16_t)lrintf(scaled * 0x1p24f);
    }
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return sign | (uint16_t)((magnitude - 0x38000000u) >> 13);
}

float decodeHalf(uint16_t bits) {
    uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3FFu;
    float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                      : exponent == 0 ? (float)fraction * 0x1p-24f
                                      : ldexpf((float)(fraction | 0x400u), (int)exponent - 25);
    return bits & 0x8000u ? -magnitude : magnitude;
}

// ldexpf per element is too slow for caches of millions of rows, which many threads decode.
static float halfValues[65536];
static pthread_once_t halfOnce = PTHREAD_ONCE_INIT;
static void fillHalfValues(void) {
    for (uint32_t i = 0; i < 65536; i++)
        halfValues[i] = decodeHalf((uint16_t)i);
}

void decodeElements(const TypeTraits* traits, const void* data, size_t count, float* values) {
    if (strcmp(traits->name, "f32") == 0) {
        memcpy(values, data, count * 4);
        return;
    }
    const uint8_t* bytes = data;
    pthread_once(&halfOnce, fillHalfValues);
    bool brain = strcmp(traits->name, "bf16") == 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, bytes + 2 * i, 2);
        if (brain) {
            uint32_t wide = (uint32_t)bits << 16;
            memcpy(&values[i], &wide, 4);
        } else {
            values[i] = halfValues[bits];
        }
    }
}

void encodeElements(const TypeTraits* traits, const float* values, size_t count, void* data) {
    if (traits->type == VKMQA_TYPE_F32) {
        memcpy(data, values, count * 4);
        return;
    }
    uint16_t* halves = data;
    for (size_t i = 0; i < count; i++)
        halves[i] = encodeHalf(values[i]);
}

void fillRandom(const TypeTraits* traits, uint64_t seed, size_t count, void* data) {
    // Quantiles of a bell curve, indexed by random bits: faster than computing a normal per element.
    enum { LEVELS = 4096 };
    static uint16_t halves[LEVELS];
    static float floats[LEVELS];
    if (floats[0] == 0) {
        for (int i = 0; i < LEVELS; i++) {
            double u = (i + 0.5) / LEVELS;
            double x = 0.5513 * log(u / (1 - u)); // the logistic curve of unit variance
            halves[i] = encodeHalf((float)x);
            floats[i] = decodeHalf(halves[i]);
        }
    }
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t level = (uint32_t)(state >> 40) % LEVELS;
        if (traits->type == VKMQA_TYPE_F32)
            ((float*)data)[i] = floats[level];
        else
            ((uint16_t*)data)[i] = halves[level];
    }
}

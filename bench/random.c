// Random contents of tensors and caches, fast enough for caches of gigabytes.
// SPDX-License-Identifier: MIT
#include "types.h"

#include <math.h>
#include <string.h>

uint64_t nextRandom(uint64_t* state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 40;
}

static uint64_t seeded(uint64_t seed) { return seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du; }

// Quantiles of a bell curve, indexed by random bits: faster than computing a normal per element.
enum { LEVELS = 4096 };

static float levelOf(double index, double levels) {
    double u = (index + 0.5) / levels;
    return decodeHalf(encodeHalf((float)(0.5513 * log(u / (1 - u))))); // logistic, of unit variance
}

// Steps of the block types that cover the bell curve.
static const double step8 = 5.0 / 127, step4 = 0.35;

static uint8_t nibbleOf(int index) {
    double code = rint(levelOf(index, 64) / step4);
    return (uint8_t)(8 + (code < -8 ? -8 : code > 7 ? 7 : code));
}

// What the LEVELS random values look like in memory; returns the bytes of one.
static uint32_t fillUnits(const TypeTraits* traits, double scale, uint8_t* units) {
    for (int i = 0; i < LEVELS; i++) {
        float level = levelOf(i, LEVELS);
        if (traits->type == VKMQA_TYPE_Q8_0) {
            units[i] = (uint8_t)(int8_t)lrint(fmax(-127, fmin(127, level / step8)));
        } else if (traits->type == VKMQA_TYPE_Q4_0) {
            units[i] = (uint8_t)(nibbleOf(i & 63) | nibbleOf(i >> 6) << 4);
        } else {
            level = (float)(level / scale);
            encodeElements(traits, &level, 1, units + (size_t)i * traits->bytes);
        }
    }
    return traits->bytes ? traits->bytes : 1;
}

static void copyUnits(const uint8_t* units, uint32_t unitBytes, uint64_t seed, size_t bytes,
                      uint8_t* data) {
    uint64_t state = seeded(seed);
    if (unitBytes == 1)
        for (size_t i = 0; i < bytes; i++)
            data[i] = units[nextRandom(&state) % LEVELS];
    else if (unitBytes == 2)
        for (size_t i = 0; i + 2 <= bytes; i += 2)
            memcpy(data + i, units + 2 * (nextRandom(&state) % LEVELS), 2);
    else
        for (size_t i = 0; i + 4 <= bytes; i += 4)
            memcpy(data + i, units + 4 * (nextRandom(&state) % LEVELS), 4);
}

void fillRandom(const TypeTraits* traits, double scale, uint64_t seed, size_t bytes, void* data) {
    uint8_t units[LEVELS * 4];
    uint32_t unitBytes = fillUnits(traits, scale, units);
    copyUnits(units, unitBytes, seed, bytes, data);
}

void fillRandomScales(const TypeTraits* traits, uint64_t seed, size_t bytes, void* data) {
    uint8_t units[LEVELS * 2];
    double step = traits->type == VKMQA_TYPE_Q4_0 ? step4 : step8;
    for (int i = 0; i < LEVELS; i++) { // every block a step of its own
        uint16_t bits = encodeHalf((float)(step * (0.75 + 0.5 * i / LEVELS)));
        memcpy(units + 2 * i, &bits, 2);
    }
    copyUnits(units, 2, seed, bytes, data);
}

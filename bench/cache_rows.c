// Decoding, encoding and comparing rows of a cache.
// SPDX-License-Identifier: MIT
#include "cache_rows.h"

#include <math.h>
#include <string.h>

enum { MAX_ELEMENTS = 1024 }; // of a row; the library stops at 576

static uint32_t blocksOf(uint32_t headDim) {
    return (headDim + BLOCK_ELEMENTS - 1) / BLOCK_ELEMENTS;
}

size_t rowCodeBytes(const TypeTraits* type, uint32_t headDim) {
    return type->blockBytes ? (size_t)blocksOf(headDim) * type->blockBytes
                            : (size_t)headDim * type->bytes;
}

float fitScale(float most) {
    int exponent = 0;
    if (most > 0)
        frexpf(most / 448, &exponent); // below 2^exponent
    return ldexpf(1, exponent < -100 ? -100 : exponent);
}

static int codeAt(const TypeTraits* type, const uint8_t* codes, uint32_t element) {
    uint32_t block = element / BLOCK_ELEMENTS, j = element % BLOCK_ELEMENTS;
    if (type->type == VKMQA_TYPE_Q8_0)
        return (int8_t)codes[element];
    uint8_t byte = codes[block * 16 + j % 16];
    return (j < 16 ? byte & 15 : byte >> 4) - 8;
}

static uint16_t scaleAt(const CachePlane* plane, const uint8_t* cache, size_t row, uint32_t block) {
    uint16_t bits;
    memcpy(&bits, cache + plane->scalesOffset + row * plane->scaleBytes + 2 * (size_t)block, 2);
    return bits;
}

void decodeCacheRow(const CachePlane* plane, const uint8_t* cache, size_t row, uint32_t headKv,
                    float* values) {
    const uint8_t* codes = cache + row * plane->rowBytes;
    if (plane->type->blockBytes) {
        for (uint32_t block = 0; block < blocksOf(plane->headDim); block++) {
            float step = decodeHalf(scaleAt(plane, cache, row, block));
            uint32_t end = (block + 1) * BLOCK_ELEMENTS;
            for (uint32_t i = block * BLOCK_ELEMENTS; i < end && i < plane->headDim; i++)
                values[i] = step * (float)codeAt(plane->type, codes, i);
        }
        return;
    }
    decodeElements(plane->type, codes, plane->headDim, values);
    for (uint32_t i = 0; plane->headScales && i < plane->headDim; i++)
        values[i] *= plane->headScales[headKv];
}

// A block as the header defines it: the scale's bits, and the codes before they are truncated.
static uint16_t quantiseBlock(const TypeTraits* type, const float* values, uint32_t count,
                              double exact[BLOCK_ELEMENTS]) {
    float largest = 0, x[BLOCK_ELEMENTS] = {0}; // the first of largest magnitude
    for (uint32_t i = 0; i < count; i++) {
        x[i] = isnan(values[i]) || fabsf(values[i]) < 0x1p-126f ? 0 : values[i];
        if (fabsf(x[i]) > fabsf(largest))
            largest = x[i];
    }
    bool eight = type->type == VKMQA_TYPE_Q8_0;
    for (uint32_t i = 0; i < BLOCK_ELEMENTS; i++) {
        double ratio = largest != 0 ? (double)x[i] / (double)largest : 0;
        exact[i] = eight ? 127 * copysign(ratio, x[i]) : -8 * ratio + 8.5;
        if (eight)
            exact[i] += exact[i] < 0 ? -0.5 : 0.5;
    }
    return encodeHalf(eight ? fabsf(largest) * (1.0f / 127.0f) : largest / -8.0f);
}

static int truncateCode(const TypeTraits* type, double exact) {
    return type->type == VKMQA_TYPE_Q8_0 ? (int)exact : (exact > 15 ? 15 : (int)exact) - 8;
}

static void putCode(const TypeTraits* type, uint8_t* codes, uint32_t element, int code) {
    uint32_t block = element / BLOCK_ELEMENTS, j = element % BLOCK_ELEMENTS;
    if (type->type == VKMQA_TYPE_Q8_0) {
        codes[element] = (uint8_t)(int8_t)code;
        return;
    }
    uint8_t* byte = &codes[block * 16 + j % 16];
    *byte = (uint8_t)(j < 16 ? (*byte & 0xF0) | (code + 8) : (*byte & 15) | (code + 8) << 4);
}

void encodeCacheRow(const CachePlane* plane, const float* values, uint32_t headKv, uint8_t* cache,
                    size_t row) {
    uint8_t* codes = cache + row * plane->rowBytes;
    if (!plane->type->blockBytes) {
        float scaled[MAX_ELEMENTS];
        float factor = plane->headScales ? 1 / plane->headScales[headKv] : 1;
        for (uint32_t i = 0; i < plane->headDim; i++)
            scaled[i] = values[i] * factor;
        encodeElements(plane->type, scaled, plane->headDim, codes);
        return;
    }
    for (uint32_t block = 0; block < blocksOf(plane->headDim); block++) {
        uint32_t first = block * BLOCK_ELEMENTS, left = plane->headDim - first;
        double exact[BLOCK_ELEMENTS];
        uint16_t bits = quantiseBlock(plane->type, values + first,
                                      left < BLOCK_ELEMENTS ? left : BLOCK_ELEMENTS, exact);
        memcpy(cache + plane->scalesOffset + row * plane->scaleBytes + 2 * (size_t)block, &bits, 2);
        for (uint32_t i = 0; i < BLOCK_ELEMENTS; i++)
            putCode(plane->type, codes, first + i, truncateCode(plane->type, exact[i]));
    }
}

static bool blocksAgree(const CachePlane* plane, const float* values, const uint8_t* cache,
                        size_t row) {
    const double nearTie = 0x1p-14;
    const uint8_t* codes = cache + row * plane->rowBytes;
    for (uint32_t block = 0; block < blocksOf(plane->headDim); block++) {
        uint32_t first = block * BLOCK_ELEMENTS, left = plane->headDim - first;
        double exact[BLOCK_ELEMENTS];
        uint16_t bits = quantiseBlock(plane->type, values + first,
                                      left < BLOCK_ELEMENTS ? left : BLOCK_ELEMENTS, exact);
        uint16_t got = scaleAt(plane, cache, row, block);
        if (got != bits && ((got | bits) & 0x7FFF)) // a zero's sign does not matter
            return false;
        for (uint32_t i = 0; i < BLOCK_ELEMENTS; i++) {
            int code = codeAt(plane->type, codes, first + i);
            if (code != truncateCode(plane->type, exact[i] - nearTie) &&
                code != truncateCode(plane->type, exact[i] + nearTie))
                return false;
        }
    }
    return true;
}

// Half a step of the type at a value, with room for a rotation's own error of 1e-5 of the row's largest.
static double allowedError(const CachePlane* plane, double value, double blockMost, double rowMost,
                           double headScale) {
    double step = 0;
    switch (plane->type->type) {
    case VKMQA_TYPE_F16:
        step = fabs(value) * 0x1p-11 + 0x1p-25;
        break;
    case VKMQA_TYPE_BF16:
        step = fabs(value) * 0x1p-8;
        break;
    case VKMQA_TYPE_FP8_E4M3:
        step = fabs(value) * 0x1p-4 + headScale * 0x1p-10;
        break;
    case VKMQA_TYPE_Q8_0:
        step = 0.7 * blockMost / 127; // the rounding of the scale included
        break;
    case VKMQA_TYPE_Q4_0:
        step = 1.05 * blockMost / 8; // the far end has no code of its own
        break;
    default:
        break;
    }
    return step + 1e-5 * rowMost;
}

bool cacheRowAgrees(const CachePlane* plane, const float* values, uint32_t headKv,
                    const uint8_t* cache, size_t row, bool exact) {
    if (exact && plane->type->blockBytes)
        return blocksAgree(plane, values, cache, row);
    if (exact) {
        uint8_t expected[MAX_ELEMENTS * 4];
        CachePlane one = *plane;
        one.rowBytes = 0;
        encodeCacheRow(&one, values, headKv, expected, 0);
        return memcmp(expected, cache + row * plane->rowBytes,
                      rowCodeBytes(plane->type, plane->headDim)) == 0;
    }
    float got[MAX_ELEMENTS];
    double blockMost[MAX_ELEMENTS / BLOCK_ELEMENTS] = {0}, rowMost = 0;
    for (uint32_t i = 0; i < plane->headDim; i++) {
        double* most = &blockMost[i / BLOCK_ELEMENTS];
        *most = fmax(*most, fabs(values[i]));
        rowMost = fmax(rowMost, fabs(values[i]));
    }
    double headScale = plane->headScales ? (double)plane->headScales[headKv] : 1;
    decodeCacheRow(plane, cache, row, headKv, got);
    for (uint32_t i = 0; i < plane->headDim; i++) {
        double allowed =
            allowedError(plane, values[i], blockMost[i / BLOCK_ELEMENTS], rowMost, headScale);
        if (!(fabs((double)got[i] - (double)values[i]) <= allowed))
            return false;
    }
    return true;
}

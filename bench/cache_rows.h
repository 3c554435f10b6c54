// Rows of a cache on the host, where the library puts them (VkmqaKvRequirements) and as it encodes them.
// SPDX-License-Identifier: MIT
#ifndef BENCH_CACHE_ROWS_H
#define BENCH_CACHE_ROWS_H

#include "types.h"

// The cache of K or of V. Rows are counted in the order [page, head, offset].
typedef struct CachePlane {
    const TypeTraits* type;
    uint32_t headDim;
    uint32_t rowBytes, scaleBytes; // from one row, and from one row's scales, to the next
    size_t scalesOffset;           // of the plane of scales; 0: the type has none
    size_t size;                   // of everything, in bytes
    const float* headScales;       // of fp8, one per KV head; else null
} CachePlane;

// fp8: the least power of two that keeps values up to `most` within the format.
float fitScale(float most);
// Codes of a row, without the padding to 16 bytes.
size_t rowCodeBytes(const TypeTraits* type, uint32_t headDim);
void decodeCacheRow(const CachePlane* plane, const uint8_t* cache, size_t row, uint32_t headKv,
                    float* values);
void encodeCacheRow(const CachePlane* plane, const float* values, uint32_t headKv, uint8_t* cache,
                    size_t row);
// Whether the row is what append makes of `values`. exact: every byte, but for codes next to a tie, which may
// be either neighbour. Else by value, as after a rotation, whose last bits are the device's own.
bool cacheRowAgrees(const CachePlane* plane, const float* values, uint32_t headKv,
                    const uint8_t* cache, size_t row, bool exact);

#endif

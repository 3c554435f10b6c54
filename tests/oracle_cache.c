#include "oracle.h"

#include <string.h>

static size_t roundUp(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static size_t blocksOf(const OracleCache* cache) {
    return roundUp(cache->headDim, ORACLE_BLOCK) / ORACLE_BLOCK;
}

static size_t rowsOf(const OracleCache* cache) {
    return (size_t)cache->numPages * cache->numHeads * cache->pageTokens;
}

size_t oracleRowDataBytes(const OracleCache* cache) {
    if (cache->type == ORACLE_Q8_0)
        return blocksOf(cache) * ORACLE_BLOCK;
    if (cache->type == ORACLE_Q4_0)
        return blocksOf(cache) * ORACLE_BLOCK / 2;
    return cache->headDim * oracleElementBytes(cache->type);
}

size_t oracleRowBytes(const OracleCache* cache) { return roundUp(oracleRowDataBytes(cache), 16); }

size_t oracleScaleBytes(const OracleCache* cache) {
    return oracleTypeHasBlocks(cache->type) ? roundUp(2 * blocksOf(cache), 4) : 0;
}

size_t oracleScalesOffset(const OracleCache* cache) {
    return rowsOf(cache) * oracleRowBytes(cache);
}

size_t oracleCacheBytes(const OracleCache* cache) {
    return oracleScalesOffset(cache) + rowsOf(cache) * oracleScaleBytes(cache);
}

static size_t rowIndex(const OracleCache* cache, uint32_t slot, uint32_t head) {
    size_t page = slot / cache->pageTokens;
    size_t offset = slot % cache->pageTokens;
    return (page * cache->numHeads + head) * cache->pageTokens + offset;
}

size_t oracleRowOffset(const OracleCache* cache, uint32_t slot, uint32_t head) {
    return rowIndex(cache, slot, head) * oracleRowBytes(cache);
}

size_t oracleScaleOffset(const OracleCache* cache, uint32_t slot, uint32_t head) {
    return oracleScalesOffset(cache) + rowIndex(cache, slot, head) * oracleScaleBytes(cache);
}

static float scaleOf(const OracleCache* cache, uint32_t head) {
    return cache->scales ? cache->scales[head] : 1;
}

static void storeCodes(OracleType type, const int* codes, uint8_t* bytes) {
    for (int i = 0; i < ORACLE_BLOCK && type == ORACLE_Q8_0; i++)
        bytes[i] = (uint8_t)codes[i];
    for (int i = 0; i < ORACLE_BLOCK / 2 && type == ORACLE_Q4_0; i++)
        bytes[i] = (uint8_t)(codes[i] | codes[i + ORACLE_BLOCK / 2] << 4);
}

static void appendBlocks(const OracleCache* cache, uint8_t* image, uint8_t* other,
                         const float* values, uint32_t slot, uint32_t head) {
    size_t row = oracleRowOffset(cache, slot, head);
    size_t scales = oracleScaleOffset(cache, slot, head);
    size_t blocks = blocksOf(cache), bytes = oracleRowDataBytes(cache) / blocks;
    for (size_t i = 0; i < blocks; i++) {
        size_t left = cache->headDim - i * ORACLE_BLOCK;
        OracleBlock block;
        oracleEncodeBlock(cache->type, values + i * ORACLE_BLOCK,
                          left < ORACLE_BLOCK ? left : ORACLE_BLOCK, &block);
        storeCodes(cache->type, block.codes, image + row + i * bytes);
        memcpy(image + scales + 2 * i, &block.scale, 2);
        if (other) {
            storeCodes(cache->type, block.others, other + row + i * bytes);
            memcpy(other + scales + 2 * i, &block.scale, 2);
        }
    }
    size_t padding = oracleScaleBytes(cache) - 2 * blocks;
    memset(image + scales + 2 * blocks, 0, padding);
    if (other)
        memset(other + scales + 2 * blocks, 0, padding);
}

static void appendElements(const OracleCache* cache, uint8_t* image, uint8_t* other,
                           const float* values, uint32_t slot, uint32_t head) {
    size_t row = oracleRowOffset(cache, slot, head);
    if (cache->type == ORACLE_FP8) {
        float inverse = 1 / scaleOf(cache, head);
        for (uint32_t i = 0; i < cache->headDim; i++)
            image[row + i] = oracleFp8FromF32(values[i] * inverse);
    } else {
        oracleEncode(cache->type, values, cache->headDim, image + row);
    }
    if (other)
        memcpy(other + row, image + row, oracleRowDataBytes(cache));
}

void oracleAppend(const OracleCache* cache, uint8_t* image, uint8_t* other, const float* values,
                  const int32_t* slots, uint32_t tokens) {
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t head = 0; head < cache->numHeads && slots[t] >= 0; head++) {
            const float* row = values + ((size_t)t * cache->numHeads + head) * cache->headDim;
            if (oracleTypeHasBlocks(cache->type))
                appendBlocks(cache, image, other, row, (uint32_t)slots[t], head);
            else
                appendElements(cache, image, other, row, (uint32_t)slots[t], head);
        }
    }
}

static float blockValue(const OracleCache* cache, const uint8_t* row, const uint8_t* scales,
                        uint32_t i) {
    uint16_t scale;
    memcpy(&scale, scales + i / ORACLE_BLOCK * 2, 2);
    int code;
    if (cache->type == ORACLE_Q8_0) {
        code = (int8_t)row[i];
    } else {
        uint32_t j = i % ORACLE_BLOCK;
        uint8_t pair = row[i / ORACLE_BLOCK * (ORACLE_BLOCK / 2) + j % (ORACLE_BLOCK / 2)];
        code = (j < ORACLE_BLOCK / 2 ? pair & 15 : pair >> 4) - 8;
    }
    return oracleF32FromF16(scale) * (float)code;
}

void oracleGather(const OracleCache* cache, const uint8_t* image, const int32_t* slots,
                  uint32_t tokens, float* values) {
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t head = 0; head < cache->numHeads; head++, values += cache->headDim) {
            const uint8_t* row = image + oracleRowOffset(cache, (uint32_t)slots[t], head);
            const uint8_t* scales = image + oracleScaleOffset(cache, (uint32_t)slots[t], head);
            if (oracleTypeHasBlocks(cache->type)) {
                for (uint32_t i = 0; i < cache->headDim; i++)
                    values[i] = blockValue(cache, row, scales, i);
                continue;
            }
            oracleDecode(cache->type, row, cache->headDim, values);
            for (uint32_t i = 0; i < cache->headDim && cache->type == ORACLE_FP8; i++)
                values[i] *= scaleOf(cache, head);
        }
    }
}

void oracleCopySlot(const OracleCache* cache, uint8_t* to, uint32_t toSlot, const uint8_t* from,
                    uint32_t fromSlot) {
    for (uint32_t head = 0; head < cache->numHeads; head++) {
        memmove(to + oracleRowOffset(cache, toSlot, head),
                from + oracleRowOffset(cache, fromSlot, head), oracleRowDataBytes(cache));
        memmove(to + oracleScaleOffset(cache, toSlot, head),
                from + oracleScaleOffset(cache, fromSlot, head), oracleScaleBytes(cache));
    }
}

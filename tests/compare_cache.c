#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double SLACK = 2e-6; // of the row's magnitude: angles to 1e-6 rad and f32 arithmetic

// A rotated element mixes with its partner (rope) or with the whole row (Hadamard).
static double slackOf(const float* row, uint32_t width, bool hadamard) {
    double largest = 0, squares = 0;
    for (uint32_t i = 0; i < width; i++) {
        largest = fmax(largest, fabs((double)row[i]));
        squares += (double)row[i] * row[i];
    }
    return SLACK * (hadamard ? sqrt(squares) : sqrt(2) * largest);
}

static double allowedOfElement(OracleType type, double value, double slack) {
    return oracleRounding(type, fabs(value) + slack) + slack;
}

// Half a step and the error of the f16 scale. Where q4_0's code of the side opposite to m would be 16,
// it is 15: a whole step.
static double allowedInBlock(OracleType type, const float* block, uint32_t count, double value,
                             double slack) {
    double largest = 0;
    for (uint32_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)block[i]));
    double step = largest / (type == ORACLE_Q8_0 ? 127 : 8);
    bool clipped = type == ORACLE_Q4_0 && fabs(value) > 7.5 * step - slack;
    double ofScale = ldexp(largest, -11) + largest / step * ldexp(1, -25);
    return (clipped ? 1 : 0.5) * step * 1.001 + (largest > 0 ? ofScale : 0) + 2 * slack;
}

static double allowedError(const CompareCache* compare, const float* row, uint32_t i, uint32_t head,
                           double slack) {
    const OracleCache* cache = &compare->cache;
    if (oracleTypeHasBlocks(cache->type)) {
        uint32_t first = i / ORACLE_BLOCK * ORACLE_BLOCK;
        uint32_t left = cache->headDim - first;
        return allowedInBlock(cache->type, row + first, left < ORACLE_BLOCK ? left : ORACLE_BLOCK,
                              row[i], slack);
    }
    double scale = cache->type == ORACLE_FP8 && cache->scales ? cache->scales[head] : 1;
    return scale * allowedOfElement(cache->type, row[i] / scale, slack / scale);
}

static CompareResult wrong(const char* format, const char* type, uint32_t token, uint32_t head,
                           uint32_t i, double got, double expected, double allowed) {
    CompareResult result = {.right = false};
    snprintf(result.text, sizeof(result.text), format, type, token, head, i, got, expected,
             allowed);
    return result;
}

// Behind a row's elements a short block holds zeros, and its scales' padding too.
static bool paddingIsZero(const OracleCache* cache, const uint8_t* image, uint32_t slot,
                          uint32_t head) {
    const uint8_t* row = image + oracleRowOffset(cache, slot, head);
    const uint8_t* scales = image + oracleScaleOffset(cache, slot, head);
    size_t blocks = (cache->headDim + ORACLE_BLOCK - 1) / ORACLE_BLOCK;
    bool zero = true;
    for (size_t i = cache->headDim; i < blocks * ORACLE_BLOCK && cache->type == ORACLE_Q8_0; i++)
        zero &= row[i] == 0;
    for (size_t i = cache->headDim; i < blocks * ORACLE_BLOCK && cache->type == ORACLE_Q4_0; i++) {
        uint8_t pair = row[i / ORACLE_BLOCK * (ORACLE_BLOCK / 2) + i % (ORACLE_BLOCK / 2)];
        zero &= (i % ORACLE_BLOCK < ORACLE_BLOCK / 2 ? pair & 15 : pair >> 4) == 8;
    }
    for (size_t i = 2 * blocks; i < oracleScaleBytes(cache); i++)
        zero &= scales[i] == 0;
    return zero;
}

static CompareResult paddingWrong(const OracleCache* cache, uint32_t token, uint32_t head) {
    CompareResult result = {.right = false};
    snprintf(
        result.text, sizeof(result.text),
        "%s cache, token %u, head %u: the padding of its last block or of its scales is not zero",
        oracleTypeName(cache->type), token, head);
    return result;
}

static CompareResult comparePadding(const CompareCache* compare) {
    const OracleCache* cache = &compare->cache;
    for (uint32_t t = 0; t < compare->tokens && oracleTypeHasBlocks(cache->type); t++)
        for (uint32_t h = 0; h < cache->numHeads && compare->slots[t] >= 0; h++)
            if (!paddingIsZero(cache, compare->got, (uint32_t)compare->slots[t], h))
                return paddingWrong(cache, t, h);
    return (CompareResult){.right = true};
}

static CompareResult compareValues(const CompareCache* compare) {
    const OracleCache* cache = &compare->cache;
    float* got = malloc(sizeof(float) * cache->numHeads * cache->headDim);
    CompareResult result = comparePadding(compare);
    for (uint32_t t = 0; t < compare->tokens && result.right; t++) {
        if (compare->slots[t] < 0)
            continue;
        oracleGather(cache, compare->got, &compare->slots[t], 1, got);
        for (uint32_t r = 0; r < cache->numHeads * cache->headDim && result.right; r++) {
            uint32_t head = r / cache->headDim, i = r % cache->headDim;
            const float* row =
                compare->values + ((size_t)t * cache->numHeads + head) * cache->headDim;
            double slack = slackOf(row, cache->headDim, compare->hadamard);
            double expected = row[i];
            if (cache->type == ORACLE_FP8) {
                double most = 448 * (double)(cache->scales ? cache->scales[head] : 1);
                expected = fmax(-most, fmin(most, expected));
            }
            double allowed = allowedError(compare, row, i, head, slack);
            if (!(fabs(got[r] - expected) <= allowed))
                result = wrong("%s cache, token %u, head %u, element %u: %.9g, should be %.9g, "
                               "allowed error %.3g",
                               oracleTypeName(cache->type), t, head, i, got[r], expected, allowed);
        }
    }
    free(got);
    return result;
}

// Whether a byte is right where two codes may be.
static bool byteAllowed(const OracleCache* cache, size_t at, uint8_t got, uint8_t one,
                        uint8_t other) {
    if (cache->type == ORACLE_Q4_0 && at < oracleScalesOffset(cache))
        return ((got & 0x0F) == (one & 0x0F) || (got & 0x0F) == (other & 0x0F)) &&
               ((got & 0xF0) == (one & 0xF0) || (got & 0xF0) == (other & 0xF0));
    return got == one || got == other;
}

static void describeByte(const CompareCache* compare, size_t at, uint8_t expected, char* text,
                         size_t size) {
    const OracleCache* cache = &compare->cache;
    bool isScale = at >= oracleScalesOffset(cache);
    size_t row = isScale ? (at - oracleScalesOffset(cache)) / oracleScaleBytes(cache)
                         : at / oracleRowBytes(cache);
    size_t in = isScale ? (at - oracleScalesOffset(cache)) % oracleScaleBytes(cache)
                        : at % oracleRowBytes(cache);
    size_t head = row / cache->pageTokens % cache->numHeads;
    size_t slot =
        row / cache->pageTokens / cache->numHeads * cache->pageTokens + row % cache->pageTokens;
    const char* whose = "which belongs to no new row";
    for (uint32_t t = 0; t < compare->tokens; t++)
        if (compare->slots[t] >= 0 && (size_t)compare->slots[t] == slot)
            whose = "of a new row";
    snprintf(text, size,
             "%s cache: byte %zu of the %s of slot %zu, head %zu, %s, is 0x%02x, should "
             "be 0x%02x",
             oracleTypeName(cache->type), in, isScale ? "scales" : "row", slot, head, whose,
             compare->got[at], expected);
}

CompareResult compareCache(const CompareCache* compare) {
    const OracleCache* cache = &compare->cache;
    size_t size = oracleCacheBytes(cache);
    uint8_t* one = malloc(size + 1);
    uint8_t* other = malloc(size + 1);
    memcpy(one, compare->before, size);
    memcpy(other, compare->before, size);
    CompareResult result = {.right = true};
    if (compare->byValue) {
        result = compareValues(compare);
        // The written bytes having been judged, what is left must be as before.
        for (uint32_t t = 0; t < compare->tokens; t++) {
            if (compare->slots[t] < 0)
                continue;
            oracleCopySlot(cache, one, (uint32_t)compare->slots[t], compare->got,
                           (uint32_t)compare->slots[t]);
            oracleCopySlot(cache, other, (uint32_t)compare->slots[t], compare->got,
                           (uint32_t)compare->slots[t]);
        }
    } else {
        oracleAppend(cache, one, other, compare->values, compare->slots, compare->tokens);
    }
    for (size_t i = 0; i < size && result.right; i++) {
        if (byteAllowed(cache, i, compare->got[i], one[i], other[i]))
            continue;
        result.right = false;
        describeByte(compare, i, one[i], result.text, sizeof(result.text));
    }
    free(one);
    free(other);
    return result;
}

CompareResult compareRows(OracleType type, const float* expected, const float* got, size_t rows,
                          uint32_t width, bool hadamard) {
    for (size_t r = 0; r < rows; r++) {
        const float* row = expected + r * width;
        double slack = slackOf(row, width, hadamard);
        for (uint32_t i = 0; i < width; i++) {
            double allowed = allowedOfElement(type, row[i], slack);
            if (!(fabs((double)got[r * width + i] - row[i]) <= allowed))
                return wrong("rotated %s row %u (%u), element %u: %.9g, should be %.9g, allowed "
                             "error %.3g",
                             oracleTypeName(type), (uint32_t)r, 0, i, got[r * width + i], row[i],
                             allowed);
        }
    }
    return (CompareResult){.right = true};
}

#include "oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char* oracleTypeName(OracleType type) { return type == ORACLE_F32 ? "f32" : "f16"; }

size_t oracleElementBytes(OracleType type) { return type == ORACLE_F32 ? 4 : 2; }

double oracleRounding(OracleType type, double magnitude) {
    // Half the distance to the next value, and never less than half the smallest denormal.
    return type == ORACLE_F32 ? fmax(ldexp(magnitude, -24), ldexp(1, -150))
                              : fmax(ldexp(magnitude, -11), ldexp(1, -25));
}

uint16_t oracleF16FromF32(float value) {
    if (isnan(value))
        return 0x7E00;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs((double)value);
    if (magnitude >= 65520) // half way between the largest f16 and what would follow it
        return sign | 0x7C00;
    int exponent = magnitude < ldexp(1, -14) ? -14 : ilogb(magnitude);
    // Multiples of the spacing of f16 at this exponent; nearbyint's default is ties to even. Carrying
    // into the exponent field is what reaching 2048 multiples has to do.
    int multiples = (int)nearbyint(ldexp(magnitude, 10 - exponent));
    return (uint16_t)(sign | (((exponent + 14) << 10) + multiples));
}

float oracleF32FromF16(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    int mantissa = bits & 1023;
    if (exponent == 31) {
        uint32_t wide = (uint32_t)(bits & 0x8000) << 16 | 0x7F800000u | (uint32_t)mantissa << 13;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return (float)(bits & 0x8000 ? -magnitude : magnitude);
}

void oracleEncode(OracleType type, const float* values, size_t count, void* bytes) {
    if (type == ORACLE_F32) {
        memcpy(bytes, values, count * 4);
        return;
    }
    for (size_t i = 0; i < count; i++)
        ((uint16_t*)bytes)[i] = oracleF16FromF32(values[i]);
}

void oracleDecode(OracleType type, const void* bytes, size_t count, float* values) {
    if (type == ORACLE_F32) {
        memcpy(values, bytes, count * 4);
        return;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = oracleF32FromF16(((const uint16_t*)bytes)[i]);
}

void oracleRound(OracleType type, float* values, size_t count) {
    if (type == ORACLE_F32)
        return;
    for (size_t i = 0; i < count; i++)
        values[i] = oracleF32FromF16(oracleF16FromF32(values[i]));
}

size_t oracleRowBytes(const OracleCache* cache) {
    return (cache->headDim * oracleElementBytes(cache->type) + 15) / 16 * 16;
}

size_t oracleCacheBytes(const OracleCache* cache) {
    return (size_t)cache->numPages * cache->numHeads * cache->pageTokens * oracleRowBytes(cache);
}

size_t oracleRowOffset(const OracleCache* cache, uint32_t slot, uint32_t head) {
    size_t page = slot / cache->pageTokens;
    size_t offset = slot % cache->pageTokens;
    return ((page * cache->numHeads + head) * cache->pageTokens + offset) * oracleRowBytes(cache);
}

void oracleAppend(const OracleCache* cache, uint8_t* image, OracleType sourceType,
                  const void* source, const int32_t* slots, uint32_t tokens) {
    size_t sourceBytes = cache->headDim * oracleElementBytes(sourceType);
    float values[1024];
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t head = 0; head < cache->numHeads && slots[t] >= 0; head++) {
            const uint8_t* row =
                (const uint8_t*)source + (t * (size_t)cache->numHeads + head) * sourceBytes;
            uint8_t* stored = image + oracleRowOffset(cache, (uint32_t)slots[t], head);
            oracleDecode(sourceType, row, cache->headDim, values);
            oracleEncode(cache->type, values, cache->headDim, stored);
        }
    }
}

void oracleGather(const OracleCache* cache, const uint8_t* image, const int32_t* slots,
                  uint32_t tokens, float* values) {
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t head = 0; head < cache->numHeads; head++) {
            const uint8_t* row = image + oracleRowOffset(cache, (uint32_t)slots[t], head);
            oracleDecode(cache->type, row, cache->headDim, values);
            values += cache->headDim;
        }
    }
}

int32_t oracleVisibleTokens(const OracleProblem* problem, uint32_t b, int32_t i) {
    int32_t tokens = problem->seqLensKv[b];
    if (!problem->causal)
        return tokens;
    int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
    int32_t position = i + tokens - queries;
    return position < 0 ? 0 : position + 1;
}

typedef struct Row {
    const float* q; // [headDimQk]
    const float* k; // the KV head's first key; the next is `stepK` further
    const float* v;
    size_t stepK, stepV;
    int32_t tokens;
    size_t index; // of the row in lse; of its first element in out, divided by headDimV
} Row;

typedef void (*RowFunction)(const OracleProblem* problem, const Row* row, void* out, void* lse);

static void forEachRow(const OracleProblem* problem, RowFunction function, void* out, void* lse) {
    uint32_t ratio = problem->numHeadsQ / problem->numHeadsKv;
    size_t firstToken = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        for (int32_t i = 0; i < queries; i++) {
            for (uint32_t h = 0; h < problem->numHeadsQ; h++) {
                size_t index = (size_t)(problem->cuSeqlensQ[b] + i) * problem->numHeadsQ + h;
                size_t firstRow = firstToken * problem->numHeadsKv + h / ratio;
                Row row = {
                    .q = problem->q + index * problem->headDimQk,
                    .k = problem->k + firstRow * problem->headDimQk,
                    .v = problem->v + firstRow * problem->headDimV,
                    .stepK = (size_t)problem->numHeadsKv * problem->headDimQk,
                    .stepV = (size_t)problem->numHeadsKv * problem->headDimV,
                    .tokens = oracleVisibleTokens(problem, b, i),
                    .index = index,
                };
                function(problem, &row, out, lse);
            }
        }
        firstToken += (size_t)problem->seqLensKv[b];
    }
}

static double scaleOf(const OracleProblem* problem) {
    return problem->scale != 0 ? problem->scale : 1 / sqrt(problem->headDimQk);
}

static void attendRow(const OracleProblem* problem, const Row* row, void* outs, void* lses) {
    double* out = outs ? (double*)outs + row->index * problem->headDimV : NULL;
    double* lse = lses ? (double*)lses + row->index : NULL;
    double* weights = malloc(sizeof(double) * ((size_t)row->tokens + 1));
    double largest = -INFINITY;
    double sum = 0;
    for (int32_t t = 0; t < row->tokens; t++) {
        const float* k = row->k + (size_t)t * row->stepK;
        double dot = 0;
        for (uint32_t d = 0; d < problem->headDimQk; d++)
            dot += (double)row->q[d] * k[d];
        weights[t] = dot * scaleOf(problem);
        largest = fmax(largest, weights[t]);
    }
    for (int32_t t = 0; t < row->tokens; t++)
        sum += weights[t] = exp(weights[t] - largest);
    if (lse)
        *lse = row->tokens ? largest + log(sum) : -INFINITY;
    for (uint32_t d = 0; out && d < problem->headDimV; d++)
        out[d] = 0;
    for (int32_t t = 0; out && t < row->tokens; t++) {
        const float* v = row->v + (size_t)t * row->stepV;
        double weight = weights[t] / sum;
        for (uint32_t d = 0; d < problem->headDimV; d++)
            out[d] += weight * v[d];
    }
    free(weights);
}

void oracleAttention(const OracleProblem* problem, double* out, double* lse) {
    forEachRow(problem, attendRow, out, lse);
}

static void attendRowPlainly(const OracleProblem* problem, const Row* row, void* outs, void* lses) {
    float* out = outs ? (float*)outs + row->index * problem->headDimV : NULL;
    float* lse = lses ? (float*)lses + row->index : NULL;
    float* weights = malloc(sizeof(float) * ((size_t)row->tokens + 1));
    float scale = (float)scaleOf(problem);
    float largest = -INFINITY;
    float sum = 0;
    for (int32_t t = 0; t < row->tokens; t++) {
        const float* k = row->k + (size_t)t * row->stepK;
        float dot = 0;
        for (uint32_t d = 0; d < problem->headDimQk; d++)
            dot += row->q[d] * k[d];
        weights[t] = dot * scale;
        largest = fmaxf(largest, weights[t]);
    }
    for (int32_t t = 0; t < row->tokens; t++)
        sum += weights[t] = expf(weights[t] - largest);
    if (lse)
        *lse = row->tokens ? largest + logf(sum) : -INFINITY;
    for (uint32_t d = 0; out && d < problem->headDimV; d++)
        out[d] = 0;
    for (int32_t t = 0; out && t < row->tokens; t++) {
        const float* v = row->v + (size_t)t * row->stepV;
        for (uint32_t d = 0; d < problem->headDimV; d++)
            out[d] += weights[t] * v[d];
    }
    for (uint32_t d = 0; out && row->tokens && d < problem->headDimV; d++)
        out[d] /= sum;
    free(weights);
}

void oraclePlainAttention(const OracleProblem* problem, float* out, float* lse) {
    forEachRow(problem, attendRowPlainly, out, lse);
}

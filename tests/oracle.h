// What attention and the cache must be, written from the definitions alone: this file includes nothing
// of the library, so an error there cannot hide behind the same error here.
#ifndef ORACLE_H
#define ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum OracleType { ORACLE_F32, ORACLE_F16 } OracleType;

const char* oracleTypeName(OracleType type);
size_t oracleElementBytes(OracleType type);
// Largest error of rounding a value of this magnitude to the type.
double oracleRounding(OracleType type, double magnitude);

// Rounds to nearest, ties to even; every NaN becomes 0x7E00.
uint16_t oracleF16FromF32(float value);
float oracleF32FromF16(uint16_t bits); // keeps the payload of a NaN

void oracleEncode(OracleType type, const float* values, size_t count, void* bytes);
void oracleDecode(OracleType type, const void* bytes, size_t count, float* values);
// The values that remain after storing them as `type`.
void oracleRound(OracleType type, float* values, size_t count);

// ---- Cache: [numPages, numHeads, pageTokens, row], a row padded to 16 bytes --------------------

typedef struct OracleCache {
    OracleType type;
    uint32_t numPages, numHeads, pageTokens, headDim;
} OracleCache;

size_t oracleRowBytes(const OracleCache* cache);
size_t oracleCacheBytes(const OracleCache* cache);
// Where the row of a slot (page * pageTokens + offset) begins.
size_t oracleRowOffset(const OracleCache* cache, uint32_t slot, uint32_t head);
// Stores source rows [tokens, numHeads, headDim] of sourceType at their slots; -1 skips. f32 stored as
// f32 keeps every bit; everything else is a conversion, in which a NaN becomes canonical.
void oracleAppend(const OracleCache* cache, uint8_t* image, OracleType sourceType,
                  const void* source, const int32_t* slots, uint32_t tokens);
// Values [tokens, numHeads, headDim] of the given slots.
void oracleGather(const OracleCache* cache, const uint8_t* image, const int32_t* slots,
                  uint32_t tokens, float* values);

// ---- Attention ---------------------------------------------------------------------------------

// Query token i of sequence b is row cuSeqlensQ[b] + i of q; the keys and values of sequence b are the
// seqLensKv[b] tokens after those of the sequences before it.
typedef struct OracleProblem {
    uint32_t batch, numHeadsQ, numHeadsKv, headDimQk, headDimV;
    const int32_t* cuSeqlensQ; // [batch + 1]
    const int32_t* seqLensKv;  // [batch]
    const float* q;            // [totalQ, numHeadsQ, headDimQk]
    const float* k;            // [totalKv, numHeadsKv, headDimQk]
    const float* v;            // [totalKv, numHeadsKv, headDimV]
    double scale;              // 0 = 1 / sqrt(headDimQk)
    bool causal;
} OracleProblem;

// Keys that query token i of sequence b sees: the first so many.
int32_t oracleVisibleTokens(const OracleProblem* problem, uint32_t b, int32_t i);
// R: float64 throughout. out [totalQ, numHeadsQ, headDimV], lse [totalQ, numHeadsQ]; rows of no
// sequence are left alone. Either may be null.
void oracleAttention(const OracleProblem* problem, double* out, double* lse);
// P: the same in the plainest float32, one running sum per element: the error a correct kernel has.
void oraclePlainAttention(const OracleProblem* problem, float* out, float* lse);

#endif

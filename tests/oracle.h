// What attention and the cache must be, written from the definitions alone: the oracle's files include
// nothing of the library, so an error there cannot hide behind the same error here.
//   oracle_types.c      number formats and quantised blocks
//   oracle_cache.c      where the cache holds what
//   oracle_rotation.c   rotary embedding and Hadamard rotation
//   oracle_attention.c  attention and the merge of its partial states
#ifndef ORACLE_H
#define ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ---- Types -------------------------------------------------------------------------------------

typedef enum OracleType {
    ORACLE_F32,
    ORACLE_F16,
    ORACLE_BF16,
    ORACLE_FP8, // e4m3fn
    ORACLE_Q8_0,
    ORACLE_Q4_0,
    ORACLE_TYPE_COUNT
} OracleType;

const char* oracleTypeName(OracleType type);
bool oracleTypeHasBlocks(OracleType type);

// Of the types whose elements stand alone, that is all without blocks:
size_t oracleElementBytes(OracleType type);
// Largest error of rounding a value of this magnitude to the type.
double oracleRounding(OracleType type, double magnitude);

// Rounds to nearest, ties to even; every NaN becomes 0x7E00, 0x7FC0, 0x7F. fp8 saturates at 448.
uint16_t oracleF16FromF32(float value);
uint16_t oracleBf16FromF32(float value);
uint8_t oracleFp8FromF32(float value);
float oracleF32FromF16(uint16_t bits); // keeps the payload of a NaN
float oracleF32FromBf16(uint16_t bits);
float oracleF32FromFp8(uint8_t bits);

// f32 as f32 keeps every bit; everything else is a conversion, in which a NaN becomes canonical.
void oracleEncode(OracleType type, const float* values, size_t count, void* bytes);
void oracleDecode(OracleType type, const void* bytes, size_t count, float* values);
// The values that remain after storing them as `type`.
void oracleRound(OracleType type, float* values, size_t count);

// q8_0 and q4_0.
enum { ORACLE_BLOCK = 32 };
typedef struct OracleBlock {
    uint16_t scale;          // f16
    int codes[ORACLE_BLOCK]; // q8_0: -127 .. 127, q4_0: 0 .. 15
    // Equal to codes but where the exact value is so near to a tie that drivers may differ: there the
    // other neighbour.
    int others[ORACLE_BLOCK];
} OracleBlock;
// count <= 32; what is missing counts as 0.
void oracleEncodeBlock(OracleType type, const float* values, size_t count, OracleBlock* block);

// ---- Cache -------------------------------------------------------------------------------------

// [numPages, numHeads, pageTokens, row], a row padded to 16 bytes; behind it, for types with blocks,
// [numPages, numHeads, pageTokens, scales], a row's f16 scales padded to 4 bytes.
typedef struct OracleCache {
    OracleType type;
    uint32_t numPages, numHeads, pageTokens, headDim;
    const float* scales; // [numHeads] of fp8, value = scale * stored; null = all 1
} OracleCache;

size_t oracleRowBytes(const OracleCache* cache);
size_t oracleRowDataBytes(const OracleCache* cache); // without the padding to 16
size_t
oracleScaleBytes(const OracleCache* cache); // of a row, padding to 4 included; 0 without blocks
size_t oracleScalesOffset(const OracleCache* cache); // of the plane of scales
size_t oracleCacheBytes(const OracleCache* cache);
// Where the row of a slot (page * pageTokens + offset), and its scales, begin.
size_t oracleRowOffset(const OracleCache* cache, uint32_t slot, uint32_t head);
size_t oracleScaleOffset(const OracleCache* cache, uint32_t slot, uint32_t head);
// Stores rows [tokens, numHeads, headDim] at their slots; -1 skips. other, unless null, gets the other
// neighbours where two codes are right.
void oracleAppend(const OracleCache* cache, uint8_t* image, uint8_t* other, const float* values,
                  const int32_t* slots, uint32_t tokens);
// Values [tokens, numHeads, headDim] of the given slots.
void oracleGather(const OracleCache* cache, const uint8_t* image, const int32_t* slots,
                  uint32_t tokens, float* values);
// Copies what append writes of one slot, over all heads.
void oracleCopySlot(const OracleCache* cache, uint8_t* to, uint32_t toSlot, const uint8_t* from,
                    uint32_t fromSlot);

// ---- Rotation of q and k -----------------------------------------------------------------------

typedef enum OracleRopeStyle {
    ORACLE_ROPE_NONE,
    ORACLE_ROPE_NEOX,        // pair i is elements i and i + dim / 2
    ORACLE_ROPE_INTERLEAVED, // pair i is elements 2 i and 2 i + 1
} OracleRopeStyle;

typedef struct OracleRotation {
    OracleRopeStyle style;
    uint32_t dim, offset;      // elements offset .. offset + dim - 1 turn; dim 0 = all from offset
    const double* frequencies; // [dim / 2], radians per position; null = theta^(-2 i / dim)
    double theta;              // 0 = 10000
    double magnitude;          // of what turns; 0 = 1
    bool hadamard;
} OracleRotation;

bool oracleRotates(const OracleRotation* rotation);
// Rotary embedding, then Hadamard, of one row.
void oracleRotate(const OracleRotation* rotation, int32_t position, double* row, uint32_t headDim);
// Rows [tokens, numHeads, headDim], in place.
void oracleRotateRows(const OracleRotation* rotation, const int32_t* positions, uint32_t tokens,
                      uint32_t numHeads, uint32_t headDim, float* rows);

// ---- Attention ---------------------------------------------------------------------------------

// Query token i of sequence b is row cuSeqlensQ[b] + i of q, at position i + tokens - queries; the keys
// and values of sequence b are the seqLensKv[b] tokens after those of the sequences before it.
typedef struct OracleProblem {
    uint32_t batch, numHeadsQ, numHeadsKv, headDimQk, headDimV;
    const int32_t* cuSeqlensQ; // [batch + 1]
    const int32_t* seqLensKv;  // [batch]
    const float* q;            // [totalQ, numHeadsQ, headDimQk]
    const float* k;            // [totalKv, numHeadsKv, headDimQk]
    const float* v; // [totalKv, numHeadsKv, headDimV]; null: the first elements of k's rows
    double scale;   // 0 = 1 / sqrt(headDimQk)
    bool causal, hasWindowLeft, hasWindowRight;
    uint32_t windowLeft, windowRight; // inclusive distances
    uint32_t chunkSize;               // 0 = off
    double softcap;                   // 0 = off
    const float* alibiSlopes;         // [numHeadsQ] or null
    const float* sinks;               // [numHeadsQ] or null
    const uint32_t* mask;             // [totalQ, maskStride] words or null; 1 allows
    uint32_t maskStride;
    bool treeMask; // bit 0 is position tokens - queries, and what lies before is allowed
    OracleType operands; // of products: what P rounds q, k, v and its weights to, as matrix units do
} OracleProblem;

// Whether query token i of sequence b sees position j of its sequence.
bool oracleSees(const OracleProblem* problem, uint32_t b, int32_t i, int32_t j);
// R: float64 throughout. out [totalQ, numHeadsQ, headDimV], lse [totalQ, numHeadsQ]; rows of no
// sequence are left alone. Either may be null.
void oracleAttention(const OracleProblem* problem, double* out, double* lse);
// P: the same in the plainest float32, one running sum per element: the error a correct kernel has.
void oraclePlainAttention(const OracleProblem* problem, float* out, float* lse);
// Attention over the union of disjoint sets of positions, from attention over each:
// partOut [parts, rows, width], partLse [parts, rows]; row r belongs to head r % numHeads of sinks.
void oracleMerge(uint32_t parts, size_t rows, uint32_t width, const float* partOut,
                 const float* partLse, const float* sinks, uint32_t numHeads, double* out,
                 double* lse);
void oraclePlainMerge(uint32_t parts, size_t rows, uint32_t width, const float* partOut,
                      const float* partLse, const float* sinks, uint32_t numHeads, float* out,
                      float* lse);

#endif

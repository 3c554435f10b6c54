// When is an output right? With R the float64 attention on the stored inputs, P the plain float32
// algorithm and O the output under test, over the whole tensor and over every (sequence, head) group:
//   max |O - R|  <= 2 max |P - R|    + 2 max rounding of the output type
//   mean |O - R| <= 1.5 mean |P - R| + the same
//   NMSE(O, R)   <= a bound given by the types
// where a group is allowed what the median group is, if that is more than its own. A row whose R is all
// zeros (it attends nothing) must be zeros. A NaN, or an output that was never written, fails.
//
// When is a cache right? See CompareCache.
#ifndef COMPARE_H
#define COMPARE_H

#include "oracle.h"

// What an output is filled with before the run: a NaN, read as one f32 or as two f16 or bf16.
#define COMPARE_POISON 0xFFEDFFEDu

typedef struct CompareTensor {
    uint32_t batch, numHeads, width; // width = headDimV, or 1 for lse
    const int32_t* cuSeqlensQ;       // [batch + 1]
    const double* reference;         // [totalQ, numHeads, width]
    const float* plain;
    const float* got;
    OracleType type; // of the output as stored
    double maxNmse;
} CompareTensor;

typedef struct CompareResult {
    bool right;
    double nmse, maxError, meanError; // over the whole tensor
    char text[400];                   // what is wrong with the first failing group
} CompareResult;

// Bound of the NMSE for these types of q and out and of the cache, R computed from what the cache holds:
// the loosest of the three, since a kernel may round its operands to any of them.
double compareMaxNmse(OracleType io, OracleType k, OracleType v);
CompareResult compareOut(const CompareTensor* tensor);
// lse: -inf exactly where the reference is, elsewhere within 2 max |P - R| of its group + 1e-5
// + 2^-21 of its magnitude (exp and log of Vulkan are a few units in the last place off).
CompareResult compareLse(const CompareTensor* tensor);

// What append left in a cache. Bytes are exact, except that of two codes that are nearly as near either is
// right. After a rotation values are compared: within the rounding of the type and 2e-6 of the row's
// magnitude. Every byte of no written row has to be what it was before.
typedef struct CompareCache {
    OracleCache cache;
    const float* values;  // [tokens, numHeads, headDim], as they ought to be stored
    const int32_t* slots; // [tokens], -1 = skipped
    uint32_t tokens;
    const uint8_t* before; // oracleCacheBytes
    const uint8_t* got;
    bool byValue;
    bool hadamard; // the row's magnitude is then its Euclidean norm
} CompareCache;
CompareResult compareCache(const CompareCache* compare);
// Rotated rows of an element type, by value as above.
CompareResult compareRows(OracleType type, const float* expected, const float* got, size_t rows,
                          uint32_t width, bool hadamard);

#endif

// The tool's own judge: attention in f64 on the host, which shares nothing with the library.
// SPDX-License-Identifier: MIT
#ifndef BENCH_REFERENCE_H
#define BENCH_REFERENCE_H

#include "bench.h"
#include "types.h"

// The inputs, as functions that give one row in f32: any layout and any type can be judged.
typedef struct ReferenceProblem {
    // The words of the interface: heads, dims, flags, windows, chunkSize. headDimV is given.
    const VkmqaAttentionCreateInfo* info;
    double scale, softcap; // in full precision; 0: 1 / sqrt(headDimQk), none
    uint32_t batch;
    const int32_t* cuSeqlensQ;        // [batch + 1]
    const int32_t* seqLensKv;         // [batch]
    const float *sinks, *alibiSlopes; // [numHeadsQ], with their flags
    // q and K as attention meets them, after any rotation.
    void (*readQ)(const void* user, uint32_t token, uint32_t head, float* row);
    void (*readK)(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row);
    void (*readV)(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row);
    // With a mask of either kind: whether it lets the query token see the position.
    bool (*allows)(const void* user, uint32_t sequence, uint32_t token, uint32_t position);
    const void* user;
} ReferenceProblem;

// The positions that causality, windows and chunks leave of `length` to a query at `position`:
// first .. end - 1, none when end <= first.
void seenRange(const VkmqaAttentionCreateInfo* info, int64_t position, int64_t length,
               int64_t* first, int64_t* end);

// A row: one query token and head. What is expected of it.
typedef struct ReferenceRow {
    uint32_t sequence, token, head; // token counts over all sequences
} ReferenceRow;

typedef struct Reference {
    uint32_t count; // rows; all of them, or a sample that fits the budget
    ReferenceRow* rows;
    double* out; // [count, headDimV]
    double* lse; // [count]
    bool complete;
} Reference;

// All rows where that takes at most `budget` multiplications, else a sample over all tokens and heads.
// The work is spread over the machine's cores.
void computeReference(const ReferenceProblem* problem, double budget, Reference* reference);
void freeReference(Reference* reference);

typedef struct Judgement {
    double nmse; // sum (out - expected)^2 / sum expected^2
    double lseError;
    bool wrong;
    char why[160]; // when wrong
} Judgement;

typedef struct Bounds {
    double nmse;
    double lseAbsolute, lseRelative; // negative lseRelative: lse is not judged
} Bounds;

// The allowed error for what passed through these types: the loosest of each. stored: against a reference
// on the values that the types store.
Bounds boundsOf(const TypeTraits* const* types, uint32_t count, bool stored);

// Compares out [tokens, numHeadsQ, headDimV] of the io type and lse [tokens, numHeadsQ], or null.
Judgement judge(const Reference* expected, uint32_t numHeadsQ, uint32_t headDimV,
                const TypeTraits* io, const void* out, const float* lse, Bounds bounds);

#endif

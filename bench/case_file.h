// An attention case: a safetensors file of real tensors, with the expected output beside them.
// SPDX-License-Identifier: MIT
#ifndef BENCH_CASE_FILE_H
#define BENCH_CASE_FILE_H

#include "safetensors.h"
#include "types.h"

typedef struct CaseFile {
    TensorFile file;
    const Tensor *q, *k, *v, *cuSeqlensQ, *cuSeqlensKv;
    const Tensor *out, *lse; // or null
    const Tensor *alibiSlopes, *sinks, *mask;
    const char* description;
    uint32_t batch, totalQ, totalKv, numHeadsQ, numHeadsKv, headDimQk, headDimV;
    const TypeTraits *qDtype, *kDtype, *vDtype; // as in the file
    const TypeTraits *kType, *vType;            // of the cache
    // Metadata, 0 where absent.
    uint64_t causal, pageSize, windowLeft, windowRight, vPrefixOfK, ropeDim;
    double scale, softcap, ropeTheta;
    const char* ropeStyle;
    bool hasWindowLeft, hasWindowRight;
    uint32_t longestQ, longestKv; // tokens of one sequence
} CaseFile;

// BENCH_USAGE, having said what is wrong and what is expected, when the file is no consistent case.
BenchResult readCaseFile(const char* path, CaseFile* c);
void freeCaseFile(CaseFile* c);
// BENCH_MISSING and a sentence when the case is beyond the library's limits.
BenchResult checkCaseSupported(const CaseFile* c);
// Any rope_* key asks for rotary embedding; the others then have the library's defaults.
bool caseHasRope(const CaseFile* c);
// int32 element of a tensor, which may stand anywhere in the file.
int32_t intAt(const Tensor* tensor, uint64_t index);

#endif

// A case file's tensors as the library takes them, and as the reference reads them.
// SPDX-License-Identifier: MIT
#ifndef BENCH_CASE_INPUTS_H
#define BENCH_CASE_INPUTS_H

#include "case_file.h"
#include "problem.h"

// The types that the device is given q, and new K, V (and q to be rotated) in.
const TypeTraits* caseIoType(const CaseFile* c);
const TypeTraits* caseNewType(const CaseFile* c);

// The step of the whole file: every token of K is appended.
BenchResult createCaseProblem(Session* session, const CaseFile* c, Problem* problem);

// Reads the file's own tensors, rotated in f64: what was there before any cache type.
typedef struct CaseView {
    const CaseFile* c;
    const Problem* problem;
} CaseView;
ReferenceProblem caseReference(const CaseView* view);
// The file's q, but K and V as the cache of the problem (hostK, hostV) stores them.
ReferenceProblem storedCaseReference(const CaseView* view);

#endif

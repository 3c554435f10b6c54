// --case: the tensors of a file through append and attention, judged by what the file expects.
// SPDX-License-Identifier: MIT
#include "case_inputs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double referenceBudget = 1e9; // for files without expected output

// What the file expects of every row. Without an lse in the file that part is zero and not judged.
static void readExpected(const CaseFile* c, Reference* expected) {
    uint32_t rows = c->totalQ * c->numHeadsQ;
    *expected = (Reference){
        .count = rows,
        .rows = allocate(rows, sizeof(ReferenceRow)),
        .out = allocate((size_t)rows * c->headDimV, sizeof(double)),
        .lse = allocate(rows, sizeof(double)),
        .complete = true,
    };
    for (uint32_t i = 0; i < rows; i++)
        expected->rows[i] = (ReferenceRow){0, i / c->numHeadsQ, i % c->numHeadsQ};
    memcpy(expected->out, c->out->data, c->out->count * 8);
    if (c->lse)
        memcpy(expected->lse, c->lse->data, c->lse->count * 8);
}

// The tool's own f64 reference judges a file that expects nothing.
static void computeExpected(const CaseFile* c, const Problem* problem, Reference* expected) {
    CaseView view = {c, problem};
    ReferenceProblem reference = caseReference(&view);
    computeReference(&reference, referenceBudget, expected);
    for (uint32_t r = 0; c->lse && r < expected->count; r++) {
        size_t at = (size_t)expected->rows[r].token * c->numHeadsQ + expected->rows[r].head;
        memcpy(expected->lse + r, c->lse->data + at * 8, 8);
    }
}

// The cache is NaN before: what append leaves out, and reads beyond a sequence's end, will show.
static BenchResult appendCase(Problem* problem) {
    size_t sizeQ =
        (size_t)problem->totalQ * problem->numHeadsQ * problem->headDimQk * problem->ioType->bytes;
    BenchResult result = poisonCache(problem);
    if (result == BENCH_OK && sizeQ) // append overwrites it where it rotates queries
        result = checkVk(vkmqaUpload(problem->q, 0, problem->hostQ, (sizeQ + 3) & ~(size_t)3),
                         "uploading queries");
    if (result == BENCH_OK && problem->totalNew)
        result = uploadNewRows(problem);
    if (result == BENCH_OK && problem->totalNew)
        result = runOnce(problem->session, recordAppend, problem);
    return result;
}

// Beside the format's own bound, which may be wide: attention over what the cache now holds must be as close as
// the io type allows.
static BenchResult judgeStored(const CaseFile* c, Problem* problem, Judgement* judgement) {
    CaseView view = {c, problem};
    Reference expected = {0};
    BenchResult result = downloadInputs(problem, 0);
    if (result != BENCH_OK)
        return result;
    ReferenceProblem reference = storedCaseReference(&view);
    computeReference(&reference, referenceBudget, &expected);
    problem->bounds = boundsOf(
        (const TypeTraits*[]){c->qDtype, c->kDtype, c->vDtype, c->kType, c->vType}, 5, true);
    result = judgeOutput(problem, &expected, judgement);
    freeReference(&expected);
    return result;
}

static BenchResult judgeCase(const CaseFile* c, Problem* problem, Judgement* judgement) {
    Reference expected = {0};
    // The file's own types count too: a tensor of bf16 came with that type's rounding.
    problem->bounds = boundsOf(
        (const TypeTraits*[]){c->qDtype, c->kDtype, c->vDtype, c->kType, c->vType}, 5, false);
    if (!c->lse)
        problem->bounds.lseRelative = -1; // without `out` that of the stored values is judged
    if (c->out)
        readExpected(c, &expected);
    else
        computeExpected(c, problem, &expected);
    BenchResult result = verifyAttention(problem, &expected, judgement);
    if (result == BENCH_OK && !c->out && !judgement->wrong)
        result = judgeStored(c, problem, judgement);
    freeReference(&expected);
    return result;
}

static BenchResult runSupportedCase(Session* session, const CaseFile* c, Row* row) {
    Problem problem;
    Judgement judgement = {0};
    BenchResult result = createCaseProblem(session, c, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    result = appendCase(&problem);
    if (result == BENCH_OK && problem.totalQ)
        result = judgeCase(c, &problem, &judgement);
    if (result == BENCH_OK && problem.totalQ)
        result = measure(session, recordAttention, &problem, 1, &row->time);
    row->nmse = judgement.nmse;
    row->wrong = judgement.wrong;
    if (judgement.wrong)
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    destroyProblem(&problem);
    return result;
}

BenchResult runCaseFile(Session* session, const char* path) {
    CaseFile c;
    BenchResult result = readCaseFile(path, &c);
    if (result != BENCH_OK)
        return result;
    result = checkCaseSupported(&c);
    if (result == BENCH_OK) {
        const char* name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
        Row row = {
            .item = {.op = OP_CASE,
                     .model = name,
                     .numHeadsQ = c.numHeadsQ,
                     .numHeadsKv = c.numHeadsKv,
                     .headDimQk = c.headDimQk,
                     .headDimV = c.headDimV,
                     .queryTokens = c.longestQ,
                     .context = c.longestKv,
                     .batch = c.batch,
                     .pageSize = (uint32_t)c.pageSize,
                     .ioType = caseIoType(&c)->type,
                     .newType = caseNewType(&c)->type,
                     .kType = c.kType->type,
                     .vType = c.vType->type,
                     .causal = c.causal != 0},
            .nmse = -1,
        };
        result = runSupportedCase(session, &c, &row);
        if (result == BENCH_OK || result == BENCH_WRONG)
            addRow(session->report, &row);
        if (result == BENCH_OK && row.wrong)
            result = fail(BENCH_WRONG, "%s: wrong result: %s", path, row.note);
    }
    freeCaseFile(&c);
    return result;
}

// --case: the tensors of a file through append and attention, judged by what the file expects.
// SPDX-License-Identifier: MIT
#include "case_file.h"
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double referenceBudget = 1e9; // for files without expected output

// What a file's tensor becomes on the device: the library may lack its type, f32 holds them all.
static const TypeTraits* storedAs(const TypeTraits* dtype, const TypeTraits* other) {
    return dtype->type && dtype == other ? dtype : typeTraits(VKMQA_TYPE_F32);
}

static uint8_t* convertTensor(const Tensor* tensor, const TypeTraits* from, const TypeTraits* to) {
    uint8_t* data = allocate(tensor->count * to->bytes + 4, 1);
    if (from == to) {
        if (tensor->count)
            memcpy(data, tensor->data, tensor->count * to->bytes);
    } else {
        decodeElements(from, tensor->data, tensor->count, (float*)data);
    }
    return data;
}

// The reference reads the file's own tensors: the bounds contain the rounding to the cache's type.
static void readRow(const Tensor* tensor, const TypeTraits* type, uint64_t token, uint32_t head,
                    float* row) {
    uint64_t at = (token * tensor->shape[1] + head) * tensor->shape[2];
    decodeElements(type, tensor->data + at * type->bytes, tensor->shape[2], row);
}
static void readCaseQ(const void* user, uint32_t token, uint32_t head, float* row) {
    const CaseFile* c = user;
    readRow(c->q, c->qDtype, token, head, row);
}
static void readCaseK(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                      float* row) {
    const CaseFile* c = user;
    readRow(c->k, c->kDtype, (uint64_t)intAt(c->cuSeqlensKv, sequence) + position, head, row);
}
static void readCaseV(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                      float* row) {
    const CaseFile* c = user;
    readRow(c->v, c->vDtype, (uint64_t)intAt(c->cuSeqlensKv, sequence) + position, head, row);
}

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
    ReferenceProblem reference = referenceOf(problem);
    reference.readQ = readCaseQ;
    reference.readK = readCaseK;
    reference.readV = readCaseV;
    reference.user = c;
    computeReference(&reference, referenceBudget, expected);
    for (uint32_t r = 0; c->lse && r < expected->count; r++) {
        size_t at = (size_t)expected->rows[r].token * c->numHeadsQ + expected->rows[r].head;
        memcpy(expected->lse + r, c->lse->data + at * 8, 8);
    }
}

static BenchResult createCaseProblem(Session* session, const CaseFile* c, Problem* problem) {
    const TypeTraits* newType = storedAs(c->kDtype, c->vDtype);
    int32_t* queries = allocate(c->batch, 4);
    int32_t* contexts = allocate(c->batch, 4);
    for (uint32_t b = 0; b < c->batch; b++) {
        queries[b] = intAt(c->cuSeqlensQ, b + 1) - intAt(c->cuSeqlensQ, b);
        contexts[b] = intAt(c->cuSeqlensKv, b + 1) - intAt(c->cuSeqlensKv, b);
    }
    ProblemInfo info = {
        .attention =
            {
                .flags = c->causal ? VKMQA_ATTENTION_CAUSAL_BIT : 0,
                .numHeadsQ = c->numHeadsQ,
                .numHeadsKv = c->numHeadsKv,
                .headDimQk = c->headDimQk,
                .headDimV = c->headDimV,
                .ioType = storedAs(c->qDtype, c->qDtype)->type,
                .newType = newType->type,
                .kType = c->kType->type,
                .vType = c->vType->type,
                .pageSize = (uint32_t)c->pageSize,
                .scale = (float)c->scale,
            },
        .batch = c->batch,
        .queryTokens = queries,
        .contexts = contexts,
        .newTokens = contexts,
    };
    BenchResult result = createProblem(session, &info, problem);
    if (result == BENCH_OK) {
        // The file's own types count too: a tensor of bf16 came with that type's rounding.
        problem->bounds =
            boundsOf((const TypeTraits*[]){c->qDtype, c->kDtype, c->vDtype, c->kType, c->vType}, 5);
        if (c->out && !c->lse)
            problem->bounds.lseRelative = -1;
        problem->scale = c->scale; // judged in full precision
        problem->hostQ = convertTensor(c->q, c->qDtype, problem->ioType);
        problem->hostNewK = convertTensor(c->k, c->kDtype, newType);
        problem->hostNewV = convertTensor(c->v, c->vDtype, newType);
    }
    free(queries);
    free(contexts);
    return result;
}

// The cache is NaN before: what append leaves out, and reads beyond a sequence's end, will show.
static BenchResult appendCase(const CaseFile* c, Problem* problem) {
    size_t sizeQ = (size_t)c->q->count * problem->ioType->bytes;
    BenchResult result = poisonCache(problem);
    if (result == BENCH_OK)
        result = checkVk(vkmqaUpload(problem->q, 0, problem->hostQ, (sizeQ + 3) & ~(size_t)3),
                         "uploading queries");
    if (result == BENCH_OK && problem->totalNew)
        result = uploadNewRows(problem);
    if (result == BENCH_OK && problem->totalNew)
        result = runOnce(problem->session, recordAppend, problem);
    return result;
}

static BenchResult runSupportedCase(Session* session, const CaseFile* c, Row* row) {
    Problem problem;
    Reference expected = {0};
    Judgement judgement = {0};
    BenchResult result = createCaseProblem(session, c, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    result = appendCase(c, &problem);
    if (result == BENCH_OK && problem.totalQ) {
        if (c->out)
            readExpected(c, &expected);
        else
            computeExpected(c, &problem, &expected);
        result = verifyAttention(&problem, &expected, &judgement);
        if (result == BENCH_OK)
            result = measure(session, recordAttention, &problem, 1, &row->time);
    }
    row->nmse = judgement.nmse;
    row->wrong = judgement.wrong;
    if (judgement.wrong)
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    freeReference(&expected);
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
        uint32_t longestQ = 0, longestKv = 0;
        for (uint32_t b = 0; b < c.batch; b++) {
            uint32_t queries = (uint32_t)(intAt(c.cuSeqlensQ, b + 1) - intAt(c.cuSeqlensQ, b));
            uint32_t context = (uint32_t)(intAt(c.cuSeqlensKv, b + 1) - intAt(c.cuSeqlensKv, b));
            longestQ = queries > longestQ ? queries : longestQ;
            longestKv = context > longestKv ? context : longestKv;
        }
        const char* name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
        Row row = {
            .item = {.op = OP_CASE,
                     .model = name,
                     .numHeadsQ = c.numHeadsQ,
                     .numHeadsKv = c.numHeadsKv,
                     .headDimQk = c.headDimQk,
                     .headDimV = c.headDimV,
                     .queryTokens = longestQ,
                     .context = longestKv,
                     .batch = c.batch,
                     .pageSize = (uint32_t)c.pageSize,
                     .ioType = storedAs(c.qDtype, c.qDtype)->type,
                     .newType = storedAs(c.kDtype, c.vDtype)->type,
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

// merge: partial results of attention over disjoint parts of a context become one (vkmqaCmdMergeStates).
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct MergeCall {
    Problem problem; // the object, its parameters, out and lse
    uint32_t parts, copies;
    size_t rows;          // query tokens x heads, of one part
    uint8_t* hostOut;     // [parts, rows, headDimV] of ioType
    float* hostLse;       // [parts, rows]
    VkmqaMemory out, lse; // copies of the parts
    VkDeviceSize strideOut, strideLse;
} MergeCall;

static BenchResult recordMerge(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                               uint32_t index) {
    const MergeCall* call = user;
    const Problem* p = &call->problem;
    uint32_t copy = index % call->copies;
    VkmqaMergeInfo info = {
        .structSize = sizeof(info),
        .recorder = recorder,
        .parts = call->parts,
        .totalQ = p->totalQ,
        .partOut = vkmqaGetMemoryRange(call->out, copy * call->strideOut, call->strideOut),
        .partLse = vkmqaGetMemoryRange(call->lse, copy * call->strideLse, call->strideLse),
        .out = vkmqaGetMemoryRange(p->out, 0, 0),
        .lse = vkmqaGetMemoryRange(p->lse, 0, 0),
    };
    if (p->parameters)
        info.parameters = vkmqaGetMemoryRange(p->parameters, 0, 0);
    return checkVk(vkmqaCmdMergeStates(p->attention, commandBuffer, &info), "recording a merge");
}

// Random parts; some have seen nothing, and NaN where nothing may be read.
static void fillParts(MergeCall* call) {
    const Problem* p = &call->problem;
    size_t rowBytes = (size_t)p->headDimV * p->ioType->bytes, count = call->rows * call->parts;
    call->hostOut = allocate(count * rowBytes + 4, 1);
    call->hostLse = allocate(count, sizeof(float));
    fillRandom(p->ioType, 1, 7, count * rowBytes, call->hostOut);
    fillRandom(typeTraits(VKMQA_TYPE_F32), 0.5, 8, count * sizeof(float), call->hostLse);
    for (size_t i = 0; i < count; i++) {
        if ((i % call->rows + i / call->rows) % 7 != 3)
            continue;
        call->hostLse[i] = -INFINITY;
        memset(call->hostOut + i * rowBytes, 0xFF, rowBytes);
    }
}

static BenchResult uploadParts(MergeCall* call) {
    Session* session = call->problem.session;
    size_t count = call->rows * call->parts;
    VkDeviceSize outBytes =
        ((VkDeviceSize)count * call->problem.headDimV * call->problem.ioType->bytes + 3) &
        ~(VkDeviceSize)3;
    VkDeviceSize lseBytes = (VkDeviceSize)count * sizeof(float);
    call->strideOut = (outBytes + 255) & ~(VkDeviceSize)255;
    call->strideLse = (lseBytes + 255) & ~(VkDeviceSize)255;
    call->copies = countCopies(session, call->strideOut + call->strideLse, session->rotateBytes);
    BenchResult result =
        createMemory(session, call->strideOut * call->copies, &call->out, "partial outputs");
    if (result == BENCH_OK)
        result = createMemory(session, call->strideLse * call->copies, &call->lse, "partial lse");
    for (uint32_t i = 0; result == BENCH_OK && i < call->copies; i++) {
        result = checkVk(vkmqaUpload(call->out, i * call->strideOut, call->hostOut, outBytes),
                         "uploading partial outputs");
        if (result == BENCH_OK)
            result = checkVk(vkmqaUpload(call->lse, i * call->strideLse, call->hostLse, lseBytes),
                             "uploading partial lse");
    }
    return result;
}

// Section 2.2 of FlashInfer (arXiv 2501.01005) in f64, the sink as one more part without an output.
static void mergeRow(const MergeCall* call, size_t row, double sink, float* part, double* out,
                     double* lse) {
    const Problem* p = &call->problem;
    double largest = sink, sum;
    for (uint32_t i = 0; i < call->parts; i++)
        largest = fmax(largest, call->hostLse[i * call->rows + row]);
    *lse = -INFINITY;
    if (largest == -INFINITY)
        return;
    sum = exp(sink - largest);
    for (uint32_t i = 0; i < call->parts; i++) {
        size_t at = i * call->rows + row;
        double weight = exp(call->hostLse[at] - largest);
        if (weight == 0)
            continue;
        sum += weight;
        decodeElements(p->ioType, call->hostOut + at * p->headDimV * p->ioType->bytes, p->headDimV,
                       part);
        for (uint32_t d = 0; d < p->headDimV; d++)
            out[d] += weight * (double)part[d];
    }
    for (uint32_t d = 0; d < p->headDimV; d++)
        out[d] /= sum;
    *lse = largest + log(sum);
}

static void expectMerge(const MergeCall* call, Reference* expected) {
    const Problem* p = &call->problem;
    float* part = allocate(p->headDimV, sizeof(float));
    *expected = (Reference){
        .count = (uint32_t)call->rows,
        .rows = allocate(call->rows, sizeof(ReferenceRow)),
        .out = allocate(call->rows * p->headDimV, sizeof(double)),
        .lse = allocate(call->rows, sizeof(double)),
        .complete = true,
    };
    for (size_t r = 0; r < call->rows; r++) {
        uint32_t head = (uint32_t)(r % p->numHeadsQ);
        expected->rows[r] = (ReferenceRow){0, (uint32_t)(r / p->numHeadsQ), head};
        mergeRow(call, r, p->sinks ? (double)p->sinks[head] : -INFINITY, part,
                 expected->out + r * p->headDimV, &expected->lse[r]);
    }
    free(part);
}

static BenchResult verifyMerge(MergeCall* call, Row* row) {
    Reference expected;
    Judgement judgement = {0};
    BenchResult result = poisonOutput(&call->problem);
    call->problem.bounds = boundsOf((const TypeTraits*[]){call->problem.ioType}, 1, true);
    expectMerge(call, &expected);
    if (result == BENCH_OK)
        result = runOnce(call->problem.session, recordMerge, call);
    if (result == BENCH_OK)
        result = judgeOutput(&call->problem, &expected, &judgement);
    row->nmse = judgement.nmse;
    row->wrong = judgement.wrong;
    if (judgement.wrong)
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    freeReference(&expected);
    return result;
}

BenchResult runMerge(Session* session, const Item* item, Row* row) {
    MergeCall call = {.parts = item->parts};
    BenchResult result = createItemProblem(session, item, 1, &call.problem);
    if (result != BENCH_OK)
        return result;
    const Problem* p = &call.problem;
    call.rows = (size_t)p->totalQ * p->numHeadsQ;
    row->bytes =
        (double)call.rows * (call.parts + 1) * (p->headDimV * (double)p->ioType->bytes + 4);
    snprintf(row->kernel, sizeof(row->kernel), "merge");
    snprintf(row->reason, sizeof(row->reason), "merges %u parts of each row", call.parts);
    fillParts(&call);
    result = uploadParts(&call);
    if (result == BENCH_OK && session->options->verify)
        result = verifyMerge(&call, row);
    if (result == BENCH_OK)
        result = measure(session, recordMerge, &call, call.copies, &row->time);
    if (result == BENCH_OK)
        applyRoof(session, row);
    if (call.out)
        vkmqaDestroyMemory(call.out);
    if (call.lse)
        vkmqaDestroyMemory(call.lse);
    free(call.hostOut);
    free(call.hostLse);
    destroyProblem(&call.problem);
    return result;
}

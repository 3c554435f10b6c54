// What fills a step's buffers and how its calls are recorded.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static BenchResult uploadCopies(const Problem* problem, VkmqaMemory memory, VkDeviceSize stride,
                                const void* data, VkDeviceSize size, const char* what) {
    BenchResult result = BENCH_OK;
    for (uint32_t i = 0; result == BENCH_OK && size && i < problem->copies; i++)
        result =
            checkVk(vkmqaUpload(memory, i * stride, data, (size + 3) & ~(VkDeviceSize)3), what);
    return result;
}

// Codes, and behind them the scales of block types.
static uint8_t* randomCache(const CachePlane* plane, uint64_t seed) {
    uint8_t* data = allocate(plane->size + 4, 1);
    size_t codes = plane->scalesOffset ? plane->scalesOffset : plane->size;
    // Heads differ in their fp8 scales by powers of two, so one scale serves to fill them all.
    fillRandom(plane->type, plane->headScales ? plane->headScales[0] : 1, seed, codes, data);
    if (plane->scalesOffset)
        fillRandomScales(plane->type, seed + 100, plane->size - codes, data + codes);
    return data;
}

BenchResult fillProblem(Problem* problem) {
    size_t sizeQ =
        (size_t)problem->totalQ * problem->numHeadsQ * problem->headDimQk * problem->ioType->bytes;
    problem->hostQ = allocate(sizeQ + 4, 1);
    fillRandom(problem->ioType, 1, 1, sizeQ, problem->hostQ);
    problem->hostK = randomCache(&problem->planeK, 2);
    if (problem->kvRequirements.v.size)
        problem->hostV = randomCache(&problem->planeV, 3);
    BenchResult result = checkVk(
        vkmqaUpload(problem->q, 0, problem->hostQ, (sizeQ + 3) & ~(size_t)3), "uploading queries");
    if (result == BENCH_OK)
        result = uploadCopies(problem, problem->k, problem->strideK, problem->hostK,
                              problem->kvRequirements.k.size, "uploading K");
    if (result == BENCH_OK)
        result = uploadCopies(problem, problem->v, problem->strideV, problem->hostV,
                              problem->kvRequirements.v.size, "uploading V");
    return result;
}

// A host array anew, filled from the device.
static BenchResult downloadArray(VkmqaMemory memory, VkDeviceSize offset, VkDeviceSize size,
                                 uint8_t** array, const char* what) {
    size = (size + 3) & ~(VkDeviceSize)3;
    free(*array);
    *array = allocate(size, 1);
    return size ? checkVk(vkmqaDownload(memory, offset, *array, size), what) : BENCH_OK;
}

BenchResult downloadInputs(Problem* p, uint32_t copy) {
    VkDeviceSize sizeQ = (VkDeviceSize)p->totalQ * p->numHeadsQ * p->headDimQk * p->ioType->bytes;
    BenchResult result = downloadArray(p->k, copy * p->strideK, p->kvRequirements.k.size, &p->hostK,
                                       "downloading the K cache");
    if (result == BENCH_OK)
        result = downloadArray(p->v, copy * p->strideV, p->kvRequirements.v.size, &p->hostV,
                               "downloading the V cache");
    if (result == BENCH_OK && p->rawQ)
        result = downloadArray(p->q, 0, sizeQ, &p->hostQ, "downloading the rotated queries");
    return result;
}

BenchResult poisonCache(Problem* problem) {
    VkDeviceSize most = problem->strideK > problem->strideV ? problem->strideK : problem->strideV;
    uint8_t* bytes = allocate(most, 1);
    memset(bytes, 0xFF, most);
    BenchResult result = uploadCopies(problem, problem->k, problem->strideK, bytes,
                                      problem->kvRequirements.k.size, "clearing K");
    if (result == BENCH_OK)
        result = uploadCopies(problem, problem->v, problem->strideV, bytes,
                              problem->kvRequirements.v.size, "clearing V");
    free(bytes);
    return result;
}

BenchResult uploadNewRows(Problem* problem) {
    VkDeviceSize rows = (VkDeviceSize)problem->totalNew * problem->numHeadsKv;
    VkDeviceSize sizeK = rows * problem->headDimQk * problem->newType->bytes;
    VkDeviceSize sizeV = problem->hostNewV ? rows * problem->headDimV * problem->newType->bytes : 0;
    problem->strideNewK = (sizeK + 255) & ~(VkDeviceSize)255;
    problem->strideNewV = (sizeV + 255) & ~(VkDeviceSize)255;
    BenchResult result = createMemory(problem->session, problem->strideNewK * problem->copies,
                                      &problem->newK, "new K rows");
    if (result == BENCH_OK)
        result = createMemory(problem->session, problem->strideNewV * problem->copies,
                              &problem->newV, "new V rows");
    if (result == BENCH_OK)
        result = uploadCopies(problem, problem->newK, problem->strideNewK, problem->hostNewK, sizeK,
                              "uploading new K rows");
    if (result == BENCH_OK)
        result = uploadCopies(problem, problem->newV, problem->strideNewV, problem->hostNewV, sizeV,
                              "uploading new V rows");
    VkDeviceSize sizeQ = (VkDeviceSize)problem->totalQ * problem->numHeadsQ * problem->headDimQk *
                         problem->newType->bytes;
    if (result == BENCH_OK && problem->hostRawQ)
        result = createMemory(problem->session, sizeQ, &problem->rawQ, "queries to rotate");
    if (result == BENCH_OK && problem->hostRawQ && sizeQ)
        result = checkVk(
            vkmqaUpload(problem->rawQ, 0, problem->hostRawQ, (sizeQ + 3) & ~(VkDeviceSize)3),
            "uploading queries to rotate");
    return result;
}

// All zero, which is "absent", where the memory or the range is.
static VkmqaBuffer rangeOf(VkmqaMemory memory, VkDeviceSize offset, VkDeviceSize size) {
    return memory && size ? vkmqaGetMemoryRange(memory, offset, size) : (VkmqaBuffer){0};
}
static VkmqaBuffer wholeOf(VkmqaMemory memory) {
    return memory ? vkmqaGetMemoryRange(memory, 0, 0) : (VkmqaBuffer){0};
}

VkmqaKv cacheCopy(const Problem* problem, uint32_t copy) {
    return (VkmqaKv){
        .k = rangeOf(problem->k, copy * problem->strideK, problem->kvRequirements.k.size),
        .v = rangeOf(problem->v, copy * problem->strideV, problem->kvRequirements.v.size),
        .numPages = problem->numPages,
    };
}

VkmqaAttentionInfo attentionCall(const Problem* problem, const VkmqaKv* kv) {
    return (VkmqaAttentionInfo){
        .structSize = sizeof(VkmqaAttentionInfo),
        .step = &problem->step,
        .kv = kv,
        .q = wholeOf(problem->q),
        .out = wholeOf(problem->out),
        .lse = wholeOf(problem->lse),
        .scratch = wholeOf(problem->scratch),
        .parameters = wholeOf(problem->parameters),
        .mask = wholeOf(problem->maskBits),
        .maskStride = problem->maskStride,
    };
}

VkmqaAppendInfo appendCall(const Problem* problem, const VkmqaKv* kv, uint32_t copy) {
    return (VkmqaAppendInfo){
        .structSize = sizeof(VkmqaAppendInfo),
        .step = &problem->step,
        .kv = kv,
        .newK = rangeOf(problem->newK, copy * problem->strideNewK, problem->strideNewK),
        .newV = rangeOf(problem->newV, copy * problem->strideNewV, problem->strideNewV),
        .parameters = wholeOf(problem->parameters),
        .q = wholeOf(problem->rawQ),
        .rotatedQ = problem->rawQ ? wholeOf(problem->q) : (VkmqaBuffer){0},
    };
}

BenchResult recordAttention(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                            uint32_t index) {
    const Problem* problem = user;
    VkmqaKv kv = cacheCopy(problem, index % problem->copies);
    VkmqaAttentionInfo info = attentionCall(problem, &kv);
    info.recorder = recorder;
    return checkVk(vkmqaCmdAttention(problem->attention, commandBuffer, &info),
                   "recording attention");
}

BenchResult recordAppend(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                         uint32_t index) {
    const Problem* problem = user;
    uint32_t copy = index % problem->copies;
    VkmqaKv kv = cacheCopy(problem, copy);
    VkmqaAppendInfo info = appendCall(problem, &kv, copy);
    info.recorder = recorder;
    return checkVk(vkmqaCmdAppendKv(problem->attention, commandBuffer, &info), "recording append");
}

// Tokens that the queries of all sequences see, and tokens of the cache that any of them sees.
static void countTokens(const Problem* problem, double* seen, double* touched) {
    *seen = *touched = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        int64_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        int64_t length = problem->seqLensKv[b], lowest = length, highest = 0;
        for (int64_t i = 0; i < queries; i++) {
            int64_t first, end;
            seenRange(&problem->info, length - queries + i, length, &first, &end);
            if (first >= end)
                continue;
            *seen += (double)(end - first);
            lowest = first < lowest ? first : lowest;
            highest = end > highest ? end : highest;
        }
        *touched += highest > lowest ? (double)(highest - lowest) : 0;
    }
}

void describeAttention(const Problem* problem, Row* row) {
    double seen, touched, rows = (double)problem->totalQ * problem->numHeadsQ;
    countTokens(problem, &seen, &touched);
    snprintf(row->kernel, sizeof(row->kernel), "%s", problem->kernel.name);
    snprintf(row->reason, sizeof(row->reason), "%s", problem->kernel.reason);
    row->cacheBytesPerToken = (double)problem->kvRequirements.bytesPerToken;
    row->bytes = row->cacheBytesPerToken * touched +
                 rows * problem->ioType->bytes * (problem->headDimQk + problem->headDimV) +
                 (problem->mask ? 4.0 * problem->maskStride * problem->totalQ : 0);
    row->flops = 2 * seen * problem->numHeadsQ * (problem->headDimQk + problem->headDimV);
}

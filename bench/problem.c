// The library object and the buffers of one step of attention.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t sum(const int32_t* values, uint32_t count) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += (uint32_t)values[i];
    return total;
}

static uint32_t largest(const int32_t* values, uint32_t count) {
    uint32_t most = 1;
    for (uint32_t i = 0; i < count; i++)
        most = (uint32_t)values[i] > most ? (uint32_t)values[i] : most;
    return most;
}

// --kernel NAME: the library offers its best kernel; avoid what it offers until it is the one asked for.
static BenchResult createNamedKernel(Session* session, VkmqaAttentionCreateInfo* info,
                                     const VkmqaStepLimits* limits, VkmqaAttention* attention) {
    char offered[256] = "";
    while (vkmqaDeviceCreateAttention(session->device, info, attention) == VK_SUCCESS) {
        VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
        BenchResult result =
            checkVk(vkmqaGetKernelInfo(*attention, limits, &kernel), "asking for the kernel");
        if (result != BENCH_OK || strcmp(kernel.name, session->options->kernelName) == 0)
            return result;
        size_t used = strlen(offered);
        snprintf(offered + used, sizeof(offered) - used, "%s%s", used ? ", " : "", kernel.name);
        bool stuck = kernel.kernel > 63 || (info->avoidKernels >> kernel.kernel & 1);
        info->avoidKernels |= 1ull << (kernel.kernel & 63);
        vkmqaDestroyAttention(*attention);
        *attention = NULL;
        if (stuck)
            break;
    }
    return fail(BENCH_MISSING,
                "--kernel is '%s', which is no kernel for this shape on this device; "
                "there are: %s",
                session->options->kernelName, *offered ? offered : "none");
}

static BenchResult createAttention(Session* session, Problem* problem,
                                   VkmqaAttentionCreateInfo info) {
    info.structSize = sizeof(info);
    info.tier = session->options->tier;
    if (session->options->kernelName)
        return createNamedKernel(session, &info, &problem->step.limits, &problem->attention);
    return checkVk(vkmqaDeviceCreateAttention(session->device, &info, &problem->attention),
                   "creating the attention object");
}

// Gives every sequence its pages, in an order that no kernel can mistake for a contiguous one.
static void dealPages(Problem* problem, const ProblemInfo* info) {
    uint32_t pageTokens = problem->kvRequirements.pageTokens;
    uint32_t* order = allocate(problem->numPages, sizeof(uint32_t));
    uint64_t state = 88172645463325252u;
    for (uint32_t i = 0; i < problem->numPages; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint32_t j = (uint32_t)(state % (i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    uint32_t next = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        uint32_t pages = ((uint32_t)info->contexts[b] + pageTokens - 1) / pageTokens;
        for (uint32_t p = 0; p < problem->maxPages; p++)
            problem->pageTable[(size_t)b * problem->maxPages + p] =
                p < pages ? (int32_t)order[next++] : 0;
    }
    free(order);
}

static uint32_t slotOf(const Problem* problem, uint32_t sequence, uint32_t position) {
    uint32_t pageTokens = problem->kvRequirements.pageTokens;
    if (!problem->pageTable)
        return sequence * pageTokens + position;
    size_t at = (size_t)sequence * problem->maxPages + position / pageTokens;
    return (uint32_t)problem->pageTable[at] * pageTokens + position % pageTokens;
}

static void fillMetadata(Problem* problem, const ProblemInfo* info) {
    uint32_t slot = 0;
    if (problem->pageTable)
        dealPages(problem, info);
    for (uint32_t b = 0; b < problem->batch; b++) {
        problem->cuSeqlensQ[b + 1] = problem->cuSeqlensQ[b] + info->queryTokens[b];
        problem->seqLensKv[b] = info->contexts[b];
        for (int32_t i = info->contexts[b] - info->newTokens[b]; i < info->contexts[b]; i++)
            problem->slots[slot++] = (int32_t)slotOf(problem, b, (uint32_t)i);
    }
}

static BenchResult uploadMetadata(Problem* problem, VkDeviceSize size) {
    uint8_t* bytes = allocate(size, 1);
    const VkmqaStepLayout* layout = &problem->step.layout;
    memcpy(bytes + layout->cuSeqlensQ, problem->cuSeqlensQ, ((size_t)problem->batch + 1) * 4);
    memcpy(bytes + layout->seqLensKv, problem->seqLensKv, (size_t)problem->batch * 4);
    if (problem->pageTable)
        memcpy(bytes + layout->pageTable, problem->pageTable,
               (size_t)problem->batch * problem->maxPages * 4);
    memcpy(bytes + layout->slotMapping, problem->slots, (size_t)problem->totalNew * 4);
    BenchResult result =
        checkVk(vkmqaUpload(problem->metadata, 0, bytes, size), "uploading the step's metadata");
    free(bytes);
    return result;
}

static BenchResult createMemory(Session* session, VkDeviceSize size, VkmqaMemory* memory,
                                const char* what) {
    size = (size + 255) & ~(VkDeviceSize)255;
    VkResult result =
        vkmqaCreateMemory(session->device, VKMQA_MEMORY_DEVICE, size ? size : 256, memory);
    if (result == VK_SUCCESS)
        return BENCH_OK;
    return fail(BENCH_ERROR,
                "%s: the device gives no %.1f MiB (VkResult %d); choose a smaller shape", what,
                (double)size / (1 << 20), result);
}

// Copies that fill rotateBytes, at most a quarter of the device's memory, at most 256.
static uint32_t countCopies(const Session* session, VkDeviceSize one, uint64_t rotateBytes) {
    uint64_t limit = session->properties.deviceMemory / 4;
    uint64_t fill = limit && rotateBytes > limit ? limit : rotateBytes;
    uint64_t copies = (fill + one - 1) / one;
    return copies < 1 ? 1 : copies > 256 ? 256 : (uint32_t)copies;
}

static BenchResult createBuffers(Problem* problem, const ProblemInfo* info) {
    Session* session = problem->session;
    VkmqaBufferRequirements scratch = {0}, metadata = {0};
    BenchResult result = checkVk(
        vkmqaGetKvRequirements(problem->attention, problem->numPages, &problem->kvRequirements),
        "sizing the cache");
    if (result == BENCH_OK)
        result = checkVk(
            vkmqaGetScratchRequirements(problem->attention, &problem->step.limits, &scratch),
            "sizing scratch memory");
    if (result == BENCH_OK)
        result = checkVk(vkmqaGetStepLayout(problem->attention, &problem->step.limits,
                                            &problem->step.layout, &metadata),
                         "laying out the step's metadata");
    if (result != BENCH_OK)
        return result;
    problem->maxPages = problem->step.layout.maxPages;
    if (problem->step.layout.pageTable != VKMQA_NONE)
        problem->pageTable = allocate((size_t)problem->batch * problem->maxPages + 1, 4);
    fillMetadata(problem, info);

    problem->strideK = (problem->kvRequirements.k.size + 255) & ~(VkDeviceSize)255;
    problem->strideV = (problem->kvRequirements.v.size + 255) & ~(VkDeviceSize)255;
    problem->copies = countCopies(session, problem->strideK + problem->strideV, info->rotateBytes);
    size_t rows = (size_t)problem->totalQ * problem->numHeadsQ;
    struct {
        VkDeviceSize size;
        VkmqaMemory* memory;
        const char* what;
    } all[] = {
        {metadata.size, &problem->metadata, "step metadata"},
        {rows * problem->headDimQk * problem->ioType->bytes, &problem->q, "queries"},
        {rows * problem->headDimV * problem->ioType->bytes, &problem->out, "outputs"},
        {rows * 4, &problem->lse, "lse"},
        {scratch.size, &problem->scratch, "scratch"},
        {problem->strideK * problem->copies, &problem->k, "the K cache"},
        {problem->strideV * problem->copies, &problem->v, "the V cache"},
    };
    for (size_t i = 0; result == BENCH_OK && i < sizeof(all) / sizeof(all[0]); i++)
        result = createMemory(session, all[i].size, all[i].memory, all[i].what);
    if (result != BENCH_OK)
        return result;
    problem->step.metadata = vkmqaGetMemoryRange(problem->metadata, 0, metadata.size);
    return uploadMetadata(problem, metadata.size);
}

BenchResult createProblem(Session* session, const ProblemInfo* info, Problem* problem) {
    VkmqaAttentionCreateInfo create = info->attention;
    uint32_t longest = largest(info->contexts, info->batch);
    // A contiguous cache has one page of maxSeqLenKv tokens per sequence: give it no slack.
    create.maxSeqLenKv = longest;
    *problem = (Problem){
        .session = session,
        .batch = info->batch,
        .totalQ = sum(info->queryTokens, info->batch),
        .totalKv = sum(info->contexts, info->batch),
        .totalNew = sum(info->newTokens, info->batch),
        .numHeadsQ = create.numHeadsQ,
        .numHeadsKv = create.numHeadsKv,
        .headDimQk = create.headDimQk,
        .headDimV = create.headDimV,
        .causal = create.flags & VKMQA_ATTENTION_CAUSAL_BIT,
        .scale = create.scale,
        .ioType = typeTraits(create.ioType),
        .newType = typeTraits(create.newType),
        .kType = typeTraits(create.kType),
        .vType = typeTraits(create.vType),
        .cuSeqlensQ = allocate(info->batch + 1, 4),
        .seqLensKv = allocate(info->batch + 1, 4),
        .numPages = info->batch,
    };
    problem->bounds =
        boundsOf((const TypeTraits*[]){problem->ioType, problem->kType, problem->vType}, 3);
    problem->slots = allocate(problem->totalNew + 1, 4);
    if (create.pageSize) {
        problem->numPages = 1; // one page that nobody owns
        for (uint32_t b = 0; b < info->batch; b++)
            problem->numPages +=
                ((uint32_t)info->contexts[b] + create.pageSize - 1) / create.pageSize;
    }
    problem->kvRequirements.structSize = sizeof(problem->kvRequirements);
    problem->kernel.structSize = sizeof(problem->kernel);
    problem->step.structSize = sizeof(problem->step);
    problem->step.limits = (VkmqaStepLimits){
        .batch = info->batch,
        .totalQ = problem->totalQ ? problem->totalQ : 1,
        .maxSeqLenQ = largest(info->queryTokens, info->batch),
        .maxSeqLenKv = longest,
        .newTokens = problem->totalNew ? problem->totalNew : 1,
    };
    BenchResult result = createAttention(session, problem, create);
    if (result == BENCH_OK)
        result =
            checkVk(vkmqaGetKernelInfo(problem->attention, &problem->step.limits, &problem->kernel),
                    "asking for the kernel");
    if (result == BENCH_OK)
        result = createBuffers(problem, info);
    if (result != BENCH_OK)
        destroyProblem(problem);
    return result;
}

void destroyProblem(Problem* problem) {
    VkmqaMemory memories[] = {problem->metadata, problem->q,       problem->out,
                              problem->lse,      problem->scratch, problem->k,
                              problem->v,        problem->newK,    problem->newV};
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++)
        if (memories[i])
            vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyAttention(problem->attention);
    void* host[] = {problem->cuSeqlensQ, problem->seqLensKv, problem->pageTable,
                    problem->slots,      problem->hostQ,     problem->hostK,
                    problem->hostV,      problem->hostNewK,  problem->hostNewV};
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        free(host[i]);
    *problem = (Problem){0};
}

static BenchResult uploadCopies(const Problem* problem, VkmqaMemory memory, VkDeviceSize stride,
                                const void* data, VkDeviceSize size, const char* what) {
    BenchResult result = BENCH_OK;
    for (uint32_t i = 0; result == BENCH_OK && size && i < problem->copies; i++)
        result =
            checkVk(vkmqaUpload(memory, i * stride, data, (size + 3) & ~(VkDeviceSize)3), what);
    return result;
}

static uint8_t* randomBytes(const TypeTraits* type, uint64_t seed, size_t bytes) {
    uint8_t* data = allocate(bytes + 4, 1);
    fillRandom(type, seed, bytes / type->bytes, data);
    return data;
}

BenchResult fillProblem(Problem* problem) {
    size_t sizeQ =
        (size_t)problem->totalQ * problem->numHeadsQ * problem->headDimQk * problem->ioType->bytes;
    problem->hostQ = randomBytes(problem->ioType, 1, sizeQ);
    problem->hostK = randomBytes(problem->kType, 2, problem->kvRequirements.k.size);
    problem->hostV = randomBytes(problem->vType, 3, problem->kvRequirements.v.size);
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
    VkDeviceSize sizeV = rows * problem->headDimV * problem->newType->bytes;
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
    return result;
}

VkmqaKv cacheCopy(const Problem* problem, uint32_t copy) {
    return (VkmqaKv){
        .k = vkmqaGetMemoryRange(problem->k, copy * problem->strideK,
                                 problem->kvRequirements.k.size),
        .v = vkmqaGetMemoryRange(problem->v, copy * problem->strideV,
                                 problem->kvRequirements.v.size),
        .numPages = problem->numPages,
    };
}

BenchResult recordAttention(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                            uint32_t index) {
    const Problem* problem = user;
    VkmqaKv kv = cacheCopy(problem, index % problem->copies);
    VkmqaAttentionInfo info = {
        .structSize = sizeof(info),
        .recorder = recorder,
        .step = &problem->step,
        .kv = &kv,
        .q = vkmqaGetMemoryRange(problem->q, 0, 0),
        .out = vkmqaGetMemoryRange(problem->out, 0, 0),
        .lse = vkmqaGetMemoryRange(problem->lse, 0, 0),
        .scratch = vkmqaGetMemoryRange(problem->scratch, 0, 0),
    };
    return checkVk(vkmqaCmdAttention(problem->attention, commandBuffer, &info),
                   "recording attention");
}

BenchResult recordAppend(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                         uint32_t index) {
    const Problem* problem = user;
    uint32_t copy = index % problem->copies;
    VkmqaKv kv = cacheCopy(problem, copy);
    VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = recorder,
        .step = &problem->step,
        .kv = &kv,
        .newK = vkmqaGetMemoryRange(problem->newK, copy * problem->strideNewK, problem->strideNewK),
        .newV = vkmqaGetMemoryRange(problem->newV, copy * problem->strideNewV, problem->strideNewV),
    };
    return checkVk(vkmqaCmdAppendKv(problem->attention, commandBuffer, &info), "recording append");
}

size_t rowOffset(const Problem* problem, uint32_t sequence, uint32_t head, uint32_t position,
                 uint32_t rowBytes) {
    uint32_t pageTokens = problem->kvRequirements.pageTokens;
    uint32_t slot = slotOf(problem, sequence, position);
    size_t row =
        ((size_t)(slot / pageTokens) * problem->numHeadsKv + head) * pageTokens + slot % pageTokens;
    return row * rowBytes;
}

void describeAttention(const Problem* problem, Row* row) {
    double keys = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        int64_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        int64_t length = problem->seqLensKv[b];
        if (!problem->causal) {
            keys += (double)queries * (double)length;
            continue;
        }
        for (int64_t i = 0; i < queries; i++)
            keys += length - queries + i + 1 > 0 ? (double)(length - queries + i + 1) : 0;
    }
    double rows = (double)problem->totalQ * problem->numHeadsQ;
    snprintf(row->kernel, sizeof(row->kernel), "%s", problem->kernel.name);
    snprintf(row->reason, sizeof(row->reason), "%s", problem->kernel.reason);
    row->cacheBytesPerToken = (double)problem->kvRequirements.bytesPerToken;
    row->bytes = row->cacheBytesPerToken * problem->totalKv +
                 rows * problem->ioType->bytes * (problem->headDimQk + problem->headDimV);
    row->flops = 2 * keys * problem->numHeadsQ * (problem->headDimQk + problem->headDimV);
}

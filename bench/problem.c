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

BenchResult createAttention(Session* session, VkmqaAttentionCreateInfo info,
                            const VkmqaStepLimits* limits, VkmqaAttention* attention) {
    info.structSize = sizeof(info);
    info.tier = session->options->tier;
    info.tuningProfile = session->profile;
    info.tuningProfileSize = session->profileSize;
    if (session->options->kernelName)
        return createNamedKernel(session, &info, limits, attention);
    if (session->trusted)
        return checkVk(vkmqaCreateAttention(vkmqaGetDeviceContext(session->device), &info, attention),
                       "creating the attention object");
    return checkVk(vkmqaDeviceCreateAttention(session->device, &info, attention),
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

uint32_t slotOf(const Problem* problem, uint32_t sequence, uint32_t position) {
    uint32_t pageTokens = problem->kvRequirements.pageTokens;
    if (!problem->pageTable)
        return sequence * pageTokens + position;
    size_t at = (size_t)sequence * problem->maxPages + position / pageTokens;
    return (uint32_t)problem->pageTable[at] * pageTokens + position % pageTokens;
}

size_t rowOf(const Problem* problem, uint32_t headKv, uint32_t slot) {
    uint32_t pageTokens = problem->kvRequirements.pageTokens;
    return ((size_t)(slot / pageTokens) * problem->numHeadsKv + headKv) * pageTokens +
           slot % pageTokens;
}

static void fillMetadata(Problem* problem, const ProblemInfo* info) {
    uint32_t row = 0;
    if (problem->pageTable)
        dealPages(problem, info);
    for (uint32_t b = 0; b < problem->batch; b++) {
        problem->cuSeqlensQ[b + 1] = problem->cuSeqlensQ[b] + info->queryTokens[b];
        problem->seqLensKv[b] = info->contexts[b];
        for (int32_t i = 0; i < info->queryTokens[b]; i++) // below 0 where queries outnumber tokens
            problem->queryPositions[problem->cuSeqlensQ[b] + i] =
                info->contexts[b] - info->queryTokens[b] + i;
        for (int32_t i = info->contexts[b] - info->newTokens[b]; i < info->contexts[b]; i++) {
            problem->positions[row] = i;
            problem->slots[row++] = (int32_t)slotOf(problem, b, (uint32_t)i);
        }
    }
}

BenchResult uploadMetadata(Problem* problem) {
    const VkmqaStepLayout* layout = &problem->step.layout;
    VkDeviceSize size = problem->step.metadata.size;
    uint8_t* bytes = allocate((size + 3) & ~(VkDeviceSize)3, 1);
    const struct {
        uint32_t offset;
        const int32_t* values;
        size_t count;
    } arrays[] = {
        {layout->cuSeqlensQ, problem->cuSeqlensQ, (size_t)problem->batch + 1},
        {layout->seqLensKv, problem->seqLensKv, problem->batch},
        {layout->pageTable, problem->pageTable, (size_t)problem->batch * problem->maxPages},
        {layout->slotMapping, problem->slots, problem->totalNew},
        {layout->positions, problem->positions, problem->totalNew},
        {layout->queryPositions, problem->queryPositions, problem->totalQ},
    };
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
        if (arrays[i].offset != VKMQA_NONE && arrays[i].count)
            memcpy(bytes + arrays[i].offset, arrays[i].values, arrays[i].count * 4);
    BenchResult result =
        checkVk(vkmqaUpload(problem->metadata, 0, bytes, (size + 3) & ~(VkDeviceSize)3),
                "uploading the step's metadata");
    free(bytes);
    return result;
}

BenchResult createMemory(Session* session, VkDeviceSize size, VkmqaMemory* memory,
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

// At most a quarter of the device's memory, at most 256.
uint32_t countCopies(const Session* session, VkDeviceSize one, uint64_t rotateBytes) {
    uint64_t limit = session->properties.deviceMemory / 4;
    uint64_t fill = limit && rotateBytes > limit ? limit : rotateBytes;
    uint64_t copies = (fill + one - 1) / one;
    return copies < 1 ? 1 : copies > 256 ? 256 : (uint32_t)copies;
}

static void describePlanes(Problem* problem) {
    const VkmqaKvRequirements* kv = &problem->kvRequirements;
    problem->planeK = (CachePlane){
        .type = problem->kType,
        .headDim = problem->headDimQk,
        .rowBytes = kv->rowBytesK,
        .scaleBytes = kv->scaleBytesK,
        .scalesOffset = kv->scalesOffsetK,
        .size = kv->k.size,
        .headScales = problem->kScales,
    };
    problem->planeV = (CachePlane){
        .type = problem->vType,
        .headDim = problem->headDimV,
        .rowBytes = kv->rowBytesV,
        .scaleBytes = kv->scaleBytesV,
        .scalesOffset = kv->scalesOffsetV,
        .size = kv->v.size,
        .headScales = problem->vScales,
    };
    if (problem->info.flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT) {
        problem->planeV = problem->planeK;
        problem->planeV.headDim = problem->headDimV;
    }
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
    fillModifiers(problem, info);
    describePlanes(problem);

    problem->strideK = (problem->kvRequirements.k.size + 255) & ~(VkDeviceSize)255;
    problem->strideV = (problem->kvRequirements.v.size + 255) & ~(VkDeviceSize)255;
    problem->copies =
        info->copies ? info->copies
                     : countCopies(session, problem->strideK + problem->strideV, info->rotateBytes);
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
    result = uploadMetadata(problem);
    return result == BENCH_OK ? createModifiers(problem) : result;
}

BenchResult createProblem(Session* session, const ProblemInfo* info, Problem* problem) {
    VkmqaAttentionCreateInfo create = info->attention;
    uint32_t longest = largest(info->contexts, info->batch);
    // A contiguous cache has one page of maxSeqLenKv tokens per sequence: give it no slack.
    create.maxSeqLenKv = longest;
    create.headDimV = create.headDimV ? create.headDimV : create.headDimQk;
    *problem = (Problem){
        .session = session,
        .info = create,
        .batch = info->batch,
        .totalQ = sum(info->queryTokens, info->batch),
        .totalKv = sum(info->contexts, info->batch),
        .totalNew = sum(info->newTokens, info->batch),
        .numHeadsQ = create.numHeadsQ,
        .numHeadsKv = create.numHeadsKv,
        .headDimQk = create.headDimQk,
        .headDimV = create.headDimV,
        .scale = create.scale,
        .softcap = create.softcap,
        .ropeTheta = info->ropeTheta > 0 ? info->ropeTheta : 10000,
        .ioType = typeTraits(create.ioType),
        .newType = typeTraits(create.newType),
        .kType = typeTraits(create.kType),
        .vType = typeTraits(create.vType),
        .cuSeqlensQ = allocate(info->batch + 1, 4),
        .seqLensKv = allocate(info->batch + 1, 4),
        .numPages = info->batch,
    };
    problem->bounds =
        boundsOf((const TypeTraits*[]){problem->ioType, problem->kType, problem->vType}, 3, true);
    problem->slots = allocate(problem->totalNew + 1, 4);
    problem->positions = allocate(problem->totalNew + 1, 4);
    problem->queryPositions = allocate(problem->totalQ + 1, 4);
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
    BenchResult result =
        createAttention(session, create, &problem->step.limits, &problem->attention);
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
    VkmqaMemory memories[] = {
        problem->metadata, problem->parameters, problem->maskBits, problem->q,
        problem->out,      problem->lse,        problem->scratch,  problem->k,
        problem->v,        problem->newK,       problem->newV,     problem->rawQ,
    };
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++)
        if (memories[i])
            vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyAttention(problem->attention);
    void* host[] = {
        problem->cuSeqlensQ,  problem->seqLensKv, problem->pageTable, problem->slots,
        problem->positions,   problem->sinks,     problem->kScales,   problem->queryPositions,
        problem->alibiSlopes, problem->vScales,   problem->mask,      problem->hostQ,
        problem->hostK,       problem->hostV,     problem->hostNewK,  problem->hostNewV,
        problem->hostRawQ,
    };
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        free(host[i]);
    *problem = (Problem){0};
}

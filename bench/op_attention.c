// decode, prefill, and what surrounds them: creating the object, recording a call.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double referenceBudget = 2e8; // multiplications: a fraction of a second

VkmqaAttentionCreateInfo attentionInfo(const Item* item) {
    const Modifiers* m = &item->modifiers;
    return (VkmqaAttentionCreateInfo){
        .structSize = sizeof(VkmqaAttentionCreateInfo),
        .flags = m->flags | (item->causal ? VKMQA_ATTENTION_CAUSAL_BIT : 0),
        .numHeadsQ = item->numHeadsQ,
        .numHeadsKv = item->numHeadsKv,
        .headDimQk = item->headDimQk,
        .headDimV = item->headDimV,
        .ioType = item->ioType,
        .newType = item->newType,
        .kType = item->kType,
        .vType = item->vType,
        .pageSize = item->pageSize,
        .maxSeqLenKv = item->context,
        .windowLeft = m->windowLeft,
        .windowRight = m->windowRight,
        .chunkSize = m->chunkSize,
        .softcap = m->softcap,
        .ropeStyle = m->ropeStyle,
        .ropeDim = m->ropeDim,
        .ropeOffset = m->ropeOffset,
    };
}

BenchResult createItemProblem(Session* session, const Item* item, uint32_t copies,
                              Problem* problem) {
    int32_t* queries = allocate(item->batch, 4);
    int32_t* contexts = allocate(item->batch, 4);
    for (uint32_t b = 0; b < item->batch; b++) {
        queries[b] = (int32_t)item->queryTokens;
        contexts[b] = (int32_t)item->context;
    }
    ProblemInfo info = {
        .attention = attentionInfo(item),
        .batch = item->batch,
        .queryTokens = queries,
        .contexts = contexts,
        .newTokens = queries,
        .rotateBytes = session->rotateBytes,
        .copies = copies,
    };
    BenchResult result = createProblem(session, &info, problem);
    free(queries);
    free(contexts);
    return result;
}

static BenchResult measureAndVerify(Session* session, Problem* problem, Row* row) {
    Reference expected = {0};
    Judgement before = {0}, after = {0};
    bool verify = session->options->verify;
    BenchResult result = BENCH_OK;
    if (verify) {
        ReferenceProblem reference = referenceOf(problem);
        computeReference(&reference, referenceBudget, &expected);
        result = verifyAttention(problem, &expected, &before);
    }
    if (result == BENCH_OK && verify)
        result = poisonOutput(problem); // so that timed calls that do nothing show
    if (result == BENCH_OK)
        result = measure(session, recordAttention, problem, problem->copies, &row->time);
    // Once more: every copy of the cache holds the same, so the timed calls must agree too.
    if (result == BENCH_OK && verify)
        result = judgeOutput(problem, &expected, &after);
    if (result == BENCH_OK && verify) {
        const Judgement* worse =
            before.wrong || (!after.wrong && before.nmse > after.nmse) ? &before : &after;
        row->nmse = worse->nmse;
        row->wrong = worse->wrong;
        if (worse->wrong)
            snprintf(row->note, sizeof(row->note), "%s", worse->why);
    }
    // Rotation counts whole caches: with a window that leaves out most of each it does not reach far.
    double rotated = row->bytes * problem->copies;
    bool windowed = 2 * row->bytes < row->cacheBytesPerToken * problem->totalKv;
    if (result == BENCH_OK && !row->wrong && windowed && 2 * rotated < (double)session->rotateBytes)
        snprintf(row->note, sizeof(row->note),
                 "the calls read %.0f MiB again and again, which the device's caches may hold",
                 rotated / (1 << 20));
    freeReference(&expected);
    return result;
}

BenchResult runAttention(Session* session, const Item* item, Row* row) {
    Problem problem;
    BenchResult result = createItemProblem(session, item, 0, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    result = fillProblem(&problem);
    if (result == BENCH_OK)
        result = measureAndVerify(session, &problem, row);
    if (result == BENCH_OK)
        applyRoof(session, row);
    destroyProblem(&problem);
    return result;
}

// CPU time of one vkmqaCmdAttention, apart from everything around it. Nothing is submitted.
BenchResult runRecord(Session* session, const Item* item, Row* row) {
    enum { CALLS = 1000, PER_COMMAND_BUFFER = 50 };
    Problem problem;
    VkmqaCommands commands = NULL;
    double samples[CALLS];
    BenchResult result = createItemProblem(session, item, 0, &problem);
    if (result != BENCH_OK)
        return result;
    result = checkVk(vkmqaCreateCommands(session->device, &commands), "creating a command buffer");
    VkmqaKv kv = cacheCopy(&problem, 0);
    VkmqaAttentionInfo info = attentionCall(&problem, &kv);
    for (int i = 0; result == BENCH_OK && i < CALLS; i++) {
        if (i % PER_COMMAND_BUFFER == 0) {
            result = checkVk(vkmqaBeginCommands(commands), "beginning a command buffer");
            info.recorder = vkmqaGetCommandsRecorder(commands);
        }
        VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
        double start = secondsNow();
        VkResult recorded = vkmqaCmdAttention(problem.attention, commandBuffer, &info);
        samples[i] = secondsNow() - start;
        if (result == BENCH_OK)
            result = checkVk(recorded, "recording attention");
    }
    if (result == BENCH_OK) {
        describeAttention(&problem, row);
        row->bytes = row->flops = 0; // nothing was computed
        row->time = summarise(samples, CALLS);
        snprintf(row->note, sizeof(row->note), "CPU time of one vkmqaCmdAttention");
    }
    vkmqaDestroyCommands(commands);
    destroyProblem(&problem);
    return result;
}

typedef void(VKAPI_PTR* AnyFunction)(void);
static AnyFunction loadFunction(const Session* session, const char* name) {
    return session->handles.getInstanceProcAddr(session->handles.instance, name);
}

// One vkmqaCreateAttention on a device of its own, whose VkPipelineCache starts with the given bytes.
static BenchResult timeCreation(const Session* parent, const Item* item, void** cache,
                                size_t* cacheSize, double* seconds) {
    Session own = {.options = parent->options};
    BenchResult result = openSession(&own, *cache, *cacheSize);
    if (result != BENCH_OK)
        return result;
    VkmqaAttentionCreateInfo info = attentionInfo(item);
    info.tier = parent->options->tier;
    VkmqaAttention attention = NULL;
    double start = secondsNow();
    VkResult created = vkmqaCreateAttention(vkmqaGetDeviceContext(own.device), &info, &attention);
    *seconds = secondsNow() - start;
    result = checkVk(created, "creating the attention object");
    if (result == BENCH_OK && !*cache && own.handles.pipelineCache) {
        PFN_vkGetPipelineCacheData getData =
            (PFN_vkGetPipelineCacheData)loadFunction(&own, "vkGetPipelineCacheData");
        getData(own.handles.device, own.handles.pipelineCache, cacheSize, NULL);
        *cache = allocate(*cacheSize + 1, 1);
        result = checkVk(getData(own.handles.device, own.handles.pipelineCache, cacheSize, *cache),
                         "reading the pipeline cache");
    }
    vkmqaDestroyAttention(attention);
    vkmqaCloseDevice(own.device);
    return result;
}

// vkmqaCreateAttention with an empty and with a warm VkPipelineCache: two rows.
BenchResult runCreate(Session* session, const Item* item, Row* row) {
    enum { SAMPLES = 5 };
    double cold[SAMPLES], warm[SAMPLES];
    void* cache = NULL;
    size_t cacheSize = 0;
    BenchResult result = BENCH_OK;
    for (int i = 0; result == BENCH_OK && i < SAMPLES; i++) {
        void* none = NULL;
        size_t noneSize = 0;
        result = timeCreation(session, item, &none, &noneSize, &cold[i]);
        if (cache)
            free(none);
        else
            cache = none, cacheSize = noneSize;
        if (result == BENCH_OK && cache)
            result = timeCreation(session, item, &cache, &cacheSize, &warm[i]);
    }
    if (result == BENCH_OK) {
        row->time = summarise(cold, SAMPLES);
        snprintf(row->kernel, sizeof(row->kernel), "cold cache");
        snprintf(
            row->note, sizeof(row->note),
            "vkmqaCreateAttention with an empty VkPipelineCache (the driver's own disk cache is "
            "left as it is)");
        Row second = *row;
        if (cache) {
            second.time = summarise(warm, SAMPLES);
            snprintf(second.kernel, sizeof(second.kernel), "warm cache");
            snprintf(second.note, sizeof(second.note),
                     "vkmqaCreateAttention with a filled VkPipelineCache");
            addRow(session->report, row);
            *row = second;
        }
    }
    free(cache);
    return result;
}

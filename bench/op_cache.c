// The cache layer (vkmqa_cache.h): fork, the bookkeeping of a step, pages to the host and back, snapshots. Each is
// timed beside the plain thing: a copy of as many bytes, a file of as many.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 9, MOST_NEW = 2048 };

typedef struct Bench {
    Session* session;
    const Item* item;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaCommands commands;
    VkmqaMemory* layers; // [2 * numLayers], filled, so that every page of memory is there
    VkmqaKv* kv;
    uint32_t numLayers, pageSize;
    VkDeviceSize pageBytes;
} Bench;

static void closeBench(Bench* bench) {
    vkmqaDestroyCache(bench->cache);
    vkmqaDestroyCommands(bench->commands);
    for (uint32_t i = 0; bench->layers && i < 2 * bench->numLayers; i++)
        vkmqaDestroyMemory(bench->layers[i]);
    vkmqaDestroyAttention(bench->attention);
    free(bench->layers);
    free(bench->kv);
}

static BenchResult fillMemory(Bench* bench, VkmqaMemoryKind kind, VkDeviceSize bytes, VkmqaMemory* memory) {
    enum { PIECE = 8 << 20 };
    static uint8_t noise[PIECE];
    if (!noise[0])
        for (size_t i = 0; i < PIECE; i++)
            noise[i] = (uint8_t)(i * 2654435761u >> 13 | 1);
    BenchResult result =
        checkVk(vkmqaCreateMemory(bench->session->device, kind, bytes, memory), "allocating a layer");
    for (VkDeviceSize at = 0; result == BENCH_OK && at < bytes; at += PIECE)
        result = checkVk(vkmqaUpload(*memory, at, noise, bytes - at < PIECE ? (bytes - at) & ~3ull : PIECE),
                         "filling a layer");
    return result;
}

// A cache of these sizes for the item's heads and types.
static BenchResult openBench(Session* session, const Item* item, uint32_t sequences, uint32_t pages,
                             uint32_t layers, uint32_t hostPages, Bench* bench) {
    *bench = (Bench){.session = session, .item = item, .numLayers = layers,
                     .pageSize = item->pageSize ? item->pageSize : 16};
    VkmqaAttentionCreateInfo info = attentionInfo(item);
    info.pageSize = bench->pageSize;
    info.maxSeqLenKv = (item->context + 1024) & ~7u; // room for the tokens that the op adds
    info.tier = session->options->tier;
    BenchResult result =
        checkVk(vkmqaCreateAttention(vkmqaGetDeviceContext(session->device), &info, &bench->attention),
                "creating the attention object");
    VkmqaCacheCreateInfo create = {.structSize = sizeof(create),
                                   .attention = bench->attention,
                                   .numLayers = layers,
                                   .numPages = pages,
                                   .maxSequences = sequences,
                                   .maxNewTokens = sequences > MOST_NEW ? sequences : MOST_NEW,
                                   .hostPages = hostPages,
                                   .device = session->device};
    VkmqaCacheRequirements needed = {.structSize = sizeof(needed)};
    if (result == BENCH_OK)
        result = checkVk(vkmqaGetCacheRequirements(&create, &needed), "planning the cache");
    bench->pageBytes = needed.pageBytes;
    bench->layers = allocate(2 * (size_t)layers, sizeof(*bench->layers));
    create.layers = bench->kv = allocate(layers, sizeof(*bench->kv));
    for (uint32_t i = 0; result == BENCH_OK && i < layers; i++) {
        result = fillMemory(bench, VKMQA_MEMORY_DEVICE, needed.kv.k.size, &bench->layers[2 * i]);
        if (result == BENCH_OK && needed.kv.v.size)
            result = fillMemory(bench, VKMQA_MEMORY_DEVICE, needed.kv.v.size, &bench->layers[2 * i + 1]);
        bench->kv[i] = (VkmqaKv){vkmqaGetMemoryRange(bench->layers[2 * i], 0, 0),
                                 vkmqaGetMemoryRange(bench->layers[2 * i + 1], 0, 0), pages};
    }
    if (result == BENCH_OK)
        result = checkVk(vkmqaCreateCommands(session->device, &bench->commands), "creating commands");
    if (result == BENCH_OK)
        result = checkVk(vkmqaCreateCache(&create, &bench->cache), "creating the cache");
    if (result != BENCH_OK)
        closeBench(bench);
    return result;
}

static BenchResult makeSequence(Session* session, Bench* bench, uint32_t tokens, VkmqaSequence* sequence) {
    double seconds;
    BenchResult result =
        checkVk(vkmqaCreateSequence(bench->cache, NULL, sequence, NULL), "creating a sequence");
    while (result == BENCH_OK && tokens) {
        const VkmqaSequenceTokens fresh = {*sequence, tokens < MOST_NEW ? tokens : MOST_NEW, NULL, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &fresh};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        result = checkVk(vkmqaBuildStep(bench->cache, &info, &step), "building a step");
        if (result == BENCH_OK)
            result = checkVk(vkmqaBeginCommands(bench->commands), "beginning commands");
        if (result == BENCH_OK)
            result = checkVk(vkmqaCmdUpdateCache(bench->cache, vkmqaGetCommandBuffer(bench->commands), &step),
                             "recording a step");
        if (result == BENCH_OK)
            result = submitAndWait(session, bench->commands, &seconds);
        tokens -= fresh.newTokens;
    }
    return result;
}

static void describe(Bench* bench, Row* row, const char* kernel, double bytes, double* samples, uint32_t count) {
    snprintf(row->kernel, sizeof(row->kernel), "%s", kernel);
    row->item.pageSize = bench->pageSize;
    row->bytes = bytes;
    row->time = summarise(samples, count);
}

// ---- fork, step ------------------------------------------------------------------------------------

BenchResult runFork(Session* session, const Item* item, Row* row) {
    enum { FORKS = 256, ROUNDS = 15 };
    uint32_t pageSize = item->pageSize ? item->pageSize : 16;
    uint32_t tokens = item->context - item->context % pageSize + pageSize / 2; // the last page is shared in part
    Bench bench;
    BenchResult result = openBench(session, item, FORKS + 1, (tokens + pageSize - 1) / pageSize + FORKS + 1,
                                   item->layers, 0, &bench);
    if (result != BENCH_OK)
        return result;
    VkmqaSequence source, forks[FORKS] = {0};
    VkmqaSequenceTokens fresh[FORKS];
    double forking[ROUNDS], copying[ROUNDS];
    result = makeSequence(session, &bench, tokens, &source);
    for (int round = 0; result == BENCH_OK && round < ROUNDS; round++) {
        double start = secondsNow();
        VkResult forked = VK_SUCCESS;
        for (int i = 0; i < FORKS && forked == VK_SUCCESS; i++)
            forked = vkmqaForkSequence(bench.cache, source, tokens, &forks[i]);
        forking[round] = (secondsNow() - start) / FORKS;
        result = checkVk(forked, "forking");
        for (int i = 0; i < FORKS; i++)
            fresh[i] = (VkmqaSequenceTokens){forks[i], 1, NULL, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = FORKS, .tokens = fresh};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        double seconds = 0;
        if (result == BENCH_OK)
            result = checkVk(vkmqaBuildStep(bench.cache, &info, &step), "building a step");
        if (result == BENCH_OK)
            result = checkVk(vkmqaBeginCommands(bench.commands), "beginning commands");
        if (result == BENCH_OK)
            result = checkVk(vkmqaCmdUpdateCache(bench.cache, vkmqaGetCommandBuffer(bench.commands), &step),
                             "recording page copies");
        if (result == BENCH_OK)
            result = submitAndWait(session, bench.commands, &seconds);
        copying[round] = seconds / FORKS;
        for (int i = 0; i < FORKS; i++)
            vkmqaDestroySequence(bench.cache, forks[i]);
    }
    if (result == BENCH_OK) {
        Row copies = *row;
        describe(&bench, row, "fork", 0, forking, ROUNDS);
        snprintf(row->reason, sizeof(row->reason), "CPU time of forking %u tokens in pages of %u", tokens,
                 pageSize);
        describe(&bench, &copies, "copy on write", 2.0 * (double)bench.pageBytes, copying, ROUNDS);
        snprintf(copies.reason, sizeof(copies.reason), "a page of %u layers for each fork's first new token",
                 item->layers);
        addRow(session->report, &copies);
    }
    closeBench(&bench);
    return result;
}

BenchResult runStep(Session* session, const Item* item, Row* row) {
    enum { STEPS = 400 };
    uint32_t batch = item->batch > 1 ? item->batch : 256, pageSize = item->pageSize ? item->pageSize : 16;
    Item small = *item; // no rows are touched: the smallest do
    small.numHeadsQ = small.numHeadsKv = 1;
    small.headDimQk = small.headDimV = 8;
    small.modifiers = (Modifiers){0};
    Bench bench;
    BenchResult result = openBench(session, &small, batch,
                                   batch * ((item->context + STEPS) / pageSize + 1), 1, 0, &bench);
    if (result != BENCH_OK)
        return result;
    VkmqaSequenceTokens* tokens = allocate(batch, sizeof(*tokens));
    double samples[STEPS];
    for (uint32_t i = 0; result == BENCH_OK && i < batch; i++) {
        result = makeSequence(session, &bench, item->context, &tokens[i].sequence);
        tokens[i].newTokens = 1;
    }
    const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = batch, .tokens = tokens};
    for (int i = 0; result == BENCH_OK && i < STEPS; i++) {
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        result = checkVk(vkmqaBeginCommands(bench.commands), "beginning commands");
        VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(bench.commands);
        double start = secondsNow();
        VkResult built = vkmqaBuildStep(bench.cache, &info, &step);
        if (built == VK_SUCCESS)
            built = vkmqaCmdUpdateCache(bench.cache, commandBuffer, &step);
        samples[i] = secondsNow() - start;
        if (result == BENCH_OK)
            result = checkVk(built, "building a step");
    }
    if (result == BENCH_OK) {
        describe(&bench, row, "step", 0, samples, STEPS);
        row->item.batch = batch;
        snprintf(row->reason, sizeof(row->reason),
                 "CPU time of vkmqaBuildStep and vkmqaCmdUpdateCache, a token for each of %u sequences", batch);
    }
    free(tokens);
    closeBench(&bench);
    return result;
}

// ---- offload ---------------------------------------------------------------------------------------

typedef struct PlainCopy {
    Bench* bench;
    VkmqaMemory host;
    PFN_vkCmdCopyBuffer copy;
} PlainCopy;

// As many bytes, of the layers one after the other.
static BenchResult copyPlainly(PlainCopy* plain, double* seconds) {
    Bench* bench = plain->bench;
    BenchResult result = checkVk(vkmqaBeginCommands(bench->commands), "beginning commands");
    if (result != BENCH_OK)
        return result;
    VkBuffer host = vkmqaGetMemoryRange(plain->host, 0, 0).buffer;
    VkDeviceSize at = 0;
    for (uint32_t i = 0; i < 2 * bench->numLayers; i++) {
        VkmqaBuffer layer = vkmqaGetMemoryRange(bench->layers[i], 0, 0);
        if (!layer.buffer)
            continue;
        const VkBufferCopy region = {0, at, layer.size};
        plain->copy(vkmqaGetCommandBuffer(bench->commands), layer.buffer, host, 1, &region);
        at += layer.size;
    }
    double start = secondsNow(), unused;
    result = submitAndWait(bench->session, bench->commands, &unused);
    *seconds = secondsNow() - start;
    return result;
}

BenchResult runOffload(Session* session, const Item* item, Row* row) {
    uint32_t pageSize = item->pageSize ? item->pageSize : 16;
    uint32_t pages = (item->context + pageSize - 1) / pageSize;
    const uint64_t timeout = 600000000000ull;
    Bench bench;
    BenchResult result = openBench(session, item, 1, pages, item->layers, pages, &bench);
    if (result != BENCH_OK)
        return result;
    double bytes = (double)bench.pageBytes * pages, times[3][SAMPLES];
    PlainCopy plain = {.bench = &bench};
    plain.copy = (PFN_vkCmdCopyBuffer)session->handles.getInstanceProcAddr(session->handles.instance,
                                                                           "vkCmdCopyBuffer");
    VkmqaSequence sequence;
    result = fillMemory(&bench, VKMQA_MEMORY_DOWNLOAD, bench.pageBytes * pages, &plain.host);
    if (result == BENCH_OK)
        result = makeSequence(session, &bench, item->context, &sequence);
    for (int i = -1; result == BENCH_OK && i < SAMPLES; i++) { // the first round touches everything
        double start = secondsNow();
        VkResult moved = vkmqaOffloadSequence(bench.cache, sequence);
        if (moved == VK_SUCCESS)
            moved = vkmqaFinishTransfers(bench.cache, timeout);
        double away = secondsNow();
        if (moved == VK_SUCCESS)
            moved = vkmqaRestoreSequence(bench.cache, sequence);
        if (moved == VK_SUCCESS)
            moved = vkmqaFinishTransfers(bench.cache, timeout);
        double back = secondsNow(), copied = 0;
        result = checkVk(moved, "offloading");
        if (result == BENCH_OK)
            result = copyPlainly(&plain, &copied);
        if (i < 0)
            continue;
        times[0][i] = away - start;
        times[1][i] = back - away;
        times[2][i] = copied;
    }
    if (result == BENCH_OK) {
        Row restore = *row, copy = *row;
        describe(&bench, row, "offload", bytes, times[0], SAMPLES);
        describe(&bench, &restore, "restore", bytes, times[1], SAMPLES);
        describe(&bench, &copy, "plain copy", bytes, times[2], SAMPLES);
        snprintf(row->reason, sizeof(row->reason), "%u pages of %u layers to host memory: %.2f of the plain copy's "
                 "speed; restore %.2f", pages, item->layers, copy.time.median / row->time.median,
                 copy.time.median / restore.time.median);
        addRow(session->report, &copy);
        addRow(session->report, &restore);
    }
    vkmqaDestroyMemory(plain.host);
    closeBench(&bench);
    return result;
}

// ---- save, load ------------------------------------------------------------------------------------

// Written, synced and renamed, as a snapshot is.
static BenchResult timePlainly(bool load, const char* const names[3], uint8_t* bytes, size_t size, double* seconds) {
    double start = secondsNow();
    bool done = load ? readWholeFile(names[1], bytes, size) : writeWholeFile(names[1], names[2], bytes, size);
    *seconds = secondsNow() - start;
    return done ? BENCH_OK
                : fail(BENCH_ERROR, "%s %s: %s", load ? "reading" : "writing", names[1],
                       errno ? strerror(errno) : "it ends early");
}

// One round of each after the other: the plain file, then the snapshot.
static BenchResult timeRound(Bench* bench, bool load, VkmqaSequence sequence, const char* const names[3], uint8_t* bytes,
                             size_t size, double* plain, double* own) {
    const VkmqaSnapshotInfo info = {.structSize = sizeof(info), .path = names[0]};
    BenchResult result = timePlainly(load, names, bytes, size, plain);
    if (result != BENCH_OK)
        return result;
    uint32_t count = 1;
    VkmqaSequence loaded = 0;
    double start = secondsNow();
    VkResult moved = load ? vkmqaLoadSequences(bench->cache, &info, &count, &loaded)
                          : vkmqaSaveSequences(bench->cache, 1, &sequence, &info);
    *own = secondsNow() - start;
    vkmqaDestroySequence(bench->cache, loaded);
    return checkVk(moved, load ? "loading" : "saving");
}

BenchResult runSnapshot(Session* session, const Item* item, Row* row) {
    bool load = item->op == OP_LOAD;
    uint32_t pageSize = item->pageSize ? item->pageSize : 16;
    uint32_t pages = (item->context + pageSize - 1) / pageSize;
    const char* folder = getenv("TMPDIR");
    char paths[3][512];
    const char* const ends[3] = {"snapshot", "plain", "plain.tmp"};
    const char* names[3] = {paths[0], paths[1], paths[2]};
    for (int i = 0; i < 3; i++)
        snprintf(paths[i], sizeof(paths[i]), "%s/vkmqa-bench-%ld.%s", folder ? folder : ".", processNumber(),
                 ends[i]);
    Bench bench;
    BenchResult result = openBench(session, item, 2, 2 * pages, item->layers, 0, &bench);
    if (result != BENCH_OK)
        return result;
    size_t size = (size_t)(bench.pageBytes * pages);
    uint8_t* bytes = allocate(size, 1);
    memset(bytes, 1, size);
    double plain[SAMPLES], own[SAMPLES], unused;
    VkmqaSequence sequence;
    result = makeSequence(session, &bench, item->context, &sequence);
    if (result == BENCH_OK && load) // what will be read
        result = timeRound(&bench, false, sequence, names, bytes, size, &unused, &unused);
    for (int i = 0; result == BENCH_OK && i < SAMPLES; i++)
        result = timeRound(&bench, load, sequence, names, bytes, size, &plain[i], &own[i]);
    if (result == BENCH_OK) {
        Row file = *row;
        describe(&bench, row, load ? "load" : "save", (double)size, own, SAMPLES);
        describe(&bench, &file, load ? "plain read" : "plain write", (double)size, plain, SAMPLES);
        snprintf(row->reason, sizeof(row->reason), "%.0f MiB in %s: %.2fx the time of the plain file", size / 1048576.0,
                 folder ? folder : "the current folder", row->time.median / file.time.median);
        addRow(session->report, &file);
    }
    for (int i = 0; i < 3; i++)
        remove(names[i]);
    free(bytes);
    closeBench(&bench);
    return result;
}

#include "failures.h"

#include <vkmqa/vkmqa_cache.h>

#include <stdio.h>
#include <string.h>

enum { HEADS_Q = 2, HEADS_KV = 1, DIM = 16, PAGE = 16, MOST = 40, LAYERS = 2, ROW = HEADS_KV * DIM * 4 };

static const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape),
                                               .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                               .numHeadsQ = HEADS_Q,
                                               .numHeadsKv = HEADS_KV,
                                               .headDimQk = DIM,
                                               .ioType = VKMQA_TYPE_F32,
                                               .kType = VKMQA_TYPE_F16,
                                               .pageSize = PAGE,
                                               .maxSeqLenKv = 128};

typedef struct Program {
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaCommands commands;
    VkmqaMemory rows;
} Program;

// Records and submits a built step; may be called again after a failure.
static VkResult runStep(Program* p, const VkmqaCacheStep* step) {
    VkResult result = vkmqaBeginCommands(p->commands);
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(p->commands);
    if (!result)
        result = vkmqaCmdUpdateCache(p->cache, commandBuffer, step);
    for (uint32_t layer = 0; layer < LAYERS && !result; layer++) {
        const VkmqaAppendInfo append = {.structSize = sizeof(append),
                                        .recorder = vkmqaGetCommandsRecorder(p->commands),
                                        .step = &step->step,
                                        .kv = vkmqaGetCacheLayer(p->cache, layer),
                                        .newK = vkmqaGetMemoryRange(p->rows, 0, MOST * ROW),
                                        .newV = vkmqaGetMemoryRange(p->rows, MOST * ROW, MOST * ROW)};
        result = vkmqaCmdAppendKv(p->attention, commandBuffer, &append);
    }
    return result;
}

static VkResult shift(Program* p, VkmqaSequence sequence) {
    VkResult result = vkmqaBeginCommands(p->commands);
    const VkmqaShiftInfo info = {.structSize = sizeof(info),
                                 .recorder = vkmqaGetCommandsRecorder(p->commands),
                                 .sequence = sequence,
                                 .keep = 2,
                                 .drop = 3};
    if (!result)
        result = vkmqaCmdShiftSequence(p->cache, vkmqaGetCommandBuffer(p->commands), &info);
    return result;
}

static VkBool32 hashBytes(void* userData, const void* data, size_t size) {
    uint64_t* hash = userData;
    for (size_t i = 0; i < size; i++)
        *hash = (*hash ^ ((const uint8_t*)data)[i]) * 1099511628211u; // FNV-1a
    return VK_TRUE;
}

void scenarioCache(Attempt* attempt) {
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = harnessMessage};
    Program p = {0};
    REQUIRE(vkmqaOpenDevice(&open, &p.device)); // scenario_own.c fails here
    VkmqaSequence first = 0, fork = 0;
    char path[64] = "";
    uint32_t ids[MOST];
    for (uint32_t i = 0; i < MOST; i++)
        ids[i] = 7 + i;
    ATTEMPT(vkmqaCreateAttention(vkmqaGetDeviceContext(p.device), &shape, &p.attention));
    ATTEMPT(vkmqaCreateCommands(p.device, &p.commands));
    ATTEMPT(vkmqaCreateMemory(p.device, VKMQA_MEMORY_UPLOAD, 2 * MOST * ROW, &p.rows));
    float* rows = vkmqaGetMemoryPointer(p.rows);
    for (int i = 0; i < 2 * MOST * ROW / 4; i++)
        rows[i] = (float)(i % 97) / 64;
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create),
                                         .attention = p.attention,
                                         .numLayers = LAYERS,
                                         .numPages = 12,
                                         .maxSequences = 8,
                                         .maxNewTokens = MOST,
                                         .hostPages = 8,
                                         .flags = VKMQA_CACHE_CLEAR_FREED_BIT | VKMQA_CACHE_DEVICE_METADATA_BIT,
                                         .device = p.device};
    VkmqaCacheRequirements needs = {.structSize = sizeof(needs)};
    ATTEMPT(vkmqaGetCacheRequirements(&create, &needs));
    ATTEMPT(vkmqaCreateCache(&create, &p.cache));
    ATTEMPT(vkmqaCreateSequence(p.cache, NULL, &first, NULL));
    VkmqaSequenceTokens tokens = {first, MOST, ids, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    ATTEMPT(vkmqaReserveTokens(p.cache, 1, &tokens));
    ATTEMPT(vkmqaBuildStep(p.cache, &build, &step));
    ATTEMPT(runStep(&p, &step));
    ATTEMPT(vkmqaSubmitCommands(p.commands));
    ATTEMPT(vkmqaWaitCommands(p.commands, UINT64_MAX));
    ATTEMPT(vkmqaForkSequence(p.cache, first, 20, &fork));
    tokens = (VkmqaSequenceTokens){fork, 3, ids, NULL};
    ATTEMPT(vkmqaBuildStep(p.cache, &build, &step));
    ATTEMPT(runStep(&p, &step));
    ATTEMPT(vkmqaSubmitCommands(p.commands));
    ATTEMPT(vkmqaWaitCommands(p.commands, UINT64_MAX));
    ATTEMPT(shift(&p, fork));
    ATTEMPT(vkmqaSubmitCommands(p.commands));
    ATTEMPT(vkmqaWaitCommands(p.commands, UINT64_MAX));
    ATTEMPT(vkmqaOffloadSequence(p.cache, first));
    ATTEMPT(vkmqaFinishTransfers(p.cache, UINT64_MAX));
    ATTEMPT(vkmqaRestoreSequence(p.cache, first));
    ATTEMPT(vkmqaFinishTransfers(p.cache, UINT64_MAX));
    ATTEMPT(vkmqaPinSequence(p.cache, fork, VK_TRUE));
    ATTEMPT(vkmqaOffloadLeastRecent(p.cache, 1, NULL)); // one is free
    ATTEMPT(vkmqaPinSequence(p.cache, fork, VK_FALSE));
    // A step that is never recorded.
    tokens = (VkmqaSequenceTokens){fork, 1, ids, NULL};
    ATTEMPT(vkmqaBuildStep(p.cache, &build, &step));
    ATTEMPT(vkmqaDiscardSteps(p.cache));
    ATTEMPT(vkmqaTruncateSequence(p.cache, first, 30));
    snprintf(path, sizeof(path), "%s/snapshot", attempt->folder);
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .path = path};
    const VkmqaSequence both[] = {first, fork};
    VkmqaSequence sequences[2];
    uint32_t count = 2;
    ATTEMPT(vkmqaSaveSequences(p.cache, 2, both, &snapshot));
    ATTEMPT(vkmqaSaveSequences(p.cache, 2, both, &snapshot)); // over the old one
    ATTEMPT(vkmqaDestroySequence(p.cache, first));
    ATTEMPT(vkmqaDestroySequence(p.cache, fork));
    ATTEMPT((count = 2, vkmqaLoadSequences(p.cache, &snapshot, &count, sequences)));
    // What the cache holds now, to the last byte.
    uint64_t hash;
    const VkmqaSnapshotInfo digest = {.structSize = sizeof(digest), .write = hashBytes, .userData = &hash};
    ATTEMPT((hash = 1469598103934665603u, vkmqaSaveSequences(p.cache, 2, sequences, &digest)));
    memcpy(attempt->result, &hash, sizeof(hash));
    attempt->resultSize = sizeof(hash);
end:
    WATCHED(vkmqaDestroyCache(p.cache));
    WATCHED(vkmqaDestroyMemory(p.rows));
    WATCHED(vkmqaDestroyCommands(p.commands));
    WATCHED(vkmqaDestroyAttention(p.attention));
    WATCHED(vkmqaCloseDevice(p.device));
    if (*path)
        remove(path);
}

#include "failures.h"

#include <math.h>
#include <string.h>

enum { HEADS_Q = 4, HEADS_KV = 2, DIM = 32, PAGE = 16, TOKENS = 5, PAGES = 16, PARTS = 2 };
enum { Q_BYTES = TOKENS * HEADS_Q * DIM * 4, KV_BYTES = TOKENS * HEADS_KV * DIM * 4, LSE_BYTES = TOKENS * HEADS_Q * 4 };

static const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape),
                                               .flags = VKMQA_ATTENTION_CAUSAL_BIT | VKMQA_ATTENTION_TREE_MASK_BIT |
                                                        VKMQA_ATTENTION_SINKS_BIT,
                                               .numHeadsQ = HEADS_Q,
                                               .numHeadsKv = HEADS_KV,
                                               .headDimQk = DIM,
                                               .ioType = VKMQA_TYPE_F32,
                                               .kType = VKMQA_TYPE_F16,
                                               .pageSize = PAGE,
                                               .maxSeqLenKv = PAGES * PAGE,
                                               .splitSize = 64};

// The buffers of one step, in the order of their creation.
typedef struct Buffers {
    VkmqaMemory k, v, newK, newV, q, out, lse, scratch, parameters, mask, metadata, partOut, partLse, merged;
} Buffers;
enum { BUFFERS = sizeof(Buffers) / sizeof(VkmqaMemory) };

static void fill(float* values, size_t count, float seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1.7f + 0.31f;
        seed -= (float)(int)seed;
        values[i] = seed - 0.5f;
    }
}

// What is compared later must have been computed: all finite, and none of it as the memory was.
static bool holdsNumbers(const uint8_t* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, bytes + 4 * i, 4);
        if (!isfinite(value) || value == 0)
            return false;
    }
    return true;
}

// One sequence of TOKENS tokens, a chain; of the drafts the second and third are kept.
static void writeMetadata(const VkmqaStepLayout* layout, void* mapped) {
    char* bytes = mapped;
    memset(bytes + layout->status, 0, 4);
    memcpy(bytes + layout->cuSeqlensQ, (const int32_t[]){0, TOKENS}, 8);
    memcpy(bytes + layout->seqLensKv, (const int32_t[]){TOKENS}, 4);
    for (int32_t i = 0; i < PAGES; i++)
        memcpy(bytes + layout->pageTable + 4 * i, &i, 4);
    for (int32_t i = 0; i < TOKENS; i++)
        memcpy(bytes + layout->slotMapping + 4 * i, &i, 4);
    memcpy(bytes + layout->cuAccepted, (const int32_t[]){0, 2}, 8);
    memcpy(bytes + layout->accepted, (const int32_t[]){1, 2}, 8);
}

static VkResult record(VkmqaCommands commands, VkmqaAttention attention, const VkmqaStep* step, const Buffers* b) {
    const VkmqaRecorder recorder = vkmqaGetCommandsRecorder(commands);
    const VkmqaKv kv = {vkmqaGetMemoryRange(b->k, 0, 0), vkmqaGetMemoryRange(b->v, 0, 0), PAGES};
    const VkmqaAppendInfo append = {.structSize = sizeof(append),
                                    .recorder = recorder,
                                    .step = step,
                                    .kv = &kv,
                                    .newK = vkmqaGetMemoryRange(b->newK, 0, 0),
                                    .newV = vkmqaGetMemoryRange(b->newV, 0, 0)};
    const VkmqaAttentionInfo attend = {.structSize = sizeof(attend),
                                       .recorder = recorder,
                                       .step = step,
                                       .kv = &kv,
                                       .q = vkmqaGetMemoryRange(b->q, 0, 0),
                                       .out = vkmqaGetMemoryRange(b->out, 0, 0),
                                       .lse = vkmqaGetMemoryRange(b->lse, 0, 0),
                                       .scratch = vkmqaGetMemoryRange(b->scratch, 0, 0),
                                       .parameters = vkmqaGetMemoryRange(b->parameters, 0, 0),
                                       .mask = vkmqaGetMemoryRange(b->mask, 0, 0)};
    const VkmqaMergeInfo merge = {.structSize = sizeof(merge),
                                  .recorder = recorder,
                                  .parts = PARTS,
                                  .totalQ = TOKENS,
                                  .partOut = vkmqaGetMemoryRange(b->partOut, 0, 0),
                                  .partLse = vkmqaGetMemoryRange(b->partLse, 0, 0),
                                  .out = vkmqaGetMemoryRange(b->merged, 0, 0),
                                  .parameters = vkmqaGetMemoryRange(b->parameters, 0, 0)};
    const VkmqaCompactInfo compact = {.structSize = sizeof(compact), .recorder = recorder, .step = step, .kv = &kv};
    VkResult result = vkmqaBeginCommands(commands);
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
    if (!result)
        result = vkmqaCmdAppendKv(attention, commandBuffer, &append);
    if (!result)
        result = vkmqaCmdAttention(attention, commandBuffer, &attend);
    if (!result)
        result = vkmqaCmdMergeStates(attention, commandBuffer, &merge);
    if (!result)
        result = vkmqaCmdCompactKv(attention, commandBuffer, &compact);
    if (!result)
        result = vkmqaSubmitCommands(commands);
    return result;
}

void computeOn(Attempt* attempt, VkmqaDevice device) {
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = TOKENS};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaAttention attention = NULL;
    VkmqaCommands commands = NULL;
    Buffers b = {0};
    ATTEMPT(vkmqaDeviceCreateAttention(device, &shape, &attention));
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof(kvNeeds)};
    VkmqaBufferRequirements scratch, parameters, metadata;
    ATTEMPT(vkmqaGetKvRequirements(attention, PAGES, &kvNeeds));
    ATTEMPT(vkmqaGetScratchRequirements(attention, &limits, &scratch));
    ATTEMPT(vkmqaGetParametersRequirements(attention, &parameters));
    ATTEMPT(vkmqaGetStepLayout(attention, &limits, &step.layout, &metadata));
    const struct {
        VkmqaMemory* memory;
        VkDeviceSize size;
        VkmqaMemoryKind kind;
    } all[BUFFERS] = {{&b.k, kvNeeds.k.size, VKMQA_MEMORY_DEVICE},
                      {&b.v, kvNeeds.v.size, VKMQA_MEMORY_DEVICE},
                      {&b.newK, KV_BYTES, VKMQA_MEMORY_UPLOAD},
                      {&b.newV, KV_BYTES, VKMQA_MEMORY_UPLOAD},
                      {&b.q, Q_BYTES, VKMQA_MEMORY_DEVICE},
                      {&b.out, Q_BYTES, VKMQA_MEMORY_DEVICE},
                      {&b.lse, LSE_BYTES, VKMQA_MEMORY_DOWNLOAD},
                      {&b.scratch, scratch.size + 16, VKMQA_MEMORY_DEVICE},
                      {&b.parameters, parameters.size, VKMQA_MEMORY_UPLOAD},
                      {&b.mask, TOKENS * 4, VKMQA_MEMORY_UPLOAD},
                      {&b.metadata, metadata.size, VKMQA_MEMORY_UPLOAD},
                      {&b.partOut, PARTS * Q_BYTES, VKMQA_MEMORY_UPLOAD},
                      {&b.partLse, PARTS * LSE_BYTES, VKMQA_MEMORY_UPLOAD},
                      {&b.merged, Q_BYTES, VKMQA_MEMORY_DOWNLOAD}};
    for (int i = 0; i < BUFFERS; i++)
        ATTEMPT(vkmqaCreateMemory(device, all[i].kind, all[i].size, all[i].memory));
    float values[PARTS * TOKENS * HEADS_Q * DIM], zeros[256] = {0};
    const float sinks[HEADS_Q] = {0.5f, -1, 2, 0};
    const VkmqaParametersInfo constants = {.structSize = sizeof(constants), .sinks = sinks};
    ATTEMPT(vkmqaWriteParameters(attention, &constants, (size_t)parameters.size, vkmqaGetMemoryPointer(b.parameters)));
    writeMetadata(&step.layout, vkmqaGetMemoryPointer(b.metadata));
    step.metadata = vkmqaGetMemoryRange(b.metadata, 0, 0);
    for (uint32_t i = 0; i < TOKENS; i++)
        ((uint32_t*)vkmqaGetMemoryPointer(b.mask))[i] = (2u << i) - 1;
    fill(values, COUNT(values), 0.1f);
    ATTEMPT(vkmqaUpload(b.q, 0, values, Q_BYTES));
    ATTEMPT(vkmqaUpload(b.partOut, 0, values, PARTS * Q_BYTES));
    ATTEMPT(vkmqaUpload(b.partLse, 0, zeros, PARTS * LSE_BYTES));
    fill(values, COUNT(values), 0.2f);
    memcpy(vkmqaGetMemoryPointer(b.newK), values, KV_BYTES);
    memcpy(vkmqaGetMemoryPointer(b.newV), values + KV_BYTES / 4, KV_BYTES);
    ATTEMPT(vkmqaCreateCommands(device, &commands));
    ATTEMPT(record(commands, attention, &step, &b));
    ATTEMPT(vkmqaWaitCommands(commands, UINT64_C(60000000000)));
    ATTEMPT(vkmqaDownload(b.out, 0, attempt->result, Q_BYTES));
    memcpy(attempt->result + Q_BYTES, vkmqaGetMemoryPointer(b.lse), LSE_BYTES);
    memcpy(attempt->result + Q_BYTES + LSE_BYTES, vkmqaGetMemoryPointer(b.merged), Q_BYTES);
    attempt->resultSize = 2 * Q_BYTES + LSE_BYTES;
    assert_true(holdsNumbers(attempt->result, attempt->resultSize / 4));
    // Once more in slices: compaction has moved rows, so the answer is another, but a known one.
    const VkmqaKv kv = {vkmqaGetMemoryRange(b.k, 0, 0), vkmqaGetMemoryRange(b.v, 0, 0), PAGES};
    const VkmqaAttentionInfo again = {.structSize = sizeof(again),
                                      .recorder = vkmqaGetCommandsRecorder(commands),
                                      .step = &step,
                                      .kv = &kv,
                                      .q = vkmqaGetMemoryRange(b.q, 0, 0),
                                      .out = vkmqaGetMemoryRange(b.merged, 0, 0),
                                      .scratch = vkmqaGetMemoryRange(b.scratch, 0, 0),
                                      .parameters = vkmqaGetMemoryRange(b.parameters, 0, 0),
                                      .mask = vkmqaGetMemoryRange(b.mask, 0, 0)};
    double correction = 0;
    ATTEMPT(vkmqaRunAttention(commands, attention, &again, 1e-9, &correction));
    memcpy(attempt->result + attempt->resultSize, vkmqaGetMemoryPointer(b.merged), Q_BYTES);
    attempt->resultSize += Q_BYTES;
end:
    WATCHED(vkmqaDestroyCommands(commands));
    for (int i = 0; i < BUFFERS; i++)
        WATCHED(vkmqaDestroyMemory(((VkmqaMemory*)&b)[i]));
    WATCHED(vkmqaDestroyAttention(attention));
}

void scenarioOwn(Attempt* attempt) {
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open),
                                      .selector = "0",
                                      .messageCallback = harnessMessage,
                                      .lowPriority = VK_TRUE};
    VkmqaDeviceProperties properties[4] = {{.structSize = sizeof(properties[0])}};
    uint32_t count = COUNT(properties);
    VkmqaDevice device = NULL;
    ATTEMPT(vkmqaListDevices(&count, properties, harnessMessage, NULL));
    ATTEMPT(vkmqaOpenDevice(&open, &device));
    computeOn(attempt, device);
end:
    WATCHED(vkmqaCloseDevice(device));
}

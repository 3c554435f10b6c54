// SPDX-License-Identifier: MIT
// Conversations over one paged cache: they share a system prompt, one is forked and rolled back, one is saved
// to a file and restored. Every answer is checked against attention computed without a cache.
//
// There is no language model here: a token's query, key and value are invented from its number.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vkmqa/vkmqa_cache.h>

enum { LAYERS = 2, HEADS_Q = 8, HEADS_KV = 2, DIM = 64, PAGE = 16, PROMPT = 70, MOST_TOKENS = 256 };
enum { Q_BYTES = HEADS_Q * DIM * 4, KV_BYTES = HEADS_KV * DIM * 4, LAYER_BYTES = PROMPT * (Q_BYTES + 2 * KV_BYTES) };

#define CHECK(call)                                                                                \
    do {                                                                                           \
        VkResult result_ = (call);                                                                 \
        if (result_ != VK_SUCCESS) {                                                               \
            fprintf(stderr, "%s: VkResult %d\n", #call, result_);                                   \
            exit(result_ == VK_ERROR_INCOMPATIBLE_DRIVER ? 77 : 1);                                \
        }                                                                                          \
    } while (0)

static void say(VkmqaSeverity severity, const char* text, void* userData) {
    (void)userData;
    if (severity == VKMQA_SEVERITY_ERROR)
        fprintf(stderr, "vkmqa: %s\n", text);
}

// A conversation as an application has it: its tokens, and the cache's name for them.
typedef struct Conversation {
    VkmqaSequence sequence;
    uint32_t count;
    uint32_t tokens[MOST_TOKENS];
} Conversation;

static struct {
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaCommands commands;
    VkmqaMemory inputs, outputs, scratch; // q, k and v of a step's tokens; their outputs
} app;

// Element i of a token's query (kind 0), key (1) or value (2), between -1 and 1.
static float element(uint32_t token, uint32_t layer, uint32_t kind, uint32_t i) {
    uint32_t x = (token * 3 + kind) * 2654435761u + (layer * 1024 + i) * 40503u;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x ^ x >> 13) * 3266489917u;
    return (float)(x >> 8) / (1 << 23) - 1;
}

// The last token's output of one head, from nothing but the tokens.
static void attendPlainly(const Conversation* conversation, uint32_t layer, uint32_t head, double out[DIM]) {
    double scores[MOST_TOKENS], largest = -INFINITY, sum = 0;
    uint32_t headKv = head / (HEADS_Q / HEADS_KV), last = conversation->count - 1;
    for (uint32_t t = 0; t <= last; t++) {
        scores[t] = 0;
        for (uint32_t d = 0; d < DIM; d++)
            scores[t] += (double)element(conversation->tokens[last], layer, 0, head * DIM + d) *
                         element(conversation->tokens[t], layer, 1, headKv * DIM + d) / sqrt(DIM);
        largest = fmax(largest, scores[t]);
    }
    memset(out, 0, DIM * sizeof(*out));
    for (uint32_t t = 0; t <= last; t++) {
        double weight = exp(scores[t] - largest);
        sum += weight;
        for (uint32_t d = 0; d < DIM; d++)
            out[d] += weight * element(conversation->tokens[t], layer, 2, headKv * DIM + d);
    }
    for (uint32_t d = 0; d < DIM; d++)
        out[d] /= sum;
}

// Records append and attention of all layers for a step, runs it, and returns its outputs.
static const float* runStep(const VkmqaCacheStep* step) {
    CHECK(vkmqaBeginCommands(app.commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(app.commands);
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(app.commands);
    CHECK(vkmqaCmdUpdateCache(app.cache, commandBuffer, step)); // before anything that uses the step
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        VkDeviceSize q = layer * LAYER_BYTES, k = q + PROMPT * Q_BYTES, v = k + PROMPT * KV_BYTES;
        const VkmqaKv* kv = vkmqaGetCacheLayer(app.cache, layer);
        const VkmqaAppendInfo append = {.structSize = sizeof(append),
                                        .recorder = recorder,
                                        .step = &step->step,
                                        .kv = kv,
                                        .newK = vkmqaGetMemoryRange(app.inputs, k, PROMPT * KV_BYTES),
                                        .newV = vkmqaGetMemoryRange(app.inputs, v, PROMPT * KV_BYTES)};
        CHECK(vkmqaCmdAppendKv(app.attention, commandBuffer, &append));
        const VkmqaAttentionInfo attend = {
            .structSize = sizeof(attend),
            .recorder = recorder,
            .step = &step->step,
            .kv = kv,
            .q = vkmqaGetMemoryRange(app.inputs, q, PROMPT * Q_BYTES),
            .out = vkmqaGetMemoryRange(app.outputs, layer * PROMPT * Q_BYTES, PROMPT * Q_BYTES),
            .scratch = vkmqaGetMemoryRange(app.scratch, 0, 0)};
        CHECK(vkmqaCmdAttention(app.attention, commandBuffer, &attend));
    }
    CHECK(vkmqaSubmitCommands(app.commands));
    CHECK(vkmqaWaitCommands(app.commands, UINT64_MAX));
    return vkmqaGetMemoryPointer(app.outputs);
}

// Appends tokens to a conversation and checks what the last one sees.
static void speak(Conversation* conversation, const char* what, const uint32_t* tokens, uint32_t count) {
    const VkmqaSequenceTokens fresh = {conversation->sequence, count, tokens, NULL};
    const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &fresh};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    CHECK(vkmqaBuildStep(app.cache, &info, &step));
    for (uint32_t layer = 0; layer < LAYERS; layer++) { // what a model's projections would give
        float* q = (float*)((char*)vkmqaGetMemoryPointer(app.inputs) + layer * LAYER_BYTES);
        float *k = q + PROMPT * HEADS_Q * DIM, *v = k + PROMPT * HEADS_KV * DIM;
        for (uint32_t t = 0; t < count; t++) {
            for (uint32_t i = 0; i < HEADS_Q * DIM; i++)
                q[t * HEADS_Q * DIM + i] = element(tokens[t], layer, 0, i);
            for (uint32_t i = 0; i < HEADS_KV * DIM; i++) {
                k[t * HEADS_KV * DIM + i] = element(tokens[t], layer, 1, i);
                v[t * HEADS_KV * DIM + i] = element(tokens[t], layer, 2, i);
            }
        }
    }
    const float* outputs = runStep(&step);
    memcpy(conversation->tokens + conversation->count, tokens, count * sizeof(*tokens));
    conversation->count += count;
    double worst = 0, out[DIM];
    for (uint32_t row = 0; row < LAYERS * HEADS_Q; row++) {
        uint32_t layer = row / HEADS_Q, head = row % HEADS_Q;
        const float* got = outputs + ((layer * PROMPT + count - 1) * HEADS_Q + head) * DIM;
        attendPlainly(conversation, layer, head, out);
        for (uint32_t d = 0; d < DIM; d++)
            worst = fmax(worst, fabs(out[d] - (double)got[d]));
    }
    VkmqaCacheState state = {.structSize = sizeof(state)};
    CHECK(vkmqaGetCacheState(app.cache, &state));
    printf("%-34s %3u tokens, %2u pages used, %2u of them shared, error %.1e\n", what, conversation->count,
           state.usedPages, state.sharedPages, worst);
    if (!(worst < 1e-3))
        exit(1);
}

static void setUp(void) {
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .messageCallback = say};
    CHECK(vkmqaOpenDevice(&open, &app.device));
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                           .numHeadsQ = HEADS_Q,
                                           .numHeadsKv = HEADS_KV,
                                           .headDimQk = DIM,
                                           .ioType = VKMQA_TYPE_F32,
                                           .kType = VKMQA_TYPE_F16,
                                           .pageSize = PAGE,
                                           .maxSeqLenKv = MOST_TOKENS};
    CHECK(vkmqaDeviceCreateAttention(app.device, &info, &app.attention));
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create),
                                         .attention = app.attention,
                                         .numLayers = LAYERS,
                                         .numPages = 40,
                                         .maxSequences = 16,
                                         .maxNewTokens = PROMPT,
                                         .device = app.device};
    CHECK(vkmqaCreateCache(&create, &app.cache));
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = PROMPT};
    VkmqaBufferRequirements scratch;
    CHECK(vkmqaGetScratchRequirements(app.attention, &limits, &scratch));
    CHECK(vkmqaCreateCommands(app.device, &app.commands));
    CHECK(vkmqaCreateMemory(app.device, VKMQA_MEMORY_UPLOAD, LAYERS * LAYER_BYTES, &app.inputs));
    CHECK(vkmqaCreateMemory(app.device, VKMQA_MEMORY_DOWNLOAD, LAYERS * PROMPT * Q_BYTES, &app.outputs));
    CHECK(vkmqaCreateMemory(app.device, VKMQA_MEMORY_DEVICE, scratch.size + 16, &app.scratch));
}

static void tearDown(void) {
    vkmqaDestroyCache(app.cache);
    vkmqaDestroyMemory(app.inputs);
    vkmqaDestroyMemory(app.outputs);
    vkmqaDestroyMemory(app.scratch);
    vkmqaDestroyCommands(app.commands);
    vkmqaDestroyAttention(app.attention);
    vkmqaCloseDevice(app.device);
}

int main(int argc, char** argv) {
    const char* path = argc > 1 ? argv[1] : "chat_cache.snapshot";
    setUp();

    // The system prompt is computed once. Its whole pages are found again by their tokens.
    uint32_t prompt[PROMPT], question[] = {900, 901, 902};
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 100 + i;
    static Conversation chats[4];
    for (uint32_t c = 0; c < 3; c++) {
        const VkmqaSequenceCreateInfo info = {.structSize = sizeof(info), .tokenCount = PROMPT - 1,
                                              .tokenIds = prompt};
        char what[64];
        uint32_t known;
        CHECK(vkmqaCreateSequence(app.cache, &info, &chats[c].sequence, &known));
        memcpy(chats[c].tokens, prompt, known * sizeof(*prompt));
        chats[c].count = known;
        snprintf(what, sizeof(what), "chat %u starts, %u tokens known", c, known);
        speak(&chats[c], what, prompt + known, PROMPT - known);
        question[0] = 900 + c * 10;
        speak(&chats[c], "  is asked something of its own", question, 3);
    }

    // A fork shares everything until one of the two goes on; then it has a copy of one page.
    chats[3] = chats[0];
    CHECK(vkmqaForkSequence(app.cache, chats[0].sequence, chats[0].count, &chats[3].sequence));
    speak(&chats[3], "chat 3, a fork of chat 0, goes on", (const uint32_t[]){1, 2, 3, 4}, 4);
    speak(&chats[0], "chat 0 goes on differently", (const uint32_t[]){5, 6}, 2);

    // Rolled back to the prompt, and asked again.
    CHECK(vkmqaTruncateSequence(app.cache, chats[1].sequence, PROMPT));
    chats[1].count = PROMPT;
    speak(&chats[1], "chat 1, rolled back, goes on", (const uint32_t[]){7}, 1);

    // Saved, forgotten, restored.
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .path = path, .modelTag = "chat_cache"};
    uint32_t count = 1;
    CHECK(vkmqaSaveSequences(app.cache, 1, &chats[3].sequence, &snapshot));
    CHECK(vkmqaDestroySequence(app.cache, chats[3].sequence));
    CHECK(vkmqaLoadSequences(app.cache, &snapshot, &count, &chats[3].sequence));
    speak(&chats[3], "chat 3, restored, goes on", (const uint32_t[]){8}, 1);
    remove(path);

    for (uint32_t c = 0; c < 4; c++)
        CHECK(vkmqaDestroySequence(app.cache, chats[c].sequence));
    VkmqaCacheState state = {.structSize = sizeof(state)};
    CHECK(vkmqaGetCacheState(app.cache, &state));
    printf("the end: %u pages used, %u kept for prompts\n", state.usedPages, state.reusablePages);
    tearDown();
    return state.usedPages != 0;
}

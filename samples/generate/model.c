// The forward pass. Each layer goes to the device once: its queries, keys and values are appended to the cache and
// attended to; everything else is layers.c. SPDX-License-Identifier: MIT
#include "generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_TOKENS = 64 };

// What the library has to say goes before the name of the call that failed.
static void say(VkmqaSeverity severity, const char* text, void* user) {
    Model* model = user;
    if (severity == VKMQA_SEVERITY_ERROR && model->error)
        explain(model->error, "%s", text);
    else if (severity == VKMQA_SEVERITY_WARNING)
        fprintf(stderr, "vkmqa: %s\n", text);
}

static bool check(Model* model, VkResult result, const char* call) {
    if (result == VK_SUCCESS)
        return true;
    if (model->error->text[0])
        return false;
    return explain(model->error, "%s returned VkResult %d", call, result);
}
#define CHECK(call) check(model, (call), #call)

static bool createMemory(Model* model, VkmqaMemoryKind kind, size_t size, VkmqaMemory* memory) {
    return CHECK(vkmqaCreateMemory(model->device, kind, size ? size : 16, memory));
}

static bool createAttention(Model* model, const ModelOptions* options) {
    const Weights* w = model->weights;
    const VkmqaAttentionCreateInfo info = {
        .structSize = sizeof(info),
        .flags = VKMQA_ATTENTION_CAUSAL_BIT | (options->window ? VKMQA_ATTENTION_WINDOW_LEFT_BIT : 0),
        .numHeadsQ = w->numHeadsQ,
        .numHeadsKv = w->numHeadsKv,
        .headDimQk = w->headDim,
        .ioType = VKMQA_TYPE_F32,
        .kType = options->kvType,
        .pageSize = PAGE_TOKENS,
        .maxSeqLenKv = model->maxTokens,
        .windowLeft = options->window ? options->window - 1 : 0,
        .ropeStyle = VKMQA_ROPE_NEOX};
    const VkmqaParametersInfo parameters = {.structSize = sizeof(parameters), .ropeTheta = w->ropeTheta};
    VkmqaBufferRequirements requirements;
    if (!CHECK(vkmqaDeviceCreateAttention(model->device, &info, &model->attention)) ||
        !CHECK(vkmqaGetParametersRequirements(model->attention, &requirements)) ||
        !createMemory(model, VKMQA_MEMORY_UPLOAD, requirements.size, &model->parameters) ||
        !CHECK(vkmqaWriteParameters(model->attention, &parameters, requirements.size,
                                    vkmqaGetMemoryPointer(model->parameters))))
        return false;
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = MAX_STEP};
    return CHECK(vkmqaGetScratchRequirements(model->attention, &limits, &requirements)) &&
           createMemory(model, VKMQA_MEMORY_DEVICE, requirements.size, &model->scratch);
}

static bool createCache(Model* model) {
    const VkmqaCacheCreateInfo info = {.structSize = sizeof(info),
                                       .attention = model->attention,
                                       .numLayers = model->weights->numLayers,
                                       .numPages = model->maxTokens / PAGE_TOKENS,
                                       .maxSequences = 1,
                                       .maxNewTokens = MAX_STEP,
                                       .device = model->device};
    VkmqaCacheRequirements requirements = {.structSize = sizeof(requirements)};
    if (!CHECK(vkmqaGetCacheRequirements(&info, &requirements)) || !CHECK(vkmqaCreateCache(&info, &model->cache)) ||
        !CHECK(vkmqaCreateSequence(model->cache, NULL, &model->sequence, NULL)))
        return false;
    model->bytesPerToken = (size_t)requirements.kv.bytesPerToken * model->weights->numLayers;
    return true;
}

static bool createActivations(Model* model) {
    const Weights* w = model->weights;
    size_t q = sizeof(float) * MAX_STEP * w->numHeadsQ * w->headDim;
    size_t kv = sizeof(float) * MAX_STEP * w->numHeadsKv * w->headDim;
    if (!createMemory(model, VKMQA_MEMORY_UPLOAD, q, &model->q) ||
        !createMemory(model, VKMQA_MEMORY_UPLOAD, kv, &model->k) ||
        !createMemory(model, VKMQA_MEMORY_UPLOAD, kv, &model->v) ||
        !createMemory(model, VKMQA_MEMORY_DEVICE, q, &model->rotatedQ) ||
        !createMemory(model, VKMQA_MEMORY_DOWNLOAD, q, &model->out))
        return false;
    model->x = malloc(sizeof(float) * MAX_STEP * w->width);
    model->normed = malloc(sizeof(float) * MAX_STEP * w->width);
    model->gate = malloc(sizeof(float) * MAX_STEP * w->mlpWidth);
    model->up = malloc(sizeof(float) * MAX_STEP * w->mlpWidth);
    return (model->x && model->normed && model->gate && model->up) ||
           explain(model->error, "no memory for activations");
}

bool modelOpen(Model* model, const Weights* weights, const ModelOptions* options, Error* error) {
    *model = (Model){.weights = weights, .error = error};
    error->text[0] = 0;
    if (options->maxTokens == 0 || options->maxTokens > 1 << 24)
        return explain(error, "maxTokens is %u; give 1 to %d", options->maxTokens, 1 << 24);
    useOneThread();
    model->maxTokens = (options->maxTokens + PAGE_TOKENS - 1) / PAGE_TOKENS * PAGE_TOKENS;
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open),
                                      .selector = options->device,
                                      .messageCallback = say,
                                      .messageUserData = model};
    VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
    bool good = CHECK(vkmqaOpenDevice(&open, &model->device)) &&
                CHECK(vkmqaGetDeviceProperties(model->device, &properties)) && createAttention(model, options) &&
                createCache(model) && CHECK(vkmqaCreateCommands(model->device, &model->commands)) &&
                createActivations(model);
    snprintf(model->deviceName, sizeof(model->deviceName), "%s", properties.name);
    if (!good)
        modelClose(model);
    return good;
}

void modelClose(Model* model) {
    VkmqaMemory memories[] = {model->parameters, model->scratch, model->rotatedQ, model->q, model->k, model->v,
                              model->out};
    vkmqaDestroyCommands(model->commands);
    vkmqaDestroyCache(model->cache);
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++)
        vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyAttention(model->attention);
    vkmqaCloseDevice(model->device);
    free(model->x);
    free(model->normed);
    free(model->gate);
    free(model->up);
    *model = (Model){0};
}

// Appends the step's keys and values of a layer, rotated, and attends to the cache: q, k, v to out.
static bool attend(Model* model, uint32_t layer, const VkmqaCacheStep* step) {
    if (!CHECK(vkmqaBeginCommands(model->commands)))
        return false;
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(model->commands);
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(model->commands);
    const VkmqaKv* kv = vkmqaGetCacheLayer(model->cache, layer);
    VkmqaBuffer parameters = vkmqaGetMemoryRange(model->parameters, 0, 0);
    VkmqaBuffer rotatedQ = vkmqaGetMemoryRange(model->rotatedQ, 0, 0);
    const VkmqaAppendInfo append = {.structSize = sizeof(append),
                                    .recorder = recorder,
                                    .step = &step->step,
                                    .kv = kv,
                                    .newK = vkmqaGetMemoryRange(model->k, 0, 0),
                                    .newV = vkmqaGetMemoryRange(model->v, 0, 0),
                                    .parameters = parameters,
                                    .q = vkmqaGetMemoryRange(model->q, 0, 0),
                                    .rotatedQ = rotatedQ};
    const VkmqaAttentionInfo attention = {.structSize = sizeof(attention),
                                          .recorder = recorder,
                                          .step = &step->step,
                                          .kv = kv,
                                          .q = rotatedQ,
                                          .out = vkmqaGetMemoryRange(model->out, 0, 0),
                                          .scratch = vkmqaGetMemoryRange(model->scratch, 0, 0),
                                          .parameters = parameters};
    return (layer > 0 || CHECK(vkmqaCmdUpdateCache(model->cache, commandBuffer, step))) &&
           CHECK(vkmqaCmdAppendKv(model->attention, commandBuffer, &append)) &&
           CHECK(vkmqaCmdAttention(model->attention, commandBuffer, &attention)) &&
           CHECK(vkmqaSubmitCommands(model->commands)) && CHECK(vkmqaWaitCommands(model->commands, UINT64_MAX));
}

static bool runLayer(Model* model, uint32_t number, const VkmqaCacheStep* step, uint32_t count) {
    const Weights* w = model->weights;
    const LayerWeights* layer = &w->layers[number];
    uint32_t q = w->numHeadsQ * w->headDim, kv = w->numHeadsKv * w->headDim;
    rmsNorm(count, w->width, model->x, layer->attentionNorm, w->rmsEps, model->normed);
    multiply(count, q, w->width, model->normed, layer->q, false, vkmqaGetMemoryPointer(model->q));
    multiply(count, kv, w->width, model->normed, layer->k, false, vkmqaGetMemoryPointer(model->k));
    multiply(count, kv, w->width, model->normed, layer->v, false, vkmqaGetMemoryPointer(model->v));
    double begin = secondsNow();
    if (!attend(model, number, step))
        return false;
    model->attentionSeconds += secondsNow() - begin;
    multiply(count, w->width, q, vkmqaGetMemoryPointer(model->out), layer->o, true, model->x);

    rmsNorm(count, w->width, model->x, layer->mlpNorm, w->rmsEps, model->normed);
    multiply(count, w->mlpWidth, w->width, model->normed, layer->gate, false, model->gate);
    multiply(count, w->mlpWidth, w->width, model->normed, layer->up, false, model->up);
    gateWithSilu((size_t)count * w->mlpWidth, model->gate, model->up);
    multiply(count, w->width, w->mlpWidth, model->gate, layer->down, true, model->x);
    return true;
}

bool modelForward(Model* model, const uint8_t* tokens, uint32_t count, uint32_t logitRows, float* logits,
                  Error* error) {
    const Weights* w = model->weights;
    model->error = error;
    error->text[0] = 0;
    if (count == 0 || count > MAX_STEP || logitRows > count)
        return explain(error, "a step of %u tokens and %u rows of logits; give 1 to %d tokens and no more rows",
                       count, logitRows, MAX_STEP);
    const VkmqaSequenceTokens fresh = {.sequence = model->sequence, .newTokens = count};
    const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &fresh};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    if (!CHECK(vkmqaBuildStep(model->cache, &info, &step)))
        return false;
    for (uint32_t i = 0; i < count; i++)
        memcpy(model->x + (size_t)i * w->width, w->embedding + (size_t)tokens[i] * w->width, sizeof(float) * w->width);
    for (uint32_t layer = 0; layer < w->numLayers; layer++)
        if (!runLayer(model, layer, &step, count))
            return false;
    model->length += count;
    if (logitRows) {
        const float* last = model->x + (size_t)(count - logitRows) * w->width;
        rmsNorm(logitRows, w->width, last, w->norm, w->rmsEps, model->normed);
        multiply(logitRows, VOCABULARY, w->width, model->normed, w->embedding, false, logits);
    }
    return true;
}

bool modelTruncate(Model* model, uint32_t length, Error* error) {
    model->error = error;
    error->text[0] = 0;
    if (!CHECK(vkmqaTruncateSequence(model->cache, model->sequence, length)))
        return false;
    model->length = length;
    return true;
}

// Attention as a guest on the window's device and queue. SPDX-License-Identifier: MIT
#include "desktop.h"

#include <math.h>
#include <string.h>

static void say(VkmqaSeverity severity, const char* text, void* user) {
    (void)user;
    if (severity != VKMQA_SEVERITY_INFO)
        fprintf(stderr, "vkmqa: %s\n", text);
}

// A code of a position: keys and queries of the same one have the largest product, and near ones nearly.
static void writeCode(float* code, double position, float factor) {
    for (int pair = 0; pair < DIM / 2; ++pair) {
        double angle = position * pow(MAX_CONTEXT / 4, -2.0 * pair / DIM);
        code[2 * pair] = factor * (float)cos(angle);
        code[2 * pair + 1] = factor * (float)sin(angle);
    }
}

// The shape, and what depends on it. Contiguous cache: one page of MAX_CONTEXT tokens.
static void createAttention(Model* model) {
    VkmqaBufferRequirements scratch, metadata;
    CHECK(vkmqaDeviceCreateAttention(model->device, &(VkmqaAttentionCreateInfo){
        .structSize = sizeof(VkmqaAttentionCreateInfo), .flags = VKMQA_ATTENTION_CAUSAL_BIT, .numHeadsQ = model->heads,
        .numHeadsKv = HEADS_KV, .headDimQk = DIM, .ioType = VKMQA_TYPE_F32, .kType = VKMQA_TYPE_F16,
        .maxSeqLenKv = MAX_CONTEXT}, &model->attention));
    VkmqaStepLimits limits = {.batch = 1, .totalQ = TOKENS};
    CHECK(vkmqaGetScratchRequirements(model->attention, &limits, &scratch));
    CHECK(vkmqaGetStepLayout(model->attention, &limits, &model->step.layout, &metadata));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, scratch.size ? scratch.size : 16, &model->scratch));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_UPLOAD, metadata.size, &model->metadata));
    model->step.structSize = sizeof model->step;
    model->step.limits = (VkmqaStepLimits){.batch = 1, .totalQ = TOKENS, .maxSeqLenKv = model->tokens};
    model->step.metadata = vkmqaGetMemoryRange(model->metadata, 0, 0);
    char* data = vkmqaGetMemoryPointer(model->metadata);
    const int32_t cuSeqlensQ[2] = {0, TOKENS}, seqLensKv = (int32_t)model->tokens, status = 0;
    memset(data, 0, metadata.size);
    memcpy(data + model->step.layout.cuSeqlensQ, cuSeqlensQ, sizeof cuSeqlensQ);
    memcpy(data + model->step.layout.seqLensKv, &seqLensKv, sizeof seqLensKv);
    memcpy(data + model->step.layout.status, &status, sizeof status);
}

static void destroyAttention(Model* model) {
    vkmqaDestroyAttention(model->attention);
    vkmqaDestroyMemory(model->scratch);
    vkmqaDestroyMemory(model->metadata);
}

// Keys are codes of their positions, values noise, appended in pieces.
static void fillCache(Model* model) {
    enum { PIECE = 4096, ROW = HEADS_KV * DIM };
    VkmqaStepLimits limits = {.batch = 1, .totalQ = 1, .newTokens = PIECE};
    VkmqaStep step = {.structSize = sizeof step, .limits = limits};
    VkmqaBufferRequirements needs;
    VkmqaMemory metadata, rows;
    VkmqaCommands commands;
    CHECK(vkmqaGetStepLayout(model->attention, &limits, &step.layout, &needs));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_UPLOAD, needs.size, &metadata));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_UPLOAD, 2 * PIECE * ROW * 4, &rows));
    CHECK(vkmqaCreateCommands(model->device, &commands));
    step.metadata = vkmqaGetMemoryRange(metadata, 0, 0);
    float* data = vkmqaGetMemoryPointer(rows);
    uint32_t noise = 1;
    for (uint32_t first = 0; first < MAX_CONTEXT; first += PIECE) {
        for (uint32_t i = 0; i < PIECE; ++i) {
            int32_t slot = (int32_t)(first + i);
            memcpy((char*)vkmqaGetMemoryPointer(metadata) + step.layout.slotMapping + 4 * i, &slot, 4);
            for (uint32_t head = 0; head < HEADS_KV; ++head)
                writeCode(data + i * ROW + head * DIM, first + i, 1);
            for (uint32_t j = 0; j < ROW; ++j) {
                noise = noise * 1664525u + 1013904223u;
                data[PIECE * ROW + i * ROW + j] = (float)(noise >> 8) / (1 << 24) - 0.5f;
            }
        }
        CHECK(vkmqaBeginCommands(commands));
        CHECK(vkmqaCmdAppendKv(model->attention, vkmqaGetCommandBuffer(commands), &(VkmqaAppendInfo){
            .structSize = sizeof(VkmqaAppendInfo), .recorder = vkmqaGetCommandsRecorder(commands), .step = &step,
            .kv = &model->kv, .newK = vkmqaGetMemoryRange(rows, 0, PIECE * ROW * 4),
            .newV = vkmqaGetMemoryRange(rows, PIECE * ROW * 4, 0)}));
        CHECK(vkmqaSubmitCommands(commands));
        CHECK(vkmqaWaitCommands(commands, UINT64_MAX));
    }
    vkmqaDestroyCommands(commands);
    vkmqaDestroyMemory(metadata);
    vkmqaDestroyMemory(rows);
}

void modelOpen(Model* model, const Window* window, uint32_t heads, uint32_t tokens) {
    memset(model, 0, sizeof *model);
    model->heads = heads;
    model->tokens = tokens;
    model->correction = 1;
    CHECK(vkmqaImportDevice(&(VkmqaDeviceImportInfo){
        .structSize = sizeof(VkmqaDeviceImportInfo),
        .context = &(VkmqaContextCreateInfo){
            .structSize = sizeof(VkmqaContextCreateInfo), .apiVersion = window->apiVersion,
            .instance = window->instance, .physicalDevice = window->physicalDevice, .device = window->device,
            .getInstanceProcAddr = vkGetInstanceProcAddr, .messageCallback = say,
            .enabledExtensionCount = window->requirements.extensionCount,
            .enabledExtensions = window->requirements.extensionNames,
            .enabledFeatures = window->requirements.features},
        .computeQueue = window->queue, .computeFamily = window->family}, &model->device));
    model->context = vkmqaGetDeviceContext(model->device);
    CHECK(vkmqaCreateRecorder(model->context, &(VkmqaRecorderCreateInfo){
        .structSize = sizeof(VkmqaRecorderCreateInfo), .maxCalls = 4}, &model->recorder));
    createAttention(model);
    VkmqaKvRequirements needs = {.structSize = sizeof needs};
    CHECK(vkmqaGetKvRequirements(model->attention, 1, &needs));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, needs.k.size, &model->k));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, needs.v.size, &model->v));
    model->kv = (VkmqaKv){vkmqaGetMemoryRange(model->k, 0, 0), vkmqaGetMemoryRange(model->v, 0, 0), .numPages = 1};
    for (int i = 0; i < 2; ++i) {
        CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_UPLOAD, TOKENS * MAX_HEADS * DIM * 4, &model->q[i]));
        CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, TOKENS * MAX_HEADS * 4, &model->lse[i]));
    }
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, TOKENS * MAX_HEADS * DIM * 4, &model->out));
    fillCache(model);
}

void modelResize(Model* model, uint32_t heads, uint32_t tokens) {
    destroyAttention(model);
    model->heads = heads;
    model->tokens = tokens;
    model->busy = false;
    model->steps = 0;
    model->correction = 1;
    model->predicted = 0;
    createAttention(model);
}

// Every head looks at a place of its own, and all of them wander.
static void writeQueries(Model* model) {
    float* q = vkmqaGetMemoryPointer(model->q[model->running]);
    for (uint32_t head = 0; head < model->heads; ++head) {
        double turn = 0.15 * model->steps + 6.2831853 * head / model->heads;
        float place = (float)(0.5 + 0.45 * sin(turn));
        model->looksAt[model->running][head] = place;
        for (uint32_t token = 0; token < TOKENS; ++token)
            writeCode(q + (token * model->heads + head) * DIM, place * model->tokens, 4);
    }
}

void modelRecord(Model* model, VkCommandBuffer commands, double seconds, double measured) {
    model->correction = vkmqaCorrectSlices(model->correction, measured, model->predicted);
    model->predicted = 0;
    if (!model->busy) {
        writeQueries(model); // the frame that read them has finished
        model->busy = true;
        model->done = 0;
    }
    CHECK(vkmqaResetRecorder(model->recorder));
    VkmqaAttentionInfo info = {
        .structSize = sizeof info, .recorder = model->recorder, .step = &model->step, .kv = &model->kv,
        .q = vkmqaGetMemoryRange(model->q[model->running], 0, 0), .out = vkmqaGetMemoryRange(model->out, 0, 0),
        .lse = vkmqaGetMemoryRange(model->lse[model->running], 0, 0),
        .scratch = vkmqaGetMemoryRange(model->scratch, 0, 0)};
    if (seconds > 0) {
        VkmqaSlices slices = {.structSize = sizeof slices};
        CHECK(vkmqaGetSliceCount(model->attention, &(VkmqaSliceInfo){
            .structSize = sizeof(VkmqaSliceInfo), .step = &model->step, .seconds = seconds,
            .correction = model->correction}, &slices));
        CHECK(vkmqaCmdAttentionSlice(model->attention, commands, &info, model->done, slices.groupsPerSlice));
        uint64_t left = slices.groups - model->done;
        uint64_t recorded = slices.groupsPerSlice < left ? slices.groupsPerSlice : left;
        model->predicted = (double)recorded * slices.secondsPerGroup;
        model->done += recorded;
        model->busy = model->done < slices.groups;
    } else {
        CHECK(vkmqaCmdAttention(model->attention, commands, &info));
        model->busy = false;
    }
    if (!model->busy) { // from the next frame on it is shown
        model->running = 1 - model->running;
        model->steps++;
    }
}

void modelClose(Model* model) {
    destroyAttention(model);
    const VkmqaMemory memories[] = {model->k, model->v, model->out, model->q[0], model->q[1], model->lse[0], model->lse[1]};
    for (size_t i = 0; i < sizeof memories / sizeof memories[0]; ++i)
        vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyRecorder(model->recorder);
    vkmqaCloseDevice(model->device);
}

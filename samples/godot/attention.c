// SPDX-License-Identifier: MIT
#include "attention.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

Error attentionFail(Attention* attention, Error error, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(attention->message, sizeof attention->message, format, arguments);
    va_end(arguments);
    return error;
}

// What vkmqa has to say. Errors are the reason of a code that is being returned, but for those of closing.
static void say(VkmqaSeverity severity, const char* text, void* user) {
    Attention* attention = user;
    if (severity == VKMQA_SEVERITY_ERROR)
        snprintf(attention->message, sizeof attention->message, "%s", text);
    if (attention->complain && (severity == VKMQA_SEVERITY_WARNING || (severity == VKMQA_SEVERITY_ERROR &&
                                                                       !attention->quiet)))
        attention->complain(text, severity == VKMQA_SEVERITY_ERROR);
}

// The callback has left the message.
static Error errorOf(Attention* attention, VkResult result) {
    if (!attention->message[0])
        snprintf(attention->message, sizeof attention->message, "VkResult %d", result);
    switch (result) {
    case VK_SUCCESS: return ERROR_NONE;
    case VK_TIMEOUT: return ERROR_TIMEOUT;
    case VK_ERROR_VALIDATION_FAILED_EXT: return ERROR_INVALID_PARAMETER;
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return ERROR_OUT_OF_MEMORY;
    case VK_ERROR_FEATURE_NOT_PRESENT:
    case VK_ERROR_INCOMPATIBLE_DRIVER:
    case VK_ERROR_INITIALIZATION_FAILED: return ERROR_UNAVAILABLE;
    default: return ERROR_FAILED;
    }
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        VkResult result_ = (call);                                                                                     \
        if (result_)                                                                                                   \
            return errorOf(attention, result_);                                                                        \
    } while (0)

// Room for size bytes; what is in a mapped store stays.
static VkResult reserve(Attention* attention, Store* store, VkmqaMemoryKind kind, VkDeviceSize size) {
    if (store->size >= size)
        return VK_SUCCESS;
    Store larger = {.size = store->size ? 2 * store->size : 256};
    while (larger.size < size)
        larger.size *= 2;
    VkResult result = vkmqaCreateMemory(attention->device, kind, larger.size, &larger.memory);
    if (result)
        return result;
    if (store->memory && kind == VKMQA_MEMORY_UPLOAD)
        memcpy(vkmqaGetMemoryPointer(larger.memory), vkmqaGetMemoryPointer(store->memory), store->size);
    vkmqaDestroyMemory(store->memory);
    *store = larger;
    return VK_SUCCESS;
}

static VkResult import(Attention* attention, const Handles* handles) {
    // Vulkan 1.1 is what an instance has at least; features that cannot be known to be enabled count as off.
    const VkPhysicalDeviceBufferDeviceAddressFeatures addresses = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES, .bufferDeviceAddress = VK_TRUE};
    const VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                                .pNext = (void*)&addresses};
    const char* const extension = VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME;
    const VkmqaContextCreateInfo context = {
        .structSize = sizeof context,
        .apiVersion = VK_API_VERSION_1_1,
        .instance = handles->instance,
        .physicalDevice = handles->physicalDevice,
        .device = handles->device,
        .getInstanceProcAddr = handles->getInstanceProcAddr,
        .enabledExtensionCount = handles->deviceAddresses,
        .enabledExtensions = &extension,
        .enabledFeatures = handles->deviceAddresses ? &features : NULL,
        .messageCallback = say,
        .messageUserData = attention,
    };
    return vkmqaImportDevice(&(VkmqaDeviceImportInfo){.structSize = sizeof(VkmqaDeviceImportInfo),
                                                      .context = &context,
                                                      .computeQueue = handles->queue,
                                                      .computeFamily = handles->family},
                             &attention->device);
}

static Error checkShape(Attention* attention, const Shape* shape) {
    const struct {
        const char* name;
        int64_t value;
    } fields[] = {{"heads_q", shape->headsQ}, {"heads_kv", shape->headsKv}, {"head_dim", shape->headDim},
                  {"max_tokens", shape->maxTokens}};
    for (int i = 0; i < 4; ++i)
        if (fields[i].value < 1 || fields[i].value > 1 << 20)
            return attentionFail(attention, ERROR_INVALID_PARAMETER, "%s is %lld; give a number from 1 to %d",
                                 fields[i].name, (long long)fields[i].value, 1 << 20);
    attention->headsQ = (uint32_t)shape->headsQ;
    attention->headsKv = (uint32_t)shape->headsKv;
    attention->headDim = (uint32_t)shape->headDim;
    attention->maxTokens = (uint32_t)shape->maxTokens;
    return ERROR_NONE;
}

static Error open(Attention* attention, const Handles* handles, const char* selector) {
    if (handles)
        TRY(import(attention, handles));
    else
        TRY(vkmqaOpenDevice(&(VkmqaDeviceOpenInfo){.structSize = sizeof(VkmqaDeviceOpenInfo), .selector = selector,
                                                   .messageCallback = say, .messageUserData = attention,
                                                   .lowPriority = VK_TRUE},
                            &attention->device));
    TRY(vkmqaDeviceCreateAttention(attention->device,
                                   &(VkmqaAttentionCreateInfo){.structSize = sizeof(VkmqaAttentionCreateInfo),
                                                               .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                                               .numHeadsQ = attention->headsQ,
                                                               .numHeadsKv = attention->headsKv,
                                                               .headDimQk = attention->headDim,
                                                               .ioType = VKMQA_TYPE_F32,
                                                               .kType = VKMQA_TYPE_F16,
                                                               .maxSeqLenKv = attention->maxTokens},
                                   &attention->attention));
    VkmqaKvRequirements needs = {.structSize = sizeof needs};
    TRY(vkmqaGetKvRequirements(attention->attention, 1, &needs));
    TRY(reserve(attention, &attention->k, VKMQA_MEMORY_DEVICE, needs.k.size));
    TRY(reserve(attention, &attention->v, VKMQA_MEMORY_DEVICE, needs.v.size));
    TRY(vkmqaCreateCommands(attention->device, &attention->commands));
    return ERROR_NONE;
}

Error attentionOpen(Attention* attention, const Handles* handles, const char* selector, const Shape* shape) {
    attentionClose(attention);
    attention->message[0] = 0;
    attention->quiet = true;
    Error error = checkShape(attention, shape);
    if (!error)
        error = open(attention, handles, selector);
    if (error) {
        char message[sizeof attention->message];
        memcpy(message, attention->message, sizeof message);
        attentionClose(attention);
        memcpy(attention->message, message, sizeof message);
    }
    return error;
}

void attentionClose(Attention* attention) {
    attention->quiet = false; // there is nobody to return an error to
    vkmqaDestroyCommands(attention->commands); // waits
    Store* const stores[] = {&attention->k, &attention->v, &attention->newK, &attention->newV, &attention->q,
                             &attention->metadata, &attention->scratch, &attention->out};
    for (size_t i = 0; i < sizeof stores / sizeof *stores; ++i)
        vkmqaDestroyMemory(stores[i]->memory);
    vkmqaDestroyAttention(attention->attention);
    vkmqaCloseDevice(attention->device);
    *attention = (Attention){.complain = attention->complain};
}

static Error checkReady(Attention* attention) {
    attention->message[0] = 0;
    if (!attention->commands)
        return attentionFail(attention, ERROR_UNCONFIGURED, "there is no cache yet; call create or create_own_device");
    if (attention->busy)
        return attentionFail(attention, ERROR_BUSY, "a step is running; await finished, or call wait");
    return ERROR_NONE;
}

// Rows of width floats in an array of count, at least one.
static Error countRows(Attention* attention, const char* field, int64_t count, uint32_t heads, uint32_t* rows) {
    int64_t width = (int64_t)heads * attention->headDim;
    if (count < width || count % width || count / width > attention->maxTokens)
        return attentionFail(attention, ERROR_INVALID_PARAMETER,
                             "%s has %lld floats; give [tokens, %u heads, %u], %lld for each token", field,
                             (long long)count, heads, attention->headDim, (long long)width);
    *rows = (uint32_t)(count / width);
    return ERROR_NONE;
}

Error attentionAppend(Attention* attention, const float* k, int64_t kCount, const float* v, int64_t vCount) {
    uint32_t rows = 0, rowsV = 0;
    Error error = checkReady(attention);
    if (!error)
        error = countRows(attention, "k", kCount, attention->headsKv, &rows);
    if (!error)
        error = countRows(attention, "v", vCount, attention->headsKv, &rowsV);
    if (error)
        return error;
    if (rows != rowsV)
        return attentionFail(attention, ERROR_INVALID_PARAMETER, "k has %u tokens and v %u; give as many", rows, rowsV);
    if (rows > attention->maxTokens - attention->tokens - attention->staged)
        return attentionFail(attention, ERROR_INVALID_PARAMETER,
                             "k has %u tokens and there are %u of at most %u; call clear, or create with a larger "
                             "max_tokens", rows, attention->tokens + attention->staged, attention->maxTokens);
    size_t rowBytes = (size_t)attention->headsKv * attention->headDim * sizeof(float);
    size_t begin = attention->staged * rowBytes, size = rows * rowBytes;
    TRY(reserve(attention, &attention->newK, VKMQA_MEMORY_UPLOAD, begin + size));
    TRY(reserve(attention, &attention->newV, VKMQA_MEMORY_UPLOAD, begin + size));
    memcpy((char*)vkmqaGetMemoryPointer(attention->newK.memory) + begin, k, size);
    memcpy((char*)vkmqaGetMemoryPointer(attention->newV.memory) + begin, v, size);
    attention->staged += rows;
    return ERROR_NONE;
}

// The step's metadata: one sequence of `tokens`, whose last `staged` go to the slots of their positions.
static Error writeMetadata(Attention* attention, uint32_t rows, uint32_t tokens, VkmqaStep* step) {
    VkmqaBufferRequirements needs, scratch;
    *step = (VkmqaStep){.structSize = sizeof *step,
                        .limits = {.batch = 1, .totalQ = rows, .maxSeqLenKv = tokens, .newTokens = attention->staged}};
    TRY(vkmqaGetStepLayout(attention->attention, &step->limits, &step->layout, &needs));
    TRY(vkmqaGetScratchRequirements(attention->attention, &step->limits, &scratch));
    TRY(reserve(attention, &attention->metadata, VKMQA_MEMORY_UPLOAD, needs.size));
    TRY(reserve(attention, &attention->scratch, VKMQA_MEMORY_DEVICE, scratch.size));
    step->metadata = vkmqaGetMemoryRange(attention->metadata.memory, 0, 0);
    char* data = vkmqaGetMemoryPointer(attention->metadata.memory);
    int32_t* cuSeqlensQ = (int32_t*)(data + step->layout.cuSeqlensQ);
    int32_t* slots = (int32_t*)(data + step->layout.slotMapping);
    cuSeqlensQ[0] = 0;
    cuSeqlensQ[1] = (int32_t)rows;
    *(int32_t*)(data + step->layout.seqLensKv) = (int32_t)tokens;
    *(int32_t*)(data + step->layout.status) = 0;
    for (uint32_t i = 0; i < attention->staged; ++i)
        slots[i] = (int32_t)(attention->tokens + i);
    return ERROR_NONE;
}

Error attentionAttend(Attention* attention, const float* q, int64_t count) {
    uint32_t rows = 0;
    Error error = checkReady(attention);
    if (!error)
        error = countRows(attention, "q", count, attention->headsQ, &rows);
    if (error)
        return error;
    uint32_t tokens = attention->tokens + attention->staged;
    if (rows > tokens)
        return attentionFail(attention, ERROR_INVALID_PARAMETER,
                             "q has %u tokens and the sequence %u; append their keys and values first", rows, tokens);
    VkmqaStep step;
    error = writeMetadata(attention, rows, tokens, &step);
    if (error)
        return error;
    VkDeviceSize bytes = (VkDeviceSize)count * sizeof *q;
    TRY(reserve(attention, &attention->q, VKMQA_MEMORY_UPLOAD, bytes));
    TRY(reserve(attention, &attention->out, VKMQA_MEMORY_DOWNLOAD, bytes));
    memcpy(vkmqaGetMemoryPointer(attention->q.memory), q, (size_t)bytes);
    attention->rows = 0;

    TRY(vkmqaBeginCommands(attention->commands));
    VkCommandBuffer commands = vkmqaGetCommandBuffer(attention->commands);
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(attention->commands);
    const VkmqaKv kv = {.k = vkmqaGetMemoryRange(attention->k.memory, 0, 0),
                        .v = vkmqaGetMemoryRange(attention->v.memory, 0, 0), .numPages = 1};
    if (attention->staged)
        TRY(vkmqaCmdAppendKv(attention->attention, commands,
                             &(VkmqaAppendInfo){.structSize = sizeof(VkmqaAppendInfo), .recorder = recorder,
                                                .step = &step, .kv = &kv,
                                                .newK = vkmqaGetMemoryRange(attention->newK.memory, 0, 0),
                                                .newV = vkmqaGetMemoryRange(attention->newV.memory, 0, 0)}));
    TRY(vkmqaCmdAttention(attention->attention, commands,
                          &(VkmqaAttentionInfo){.structSize = sizeof(VkmqaAttentionInfo), .recorder = recorder,
                                                .step = &step, .kv = &kv,
                                                .q = vkmqaGetMemoryRange(attention->q.memory, 0, bytes),
                                                .out = vkmqaGetMemoryRange(attention->out.memory, 0, bytes),
                                                .scratch = vkmqaGetMemoryRange(attention->scratch.memory, 0, 0)}));
    TRY(vkmqaSubmitCommands(attention->commands));
    attention->tokens = tokens;
    attention->staged = 0;
    attention->rows = rows;
    attention->busy = true;
    return ERROR_NONE;
}

Error attentionWait(Attention* attention, uint64_t timeoutNs) {
    if (!attention->busy)
        return ERROR_NONE;
    attention->message[0] = 0;
    VkResult result = vkmqaWaitCommands(attention->commands, timeoutNs);
    if (result == VK_SUCCESS) {
        attention->busy = false;
        return ERROR_NONE;
    }
    Error error = errorOf(attention, result);
    if (error != ERROR_TIMEOUT) {
        attention->busy = false;
        attention->rows = 0;
    }
    return error;
}

const float* attentionOutput(Attention* attention, uint32_t* count) {
    *count = 0;
    if (checkReady(attention))
        return NULL;
    if (!attention->rows) {
        attentionFail(attention, ERROR_UNCONFIGURED, "no step has run; call attend and await finished");
        return NULL;
    }
    *count = attention->rows * attention->headsQ * attention->headDim;
    return vkmqaGetMemoryPointer(attention->out.memory);
}

Error attentionClear(Attention* attention) {
    Error error = checkReady(attention);
    if (!error)
        attention->tokens = attention->staged = attention->rows = 0;
    return error;
}

void attentionDescribe(Attention* attention, char* text, size_t size) {
    VkmqaDeviceProperties device = {.structSize = sizeof device};
    VkmqaKernelInfo kernel = {.structSize = sizeof kernel};
    const VkmqaStepLimits one = {.batch = 1, .totalQ = 1};
    text[0] = 0;
    if (attention->commands && !vkmqaGetDeviceProperties(attention->device, &device) &&
        !vkmqaGetKernelInfo(attention->attention, &one, &kernel))
        snprintf(text, size, "%s, %s: %s", device.name, kernel.name, kernel.reason);
}

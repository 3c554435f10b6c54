// The calls of api.c, see there.
#include "api.h"

#include <math.h>

#define AT(type, member) offsetof(type, member)
static const VkCommandBuffer commandBuffer = (VkCommandBuffer)(void*)&world;

// Sometimes a handle that is none, or of another kind.
static VkmqaAttention anyAttention(Input* input, const struct Calls* calls) {
    uint8_t how = takeByte(input);
    return how == 254 ? (VkmqaAttention)(void*)calls->context : how == 255 ? NULL : calls->attention;
}

// An error of a wrong handle has nobody to explain it.
#define CALL_WITH(chosen, call)                                                                                     \
    do {                                                                                                               \
        VkmqaAttention handle = (chosen);                                                                           \
        if (handle == calls->attention)                                                                                \
            CALL(call);                                                                                                \
        else                                                                                                           \
            REQUIRE((call) == VK_ERROR_VALIDATION_FAILED_EXT, "a wrong handle is taken");                              \
    } while (0)

static VkmqaStepLimits anyLimits(Input* input) {
    static const VkmqaStepLimits all[] = {{.batch = 1, .totalQ = 1},
                                          {.batch = 4, .totalQ = 4, .maxSeqLenQ = 1, .maxSeqLenKv = 4096},
                                          {.batch = 2, .totalQ = 300, .maxSeqLenQ = 200, .newTokens = 300},
                                          {.batch = 64, .totalQ = 4096, .maxSeqLenQ = 64}};
    VkmqaStepLimits limits = all[takeByte(input) % 4];
    mangle(input, &limits, sizeof(limits), NULL);
    return limits;
}

// ---- questions -----------------------------------------------------------------------------------

void askKv(Input* input, struct Calls* calls) {
    VkmqaKvRequirements* requirements = output(input, sizeof(*requirements));
    uint32_t pages = oddWord(input, 16);
    CALL_WITH(anyAttention(input, calls), vkmqaGetKvRequirements(handle, pages, requirements));
}

void askScratch(Input* input, struct Calls* calls) {
    VkmqaStepLimits limits = anyLimits(input);
    VkmqaBufferRequirements requirements;
    CALL_WITH(anyAttention(input, calls), vkmqaGetScratchRequirements(handle, &limits, &requirements));
}

void askLayout(Input* input, struct Calls* calls) {
    VkmqaStepLimits limits = anyLimits(input);
    VkmqaStepLayout layout;
    VkmqaBufferRequirements requirements;
    CALL_WITH(anyAttention(input, calls), vkmqaGetStepLayout(handle, &limits, &layout, &requirements));
}

void askKernel(Input* input, struct Calls* calls) {
    VkmqaStepLimits limits = anyLimits(input);
    VkmqaKernelInfo* info = output(input, sizeof(*info));
    CALL_WITH(anyAttention(input, calls), vkmqaGetKernelInfo(handle, &limits, info));
    vkmqaGetKernelName(oddWord(input, 0));
}

void writeParameters(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {
        AT(VkmqaParametersInfo, sinks),   AT(VkmqaParametersInfo, alibiSlopes),     AT(VkmqaParametersInfo, kScales),
        AT(VkmqaParametersInfo, vScales), AT(VkmqaParametersInfo, ropeFrequencies), NO_POINTER};
    VkmqaBufferRequirements requirements;
    CALL(vkmqaGetParametersRequirements(calls->attention, &requirements));
    float values[2];
    uint32_t words[] = {oddWord(input, 0x3f800000), oddWord(input, 0x3f800000)};
    memcpy(values, words, sizeof(values));
    world.floats[0] = values[0];
    world.doubles[0] = values[1];
    VkmqaParametersInfo info = {.structSize = sizeof(info),
                                .sinks = world.floats,
                                .alibiSlopes = world.floats,
                                .kScales = world.floats,
                                .vScales = world.floats,
                                .ropeFrequencies = world.doubles};
    mangle(input, &info, sizeof(info), pointers);
    size_t size = (size_t)requirements.size;
    void* data = malloc(size + 1);
    uint8_t how = takeByte(input);
    size_t claimed = how == 255 && size ? size - 1 : how == 254 ? 0 : size;
    CALL(vkmqaWriteParameters(calls->attention, given(&info, sizeof(info)), claimed, how == 253 ? NULL : data));
    free(data);
}

// ---- recording -----------------------------------------------------------------------------------

static const VkmqaStep* anyStep(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {AT(VkmqaStep, metadata.buffer), NO_POINTER};
    VkmqaStep step = {.structSize = sizeof(step), .limits = anyLimits(input), .metadata = anyBuffer()};
    VkmqaBufferRequirements requirements;
    CALL(vkmqaGetStepLayout(calls->attention, &step.limits, &step.layout, &requirements));
    mangle(input, &step, sizeof(step), pointers);
    return takeByte(input) == 255 ? NULL : given(&step, sizeof(step));
}

static const VkmqaKv* anyKv(Input* input) {
    static const size_t pointers[] = {AT(VkmqaKv, k.buffer), AT(VkmqaKv, v.buffer), NO_POINTER};
    static VkmqaKv kv;
    kv = (VkmqaKv){.k = anyBuffer(), .v = anyBuffer(), .numPages = 16};
    mangle(input, &kv, sizeof(kv), pointers);
    return takeByte(input) == 255 ? NULL : &kv;
}

// With some of the calls' recorder.
static VkmqaRecorder anyRecorder(Input* input, const struct Calls* calls) {
    uint8_t how = takeByte(input);
    return how == 254 ? (VkmqaRecorder)(void*)calls->attention : how == 255 ? NULL : calls->recorder;
}

void recordAppend(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {
        AT(VkmqaAppendInfo, recorder),    AT(VkmqaAppendInfo, step),              AT(VkmqaAppendInfo, kv),
        AT(VkmqaAppendInfo, newK.buffer), AT(VkmqaAppendInfo, newV.buffer),       AT(VkmqaAppendInfo, parameters.buffer),
        AT(VkmqaAppendInfo, q.buffer),    AT(VkmqaAppendInfo, rotatedQ.buffer),   NO_POINTER};
    VkmqaAppendInfo info = {.structSize = sizeof(info),
                            .recorder = anyRecorder(input, calls),
                            .step = anyStep(input, calls),
                            .kv = anyKv(input),
                            .newK = anyBuffer(),
                            .newV = anyBuffer(),
                            .parameters = anyBuffer()};
    if (takeByte(input) & 1)
        info.q = info.rotatedQ = anyBuffer();
    mangle(input, &info, sizeof(info), pointers);
    CALL_WITH(anyAttention(input, calls), vkmqaCmdAppendKv(handle, commandBuffer, given(&info, sizeof(info))));
}

static const VkmqaAttentionInfo* anyAttentionInfo(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {
        AT(VkmqaAttentionInfo, recorder),   AT(VkmqaAttentionInfo, step),           AT(VkmqaAttentionInfo, kv),
        AT(VkmqaAttentionInfo, q.buffer),   AT(VkmqaAttentionInfo, out.buffer),     AT(VkmqaAttentionInfo, lse.buffer),
        AT(VkmqaAttentionInfo, mask.buffer), AT(VkmqaAttentionInfo, scratch.buffer),
        AT(VkmqaAttentionInfo, parameters.buffer), NO_POINTER};
    VkmqaAttentionInfo info = {.structSize = sizeof(info),
                               .recorder = anyRecorder(input, calls),
                               .step = anyStep(input, calls),
                               .kv = anyKv(input),
                               .q = anyBuffer(),
                               .out = anyBuffer(),
                               .lse = anyBuffer(),
                               .scratch = anyBuffer(),
                               .parameters = anyBuffer(),
                               .mask = anyBuffer()};
    mangle(input, &info, sizeof(info), pointers);
    return given(&info, sizeof(info));
}

void recordAttention(Input* input, struct Calls* calls) {
    const VkmqaAttentionInfo* info = anyAttentionInfo(input, calls);
    CALL_WITH(anyAttention(input, calls), vkmqaCmdAttention(handle, commandBuffer, info));
}

static double anyDouble(Input* input) {
    uint64_t bits = (uint64_t)oddWord(input, 0x3f800000) << 32 | oddWord(input, 0);
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

void recordSlices(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {AT(VkmqaSliceInfo, step), NO_POINTER};
    VkmqaSliceInfo ask = {.structSize = sizeof(ask), .step = anyStep(input, calls)};
    mangle(input, &ask, sizeof(ask), pointers);
    VkmqaSlices* slices = output(input, sizeof(*slices));
    CALL_WITH(anyAttention(input, calls), vkmqaGetSliceCount(handle, given(&ask, sizeof(ask)), slices));
    const VkmqaAttentionInfo* info = anyAttentionInfo(input, calls);
    uint64_t first = oddWord(input, 0), count = oddWord(input, 1);
    if (takeByte(input) & 1)
        first = first << 32 | oddWord(input, 0), count = count << 32 | oddWord(input, 0);
    CALL_WITH(anyAttention(input, calls), vkmqaCmdAttentionSlice(handle, commandBuffer, info, first, count));
    double correction = anyDouble(input), measured = anyDouble(input), estimated = anyDouble(input);
    double corrected = vkmqaCorrectSlices(correction, measured, estimated);
    REQUIRE(corrected > 0 || !(correction > 0), "a correction of %g from %g, %g and %g", corrected, correction,
            measured, estimated);
}

void recordMerge(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {
        AT(VkmqaMergeInfo, recorder),   AT(VkmqaMergeInfo, partOut.buffer), AT(VkmqaMergeInfo, partLse.buffer),
        AT(VkmqaMergeInfo, out.buffer), AT(VkmqaMergeInfo, lse.buffer),     AT(VkmqaMergeInfo, parameters.buffer),
        NO_POINTER};
    VkmqaMergeInfo info = {.structSize = sizeof(info),
                           .recorder = anyRecorder(input, calls),
                           .parts = 4,
                           .totalQ = 7,
                           .partOut = anyBuffer(),
                           .partLse = anyBuffer(),
                           .out = anyBuffer(),
                           .lse = anyBuffer(),
                           .parameters = anyBuffer()};
    mangle(input, &info, sizeof(info), pointers);
    CALL_WITH(anyAttention(input, calls), vkmqaCmdMergeStates(handle, commandBuffer, given(&info, sizeof(info))));
}

void recordCompact(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {AT(VkmqaCompactInfo, recorder), AT(VkmqaCompactInfo, step),
                                      AT(VkmqaCompactInfo, kv), NO_POINTER};
    VkmqaCompactInfo info = {.structSize = sizeof(info),
                             .recorder = anyRecorder(input, calls),
                             .step = anyStep(input, calls),
                             .kv = anyKv(input)};
    mangle(input, &info, sizeof(info), pointers);
    CALL_WITH(anyAttention(input, calls), vkmqaCmdCompactKv(handle, commandBuffer, given(&info, sizeof(info))));
}

void useRecorder(Input* input, struct Calls* calls) {
    VkmqaRecorderCreateInfo info = {.structSize = sizeof(info), .maxCalls = 1 + takeByte(input) % 4};
    if (calls->recorder) {
        CALL(vkmqaResetRecorder(calls->recorder));
        return;
    }
    mangle(input, &info, sizeof(info), NULL);
    CALL(vkmqaCreateRecorder(calls->context, given(&info, sizeof(info)), &calls->recorder));
}

// ---- the device layer ----------------------------------------------------------------------------

void useMemory(Input* input, struct Calls* calls) {
    char data[256] = {0};
    VkmqaMemory memory = NULL;
    VkmqaMemoryKind kind = (VkmqaMemoryKind)oddWord(input, takeByte(input) % 3);
    VkDeviceSize size = oddWord(input, 256);
    if (takeByte(input) & 1)
        size = size << 32 | oddWord(input, 0);
    CALL(vkmqaCreateMemory(calls->device, kind, size, &memory));
    if (!memory)
        return;
    VkDeviceSize offset = oddWord(input, 0), length = oddWord(input, 64);
    if (takeByte(input) & 1)
        offset |= (uint64_t)oddWord(input, 0) << 32, length |= (uint64_t)oddWord(input, 0) << 32;
    VkmqaBuffer range = vkmqaGetMemoryRange(memory, offset, length);
    REQUIRE(!range.buffer || (range.offset <= size && range.size && range.size <= size - range.offset),
            "a range outside its memory");
    if (vkmqaGetMemoryPointer(memory))
        memset(vkmqaGetMemoryPointer(memory), 1, size < 4096 ? (size_t)size : 4096);
    if (length <= sizeof(data) || offset > size || length > size - offset) { // else it is `data` that is too small
        CALL(vkmqaUpload(memory, offset, data, length));
        CALL(vkmqaDownload(memory, offset, data, length));
    }
    vkmqaDestroyMemory(memory);
}

void useCommands(Input* input, struct Calls* calls) {
    VkmqaCommands buffer = NULL;
    CALL(vkmqaCreateCommands(calls->device, &buffer));
    for (uint8_t step = takeByte(input); buffer && step; step >>= 2) {
        if ((step & 3) == 0) {
            CALL(vkmqaBeginCommands(buffer));
        } else if ((step & 3) == 1) {
            uint32_t errors = fuzzErrors;
            VkResult result = vkmqaSubmitCommands(buffer);
            REQUIRE(result >= 0 || fuzzErrors > errors, "result %d without a word", result);
        } else if ((step & 3) == 2) {
            CALL(vkmqaWaitCommands(buffer, oddWord(input, 0)));
            REQUIRE(vkmqaGetCommandsTime(buffer) >= 0, "a negative time");
        } else {
            double seconds = anyDouble(input), correction = anyDouble(input);
            if (!(seconds < 1e-4)) { // slices beyond number take their time
                uint32_t errors = fuzzErrors;
                VkResult result = vkmqaRunAttention(buffer, calls->attention, anyAttentionInfo(input, calls),
                                                    seconds, &correction);
                REQUIRE(result >= 0 || fuzzErrors > errors, "result %d without a word", result);
            }
        }
    }
    vkmqaDestroyCommands(buffer);
}

void makeCache(Input* input, struct Calls* calls) {
    static const size_t pointers[] = {
        AT(VkmqaCacheCreateInfo, attention),         AT(VkmqaCacheCreateInfo, device),
        AT(VkmqaCacheCreateInfo, layers),            AT(VkmqaCacheCreateInfo, stepMemory.buffer),
        AT(VkmqaCacheCreateInfo, stepMapped),        AT(VkmqaCacheCreateInfo, localMemory.buffer), NO_POINTER};
    VkmqaCacheCreateInfo info = {.structSize = sizeof(info),
                                 .attention = anyAttention(input, calls),
                                 .numLayers = 2,
                                 .numPages = 8,
                                 .maxSequences = 4,
                                 .maxNewTokens = 16,
                                 .device = calls->device};
    mangle(input, &info, sizeof(info), pointers);
    // Of a struct that is too new, only the attention object is believed; a size that cannot be has nobody to tell.
    bool newer = info.structSize > sizeof(info) && info.structSize <= sizeof(info) + 4096;
    bool explained = info.attention == calls->attention ? newer || info.structSize == sizeof(info)
                                                        : info.device && info.structSize == sizeof(info);
    VkmqaCacheRequirements* requirements = output(input, sizeof(*requirements));
    VkmqaCache cache = NULL;
    const VkmqaCacheCreateInfo* copy = given(&info, sizeof(info));
    uint32_t errors = fuzzErrors;
    VkResult result = vkmqaGetCacheRequirements(copy, requirements);
    REQUIRE(result >= 0 || !explained || fuzzErrors > errors,
            "requirements: %d without a word", result);
    errors = fuzzErrors;
    result = vkmqaCreateCache(copy, &cache);
    REQUIRE((result == VK_SUCCESS) == (cache != NULL), "result %d", result);
    REQUIRE(result >= 0 || !explained || fuzzErrors > errors,
            "creation: %d without a word", result);
    vkmqaGetCacheLayer(cache, oddWord(input, 0));
    vkmqaDestroyCache(cache);
}

// The public structs and calls. An input is a device, a model's shape and a list of calls; each struct starts as one
// that is right, and bytes of the input then change words of it. Of a struct the library gets exactly the bytes that
// its structSize speaks of. Errors must have been explained and must not have recorded anything.
#include "api.h"

#include <math.h>

// ---- the world -----------------------------------------------------------------------------------

struct World world;

// The library must live with memory that is not to be had.
static VKAPI_ATTR void* VKAPI_CALL allocate(void* user, size_t size, size_t alignment, VkSystemAllocationScope scope) {
    (void)user, (void)scope;
    REQUIRE(size && alignment <= 16, "an allocation of %zu bytes", size);
    return size > MOST_HOST_BYTES ? NULL : malloc(size);
}
static VKAPI_ATTR void* VKAPI_CALL reallocate(void* user, void* old, size_t size, size_t alignment,
                                              VkSystemAllocationScope scope) {
    (void)user, (void)alignment, (void)scope;
    return size > MOST_HOST_BYTES ? NULL : realloc(old, size);
}
static VKAPI_ATTR void VKAPI_CALL release(void* user, void* memory) {
    (void)user;
    free(memory);
}
static const VkAllocationCallbacks allocator = {NULL, allocate, reallocate, release, NULL, NULL};

// What vkmqaCreateContext takes for a device of this kind; it points into `requirements`.
VkmqaContextCreateInfo contextInfo(MockKind kind, VkmqaDeviceRequirements* requirements) {
    VkPhysicalDevice physical = mockPhysicalDevice(kind);
    const VkmqaDeviceRequirementsInfo ask = {.structSize = sizeof(ask),
                                             .apiVersion = VK_API_VERSION_1_3,
                                             .instance = mockInstance(),
                                             .physicalDevice = physical,
                                             .getInstanceProcAddr = mockGetInstanceProcAddr};
    requirements->structSize = sizeof(*requirements);
    REQUIRE(vkmqaGetDeviceRequirements(&ask, requirements) == VK_SUCCESS, "no requirements");
    if (!world.devices[kind])
        mock_vkCreateDevice(physical, NULL, NULL, &world.devices[kind]);
    return (VkmqaContextCreateInfo){.structSize = sizeof(VkmqaContextCreateInfo),
                                    .apiVersion = VK_API_VERSION_1_3,
                                    .instance = mockInstance(),
                                    .physicalDevice = physical,
                                    .device = world.devices[kind],
                                    .getInstanceProcAddr = mockGetInstanceProcAddr,
                                    .enabledExtensionCount = requirements->extensionCount,
                                    .enabledExtensions = requirements->extensionNames,
                                    .enabledFeatures = requirements->features,
                                    .allocator = &allocator,
                                    .messageCallback = fuzzMessage};
}

static void makeWorld(void) {
    const VkBufferCreateInfo buffer = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = UINT64_MAX};
    mock_vkCreateBuffer(NULL, &buffer, NULL, &world.buffer);
    for (uint32_t i = 0; i < MAX_HEADS; i++)
        world.floats[i] = 1.0f + (float)i;
    for (uint32_t i = 0; i < MAX_DIM; i++)
        world.doubles[i] = 1.0 / (1 + i);
    for (uint32_t i = 0; i < MOCK_KINDS; i++) {
        VkmqaDeviceRequirements requirements;
        const VkmqaContextCreateInfo context = contextInfo((MockKind)i, &requirements);
        VkQueue queue;
        mock_vkGetDeviceQueue(world.devices[i], 0, 0, &queue);
        const VkmqaDeviceImportInfo import = {
            .structSize = sizeof(import), .context = &context, .computeQueue = queue, .skipVerification = VK_TRUE};
        REQUIRE(vkmqaImportDevice(&import, &world.imported[i]) == VK_SUCCESS, "no device %u", i);
    }
}

// ---- structs -------------------------------------------------------------------------------------

uint32_t oddWord(Input* input, uint32_t before) {
    static const uint32_t words[] = {
        0,       1,       2,        3,        4,          7,          8,          15,         16,         17,
        32,      63,      64,       128,      255,        256,        576,        1024,       4096,       65535,
        65536,   1 << 20, 1 << 24,  1 << 28,  (1 << 28) + 8, (1 << 30) - 1, 1 << 30, INT32_MAX, 0x80000000, UINT32_MAX,
        UINT32_MAX - 15,  0x3f800000 /* 1.0f */, 0x7f800000 /* inf */, 0x7fc00000 /* NaN */, 0xff7fffff, 0x3ff00000,
        0x7ff00000};
    uint8_t how = takeByte(input);
    if (how < 0x80)
        return words[how % (sizeof(words) / sizeof(words[0]))];
    if (how < 0xc0)
        return before + how - 0xa0;
    return takeWord(input);
}

// Words in which pointers stand become null pointers.
void mangle(Input* input, void* target, size_t size, const size_t* pointers) {
    for (uint32_t count = takeByte(input) % 8; count; count--) {
        size_t at = takeByte(input) % (size / 4) * 4;
        bool pointer = false;
        for (const size_t* p = pointers; p && *p != NO_POINTER; p++) {
            if (at / 8 != *p / 8)
                continue;
            memset((char*)target + *p, 0, sizeof(void*));
            pointer = true;
        }
        uint32_t word;
        memcpy(&word, (char*)target + at, 4);
        word = oddWord(input, word);
        if (!pointer)
            memcpy((char*)target + at, &word, 4);
    }
}

// A copy on the heap as long as its structSize says, at least that word; sizes that nobody believes get nothing.
void* given(const void* source, size_t size) {
    uint32_t claimed;
    memcpy(&claimed, source, 4);
    size_t bytes = claimed < 4 ? 4 : claimed <= MOST_STRUCT_BYTES ? claimed : size;
    REQUIRE(world.givenCount < MAX_GIVEN, "too many structs");
    void* copy = calloc(1, bytes);
    REQUIRE(copy, "no memory");
    memcpy(copy, source, bytes < size ? bytes : size);
    if (claimed > size && claimed % 2) // of a future that asks for something
        ((char*)copy)[bytes - 1] = 1;
    return world.given[world.givenCount++] = copy;
}

// Of a struct to be filled.
void* output(Input* input, size_t size) {
    static const int sizes[] = {0, 0, 0, 0, 0, 0, -4, -8, 8, 4096};
    uint8_t how = takeByte(input);
    uint8_t whole[sizeof(VkmqaDeviceProperties)] = {0};
    uint32_t claimed = how == 255 ? 0 : (uint32_t)((int)size + sizes[how % 10]);
    REQUIRE(size <= sizeof(whole), "a large output");
    memcpy(whole, &claimed, 4);
    return given(whole, size);
}

void freeGiven(void) {
    while (world.givenCount)
        free(world.given[--world.givenCount]);
}

VkmqaBuffer anyBuffer(void) {
    return (VkmqaBuffer){.buffer = world.buffer, .size = (VkDeviceSize)1 << 50};
}

// ---- shapes --------------------------------------------------------------------------------------

static const VkmqaAttentionCreateInfo shapes[] = {
    {.numHeadsQ = 8, .numHeadsKv = 2, .headDimQk = 64, .pageSize = 16, .flags = VKMQA_ATTENTION_CAUSAL_BIT},
    {.numHeadsQ = 4, .numHeadsKv = 4, .headDimQk = 128, .headDimV = 64, .maxSeqLenKv = 4096,
     .kType = VKMQA_TYPE_Q8_0, .vType = VKMQA_TYPE_Q4_0, .newType = VKMQA_TYPE_F32,
     .flags = VKMQA_ATTENTION_WINDOW_LEFT_BIT | VKMQA_ATTENTION_SINKS_BIT, .windowLeft = 100},
    {.numHeadsQ = 128, .numHeadsKv = 1, .headDimQk = 576, .headDimV = 512, .pageSize = 64,
     .flags = VKMQA_ATTENTION_V_PREFIX_OF_K_BIT | VKMQA_ATTENTION_CAUSAL_BIT, .ropeStyle = VKMQA_ROPE_INTERLEAVED,
     .ropeOffset = 512},
    {.numHeadsQ = 2, .numHeadsKv = 1, .headDimQk = 8, .pageSize = 256, .kType = VKMQA_TYPE_FP8_E4M3,
     .flags = VKMQA_ATTENTION_TREE_MASK_BIT | VKMQA_ATTENTION_ALIBI_BIT | VKMQA_ATTENTION_BATCH_INVARIANT_BIT,
     .ropeStyle = VKMQA_ROPE_NEOX, .splitSize = 256},
    {.numHeadsQ = 16, .numHeadsKv = 8, .headDimQk = 96, .pageSize = 1, .ioType = VKMQA_TYPE_F32,
     .kType = VKMQA_TYPE_F32, .flags = VKMQA_ATTENTION_MASK_BIT | VKMQA_ATTENTION_HADAMARD_BIT, .chunkSize = 512,
     .softcap = 30, .tier = VKMQA_TIER_PORTABLE},
};

static void makeAttention(Input* input, struct Calls* calls) {
    static const char profile[] = "vkmqa-tuning 1\nlibrary 0.1.0\ndevice 11111111111111111111111111111111\n"
                                  "driver 13 0x00000007\n4:1 64/64 f16/f16 more stream-r4 64 100\n";
    static const size_t pointers[] = {offsetof(VkmqaAttentionCreateInfo, tuningProfile),
                                      offsetof(VkmqaAttentionCreateInfo, tuningProfileSize), NO_POINTER};
    uint8_t which = takeByte(input);
    VkmqaAttentionCreateInfo info = shapes[which % 5];
    info.structSize = sizeof(info);
    if (which & 0x80) {
        info.tuningProfile = profile;
        info.tuningProfileSize = sizeof(profile) - 1;
    }
    mangle(input, &info, sizeof(info), pointers);
    CALL(vkmqaCreateAttention(calls->context, given(&info, sizeof(info)), &calls->attention));
    freeGiven();
    if (calls->attention)
        return;
    info = shapes[which % 5];
    info.structSize = sizeof(info);
    CALL(vkmqaCreateAttention(calls->context, &info, &calls->attention));
    REQUIRE(calls->attention, "shape %u", which % 5);
}

static void makeContext(Input* input, const struct Calls* calls) {
    static const size_t pointers[] = {
        offsetof(VkmqaContextCreateInfo, instance),        offsetof(VkmqaContextCreateInfo, physicalDevice),
        offsetof(VkmqaContextCreateInfo, device),          offsetof(VkmqaContextCreateInfo, getInstanceProcAddr),
        offsetof(VkmqaContextCreateInfo, enabledFeatures), offsetof(VkmqaContextCreateInfo, allocator),
        offsetof(VkmqaContextCreateInfo, pipelineCache),   offsetof(VkmqaContextCreateInfo, messageCallback),
        offsetof(VkmqaContextCreateInfo, messageUserData), offsetof(VkmqaContextCreateInfo, runJobs),
        offsetof(VkmqaContextCreateInfo, runJobsUserData), NO_POINTER};
    VkmqaDeviceRequirements requirements;
    VkmqaContextCreateInfo info = contextInfo(calls->kind, &requirements);
    uint32_t extensions = info.enabledExtensionCount;
    mangle(input, &info, sizeof(info), pointers);
    info.enabledExtensionCount = extensions; // of an array that is there
    info.enabledExtensions = requirements.extensionNames;
    VkmqaContext context = NULL;
    VkResult result = vkmqaCreateContext(given(&info, sizeof(info)), &context);
    REQUIRE((result == VK_SUCCESS) == (context != NULL), "result %d", result);
    vkmqaDestroyContext(context);
}

static void run(Input* input, struct Calls* calls) {
    static void (*const all[])(Input*, struct Calls*) = {
        askKv,     askScratch,  askLayout, askKernel,   writeParameters, recordAppend, recordAttention, recordSlices,
        recordMerge, recordCompact, useMemory, useCommands, useRecorder,     makeCache};
    uint8_t which = takeByte(input);
    if (which % 16 < sizeof(all) / sizeof(all[0]))
        all[which % 16](input, calls);
    else if (which % 16 == 14)
        makeContext(input, calls);
    freeGiven();
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input = {data, size, 0};
    if (!world.buffer)
        makeWorld();
    struct Calls calls = {.kind = (MockKind)(takeByte(&input) % MOCK_KINDS)};
    calls.device = world.imported[calls.kind];
    calls.context = vkmqaGetDeviceContext(calls.device);
    makeAttention(&input, &calls);
    for (int i = 0; i < MAX_CALLS && inputLeft(&input); i++)
        run(&input, &calls);
    vkmqaDestroyRecorder(calls.recorder);
    vkmqaDestroyAttention(calls.attention);
    return 0;
}

// The library inside a program that owns its VkDevice: through an intercepted vkGetInstanceProcAddr, with its
// allocator to the last object, under its queue lock, on what it has enabled; several devices at a time.
#include "engine.h"
#include "harness.h"

#include "core/context.h"

#include <vkmqa/vkmqa_cache.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const VkResult INVALID = VK_ERROR_VALIDATION_FAILED_EXT;

static const Model model = {.numHeadsQ = 8, .numHeadsKv = 2, .headDimQk = 32, .headDimV = 32, .pageSize = 16,
                            .io = ORACLE_F32, .k = ORACLE_F16, .v = ORACLE_F16, .causal = true,
                            .maxSeqLenKv = 512, .splitSize = 64, .source = ORACLE_F32};
static const Batch batch = {.count = 2, .sequences = {{3, 150}, {1, 40}}, .append = true};

// The harness works on whatever device stands in `harness`.
typedef struct Swapped {
    VkmqaDevice device;
    VkmqaContext context;
} Swapped;
static Swapped useDevice(VkmqaDevice device) {
    Swapped before = {harness.device, harness.context};
    harness.device = device;
    harness.context = vkmqaGetDeviceContext(device);
    return before;
}
static void useAgain(Swapped before) {
    harness.device = before.device;
    harness.context = before.context;
}

static void computeOn(VkmqaDevice device, const char* label) {
    VkmqaAttentionCreateInfo info = attentionInfo(&model, VKMQA_TIER_AUTO);
    VkmqaAttention attention;
    Swapped before = useDevice(device);
    REQUIRE(vkmqaDeviceCreateAttention(device, &info, &attention)); // self-test included
    Problem problem = problemCreate(&model, &batch, harness.seed, true);
    runProblem(attention, &problem, label);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
    useAgain(before);
}

// An engine, and the library's device on it.
static VkmqaDevice importFrom(Engine* engine, bool featureless) {
    VkmqaContextCreateInfo context;
    VkmqaDevice device;
    engineOpen(engine, harness.properties.uuid, featureless);
    VkmqaDeviceImportInfo info = engineImportInfo(engine, &context);
    REQUIRE(vkmqaImportDevice(&info, &device));
    return device;
}

static void anEngineKeepsItsAllocatorAndItsLock(void** state) {
    (void)state;
    for (int featureless = 0; featureless < 2; featureless++) {
        Engine engine;
        VkmqaDevice device = importFrom(&engine, featureless);
        assert_true(engine.live > 0);
        VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
        REQUIRE(vkmqaGetDeviceHandles(device, &handles));
        assert_true(handles.device == engine.device);
        const bool copies = engine.transferQueue != NULL;
        assert_true(handles.computeQueue == engine.queue);
        assert_true(handles.transferQueue == (copies ? engine.transferQueue : engine.queue));
        assert_int_equal(handles.computeFamily, engine.family);
        assert_int_equal(handles.transferFamily, copies ? engine.transferFamily : engine.family);
        VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
        REQUIRE(vkmqaGetDeviceProperties(device, &properties));
        assert_int_equal(properties.timestampPeriod > 0, engine.timestamps);
        engine.sizedPipelines = 0;
        computeOn(device, featureless ? "imported without features" : "imported");
        assert_true(engine.submits > 0);
        assert_int_equal(engine.waits, 0); // for its own fences alone
        if (vkmqaGetDeviceContext(device)->caps.subgroupSizeControl) // also where there is but one size
            assert_true(engine.sizedPipelines > 0);
        if (engine.unallocated)
            fail_msg("%u objects without the engine's allocator, the last by vk%s", engine.unallocated,
                     engine.lastUnallocated);
        if (engine.unlocked)
            fail_msg("%u uses of the queue without its lock", engine.unlocked);
        vkmqaCloseDevice(device);
        assert_int_equal(engine.unallocated, 0);
        assert_int_equal(engine.unlocked, 0);
        assert_int_equal(engine.live, 0);
        engineClose(&engine);
    }
}

static void whatIsEnabledDecides(void** state) {
    (void)state;
    Engine engine;
    VkmqaDevice device = importFrom(&engine, true);
    VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
    REQUIRE(vkmqaGetDeviceProperties(device, &properties));
    assert_false(properties.deviceAddresses); // whatever the driver could
    assert_memory_equal(properties.uuid, harness.properties.uuid, 16);
    VkmqaAttentionCreateInfo attention = attentionInfo(&model, VKMQA_TIER_SUBGROUP);
    VkmqaAttention made;
    assert_int_equal(vkmqaCreateAttention(vkmqaGetDeviceContext(device), &attention, &made),
                     VK_ERROR_FEATURE_NOT_PRESENT);
    vkmqaCloseDevice(device);
    engineClose(&engine);
}

// A workgroup without work would only cost time. The kernel takes eight elements an invocation.
static void appendStartsWhatItNeeds(void** state) {
    (void)state;
    const Batch many = {.count = 1, .sequences = {{512, 512}}, .append = true};
    Engine engine;
    VkmqaDevice device = importFrom(&engine, true);
    VkmqaAttention attention;
    Swapped before = useDevice(device);
    Model half = model;
    half.io = half.source = ORACLE_F16;
    REQUIRE(attentionCreate(&half, VKMQA_TIER_PORTABLE, &attention));
    Problem problem = problemCreate(&half, &many, harness.seed, false);
    Run run = runCreate(attention, &problem, NULL);
    const VkmqaAppendInfo append = runAppendInfo(&run);
    REQUIRE(vkmqaBeginCommands(run.commands));
    engine.workgroups = 0;
    REQUIRE(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(run.commands), &append));
    assert_int_equal(engine.workgroups, 2 * 512 * half.numHeadsKv * half.headDimQk / 8 / 64);
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
    useAgain(before);
    vkmqaCloseDevice(device);
    engineClose(&engine);
}

// No layer sees what kernels reach by address, so: copies of pages are visible to all that may follow.
static void copiesOfPagesAreVisible(void** state) {
    (void)state;
    const VkAccessFlags all = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                              VK_ACCESS_TRANSFER_WRITE_BIT;
    Engine engine;
    VkmqaDevice device = importFrom(&engine, false);
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaCommands commands;
    VkmqaSequence sequence, fork;
    Swapped before = useDevice(device);
    REQUIRE(attentionCreate(&model, VKMQA_TIER_AUTO, &attention));
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create), .attention = attention, .numLayers = 1, .numPages = 8,
                                         .maxSequences = 2, .maxNewTokens = 8, .device = device};
    REQUIRE(vkmqaCreateCache(&create, &cache));
    REQUIRE(vkmqaCreateCommands(device, &commands));
    REQUIRE(vkmqaCreateSequence(cache, NULL, &sequence, NULL));
    VkmqaSequenceTokens tokens = {sequence, 5, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    REQUIRE(vkmqaBeginCommands(commands));
    REQUIRE(vkmqaBuildStep(cache, &build, &step));
    REQUIRE(vkmqaCmdUpdateCache(cache, vkmqaGetCommandBuffer(commands), &step));
    REQUIRE(vkmqaForkSequence(cache, sequence, 5, &fork));
    tokens.sequence = fork; // whose first new token copies the page
    REQUIRE(vkmqaBuildStep(cache, &build, &step));
    engine.barrier.dstAccessMask = 0;
    REQUIRE(vkmqaCmdUpdateCache(cache, vkmqaGetCommandBuffer(commands), &step));
    assert_int_equal(engine.barrier.dstAccessMask & all, all);
    assert_true(engine.barrier.srcAccessMask & VK_ACCESS_TRANSFER_WRITE_BIT);
    assert_true(engine.barrierTo & VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT);
    vkmqaDestroyCache(cache);
    vkmqaDestroyCommands(commands);
    vkmqaDestroyAttention(attention);
    useAgain(before);
    vkmqaCloseDevice(device);
    engineClose(&engine);
}

static void severalDevicesAtATime(void** state) {
    (void)state;
    VkmqaDeviceProperties listed[8] = {{.structSize = sizeof(listed[0])}};
    uint32_t count = COUNT(listed);
    assert_true(vkmqaListDevices(&count, listed, NULL, NULL) >= 0);
    VkmqaDevice devices[COUNT(listed) + 2] = {NULL};
    uint32_t opened = 0;
    for (uint32_t i = 0; i < count; i++) {
        char selector[40] = "uuid:";
        for (int k = 0; k < 16; k++)
            snprintf(selector + 5 + 2 * k, 3, "%02x", listed[i].uuid[k]);
        const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .selector = selector,
                                          .lowPriority = true, .messageCallback = harnessMessage};
        REQUIRE(vkmqaOpenDevice(&info, &devices[opened++])); // the engine's GPU as a device of our own
    }
    Engine engine;
    VkmqaContextCreateInfo context;
    engineOpen(&engine, harness.properties.uuid, false);
    VkmqaDeviceImportInfo import = engineImportInfo(&engine, &context);
    REQUIRE(vkmqaImportDevice(&import, &devices[opened++]));
    for (uint32_t i = 0; i < opened; i++)
        computeOn(devices[i], "one of several devices");
    computeOn(harness.device, "the first device again");
    for (uint32_t i = 0; i < opened; i++)
        vkmqaCloseDevice(devices[i]);
    engineClose(&engine);
}

static void importsRejectBadInput(void** state) {
    (void)state;
    Engine engine;
    VkmqaContextCreateInfo context;
    engineOpen(&engine, harness.properties.uuid, false);
    const VkmqaDeviceImportInfo good = engineImportInfo(&engine, &context);
    VkmqaDevice device;
#define REJECTS(change, expected, word)                                                            \
    do {                                                                                           \
        VkmqaDeviceImportInfo info = good;                                                         \
        VkmqaContextCreateInfo spoilt = context;                                                   \
        info.context = &spoilt;                                                                    \
        change;                                                                                    \
        harness.message[0] = 0;                                                                    \
        device = (VkmqaDevice)&info;                                                               \
        VkResult got = vkmqaImportDevice(&info, &device);                                          \
        if (got != (expected) || device || !strstr(harness.message, word))                         \
            fail_msg("%s: VkResult %d, \"%s\"", #change, got, harness.message);                    \
        assert_int_equal(engine.live, 0);                                                          \
    } while (0)
    REJECTS(info.computeQueue = NULL, INVALID, "computeQueue");
    REJECTS(info.computeFamily = 77, INVALID, "computeFamily is 77");
    REJECTS(info.transferQueue = (VkQueue)&engine; info.transferFamily = 78, INVALID, "transferFamily is 78; the device");
    REJECTS(info.transferQueue = engine.queue; info.transferFamily = 78, INVALID, "the same queue's computeFamily");
    REJECTS(info.lockQueue = NULL, INVALID, "info.lockQueue is");
    REJECTS(info.unlockQueue = NULL, INVALID, "info.unlockQueue is");
    REJECTS(info.physicalDeviceCount = 2, VK_ERROR_FEATURE_NOT_PRESENT, "group");
    REJECTS(spoilt.device = NULL, INVALID, "info.device");
    const VkAllocationCallbacks halfAnAllocator = {.pfnFree = context.allocator->pfnFree};
    REJECTS(spoilt.allocator = &halfAnAllocator, INVALID, "allocator lacks a function");
    REJECTS(spoilt.getInstanceProcAddr = NULL, INVALID, "getInstanceProcAddr");
    REJECTS(spoilt.maxDispatchSeconds = -1, INVALID, "maxDispatchSeconds");
    VkmqaDeviceImportInfo info = good;
    info.context = NULL;
    assert_int_equal(vkmqaImportDevice(&info, &device), INVALID);
    assert_int_equal(vkmqaImportDevice(NULL, &device), INVALID);
    assert_int_equal(vkmqaImportDevice(&good, NULL), INVALID);
    engineClose(&engine);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(anEngineKeepsItsAllocatorAndItsLock),
    cmocka_unit_test(whatIsEnabledDecides),
    cmocka_unit_test(appendStartsWhatItNeeds),
    cmocka_unit_test(copiesOfPagesAreVisible),
    cmocka_unit_test(severalDevicesAtATime),
    cmocka_unit_test(importsRejectBadInput),
};

HARNESS_MAIN(tests)

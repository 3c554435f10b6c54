// The library on a device made small by the tests' layer (VKMQA_LAYER=clamp:PROFILE, see layer/clamp.c), and that the
// layer does notice what such a device could not do.
#include "clamp.h"

#include "core/context.h"

#include <vkmqa/vkmqa_cache.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static VkmqaAttention create(const Model* model, VkmqaTier tier) {
    VkmqaAttention attention;
    REQUIRE(attentionCreate(model, tier, &attention));
    return attention;
}

static void expectRefusedTier(const Model* model, VkmqaTier tier, const char* text) {
    VkmqaAttention attention;
    assert_int_equal(attentionCreate(model, tier, &attention), VK_ERROR_FEATURE_NOT_PRESENT);
    if (!strstr(harness.message, text))
        fail_msg("tier %s: '%s' lacks '%s'", tierName(tier), harness.message, text);
}

static const Model plain = {.numHeadsQ = 4, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .maxSeqLenKv = 4096,
                            .io = ORACLE_F16, .k = ORACLE_F16, .v = ORACLE_F16};

// ---- small ---------------------------------------------------------------------------------------

static void smallIsSeen(void** state) {
    (void)state;
    assert_int_equal(VK_API_VERSION_MINOR(harness.properties.apiVersion), 1);
    assert_int_equal(harness.properties.type, VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU);
    assert_int_equal(harness.properties.sharedMemory, 16384);
    assert_int_equal(harness.properties.maxStorageRange, 1 << 27);
    assert_false(harness.properties.deviceAddresses);
    assert_int_equal(harness.properties.driverId, 0); // the struct is one of Vulkan 1.2
    expectRefusedTier(&plain, VKMQA_TIER_SUBGROUP, "bufferDeviceAddress");
    expectRefusedTier(&plain, VKMQA_TIER_CPU, "CPU");
    expectRefusedTier(&plain, VKMQA_TIER_COOPMAT, "VK_KHR_cooperative_matrix");
    VkmqaAttention attention = create(&plain, VKMQA_TIER_AUTO);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    REQUIRE(vkmqaGetKernelInfo(attention, &limits, &kernel));
    assert_int_equal(kernel.tier, VKMQA_TIER_PORTABLE);
    assert_true(kernel.sharedMemory <= 16384);
    vkmqaDestroyAttention(attention);
}

// The widest heads, every cache type, and the longest rows that a tile of 8 and of 1 has room for (456, 576); the layer
// ends a program whose workgroups are too large.
static void everyShapeFits(void** state) {
    (void)state;
    static const OracleType types[] = {ORACLE_F32, ORACLE_F16, ORACLE_BF16, ORACLE_FP8, ORACLE_Q8_0, ORACLE_Q4_0};
    static const uint32_t dims[COUNT(types)] = {576, 456, 464, 8, 128, 448};
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    for (size_t i = 0; i < COUNT(types); i++) {
        Model model = plain;
        VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
        model.numHeadsQ = 128;
        model.headDimQk = model.headDimV = dims[i];
        model.k = model.v = types[i];
        VkmqaAttention attention = create(&model, VKMQA_TIER_AUTO);
        REQUIRE(vkmqaGetKernelInfo(attention, &limits, &kernel));
        assert_int_equal(kernel.rowsPerTile, dims[i] <= 456 ? 8 : 1);
        vkmqaDestroyAttention(attention);
    }
}

static void rangesEndAtTheLimit(void** state) {
    (void)state;
    Model model = plain;
    model.pageSize = 256; // 32 KiB of K
    VkmqaAttention attention = create(&model, VKMQA_TIER_AUTO);
    VkmqaKvRequirements needs = {.structSize = sizeof(needs)};
    REQUIRE(vkmqaGetKvRequirements(attention, 4096, &needs));
    assert_int_equal(needs.k.size, 1 << 27);
    assert_int_equal(vkmqaGetKvRequirements(attention, 4097, &needs), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "134217728 (maxStorageBufferRange)"));
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest smallTests[] = {
    cmocka_unit_test(smallIsSeen), cmocka_unit_test(everyShapeFits), cmocka_unit_test(rangesEndAtTheLimit),
    cmocka_unit_test(layerRefusesDevices), cmocka_unit_test(layerRefusesShaders),
    cmocka_unit_test(layerRefusesLayouts),
};

// ---- few -----------------------------------------------------------------------------------------

// Twice, so that a refused device has left nothing behind that the next one stumbles over.
static void fewIsRefused(void** state) {
    (void)state;
    uint32_t count = 0;
    assert_int_equal(vkmqaListDevices(&count, NULL, NULL, NULL), VK_SUCCESS);
    assert_int_equal(count, 1);
    for (uint32_t i = 0; i < 4; i++) {
        const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .portableOnly = i % 2,
                                          .messageCallback = harnessMessage};
        VkmqaDevice device = NULL;
        harness.message[0] = 0;
        assert_int_equal(vkmqaOpenDevice(&info, &device), VK_ERROR_FEATURE_NOT_PRESENT);
        assert_null(device);
        if (!strstr(harness.message, "maxPerStageDescriptorStorageBuffers is 4") ||
            !strstr(harness.message, "bufferDeviceAddress") || !strstr(harness.message, "8"))
            fail_msg("'%s' does not say what is missing", harness.message);
    }
}

static const struct CMUnitTest fewTests[] = {cmocka_unit_test(fewIsRefused)};

// ---- unbound -------------------------------------------------------------------------------------

static void addressesSuffice(void** state) {
    (void)state;
    assert_true(harness.properties.deviceAddresses);
    expectRefusedTier(&plain, VKMQA_TIER_PORTABLE, "storage buffers");
    VkmqaAttention attention = create(&plain, VKMQA_TIER_AUTO);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    REQUIRE(vkmqaGetKernelInfo(attention, &limits, &kernel));
    assert_false(kernel.usesDescriptors);
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest unboundTests[] = {
    cmocka_unit_test(addressesSuffice), cmocka_unit_test(layerRefusesLayouts),
};

// ---- alignment -----------------------------------------------------------------------------------

// 16 is enough for the caller, since descriptors begin below their buffers; the programs of this profile lay them so.
static void alignmentIsNotPassedOn(void** state) {
    (void)state;
    VkmqaAttention attention = create(&plain, VKMQA_TIER_PORTABLE);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    VkmqaStepLayout layout;
    VkmqaBufferRequirements step;
    VkmqaKvRequirements kv = {.structSize = sizeof(kv)};
    REQUIRE(vkmqaGetStepLayout(attention, &limits, &layout, &step));
    REQUIRE(vkmqaGetKvRequirements(attention, 1, &kv));
    assert_int_equal(step.alignment, 16);
    assert_int_equal(kv.k.alignment, 16);
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest alignmentTests[] = {
    cmocka_unit_test(alignmentIsNotPassedOn), cmocka_unit_test(mappedMemoryIsCoherent),
    cmocka_unit_test(layerNeedsFlushes), cmocka_unit_test(layerRefusesRanges),
};

// ---- timestampless -------------------------------------------------------------------------------

static void timeIsUnknown(void** state) {
    (void)state;
    VkmqaCommands commands;
    assert_true(harness.properties.timestampPeriod == 0);
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    REQUIRE(vkmqaSubmitCommands(commands));
    REQUIRE(vkmqaWaitCommands(commands, UINT64_MAX));
    assert_true(vkmqaGetCommandsTime(commands) == 0);
    vkmqaDestroyCommands(commands);
}

static const struct CMUnitTest timestamplessTests[] = {
    cmocka_unit_test(timeIsUnknown), cmocka_unit_test(layerRefusesTimestamps),
};

// ---- heap ----------------------------------------------------------------------------------------

enum { MIB = 1 << 20 };

static void memoryRunsOut(void** state) {
    (void)state;
    VkmqaMemory first, second = NULL;
    assert_int_equal(harness.properties.deviceMemory, 256 * MIB);
    for (int round = 0; round < 3; round++) {
        REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 150 * MIB, &first));
        assert_int_equal(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 150 * MIB, &second),
                         VK_ERROR_OUT_OF_DEVICE_MEMORY);
        assert_null(second);
        assert_non_null(strstr(harness.message, "no memory left for 157286400 bytes"));
        vkmqaDestroyMemory(first);
    }
    assert_int_equal(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 257 * MIB, &second),
                     VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_non_null(strstr(harness.message, "268435456"));
}

// Uploads need a staging buffer: none is left, and the next one works.
static void stagingRunsOut(void** state) {
    (void)state;
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .skipVerification = VK_TRUE,
                                      .messageCallback = harnessMessage};
    VkmqaDevice device;
    VkmqaMemory memory, rest;
    uint32_t word = 0x12345678, back = 0;
    REQUIRE(vkmqaOpenDevice(&info, &device));
    REQUIRE(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, 100 * MIB, &memory));
    REQUIRE(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, 130 * MIB, &rest));
    assert_int_equal(vkmqaUpload(memory, 0, &word, 4), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_non_null(strstr(harness.message, "vkmqaUpload"));
    vkmqaDestroyMemory(rest);
    REQUIRE(vkmqaUpload(memory, 0, &word, 4));
    REQUIRE(vkmqaDownload(memory, 0, &back, 4));
    assert_int_equal(back, word);
    vkmqaDestroyMemory(memory);
    vkmqaCloseDevice(device);
}

static void cachesKeepToTheBudget(void** state) {
    (void)state;
    Model model = plain;
    model.pageSize = 256; // with V 64 KiB a page
    VkmqaAttention attention = create(&model, VKMQA_TIER_AUTO);
    VkmqaCacheCreateInfo info = {.structSize = sizeof(info), .attention = attention, .numLayers = 1,
                                 .numPages = 3072, .maxSequences = 1, .maxNewTokens = 1, .device = harness.device};
    VkmqaCacheRequirements needs = {.structSize = sizeof(needs)};
    VkmqaCache cache, second = NULL;
    REQUIRE(vkmqaGetCacheRequirements(&info, &needs));
    const VkDeviceSize budget = needs.deviceBudget;
    assert_true(needs.deviceBytes >= 192 * MIB && budget >= needs.deviceBytes && budget <= 256 * MIB);
    REQUIRE(vkmqaCreateCache(&info, &cache));
    REQUIRE(vkmqaGetCacheRequirements(&info, &needs));
    assert_true(needs.deviceBudget <= budget - 192 * MIB);
    assert_int_equal(vkmqaCreateCache(&info, &second), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_null(second);
    assert_non_null(strstr(harness.message, "budget"));
    vkmqaDestroyCache(cache);
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest heapTests[] = {
    cmocka_unit_test(memoryRunsOut), cmocka_unit_test(stagingRunsOut), cmocka_unit_test(cachesKeepToTheBudget),
};

// ---- card ----------------------------------------------------------------------------------------

static void cardIsSeen(void** state) {
    (void)state;
    VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
    REQUIRE(vkmqaGetDeviceHandles(harness.device, &handles));
    assert_int_equal(harness.properties.type, VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU);
    assert_int_equal(harness.properties.deviceMemory, 256 * MIB);
    assert_int_equal(handles.computeFamily, 1); // not that of graphics
    assert_int_equal(handles.transferFamily, 2);
    assert_true(handles.transferQueue != handles.computeQueue);
    assert_true(harness.properties.timestampPeriod > 0);
    assert_int_equal(harness.context->caps.maxInvocations, 512); // of a workgroup's one dimension, not of three
}

// The host's memory is no place for a cache, though it has room.
static void cachesStayOnTheCard(void** state) {
    (void)state;
    VkmqaMemory first, second = NULL;
    assert_int_equal(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 257 * MIB, &second),
                     VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_null(second);
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 200 * MIB, &first));
    assert_int_equal(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 100 * MIB, &second),
                     VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_null(second);
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 257 * MIB, &second));
    vkmqaDestroyMemory(second);
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DOWNLOAD, 257 * MIB, &second));
    vkmqaDestroyMemory(second);
    vkmqaDestroyMemory(first);
}

// Uploads and downloads go through the queue of copies.
static void copiesCrossQueues(void** state) {
    (void)state;
    enum { WORDS = 3 * MIB / 4 };
    static uint32_t words[WORDS], back[WORDS];
    VkmqaMemory memory;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, sizeof(words), &memory));
    assert_null(vkmqaGetMemoryPointer(memory));
    for (uint32_t i = 0; i < WORDS; i++)
        words[i] = i * 2654435761u;
    REQUIRE(vkmqaUpload(memory, 0, words, sizeof(words)));
    REQUIRE(vkmqaDownload(memory, 0, back, sizeof(back)));
    assert_memory_equal(words, back, sizeof(words));
    vkmqaDestroyMemory(memory);
}

static const struct CMUnitTest cardTests[] = {
    cmocka_unit_test(cardIsSeen), cmocka_unit_test(cachesStayOnTheCard), cmocka_unit_test(copiesCrossQueues),
    cmocka_unit_test(layerRefusesQueues),
};

int main(void) {
    const char* way = getenv("VKMQA_LAYER");
    const char* profile = way ? strchr(way, ':') : NULL;
    int failed = 1;
    if (!profile) {
        fprintf(stderr, "VKMQA_LAYER names no profile\n");
        return 1;
    }
    if (strcmp(profile, ":few") == 0)
        return cmocka_run_group_tests(fewTests, NULL, NULL) != 0;
    harnessOpen();
    clampLoad();
#define PROFILE(name)                                                                              \
    if (strcmp(profile, ":" #name) == 0)                                                           \
        failed = cmocka_run_group_tests(name##Tests, NULL, NULL);
    PROFILE(small)
    PROFILE(unbound)
    PROFILE(alignment)
    PROFILE(timestampless)
    PROFILE(heap)
    PROFILE(card)
    harnessClose();
    return failed != 0;
}

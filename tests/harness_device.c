#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Harness harness;

const char* tierName(VkmqaTier tier) {
    static const char* const names[] = {"auto", "portable", "subgroup", "cpu", "coopmat"};
    return names[tier];
}

bool harnessIsLong(void) {
    const char* all = getenv("VKMQA_TEST_LONG");
    return all && strcmp(all, "1") == 0;
}

static bool isOfShare(const char* share, size_t index) {
    unsigned long which = 0, of = 1;
    if (share && !harnessIsLong()) {
        char* end;
        which = strtoul(share, &end, 10);
        of = *end == '/' ? strtoul(end + 1, NULL, 10) : 1;
    }
    return of < 2 || (index + harness.seed - 1) % of == which;
}

bool legHasShare(size_t index) { return isOfShare(getenv("VKMQA_TEST_SHARE"), index); }
bool legHasPart(size_t index) { return isOfShare(getenv("VKMQA_TEST_PART"), index); }

bool tierHasTurn(uint32_t tier, size_t index) {
    const char* always = getenv("VKMQA_TEST_ALWAYS");
    if (always && strcmp(always, tierName(harness.tiers[tier])) == 0)
        return true;
    return harnessIsLong() || (index + harness.seed) % harness.tierCount == tier;
}

void harnessMessage(VkmqaSeverity severity, const char* text, void* userData) {
    (void)userData;
    if (getenv("VKMQA_TEST_VERBOSE"))
        fprintf(stderr, "vkmqa: %s\n", text);
    if (severity != VKMQA_SEVERITY_INFO)
        snprintf(harness.message, sizeof(harness.message), "%s", text);
}

// Whether a row handed to append arrives in the cache. Uses no test framework: it decides whether there
// is anything to test on.
static bool deviceExecutes(void) {
    const Model model = {
        .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 8, .headDimV = 8, .maxSeqLenKv = 64};
    float row[8] = {1, -2, 3, -4, 5, -6, 7, -8};
    float stored[8] = {0};
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof(kvNeeds)};
    VkmqaBufferRequirements stepNeeds;
    VkmqaAttention attention = NULL;
    VkmqaMemory source = NULL, k = NULL, v = NULL, metadata = NULL;
    VkmqaCommands commands = NULL;
    bool executes = false;

    if (attentionCreate(&model, VKMQA_TIER_AUTO, &attention) ||
        vkmqaGetKvRequirements(attention, 1, &kvNeeds) ||
        vkmqaGetStepLayout(attention, &limits, &step.layout, &stepNeeds) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, sizeof(row), &source) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, kvNeeds.k.size, &k) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, kvNeeds.v.size, &v) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, stepNeeds.size, &metadata) ||
        vkmqaCreateCommands(harness.device, &commands))
        goto end;
    step.metadata = vkmqaGetMemoryRange(metadata, 0, 0);
    memset(vkmqaGetMemoryPointer(metadata), 0, stepNeeds.size); // slot 0
    const VkmqaKv kv = {vkmqaGetMemoryRange(k, 0, 0), vkmqaGetMemoryRange(v, 0, 0), 1};
    if (vkmqaUpload(source, 0, row, sizeof(row)) || vkmqaUpload(k, 0, stored, sizeof(stored)) ||
        vkmqaBeginCommands(commands))
        goto end;
    const VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(commands),
        .step = &step,
        .kv = &kv,
        .newK = vkmqaGetMemoryRange(source, 0, 0),
        .newV = vkmqaGetMemoryRange(source, 0, 0),
    };
    if (vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &info) ||
        vkmqaSubmitCommands(commands) ||
        vkmqaWaitCommands(commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull) ||
        vkmqaDownload(k, 0, stored, sizeof(stored)))
        goto end;
    executes = memcmp(row, stored, sizeof(row)) == 0;
end:
    vkmqaDestroyCommands(commands);
    vkmqaDestroyMemory(source);
    vkmqaDestroyMemory(k);
    vkmqaDestroyMemory(v);
    vkmqaDestroyMemory(metadata);
    vkmqaDestroyAttention(attention);
    return executes;
}

static void findTiers(void) {
    const Model model = {.numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .k = ORACLE_F16,
                         .v = ORACLE_F16, .maxSeqLenKv = 64};
    static const VkmqaTier tiers[] = {VKMQA_TIER_PORTABLE, VKMQA_TIER_SUBGROUP, VKMQA_TIER_CPU,
                                      VKMQA_TIER_COOPMAT};
    const char* only = getenv("VKMQA_TEST_TIER");
    const char* usual = harnessIsLong() ? NULL : getenv("VKMQA_TEST_TIERS");
    for (size_t i = 0; i < COUNT(tiers); i++) {
        VkmqaAttention attention;
        if (only ? strcmp(only, tierName(tiers[i])) != 0 : usual && !strstr(usual, tierName(tiers[i])))
            continue;
        if (attentionCreate(&model, tiers[i], &attention) != VK_SUCCESS)
            continue;
        vkmqaDestroyAttention(attention);
        harness.tiers[harness.tierCount++] = tiers[i];
    }
}

// Tiers that drivers of the legs are known to have: one that is lost must not go unnoticed.
static uint32_t expectedTiers(void) {
    if (getenv("VKMQA_LAYER") || getenv("VKMQA_TEST_PORTABLE") || getenv("VKMQA_TEST_TIER") || getenv("VKMQA_TEST_TIERS"))
        return 1;
    return strncmp(harness.properties.driverInfo, "Mesa 26.", 8) == 0   ? 4
           : strncmp(harness.properties.driverInfo, "Mesa 22.", 8) == 0 ? 3
                                                                        : 1;
}

void harnessOpen(void) {
    const char* seed = getenv("VKMQA_TEST_SEED");
    const char* portable = getenv("VKMQA_TEST_PORTABLE");
    const VkmqaDeviceOpenInfo info = {
        .structSize = sizeof(info),
        .selector = getenv("VKMQA_TEST_DEVICE"),
        .portableOnly = portable && strcmp(portable, "1") == 0,
        .skipVerification = VK_TRUE, // test_verify's own business, and slow
        .messageCallback = harnessMessage,
    };
    setvbuf(stdout, NULL, _IOLBF, 0); // so that a test that hangs or dies has said its name
    cmocka_set_test_filter(getenv("VKMQA_TEST_FILTER"));
    harness.seed = seed ? strtoull(seed, NULL, 0) : 1;
    VkResult result = vkmqaOpenDevice(&info, &harness.device);
    if (result != VK_SUCCESS) {
        bool ours = getenv("VKMQA_LAYER"); // whose devices are to be opened
        fprintf(stderr, "%s: no Vulkan device (VkResult %d: %s)\n", ours ? "failed" : "skipped", result,
                harness.message);
        exit(ours ? 1 : HARNESS_SKIPPED);
    }
    harness.context = vkmqaGetDeviceContext(harness.device);
    harness.properties.structSize = sizeof(harness.properties);
    vkmqaGetDeviceProperties(harness.device, &harness.properties);
    if (!deviceExecutes()) {
        fprintf(stderr, "refused: %s executes nothing, or cannot even append one row (%s)\n",
                harness.properties.name, harness.message);
        fflush(stderr);
        _Exit(HARNESS_REFUSED);
    }
    findTiers();
    printf("device: %s, %s; seed %llu; tiers:", harness.properties.name,
           harness.properties.driverInfo, (unsigned long long)harness.seed);
    for (uint32_t i = 0; i < harness.tierCount; i++)
        printf(" %s", tierName(harness.tiers[i]));
    printf("\n");
    fflush(stdout);
    if (harness.tierCount < expectedTiers()) {
        fprintf(stderr, "failed: %u tiers can be forced, not %u: %s\n", harness.tierCount, expectedTiers(), harness.message);
        exit(1);
    }
}

void harnessClose(void) {
    vkmqaCloseDevice(harness.device);
    memset(&harness, 0, sizeof(harness));
}

void expectCall(VkResult got, VkResult wanted, const char* word, const char* what) {
    if (got != wanted)
        fail_msg("%s: VkResult %d, should be %d (%s)", what, got, wanted, harness.message);
    if (word && !strstr(harness.message, word))
        fail_msg("%s: the message does not speak of %s: \"%s\"", what, word, harness.message);
}

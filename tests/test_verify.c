// The known-answer test passes on a driver that computes rightly, for every kind of object: it must not take a
// good kernel away. That it notices a bad one is test_planted's business.
#include "harness.h"

#include <stdio.h>
#include <string.h>

#define F16 ORACLE_F16
#define F32 ORACLE_F32
#define BF16 ORACLE_BF16

static const Model models[] = {
    {.numHeadsQ = 8, .numHeadsKv = 2, .headDimQk = 64, .headDimV = 64, .pageSize = 16, .io = F16, .k = ORACLE_Q8_0,
     .v = ORACLE_Q4_0, .causal = true},
    {.numHeadsQ = 3, .numHeadsKv = 1, .headDimQk = 40, .headDimV = 72, .io = BF16, .k = BF16, .v = ORACLE_FP8,
     .flags = VKMQA_ATTENTION_SINKS_BIT | VKMQA_ATTENTION_ALIBI_BIT},
    {.numHeadsQ = 16, .numHeadsKv = 1, .headDimQk = 128, .headDimV = 128, .pageSize = 1, .io = F32, .k = ORACLE_Q4_0,
     .v = F32, .causal = true, .flags = VKMQA_ATTENTION_HADAMARD_BIT, .rope = ORACLE_ROPE_INTERLEAVED},
    {.numHeadsQ = 4, .numHeadsKv = 1, .headDimQk = 576, .headDimV = 512, .pageSize = 64, .io = F16, .k = F16, .v = F16,
     .causal = true, .flags = VKMQA_ATTENTION_V_PREFIX_OF_K_BIT, .rope = ORACLE_ROPE_NEOX, .ropeOffset = 512},
    {.numHeadsQ = 6, .numHeadsKv = 3, .headDimQk = 8, .headDimV = 256, .pageSize = 256, .io = F32, .k = F32,
     .v = ORACLE_Q8_0, .flags = VKMQA_ATTENTION_MASK_BIT | VKMQA_ATTENTION_WINDOW_LEFT_BIT, .windowLeft = 20},
    {.numHeadsQ = 8, .numHeadsKv = 1, .headDimQk = 80, .headDimV = 80, .pageSize = 4, .io = F16, .k = ORACLE_FP8,
     .v = ORACLE_FP8, .causal = true,
     .flags = VKMQA_ATTENTION_TREE_MASK_BIT | VKMQA_ATTENTION_BATCH_INVARIANT_BIT, .softcap = 15},
    {.numHeadsQ = 71, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .io = F16, .k = F16, .v = F16,
     .chunkSize = 16, .scale = 0.9f},
};

static void goodKernelsPass(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(models); i++)
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            if (!tierHasTurn(t, i))
                continue;
            Model model = models[i];
            model.maxSeqLenKv = 512;
            VkmqaAttentionCreateInfo info = attentionInfo(&model, harness.tiers[t]);
            VkmqaAttention attention;
            REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
            VkmqaBufferRequirements needs;
            VkmqaMemory memory;
            VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
            REQUIRE(vkmqaGetVerifyRequirements(attention, &needs));
            REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DOWNLOAD, needs.size, &memory));
            REQUIRE(vkmqaGetDeviceHandles(harness.device, &handles));
            const VkmqaVerifyInfo verify = {.structSize = sizeof(verify),
                                            .queueFamilyIndex = handles.computeFamily,
                                            .queue = handles.computeQueue,
                                            .memory = vkmqaGetMemoryRange(memory, 0, 0),
                                            .mapped = vkmqaGetMemoryPointer(memory),
                                            .timeoutNs = 300000000000ull};
            uint64_t failed = ~0ull;
            REQUIRE(vkmqaVerifyAttention(attention, &verify, &failed));
            if (failed)
                fail_msg("%s, model %zu: kernels 0x%llx are said to fail", tierName(harness.tiers[t]), i,
                         (unsigned long long)failed);
            vkmqaDestroyMemory(memory);
            vkmqaDestroyAttention(attention);
        }
}

static void lock(void* userData, VkQueue queue) { (void)userData, (void)queue; }

// What is missing is named, and nothing is submitted.
static void badInfoIsRefused(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .k = ORACLE_F16,
                         .v = ORACLE_F16, .maxSeqLenKv = 64};
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, harness.tiers[0], &attention));
    static uint32_t place[64];
    const VkmqaVerifyInfo good = {.structSize = sizeof(good), .queue = (VkQueue)place, .mapped = place};
    VkmqaVerifyInfo info;
    uint64_t failed;
#define REFUSES(call, word)                                                                        \
    harness.message[0] = 0;                                                                        \
    assert_int_equal((call), VK_ERROR_VALIDATION_FAILED_EXT);                                      \
    if (!strstr(harness.message, word))                                                            \
    fail_msg("\"%s\" does not speak of %s", harness.message, word)
#define SPOILED(field, value, word)                                                                \
    info = good;                                                                                   \
    info.field = (value);                                                                          \
    REFUSES(vkmqaVerifyAttention(attention, &info, &failed), word)
    REFUSES(vkmqaVerifyAttention(attention, NULL, &failed), "info");
    REFUSES(vkmqaVerifyAttention(attention, &good, NULL), "failedKernels is null");
    SPOILED(structSize, 8, "info");
    SPOILED(queue, NULL, "queue is null");
    SPOILED(mapped, NULL, "mapped is null");
    SPOILED(lockQueue, lock, "unlockQueue is null");
    SPOILED(unlockQueue, lock, "lockQueue is null");
    SPOILED(memory.size, 4, "memory.size is 4");
    VkmqaBufferRequirements needs;
    assert_int_equal(vkmqaGetVerifyRequirements(attention, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    REQUIRE(vkmqaGetVerifyRequirements(attention, &needs));
    VkmqaAttentionCreateInfo create = attentionInfo(&model, harness.tiers[0]);
    VkmqaAttention made = attention;
    REFUSES(vkmqaDeviceCreateAttention(harness.device, NULL, &made), "info is null");
    assert_null(made);
    REFUSES(vkmqaDeviceCreateAttention(harness.device, &create, NULL), "attention is null");
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(goodKernelsPass),
    cmocka_unit_test(badInfoIsRefused),
};

HARNESS_MAIN(tests)

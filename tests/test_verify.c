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

static const struct CMUnitTest tests[] = {cmocka_unit_test(goodKernelsPass)};

HARNESS_MAIN(tests)

// Bad input: an error code, a message that names the field, nothing recorded, nothing leaked.
#include "harness.h"

#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- A context of our own over the runtime's device, with an allocator that counts -----------------

typedef struct Imported {
    VkmqaDeviceHandles handles;
    VkmqaDeviceRequirements requirements;
    VkmqaContextCreateInfo info; // a good one
    VkAllocationCallbacks allocator;
    size_t live; // allocations not freed
} Imported;

static Imported imported;

static VKAPI_ATTR void* VKAPI_CALL countedAllocate(void* user, size_t size, size_t alignment,
                                                   VkSystemAllocationScope scope) {
    (void)scope;
    Imported* owner = user;
    if (alignment < 2 * sizeof(void*))
        alignment = 2 * sizeof(void*);
    // In front, for freeing and reallocation: size and alignment.
    size_t* block =
        aligned_alloc(alignment, (alignment + size + alignment - 1) / alignment * alignment);
    if (!block)
        return NULL;
    owner->live++;
    uint8_t* memory = (uint8_t*)block + alignment;
    ((size_t*)memory)[-1] = alignment;
    ((size_t*)memory)[-2] = size;
    return memory;
}

static VKAPI_ATTR void VKAPI_CALL countedFree(void* user, void* memory) {
    if (!memory)
        return;
    ((Imported*)user)->live--;
    free((uint8_t*)memory - ((size_t*)memory)[-1]);
}

static VKAPI_ATTR void* VKAPI_CALL countedReallocate(void* user, void* original, size_t size,
                                                     size_t alignment,
                                                     VkSystemAllocationScope scope) {
    void* memory = size ? countedAllocate(user, size, alignment, scope) : NULL;
    if (memory && original) {
        size_t before = ((size_t*)original)[-2];
        memcpy(memory, original, before < size ? before : size);
    }
    if (memory || size == 0)
        countedFree(user, original);
    return memory;
}

static int importDevice(void** state) {
    (void)state;
    imported.handles.structSize = sizeof(imported.handles);
    imported.requirements.structSize = sizeof(imported.requirements);
    REQUIRE(vkmqaGetDeviceHandles(harness.device, &imported.handles));
    uint32_t apiVersion = harness.properties.apiVersion;
    const VkmqaDeviceRequirementsInfo needs = {
        .structSize = sizeof(needs),
        .apiVersion = apiVersion,
        .instance = imported.handles.instance,
        .physicalDevice = imported.handles.physicalDevice,
        .getInstanceProcAddr = imported.handles.getInstanceProcAddr,
    };
    REQUIRE(vkmqaGetDeviceRequirements(&needs, &imported.requirements));
    imported.allocator = (VkAllocationCallbacks){.pUserData = &imported,
                                                 .pfnAllocation = countedAllocate,
                                                 .pfnReallocation = countedReallocate,
                                                 .pfnFree = countedFree};
    imported.info = (VkmqaContextCreateInfo){
        .structSize = sizeof(imported.info),
        .apiVersion = apiVersion,
        .instance = imported.handles.instance,
        .physicalDevice = imported.handles.physicalDevice,
        .device = imported.handles.device,
        .getInstanceProcAddr = imported.handles.getInstanceProcAddr,
        .enabledExtensionCount = imported.requirements.extensionCount,
        .enabledExtensions = imported.requirements.extensionNames,
        .enabledFeatures = imported.requirements.features,
        .allocator = &imported.allocator,
        .messageCallback = harnessMessage,
    };
    return 0;
}

static VkmqaContext importedContext(void) {
    VkmqaContext context;
    REQUIRE(vkmqaCreateContext(&imported.info, &context));
    return context;
}

// ---- Expectations ----------------------------------------------------------------------------------

#define REJECTS(call, expected, word)                                                              \
    do {                                                                                           \
        harness.message[0] = 0;                                                                    \
        size_t live_ = imported.live;                                                              \
        expectCall((call), (expected), (word), #call);                                           \
        assert_int_equal(imported.live, live_);                                                    \
    } while (0)

static const VkResult INVALID = VK_ERROR_VALIDATION_FAILED_EXT;
static const VkResult ABSENT = VK_ERROR_FEATURE_NOT_PRESENT;

static VkmqaAttentionCreateInfo goodAttention(void) {
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .numHeadsQ = 8,
                                           .numHeadsKv = 2,
                                           .headDimQk = 64,
                                           .pageSize = 16,
                                           .maxSeqLenKv = 512};
    return info;
}

// ---- Context ---------------------------------------------------------------------------------------

static void contextsRejectBadInput(void** state) {
    (void)state;
    VkmqaContext context = NULL;
    VkmqaContextCreateInfo info;
    REJECTS(vkmqaCreateContext(NULL, &context), INVALID, NULL);
    REJECTS(vkmqaCreateContext(&imported.info, NULL), INVALID, NULL);
#define SPOILED(field, value, expected, word)                                                      \
    info = imported.info;                                                                          \
    info.field = (value);                                                                          \
    context = (VkmqaContext)&info;                                                                 \
    REJECTS(vkmqaCreateContext(&info, &context), expected, word);                                  \
    assert_null(context)
    SPOILED(structSize, 0, INVALID, NULL);
    SPOILED(structSize, 8, INVALID, NULL);
    SPOILED(instance, VK_NULL_HANDLE, INVALID, "instance");
    SPOILED(physicalDevice, VK_NULL_HANDLE, INVALID, "physicalDevice");
    SPOILED(device, VK_NULL_HANDLE, INVALID, "device");
    SPOILED(getInstanceProcAddr, NULL, INVALID, "getInstanceProcAddr");
    SPOILED(apiVersion, VK_API_VERSION_1_0, VK_ERROR_INCOMPATIBLE_DRIVER, "1.1");
    if (imported.info.enabledExtensionCount > 0) {
        SPOILED(enabledExtensions, NULL, INVALID, "enabledExtensions");
    }
#undef SPOILED
    vkmqaDestroyContext(NULL);
    assert_int_equal(imported.live, 0);

    VkmqaDeviceRequirements requirements = {.structSize = sizeof(requirements)};
    VkmqaDeviceRequirementsInfo needs = {
        .structSize = sizeof(needs),
        .apiVersion = imported.info.apiVersion,
        .instance = imported.info.instance,
        .physicalDevice = imported.info.physicalDevice,
        .getInstanceProcAddr = imported.info.getInstanceProcAddr,
    };
    assert_int_equal(vkmqaGetDeviceRequirements(NULL, &requirements), INVALID);
    assert_int_equal(vkmqaGetDeviceRequirements(&needs, NULL), INVALID);
    needs.apiVersion = VK_API_VERSION_1_0;
    assert_int_equal(vkmqaGetDeviceRequirements(&needs, &requirements),
                     VK_ERROR_INCOMPATIBLE_DRIVER);
    needs.apiVersion = imported.info.apiVersion;
    needs.physicalDevice = VK_NULL_HANDLE;
    assert_int_equal(vkmqaGetDeviceRequirements(&needs, &requirements), INVALID);
}

// ---- Attention objects -----------------------------------------------------------------------------

static void attentionRejectsBadShapes(void** state) {
    (void)state;
    VkmqaContext context = importedContext();
    VkmqaAttention attention = NULL;
    VkmqaAttentionCreateInfo info = goodAttention();
    REJECTS(vkmqaCreateAttention(NULL, &info, &attention), INVALID, NULL);
    REJECTS(vkmqaCreateAttention(context, NULL, &attention), INVALID, "info");
    REJECTS(vkmqaCreateAttention(context, &info, NULL), INVALID, "attention");
#define SPOILED(field, value, word)                                                                \
    info = goodAttention();                                                                        \
    info.field = (value);                                                                          \
    attention = (VkmqaAttention)&info;                                                             \
    REJECTS(vkmqaCreateAttention(context, &info, &attention), INVALID, word);                      \
    assert_null(attention)
    SPOILED(structSize, 0, "structSize");
    SPOILED(structSize, sizeof(info) - 1, "structSize");
    SPOILED(flags, 0x400, "flags");
    SPOILED(flags, 0x80000001, "flags");
    SPOILED(numHeadsQ, 0, "numHeadsQ");
    SPOILED(numHeadsQ, 7, "numHeadsQ");
    SPOILED(numHeadsQ, 1, "numHeadsQ");
    SPOILED(numHeadsQ, 258, "numHeadsQ");
    SPOILED(numHeadsQ, 0xFFFFFFFE, "numHeadsQ");
    SPOILED(numHeadsKv, 0, "numHeadsKv");
    SPOILED(numHeadsKv, 3, "numHeadsKv");
    SPOILED(numHeadsKv, 16, "numHeadsKv");
    SPOILED(headDimQk, 0, "headDimQk");
    SPOILED(headDimQk, 4, "headDimQk");
    SPOILED(headDimQk, 65, "headDimQk");
    SPOILED(headDimQk, 100, "headDimQk");
    SPOILED(headDimQk, 584, "headDimQk");
    SPOILED(headDimQk, 0xFFFFFFF8, "headDimQk");
    SPOILED(headDimV, 12, "headDimV");
    SPOILED(headDimV, 584, "headDimV");
    SPOILED(ioType, (VkmqaType)7, "ioType");
    SPOILED(newType, (VkmqaType)99, "newType");
    SPOILED(kType, (VkmqaType)-1, "kType");
    SPOILED(vType, (VkmqaType)1000, "vType");
    SPOILED(pageSize, 3, "pageSize");
    SPOILED(pageSize, 512, "pageSize");
    SPOILED(pageSize, 0x80000000, "pageSize");
    SPOILED(maxSeqLenKv, 0xFFFFFFFF, "maxSeqLenKv");
    SPOILED(splitSize, 32, "splitSize");
    SPOILED(splitSize, 100, "splitSize");
    SPOILED(scale, NAN, "scale");
    SPOILED(scale, INFINITY, "scale");
    SPOILED(tier, (VkmqaTier)(VKMQA_TIER_COOPMAT + 1), "tier");
    SPOILED(tier, (VkmqaTier)-1, "tier");
#undef SPOILED
    info = goodAttention();
    info.pageSize = 0;
    info.maxSeqLenKv = 0;
    REJECTS(vkmqaCreateAttention(context, &info, &attention), INVALID, "maxSeqLenKv");
    info = goodAttention();
    info.avoidKernels = ~0ull;
    REJECTS(vkmqaCreateAttention(context, &info, &attention), ABSENT, "avoidKernels");
    vkmqaDestroyContext(context);
    assert_int_equal(imported.live, 0);
}

// A struct from a newer header is accepted if what this version does not know is zero.
static void largerStructsNeedZeroTails(void** state) {
    (void)state;
    VkmqaContext context = importedContext();
    struct {
        VkmqaAttentionCreateInfo info;
        uint64_t tail[2];
    } larger = {goodAttention(), {0, 0}};
    larger.info.structSize = sizeof(larger);
    VkmqaAttention attention;
    REQUIRE(vkmqaCreateAttention(context, &larger.info, &attention));
    vkmqaDestroyAttention(attention);
    larger.tail[1] = 1;
    REJECTS(vkmqaCreateAttention(context, &larger.info, &attention), INVALID, "structSize");
    larger.tail[1] = 1ull << 63;
    REJECTS(vkmqaCreateAttention(context, &larger.info, &attention), INVALID, "structSize");
    // A size beyond any future's is a mistake.
    static uint8_t wide[sizeof(VkmqaAttentionCreateInfo) + 4097];
    VkmqaAttentionCreateInfo* widest = (VkmqaAttentionCreateInfo*)wide;
    *widest = goodAttention();
    widest->structSize = sizeof(wide) - 1;
    REQUIRE(vkmqaCreateAttention(context, widest, &attention));
    vkmqaDestroyAttention(attention);
    widest->structSize = sizeof(wide);
    REJECTS(vkmqaCreateAttention(context, widest, &attention), INVALID, "structSize");
    vkmqaDestroyContext(context);
    assert_int_equal(imported.live, 0);
}

static void missingFeaturesAreNamed(void** state) {
    (void)state;
    VkmqaContextCreateInfo info = imported.info;
    info.enabledExtensionCount = 0;
    info.enabledExtensions = NULL;
    info.enabledFeatures = NULL;
    VkmqaContext context;
    REQUIRE(vkmqaCreateContext(&info, &context));
    VkmqaAttentionCreateInfo shape = goodAttention();
    VkmqaAttention attention;
    shape.tier = VKMQA_TIER_SUBGROUP;
    REJECTS(vkmqaCreateAttention(context, &shape, &attention), ABSENT, "bufferDeviceAddress");
    shape.tier = VKMQA_TIER_AUTO;
    REQUIRE(vkmqaCreateAttention(context, &shape, &attention));
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    REQUIRE(vkmqaGetKernelInfo(attention, &limits, &kernel));
    assert_int_not_equal(kernel.tier, VKMQA_TIER_SUBGROUP);
    vkmqaDestroyAttention(attention);
    vkmqaDestroyContext(context);
    assert_int_equal(imported.live, 0);
}

static void sizesRejectBadInput(void** state) {
    (void)state;
    VkmqaContext context = importedContext();
    VkmqaAttentionCreateInfo info = goodAttention();
    VkmqaAttention attention;
    REQUIRE(vkmqaCreateAttention(context, &info, &attention));
    VkmqaKvRequirements kv = {.structSize = sizeof(kv)};
    VkmqaBufferRequirements needs;
    VkmqaStepLayout layout;
    const VkmqaStepLimits good = {.batch = 2, .totalQ = 5};
    VkmqaStepLimits limits;
    VkmqaAttention notOne = (VkmqaAttention)context; // a handle of another kind
    REJECTS(vkmqaGetKvRequirements(NULL, 1, &kv), INVALID, NULL);
    REJECTS(vkmqaGetKvRequirements(notOne, 1, &kv), INVALID, NULL);
    REJECTS(vkmqaGetKvRequirements(attention, 1, NULL), INVALID, "requirements");
    REJECTS(vkmqaGetKvRequirements(attention, 0, &kv), INVALID, "numPages");
    REJECTS(vkmqaGetKvRequirements(attention, 0xFFFFFFFF, &kv), INVALID, "numPages");
    kv.structSize = 0;
    REJECTS(vkmqaGetKvRequirements(attention, 1, &kv), INVALID, "structSize");
    REJECTS(vkmqaGetScratchRequirements(NULL, &good, &needs), INVALID, NULL);
    REJECTS(vkmqaGetScratchRequirements(attention, NULL, &needs), INVALID, "limits");
    REJECTS(vkmqaGetScratchRequirements(attention, &good, NULL), INVALID, "");
    REJECTS(vkmqaGetStepLayout(attention, &good, NULL, &needs), INVALID, "");
    REJECTS(vkmqaGetStepLayout(notOne, &good, &layout, &needs), INVALID, NULL);
#define SPOILED(field, value)                                                                      \
    limits = good;                                                                                 \
    limits.field = (value);                                                                        \
    REJECTS(vkmqaGetScratchRequirements(attention, &limits, &needs), INVALID, #field);             \
    REJECTS(vkmqaGetStepLayout(attention, &limits, &layout, &needs), INVALID, #field)
    SPOILED(batch, 0);
    SPOILED(batch, 0xFFFFFFFF);
    SPOILED(totalQ, 0);
    SPOILED(totalQ, 0xFFFFFFFF);
    SPOILED(maxSeqLenQ, 6);
    SPOILED(maxSeqLenKv, 513);
    SPOILED(newTokens, 0xFFFFFFFF);
#undef SPOILED
    vkmqaDestroyAttention(attention);
    vkmqaDestroyAttention(NULL);
    vkmqaDestroyContext(context);
    assert_int_equal(imported.live, 0);
}

// Each array begins where the one before ends, and has as many words as the header says.
static void stepsArePackedTightly(void** state) {
    (void)state;
    VkmqaContext context = importedContext();
    VkmqaAttentionCreateInfo info = goodAttention();
    info.ropeStyle = VKMQA_ROPE_NEOX;
    info.flags |= VKMQA_ATTENTION_TREE_MASK_BIT;
    VkmqaAttention attention;
    REQUIRE(vkmqaCreateAttention(context, &info, &attention));
    for (uint32_t batch = 1; batch < 6; batch++) {
        const VkmqaStepLimits limits = {.batch = batch, .totalQ = 7, .newTokens = 9, .maxSeqLenKv = 100};
        VkmqaStepLayout layout;
        VkmqaBufferRequirements needs;
        REQUIRE(vkmqaGetStepLayout(attention, &limits, &layout, &needs));
        assert_int_equal(layout.maxPages, 7); // of 16 tokens
        const struct {
            uint32_t offset, words;
        } arrays[] = {{layout.cuSeqlensQ, batch + 1}, {layout.seqLensKv, batch}, {layout.slotMapping, 9},
                      {layout.positions, 9}, {layout.queryPositions, 7}, {layout.cuAccepted, batch + 1},
                      {layout.accepted, 7}, {layout.status, 1}, {layout.pageTable, 7 * batch}};
        uint32_t words = 0;
        for (size_t i = 0; i < COUNT(arrays); i++) {
            if (arrays[i].offset != 4 * words)
                fail_msg("batch %u: array %zu begins at %u, should at %u", batch, i, arrays[i].offset, 4 * words);
            words += arrays[i].words;
        }
        assert_true(needs.size >= 4 * words && needs.size < 4 * words + 16);
    }
    vkmqaDestroyAttention(attention);
    vkmqaDestroyContext(context);
    assert_int_equal(imported.live, 0);
}

// ---- Recording -------------------------------------------------------------------------------------

static const Model model = {.numHeadsQ = 8,
                            .numHeadsKv = 2,
                            .headDimQk = 64,
                            .headDimV = 64,
                            .pageSize = 16,
                            .io = ORACLE_F16,
                            .k = ORACLE_F16,
                            .v = ORACLE_F16,
                            .causal = true,
                            .splitSize = 64,
                            .maxSeqLenKv = 512};

// Everything a good pair of calls is made of, to be spoiled one field at a time.
typedef struct Calls {
    Run run;
    VkCommandBuffer commandBuffer;
    VkmqaStep step;
    VkmqaKv kv;
    VkmqaAppendInfo append;
    VkmqaAttentionInfo attend;
} Calls;

static void callsReset(Calls* calls) {
    const Run* run = &calls->run;
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(run->commands);
    calls->step = run->step;
    calls->kv = run->kv;
    calls->append = (VkmqaAppendInfo){.structSize = sizeof(calls->append),
                                      .recorder = recorder,
                                      .step = &calls->step,
                                      .kv = &calls->kv,
                                      .newK = run->newK.range,
                                      .newV = run->newV.range};
    calls->attend = (VkmqaAttentionInfo){.structSize = sizeof(calls->attend),
                                         .recorder = recorder,
                                         .step = &calls->step,
                                         .kv = &calls->kv,
                                         .q = run->q.range,
                                         .out = run->out.range,
                                         .lse = run->lse.range,
                                         .scratch = run->scratch.range};
}

static VkmqaBuffer from(VkmqaBuffer range, VkDeviceSize offset) {
    range.offset += offset;
    range.address += range.address ? offset : 0;
    return range;
}

static void checkAppend(VkmqaAttention attention, Calls* calls, bool portable) {
#define SPOILED(field, value, word)                                                                \
    callsReset(calls);                                                                             \
    calls->field = (value);                                                                        \
    REJECTS(vkmqaCmdAppendKv(attention, calls->commandBuffer, &calls->append), INVALID, word)
    callsReset(calls);
    REJECTS(vkmqaCmdAppendKv(NULL, calls->commandBuffer, &calls->append), INVALID, NULL);
    REJECTS(vkmqaCmdAppendKv((VkmqaAttention)harness.context, calls->commandBuffer, &calls->append),
            INVALID, NULL);
    REJECTS(vkmqaCmdAppendKv(attention, VK_NULL_HANDLE, &calls->append), INVALID, "commandBuffer");
    REJECTS(vkmqaCmdAppendKv(attention, calls->commandBuffer, NULL), INVALID, "info");
    SPOILED(append.structSize, 4, "structSize");
    SPOILED(append.step, NULL, "step");
    SPOILED(append.kv, NULL, "kv");
    SPOILED(append.newK.size, 16, "newK");
    SPOILED(append.newK.size, calls->append.newK.size - 4, "newK");
    SPOILED(append.newV.size, 0, "newV");
    SPOILED(append.newK.offset, calls->append.newK.offset + 8, "newK");
    SPOILED(append.newV, (VkmqaBuffer){0}, "newV");
    SPOILED(kv.v, calls->append.newV, "info.newV overlaps kv.v");
    SPOILED(kv.v, calls->kv.k, "kv.v overlaps kv.k");
    SPOILED(append.recorder, (VkmqaRecorder)attention, "not a VkmqaRecorder");
    SPOILED(append.strideK.token, 2, "strideK");
    SPOILED(append.strideV.head, 6, "strideV");
    SPOILED(append.strideK.token, 0xFFFFFFFC, "strideK");
    SPOILED(kv.k.size, calls->kv.k.size - 1, "kv.k");
    SPOILED(kv.v.size, 0, "kv.v");
    SPOILED(kv.numPages, 0, "numPages");
    SPOILED(kv.numPages, calls->kv.numPages + 1, "kv.k");
    SPOILED(kv.numPages, 0xFFFFFFFF, "numPages");
    SPOILED(step.structSize, 0, "structSize");
    SPOILED(step.limits.newTokens, 100000, "");
    SPOILED(step.metadata.size, 8, "step");
    SPOILED(step.layout.slotMapping, 2, "slotMapping");
    SPOILED(step.layout.slotMapping, 0x7FFFFFFC, "slotMapping");
    SPOILED(step.layout.slotMapping, VKMQA_NONE, "slotMapping");
    if (portable) {
        SPOILED(append.newK.buffer, VK_NULL_HANDLE, "newK");
    }
#undef SPOILED
}

static void checkAttention(VkmqaAttention attention, Calls* calls, bool portable) {
#define SPOILED(field, value, word)                                                                \
    callsReset(calls);                                                                             \
    calls->field = (value);                                                                        \
    REJECTS(vkmqaCmdAttention(attention, calls->commandBuffer, &calls->attend), INVALID, word)
    callsReset(calls);
    REJECTS(vkmqaCmdAttention(NULL, calls->commandBuffer, &calls->attend), INVALID, NULL);
    REJECTS(vkmqaCmdAttention(attention, VK_NULL_HANDLE, &calls->attend), INVALID, "commandBuffer");
    REJECTS(vkmqaCmdAttention(attention, calls->commandBuffer, NULL), INVALID, "info");
    SPOILED(attend.structSize, 0, "structSize");
    SPOILED(attend.step, NULL, "step");
    SPOILED(attend.kv, NULL, "kv");
    SPOILED(attend.q.size, calls->attend.q.size - 2, "info.q");
    SPOILED(attend.q, (VkmqaBuffer){0}, "info.q");
    SPOILED(attend.q.offset, calls->attend.q.offset + 4, "info.q");
    SPOILED(attend.out.size, calls->attend.out.size - 2, "info.out");
    SPOILED(attend.out, (VkmqaBuffer){0}, "info.out has no buffer");
    SPOILED(attend.out, from(calls->attend.q, 0), "info.out overlaps info.q");
    SPOILED(attend.out, from(calls->kv.k, 32), "info.out overlaps kv.k");
    SPOILED(attend.lse, from(calls->attend.out, 16), "info.lse overlaps info.out");
    SPOILED(attend.lse, calls->step.metadata, "info.lse");
    SPOILED(attend.recorder, (VkmqaRecorder)attention, "not a VkmqaRecorder");
    SPOILED(attend.out.offset, 1, "info.out");
    SPOILED(attend.lse.size, calls->attend.lse.size - 4, "info.lse");
    SPOILED(attend.lse.offset, calls->attend.lse.offset + 4, "info.lse");
    SPOILED(attend.strideQ.token, 4, "strideQ");
    SPOILED(attend.strideQ.head, 12, "strideQ");
    SPOILED(attend.strideOut.head, 8, "strideOut");
    SPOILED(attend.strideOut.token, 0xFFFFFFF8, "strideOut");
    SPOILED(kv.k, (VkmqaBuffer){0}, "kv.k");
    SPOILED(kv.v.offset, calls->kv.v.offset + 2, "kv.v");
    SPOILED(kv.numPages, 0, "numPages");
    SPOILED(step.limits.batch, 0, "batch");
    SPOILED(step.limits.totalQ, 0, "totalQ");
    SPOILED(step.limits.maxSeqLenKv, 100000, "maxSeqLenKv");
    SPOILED(step.layout.cuSeqlensQ, 1, "cuSeqlensQ");
    SPOILED(step.layout.cuSeqlensQ, VKMQA_NONE, "cuSeqlensQ");
    SPOILED(step.layout.seqLensKv, VKMQA_NONE, "seqLensKv");
    SPOILED(step.layout.pageTable, VKMQA_NONE, "pageTable");
    SPOILED(step.layout.maxPages, 0, "maxPages");
    SPOILED(step.layout.maxPages, 0xFFFFFFFF, "pageTable");
    SPOILED(step.layout.status, (uint32_t)calls->step.metadata.size, "status");
    SPOILED(step.metadata, (VkmqaBuffer){0}, "");
    SPOILED(step.layout, (VkmqaStepLayout){.maxPages = calls->step.layout.maxPages}, "overlap those of cuSeqlensQ");
    SPOILED(step.layout.status, calls->step.layout.pageTable + 4, "overlap those of pageTable");
    if (calls->run.scratch.memory) {
        SPOILED(attend.scratch, (VkmqaBuffer){0}, "scratch");
        SPOILED(attend.out, calls->attend.scratch, "info.scratch overlaps info.out");
        SPOILED(attend.scratch.size, 16, "scratch");
        SPOILED(attend.scratch.offset, calls->attend.scratch.offset + 8, "scratch");
    }
    if (portable) {
        SPOILED(attend.q.buffer, VK_NULL_HANDLE, "info.q");
    }
#undef SPOILED
}

static void checkNothingRecorded(const Run* run) {
    const Guarded* all[] = {&run->k, &run->v, &run->out, &run->lse};
    for (size_t i = 0; i < COUNT(all); i++) {
        uint32_t* words = malloc(all[i]->range.size);
        guardedDownload(all[i], words);
        for (size_t j = 0; j < all[i]->range.size / 4; j++)
            assert_int_equal(words[j], i < 2 ? CACHE_POISON : COMPARE_POISON);
        free(words);
    }
}

// Every rejected call goes into one command buffer, which then changes nothing.
static void rejectedCallsRecordNothing(void** state) {
    (void)state;
    const Batch batch = {.count = 2, .sequences = {{1, 300}, {3, 20}}, .append = true};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Problem problem = problemCreate(&model, &batch, 41, false);
        Calls calls = {.run = runCreate(attention, &problem, NULL)};
        runUpload(&calls.run, &problem);
        REQUIRE(vkmqaBeginCommands(calls.run.commands));
        calls.commandBuffer = vkmqaGetCommandBuffer(calls.run.commands);
        bool portable = harness.tiers[t] == VKMQA_TIER_PORTABLE;
        checkAppend(attention, &calls, portable);
        checkAttention(attention, &calls, portable);
        runSubmit(&calls.run);
        checkNothingRecorded(&calls.run);
        // The same buffers unspoiled are good.
        runRecord(&calls.run, true);
        runSubmit(&calls.run);
        runDestroy(&calls.run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// The portable tier without push descriptors: descriptor sets come from a recorder of the same context.
static void recordersAreChecked(void** state) {
    (void)state;
    VkmqaContextCreateInfo plain = imported.info;
    plain.enabledExtensionCount = 0;
    plain.enabledExtensions = NULL;
    plain.enabledFeatures = NULL;
    VkmqaContext context, other;
    REQUIRE(vkmqaCreateContext(&plain, &context));
    REQUIRE(vkmqaCreateContext(&plain, &other));
    VkmqaRecorder recorder = NULL, foreign = NULL;
    VkmqaRecorderCreateInfo info = {.structSize = sizeof(info), .maxCalls = 2};
    REJECTS(vkmqaCreateRecorder(NULL, &info, &recorder), INVALID, NULL);
    REJECTS(vkmqaCreateRecorder(context, NULL, &recorder), INVALID, "info");
    REJECTS(vkmqaCreateRecorder(context, &info, NULL), INVALID, "recorder");
    REQUIRE(vkmqaCreateRecorder(context, &info, &recorder));
    REQUIRE(vkmqaCreateRecorder(other, &info, &foreign));
    const VkmqaAttentionCreateInfo shape = attentionInfo(&model, VKMQA_TIER_PORTABLE);
    VkmqaAttention attention;
    REQUIRE(vkmqaCreateAttention(context, &shape, &attention));

    const Batch batch = {.count = 1, .sequences = {{1, 300}}, .append = true};
    Problem problem = problemCreate(&model, &batch, 42, true);
    Calls calls = {.run = runCreate(attention, &problem, NULL)};
    runUpload(&calls.run, &problem);
    REQUIRE(vkmqaBeginCommands(calls.run.commands));
    calls.commandBuffer = vkmqaGetCommandBuffer(calls.run.commands);
    callsReset(&calls);
    calls.append.recorder = calls.attend.recorder = NULL;
    REJECTS(vkmqaCmdAppendKv(attention, calls.commandBuffer, &calls.append), INVALID, "recorder");
    REJECTS(vkmqaCmdAttention(attention, calls.commandBuffer, &calls.attend), INVALID, "recorder");
    calls.append.recorder = foreign;
    REJECTS(vkmqaCmdAppendKv(attention, calls.commandBuffer, &calls.append), INVALID, "recorder");
    calls.append.recorder = (VkmqaRecorder)context;
    REJECTS(vkmqaCmdAppendKv(attention, calls.commandBuffer, &calls.append), INVALID, "recorder");
    // As many calls as promised, even of those with two dispatches, then no more until the reset.
    calls.append.recorder = calls.attend.recorder = recorder;
    REQUIRE(vkmqaCmdAppendKv(attention, calls.commandBuffer, &calls.append));
    REQUIRE(vkmqaCmdAttention(attention, calls.commandBuffer, &calls.attend));
    VkResult result = VK_SUCCESS;
    for (int i = 0; i < 4 && result == VK_SUCCESS; i++)
        result = vkmqaCmdAttention(attention, calls.commandBuffer, &calls.attend);
    assert_int_equal(result, VK_ERROR_OUT_OF_POOL_MEMORY);
    assert_non_null(strstr(harness.message, "maxCalls"));
    runSubmit(&calls.run);
    Output output = runRead(&calls.run);
    runCheck(&calls.run, &problem, &output, "with a recorder");
    REQUIRE(vkmqaResetRecorder(recorder));
    REQUIRE(vkmqaBeginCommands(calls.run.commands));
    REQUIRE(vkmqaCmdAttention(attention, vkmqaGetCommandBuffer(calls.run.commands), &calls.attend));
    assert_int_equal(vkmqaResetRecorder(NULL), INVALID);
    assert_int_equal(vkmqaResetRecorder((VkmqaRecorder)context), INVALID);

    outputDestroy(&output);
    runDestroy(&calls.run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
    vkmqaDestroyRecorder(recorder);
    vkmqaDestroyRecorder(foreign);
    vkmqaDestroyRecorder(NULL);
    vkmqaDestroyContext(context);
    vkmqaDestroyContext(other);
    assert_int_equal(imported.live, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(contextsRejectBadInput),     cmocka_unit_test(attentionRejectsBadShapes),
    cmocka_unit_test(largerStructsNeedZeroTails), cmocka_unit_test(missingFeaturesAreNamed),
    cmocka_unit_test(sizesRejectBadInput),        cmocka_unit_test(rejectedCallsRecordNothing),
    cmocka_unit_test(recordersAreChecked),        cmocka_unit_test(stepsArePackedTightly),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, importDevice, NULL);
    harnessClose();
    return failed != 0;
}

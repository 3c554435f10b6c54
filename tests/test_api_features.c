// Bad input of what goes beyond plain attention: types, masks, rotation, parameters, merge, compaction. An
// error code, a message that names the field, nothing recorded.
#define _DEFAULT_SOURCE // MAP_ANONYMOUS
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const VkResult INVALID = VK_ERROR_VALIDATION_FAILED_EXT;

// word: must appear in the message; null where no message can be had (there is no object to ask).
static void expectInvalid(VkResult got, const char* word, const char* what) {
    if (got != INVALID)
        fail_msg("%s: VkResult %d (%s)", what, got, harness.message);
    if (word && !strstr(harness.message, word))
        fail_msg("%s: the message does not speak of %s: \"%s\"", what, word, harness.message);
}

#define REJECTS(call, word)                                                                        \
    do {                                                                                           \
        harness.message[0] = 0;                                                                    \
        expectInvalid((call), (word), #call);                                                      \
    } while (0)

#define PREFIX VKMQA_ATTENTION_V_PREFIX_OF_K_BIT
#define TREE VKMQA_ATTENTION_TREE_MASK_BIT
#define MASK VKMQA_ATTENTION_MASK_BIT

// ---- Attention objects -----------------------------------------------------------------------------

static VkmqaAttentionCreateInfo goodAttention(void) {
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .numHeadsQ = 8,
                                           .numHeadsKv = 2,
                                           .headDimQk = 64,
                                           .pageSize = 16,
                                           .maxSeqLenKv = 512};
    return info;
}

static void attentionRejectsBadFeatures(void** state) {
    (void)state;
    const VkmqaAttentionCreateInfo good = goodAttention();
    VkmqaAttentionCreateInfo prefix = good, turned = good;
    prefix.flags = PREFIX;
    turned.ropeStyle = VKMQA_ROPE_NEOX;
    VkmqaAttentionCreateInfo info;
    VkmqaAttention attention;
#define SPOILED(base, field, value, word)                                                          \
    info = base;                                                                                   \
    info.field = (value);                                                                          \
    attention = (VkmqaAttention)&info;                                                             \
    REJECTS(vkmqaCreateAttention(harness.context, &info, &attention), word);                       \
    assert_null(attention)
    SPOILED(good, ioType, VKMQA_TYPE_FP8_E4M3, "ioType");
    SPOILED(good, ioType, VKMQA_TYPE_Q8_0, "ioType");
    SPOILED(good, newType, VKMQA_TYPE_FP8_E4M3, "newType");
    SPOILED(good, newType, VKMQA_TYPE_Q4_0, "newType");
    SPOILED(good, kType, (VkmqaType)7, "kType");
    SPOILED(good, vType, (VkmqaType)7, "vType");
    SPOILED(good, flags, MASK | TREE, "flags");
    SPOILED(good, flags, PREFIX | VKMQA_ATTENTION_HADAMARD_BIT, "flags");
    SPOILED(prefix, vType, VKMQA_TYPE_Q8_0, "vType");
    SPOILED(prefix, headDimV, 72, "headDimV");
    SPOILED(good, softcap, -1.0f, "softcap");
    SPOILED(good, softcap, NAN, "softcap");
    SPOILED(good, softcap, INFINITY, "softcap");
    SPOILED(good, ropeStyle, (VkmqaRopeStyle)3, "ropeStyle");
    SPOILED(good, ropeStyle, (VkmqaRopeStyle)-1, "ropeStyle");
    SPOILED(good, ropeOffset, 2, "ropeOffset"); // without a style
    SPOILED(turned, ropeDim, 7, "ropeDim");
    SPOILED(turned, ropeDim, 66, "ropeDim");
    SPOILED(turned, ropeDim, 0xFFFFFFFE, "ropeDim");
    SPOILED(turned, ropeOffset, 3, "ropeOffset");
    SPOILED(turned, ropeOffset, 64, "ropeOffset");
    SPOILED(turned, ropeOffset, 0xFFFFFFFE, "ropeOffset");
    turned.ropeDim = 32;
    SPOILED(turned, ropeOffset, 34, "rope");
#undef SPOILED
}

// Windows count only with their flags; with them every distance is good.
static void anyWindowIsGood(void** state) {
    (void)state;
    VkmqaAttentionCreateInfo info = goodAttention();
    info.tier = harness.tiers[0];
    info.windowLeft = 0xFFFFFFFF;
    info.windowRight = 5;
    for (int flags = 0; flags < 2; flags++) {
        VkmqaAttention attention;
        if (flags)
            info.flags = VKMQA_ATTENTION_WINDOW_LEFT_BIT | VKMQA_ATTENTION_WINDOW_RIGHT_BIT;
        info.chunkSize = flags ? 0xFFFFFFFF : 0;
        REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
        vkmqaDestroyAttention(attention);
    }
}

// ---- Parameters ------------------------------------------------------------------------------------

static const Model rich = {.numHeadsQ = 8,
                           .numHeadsKv = 2,
                           .headDimQk = 64,
                           .headDimV = 64,
                           .pageSize = 16,
                           .io = ORACLE_F16,
                           .k = ORACLE_FP8,
                           .v = ORACLE_FP8,
                           .causal = true,
                           .splitSize = 64,
                           .maxSeqLenKv = 512,
                           .source = ORACLE_F16,
                           .flags = VKMQA_ATTENTION_SINKS_BIT | VKMQA_ATTENTION_ALIBI_BIT | MASK,
                           .rope = ORACLE_ROPE_NEOX,
                           .ropeCustom = true,
                           .fp8Scales = FP8_POWERS};

static void parametersAreChecked(void** state) {
    (void)state;
    const Batch batch = {1, {{1, 20}}, .append = false};
    Problem problem = problemCreate(&rich, &batch, 43, false);
    VkmqaAttention attention;
    VkmqaBufferRequirements needs;
    REQUIRE(attentionCreate(&rich, harness.tiers[0], &attention));
    REQUIRE(vkmqaGetParametersRequirements(attention, &needs));
    REJECTS(vkmqaGetParametersRequirements(NULL, &needs), NULL);
    REJECTS(vkmqaGetParametersRequirements((VkmqaAttention)harness.context, &needs), NULL);
    REJECTS(vkmqaGetParametersRequirements(attention, NULL), "requirements");
    assert_true(needs.size > 0);
    size_t size = (size_t)needs.size;
    uint8_t* data = malloc(size + 8);
    memset(data, 0xEE, size + 8);
    VkmqaParametersInfo info = parametersInfo(&problem);
    REJECTS(vkmqaWriteParameters(NULL, &info, size, data), NULL);
    REJECTS(vkmqaWriteParameters(attention, NULL, size, data), "info");
    REJECTS(vkmqaWriteParameters(attention, &info, size, NULL), "data");
    REJECTS(vkmqaWriteParameters(attention, &info, size - 1, data), "size");
    REJECTS(vkmqaWriteParameters(attention, &info, 0, data), "size");
#define SPOILED(field, value, word)                                                                \
    info = parametersInfo(&problem);                                                               \
    info.field = (value);                                                                          \
    REJECTS(vkmqaWriteParameters(attention, &info, size, data), word)
    SPOILED(structSize, 0, "structSize");
    SPOILED(sinks, NULL, "sinks");
    SPOILED(alibiSlopes, NULL, "alibiSlopes");
    SPOILED(ropeMagnitude, NAN, "ropeMagnitude");
    SPOILED(ropeMagnitude, INFINITY, "ropeMagnitude");
#define BAD_ELEMENT(field, index, value)                                                           \
    do {                                                                                           \
        float before_ = problem.field[index];                                                      \
        problem.field[index] = (value);                                                            \
        info = parametersInfo(&problem);                                                           \
        REJECTS(vkmqaWriteParameters(attention, &info, size, data), #field);                       \
        problem.field[index] = before_;                                                            \
    } while (0)
    BAD_ELEMENT(sinks, 7, NAN);
    BAD_ELEMENT(sinks, 0, INFINITY);
    BAD_ELEMENT(alibiSlopes, 7, NAN);
    BAD_ELEMENT(alibiSlopes, 3, -INFINITY);
    BAD_ELEMENT(kScales, 1, 0);
    BAD_ELEMENT(kScales, 0, -1);
    BAD_ELEMENT(kScales, 1, NAN);
    BAD_ELEMENT(vScales, 1, INFINITY);
    BAD_ELEMENT(vScales, 0, -0.0f);
    problem.frequencies[31] = NAN;
    SPOILED(structSize, sizeof(info), "ropeFrequencies");
    problem.frequencies[31] = INFINITY;
    SPOILED(structSize, sizeof(info), "ropeFrequencies");
    problem.frequencies[31] = 1e-4;
    double* frequencies = problem.frequencies;
    problem.frequencies = NULL;
    SPOILED(ropeTheta, NAN, "ropeTheta");
    SPOILED(ropeTheta, -10000, "ropeTheta");
    SPOILED(ropeTheta, INFINITY, "ropeTheta");
    problem.frequencies = frequencies;
    for (size_t i = 0; i < size + 8; i++)
        assert_int_equal(data[i], 0xEE);
    info = parametersInfo(&problem);
    REQUIRE(vkmqaWriteParameters(attention, &info, size, data));
    for (size_t i = size; i < size + 8; i++)
        assert_int_equal(data[i], 0xEE);
    free(data);
    vkmqaDestroyAttention(attention);
    problemDestroy(&problem);
}
#undef BAD_ELEMENT
#undef SPOILED

// ---- Recording -------------------------------------------------------------------------------------

typedef struct Calls {
    Run run;
    VkCommandBuffer commandBuffer;
    VkmqaStep step;
    VkmqaKv kv;
    VkmqaAppendInfo append;
    VkmqaAttentionInfo attend;
    VkmqaMergeInfo merge;
    VkmqaCompactInfo compact;
} Calls;

static void callsReset(Calls* calls) {
    const Run* run = &calls->run;
    calls->step = run->step;
    calls->kv = run->kv;
    calls->append = runAppendInfo(run);
    calls->attend = runAttentionInfo(run);
    calls->append.step = calls->attend.step = &calls->step;
    calls->append.kv = calls->attend.kv = &calls->kv;
    // One part, of the run's own size: queries stand in for partial states, which nothing will read.
    calls->merge = (VkmqaMergeInfo){.structSize = sizeof(calls->merge),
                                    .recorder = vkmqaGetCommandsRecorder(run->commands),
                                    .parts = 1,
                                    .totalQ = run->step.limits.totalQ,
                                    .partOut = run->newQ.memory ? run->newQ.range : run->q.range,
                                    .partLse = run->q.range,
                                    .out = run->out.range,
                                    .lse = run->lse.range,
                                    .parameters = run->parameters.range};
    calls->compact = (VkmqaCompactInfo){.structSize = sizeof(calls->compact),
                                        .recorder = vkmqaGetCommandsRecorder(run->commands),
                                        .step = &calls->step,
                                        .kv = &calls->kv};
}

static Calls callsCreate(VkmqaAttention attention, const Problem* problem) {
    Calls calls = {.run = runCreate(attention, problem, NULL)};
    runUpload(&calls.run, problem);
    REQUIRE(vkmqaBeginCommands(calls.run.commands));
    calls.commandBuffer = vkmqaGetCommandBuffer(calls.run.commands);
    return calls;
}

#define SPOILED(function, call, field, value, word)                                                \
    callsReset(calls);                                                                             \
    calls->field = (value);                                                                        \
    REJECTS(function(attention, calls->commandBuffer, &calls->call), word)

static void spoilAttention(VkmqaAttention attention, Calls* calls) {
#define ATTENTION(field, value, word) SPOILED(vkmqaCmdAttention, attend, field, value, word)
    ATTENTION(attend.parameters, (VkmqaBuffer){0}, "parameters");
    ATTENTION(attend.parameters.size, calls->attend.parameters.size - 4, "parameters");
    ATTENTION(attend.parameters.offset, calls->attend.parameters.offset + 4, "parameters");
    ATTENTION(attend.mask, (VkmqaBuffer){0}, "mask");
    ATTENTION(attend.mask.size, calls->attend.mask.size - 4, "mask");
    ATTENTION(attend.mask.offset, calls->attend.mask.offset + 4, "mask");
    ATTENTION(attend.maskStride, calls->run.maskStride - 1, "maskStride");
    ATTENTION(attend.maskStride, 0xFFFFFFFF, "use at most 33554432 words");
    ATTENTION(attend.maskStride, calls->run.maskStride + 1, "mask"); // a buffer for fewer
#undef ATTENTION
}

static void spoilAppend(VkmqaAttention attention, Calls* calls) {
#define APPEND(field, value, word) SPOILED(vkmqaCmdAppendKv, append, field, value, word)
    APPEND(append.parameters, (VkmqaBuffer){0}, "parameters");
    APPEND(append.parameters.size, calls->append.parameters.size - 4, "parameters");
    APPEND(append.rotatedQ, (VkmqaBuffer){0}, "rotatedQ");
    APPEND(append.q, (VkmqaBuffer){0}, "info.q");
    APPEND(append.q.size, calls->append.q.size - 2, "info.q");
    APPEND(append.rotatedQ.size, calls->append.rotatedQ.size - 2, "rotatedQ");
    APPEND(append.rotatedQ.offset, calls->append.rotatedQ.offset + 8, "rotatedQ");
    APPEND(append.strideQ.token, 12, "strideQ");
    APPEND(append.strideRotatedQ.head, 4, "strideRotatedQ");
    APPEND(append.strideRotatedQ.token, 0xFFFFFFF8, "strideRotatedQ");
    APPEND(step.layout.positions, VKMQA_NONE, "positions");
    APPEND(step.layout.positions, 2, "positions");
    APPEND(step.layout.positions, 0x7FFFFFFC, "positions");
    APPEND(step.layout.queryPositions, VKMQA_NONE, "queryPositions");
    APPEND(step.layout.queryPositions, (uint32_t)calls->step.metadata.size, "queryPositions");
#undef APPEND
}

static void spoilMerge(VkmqaAttention attention, Calls* calls) {
#define MERGE(field, value, word) SPOILED(vkmqaCmdMergeStates, merge, field, value, word)
    callsReset(calls);
    REJECTS(vkmqaCmdMergeStates(NULL, calls->commandBuffer, &calls->merge), NULL);
    REJECTS(vkmqaCmdMergeStates(attention, VK_NULL_HANDLE, &calls->merge), "commandBuffer");
    REJECTS(vkmqaCmdMergeStates(attention, calls->commandBuffer, NULL), "info");
    MERGE(merge.structSize, 8, "structSize");
    MERGE(merge.parts, 0, "parts");
    MERGE(merge.parts, 1025, "parts");
    MERGE(merge.totalQ, 0, "totalQ");
    MERGE(merge.totalQ, 0xFFFFFFFF, "totalQ");
    MERGE(merge.partOut, (VkmqaBuffer){0}, "partOut");
    MERGE(merge.partOut.size, 16, "partOut");
    MERGE(merge.partOut.offset, calls->merge.partOut.offset + 2, "partOut");
    MERGE(merge.parts, 1000, "part"); // the buffers hold one
    MERGE(merge.partLse, (VkmqaBuffer){0}, "partLse");
    MERGE(merge.partLse.size, 4, "partLse");
    MERGE(merge.out, (VkmqaBuffer){0}, "info.out");
    MERGE(merge.out.size, calls->merge.out.size - 2, "info.out");
    MERGE(merge.lse.size, calls->merge.lse.size - 4, "info.lse");
    MERGE(merge.strideOut.token, 8, "strideOut");
    MERGE(merge.strideOut.head, 12, "strideOut");
    MERGE(merge.parameters, (VkmqaBuffer){0}, "parameters");
#undef MERGE
}

static void spoilCompact(VkmqaAttention attention, Calls* calls) {
#define COMPACT(field, value, word) SPOILED(vkmqaCmdCompactKv, compact, field, value, word)
    callsReset(calls);
    REJECTS(vkmqaCmdCompactKv(NULL, calls->commandBuffer, &calls->compact), NULL);
    REJECTS(vkmqaCmdCompactKv(attention, VK_NULL_HANDLE, &calls->compact), "commandBuffer");
    REJECTS(vkmqaCmdCompactKv(attention, calls->commandBuffer, NULL), "info");
    COMPACT(compact.structSize, 0, "structSize");
    COMPACT(compact.step, NULL, "step");
    COMPACT(compact.kv, NULL, "kv");
    COMPACT(kv.k, (VkmqaBuffer){0}, "kv.k");
    COMPACT(kv.v.size, calls->kv.v.size - 4, "kv.v");
    COMPACT(kv.numPages, 0, "numPages");
    COMPACT(step.layout.cuAccepted, VKMQA_NONE, "cuAccepted");
    COMPACT(step.layout.accepted, VKMQA_NONE, "accepted");
    COMPACT(step.layout.accepted, 6, "accepted");
    COMPACT(step.layout.cuSeqlensQ, VKMQA_NONE, "cuSeqlensQ");
    COMPACT(step.layout.pageTable, VKMQA_NONE, "pageTable");
    COMPACT(step.limits.batch, 0, "batch");
#undef COMPACT
}

static uint8_t* contentsOf(const Run* run, size_t* size) {
    const Guarded* all[] = {&run->k, &run->v, &run->q, &run->out, &run->lse};
    uint8_t* bytes = malloc(1);
    *size = 0;
    for (size_t i = 0; i < COUNT(all); i++) {
        bytes = realloc(bytes, *size + all[i]->range.size + 1);
        guardedDownload(all[i], bytes + *size);
        *size += all[i]->range.size;
    }
    return bytes;
}

// The command buffer that took nothing but rejected calls changes nothing.
static void checkNothingRecorded(Calls* calls) {
    size_t size;
    uint8_t* before = contentsOf(&calls->run, &size);
    runSubmit(&calls->run);
    uint8_t* after = contentsOf(&calls->run, &size);
    assert_memory_equal(before, after, size);
    free(before);
    free(after);
}

static void rejectedCallsRecordNothing(void** state) {
    (void)state;
    Model tree = rich;
    tree.flags = TREE;
    tree.rope = ORACLE_ROPE_NONE;
    const Batch batch = {2, {{1, 300}, {3, 20}}, .append = true};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention, withTree;
        REQUIRE(attentionCreate(&rich, harness.tiers[t], &attention));
        REQUIRE(attentionCreate(&tree, harness.tiers[t], &withTree));
        Problem problem = problemCreate(&rich, &batch, 44, false);
        Problem drafts = problemCreate(&tree, &batch, 45, false);
        Calls calls = callsCreate(attention, &problem), treeCalls = callsCreate(withTree, &drafts);
        spoilAttention(attention, &calls);
        spoilAppend(attention, &calls);
        spoilMerge(attention, &calls);
        callsReset(&calls);
        REJECTS(vkmqaCmdCompactKv(attention, calls.commandBuffer, &calls.compact), "TREE_MASK");
        spoilCompact(withTree, &treeCalls);
        callsReset(&treeCalls);
        treeCalls.attend.mask = (VkmqaBuffer){0};
        REJECTS(vkmqaCmdAttention(withTree, treeCalls.commandBuffer, &treeCalls.attend), "mask");
        checkNothingRecorded(&calls);
        checkNothingRecorded(&treeCalls);
        runDestroy(&calls.run);
        runDestroy(&treeCalls.run);
        problemDestroy(&problem);
        problemDestroy(&drafts);
        vkmqaDestroyAttention(attention);
        vkmqaDestroyAttention(withTree);
    }
}

// In place, q and rotatedQ are one: of one type and with the same strides.
static void rotationInPlaceIsChecked(void** state) {
    (void)state;
    const Batch batch = {1, {{1, 20}}, .append = true};
    Model model = rich;
    model.source = ORACLE_F32;
    for (int sameType = 0; sameType < 2; sameType++) {
        model.io = sameType ? ORACLE_F32 : ORACLE_F16;
        Problem problem = problemCreate(&model, &batch, 46, false);
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[0], &attention));
        Calls calls = callsCreate(attention, &problem);
        callsReset(&calls);
        calls.append.rotatedQ = calls.append.q;
        if (sameType)
            calls.append.strideRotatedQ = (VkmqaStrides){8 * 64 + 8, 64};
        REJECTS(vkmqaCmdAppendKv(attention, calls.commandBuffer, &calls.append), "rotatedQ");
        checkNothingRecorded(&calls);
        runDestroy(&calls.run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// ---- Pipeline caches ---------------------------------------------------------------------------------

static uint32_t refusals; // of pipelineCacheData

static void countRefusals(VkmqaSeverity severity, const char* text, void* userData) {
    (void)severity, (void)userData;
    refusals += strstr(text, "pipelineCacheData is of another device") != NULL;
}

static void openWith(const void* data, size_t size, uint32_t refused, const char* what) {
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .selector = getenv("VKMQA_TEST_DEVICE"),
                                      .skipVerification = VK_TRUE, .pipelineCacheData = data, .pipelineCacheSize = size,
                                      .messageCallback = countRefusals};
    VkmqaDevice device;
    refusals = 0;
    assert_int_equal(vkmqaOpenDevice(&info, &device), VK_SUCCESS);
    vkmqaCloseDevice(device);
    if (refusals != refused)
        fail_msg("%s: refused %u times, should be %u", what, refusals, refused);
}

// The driver gets its own data back, and none that another one or nobody has written.
static void pipelineCachesAreChecked(void** state) {
    (void)state;
    VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
    REQUIRE(vkmqaGetDeviceHandles(harness.device, &handles));
    PFN_vkGetPipelineCacheData getData =
        (PFN_vkGetPipelineCacheData)handles.getInstanceProcAddr(handles.instance, "vkGetPipelineCacheData");
    size_t size = 0;
    assert_int_equal(getData(handles.device, handles.pipelineCache, &size, NULL), VK_SUCCESS);
    assert_true(size >= 32);
    uint8_t* data = malloc(size);
    assert_int_equal(getData(handles.device, handles.pipelineCache, &size, data), VK_SUCCESS);
    openWith(data, size, 0, "the driver's own data");
    openWith(data, 0, 0, "no data");
    openWith(NULL, size, 0, "no data");
    openWith(data, 31, 1, "less than a header");
    for (uint32_t byte = 0; byte < 32; byte += byte < 16 ? 4 : 15) { // length, version, vendor, device, UUID
        data[byte] ^= 0xFF;
        if (byte == 0)
            data[3] ^= 0x7F; // longer than all of it
        openWith(data, size, 1, "a foreign header");
        data[byte] ^= 0xFF;
        if (byte == 0)
            data[3] ^= 0x7F;
    }
    data[0] = 31;
    openWith(data, size, 1, "a short header");
    const size_t page = (size_t)sysconf(_SC_PAGESIZE); // nothing behind what is given may be read
    uint8_t* pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pages != MAP_FAILED && mprotect(pages + page, page, PROT_NONE) == 0);
    openWith(pages + page - 8, 8, 1, "8 bytes");
    munmap(pages, 2 * page);
    free(data);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(attentionRejectsBadFeatures), cmocka_unit_test(anyWindowIsGood),
    cmocka_unit_test(parametersAreChecked),        cmocka_unit_test(rejectedCallsRecordNothing),
    cmocka_unit_test(rotationInPlaceIsChecked),    cmocka_unit_test(pipelineCachesAreChecked),
};

HARNESS_MAIN(tests)

// An attention call in slices is the call, bit by bit, however it is cut; and what is estimated to take long is cut.
#include "engine.h"
#include "harness.h"

#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PAIR(type) .k = type, .v = type
static const Model models[] = {
    {.numHeadsQ = 8, .numHeadsKv = 2, .headDimQk = 64, .headDimV = 64, .pageSize = 16, .io = ORACLE_F16,
     PAIR(ORACLE_F16), .causal = true, .splitSize = 64},
    {.numHeadsQ = 16, .numHeadsKv = 1, .headDimQk = 40, .headDimV = 24, .io = ORACLE_F32, PAIR(ORACLE_Q8_0),
     .flags = VKMQA_ATTENTION_WINDOW_LEFT_BIT | VKMQA_ATTENTION_SINKS_BIT, .windowLeft = 190},
};
static const Batch batches[] = {
    {.count = 1, .sequences = {{1, 500}}},
    {.count = 3, .sequences = {{37, 300}, {0, 5}, {9, 400}}, .gaps = true},
};

static VkmqaSlices countSlices(const Run* run, double seconds, double correction) {
    const VkmqaSliceInfo info = {
        .structSize = sizeof(info), .step = &run->step, .seconds = seconds, .correction = correction};
    VkmqaSlices slices = {.structSize = sizeof(slices)};
    REQUIRE(vkmqaGetSliceCount(run->attention, &info, &slices));
    assert_true(slices.groups > 0 && slices.groupsPerSlice >= 1 && slices.groupsPerSlice <= slices.groups);
    assert_int_equal(slices.sliceCount, (slices.groups + slices.groupsPerSlice - 1) / slices.groupsPerSlice);
    return slices;
}

// As if nothing had run yet: NaN in out, lse and scratch.
static void start(Run* run, const Problem* problem) {
    runUpload(run, problem);
    void* poison = poisonedBytes(run->scratch.range.size);
    guardedUpload(&run->scratch, poison);
    free(poison);
}

// Slices of random sizes in submissions of random numbers of slices; most = 0: all of one group.
static void runSlices(Run* run, Random* random, uint32_t most) {
    uint64_t groups = countSlices(run, 0, 0).groups;
    REQUIRE(vkmqaBeginCommands(run->commands));
    for (uint64_t done = 0; done < groups;) {
        const VkmqaAttentionInfo info = runAttentionInfo(run);
        uint64_t count = most ? 1 + randomBelow(random, most) : 1;
        REQUIRE(vkmqaCmdAttentionSlice(run->attention, vkmqaGetCommandBuffer(run->commands), &info, done, count));
        done += count;
        if (done < groups && randomBelow(random, 4) == 0) {
            runSubmit(run);
            REQUIRE(vkmqaBeginCommands(run->commands));
        }
    }
    runSubmit(run);
}

static void expectSame(const Run* run, const Output* whole, const char* how) {
    Output sliced = runRead(run);
    if (!outputsEqual(run, whole, &sliced) || whole->status != sliced.status)
        fail_msg("%s: other bits than the whole call's", how);
    runCheckGuards(run);
    outputDestroy(&sliced);
}

static void slicesAreTheCall(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(models); i++)
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            if (t % COUNT(models) != i && !tierHasTurn(t, i)) // every tier at least once
                continue;
            Model model = models[i];
            model.maxSeqLenKv = 512;
            VkmqaAttention attention;
            REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
            for (size_t b = 0; b < COUNT(batches); b++) {
                Problem problem = problemCreate(&model, &batches[b], harness.seed + b, false);
                Run run = runCreate(attention, &problem, NULL);
                Random random = randomFor(harness.seed, i, b);
                runUpload(&run, &problem);
                runRecord(&run, false);
                runSubmit(&run);
                Output whole = runRead(&run);
                const VkmqaSlices all = countSlices(&run, 0, 0);
                uint32_t groups = (uint32_t)all.groups;
                const uint32_t mosts[] = {0, 3, groups / 2 + 1, 2 * groups};
                for (size_t k = 0; k < COUNT(mosts); k++) {
                    start(&run, &problem);
                    runSlices(&run, &random, mosts[k]);
                    expectSame(&run, &whole, "slices");
                }
                const VkmqaAttentionInfo info = runAttentionInfo(&run);
                // One group at a time, the default, several that grow and shrink by what was measured, all at once.
                const double budgets[] = {1e-6, 0, all.secondsPerGroup * (double)all.groups / 3, 1e3};
                for (size_t k = 0; k < COUNT(budgets); k++) {
                    double correction = 0;
                    start(&run, &problem);
                    REQUIRE(vkmqaRunAttention(run.commands, attention, &info, budgets[k], &correction));
                    assert_true(correction > 0);
                    expectSame(&run, &whole, "vkmqaRunAttention");
                }
                outputDestroy(&whole);
                runDestroy(&run);
                problemDestroy(&problem);
            }
            vkmqaDestroyAttention(attention);
        }
}

static void aMissingSliceIsMissed(void** state) {
    (void)state;
    Model model = models[0];
    model.maxSeqLenKv = 512;
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, harness.tiers[0], &attention));
    Problem problem = problemCreate(&model, &batches[1], harness.seed, false);
    Run run = runCreate(attention, &problem, NULL);
    runUpload(&run, &problem);
    runRecord(&run, false);
    runSubmit(&run);
    Output whole = runRead(&run);
    VkmqaAttentionInfo info;
    uint64_t groups = countSlices(&run, 0, 0).groups;
    start(&run, &problem);
    info = runAttentionInfo(&run);
    REQUIRE(vkmqaBeginCommands(run.commands));
    VkCommandBuffer commands = vkmqaGetCommandBuffer(run.commands);
    // Not just the first: that may be a tile without rows. The count is cut off at the last.
    REQUIRE(vkmqaCmdAttentionSlice(attention, commands, &info, groups / 2, groups));
    runSubmit(&run);
    Output partial = runRead(&run);
    assert_false(outputsEqual(&run, &whole, &partial));
    outputDestroy(&partial);
    outputDestroy(&whole);
    // Wrong arguments, each with its message.
    REQUIRE(vkmqaBeginCommands(run.commands));
    commands = vkmqaGetCommandBuffer(run.commands);
    harness.message[0] = 0;
    assert_int_equal(vkmqaCmdAttentionSlice(attention, commands, &info, groups, 1), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "firstGroup"));
    assert_int_equal(vkmqaCmdAttentionSlice(attention, commands, &info, 0, 0), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "groupCount"));
    VkmqaSlices slices = {.structSize = sizeof(slices)};
    const VkmqaSliceInfo infos[] = {
        {.structSize = sizeof(infos[0]), .step = &run.step, .seconds = -1},
        {.structSize = sizeof(infos[0]), .step = &run.step, .correction = -1},
        {.structSize = sizeof(infos[0])},
    };
    const char* const words[] = {"info.seconds is", "info.correction is", "step is null"};
    for (size_t i = 0; i < COUNT(infos); i++) {
        assert_int_equal(vkmqaGetSliceCount(attention, &infos[i], &slices), VK_ERROR_VALIDATION_FAILED_EXT);
        assert_non_null(strstr(harness.message, words[i]));
    }
    double correction = 0;
    VkmqaAttentionInfo odd = info;
    odd.structSize = 8;
    REQUIRE(vkmqaSubmitCommands(run.commands));
    REQUIRE(vkmqaWaitCommands(run.commands, UINT64_MAX));
    assert_int_equal(vkmqaRunAttention(run.commands, attention, &odd, 0, &correction), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "structSize is 8"));
    assert_int_equal(vkmqaRunAttention(run.commands, attention, NULL, 0, &correction), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaRunAttention(run.commands, attention, &info, 0, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaRunAttention(run.commands, attention, &info, nan(""), &correction),
                     VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "vkmqaRunAttention: seconds is"));
    odd = info;
    odd.out = (VkmqaBuffer){0};
    assert_int_equal(vkmqaRunAttention(run.commands, attention, &odd, 0, &correction), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "vkmqaCmdAttentionSlice: info.out"));
    assert_int_equal(vkmqaGetSliceCount(NULL, infos, &slices), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaGetSliceCount(attention, NULL, &slices), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaGetSliceCount(attention, infos, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
}

static void budgetsAndCorrectionsCount(void** state) {
    (void)state;
    Model model = models[0];
    model.maxSeqLenKv = 512;
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, harness.tiers[0], &attention));
    Problem problem = problemCreate(&model, &batches[1], harness.seed, false);
    Run run = runCreate(attention, &problem, NULL);
    VkmqaSlices all = countSlices(&run, 1e9, 0), few = countSlices(&run, 1e-12, 0);
    assert_int_equal(all.sliceCount, 1);
    assert_int_equal(few.groupsPerSlice, 1);
    double seconds = all.secondsPerGroup * (double)all.groups; // of the whole call
    VkmqaSlices half = countSlices(&run, seconds / 2, 0), slow = countSlices(&run, seconds / 2, 4);
    assert_true(half.groupsPerSlice * 2 <= half.groups && half.groupsPerSlice * 2 + 2 >= half.groups);
    assert_true(slow.groupsPerSlice * 8 <= slow.groups + 8 && slow.groupsPerSlice * 8 + 8 >= slow.groups);
    assert_true(vkmqaCorrectSlices(0, 0, 1) == 1 && vkmqaCorrectSlices(3, 0, 1) == 3 && vkmqaCorrectSlices(3, 1, 0) == 3);
    assert_true(vkmqaCorrectSlices(2, 3, 1) == 6 && vkmqaCorrectSlices(2, 1, 4) == 0.5);
    assert_true(vkmqaCorrectSlices(1, 1, 1e-30) == 8 && vkmqaCorrectSlices(1, 1e-30, 1) == 0.125);
    assert_true(vkmqaCorrectSlices(1e6, 8, 1) == 1e6 && vkmqaCorrectSlices(1e-6, 1, 8) == 1e-6);
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    REQUIRE(vkmqaGetKernelInfo(attention, &run.step.limits, &kernel));
    assert_true(kernel.estimatedSeconds > 0.99 * seconds && kernel.estimatedSeconds < 1.01 * seconds);
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
}

static void keepText(VkmqaSeverity severity, const char* text, void* userData) {
    harnessMessage(severity, text, NULL);
    if (strstr(text, "recorded as"))
        snprintf(userData, 256, "%s", text);
}

// The same call on a context that allows no dispatch so long, counted by an engine in front of the driver.
static void longDispatchesAreCut(void** state) {
    (void)state;
    Engine engine;
    VkmqaContextCreateInfo context;
    engineOpen(&engine, harness.properties.uuid, false);
    const VkmqaDeviceImportInfo info = engineImportInfo(&engine, &context);
    Model model = models[0];
    model.maxSeqLenKv = 512;
    Output outputs[3];
    unsigned dispatches[3];
    // Uncut; a dispatch for each group; pieces of a row of the grid and a half, which take several boxes.
    double limits[3] = {0, 1e-9, 0};
    for (int cut = 0; cut < 3; cut++) {
        VkmqaDevice device, before = harness.device;
        VkmqaContext contextBefore = harness.context;
        char said[256] = "";
        context.messageCallback = keepText;
        context.messageUserData = said;
        context.maxDispatchSeconds = limits[cut];
        REQUIRE(vkmqaImportDevice(&info, &device));
        harness.device = device;
        harness.context = vkmqaGetDeviceContext(device);
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, VKMQA_TIER_PORTABLE, &attention));
        Problem problem = problemCreate(&model, &batches[1], harness.seed, false);
        Run run = runCreate(attention, &problem, NULL);
        runUpload(&run, &problem);
        engine.dispatches = 0;
        runRecord(&run, false);
        dispatches[cut] = engine.dispatches;
        char count[64];
        snprintf(count, sizeof(count), "recorded as %u dispatches", dispatches[cut]);
        assert_true(!cut == !strstr(said, count));
        VkmqaSlices slices = countSlices(&run, 0, 0);
        uint64_t groups = slices.groups;
        VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
        REQUIRE(vkmqaGetKernelInfo(attention, &run.step.limits, &kernel));
        limits[2] = 1.5 * kernel.workgroups[0] * slices.secondsPerGroup;
        runSubmit(&run);
        outputs[cut] = runRead(&run);
        if (cut == 2)
            assert_true(dispatches[2] > groups / (1.5 * kernel.workgroups[0]) && dispatches[2] < groups);
        else
            assert_int_equal(dispatches[cut], cut ? groups : 1);
        if (cut && !outputsEqual(&run, &outputs[0], &outputs[cut]))
            fail_msg("%u dispatches give other bits than one", dispatches[cut]);
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
        vkmqaCloseDevice(device);
        harness.device = before;
        harness.context = contextBefore;
    }
    outputDestroy(&outputs[0]);
    outputDestroy(&outputs[1]);
    outputDestroy(&outputs[2]);
    engineClose(&engine);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(slicesAreTheCall),
    cmocka_unit_test(aMissingSliceIsMissed),
    cmocka_unit_test(budgetsAndCorrectionsCount),
    cmocka_unit_test(longDispatchesAreCut),
};

HARNESS_MAIN(tests)

// Attention over every kind of shape, on the tiers the device supports, against the float64 oracle.
// Shapes are chosen so that pairs of properties meet, not all combinations: each attention object costs
// its pipelines' compilation.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VKMQA_TEST_CASES
#define VKMQA_TEST_CASES "tests/cases"
#endif

// ---- Batches -------------------------------------------------------------------------------------

enum {
    DECODE,
    RAGGED,
    EDGES_SMALL,
    EDGES_64,
    EDGES_256,
    EDGES_1024,
    CHUNKS,
    PREFILL,
    NOTHING,
    SHARP
};

static const Batch batches[] = {
    [DECODE] = {4, {{1, 1}, {1, 300}, {1, 64}, {1, 129}}, .append = true},
    // Prefill, chunked prefill, decode, no queries, no tokens, more queries than tokens.
    [RAGGED] = {7, {{17, 17}, {5, 200}, {1, 333}, {0, 50}, {3, 0}, {7, 3}, {2, 65}}, .gaps = true},
    [EDGES_SMALL] = {8, {{1, 1}, {1, 7}, {1, 8}, {1, 9}, {2, 15}, {1, 17}, {1, 31}, {1, 33}}},
    [EDGES_64] = {8,
                  {{1, 63}, {1, 64}, {1, 65}, {3, 127}, {1, 128}, {1, 129}, {1, 32}, {1, 16}},
                  .append = true},
    [EDGES_256] = {6, {{1, 191}, {1, 193}, {1, 255}, {1, 256}, {4, 257}, {1, 320}}, .gaps = true},
    [EDGES_1024] = {5, {{1, 1023}, {1, 1024}, {1, 1025}, {1, 511}, {1, 513}}},
    [CHUNKS] = {6, {{8, 8}, {9, 31}, {16, 16}, {15, 64}, {33, 100}, {1, 90}}, .append = true},
    [PREFILL] = {2, {{70, 70}, {65, 130}}, .gaps = true, .append = true},
    [NOTHING] = {3, {{0, 0}, {2, 0}, {0, 9}}},
    [SHARP] = {3, {{16, 700}, {16, 90}, {20, 20}}, .sharpness = 20},
};

static const char* const batchNames[] = {
    [DECODE] = "decode",         [RAGGED] = "ragged",       [EDGES_SMALL] = "edges 1-33",
    [EDGES_64] = "edges 64-129", [EDGES_256] = "edges 256", [EDGES_1024] = "edges 1024",
    [CHUNKS] = "chunks",         [PREFILL] = "prefill",     [NOTHING] = "nothing",
    [SHARP] = "near one-hot",
};

// ---- Models --------------------------------------------------------------------------------------

typedef struct Shape {
    Model model;
    int batches[3];
    uint32_t batchCount;
} Shape;

#define F16 ORACLE_F16
#define F32 ORACLE_F32
#define MODEL(hq, hkv, dqk, dv, page, io, k, v, causal, split)                                     \
    { hq, hkv, dqk, dv, page, io, k, v, causal, split, 1100, 0 }

static const Shape shapes[] = {
    {MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64), {RAGGED, EDGES_64, SHARP}, 3},
    {MODEL(71, 1, 64, 64, 64, F16, F16, F16, false, 0), {DECODE, RAGGED}, 2},
    {MODEL(5, 1, 80, 80, 1, F16, F16, F16, true, 64), {CHUNKS, EDGES_SMALL}, 2},
    {MODEL(14, 2, 96, 96, 2, F32, F16, F16, true, 0), {RAGGED, EDGES_256}, 2},
    {MODEL(24, 2, 128, 128, 4, F16, F16, F16, false, 256), {EDGES_1024, CHUNKS}, 2},
    {MODEL(32, 1, 128, 128, 256, F16, F16, F16, true, 64), {DECODE, EDGES_SMALL}, 2},
    {MODEL(128, 1, 64, 64, 0, F16, F16, F16, true, 0), {DECODE, EDGES_SMALL}, 2},
    {MODEL(4, 4, 256, 256, 8, F16, F16, F16, true, 0), {RAGGED, EDGES_SMALL}, 2},
    {MODEL(6, 2, 192, 128, 0, F16, F16, F16, true, 64), {EDGES_256, RAGGED}, 2},
    {MODEL(8, 2, 64, 128, 16, F32, F32, F32, true, 64), {RAGGED, EDGES_64, SHARP}, 3},
    {MODEL(3, 3, 8, 8, 16, F32, F32, F32, false, 0), {EDGES_1024, CHUNKS, NOTHING}, 3},
    {MODEL(6, 2, 24, 24, 0, F16, F32, F16, false, 64), {EDGES_64, RAGGED}, 2},
    {MODEL(4, 1, 40, 40, 64, F32, F16, F32, true, 64), {EDGES_1024, PREFILL}, 2},
    {MODEL(48, 1, 128, 128, 0, F32, F32, F32, true, 0), {DECODE, EDGES_SMALL}, 2},
    {MODEL(2, 1, 256, 8, 16, F16, F16, F16, true, 0), {CHUNKS, NOTHING}, 2},
    {MODEL(9, 3, 8, 256, 32, F32, F16, F16, true, 128), {PREFILL, DECODE}, 2},
    {MODEL(16, 16, 128, 128, 128, F16, F16, F16, false, 64), {EDGES_256, DECODE}, 2},
    {MODEL(7, 1, 176, 104, 4, F16, F32, F32, true, 64), {RAGGED, EDGES_SMALL}, 2},
};

static void shapeIsRight(void** state) {
    const Shape* shape = *state;
    size_t index = (size_t)(shape - shapes);
    uint64_t seed = 100 * (index + 1);
    Problem problems[COUNT(shape->batches)];
    for (uint32_t i = 0; i < shape->batchCount; i++)
        problems[i] = problemCreate(&shape->model, &batches[shape->batches[i]], seed + i, true);
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        if (!tierHasTurn(t, index))
            continue;
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&shape->model, harness.tiers[t], &attention));
        for (uint32_t i = 0; i < shape->batchCount; i++) {
            char label[64];
            snprintf(label, sizeof(label), "%s, %s", tierName(harness.tiers[t]),
                     batchNames[shape->batches[i]]);
            runProblem(attention, &problems[i], label);
        }
        vkmqaDestroyAttention(attention);
    }
    for (uint32_t i = 0; i < shape->batchCount; i++)
        problemDestroy(&problems[i]);
}

// ---- Single properties ---------------------------------------------------------------------------

// Calls the function with an attention object of every tier.
static void forEachTier(const Model* model, const Problem* problem,
                        void (*function)(VkmqaAttention attention, const Problem* problem,
                                         const char* label)) {
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(model, harness.tiers[t], &attention));
        function(attention, problem, tierName(harness.tiers[t]));
        vkmqaDestroyAttention(attention);
    }
}

static void caseFilesPass(void** state) {
    (void)state;
    static const char* const names[] = {"decode_mqa", "prefill_gqa_causal", "chunked_prefill",
                                        "ragged_batch"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s.safetensors", VKMQA_TEST_CASES, names[i]);
        CaseFile file;
        assert_true(caseFileRead(path, &file));
        Problem problem = problemFromCase(&file, ORACLE_F16, i);
        forEachTier(&problem.model, &problem, runProblem);
        problemDestroy(&problem);
        caseFileFree(&file);
    }
}

static void longContextIsRight(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 8,
                         .numHeadsKv = 1,
                         .headDimQk = 64,
                         .headDimV = 64,
                         .pageSize = 16,
                         .io = F16,
                         .k = F16,
                         .v = F16,
                         .causal = true,
                         .maxSeqLenKv = 32768};
    const Batch batch = {2, {{1, 20000}, {2, 5}}, .append = true};
    Problem problem = problemCreate(&model, &batch, 7, true);
    forEachTier(&model, &problem, runProblem);
    problemDestroy(&problem);
}

static void scaleIsUsed(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 8,
                         .numHeadsKv = 1,
                         .headDimQk = 64,
                         .headDimV = 64,
                         .pageSize = 16,
                         .io = F16,
                         .k = F16,
                         .v = F16,
                         .causal = true,
                         .splitSize = 64,
                         .maxSeqLenKv = 1100,
                         .scale = 0.3f};
    Problem problem = problemCreate(&model, &batches[RAGGED], 8, true);
    forEachTier(&model, &problem, runProblem);
    problemDestroy(&problem);
}

static void ignoresUnowned(VkmqaAttention attention, const Problem* problem, const char* label) {
    static const uint32_t fills[] = {0, 0x7C007C00, 0x7F7FFFFF};
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, false);
    runSubmit(&run);
    Output poisoned = runRead(&run);
    runCheck(&run, problem, &poisoned, label);
    for (size_t i = 0; i < COUNT(fills); i++) {
        runFillUnowned(&run, problem, fills[i]);
        runSubmit(&run);
        Output output = runRead(&run);
        if (!outputsEqual(&run, &poisoned, &output))
            fail_msg("%s: filling what nobody owns with 0x%08x changes the output", label,
                     fills[i]);
        outputDestroy(&output);
    }
    // The same command buffer once more: two runs give the same bits.
    runSubmit(&run);
    Output again = runRead(&run);
    assert_true(outputsEqual(&run, &poisoned, &again));
    outputDestroy(&again);
    outputDestroy(&poisoned);
    runDestroy(&run);
}

static void whatNobodyOwnsChangesNothing(void** state) {
    (void)state;
    static const Model models[] = {
        MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64),
        MODEL(4, 2, 40, 24, 0, F32, F32, F16, false, 64),
    };
    for (size_t i = 0; i < COUNT(models); i++) {
        Problem problem = problemCreate(&models[i], &batches[EDGES_SMALL], 9 + i, true);
        forEachTier(&models[i], &problem, ignoresUnowned);
        problemDestroy(&problem);
    }
}

// lse is optional, and out is the same bits without it.
static void lseIsOptionalOn(VkmqaAttention attention, const Problem* problem, const char* label) {
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, false);
    runSubmit(&run);
    Output with = runRead(&run);
    runUpload(&run, problem);
    VkmqaBuffer lse = run.lse.range;
    memset(&run.lse.range, 0, sizeof(run.lse.range));
    runRecord(&run, false);
    runSubmit(&run);
    run.lse.range = lse;
    Output without = runRead(&run);
    if (memcmp(with.out, without.out, run.out.range.size) != 0)
        fail_msg("%s: out depends on whether lse is asked for", label);
    for (size_t i = 0; i < lse.size; i += 4)
        assert_memory_equal((uint8_t*)without.lse + i, &(uint32_t){0xFFEDFFED}, 4);
    outputDestroy(&with);
    outputDestroy(&without);
    runDestroy(&run);
}

static void lseIsOptional(void** state) {
    (void)state;
    const Model model = MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64);
    Problem problem = problemCreate(&model, &batches[EDGES_64], 11, false);
    problem.batch.append = false;
    forEachTier(&model, &problem, lseIsOptionalOn);
    problemDestroy(&problem);
}

// Every kernel of the table that this device can run, by avoiding those seen before.
static void everyKernelIsRight(void** state) {
    (void)state;
    const Model model = MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64);
    Problem problem = problemCreate(&model, &batches[RAGGED], 12, true);
    uint64_t avoid = 0;
    for (int kernels = 0;; kernels++) {
        VkmqaAttentionCreateInfo info = attentionInfo(&model, VKMQA_TIER_AUTO);
        VkmqaAttention attention;
        info.avoidKernels = avoid;
        VkResult result = vkmqaDeviceCreateAttention(harness.device, &info, &attention);
        if (result == VK_ERROR_FEATURE_NOT_PRESENT && kernels > 0)
            break;
        REQUIRE(result);
        Run run = runCreate(attention, &problem, NULL);
        VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
        REQUIRE(vkmqaGetKernelInfo(attention, &run.step.limits, &kernel));
        runDestroy(&run);
        char label[64];
        snprintf(label, sizeof(label), "kernel %u (%s)", kernel.kernel, kernel.name);
        if (kernel.kernel >= 64 || avoid >> kernel.kernel & 1)
            fail_msg("%s was to be avoided (0x%llx)", label, (unsigned long long)avoid);
        assert_non_null(kernel.reason);
        runProblem(attention, &problem, label);
        vkmqaDestroyAttention(attention);
        avoid |= 1ull << kernel.kernel;
    }
    problemDestroy(&problem);
}

int main(void) {
    const struct CMUnitTest properties[] = {
        cmocka_unit_test(caseFilesPass), cmocka_unit_test(longContextIsRight),
        cmocka_unit_test(scaleIsUsed),   cmocka_unit_test(whatNobodyOwnsChangesNothing),
        cmocka_unit_test(lseIsOptional), cmocka_unit_test(everyKernelIsRight),
    };
    struct CMUnitTest perShape[COUNT(shapes)];
    char names[COUNT(shapes)][128];
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const Model* model = &shapes[i].model;
        snprintf(names[i], sizeof(names[i]),
                 "heads %u:%u, dims %u/%u, io %s, cache %s/%s, page %u, %s, split %u",
                 model->numHeadsQ, model->numHeadsKv, model->headDimQk, model->headDimV,
                 oracleTypeName(model->io), oracleTypeName(model->k), oracleTypeName(model->v),
                 model->pageSize, model->causal ? "causal" : "full", model->splitSize);
        perShape[i] = (struct CMUnitTest){names[i], shapeIsRight, NULL, NULL, (void*)&shapes[i]};
    }
    harnessOpen();
    int failed = cmocka_run_group_tests_name("shapes", perShape, NULL, NULL);
    failed += cmocka_run_group_tests_name("properties", properties, NULL, NULL);
    harnessClose();
    return failed != 0;
}

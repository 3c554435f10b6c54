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
    SHARP,
    HUGE_VALUES,
    APPENDED, // for what append does to the cache: small, ragged
    DRAFTS,
    IN_PLACE
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
    [HUGE_VALUES] = {4, {{16, 90}, {3, 40}, {1, 100}, {9, 9}}, .magnitude = 1e7f}, // beyond f16
    [APPENDED] = {5,
                  {{1, 70}, {4, 33}, {0, 9}, {3, 2}, {9, 9}},
                  .gaps = true,
                  .append = true,
                  .firstPosition = 99990},
    [DRAFTS] = {6, {{40, 90}, {7, 7}, {1, 200}, {5, 3}, {0, 20}, {33, 65}}, .append = true},
    [IN_PLACE] = {3, {{1, 40}, {6, 20}, {2, 129}}, .append = true, .inPlace = true},
};

static const char* const batchNames[] = {
    [DECODE] = "decode",         [RAGGED] = "ragged",       [EDGES_SMALL] = "edges 1-33",
    [EDGES_64] = "edges 64-129", [EDGES_256] = "edges 256", [EDGES_1024] = "edges 1024",
    [CHUNKS] = "chunks",         [PREFILL] = "prefill",     [NOTHING] = "nothing",
    [SHARP] = "near one-hot",    [HUGE_VALUES] = "huge",    [APPENDED] = "appended",   [DRAFTS] = "drafts",
    [IN_PLACE] = "in place",
};

// ---- Models --------------------------------------------------------------------------------------

typedef struct Shape {
    Model model;
    int batches[3];
    uint32_t batchCount;
} Shape;

#define F32 ORACLE_F32
#define F16 ORACLE_F16
#define BF16 ORACLE_BF16
#define FP8 ORACLE_FP8
#define Q8 ORACLE_Q8_0
#define Q4 ORACLE_Q4_0
#define LEFT VKMQA_ATTENTION_WINDOW_LEFT_BIT
#define RIGHT VKMQA_ATTENTION_WINDOW_RIGHT_BIT
#define ALIBI VKMQA_ATTENTION_ALIBI_BIT
#define SINKS VKMQA_ATTENTION_SINKS_BIT
#define MASK VKMQA_ATTENTION_MASK_BIT
#define TREE VKMQA_ATTENTION_TREE_MASK_BIT
#define PREFIX VKMQA_ATTENTION_V_PREFIX_OF_K_BIT
#define HADAMARD VKMQA_ATTENTION_HADAMARD_BIT
#define INVARIANT VKMQA_ATTENTION_BATCH_INVARIANT_BIT

// What follows `split` are further members by name.
#define MODEL(hq, hkv, dqk, dv, page, ioType, kType, vType, isCausal, split, ...)                  \
    {                                                                                              \
        .numHeadsQ = hq, .numHeadsKv = hkv, .headDimQk = dqk, .headDimV = dv, .pageSize = page,    \
        .io = ioType, .k = kType, .v = vType, .causal = isCausal, .splitSize = split,              \
        .maxSeqLenKv = 1100, __VA_ARGS__                                                           \
    }

static const Shape shapes[] = {
    {MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64, .flags = 0), {RAGGED, EDGES_64, SHARP}, 3},
    {MODEL(71, 1, 64, 64, 64, F16, F16, F16, false, 0, .flags = 0), {DECODE, RAGGED}, 2},
    {MODEL(5, 1, 80, 80, 1, F16, F16, F16, true, 64, .flags = 0), {CHUNKS, EDGES_SMALL}, 2},
    {MODEL(14, 2, 96, 96, 2, F32, F16, F16, true, 0, .flags = 0), {RAGGED, EDGES_256}, 2},
    {MODEL(24, 2, 128, 128, 4, F16, F16, F16, false, 256, .flags = 0), {EDGES_1024, CHUNKS}, 2},
    {MODEL(32, 1, 128, 128, 256, F16, F16, F16, true, 64, .flags = 0), {DECODE, EDGES_SMALL}, 2},
    {MODEL(128, 1, 64, 64, 0, F16, F16, F16, true, 0, .flags = 0), {DECODE, EDGES_SMALL}, 2},
    {MODEL(4, 4, 256, 256, 8, F16, F16, F16, true, 0, .flags = 0), {RAGGED, EDGES_SMALL}, 2},
    {MODEL(6, 2, 192, 128, 0, F16, F16, F16, true, 64, .flags = 0), {EDGES_256, RAGGED}, 2},
    {MODEL(8, 2, 64, 128, 16, F32, F32, F32, true, 64, .flags = 0), {RAGGED, EDGES_64, SHARP}, 3},
    {MODEL(3, 3, 8, 8, 16, F32, F32, F32, false, 0, .flags = 0), {EDGES_1024, CHUNKS, NOTHING}, 3},
    {MODEL(6, 2, 24, 24, 0, F16, F32, F16, false, 64, .flags = 0), {EDGES_64, RAGGED}, 2},
    {MODEL(4, 1, 40, 40, 64, F32, F16, F32, true, 64, .flags = 0), {EDGES_1024, PREFILL}, 2},
    {MODEL(48, 1, 128, 128, 0, F32, F32, F32, true, 0, .flags = 0), {DECODE, EDGES_SMALL}, 2},
    {MODEL(2, 1, 256, 8, 16, F16, F16, F16, true, 0, .flags = 0), {CHUNKS, NOTHING}, 2},
    {MODEL(9, 3, 8, 256, 32, F32, F16, F16, true, 128, .flags = 0), {PREFILL, DECODE}, 2},
    {MODEL(16, 16, 128, 128, 128, F16, F16, F16, false, 64, .flags = 0), {EDGES_256, DECODE}, 2},
    {MODEL(7, 1, 176, 104, 4, F16, F32, F32, true, 64, .flags = 0), {RAGGED, EDGES_SMALL}, 2},

    // Cache types in pairs, and bf16.
    {MODEL(8, 2, 64, 64, 16, BF16, BF16, BF16, true, 64, .source = BF16), {RAGGED, EDGES_64}, 2},
    {MODEL(8, 1, 64, 64, 16, F32, BF16, BF16, true, 64, .scale = 1e-8f), {HUGE_VALUES}, 1},
    {MODEL(4, 1, 128, 128, 64, F32, BF16, F16, true, 0, .flags = 0), {EDGES_256, SHARP}, 2},
    {MODEL(16, 1, 128, 128, 16, F16, Q8, Q8, true, 0, .source = F16), {EDGES_64, RAGGED}, 2},
    {MODEL(2, 2, 72, 40, 1, F32, Q8, Q4, true, 64, .flags = 0), {EDGES_SMALL, APPENDED}, 2},
    {MODEL(6, 3, 40, 72, 0, BF16, Q4, Q4, false, 64, .source = F16), {RAGGED, EDGES_256}, 2},
    {MODEL(8, 1, 256, 256, 256, F16, Q4, Q8, true, 128, .flags = 0), {APPENDED, EDGES_SMALL}, 2},
    {MODEL(8, 2, 64, 64, 64, F16, FP8, FP8, true, 64, .fp8Scales = FP8_ANY), {RAGGED, CHUNKS}, 2},
    {MODEL(3, 1, 24, 88, 16, F32, FP8, Q8, false, 0, .fp8Scales = FP8_POWERS), {EDGES_64}, 1},
    {MODEL(4, 4, 128, 64, 4, BF16, F16, FP8, true, 64, .flags = 0), {APPENDED, EDGES_SMALL}, 2},
    {MODEL(64, 1, 64, 64, 16, F16, Q8, F16, true, 64, .flags = 0), {DECODE, SHARP}, 2},
    {MODEL(5, 5, 32, 32, 2, F32, F16, Q4, true, 0, .flags = 0), {EDGES_1024}, 1},
    {MODEL(12, 2, 96, 128, 128, F32, F32, Q8, true, 256, .flags = 0), {EDGES_256, NOTHING}, 2},
    {MODEL(6, 2, 104, 56, 8, F16, BF16, Q4, true, 64, .source = BF16), {CHUNKS, RAGGED}, 2},

    // Windows, chunks and what changes scores.
    {MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64, .flags = LEFT, .windowLeft = 0),
     {RAGGED, EDGES_SMALL},
     2},
    {MODEL(4, 2, 64, 64, 64, F16, F16, F16, true, 64, .flags = LEFT | SINKS, .windowLeft = 100),
     {EDGES_1024, RAGGED, PREFILL},
     3},
    {MODEL(6, 2, 128, 128, 0, F16, Q8, Q8, false, 64, .flags = LEFT | RIGHT, .windowLeft = 20,
           .windowRight = 3),
     {RAGGED, PREFILL},
     2},
    {MODEL(3, 1, 40, 40, 1, F32, F32, F32, false, 0, .flags = RIGHT, .windowRight = 0),
     {RAGGED, CHUNKS},
     2},
    {MODEL(8, 2, 64, 64, 16, F16, F16, F16, true, 64, .chunkSize = 48), {RAGGED, EDGES_256}, 2},
    {MODEL(4, 1, 128, 128, 256, F32, BF16, BF16, false, 0, .flags = SINKS, .chunkSize = 7),
     {RAGGED, CHUNKS},
     2},
    {MODEL(8, 2, 256, 256, 16, F16, F16, F16, true, 64, .softcap = 30.0f), {EDGES_64, SHARP}, 2},
    {MODEL(12, 4, 64, 64, 32, BF16, F16, F16, true, 64, .flags = ALIBI), {RAGGED, EDGES_1024}, 2},
    {MODEL(64, 8, 64, 64, 64, F16, F16, F16, true, 0, .flags = SINKS),
     {RAGGED, DECODE, NOTHING},
     3},
    {MODEL(5, 1, 80, 80, 4, F32, F32, F32, false, 64, .flags = ALIBI | SINKS, .softcap = 2.0f),
     {RAGGED, PREFILL},
     2},

    // Masks given as bits.
    {MODEL(8, 1, 64, 64, 16, F16, F16, F16, false, 64, .flags = MASK), {RAGGED, EDGES_256}, 2},
    {MODEL(4, 4, 72, 72, 0, F32, Q8, F32, true, 0, .flags = MASK | SINKS), {RAGGED, CHUNKS}, 2},
    {MODEL(8, 2, 128, 128, 64, F16, F16, F16, true, 64, .flags = TREE, .source = F16),
     {DRAFTS, RAGGED},
     2},
    {MODEL(16, 1, 64, 64, 1, F32, Q4, Q8, false, 0, .flags = TREE | LEFT, .windowLeft = 40),
     {DRAFTS, PREFILL},
     2},

    // MLA and other prefixes.
    {MODEL(16, 1, 576, 512, 64, F16, F16, F16, true, 64, .flags = PREFIX), {DECODE, CHUNKS}, 2},
    {MODEL(128, 1, 576, 512, 16, BF16, Q8, Q8, true, 0, .flags = PREFIX), {EDGES_SMALL}, 1},
    {MODEL(6, 2, 96, 40, 0, F32, Q4, Q4, true, 64, .flags = PREFIX), {RAGGED, APPENDED}, 2},
    {MODEL(4, 1, 192, 192, 256, F16, FP8, FP8, false, 0, .flags = PREFIX, .fp8Scales = FP8_POWERS),
     {EDGES_64},
     1},
    {MODEL(3, 1, 576, 576, 16, F32, F32, F32, true, 64, .flags = 0), {RAGGED}, 1},

    // Append rotates, attention reads what it wrote.
    {MODEL(8, 2, 128, 128, 16, F16, Q8, Q8, true, 64, .rope = ORACLE_ROPE_NEOX, .source = F16),
     {APPENDED, IN_PLACE},
     2},
    {MODEL(4, 1, 80, 64, 0, F32, F16, F16, true, 0, .rope = ORACLE_ROPE_INTERLEAVED, .ropeDim = 32,
           .ropeOffset = 16, .ropeCustom = true),
     {APPENDED, IN_PLACE},
     2},
    {MODEL(8, 1, 576, 512, 64, F16, F16, F16, true, 0, .flags = PREFIX, .rope = ORACLE_ROPE_NEOX,
           .ropeOffset = 512),
     {APPENDED},
     1},
    {MODEL(8, 2, 64, 64, 16, F16, Q4, Q4, true, 64, .flags = HADAMARD, .rope = ORACLE_ROPE_NEOX),
     {APPENDED, DRAFTS},
     2},

    // All at once.
    {MODEL(8, 2, 96, 64, 16, F16, Q8, Q4, true, 64,
           .flags = LEFT | RIGHT | ALIBI | SINKS | MASK | HADAMARD | INVARIANT, .windowLeft = 60,
           .windowRight = 9, .chunkSize = 100, .softcap = 15.0f, .rope = ORACLE_ROPE_NEOX,
           .ropeCustom = true, .scale = 0.11f, .source = F16),
     {APPENDED, IN_PLACE},
     2},
    {MODEL(12, 2, 64, 32, 0, F32, FP8, FP8, false, 64,
           .flags = LEFT | ALIBI | SINKS | TREE | PREFIX | INVARIANT, .windowLeft = 80,
           .softcap = 5.0f, .rope = ORACLE_ROPE_INTERLEAVED, .ropeOffset = 32,
           .fp8Scales = FP8_POWERS),
     {APPENDED, DRAFTS},
     2},
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

// Calls the function with an attention object of the tiers whose turn it is.
static void onTiers(const Model* model, const Problem* problem, size_t turn,
                    void (*function)(VkmqaAttention attention, const Problem* problem,
                                     const char* label)) {
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        if (!tierHasTurn(t, turn))
            continue;
        REQUIRE(attentionCreate(model, harness.tiers[t], &attention));
        function(attention, problem, tierName(harness.tiers[t]));
        vkmqaDestroyAttention(attention);
    }
}

static void caseIsRight(const CaseFile* file, const Problem* problem, VkmqaTier tier,
                        const char* name) {
    char label[96], text[160];
    VkmqaAttention attention;
    snprintf(label, sizeof(label), "%s, %s", tierName(tier), name);
    REQUIRE(attentionCreate(&problem->model, tier, &attention));
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, true);
    runSubmit(&run);
    Output output = runRead(&run);
    runCheck(&run, problem, &output, label);
    float* out = outputValues(&run, problem, &output);
    bool accepted = caseFileAccepts(file, out, output.lse, text, sizeof(text));
    free(out);
    outputDestroy(&output);
    runDestroy(&run);
    vkmqaDestroyAttention(attention);
    if (!accepted)
        fail_msg("%s: %s", label, text);
}

static void caseFilesPass(void** state) {
    (void)state;
    static const char* const names[] = {
        "decode_mqa", "prefill_gqa_causal", "chunked_prefill", "ragged_batch",  "mla",
        "q8_cache",   "rope_append",        "sinks_alibi",     "window_softcap"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s.safetensors", VKMQA_TEST_CASES, names[i]);
        CaseFile file;
        if (!legHasShare(i))
            continue;
        assert_true(caseFileRead(path, &file));
        Problem problem = problemFromCase(&file, i);
        for (uint32_t t = 0; t < harness.tierCount; t++)
            if (tierHasTurn(t, i))
                caseIsRight(&file, &problem, harness.tiers[t], names[i]);
        problemDestroy(&problem);
        caseFileFree(&file);
    }
}

static void longContextIsRight(void** state) {
    (void)state;
    static const Model models[] = {
        MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 0, .flags = 0),
        MODEL(8, 1, 64, 64, 16, F16, Q8, Q8, true, 0, .flags = LEFT | SINKS, .windowLeft = 1000),
    };
    const Batch batch = {2, {{1, 20000}, {2, 5}}, .append = true};
    for (size_t i = 0; i < COUNT(models); i++) {
        Model model = models[i];
        model.maxSeqLenKv = 32768;
        Problem problem = problemCreate(&model, &batch, 7 + i, true);
        onTiers(&model, &problem, i, runProblem);
        problemDestroy(&problem);
    }
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
    onTiers(&model, &problem, 2, runProblem);
    problemDestroy(&problem);
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
    const Model model = MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 64, .flags = 0);
    Problem problem = problemCreate(&model, &batches[EDGES_64], 11, false);
    problem.batch.append = false;
    onTiers(&model, &problem, 0, lseIsOptionalOn);
    problemDestroy(&problem);
}

// Every kernel of the table that this device can run, by avoiding those seen before.
static void everyKernel(const Model* model) {
    // Splits of many blocks: the rows of a tile find new maxima at different blocks.
    const Batch batch = {7, {{17, 17}, {5, 600}, {1, 333}, {0, 50}, {3, 0}, {7, 3}, {2, 65}}, .gaps = true};
    Problem problem = problemCreate(model, &batch, 12, true);
    uint64_t avoid = 0;
    for (int kernels = 0;; kernels++) {
        VkmqaAttentionCreateInfo info = attentionInfo(model, VKMQA_TIER_AUTO);
        VkmqaAttention attention;
        info.avoidKernels = avoid;
        VkResult result = vkmqaCreateAttention(harness.context, &info, &attention); // no self-test: it hides
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

static void everyKernelIsRight(void** state) {
    (void)state;
    const Model model = MODEL(8, 1, 64, 64, 16, F16, F16, F16, true, 512, .flags = 0);
    everyKernel(&model);
}

static void everyKernelReadsBlocks(void** state) {
    (void)state;
    const Model model = MODEL(8, 1, 64, 64, 16, F16, Q8, Q4, true, 512, .flags = 0);
    everyKernel(&model);
}

int main(void) {
    const struct CMUnitTest properties[] = {
        cmocka_unit_test(caseFilesPass),      cmocka_unit_test(longContextIsRight),
        cmocka_unit_test(scaleIsUsed),        cmocka_unit_test(lseIsOptional),
        cmocka_unit_test(everyKernelIsRight), cmocka_unit_test(everyKernelReadsBlocks),
    };
    struct CMUnitTest tests[COUNT(shapes) + COUNT(properties)];
    char names[COUNT(shapes)][160];
    size_t count = 0;
    harnessOpen();
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const Model* model = &shapes[i].model;
        if (!legHasShare(i))
            continue;
        snprintf(names[i], sizeof(names[i]),
                 "heads %u:%u, dims %u/%u, io %s, cache %s/%s, page %u, %s, split %u, flags 0x%x, "
                 "shape %zu",
                 model->numHeadsQ, model->numHeadsKv, model->headDimQk, model->headDimV,
                 oracleTypeName(model->io), oracleTypeName(model->k), oracleTypeName(model->v),
                 model->pageSize, model->causal ? "causal" : "full", model->splitSize, model->flags,
                 i);
        tests[count++] = (struct CMUnitTest){names[i], shapeIsRight, NULL, NULL, (void*)&shapes[i]};
    }
    memcpy(tests + count, properties, sizeof(properties));
    int failed = _cmocka_run_group_tests("attention", tests, count + COUNT(properties), NULL, NULL);
    harnessClose();
    return failed != 0;
}

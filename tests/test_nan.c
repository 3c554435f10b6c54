// What no row may attend may hold anything: NaN in every byte of the cache that no sequence owns, in every
// slot past a length and in every token that masks hide from all queries, in codes and in scales, changes
// no bit of the output.
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32 ORACLE_F32
#define F16 ORACLE_F16
#define BF16 ORACLE_BF16
#define FP8 ORACLE_FP8
#define Q8 ORACLE_Q8_0
#define Q4 ORACLE_Q4_0
#define LEFT VKMQA_ATTENTION_WINDOW_LEFT_BIT
#define RIGHT VKMQA_ATTENTION_WINDOW_RIGHT_BIT
#define SINKS VKMQA_ATTENTION_SINKS_BIT
#define MASK VKMQA_ATTENTION_MASK_BIT
#define TREE VKMQA_ATTENTION_TREE_MASK_BIT
#define PREFIX VKMQA_ATTENTION_V_PREFIX_OF_K_BIT

typedef struct Shape {
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV, pageSize;
    OracleType io, k, v;
    bool causal;
    VkmqaAttentionFlags flags;
    uint32_t windowLeft, windowRight, chunkSize, splitSize;
} Shape;

static const Shape shapes[] = {
    {8, 1, 64, 64, 16, F16, F16, F16, true, 0, 0, 0, 0, 64},
    {4, 2, 40, 24, 0, F32, F32, F16, false, 0, 0, 0, 0, 64},
    {4, 2, 64, 64, 64, F16, BF16, BF16, true, LEFT, 30, 0, 0, 64},
    {6, 2, 72, 40, 16, F32, FP8, FP8, true, LEFT | SINKS, 5, 0, 0, 0},
    {8, 1, 128, 128, 16, F16, Q8, Q8, true, LEFT, 40, 0, 0, 64},
    {3, 1, 40, 96, 4, F32, Q4, Q4, false, LEFT | RIGHT, 12, 2, 0, 0},
    {16, 1, 64, 64, 256, F16, Q8, Q4, true, 0, 0, 0, 32, 64},
    {2, 2, 104, 104, 1, BF16, Q4, FP8, false, MASK, 0, 0, 0, 64},
    {8, 2, 64, 64, 0, F16, F16, Q8, false, TREE | LEFT, 20, 0, 0, 0},
    {16, 1, 576, 512, 64, F16, Q8, Q8, true, PREFIX | LEFT, 33, 0, 0, 64},
    {4, 1, 96, 32, 2, F32, FP8, FP8, true, PREFIX, 0, 0, 0, 0},
};

// Lengths off the multiples of tiles and splits; queries that look back only so far.
static const Batch batches[] = {
    {6, {{1, 1}, {1, 33}, {3, 90}, {1, 129}, {0, 20}, {2, 200}}, .gaps = true},
    {4, {{5, 64}, {1, 65}, {4, 2}, {9, 9}}, .append = false},
};

// NaN in every type, infinities of f16, the largest f32, codes of -1 under scales of NaN, zeros.
static const uint32_t fills[] = {0xFFFFFFFF, 0x7F7F7F7F, 0x7C007C00, 0x7F7FFFFF, 0xFF80FF80, 0};

static void poisonChangesNothing(VkmqaAttention attention, const Problem* problem,
                                 const char* label) {
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, false);
    runSubmit(&run);
    Output expected = runRead(&run);
    runCheck(&run, problem, &expected, label);
    for (size_t i = 0; i < 2 * COUNT(fills); i++) {
        bool unseen = i % 2;
        // Whatever is not written this time must not look as if it were.
        runUpload(&run, problem);
        runFillUnowned(&run, problem, fills[i / 2], unseen);
        runSubmit(&run);
        Output output = runRead(&run);
        if (!outputsEqual(&run, &expected, &output))
            fail_msg("%s: filling what nobody %s with 0x%08x changes the output", label,
                     unseen ? "sees" : "owns", fills[i / 2]);
        outputDestroy(&output);
    }
    outputDestroy(&expected);
    runDestroy(&run);
}

static void shapeIsDeaf(const Shape* shape, size_t index) {
    const Model model = {.numHeadsQ = shape->numHeadsQ,
                         .numHeadsKv = shape->numHeadsKv,
                         .headDimQk = shape->headDimQk,
                         .headDimV = shape->headDimV,
                         .pageSize = shape->pageSize,
                         .io = shape->io,
                         .k = shape->k,
                         .v = shape->v,
                         .causal = shape->causal,
                         .splitSize = shape->splitSize,
                         .maxSeqLenKv = 300,
                         .flags = shape->flags,
                         .windowLeft = shape->windowLeft,
                         .windowRight = shape->windowRight,
                         .chunkSize = shape->chunkSize};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        if (index >= 2 && !tierHasTurn(t, index))
            continue;
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        for (size_t b = 0; b < COUNT(batches); b++) {
            char label[96];
            snprintf(label, sizeof(label), "%s, shape %zu, cache %s/%s, batch %zu",
                     tierName(harness.tiers[t]), index, oracleTypeName(shape->k),
                     oracleTypeName(shape->v), b);
            Problem problem = problemCreate(&model, &batches[b], 9 + b, true);
            poisonChangesNothing(attention, &problem, label);
            problemDestroy(&problem);
        }
        vkmqaDestroyAttention(attention);
    }
}

static void whatNobodySeesChangesNothing(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++)
        shapeIsDeaf(&shapes[i], i);
}

static bool rowHasNan(const Run* run, const Problem* problem, const Output* output, uint32_t t) {
    uint32_t heads = run->model.numHeadsQ, dim = run->model.headDimV;
    float* values = outputValues(run, problem, output);
    bool nan = true;
    for (uint32_t h = 0; h < heads; h++)
        nan &= values[((size_t)t * heads + h) * dim] != values[((size_t)t * heads + h) * dim] &&
               output->lse[t * heads + h] != output->lse[t * heads + h];
    free(values);
    return nan;
}

// The counterpart, which also shows that the test above can fail: a NaN that a row does attend reaches it.
static void whatIsSeenDoesShow(void** state) {
    (void)state;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        const Model model = {.numHeadsQ = 4,
                             .numHeadsKv = 1,
                             .headDimQk = 64,
                             .headDimV = 64,
                             .pageSize = 16,
                             .io = F32,
                             .k = Q8,
                             .v = F16,
                             .causal = true,
                             .splitSize = 64,
                             .maxSeqLenKv = 300};
        const Batch batch = {2, {{2, 100}, {1, 40}}, .append = false};
        Problem problem = problemCreate(&model, &batch, 3, true);
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Run run = runCreate(attention, &problem, NULL);
        runUpload(&run, &problem);
        OracleCache cache = problemCache(&problem, false);
        uint8_t* image = problemImage(&problem, false);
        // The last token of the first sequence: its second query sees it, the first does not.
        memset(image + oracleScaleOffset(&cache, (uint32_t)problem.slots[99], 0), 0xFF, 2);
        guardedUpload(&run.k, image);
        runRecord(&run, false);
        runSubmit(&run);
        Output output = runRead(&run);
        assert_true(rowHasNan(&run, &problem, &output, 1));
        float* values = outputValues(&run, &problem, &output);
        for (uint32_t i = 0; i < 3 * 4 * 64; i++)
            if (i / (4 * 64) != 1)
                assert_true(values[i] == values[i]);
        free(values);
        free(image);
        outputDestroy(&output);
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// An infinite value, wherever it stands in a row, reaches its own element of the rows that see it, and no other.
static void oneElementReachesItsOwn(void** state) {
    (void)state;
    enum { HEADS = 6, DIM = 64 }; // tiles of 4 and 8 rows hold rows of both queries
    const Model model = {.numHeadsQ = HEADS, .numHeadsKv = 1, .headDimQk = DIM, .headDimV = DIM, .pageSize = 16,
                         .io = F32, .k = F16, .v = F16, .causal = true, .maxSeqLenKv = 300};
    const Batch batch = {1, {{2, 100}}, .append = false};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        Problem problem = problemCreate(&model, &batch, 4, true);
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Run run = runCreate(attention, &problem, NULL);
        runUpload(&run, &problem);
        runRecord(&run, false);
        OracleCache cache = problemCache(&problem, true);
        for (uint32_t element = 0; element < 16; element++) {
            const uint16_t infinity = 0x7C00;
            uint8_t* image = problemImage(&problem, true);
            // Of the last token, which the second query alone sees.
            memcpy(image + oracleRowOffset(&cache, (uint32_t)problem.slots[99], 0) + 2 * element, &infinity, 2);
            guardedUpload(&run.v, image);
            runSubmit(&run);
            Output output = runRead(&run);
            float* values = outputValues(&run, &problem, &output);
            for (uint32_t i = 0; i < 2 * HEADS * DIM; i++)
                if (isfinite(values[i]) == (i / (HEADS * DIM) == 1 && i % DIM == element))
                    fail_msg("%s: element %u infinite, output %u of query %u is %g", tierName(harness.tiers[t]), element,
                             i % DIM, i / (HEADS * DIM), (double)values[i]);
            free(values);
            free(image);
            outputDestroy(&output);
        }
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(whatNobodySeesChangesNothing),
    cmocka_unit_test(whatIsSeenDoesShow),
    cmocka_unit_test(oneElementReachesItsOwn),
};

HARNESS_MAIN(tests)

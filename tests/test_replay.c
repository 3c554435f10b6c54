// A command buffer recorded once is submitted again and again while only the metadata, the query and
// the cache in GPU memory change; the bits are those of a fresh recording with the same maxima.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Steps within the same recorded maxima: growing decode, other batches, nothing to do.
static const Batch steps[] = {
    {4, {{1, 63}, {1, 300}, {1, 1}, {1, 255}}, .append = true, .numPages = 120},
    {4, {{1, 64}, {1, 301}, {1, 2}, {1, 256}}, .append = true, .numPages = 120},
    {4, {{1, 65}, {1, 302}, {1, 3}, {1, 257}}, .append = true, .numPages = 120},
    {4, {{9, 9}, {0, 100}, {3, 700}, {0, 0}}, .append = true, .numPages = 120},
    {4, {{0, 0}, {0, 0}, {0, 0}, {1, 1024}}, .append = true, .numPages = 120}, // all there may be
    {4, {{5, 2}, {16, 320}, {0, 7}, {1, 640}}, .append = true, .numPages = 120},
    {4, {{0, 0}, {0, 3}, {0, 0}, {0, 0}}, .append = true, .numPages = 120},
};

static const VkmqaStepLimits maxima = {
    .batch = 4, .totalQ = 24, .maxSeqLenQ = 16, .maxSeqLenKv = 1024, .newTokens = 1100};

static void replaysOn(VkmqaTier tier, const Model* model) {
    VkmqaAttention attention;
    REQUIRE(attentionCreate(model, tier, &attention));
    Problem first = problemCreate(model, &steps[0], 20, true);
    Run recorded = runCreate(attention, &first, &maxima);
    runUpload(&recorded, &first);
    runRecord(&recorded, true);
    for (size_t i = 0; i < COUNT(steps); i++) {
        Problem problem = problemCreate(model, &steps[i], 20 + i, true);
        char label[64];
        snprintf(label, sizeof(label), "%s, step %zu", tierName(tier), i);
        runUpload(&recorded, &problem);
        runSubmit(&recorded);
        Output replayed = runRead(&recorded);
        runCheck(&recorded, &problem, &replayed, label);

        Run fresh = runCreate(attention, &problem, &maxima);
        runUpload(&fresh, &problem);
        runRecord(&fresh, true);
        runSubmit(&fresh);
        Output once = runRead(&fresh);
        if (!outputsEqual(&fresh, &once, &replayed))
            fail_msg("%s: replay and fresh recording differ", label);
        outputDestroy(&once);
        outputDestroy(&replayed);
        runDestroy(&fresh);
        problemDestroy(&problem);
    }
    runDestroy(&recorded);
    problemDestroy(&first);
    vkmqaDestroyAttention(attention);
}

static void replayEqualsFreshRecording(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 8,
                         .numHeadsKv = 2,
                         .headDimQk = 64,
                         .headDimV = 64,
                         .pageSize = 16,
                         .io = ORACLE_F16,
                         .k = ORACLE_F16,
                         .v = ORACLE_F16,
                         .causal = true,
                         .splitSize = 64,
                         .maxSeqLenKv = 1024};
    for (uint32_t t = 0; t < harness.tierCount; t++)
        replaysOn(harness.tiers[t], &model);
}

static void contiguousCachesReplayToo(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 6,
                         .numHeadsKv = 1,
                         .headDimQk = 40,
                         .headDimV = 48,
                         .io = ORACLE_F32,
                         .k = ORACLE_F32,
                         .v = ORACLE_F32,
                         .maxSeqLenKv = 1024};
    for (uint32_t t = 0; t < harness.tierCount; t++)
        replaysOn(harness.tiers[t], &model);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(replayEqualsFreshRecording),
    cmocka_unit_test(contiguousCachesReplayToo),
};

HARNESS_MAIN(tests)

// What kernels find in GPU buffers is not believed: bad page tables, lengths, query ranges and slots set
// a bit of the status word and count as forbidden tokens. Nothing outside the given ranges is written,
// nothing read from there arrives in the output: all ranges lie between NaN guards, while the cache
// itself is finite everywhere. What append and compaction make of it: test_hostile_cache.c.
#include "hostile.h"

#include "compare.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Every sequence has all the pages that the limits allow, so a wrong length reads finite tokens.
static const VkmqaStepLimits limits = {
    .batch = 4, .totalQ = 10, .maxSeqLenQ = 5, .maxSeqLenKv = 160, .newTokens = 1};

// Prompts, for kernels that take many query tokens of a sequence at a time.
static const Batch prompts = {4, {{40, 150}, {30, 90}, {35, 40}, {3, 3}}, .append = false};
static const VkmqaStepLimits promptLimits = {
    .batch = 4, .totalQ = 108, .maxSeqLenQ = 40, .maxSeqLenKv = 160, .newTokens = 1};

static const uint32_t FINITE = 0x3C003C00; // twice 1.0 in f16

// A bad entry of cuSeqlensQ may cost other sequences their rows as well: it is by these that a workgroup
// finds its sequence.
enum { ANY = 0xF };

static const Attack attacks[] = {
    {"length -1", SEQUENCE_LENGTH, 0, -1, BAD_LENGTH, 1},
    {"length INT_MIN", SEQUENCE_LENGTH, 1, INT_MIN, BAD_LENGTH, 2},
    {"length INT_MAX", SEQUENCE_LENGTH, 1, INT_MAX, BAD_LENGTH, 2},
    {"length past everything", SEQUENCE_LENGTH, 2, 100000, BAD_LENGTH, 4},
    {"length past int", SEQUENCE_LENGTH, 3, INT_MAX - 2, BAD_LENGTH, 8},
    {"queries go backwards", QUERY_START, 2, 0, BAD_QUERY, ANY},
    {"queries begin below zero", QUERY_START, 0, -1, BAD_QUERY, ANY},
    {"queries begin at INT_MIN", QUERY_START, 1, INT_MIN, BAD_QUERY, ANY},
    {"queries end past totalQ", QUERY_START_PAST, 4, 1, BAD_QUERY, ANY},
    {"queries end at INT_MAX", QUERY_START, 4, INT_MAX, BAD_QUERY, ANY},
    {"queries begin at INT_MAX", QUERY_START, 2, INT_MAX, BAD_QUERY, ANY},
    {"page -1", PAGE, 0, -1, BAD_PAGE, 1},
    {"page INT_MIN", PAGE, 3, INT_MIN, BAD_PAGE, 1},
    {"page INT_MAX", PAGE, 2, INT_MAX, BAD_PAGE, 1},
    {"page numPages", PAGE_PAST, 9, 0, BAD_PAGE, 1},
    {"page numPages - 1", PAGE_PAST, 9, -1, 0, 1}, // the last one that exists
};

static bool attacksPages(const Attack* attack) {
    return attack->where == PAGE || attack->where == PAGE_PAST;
}

static void spoil(const Run* run, const Problem* problem, const Attack* attack, int32_t* words) {
    const VkmqaStepLayout* layout = &run->step.layout;
    uint32_t offset = attacksPages(attack)               ? layout->pageTable
                      : attack->where == SEQUENCE_LENGTH ? layout->seqLensKv
                                                         : layout->cuSeqlensQ;
    uint32_t base = attack->where == PAGE_PAST          ? problem->numPages
                    : attack->where == QUERY_START_PAST ? problem->totalQ
                                                        : 0;
    words[offset / 4 + attack->index] = (int32_t)base + attack->value;
}

// Finite or never written; lse also -inf.
static void checkFinite(const Run* run, const Output* output, const char* label) {
    for (size_t i = 0; i < run->out.range.size; i += 2) {
        uint16_t bits;
        memcpy(&bits, output->out + i, 2);
        if (!isfinite(oracleF32FromF16(bits)) && bits != (COMPARE_POISON & 0xFFFF) &&
            bits != COMPARE_POISON >> 16)
            fail_msg("%s: out holds 0x%04x at byte %zu", label, bits, i);
    }
    for (size_t i = 0; i < run->lse.range.size / 4; i++) {
        uint32_t bits;
        memcpy(&bits, &output->lse[i], 4);
        if (!isfinite(output->lse[i]) && bits != COMPARE_POISON && bits != 0xFF800000)
            fail_msg("%s: lse holds 0x%08x at %zu", label, bits, i);
    }
}

// The metadata as the device left it: unchanged but for the status.
static void checkMetadata(const Run* run, const int32_t* words, const char* label) {
    int32_t* left = malloc(run->metadata.range.size);
    guardedDownload(&run->metadata, left);
    left[run->step.layout.status / 4] = words[run->step.layout.status / 4];
    if (memcmp(left, words, run->metadata.range.size) != 0)
        fail_msg("%s: the metadata was written to", label);
    free(left);
}

// Runs with this metadata, out and lse poisoned before.
static Output runWith(Run* run, const Problem* problem, const int32_t* words) {
    runUpload(run, problem);
    runFillUnowned(run, problem, FINITE, false);
    guardedUpload(&run->metadata, words);
    runSubmit(run);
    return runRead(run);
}

static bool rowsEqual(const Run* run, const Problem* problem, uint32_t b, const Output* x,
                      const Output* y) {
    size_t rowBytes = run->strideOut.token * oracleElementBytes(run->model.io);
    size_t first = (size_t)problem->cuSeqlensQ[b];
    size_t count = (size_t)problem->cuSeqlensQ[b + 1] - first;
    uint32_t heads = run->model.numHeadsQ;
    return memcmp(x->out + first * rowBytes, y->out + first * rowBytes, count * rowBytes) == 0 &&
           memcmp(x->lse + first * heads, y->lse + first * heads, count * heads * 4) == 0;
}

static void attackOn(VkmqaTier tier, const Model* model, const Batch* sequences,
                     const VkmqaStepLimits* most) {
    VkmqaAttention attention;
    REQUIRE(attentionCreate(model, tier, &attention));
    Problem problem = problemCreate(model, sequences, 31, true);
    Run run = runCreate(attention, &problem, most);
    const VkmqaStepLayout* layout = &run.step.layout;
    int32_t* good = runMetadata(&run, &problem);
    // Where the table's rows go on past a length, they name pages that exist.
    for (uint32_t i = 0; i < layout->maxPages * most->batch; i++) {
        int32_t* entry = &good[layout->pageTable / 4 + i];
        if (*entry < 0 || *entry >= (int32_t)problem.numPages)
            *entry = (int32_t)(i % problem.numPages);
    }
    runRecord(&run, false);
    Output expected = runWith(&run, &problem, good);
    runCheck(&run, &problem, &expected, tierName(tier));
    int32_t* words = malloc(run.metadata.range.size);
    for (size_t i = 0; i < COUNT(attacks); i++) {
        const Attack* attack = &attacks[i];
        if (attacksPages(attack) && !model->pageSize)
            continue;
        char label[96];
        snprintf(label, sizeof(label), "%s, %s%s: %s", tierName(tier),
                 model->pageSize ? "paged" : "contiguous", most == &promptLimits ? ", prompts" : "",
                 attack->name);
        memcpy(words, good, run.metadata.range.size);
        spoil(&run, &problem, attack, words);
        Output output = runWith(&run, &problem, words);
        if ((output.status & attack->status) != attack->status ||
            (!attack->status && output.status))
            fail_msg("%s: status 0x%x, should have 0x%x", label, output.status, attack->status);
        checkFinite(&run, &output, label);
        runCheckGuards(&run);
        checkMetadata(&run, words, label);
        for (uint32_t b = 0; b < sequences->count; b++)
            if (!(attack->harmed >> b & 1) && !rowsEqual(&run, &problem, b, &expected, &output))
                fail_msg("%s: the output of sequence %u changed", label, b);
        outputDestroy(&output);
    }
    outputDestroy(&expected);
    free(words);
    free(good);
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
}

static void badMetadataIsNoticed(void** state) {
    (void)state;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        attackOn(harness.tiers[t], &paged, &batch, &limits);
        attackOn(harness.tiers[t], &contiguous, &batch, &limits);
        attackOn(harness.tiers[t], &paged, &prompts, &promptLimits);
    }
}

// Tokens of a page outside the cache count as forbidden: the output is that of the other tokens.
static void forbiddenTokensAreLeftOut(void** state) {
    (void)state;
    const Batch one = {1, {{3, 100}}, .append = false};
    const VkmqaStepLimits most = {.batch = 1, .totalQ = 3, .maxSeqLenKv = 160, .newTokens = 1};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&paged, harness.tiers[t], &attention));
        Problem problem = problemCreate(&paged, &one, 32, true);
        Run run = runCreate(attention, &problem, &most);
        int32_t* words = runMetadata(&run, &problem);
        int32_t* table = words + run.step.layout.pageTable / 4;
        table[0] = (int32_t)problem.numPages;
        table[3] = -7;
        // Not causal, so the tokens that are left may close ranks.
        uint32_t tokens = 0;
        size_t rowK = paged.numHeadsKv * paged.headDimQk, rowV = paged.numHeadsKv * paged.headDimV;
        for (uint32_t i = 0; i < 100; i++) {
            if (i / 16 == 0 || i / 16 == 3)
                continue;
            memmove(problem.k + tokens * rowK, problem.k + i * rowK, rowK * sizeof(float));
            memmove(problem.v + tokens * rowV, problem.v + i * rowV, rowV * sizeof(float));
            tokens++;
        }
        runUpload(&run, &problem);
        guardedUpload(&run.metadata, words);
        problem.seqLensKv[0] = (int32_t)tokens;
        OracleProblem oracle = problemOracle(&problem);
        oracleAttention(&oracle, problem.out, problem.lse);
        oraclePlainAttention(&oracle, problem.plainOut, problem.plainLse);
        runRecord(&run, false);
        runSubmit(&run);
        Output output = runRead(&run);
        assert_int_equal(output.status, BAD_PAGE);
        output.status = 0;
        runCheck(&run, &problem, &output, tierName(harness.tiers[t]));
        outputDestroy(&output);
        free(words);
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// More query tokens than were recorded for: the parts of a window's KV range are too few to see all of it, and
// the status says so. As many as recorded set no bit.
static void tooManyQueriesAreNoticed(void** state) {
    (void)state;
    Model model = paged;
    model.causal = true;
    model.flags = VKMQA_ATTENTION_WINDOW_LEFT_BIT;
    model.windowLeft = 15;
    const Batch one = {1, {{140, 300}}, .append = false};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Problem problem = problemCreate(&model, &one, 34, true);
        for (uint32_t longest = 1; longest <= 140; longest += 139) {
            const VkmqaStepLimits most = {.batch = 1,
                                          .totalQ = 140,
                                          .maxSeqLenQ = longest,
                                          .maxSeqLenKv = 512,
                                          .newTokens = 1};
            Run run = runCreate(attention, &problem, &most);
            runUpload(&run, &problem);
            runRecord(&run, false);
            runSubmit(&run);
            Output output = runRead(&run);
            assert_int_equal(output.status, longest == 1 ? BAD_QUERY : 0);
            checkFinite(&run, &output, tierName(harness.tiers[t]));
            if (longest == 140)
                runCheck(&run, &problem, &output, tierName(harness.tiers[t]));
            outputDestroy(&output);
            runDestroy(&run);
        }
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

static int32_t hostileValue(Random* random, const Problem* problem) {
    const int32_t edges[] = {0,
                             1,
                             -1,
                             2,
                             INT_MAX,
                             INT_MIN,
                             INT_MAX - 1,
                             (int32_t)problem->numPages,
                             (int32_t)problem->numPages - 1,
                             160,
                             161,
                             10,
                             11,
                             1 << 30,
                             65536};
    uint32_t choice = randomBelow(random, 3);
    if (choice == 0)
        return edges[randomBelow(random, COUNT(edges))];
    if (choice == 1)
        return (int32_t)randomBelow(random, 170);
    return (int32_t)(randomBelow(random, UINT32_MAX));
}

// Metadata of nothing but hostile values: whatever comes out, it is finite and within the ranges.
static void randomMetadataStaysWithinTheRanges(void** state) {
    (void)state;
    const Model* models[] = {&paged, &contiguous};
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        for (size_t m = 0; m < COUNT(models); m++) {
            VkmqaAttention attention;
            REQUIRE(attentionCreate(models[m], harness.tiers[t], &attention));
            Problem problem = problemCreate(models[m], &batch, 33, false);
            Run run = runCreate(attention, &problem, &limits);
            runRecord(&run, false);
            Random random = {harness.seed * 77 + m};
            for (int round = 0; round < 25; round++) {
                char label[64];
                snprintf(label, sizeof(label), "%s, round %d", tierName(harness.tiers[t]), round);
                int32_t* words = runMetadata(&run, &problem);
                size_t count = run.metadata.range.size / 4;
                uint32_t density = 1 + randomBelow(&random, 8);
                for (size_t i = 0; i < count; i++)
                    if (i != run.step.layout.status / 4 && randomBelow(&random, density) == 0)
                        words[i] = hostileValue(&random, &problem);
                Output output = runWith(&run, &problem, words);
                checkFinite(&run, &output, label);
                runCheckGuards(&run);
                checkMetadata(&run, words, label);
                outputDestroy(&output);
                free(words);
            }
            runDestroy(&run);
            problemDestroy(&problem);
            vkmqaDestroyAttention(attention);
        }
    }
}

// The same with everything that reads metadata or masks: rotation at any position, a tree mask of random
// bits, lists of accepted drafts, a cache of blocks.
static const Model tree = {.numHeadsQ = 8,
                           .numHeadsKv = 2,
                           .headDimQk = 64,
                           .headDimV = 40,
                           .pageSize = 16,
                           .io = F16,
                           .k = ORACLE_Q8_0,
                           .v = ORACLE_Q4_0,
                           .splitSize = 64,
                           .maxSeqLenKv = 512,
                           .source = F16,
                           .flags = VKMQA_ATTENTION_TREE_MASK_BIT | VKMQA_ATTENTION_SINKS_BIT |
                                    VKMQA_ATTENTION_WINDOW_LEFT_BIT,
                           .windowLeft = 70,
                           .rope = ORACLE_ROPE_NEOX};

static void recordAll(Run* run) {
    runRecord(run, true);
    const VkmqaCompactInfo info = {.structSize = sizeof(info),
                                   .recorder = vkmqaGetCommandsRecorder(run->commands),
                                   .step = &run->step,
                                   .kv = &run->kv};
    REQUIRE(vkmqaCmdCompactKv(run->attention, vkmqaGetCommandBuffer(run->commands), &info));
}

static void randomTreesStayWithinTheRanges(void** state) {
    (void)state;
    Batch appended = batch;
    appended.append = true;
    VkmqaStepLimits most = limits;
    most.newTokens = 283;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&tree, harness.tiers[t], &attention));
        Problem problem = problemCreate(&tree, &appended, 36, false);
        Run run = runCreate(attention, &problem, &most);
        recordAll(&run);
        Random random = {harness.seed * 79};
        for (int round = 0; round < 25; round++) {
            char label[64];
            snprintf(label, sizeof(label), "%s, tree, round %d", tierName(harness.tiers[t]), round);
            int32_t* words = runMetadata(&run, &problem);
            size_t count = run.metadata.range.size / 4;
            uint32_t density = 1 + randomBelow(&random, 8);
            for (size_t i = 0; i < count; i++)
                if (i != run.step.layout.status / 4 && randomBelow(&random, density) == 0)
                    words[i] = hostileValue(&random, &problem);
            for (size_t i = 0; i < (size_t)problem.totalQ * problem.maskStride; i++)
                problem.mask[i] = randomBelow(&random, UINT32_MAX);
            Output output = runWith(&run, &problem, words);
            checkFinite(&run, &output, label);
            runCheckGuards(&run);
            checkMetadata(&run, words, label);
            outputDestroy(&output);
            free(words);
        }
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// Without a status word nothing of the metadata is written.
static void statusIsOptional(void** state) {
    (void)state;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&paged, harness.tiers[t], &attention));
        Problem problem = problemCreate(&paged, &batch, 34, false);
        Run run = runCreate(attention, &problem, &limits);
        int32_t* words = runMetadata(&run, &problem);
        words[run.step.layout.seqLensKv / 4] = -1;
        words[run.step.layout.pageTable / 4 + run.step.layout.maxPages] = -1;
        uint32_t status = run.step.layout.status;
        run.step.layout.status = VKMQA_NONE;
        runRecord(&run, false);
        run.step.layout.status = status;
        Output output = runWith(&run, &problem, words);
        assert_int_equal(output.status, 0);
        checkMetadata(&run, words, tierName(harness.tiers[t]));
        runCheckGuards(&run);
        outputDestroy(&output);
        free(words);
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(badMetadataIsNoticed),
    cmocka_unit_test(forbiddenTokensAreLeftOut),
    cmocka_unit_test(tooManyQueriesAreNoticed),
    cmocka_unit_test(randomMetadataStaysWithinTheRanges),
    cmocka_unit_test(randomTreesStayWithinTheRanges),
    cmocka_unit_test(statusIsOptional),
};

HARNESS_MAIN(tests)

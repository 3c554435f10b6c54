// vkmqaCmdCompactKv: the accepted drafts of every sequence move to the front of its last positions, byte for
// byte; nothing else of the cache changes. Bad lists of accepted drafts set a bit and reach nothing outside.
#include "harness.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TREE VKMQA_ATTENTION_TREE_MASK_BIT
#define PREFIX VKMQA_ATTENTION_V_PREFIX_OF_K_BIT

typedef struct Shape {
    uint32_t numHeadsKv, headDimQk, headDimV, pageSize;
    OracleType k, v;
    VkmqaAttentionFlags flags;
} Shape;

static const Shape shapes[] = {
    {2, 64, 64, 16, ORACLE_F16, ORACLE_F16, 0},
    {1, 128, 40, 0, ORACLE_F32, ORACLE_Q8_0, 0},
    {3, 40, 72, 1, ORACLE_Q8_0, ORACLE_Q4_0, 0},
    {2, 96, 96, 64, ORACLE_Q4_0, ORACLE_BF16, 0},
    {1, 24, 64, 256, ORACLE_FP8, ORACLE_FP8, 0},
    {1, 576, 512, 16, ORACLE_Q8_0, ORACLE_Q8_0, PREFIX},
    {4, 8, 256, 2, ORACLE_BF16, ORACLE_F32, 0},
};

// Longer than a page, than a workgroup, than the sequence; none; one.
static const Batch batches[] = {
    {6, {{40, 90}, {7, 7}, {1, 20}, {5, 3}, {0, 20}, {33, 65}}, .append = false},
    {3, {{100, 260}, {64, 64}, {2, 130}}, .gaps = true},
};

static Model modelOf(const Shape* shape) {
    const Model model = {.numHeadsQ = shape->numHeadsKv,
                         .numHeadsKv = shape->numHeadsKv,
                         .headDimQk = shape->headDimQk,
                         .headDimV = shape->headDimV,
                         .pageSize = shape->pageSize,
                         .io = ORACLE_F16,
                         .k = shape->k,
                         .v = shape->v,
                         .flags = TREE | shape->flags,
                         .maxSeqLenKv = 300};
    return model;
}

// Slot of a token of a sequence; the problem's slots are those of all sequences one after the other.
static int32_t slotOf(const Problem* problem, uint32_t b, int32_t position) {
    size_t first = 0;
    for (uint32_t i = 0; i < b; i++)
        first += (size_t)problem->seqLensKv[i];
    return problem->slots[first + (size_t)position];
}

static void expectMoves(const Problem* problem, bool isV, uint8_t* image) {
    OracleCache cache = problemCache(problem, isV);
    uint8_t* before = malloc(oracleCacheBytes(&cache));
    memcpy(before, image, oracleCacheBytes(&cache));
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        int32_t start = problem->seqLensKv[b] - problem->batch.sequences[b].queries;
        for (int32_t i = problem->cuAccepted[b]; i < problem->cuAccepted[b + 1]; i++) {
            int32_t to = start + i - problem->cuAccepted[b], from = start + problem->accepted[i];
            if (to >= 0 && from >= 0 && from < problem->seqLensKv[b])
                oracleCopySlot(&cache, image, (uint32_t)slotOf(problem, b, to), before,
                               (uint32_t)slotOf(problem, b, from));
        }
    }
    free(before);
}

static void recordCompact(Run* run) {
    REQUIRE(vkmqaBeginCommands(run->commands));
    const VkmqaCompactInfo info = {.structSize = sizeof(info),
                                   .recorder = vkmqaGetCommandsRecorder(run->commands),
                                   .step = &run->step,
                                   .kv = &run->kv};
    REQUIRE(vkmqaCmdCompactKv(run->attention, vkmqaGetCommandBuffer(run->commands), &info));
}

static uint32_t statusOf(const Run* run) {
    uint32_t status;
    REQUIRE(vkmqaDownload(run->metadata.memory, run->metadata.before + run->step.layout.status,
                          &status, 4));
    return status;
}

// Drafts that stand before the first token (more queries than tokens) cannot be accepted.
static void acceptWhatExists(Problem* problem) {
    int32_t kept = 0;
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        int32_t begin = problem->cuAccepted[b], end = problem->cuAccepted[b + 1];
        int32_t missing = problem->batch.sequences[b].queries - problem->seqLensKv[b];
        problem->cuAccepted[b] = kept;
        for (int32_t i = begin; i < end && missing <= 0; i++)
            problem->accepted[kept++] = problem->accepted[i];
    }
    problem->cuAccepted[problem->batch.count] = kept;
}

static void compactOn(const Shape* shape, size_t index, VkmqaTier tier) {
    const Model model = modelOf(shape);
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, tier, &attention));
    for (uint64_t round = 0; round < 2 * COUNT(batches); round++) {
        char label[96];
        snprintf(label, sizeof(label), "%s, shape %zu, round %u", tierName(tier), index,
                 (uint32_t)round);
        Problem problem = problemCreate(&model, &batches[round / 2], 90 + round, false);
        if (round % 2) { // every draft of some, none of others, in turn
            int32_t n = 0;
            for (uint32_t b = 0; b < problem.batch.count; b++) {
                problem.cuAccepted[b] = n;
                for (int32_t i = 0; i < problem.batch.sequences[b].queries && b % 2 == 0; i++)
                    problem.accepted[n++] = i;
            }
            problem.cuAccepted[problem.batch.count] = n;
        }
        acceptWhatExists(&problem);
        Run run = runCreate(attention, &problem, NULL);
        runUpload(&run, &problem);
        recordCompact(&run);
        runSubmit(&run);
        assert_int_equal(statusOf(&run), 0);
        for (int isV = 0; isV < 1 + problemHasV(&problem); isV++) {
            uint8_t* expected = problemImage(&problem, isV);
            const Guarded* memory = isV ? &run.v : &run.k;
            uint8_t* got = malloc(memory->range.size);
            expectMoves(&problem, isV, expected);
            guardedDownload(memory, got);
            for (size_t i = 0; i < memory->range.size; i++)
                if (got[i] != expected[i])
                    fail_msg("%s: byte %zu of %s is 0x%02x, should be 0x%02x", label, i,
                             isV ? "V" : "K", got[i], expected[i]);
            free(got);
            free(expected);
        }
        runCheckGuards(&run);
        runDestroy(&run);
        problemDestroy(&problem);
    }
    vkmqaDestroyAttention(attention);
}

static void acceptedDraftsMove(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (uint32_t t = 0; t < harness.tierCount; t++)
            if (legHasPart(i) && (i == 0 || tierHasTurn(t, i)))
                compactOn(&shapes[i], i, harness.tiers[t]);
}

// ---- Bad lists -------------------------------------------------------------------------------------

typedef struct Attack {
    const char* name;
    bool inOffsets; // of cuAccepted; else of accepted
    uint32_t index;
    int32_t value;
    uint32_t harmed; // bit b: sequence b's own drafts may be anything
} Attack;

enum { ANY = 0x3F };
static const Attack attacks[] = {
    {"draft -1", false, 0, -1, 1},
    {"draft INT_MIN", false, 1, INT_MIN, 1},
    {"draft past its sequence", false, 2, 40, 1},
    {"draft INT_MAX", false, 2, INT_MAX, 1},
    {"drafts not ascending", false, 1, 0, 1},
    {"drafts twice", false, 2, 5, 1},
    {"list ends past all queries", true, 6, 1000, ANY},
    {"list ends at INT_MAX", true, 6, INT_MAX, ANY},
    {"list begins below zero", true, 0, -5, ANY},
    {"list goes backwards", true, 1, INT_MIN, ANY},
    {"more accepted than there are", true, 1, 86, ANY},
};

// The image's rows of a sequence's drafts, in both images made equal: they may hold anything.
static void forgetDrafts(const Problem* problem, bool isV, uint32_t b, uint8_t* to,
                         const uint8_t* from) {
    OracleCache cache = problemCache(problem, isV);
    int32_t tokens = problem->seqLensKv[b];
    int32_t start = tokens - problem->batch.sequences[b].queries;
    for (int32_t p = start < 0 ? 0 : start; p < tokens; p++)
        oracleCopySlot(&cache, to, (uint32_t)slotOf(problem, b, p), from,
                       (uint32_t)slotOf(problem, b, p));
}

static void badListsAreNoticed(void** state) {
    (void)state;
    const Model model = modelOf(&shapes[0]);
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Problem problem = problemCreate(&model, &batches[0], 95, false);
        static const int32_t lists[] = {1, 5, 9, 30, /* 1 */ 0, 3, /* 2 */ 0, /* 5 */ 2, 31};
        static const int32_t offsets[] = {0, 4, 6, 7, 7, 7, 9};
        memcpy(problem.accepted, lists, sizeof(lists));
        memcpy(problem.cuAccepted, offsets, sizeof(offsets));
        Run run = runCreate(attention, &problem, NULL);
        recordCompact(&run);
        for (size_t i = 0; i < COUNT(attacks); i++) {
            const Attack* attack = &attacks[i];
            runUpload(&run, &problem);
            int32_t* words = runMetadata(&run, &problem);
            const VkmqaStepLayout* layout = &run.step.layout;
            words[(attack->inOffsets ? layout->cuAccepted : layout->accepted) / 4 + attack->index] =
                attack->value;
            guardedUpload(&run.metadata, words);
            free(words);
            runSubmit(&run);
            if (!(statusOf(&run) & VKMQA_STATUS_ACCEPTED_BIT))
                fail_msg("%s, %s: status 0x%x", tierName(harness.tiers[t]), attack->name,
                         statusOf(&run));
            for (int isV = 0; isV < 2; isV++) {
                const Guarded* memory = isV ? &run.v : &run.k;
                uint8_t* expected = problemImage(&problem, isV);
                uint8_t* got = malloc(memory->range.size);
                guardedDownload(memory, got);
                expectMoves(&problem, isV, expected);
                for (uint32_t b = 0; b < problem.batch.count; b++)
                    if (attack->harmed >> b & 1)
                        forgetDrafts(&problem, isV, b, expected, got);
                if (memcmp(got, expected, memory->range.size) != 0)
                    fail_msg("%s, %s: %s changed outside of the drafts", tierName(harness.tiers[t]),
                             attack->name, isV ? "V" : "K");
                free(got);
                free(expected);
            }
            runCheckGuards(&run);
        }
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

// More workgroups than kernels can count; the ranges are claims, and nothing is submitted.
static void moreThanAGridIsRefused(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 65536, .numHeadsKv = 65536, .headDimQk = 8, .headDimV = 8, .pageSize = 16,
                         .io = ORACLE_F16, .k = ORACLE_F16, .v = ORACLE_F16, .flags = TREE, .maxSeqLenKv = 16};
    const VkmqaStepLimits limits = {.batch = 40000, .totalQ = 1};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaBufferRequirements needs;
    VkmqaAttention attention;
    VkmqaCommands commands;
    VkmqaMemory memory;
    REQUIRE(attentionCreate(&model, VKMQA_TIER_PORTABLE, &attention));
    REQUIRE(vkmqaGetStepLayout(attention, &limits, &step.layout, &needs));
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, needs.size + (64 << 20), &memory));
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    step.metadata = vkmqaGetMemoryRange(memory, 0, needs.size);
    const VkmqaKv kv = {vkmqaGetMemoryRange(memory, needs.size, 16 << 20),
                        vkmqaGetMemoryRange(memory, needs.size + (32 << 20), 16 << 20), 1};
    const VkmqaCompactInfo info = {.structSize = sizeof(info),
                                   .recorder = vkmqaGetCommandsRecorder(commands),
                                   .step = &step,
                                   .kv = &kv};
    expectCall(vkmqaCmdCompactKv(attention, vkmqaGetCommandBuffer(commands), &info), VK_ERROR_VALIDATION_FAILED_EXT,
               "limits.batch is 40000", "a grid of 2.6 billion workgroups");
    vkmqaDestroyCommands(commands);
    vkmqaDestroyMemory(memory);
    vkmqaDestroyAttention(attention);
}

// Attention over the compacted cache is attention over the path of drafts.
static void attentionContinues(void** state) {
    (void)state;
    const Model model = modelOf(&shapes[0]);
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        const Batch batch = {1, {{12, 60}}, .append = false, .numPages = 12};
        const Batch shorter = {1, {{1, 52}}, .append = false, .numPages = 12};
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Problem drafts = problemCreate(&model, &batch, 96, false);
        Problem after = problemCreate(&model, &shorter, 96, false);
        static const int32_t path[] = {1, 4, 5, 11};
        memcpy(drafts.accepted, path, sizeof(path));
        drafts.cuAccepted[1] = COUNT(path);
        memcpy(after.pageTable, drafts.pageTable, sizeof(int32_t) * after.maxPages);
        memcpy(after.slots, drafts.slots, sizeof(int32_t) * after.totalKv);
        size_t rowK = model.numHeadsKv * model.headDimQk, rowV = model.numHeadsKv * model.headDimV;
        for (size_t i = 0; i < COUNT(path); i++) {
            memcpy(after.k + (48 + i) * rowK, drafts.k + (48 + (size_t)path[i]) * rowK, 4 * rowK);
            memcpy(after.v + (48 + i) * rowV, drafts.v + (48 + (size_t)path[i]) * rowV, 4 * rowV);
        }
        OracleProblem oracle = problemOracle(&after);
        oracleAttention(&oracle, after.out, after.lse);
        oraclePlainAttention(&oracle, after.plainOut, after.plainLse);
        Run compact = runCreate(attention, &drafts, NULL), run = runCreate(attention, &after, NULL);
        runUpload(&compact, &drafts);
        recordCompact(&compact);
        runSubmit(&compact);
        runUpload(&run, &after);
        run.kv = compact.kv;
        runRecord(&run, false);
        runSubmit(&run);
        Output output = runRead(&run);
        runCheck(&run, &after, &output, tierName(harness.tiers[t]));
        outputDestroy(&output);
        runDestroy(&run);
        runDestroy(&compact);
        problemDestroy(&drafts);
        problemDestroy(&after);
        vkmqaDestroyAttention(attention);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(acceptedDraftsMove),
    cmocka_unit_test(badListsAreNoticed),
    cmocka_unit_test(attentionContinues),
    cmocka_unit_test(moreThanAGridIsRefused),
};

HARNESS_MAIN(tests)

// What append and compaction write when slots and metadata are hostile: nothing but what is right, and a bit of the
// status word. Attention's part of it is test_hostile's.
#include "hostile.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

// Slots outside the cache are skipped and reported, the others written.
static void slotsOn(VkmqaTier tier, const Model* model) {
    Batch appended = batch;
    appended.append = true;
    const VkmqaStepLimits most = {
        .batch = 4, .totalQ = 10, .maxSeqLenQ = 5, .maxSeqLenKv = 160, .newTokens = 300};
    VkmqaAttention attention;
    REQUIRE(attentionCreate(model, tier, &attention));
    Problem problem = problemCreate(model, &appended, 35, true);
    Run run = runCreate(attention, &problem, &most);
    const int32_t slots = (int32_t)(problem.numPages * problem.pageTokens);
    const int32_t bad[] = {slots, slots + 1, INT_MAX, INT_MIN, -2, 1 << 30, slots + 16, -17};
    runRecord(&run, true);
    // Behind the good slots: -1, then one bad slot at a time.
    for (size_t i = 0; i <= COUNT(bad); i++) {
        runUpload(&run, &problem);
        int32_t* words = runMetadata(&run, &problem);
        if (i < COUNT(bad))
            words[run.step.layout.slotMapping / 4 + problem.totalKv + i] = bad[i];
        guardedUpload(&run.metadata, words);
        runSubmit(&run);
        Output output = runRead(&run);
        assert_int_equal(output.status, i < COUNT(bad) ? BAD_SLOT : 0);
        output.status = 0;
        runCheck(&run, &problem, &output, tierName(tier));
        free(words);
        outputDestroy(&output);
    }
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
}

// A kernel that moves rows as they are, and one that rotates and quantises them.
static void badSlotsAreSkipped(void** state) {
    (void)state;
    Model turned = paged;
    turned.k = ORACLE_Q8_0;
    turned.v = ORACLE_Q4_0;
    turned.source = F16;
    turned.rope = ORACLE_ROPE_NEOX;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        slotsOn(harness.tiers[t], &paged);
        slotsOn(harness.tiers[t], &contiguous);
        slotsOn(harness.tiers[t], &turned);
    }
}

static void recordCompact(Run* run) {
    const VkmqaCompactInfo info = {.structSize = sizeof(info),
                                   .recorder = vkmqaGetCommandsRecorder(run->commands),
                                   .step = &run->step,
                                   .kv = &run->kv};
    REQUIRE(vkmqaBeginCommands(run->commands));
    REQUIRE(vkmqaCmdCompactKv(run->attention, vkmqaGetCommandBuffer(run->commands), &info));
}

static void spoil(const Run* run, const Problem* problem, const Attack* attack, int32_t* words) {
    const VkmqaStepLayout* layout = &run->step.layout;
    bool page = attack->where == PAGE || attack->where == PAGE_PAST;
    uint32_t offset = page                               ? layout->pageTable
                      : attack->where == SEQUENCE_LENGTH ? layout->seqLensKv
                      : attack->where == DRAFT           ? layout->accepted
                      : attack->where == DRAFT_START     ? layout->cuAccepted
                                                         : layout->cuSeqlensQ;
    uint32_t base = attack->where == PAGE_PAST          ? problem->numPages
                    : attack->where == QUERY_START_PAST ? problem->totalQ
                                                        : 0;
    words[offset / 4 + attack->index] = (int32_t)base + attack->value;
}

// Compaction moves nothing of a sequence with a bad entry, and everything of the others (or of none, where the
// entry is one of cuSeqlensQ).
static void badSequencesAreNotCompacted(void** state) {
    (void)state;
    static const Batch drafts = {3, {{12, 60}, {9, 40}, {5, 20}}, .append = false};
    static const int32_t accepted[] = {1, 5, 11, /* 1 */ 2, 8, /* 2 */ 0, 4},
                         cuAccepted[] = {0, 3, 5, 7};
    static const Attack bad[] = {
        {"length -1", SEQUENCE_LENGTH, 0, -1, BAD_LENGTH, 1},
        {"length INT_MIN", SEQUENCE_LENGTH, 1, INT_MIN, BAD_LENGTH, 2},
        {"length INT_MAX", SEQUENCE_LENGTH, 2, INT_MAX, BAD_LENGTH, 4},
        {"fewer tokens than drafts", SEQUENCE_LENGTH, 0, 11, BAD_LENGTH, 1},
        {"queries go backwards", QUERY_START, 1, -2, BAD_QUERY, 3},
        {"queries end past totalQ", QUERY_START_PAST, 3, 1, BAD_QUERY, 4},
        {"queries end at INT_MAX", QUERY_START, 3, INT_MAX, BAD_QUERY, 4},
        {"page -1", PAGE, 3, -1, BAD_PAGE, 1},
        {"page numPages", PAGE_PAST, 3, 0, BAD_PAGE, 1},
        {"page INT_MAX", PAGE, 3, INT_MAX, BAD_PAGE, 1},
        {"page INT_MIN", PAGE, 3, INT_MIN, BAD_PAGE, 1},
        {"a draft that was not asked", DRAFT, 2, 12, BAD_DRAFT, 1},
        {"a draft twice", DRAFT, 4, 2, BAD_DRAFT, 2},
        {"drafts go backwards", DRAFT, 1, 0, BAD_DRAFT, 1},
        {"draft -1", DRAFT, 5, -1, BAD_DRAFT, 4},
        {"draft INT_MAX", DRAFT, 6, INT_MAX, BAD_DRAFT, 4},
        {"draft INT_MIN", DRAFT, 3, INT_MIN, BAD_DRAFT, 2},
        {"a list begins at -1", DRAFT_START, 0, -1, BAD_DRAFT, 1},
        {"a list ends past totalQ", DRAFT_START, 3, 27, BAD_DRAFT, 4},
        {"a list goes backwards, into another's", DRAFT_START, 2, 2, BAD_DRAFT, 6},
        {"a list ends at INT_MIN", DRAFT_START, 3, INT_MIN, BAD_DRAFT, 4},
    };
    Model model = paged;
    model.flags = VKMQA_ATTENTION_TREE_MASK_BIT;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        Problem problem = problemCreate(&model, &drafts, 37, false);
        memcpy(problem.accepted, accepted, sizeof(accepted));
        memcpy(problem.cuAccepted, cuAccepted, sizeof(cuAccepted));
        Run run = runCreate(attention, &problem, NULL);
        recordCompact(&run);
        OracleCache cache = problemCache(&problem, false);
        uint8_t* before = problemImage(&problem, false);
        uint8_t* got = malloc(run.k.range.size);
        for (size_t i = 0; i < COUNT(bad); i++) {
            uint8_t* expected = problemImage(&problem, false);
            int32_t* words = runMetadata(&run, &problem);
            uint32_t status, first = 0;
            for (uint32_t b = 0; b < 3; first += (uint32_t)problem.seqLensKv[b++])
                for (int32_t j = 0;
                     j < cuAccepted[b + 1] - cuAccepted[b] && !(bad[i].harmed >> b & 1); j++) {
                    const int32_t* slots =
                        problem.slots + first + problem.seqLensKv[b] - drafts.sequences[b].queries;
                    oracleCopySlot(&cache, expected, (uint32_t)slots[j], before,
                                   (uint32_t)slots[accepted[cuAccepted[b] + j]]);
                }
            spoil(&run, &problem, &bad[i], words);
            runUpload(&run, &problem);
            guardedUpload(&run.metadata, words);
            runSubmit(&run);
            guardedDownload(&run.k, got);
            REQUIRE(vkmqaDownload(run.metadata.memory, run.metadata.before + run.step.layout.status,
                                  &status, 4));
            if ((status & bad[i].status) == 0 || memcmp(got, expected, run.k.range.size) != 0)
                fail_msg("%s, %s: status 0x%x, or K is not as it should be",
                         tierName(harness.tiers[t]), bad[i].name, status);
            runCheckGuards(&run);
            free(words);
            free(expected);
        }
        free(got);
        free(before);
        runDestroy(&run);
        problemDestroy(&problem);
        vkmqaDestroyAttention(attention);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(badSlotsAreSkipped),
    cmocka_unit_test(badSequencesAreNotCompacted),
};

HARNESS_MAIN(tests)

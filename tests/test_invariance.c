// Batch invariance: with VKMQA_ATTENTION_BATCH_INVARIANT_BIT a sequence's out and lse are the same bits
// alone and in any batch, whatever the recorded maxima, its place, its pages and its neighbours, after a
// rollback, and in every repetition. Objects are drawn so that every pair of values of the axes below meets,
// those that meet most first; a driver takes seconds to compile one, so all of them are for the long run and
// the first for the others. The axes inside an object (length, place, batch, maxima) cost no pipelines: there
// every pair of values meets in every object.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32 ORACLE_F32
#define F16 ORACLE_F16
#define BF16 ORACLE_BF16
#define FP8 ORACLE_FP8
#define Q8 ORACLE_Q8_0
#define Q4 ORACLE_Q4_0

// ---- Axes of an attention object -------------------------------------------------------------------

static const OracleType ioTypes[] = {F16, F32, BF16};
static const OracleType cacheTypes[][2] = {{F16, F16}, {F32, F32}, {BF16, FP8},
                                           {Q8, Q8},   {Q4, Q4},   {FP8, Q8}};
static const uint32_t heads[][2] = {{8, 1}, {3, 3}, {32, 2}, {71, 1}};
static const uint32_t dims[][2] = {{64, 64}, {128, 64}, {40, 72}, {32, 32}};
static const uint32_t pages[] = {16, 1, 0, 256};
static const uint32_t splits[] = {64, 0, 256};
static const struct {
    VkmqaAttentionFlags flags;
    bool causal;
    uint32_t windowLeft, windowRight, chunkSize;
    float softcap;
} modifiers[] = {
    {0, true, 0, 0, 0, 0},
    {VKMQA_ATTENTION_WINDOW_LEFT_BIT | VKMQA_ATTENTION_SINKS_BIT, true, 50, 0, 0, 0},
    {VKMQA_ATTENTION_ALIBI_BIT | VKMQA_ATTENTION_WINDOW_RIGHT_BIT, false, 0, 1, 0, 20},
    {VKMQA_ATTENTION_MASK_BIT | VKMQA_ATTENTION_SINKS_BIT, false, 0, 0, 0, 0},
    {VKMQA_ATTENTION_V_PREFIX_OF_K_BIT, true, 0, 0, 96, 0},
};

enum { AXES = 7, SHAPES = 48, SHAPES_IN_CI = 9 };
static const uint32_t sizes[AXES] = {COUNT(ioTypes),  COUNT(cacheTypes), COUNT(heads),
                                     COUNT(dims),     COUNT(pages),      COUNT(splits),
                                     COUNT(modifiers)};
enum { MAX_SIZE = 8 };

typedef struct Choice {
    uint32_t of[AXES];
} Choice;

typedef struct Coverage {
    bool met[AXES][AXES][MAX_SIZE][MAX_SIZE];
} Coverage;

static uint32_t newPairs(const Coverage* coverage, const Choice* choice) {
    uint32_t pairs = 0;
    for (uint32_t a = 0; a < AXES; a++)
        for (uint32_t b = 0; b < a; b++)
            pairs += !coverage->met[a][b][choice->of[a]][choice->of[b]];
    return pairs;
}

// Greedy: of many random shapes the one with most pairs not met yet, until all are met. Returns how many.
static uint32_t drawShapes(Choice* shapes, uint64_t seed) {
    Coverage coverage = {0};
    Random random = randomFor(seed, 1, 1);
    for (uint32_t n = 0; n < SHAPES; n++) {
        uint32_t best = 0;
        for (int i = 0; i < 400; i++) {
            Choice candidate;
            for (uint32_t a = 0; a < AXES; a++)
                candidate.of[a] = randomBelow(&random, sizes[a]);
            uint32_t pairs = newPairs(&coverage, &candidate);
            if (pairs > best) {
                best = pairs;
                shapes[n] = candidate;
            }
        }
        if (best == 0)
            return n;
        for (uint32_t a = 0; a < AXES; a++)
            for (uint32_t b = 0; b < a; b++)
                coverage.met[a][b][shapes[n].of[a]][shapes[n].of[b]] = true;
    }
    return SHAPES;
}

static Model modelOf(const Choice* choice, bool invariant) {
    const uint32_t* of = choice->of;
    bool prefix = modifiers[of[6]].flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT;
    uint32_t qk = dims[of[3]][0], v = dims[of[3]][1];
    OracleType kType = cacheTypes[of[1]][0];
    Model model = {
        .numHeadsQ = heads[of[2]][0],
        .numHeadsKv = heads[of[2]][1],
        .headDimQk = qk,
        .headDimV = prefix && v > qk ? qk : v,
        .pageSize = pages[of[4]],
        .io = ioTypes[of[0]],
        .k = kType,
        .v = prefix ? kType : cacheTypes[of[1]][1],
        .causal = modifiers[of[6]].causal,
        .splitSize = splits[of[5]],
        .maxSeqLenKv = 600,
        .flags = modifiers[of[6]].flags | (invariant ? VKMQA_ATTENTION_BATCH_INVARIANT_BIT : 0u),
        .windowLeft = modifiers[of[6]].windowLeft,
        .windowRight = modifiers[of[6]].windowRight,
        .chunkSize = modifiers[of[6]].chunkSize,
        .softcap = modifiers[of[6]].softcap,
        .fp8Scales = FP8_POWERS,
    };
    return model;
}

// ---- Sub-shapes: one sequence, alone and in company ------------------------------------------------

// The sequence under test is always the one named 100.
enum { SUBJECT = 100 };

typedef struct Company {
    uint32_t place;         // of the subject
    Batch batch;            // its entry is filled in
    uint32_t moreKv, moreQ; // slack of the recorded maxima
} Company;

static const Company companies[] = {
    {0, {1, {{0, 0}}, .append = false}, 0, 0},
    {0, {1, {{0, 0}}, .append = false}, 300, 9},
    {1, {3, {{1, 500}, {0, 0}, {1, 3}}, .append = false}, 0, 0},
    {3, {5, {{9, 64}, {0, 77}, {2, 0}, {0, 0}, {1, 129}}, .gaps = true}, 0, 0},
    {7,
     {8, {{1, 1}, {1, 65}, {1, 40}, {1, 129}, {1, 300}, {1, 2}, {1, 64}, {0, 0}}, .append = false},
     17,
     3},
};

static const Sequence subjects[] = {{1, 1}, {1, 64}, {1, 193}, {4, 257}, {17, 90}};

// Rows of the subject: out packed, then lse. To be freed.
static uint8_t* subjectRows(const Run* run, const Problem* problem, uint32_t place, int32_t first,
                            int32_t count, const Output* output, size_t* size) {
    uint32_t headsQ = run->model.numHeadsQ;
    size_t rowBytes = run->model.headDimV * oracleElementBytes(run->model.io);
    *size = (size_t)count * headsQ * (rowBytes + 4);
    uint8_t* rows = malloc(*size + 1);
    uint8_t* next = rows;
    for (int32_t i = first; i < first + count; i++)
        for (uint32_t h = 0; h < headsQ; h++, next += rowBytes + 4) {
            size_t t = (size_t)(problem->cuSeqlensQ[place] + i);
            memcpy(next, output->out + outOffset(run, t, h), rowBytes);
            memcpy(next + rowBytes, &output->lse[t * headsQ + h], 4);
        }
    return rows;
}

// Runs the subject in some company and returns rows first .. first + count - 1 of its queries.
static uint8_t* runCompany(VkmqaAttention attention, const Model* model, const Company* company,
                           Sequence subject, int32_t first, int32_t count, int repetitions,
                           const char* label, size_t* size) {
    Batch batch = company->batch;
    batch.sequences[company->place] = subject;
    batch.names[company->place] = SUBJECT;
    Problem problem = problemCreate(model, &batch, 70, false);
    VkmqaStepLimits limits = problemLimits(&problem);
    limits.totalQ += company->moreQ;
    limits.maxSeqLenQ += limits.maxSeqLenQ + company->moreQ <= limits.totalQ ? company->moreQ : 0;
    limits.maxSeqLenKv += company->moreKv;
    if (limits.maxSeqLenKv > model->maxSeqLenKv)
        limits.maxSeqLenKv = model->maxSeqLenKv;
    Run run = runCreate(attention, &problem, &limits);
    runUpload(&run, &problem);
    runRecord(&run, false);
    runSubmit(&run);
    Output output = runRead(&run);
    assert_int_equal(output.status, 0);
    uint8_t* rows = subjectRows(&run, &problem, company->place, first, count, &output, size);
    for (int i = 1; i < repetitions; i++) {
        runSubmit(&run);
        Output again = runRead(&run);
        if (!outputsEqual(&run, &output, &again))
            fail_msg("%s: repetition %d differs", label, i);
        outputDestroy(&again);
    }
    outputDestroy(&output);
    runDestroy(&run);
    problemDestroy(&problem);
    return rows;
}

static int repetitionsOf(void) { return harnessIsLong() ? 100 : 3; }

static uint32_t checkSubject(VkmqaAttention attention, const Model* model, Sequence subject,
                             const char* label) {
    size_t size, otherSize;
    char where[192];
    snprintf(where, sizeof(where), "%s, %d queries over %d tokens, alone", label, subject.queries,
             subject.tokens);
    uint8_t* alone = runCompany(attention, model, &companies[0], subject, 0, subject.queries,
                                repetitionsOf(), where, &size);
    uint32_t count = 1;
    for (size_t c = 1; c < COUNT(companies); c++) {
        snprintf(where, sizeof(where), "%s, %d queries over %d tokens, company %zu", label,
                 subject.queries, subject.tokens, c);
        uint8_t* other = runCompany(attention, model, &companies[c], subject, 0, subject.queries, 1,
                                    where, &otherSize);
        assert_int_equal(size, otherSize);
        if (memcmp(alone, other, size) != 0)
            fail_msg("%s: not the bits that it has alone", where);
        free(other);
        count++;
    }
    free(alone);
    return count;
}

// Whether the last of several queries in one step has the bits of a step of its own, so that drafts and
// decode agree. Not promised, but worth knowing.
static bool dividedQueriesAgree(VkmqaAttention attention, const Model* model, const char* label) {
    const Sequence many = {9, 150}, one = {1, 150};
    size_t size, otherSize;
    uint8_t* last = runCompany(attention, model, &companies[0], many, 8, 1, 1, label, &size);
    uint8_t* alone = runCompany(attention, model, &companies[2], one, 0, 1, 1, label, &otherSize);
    assert_int_equal(size, otherSize);
    bool same = memcmp(last, alone, size) == 0;
    free(last);
    free(alone);
    return same;
}

// A sequence of 200 tokens rolled back to none and 120 others appended in the same slots give the bits that
// a cache gives which never held anything else.
static void checkRollback(VkmqaAttention attention, const Model* model, const char* label) {
    const Batch longer = {1, {{1, 200}}, .append = true, .numPages = 220, .names = {SUBJECT + 1}};
    const Batch shorter = {1, {{2, 120}}, .append = true, .numPages = 220, .names = {SUBJECT}};
    Problem before = problemCreate(model, &longer, 70, false);
    Problem after = problemCreate(model, &shorter, 70, false);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 2, .maxSeqLenKv = 300, .newTokens = 200};
    size_t size = 0;
    uint8_t* rows[2];
    // The same slots for both, as far as they go, so that the second overwrites the first.
    for (uint32_t i = 0; i < after.totalKv; i++)
        for (uint32_t j = 0; j < before.totalKv; j++)
            if (j != i && before.slots[j] == after.slots[i]) {
                before.slots[j] = before.slots[i];
                before.slots[i] = after.slots[i];
            }
    memcpy(before.slots, after.slots, sizeof(int32_t) * after.totalKv);
    Run run = runCreate(attention, &after, &limits);
    runRecord(&run, true);
    for (int rolledBack = 0; rolledBack < 2; rolledBack++) {
        uint8_t* images[2] = {malloc(run.k.range.size), malloc(run.v.range.size + 4)};
        if (rolledBack) {
            runUpload(&run, &before);
            runSubmit(&run);
            guardedDownload(&run.k, images[0]);
            guardedDownload(&run.v, images[1]);
        }
        runUpload(&run, &after);
        if (rolledBack) {
            guardedUpload(&run.k, images[0]);
            guardedUpload(&run.v, images[1]);
        }
        runSubmit(&run);
        Output output = runRead(&run);
        assert_int_equal(output.status, 0);
        rows[rolledBack] = subjectRows(&run, &after, 0, 0, 2, &output, &size);
        outputDestroy(&output);
        free(images[0]);
        free(images[1]);
    }
    if (memcmp(rows[0], rows[1], size) != 0)
        fail_msg("%s: after a rollback the bits are others", label);
    free(rows[0]);
    free(rows[1]);
    runDestroy(&run);
    problemDestroy(&before);
    problemDestroy(&after);
}

static void sequencesKeepTheirBits(void** state) {
    (void)state;
    Choice shapes[SHAPES];
    uint32_t drawn = drawShapes(shapes, harness.seed);
    uint32_t shapeCount = harnessIsLong() || drawn < SHAPES_IN_CI ? drawn : SHAPES_IN_CI,
             subShapes = 0, objects = 0, divided = 0;
    for (uint32_t i = 0; i < shapeCount; i++) {
        Model model = modelOf(&shapes[i], true);
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            if (!tierHasTurn(t, i))
                continue;
            char label[128];
            snprintf(label, sizeof(label), "%s, shape %u, seed %llu, cache %s/%s, dims %u/%u",
                     tierName(harness.tiers[t]), i, (unsigned long long)harness.seed,
                     oracleTypeName(model.k), oracleTypeName(model.v), model.headDimQk,
                     model.headDimV);
            VkmqaAttention attention;
            REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
            for (uint32_t s = 0; s < COUNT(subjects); s++)
                subShapes += checkSubject(attention, &model, subjects[s], label);
            divided += dividedQueriesAgree(attention, &model, label);
            checkRollback(attention, &model, label);
            subShapes++;
            objects++;
            vkmqaDestroyAttention(attention);
        }
    }
    print_message("%u of %u objects of all pairs, %u made, %u sub-shapes, seed %llu; %u objects "
                  "give a query the "
                  "same bits in a step of nine and of one\n",
                  shapeCount, drawn, objects, subShapes, (unsigned long long)harness.seed, divided);
    assert_true(subShapes >= 200);
}

// Without the bit the bits may depend on the maxima, but not on the run.
static void defaultModeRepeatsItself(void** state) {
    (void)state;
    Choice shapes[SHAPES];
    uint32_t shapeCount = drawShapes(shapes, harness.seed + 1);
    for (uint32_t i = 0; i < (harnessIsLong() ? shapeCount : 3); i++) {
        Model model = modelOf(&shapes[i], false);
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            if (!tierHasTurn(t, i))
                continue;
            char label[96];
            snprintf(label, sizeof(label), "%s, shape %u, default mode", tierName(harness.tiers[t]),
                     i);
            VkmqaAttention attention;
            REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
            for (uint32_t c = 2; c < COUNT(companies); c++) {
                size_t size;
                free(runCompany(attention, &model, &companies[c], subjects[3], 0, 4,
                                repetitionsOf(), label, &size));
            }
            vkmqaDestroyAttention(attention);
        }
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sequencesKeepTheirBits),
    cmocka_unit_test(defaultModeRepeatsItself),
};

HARNESS_MAIN(tests)

// Rotary embedding and Hadamard rotation in append, of K and of q: values within the rounding of the type
// and 2e-6 of the row's magnitude of float64's, at any position.
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
#define NEOX ORACLE_ROPE_NEOX
#define PAIRS ORACLE_ROPE_INTERLEAVED
#define UNTURNED ORACLE_ROPE_NONE

typedef enum Queries { NO_QUERIES, SEPARATE, STRIDED, IN_PLACE } Queries;

typedef struct RotateShape {
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV; // headDimV 0: a prefix of K, 512 of it
    uint32_t pageSize;
    OracleType source, io, k;
    OracleRopeStyle style;
    uint32_t dim, offset;
    bool custom, hadamard;
    double theta;
    Queries queries;
} RotateShape;

static const RotateShape shapes[] = {
    {4, 1, 64, 64, 16, F32, F32, F32, NEOX, 0, 0, false, false, 0, SEPARATE},
    {4, 2, 64, 40, 0, F32, F16, F32, PAIRS, 0, 0, false, false, 0, STRIDED},
    {6, 2, 128, 128, 16, F16, F16, F16, NEOX, 0, 0, true, false, 0, IN_PLACE},
    {2, 1, 80, 80, 1, BF16, BF16, BF16, NEOX, 32, 0, false, false, 500000, IN_PLACE},
    {3, 3, 96, 64, 64, F32, F32, Q8, PAIRS, 48, 16, true, false, 0, IN_PLACE},
    {4, 1, 128, 128, 256, F16, F32, Q8, NEOX, 0, 0, false, false, 1000000, SEPARATE},
    {5, 1, 72, 72, 16, F32, BF16, Q4, NEOX, 6, 2, false, false, 0, STRIDED},
    {2, 2, 64, 64, 16, BF16, F16, FP8, PAIRS, 0, 0, true, false, 0, SEPARATE},
    {16, 1, 576, 0, 64, F16, F16, F16, NEOX, 64, 512, false, false, 0, SEPARATE}, // MLA
    {16, 1, 576, 0, 64, F32, F16, Q8, PAIRS, 64, 512, true, false, 0, STRIDED},
    {1, 1, 8, 8, 4, F32, F32, F32, NEOX, 2, 6, false, false, 0, NO_QUERIES},
    {2, 1, 256, 256, 16, F32, F32, F32, NEOX, 0, 0, false, true, 0, SEPARATE},
    {4, 2, 128, 64, 16, F16, F16, Q4, UNTURNED, 0, 0, false, true, 0, IN_PLACE},
    {4, 1, 40, 40, 0, F32, F32, F32, UNTURNED, 0, 0, false, true, 0, STRIDED}, // blocks of 8
    {3, 1, 576, 64, 16, F32, F32, Q8, PAIRS, 64, 0, true, true, 0, SEPARATE},  // blocks of 64
    {2, 1, 512, 64, 16, BF16, BF16, F16, NEOX, 0, 0, false, true, 0, SEPARATE},
    {2, 1, 64, 64, 16, F32, F32, FP8, UNTURNED, 0, 0, false, true, 0, NO_QUERIES},
};

enum { TOKENS = 60, QUERIES = 25 };

// What a turn of many radians, or backwards, does to a polynomial.
static const int32_t corners[] = {0,       1,        -1,        2,        1023,   -1024,
                                  65535,   -777,     99999,     131071,   524287, 999999,
                                  1000000, -1000000, INT32_MAX, INT32_MIN};

static void fillPositions(Random* random, int32_t* positions, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        positions[i] = i < COUNT(corners) ? corners[i] : (int32_t)randomBelow(random, 1000001);
}

static void* randomSource(Random* random, OracleType type, size_t count) {
    float* values = malloc(sizeof(float) * count);
    for (size_t i = 0; i < count; i++)
        values[i] = randomNormal(random);
    void* bytes = malloc(4 * count);
    oracleEncode(type, values, count, bytes);
    free(values);
    return bytes;
}

static void checkShape(const RotateShape* shape, VkmqaTier tier, size_t index) {
    Random random = randomFor(harness.seed, 60, index);
    uint32_t dimV = shape->headDimV ? shape->headDimV : 512;
    AppendCase given = {
        .model = {.numHeadsQ = shape->numHeadsQ,
                  .numHeadsKv = shape->numHeadsKv,
                  .headDimQk = shape->headDimQk,
                  .headDimV = dimV,
                  .pageSize = shape->pageSize,
                  .io = shape->io,
                  .k = shape->k,
                  .v = shape->headDimV ? F16 : shape->k,
                  .source = shape->source,
                  .flags = (shape->headDimV ? 0u : VKMQA_ATTENTION_V_PREFIX_OF_K_BIT) |
                           (shape->hadamard ? VKMQA_ATTENTION_HADAMARD_BIT : 0u),
                  .rope = shape->style,
                  .ropeDim = shape->dim,
                  .ropeOffset = shape->offset,
                  .ropeTheta = shape->theta},
        .tokens = TOKENS,
        .queries = shape->queries == NO_QUERIES ? 0 : QUERIES,
        .inPlace = shape->queries == IN_PLACE,
    };
    given.numPages = TOKENS / appendPageTokens(&given) + 2;
    int32_t slots[TOKENS], positions[TOKENS], queryPositions[QUERIES];
    for (int32_t i = 0; i < TOKENS; i++)
        slots[i] = i % 7 == 6 ? -1 : TOKENS - 1 - i;
    fillPositions(&random, positions, TOKENS);
    fillPositions(&random, queryPositions, QUERIES);
    if (shape->style != UNTURNED) {
        given.positions = positions;
        given.queryPositions = given.queries ? queryPositions : NULL;
    }
    double frequencies[288];
    if (shape->custom) {
        for (int i = 0; i < 288; i++)
            frequencies[i] = pow(10000, -i / 40.0) / (1 + i % 5);
        frequencies[1] = 0; // a pair that stands still
        given.frequencies = frequencies;
        given.ropeMagnitude = 1.3125f;
    }
    given.slots = slots;
    size_t rowsKv = (size_t)TOKENS * shape->numHeadsKv, rowsQ = (size_t)QUERIES * shape->numHeadsQ;
    void* k = randomSource(&random, shape->source, rowsKv * shape->headDimQk);
    void* v = shape->headDimV ? randomSource(&random, shape->source, rowsKv * dimV) : NULL;
    void* q = randomSource(&random, shape->source, rowsQ * shape->headDimQk);
    given.rowsK = k;
    given.rowsV = v;
    given.q = q;
    if (shape->queries == STRIDED) { // from a slice to a slice of another width
        given.strideQ.head = shape->headDimQk + 8;
        given.strideQ.token = shape->numHeadsQ * given.strideQ.head + 40;
        given.strideRotatedQ.head = shape->headDimQk;
        given.strideRotatedQ.token = shape->numHeadsQ * shape->headDimQk + 16;
    }
    char label[160];
    snprintf(label, sizeof(label), "%s, shape %zu (%s, dim %u of %u from %u, %s to %s%s)",
             tierName(tier), index,
             shape->style == NEOX    ? "neox"
             : shape->style == PAIRS ? "interleaved"
                                     : "no rope",
             shape->dim, shape->headDimQk, shape->offset, oracleTypeName(shape->source),
             oracleTypeName(shape->k), shape->hadamard ? ", hadamard" : "");
    appendCheck(&given, tier, label);
    free(k);
    free(v);
    free(q);
}

static void rotatedRowsAreTheOracles(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (uint32_t t = 0; t < harness.tierCount; t++)
            if (legHasPart(i) && (i < 3 || tierHasTurn(t, i)))
                checkShape(&shapes[i], harness.tiers[t], i);
}

// What the Hadamard rotation is for: one channel far larger than the others costs them their bits in a
// q4_0 block, until it is spread over all of them.
static double errorOnOutliers(VkmqaTier tier, bool hadamard) {
    const Model model = {.numHeadsQ = 1,
                         .numHeadsKv = 1,
                         .headDimQk = 128,
                         .headDimV = 8,
                         .pageSize = 16,
                         .k = Q4,
                         .flags = hadamard ? VKMQA_ATTENTION_HADAMARD_BIT : 0,
                         .maxSeqLenKv = 64};
    const Batch batch = {1, {{1, 50}}, .append = true};
    Problem problem = problemCreate(&model, &batch, 61, false);
    OracleRotation rotation = {.hadamard = hadamard};
    for (uint32_t t = 0; t < 50; t++)
        problem.newK[t * 128 + 77] *= 30;
    free(problem.turnedK);
    problem.turnedK = malloc(sizeof(float) * 50 * 128);
    memcpy(problem.turnedK, problem.newK, sizeof(float) * 50 * 128);
    oracleRotateRows(&rotation, NULL, 50, 1, 128, problem.turnedK);
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, tier, &attention));
    Run run = runCreate(attention, &problem, NULL);
    runUpload(&run, &problem);
    runRecord(&run, true);
    runSubmit(&run);
    OracleCache cache = problemCache(&problem, false);
    uint8_t* image = malloc(run.k.range.size);
    float stored[50 * 128];
    guardedDownload(&run.k, image);
    oracleGather(&cache, image, problem.slots, 50, stored);
    double errors = 0, squares = 0;
    // Lengths are kept, so errors before and after the rotation may be compared.
    for (int i = 0; i < 50 * 128; i++) {
        errors += pow(stored[i] - problem.turnedK[i], 2);
        squares += pow(problem.turnedK[i], 2);
    }
    free(image);
    runDestroy(&run);
    problemDestroy(&problem);
    vkmqaDestroyAttention(attention);
    return errors / squares;
}

static void hadamardTamesOutliers(void** state) {
    (void)state;
    double plain = errorOnOutliers(harness.tiers[0], false);
    double rotated = errorOnOutliers(harness.tiers[0], true);
    print_message("NMSE of K in q4_0 with an outlier channel: %.3g, rotated %.3g\n", plain,
                  rotated);
    assert_true(rotated > 0 && rotated < plain / 2);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rotatedRowsAreTheOracles),
    cmocka_unit_test(hadamardTamesOutliers),
};

HARNESS_MAIN(tests)

// vkmqaCmdMergeStates: partial states over disjoint sets of positions become attention over all of them.
#include "harness.h"

#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32 ORACLE_F32
#define F16 ORACLE_F16
#define BF16 ORACLE_BF16
#define SINKS VKMQA_ATTENTION_SINKS_BIT

static Model modelOf(uint32_t headsQ, uint32_t headsKv, uint32_t dimV, OracleType io, bool sinks) {
    const Model model = {.numHeadsQ = headsQ,
                         .numHeadsKv = headsKv,
                         .headDimQk = 64,
                         .headDimV = dimV,
                         .pageSize = 16,
                         .io = io,
                         .k = io,
                         .v = io,
                         .flags = sinks ? SINKS : 0,
                         .maxSeqLenKv = 512};
    return model;
}

static Guarded createBuffer(size_t bytes) {
    const VkmqaBufferRequirements needs = {.size = bytes};
    return guardedCreate(&needs);
}

// ---- Made-up states --------------------------------------------------------------------------------

typedef struct MergeShape {
    uint32_t parts, totalQ, headsQ, dimV;
    OracleType io;
    bool sinks;
    VkmqaStrides strideOut; // 0 = packed
    bool lse;
} MergeShape;

static const MergeShape shapes[] = {
    {1, 3, 4, 64, F32, false, {0, 0}, true},
    {2, 17, 8, 64, F16, false, {0, 0}, true},
    {3, 5, 6, 128, BF16, true, {6 * 136 + 8, 136}, true},
    {7, 9, 3, 8, F32, true, {0, 0}, false},
    {64, 2, 71, 40, F16, true, {71 * 40 + 16, 40}, true},
    {2, 1, 1, 576, F32, false, {0, 0}, true},
    {1024, 3, 4, 16, F32, true, {0, 0}, true},
    {1, 4, 2, 512, F16, true, {0, 0}, false},
};

// Scores of all sizes; parts that saw nothing, with garbage in out, and rows that no part saw.
static void fillStates(const MergeShape* shape, Random* random, float* out, float* lse) {
    size_t rows = (size_t)shape->totalQ * shape->headsQ;
    for (size_t i = 0; i < shape->parts * rows; i++) {
        bool nothing = i % rows % 5 == 4 || randomBelow(random, 4) == 0;
        lse[i] = nothing ? -INFINITY : randomNormal(random) * (i % 3 ? 2.0f : 40.0f);
        for (uint32_t d = 0; d < shape->dimV; d++)
            out[i * shape->dimV + d] = nothing ? NAN : randomNormal(random);
    }
}

static void checkMerge(const MergeShape* shape, const Problem* parameters, const float* partOut,
                       const float* partLse, const uint8_t* out, const float* lse,
                       VkmqaStrides strides, const char* label) {
    size_t rows = (size_t)shape->totalQ * shape->headsQ, count = rows * shape->dimV;
    double* reference = malloc(sizeof(double) * (count + rows));
    float* plain = malloc(sizeof(float) * (count + rows));
    float* got = malloc(sizeof(float) * count);
    oracleMerge(shape->parts, rows, shape->dimV, partOut, partLse, parameters->sinks, shape->headsQ,
                reference, reference + count);
    oraclePlainMerge(shape->parts, rows, shape->dimV, partOut, partLse, parameters->sinks,
                     shape->headsQ, plain, plain + count);
    for (size_t r = 0; r < rows; r++)
        oracleDecode(shape->io,
                     out + (r / shape->headsQ * strides.token + r % shape->headsQ * strides.head) *
                               oracleElementBytes(shape->io),
                     shape->dimV, got + r * shape->dimV);
    const int32_t cu[2] = {0, (int32_t)shape->totalQ};
    const CompareTensor tensor = {.batch = 1,
                                  .numHeads = shape->headsQ,
                                  .width = shape->dimV,
                                  .cuSeqlensQ = cu,
                                  .reference = reference,
                                  .plain = plain,
                                  .got = got,
                                  .type = shape->io,
                                  .maxNmse = compareMaxNmse(shape->io, shape->io, shape->io)};
    CompareTensor lseTensor = tensor;
    lseTensor.width = 1;
    lseTensor.reference = reference + count;
    lseTensor.plain = plain + count;
    lseTensor.got = lse;
    CompareResult outResult = compareOut(&tensor);
    CompareResult lseResult = {.right = true};
    if (shape->lse)
        lseResult = compareLse(&lseTensor);
    free(reference);
    free(plain);
    free(got);
    if (!outResult.right)
        fail_msg("%s: %s", label, outResult.text);
    if (!lseResult.right)
        fail_msg("%s: %s", label, lseResult.text);
}

static void mergeOn(const MergeShape* shape, VkmqaTier tier, size_t index) {
    char label[96];
    snprintf(label, sizeof(label), "%s, shape %zu (%u parts, %s)", tierName(tier), index,
             shape->parts, oracleTypeName(shape->io));
    const Model model = modelOf(shape->headsQ, 1, shape->dimV, shape->io, shape->sinks);
    const Batch batch = {1, {{1, 1}}, .append = false};
    Problem parameters = problemCreate(&model, &batch, 80, false); // for its sinks
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, tier, &attention));
    size_t element = oracleElementBytes(shape->io);
    size_t rows = (size_t)shape->totalQ * shape->headsQ, count = rows * shape->dimV;
    VkmqaStrides strides = shape->strideOut.token
                               ? shape->strideOut
                               : (VkmqaStrides){shape->headsQ * shape->dimV, shape->dimV};
    size_t outBytes = ((shape->totalQ - 1) * (size_t)strides.token +
                       (shape->headsQ - 1) * (size_t)strides.head + shape->dimV) *
                      element;
    float* partOut = malloc(sizeof(float) * shape->parts * count);
    float* partLse = malloc(sizeof(float) * shape->parts * rows);
    Random random = randomFor(harness.seed, 80, index);
    fillStates(shape, &random, partOut, partLse);
    oracleRound(shape->io, partOut, shape->parts * count);
    Guarded outs = createBuffer(shape->parts * count * element);
    Guarded lses = createBuffer(shape->parts * rows * 4);
    Guarded out = createBuffer(outBytes), lse = createBuffer(rows * 4);
    uint8_t* bytes = malloc(outs.range.size);
    oracleEncode(shape->io, partOut, shape->parts * count, bytes);
    guardedUpload(&outs, bytes);
    guardedUpload(&lses, partLse);
    Run run = runCreate(attention, &parameters, NULL); // for its parameters and commands
    runUpload(&run, &parameters);
    REQUIRE(vkmqaBeginCommands(run.commands));
    const VkmqaMergeInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(run.commands),
        .parts = shape->parts,
        .totalQ = shape->totalQ,
        .partOut = outs.range,
        .partLse = lses.range,
        .out = out.range,
        .lse = shape->lse ? lse.range : (VkmqaBuffer){0},
        .strideOut = shape->strideOut,
        .parameters = run.parameters.range,
    };
    REQUIRE(vkmqaCmdMergeStates(attention, vkmqaGetCommandBuffer(run.commands), &info));
    runSubmit(&run);
    uint8_t* got = malloc(out.range.size);
    float* gotLse = malloc(lse.range.size);
    guardedDownload(&out, got);
    guardedDownload(&lse, gotLse);
    checkMerge(shape, &parameters, partOut, partLse, got, gotLse, strides, label);
    if (!shape->lse)
        for (size_t r = 0; r < rows; r++)
            assert_memory_equal(&gotLse[r], &(uint32_t){COMPARE_POISON}, 4);
    // The gaps of strides.
    void* poison = poisonedBytes(out.range.size);
    for (size_t r = 0; r < rows; r++)
        memcpy(got +
                   (r / shape->headsQ * strides.token + r % shape->headsQ * strides.head) * element,
               poison, shape->dimV * element);
    for (size_t i = 0; i + 4 <= outBytes; i += 4)
        assert_memory_equal(got + i, poison, 4);
    Guarded* all[] = {&outs, &lses, &out, &lse};
    for (size_t i = 0; i < COUNT(all); i++) {
        guardedCheck(all[i], label);
        guardedDestroy(all[i]);
    }
    free(poison);
    free(got);
    free(gotLse);
    free(bytes);
    free(partOut);
    free(partLse);
    runDestroy(&run);
    problemDestroy(&parameters);
    vkmqaDestroyAttention(attention);
}

static void statesMerge(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (uint32_t t = 0; t < harness.tierCount; t++)
            if (legHasPart(i) && (i < 3 || tierHasTurn(t, i)))
                mergeOn(&shapes[i], harness.tiers[t], i);
}

// ---- Cascade: a prefix that all sequences share, attended once -------------------------------------

enum { SEQUENCES = 4, PREFIX_TOKENS = 150 };

// The concatenation of prefix and suffixes as one problem for the oracle.
static float* concatenated(const float* prefix, const float* suffix, const Problem* suffixes,
                           size_t rowElements) {
    size_t prefixElements = PREFIX_TOKENS * rowElements;
    float* all =
        malloc(sizeof(float) * (SEQUENCES * prefixElements + suffixes->totalKv * rowElements));
    float* next = all;
    for (uint32_t b = 0; b < SEQUENCES; b++) {
        size_t elements = (size_t)suffixes->seqLensKv[b] * rowElements;
        memcpy(next, prefix, sizeof(float) * prefixElements);
        memcpy(next + prefixElements, suffix, sizeof(float) * elements);
        next += prefixElements + elements;
        suffix += elements;
    }
    return all;
}

static VkmqaBuffer partOf(const Guarded* guarded, uint32_t part, VkDeviceSize bytes) {
    VkmqaBuffer range = guarded->range;
    range.offset += part * bytes;
    if (range.address)
        range.address += part * bytes;
    range.size = bytes;
    return range;
}

// Both orders of the parts, all calls in one command buffer.
static void cascadeOn(VkmqaTier tier, OracleType io) {
    const Model model = modelOf(8, 2, 64, io, true);
    const Batch prefixBatch = {1, {{SEQUENCES, PREFIX_TOKENS}}, .append = false, .names = {9}};
    const Batch suffixBatch = {SEQUENCES, {{1, 40}, {1, 1}, {1, 0}, {1, 70}}, .append = false};
    Problem prefix = problemCreate(&model, &prefixBatch, 81, false);
    Problem suffix = problemCreate(&model, &suffixBatch, 82, false);
    size_t rows = SEQUENCES * model.numHeadsQ;
    memcpy(prefix.q, suffix.q, sizeof(float) * rows * model.headDimQk);
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, tier, &attention));
    Run runs[2] = {runCreate(attention, &prefix, NULL), runCreate(attention, &suffix, NULL)};
    runUpload(&runs[0], &prefix);
    runUpload(&runs[1], &suffix);
    size_t outBytes = rows * model.headDimV * oracleElementBytes(io), lseBytes = rows * 4;
    Guarded outs = createBuffer(2 * outBytes), lses = createBuffer(2 * lseBytes);

    float* k = concatenated(prefix.k, suffix.k, &suffix, model.numHeadsKv * model.headDimQk);
    float* v = concatenated(prefix.v, suffix.v, &suffix, model.numHeadsKv * model.headDimV);
    int32_t lengths[SEQUENCES];
    for (int b = 0; b < SEQUENCES; b++)
        lengths[b] = PREFIX_TOKENS + suffix.seqLensKv[b];
    OracleProblem whole = problemOracle(&suffix);
    whole.seqLensKv = lengths;
    whole.k = k;
    whole.v = v;
    oracleAttention(&whole, suffix.out, suffix.lse);
    oraclePlainAttention(&whole, suffix.plainOut, suffix.plainLse);

    for (uint32_t order = 0; order < 2; order++) {
        Run* target = &runs[1];
        REQUIRE(vkmqaBeginCommands(target->commands));
        VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(target->commands);
        for (uint32_t part = 0; part < 2; part++) {
            runs[part].omitSinks = true;
            VkmqaAttentionInfo info = runAttentionInfo(&runs[part]);
            info.recorder = vkmqaGetCommandsRecorder(target->commands);
            info.out = partOf(&outs, part ^ order, outBytes);
            info.lse = partOf(&lses, part ^ order, lseBytes);
            REQUIRE(vkmqaCmdAttention(attention, commandBuffer, &info));
        }
        const VkmqaMergeInfo info = {
            .structSize = sizeof(info),
            .recorder = vkmqaGetCommandsRecorder(target->commands),
            .parts = 2,
            .totalQ = SEQUENCES,
            .partOut = outs.range,
            .partLse = lses.range,
            .out = target->out.range,
            .lse = target->lse.range,
            .parameters = target->parameters.range,
        };
        REQUIRE(vkmqaCmdMergeStates(attention, commandBuffer, &info));
        runSubmit(target);
        Output output = runRead(target);
        char label[64];
        snprintf(label, sizeof(label), "%s, cascade, %s, order %u", tierName(tier),
                 oracleTypeName(io), order);
        if (io == F32) {
            runCheck(target, &suffix, &output, label);
        } else { // the parts are rounded as well, and may be larger than their mean
            float* got = outputValues(target, &suffix, &output);
            double errors = 0, squares = 0;
            for (size_t i = 0; i < rows * model.headDimV; i++) {
                errors += pow(got[i] - suffix.out[i], 2);
                squares += pow(suffix.out[i], 2);
            }
            free(got);
            if (!(errors <= squares * compareMaxNmse(io, io, io)))
                fail_msg("%s: NMSE %.3g", label, errors / squares);
        }
        outputDestroy(&output);
    }
    free(k);
    free(v);
    guardedDestroy(&outs);
    guardedDestroy(&lses);
    runDestroy(&runs[0]);
    runDestroy(&runs[1]);
    problemDestroy(&prefix);
    problemDestroy(&suffix);
    vkmqaDestroyAttention(attention);
}

static void sharedPrefixesMerge(void** state) {
    (void)state;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        cascadeOn(harness.tiers[t], F32);
        if (tierHasTurn(t, 0))
            cascadeOn(harness.tiers[t], F16);
        if (tierHasTurn(t, 1))
            cascadeOn(harness.tiers[t], BF16);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(statesMerge),
    cmocka_unit_test(sharedPrefixesMerge),
};

HARNESS_MAIN(tests)

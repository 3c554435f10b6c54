// A command buffer recorded once is submitted again and again while only the metadata, the query, the new
// rows and the cache in GPU memory change; the bits are those of a fresh recording with the same maxima.
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

// ---- Decoding: several layers, hundreds of tokens --------------------------------------------------

enum { LAYERS = 3, STEPS = 200, SEQUENCES = 2 };

static const int32_t starts[SEQUENCES] = {37, 1}; // tokens in the cache before the first step
static const VkmqaStepLimits decodeLimits = {.batch = SEQUENCES,
                                             .totalQ = SEQUENCES,
                                             .maxSeqLenQ = 1,
                                             .maxSeqLenKv = 250,
                                             .newTokens = SEQUENCES};

// One layer: all its tokens and queries, and the same buffers twice: replayed and freshly recorded.
typedef struct Layer {
    Problem all;
    Run runs[2];
} Layer;

static size_t tokenIndex(const Problem* all, uint32_t b, int32_t position) {
    return (b ? (size_t)all->seqLensKv[0] : 0) + (size_t)position;
}

// first: whose slots and pages are everybody's, or null.
static Layer layerCreate(VkmqaAttention attention, const Model* model, uint64_t seed,
                         const Problem* first) {
    const Batch batch = {
        SEQUENCES,
        {{starts[0] + STEPS, starts[0] + STEPS}, {starts[1] + STEPS, starts[1] + STEPS}},
        .append = true};
    Layer layer = {.all = problemCreate(model, &batch, seed, false)};
    if (first) {
        memcpy(layer.all.slots, first->slots, sizeof(int32_t) * first->totalKv);
    }
    // The cache as the prompts have left it.
    int32_t* slots = malloc(sizeof(int32_t) * layer.all.totalKv);
    for (uint32_t b = 0; b < SEQUENCES; b++)
        for (int32_t t = 0; t < layer.all.seqLensKv[b]; t++)
            slots[tokenIndex(&layer.all, b, t)] =
                t < starts[b] ? layer.all.slots[tokenIndex(&layer.all, b, t)] : -1;
    for (int r = 0; r < 2; r++) {
        Run* run = &layer.runs[r];
        *run = runCreate(attention, &layer.all, &decodeLimits);
        Problem few = layer.all; // only for parameters and poison: its rows do not fit
        few.totalQ = SEQUENCES;
        few.totalKv = SEQUENCES;
        runUpload(run, &few);
        for (int isV = 0; isV < 2; isV++) {
            OracleCache cache = problemCache(&layer.all, isV);
            uint8_t* image = malloc(oracleCacheBytes(&cache));
            memset(image, CACHE_POISON & 0xFF, oracleCacheBytes(&cache));
            oracleAppend(&cache, image, NULL, problemStored(&layer.all, isV), slots,
                         layer.all.totalKv);
            guardedUpload(isV ? &run->v : &run->k, image);
            free(image);
        }
    }
    free(slots);
    return layer;
}

static void layerDestroy(Layer* layer) {
    runDestroy(&layer->runs[0]);
    runDestroy(&layer->runs[1]);
    problemDestroy(&layer->all);
}

// Rows of this step's tokens, packed.
static void uploadRows(const Guarded* guarded, const float* rows, const Problem* all, int32_t step,
                       size_t rowElements, OracleType type) {
    uint8_t* bytes = poisonedBytes(guarded->range.size);
    for (uint32_t b = 0; b < SEQUENCES; b++)
        oracleEncode(type, rows + tokenIndex(all, b, starts[b] + step) * rowElements, rowElements,
                     bytes + b * rowElements * oracleElementBytes(type));
    guardedUpload(guarded, bytes);
    free(bytes);
}

static void layerUpload(const Layer* layer, const Run* run, int32_t step) {
    const Model* model = &layer->all.model;
    size_t rowQ = (size_t)model->numHeadsQ * model->headDimQk;
    bool rotates = problemRotates(&layer->all);
    uploadRows(rotates ? &run->newQ : &run->q, layer->all.newQ, &layer->all, step, rowQ,
               rotates ? model->source : model->io);
    uploadRows(&run->newK, layer->all.newK, &layer->all, step,
               (size_t)model->numHeadsKv * model->headDimQk, model->source);
    uploadRows(&run->newV, layer->all.newV, &layer->all, step,
               (size_t)model->numHeadsKv * model->headDimV, model->source);
}

// All layers share the metadata of the first.
static void uploadMetadata(const Layer* layer, const Run* run, int32_t step) {
    const VkmqaStepLayout* layout = &run->step.layout;
    const Problem* all = &layer->all;
    int32_t* words = runMetadata(run, all);
    for (uint32_t b = 0; b < SEQUENCES; b++) {
        int32_t position = starts[b] + step;
        words[layout->cuSeqlensQ / 4 + b + 1] = (int32_t)b + 1;
        words[layout->seqLensKv / 4 + b] = position + 1;
        words[layout->slotMapping / 4 + b] = all->slots[tokenIndex(all, b, position)];
        if (layout->positions != VKMQA_NONE)
            words[layout->positions / 4 + b] = words[layout->queryPositions / 4 + b] = position;
    }
    guardedUpload(&run->metadata, words);
    free(words);
}

static void recordLayers(VkmqaAttention attention, Layer* layers, int which) {
    VkmqaCommands commands = layers[0].runs[which].commands;
    REQUIRE(vkmqaBeginCommands(commands));
    for (int l = 0; l < LAYERS; l++) {
        Run* run = &layers[l].runs[which];
        VkmqaAppendInfo append = runAppendInfo(run);
        VkmqaAttentionInfo attend = runAttentionInfo(run);
        append.recorder = attend.recorder = vkmqaGetCommandsRecorder(commands);
        append.step = attend.step = &layers[0].runs[which].step;
        REQUIRE(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &append));
        REQUIRE(vkmqaCmdAttention(attention, vkmqaGetCommandBuffer(commands), &attend));
    }
}

// The step as a problem of its own, in the slots of the whole.
static void checkByOracle(const Layer* layer, Run* run, const Output* output, int32_t step,
                          uint64_t seed, const char* label) {
    const Batch batch = {
        SEQUENCES, {{1, starts[0] + step + 1}, {1, starts[1] + step + 1}}, .append = true};
    Problem now = problemCreate(&layer->all.model, &batch, seed, true);
    now.numPages = layer->all.numPages;
    size_t token = 0;
    for (uint32_t b = 0; b < SEQUENCES; b++)
        for (int32_t t = 0; t < now.seqLensKv[b]; t++)
            now.slots[token++] = layer->all.slots[tokenIndex(&layer->all, b, t)];
    runCheck(run, &now, output, label);
    problemDestroy(&now);
}

static void decodeOn(VkmqaTier tier, const Model* model) {
    VkmqaAttention attention;
    Layer layers[LAYERS];
    REQUIRE(attentionCreate(model, tier, &attention));
    for (uint64_t l = 0; l < LAYERS; l++)
        layers[l] = layerCreate(attention, model, 25 + l, l ? &layers[0].all : NULL);
    recordLayers(attention, layers, 0);
    for (int32_t step = 0; step < STEPS; step++) {
        for (int which = 0; which < 2; which++) {
            if (which == 1)
                recordLayers(attention, layers, 1);
            uploadMetadata(&layers[0], &layers[0].runs[which], step);
            for (int l = 0; l < LAYERS; l++)
                layerUpload(&layers[l], &layers[l].runs[which], step);
            runSubmit(&layers[0].runs[which]);
        }
        for (int l = 0; l < LAYERS; l++) {
            char label[64];
            snprintf(label, sizeof(label), "%s, step %d, layer %d", tierName(tier), step, l);
            Output replayed = runRead(&layers[l].runs[0]), fresh = runRead(&layers[l].runs[1]);
            if (!outputsEqual(&layers[l].runs[0], &replayed, &fresh))
                fail_msg("%s: replay and fresh recording differ", label);
            if (step % 20 == 19)
                checkByOracle(&layers[l], &layers[l].runs[0], &replayed, step, 25 + (uint64_t)l,
                              label);
            outputDestroy(&replayed);
            outputDestroy(&fresh);
        }
    }
    for (int l = 0; l < LAYERS; l++)
        layerDestroy(&layers[l]);
    vkmqaDestroyAttention(attention);
}

static void decodingIsReplayed(void** state) {
    (void)state;
    static const Model models[] = {
        {.numHeadsQ = 8,
         .numHeadsKv = 2,
         .headDimQk = 64,
         .headDimV = 64,
         .pageSize = 16,
         .io = ORACLE_F16,
         .k = ORACLE_Q8_0,
         .v = ORACLE_Q8_0,
         .causal = true,
         .splitSize = 64,
         .maxSeqLenKv = 256,
         .source = ORACLE_F16,
         .rope = ORACLE_ROPE_NEOX},
        {.numHeadsQ = 4,
         .numHeadsKv = 1,
         .headDimQk = 40,
         .headDimV = 48,
         .io = ORACLE_F32,
         .k = ORACLE_BF16,
         .v = ORACLE_Q4_0,
         .causal = true,
         .maxSeqLenKv = 256,
         .flags = VKMQA_ATTENTION_WINDOW_LEFT_BIT | VKMQA_ATTENTION_SINKS_BIT,
         .windowLeft = 70},
    };
    for (uint32_t t = 0; t < harness.tierCount; t++)
        for (size_t i = 0; i < COUNT(models); i++)
            if (tierHasTurn(t, i))
                decodeOn(harness.tiers[t], &models[i]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(replayEqualsFreshRecording),
    cmocka_unit_test(contiguousCachesReplayToo),
    cmocka_unit_test(decodingIsReplayed),
};

HARNESS_MAIN(tests)

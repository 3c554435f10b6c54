#include "harness.h"

#include "compare.h"

#include <stdlib.h>
#include <string.h>

uint8_t* randomBytes(Random* random, size_t size) {
    uint8_t* bytes = malloc(size + 4);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)randomBelow(random, 256);
    return bytes;
}

uint32_t appendPageTokens(const AppendCase* given) {
    return given->model.pageSize ? given->model.pageSize : APPEND_CONTIGUOUS_TOKENS;
}

static OracleRotation rotationOf(const AppendCase* given) {
    const OracleRotation rotation = {
        .style = given->model.rope,
        .dim = given->model.ropeDim,
        .offset = given->model.ropeOffset,
        .frequencies = given->frequencies,
        .theta = given->model.ropeTheta,
        .magnitude = given->ropeMagnitude,
        .hadamard = (given->model.flags & VKMQA_ATTENTION_HADAMARD_BIT) != 0,
    };
    return rotation;
}

// ---- Rows in strided memory ------------------------------------------------------------------------

typedef struct Rows {
    VkmqaStrides strides;
    uint32_t tokens, heads, dim;
    OracleType type;
    Guarded guarded;
    uint8_t* bytes; // as uploaded, gaps random
} Rows;

static size_t rowAt(const Rows* rows, uint32_t t, uint32_t h) {
    return ((size_t)t * rows->strides.token + (size_t)h * rows->strides.head) *
           oracleElementBytes(rows->type);
}

// packed: null leaves random bytes.
static Rows rowsCreate(VkmqaStrides strides, uint32_t tokens, uint32_t heads, uint32_t dim,
                       OracleType type, const void* packed, Random* random) {
    Rows rows = {strides, tokens, heads, dim, type, {0}, NULL};
    if (strides.token == 0)
        rows.strides = (VkmqaStrides){heads * dim, dim};
    size_t rowBytes = dim * oracleElementBytes(type);
    const VkmqaBufferRequirements needs = {.size = rowAt(&rows, tokens - 1, heads - 1) + rowBytes};
    rows.guarded = guardedCreate(&needs);
    rows.bytes = randomBytes(random, rows.guarded.range.size);
    for (uint32_t t = 0; t < tokens && packed; t++)
        for (uint32_t h = 0; h < heads; h++)
            memcpy(rows.bytes + rowAt(&rows, t, h),
                   (const uint8_t*)packed + ((size_t)t * heads + h) * rowBytes, rowBytes);
    guardedUpload(&rows.guarded, rows.bytes);
    return rows;
}

static void rowsDestroy(Rows* rows) {
    guardedDestroy(&rows->guarded);
    free(rows->bytes);
}

// Whether nothing but the rows themselves (or, changed = false, nothing at all) has changed. Returns the
// rows' values [tokens, heads, dim]. To be freed.
static float* rowsRead(const Rows* rows, bool changed, const char* label) {
    size_t size = rows->guarded.range.size;
    size_t rowBytes = rows->dim * oracleElementBytes(rows->type);
    uint8_t* got = malloc(size);
    float* values = malloc(sizeof(float) * rows->tokens * rows->heads * rows->dim);
    guardedDownload(&rows->guarded, got);
    for (uint32_t t = 0; t < rows->tokens; t++)
        for (uint32_t h = 0; h < rows->heads; h++) {
            size_t at = rowAt(rows, t, h);
            oracleDecode(rows->type, got + at, rows->dim,
                         values + ((size_t)t * rows->heads + h) * rows->dim);
            if (changed)
                memcpy(got + at, rows->bytes + at, rowBytes);
        }
    bool same = memcmp(got, rows->bytes, size) == 0;
    free(got);
    guardedCheck(&rows->guarded, label);
    if (!same)
        fail_msg("%s: rows of a tensor, or what lies between them, were overwritten", label);
    return values;
}

// ---- K and V ---------------------------------------------------------------------------------------

typedef struct Side {
    OracleCache cache;
    Rows source;
    Guarded memory;
    uint8_t* before;
    float* values; // as they ought to be stored
} Side;

static Side sideCreate(const AppendCase* given, bool isV, Random* random) {
    const Model* model = &given->model;
    Side side = {.cache = {.type = isV ? model->v : model->k,
                           .numPages = given->numPages,
                           .numHeads = model->numHeadsKv,
                           .pageTokens = appendPageTokens(given),
                           .headDim = isV ? model->headDimV : model->headDimQk,
                           .scales = isV ? given->vScales : given->kScales}};
    const void* rows = isV ? given->rowsV : given->rowsK;
    size_t count = (size_t)given->tokens * model->numHeadsKv * side.cache.headDim;
    const VkmqaBufferRequirements needs = {.size = oracleCacheBytes(&side.cache)};
    side.source = rowsCreate(isV ? given->strideV : given->strideK, given->tokens,
                             model->numHeadsKv, side.cache.headDim, model->source, rows, random);
    side.memory = guardedCreate(&needs);
    side.before = randomBytes(random, needs.size);
    guardedUpload(&side.memory, side.before);
    side.values = malloc(sizeof(float) * count);
    oracleDecode(model->source, rows, count, side.values);
    OracleRotation rotation = rotationOf(given);
    if (!isV)
        oracleRotateRows(&rotation, given->positions, given->tokens, model->numHeadsKv,
                         side.cache.headDim, side.values);
    return side;
}

static void sideDestroy(Side* side) {
    rowsDestroy(&side->source);
    guardedDestroy(&side->memory);
    free(side->before);
    free(side->values);
}

static void sideCheck(const AppendCase* given, const Side* side, bool isV, const char* label) {
    OracleRotation rotation = rotationOf(given);
    uint8_t* got = malloc(side->memory.range.size);
    guardedDownload(&side->memory, got);
    const CompareCache compare = {
        .cache = side->cache,
        .values = side->values,
        .slots = given->slots,
        .tokens = given->tokens,
        .before = side->before,
        .got = got,
        .byValue = (!isV && oracleRotates(&rotation)) ||
                   (side->cache.type == ORACLE_FP8 && given->model.fp8Scales == FP8_ANY),
        .hadamard = rotation.hadamard,
    };
    CompareResult result = compareCache(&compare);
    free(got);
    guardedCheck(&side->memory, label);
    free(rowsRead(&side->source, false, label));
    if (!result.right)
        fail_msg("%s: %s: %s", label, isV ? "V" : "K", result.text);
}

// ---- The append ------------------------------------------------------------------------------------

static Guarded createParameters(VkmqaAttention attention, const AppendCase* given) {
    VkmqaBufferRequirements needs;
    REQUIRE(vkmqaGetParametersRequirements(attention, &needs));
    Guarded guarded = guardedCreate(&needs);
    if (needs.size == 0)
        return guarded;
    const VkmqaParametersInfo info = {.structSize = sizeof(info),
                                      .ropeMagnitude = given->ropeMagnitude,
                                      .kScales = given->kScales,
                                      .vScales = given->vScales,
                                      .ropeTheta = given->model.ropeTheta,
                                      .ropeFrequencies = given->frequencies};
    void* bytes = poisonedBytes(guarded.range.size);
    REQUIRE(vkmqaWriteParameters(attention, &info, guarded.range.size, bytes));
    guardedUpload(&guarded, bytes);
    free(bytes);
    return guarded;
}

static void checkQueries(const AppendCase* given, const Rows* rotated, const char* label) {
    const Model* model = &given->model;
    size_t rows = (size_t)given->queries * model->numHeadsQ;
    float* expected = malloc(sizeof(float) * rows * model->headDimQk);
    OracleRotation rotation = rotationOf(given);
    oracleDecode(model->source, given->q, rows * model->headDimQk, expected);
    oracleRotateRows(&rotation, given->queryPositions, given->queries, model->numHeadsQ,
                     model->headDimQk, expected);
    float* got = rowsRead(rotated, true, label);
    CompareResult result =
        compareRows(model->io, expected, got, rows, model->headDimQk, rotation.hadamard);
    free(got);
    free(expected);
    if (!result.right)
        fail_msg("%s: %s", label, result.text);
}

void appendCheck(const AppendCase* given, VkmqaTier tier, const char* label) {
    Model model = given->model;
    bool hasV = given->rowsV != NULL;
    if (!model.numHeadsQ)
        model.numHeadsQ = model.numHeadsKv;
    if (!model.maxSeqLenKv)
        model.maxSeqLenKv = APPEND_CONTIGUOUS_TOKENS;
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, tier, &attention));
    Random random = randomFor(harness.seed, 77, given->tokens);
    Side sides[2] = {sideCreate(given, false, &random)};
    if (hasV)
        sides[1] = sideCreate(given, true, &random);
    const VkmqaStepLimits limits = {
        .batch = 1, .totalQ = given->queries ? given->queries : 1, .newTokens = given->tokens};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaBufferRequirements needs;
    REQUIRE(vkmqaGetStepLayout(attention, &limits, &step.layout, &needs));
    Guarded metadata = guardedCreate(&needs);
    Guarded parameters = createParameters(attention, given);
    step.metadata = metadata.range;
    int32_t* words = calloc(metadata.range.size, 1);
    memcpy(words + step.layout.slotMapping / 4, given->slots, 4 * given->tokens);
    if (given->positions)
        memcpy(words + step.layout.positions / 4, given->positions, 4 * given->tokens);
    if (given->queryPositions)
        memcpy(words + step.layout.queryPositions / 4, given->queryPositions, 4 * given->queries);
    guardedUpload(&metadata, words);
    const VkmqaKv kv = {sides[0].memory.range, sides[1].memory.range, given->numPages};
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(commands),
        .step = &step,
        .kv = &kv,
        .newK = sides[0].source.guarded.range,
        .newV = sides[1].source.guarded.range,
        .strideK = given->strideK,
        .strideV = given->strideV,
        .parameters = parameters.range,
    };
    Rows q = {0}, rotated = {0};
    if (given->queries) {
        q = rowsCreate(given->strideQ, given->queries, model.numHeadsQ, model.headDimQk,
                       model.source, given->q, &random);
        if (!given->inPlace)
            rotated = rowsCreate(given->strideRotatedQ, given->queries, model.numHeadsQ,
                                 model.headDimQk, model.io, NULL, &random);
        info.q = q.guarded.range;
        info.strideQ = given->strideQ;
        info.rotatedQ = given->inPlace ? q.guarded.range : rotated.guarded.range;
        info.strideRotatedQ = given->inPlace ? given->strideQ : given->strideRotatedQ;
    }
    REQUIRE(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &info));
    REQUIRE(vkmqaSubmitCommands(commands));
    REQUIRE(vkmqaWaitCommands(commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
    sideCheck(given, &sides[0], false, label);
    if (hasV)
        sideCheck(given, &sides[1], true, label);
    if (given->queries) {
        checkQueries(given, given->inPlace ? &q : &rotated, label);
        if (!given->inPlace)
            free(rowsRead(&q, false, label));
    }
    guardedDownload(&metadata, words);
    assert_int_equal(words[step.layout.status / 4], 0);
    guardedCheck(&metadata, "metadata");
    guardedCheck(&parameters, "parameters");
    free(words);
    vkmqaDestroyCommands(commands);
    guardedDestroy(&metadata);
    guardedDestroy(&parameters);
    sideDestroy(&sides[0]);
    sideDestroy(&sides[1]);
    rowsDestroy(&q);
    rowsDestroy(&rotated);
    vkmqaDestroyAttention(attention);
}

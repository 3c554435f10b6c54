// The bytes that vkmqaCmdAppendKv leaves in the cache: equal to the oracle's, and every other byte as it
// was.
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct AppendShape {
    uint32_t numHeadsKv, headDimQk, headDimV, pageSize, numPages;
    OracleType source, k, v;
    VkmqaStrides strideK, strideV; // 0 = packed
    uint32_t tokens;
} AppendShape;

enum { CONTIGUOUS_TOKENS = 96 };

#define F16 ORACLE_F16
#define F32 ORACLE_F32

static const AppendShape shapes[] = {
    {1, 64, 64, 16, 9, F32, F16, F16, {0, 0}, {0, 0}, 70},
    {2, 128, 128, 1, 50, F32, F16, F16, {0, 0}, {0, 0}, 33},
    {3, 80, 40, 4, 20, F16, F16, F16, {0, 0}, {0, 0}, 41},
    {1, 8, 8, 256, 2, F32, F32, F32, {0, 0}, {0, 0}, 300},
    {4, 24, 16, 0, 3, F16, F32, F16, {0, 0}, {0, 0}, 100},
    {2, 192, 128, 64, 3, F32, F16, F32, {0, 0}, {0, 0}, 17},
    // Slices of a fused projection [q 4 x 64 | k 2 x 64 | v 2 x 64], and rows with gaps between heads.
    {2, 64, 64, 16, 6, F32, F16, F16, {512, 64}, {512, 64}, 50},
    {2, 64, 64, 16, 6, F16, F16, F16, {512, 64}, {512, 64}, 50},
    {3, 256, 256, 8, 12, F16, F16, F16, {1000, 264}, {792, 256}, 40},
    {2, 40, 72, 2, 30, F32, F32, F16, {100, 44}, {160, 76}, 25},
    {1, 64, 64, 16, 4, F32, F16, F16, {0, 0}, {0, 0}, 1},
};

static VkmqaType libraryType(OracleType type) {
    return type == F32 ? VKMQA_TYPE_F32 : VKMQA_TYPE_F16;
}

static VkmqaAttention createFor(const AppendShape* shape, VkmqaTier tier) {
    const VkmqaAttentionCreateInfo info = {
        .structSize = sizeof(info),
        .numHeadsQ = shape->numHeadsKv,
        .numHeadsKv = shape->numHeadsKv,
        .headDimQk = shape->headDimQk,
        .headDimV = shape->headDimV,
        .newType = libraryType(shape->source),
        .kType = libraryType(shape->k),
        .vType = libraryType(shape->v),
        .pageSize = shape->pageSize,
        .maxSeqLenKv = CONTIGUOUS_TOKENS,
        .tier = tier,
    };
    VkmqaAttention attention;
    REQUIRE(vkmqaDeviceCreateAttention(harness.device, &info, &attention));
    return attention;
}

static VkmqaStrides packedUnlessGiven(VkmqaStrides strides, uint32_t heads, uint32_t dim) {
    return strides.token ? strides : (VkmqaStrides){heads * dim, dim};
}

// One of K and V: source rows, the cache they go to and what it has to hold afterwards.
typedef struct Side {
    OracleCache cache;
    VkmqaStrides strides;
    Guarded source, memory;
    uint8_t* rows;     // [tokens, heads, dim] of the source type, packed
    uint8_t* expected; // the whole cache
} Side;

static uint8_t* randomBytes(Random* random, size_t size) {
    uint8_t* bytes = malloc(size + 4);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)randomBelow(random, 256);
    return bytes;
}

// rows: packed source rows, taken over.
static Side sideCreate(OracleCache cache, OracleType source, VkmqaStrides strides, uint8_t* rows,
                       const int32_t* slots, uint32_t tokens, Random* random) {
    Side side = {.cache = cache, .rows = rows};
    side.strides = packedUnlessGiven(strides, cache.numHeads, cache.headDim);
    size_t element = oracleElementBytes(source);
    size_t rowBytes = cache.headDim * element;
    size_t elements = (size_t)(tokens - 1) * side.strides.token +
                      (size_t)(cache.numHeads - 1) * side.strides.head + cache.headDim;
    const VkmqaBufferRequirements sourceNeeds = {.size = elements * element};
    const VkmqaBufferRequirements cacheNeeds = {.size = oracleCacheBytes(&cache)};
    side.source = guardedCreate(&sourceNeeds);
    side.memory = guardedCreate(&cacheNeeds);
    uint8_t* strided = randomBytes(random, sourceNeeds.size);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < cache.numHeads; h++)
            memcpy(strided +
                       ((size_t)t * side.strides.token + (size_t)h * side.strides.head) * element,
                   rows + ((size_t)t * cache.numHeads + h) * rowBytes, rowBytes);
    guardedUpload(&side.source, strided);
    free(strided);
    side.expected = randomBytes(random, cacheNeeds.size);
    guardedUpload(&side.memory, side.expected);
    oracleAppend(&cache, side.expected, source, rows, slots, tokens);
    return side;
}

static void sideDestroy(Side* side) {
    guardedDestroy(&side->source);
    guardedDestroy(&side->memory);
    free(side->rows);
    free(side->expected);
}

static void sideCheck(const Side* side, const char* label, const char* name) {
    size_t size = side->memory.range.size;
    uint8_t* stored = malloc(size);
    guardedDownload(&side->memory, stored);
    for (size_t i = 0; i < size; i++)
        if (stored[i] != side->expected[i])
            fail_msg("%s: byte %zu of %s is 0x%02x, should be 0x%02x (row %zu)", label, i, name,
                     stored[i], side->expected[i], i / oracleRowBytes(&side->cache));
    guardedCheck(&side->memory, name);
    guardedCheck(&side->source, "new rows");
    free(stored);
}

static void appendAndCheck(const AppendShape* shape, VkmqaTier tier, uint8_t* rowsK, uint8_t* rowsV,
                           const int32_t* slots, const char* label, Random* random) {
    VkmqaAttention attention = createFor(shape, tier);
    uint32_t pageTokens = shape->pageSize ? shape->pageSize : CONTIGUOUS_TOKENS;
    OracleCache cacheK = {shape->k, shape->numPages, shape->numHeadsKv, pageTokens,
                          shape->headDimQk};
    OracleCache cacheV = {shape->v, shape->numPages, shape->numHeadsKv, pageTokens,
                          shape->headDimV};
    Side k = sideCreate(cacheK, shape->source, shape->strideK, rowsK, slots, shape->tokens, random);
    Side v = sideCreate(cacheV, shape->source, shape->strideV, rowsV, slots, shape->tokens, random);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1, .newTokens = shape->tokens};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaBufferRequirements needs;
    REQUIRE(vkmqaGetStepLayout(attention, &limits, &step.layout, &needs));
    Guarded metadata = guardedCreate(&needs);
    step.metadata = metadata.range;
    int32_t* words = calloc(metadata.range.size, 1);
    memcpy(words + step.layout.slotMapping / 4, slots, 4 * shape->tokens);
    guardedUpload(&metadata, words);
    const VkmqaKv kv = {k.memory.range, v.memory.range, shape->numPages};
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    const VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(commands),
        .step = &step,
        .kv = &kv,
        .newK = k.source.range,
        .newV = v.source.range,
        .strideK = shape->strideK,
        .strideV = shape->strideV,
    };
    REQUIRE(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &info));
    REQUIRE(vkmqaSubmitCommands(commands));
    REQUIRE(vkmqaWaitCommands(commands, 60000000000ull));
    sideCheck(&k, label, "K");
    sideCheck(&v, label, "V");
    guardedDownload(&metadata, words);
    assert_int_equal(words[step.layout.status / 4], 0);
    guardedCheck(&metadata, "metadata");
    free(words);
    vkmqaDestroyCommands(commands);
    guardedDestroy(&metadata);
    sideDestroy(&k);
    sideDestroy(&v);
    vkmqaDestroyAttention(attention);
}

// Distinct slots in random order, every fourth token skipped.
static int32_t* randomSlots(const AppendShape* shape, Random* random) {
    uint32_t pageTokens = shape->pageSize ? shape->pageSize : CONTIGUOUS_TOKENS;
    uint32_t count = shape->numPages * pageTokens;
    int32_t* slots = malloc(sizeof(int32_t) * (count + shape->tokens));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t j = randomBelow(random, i + 1);
        slots[i] = slots[j];
        slots[j] = (int32_t)i;
    }
    for (uint32_t t = 0; t < shape->tokens; t++)
        if (t % 4 == 3 || t >= count)
            slots[t] = -1;
    return slots;
}

static uint8_t* randomRows(const AppendShape* shape, uint32_t dim, Random* random) {
    size_t count = (size_t)shape->tokens * shape->numHeadsKv * dim;
    float* values = malloc(sizeof(float) * count);
    for (size_t i = 0; i < count; i++)
        values[i] = randomNormal(random) * ldexpf(1, (int)randomBelow(random, 24) - 16);
    uint8_t* rows = malloc(count * 4);
    oracleEncode(shape->source, values, count, rows);
    free(values);
    return rows;
}

static void bytesAreTheOracles(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            const AppendShape* shape = &shapes[i];
            Random random = {harness.seed + 31 * i};
            char label[128];
            snprintf(label, sizeof(label), "%s, shape %zu (dims %u/%u, %s to %s/%s, page %u)",
                     tierName(harness.tiers[t]), i, shape->headDimQk, shape->headDimV,
                     oracleTypeName(shape->source), oracleTypeName(shape->k),
                     oracleTypeName(shape->v), shape->pageSize);
            int32_t* slots = randomSlots(shape, &random);
            uint8_t* rowsK = randomRows(shape, shape->headDimQk, &random);
            uint8_t* rowsV = randomRows(shape, shape->headDimV, &random);
            appendAndCheck(shape, harness.tiers[t], rowsK, rowsV, slots, label, &random);
            free(slots);
        }
    }
}

// f32 values at and around every place where rounding to f16 changes, both signs, and the special ones.
static float* criticalValues(size_t* count) {
    float* values = malloc(sizeof(float) * (0x7C00 * 8 + 64));
    size_t n = 0;
    for (uint32_t low = 0; low < 0x7C00; low++) {
        double below = oracleF32FromF16((uint16_t)low);
        double above = low == 0x7BFF ? 65536 : (double)oracleF32FromF16((uint16_t)(low + 1));
        float tie = (float)((below + above) / 2);
        const float near[] = {(float)below, tie, nextafterf(tie, 0), nextafterf(tie, INFINITY)};
        for (int i = 0; i < 4; i++) {
            values[n++] = near[i];
            values[n++] = -near[i];
        }
    }
    static const uint32_t special[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF,
                                       0x00800000, 0x33000000, 0x33000001, 0x32FFFFFF, 0x477FEFFF,
                                       0x477FF000, 0x477FFFFF, 0x47800000, 0x7F7FFFFF, 0xFF7FFFFF,
                                       0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001,
                                       0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FA00000};
    memcpy(values + n, special, sizeof(special));
    n += COUNT(special);
    while (n % 64)
        values[n++] = 0;
    *count = n;
    return values;
}

static void specialValuesConvertExactly(void** state) {
    (void)state;
    size_t count;
    float* values = criticalValues(&count);
    AppendShape shape = {1, 64, 64, 256, 0, F32, F16, F32, {0, 0}, {0, 0}, (uint32_t)(count / 64)};
    shape.numPages = shape.tokens / 256 + 1;
    int32_t* slots = malloc(sizeof(int32_t) * shape.tokens);
    for (uint32_t i = 0; i < shape.tokens; i++)
        slots[i] = (int32_t)i;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        Random random = {1};
        uint8_t* rows[2];
        for (int i = 0; i < 2; i++) {
            rows[i] = malloc(count * 4);
            memcpy(rows[i], values, count * 4);
        }
        appendAndCheck(&shape, harness.tiers[t], rows[0], rows[1], slots,
                       tierName(harness.tiers[t]), &random);
    }
    free(slots);
    free(values);
}

// Every f16 there is, to f16 and to f32. NaN is left to the next test: a NaN may lose its payload on
// the way to f32.
static void f16SourcesAreExact(void** state) {
    (void)state;
    AppendShape shape = {1, 64, 64, 64, 16, F16, F16, F32, {0, 0}, {0, 0}, 65536 / 64};
    int32_t slots[65536 / 64];
    for (int32_t i = 0; i < 65536 / 64; i++)
        slots[i] = i;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        Random random = {2};
        uint8_t* rows[2];
        for (int i = 0; i < 2; i++) {
            rows[i] = malloc(65536 * 2);
            for (uint32_t bits = 0; bits < 65536; bits++)
                ((uint16_t*)rows[i])[bits] = (bits & 0x7FFF) > 0x7C00 ? 0x3C00 : (uint16_t)bits;
        }
        appendAndCheck(&shape, harness.tiers[t], rows[0], rows[1], slots,
                       tierName(harness.tiers[t]), &random);
    }
}

static void f16NanIsCanonical(void** state) {
    (void)state;
    AppendShape shape = {1, 8, 8, 16, 1, F16, F16, F16, {0, 0}, {0, 0}, 1};
    static const uint16_t nans[8] = {0x7E00, 0xFE00, 0x7C01, 0xFC01,
                                     0x7FFF, 0xFFFF, 0x7D00, 0x3C00};
    const int32_t slot = 5;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        Random random = {3};
        uint8_t* rows[2];
        for (int i = 0; i < 2; i++) {
            rows[i] = malloc(sizeof(nans));
            memcpy(rows[i], nans, sizeof(nans));
        }
        appendAndCheck(&shape, harness.tiers[t], rows[0], rows[1], &slot,
                       tierName(harness.tiers[t]), &random);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(bytesAreTheOracles),
    cmocka_unit_test(specialValuesConvertExactly),
    cmocka_unit_test(f16SourcesAreExact),
    cmocka_unit_test(f16NanIsCanonical),
};

HARNESS_MAIN(tests)

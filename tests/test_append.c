// The bytes that vkmqaCmdAppendKv leaves in the cache: equal to the oracle's, and every other byte as it
// was. Rotation is test_rotate's.
#include "harness.h"

#include <float.h>
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

typedef struct AppendShape {
    uint32_t numHeadsKv, headDimQk, headDimV, pageSize, numPages;
    OracleType source, k, v;
    VkmqaStrides strideK, strideV; // 0 = packed
    uint32_t tokens;
    Fp8Scales scales;
} AppendShape;

static const AppendShape shapes[] = {
    {1, 64, 64, 16, 9, F32, F16, F16, {0, 0}, {0, 0}, 70, 0},
    {2, 128, 128, 1, 50, F32, F16, F16, {0, 0}, {0, 0}, 33, 0},
    {3, 80, 40, 4, 20, F16, F16, F16, {0, 0}, {0, 0}, 41, 0},
    {1, 8, 8, 256, 2, F32, F32, F32, {0, 0}, {0, 0}, 300, 0},
    {4, 24, 16, 0, 3, F16, F32, F16, {0, 0}, {0, 0}, 100, 0},
    {2, 192, 128, 64, 3, F32, F16, F32, {0, 0}, {0, 0}, 17, 0},
    // Slices of a fused projection [q 4 x 64 | k 2 x 64 | v 2 x 64], and rows with gaps between heads.
    {2, 64, 64, 16, 6, F32, F16, F16, {512, 64}, {512, 64}, 50, 0},
    {2, 64, 64, 16, 6, F16, F16, F16, {512, 64}, {512, 64}, 50, 0},
    {3, 256, 256, 8, 12, F16, F16, F16, {1000, 264}, {792, 256}, 40, 0},
    {2, 40, 72, 2, 30, F32, F32, F16, {100, 44}, {160, 76}, 25, 0},
    {1, 64, 64, 16, 4, F32, F16, F16, {0, 0}, {0, 0}, 1, 0},
    // The other types: rows that end in a padded, a short or the only block.
    {2, 64, 64, 16, 5, BF16, BF16, F32, {0, 0}, {0, 0}, 50, 0},
    {1, 576, 512, 64, 2, BF16, BF16, BF16, {0, 0}, {0, 0}, 70, 0},
    {3, 40, 8, 1, 60, F32, FP8, FP8, {0, 0}, {0, 0}, 40, FP8_UNSCALED},
    {2, 128, 24, 16, 5, F16, FP8, FP8, {0, 0}, {0, 0}, 60, FP8_POWERS},
    {4, 64, 72, 0, 2, BF16, FP8, FP8, {0, 0}, {0, 0}, 90, FP8_ANY},
    {1, 64, 128, 16, 5, F32, Q8, Q8, {0, 0}, {0, 0}, 60, 0},
    {3, 40, 72, 4, 20, F16, Q8, Q8, {0, 0}, {0, 0}, 50, 0},
    {2, 8, 24, 256, 1, F32, Q8, Q4, {0, 0}, {0, 0}, 99, 0},
    {1, 128, 64, 64, 2, BF16, Q4, Q4, {0, 0}, {0, 0}, 80, 0},
    {3, 104, 40, 1, 50, F32, Q4, Q8, {0, 0}, {0, 0}, 40, 0},
    {2, 256, 576, 0, 2, F16, Q4, F16, {0, 0}, {0, 0}, 60, 0},
    {2, 64, 64, 8, 10, F16, Q8, Q4, {512, 64}, {512, 64}, 50, 0},
    {2, 96, 96, 8, 10, BF16, F16, Q8, {640, 104}, {608, 96}, 40, 0},
    {1, 32, 32, 2, 20, F32, BF16, Q4, {44, 32}, {36, 32}, 30, 0},
    {8, 64, 64, 128, 1, F32, FP8, Q8, {0, 0}, {0, 0}, 33, FP8_POWERS},
    // V a prefix of K: nothing of V is read or written.
    {1, 576, 0, 64, 2, F32, Q8, Q8, {0, 0}, {0, 0}, 70, 0},
    {1, 96, 0, 16, 4, BF16, F16, F16, {104, 96}, {0, 0}, 40, 0},
};

static AppendCase caseOf(const AppendShape* shape) {
    const AppendCase given = {
        .model = {.numHeadsQ = shape->numHeadsKv,
                  .numHeadsKv = shape->numHeadsKv,
                  .headDimQk = shape->headDimQk,
                  .headDimV = shape->headDimV ? shape->headDimV : 8,
                  .pageSize = shape->pageSize,
                  .io = F16,
                  .k = shape->k,
                  .v = shape->v,
                  .source = shape->source,
                  .flags = shape->headDimV ? 0 : VKMQA_ATTENTION_V_PREFIX_OF_K_BIT,
                  .fp8Scales = shape->scales},
        .numPages = shape->numPages,
        .tokens = shape->tokens,
        .strideK = shape->strideK,
        .strideV = shape->strideV,
    };
    return given;
}

// Distinct slots in random order, every fourth token skipped.
static int32_t* randomSlots(const AppendCase* given, Random* random) {
    uint32_t count = given->numPages * appendPageTokens(given);
    int32_t* slots = malloc(sizeof(int32_t) * (count + given->tokens));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t j = randomBelow(random, i + 1);
        slots[i] = slots[j];
        slots[j] = (int32_t)i;
    }
    for (uint32_t t = 0; t < given->tokens; t++)
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

static const float* randomScales(Fp8Scales kind, OracleType type, float* scales, Random* random) {
    for (int i = 0; i < 8; i++)
        scales[i] = ldexpf(kind == FP8_ANY ? 1 + (float)randomBelow(random, 1000) / 999 : 1,
                           (int)randomBelow(random, 9) - 6);
    return kind == FP8_UNSCALED || type != FP8 ? NULL : scales;
}

static void bytesAreTheOracles(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        for (uint32_t t = 0; t < harness.tierCount; t++) {
            const AppendShape* shape = &shapes[i];
            if (!legHasPart(i) || (i >= 11 && !tierHasTurn(t, i))) // the first are every tier's
                continue;
            Random random = randomFor(harness.seed, 31, i);
            AppendCase given = caseOf(shape);
            char label[160];
            snprintf(label, sizeof(label), "%s, shape %zu (dims %u/%u, %s to %s/%s, page %u)",
                     tierName(harness.tiers[t]), i, shape->headDimQk, shape->headDimV,
                     oracleTypeName(shape->source), oracleTypeName(shape->k),
                     oracleTypeName(shape->v), shape->pageSize);
            int32_t* slots = randomSlots(&given, &random);
            uint8_t* rowsK = randomRows(shape, shape->headDimQk, &random);
            uint8_t* rowsV = shape->headDimV ? randomRows(shape, shape->headDimV, &random) : NULL;
            float scales[2][8];
            given.slots = slots;
            given.rowsK = rowsK;
            given.rowsV = rowsV;
            given.kScales = randomScales(shape->scales, shape->k, scales[0], &random);
            given.vScales = randomScales(shape->scales, shape->v, scales[1], &random);
            appendCheck(&given, harness.tiers[t], label);
            free(slots);
            free(rowsK);
            free(rowsV);
        }
    }
}

// ---- Values where rounding changes -----------------------------------------------------------------

// The same f32 values as K and as V, in rows of so many, on every tier.
static void appendValues(const float* values, size_t count, uint32_t dim, OracleType k,
                         OracleType v, const char* what) {
    AppendShape shape = {1, dim, dim, 256, 0, F32, k, v, {0, 0}, {0, 0}, (uint32_t)(count / dim),
                         0};
    shape.numPages = shape.tokens / 256 + 1;
    int32_t* slots = malloc(sizeof(int32_t) * shape.tokens);
    for (uint32_t i = 0; i < shape.tokens; i++)
        slots[i] = (int32_t)i;
    AppendCase given = caseOf(&shape);
    given.slots = slots;
    given.rowsK = given.rowsV = values;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        char label[96];
        snprintf(label, sizeof(label), "%s, %s", tierName(harness.tiers[t]), what);
        appendCheck(&given, harness.tiers[t], label);
    }
    free(slots);
}

// f32 values at and around every place where rounding to the type changes, both signs, and special ones.
static float* criticalValues(OracleType type, uint32_t infinity, size_t* count) {
    float* values = malloc(sizeof(float) * (infinity * 8 + 128));
    size_t n = 0;
    for (uint32_t low = 0; low < infinity; low++) {
        uint32_t next = low + 1;
        float below, above;
        oracleDecode(type, &low, 1, &below);
        oracleDecode(type, &next, 1, &above);
        if (type == F16 && next == infinity)
            above = 65536;
        float tie = type == BF16 && next == infinity ? 0x1.FFp127f : below / 2 + above / 2;
        const float near[] = {below, tie, nextafterf(tie, 0), nextafterf(tie, INFINITY)};
        for (int i = 0; i < 4; i++) {
            values[n++] = near[i];
            values[n++] = -near[i];
        }
    }
    static const uint32_t special[] = {
        0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x33000000,
        0x33000001, 0x32FFFFFF, 0x477FEFFF, 0x477FF000, 0x477FFFFF, 0x47800000, 0x7F7FFFFF,
        0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001,
        0x7FFFFFFF, 0xFFFFFFFF, 0x7FA00000, 0x43E00000, 0x43E80000, 0x43E7FFFF, 0x43E80001,
        0xC3F00000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7F8001};
    memcpy(values + n, special, sizeof(special));
    n += COUNT(special);
    while (n % 64)
        values[n++] = 0;
    *count = n;
    return values;
}

static void f16RoundsExactly(void** state) {
    (void)state;
    size_t count;
    float* values = criticalValues(F16, 0x7C00, &count);
    appendValues(values, count, 64, F16, F32, "f16");
    free(values);
}

static void bf16RoundsExactly(void** state) {
    (void)state;
    size_t count;
    float* values = criticalValues(BF16, 0x7F80, &count);
    appendValues(values, count, 64, F32, BF16, "bf16");
    free(values);
}

static void fp8RoundsExactly(void** state) {
    (void)state;
    size_t count;
    float* values = criticalValues(FP8, 0x7E, &count);
    appendValues(values, count, 64, FP8, FP8, "fp8");
    free(values);
}

// ---- Blocks ----------------------------------------------------------------------------------------

typedef struct Blocks {
    float* values;
    size_t count; // of blocks
} Blocks;

static float* addBlock(Blocks* blocks, float filling) {
    blocks->values = realloc(blocks->values, sizeof(float) * ORACLE_BLOCK * (blocks->count + 2));
    float* block = blocks->values + ORACLE_BLOCK * blocks->count++;
    for (int i = 0; i < ORACLE_BLOCK; i++)
        block[i] = filling;
    return block;
}

static void addSpecialBlocks(Blocks* blocks) {
    static const float fillings[] = {
        0,         -0.0f,      NAN,      INFINITY,     -INFINITY,      FLT_MAX,
        -FLT_MAX,  1,          -1,       65504.0f * 8, 65504.0f * 127, 65504.0f * 128,
        0x1p-149f, -0x1p-127f, 0x1p-60f, 0x1p-25f};
    for (size_t i = 0; i < COUNT(fillings); i++) {
        addBlock(blocks, fillings[i]);
        addBlock(blocks, 0)[13] = fillings[i]; // alone
        addBlock(blocks, 0.75f)[31] = fillings[i];
        float* both = addBlock(blocks, fillings[i]);
        both[16] = -fillings[i];
        both = addBlock(blocks, NAN);
        both[2] = fillings[i];
    }
    // The first value of largest magnitude decides q4_0's sign, wherever it stands.
    for (int first = 0; first < ORACLE_BLOCK; first++) {
        float* block = addBlock(blocks, 0.5f);
        block[first] = first % 2 ? -3 : 3;
        for (int i = first + 1; i < ORACLE_BLOCK; i++)
            block[i] = i % 2 ? 3 : -3;
    }
}

// Codes at ties and next to them: with amax = 127, or m = -8, codes are the values themselves.
static void addTies(Blocks* blocks) {
    for (int i = 0; i < 8; i++) {
        float* q8 = addBlock(blocks, 127);
        float* q4 = addBlock(blocks, -8);
        for (int j = 1; j < ORACLE_BLOCK; j++) {
            float nudge = (float[]){0, 0x1p-10f, -0x1p-10f, 0x1p-12f}[j % 4];
            q4 = blocks->values + ORACLE_BLOCK * (blocks->count - 1);
            q8 = q4 - ORACLE_BLOCK;
            q8[j] = ((float)(i * 16 + j / 2 - 64) + 0.5f) + nudge;
            q4[j] = ((float)(j / 2 - 8) + 0.5f) + nudge;
        }
    }
}

static void addRandomBlocks(Blocks* blocks, Random* random) {
    for (int i = 0; i < 2000; i++) {
        float* block = addBlock(blocks, 0);
        // From where f32 is only just normal, past where the scale is an f16 denormal or 0, to where it
        // would overflow.
        int exponent =
            i < 1000 ? (int)randomBelow(random, 12) - 6 : (int)randomBelow(random, 220) - 110;
        for (int j = 0; j < ORACLE_BLOCK; j++)
            block[j] = randomNormal(random) * ldexpf(1, exponent);
    }
    for (int i = 0; i < 200; i++) { // scales around the ties of f16
        float* block = addBlock(blocks, 0);
        float scale = oracleF32FromF16((uint16_t)randomBelow(random, 0x7BFF));
        float above = oracleF32FromF16((uint16_t)(oracleF16FromF32(scale) + 1));
        block[randomBelow(random, 32)] = (scale + above) / 2 * (i % 2 ? 127 : -8);
        block[0] += scale;
    }
}

static void blocksAreExact(void** state) {
    (void)state;
    Random random = randomFor(harness.seed, 5, 5);
    Blocks blocks = {0};
    addSpecialBlocks(&blocks);
    addTies(&blocks);
    addRandomBlocks(&blocks, &random);
    appendValues(blocks.values, blocks.count * ORACLE_BLOCK, ORACLE_BLOCK, Q8, Q4, "blocks");
    free(blocks.values);
}

// Largest magnitudes so small that 127 / amax is no f32, or that d is a denormal.
static void blocksOfTinyValuesAreExact(void** state) {
    (void)state;
    Random random = randomFor(harness.seed, 5, 6);
    Blocks blocks = {0};
    for (int exponent = -126; exponent <= -110; exponent++)
        for (int i = 0; i < 8; i++) {
            float* block = addBlock(&blocks, 0);
            for (int j = 0; j < ORACLE_BLOCK; j++)
                block[j] = randomNormal(&random) * ldexpf(1, exponent);
        }
    appendValues(blocks.values, blocks.count * ORACLE_BLOCK, ORACLE_BLOCK, Q8, Q4, "tiny blocks");
    free(blocks.values);
}

// A row's last block is short: the values behind the row are not part of it, and large ones there would
// show in its scale.
static void shortBlocksEndInZeros(void** state) {
    (void)state;
    enum { DIM = 40, TOKENS = 20, STRIDE = 48 };
    AppendShape shape = {1, DIM, DIM, 16, 2, F32, Q8, Q4, {STRIDE, DIM}, {STRIDE, DIM}, TOKENS, 0};
    float rows[TOKENS * DIM];
    int32_t slots[TOKENS];
    for (int i = 0; i < TOKENS * DIM; i++)
        rows[i] = (float)(i % 11 - 5) * (i % DIM < 32 ? 100 : 0.01f);
    for (int i = 0; i < TOKENS; i++)
        slots[i] = i;
    AppendCase given = caseOf(&shape);
    given.slots = slots;
    given.rowsK = given.rowsV = rows;
    for (uint32_t t = 0; t < harness.tierCount; t++)
        appendCheck(&given, harness.tiers[t], tierName(harness.tiers[t]));
}

// ---- 16-bit sources --------------------------------------------------------------------------------

// Every number there is, to its own type and to f32. NaN is left to the next test: it may lose its
// payload on the way to f32.
static void everySourceIsExact(OracleType type, uint32_t infinity, uint16_t one) {
    AppendShape shape = {1, 64, 64, 64, 16, type, type, F32, {0, 0}, {0, 0}, 65536 / 64, 0};
    int32_t slots[65536 / 64];
    uint16_t* rows = malloc(65536 * 2);
    for (int32_t i = 0; i < 65536 / 64; i++)
        slots[i] = i;
    for (uint32_t bits = 0; bits < 65536; bits++)
        rows[bits] = (bits & 0x7FFF) > infinity ? one : (uint16_t)bits;
    AppendCase given = caseOf(&shape);
    given.slots = slots;
    given.rowsK = given.rowsV = rows;
    for (uint32_t t = 0; t < harness.tierCount; t++)
        appendCheck(&given, harness.tiers[t], tierName(harness.tiers[t]));
    free(rows);
}

static void sourcesAreExact(void** state) {
    (void)state;
    everySourceIsExact(F16, 0x7C00, 0x3C00);
    everySourceIsExact(BF16, 0x7F80, 0x3F80);
}

static void nanIsCanonical(void** state) {
    (void)state;
    static const struct {
        OracleType source, k, v;
        uint16_t rows[8];
    } cases[] = {
        {F16, F16, FP8, {0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7FFF, 0xFFFF, 0x7D00, 0x3C00}},
        {BF16, BF16, F16, {0x7FC0, 0xFFC0, 0x7F81, 0xFF81, 0x7FFF, 0xFFFF, 0x7FA0, 0x3F80}},
    };
    const int32_t slot = 5;
    for (size_t i = 0; i < COUNT(cases); i++) {
        AppendShape shape = {1,          8,          8,      16,     1, cases[i].source,
                             cases[i].k, cases[i].v, {0, 0}, {0, 0}, 1, 0};
        AppendCase given = caseOf(&shape);
        given.slots = &slot;
        given.rowsK = given.rowsV = cases[i].rows;
        for (uint32_t t = 0; t < harness.tierCount; t++)
            appendCheck(&given, harness.tiers[t], tierName(harness.tiers[t]));
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(bytesAreTheOracles),    cmocka_unit_test(f16RoundsExactly),
    cmocka_unit_test(bf16RoundsExactly),     cmocka_unit_test(fp8RoundsExactly),
    cmocka_unit_test(blocksAreExact),        cmocka_unit_test(blocksOfTinyValuesAreExact),
    cmocka_unit_test(shortBlocksEndInZeros), cmocka_unit_test(sourcesAreExact),
    cmocka_unit_test(nanIsCanonical),
};

HARNESS_MAIN(tests)

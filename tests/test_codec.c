// The oracle's number formats, blocks and cache layout against what can be worked out by hand. Needs no
// device.
#include "oracle.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assertNear(double got, double expected, double error) {
    if (!(fabs(got - expected) <= error))
        fail_msg("got %.17g, expected %.17g within %g", got, expected, error);
}

static void f16RoundTrips(void** state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = oracleF32FromF16((uint16_t)bits);
        bool nan = (bits & 0x7FFF) > 0x7C00;
        assert_int_equal(isnan(value) != 0, nan);
        assert_int_equal(oracleF16FromF32(value), nan ? 0x7E00 : bits);
    }
    assertNear(oracleF32FromF16(0x3C00), 1, 0);
    assertNear(oracleF32FromF16(0xC580), -5.5, 0);
    assertNear(oracleF32FromF16(0x7BFF), 65504, 0);
    assertNear(oracleF32FromF16(0x0001), ldexp(1, -24), 0);
    assert_true(oracleF32FromF16(0x7C00) == INFINITY);
}

// Half way between two neighbours goes to the even one, anything past half way to the nearer one.
static void f16RoundsToNearestEven(void** state) {
    (void)state;
    for (uint32_t low = 0; low < 0x7C00; low++) {
        double below = oracleF32FromF16((uint16_t)low);
        double above = low == 0x7BFF ? 65536 : (double)oracleF32FromF16((uint16_t)(low + 1));
        float tie = (float)((below + above) / 2); // exact: one more bit than f16
        uint32_t even = low & 1 ? low + 1 : low;
        assert_int_equal(oracleF16FromF32(tie), even);
        assert_int_equal(oracleF16FromF32(nextafterf(tie, 0)), low);
        assert_int_equal(oracleF16FromF32(nextafterf(tie, INFINITY)), low + 1);
        assert_int_equal(oracleF16FromF32(-tie), 0x8000 | even);
    }
    assert_int_equal(oracleF16FromF32(-0.0f), 0x8000);
    assert_int_equal(oracleF16FromF32(ldexpf(1, -149)), 0);
    assert_int_equal(oracleF16FromF32(-INFINITY), 0xFC00);
    assert_int_equal(oracleF16FromF32(-NAN), 0x7E00);
}

static void cacheRowsStandWhereTheLayoutSays(void** state) {
    (void)state;
    // [page, head, offset, row]: 3 pages of 4 tokens, 2 heads, rows of 8 f16 = 16 bytes.
    OracleCache cache = {ORACLE_F16, 3, 2, 4, 8, NULL};
    assert_int_equal(oracleRowBytes(&cache), 16);
    assert_int_equal(oracleCacheBytes(&cache), 3 * 2 * 4 * 16);
    assert_int_equal(oracleRowOffset(&cache, 0, 0), 0);
    assert_int_equal(oracleRowOffset(&cache, 3, 0), 3 * 16);
    assert_int_equal(oracleRowOffset(&cache, 3, 1), (4 + 3) * 16);
    assert_int_equal(oracleRowOffset(&cache, 9, 1), ((2 * 2 + 1) * 4 + 1) * 16);

    uint8_t image[3 * 2 * 4 * 16];
    memset(image, 0xEE, sizeof(image));
    float rows[3][2][8];
    for (int i = 0; i < 3 * 2 * 8; i++)
        (&rows[0][0][0])[i] = (float)i;
    const int32_t slots[3] = {9, -1, 0};
    oracleAppend(&cache, image, NULL, &rows[0][0][0], slots, 3);
    float gathered[2 * 8];
    const int32_t nine = 9;
    oracleGather(&cache, image, &nine, 1, gathered);
    assert_memory_equal(gathered, rows[0], sizeof(gathered));
    size_t written = 0;
    for (size_t i = 0; i < sizeof(image); i += 16)
        written += image[i + 15] != 0xEE; // the top byte of an f16 below 2^15 is never 0xEE
    assert_int_equal(written, 4);
}

static void bf16RoundsToNearestEven(void** state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        bool nan = (bits & 0x7FFF) > 0x7F80;
        assert_int_equal(oracleBf16FromF32(oracleF32FromBf16((uint16_t)bits)), nan ? 0x7FC0 : bits);
    }
    for (uint32_t low = 0; low < 0x7F80; low++) {
        uint32_t tieBits = low << 16 | 0x8000;
        float tie;
        memcpy(&tie, &tieBits, 4);
        assert_int_equal(oracleBf16FromF32(tie), low & 1 ? low + 1 : low);
        assert_int_equal(oracleBf16FromF32(nextafterf(tie, 0)), low);
        assert_int_equal(oracleBf16FromF32(nextafterf(tie, INFINITY)), low + 1);
        assert_int_equal(oracleBf16FromF32(-tie), 0x8000 | (low & 1 ? low + 1 : low));
    }
    assert_int_equal(oracleBf16FromF32(-INFINITY), 0xFF80);
    assert_int_equal(oracleBf16FromF32(-NAN), 0x7FC0);
    assertNear(oracleF32FromBf16(0x3FC0), 1.5, 0);
}

static void fp8IsE4m3fn(void** state) {
    (void)state;
    for (uint32_t bits = 0; bits < 256; bits++) {
        float value = oracleF32FromFp8((uint8_t)bits);
        bool nan = (bits & 0x7F) == 0x7F;
        assert_int_equal(isnan(value) != 0, nan);
        assert_int_equal(oracleFp8FromF32(value), nan ? 0x7F : bits);
    }
    assertNear(oracleF32FromFp8(0x38), 1, 0);
    assertNear(oracleF32FromFp8(0x7E), 448, 0);
    assertNear(oracleF32FromFp8(0x01), ldexp(1, -9), 0);
    assertNear(oracleF32FromFp8(0x08), ldexp(1, -6), 0);
    assertNear(oracleF32FromFp8(0xC5), -3.25, 0);
    for (uint32_t low = 0; low < 0x7E; low++) {
        float tie = (oracleF32FromFp8((uint8_t)low) + oracleF32FromFp8((uint8_t)(low + 1))) / 2;
        assert_int_equal(oracleFp8FromF32(tie), low & 1 ? low + 1 : low);
        assert_int_equal(oracleFp8FromF32(nextafterf(tie, 0)), low);
        assert_int_equal(oracleFp8FromF32(nextafterf(tie, INFINITY)), low + 1);
    }
    const float large[] = {449, 464, 465, 1e30f, INFINITY};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(oracleFp8FromF32(large[i]), 0x7E);
        assert_int_equal(oracleFp8FromF32(-large[i]), 0xFE);
    }
    assert_int_equal(oracleFp8FromF32(-0.0f), 0x80);
    assert_int_equal(oracleFp8FromF32(-NAN), 0x7F);
}

static void q8BlocksAreGgmls(void** state) {
    (void)state;
    float x[32] = {0};
    OracleBlock block;
    x[0] = 127;
    x[1] = -127;
    x[2] = 1.4f;
    x[3] = -1.6f;
    x[4] = 2.5f; // a tie: away from zero, and both are right
    x[5] = NAN;
    x[6] = ldexpf(1, -130);
    oracleEncodeBlock(ORACLE_Q8_0, x, 32, &block);
    assert_int_equal(block.scale, 0x3C00);
    const int codes[] = {127, -127, 1, -2, 3, 0, 0, 0}, others[] = {127, -127, 1, -2, 2, 0, 0, 0};
    assert_memory_equal(block.codes, codes, sizeof(codes));
    assert_memory_equal(block.others, others, sizeof(others));
    // Infinity counts as the largest value whose scale is finite.
    x[0] = INFINITY;
    oracleEncodeBlock(ORACLE_Q8_0, x, 32, &block);
    assert_int_equal(block.scale, 0x7BFF);
    assert_int_equal(block.codes[0], 127);
    // Nothing but zeros, and a block of nothing but denormals.
    for (int i = 0; i < 32; i++)
        x[i] = i % 2 ? 0 : -ldexpf(1, -127);
    oracleEncodeBlock(ORACLE_Q8_0, x, 32, &block);
    assert_int_equal(block.scale, 0);
    for (int i = 0; i < 32; i++)
        assert_int_equal(block.codes[i] | block.others[i], 0);
}

static void q4BlocksAreGgmls(void** state) {
    (void)state;
    float x[32] = {0};
    OracleBlock block;
    x[0] = 4;
    x[1] = -8; // m: d = 1, so the code of x is trunc(x + 8.5)
    x[2] = 8;  // as large, but later; 16.5 is cut to 15
    x[3] = 0.4f;
    x[4] = -0.6f;
    x[5] = 2.5f; // a tie
    oracleEncodeBlock(ORACLE_Q4_0, x, 7, &block);
    assert_int_equal(block.scale, 0x3C00);
    const int codes[] = {12, 0, 15, 8, 7, 11, 8, 8}, others[] = {12, 0, 15, 8, 7, 10, 8, 8};
    assert_memory_equal(block.codes, codes, sizeof(codes));
    assert_memory_equal(block.others, others, sizeof(others));
    x[1] = INFINITY;
    oracleEncodeBlock(ORACLE_Q4_0, x, 7, &block);
    assert_int_equal(block.scale, 0xFBFF);
    assert_int_equal(block.codes[1], 0);
    for (int i = 0; i < 32; i++)
        x[i] = i == 7 ? NAN : 0;
    oracleEncodeBlock(ORACLE_Q4_0, x, 32, &block);
    assert_int_equal(block.scale, 0);
    for (int i = 0; i < 32; i++)
        assert_int_equal(block.codes[i], 8);
}

static void blocksStandInTwoPlanes(void** state) {
    (void)state;
    // Rows of 40 elements: 2 blocks, 2 scales of 2 bytes. 2 pages of 4 tokens, 2 heads: 16 rows.
    OracleCache q8 = {ORACLE_Q8_0, 2, 2, 4, 40, NULL};
    assert_int_equal(oracleRowBytes(&q8), 64);
    assert_int_equal(oracleScaleBytes(&q8), 4);
    assert_int_equal(oracleScalesOffset(&q8), 16 * 64);
    assert_int_equal(oracleCacheBytes(&q8), 16 * 68);
    OracleCache q4 = {ORACLE_Q4_0, 2, 2, 4, 72, NULL}; // 3 blocks: 6 bytes of scales, padded to 8
    assert_int_equal(oracleRowBytes(&q4), 48);
    assert_int_equal(oracleScaleBytes(&q4), 8);
    OracleCache fp8 = {ORACLE_FP8, 2, 2, 4, 40, (float[]){0.5f, 4}};
    assert_int_equal(oracleRowBytes(&fp8), 48);
    assert_int_equal(oracleScaleBytes(&fp8), 0);

    uint8_t image[16 * 56];
    memset(image, 0xEE, sizeof(image));
    float row[2][72];
    for (int i = 0; i < 144; i++)
        (&row[0][0])[i] = (float)((5 * i + i / 16) % 8 - 8); // m = -8, d = 1 in every block
    const int32_t slot = 5;                                  // page 1, offset 1
    oracleAppend(&q4, image, NULL, &row[0][0], &slot, 1);
    size_t at = oracleRowOffset(&q4, 5, 1), scales = oracleScaleOffset(&q4, 5, 1);
    assert_int_equal(at, ((1 * 2 + 1) * 4 + 1) * 48);
    assert_int_equal(scales, 16 * 48 + ((1 * 2 + 1) * 4 + 1) * 8);
    // Elements 0 and 16 of head 1 are numbers 72 and 88 of the count: -4 and -3, codes 4 and 5.
    assert_int_equal(image[at], 0x54);
    const uint8_t expected[8] = {0x00, 0x3C, 0x00, 0x3C, 0x00, 0x3C, 0, 0};
    assert_memory_equal(image + scales, expected, 8);
    float back[2][72];
    oracleGather(&q4, image, &slot, 1, &back[0][0]);
    assert_memory_equal(back, row, sizeof(row)); // whole numbers: nothing is lost
    float eight[2][40], eightBack[2][40];
    for (int i = 0; i < 80; i++)
        (&eight[0][0])[i] = i < 40 ? 0.5f * 3.25f : 4 * -448.0f;
    oracleAppend(&fp8, image, NULL, &eight[0][0], &slot, 1);
    oracleGather(&fp8, image, &slot, 1, &eightBack[0][0]);
    assert_memory_equal(eightBack, eight, sizeof(eight));
    assert_int_equal(image[oracleRowOffset(&fp8, 5, 0)], 0x45);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16RoundTrips),
        cmocka_unit_test(f16RoundsToNearestEven),
        cmocka_unit_test(cacheRowsStandWhereTheLayoutSays),
        cmocka_unit_test(bf16RoundsToNearestEven),
        cmocka_unit_test(fp8IsE4m3fn),
        cmocka_unit_test(q8BlocksAreGgmls),
        cmocka_unit_test(q4BlocksAreGgmls),
        cmocka_unit_test(blocksStandInTwoPlanes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// The oracle against arithmetic that can be done by hand, and against case files written by somebody
// else's oracle. Needs no device.
#include "casefile.h"
#include "oracle.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef VKMQA_TEST_CASES
#define VKMQA_TEST_CASES "tests/cases"
#endif

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
    OracleCache cache = {ORACLE_F16, 3, 2, 4, 8};
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
    oracleAppend(&cache, image, ORACLE_F32, rows, slots, 3);
    float gathered[2 * 8];
    const int32_t nine = 9;
    oracleGather(&cache, image, &nine, 1, gathered);
    assert_memory_equal(gathered, rows[0], sizeof(gathered));
    size_t written = 0;
    for (size_t i = 0; i < sizeof(image); i += 16)
        written += image[i + 15] != 0xEE; // the top byte of an f16 below 2^15 is never 0xEE
    assert_int_equal(written, 4);
}

// One query head over tokens with given scores and values.
static void attend(int32_t tokens, const float* scores, const float* values, double* out,
                   double* lse) {
    const int32_t cu[2] = {0, 1};
    float q = 1;
    OracleProblem problem = {.batch = 1,
                             .numHeadsQ = 1,
                             .numHeadsKv = 1,
                             .headDimQk = 1,
                             .headDimV = 1,
                             .cuSeqlensQ = cu,
                             .seqLensKv = &tokens,
                             .q = &q,
                             .k = scores,
                             .v = values,
                             .scale = 1};
    oracleAttention(&problem, out, lse);
    float plainOut, plainLse;
    oraclePlainAttention(&problem, &plainOut, &plainLse);
    assertNear(plainOut, *out, 1e-6 * (1 + fabs(*out)));
    if (isfinite(*lse))
        assertNear(plainLse, *lse, 1e-6 * (1 + fabs(*lse)));
    else
        assert_true(plainLse == *lse);
}

static void closedForms(void** state) {
    (void)state;
    double out, lse;
    attend(1, (float[]){2.5f}, (float[]){7}, &out, &lse);
    assertNear(out, 7, 0);
    assertNear(lse, 2.5, 0);
    attend(4, (float[]){3, 3, 3, 3}, (float[]){1, 2, 3, 10}, &out, &lse);
    assertNear(out, 4, 1e-15);
    assertNear(lse, 3 + log(4), 1e-15);
    float ln3 = logf(3);
    attend(2, (float[]){ln3, 0}, (float[]){8, 4}, &out, &lse);
    assertNear(out, 7, 1e-6); // 3/4 of 8 and 1/4 of 4
    assertNear(lse, log(4), 1e-6);
    attend(3, (float[]){1000, 0, -1000}, (float[]){5, 1, 1}, &out, &lse);
    assertNear(out, 5, 0);
    assertNear(lse, 1000, 0);
    attend(0, NULL, NULL, &out, &lse);
    assertNear(out, 0, 0);
    assert_true(isinf(lse) && lse < 0);
}

// With q = 0 every visible token counts the same, so values that are powers of two tell which ones
// were visible.
static void causalIsBottomRight(void** state) {
    (void)state;
    const int32_t cu[4] = {0, 2, 2, 5}; // 2 queries over 4 tokens; none over 1; 3 over 2
    const int32_t tokens[3] = {4, 1, 2};
    const float q[5] = {0};
    const float k[7] = {0};
    const float v[7] = {1, 2, 4, 8, 1000, 16, 32};
    OracleProblem problem = {.batch = 3,
                             .numHeadsQ = 1,
                             .numHeadsKv = 1,
                             .headDimQk = 1,
                             .headDimV = 1,
                             .cuSeqlensQ = cu,
                             .seqLensKv = tokens,
                             .q = q,
                             .k = k,
                             .v = v,
                             .causal = true};
    double out[5], lse[5];
    oracleAttention(&problem, out, lse);
    const double expected[5] = {7.0 / 3, 15.0 / 4, 0, 16, 24};
    const double visible[5] = {3, 4, 0, 1, 2};
    for (int i = 0; i < 5; i++) {
        assertNear(out[i], expected[i], 1e-14);
        if (visible[i] > 0)
            assertNear(lse[i], log(visible[i]), 1e-14);
        else
            assert_true(isinf(lse[i]) && lse[i] < 0);
    }
    problem.causal = false;
    oracleAttention(&problem, out, NULL);
    for (int i = 2; i < 5; i++)
        assertNear(out[i], 24, 1e-14);
}

static void headsShareKvInGroups(void** state) {
    (void)state;
    const int32_t cu[2] = {0, 1};
    const int32_t tokens = 1;
    const float q[6 * 2] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const float k[2 * 2] = {1, 2, 3, 4};
    const float v[2 * 3] = {1, 2, 3, 40, 50, 60};
    OracleProblem problem = {.batch = 1,
                             .numHeadsQ = 6,
                             .numHeadsKv = 2,
                             .headDimQk = 2,
                             .headDimV = 3,
                             .cuSeqlensQ = cu,
                             .seqLensKv = &tokens,
                             .q = q,
                             .k = k,
                             .v = v};
    double out[6][3], lse[6];
    oracleAttention(&problem, &out[0][0], lse);
    for (int h = 0; h < 6; h++) {
        assertNear(out[h][2], h < 3 ? 3 : 60, 0);
        assertNear(lse[h], (h < 3 ? 3 : 7) / sqrt(2), 1e-15); // default scale 1 / sqrt(headDimQk)
    }
}

static void agreesWithCaseFiles(void** state) {
    (void)state;
    static const char* const names[] = {"decode_mqa", "prefill_gqa_causal", "chunked_prefill",
                                        "ragged_batch"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s.safetensors", VKMQA_TEST_CASES, names[i]);
        CaseFile file;
        assert_true(caseFileRead(path, &file));
        const OracleProblem* problem = &file.problem;
        size_t rows = (size_t)problem->cuSeqlensQ[problem->batch] * problem->numHeadsQ;
        double* out = malloc(sizeof(double) * rows * problem->headDimV);
        double* lse = malloc(sizeof(double) * rows);
        oracleAttention(problem, out, lse);
        for (size_t j = 0; j < rows * problem->headDimV; j++)
            assertNear(out[j], file.out[j], 1e-13);
        for (size_t j = 0; j < rows; j++)
            if (lse[j] != file.lse[j])
                assertNear(lse[j], file.lse[j], 1e-13);
        free(out);
        free(lse);
        caseFileFree(&file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16RoundTrips),
        cmocka_unit_test(f16RoundsToNearestEven),
        cmocka_unit_test(cacheRowsStandWhereTheLayoutSays),
        cmocka_unit_test(closedForms),
        cmocka_unit_test(causalIsBottomRight),
        cmocka_unit_test(headsShareKvInGroups),
        cmocka_unit_test(agreesWithCaseFiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

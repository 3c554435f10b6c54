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

// The nine case files, of somebody else's oracle. With rotary embedding our k and q pass through f32.
static void agreesWithCaseFiles(void** state) {
    (void)state;
    static const char* const names[] = {
        "decode_mqa", "prefill_gqa_causal", "chunked_prefill", "ragged_batch",  "mla",
        "q8_cache",   "rope_append",        "sinks_alibi",     "window_softcap"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s.safetensors", VKMQA_TEST_CASES, names[i]);
        CaseFile file;
        assert_true(caseFileRead(path, &file));
        const OracleProblem* problem = &file.problem;
        int32_t* positions = caseFilePositions(&file, false);
        int32_t* queryPositions = caseFilePositions(&file, true);
        uint32_t tokens = 0;
        for (uint32_t b = 0; b < problem->batch; b++)
            tokens += (uint32_t)problem->seqLensKv[b];
        oracleRotateRows(&file.rotation, positions, tokens, problem->numHeadsKv, problem->headDimQk,
                         (float*)problem->k);
        oracleRotateRows(&file.rotation, queryPositions,
                         (uint32_t)problem->cuSeqlensQ[problem->batch], problem->numHeadsQ,
                         problem->headDimQk, (float*)problem->q);
        double error = oracleRotates(&file.rotation) ? 2e-6 : 2e-13;
        size_t rows = (size_t)problem->cuSeqlensQ[problem->batch] * problem->numHeadsQ;
        double* out = malloc(sizeof(double) * rows * problem->headDimV);
        double* lse = malloc(sizeof(double) * rows);
        oracleAttention(problem, out, lse);
        for (size_t j = 0; j < rows * problem->headDimV; j++)
            assertNear(out[j], file.out[j], error);
        for (size_t j = 0; j < rows; j++)
            if (lse[j] != file.lse[j])
                assertNear(lse[j], file.lse[j], error);
        free(out);
        free(lse);
        free(positions);
        free(queryPositions);
        caseFileFree(&file);
    }
}

// ---- Rotation --------------------------------------------------------------------------------------

static void ropeTurnsPairs(void** state) {
    (void)state;
    const double frequencies[2] = {acos(-1) / 2,
                                   acos(-1)}; // a quarter and a half turn per position
    OracleRotation rotation = {.style = ORACLE_ROPE_NEOX, .dim = 4, .frequencies = frequencies};
    double neox[6] = {1, 2, 3, 4, 5, 6};
    oracleRotate(&rotation, 1, neox, 6);
    const double turned[6] = {-3, -2, 1, -4, 5, 6}; // pairs (1, 3) and (2, 4)
    for (int i = 0; i < 6; i++)
        assertNear(neox[i], turned[i], 1e-15);
    double interleaved[6] = {1, 2, 3, 4, 5, 6};
    rotation.style = ORACLE_ROPE_INTERLEAVED;
    rotation.offset = 2;
    rotation.magnitude = 2;
    oracleRotate(&rotation, -1, interleaved, 6); // pairs (3, 4) and (5, 6), backwards
    const double back[6] = {1, 2, 8, -6, -10, -12};
    for (int i = 0; i < 6; i++)
        assertNear(interleaved[i], back[i], 1e-14);
    // The defaults: all elements, theta 10000.
    OracleRotation plain = {.style = ORACLE_ROPE_INTERLEAVED};
    double row[4] = {1, 0, 1, 0};
    oracleRotate(&plain, 3, row, 4);
    assertNear(row[1], sin(3), 1e-15);
    assertNear(row[3], sin(0.03), 1e-15);
}

static void hadamardKeepsScores(void** state) {
    (void)state;
    OracleRotation rotation = {.hadamard = true};
    double two[2] = {3, 5};
    oracleRotate(&rotation, 0, two, 2);
    assertNear(two[0], 8 / sqrt(2), 1e-15);
    assertNear(two[1], -2 / sqrt(2), 1e-15);
    double a[24], b[24], before = 0, after = 0; // blocks of 8
    for (int i = 0; i < 24; i++) {
        a[i] = i % 5 - 2;
        b[i] = i % 7 - 3;
        before += a[i] * b[i];
    }
    oracleRotate(&rotation, 0, a, 24);
    oracleRotate(&rotation, 0, b, 24);
    for (int i = 0; i < 24; i++)
        after += a[i] * b[i];
    assertNear(after, before, 1e-13);
    double unit[24] = {[9] = 1}; // spreads over its own block only
    oracleRotate(&rotation, 0, unit, 24);
    for (int i = 0; i < 24; i++)
        assertNear(fabs(unit[i]), i / 8 == 1 ? sqrt(1.0 / 8) : 0, 1e-15);
    assert_true(unit[8] > 0 && unit[9] < 0 && unit[10] > 0);
}

// ---- Masks and modifiers ---------------------------------------------------------------------------

// With q = 0 every visible token counts the same, so values that are powers of two tell which ones a
// query has seen. One sequence, its queries at the end of it.
static uint32_t seenBy(OracleProblem problem, int32_t queries, int32_t tokens, int32_t i) {
    const int32_t cu[2] = {0, queries};
    float q[16] = {0}, k[16] = {0}, v[16];
    double out[16], lse[16];
    for (int t = 0; t < 16; t++)
        v[t] = ldexpf(1, t);
    problem.batch = problem.numHeadsQ = problem.numHeadsKv = 1;
    problem.headDimQk = problem.headDimV = 1;
    problem.cuSeqlensQ = cu;
    problem.seqLensKv = &tokens;
    problem.q = q;
    problem.k = k;
    problem.v = v;
    oracleAttention(&problem, out, lse);
    return lse[i] == -INFINITY ? 0 : (uint32_t)nearbyint(out[i] * exp(lse[i]));
}

static void masksSayWhatIsSeen(void** state) {
    (void)state;
    assert_int_equal(seenBy((OracleProblem){.causal = true}, 2, 6, 0), 0x1F);
    OracleProblem left = {.hasWindowLeft = true, .windowLeft = 2};
    assert_int_equal(seenBy(left, 2, 6, 0), 0x3C); // at position 4: from 2 on
    left.windowLeft = 0;
    left.causal = true;
    assert_int_equal(seenBy(left, 2, 6, 1), 0x20); // itself alone
    OracleProblem right = {.hasWindowRight = true, .windowRight = 1};
    assert_int_equal(seenBy(right, 5, 6, 0), 0x7); // at position 1
    right.hasWindowLeft = true;
    assert_int_equal(seenBy(right, 5, 6, 0), 0x6);
    assert_int_equal(seenBy(right, 9, 6, 0), 0); // at position -3
    OracleProblem chunked = {.chunkSize = 4};
    assert_int_equal(seenBy(chunked, 3, 10, 0), 0xF0); // at position 7
    assert_int_equal(seenBy(chunked, 3, 10, 1), 0x300);
    assert_int_equal(seenBy(chunked, 12, 10, 1), 0); // at position -1: a chunk of no token
    const uint32_t words[2] = {0x15, 0x2A};
    OracleProblem masked = {.mask = words, .maskStride = 1};
    assert_int_equal(seenBy(masked, 2, 6, 0), 0x15);
    assert_int_equal(seenBy(masked, 2, 6, 1), 0x2A);
    masked.causal = true;
    masked.hasWindowLeft = true;
    masked.windowLeft = 3;
    assert_int_equal(seenBy(masked, 2, 6, 0), 0x14);
    const uint32_t tree[3] = {0x1, 0x3, 0x5};
    OracleProblem trees = {.mask = tree, .maskStride = 1, .treeMask = true};
    assert_int_equal(seenBy(trees, 3, 6, 0), 0xF);
    assert_int_equal(seenBy(trees, 3, 6, 2), 0x2F);
    assert_int_equal(seenBy(trees, 3, 2, 2), 0x2); // token 0 is number 1 of the last three
}

static void modifiersApplyInOrder(void** state) {
    (void)state;
    const int32_t cu[2] = {0, 1}, tokens = 3;
    const float q = 2, k[3] = {1, 2, 3}, v[3] = {1, 2, 4}, slope = 0.5f, sink = 0.25f;
    OracleProblem problem = {.batch = 1,
                             .numHeadsQ = 1,
                             .numHeadsKv = 1,
                             .headDimQk = 1,
                             .headDimV = 1,
                             .cuSeqlensQ = cu,
                             .seqLensKv = &tokens,
                             .q = &q,
                             .k = k,
                             .v = v,
                             .scale = 0.5,
                             .softcap = 1.5,
                             .alibiSlopes = &slope,
                             .sinks = &sink};
    double weights = exp(sink), sum = 0, out, lse;
    for (int t = 0; t < 3; t++) {
        double weight = exp(1.5 * tanh(k[t] / 1.5) - 0.5 * (2 - t));
        weights += weight;
        sum += weight * v[t];
    }
    oracleAttention(&problem, &out, &lse);
    assertNear(out, sum / weights, 1e-15);
    assertNear(lse, log(weights), 1e-15);
    float plainOut, plainLse;
    oraclePlainAttention(&problem, &plainOut, &plainLse);
    assertNear(plainOut, out, 1e-6);
    assertNear(plainLse, lse, 1e-6);
    const uint32_t nothing = 0;
    problem.mask = &nothing;
    problem.maskStride = 1;
    oracleAttention(&problem, &out, &lse);
    assertNear(out, 0, 0);
    assertNear(lse, sink, 0);
    // The values are the first elements of the keys.
    problem.mask = NULL;
    problem.v = NULL;
    oracleAttention(&problem, &out, &lse);
    assertNear(lse, log(weights), 1e-15);
    assert_true(out > 1 && out < 3);
}

static void mergedPartsAreTheWhole(void** state) {
    (void)state;
    const int32_t cu[2] = {0, 1};
    int32_t tokens[3] = {2, 0, 3};
    const float q = 1, k[5] = {0.5f, -1, 2, 0.25f, 1}, v[5] = {1, 2, 3, 4, 5}, sink = 0.5f;
    OracleProblem problem = {.batch = 1,
                             .numHeadsQ = 1,
                             .numHeadsKv = 1,
                             .headDimQk = 1,
                             .headDimV = 1,
                             .cuSeqlensQ = cu,
                             .q = &q,
                             .scale = 1};
    float partOut[3], partLse[3];
    double out, lse;
    for (int p = 0, first = 0; p < 3; first += tokens[p++]) {
        problem.seqLensKv = &tokens[p];
        problem.k = k + first;
        problem.v = v + first;
        oracleAttention(&problem, &out, &lse);
        partOut[p] = (float)out;
        partLse[p] = (float)lse;
    }
    const int32_t all = 5;
    problem.seqLensKv = &all;
    problem.k = k;
    problem.v = v;
    for (int sinks = 0; sinks < 2; sinks++) {
        double merged, mergedLse;
        problem.sinks = sinks ? &sink : NULL;
        partOut[1] = NAN; // counts nothing
        oracleAttention(&problem, &out, &lse);
        oracleMerge(3, 1, 1, partOut, partLse, problem.sinks, 1, &merged, &mergedLse);
        assertNear(merged, out, 1e-6);
        assertNear(mergedLse, lse, 1e-6);
        float plain, plainLse;
        oraclePlainMerge(3, 1, 1, partOut, partLse, problem.sinks, 1, &plain, &plainLse);
        assertNear(plain, out, 1e-6);
        assertNear(plainLse, lse, 1e-6);
        oracleMerge(1, 1, 1, partOut + 1, partLse + 1, problem.sinks, 1, &merged, &mergedLse);
        assertNear(merged, 0, 0);
        assert_true(sinks ? mergedLse == sink : mergedLse == -INFINITY);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(closedForms),
        cmocka_unit_test(causalIsBottomRight),
        cmocka_unit_test(headsShareKvInGroups),
        cmocka_unit_test(agreesWithCaseFiles),
        cmocka_unit_test(ropeTurnsPairs),
        cmocka_unit_test(hadamardKeepsScores),
        cmocka_unit_test(masksSayWhatIsSeen),
        cmocka_unit_test(modifiersApplyInOrder),
        cmocka_unit_test(mergedPartsAreTheWhole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Small parts of the runtime against their definitions, without a device: number formats, sizes of rows, what a call reads,
// and that shared work is done once.
#include "oracle.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/internal.h"
#include "device/device.h"

static bool same(float a, float b) { return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b)); }

// ---- Formats -----------------------------------------------------------------------------------------

static void halvesAreDecoded(void** state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const uint16_t row = (uint16_t)bits;
        float f16, bf16;
        vkmqa_decode_row(VKMQA_TYPE_F16, &row, NULL, 1, &f16);
        vkmqa_decode_row(VKMQA_TYPE_BF16, &row, NULL, 1, &bf16);
        if (!same(f16, oracleF32FromF16(row)) || !same(bf16, oracleF32FromBf16(row)))
            fail_msg("0x%04x is %g as f16 and %g as bf16", bits, f16, bf16);
    }
    for (uint32_t bits = 0; bits < 256; bits++) {
        const uint8_t row = (uint8_t)bits;
        float value;
        vkmqa_decode_row(VKMQA_TYPE_FP8_E4M3, &row, NULL, 1, &value);
        if (!same(value, oracleF32FromFp8(row)))
            fail_msg("0x%02x is %g as fp8", bits, value);
    }
}

// Every normal value of a format, and both zeros.
static void halvesAreEncodedExactly(void** state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const uint16_t in = (uint16_t)bits;
        const float f16 = oracleF32FromF16(in), bf16 = oracleF32FromBf16(in);
        float f32;
        uint16_t out[2];
        if (isnormal(bf16) || bf16 == 0) {
            vkmqa_encode_exact(VKMQA_TYPE_BF16, (const float[]){bf16, 1}, 2, out);
            if (out[0] != in || out[1] != 0x3F80)
                fail_msg("%g becomes 0x%04x as bf16, should be 0x%04x", bf16, out[0], bits);
        }
        if (fabsf(f16) >= ldexpf(1, -14) && isfinite(f16)) {
            vkmqa_encode_exact(VKMQA_TYPE_F16, (const float[]){f16, 1}, 2, out);
            if (out[0] != in || out[1] != 0x3C00)
                fail_msg("%g becomes 0x%04x as f16, should be 0x%04x", f16, out[0], bits);
            vkmqa_encode_exact(VKMQA_TYPE_F32, &f16, 1, &f32);
            assert_true(same(f32, f16));
        }
    }
    uint16_t zeros[2];
    vkmqa_encode_exact(VKMQA_TYPE_F16, (const float[]){0.0f, -0.0f}, 2, zeros);
    assert_int_equal(zeros[0], 0);
    assert_int_equal(zeros[1], 0x8000);
}

// ---- Sizes -------------------------------------------------------------------------------------------

static void rowsHaveTheOraclesSizes(void** state) {
    (void)state;
    static const struct {
        VkmqaType type;
        OracleType oracle;
    } rows[] = {{VKMQA_TYPE_F32, ORACLE_F32}, {VKMQA_TYPE_F16, ORACLE_F16}, {VKMQA_TYPE_BF16, ORACLE_BF16},
                {VKMQA_TYPE_FP8_E4M3, ORACLE_FP8}, {VKMQA_TYPE_Q8_0, ORACLE_Q8_0}, {VKMQA_TYPE_Q4_0, ORACLE_Q4_0}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (uint32_t dim = 8; dim <= 1024; dim += 8) {
            const OracleCache cache = {rows[i].oracle, 3, 2, 4, dim, NULL};
            uint64_t bytes = 3 * 2 * 4 * (uint64_t)(vkmqa_row_bytes(dim, rows[i].type) +
                                                    vkmqa_scale_bytes(dim, rows[i].type));
            if (vkmqa_row_bytes(dim, rows[i].type) != oracleRowBytes(&cache) || bytes != oracleCacheBytes(&cache))
                fail_msg("%s, %u elements: %u and %u bytes", vkmqa_type_name(rows[i].type), dim,
                         vkmqa_row_bytes(dim, rows[i].type), vkmqa_scale_bytes(dim, rows[i].type));
        }
}

// Three sequences of one token with 8 rows in tiles of 4: each reads its 64 tokens twice.
static void everyTilesReadsCount(void** state) {
    (void)state;
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info), .numHeadsQ = 16, .numHeadsKv = 2,
                                           .headDimQk = 64, .maxSeqLenKv = 64};
    const struct VkmqaCaps caps = {.maxGroupCount = {65535, 65535, 65535}, .maxInvocations = 1024,
                                   .type = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU};
    struct VkmqaChoice choice = {.count = 1};
    choice.candidates[0] = (struct VkmqaCandidate){.rows = 4, .upTo = UINT32_MAX, .splitSize = 256, .workgroups = 1};
    const VkmqaStepLimits given = {.batch = 3, .totalQ = 3, .maxSeqLenQ = 1, .maxSeqLenKv = 64};
    struct VkmqaShape shape;
    struct VkmqaProblem problem;
    VkmqaStepLimits limits;
    struct VkmqaPlan plan;
    if (!vkmqa_make_shape(&info, &shape, &problem))
        fail_msg("%s", problem.text);
    assert_true(vkmqa_make_limits(&shape, &given, &limits, &problem));
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
    const struct VkmqaCost cost = vkmqa_estimate(&caps, &shape, &choice, &limits, &plan);
    const uint64_t tokenBytes = 2 * 2 * 64 * 2; // K and V of two heads in f16
    assert_int_equal(cost.cacheBytes, 3 * 2 * 64 * tokenBytes);
    // Two products of 64 columns for each of 16 heads, 64 positions.
    assert_true(cost.flops == 2.0 * 3 * 16 * 64 * (64 + 64));
    assert_true(cost.seconds > 0 && cost.seconds < 1e-3);
}

// What a query may see decides how much is read: the narrower of window and chunk.
static void windowsAndChunksBoundTheSpan(void** state) {
    (void)state;
    static const struct {
        uint32_t windowLeft, chunkSize, span; // of 1000 tokens, for a query of one token
    } rows[] = {{0, 0, 1000}, {10, 0, 11}, {10, 64, 11}, {200, 64, 64}, {0, 64, 64}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const VkmqaAttentionCreateInfo info = {
            .structSize = sizeof(info), .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 64, .maxSeqLenKv = 1000,
            .flags = VKMQA_ATTENTION_CAUSAL_BIT | (rows[i].windowLeft ? VKMQA_ATTENTION_WINDOW_LEFT_BIT : 0u),
            .windowLeft = rows[i].windowLeft, .chunkSize = rows[i].chunkSize};
        const VkmqaStepLimits given = {.batch = 1, .totalQ = 1};
        struct VkmqaShape shape;
        struct VkmqaProblem problem;
        VkmqaStepLimits limits;
        if (!vkmqa_make_shape(&info, &shape, &problem) || !vkmqa_make_limits(&shape, &given, &limits, &problem))
            fail_msg("%s", problem.text);
        if (vkmqa_span_tokens(&shape, &limits) != rows[i].span)
            fail_msg("window %u, chunk %u: %u tokens", rows[i].windowLeft, rows[i].chunkSize,
                     vkmqa_span_tokens(&shape, &limits));
    }
}

// ---- Jobs --------------------------------------------------------------------------------------------

enum { JOBS = 1000 };

static void countJob(void* data, uint32_t job) { ((unsigned char*)data)[job]++; }

static void jobsAreDoneOnce(void** state) {
    (void)state;
    static const uint32_t counts[] = {0, 1, 2, 3, 15, 16, 17, JOBS};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        unsigned char done[JOBS] = {0};
        vkmqa_run_jobs(NULL, counts[i], countJob, done);
        for (uint32_t job = 0; job < JOBS; job++)
            if (done[job] != (job < counts[i]))
                fail_msg("of %u jobs, number %u was done %u times", counts[i], job, done[job]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halvesAreDecoded),        cmocka_unit_test(halvesAreEncodedExactly),
        cmocka_unit_test(rowsHaveTheOraclesSizes), cmocka_unit_test(everyTilesReadsCount),
        cmocka_unit_test(windowsAndChunksBoundTheSpan), cmocka_unit_test(jobsAreDoneOnce),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}

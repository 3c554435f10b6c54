// Grids, splits and sizes, decided without a device: runtime/core/plan.c and shape.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "core/internal.h"

static const struct VkmqaCaps caps = {.maxGroupCount = {65535, 65535, 65535},
                                      .maxInvocations = 1024};

static struct VkmqaShape make_shape(uint32_t headsQ, uint32_t headsKv, uint32_t splitSize) {
    VkmqaAttentionCreateInfo info = {.structSize = sizeof info,
                                     .numHeadsQ = headsQ,
                                     .numHeadsKv = headsKv,
                                     .headDimQk = 64,
                                     .pageSize = 16,
                                     .splitSize = splitSize};
    struct VkmqaShape shape;
    struct VkmqaProblem problem;
    assert_true(vkmqa_make_shape(&info, &shape, &problem));
    return shape;
}

static struct VkmqaChoice make_choice(void) {
    struct VkmqaChoice choice = {.count = 2};
    choice.candidates[0] = (struct VkmqaCandidate){.rows = 1, .upTo = 1, .splitSize = 256, .workgroups = 512};
    choice.candidates[1] = (struct VkmqaCandidate){.rows = 4, .upTo = UINT32_MAX, .splitSize = 256, .workgroups = 512};
    return choice;
}

static VkmqaStepLimits make_limits(const struct VkmqaShape* shape, VkmqaStepLimits given) {
    VkmqaStepLimits limits;
    struct VkmqaProblem problem;
    if (!vkmqa_make_limits(shape, &given, &limits, &problem))
        fail_msg("%s", problem.text);
    return limits;
}

// As shaders/tile.glsl finds them: each sequence's tiles lie before the next one's and within the grid.
static void every_row_has_a_tile(void** state) {
    (void)state;
    for (uint32_t ratio = 1; ratio <= 13; ++ratio)
        for (uint32_t rows = 1; rows <= 8; ++rows)
            for (uint32_t seed = 0; seed < 50; ++seed) {
                uint32_t lengths[5], total = 0, batch = 1 + seed % 5;
                for (uint32_t b = 0; b < batch; ++b) {
                    lengths[b] = (seed * 7 + b * b * 5) % 11; // empty ones among them
                    total += lengths[b];
                }
                if (total == 0)
                    continue;
                struct VkmqaShape shape = make_shape(ratio, 1, 0);
                struct VkmqaChoice choice = {.count = 1};
                choice.candidates[0] =
                    (struct VkmqaCandidate){.rows = rows, .splitSize = 256, .workgroups = 1};
                VkmqaStepLimits limits = make_limits(
                    &shape, (VkmqaStepLimits){.batch = batch, .totalQ = total, .maxSeqLenKv = 64});
                struct VkmqaPlan plan;
                struct VkmqaProblem problem;
                assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
                uint32_t start = 0, end = 0;
                for (uint32_t b = 0; b < batch; ++b) {
                    uint32_t first = start * ratio / rows + b;
                    assert_true(first >= end);
                    end = first + (lengths[b] * ratio + rows - 1) / rows;
                    start += lengths[b];
                }
                assert_true(end <= plan.groups[0] * plan.groups[1]);
            }
}

static void few_rows_take_the_small_kernel(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(8, 8, 0);
    struct VkmqaChoice choice = make_choice();
    struct VkmqaPlan plan;
    struct VkmqaProblem problem;
    VkmqaStepLimits one = make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 1});
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &one, &plan, &problem));
    assert_int_equal(plan.candidate, 0);
    VkmqaStepLimits many = make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 100});
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &many, &plan, &problem));
    assert_int_equal(plan.candidate, 1);
}

static void splits_cover_the_range_and_fill_the_device(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(8, 1, 0);
    struct VkmqaChoice choice = make_choice();
    for (uint32_t kv = 1; kv < 200000; kv = kv * 3 + 1)
        for (uint32_t totalQ = 1; totalQ < 5000; totalQ = totalQ * 4 + 1) {
            VkmqaStepLimits limits = make_limits(
                &shape, (VkmqaStepLimits){.batch = 1, .totalQ = totalQ, .maxSeqLenKv = kv});
            struct VkmqaPlan plan;
            struct VkmqaProblem problem;
            uint64_t bound;
            assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
            assert_true((uint64_t)plan.splits * plan.splitTokens >= kv);
            assert_true(plan.splits == 1 || (uint64_t)(plan.splits - 1) * plan.splitTokens < kv);
            assert_int_equal(plan.splitTokens % 256, 0);
            assert_true(plan.splits == 1 || (uint64_t)plan.tiles < 512);
            assert_true(vkmqa_scratch_bound(&shape, &choice, &limits, &bound, &problem));
            assert_true(plan.scratchBytes <= bound);
        }
}

// The same on a CPU's few workgroups, where a single sequence is split most at lengths of its own, with and
// without a window, and where splits may be fewer than the maximum allows.
static void scratch_serves_shorter_contexts(void** state) {
    (void)state;
    struct VkmqaChoice choice = make_choice();
    for (uint32_t i = 0; i < choice.count; ++i)
        choice.candidates[i].workgroups = 16;
    for (uint32_t window = 0; window < 2; ++window) {
        struct VkmqaShape shape = make_shape(4, 1, 0);
        struct VkmqaProblem problem;
        shape.windowLeft = window ? 5000 : VKMQA_UNBOUNDED;
        for (uint32_t most = 100; most <= 200000; most = most * 3 / 2 + 1) {
            VkmqaStepLimits limits =
                make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 1, .maxSeqLenKv = most});
            uint64_t bound;
            assert_true(vkmqa_scratch_bound(&shape, &choice, &limits, &bound, &problem));
            for (uint32_t kv = 1; kv <= most; kv += 64) {
                struct VkmqaPlan plan;
                limits.maxSeqLenKv = kv;
                assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
                assert_true(plan.scratchBytes <= bound);
            }
        }
    }
}

// Scratch for the maxima serves every smaller call, also the ones that split more.
static void scratch_serves_smaller_calls(void** state) {
    (void)state;
    for (uint32_t splitSize = 0; splitSize <= 64; splitSize += 64) {
        struct VkmqaShape shape = make_shape(32, 4, splitSize);
        struct VkmqaChoice choice = make_choice();
        VkmqaStepLimits most =
            make_limits(&shape, (VkmqaStepLimits){.batch = 8, .totalQ = 700, .maxSeqLenKv = 9000});
        uint64_t bound;
        struct VkmqaProblem problem;
        assert_true(vkmqa_scratch_bound(&shape, &choice, &most, &bound, &problem));
        for (uint32_t batch = 1; batch <= 8; ++batch)
            for (uint32_t totalQ = 1; totalQ <= 700; totalQ += 13)
                for (uint32_t kv = 1; kv <= 9000; kv += 311) {
                    VkmqaStepLimits limits = make_limits(
                        &shape,
                        (VkmqaStepLimits){.batch = batch, .totalQ = totalQ, .maxSeqLenKv = kv});
                    struct VkmqaPlan plan;
                    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
                    assert_true(plan.scratchBytes <= bound);
                }
    }
}

static void a_given_split_size_is_kept(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(8, 1, 128);
    struct VkmqaChoice choice = make_choice();
    struct VkmqaPlan plan;
    struct VkmqaProblem problem;
    VkmqaStepLimits limits =
        make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 4000, .maxSeqLenKv = 1000});
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem));
    assert_int_equal(plan.splitTokens, 128);
    assert_int_equal(plan.splits, 8);
}

// What a sequence is split into must not depend on how many others there are, or there are other bits.
static void invariant_splits_know_one_sequence(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(8, 1, 0);
    struct VkmqaChoice choice = make_choice();
    struct VkmqaPlan alone, one_of_many;
    struct VkmqaProblem problem;
    shape.invariant = true;
    VkmqaStepLimits limits = make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 1, .maxSeqLenKv = 5000});
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &alone, &problem));
    limits = make_limits(&shape, (VkmqaStepLimits){.batch = 9999, .totalQ = 9999, .maxSeqLenKv = 5000});
    assert_true(vkmqa_make_plan(&caps, &shape, &choice, &limits, &one_of_many, &problem));
    assert_true(alone.splits > 1);
    assert_int_equal(one_of_many.splitTokens, alone.splitTokens);
}

static void grids_beyond_the_device_are_refused(void** state) {
    (void)state;
    struct VkmqaCaps small = caps;
    small.maxGroupCount[0] = small.maxGroupCount[1] = 100;
    struct VkmqaShape shape = make_shape(128, 1, 0);
    struct VkmqaChoice choice = make_choice();
    struct VkmqaPlan plan;
    struct VkmqaProblem problem;
    VkmqaStepLimits limits =
        make_limits(&shape, (VkmqaStepLimits){.batch = 1, .totalQ = 100000, .maxSeqLenKv = 1000});
    assert_false(vkmqa_make_plan(&small, &shape, &choice, &limits, &plan, &problem));
    assert_non_null(strstr(problem.text, "totalQ"));
    uint32_t groups[2];
    assert_true(vkmqa_fold_grid(&small, 10000, groups));
    assert_false(vkmqa_fold_grid(&small, 10001, groups));
    assert_true(vkmqa_fold_grid(&small, 101, groups));
    assert_int_equal(groups[0], small.maxGroupCount[0]); // GRID_WIDTH
    assert_true(groups[0] * groups[1] >= 101 && groups[0] <= 100);
}

static void sizes_do_not_wrap(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(128, 128, 0);
    struct VkmqaProblem problem;
    struct VkmqaCacheBytes bytes;
    // 2^27 pages of 16 tokens are one more than int32 slots; 128 heads of 128 bytes pass 2^32 long before.
    assert_false(vkmqa_cache_bytes(&shape, 1u << 27, &bytes, &problem));
    assert_false(vkmqa_cache_bytes(&shape, UINT32_MAX, &bytes, &problem));
    assert_false(vkmqa_cache_bytes(&shape, 0, &bytes, &problem));
    assert_true(vkmqa_cache_bytes(&shape, 1u << 20, &bytes, &problem));
    assert_int_equal(bytes.allK, (uint64_t)128 * 128 * 16 << 20);
    uint64_t product = 5;
    assert_false(vkmqa_multiply(1ull << 32, 1ull << 32, &product));
    assert_int_equal(product, 5);
    assert_true(vkmqa_multiply(UINT64_MAX, 1, &product));
}

static void limits_have_defaults_and_bounds(void** state) {
    (void)state;
    struct VkmqaShape shape = make_shape(8, 2, 0);
    struct VkmqaProblem problem;
    VkmqaStepLimits limits = make_limits(&shape, (VkmqaStepLimits){.batch = 2, .totalQ = 9});
    assert_int_equal(limits.maxSeqLenQ, 9);
    assert_int_equal(limits.newTokens, 9);
    assert_int_equal(limits.maxSeqLenKv, shape.maxSeqLenKv);
    const struct {
        VkmqaStepLimits given;
        const char* field;
    } wrong[] = {
        {{.batch = 0, .totalQ = 1}, "batch"},
        {{.batch = 1, .totalQ = 0}, "totalQ"},
        {{.batch = 1, .totalQ = UINT32_MAX}, "totalQ"},
        {{.batch = 1, .totalQ = 1, .maxSeqLenQ = 2}, "maxSeqLenQ"},
        {{.batch = 1, .totalQ = 1, .maxSeqLenKv = UINT32_MAX}, "maxSeqLenKv"},
        {{.batch = 1, .totalQ = 1, .newTokens = UINT32_MAX}, "newTokens"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        assert_false(vkmqa_make_limits(&shape, &wrong[i].given, &limits, &problem));
        assert_non_null(strstr(problem.text, wrong[i].field));
    }
}

// Boxes cover a range of workgroups, each one once, in order.
static void boxes_cover_a_range(void** state) {
    (void)state;
    const uint32_t grids[][3] = {{1, 1, 1}, {7, 1, 5}, {5, 4, 3}, {1, 6, 2}, {65535, 3, 65535}};
    for (size_t g = 0; g < sizeof grids / sizeof grids[0]; ++g) {
        uint64_t row = grids[g][0], plane = row * grids[g][1], all = plane * grids[g][2];
        for (uint32_t seed = 0; seed < 500; ++seed) {
            uint64_t first = seed * 7919ull * seed % all, end = first + 1 + (all - first - 1) * (seed % 13) / 12;
            unsigned boxes = 0;
            for (uint64_t at = first; at < end; ++boxes) {
                struct VkmqaBox box = vkmqa_cut_box(grids[g], at, end);
                for (int k = 0; k < 3; ++k)
                    assert_true(box.size[k] >= 1 && box.base[k] + box.size[k] <= grids[g][k]);
                assert_int_equal(box.base[2] * plane + box.base[1] * row + box.base[0], at);
                // What comes between its first and its last is in it.
                assert_true(box.size[2] == 1 || (box.size[1] == grids[g][1] && box.size[0] == grids[g][0]));
                assert_true(box.size[1] == 1 || box.size[0] == grids[g][0]);
                assert_int_equal((uint64_t)box.size[0] * box.size[1] * box.size[2], box.groups);
                at += box.groups;
                assert_true(at <= end);
            }
            assert_true(boxes <= 5);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boxes_cover_a_range),
        cmocka_unit_test(every_row_has_a_tile),
        cmocka_unit_test(few_rows_take_the_small_kernel),
        cmocka_unit_test(splits_cover_the_range_and_fill_the_device),
        cmocka_unit_test(scratch_serves_smaller_calls),
        cmocka_unit_test(scratch_serves_shorter_contexts),
        cmocka_unit_test(a_given_split_size_is_kept),
        cmocka_unit_test(invariant_splits_know_one_sequence),
        cmocka_unit_test(grids_beyond_the_device_are_refused),
        cmocka_unit_test(sizes_do_not_wrap),
        cmocka_unit_test(limits_have_defaults_and_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

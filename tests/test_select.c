// Which kernels a device gets, decided without a device: the table of runtime/core/select.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "core/internal.h"

static struct VkmqaCaps gpu(void) {
    return (struct VkmqaCaps){
        .type = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU,
        .apiVersion = VK_API_VERSION_1_3,
        .deviceAddress = true,
        .computeFullSubgroups = true,
        .subgroupShuffle = true,
        .subgroupBallot = true,
        .subgroupSize = 32,
        .minSubgroupSize = 32,
        .maxSubgroupSize = 32,
        .maxInvocations = 1024,
        .maxGroupCount = {65535, 65535, 65535},
        .sharedMemory = 49152,
        .storageBuffersPerStage = 8,
        .maxStorageRange = 1u << 27,
        .storageAlignment = 16,
    };
}

static struct VkmqaShape shape_of(uint32_t headsQ, uint32_t headsKv, uint32_t dim) {
    VkmqaAttentionCreateInfo info = {.structSize = sizeof info,
                                     .numHeadsQ = headsQ,
                                     .numHeadsKv = headsKv,
                                     .headDimQk = dim,
                                     .pageSize = 16};
    struct VkmqaShape shape;
    struct VkmqaProblem problem;
    assert_true(vkmqa_make_shape(&info, &shape, &problem));
    return shape;
}

static struct VkmqaCaps gpu_with_matrices(void) {
    struct VkmqaCaps caps = gpu();
    caps.float16 = caps.subgroupVote = true;
    caps.matrixCount = 2;
    caps.matrices[0] = (struct VkmqaMatrix){16, 8, 16};
    caps.matrices[1] = (struct VkmqaMatrix){16, 16, 16};
    return caps;
}

static VkmqaTier tier_of(const struct VkmqaCaps* caps, const struct VkmqaShape* shape) {
    struct VkmqaChoice choice;
    struct VkmqaProblem problem;
    assert_int_equal(vkmqa_select(caps, shape, NULL, &choice, &problem), VK_SUCCESS);
    for (uint32_t i = 0; i < choice.count; ++i) {
        assert_int_equal(choice.candidates[i].tier, choice.candidates[0].tier);
        assert_int_equal(choice.candidates[i].bind, choice.bind);
        assert_true(choice.candidates[i].workgroupSize <= caps->maxInvocations);
        assert_true(choice.candidates[i].sharedMemory <= caps->sharedMemory);
        if (i)
            assert_true(choice.candidates[i].rows > choice.candidates[i - 1].rows);
    }
    return choice.candidates[0].tier;
}

static void tier_follows_features(void** state) {
    (void)state;
    struct VkmqaShape shape = shape_of(32, 8, 128);
    struct VkmqaCaps caps = gpu();
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_SUBGROUP);
    caps.deviceAddress = false;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_PORTABLE);
    caps = gpu();
    caps.subgroupShuffle = false;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_PORTABLE);
    caps = gpu();
    caps.type = VK_PHYSICAL_DEVICE_TYPE_CPU;
    caps.subgroupSize = caps.minSubgroupSize = caps.maxSubgroupSize = 8;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_CPU);
    caps.subgroupSize = 0; // a driver that says nonsense gets kernels without subgroup operations
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_CPU);
    caps.type = VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_PORTABLE);
}

// The poorest device that Vulkan 1.1 and six storage buffers allow still runs every shape.
static void the_poorest_device_runs_all(void** state) {
    (void)state;
    struct VkmqaCaps caps = gpu();
    caps.deviceAddress = caps.subgroupShuffle = false;
    caps.maxInvocations = 128;
    caps.sharedMemory = 16384;
    caps.storageBuffersPerStage = VKMQA_BIND_COUNT;
    for (uint32_t dim = 8; dim <= 256; dim += 8)
        for (uint32_t ratio = 1; ratio <= 128; ++ratio) {
            struct VkmqaShape shape = shape_of(ratio, 1, dim);
            assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_PORTABLE);
        }
    caps.storageBuffersPerStage = VKMQA_BIND_COUNT - 1;
    struct VkmqaShape shape = shape_of(8, 1, 64);
    struct VkmqaChoice choice;
    struct VkmqaProblem problem;
    assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_ERROR_FEATURE_NOT_PRESENT);
    assert_non_null(strstr(problem.text, "storage buffers"));
}

// Intel's subgroups are as the kernels want them, where the driver lets them choose.
static void intels_subgroups_are_chosen(void** state) {
    (void)state;
    struct VkmqaShape shape = shape_of(8, 1, 64);
    for (uint32_t least = 8; least <= 32; least *= 2)
        for (uint32_t most = least; most <= 32; most *= 2)
            for (uint32_t control = 0; control < 2; ++control) {
                struct VkmqaCaps caps = gpu();
                struct VkmqaChoice choice;
                struct VkmqaProblem problem;
                caps.vendorId = 0x8086;
                caps.subgroupSizeControl = control;
                caps.minSubgroupSize = least;
                caps.subgroupSize = caps.maxSubgroupSize = most;
                assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_SUCCESS);
                bool can = control && least <= 16 && most >= 16;
                assert_int_equal(choice.candidates[0].subgroupSize, can ? 16 : most);
            }
}

// A GPU's user is not sent to a driver that runs on the CPU, whose kernels come last in the table.
static void refusals_name_what_this_device_lacks(void** state) {
    (void)state;
    static const uint32_t vendors[] = {0, 0x13B5}; // many registers, few
    for (uint32_t i = 0; i < 2; ++i) {
        struct VkmqaShape shape = shape_of(8, 1, 64);
        struct VkmqaCaps caps = gpu();
        struct VkmqaChoice choice;
        struct VkmqaProblem problem;
        shape.tier = VKMQA_TIER_COOPMAT;
        caps.vendorId = vendors[i];
        assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_ERROR_FEATURE_NOT_PRESENT);
        assert_non_null(strstr(problem.text, "it needs VK_KHR_cooperative_matrix"));
        caps = gpu_with_matrices();
        caps.vendorId = vendors[i];
        shape.kType = shape.vType = VKMQA_TYPE_F32;
        assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_ERROR_FEATURE_NOT_PRESENT);
        assert_non_null(strstr(problem.text, "other types of the cache"));
        caps.type = VK_PHYSICAL_DEVICE_TYPE_CPU;
        caps.matrixCount = 0;
        assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_ERROR_FEATURE_NOT_PRESENT);
        assert_non_null(strstr(problem.text, "it needs VK_KHR_cooperative_matrix"));
    }
}

static void forced_tiers_are_kept_or_refused(void** state) {
    (void)state;
    struct VkmqaShape shape = shape_of(8, 1, 64);
    struct VkmqaCaps caps = gpu();
    shape.tier = VKMQA_TIER_PORTABLE;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_PORTABLE);
    shape.tier = VKMQA_TIER_CPU;
    struct VkmqaChoice choice;
    struct VkmqaProblem problem;
    assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_ERROR_FEATURE_NOT_PRESENT);
    assert_non_null(strstr(problem.text, "cpu"));
}

// Many rows go to matrix units, few to the kernels without; what an f16 matrix cannot hold, to those alone.
static void matrices_take_many_rows(void** state) {
    (void)state;
    struct VkmqaCaps caps = gpu_with_matrices();
    struct VkmqaShape shape = shape_of(8, 8, 128);
    struct VkmqaChoice choice;
    struct VkmqaProblem problem;
    shape.kType = shape.vType = VKMQA_TYPE_F16;
    assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_SUCCESS);
    assert_true(choice.count >= 3);
    for (uint32_t i = 0; i < choice.count; ++i) {
        const struct VkmqaCandidate* candidate = &choice.candidates[i];
        assert_int_equal(candidate->tier,
                         candidate->rows < 8 ? VKMQA_TIER_SUBGROUP : VKMQA_TIER_COOPMAT);
        assert_int_equal(candidate->matrix.n, candidate->rows < 8 ? 0 : 16); // the largest
        assert_int_equal(candidate->rows % (candidate->rows < 8 ? 1 : 16), 0);
        assert_true(candidate->sharedMemory <= caps.sharedMemory);
        assert_true(candidate->workgroupSize <= caps.maxInvocations);
        if (i)
            assert_true(candidate->rows > choice.candidates[i - 1].rows);
    }
    assert_int_equal(choice.candidates[0].rows, 1);
    shape.vType = VKMQA_TYPE_F32;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_SUBGROUP);
    shape.vType = VKMQA_TYPE_BF16;
    shape.ioType = VKMQA_TYPE_BF16;
    assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_SUCCESS);
    assert_int_equal(choice.candidates[choice.count - 1].tier, VKMQA_TIER_COOPMAT);
    shape.vType = VKMQA_TYPE_F16;
    caps.computeFullSubgroups = false;
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_SUBGROUP);
    caps = gpu_with_matrices();
    caps.matrices[0].m = caps.matrices[1].m = 64; // more rows than lanes
    assert_int_equal(tier_of(&caps, &shape), VKMQA_TIER_SUBGROUP);
    // Every head dim and shared memory: within the limits, or not at all.
    for (uint32_t dim = 8; dim <= 576; dim += 8)
        for (uint32_t memory = 16384; memory <= 65536; memory += 16384) {
            caps = gpu_with_matrices();
            caps.sharedMemory = memory;
            shape = shape_of(128, 1, dim);
            shape.kType = shape.vType = VKMQA_TYPE_Q8_0;
            assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_SUCCESS);
            for (uint32_t i = 0; i < choice.count; ++i) {
                assert_true(choice.candidates[i].sharedMemory <= memory);
                assert_true(choice.candidates[i].block % (choice.candidates[i].matrix.m ? 16 : 1) == 0);
            }
        }
}

// Avoiding what was chosen, again and again, walks down the tiers and ends in an error.
static void avoided_kernels_are_not_chosen(void** state) {
    (void)state;
    struct VkmqaShape shape = shape_of(32, 8, 128);
    struct VkmqaCaps caps = gpu_with_matrices();
    struct VkmqaChoice choice;
    struct VkmqaProblem problem;
    VkmqaTier last = VKMQA_TIER_AUTO;
    int rounds = 0;
    while (vkmqa_select(&caps, &shape, NULL, &choice, &problem) == VK_SUCCESS) {
        for (uint32_t i = 0; i < choice.count; ++i) {
            assert_false(shape.avoidKernels >> choice.candidates[i].kernel & 1);
            shape.avoidKernels |= 1ull << choice.candidates[i].kernel;
        }
        last = choice.candidates[0].tier;
        assert_true(++rounds < 64);
    }
    assert_int_equal(last, VKMQA_TIER_PORTABLE);
    assert_true(rounds >= 4); // matrices, matrices without loads of stride 0, subgroup, portable
    assert_non_null(strstr(problem.text, "avoidKernels"));
}

// Every number of rows that a sequence can have finds the candidate that the full table would give.
static void kept_candidates_are_the_reachable_ones(void** state) {
    (void)state;
    struct VkmqaCaps caps = gpu();
    for (uint32_t ratio = 1; ratio <= 16; ++ratio) {
        struct VkmqaShape shape = shape_of(ratio, 1, 64);
        struct VkmqaChoice choice;
        struct VkmqaProblem problem;
        assert_int_equal(vkmqa_select(&caps, &shape, NULL, &choice, &problem), VK_SUCCESS);
        uint32_t most = choice.candidates[choice.count - 1].rows;
        for (uint32_t i = 0; i + 1 < choice.count; ++i)
            assert_true(choice.candidates[i].rows >= ratio || choice.candidates[i].rows == most);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tier_follows_features),
        cmocka_unit_test(the_poorest_device_runs_all),
        cmocka_unit_test(intels_subgroups_are_chosen),
        cmocka_unit_test(refusals_name_what_this_device_lacks),
        cmocka_unit_test(forced_tiers_are_kept_or_refused),
        cmocka_unit_test(matrices_take_many_rows),
        cmocka_unit_test(avoided_kernels_are_not_chosen),
        cmocka_unit_test(kept_candidates_are_the_reachable_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

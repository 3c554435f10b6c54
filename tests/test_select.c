// Which kernels a device gets, decided without a device: the table of runtime/core/select.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
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

static uint32_t seed = 1;
static uint32_t below(uint32_t bound) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % bound;
}
static bool mostly(void) { return below(4) != 0; }

static struct VkmqaCaps any_device(void) {
    static const VkPhysicalDeviceType types[] = {VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU,
                                                 VK_PHYSICAL_DEVICE_TYPE_CPU};
    static const uint32_t vendors[] = {0x1002, 0x10DE, 0x8086, 0x106B, 0x5143, 0x13B5};
    struct VkmqaCaps caps = gpu();
    caps.type = types[below(3)];
    caps.vendorId = vendors[below(6)];
    caps.driverId = below(28); // lavapipe and SwiftShader among them, and Mesa's for Apple
    caps.driverVersion = below(3) ? 0xFFFFFFFF : 0;
    caps.apiVersion = mostly() ? VK_API_VERSION_1_3 : VK_API_VERSION_1_1;
    caps.deviceAddress = mostly();
    caps.storage16 = mostly();
    caps.float16 = mostly();
    caps.narrowIntegers = mostly();
    caps.subgroupShuffle = mostly();
    caps.subgroupBallot = mostly();
    caps.subgroupVote = mostly();
    caps.subgroupSizeControl = mostly();
    caps.computeFullSubgroups = mostly();
    caps.minSubgroupSize = 1u << below(7);
    caps.subgroupSize = caps.minSubgroupSize << below(2);
    caps.maxSubgroupSize = caps.subgroupSize << below(2);
    caps.maxInvocations = 64u << below(5);
    caps.sharedMemory = 8192u << below(4);
    caps.storageBuffersPerStage = mostly() ? VKMQA_BIND_COUNT : VKMQA_BIND_COUNT - 1;
    caps.maxGroupCount[2] = mostly() ? 65535 : 64;
    caps.matrixCount = below(4);
    for (uint32_t i = 0; i < caps.matrixCount; ++i) {
        uint32_t sizes[3];
        for (int k = 0; k < 3; ++k)
            sizes[k] = mostly() ? 8u << below(2) : 1 + below(70);
        caps.matrices[i] = (struct VkmqaMatrix){sizes[0], sizes[1], sizes[2]};
    }
    return caps;
}

static struct VkmqaShape any_shape(void) {
    static const uint32_t dims[] = {8, 40, 64, 128, 256, 576};
    struct VkmqaShape shape = shape_of(1 + below(128), 1, dims[below(6)]);
    shape.kType = (VkmqaType)below(6);
    shape.vType = below(2) ? shape.kType : (VkmqaType)below(6);
    shape.ioType = shape.newType = (VkmqaType)below(3);
    shape.tier = mostly() ? VKMQA_TIER_AUTO : (VkmqaTier)below(5);
    shape.hadamard = below(5) ? 1 : 8;
    shape.invariant = !mostly();
    shape.maxSeqLenKv = 64u << below(14);
    for (uint32_t i = below(4); i < 3; ++i)
        shape.avoidKernels |= 1ull << below(64);
    return shape;
}

// Names of the table to make profiles of, among them one that it does not have.
static struct VkmqaTuned any_profile(void) {
    struct VkmqaTuned tuned = {.count = below(3)};
    for (uint32_t i = 0; i < tuned.count; ++i) {
        const char* name = vkmqaGetKernelName(below(60));
        snprintf(tuned.kernels[i].name, sizeof tuned.kernels[i].name, "%s", name ? name : "unheard-of");
        tuned.kernels[i].upTo = i + 1 < tuned.count ? 4 : UINT32_MAX;
        tuned.kernels[i].splitSize = below(2) * 128;
        tuned.kernels[i].workgroups = below(2) * 64;
    }
    return tuned;
}

static bool lists(const struct VkmqaCaps* caps, const struct VkmqaMatrix* matrix) {
    for (uint32_t i = 0; i < caps->matrixCount; ++i)
        if (memcmp(&caps->matrices[i], matrix, sizeof *matrix) == 0)
            return true;
    return false;
}

static void check_candidate(const struct VkmqaCaps* caps, const struct VkmqaShape* shape, const struct VkmqaCandidate* c) {
    assert_true(c->workgroupSize >= 1 && c->workgroupSize <= caps->maxInvocations);
    assert_true(c->sharedMemory <= caps->sharedMemory);
    assert_true(c->bind ? caps->storageBuffersPerStage >= VKMQA_BIND_COUNT : caps->deviceAddress);
    assert_true(shape->tier == VKMQA_TIER_AUTO || c->tier == shape->tier);
    assert_false(shape->avoidKernels >> c->kernel & 1);
    assert_true(c->tier != VKMQA_TIER_CPU || caps->type == VK_PHYSICAL_DEVICE_TYPE_CPU);
    if (c->subgroupSize) {
        assert_true(caps->subgroupShuffle);
        assert_true(c->subgroupSize == caps->subgroupSize ||
                    (caps->subgroupSizeControl && c->subgroupSize >= caps->minSubgroupSize &&
                     c->subgroupSize <= caps->maxSubgroupSize));
        assert_int_equal(c->workgroupSize % c->subgroupSize, 0);
        assert_true(c->workgroupSize == c->subgroupSize || caps->computeFullSubgroups);
    }
    if (c->matrix.m) {
        assert_int_equal(c->tier, VKMQA_TIER_COOPMAT);
        assert_true(lists(caps, &c->matrix) && caps->float16 && caps->subgroupVote && caps->computeFullSubgroups);
        assert_int_equal(c->rows % c->matrix.m, 0);
        assert_true(c->matrix.m <= c->subgroupSize && c->columnGroups <= c->matrix.m);
        assert_int_equal(c->block % c->matrix.n, 0);
        assert_int_equal(c->block % c->matrix.k, 0);
        assert_true((shape->kType != VKMQA_TYPE_F32 && shape->vType != VKMQA_TYPE_F32));
    }
}

// Whatever a device says of itself, kernels are chosen that it can run, or a sentence says what is missing; and what runs
// by descriptors alone always runs.
static void any_device_gets_what_it_can_run(void** state) {
    (void)state;
    uint32_t chosen[VKMQA_TIER_COOPMAT + 1] = {0}, refused = 0;
    for (uint32_t round = 0; round < 200000; ++round) {
        const struct VkmqaCaps caps = any_device();
        const struct VkmqaShape shape = any_shape();
        const struct VkmqaTuned tuned = any_profile();
        struct VkmqaChoice choice;
        struct VkmqaProblem problem = {{0}};
        VkResult result = vkmqa_select(&caps, &shape, below(2) ? &tuned : NULL, &choice, &problem);
        if (result) {
            assert_int_equal(result, VK_ERROR_FEATURE_NOT_PRESENT);
            assert_true(problem.text[0]);
            assert_true(shape.tier != VKMQA_TIER_AUTO || shape.avoidKernels || caps.maxInvocations < 128 ||
                        caps.sharedMemory < 16384 || caps.storageBuffersPerStage < VKMQA_BIND_COUNT);
            refused++;
            continue;
        }
        assert_in_range(choice.count, 1, VKMQA_MAX_CANDIDATES);
        assert_int_equal(choice.candidates[choice.count - 1].upTo, UINT32_MAX);
        for (uint32_t i = 0; i < choice.count; ++i) {
            assert_int_equal(choice.candidates[i].bind, choice.bind);
            check_candidate(&caps, &shape, &choice.candidates[i]);
            chosen[choice.candidates[i].tier]++;
        }
        assert_true(!shape.invariant || choice.count == 1);
        assert_false(shape.avoidKernels >> choice.appendKernel & 1);
        assert_true(choice.appendWorkgroupSize <= caps.maxInvocations || choice.appendWorkgroupSize == 128);
    }
    for (uint32_t tier = VKMQA_TIER_PORTABLE; tier <= VKMQA_TIER_COOPMAT; ++tier)
        assert_true(chosen[tier] > 1000);
    assert_true(refused > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tier_follows_features),
        cmocka_unit_test(any_device_gets_what_it_can_run),
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

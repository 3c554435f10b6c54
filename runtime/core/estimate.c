// How long a call takes, before it has run. Pure C: no Vulkan call. SPDX-License-Identifier: MIT
#include "internal.h"

// Bytes and multiply-adds (two flops) a second that a slow device of each kind reaches: a discrete card of 2016's
// lower middle class, integrated graphics on one channel of memory, two cores. Callers correct an estimate by what
// they measure (VkmqaSliceInfo::correction); until then slices are rather too small than too large.
struct Rates {
    double bytes, flops;
};
static struct Rates rates_of(VkPhysicalDeviceType type, VkmqaTier tier) {
    struct Rates rates = {15e9, 0.15e12};
    if (type == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU)
        rates = (struct Rates){100e9, 1e12};
    if (type == VK_PHYSICAL_DEVICE_TYPE_CPU)
        rates = (struct Rates){2e9, 10e9};
    else if (tier == VKMQA_TIER_COOPMAT)
        rates.flops *= 4;
    return rates;
}

struct VkmqaCost vkmqa_estimate(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                                const struct VkmqaChoice* choice, const VkmqaStepLimits* limits,
                                const struct VkmqaPlan* plan) {
    const struct VkmqaCandidate* candidate = &choice->candidates[plan->candidate];
    uint64_t rows = (uint64_t)limits->maxSeqLenQ * shape->ratio;
    uint64_t tiles = (rows + candidate->rows - 1) / candidate->rows * limits->batch;
    if (tiles > plan->tiles)
        tiles = plan->tiles;
    struct VkmqaCost cost = {
        .cacheBytes = tiles * vkmqa_span_tokens(shape, limits) * vkmqa_token_bytes(shape),
        .flops = 2.0 * limits->totalQ * shape->numHeadsQ * vkmqa_row_tokens(shape, limits) *
                 ((double)shape->headDimQk + shape->headDimV),
    };
    // Tiles that run at the same time read the cache from the device's own cache: one read counts as memory's.
    struct Rates rates = rates_of(caps->type, candidate->tier);
    double memory = (double)vkmqa_span_tokens(shape, limits) * limits->batch * vkmqa_token_bytes(shape) / rates.bytes;
    double arithmetic = cost.flops / rates.flops;
    cost.seconds = memory > arithmetic ? memory : arithmetic;
    return cost;
}

uint64_t vkmqa_groups_in(const struct VkmqaPlan* plan, double secondsPerGroup, double seconds) {
    uint64_t all = vkmqa_plan_groups(plan);
    double groups = seconds / secondsPerGroup;
    if (!(groups < (double)all)) // with nothing to do, 0 / 0
        return all;
    return groups >= 1 ? (uint64_t)groups : 1;
}

// Attention in slices: how many, and one of them. SPDX-License-Identifier: MIT
#include "call.h"

VkResult vkmqaGetSliceCount(VkmqaAttention attention, const VkmqaSliceInfo* given, VkmqaSlices* slices) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaContext_T* context = attention->context;
    struct VkmqaCall call = {.attention = attention, .name = "vkmqaGetSliceCount"};
    struct VkmqaProblem problem;
    VkmqaSliceInfo info;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem) ||
        !vkmqa_open_output(slices, sizeof *slices, sizeof *slices, "slices", &problem)) {
        vkmqa_reject(&call, "%s", problem.text);
        return call.result;
    }
    if (!(info.seconds >= 0))
        vkmqa_reject(&call, "info.seconds is %g; give the seconds that a slice may take, or 0 for 0.002", info.seconds);
    if (!(info.correction >= 0 && info.correction <= 1e9))
        vkmqa_reject(&call, "info.correction is %g; give measured seconds divided by estimated ones, or 0 for 1",
                     info.correction);
    VkmqaStep step;
    VkmqaStepLimits limits;
    struct VkmqaPlan plan;
    if (call.result == VK_SUCCESS)
        vkmqa_read_plan(&call, info.step, &step, &limits, &plan);
    if (call.result != VK_SUCCESS)
        return call.result;
    slices->groups = vkmqa_plan_groups(&plan);
    slices->secondsPerGroup =
        vkmqa_estimate(&context->caps, &attention->shape, &attention->choice, &limits, &plan).seconds /
        (double)slices->groups * (info.correction > 0 ? info.correction : 1);
    slices->groupsPerSlice =
        vkmqa_groups_in(&plan, slices->secondsPerGroup, info.seconds > 0 ? info.seconds : 0.002);
    slices->sliceCount = (slices->groups + slices->groupsPerSlice - 1) / slices->groupsPerSlice;
    return VK_SUCCESS;
}

VkResult vkmqaCmdAttentionSlice(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                const VkmqaAttentionInfo* given, uint64_t firstGroup, uint64_t groupCount) {
    struct VkmqaCall call = {.attention = attention, .name = "vkmqaCmdAttentionSlice"};
    struct VkmqaAttentionCall read;
    VkResult result = vkmqa_read_attention(attention, commandBuffer, call.name, given, &read);
    if (result != VK_SUCCESS)
        return result;
    uint64_t groups = vkmqa_plan_groups(&read.plan);
    if (firstGroup >= groups)
        vkmqa_reject(&call, "firstGroup is %llu; the call has the groups 0 to %llu (vkmqaGetSliceCount)",
                     (unsigned long long)firstGroup, (unsigned long long)groups - 1);
    if (groupCount == 0)
        vkmqa_reject(&call, "groupCount is 0; give at least 1, such as VkmqaSlices::groupsPerSlice");
    if (call.result != VK_SUCCESS)
        return call.result;
    read.plan.first = firstGroup;
    read.plan.end = groupCount < groups - firstGroup ? firstGroup + groupCount : groups;
    uint32_t dispatches;
    return vkmqa_record_attention(attention, commandBuffer, call.name, &read.info, &read.step, &read.limits,
                                  &read.plan, &dispatches);
}

// One measurement moves the correction by at most this factor: the first slices of an object meet clocks that are
// still rising, and a lone slow one is noise.
#define MOST_CHANGE 8.0

double vkmqaCorrectSlices(double correction, double measuredSeconds, double estimatedSeconds) {
    if (!(correction > 0))
        correction = 1;
    if (measuredSeconds > 0 && estimatedSeconds > 0) {
        double change = measuredSeconds / estimatedSeconds;
        correction *= change < 1 / MOST_CHANGE ? 1 / MOST_CHANGE : change > MOST_CHANGE ? MOST_CHANGE : change;
    }
    return correction < 1e-6 ? 1e-6 : correction > 1e6 ? 1e6 : correction;
}

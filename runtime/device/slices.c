// Attention in one submission after another, none of them long. SPDX-License-Identifier: MIT
#include "device.h"

// One measurement moves the correction by at most this factor: the first slices of an object meet clocks that are
// still rising, and a lone slow one is noise.
#define MOST_CHANGE 8.0

static double correct(double correction, double measured, double predicted) {
    double change = measured / predicted;
    if (!(change > 1 / MOST_CHANGE)) // 0 where there are no timestamps
        change = measured > 0 ? 1 / MOST_CHANGE : 1;
    if (change > MOST_CHANGE)
        change = MOST_CHANGE;
    correction *= change;
    return correction < 1e-6 ? 1e-6 : correction > 1e6 ? 1e6 : correction;
}

VkResult vkmqaRunAttention(VkmqaCommands commands, VkmqaAttention attention, const VkmqaAttentionInfo* given,
                           double seconds, double* correction) {
    static const char call[] = "vkmqaRunAttention";
    VkResult result = vkmqaBeginCommands(commands);
    if (result)
        return result;
    VkmqaDevice device = vkmqa_commands_device(commands);
    if (!given || !correction)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s is null; give one", call,
                                 given ? "correction" : "info");
    VkmqaAttentionInfo info = *given;
    info.recorder = vkmqaGetCommandsRecorder(commands);
    VkmqaSlices slices = {.structSize = sizeof(slices)};
    double factor = *correction > 0 ? *correction : 1;
    for (uint64_t done = 0; done == 0 || done < slices.groups; done += slices.groupsPerSlice) {
        VkmqaSliceInfo ask = {
            .structSize = sizeof(ask), .step = info.step, .seconds = seconds, .correction = factor};
        if (done)
            result = vkmqaBeginCommands(commands);
        if (!result)
            result = vkmqaGetSliceCount(attention, &ask, &slices);
        if (!result)
            result = vkmqaCmdAttentionSlice(attention, vkmqaGetCommandBuffer(commands), &info, done,
                                            slices.groupsPerSlice);
        if (!result)
            result = vkmqaSubmitCommands(commands);
        if (!result)
            result = vkmqaWaitCommands(commands, device->waitLimitNs);
        if (result)
            return result;
        uint64_t left = slices.groups - done;
        double groups = (double)(left < slices.groupsPerSlice ? left : slices.groupsPerSlice);
        factor = correct(factor, vkmqaGetCommandsTime(commands), groups * slices.secondsPerGroup);
    }
    *correction = factor;
    return VK_SUCCESS;
}

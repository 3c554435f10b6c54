// Attention in one submission after another, none of them long. SPDX-License-Identifier: MIT
#include "device.h"

VkResult vkmqaRunAttention(VkmqaCommands commands, VkmqaAttention attention, const VkmqaAttentionInfo* given,
                           double seconds, double* correction) {
    static const char call[] = "vkmqaRunAttention";
    VkmqaDevice device = vkmqa_commands_device(commands);
    if (!device)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!correction)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: correction is null; give one", call);
    if (!(seconds >= 0))
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: seconds is %g; give what a slice may take, or 0 for 0.002", call, seconds);
    VkmqaAttentionInfo info;
    VkResult result =
        vkmqa_read_info(&device->messenger, call, "VkmqaAttentionInfo", given, &info, sizeof info, sizeof info);
    if (result)
        return result;
    info.structSize = sizeof info; // what a newer caller's has more is zero
    info.recorder = vkmqaGetCommandsRecorder(commands);
    VkmqaSlices slices = {.structSize = sizeof(slices)};
    for (uint64_t done = 0; done == 0 || done < slices.groups; done += slices.groupsPerSlice) {
        VkmqaSliceInfo ask = {
            .structSize = sizeof(ask), .step = info.step, .seconds = seconds, .correction = *correction};
        result = vkmqaGetSliceCount(attention, &ask, &slices);
        if (!result)
            result = vkmqaBeginCommands(commands);
        if (!result)
            result = vkmqaCmdAttentionSlice(attention, vkmqaGetCommandBuffer(commands), &info, done,
                                            slices.groupsPerSlice);
        if (!result)
            result = vkmqaSubmitCommands(commands);
        if (!result) {
            result = vkmqaWaitCommands(commands, device->waitLimitNs);
            if (result == VK_TIMEOUT)
                vkmqa_device_fail(&device->messenger, result,
                                  "%s: a slice of %g s as estimated has not finished after %g s; it is still pending",
                                  call, (double)slices.groupsPerSlice * slices.secondsPerGroup,
                                  1e-9 * (double)device->waitLimitNs);
            if (result < 0 && vkmqa_drain_device(device, call) == VK_SUCCESS) // so that the caller may try again
                vkmqaWaitCommands(commands, 0);
        }
        if (result)
            return result;
        uint64_t left = slices.groups - done;
        double groups = (double)(left < slices.groupsPerSlice ? left : slices.groupsPerSlice);
        *correction = vkmqaCorrectSlices(*correction, vkmqaGetCommandsTime(commands), groups * slices.secondsPerGroup);
    }
    return VK_SUCCESS;
}

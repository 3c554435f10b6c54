// Attention objects whose kernels have answered a known question rightly on this driver.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdio.h>
#include <string.h>

static void name_kernels(uint64_t failed, char* text, size_t size) {
    size_t length = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < 64 && length < size; i++) {
        const char* name = vkmqaGetKernelName(i);
        if (failed >> i & 1 && name)
            length += (size_t)snprintf(text + length, size - length, "%s%s", length ? ", " : "",
                                       name);
    }
}

static VkResult verify(VkmqaDevice device, const char* call, VkmqaAttention attention,
                       VkmqaMemory* memory, uint64_t* failed) {
    VkmqaBufferRequirements requirements = {0};
    VkResult result = vkmqaGetVerifyRequirements(attention, &requirements);
    if (result)
        return vkmqa_device_result(device, result, call, "vkmqaGetVerifyRequirements");
    // Cached: the host compares what the device wrote.
    result = vkmqa_make_memory(device, call, VKMQA_MEMORY_DOWNLOAD,
                               requirements.size ? requirements.size : 4, memory);
    if (result)
        return result;
    VkmqaVerifyInfo info = {
        .structSize = sizeof(info),
        .queueFamilyIndex = device->physical.computeFamily,
        .queue = device->computeQueue,
        .memory = vkmqaGetMemoryRange(*memory, 0, 0),
        .mapped = vkmqaGetMemoryPointer(*memory),
        .timeoutNs = device->waitLimitNs,
        .lockQueue = vkmqa_lock_queue,
        .unlockQueue = vkmqa_unlock_queue,
        .queueUserData = device,
    };
    result = vkmqaVerifyAttention(attention, &info, failed);
    if (result == VK_TIMEOUT)
        return vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                                 "%s: the known-answer test had not finished after %llu s", call,
                                 (unsigned long long)(device->waitLimitNs / 1000000000));
    return vkmqa_device_result(device, result, call, "vkmqaVerifyAttention");
}

// VK_SUCCESS with failed == 0: the object is good. In every other case it is gone.
static VkResult test(VkmqaDevice device, const char* call, VkmqaAttention attention,
                     uint64_t* failed) {
    VkmqaMemory memory = NULL;
    *failed = 0;
    VkResult result = verify(device, call, attention, &memory, failed);
    if (result && vkmqa_drain_device(device, call) != VK_SUCCESS) {
        // What may still run must stay, and a queue that never comes back is a lost device.
        device->lost = device->hung = true;
        return result;
    }
    if (memory)
        vkmqa_free_memory(memory);
    if (!result && *failed) {
        char names[512];
        name_kernels(*failed, names, sizeof(names));
        vkmqa_device_say(&device->messenger, VKMQA_SEVERITY_WARNING,
                         "%s: on %s these kernels give wrong answers and are avoided: %s", call,
                         device->physical.properties.name, names);
    }
    if (result || *failed)
        vkmqaDestroyAttention(attention);
    return result;
}

VkResult vkmqaDeviceCreateAttention(VkmqaDevice device, const VkmqaAttentionCreateInfo* info,
                                    VkmqaAttention* attention) {
    static const char call[] = "vkmqaDeviceCreateAttention";
    if (attention)
        *attention = NULL;
    VkResult result = vkmqa_check_device(device, call);
    if (result)
        return result;
    if (!info || !attention)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: %s is null; pass one", call, info ? "attention" : "info");
    VkmqaAttention made = NULL;
    result = vkmqaCreateAttention(device->context, info, &made); // it checks info
    VkmqaAttentionCreateInfo next = {0};
    if (!result)
        memcpy(&next, info, info->structSize < sizeof(next) ? info->structSize : sizeof(next));
    next.structSize = sizeof(next);
    while (!result) {
        uint64_t failed;
        if (device->skipVerification)
            break;
        result = test(device, call, made, &failed);
        if (result || !failed)
            break;
        if (!(failed & ~next.avoidKernels))
            return vkmqa_device_fail(&device->messenger, VK_ERROR_FEATURE_NOT_PRESENT,
                                     "%s: kernels were used that the device is known to fail; no "
                                     "other is left",
                                     call);
        next.avoidKernels |= failed;
        result = vkmqaCreateAttention(device->context, &next, &made);
        if (result)
            return vkmqa_device_fail(&device->messenger, result,
                                     "%s: no kernel is left that computes rightly on %s; update "
                                     "its driver or select another device",
                                     call, device->physical.properties.name);
    }
    if (result == VK_ERROR_DEVICE_LOST)
        device->lost = true;
    if (!result)
        *attention = made;
    return result;
}

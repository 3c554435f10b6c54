// The life of a VkmqaDevice, whether its VkDevice is the layer's own (open.c) or somebody else's (import.c), and what
// can be asked of it. SPDX-License-Identifier: MIT
#include "device.h"

#include <string.h>

// Long enough for anything a GPU's watchdog lets run. Drivers on the CPU have no watchdog, and
// minutes of honest work.
#define WAIT_LIMIT_GPU_NS (60ull * 1000 * 1000 * 1000)
#define WAIT_LIMIT_CPU_NS (600ull * 1000 * 1000 * 1000)

bool vkmqa_is_device(VkmqaDevice device) { return device && device->magic == VKMQA_MAGIC_DEVICE; }

VkResult vkmqa_check_device(VkmqaDevice device, const char* call) {
    if (!vkmqa_is_device(device))
        return VK_ERROR_VALIDATION_FAILED_EXT; // nobody to tell
    if (device->processId != vkmqa_process_id())
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: the device belongs to the process that forked this one, and "
                                 "its work would never finish here; open one after fork()",
                                 call);
    if (device->lost)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_DEVICE_LOST,
                                 "%s: the device was lost earlier; destroy what was made from it, "
                                 "close it and open it again",
                                 call);
    return VK_SUCCESS;
}

VkResult vkmqa_device_result(VkmqaDevice device, VkResult result, const char* call,
                             const char* what) {
    if (result >= 0)
        return result;
    if (result == VK_ERROR_DEVICE_LOST)
        device->lost = true;
    return vkmqa_device_fail(
        &device->messenger, result, "%s: %s returned %s%s", call, what, vkmqa_result_name(result),
        result == VK_ERROR_DEVICE_LOST ? "; close the device and open it again" : "");
}

void vkmqa_lock_queue(void* userData, VkQueue queue) {
    VkmqaDevice device = userData;
    device->used = true;
    if (device->lockQueue)
        device->lockQueue(device->queueUserData, queue);
}

void vkmqa_unlock_queue(void* userData, VkQueue queue) {
    VkmqaDevice device = userData;
    if (device->unlockQueue)
        device->unlockQueue(device->queueUserData, queue);
}

VkResult vkmqa_submit(VkmqaDevice device, VkQueue queue, uint32_t count, const VkSubmitInfo* submits,
                      VkFence fence) {
    vkmqa_lock_queue(device, queue);
    VkResult result = device->loader.vk.QueueSubmit(queue, count, submits, fence);
    vkmqa_unlock_queue(device, queue);
    return result;
}

static VkResult wait_idle_fence(VkmqaDevice device, const char* call) {
    VkResult result = device->loader.vk.WaitForFences(device->handle, 1, &device->idleFence, VK_TRUE, device->waitLimitNs);
    if (result == VK_TIMEOUT)
        return vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                                 "%s: a queue was still busy after %llu s", call,
                                 (unsigned long long)(device->waitLimitNs / 1000000000));
    if (result == VK_SUCCESS)
        device->idlePending = false;
    return vkmqa_device_result(device, result, call, "vkWaitForFences");
}

static VkResult drain_queue(VkmqaDevice device, const char* call, VkQueue queue) {
    const struct VkmqaVk* vk = &device->loader.vk;
    // An earlier drain may have given up on the fence, which may not be reset before it has signalled.
    VkResult result = device->idlePending ? wait_idle_fence(device, call) : VK_SUCCESS;
    if (result)
        return result;
    result = vk->ResetFences(device->handle, 1, &device->idleFence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkResetFences");
    // Without batches the fence signals once all that was submitted earlier has finished.
    result = vkmqa_submit(device, queue, 0, NULL, device->idleFence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkQueueSubmit");
    device->idlePending = true;
    return wait_idle_fence(device, call);
}

// Not vkDeviceWaitIdle, which would need the queues of an imported device that this layer does not know.
static VkResult wait_idle(VkmqaDevice device, VkQueue queue) {
    vkmqa_lock_queue(device, queue);
    VkResult result = device->loader.vk.QueueWaitIdle(queue);
    vkmqa_unlock_queue(device, queue);
    return result;
}

VkResult vkmqa_drain_device(VkmqaDevice device, const char* call) {
    if (device->hung)
        return VK_TIMEOUT;
    if (!device->used)
        return VK_SUCCESS;
    VkResult result = device->lost ? VK_ERROR_DEVICE_LOST : VK_SUCCESS;
    if (result == VK_SUCCESS)
        result = drain_queue(device, call, device->computeQueue);
    if (result == VK_SUCCESS && device->transferQueue != device->computeQueue)
        result = drain_queue(device, call, device->transferQueue);
    if (result == VK_SUCCESS || result == VK_TIMEOUT)
        return result;
    // A lost device returns from this in finite time, and one that had no memory for the fence is
    // healthy otherwise.
    result = wait_idle(device, device->computeQueue);
    if (result == VK_SUCCESS && device->transferQueue != device->computeQueue)
        result = wait_idle(device, device->transferQueue);
    if (result == VK_ERROR_DEVICE_LOST)
        device->lost = true;
    if (result == VK_SUCCESS)
        device->idlePending = false;
    return device->lost ? VK_SUCCESS
                        : vkmqa_device_result(device, result, call, "vkQueueWaitIdle");
}

bool vkmqa_enables_addresses(uint32_t apiVersion, uint32_t extensionCount, const char* const* extensions,
                             const VkPhysicalDeviceFeatures2* features) {
    bool known = apiVersion >= VK_API_VERSION_1_2; // of instance and device
    for (uint32_t i = 0; i < extensionCount; i++)
        known = known || strcmp(extensions[i], VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME) == 0;
    if (!known)
        return false;
    for (const VkBaseInStructure* s = (const VkBaseInStructure*)features; s; s = s->pNext) {
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES)
            return ((const VkPhysicalDeviceBufferDeviceAddressFeatures*)s)->bufferDeviceAddress;
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES)
            return ((const VkPhysicalDeviceVulkan12Features*)s)->bufferDeviceAddress;
    }
    return false;
}

VkmqaDevice vkmqa_new_device(const struct VkmqaMessenger* messenger, const char* call,
                             const VkAllocationCallbacks* allocator) {
    VkmqaDevice device = vkmqa_allocate(allocator, sizeof(*device));
    if (!device) {
        vkmqa_device_fail(messenger, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: out of host memory", call);
        return NULL;
    }
    device->magic = VKMQA_MAGIC_DEVICE;
    device->processId = vkmqa_process_id();
    device->messenger = *messenger;
    device->hasAllocator = allocator != NULL;
    if (allocator)
        device->allocator = *allocator;
    return device;
}

static void free_handle(VkmqaDevice device) {
    VkAllocationCallbacks allocator = device->allocator; // the struct goes with the memory
    vkmqa_free(device->hasAllocator ? &allocator : NULL, device);
}

VkResult vkmqa_start_device(VkmqaDevice device, const char* call, bool deviceAddresses) {
    struct VkmqaVk* vk = &device->loader.vk;
    const char* missing = "";
    VkResult result = vkmqa_load_device(vk, device->handle, &missing);
    if (result) {
        // The one function that destroying takes may be among those not reached.
        vk->DestroyDevice =
            (PFN_vkDestroyDevice)vk->GetDeviceProcAddr(device->handle, "vkDestroyDevice");
        return vkmqa_device_fail(&device->messenger, result, "%s: the driver has no %s; update it",
                                 call, missing);
    }
    device->deviceAddresses = deviceAddresses && vk->GetBufferDeviceAddress;
    device->physical.properties.deviceAddresses = device->deviceAddresses;
    vk->GetPhysicalDeviceMemoryProperties(device->physical.handle, &device->memoryProperties);
    device->waitLimitNs = device->physical.properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU
                              ? WAIT_LIMIT_CPU_NS
                              : WAIT_LIMIT_GPU_NS;
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    result = vk->CreateFence(device->handle, &fence, vkmqa_device_allocator(device), &device->idleFence);
    if (result)
        device->idleFence = VK_NULL_HANDLE;
    return vkmqa_device_result(device, result, call, "vkCreateFence");
}

static void destroy_left(VkmqaDevice device) {
    vkmqa_destroy_left_commands(device);
    while (device->leftMemories) {
        VkmqaMemory memory = device->leftMemories;
        device->leftMemories = memory->nextLeft;
        vkmqa_free_memory(memory);
    }
}

void vkmqa_destroy_device(VkmqaDevice device) {
    const struct VkmqaVk* vk = &device->loader.vk;
    destroy_left(device);
    vkmqaDestroyContext(device->context);
    if (device->handle) {
        if (device->transfer)
            vkmqa_destroy_transfer(device);
        vkmqa_destroy_copies(device);
        if (device->pipelineCache && !device->imported)
            vk->DestroyPipelineCache(device->handle, device->pipelineCache, NULL);
        if (device->idleFence)
            vk->DestroyFence(device->handle, device->idleFence, vkmqa_device_allocator(device));
        if (vk->DestroyDevice && !device->imported)
            vk->DestroyDevice(device->handle, NULL);
    }
    if (!device->imported)
        vkmqa_close_loader(&device->loader);
    device->magic = 0;
    free_handle(device);
}

void vkmqaCloseDevice(VkmqaDevice device) {
    static const char call[] = "vkmqaCloseDevice";
    if (!vkmqa_is_device(device))
        return;
    if (device->cacheCount || device->memoryCount || device->commandsCount) {
        vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: of the device still exist %u caches, and with theirs %u memories and %u commands; it "
                          "stays open: destroy them, then close it",
                          call, device->cacheCount, device->memoryCount, device->commandsCount);
        return;
    }
    if (device->processId != vkmqa_process_id()) {
        // The driver's threads stayed in the parent, and destroying its objects would wait for
        // them. The context stays, since attention objects of the child may still speak of it.
        vkmqa_forget_transfer(device);
        vkmqa_forget_copies(device);
        destroy_left(device);
        device->magic = 0;
        free_handle(device);
        return;
    }
    if (vkmqa_drain_device(device, call) != VK_SUCCESS) {
        vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                          "%s: work is still pending, so its Vulkan objects are leaked rather than "
                          "destroyed under it",
                          call);
        return;
    }
    vkmqa_destroy_device(device);
}

// ---- Asking ------------------------------------------------------------------------------------

VkResult vkmqaGetDeviceProperties(VkmqaDevice device, VkmqaDeviceProperties* properties) {
    if (!vkmqa_is_device(device))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkResult result = vkmqa_check_output(&device->messenger, "vkmqaGetDeviceProperties",
                                         "VkmqaDeviceProperties", properties, sizeof(*properties),
                                         sizeof(*properties));
    if (!result)
        vkmqa_write_output(properties, &device->physical.properties, sizeof(*properties));
    return result;
}

VkmqaContext vkmqaGetDeviceContext(VkmqaDevice device) {
    return vkmqa_is_device(device) ? device->context : NULL;
}

VkResult vkmqaGetDeviceHandles(VkmqaDevice device, VkmqaDeviceHandles* handles) {
    if (!vkmqa_is_device(device))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkResult result = vkmqa_check_output(&device->messenger, "vkmqaGetDeviceHandles",
                                         "VkmqaDeviceHandles", handles, sizeof(*handles), sizeof(*handles));
    if (result)
        return result;
    device->used = true; // by whoever has its queues
    VkmqaDeviceHandles source = {
        .instance = device->loader.instance,
        .physicalDevice = device->physical.handle,
        .device = device->handle,
        .computeQueue = device->computeQueue,
        .transferQueue = device->transferQueue,
        .computeFamily = device->physical.computeFamily,
        .transferFamily = device->physical.transferFamily,
        .getInstanceProcAddr = device->loader.getInstanceProcAddr,
        .pipelineCache = device->pipelineCache,
    };
    vkmqa_write_output(handles, &source, sizeof(source));
    return VK_SUCCESS;
}

// Opening and closing a device, and what can be asked of it.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
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

static VkResult drain_queue(VkmqaDevice device, const char* call, VkQueue queue) {
    const struct VkmqaVk* vk = &device->loader.vk;
    VkResult result = vk->ResetFences(device->handle, 1, &device->idleFence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkResetFences");
    // Without batches the fence signals once all that was submitted earlier has finished.
    result = vk->QueueSubmit(queue, 0, NULL, device->idleFence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkQueueSubmit");
    result = vk->WaitForFences(device->handle, 1, &device->idleFence, VK_TRUE, device->waitLimitNs);
    if (result == VK_TIMEOUT)
        return vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                                 "%s: a queue was still busy after %llu s", call,
                                 (unsigned long long)(device->waitLimitNs / 1000000000));
    return vkmqa_device_result(device, result, call, "vkWaitForFences");
}

VkResult vkmqa_drain_device(VkmqaDevice device, const char* call) {
    if (device->hung)
        return VK_TIMEOUT;
    VkResult result = device->lost ? VK_ERROR_DEVICE_LOST : VK_SUCCESS;
    if (result == VK_SUCCESS)
        result = drain_queue(device, call, device->computeQueue);
    if (result == VK_SUCCESS && device->transferQueue != device->computeQueue)
        result = drain_queue(device, call, device->transferQueue);
    if (result == VK_SUCCESS || result == VK_TIMEOUT)
        return result;
    // A lost device returns from this in finite time, and one that had no memory for the fence is
    // healthy otherwise.
    result = device->loader.vk.DeviceWaitIdle(device->handle);
    if (result == VK_ERROR_DEVICE_LOST)
        device->lost = true;
    return device->lost ? VK_SUCCESS
                        : vkmqa_device_result(device, result, call, "vkDeviceWaitIdle");
}

// ---- Opening -----------------------------------------------------------------------------------

static bool enables_addresses(const VkPhysicalDeviceFeatures2* features) {
    for (const VkBaseInStructure* s = (const VkBaseInStructure*)features; s; s = s->pNext) {
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES)
            return ((const VkPhysicalDeviceBufferDeviceAddressFeatures*)s)->bufferDeviceAddress;
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES)
            return ((const VkPhysicalDeviceVulkan12Features*)s)->bufferDeviceAddress;
    }
    return false;
}

static VkResult create_device(VkmqaDevice device, const char* call,
                              const VkmqaDeviceRequirements* requirements,
                              const char* const* extensions, uint32_t extensionCount) {
    const struct VkmqaPhysical* physical = &device->physical;
    struct VkmqaVk* vk = &device->loader.vk;
    const float priority = 1.0f;
    VkDeviceQueueCreateInfo queues[2] = {{
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = physical->computeFamily,
        .queueCount = 1,
        .pQueuePriorities = &priority,
    }};
    queues[1] = queues[0];
    queues[1].queueFamilyIndex = physical->transferFamily;
    VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = requirements->features,
        .queueCreateInfoCount = physical->transferFamily == physical->computeFamily ? 1 : 2,
        .pQueueCreateInfos = queues,
        .enabledExtensionCount = extensionCount,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult result = vk->CreateDevice(physical->handle, &info, NULL, &device->handle);
    if (result) {
        device->handle = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateDevice");
    }
    const char* missing = "";
    result = vkmqa_load_device(vk, device->handle, &missing);
    if (result) {
        // The one function that destroying takes may be among those not reached.
        vk->DestroyDevice =
            (PFN_vkDestroyDevice)vk->GetDeviceProcAddr(device->handle, "vkDestroyDevice");
        return vkmqa_device_fail(&device->messenger, result, "%s: the driver has no %s; update it",
                                 call, missing);
    }
    device->deviceAddresses =
        vk->GetBufferDeviceAddress && enables_addresses(requirements->features);
    device->physical.properties.deviceAddresses = device->deviceAddresses;
    vk->GetDeviceQueue(device->handle, physical->computeFamily, 0, &device->computeQueue);
    vk->GetDeviceQueue(device->handle, physical->transferFamily, 0, &device->transferQueue);

    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    result = vk->CreateFence(device->handle, &fence, NULL, &device->idleFence);
    if (result)
        device->idleFence = VK_NULL_HANDLE;
    return vkmqa_device_result(device, result, call, "vkCreateFence");
}

// Drivers are known to crash on the cache of another driver or version, so only data whose header
// is that of this device gets through.
static bool cache_fits(VkmqaDevice device, const void* data, size_t size) {
    VkPhysicalDeviceProperties properties;
    device->loader.vk.GetPhysicalDeviceProperties(device->physical.handle, &properties);
    const unsigned char* bytes = data;
    uint32_t header[4]; // size, version, vendor, device; little-endian as the host
    if (size < sizeof(header) + VK_UUID_SIZE)
        return false;
    memcpy(header, bytes, sizeof(header));
    return header[0] >= sizeof(header) + VK_UUID_SIZE && header[0] <= size &&
           header[1] == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && header[2] == properties.vendorID &&
           header[3] == properties.deviceID &&
           !memcmp(bytes + sizeof(header), properties.pipelineCacheUUID, VK_UUID_SIZE);
}

static VkResult create_cache(VkmqaDevice device, const char* call,
                             const VkmqaDeviceOpenInfo* info) {
    const struct VkmqaVk* vk = &device->loader.vk;
    VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    if (info->pipelineCacheData && info->pipelineCacheSize) {
        if (cache_fits(device, info->pipelineCacheData, info->pipelineCacheSize)) {
            cache.pInitialData = info->pipelineCacheData;
            cache.initialDataSize = info->pipelineCacheSize;
        } else {
            vkmqa_device_say(&device->messenger, VKMQA_SEVERITY_INFO,
                             "%s: pipelineCacheData is of another device or driver and is not used",
                             call);
        }
    }
    VkResult result = vk->CreatePipelineCache(device->handle, &cache, NULL, &device->pipelineCache);
    if (result)
        device->pipelineCache = VK_NULL_HANDLE;
    return vkmqa_device_result(device, result, call, "vkCreatePipelineCache");
}

// The device and its context, on an instance and a physical device that are there.
static VkResult open_physical(VkmqaDevice device, const char* call,
                              const VkmqaDeviceOpenInfo* info) {
    VkmqaDeviceRequirements requirements = {.structSize = sizeof(requirements)};
    VkResult result;
    if (!info->portableOnly) {
        VkmqaDeviceRequirementsInfo ask = {
            .structSize = sizeof(ask),
            .apiVersion = device->loader.apiVersion,
            .instance = device->loader.instance,
            .physicalDevice = device->physical.handle,
            .getInstanceProcAddr = device->loader.getInstanceProcAddr,
        };
        result = vkmqaGetDeviceRequirements(&ask, &requirements);
        if (result)
            return vkmqa_device_result(device, result, call, "vkmqaGetDeviceRequirements");
    }
    uint32_t count = requirements.extensionCount;
    const char** extensions = calloc((size_t)count + 1, sizeof(*extensions));
    if (!extensions)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "calloc");
    // Vulkan demands that this one be enabled where it is listed.
    bool subset = device->physical.portabilitySubset;
    for (uint32_t i = 0; i < count; i++) {
        extensions[i] = requirements.extensionNames[i];
        if (!strcmp(extensions[i], "VK_KHR_portability_subset"))
            subset = false;
    }
    if (subset)
        extensions[count++] = "VK_KHR_portability_subset";

    result = create_device(device, call, &requirements, extensions, count);
    if (!result)
        result = create_cache(device, call, info);
    if (!result) {
        VkmqaContextCreateInfo context = {
            .structSize = sizeof(context),
            .apiVersion = device->loader.apiVersion,
            .instance = device->loader.instance,
            .physicalDevice = device->physical.handle,
            .device = device->handle,
            .getInstanceProcAddr = device->loader.getInstanceProcAddr,
            .enabledExtensionCount = count,
            .enabledExtensions = extensions,
            .enabledFeatures = requirements.features,
            .pipelineCache = device->pipelineCache,
            .messageCallback = device->messenger.callback,
            .messageUserData = device->messenger.userData,
            .runJobs = vkmqa_run_jobs,
        };
        result = vkmqaCreateContext(&context, &device->context);
        if (result) // it has explained itself
            device->context = NULL;
    }
    free(extensions);
    return result;
}

static void destroy_device(VkmqaDevice device) {
    const struct VkmqaVk* vk = &device->loader.vk;
    vkmqaDestroyContext(device->context);
    if (device->handle) {
        if (device->transfer)
            vkmqa_destroy_transfer(device);
        vkmqa_destroy_copies(device);
        if (device->pipelineCache)
            vk->DestroyPipelineCache(device->handle, device->pipelineCache, NULL);
        if (device->idleFence)
            vk->DestroyFence(device->handle, device->idleFence, NULL);
        if (vk->DestroyDevice)
            vk->DestroyDevice(device->handle, NULL);
    }
    vkmqa_close_loader(&device->loader);
    device->magic = 0;
    free(device);
}

VkResult vkmqaOpenDevice(const VkmqaDeviceOpenInfo* info, VkmqaDevice* device) {
    static const char call[] = "vkmqaOpenDevice";
    struct VkmqaMessenger messenger = {NULL, NULL};
    VkmqaDeviceOpenInfo copy;
    if (!info || !device)
        return VK_ERROR_VALIDATION_FAILED_EXT; // nobody to tell, or nowhere to put it
    // The callback is believed only if it lies within the caller's struct.
    if (info->structSize >= sizeof(copy)) {
        messenger.callback = info->messageCallback;
        messenger.userData = info->messageUserData;
    }
    VkResult result =
        vkmqa_read_info(&messenger, call, "VkmqaDeviceOpenInfo", info, &copy, sizeof(copy));
    if (result)
        return result;
    VkmqaDevice opened = calloc(1, sizeof(*opened));
    if (!opened)
        return vkmqa_device_fail(&messenger, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: out of host memory",
                                 call);
    opened->magic = VKMQA_MAGIC_DEVICE;
    opened->processId = vkmqa_process_id();
    opened->messenger = messenger;
    opened->skipVerification = copy.skipVerification;

    struct VkmqaPhysical* physicals = NULL;
    const struct VkmqaPhysical* selected = NULL;
    uint32_t count = 0;
    result = vkmqa_open_loader(&messenger, call,
                               copy.portableOnly ? VK_API_VERSION_1_1 : VK_API_VERSION_1_3,
                               &opened->loader);
    if (!result)
        result = vkmqa_list_physicals(&messenger, call, &opened->loader, &physicals, &count);
    if (!result)
        result =
            vkmqa_select_physical(&messenger, call, copy.selector, physicals, count, &selected);
    if (!result) {
        opened->physical = *selected;
        opened->waitLimitNs = selected->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU
                                  ? WAIT_LIMIT_CPU_NS
                                  : WAIT_LIMIT_GPU_NS;
        opened->loader.vk.GetPhysicalDeviceMemoryProperties(selected->handle,
                                                            &opened->memoryProperties);
        result = open_physical(opened, call, &copy);
    }
    free(physicals);
    if (result) {
        destroy_device(opened);
        return result;
    }
    *device = opened;
    return VK_SUCCESS;
}

void vkmqaCloseDevice(VkmqaDevice device) {
    static const char call[] = "vkmqaCloseDevice";
    if (!vkmqa_is_device(device))
        return;
    if (device->memoryCount || device->commandsCount) {
        vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: %u memories and %u commands of the device still exist; it stays "
                          "open: destroy them, then close it",
                          call, device->memoryCount, device->commandsCount);
        return;
    }
    if (device->processId != vkmqa_process_id()) {
        // The driver's threads stayed in the parent, and destroying its objects would wait for
        // them. The context stays, since attention objects of the child may still speak of it.
        vkmqa_forget_transfer(device);
        vkmqa_forget_copies(device);
        device->magic = 0;
        free(device);
        return;
    }
    if (vkmqa_drain_device(device, call) != VK_SUCCESS) {
        vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                          "%s: work is still pending, so its Vulkan objects are leaked rather than "
                          "destroyed under it",
                          call);
        return;
    }
    destroy_device(device);
}

// ---- Asking ------------------------------------------------------------------------------------

VkResult vkmqaGetDeviceProperties(VkmqaDevice device, VkmqaDeviceProperties* properties) {
    if (!vkmqa_is_device(device))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkResult result = vkmqa_check_output(&device->messenger, "vkmqaGetDeviceProperties",
                                         "VkmqaDeviceProperties", properties, sizeof(*properties));
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
                                         "VkmqaDeviceHandles", handles, sizeof(*handles));
    if (result)
        return result;
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

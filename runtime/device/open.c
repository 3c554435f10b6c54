// A VkDevice of the layer's own.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

static VkResult create_device(VkmqaDevice device, const char* call,
                              const VkmqaDeviceRequirements* requirements,
                              const char* const* extensions, uint32_t extensionCount,
                              bool lowPriority) {
    const struct VkmqaPhysical* physical = &device->physical;
    struct VkmqaVk* vk = &device->loader.vk;
    const float priority = lowPriority ? 0.0f : 1.0f;
    VkDeviceQueueGlobalPriorityCreateInfoEXT low = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_GLOBAL_PRIORITY_CREATE_INFO_EXT,
        .globalPriority = VK_QUEUE_GLOBAL_PRIORITY_LOW_EXT,
    };
    VkDeviceQueueCreateInfo queues[2] = {{
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .pNext = lowPriority && physical->globalPriority ? &low : NULL,
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
    if (result && queues[0].pNext) { // refused where it is not permitted, and by SwiftShader, which lists it
        queues[0].pNext = queues[1].pNext = NULL;
        result = vk->CreateDevice(physical->handle, &info, NULL, &device->handle);
    }
    if (result) {
        device->handle = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateDevice");
    }
    const uint32_t version = physical->properties.apiVersion;
    result = vkmqa_start_device(
        device, call,
        vkmqa_enables_addresses(version < device->loader.apiVersion ? version : device->loader.apiVersion, extensionCount,
                                extensions, requirements->features));
    if (result)
        return result;
    vk->GetDeviceQueue(device->handle, physical->computeFamily, 0, &device->computeQueue);
    vk->GetDeviceQueue(device->handle, physical->transferFamily, 0, &device->transferQueue);
    return VK_SUCCESS;
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
    const char** extensions = calloc((size_t)count + 2, sizeof(*extensions));
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

    if (info->lowPriority && device->physical.globalPriority)
        extensions[count++] = device->physical.globalPriority;

    result = create_device(device, call, &requirements, extensions, count, info->lowPriority);
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

VkResult vkmqaOpenDevice(const VkmqaDeviceOpenInfo* info, VkmqaDevice* device) {
    static const char call[] = "vkmqaOpenDevice";
    struct VkmqaMessenger messenger = {NULL, NULL};
    VkmqaDeviceOpenInfo copy;
    if (device)
        *device = NULL;
    if (!info || !device)
        return VK_ERROR_VALIDATION_FAILED_EXT; // nobody to tell, or nowhere to put it
    // The callback is believed only if it lies within the caller's struct.
    if (info->structSize >= sizeof(copy)) {
        messenger.callback = info->messageCallback;
        messenger.userData = info->messageUserData;
    }
    VkResult result =
        vkmqa_read_info(&messenger, call, "VkmqaDeviceOpenInfo", info, &copy, sizeof(copy), sizeof(copy));
    if (result)
        return result;
    VkmqaDevice opened = vkmqa_new_device(&messenger, call, NULL);
    if (!opened)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
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
        result = open_physical(opened, call, &copy);
    }
    free(physicals);
    if (result) {
        vkmqa_destroy_device(opened);
        return result;
    }
    *device = opened;
    return VK_SUCCESS;
}


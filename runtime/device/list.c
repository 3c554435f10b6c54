// The devices of this machine and what they are like.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

static VkResult list_extensions(const struct VkmqaVk* vk, const VkAllocationCallbacks* allocator,
                                VkPhysicalDevice physical,
                                VkExtensionProperties** extensions, uint32_t* count) {
    for (;;) {
        *extensions = NULL;
        *count = 0;
        VkResult result = vk->EnumerateDeviceExtensionProperties(physical, NULL, count, NULL);
        if (result < 0 || *count == 0)
            return result < 0 ? result : VK_SUCCESS;
        *extensions = vkmqa_allocate(allocator, *count * sizeof(**extensions));
        if (!*extensions)
            return VK_ERROR_OUT_OF_HOST_MEMORY;
        result = vk->EnumerateDeviceExtensionProperties(physical, NULL, count, *extensions);
        if (result == VK_SUCCESS)
            return VK_SUCCESS;
        vkmqa_free(allocator, *extensions);
        *extensions = NULL;
        if (result != VK_INCOMPLETE) // an extension appeared between the two calls
            return result;
    }
}

static bool has_extension(const VkExtensionProperties* extensions, uint32_t count,
                          const char* name) {
    for (uint32_t i = 0; i < count; i++)
        if (!strcmp(extensions[i].extensionName, name))
            return true;
    return false;
}

// A compute family without graphics does not compete with the desktop; a transfer family with
// nothing else drives the copy engines. Families with video bits are left alone.
static VkResult choose_families(const struct VkmqaVk* vk, const VkAllocationCallbacks* allocator,
                                struct VkmqaPhysical* physical) {
    uint32_t count = 0;
    vk->GetPhysicalDeviceQueueFamilyProperties(physical->handle, &count, NULL);
    if (count == 0)
        return VK_SUCCESS;
    VkQueueFamilyProperties* families = vkmqa_allocate(allocator, count * sizeof(*families));
    if (!families)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    vk->GetPhysicalDeviceQueueFamilyProperties(physical->handle, &count, families);

    uint32_t compute = count, computeScore = 0, transfer = count;
    for (uint32_t i = 0; i < count; i++) {
        VkQueueFlags flags = families[i].queueFlags;
        if (families[i].queueCount == 0)
            continue;
        if (flags & VK_QUEUE_COMPUTE_BIT) {
            uint32_t score = 1 + (families[i].timestampValidBits ? 1 : 0) +
                             (flags & VK_QUEUE_GRAPHICS_BIT ? 0 : 2);
            if (score > computeScore) {
                compute = i;
                computeScore = score;
            }
        } else if ((flags & VK_QUEUE_TRANSFER_BIT) && transfer == count &&
                   !(flags & ~(VkQueueFlags)(VK_QUEUE_TRANSFER_BIT | VK_QUEUE_SPARSE_BINDING_BIT |
                                             VK_QUEUE_PROTECTED_BIT))) {
            transfer = i;
        }
    }
    if (compute < count) {
        physical->usable = true;
        physical->computeFamily = compute;
        physical->transferFamily = transfer < count ? transfer : compute;
        physical->timestampBits = families[compute].timestampValidBits;
    }
    vkmqa_free(allocator, families);
    return VK_SUCCESS;
}

static void describe_vulkan_1_1(const struct VkmqaLoader* loader, struct VkmqaPhysical* physical,
                                const VkExtensionProperties* extensions, uint32_t count) {
    VkmqaDeviceProperties* properties = &physical->properties;
    uint32_t version =
        properties->apiVersion < loader->apiVersion ? properties->apiVersion : loader->apiVersion;
    // Structs of extensions that the device lacks stay out of the chains: some drivers fill them
    // in.
    bool driver = version >= VK_API_VERSION_1_2 ||
                  has_extension(extensions, count, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME);
    bool addresses = version >= VK_API_VERSION_1_2 ||
                     has_extension(extensions, count, VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME);

    VkPhysicalDeviceDriverProperties driverProperties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties subgroup = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES,
        .pNext = driver ? &driverProperties : NULL};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES,
                                       .pNext = &subgroup};
    VkPhysicalDeviceProperties2 properties2 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    loader->vk.GetPhysicalDeviceProperties2(physical->handle, &properties2);
    memcpy(properties->uuid, id.deviceUUID, sizeof(properties->uuid));
    properties->subgroupSize = subgroup.subgroupSize;
    if (driver) {
        properties->driverId = (uint32_t)driverProperties.driverID;
        memcpy(properties->driverName, driverProperties.driverName,
               sizeof(properties->driverName) - 1);
        memcpy(properties->driverInfo, driverProperties.driverInfo,
               sizeof(properties->driverInfo) - 1);
    }
    if (addresses) {
        VkPhysicalDeviceBufferDeviceAddressFeatures feature = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES};
        VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                              .pNext = &feature};
        loader->vk.GetPhysicalDeviceFeatures2(physical->handle, &features);
        properties->deviceAddresses = feature.bufferDeviceAddress ? VK_TRUE : VK_FALSE;
    }
    // The macro stands in vulkan_beta.h.
    physical->portabilitySubset = has_extension(extensions, count, "VK_KHR_portability_subset");
    static const char* const priorities[] = {"VK_KHR_global_priority", "VK_EXT_global_priority"};
    for (int i = 0; i < 2 && !physical->globalPriority; i++)
        if (has_extension(extensions, count, priorities[i]))
            physical->globalPriority = priorities[i];
    physical->memoryBudget = has_extension(extensions, count, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
}

VkResult vkmqa_describe_physical(const struct VkmqaLoader* loader, const VkAllocationCallbacks* allocator,
                                 uint32_t index, struct VkmqaPhysical* physical) {
    const struct VkmqaVk* vk = &loader->vk;
    VkmqaDeviceProperties* properties = &physical->properties;
    VkPhysicalDeviceProperties base;
    vk->GetPhysicalDeviceProperties(physical->handle, &base);
    properties->structSize = sizeof(*properties);
    properties->index = index;
    memcpy(properties->name, base.deviceName, sizeof(properties->name) - 1);
    properties->type = base.deviceType;
    properties->vendorId = base.vendorID;
    properties->deviceId = base.deviceID;
    properties->apiVersion = base.apiVersion;
    properties->driverVersion = base.driverVersion;
    properties->sharedMemory = base.limits.maxComputeSharedMemorySize;
    properties->maxStorageRange = base.limits.maxStorageBufferRange;

    VkPhysicalDeviceMemoryProperties memory;
    vk->GetPhysicalDeviceMemoryProperties(physical->handle, &memory);
    for (uint32_t i = 0; i < memory.memoryHeapCount; i++)
        if ((memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) &&
            memory.memoryHeaps[i].size > properties->deviceMemory)
            properties->deviceMemory = memory.memoryHeaps[i].size;

    VkResult result = choose_families(vk, allocator, physical);
    if (result)
        return result;
    physical->timestampPeriod = base.limits.timestampPeriod;
    properties->timestampPeriod = physical->timestampBits ? physical->timestampPeriod : 0.0f;
    if (base.apiVersion < VK_API_VERSION_1_1) {
        physical->usable = false;
        return VK_SUCCESS;
    }
    VkExtensionProperties* extensions;
    uint32_t count;
    result = list_extensions(vk, allocator, physical->handle, &extensions, &count);
    if (result)
        return result;
    describe_vulkan_1_1(loader, physical, extensions, count);
    vkmqa_free(allocator, extensions);
    return VK_SUCCESS;
}

VkResult vkmqa_list_physicals(const struct VkmqaMessenger* messenger, const char* call,
                              const struct VkmqaLoader* loader, struct VkmqaPhysical** physicals,
                              uint32_t* count) {
    *physicals = NULL;
    *count = 0;
    VkPhysicalDevice* handles = NULL;
    VkResult result;
    do { // again when a device was plugged in between the two calls
        free(handles);
        handles = NULL;
        result = loader->vk.EnumeratePhysicalDevices(loader->instance, count, NULL);
        if (result < 0 || *count == 0)
            break;
        handles = calloc(*count, sizeof(*handles));
        result = handles ? loader->vk.EnumeratePhysicalDevices(loader->instance, count, handles)
                         : VK_ERROR_OUT_OF_HOST_MEMORY;
    } while (result == VK_INCOMPLETE);

    if (result >= 0 && *count > 0) {
        *physicals = calloc(*count, sizeof(**physicals));
        result = *physicals ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
        for (uint32_t i = 0; i < *count && result == VK_SUCCESS; i++) {
            (*physicals)[i].handle = handles[i];
            result = vkmqa_describe_physical(loader, NULL, i, &(*physicals)[i]);
        }
    }
    free(handles);
    if (result >= 0)
        return VK_SUCCESS;
    free(*physicals);
    *physicals = NULL;
    *count = 0;
    return vkmqa_device_fail(messenger, result, "%s: listing the Vulkan devices gave %s", call,
                             vkmqa_result_name(result));
}

VkResult vkmqaListDevices(uint32_t* count, VkmqaDeviceProperties* properties,
                          VkmqaMessageCallback messageCallback, void* messageUserData) {
    static const char call[] = "vkmqaListDevices";
    struct VkmqaMessenger messenger = {messageCallback, messageUserData};
    if (!count)
        return vkmqa_device_fail(&messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: count is null; pass a uint32_t", call);
    VkResult result;
    uint32_t stride = 0; // of the caller's version of the struct
    if (properties && *count > 0) {
        result = vkmqa_check_output(&messenger, call, "VkmqaDeviceProperties", properties,
                                    sizeof(VkmqaDeviceProperties), sizeof(VkmqaDeviceProperties));
        if (result)
            return result;
        stride = properties->structSize;
    }
    struct VkmqaLoader loader;
    result = vkmqa_open_loader(&messenger, call, VK_API_VERSION_1_3, &loader);
    if (result)
        return result;
    struct VkmqaPhysical* physicals;
    uint32_t found;
    result = vkmqa_list_physicals(&messenger, call, &loader, &physicals, &found);
    vkmqa_close_loader(&loader);
    if (result)
        return result;
    if (properties) {
        uint32_t room = *count;
        if (room < found)
            result = VK_INCOMPLETE;
        for (uint32_t i = 0; i < found && i < room; i++) {
            void* target = (char*)properties + (size_t)i * stride;
            memcpy(target, &stride, sizeof(stride));
            vkmqa_write_output(target, &physicals[i].properties, sizeof(VkmqaDeviceProperties));
        }
        *count = found < room ? found : room;
    } else {
        *count = found;
    }
    free(physicals);
    return result;
}

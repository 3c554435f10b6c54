// The layer on a VkDevice of somebody else's. SPDX-License-Identifier: MIT
#include "device.h"

// Whether the family exists and has one of the capabilities; fills what the layer wants to know of the compute one.
static VkResult check_family(VkmqaDevice device, const char* call, const char* field, uint32_t family,
                             VkQueueFlags oneOf, uint32_t* timestampBits) {
    const struct VkmqaVk* vk = &device->loader.vk;
    const VkAllocationCallbacks* allocator = vkmqa_device_allocator(device);
    uint32_t count = 0;
    vk->GetPhysicalDeviceQueueFamilyProperties(device->physical.handle, &count, NULL);
    VkQueueFamilyProperties* families = vkmqa_allocate(allocator, (count + 1) * sizeof *families);
    if (!families)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "the host allocator");
    vk->GetPhysicalDeviceQueueFamilyProperties(device->physical.handle, &count, families);
    VkQueueFlags flags = family < count ? families[family].queueFlags : 0;
    *timestampBits = family < count ? families[family].timestampValidBits : 0;
    vkmqa_free(allocator, families);
    if (family >= count)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: info.%s is %u; the device has %u queue families", call, field, family, count);
    if (!(flags & oneOf))
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: info.%s is %u, a family without %s; give one that has it", call, field, family,
                                 oneOf & VK_QUEUE_TRANSFER_BIT ? "transfer" : "compute");
    return VK_SUCCESS;
}

static VkResult import(VkmqaDevice device, const char* call, const VkmqaDeviceImportInfo* info,
                       const VkmqaContextCreateInfo* context) {
    struct VkmqaLoader* loader = &device->loader;
    VkmqaContextCreateInfo whole = *context; // vkmqaCreateContext says what is wrong with it
    if (!whole.runJobs && !whole.allocator) // which may not be called on threads that nobody told of
        whole.runJobs = vkmqa_run_jobs;
    VkResult result = vkmqaCreateContext(&whole, &device->context);
    if (result) {
        device->context = NULL;
        return result;
    }
    loader->getInstanceProcAddr = context->getInstanceProcAddr;
    loader->instance = context->instance;
    loader->apiVersion = context->apiVersion;
    const char* missing = "";
    result = vkmqa_load_instance(&loader->vk, loader->instance, loader->getInstanceProcAddr, &missing);
    if (result)
        return vkmqa_device_fail(&device->messenger, result, "%s: info.context->getInstanceProcAddr has no %s", call,
                                 missing);
    device->handle = context->device;
    device->physical.handle = context->physicalDevice;
    result = vkmqa_describe_physical(loader, context->allocator, 0, &device->physical);
    if (result)
        return vkmqa_device_result(device, result, call, "asking for the device's properties");
    uint32_t bits;
    device->computeQueue = info->computeQueue;
    device->transferQueue = info->transferQueue ? info->transferQueue : info->computeQueue;
    device->physical.computeFamily = info->computeFamily;
    device->physical.transferFamily = info->transferQueue ? info->transferFamily : info->computeFamily;
    result = check_family(device, call, "computeFamily", info->computeFamily, VK_QUEUE_COMPUTE_BIT,
                          &device->physical.timestampBits);
    if (result == VK_SUCCESS && info->transferQueue) // compute and graphics bring transfer with them
        result = check_family(device, call, "transferFamily", info->transferFamily,
                              VK_QUEUE_TRANSFER_BIT | VK_QUEUE_COMPUTE_BIT | VK_QUEUE_GRAPHICS_BIT, &bits);
    if (result)
        return result;
    device->physical.properties.timestampPeriod =
        device->physical.timestampBits ? device->physical.timestampPeriod : 0.0f;
    device->pipelineCache = context->pipelineCache;
    device->lockQueue = info->lockQueue;
    device->unlockQueue = info->unlockQueue;
    device->queueUserData = info->queueUserData;
    const uint32_t version = device->physical.properties.apiVersion;
    return vkmqa_start_device(
        device, call,
        vkmqa_enables_addresses(version < context->apiVersion ? version : context->apiVersion, context->enabledExtensionCount,
                                context->enabledExtensions, context->enabledFeatures));
}

VkResult vkmqaImportDevice(const VkmqaDeviceImportInfo* given, VkmqaDevice* result) {
    static const char call[] = "vkmqaImportDevice";
    if (result)
        *result = NULL;
    if (!given || !result)
        return VK_ERROR_VALIDATION_FAILED_EXT; // nobody to tell, or nowhere to put it
    struct VkmqaMessenger messenger = {NULL, NULL};
    VkmqaDeviceImportInfo info;
    // The callback is believed only if it lies within the caller's structs.
    if (given->structSize >= sizeof info && given->context && given->context->structSize >= sizeof *given->context) {
        messenger.callback = given->context->messageCallback;
        messenger.userData = given->context->messageUserData;
    }
    VkResult error = vkmqa_read_info(&messenger, call, "VkmqaDeviceImportInfo", given, &info, sizeof info, sizeof info);
    if (error)
        return error;
#define NEED(condition, error, ...)                                                                                    \
    if (!(condition))                                                                                                  \
        return vkmqa_device_fail(&messenger, error, "%s: " __VA_ARGS__);
    NEED(info.context, VK_ERROR_VALIDATION_FAILED_EXT, "info.context is null; give what vkmqaCreateContext takes",
         call)
    NEED(info.computeQueue, VK_ERROR_VALIDATION_FAILED_EXT, "info.computeQueue is null; give a queue with compute",
         call)
    NEED(!info.lockQueue == !info.unlockQueue, VK_ERROR_VALIDATION_FAILED_EXT,
         "info.%s is null; give both lockQueue and unlockQueue, or none", call,
         info.lockQueue ? "unlockQueue" : "lockQueue")
    NEED(info.physicalDeviceCount <= 1, VK_ERROR_FEATURE_NOT_PRESENT,
         "info.physicalDeviceCount is %u; device groups are not supported: import a device of one GPU", call,
         info.physicalDeviceCount)
    NEED(info.transferQueue != info.computeQueue || info.transferFamily == info.computeFamily,
         VK_ERROR_VALIDATION_FAILED_EXT, "info.transferFamily is %u, and the same queue's computeFamily %u; give both "
         "alike, or leave transferQueue null", call, info.transferFamily, info.computeFamily)
    VkmqaContextCreateInfo context;
    error = vkmqa_read_info(&messenger, call, "VkmqaContextCreateInfo", info.context, &context, sizeof context,
                            sizeof context);
    if (error)
        return error;
    context.structSize = sizeof context;
    NEED(!context.allocator || (context.allocator->pfnAllocation && context.allocator->pfnFree),
         VK_ERROR_VALIDATION_FAILED_EXT,
         "info.context->allocator lacks a function; give all three of allocation, reallocation and free", call)
#undef NEED
    VkmqaDevice device = vkmqa_new_device(&messenger, call, context.allocator);
    if (!device)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    device->imported = true;
    device->skipVerification = info.skipVerification;
    error = import(device, call, &info, &context);
    if (error) {
        vkmqa_destroy_device(device);
        return error;
    }
    *result = device;
    return VK_SUCCESS;
}

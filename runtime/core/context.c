// The imported device. SPDX-License-Identifier: MIT
#include "context.h"

#include <math.h>
#include <string.h>

_Static_assert(VKMQA_BAD_PAGE == VKMQA_STATUS_PAGE_OUT_OF_RANGE_BIT &&
                   VKMQA_BAD_LENGTH == VKMQA_STATUS_LENGTH_OUT_OF_RANGE_BIT &&
                   VKMQA_BAD_QUERY_RANGE == VKMQA_STATUS_QUERY_RANGE_BIT &&
                   VKMQA_BAD_SLOT == VKMQA_STATUS_SLOT_OUT_OF_RANGE_BIT &&
                   VKMQA_BAD_ACCEPTED == VKMQA_STATUS_ACCEPTED_BIT &&
                   VKMQA_F32 == VKMQA_TYPE_F32 && VKMQA_F16 == VKMQA_TYPE_F16 &&
                   VKMQA_BF16 == VKMQA_TYPE_BF16 && VKMQA_FP8 == VKMQA_TYPE_FP8_E4M3 &&
                   VKMQA_Q8 == VKMQA_TYPE_Q8_0 && VKMQA_Q4 == VKMQA_TYPE_Q4_0 &&
                   VKMQA_ROPE_PAIRS_NEOX == VKMQA_ROPE_NEOX &&
                   VKMQA_ROPE_PAIRS_INTERLEAVED == VKMQA_ROPE_INTERLEAVED,
               "shaders/shared.h speaks the public header's numbers");

uint32_t vkmqaGetVersion(void) { return VKMQA_VERSION; }

// The shapes that multiply f16 and add in f32.
static void read_matrices(const struct VkmqaContext_T* context, VkPhysicalDevice physicalDevice,
                          struct VkmqaCaps* caps) {
    VkCooperativeMatrixPropertiesKHR listed[64];
    uint32_t count = sizeof listed / sizeof listed[0];
    memset(listed, 0, sizeof listed);
    for (uint32_t i = 0; i < count; ++i)
        listed[i].sType = (VkStructureType)VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
    if (!context->vk.GetPhysicalDeviceCooperativeMatrixPropertiesKHR ||
        context->vk.GetPhysicalDeviceCooperativeMatrixPropertiesKHR(physicalDevice, &count, listed) < 0)
        return;
    for (uint32_t i = 0; i < count && caps->matrixCount < VKMQA_MAX_MATRICES; ++i) {
        const VkCooperativeMatrixPropertiesKHR* p = &listed[i];
        if ((int)p->scope == VK_SCOPE_SUBGROUP_KHR && !p->saturatingAccumulation &&
            (int)p->AType == VK_COMPONENT_TYPE_FLOAT16_KHR && (int)p->BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
            (int)p->CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            (int)p->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR)
            caps->matrices[caps->matrixCount++] = (struct VkmqaMatrix){p->MSize, p->NSize, p->KSize};
    }
}

static void read_caps(const struct VkmqaContext_T* context, VkPhysicalDevice physicalDevice,
                      uint32_t apiVersion, const struct VkmqaEnabled* enabled,
                      struct VkmqaCaps* caps) {
    VkPhysicalDeviceSubgroupSizeControlProperties sizes = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
    VkPhysicalDeviceDriverProperties driver = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties subgroup = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    VkPhysicalDeviceIDProperties id = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES, .pNext = &subgroup};
    VkPhysicalDeviceProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    if (apiVersion >= VK_API_VERSION_1_2)
        subgroup.pNext = &driver;
    if (enabled->subgroupSizeControl) {
        sizes.pNext = subgroup.pNext;
        subgroup.pNext = &sizes;
    }
    context->vk.GetPhysicalDeviceProperties2(physicalDevice, &properties);
    const VkPhysicalDeviceLimits* limits = &properties.properties.limits;
    *caps = (struct VkmqaCaps){
        .type = properties.properties.deviceType,
        .vendorId = properties.properties.vendorID,
        .driverId = (uint32_t)driver.driverID,
        .driverVersion = properties.properties.driverVersion,
        .apiVersion = apiVersion,
        .deviceAddress = enabled->deviceAddress && context->vk.GetBufferDeviceAddress,
        .pushDescriptor = enabled->pushDescriptor && context->vk.CmdPushDescriptorSetKHR,
        .storage16 = enabled->storage16,
        .float16 = enabled->float16,
        .narrowIntegers = enabled->narrowIntegers,
        .subgroupShuffle = (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
                           (subgroup.supportedOperations & VK_SUBGROUP_FEATURE_SHUFFLE_BIT),
        .subgroupSizeControl = enabled->subgroupSizeControl &&
                               (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT),
        .computeFullSubgroups = enabled->computeFullSubgroups,
        .subgroupBallot = (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
                          (subgroup.supportedOperations & VK_SUBGROUP_FEATURE_BALLOT_BIT),
        .subgroupVote = (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
                        (subgroup.supportedOperations & VK_SUBGROUP_FEATURE_VOTE_BIT),
        .subgroupSize = subgroup.subgroupSize,
        .minSubgroupSize = sizes.minSubgroupSize,
        .maxSubgroupSize = sizes.maxSubgroupSize,
        .maxInvocations = limits->maxComputeWorkGroupInvocations,
        .sharedMemory = limits->maxComputeSharedMemorySize,
        .storageBuffersPerStage = limits->maxPerStageDescriptorStorageBuffers,
        .maxStorageRange = limits->maxStorageBufferRange,
        .storageAlignment = limits->minStorageBufferOffsetAlignment,
    };
    memcpy(caps->uuid, id.deviceUUID, sizeof caps->uuid);
    if (enabled->matrices)
        read_matrices(context, physicalDevice, caps);
    memcpy(caps->maxGroupCount, limits->maxComputeWorkGroupCount, sizeof caps->maxGroupCount);
    if (limits->maxComputeWorkGroupSize[0] < caps->maxInvocations)
        caps->maxInvocations = limits->maxComputeWorkGroupSize[0];
    if (caps->storageAlignment < 16)
        caps->storageAlignment = 16;
}

VkResult vkmqaCreateContext(const VkmqaContextCreateInfo* given, VkmqaContext* result) {
    if (result)
        *result = NULL;
    VkmqaContextCreateInfo info;
    struct VkmqaProblem problem;
    struct VkmqaContext_T early = {0}; // carries the callback until the context exists
    bool read = vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem);
    early.messageCallback = info.messageCallback;
    early.messageUserData = info.messageUserData;
    if (!read)
        return vkmqa_fail(&early, VK_ERROR_VALIDATION_FAILED_EXT, "%s", problem.text);
#define NEED(condition, what)                                                                      \
    if (!(condition))                                                                              \
        return vkmqa_fail(&early, VK_ERROR_VALIDATION_FAILED_EXT, "%s", what);
    NEED(result, "context is null; give a place for the handle")
    NEED(info.instance, "info.instance is null; give the instance of the device")
    NEED(info.physicalDevice, "info.physicalDevice is null; give the device's physical device")
    NEED(info.device, "info.device is null; give the device to import")
    NEED(info.getInstanceProcAddr, "info.getInstanceProcAddr is null; give vkGetInstanceProcAddr")
    NEED(info.enabledExtensionCount == 0 || info.enabledExtensions,
         "info.enabledExtensions is null; give enabledExtensionCount names")
    NEED(info.enabledExtensionCount <= 4096, "info.enabledExtensionCount is over 4096; give the "
                                             "number of names in enabledExtensions")
    NEED(!info.allocator || (info.allocator->pfnAllocation && info.allocator->pfnReallocation &&
                             info.allocator->pfnFree),
         "info.allocator lacks a function; give all three of allocation, reallocation and free")
    NEED(info.maxDispatchSeconds >= 0, "info.maxDispatchSeconds is negative or NaN; give seconds, or 0 for 0.1")
#undef NEED

    struct VkmqaContext_T* context = vkmqa_allocate(info.allocator, sizeof *context);
    if (!context)
        return vkmqa_fail(&early, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for the context");
    context->processId = vkmqa_process_id();
    context->messageCallback = info.messageCallback;
    context->messageUserData = info.messageUserData;
    context->runJobs = info.runJobs;
    context->runJobsUserData = info.runJobsUserData;
    context->device = info.device;
    context->pipelineCache = info.pipelineCache;
    context->hasAllocator = info.allocator != NULL;
    if (info.allocator)
        context->allocator = *info.allocator;

    const char* missing = "";
    VkResult error =
        vkmqa_load_instance(&context->vk, info.instance, info.getInstanceProcAddr, &missing);
    if (error == VK_SUCCESS)
        error = vkmqa_load_device(&context->vk, info.device, &missing);
    if (error != VK_SUCCESS) {
        vkmqa_fail(context, error, "info.getInstanceProcAddr has no %s: the device is no Vulkan 1.1 "
                                   "device", missing);
    } else {
        VkPhysicalDeviceProperties properties;
        context->vk.GetPhysicalDeviceProperties(info.physicalDevice, &properties);
        uint32_t version =
            info.apiVersion < properties.apiVersion ? info.apiVersion : properties.apiVersion;
        if (version < VK_API_VERSION_1_1) {
            error = vkmqa_fail(context, VK_ERROR_INCOMPATIBLE_DRIVER,
                               "info.apiVersion is %u.%u and the device's %u.%u; both must be 1.1 "
                               "or newer", VK_API_VERSION_MAJOR(info.apiVersion),
                               VK_API_VERSION_MINOR(info.apiVersion),
                               VK_API_VERSION_MAJOR(properties.apiVersion),
                               VK_API_VERSION_MINOR(properties.apiVersion));
        } else {
            struct VkmqaEnabled enabled;
            vkmqa_read_enabled(version, info.enabledExtensionCount, info.enabledExtensions,
                               info.enabledFeatures, &enabled);
            if (enabled.scopeless)
                vkmqa_message(context, VKMQA_SEVERITY_WARNING,
                              "vulkanMemoryModel is enabled without vulkanMemoryModelDeviceScope, which kernels "
                              "need to set status bits: enable both, or neither");
            read_caps(context, info.physicalDevice, version, &enabled, &context->caps);
            if (!context->caps.deviceAddress && context->caps.storageBuffersPerStage < VKMQA_BIND_COUNT)
                error = vkmqa_fail(context, VK_ERROR_FEATURE_NOT_PRESENT,
                                   "maxPerStageDescriptorStorageBuffers is %u and bufferDeviceAddress is not "
                                   "enabled; needs either %d storage buffers or the feature",
                                   context->caps.storageBuffersPerStage, VKMQA_BIND_COUNT);
            else
                error = vkmqa_create_layouts(context);
            context->maxDispatchSeconds = info.maxDispatchSeconds > 0 ? info.maxDispatchSeconds
                                          : context->caps.type == VK_PHYSICAL_DEVICE_TYPE_CPU ? HUGE_VAL : 0.1;
        }
    }
    if (error != VK_SUCCESS) {
        vkmqa_free(info.allocator, context);
        return error;
    }
    context->magic = VKMQA_MAGIC_CONTEXT;
    *result = context;
    return VK_SUCCESS;
}

VkResult vkmqa_check_process(const struct VkmqaContext_T* context, const char* call) {
    if (!vkmqa_is_inherited(context))
        return VK_SUCCESS;
    return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                      "%s: the object belongs to the process that forked this one, where its driver stayed; destroy it, "
                      "and create another after fork()", call);
}

void vkmqaDestroyContext(VkmqaContext context) {
    if (!vkmqa_is_context(context))
        return;
    if (!vkmqa_is_inherited(context))
        vkmqa_destroy_layouts(context);
    context->magic = 0;
    VkAllocationCallbacks allocator = context->allocator; // the struct goes with the memory
    vkmqa_free(context->hasAllocator ? &allocator : NULL, context);
}

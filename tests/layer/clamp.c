// Profiles of small devices:
//   small          what Vulkan 1.1 guarantees, but for the 8 storage buffers per stage that the library needs
//   few            as small, with the 4 that Vulkan guarantees
//   unbound        4 storage buffers per stage, and the driver's device addresses
//   alignment      storage buffers at multiples of 256; mapped memory is not coherent unless it is chosen to be
//   timestampless  no timestamps on any queue
//   heap           256 MiB of memory
//   card           a discrete card: 256 MiB of memory that is not the host's, queues of families of their own for compute
//                  work and for copies (clamp_queues.c), and workgroups of at most 512 in a row
#include "clamp.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>

static const ClampProfile profiles[] = {
    {.name = "small", .plain = true, .storageBuffers = 8},
    {.name = "few", .plain = true, .storageBuffers = 4},
    {.name = "unbound", .storageBuffers = 4},
    {.name = "alignment", .alignment = 256, .incoherent = true},
    {.name = "timestampless", .timestampless = true},
    {.name = "heap", .heapBytes = (VkDeviceSize)256 << 20},
    {.name = "card", .card = true, .width = 512, .heapBytes = (VkDeviceSize)256 << 20},
};

const ClampProfile* clampProfile;
VkPhysicalDeviceLimits clampLimits;

static bool start(const char* how) {
    for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++)
        if (strcmp(how, profiles[i].name) == 0) {
            clampProfile = &profiles[i];
            return true;
        }
    return false;
}

void clampBroken(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "clamp:%s: ", clampProfile->name);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

// ---- Structs of extensions -----------------------------------------------------------------------

// What Vulkan 1.1 itself has. A device without extensions ignores everything else.
static bool isPlain(VkStructureType type) {
    switch ((int)type) {
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MULTIVIEW_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_POINT_CLIPPING_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROTECTED_MEMORY_PROPERTIES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MULTIVIEW_FEATURES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROTECTED_MEMORY_FEATURES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SAMPLER_YCBCR_CONVERSION_FEATURES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_DRAW_PARAMETERS_FEATURES:
    case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VARIABLE_POINTERS_FEATURES:
        return true;
    default:
        return !clampProfile->plain;
    }
}

enum { MAX_CHAIN = 128 };
typedef struct Chain {
    VkBaseOutStructure* nodes[MAX_CHAIN]; // as the caller linked them
    size_t count;
} Chain;

// Unlinks what the device does not know, so that the driver leaves it as it is, until the chain is shown again.
static Chain hide(void* head) {
    Chain chain = {{head}, 0};
    VkBaseOutStructure* known = head;
    for (VkBaseOutStructure* next = head; next; next = next->pNext) {
        if (chain.count == MAX_CHAIN)
            abort();
        chain.nodes[chain.count++] = next;
    }
    for (size_t i = 1; i < chain.count; i++)
        if (isPlain(chain.nodes[i]->sType))
            known = known->pNext = chain.nodes[i];
    known->pNext = NULL;
    return chain;
}

static void show(const Chain* chain) {
    for (size_t i = 0; i < chain->count; i++)
        chain->nodes[i]->pNext = i + 1 < chain->count ? chain->nodes[i + 1] : NULL;
}

static void* find(const Chain* chain, VkStructureType type) {
    for (size_t i = 1; i < chain->count; i++)
        if (chain->nodes[i]->sType == type)
            return chain->nodes[i];
    return NULL;
}

// ---- Properties ----------------------------------------------------------------------------------

static void clampProperties(VkPhysicalDeviceProperties* properties) {
    VkPhysicalDeviceLimits* limits = &properties->limits;
    if (clampProfile->plain) {
        properties->apiVersion = VK_MAKE_API_VERSION(0, 1, 1, VK_API_VERSION_PATCH(properties->apiVersion));
        properties->deviceType = VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU; // the library favours CPU drivers it knows
        limits->maxComputeWorkGroupInvocations = 128;
        limits->maxComputeWorkGroupSize[0] = limits->maxComputeWorkGroupSize[1] = 128;
        limits->maxComputeWorkGroupSize[2] = 64;
        for (int i = 0; i < 3; i++)
            limits->maxComputeWorkGroupCount[i] = 65535;
        limits->maxComputeSharedMemorySize = 16384;
        limits->maxStorageBufferRange = 1u << 27;
        limits->maxPushConstantsSize = 128;
        limits->maxBoundDescriptorSets = 4;
        limits->maxDescriptorSetStorageBuffers = 24;
        limits->maxPerStageResources = 128;
    }
    if (clampProfile->card)
        properties->deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
    if (clampProfile->width)
        limits->maxComputeWorkGroupSize[0] = clampProfile->width;
    if (clampProfile->storageBuffers)
        limits->maxPerStageDescriptorStorageBuffers = clampProfile->storageBuffers;
    if (clampProfile->alignment)
        limits->minStorageBufferOffsetAlignment = limits->nonCoherentAtomSize = clampProfile->alignment;
    if (clampProfile->timestampless) {
        limits->timestampComputeAndGraphics = VK_FALSE;
        limits->timestampPeriod = 0;
    }
}

static VKAPI_ATTR void VKAPI_CALL getProperties(VkPhysicalDevice device, VkPhysicalDeviceProperties* properties) {
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceProperties)(device, properties);
    clampProperties(properties);
}

static VKAPI_ATTR void VKAPI_CALL getProperties2(VkPhysicalDevice device, VkPhysicalDeviceProperties2* properties) {
    Chain chain = hide(properties);
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceProperties2)(device, properties);
    show(&chain);
    clampProperties(&properties->properties);
    VkPhysicalDeviceSubgroupProperties* subgroup =
        find(&chain, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES);
    if (subgroup && clampProfile->plain) { // the size stays: shaders see the driver's
        subgroup->supportedStages = VK_SHADER_STAGE_COMPUTE_BIT;
        subgroup->supportedOperations = VK_SUBGROUP_FEATURE_BASIC_BIT;
        subgroup->quadOperationsInAllStages = VK_FALSE;
    }
}

// ---- Features ------------------------------------------------------------------------------------

static void clampFeatures(VkPhysicalDeviceFeatures* features) {
    if (clampProfile->plain)
        *features = (VkPhysicalDeviceFeatures){.robustBufferAccess = VK_TRUE};
}

static VKAPI_ATTR void VKAPI_CALL getFeatures(VkPhysicalDevice device, VkPhysicalDeviceFeatures* features) {
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceFeatures)(device, features);
    clampFeatures(features);
}

static VKAPI_ATTR void VKAPI_CALL getFeatures2(VkPhysicalDevice device, VkPhysicalDeviceFeatures2* features) {
    Chain chain = hide(features);
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceFeatures2)(device, features);
    show(&chain);
    clampFeatures(&features->features);
    VkPhysicalDevice16BitStorageFeatures* storage =
        find(&chain, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES);
    if (storage && clampProfile->plain)
        storage->storageBuffer16BitAccess = storage->uniformAndStorageBuffer16BitAccess =
            storage->storagePushConstant16 = storage->storageInputOutput16 = VK_FALSE;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerateExtensions(VkPhysicalDevice device, const char* layer, uint32_t* count,
                                                          VkExtensionProperties* extensions) {
    if (!layer && clampProfile->plain) {
        *count = 0;
        return VK_SUCCESS;
    }
    return LAYER_NEXT_INSTANCE(vkEnumerateDeviceExtensionProperties)(device, layer, count, extensions);
}

// ---- The device ----------------------------------------------------------------------------------

static VkResult verdict; // on the device that is about to be made

static void refuseDevice(VkResult result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "clamp:%s: vkCreateDevice: ", clampProfile->name);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    verdict = result;
}

static bool isWithin(const void* enabled, const void* offered, size_t size) {
    for (size_t i = 0; i < size / sizeof(VkBool32); i++)
        if (((const VkBool32*)enabled)[i] && !((const VkBool32*)offered)[i])
            return false;
    return true;
}

static void judgeDevice(VkPhysicalDevice device, const VkDeviceCreateInfo* info) {
    VkPhysicalDevice16BitStorageFeatures storage = {.sType =
                                                        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
    VkPhysicalDeviceFeatures2 offered = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &storage};
    getFeatures2(device, &offered);
    const size_t head = sizeof(VkBaseInStructure);
    const VkPhysicalDeviceFeatures* core = info->pEnabledFeatures;
    for (const VkBaseInStructure* next = info->pNext; next; next = next->pNext)
        switch ((int)next->sType) {
        case VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO:
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2:
            core = &((const VkPhysicalDeviceFeatures2*)next)->features;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES:
            if (!isWithin((const char*)next + head, (const char*)&storage + head, 4 * sizeof(VkBool32)))
                refuseDevice(VK_ERROR_FEATURE_NOT_PRESENT, "16-bit storage is enabled and not offered");
            break;
        default:
            if (!isPlain(next->sType))
                refuseDevice(VK_ERROR_FEATURE_NOT_PRESENT, "the chain holds a struct of an extension, sType %d",
                             (int)next->sType);
        }
    if (core && !isWithin(core, &offered.features, sizeof(*core)))
        refuseDevice(VK_ERROR_FEATURE_NOT_PRESENT, "a feature of VkPhysicalDeviceFeatures is enabled and not offered");
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        refuseDevice(VK_ERROR_EXTENSION_NOT_PRESENT, "%s is not offered", info->ppEnabledExtensionNames[i]);
}

static const VkDeviceCreateInfo* deviceInfo(VkPhysicalDevice device, const VkDeviceCreateInfo* info) {
    VkPhysicalDeviceProperties properties;
    getProperties(device, &properties);
    clampLimits = properties.limits;
    verdict = VK_SUCCESS;
    if (clampProfile->plain) // of other profiles the driver judges
        judgeDevice(device, info);
    return clampQueueInfos(info);
}

static VkResult refuse(const char* entry) { return strcmp(entry, "vkCreateDevice") == 0 ? verdict : VK_SUCCESS; }

static const LayerEntry entries[] = {
    LAYER_ENTRY(vkGetPhysicalDeviceProperties, getProperties),
    LAYER_ENTRY(vkGetPhysicalDeviceProperties2, getProperties2),
    LAYER_ENTRY(vkGetPhysicalDeviceProperties2KHR, getProperties2),
    LAYER_ENTRY(vkGetPhysicalDeviceFeatures, getFeatures),
    LAYER_ENTRY(vkGetPhysicalDeviceFeatures2, getFeatures2),
    LAYER_ENTRY(vkGetPhysicalDeviceFeatures2KHR, getFeatures2),
    LAYER_ENTRY(vkEnumerateDeviceExtensionProperties, enumerateExtensions),
    LAYER_ENTRY(vkGetPhysicalDeviceQueueFamilyProperties, clampFamilies),
    LAYER_ENTRY(vkGetPhysicalDeviceQueueFamilyProperties2, clampFamilies2),
    LAYER_ENTRY(vkGetPhysicalDeviceQueueFamilyProperties2KHR, clampFamilies2),
    LAYER_ENTRY(vkGetPhysicalDeviceMemoryProperties, clampMemoryProperties),
    LAYER_ENTRY(vkGetPhysicalDeviceMemoryProperties2, clampMemoryProperties2),
    LAYER_ENTRY(vkGetPhysicalDeviceMemoryProperties2KHR, clampMemoryProperties2),
    LAYER_ENTRY(vkGetBufferMemoryRequirements, clampBufferRequirements),
    LAYER_ENTRY(vkGetBufferMemoryRequirements2, clampBufferRequirements2),
    LAYER_ENTRY(vkGetBufferMemoryRequirements2KHR, clampBufferRequirements2),
    LAYER_ENTRY(vkAllocateMemory, clampAllocate),
    LAYER_ENTRY(vkFreeMemory, clampFree),
    LAYER_ENTRY(vkMapMemory, clampMap),
    LAYER_ENTRY(vkUnmapMemory, clampUnmap),
    LAYER_ENTRY(vkFlushMappedMemoryRanges, clampFlush),
    LAYER_ENTRY(vkInvalidateMappedMemoryRanges, clampInvalidate),
    LAYER_ENTRY(vkCreateShaderModule, clampShader),
    LAYER_ENTRY(vkDestroyShaderModule, clampDestroyShader),
    LAYER_ENTRY(vkCreateComputePipelines, clampPipelines),
    LAYER_ENTRY(vkCreateDescriptorSetLayout, clampSetLayout),
    LAYER_ENTRY(vkCreatePipelineLayout, clampPipelineLayout),
    LAYER_ENTRY(vkUpdateDescriptorSets, clampDescriptors),
    LAYER_ENTRY(vkCmdPushDescriptorSetKHR, clampPushDescriptors),
    LAYER_ENTRY(vkGetDeviceQueue, clampGetQueue),
    LAYER_ENTRY(vkQueueSubmit, clampSubmit),
    LAYER_ENTRY(vkQueueWaitIdle, clampWaitIdle),
    LAYER_ENTRY(vkCreateCommandPool, clampCreatePool),
    LAYER_ENTRY(vkAllocateCommandBuffers, clampCommandBuffers),
    LAYER_ENTRY(vkCreateBuffer, clampCreateBuffer),
    LAYER_ENTRY(vkCmdCopyBuffer, clampCopy),
    LAYER_ENTRY(vkCmdBindPipeline, clampBindPipeline),
    LAYER_ENTRY(vkCmdWriteTimestamp, clampTimestamp),
    LAYER_ENTRY(vkGetQueryPoolResults, clampQueryResults),
};

const LayerModule layerClamp = {.name = "clamp", .start = start, .entries = entries,
                                .entryCount = sizeof(entries) / sizeof(entries[0]), .deviceInfo = deviceInfo,
                                .refuse = refuse};

// What to enable on a device, and what of it was enabled. SPDX-License-Identifier: MIT
#include "context.h"

#include <string.h>

// The structs behind VkmqaDeviceRequirements::storage.
struct Storage {
    VkPhysicalDeviceFeatures2 features;
    VkPhysicalDeviceBufferDeviceAddressFeatures deviceAddress;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroupSize;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features float16;
    VkPhysicalDeviceVulkanMemoryModelFeatures memoryModel;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices;
    const char* names[10];
};
_Static_assert(sizeof(struct Storage) <= sizeof(((VkmqaDeviceRequirements*)0)->storage),
               "the caller's storage holds the structs");

static bool listed(const char* name, uint32_t count, const char* const* names) {
    for (uint32_t i = 0; i < count; ++i)
        if (names[i] && strcmp(names[i], name) == 0)
            return true;
    return false;
}

static uint32_t min_version(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Extension names of the device, or VK_ERROR_OUT_OF_HOST_MEMORY and what Vulkan returns.
static VkResult list_extensions(const struct VkmqaVk* vk, VkPhysicalDevice physicalDevice,
                                uint32_t* count, VkExtensionProperties** properties) {
    for (;;) {
        *count = 0;
        *properties = NULL;
        VkResult result = vk->EnumerateDeviceExtensionProperties(physicalDevice, NULL, count, NULL);
        if (result != VK_SUCCESS || *count == 0)
            return result;
        *properties = vkmqa_allocate(NULL, *count * sizeof **properties);
        if (!*properties)
            return VK_ERROR_OUT_OF_HOST_MEMORY;
        result = vk->EnumerateDeviceExtensionProperties(physicalDevice, NULL, count, *properties);
        if (result == VK_SUCCESS)
            return VK_SUCCESS;
        vkmqa_free(NULL, *properties);
        *properties = NULL;
        if (result != VK_INCOMPLETE) // an extension appeared between the two calls
            return result;
    }
}

static bool offered(const char* name, uint32_t count, const VkExtensionProperties* properties) {
    for (uint32_t i = 0; i < count; ++i)
        if (strcmp(properties[i].extensionName, name) == 0)
            return true;
    return false;
}

VkResult vkmqaGetDeviceRequirements(const VkmqaDeviceRequirementsInfo* given,
                                    VkmqaDeviceRequirements* requirements) {
    VkmqaDeviceRequirementsInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem) ||
        !requirements || requirements->structSize < sizeof *requirements || !info.instance ||
        !info.physicalDevice || !info.getInstanceProcAddr)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaVk vk;
    VkResult result = vkmqa_load_instance(&vk, info.instance, info.getInstanceProcAddr, NULL);
    if (result != VK_SUCCESS)
        return result;
    VkPhysicalDeviceProperties properties;
    vk.GetPhysicalDeviceProperties(info.physicalDevice, &properties);
    uint32_t version = min_version(info.apiVersion, properties.apiVersion);
    if (version < VK_API_VERSION_1_1)
        return VK_ERROR_INCOMPATIBLE_DRIVER;
    uint32_t extensionCount;
    VkExtensionProperties* extensions;
    result = list_extensions(&vk, info.physicalDevice, &extensionCount, &extensions);
    if (result != VK_SUCCESS)
        return result;

    uint32_t structSize = requirements->structSize;
    memset(requirements, 0, sizeof *requirements);
    requirements->structSize = structSize;
    struct Storage* storage = (struct Storage*)requirements->storage;
    storage->features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    storage->deviceAddress.sType =
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES;
    storage->subgroupSize.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES;
    storage->storage16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES;
    storage->storage8.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES;
    storage->float16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES;
    void** tail = &storage->features.pNext;
    uint32_t count = 0;

    storage->memoryModel.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES;
    storage->matrices.sType =
        (VkStructureType)VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR;
#define WANT(structure, promotedIn, extension)                                                     \
    if (version >= (promotedIn) || offered(extension, extensionCount, extensions)) {               \
        *tail = &storage->structure;                                                               \
        tail = &storage->structure.pNext;                                                          \
        if (version < (promotedIn))                                                                \
            storage->names[count++] = extension;                                                   \
    }
    WANT(deviceAddress, VK_API_VERSION_1_2, VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME)
    WANT(subgroupSize, VK_API_VERSION_1_3, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)
    WANT(storage16, VK_API_VERSION_1_1, VK_KHR_16BIT_STORAGE_EXTENSION_NAME)
    WANT(storage8, VK_API_VERSION_1_2, VK_KHR_8BIT_STORAGE_EXTENSION_NAME)
    WANT(float16, VK_API_VERSION_1_2, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME)
    WANT(memoryModel, VK_API_VERSION_1_2, VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME)
    WANT(matrices, UINT32_MAX, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME)
#undef WANT
    if (offered(VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME, extensionCount, extensions))
        storage->names[count++] = VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME;
    // The spec demands it where it is offered.
    if (offered("VK_KHR_portability_subset", extensionCount, extensions))
        storage->names[count++] = "VK_KHR_portability_subset";
    vkmqa_free(NULL, extensions);

    // Ask what is supported; keep of that what kernels use.
    vk.GetPhysicalDeviceFeatures2(info.physicalDevice, &storage->features);
    VkBool32 int16 = storage->features.features.shaderInt16;
    memset(&storage->features.features, 0, sizeof storage->features.features);
    storage->features.features.shaderInt16 = int16;
    storage->deviceAddress.bufferDeviceAddressCaptureReplay = VK_FALSE;
    storage->deviceAddress.bufferDeviceAddressMultiDevice = VK_FALSE;
    // Under the memory model every kernel's atomics need the feature of their scope.
    if (!storage->memoryModel.vulkanMemoryModelDeviceScope)
        storage->memoryModel.vulkanMemoryModel = VK_FALSE;
    storage->memoryModel.vulkanMemoryModelDeviceScope = storage->memoryModel.vulkanMemoryModel;
    storage->memoryModel.vulkanMemoryModelAvailabilityVisibilityChains = VK_FALSE;
    storage->matrices.cooperativeMatrixRobustBufferAccess = VK_FALSE;
    storage->storage16.uniformAndStorageBuffer16BitAccess = VK_FALSE;
    storage->storage16.storagePushConstant16 = VK_FALSE;
    storage->storage16.storageInputOutput16 = VK_FALSE;
    storage->storage8.uniformAndStorageBuffer8BitAccess = VK_FALSE;
    storage->storage8.storagePushConstant8 = VK_FALSE;
    requirements->features = &storage->features;
    requirements->extensionNames = storage->names;
    requirements->extensionCount = count;
    return VK_SUCCESS;
}

void vkmqa_read_enabled(uint32_t apiVersion, uint32_t extensionCount, const char* const* extensions,
                        const VkPhysicalDeviceFeatures2* features, struct VkmqaEnabled* enabled) {
    *enabled = (struct VkmqaEnabled){0};
    enabled->pushDescriptor =
        listed(VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME, extensionCount, extensions);
    bool addressKnown =
        apiVersion >= VK_API_VERSION_1_2 ||
        listed(VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME, extensionCount, extensions);
    bool sizeKnown = apiVersion >= VK_API_VERSION_1_3 ||
                     listed(VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, extensionCount, extensions);
    bool storage8Known = apiVersion >= VK_API_VERSION_1_2 ||
                         listed(VK_KHR_8BIT_STORAGE_EXTENSION_NAME, extensionCount, extensions);
    bool storage8 = false, int8 = false, matrices = false, memoryModel = false, deviceScope = false;
    bool modelKnown = apiVersion >= VK_API_VERSION_1_2 ||
                      listed(VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME, extensionCount, extensions);
    bool float16Known =
        apiVersion >= VK_API_VERSION_1_2 ||
        listed(VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME, extensionCount, extensions);
    for (const VkBaseInStructure* next = (const VkBaseInStructure*)features; next;
         next = next->pNext) {
        switch ((int)next->sType) { // newer headers know more
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES: {
            const VkPhysicalDeviceBufferDeviceAddressFeatures* f = (const void*)next;
            enabled->deviceAddress = addressKnown && f->bufferDeviceAddress;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES: {
            const VkPhysicalDevice16BitStorageFeatures* f = (const void*)next;
            enabled->storage16 = f->storageBuffer16BitAccess;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES: {
            const VkPhysicalDevice8BitStorageFeatures* f = (const void*)next;
            storage8 = storage8Known && f->storageBuffer8BitAccess;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES: {
            const VkPhysicalDeviceShaderFloat16Int8Features* f = (const void*)next;
            enabled->float16 = float16Known && f->shaderFloat16;
            int8 = float16Known && f->shaderInt8;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES: {
            const VkPhysicalDeviceVulkanMemoryModelFeatures* f = (const void*)next;
            memoryModel = modelKnown && f->vulkanMemoryModel;
            deviceScope = f->vulkanMemoryModelDeviceScope;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR: {
            // Drivers answer feature queries for extensions that they do not list: the list decides.
            const VkPhysicalDeviceCooperativeMatrixFeaturesKHR* f = (const void*)next;
            matrices = f->cooperativeMatrix &&
                       listed(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, extensionCount, extensions);
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES: {
            const VkPhysicalDeviceVulkan11Features* f = (const void*)next;
            enabled->storage16 = f->storageBuffer16BitAccess;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES: {
            const VkPhysicalDeviceVulkan12Features* f = (const void*)next;
            enabled->deviceAddress = addressKnown && f->bufferDeviceAddress;
            storage8 = storage8Known && f->storageBuffer8BitAccess;
            enabled->float16 = float16Known && f->shaderFloat16;
            int8 = float16Known && f->shaderInt8;
            memoryModel = modelKnown && f->vulkanMemoryModel;
            deviceScope = f->vulkanMemoryModelDeviceScope;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES: {
            const VkPhysicalDeviceSubgroupSizeControlFeatures* f = (const void*)next;
            enabled->subgroupSizeControl = sizeKnown && f->subgroupSizeControl;
            enabled->computeFullSubgroups = sizeKnown && f->computeFullSubgroups;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES: {
            const VkPhysicalDeviceVulkan13Features* f = (const void*)next;
            enabled->subgroupSizeControl = sizeKnown && f->subgroupSizeControl;
            enabled->computeFullSubgroups = sizeKnown && f->computeFullSubgroups;
            break;
        }
        default:
            break;
        }
    }
    enabled->matrices = matrices && memoryModel && deviceScope;
    enabled->scopeless = memoryModel && !deviceScope;
    enabled->narrowIntegers = storage8 && int8 && features && features->features.shaderInt16;
}

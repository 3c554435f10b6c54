// Instance, physical devices and what they say of themselves, see mock.h.
#include "mock_objects.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vk_table.h"

#define LISTED(array) array, sizeof(array) / sizeof(array[0])

static const char* const gpuExtensions[] = {
    VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME,
    VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, "VK_KHR_global_priority"};
static const char* const pushExtensions[] = {VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME};

static struct VkPhysicalDevice_T devices[MOCK_KINDS] = {
    [MOCK_GPU] = {.name = "Mock GPU", .type = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, .version = VK_API_VERSION_1_3,
                  LISTED(gpuExtensions), .all = true, .matrices = true, .subgroup = 32, .families = 3},
    [MOCK_PORTABLE] = {.name = "Mock portable", .type = VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU,
                       .version = VK_API_VERSION_1_1, .subgroup = 16, .families = 1},
    [MOCK_PUSH] = {.name = "Mock push", .type = VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU,
                   .version = VK_API_VERSION_1_2, LISTED(pushExtensions), .subgroup = 64, .families = 1},
    [MOCK_CPU] = {.name = "Mock CPU", .type = VK_PHYSICAL_DEVICE_TYPE_CPU, .version = VK_API_VERSION_1_3,
                  LISTED(pushExtensions), .all = true, .subgroup = 8, .families = 1},
};
static struct VkInstance_T instance;

VkInstance mockInstance(void) { return &instance; }
VkPhysicalDevice mockPhysicalDevice(MockKind kind) { return &devices[kind]; }

_Noreturn void mockFail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

void* mock_dlopen(const char* name, int flags) {
    (void)name, (void)flags;
    return &instance;
}
void* mock_dlsym(void* library, const char* name) {
    (void)library, (void)name;
    PFN_vkGetInstanceProcAddr function = mockGetInstanceProcAddr;
    void* symbol;
    memcpy(&symbol, &function, sizeof(symbol));
    return symbol;
}
int mock_dlclose(void* library) {
    (void)library;
    return 0;
}

// ---- instance ------------------------------------------------------------------------------------

static VKAPI_ATTR VkResult VKAPI_CALL enumerateInstanceVersion(uint32_t* version) {
    *version = VK_API_VERSION_1_3;
    return VK_SUCCESS;
}
static VKAPI_ATTR VkResult VKAPI_CALL enumerateInstanceExtensions(const char* layer, uint32_t* count,
                                                                  VkExtensionProperties* properties) {
    (void)layer, (void)properties;
    *count = 0;
    return VK_SUCCESS;
}
static VKAPI_ATTR VkResult VKAPI_CALL createInstance(const VkInstanceCreateInfo* info, const VkAllocationCallbacks* a,
                                                     VkInstance* result) {
    (void)info, (void)a;
    *result = &instance;
    return VK_SUCCESS;
}
static VKAPI_ATTR void VKAPI_CALL destroyInstance(VkInstance given, const VkAllocationCallbacks* a) {
    (void)given, (void)a;
}

VKAPI_ATTR VkResult VKAPI_CALL mock_vkEnumeratePhysicalDevices(VkInstance given, uint32_t* count,
                                                               VkPhysicalDevice* listed) {
    (void)given;
    uint32_t room = listed && *count < MOCK_KINDS ? *count : MOCK_KINDS;
    for (uint32_t i = 0; listed && i < room; i++)
        listed[i] = &devices[i];
    *count = room;
    return room < MOCK_KINDS ? VK_INCOMPLETE : VK_SUCCESS;
}

VKAPI_ATTR VkResult VKAPI_CALL mock_vkEnumerateDeviceExtensionProperties(VkPhysicalDevice device, const char* layer,
                                                                         uint32_t* count,
                                                                         VkExtensionProperties* listed) {
    (void)layer;
    uint32_t all = (uint32_t)device->extensionCount, room = listed && *count < all ? *count : all;
    for (uint32_t i = 0; listed && i < room; i++) {
        snprintf(listed[i].extensionName, sizeof(listed[i].extensionName), "%s", device->extensions[i]);
        listed[i].specVersion = 1;
    }
    *count = room;
    return room < all ? VK_INCOMPLETE : VK_SUCCESS;
}

// ---- properties ----------------------------------------------------------------------------------

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceProperties(VkPhysicalDevice device,
                                                              VkPhysicalDeviceProperties* properties) {
    *properties = (VkPhysicalDeviceProperties){
        .apiVersion = device->version,
        .driverVersion = 7,
        .vendorID = 0x1234,
        .deviceID = 0x5678,
        .deviceType = device->type,
        .pipelineCacheUUID = MOCK_CACHE_UUID,
        .limits = {
            .maxStorageBufferRange = MOCK_MAX_RANGE,
            .minStorageBufferOffsetAlignment = MOCK_ALIGNMENT,
            .maxPushConstantsSize = 128,
            .maxPerStageDescriptorStorageBuffers = 16,
            .maxComputeSharedMemorySize = 32768,
            .maxComputeWorkGroupInvocations = 1024,
            .maxComputeWorkGroupCount = {65535, 65535, 65535},
            .maxComputeWorkGroupSize = {1024, 1024, 64},
            .timestampPeriod = 1,
        },
    };
    snprintf(properties->deviceName, sizeof(properties->deviceName), "%s", device->name);
}

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceProperties2(VkPhysicalDevice device,
                                                               VkPhysicalDeviceProperties2* properties) {
    mock_vkGetPhysicalDeviceProperties(device, &properties->properties);
    for (VkBaseOutStructure* next = properties->pNext; next; next = next->pNext) {
        switch ((int)next->sType) {
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES: {
            VkPhysicalDeviceDriverProperties* p = (void*)next;
            p->driverID = VK_DRIVER_ID_MESA_LLVMPIPE;
            snprintf(p->driverName, sizeof(p->driverName), "mock");
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES: {
            VkPhysicalDeviceSubgroupProperties* p = (void*)next;
            p->subgroupSize = device->subgroup;
            p->supportedStages = VK_SHADER_STAGE_COMPUTE_BIT;
            p->supportedOperations = device->all ? 0xFF : VK_SUBGROUP_FEATURE_BASIC_BIT;
            break;
        }
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES:
            memset(((VkPhysicalDeviceIDProperties*)next)->deviceUUID, 0x11, VK_UUID_SIZE);
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES: {
            VkPhysicalDeviceSubgroupSizeControlProperties* p = (void*)next;
            p->minSubgroupSize = p->maxSubgroupSize = device->subgroup;
            p->requiredSubgroupSizeStages = VK_SHADER_STAGE_COMPUTE_BIT;
            break;
        }
        default:
            break;
        }
    }
}

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceFeatures2(VkPhysicalDevice device,
                                                             VkPhysicalDeviceFeatures2* features) {
    VkBool32 all = device->all;
    features->features = (VkPhysicalDeviceFeatures){.shaderInt16 = all};
    for (VkBaseOutStructure* next = features->pNext; next; next = next->pNext) {
        switch ((int)next->sType) {
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES:
            ((VkPhysicalDeviceBufferDeviceAddressFeatures*)next)->bufferDeviceAddress = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES:
            ((VkPhysicalDeviceSubgroupSizeControlFeatures*)next)->subgroupSizeControl = all;
            ((VkPhysicalDeviceSubgroupSizeControlFeatures*)next)->computeFullSubgroups = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES:
            ((VkPhysicalDevice16BitStorageFeatures*)next)->storageBuffer16BitAccess = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES:
            ((VkPhysicalDevice8BitStorageFeatures*)next)->storageBuffer8BitAccess = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES:
            ((VkPhysicalDeviceShaderFloat16Int8Features*)next)->shaderFloat16 = all;
            ((VkPhysicalDeviceShaderFloat16Int8Features*)next)->shaderInt8 = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES:
            ((VkPhysicalDeviceVulkanMemoryModelFeatures*)next)->vulkanMemoryModel = all;
            ((VkPhysicalDeviceVulkanMemoryModelFeatures*)next)->vulkanMemoryModelDeviceScope = all;
            break;
        case VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR:
            ((VkPhysicalDeviceCooperativeMatrixFeaturesKHR*)next)->cooperativeMatrix = device->matrices;
            break;
        default:
            break;
        }
    }
}

VKAPI_ATTR VkResult VKAPI_CALL mock_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR(
    VkPhysicalDevice device, uint32_t* count, VkCooperativeMatrixPropertiesKHR* listed) {
    uint32_t room = device->matrices && *count ? 1 : 0;
    if (listed && room) {
        listed[0].MSize = listed[0].NSize = listed[0].KSize = 16;
        listed[0].AType = listed[0].BType = VK_COMPONENT_TYPE_FLOAT16_KHR;
        listed[0].CType = listed[0].ResultType = VK_COMPONENT_TYPE_FLOAT32_KHR;
        listed[0].saturatingAccumulation = VK_FALSE;
        listed[0].scope = VK_SCOPE_SUBGROUP_KHR;
    }
    *count = room;
    return VK_SUCCESS;
}

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice device, uint32_t* count,
                                                                         VkQueueFamilyProperties* listed) {
    static const VkQueueFlags flags[] = {VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT,
                                         VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT, VK_QUEUE_TRANSFER_BIT};
    uint32_t room = listed && *count < device->families ? *count : device->families;
    for (uint32_t i = 0; listed && i < room; i++)
        listed[i] = (VkQueueFamilyProperties){.queueFlags = flags[i], .queueCount = 1, .timestampValidBits = 64};
    *count = room;
}

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceMemoryProperties(VkPhysicalDevice device,
                                                                    VkPhysicalDeviceMemoryProperties* properties) {
    (void)device;
    const VkMemoryPropertyFlags host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    *properties = (VkPhysicalDeviceMemoryProperties){
        .memoryTypeCount = 3,
        .memoryTypes = {{VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0},
                        {host, 1},
                        {host | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, 1}},
        .memoryHeapCount = 2,
        .memoryHeaps = {{MOCK_HEAP, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT}, {MOCK_HEAP, 0}},
    };
}

VKAPI_ATTR void VKAPI_CALL mock_vkGetPhysicalDeviceMemoryProperties2(VkPhysicalDevice device,
                                                                     VkPhysicalDeviceMemoryProperties2* properties) {
    mock_vkGetPhysicalDeviceMemoryProperties(device, &properties->memoryProperties);
    for (VkBaseOutStructure* next = properties->pNext; next; next = next->pNext)
        if ((int)next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT)
            ((VkPhysicalDeviceMemoryBudgetPropertiesEXT*)next)->heapBudget[0] = MOCK_HEAP / 2;
}

// ---- by name -------------------------------------------------------------------------------------

typedef struct Entry {
    const char* name;
    PFN_vkVoidFunction function;
} Entry;

static PFN_vkVoidFunction find(const Entry* entries, size_t count, const char* name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(entries[i].name, name) == 0)
            return entries[i].function;
    return NULL;
}

#define ENTRY(name) {"vk" #name, (PFN_vkVoidFunction)mock_vk##name},
#define OPTIONAL_ENTRY(name, alias) ENTRY(name)

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL mock_vkGetDeviceProcAddr(VkDevice device, const char* name) {
    static const Entry entries[] = {VKMQA_VK_DEVICE_FUNCTIONS(ENTRY) VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(OPTIONAL_ENTRY)};
    (void)device;
    return find(LISTED(entries), name);
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL mockGetInstanceProcAddr(VkInstance given, const char* name) {
    static const Entry global[] = {
        {"vkEnumerateInstanceVersion", (PFN_vkVoidFunction)enumerateInstanceVersion},
        {"vkEnumerateInstanceExtensionProperties", (PFN_vkVoidFunction)enumerateInstanceExtensions},
        {"vkCreateInstance", (PFN_vkVoidFunction)createInstance},
        {"vkDestroyInstance", (PFN_vkVoidFunction)destroyInstance},
    };
    static const Entry entries[] = {
        VKMQA_VK_INSTANCE_FUNCTIONS(ENTRY) VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(ENTRY)};
    PFN_vkVoidFunction function = find(LISTED(global), name);
    return function || !given ? function : find(LISTED(entries), name);
}

// What the library makes of machines that are not here: a Vulkan loader and a device that answer as a table says. The
// linker puts them where the library opens the loader (--wrap).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include <vkmqa/vkmqa_runtime.h>

#include "core/context.h"

static const VkResult INCOMPATIBLE = VK_ERROR_INCOMPATIBLE_DRIVER;

// What this machine is like; all zero: a loader without devices.
static struct Machine {
    uint32_t instanceVersion;
    VkResult versionResult, instanceResult, extensionResult, deviceResult;
    const char* withheld;   // a function that nothing has
    bool noLoader, noEntry; // there is none; it exports nothing
    bool portability;       // the instance lists it
    uint32_t late;          // so many enumerations have become longer between their two calls
    uint32_t devices, version;
    const char* extensions[8];
    uint32_t familyCount, heapCount, matrixCount;
    VkQueueFamilyProperties families[4];
    VkMemoryHeap heaps[3];
    VkCooperativeMatrixPropertiesKHR matrices[12];
    VkResult matrixResult;
    VkBool32 features; // all that are asked for
    VkDeviceSize storageAlignment;
    VkShaderStageFlags sizeStages;
} machine;

static uint32_t instances, asked; // alive; features that were asked for, by the struct's place in `structs`
static VkInstanceCreateFlags instanceFlags;
static char message[1024];

static void hear(VkmqaSeverity severity, const char* text, void* userData) {
    (void)severity, (void)userData;
    snprintf(message, sizeof(message), "%s", text);
}

// ---- The loader ------------------------------------------------------------------------------------

static char library;
static uint32_t tries; // names of loaders
void* __wrap_dlopen(const char* name, int flags);
void* __wrap_dlopen(const char* name, int flags) {
    static const char* const names[] = {"libvulkan.so.1", "libvulkan.so"}; // with the version first
    (void)flags;
    assert_true(tries < 2);
    assert_string_equal(name, names[tries++]);
    return tries == 2 && !machine.noLoader ? &library : NULL;
}
static PFN_vkVoidFunction lookUp(VkInstance instance, const char* name);
void* __wrap_dlsym(void* from, const char* name);
void* __wrap_dlsym(void* from, const char* name) {
    PFN_vkGetInstanceProcAddr entry = (PFN_vkGetInstanceProcAddr)lookUp;
    void* symbol = NULL;
    assert_ptr_equal(from, &library);
    assert_string_equal(name, "vkGetInstanceProcAddr");
    if (!machine.noEntry)
        memcpy(&symbol, &entry, sizeof(symbol));
    return symbol;
}
int __wrap_dlclose(void* from);
int __wrap_dlclose(void* from) {
    assert_ptr_equal(from, &library);
    return 0;
}

static VkResult VKAPI_CALL enumerateInstanceVersion(uint32_t* version) {
    *version = machine.instanceVersion;
    return machine.versionResult;
}

// `all` things of which the second call may find fewer places than the first one said.
static VkResult enumerated(uint32_t* count, const void* places, uint32_t all, VkResult result) {
    if (result < 0)
        return result;
    const uint32_t room = *count;
    *count = all;
    if (!places)
        return VK_SUCCESS;
    if (machine.late) {
        machine.late--;
        return VK_INCOMPLETE;
    }
    return room < all ? VK_INCOMPLETE : VK_SUCCESS;
}

static VkResult VKAPI_CALL enumerateInstanceExtensions(const char* layer, uint32_t* count, VkExtensionProperties* listed) {
    (void)layer;
    if (listed)
        snprintf(listed->extensionName, sizeof(listed->extensionName), "%s",
                 machine.portability ? "VK_KHR_portability_enumeration" : "VK_KHR_surface");
    return enumerated(count, listed, 1, machine.extensionResult);
}
static VkResult VKAPI_CALL createInstance(const VkInstanceCreateInfo* info, const VkAllocationCallbacks* a, VkInstance* made) {
    (void)a;
    instanceFlags = info->flags;
    if (machine.instanceResult)
        return machine.instanceResult;
    instances++;
    *made = (VkInstance)&machine;
    return VK_SUCCESS;
}
static void VKAPI_CALL destroyInstance(VkInstance instance, const VkAllocationCallbacks* a) {
    (void)instance, (void)a;
    instances--;
}

// ---- The device ------------------------------------------------------------------------------------

static VkResult VKAPI_CALL enumerateDevices(VkInstance instance, uint32_t* count, VkPhysicalDevice* listed) {
    (void)instance;
    for (uint32_t i = 0; listed && i < *count && i < machine.devices; i++)
        listed[i] = (VkPhysicalDevice)&machine;
    return enumerated(count, listed, machine.devices, machine.deviceResult);
}
static VkResult VKAPI_CALL enumerateExtensions(VkPhysicalDevice device, const char* layer, uint32_t* count,
                                               VkExtensionProperties* listed) {
    uint32_t all = 0;
    (void)device, (void)layer;
    for (; all < 8 && machine.extensions[all]; all++)
        if (listed && all < *count)
            snprintf(listed[all].extensionName, sizeof(listed[all].extensionName), "%s", machine.extensions[all]);
    return enumerated(count, listed, all, machine.extensionResult);
}
static void VKAPI_CALL getProperties(VkPhysicalDevice device, VkPhysicalDeviceProperties* properties) {
    (void)device;
    *properties = (VkPhysicalDeviceProperties){
        .apiVersion = machine.version,
        .deviceName = "Elsewhere",
        .limits = {.maxComputeWorkGroupInvocations = 1024, .maxComputeWorkGroupSize = {256, 256, 64},
                   .maxPerStageDescriptorStorageBuffers = 16, .maxStorageBufferRange = 1u << 30,
                   .minStorageBufferOffsetAlignment = machine.storageAlignment, .timestampPeriod = 1}};
}
static void VKAPI_CALL getProperties2(VkPhysicalDevice device, VkPhysicalDeviceProperties2* properties) {
    getProperties(device, &properties->properties);
    for (VkBaseOutStructure* next = properties->pNext; next; next = next->pNext)
        if ((int)next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES)
            ((VkPhysicalDeviceSubgroupSizeControlProperties*)next)->requiredSubgroupSizeStages = machine.sizeStages;
        else if ((int)next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES)
            strcpy(((VkPhysicalDeviceDriverProperties*)next)->driverName, "driver");
}

// The structs of features in the order of `asked`, and the extension that brings each.
static const struct {
    int type;
    uint32_t version; // that has it anyway
    const char* extension;
    size_t bytes;
} structs[] = {
#define STRUCT(name, version, extension, type)                                                     \
    {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##name, version, extension, sizeof(type)}
    STRUCT(BUFFER_DEVICE_ADDRESS_FEATURES, VK_API_VERSION_1_2, VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME,
           VkPhysicalDeviceBufferDeviceAddressFeatures),
    STRUCT(SUBGROUP_SIZE_CONTROL_FEATURES, VK_API_VERSION_1_3, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
           VkPhysicalDeviceSubgroupSizeControlFeatures),
    STRUCT(8BIT_STORAGE_FEATURES, VK_API_VERSION_1_2, VK_KHR_8BIT_STORAGE_EXTENSION_NAME,
           VkPhysicalDevice8BitStorageFeatures),
    STRUCT(SHADER_FLOAT16_INT8_FEATURES, VK_API_VERSION_1_2, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME,
           VkPhysicalDeviceShaderFloat16Int8Features),
    STRUCT(VULKAN_MEMORY_MODEL_FEATURES, VK_API_VERSION_1_2, VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME,
           VkPhysicalDeviceVulkanMemoryModelFeatures),
    STRUCT(COOPERATIVE_MATRIX_FEATURES_KHR, UINT32_MAX, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME,
           VkPhysicalDeviceCooperativeMatrixFeaturesKHR),
    STRUCT(16BIT_STORAGE_FEATURES, VK_API_VERSION_1_1, VK_KHR_16BIT_STORAGE_EXTENSION_NAME,
           VkPhysicalDevice16BitStorageFeatures),
};
enum { STRUCTS = sizeof(structs) / sizeof(structs[0]) };

static void VKAPI_CALL getFeatures2(VkPhysicalDevice device, VkPhysicalDeviceFeatures2* features) {
    (void)device;
    asked = 0;
    features->features.shaderInt16 = features->features.robustBufferAccess = machine.features;
    for (VkBaseOutStructure* next = features->pNext; next; next = next->pNext)
        for (uint32_t i = 0; i < STRUCTS; i++)
            if ((int)next->sType == structs[i].type) {
                asked |= 1u << i;
                VkBool32* values = (VkBool32*)(next + 1);
                for (size_t k = 0; k < (structs[i].bytes - sizeof(*next)) / sizeof(VkBool32); k++)
                    values[k] = machine.features;
            }
}
static void VKAPI_CALL getFamilies(VkPhysicalDevice device, uint32_t* count, VkQueueFamilyProperties* listed) {
    (void)device;
    for (uint32_t i = 0; listed && i < *count; i++)
        listed[i] = machine.families[i];
    *count = machine.familyCount;
}
static void VKAPI_CALL getMemory(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties* memory) {
    (void)device;
    memory->memoryTypeCount = 0;
    memory->memoryHeapCount = machine.heapCount;
    memcpy(memory->memoryHeaps, machine.heaps, sizeof(machine.heaps));
}
static VkResult VKAPI_CALL getMatrices(VkPhysicalDevice device, uint32_t* count, VkCooperativeMatrixPropertiesKHR* listed) {
    (void)device;
    for (uint32_t i = 0; i < machine.matrixCount; i++)
        listed[i] = machine.matrices[i];
    *count = machine.matrixCount;
    return machine.matrixResult;
}
static VkResult VKAPI_CALL succeed(void) { return VK_SUCCESS; }

static PFN_vkVoidFunction VKAPI_CALL ofDevice(VkDevice device, const char* name) {
    (void)device;
    return machine.withheld && strcmp(name, machine.withheld) == 0 ? NULL : (PFN_vkVoidFunction)succeed;
}
static PFN_vkVoidFunction lookUp(VkInstance instance, const char* name) {
    static const struct {
        const char* name;
        PFN_vkVoidFunction function;
    } known[] = {
#define KNOWN(name, function) {"vk" #name, (PFN_vkVoidFunction)function}
        KNOWN(EnumerateInstanceVersion, enumerateInstanceVersion),
        KNOWN(EnumerateInstanceExtensionProperties, enumerateInstanceExtensions),
        KNOWN(CreateInstance, createInstance), KNOWN(DestroyInstance, destroyInstance),
        KNOWN(EnumeratePhysicalDevices, enumerateDevices),
        KNOWN(EnumerateDeviceExtensionProperties, enumerateExtensions),
        KNOWN(GetPhysicalDeviceProperties, getProperties), KNOWN(GetPhysicalDeviceProperties2, getProperties2),
        KNOWN(GetPhysicalDeviceFeatures2, getFeatures2), KNOWN(GetPhysicalDeviceQueueFamilyProperties, getFamilies),
        KNOWN(GetPhysicalDeviceMemoryProperties, getMemory),
        KNOWN(GetPhysicalDeviceCooperativeMatrixPropertiesKHR, getMatrices), KNOWN(GetDeviceProcAddr, ofDevice),
    };
    (void)instance;
    if (machine.withheld && strcmp(name, machine.withheld) == 0)
        return NULL;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].function;
    return (PFN_vkVoidFunction)succeed;
}

static const struct Machine usual = {
    .instanceVersion = VK_API_VERSION_1_3,
    .devices = 1,
    .version = VK_API_VERSION_1_3,
    .familyCount = 1,
    .families = {{VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT, 1, 64, {1, 1, 1}}},
    .heapCount = 1,
    .heaps = {{8u << 20, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT}},
    .features = VK_TRUE,
    .sizeStages = VK_SHADER_STAGE_COMPUTE_BIT,
};

// ---- Loaders ---------------------------------------------------------------------------------------

static VkResult list(uint32_t* count, VkmqaDeviceProperties* properties) {
    message[0] = 0;
    tries = 0;
    VkResult result = vkmqaListDevices(count, properties, hear, NULL);
    assert_int_equal(instances, 0);
    return result;
}

static void oldLoadersAreNamed(void** state) {
    (void)state;
    static const struct {
        struct Machine machine; // over the usual one: what is not zero
        VkResult result;
        const char* word;
    } rows[] = {
        {{.noLoader = true}, VK_ERROR_INCOMPATIBLE_DRIVER, "no Vulkan loader (libvulkan.so.1)"},
        {{.noEntry = true}, VK_ERROR_INCOMPATIBLE_DRIVER, "exports no vkGetInstanceProcAddr"},
        {{.withheld = "vkCreateInstance"}, VK_ERROR_INCOMPATIBLE_DRIVER, "older than Vulkan 1.1"},
        {{.withheld = "vkEnumerateInstanceVersion"}, VK_ERROR_INCOMPATIBLE_DRIVER, "older than Vulkan 1.1"},
        {{.versionResult = VK_ERROR_OUT_OF_HOST_MEMORY}, VK_ERROR_INCOMPATIBLE_DRIVER, "older than Vulkan 1.1"},
        {{.instanceVersion = VK_API_VERSION_1_0}, VK_ERROR_INCOMPATIBLE_DRIVER, "older than Vulkan 1.1"},
        {{.instanceResult = VK_ERROR_INCOMPATIBLE_DRIVER}, VK_ERROR_INCOMPATIBLE_DRIVER, "no Vulkan driver"},
        {{.instanceResult = VK_ERROR_INITIALIZATION_FAILED}, VK_ERROR_INITIALIZATION_FAILED, "vkCreateInstance returned"},
        {{.extensionResult = VK_ERROR_LAYER_NOT_PRESENT}, VK_ERROR_LAYER_NOT_PRESENT, "ExtensionProperties returned"},
        {{.withheld = "vkGetPhysicalDeviceFeatures2"}, VK_ERROR_INCOMPATIBLE_DRIVER, "no vkGetPhysicalDeviceFeatures2"},
        {{.deviceResult = VK_ERROR_INITIALIZATION_FAILED}, VK_ERROR_INITIALIZATION_FAILED, "listing the Vulkan devices"},
        {{.withheld = "vkEnumerateInstanceExtensionProperties"}, VK_SUCCESS, ""},
        {{.portability = true}, VK_SUCCESS, ""},
        {{.late = 1}, VK_SUCCESS, ""}, // what changes meanwhile is asked for again
        {{.late = 5}, VK_SUCCESS, ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint32_t count = 0;
        machine = usual;
        const struct Machine* row = &rows[i].machine;
        machine.noLoader = row->noLoader;
        machine.noEntry = row->noEntry;
        machine.withheld = row->withheld;
        machine.versionResult = row->versionResult;
        machine.instanceResult = row->instanceResult;
        machine.extensionResult = row->extensionResult;
        machine.deviceResult = row->deviceResult;
        machine.portability = row->portability;
        machine.late = row->late;
        machine.extensions[0] = "VK_EXT_memory_budget";
        if (row->instanceVersion)
            machine.instanceVersion = row->instanceVersion;
        VkResult result = list(&count, NULL);
        if (result != rows[i].result || !strstr(message, rows[i].word))
            fail_msg("row %zu: VkResult %d, \"%s\"", i, result, message);
        assert_int_equal(count, result ? 0 : 1);
        if (!result)
            assert_int_equal(instanceFlags, machine.portability ? VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR : 0);
    }
}

// ---- Devices ---------------------------------------------------------------------------------------

static void placesMayBeTooFew(void** state) {
    (void)state;
    VkmqaDeviceProperties places[3];
    machine = usual;
    machine.devices = 2;
    uint32_t count = 0;
    assert_int_equal(list(&count, NULL), VK_SUCCESS);
    assert_int_equal(count, 2);
    count = 0;
    assert_int_equal(list(&count, places), VK_INCOMPLETE);
    assert_int_equal(count, 0);
    for (uint32_t room = 1; room <= 3; room++) {
        memset(places, 0, sizeof(places));
        places[0].structSize = sizeof(places[0]);
        count = room;
        assert_int_equal(list(&count, places), room < 2 ? VK_INCOMPLETE : VK_SUCCESS);
        assert_int_equal(count, room < 2 ? room : 2);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(strcmp(places[i].name, "Elsewhere") == 0, i < count);
    }
    machine.devices = 0;
    count = 3;
    assert_int_equal(list(&count, places), VK_SUCCESS);
    assert_int_equal(count, 0);
    assert_int_equal(list(NULL, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    places[0].structSize = 3;
    count = 1;
    assert_int_equal(list(&count, places), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(message, "structSize"));
}

static VkmqaDeviceProperties look(void) {
    VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
    uint32_t count = 1;
    if (list(&count, &properties))
        fail_msg("%s", message);
    assert_int_equal(count, 1);
    return properties;
}

// Whatever its version, a device is listed; what its version and extensions do not have is not asked for.
static void devicesAreDescribed(void** state) {
    (void)state;
    for (uint32_t minor = 0; minor <= 3; minor++)
        for (int listed = 0; listed < 2; listed++) {
            machine = usual;
            machine.version = VK_MAKE_API_VERSION(0, 1, minor, 0);
            machine.heapCount = 3; // the largest that is the device's
            machine.heaps[0] = (VkMemoryHeap){4u << 20, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT};
            machine.heaps[1] = (VkMemoryHeap){2u << 20, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT};
            machine.heaps[2] = (VkMemoryHeap){64u << 20, 0};
            if (listed) {
                machine.extensions[0] = VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME;
                machine.extensions[1] = VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME;
            }
            const VkmqaDeviceProperties properties = look();
            assert_int_equal(properties.apiVersion, machine.version);
            assert_int_equal(properties.deviceMemory, 4u << 20);
            const bool knows = minor >= 2 || (minor == 1 && listed);
            assert_int_equal(properties.deviceAddresses, knows);
            assert_string_equal(properties.driverName, knows ? "driver" : "");
        }
}

static void queuesAreChosen(void** state) {
    (void)state;
    enum { G = VK_QUEUE_GRAPHICS_BIT, C = VK_QUEUE_COMPUTE_BIT, T = VK_QUEUE_TRANSFER_BIT, V = 0x20, S = VK_QUEUE_SPARSE_BINDING_BIT };
    static const struct {
        uint32_t count;
        VkQueueFamilyProperties families[4];
        bool usable, timestamps;
    } rows[] = {
        {0, {{0}}, false, false},
        {1, {{G | C | T, 0, 64, {1, 1, 1}}}, false, false}, // no queue
        {1, {{T, 1, 64, {1, 1, 1}}}, false, false},
        {2, {{G | C, 1, 64, {1, 1, 1}}, {C, 1, 0, {1, 1, 1}}}, true, false}, // beside the graphics, though without time
        {3, {{G | C, 1, 64, {1, 1, 1}}, {C, 1, 36, {1, 1, 1}}, {C, 1, 36, {1, 1, 1}}}, true, true},
        {4, {{T | V, 1, 0, {1, 1, 1}}, {T | S, 1, 0, {1, 1, 1}}, {T, 1, 0, {1, 1, 1}}, {G | C, 1, 8, {1, 1, 1}}}, true, true},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        machine = usual;
        machine.familyCount = rows[i].count;
        memcpy(machine.families, rows[i].families, sizeof(machine.families));
        assert_int_equal(look().timestampPeriod > 0, rows[i].timestamps);
        const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = hear};
        VkmqaDevice device = NULL;
        if (!rows[i].usable) {
            tries = 0;
            assert_int_equal(vkmqaOpenDevice(&open, &device), INCOMPATIBLE);
            assert_non_null(strstr(message, "no compute queue"));
        }
    }
}

// ---- What a host is told to enable -----------------------------------------------------------------

static void requirementsFollowVersionAndExtensions(void** state) {
    (void)state;
    VkmqaDeviceRequirements needs = {.structSize = sizeof(needs)};
    VkmqaDeviceRequirementsInfo info = {
        .structSize = sizeof(info), .apiVersion = VK_API_VERSION_1_3, .instance = (VkInstance)&machine,
        .physicalDevice = (VkPhysicalDevice)&machine, .getInstanceProcAddr = (PFN_vkGetInstanceProcAddr)lookUp};
    for (uint32_t minor = 1; minor <= 3; minor++)
        for (uint32_t only = 0; only <= STRUCTS; only++) { // of the extensions, or none
            machine = usual;
            machine.version = VK_MAKE_API_VERSION(0, 1, minor, 0);
            machine.extensions[0] = only < STRUCTS ? structs[only].extension : NULL;
            assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_SUCCESS);
            uint32_t expected = 0;
            for (uint32_t i = 0; i < STRUCTS; i++)
                if (i == only || machine.version >= structs[i].version)
                    expected |= 1u << i;
            assert_int_equal(asked, expected);
            const bool named = only < STRUCTS && machine.version < structs[only].version;
            assert_int_equal(needs.extensionCount, named);
            if (named)
                assert_string_equal(needs.extensionNames[0], structs[only].extension);
            const VkPhysicalDeviceFeatures2* features = needs.features;
            assert_true(features->features.shaderInt16 && !features->features.robustBufferAccess);
        }
    machine = usual;
    machine.extensions[0] = VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME;
    machine.extensions[1] = "VK_KHR_portability_subset";
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_SUCCESS);
    assert_int_equal(needs.extensionCount, 2);
    assert_string_equal(needs.extensionNames[1], "VK_KHR_portability_subset");
    machine.late = 1; // the list has grown between two calls
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_SUCCESS);
    assert_int_equal(needs.extensionCount, 2);
    machine.withheld = "vkGetPhysicalDeviceFeatures2";
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), INCOMPATIBLE);
    machine = usual;
    machine.version = VK_API_VERSION_1_0;
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), INCOMPATIBLE);
    machine = usual;
    machine.extensionResult = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    const VkmqaDeviceRequirementsInfo good = info;
    machine = usual;
#define REFUSES(change)                                                                            \
    change;                                                                                        \
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_ERROR_VALIDATION_FAILED_EXT);   \
    info = good
    REFUSES(info.structSize = 4);
    REFUSES(info.instance = NULL);
    REFUSES(info.physicalDevice = NULL);
    REFUSES(info.getInstanceProcAddr = NULL);
    assert_int_equal(vkmqaGetDeviceRequirements(&info, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    needs.structSize = 8;
    assert_int_equal(vkmqaGetDeviceRequirements(&info, &needs), VK_ERROR_VALIDATION_FAILED_EXT);
}

// ---- What is read of a device that is imported -----------------------------------------------------

static const char* const enabledExtensions[] = {
    VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME};
static VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices = {
    .sType = (VkStructureType)VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR, .cooperativeMatrix = VK_TRUE};
static VkPhysicalDeviceVulkan12Features v12 = {
    .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .pNext = &matrices, .bufferDeviceAddress = VK_TRUE,
    .vulkanMemoryModel = VK_TRUE, .vulkanMemoryModelDeviceScope = VK_TRUE};
static VkPhysicalDeviceVulkan13Features v13 = {
    .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES, .pNext = &v12, .subgroupSizeControl = VK_TRUE,
    .computeFullSubgroups = VK_TRUE};
static const VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v13};

static VkmqaContextCreateInfo contextInfo(void) {
    return (VkmqaContextCreateInfo){.structSize = sizeof(VkmqaContextCreateInfo),
                                    .apiVersion = VK_API_VERSION_1_3,
                                    .instance = (VkInstance)&machine,
                                    .physicalDevice = (VkPhysicalDevice)&machine,
                                    .device = (VkDevice)&machine,
                                    .getInstanceProcAddr = (PFN_vkGetInstanceProcAddr)lookUp,
                                    .enabledExtensionCount = 2,
                                    .enabledExtensions = enabledExtensions,
                                    .enabledFeatures = &features,
                                    .messageCallback = hear};
}

static struct VkmqaCaps capsOf(void) {
    const VkmqaContextCreateInfo info = contextInfo();
    VkmqaContext context;
    if (vkmqaCreateContext(&info, &context))
        fail_msg("%s", message);
    const struct VkmqaCaps caps = context->caps;
    vkmqaDestroyContext(context);
    return caps;
}

static VkCooperativeMatrixPropertiesKHR matrixOf(uint32_t m) {
    return (VkCooperativeMatrixPropertiesKHR){.MSize = m, .NSize = 16, .KSize = 16,
                                              .AType = VK_COMPONENT_TYPE_FLOAT16_KHR, .BType = VK_COMPONENT_TYPE_FLOAT16_KHR,
                                              .CType = VK_COMPONENT_TYPE_FLOAT32_KHR, .ResultType = VK_COMPONENT_TYPE_FLOAT32_KHR,
                                              .scope = VK_SCOPE_SUBGROUP_KHR};
}

// Of the shapes only those of f16 that add in f32, in a subgroup; as many as there are places for.
static void matricesAreSifted(void** state) {
    (void)state;
    machine = usual;
    machine.matrixCount = 7;
    for (uint32_t i = 0; i < 7; i++)
        machine.matrices[i] = matrixOf(8 * (i + 1));
    machine.matrices[0].AType = VK_COMPONENT_TYPE_FLOAT32_KHR;
    machine.matrices[1].BType = VK_COMPONENT_TYPE_FLOAT32_KHR;
    machine.matrices[2].CType = VK_COMPONENT_TYPE_FLOAT16_KHR;
    machine.matrices[3].ResultType = VK_COMPONENT_TYPE_FLOAT16_KHR;
    machine.matrices[4].scope--; // a workgroup's
    machine.matrices[5].saturatingAccumulation = VK_TRUE;
    struct VkmqaCaps caps = capsOf();
    assert_int_equal(caps.matrixCount, 1);
    assert_int_equal(caps.matrices[0].m, 56);
    machine.matrixCount = 12;
    for (uint32_t i = 0; i < 12; i++)
        machine.matrices[i] = matrixOf(16);
    assert_int_equal(capsOf().matrixCount, VKMQA_MAX_MATRICES);
    machine.matrixResult = VK_ERROR_OUT_OF_HOST_MEMORY; // then it has none
    assert_int_equal(capsOf().matrixCount, 0);
    machine.matrixResult = VK_SUCCESS;
    machine.withheld = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR";
    assert_int_equal(capsOf().matrixCount, 0);
}

static void limitsAreRead(void** state) {
    (void)state;
    machine = usual;
    struct VkmqaCaps caps = capsOf();
    assert_int_equal(caps.maxInvocations, 256); // of a workgroup's one dimension
    assert_true(caps.deviceAddress && caps.pushDescriptor && caps.subgroupSizeControl && caps.computeFullSubgroups);
    assert_int_equal(caps.storageAlignment, 16);
    machine.storageAlignment = 64;
    assert_int_equal(capsOf().storageAlignment, 64);
    machine.sizeStages = VK_SHADER_STAGE_FRAGMENT_BIT;
    assert_false(capsOf().subgroupSizeControl);
    machine = usual; // what is enabled and not there is not used
    machine.withheld = "vkCmdPushDescriptorSetKHR";
    assert_false(capsOf().pushDescriptor);
    v12.vulkanMemoryModelDeviceScope = VK_FALSE;
    message[0] = 0;
    assert_int_equal(capsOf().matrixCount, 0);
    assert_non_null(strstr(message, "vulkanMemoryModelDeviceScope"));
    v12.vulkanMemoryModelDeviceScope = VK_TRUE;
}

static void* VKAPI_CALL take(void* user, size_t size, size_t alignment, VkSystemAllocationScope scope) {
    (void)user, (void)size, (void)alignment, (void)scope;
    return NULL;
}
static void* VKAPI_CALL takeAgain(void* user, void* old, size_t size, size_t alignment, VkSystemAllocationScope scope) {
    (void)user, (void)old, (void)size, (void)alignment, (void)scope;
    return NULL;
}
static void VKAPI_CALL give(void* user, void* memory) { (void)user, (void)memory; }

static void contextsAreRefused(void** state) {
    (void)state;
    VkmqaContextCreateInfo info = contextInfo();
    VkmqaContext context;
    VkAllocationCallbacks allocator = {.pfnAllocation = take, .pfnReallocation = takeAgain, .pfnFree = give};
#define REJECTS(change, code, word)                                                                \
    change;                                                                                        \
    message[0] = 0;                                                                                \
    context = (VkmqaContext)&info;                                                                 \
    if (vkmqaCreateContext(&info, &context) != (code) || context || !strstr(message, word))        \
        fail_msg("%s: \"%s\"", #change, message);                                                  \
    info = contextInfo();                                                                          \
    machine = usual
    machine = usual;
    REJECTS(info.enabledExtensionCount = 4097, VK_ERROR_VALIDATION_FAILED_EXT, "over 4096");
    REJECTS(info.enabledExtensions = NULL, VK_ERROR_VALIDATION_FAILED_EXT, "enabledExtensions is null");
    REJECTS(info.apiVersion = VK_API_VERSION_1_0, INCOMPATIBLE, "info.apiVersion is 1.0");
    REJECTS(machine.version = VK_API_VERSION_1_0, INCOMPATIBLE, "the device's 1.0");
    REJECTS(machine.withheld = "vkGetPhysicalDeviceProperties2", INCOMPATIBLE, "no vkGetPhysicalDeviceProperties2");
    REJECTS(machine.withheld = "vkCmdDispatch", INCOMPATIBLE, "no vkCmdDispatch");
    info.allocator = &allocator;
    REJECTS(info.allocator = &allocator, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for the context");
    for (int missing = 0; missing < 3; missing++) {
        VkAllocationCallbacks part = allocator;
        if (missing == 0)
            part.pfnAllocation = NULL;
        else if (missing == 1)
            part.pfnReallocation = NULL;
        else
            part.pfnFree = NULL;
        REJECTS(info.allocator = &part, VK_ERROR_VALIDATION_FAILED_EXT, "allocator lacks a function");
    }
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(oldLoadersAreNamed),
        cmocka_unit_test(placesMayBeTooFew),
        cmocka_unit_test(devicesAreDescribed),
        cmocka_unit_test(queuesAreChosen),
        cmocka_unit_test(requirementsFollowVersionAndExtensions),
        cmocka_unit_test(matricesAreSifted),
        cmocka_unit_test(limitsAreRead),
        cmocka_unit_test(contextsAreRefused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

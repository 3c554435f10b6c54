// What is decided of a device before there is one: which a selector means, and what the host says that it has enabled.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "core/context.h"
#include "device/device.h"

static char message[2048];

static void hear(VkmqaSeverity severity, const char* text, void* userData) {
    (void)severity, (void)userData;
    snprintf(message, sizeof(message), "%s", text);
}

// ---- Selectors -------------------------------------------------------------------------------------

enum { OTHER, CPU, SMALL, LARGE, VIRTUAL, INTEGRATED, OLD, QUEUELESS, DEVICES };

static void fill(struct VkmqaPhysical physicals[DEVICES]) {
    static const struct {
        const char* name;
        VkPhysicalDeviceType type;
        uint64_t gigabytes;
        bool usable;
    } rows[DEVICES] = {
        [OTHER] = {"Something", VK_PHYSICAL_DEVICE_TYPE_OTHER, 64, true},
        [CPU] = {"Processor", VK_PHYSICAL_DEVICE_TYPE_CPU, 32, true},
        [SMALL] = {"Card 8 GB", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, 8, true},
        [LARGE] = {"Card 16 GB", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, 16, true},
        [VIRTUAL] = {"Guest", VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU, 16, true},
        [INTEGRATED] = {"Chip", VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU, 2, true},
        [OLD] = {"Old card", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, 48, false},
        [QUEUELESS] = {"Display card", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, 48, false},
    };
    memset(physicals, 0, sizeof(*physicals) * DEVICES);
    for (uint32_t i = 0; i < DEVICES; i++) {
        VkmqaDeviceProperties* properties = &physicals[i].properties;
        snprintf(properties->name, sizeof(properties->name), "%s", rows[i].name);
        properties->type = rows[i].type;
        properties->deviceMemory = rows[i].gigabytes << 30;
        properties->apiVersion = i == OLD ? VK_API_VERSION_1_0 : VK_API_VERSION_1_3;
        memset(properties->uuid, (int)(0xA0 + i), sizeof(properties->uuid));
        physicals[i].usable = rows[i].usable;
    }
}

static void selectorsChoose(void** state) {
    (void)state;
    struct VkmqaPhysical physicals[DEVICES];
    const struct VkmqaMessenger messenger = {.callback = hear};
    static const struct {
        const char* selector;
        int device; // or none
        VkResult result;
        const char* word; // of the message
    } rows[] = {
        {NULL, LARGE, VK_SUCCESS, NULL},
        {"", LARGE, VK_SUCCESS, NULL},
        {"auto", LARGE, VK_SUCCESS, NULL},
        {"type:cpu", CPU, VK_SUCCESS, NULL},
        {"type:CPU", CPU, VK_SUCCESS, NULL},
        {"type:discrete", LARGE, VK_SUCCESS, NULL},
        {"type:virtual", VIRTUAL, VK_SUCCESS, NULL},
        {"type:integrated", INTEGRATED, VK_SUCCESS, NULL},
        {"type:", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"type:cpus", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"name:card", SMALL, VK_SUCCESS, NULL}, // the first one
        {"name:16 gb", LARGE, VK_SUCCESS, NULL},
        {"name:", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"name:no such", -1, VK_ERROR_INITIALIZATION_FAILED, "Something (0, other), Processor (1, cpu)"},
        {"name:old", -1, VK_ERROR_INCOMPATIBLE_DRIVER, "Vulkan 1.0; vkmqa"},
        {"name:display", -1, VK_ERROR_INCOMPATIBLE_DRIVER, "no compute queue; vkmqa"},
        {"uuid:a1a1a1a1-A1A1-a1a1-a1a1-a1a1a1a1a1a1", CPU, VK_SUCCESS, NULL},
        {"uuid:a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", INTEGRATED, VK_SUCCESS, NULL},
        {"uuid:09090909090909090909090909090909", -1, VK_ERROR_INITIALIZATION_FAILED, "fits no device"},
        {"uuid:a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"uuid:a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"uuid:g5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"uuid:/", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"uuid:@", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"uuid::", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"0", OTHER, VK_SUCCESS, NULL},
        {"3", LARGE, VK_SUCCESS, NULL},
        {"6", -1, VK_ERROR_INCOMPATIBLE_DRIVER, "Old card"},
        {"8", -1, VK_ERROR_INITIALIZATION_FAILED, "fits no device"},
        {"4294967295", -1, VK_ERROR_INITIALIZATION_FAILED, "fits no device"},
        {"4294967296", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"1x", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
        {"-1", -1, VK_ERROR_VALIDATION_FAILED_EXT, "none of auto"},
    };
    fill(physicals);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct VkmqaPhysical* found = NULL;
        message[0] = 0;
        VkResult result = vkmqa_select_physical(&messenger, "call", rows[i].selector, physicals, DEVICES, &found);
        if (result != rows[i].result || (result ? found != NULL : found != &physicals[rows[i].device]))
            fail_msg("%s: VkResult %d, device %d", rows[i].selector, result, found ? (int)(found - physicals) : -1);
        if (rows[i].word && !strstr(message, rows[i].word))
            fail_msg("%s: \"%s\" does not speak of \"%s\"", rows[i].selector, message, rows[i].word);
    }
    // The kinds in their order, each best where the better ones are gone.
    static const int order[] = {LARGE, SMALL, INTEGRATED, VIRTUAL, CPU, OTHER, -1};
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        const struct VkmqaPhysical* found = NULL;
        VkResult result = vkmqa_select_physical(&messenger, "call", "auto", physicals, DEVICES, &found);
        assert_int_equal(result, order[i] < 0 ? VK_ERROR_INITIALIZATION_FAILED : VK_SUCCESS);
        if (order[i] < 0)
            break;
        assert_ptr_equal(found, &physicals[order[i]]);
        physicals[order[i]].usable = false;
    }
    assert_non_null(strstr(message, "Card 8 GB (2, discrete, unusable)"));
    const struct VkmqaPhysical* found = NULL;
    assert_int_equal(vkmqa_select_physical(&messenger, "call", "auto", NULL, 0, &found), VK_ERROR_INITIALIZATION_FAILED);
    assert_non_null(strstr(message, "has none"));
    // A list that is too long ends in a name.
    struct VkmqaPhysical many[40];
    memset(many, 0, sizeof(many));
    for (int i = 0; i < 40; i++)
        memset(many[i].properties.name, 'x', 60);
    assert_int_equal(vkmqa_select_physical(&messenger, "call", "40", many, 40, &found), VK_ERROR_INITIALIZATION_FAILED);
    assert_non_null(strstr(message, "xxx (0, other, unusable), xxx"));
}

static void resultsHaveNames(void** state) {
    (void)state;
    static const struct {
        VkResult result;
        const char* name;
    } rows[] = {
#define ROW(value) {value, #value}
        ROW(VK_SUCCESS), ROW(VK_NOT_READY), ROW(VK_TIMEOUT), ROW(VK_INCOMPLETE), ROW(VK_ERROR_OUT_OF_HOST_MEMORY),
        ROW(VK_ERROR_OUT_OF_DEVICE_MEMORY), ROW(VK_ERROR_INITIALIZATION_FAILED), ROW(VK_ERROR_DEVICE_LOST),
        ROW(VK_ERROR_MEMORY_MAP_FAILED), ROW(VK_ERROR_LAYER_NOT_PRESENT), ROW(VK_ERROR_EXTENSION_NOT_PRESENT),
        ROW(VK_ERROR_FEATURE_NOT_PRESENT), ROW(VK_ERROR_INCOMPATIBLE_DRIVER), ROW(VK_ERROR_TOO_MANY_OBJECTS),
        ROW(VK_ERROR_INVALID_EXTERNAL_HANDLE), ROW(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS),
        ROW(VK_ERROR_VALIDATION_FAILED_EXT), ROW(VK_ERROR_UNKNOWN),
        ROW(VK_ERROR_OUT_OF_POOL_MEMORY), ROW(VK_ERROR_FRAGMENTED_POOL), ROW(VK_ERROR_FRAGMENTATION), {(VkResult)-12345, "an undocumented error"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_string_equal(vkmqa_result_name(rows[i].result), rows[i].name);
}

// ---- What is enabled -------------------------------------------------------------------------------

// Every feature by the struct of its extension, or by that of a version of Vulkan.
typedef struct Chain {
    VkPhysicalDeviceFeatures2 features;
    VkPhysicalDeviceBufferDeviceAddressFeatures address;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features float16;
    VkPhysicalDeviceVulkanMemoryModelFeatures model;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices;
    VkPhysicalDeviceSubgroupSizeControlFeatures size;
    VkPhysicalDeviceVulkan11Features v11;
    VkPhysicalDeviceVulkan12Features v12;
    VkPhysicalDeviceVulkan13Features v13;
    VkPhysicalDeviceProtectedMemoryFeatures other; // nothing that concerns us
} Chain;

static void link_struct(Chain* chain, void* next, int type) { // a newer header's enumerator may not be of the enum
    VkBaseOutStructure* s = next;
    s->sType = (VkStructureType)type;
    s->pNext = chain->features.pNext;
    chain->features.pNext = s;
}

static void makeChain(Chain* chain, bool byVersion) {
    memset(chain, 0, sizeof(*chain));
    chain->features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    chain->features.features.shaderInt16 = VK_TRUE;
    chain->address.bufferDeviceAddress = chain->v12.bufferDeviceAddress = VK_TRUE;
    chain->storage16.storageBuffer16BitAccess = chain->v11.storageBuffer16BitAccess = VK_TRUE;
    chain->storage8.storageBuffer8BitAccess = chain->v12.storageBuffer8BitAccess = VK_TRUE;
    chain->float16.shaderFloat16 = chain->v12.shaderFloat16 = VK_TRUE;
    chain->float16.shaderInt8 = chain->v12.shaderInt8 = VK_TRUE;
    chain->model.vulkanMemoryModel = chain->v12.vulkanMemoryModel = VK_TRUE;
    chain->model.vulkanMemoryModelDeviceScope = chain->v12.vulkanMemoryModelDeviceScope = VK_TRUE;
    chain->size.subgroupSizeControl = chain->v13.subgroupSizeControl = VK_TRUE;
    chain->size.computeFullSubgroups = chain->v13.computeFullSubgroups = VK_TRUE;
    chain->matrices.cooperativeMatrix = VK_TRUE;
#define LINK(member, name) link_struct(chain, &chain->member, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##name)
    if (byVersion) {
        LINK(v11, VULKAN_1_1_FEATURES);
        LINK(v12, VULKAN_1_2_FEATURES);
        LINK(v13, VULKAN_1_3_FEATURES);
    } else {
        LINK(address, BUFFER_DEVICE_ADDRESS_FEATURES);
        LINK(storage16, 16BIT_STORAGE_FEATURES);
        LINK(storage8, 8BIT_STORAGE_FEATURES);
        LINK(float16, SHADER_FLOAT16_INT8_FEATURES);
        LINK(model, VULKAN_MEMORY_MODEL_FEATURES);
        LINK(size, SUBGROUP_SIZE_CONTROL_FEATURES);
    }
    link_struct(chain, &chain->matrices, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
    LINK(other, PROTECTED_MEMORY_FEATURES);
}

static const char* const extensions[] = {
    VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
    VK_KHR_8BIT_STORAGE_EXTENSION_NAME,          VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME,
    VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME,   VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME,
    VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME,
};
enum { EXTENSIONS = sizeof(extensions) / sizeof(extensions[0]) };

static void checkEnabled(const struct VkmqaEnabled* got, bool v12, bool v13, bool listed) {
    assert_int_equal(got->deviceAddress, v12 || listed);
    assert_int_equal(got->float16, v12 || listed);
    assert_int_equal(got->storage16, true);
    assert_int_equal(got->narrowIntegers, v12 || listed);
    assert_int_equal(got->subgroupSizeControl, v13 || listed);
    assert_int_equal(got->computeFullSubgroups, v13 || listed);
    assert_int_equal(got->matrices, listed);
    assert_int_equal(got->pushDescriptor, listed);
    assert_int_equal(got->scopeless, false);
}

static void enabledIsWhatIsKnown(void** state) {
    (void)state;
    static const uint32_t versions[] = {VK_API_VERSION_1_1, VK_API_VERSION_1_2, VK_API_VERSION_1_3};
    Chain chain;
    struct VkmqaEnabled enabled;
    for (int byVersion = 0; byVersion < 2; byVersion++) {
        for (uint32_t v = 0; v < 3; v++) {
            makeChain(&chain, byVersion);
            for (int listed = 0; listed < 2; listed++) {
                uint32_t count = listed ? EXTENSIONS : 0;
                vkmqa_read_enabled(versions[v], count, extensions, &chain.features, &enabled);
                checkEnabled(&enabled, v >= 1, v >= 2, listed);
                assert_int_equal(vkmqa_enables_addresses(versions[v], count, extensions, &chain.features), v >= 1 || listed);
            }
        }
        // One feature away, and what hangs on it: each is false of its own.
        struct {
            VkBool32 *extension, *version;
        } rows[] = {{&chain.address.bufferDeviceAddress, &chain.v12.bufferDeviceAddress},
                    {&chain.storage16.storageBuffer16BitAccess, &chain.v11.storageBuffer16BitAccess},
                    {&chain.storage8.storageBuffer8BitAccess, &chain.v12.storageBuffer8BitAccess},
                    {&chain.float16.shaderFloat16, &chain.v12.shaderFloat16},
                    {&chain.float16.shaderInt8, &chain.v12.shaderInt8},
                    {&chain.model.vulkanMemoryModel, &chain.v12.vulkanMemoryModel},
                    {&chain.model.vulkanMemoryModelDeviceScope, &chain.v12.vulkanMemoryModelDeviceScope},
                    {&chain.size.subgroupSizeControl, &chain.v13.subgroupSizeControl},
                    {&chain.size.computeFullSubgroups, &chain.v13.computeFullSubgroups},
                    {&chain.matrices.cooperativeMatrix, &chain.matrices.cooperativeMatrix},
                    {&chain.features.features.shaderInt16, &chain.features.features.shaderInt16}};
        for (uint32_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            makeChain(&chain, byVersion);
            *(byVersion ? rows[i].version : rows[i].extension) = VK_FALSE;
            vkmqa_read_enabled(VK_API_VERSION_1_3, EXTENSIONS, extensions, &chain.features, &enabled);
            assert_int_equal(enabled.deviceAddress, i != 0);
            assert_int_equal(enabled.storage16, i != 1);
            assert_int_equal(enabled.narrowIntegers, i != 2 && i != 4 && i != 10);
            assert_int_equal(enabled.float16, i != 3);
            assert_int_equal(enabled.matrices, i != 5 && i != 6 && i != 9);
            assert_int_equal(enabled.scopeless, i == 6);
            assert_int_equal(enabled.subgroupSizeControl, i != 7);
            assert_int_equal(enabled.computeFullSubgroups, i != 8);
            assert_int_equal(vkmqa_enables_addresses(VK_API_VERSION_1_3, EXTENSIONS, extensions, &chain.features), i != 0);
        }
    }
    // Nothing told, nothing enabled.
    vkmqa_read_enabled(VK_API_VERSION_1_3, EXTENSIONS, extensions, NULL, &enabled);
    assert_true(enabled.pushDescriptor);
    enabled.pushDescriptor = false;
    assert_memory_equal(&enabled, &(struct VkmqaEnabled){0}, sizeof(enabled));
    assert_false(vkmqa_enables_addresses(VK_API_VERSION_1_3, EXTENSIONS, extensions, NULL));
}

// ---- Functions of a driver -------------------------------------------------------------------------

static const char* withheld; // the name of a function that is not there
static int loaded;
static const char* loadedNames[256];

static VKAPI_ATTR void VKAPI_CALL nothing(void) {}
static PFN_vkVoidFunction lookUp(const char* name) {
    loadedNames[loaded++ % 256] = name;
    return withheld && strcmp(name, withheld) == 0 ? NULL : nothing;
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL ofDevice(VkDevice device, const char* name) {
    (void)device;
    return lookUp(name);
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL ofInstance(VkInstance instance, const char* name) {
    (void)instance;
    PFN_vkVoidFunction found = lookUp(name);
    return found && strcmp(name, "vkGetDeviceProcAddr") == 0 ? (PFN_vkVoidFunction)ofDevice : found;
}
static VkResult load(struct VkmqaVk* vk, const char** missing) {
    loaded = 0;
    VkResult result = vkmqa_load_instance(vk, NULL, ofInstance, missing);
    return result ? result : vkmqa_load_device(vk, NULL, missing);
}

// Each function in turn is withheld: one that is needed is named, one that is not is left out.
static void missingFunctionsAreNamed(void** state) {
    (void)state;
    static const char* names[256];
    struct VkmqaVk vk;
    const char* missing = NULL;
    withheld = NULL;
    assert_int_equal(load(&vk, &missing), VK_SUCCESS);
    assert_null(missing);
    int count = loaded, needed = 0;
    assert_in_range(count, 60, 255);
    memcpy(names, loadedNames, sizeof(names));
    for (int i = 0; i < count; i++) {
        withheld = names[i];
        missing = NULL;
        VkResult result = load(&vk, &missing);
        if (result == VK_SUCCESS) {
            assert_null(missing);
            continue;
        }
        needed++;
        assert_int_equal(result, VK_ERROR_INCOMPATIBLE_DRIVER);
        assert_string_equal(missing, withheld);
        assert_int_equal(load(&vk, NULL), VK_ERROR_INCOMPATIBLE_DRIVER); // and nobody need ask for the name
    }
    assert_in_range(needed, 50, count - 1);
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(selectorsChoose),
        cmocka_unit_test(resultsHaveNames),
        cmocka_unit_test(enabledIsWhatIsKnown),
        cmocka_unit_test(missingFunctionsAreNamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// The layer's place in the loader's chain, see layer.h.
#include "layer.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include <vulkan/vk_layer.h>

#define EXPORT __attribute__((visibility("default")))

static const LayerModule* const modules[] = {&layerLose};

static const LayerModule* active; // null: pass
static PFN_vkGetInstanceProcAddr nextInstanceProcAddr;
static PFN_vkGetDeviceProcAddr nextDeviceProcAddr;
static VkInstance currentInstance;
static VkDevice currentDevice;

PFN_vkVoidFunction layerNextInstance(const char* name) { return nextInstanceProcAddr(currentInstance, name); }
PFN_vkVoidFunction layerNext(const char* name) { return nextDeviceProcAddr(currentDevice, name); }

// A test whose way is misspelt would prove nothing.
static void start(void) {
    const char* way = getenv("VKMQA_LAYER");
    size_t length = way ? strcspn(way, ":") : 0;
    active = NULL;
    if (!way || strcmp(way, "pass") == 0)
        return;
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++)
        if (strlen(modules[i]->name) == length && strncmp(way, modules[i]->name, length) == 0)
            active = modules[i];
    if (!active || !active->start(way[length] ? way + length + 1 : "")) {
        fprintf(stderr, "VKMQA_LAYER: no way '%s'\n", way);
        abort();
    }
}

// The link of this layer in the chain; the next one becomes that of the layer below.
static const VkLayerInstanceLink* takeInstanceLink(const VkInstanceCreateInfo* info) {
    VkLayerInstanceCreateInfo* link = (VkLayerInstanceCreateInfo*)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO)
        link = (VkLayerInstanceCreateInfo*)link->pNext;
    const VkLayerInstanceLink* ours = link->u.pLayerInfo;
    link->u.pLayerInfo = ours->pNext;
    return ours;
}

static const VkLayerDeviceLink* takeDeviceLink(const VkDeviceCreateInfo* info) {
    VkLayerDeviceCreateInfo* link = (VkLayerDeviceCreateInfo*)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO)
        link = (VkLayerDeviceCreateInfo*)link->pNext;
    const VkLayerDeviceLink* ours = link->u.pLayerInfo;
    link->u.pLayerInfo = ours->pNext;
    return ours;
}

static VKAPI_ATTR VkResult VKAPI_CALL createInstance(const VkInstanceCreateInfo* info,
                                                     const VkAllocationCallbacks* allocator, VkInstance* instance) {
    start();
    nextInstanceProcAddr = takeInstanceLink(info)->pfnNextGetInstanceProcAddr;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)nextInstanceProcAddr(VK_NULL_HANDLE, "vkCreateInstance");
    VkResult result = create(info, allocator, instance);
    if (result == VK_SUCCESS)
        currentInstance = *instance;
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL createDevice(VkPhysicalDevice physicalDevice, const VkDeviceCreateInfo* info,
                                                   const VkAllocationCallbacks* allocator, VkDevice* device) {
    const VkLayerDeviceLink* link = takeDeviceLink(info);
    nextDeviceProcAddr = link->pfnNextGetDeviceProcAddr;
    PFN_vkCreateDevice create =
        (PFN_vkCreateDevice)link->pfnNextGetInstanceProcAddr(currentInstance, "vkCreateDevice");
    if (active && active->deviceInfo)
        info = active->deviceInfo(physicalDevice, info);
    VkResult result = create(physicalDevice, info, allocator, device);
    if (result == VK_SUCCESS)
        currentDevice = *device;
    return result;
}

static PFN_vkVoidFunction intercepted(const char* name) {
    for (size_t i = 0; active && i < active->entryCount; i++)
        if (strcmp(name, active->entries[i].name) == 0)
            return active->entries[i].function;
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL getDeviceProcAddr(VkDevice device, const char* name) {
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)getDeviceProcAddr;
    PFN_vkVoidFunction below = nextDeviceProcAddr(device, name);
    PFN_vkVoidFunction ours = intercepted(name);
    return below && ours ? ours : below;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL getInstanceProcAddr(VkInstance instance, const char* name) {
    static const LayerEntry own[] = {
        LAYER_ENTRY(vkGetDeviceProcAddr, getDeviceProcAddr),
        LAYER_ENTRY(vkCreateInstance, createInstance),
        LAYER_ENTRY(vkCreateDevice, createDevice),
    };
    if (strcmp(name, "vkGetInstanceProcAddr") == 0)
        return (PFN_vkVoidFunction)getInstanceProcAddr;
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
        if (strcmp(name, own[i].name) == 0)
            return own[i].function;
    PFN_vkVoidFunction below = nextInstanceProcAddr(instance, name);
    PFN_vkVoidFunction ours = intercepted(name);
    return below && ours ? ours : below;
}

EXPORT VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface* interface) {
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = getInstanceProcAddr;
    interface->pfnGetDeviceProcAddr = getDeviceProcAddr;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}

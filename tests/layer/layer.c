// The layer's place in the loader's chain, see layer.h.
#include "layer.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include <vulkan/vk_layer.h>

#define EXPORT __attribute__((visibility("default")))

#ifndef LAYER_VARIABLE
#define LAYER_VARIABLE "VKMQA_LAYER"
#endif

static const LayerModule* const modules[] = {&layerClamp, &layerFail, &layerGuard, &layerLose};

static const LayerModule* active; // null: pass
static PFN_vkGetInstanceProcAddr nextInstanceProcAddr;
static PFN_vkGetDeviceProcAddr nextDeviceProcAddr;
static PFN_vkDestroyInstance nextDestroyInstance; // asked for later, older loaders answer with this layer's own

// Instances or devices alive, the last one created at the end. Calls are looked up through that one, and serve all.
typedef struct Alive {
    void* handles[512];
    size_t count;
} Alive;
static Alive instances, devices;

static void* newest(const Alive* alive) { return alive->count ? alive->handles[alive->count - 1] : NULL; }

static void add(Alive* alive, void* handle) {
    if (alive->count == sizeof(alive->handles) / sizeof(alive->handles[0]))
        abort();
    alive->handles[alive->count++] = handle;
}

static void removeFrom(Alive* alive, const void* handle) {
    size_t i = 0;
    while (i < alive->count && alive->handles[i] != handle)
        i++;
    if (i < alive->count)
        memmove(alive->handles + i, alive->handles + i + 1, (--alive->count - i) * sizeof(void*));
}

PFN_vkVoidFunction layerNextInstance(const char* name) { return nextInstanceProcAddr(newest(&instances), name); }
PFN_vkVoidFunction layerNext(const char* name) { return nextDeviceProcAddr(newest(&devices), name); }

// A test whose way is misspelt would prove nothing.
static void start(void) {
    const char* way = getenv(LAYER_VARIABLE);
    size_t length = way ? strcspn(way, ":") : 0;
    active = NULL;
    if (!way || strcmp(way, "pass") == 0)
        return;
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++)
        if (strlen(modules[i]->name) == length && strncmp(way, modules[i]->name, length) == 0)
            active = modules[i];
    if (!active || !active->start(way[length] ? way + length + 1 : "")) {
        fprintf(stderr, LAYER_VARIABLE ": no way '%s'\n", way);
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
    VkResult result = active && active->refuse ? active->refuse("vkCreateInstance") : VK_SUCCESS;
    if (result == VK_SUCCESS)
        result = create(info, allocator, instance);
    if (result == VK_SUCCESS) {
        add(&instances, *instance);
        nextDestroyInstance = (PFN_vkDestroyInstance)nextInstanceProcAddr(*instance, "vkDestroyInstance");
        if (active && active->made)
            active->made(true, 1);
    }
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL createDevice(VkPhysicalDevice physicalDevice, const VkDeviceCreateInfo* info,
                                                   const VkAllocationCallbacks* allocator, VkDevice* device) {
    const VkLayerDeviceLink* link = takeDeviceLink(info);
    nextDeviceProcAddr = link->pfnNextGetDeviceProcAddr;
    PFN_vkCreateDevice create =
        (PFN_vkCreateDevice)link->pfnNextGetInstanceProcAddr(newest(&instances), "vkCreateDevice");
    if (active && active->deviceInfo)
        info = active->deviceInfo(physicalDevice, info);
    VkResult result = active && active->refuse ? active->refuse("vkCreateDevice") : VK_SUCCESS;
    if (result == VK_SUCCESS)
        result = create(physicalDevice, info, allocator, device);
    if (result == VK_SUCCESS) {
        add(&devices, *device);
        if (active && active->made)
            active->made(false, 1);
    }
    return result;
}

static VKAPI_ATTR void VKAPI_CALL destroyInstance(VkInstance instance, const VkAllocationCallbacks* allocator) {
    if (instance && active && active->made)
        active->made(true, -1);
    removeFrom(&instances, instance);
    nextDestroyInstance(instance, allocator);
}

static VKAPI_ATTR void VKAPI_CALL destroyDevice(VkDevice device, const VkAllocationCallbacks* allocator) {
    if (device && active && active->made)
        active->made(false, -1);
    PFN_vkDestroyDevice destroy = (PFN_vkDestroyDevice)nextDeviceProcAddr(device, "vkDestroyDevice");
    removeFrom(&devices, device);
    destroy(device, allocator);
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
    if (strcmp(name, "vkDestroyDevice") == 0)
        return (PFN_vkVoidFunction)destroyDevice;
    PFN_vkVoidFunction below = nextDeviceProcAddr(device, name);
    PFN_vkVoidFunction ours = intercepted(name);
    return below && ours ? ours : below;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL getInstanceProcAddr(VkInstance instance, const char* name) {
    static const LayerEntry own[] = {
        LAYER_ENTRY(vkGetDeviceProcAddr, getDeviceProcAddr),
        LAYER_ENTRY(vkCreateInstance, createInstance),
        LAYER_ENTRY(vkCreateDevice, createDevice),
        LAYER_ENTRY(vkDestroyInstance, destroyInstance),
        LAYER_ENTRY(vkDestroyDevice, destroyDevice),
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

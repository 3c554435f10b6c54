// A Vulkan layer of the tests' own, VK_LAYER_VKMQA_test, that stands between the library and a driver and makes the
// driver a bad one. VKMQA_LAYER in the environment, read when an instance is created, says how:
//   pass            everything is passed on
//   lose:WHAT       work is lost silently (lose.c)
//   fail[:WHAT]     calls fail (fail.h)
//   clamp:PROFILE   the device is a small one (clamp.c)
//   guard[:front]   memory lies against memory that nobody may touch (guard.c)
// Built once more as VK_LAYER_VKMQA_below it reads VKMQA_LAYER_BELOW: two ways at once, one above the other.
// Each way is a module: a start, which reads what follows the colon, and a table of entry points that it takes over.
// Instances and devices may be many, but of one driver.
#ifndef LAYER_H
#define LAYER_H

#include <stdbool.h>
#include <stddef.h>

#include <vulkan/vulkan.h>

typedef struct LayerEntry {
    const char* name; // "vkCreateBuffer"
    PFN_vkVoidFunction function;
} LayerEntry;

typedef struct LayerModule {
    const char* name;
    bool (*start)(const char* how); // false: no such way
    const LayerEntry* entries;
    size_t entryCount;
    // Takes part in the making of a device: may replace its info, before anything is called. Or null.
    const VkDeviceCreateInfo* (*deviceInfo)(VkPhysicalDevice, const VkDeviceCreateInfo* info);
    // What vkCreateInstance or vkCreateDevice, the entry, returns instead of being called; VK_SUCCESS: it is. Or null.
    VkResult (*refuse)(const char* entry);
    void (*made)(bool instance, long by); // an instance or a device was made (1), destroyed (-1). Or null.
} LayerModule;

extern const LayerModule layerClamp, layerFail, layerGuard, layerLose;

// What lies below, of the driver: entry points of the instance created last and of the last device that is alive.
PFN_vkVoidFunction layerNextInstance(const char* name);
PFN_vkVoidFunction layerNext(const char* name);

// LAYER_NEXT(vkCmdDispatch)(commandBuffer, x, y, z)
#define LAYER_NEXT(name) ((PFN_##name)layerNext(#name))
#define LAYER_NEXT_INSTANCE(name) ((PFN_##name)layerNextInstance(#name))
#define LAYER_ENTRY(name, function) {#name, (PFN_vkVoidFunction)(function)}

#endif

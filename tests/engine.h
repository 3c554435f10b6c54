// A program with a Vulkan device of its own, as an engine has one: it hands out a vkGetInstanceProcAddr that it has
// put itself in front of (Unity does), counts what goes through, and owns allocator, queue and lock.
#ifndef ENGINE_H
#define ENGINE_H

#include <vkmqa/vkmqa_runtime.h>

#include <stdbool.h>

typedef struct Engine {
    VkInstance instance;
    VkPhysicalDevice physicalDevice;
    VkDevice device;
    VkQueue queue, transferQueue; // transferQueue: of a family for copies alone, or null
    uint32_t family, transferFamily, apiVersion;
    bool timestamps; // the family has them
    PFN_vkGetInstanceProcAddr getInstanceProcAddr; // the engine's
    VkmqaDeviceRequirements requirements;          // what the device was created with
    VkAllocationCallbacks allocator;               // counts
    // What went through, since engineOpen or since somebody set it to 0.
    unsigned dispatches, submits, waits; // dispatches: of attention; waits: for a whole queue
    uint64_t workgroups;                 // of all dispatches
    unsigned sizedPipelines;             // with a subgroup size that they ask for
    VkMemoryBarrier barrier;             // of the last vkCmdPipelineBarrier
    VkPipelineStageFlags barrierTo;
    // Promises broken: queue used without the lock, objects made or destroyed without the allocator.
    unsigned unlocked, unallocated;
    bool locked;
    long live; // allocations of the allocator not freed
    char lastUnallocated[64];
} Engine;

// One engine at a time. uuid: VkmqaDeviceProperties::uuid of the device; featureless: an engine that enables nothing.
void engineOpen(Engine* engine, const uint8_t uuid[16], bool featureless);
void engineClose(Engine* engine);
// For vkmqaCreateContext; messages go to harness.message.
VkmqaContextCreateInfo engineContextInfo(const Engine* engine);
// For vkmqaImportDevice, with the engine's lock; *context is filled and must stay.
VkmqaDeviceImportInfo engineImportInfo(Engine* engine, VkmqaContextCreateInfo* context);

#endif

// A driver of a smaller device than it is (VKMQA_LAYER=clamp:PROFILE, see clamp.c). What the profile takes away is
// not shown to who asks, refused to who enables it, and ends the program of who uses it all the same.
//   clamp.c          the profiles, what is shown of them, and which device may be made
//   clamp_memory.c   heaps and types of memory
//   clamp_queues.c   families of queues
//   clamp_use.c      what is handed to the device: shaders (clamp_spirv.c reads them), descriptors, layouts
#ifndef LAYER_CLAMP_H
#define LAYER_CLAMP_H

#include "layer.h"

// Zero: as the driver has it.
typedef struct ClampProfile {
    const char* name;
    bool plain; // Vulkan 1.1 with its minimal limits: no extensions, no features, basic subgroup operations
    uint32_t storageBuffers;       // maxPerStageDescriptorStorageBuffers
    VkDeviceSize alignment;        // minStorageBufferOffsetAlignment, nonCoherentAtomSize
    bool incoherent;               // four types of memory, of which one is visible and coherent, two only visible
    bool timestampless;
    VkDeviceSize heapBytes;        // of memory of the device's own
    uint32_t width;                // maxComputeWorkGroupSize[0], below maxComputeWorkGroupInvocations
    bool card;                     // another heap for the host's memory, three families of queues
} ClampProfile;

extern const ClampProfile* clampProfile;   // the active one
extern VkPhysicalDeviceLimits clampLimits; // of the device made last

// Says what the program did that the device cannot, and ends it.
__attribute__((noreturn, format(printf, 1, 2))) void clampBroken(const char* format, ...);

// clamp_memory.c
VKAPI_ATTR void VKAPI_CALL clampMemoryProperties(VkPhysicalDevice, VkPhysicalDeviceMemoryProperties*);
VKAPI_ATTR void VKAPI_CALL clampMemoryProperties2(VkPhysicalDevice, VkPhysicalDeviceMemoryProperties2*);
VKAPI_ATTR void VKAPI_CALL clampBufferRequirements(VkDevice, VkBuffer, VkMemoryRequirements*);
VKAPI_ATTR void VKAPI_CALL clampBufferRequirements2(VkDevice, const VkBufferMemoryRequirementsInfo2*,
                                                    VkMemoryRequirements2*);
VKAPI_ATTR VkResult VKAPI_CALL clampAllocate(VkDevice, const VkMemoryAllocateInfo*, const VkAllocationCallbacks*,
                                             VkDeviceMemory*);
VKAPI_ATTR void VKAPI_CALL clampFree(VkDevice, VkDeviceMemory, const VkAllocationCallbacks*);
VKAPI_ATTR VkResult VKAPI_CALL clampMap(VkDevice, VkDeviceMemory, VkDeviceSize offset, VkDeviceSize size,
                                        VkMemoryMapFlags, void** data);
VKAPI_ATTR void VKAPI_CALL clampUnmap(VkDevice, VkDeviceMemory);
VKAPI_ATTR VkResult VKAPI_CALL clampFlush(VkDevice, uint32_t count, const VkMappedMemoryRange*);
VKAPI_ATTR VkResult VKAPI_CALL clampInvalidate(VkDevice, uint32_t count, const VkMappedMemoryRange*);

// clamp_use.c
VKAPI_ATTR VkResult VKAPI_CALL clampShader(VkDevice, const VkShaderModuleCreateInfo*, const VkAllocationCallbacks*,
                                           VkShaderModule*);
VKAPI_ATTR void VKAPI_CALL clampDestroyShader(VkDevice, VkShaderModule, const VkAllocationCallbacks*);
VKAPI_ATTR VkResult VKAPI_CALL clampPipelines(VkDevice, VkPipelineCache, uint32_t count,
                                              const VkComputePipelineCreateInfo*, const VkAllocationCallbacks*,
                                              VkPipeline*);
VKAPI_ATTR VkResult VKAPI_CALL clampSetLayout(VkDevice, const VkDescriptorSetLayoutCreateInfo*,
                                              const VkAllocationCallbacks*, VkDescriptorSetLayout*);
VKAPI_ATTR VkResult VKAPI_CALL clampPipelineLayout(VkDevice, const VkPipelineLayoutCreateInfo*,
                                                   const VkAllocationCallbacks*, VkPipelineLayout*);
VKAPI_ATTR void VKAPI_CALL clampDescriptors(VkDevice, uint32_t writeCount, const VkWriteDescriptorSet*,
                                            uint32_t copyCount, const VkCopyDescriptorSet*);
VKAPI_ATTR void VKAPI_CALL clampPushDescriptors(VkCommandBuffer, VkPipelineBindPoint, VkPipelineLayout, uint32_t set,
                                                uint32_t count, const VkWriteDescriptorSet*);

// clamp_queues.c
const VkDeviceCreateInfo* clampQueueInfos(const VkDeviceCreateInfo*); // as the driver is to see it
VKAPI_ATTR void VKAPI_CALL clampFamilies(VkPhysicalDevice, uint32_t* count, VkQueueFamilyProperties*);
VKAPI_ATTR void VKAPI_CALL clampFamilies2(VkPhysicalDevice, uint32_t* count, VkQueueFamilyProperties2*);
VKAPI_ATTR void VKAPI_CALL clampGetQueue(VkDevice, uint32_t family, uint32_t index, VkQueue*);
VKAPI_ATTR VkResult VKAPI_CALL clampSubmit(VkQueue, uint32_t count, const VkSubmitInfo*, VkFence);
VKAPI_ATTR VkResult VKAPI_CALL clampWaitIdle(VkQueue);
VKAPI_ATTR VkResult VKAPI_CALL clampCreatePool(VkDevice, const VkCommandPoolCreateInfo*, const VkAllocationCallbacks*,
                                               VkCommandPool*);
VKAPI_ATTR VkResult VKAPI_CALL clampCommandBuffers(VkDevice, const VkCommandBufferAllocateInfo*, VkCommandBuffer*);
VKAPI_ATTR VkResult VKAPI_CALL clampCreateBuffer(VkDevice, const VkBufferCreateInfo*, const VkAllocationCallbacks*,
                                                 VkBuffer*);
VKAPI_ATTR void VKAPI_CALL clampCopy(VkCommandBuffer, VkBuffer from, VkBuffer to, uint32_t count, const VkBufferCopy*);
VKAPI_ATTR void VKAPI_CALL clampBindPipeline(VkCommandBuffer, VkPipelineBindPoint, VkPipeline);
VKAPI_ATTR VkResult VKAPI_CALL clampQueryResults(VkDevice, VkQueryPool, uint32_t first, uint32_t count, size_t size,
                                                 void* data, VkDeviceSize stride, VkQueryResultFlags);
VKAPI_ATTR void VKAPI_CALL clampTimestamp(VkCommandBuffer, VkPipelineStageFlagBits, VkQueryPool, uint32_t query);

#endif

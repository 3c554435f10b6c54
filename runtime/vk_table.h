// The Vulkan entry points that vkmqa calls, loaded into a table of one device.
// SPDX-License-Identifier: MIT
//
// Loaders such as volk keep vkGetInstanceProcAddr and vkGetDeviceProcAddr in globals, also those
// that fill a table; a library that imports somebody else's device must leave such globals alone,
// and two copies in one process would overwrite each other's. A list of what is used is shorter.
//
// To call one more function, add a line to a list below.
#ifndef VKMQA_VK_TABLE_H
#define VKMQA_VK_TABLE_H

#include <vulkan/vulkan_core.h>

#include "vk_coopmat.h"

// X(Name) declares and loads vkName. All of Vulkan 1.1 and always there.
#define VKMQA_VK_INSTANCE_FUNCTIONS(X)                                                             \
    X(EnumeratePhysicalDevices)                                                                    \
    X(EnumerateDeviceExtensionProperties)                                                          \
    X(GetPhysicalDeviceProperties)                                                                 \
    X(GetPhysicalDeviceProperties2)                                                                \
    X(GetPhysicalDeviceFeatures2)                                                                  \
    X(GetPhysicalDeviceQueueFamilyProperties)                                                      \
    X(GetPhysicalDeviceMemoryProperties)                                                           \
    X(GetPhysicalDeviceMemoryProperties2)                                                          \
    X(CreateDevice)                                                                                \
    X(GetDeviceProcAddr)

// X(Name): Vulkan 1.1, always there.
#define VKMQA_VK_DEVICE_FUNCTIONS(X)                                                               \
    X(DestroyDevice)                                                                               \
    X(GetDeviceQueue)                                                                              \
    X(QueueSubmit)                                                                                 \
    X(QueueWaitIdle)                                                                               \
    X(CreateFence)                                                                                 \
    X(DestroyFence)                                                                                \
    X(CreateSemaphore)                                                                             \
    X(DestroySemaphore)                                                                            \
    X(ResetFences)                                                                                 \
    X(WaitForFences)                                                                               \
    X(AllocateMemory)                                                                              \
    X(FreeMemory)                                                                                  \
    X(MapMemory)                                                                                   \
    X(CreateBuffer)                                                                                \
    X(DestroyBuffer)                                                                               \
    X(GetBufferMemoryRequirements)                                                                 \
    X(BindBufferMemory)                                                                            \
    X(CreateQueryPool)                                                                             \
    X(DestroyQueryPool)                                                                            \
    X(GetQueryPoolResults)                                                                         \
    X(CreateShaderModule)                                                                          \
    X(DestroyShaderModule)                                                                         \
    X(CreatePipelineCache)                                                                         \
    X(DestroyPipelineCache)                                                                        \
    X(CreatePipelineLayout)                                                                        \
    X(DestroyPipelineLayout)                                                                       \
    X(CreateComputePipelines)                                                                      \
    X(DestroyPipeline)                                                                             \
    X(CreateDescriptorSetLayout)                                                                   \
    X(DestroyDescriptorSetLayout)                                                                  \
    X(CreateDescriptorPool)                                                                        \
    X(DestroyDescriptorPool)                                                                       \
    X(ResetDescriptorPool)                                                                         \
    X(AllocateDescriptorSets)                                                                      \
    X(UpdateDescriptorSets)                                                                        \
    X(CreateCommandPool)                                                                           \
    X(DestroyCommandPool)                                                                          \
    X(ResetCommandPool)                                                                            \
    X(AllocateCommandBuffers)                                                                      \
    X(BeginCommandBuffer)                                                                          \
    X(EndCommandBuffer)                                                                            \
    X(CmdBindPipeline)                                                                             \
    X(CmdBindDescriptorSets)                                                                       \
    X(CmdPushConstants)                                                                            \
    X(CmdDispatchBase)                                                                             \
    X(CmdDispatch)                                                                                 \
    X(CmdPipelineBarrier)                                                                          \
    X(CmdCopyBuffer)                                                                               \
    X(CmdFillBuffer)                                                                               \
    X(CmdUpdateBuffer)                                                                             \
    X(CmdResetQueryPool)                                                                           \
    X(CmdWriteTimestamp)

// X(Name): of the instance; null where nothing offers it.
#define VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(X) X(GetPhysicalDeviceCooperativeMatrixPropertiesKHR)

// X(Name, Alias): loaded as vkName, else as vkAlias of the same signature; null where the device
// has neither. Drivers and layers may return pointers for functions whose extension or feature is
// off, so the enabled features decide whether to call, never the pointer alone.
#define VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(X)                                                      \
    X(GetBufferDeviceAddress, GetBufferDeviceAddressKHR)                                           \
    X(CmdPushDescriptorSetKHR, CmdPushDescriptorSetKHR)

#define VKMQA_VK_MEMBER(name) PFN_vk##name name;
#define VKMQA_VK_OPTIONAL_MEMBER(name, alias) PFN_vk##name name;
struct VkmqaVk {
    PFN_vkGetInstanceProcAddr GetInstanceProcAddr;
    VKMQA_VK_INSTANCE_FUNCTIONS(VKMQA_VK_MEMBER)
    VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(VKMQA_VK_MEMBER)
    VKMQA_VK_DEVICE_FUNCTIONS(VKMQA_VK_MEMBER)
    VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(VKMQA_VK_OPTIONAL_MEMBER)
};
#undef VKMQA_VK_MEMBER
#undef VKMQA_VK_OPTIONAL_MEMBER

// Clears the table and loads the instance functions. VK_ERROR_INCOMPATIBLE_DRIVER where one is
// missing, as on a Vulkan 1.0 instance; *missing (may be null) then names it.
VkResult vkmqa_load_instance(struct VkmqaVk* vk, VkInstance instance,
                             PFN_vkGetInstanceProcAddr getInstanceProcAddr, const char** missing);

// Loads the device functions; vkmqa_load_instance comes first. Errors as above.
VkResult vkmqa_load_device(struct VkmqaVk* vk, VkDevice device, const char** missing);

#endif

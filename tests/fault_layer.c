// A Vulkan layer that makes a driver lose work, to prove that the tests notice. VKMQA_FAULT in the
// environment, read when a device is created:
//   dispatch  no dispatch is ever recorded
//   second    of the dispatches of a command buffer, every second one is dropped
//   submit    nothing that is submitted is executed; fences are still signalled
// Anything else: the layer passes everything on. One instance and device at a time.
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))

static PFN_vkGetInstanceProcAddr nextInstanceProcAddr;
static PFN_vkGetDeviceProcAddr nextDeviceProcAddr;
static VkDevice currentDevice;
static uint32_t dispatches;
static enum { FAULT_NONE, FAULT_DISPATCH, FAULT_SECOND, FAULT_SUBMIT } fault;

static PFN_vkVoidFunction next(const char* name) { return nextDeviceProcAddr(currentDevice, name); }

static VKAPI_ATTR VkResult VKAPI_CALL createInstance(const VkInstanceCreateInfo* info,
                                                     const VkAllocationCallbacks* allocator,
                                                     VkInstance* instance) {
    VkLayerInstanceCreateInfo* link = (VkLayerInstanceCreateInfo*)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO ||
           link->function != VK_LAYER_LINK_INFO)
        link = (VkLayerInstanceCreateInfo*)link->pNext;
    nextInstanceProcAddr = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    PFN_vkCreateInstance create =
        (PFN_vkCreateInstance)nextInstanceProcAddr(VK_NULL_HANDLE, "vkCreateInstance");
    return create(info, allocator, instance);
}

static VKAPI_ATTR VkResult VKAPI_CALL createDevice(VkPhysicalDevice physicalDevice,
                                                   const VkDeviceCreateInfo* info,
                                                   const VkAllocationCallbacks* allocator,
                                                   VkDevice* device) {
    VkLayerDeviceCreateInfo* link = (VkLayerDeviceCreateInfo*)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO ||
           link->function != VK_LAYER_LINK_INFO)
        link = (VkLayerDeviceCreateInfo*)link->pNext;
    PFN_vkGetInstanceProcAddr instanceProcAddr = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    nextDeviceProcAddr = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    const char* name = getenv("VKMQA_FAULT");
    fault = FAULT_NONE;
    if (name && strcmp(name, "dispatch") == 0)
        fault = FAULT_DISPATCH;
    else if (name && strcmp(name, "second") == 0)
        fault = FAULT_SECOND;
    else if (name && strcmp(name, "submit") == 0)
        fault = FAULT_SUBMIT;
    PFN_vkCreateDevice create =
        (PFN_vkCreateDevice)instanceProcAddr(VK_NULL_HANDLE, "vkCreateDevice");
    VkResult result = create(physicalDevice, info, allocator, device);
    if (result == VK_SUCCESS)
        currentDevice = *device;
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL beginCommandBuffer(VkCommandBuffer commandBuffer,
                                                         const VkCommandBufferBeginInfo* info) {
    dispatches = 0;
    return ((PFN_vkBeginCommandBuffer)next("vkBeginCommandBuffer"))(commandBuffer, info);
}

static bool loses(void) {
    return fault == FAULT_DISPATCH || (fault == FAULT_SECOND && dispatches++ % 2 == 1);
}
static VKAPI_ATTR void VKAPI_CALL cmdDispatch(VkCommandBuffer commandBuffer, uint32_t x, uint32_t y,
                                              uint32_t z) {
    if (!loses())
        ((PFN_vkCmdDispatch)next("vkCmdDispatch"))(commandBuffer, x, y, z);
}
static VKAPI_ATTR void VKAPI_CALL cmdDispatchBase(VkCommandBuffer commandBuffer, uint32_t baseX,
                                                  uint32_t baseY, uint32_t baseZ, uint32_t x,
                                                  uint32_t y, uint32_t z) {
    if (!loses())
        ((PFN_vkCmdDispatchBase)next("vkCmdDispatchBase"))(commandBuffer, baseX, baseY, baseZ, x, y, z);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit(VkQueue queue, uint32_t count,
                                                  const VkSubmitInfo* submits, VkFence fence) {
    if (fault == FAULT_SUBMIT)
        count = 0;
    return ((PFN_vkQueueSubmit)next("vkQueueSubmit"))(queue, count, submits, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit2(VkQueue queue, uint32_t count,
                                                   const VkSubmitInfo2* submits, VkFence fence) {
    if (fault == FAULT_SUBMIT)
        count = 0;
    return ((PFN_vkQueueSubmit2)next("vkQueueSubmit2"))(queue, count, submits, fence);
}

static PFN_vkVoidFunction intercepted(const char* name) {
    static const struct {
        const char* name;
        PFN_vkVoidFunction function;
    } table[] = {
        {"vkBeginCommandBuffer", (PFN_vkVoidFunction)beginCommandBuffer},
        {"vkCmdDispatch", (PFN_vkVoidFunction)cmdDispatch},
        {"vkCmdDispatchBase", (PFN_vkVoidFunction)cmdDispatchBase},
        {"vkQueueSubmit", (PFN_vkVoidFunction)queueSubmit},
        {"vkQueueSubmit2", (PFN_vkVoidFunction)queueSubmit2},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(name, table[i].name) == 0)
            return table[i].function;
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL getDeviceProcAddr(VkDevice device,
                                                                  const char* name) {
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)getDeviceProcAddr;
    PFN_vkVoidFunction below = nextDeviceProcAddr(device, name);
    PFN_vkVoidFunction ours = intercepted(name);
    return below && ours ? ours : below;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL getInstanceProcAddr(VkInstance instance,
                                                                    const char* name) {
    if (strcmp(name, "vkGetInstanceProcAddr") == 0)
        return (PFN_vkVoidFunction)getInstanceProcAddr;
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)getDeviceProcAddr;
    if (strcmp(name, "vkCreateInstance") == 0)
        return (PFN_vkVoidFunction)createInstance;
    if (strcmp(name, "vkCreateDevice") == 0)
        return (PFN_vkVoidFunction)createDevice;
    PFN_vkVoidFunction below = nextInstanceProcAddr(instance, name);
    PFN_vkVoidFunction ours = intercepted(name);
    return below && ours ? ours : below;
}

EXPORT VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface* interface) {
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = getInstanceProcAddr;
    interface->pfnGetDeviceProcAddr = getDeviceProcAddr;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}

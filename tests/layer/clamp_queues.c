// Families of queues. A card has three that can be used: of graphics, of compute work, of copies. The driver has one queue
// for all of it; the queue of copies is an object of the layer's own. What the layer judges: command buffers go to queues
// of their family, copies' buffers are shared between the families, and the queue of copies gets no kernel.
#include "clamp.h"

#include <pthread.h>
#include <stdlib.h>

enum { GRAPHICS, COMPUTE, COPIES, EMPTY, FAMILIES, MAX_OBJECTS = 1 << 16, BITS = 36 };

static const VkQueueFamilyProperties cardFamilies[FAMILIES] = {
    [GRAPHICS] = {.queueFlags = VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT,
                  .queueCount = 1,
                  .timestampValidBits = 64},
    [COMPUTE] = {.queueFlags = VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT, .queueCount = 1, .timestampValidBits = BITS},
    [COPIES] = {.queueFlags = VK_QUEUE_TRANSFER_BIT | VK_QUEUE_SPARSE_BINDING_BIT, .queueCount = 1},
    [EMPTY] = {.queueFlags = VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT, .timestampValidBits = 64},
};

VKAPI_ATTR void VKAPI_CALL clampFamilies(VkPhysicalDevice device, uint32_t* count, VkQueueFamilyProperties* families) {
    if (clampProfile->card) {
        if (families && *count > FAMILIES)
            *count = FAMILIES;
        for (uint32_t i = 0; families && i < *count; i++)
            families[i] = cardFamilies[i];
        if (!families)
            *count = FAMILIES;
        return;
    }
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceQueueFamilyProperties)(device, count, families);
    for (uint32_t i = 0; families && clampProfile->timestampless && i < *count; i++)
        families[i].timestampValidBits = 0;
}

VKAPI_ATTR void VKAPI_CALL clampFamilies2(VkPhysicalDevice device, uint32_t* count,
                                          VkQueueFamilyProperties2* families) {
    VkQueueFamilyProperties plain[FAMILIES];
    uint32_t room = families && *count < FAMILIES ? *count : FAMILIES;
    clampFamilies(device, &room, families ? plain : NULL);
    for (uint32_t i = 0; families && i < room; i++)
        families[i].queueFamilyProperties = plain[i];
    *count = room;
}

// ---- Objects and their families --------------------------------------------------------------------

typedef struct Object {
    const void* handle;
    uint32_t family; // of a buffer: COPIES where it is shared
} Object;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Object objects[MAX_OBJECTS];
static uint32_t objectCount;

// Handles come back, for other objects.
static void remember(const void* handle, uint32_t family) {
    pthread_mutex_lock(&mutex);
    uint32_t i = objectCount; // behind the one that is found
    while (i > 0 && objects[i - 1].handle != handle)
        i--;
    if (i == 0)
        i = ++objectCount;
    if (i > MAX_OBJECTS)
        clampBroken("more than %d objects", MAX_OBJECTS);
    objects[i - 1] = (Object){handle, family};
    pthread_mutex_unlock(&mutex);
}

static uint32_t familyOf(const void* handle) {
    uint32_t family = FAMILIES;
    pthread_mutex_lock(&mutex);
    for (uint32_t i = objectCount; i > 0 && family == FAMILIES; i--)
        if (objects[i - 1].handle == handle)
            family = objects[i - 1].family;
    pthread_mutex_unlock(&mutex);
    return family;
}

// ---- Queues ----------------------------------------------------------------------------------------

// The queue of copies of a device. Devices that are made again may have the driver's queue of an earlier one.
typedef struct CopyQueue {
    void* loader; // the loader's: what a call goes through
    VkQueue real;
} CopyQueue;
enum { MAX_QUEUES = 4096 };
static CopyQueue copyQueues[MAX_QUEUES];
static uint32_t copyQueueCount;

static bool isCopyQueue(VkQueue queue) {
    return (uintptr_t)queue >= (uintptr_t)copyQueues && (uintptr_t)queue < (uintptr_t)(copyQueues + MAX_QUEUES);
}

static VkQueue realQueue(VkQueue queue) { return isCopyQueue(queue) ? ((CopyQueue*)queue)->real : queue; }

const VkDeviceCreateInfo* clampQueueInfos(const VkDeviceCreateInfo* info) {
    static VkDeviceCreateInfo real; // device creation is one at a time in these tests
    static VkDeviceQueueCreateInfo queue;
    if (!clampProfile->card)
        return info;
    for (uint32_t i = 0; i < info->queueCreateInfoCount; i++) {
        uint32_t family = info->pQueueCreateInfos[i].queueFamilyIndex;
        if (family >= FAMILIES || info->pQueueCreateInfos[i].queueCount > cardFamilies[family].queueCount)
            clampBroken("vkCreateDevice: %u queues of family %u", info->pQueueCreateInfos[i].queueCount, family);
    }
    real = *info;
    queue = info->pQueueCreateInfos[0];
    queue.queueFamilyIndex = 0;
    real.queueCreateInfoCount = 1;
    real.pQueueCreateInfos = &queue;
    return &real;
}

VKAPI_ATTR void VKAPI_CALL clampGetQueue(VkDevice device, uint32_t family, uint32_t index, VkQueue* queue) {
    LAYER_NEXT(vkGetDeviceQueue)(device, clampProfile->card ? 0 : family, index, queue);
    if (!clampProfile->card || family != COPIES)
        return;
    pthread_mutex_lock(&mutex);
    uint32_t i = 0;
    while (i < copyQueueCount && copyQueues[i].real != *queue)
        i++;
    if (i == MAX_QUEUES)
        clampBroken("more than %d queues", MAX_QUEUES);
    copyQueues[i] = (CopyQueue){*(void**)*queue, *queue};
    if (i == copyQueueCount)
        copyQueueCount++;
    *queue = (VkQueue)&copyQueues[i];
    pthread_mutex_unlock(&mutex);
}

VKAPI_ATTR VkResult VKAPI_CALL clampSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo* submits, VkFence fence) {
    for (uint32_t i = 0; clampProfile->card && i < count; i++)
        for (uint32_t j = 0; j < submits[i].commandBufferCount; j++)
            if ((familyOf(submits[i].pCommandBuffers[j]) == COPIES) != isCopyQueue(queue))
                clampBroken("vkQueueSubmit: a command buffer of family %u, to a queue of another",
                            familyOf(submits[i].pCommandBuffers[j]));
    return LAYER_NEXT(vkQueueSubmit)(realQueue(queue), count, submits, fence);
}

VKAPI_ATTR VkResult VKAPI_CALL clampWaitIdle(VkQueue queue) {
    return LAYER_NEXT(vkQueueWaitIdle)(realQueue(queue));
}

VKAPI_ATTR VkResult VKAPI_CALL clampCreatePool(VkDevice device, const VkCommandPoolCreateInfo* info,
                                               const VkAllocationCallbacks* allocator, VkCommandPool* pool) {
    VkCommandPoolCreateInfo real = *info;
    if (clampProfile->card)
        real.queueFamilyIndex = 0;
    VkResult result = LAYER_NEXT(vkCreateCommandPool)(device, &real, allocator, pool);
    if (clampProfile->card && result == VK_SUCCESS)
        remember((const void*)*pool, info->queueFamilyIndex);
    return result;
}

VKAPI_ATTR VkResult VKAPI_CALL clampCommandBuffers(VkDevice device, const VkCommandBufferAllocateInfo* info,
                                                   VkCommandBuffer* commandBuffers) {
    VkResult result = LAYER_NEXT(vkAllocateCommandBuffers)(device, info, commandBuffers);
    for (uint32_t i = 0; clampProfile->card && result == VK_SUCCESS && i < info->commandBufferCount; i++)
        remember(commandBuffers[i], familyOf((const void*)info->commandPool));
    return result;
}

// ---- What families may do --------------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL clampCreateBuffer(VkDevice device, const VkBufferCreateInfo* info,
                                                 const VkAllocationCallbacks* allocator, VkBuffer* buffer) {
    VkBufferCreateInfo real = *info;
    bool shared = false;
    for (uint32_t i = 0; info->sharingMode == VK_SHARING_MODE_CONCURRENT && i < info->queueFamilyIndexCount; i++)
        shared |= info->pQueueFamilyIndices[i] == COPIES;
    if (clampProfile->card)
        real.sharingMode = VK_SHARING_MODE_EXCLUSIVE;
    VkResult result = LAYER_NEXT(vkCreateBuffer)(device, &real, allocator, buffer);
    if (clampProfile->card && result == VK_SUCCESS)
        remember((const void*)*buffer, shared ? COPIES : COMPUTE);
    return result;
}

VKAPI_ATTR void VKAPI_CALL clampCopy(VkCommandBuffer commands, VkBuffer from, VkBuffer to, uint32_t count,
                                     const VkBufferCopy* regions) {
    if (clampProfile->card && familyOf(commands) == COPIES &&
        (familyOf((const void*)from) != COPIES || familyOf((const void*)to) != COPIES))
        clampBroken("vkCmdCopyBuffer: a buffer that is not shared with the family of copies");
    LAYER_NEXT(vkCmdCopyBuffer)(commands, from, to, count, regions);
}

VKAPI_ATTR void VKAPI_CALL clampBindPipeline(VkCommandBuffer commands, VkPipelineBindPoint point, VkPipeline pipeline) {
    if (clampProfile->card && familyOf(commands) == COPIES)
        clampBroken("vkCmdBindPipeline: the family of copies has no compute work");
    LAYER_NEXT(vkCmdBindPipeline)(commands, point, pipeline);
}

VKAPI_ATTR void VKAPI_CALL clampTimestamp(VkCommandBuffer commands, VkPipelineStageFlagBits stage, VkQueryPool pool,
                                          uint32_t query) {
    if (clampProfile->timestampless || (clampProfile->card && familyOf(commands) == COPIES))
        clampBroken("vkCmdWriteTimestamp on a queue without timestamps");
    LAYER_NEXT(vkCmdWriteTimestamp)(commands, stage, pool, query);
}

// The card counts with few bits, and is about to begin anew.
VKAPI_ATTR VkResult VKAPI_CALL clampQueryResults(VkDevice device, VkQueryPool pool, uint32_t first, uint32_t count,
                                                 size_t size, void* data, VkDeviceSize stride, VkQueryResultFlags flags) {
    VkResult result = LAYER_NEXT(vkGetQueryPoolResults)(device, pool, first, count, size, data, stride, flags);
    uint64_t* ticks = data;
    if (clampProfile->card && result == VK_SUCCESS && (flags & VK_QUERY_RESULT_64_BIT) && stride == sizeof(*ticks))
        for (uint32_t i = count; i-- > 0;)
            ticks[i] = (ticks[i] - ticks[0] + (UINT64_C(1) << BITS) - 100) & ((UINT64_C(1) << BITS) - 1);
    return result;
}

// A device's objects and commands, see mock.h: what is recorded is judged, nothing is done.
#include "mock_objects.h"

#include <stdlib.h>
#include <string.h>

// Behind handles that have something to say.
typedef struct Buffer {
    VkDeviceSize size;
    VkDeviceAddress address;
} Buffer;
typedef struct Memory {
    VkDeviceSize size;
    void* mapped;
} Memory;
typedef struct Sets {
    uint32_t room, used; // of a pool
} Sets;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            mockFail("mock driver: " __VA_ARGS__);                                                                     \
    } while (0)

uint64_t mockCommands;

static void* make(size_t size) {
    void* object = calloc(1, size);
    CHECK(object, "no memory");
    return object;
}

// Objects that are nothing but a handle.
#define PLAIN_OBJECT(name)                                                                                             \
    VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreate##name(VkDevice device, const Vk##name##CreateInfo* info,              \
                                                       const VkAllocationCallbacks* a, Vk##name* object) {             \
        (void)a;                                                                                                       \
        CHECK(device && info, "vkCreate" #name " without a device");                                                   \
        *object = make(1);                                                                                             \
        return VK_SUCCESS;                                                                                             \
    }                                                                                                                  \
    PLAIN_DESTRUCTION(name)
#define PLAIN_DESTRUCTION(name)                                                                                        \
    VKAPI_ATTR void VKAPI_CALL mock_vkDestroy##name(VkDevice device, Vk##name object,                                  \
                                                    const VkAllocationCallbacks* a) {                                  \
        (void)device, (void)a;                                                                                         \
        free(object);                                                                                                  \
    }
PLAIN_OBJECT(Fence)
PLAIN_OBJECT(Semaphore)
PLAIN_OBJECT(QueryPool)
PLAIN_OBJECT(PipelineLayout)
PLAIN_OBJECT(DescriptorSetLayout)
PLAIN_DESTRUCTION(ShaderModule)
PLAIN_DESTRUCTION(PipelineCache)
PLAIN_DESTRUCTION(Pipeline)
PLAIN_DESTRUCTION(Buffer)
PLAIN_DESTRUCTION(DescriptorPool)

// ---- device and queues ---------------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo* info,
                                                   const VkAllocationCallbacks* a, VkDevice* device) {
    (void)info, (void)a;
    *device = make(sizeof(**device));
    (*device)->physical = physical;
    return VK_SUCCESS;
}
VKAPI_ATTR void VKAPI_CALL mock_vkDestroyDevice(VkDevice device, const VkAllocationCallbacks* a) {
    (void)a;
    free(device);
}
VKAPI_ATTR void VKAPI_CALL mock_vkGetDeviceQueue(VkDevice device, uint32_t family, uint32_t index, VkQueue* queue) {
    static char queues[8];
    CHECK(family < device->physical->families && index == 0, "queue %u of family %u", index, family);
    *queue = (VkQueue)(void*)&queues[family];
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkQueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo* submits,
                                                  VkFence fence) {
    (void)count, (void)submits, (void)fence;
    CHECK(queue, "vkQueueSubmit without a queue");
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkQueueWaitIdle(VkQueue queue) {
    (void)queue;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkResetFences(VkDevice device, uint32_t count, const VkFence* fences) {
    (void)device, (void)count, (void)fences;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkWaitForFences(VkDevice device, uint32_t count, const VkFence* fences,
                                                    VkBool32 all, uint64_t timeout) {
    (void)device, (void)count, (void)fences, (void)all, (void)timeout;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkGetQueryPoolResults(VkDevice device, VkQueryPool pool, uint32_t first,
                                                          uint32_t count, size_t size, void* data,
                                                          VkDeviceSize stride, VkQueryResultFlags flags) {
    (void)device, (void)pool, (void)first, (void)stride;
    CHECK(size >= count * sizeof(uint64_t) && (flags & VK_QUERY_RESULT_64_BIT), "queries of %zu bytes", size);
    for (uint32_t i = 0; i < count; i++)
        ((uint64_t*)data)[i] = 1000 + 1000000 * i;
    return VK_SUCCESS;
}

// ---- memory --------------------------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL mock_vkAllocateMemory(VkDevice device, const VkMemoryAllocateInfo* info,
                                                     const VkAllocationCallbacks* a, VkDeviceMemory* memory) {
    (void)device, (void)a;
    CHECK(info->memoryTypeIndex < 3 && info->allocationSize, "an allocation of type %u", info->memoryTypeIndex);
    if (info->allocationSize > MOCK_HEAP || (info->memoryTypeIndex && info->allocationSize > 32 << 20))
        return VK_ERROR_OUT_OF_DEVICE_MEMORY; // what may be mapped is real
    Memory* made = make(sizeof(*made));
    made->size = info->allocationSize;
    *memory = (VkDeviceMemory)made;
    return VK_SUCCESS;
}
VKAPI_ATTR void VKAPI_CALL mock_vkFreeMemory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks* a) {
    (void)device, (void)a;
    if (memory)
        free(((Memory*)memory)->mapped);
    free(memory);
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkMapMemory(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset,
                                                VkDeviceSize size, VkMemoryMapFlags flags, void** mapped) {
    Memory* m = (Memory*)memory;
    (void)device, (void)flags;
    CHECK(offset == 0 && size == VK_WHOLE_SIZE && !m->mapped, "memory is mapped twice, or in part");
    *mapped = m->mapped = make(m->size); // exactly, for the sanitizer
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateBuffer(VkDevice device, const VkBufferCreateInfo* info,
                                                   const VkAllocationCallbacks* a, VkBuffer* buffer) {
    (void)device, (void)a;
    CHECK(info->size, "a buffer of no size");
    Buffer* made = make(sizeof(*made));
    made->size = info->size;
    made->address = 0x10000;
    *buffer = (VkBuffer)made;
    return VK_SUCCESS;
}
VKAPI_ATTR void VKAPI_CALL mock_vkGetBufferMemoryRequirements(VkDevice device, VkBuffer buffer,
                                                              VkMemoryRequirements* requirements) {
    (void)device;
    *requirements = (VkMemoryRequirements){((Buffer*)buffer)->size, MOCK_ALIGNMENT, 7};
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkBindBufferMemory(VkDevice device, VkBuffer buffer, VkDeviceMemory memory,
                                                       VkDeviceSize offset) {
    (void)device;
    CHECK(offset <= ((Memory*)memory)->size && ((Buffer*)buffer)->size <= ((Memory*)memory)->size - offset,
          "a buffer passes its memory");
    return VK_SUCCESS;
}
VKAPI_ATTR VkDeviceAddress VKAPI_CALL mock_vkGetBufferDeviceAddress(VkDevice device,
                                                                    const VkBufferDeviceAddressInfo* info) {
    CHECK(device->physical->all, "vkGetBufferDeviceAddress on a device without it");
    return ((Buffer*)info->buffer)->address;
}

// ---- pipelines and descriptors -------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateShaderModule(VkDevice device, const VkShaderModuleCreateInfo* info,
                                                         const VkAllocationCallbacks* a, VkShaderModule* module) {
    (void)device, (void)a;
    CHECK(info->codeSize > 20 && info->codeSize % 4 == 0 && info->pCode[0] == 0x07230203, "this is no SPIR-V");
    *module = make(1);
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreatePipelineCache(VkDevice device, const VkPipelineCacheCreateInfo* info,
                                                          const VkAllocationCallbacks* a, VkPipelineCache* cache) {
    static const unsigned char uuid[VK_UUID_SIZE] = MOCK_CACHE_UUID;
    (void)device, (void)a;
    if (info->initialDataSize) { // as a driver that trusts what it gets
        uint32_t header[4];
        CHECK(info->initialDataSize >= 32, "a pipeline cache of %zu bytes", info->initialDataSize);
        memcpy(header, info->pInitialData, sizeof(header));
        CHECK(header[0] >= 32 && header[0] <= info->initialDataSize && header[1] == 1 && header[2] == 0x1234 &&
                  header[3] == 0x5678 && memcmp((const char*)info->pInitialData + 16, uuid, VK_UUID_SIZE) == 0,
              "a pipeline cache of another device");
        volatile unsigned char sum = 0;
        for (size_t i = 0; i < info->initialDataSize; i++)
            sum += ((const unsigned char*)info->pInitialData)[i];
    }
    *cache = make(1);
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                                             const VkComputePipelineCreateInfo* infos,
                                                             const VkAllocationCallbacks* a, VkPipeline* pipelines) {
    (void)device, (void)cache, (void)a;
    for (uint32_t i = 0; i < count; i++) {
        const VkSpecializationInfo* constants = infos[i].stage.pSpecializationInfo;
        CHECK(infos[i].stage.module && infos[i].layout && infos[i].stage.pName, "half a pipeline");
        for (uint32_t k = 0; constants && k < constants->mapEntryCount; k++)
            CHECK(constants->pMapEntries[k].offset + constants->pMapEntries[k].size <= constants->dataSize,
                  "constant %u passes its data", k);
        pipelines[i] = make(1);
    }
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateDescriptorPool(VkDevice device, const VkDescriptorPoolCreateInfo* info,
                                                           const VkAllocationCallbacks* a, VkDescriptorPool* pool) {
    (void)device, (void)a;
    CHECK(info->maxSets && info->poolSizeCount, "an empty descriptor pool");
    for (uint32_t i = 0; i < info->poolSizeCount; i++)
        CHECK(info->pPoolSizes[i].descriptorCount, "descriptorCount is 0");
    Sets* made = make(sizeof(*made));
    made->room = info->maxSets;
    *pool = (VkDescriptorPool)made;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkResetDescriptorPool(VkDevice device, VkDescriptorPool pool,
                                                          VkDescriptorPoolResetFlags flags) {
    (void)device, (void)flags;
    ((Sets*)pool)->used = 0;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkAllocateDescriptorSets(VkDevice device, const VkDescriptorSetAllocateInfo* info,
                                                             VkDescriptorSet* sets) {
    static char set;
    Sets* pool = (Sets*)info->descriptorPool;
    (void)device;
    if (info->descriptorSetCount > pool->room - pool->used)
        return VK_ERROR_OUT_OF_POOL_MEMORY;
    pool->used += info->descriptorSetCount;
    for (uint32_t i = 0; i < info->descriptorSetCount; i++)
        sets[i] = (VkDescriptorSet)(void*)&set;
    return VK_SUCCESS;
}

static void checkWrites(uint32_t count, const VkWriteDescriptorSet* writes) {
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < writes[i].descriptorCount; k++) {
            const VkDescriptorBufferInfo* info = &writes[i].pBufferInfo[k];
            CHECK(info->buffer, "a descriptor without a buffer");
            CHECK(info->offset % MOCK_ALIGNMENT == 0 && info->range && info->range <= MOCK_MAX_RANGE,
                  "a descriptor of %llu bytes from %llu", (unsigned long long)info->range,
                  (unsigned long long)info->offset);
            CHECK(info->offset <= ((Buffer*)info->buffer)->size &&
                      info->range <= ((Buffer*)info->buffer)->size - info->offset,
                  "a descriptor passes its buffer");
        }
}
VKAPI_ATTR void VKAPI_CALL mock_vkUpdateDescriptorSets(VkDevice device, uint32_t count,
                                                       const VkWriteDescriptorSet* writes, uint32_t copyCount,
                                                       const VkCopyDescriptorSet* copies) {
    (void)device, (void)copyCount, (void)copies;
    checkWrites(count, writes);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdPushDescriptorSetKHR(VkCommandBuffer commandBuffer, VkPipelineBindPoint point,
                                                          VkPipelineLayout layout, uint32_t set, uint32_t count,
                                                          const VkWriteDescriptorSet* writes) {
    mockCommands++;
    (void)commandBuffer, (void)point, (void)layout, (void)set;
    checkWrites(count, writes);
}

// ---- commands ------------------------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL mock_vkCreateCommandPool(VkDevice device, const VkCommandPoolCreateInfo* info,
                                                        const VkAllocationCallbacks* a, VkCommandPool* pool) {
    (void)a;
    CHECK(info->queueFamilyIndex < device->physical->families, "a command pool of family %u", info->queueFamilyIndex);
    *pool = make(1);
    return VK_SUCCESS;
}
PLAIN_DESTRUCTION(CommandPool)
VKAPI_ATTR VkResult VKAPI_CALL mock_vkResetCommandPool(VkDevice device, VkCommandPool pool,
                                                       VkCommandPoolResetFlags flags) {
    (void)device, (void)pool, (void)flags;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkAllocateCommandBuffers(VkDevice device, const VkCommandBufferAllocateInfo* info,
                                                             VkCommandBuffer* buffers) {
    static char buffer;
    (void)device;
    for (uint32_t i = 0; i < info->commandBufferCount; i++)
        buffers[i] = (VkCommandBuffer)(void*)&buffer;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkBeginCommandBuffer(VkCommandBuffer buffer, const VkCommandBufferBeginInfo* info) {
    (void)buffer, (void)info;
    return VK_SUCCESS;
}
VKAPI_ATTR VkResult VKAPI_CALL mock_vkEndCommandBuffer(VkCommandBuffer buffer) {
    (void)buffer;
    return VK_SUCCESS;
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdBindPipeline(VkCommandBuffer buffer, VkPipelineBindPoint point,
                                                  VkPipeline pipeline) {
    mockCommands++;
    (void)buffer, (void)point;
    CHECK(pipeline, "no pipeline is bound");
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdBindDescriptorSets(VkCommandBuffer buffer, VkPipelineBindPoint point,
                                                        VkPipelineLayout layout, uint32_t first, uint32_t count,
                                                        const VkDescriptorSet* sets, uint32_t dynamicCount,
                                                        const uint32_t* dynamic) {
    mockCommands++;
    (void)buffer, (void)point, (void)layout, (void)first, (void)dynamicCount, (void)dynamic;
    for (uint32_t i = 0; i < count; i++)
        CHECK(sets[i], "no descriptor set is bound");
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdPushConstants(VkCommandBuffer buffer, VkPipelineLayout layout,
                                                   VkShaderStageFlags stages, uint32_t offset, uint32_t size,
                                                   const void* values) {
    mockCommands++;
    volatile unsigned char sum = 0;
    (void)buffer, (void)layout, (void)stages;
    CHECK(size && offset % 4 == 0 && size % 4 == 0 && offset + size <= 128, "%u bytes of push constants", size);
    for (uint32_t i = 0; i < size; i++)
        sum += ((const unsigned char*)values)[i];
}
static void checkGrid(uint32_t base, uint32_t size) {
    CHECK(size && size <= 65535 && base <= 65535 - size, "%u workgroups from %u", size, base);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdDispatchBase(VkCommandBuffer buffer, uint32_t baseX, uint32_t baseY,
                                                  uint32_t baseZ, uint32_t x, uint32_t y, uint32_t z) {
    mockCommands++;
    (void)buffer;
    checkGrid(baseX, x), checkGrid(baseY, y), checkGrid(baseZ, z);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdDispatch(VkCommandBuffer buffer, uint32_t x, uint32_t y, uint32_t z) {
    mock_vkCmdDispatchBase(buffer, 0, 0, 0, x, y, z);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdPipelineBarrier(
    VkCommandBuffer buffer, VkPipelineStageFlags from, VkPipelineStageFlags to, VkDependencyFlags flags,
    uint32_t count, const VkMemoryBarrier* barriers, uint32_t bufferCount, const VkBufferMemoryBarrier* buffers,
    uint32_t imageCount, const VkImageMemoryBarrier* images) {
    mockCommands++;
    (void)buffer, (void)flags, (void)count, (void)barriers, (void)bufferCount, (void)buffers, (void)imageCount;
    (void)images;
    CHECK(from && to, "a barrier without stages");
}

static void checkRange(VkBuffer buffer, VkDeviceSize offset, VkDeviceSize size) {
    CHECK(buffer && size, "a copy of nothing");
    CHECK(offset <= ((Buffer*)buffer)->size && size <= ((Buffer*)buffer)->size - offset,
          "%llu bytes at %llu pass a buffer of %llu", (unsigned long long)size, (unsigned long long)offset,
          (unsigned long long)((Buffer*)buffer)->size);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdCopyBuffer(VkCommandBuffer buffer, VkBuffer from, VkBuffer to, uint32_t count,
                                                const VkBufferCopy* regions) {
    mockCommands++;
    (void)buffer;
    for (uint32_t i = 0; i < count; i++) {
        checkRange(from, regions[i].srcOffset, regions[i].size);
        checkRange(to, regions[i].dstOffset, regions[i].size);
    }
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdFillBuffer(VkCommandBuffer buffer, VkBuffer to, VkDeviceSize offset,
                                                VkDeviceSize size, uint32_t value) {
    mockCommands++;
    (void)buffer, (void)value;
    CHECK(offset % 4 == 0 && (size == VK_WHOLE_SIZE || size % 4 == 0), "a fill that is not of words");
    checkRange(to, offset, size == VK_WHOLE_SIZE ? 1 : size);
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdUpdateBuffer(VkCommandBuffer buffer, VkBuffer to, VkDeviceSize offset,
                                                  VkDeviceSize size, const void* data) {
    mockCommands++;
    volatile unsigned char sum = 0;
    (void)buffer;
    CHECK(offset % 4 == 0 && size % 4 == 0 && size <= 65536, "an update of %llu bytes", (unsigned long long)size);
    checkRange(to, offset, size);
    for (VkDeviceSize i = 0; i < size; i++)
        sum += ((const unsigned char*)data)[i];
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdResetQueryPool(VkCommandBuffer buffer, VkQueryPool pool, uint32_t first,
                                                    uint32_t count) {
    mockCommands++;
    (void)buffer, (void)pool, (void)first, (void)count;
}
VKAPI_ATTR void VKAPI_CALL mock_vkCmdWriteTimestamp(VkCommandBuffer buffer, VkPipelineStageFlagBits stage,
                                                    VkQueryPool pool, uint32_t query) {
    mockCommands++;
    (void)buffer, (void)stage, (void)pool, (void)query;
}

// Memory of a small device. Where it is not coherent, vkMapMemory gives a block of the layer's own, which only flushing
// and invalidating copy to and from the driver's.
#define _POSIX_C_SOURCE 200809L // posix_memalign
#include "clamp.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ALLOCATIONS = 4096, PAGE = 4096, STALE = 0xA5 };
enum { LOCAL = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, VISIBLE = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
       COHERENT = VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, CACHED = VK_MEMORY_PROPERTY_HOST_CACHED_BIT };

// Nothing is faster to write to, or to read from, for who forgets one bit.
static const VkMemoryType incoherentTypes[] = {
    {LOCAL, 0}, {LOCAL | VISIBLE, 0}, {LOCAL | VISIBLE | CACHED, 0}, {LOCAL | VISIBLE | COHERENT, 0}};
// Its own memory, the host's, and a window of the host's into its own.
static const VkMemoryType cardTypes[] = {
    {LOCAL, 0}, {VISIBLE | COHERENT, 1}, {VISIBLE | COHERENT | CACHED, 1}, {LOCAL | VISIBLE | COHERENT, 0}};

typedef struct Allocation {
    VkDeviceMemory memory;
    VkDeviceSize size;
    uint32_t type, heap;
    char *real, *shadow;            // null: not mapped, or coherent
    VkDeviceSize mapped, mappedEnd; // the part of it that is
} Allocation;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Allocation allocations[MAX_ALLOCATIONS];
static uint32_t allocationCount;
static VkDeviceSize used[VK_MAX_MEMORY_HEAPS];
static VkPhysicalDeviceMemoryProperties shown; // to who asked last

// ---- What there is -------------------------------------------------------------------------------

static void showTypes(VkPhysicalDeviceMemoryProperties* memory, const VkMemoryType* types, uint32_t count) {
    const VkMemoryPropertyFlags needed = LOCAL | VISIBLE | COHERENT | CACHED;
    if (memory->memoryTypeCount != 1 || (memory->memoryTypes[0].propertyFlags & needed) != needed)
        clampBroken("the profile is for drivers whose only type of memory can do everything");
    memory->memoryTypeCount = count;
    memcpy(memory->memoryTypes, types, count * sizeof(*types));
}

static void clampMemory(VkPhysicalDeviceMemoryProperties* memory) {
    if (clampProfile->card) {
        memory->memoryHeapCount = 2;
        memory->memoryHeaps[1] = (VkMemoryHeap){memory->memoryHeaps[0].size, 0};
        showTypes(memory, cardTypes, sizeof(cardTypes) / sizeof(cardTypes[0]));
    } else if (clampProfile->incoherent) {
        showTypes(memory, incoherentTypes, sizeof(incoherentTypes) / sizeof(incoherentTypes[0]));
    }
    for (uint32_t i = 0; clampProfile->heapBytes && i < memory->memoryHeapCount; i++)
        if ((memory->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) &&
            memory->memoryHeaps[i].size > clampProfile->heapBytes)
            memory->memoryHeaps[i].size = clampProfile->heapBytes;
    shown = *memory;
}

VKAPI_ATTR void VKAPI_CALL clampMemoryProperties(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties* memory) {
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceMemoryProperties)(device, memory);
    clampMemory(memory);
}

VKAPI_ATTR void VKAPI_CALL clampMemoryProperties2(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties2* memory) {
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceMemoryProperties2)(device, memory);
    clampMemory(&memory->memoryProperties);
    for (VkBaseOutStructure* next = memory->pNext; next; next = next->pNext) {
        VkPhysicalDeviceMemoryBudgetPropertiesEXT* budget = (void*)next;
        if (next->sType != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT || !clampProfile->heapBytes)
            continue;
        for (uint32_t i = 0; i < memory->memoryProperties.memoryHeapCount; i++) {
            budget->heapBudget[i] = memory->memoryProperties.memoryHeaps[i].size;
            budget->heapUsage[i] = used[i];
        }
    }
}

static void clampRequirements(VkMemoryRequirements* requirements) {
    if (clampProfile->incoherent || clampProfile->card)
        requirements->memoryTypeBits = (1u << shown.memoryTypeCount) - 1;
}

VKAPI_ATTR void VKAPI_CALL clampBufferRequirements(VkDevice device, VkBuffer buffer,
                                                   VkMemoryRequirements* requirements) {
    LAYER_NEXT(vkGetBufferMemoryRequirements)(device, buffer, requirements);
    clampRequirements(requirements);
}

VKAPI_ATTR void VKAPI_CALL clampBufferRequirements2(VkDevice device, const VkBufferMemoryRequirementsInfo2* info,
                                                    VkMemoryRequirements2* requirements) {
    LAYER_NEXT(vkGetBufferMemoryRequirements2)(device, info, requirements);
    clampRequirements(&requirements->memoryRequirements);
}

// ---- Allocations ---------------------------------------------------------------------------------

// Below the lock.
static Allocation* find(VkDeviceMemory memory) {
    for (uint32_t i = 0; i < allocationCount; i++)
        if (allocations[i].memory == memory)
            return &allocations[i];
    clampBroken("memory that was never allocated is used");
}

static bool fits(uint32_t heap, VkDeviceSize size) {
    return !clampProfile->heapBytes || size <= shown.memoryHeaps[heap].size - used[heap];
}

VKAPI_ATTR VkResult VKAPI_CALL clampAllocate(VkDevice device, const VkMemoryAllocateInfo* info,
                                             const VkAllocationCallbacks* allocator, VkDeviceMemory* memory) {
    VkMemoryAllocateInfo real = *info;
    if (info->memoryTypeIndex >= shown.memoryTypeCount)
        clampBroken("vkAllocateMemory: there is no type %u of memory", info->memoryTypeIndex);
    if (clampProfile->incoherent || clampProfile->card)
        real.memoryTypeIndex = 0;
    pthread_mutex_lock(&mutex);
    uint32_t heap = shown.memoryTypes[info->memoryTypeIndex].heapIndex;
    VkResult result = fits(heap, info->allocationSize) ? VK_SUCCESS : VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (result == VK_SUCCESS)
        result = LAYER_NEXT(vkAllocateMemory)(device, &real, allocator, memory);
    if (result == VK_SUCCESS) {
        if (allocationCount == MAX_ALLOCATIONS)
            clampBroken("more than %d allocations", MAX_ALLOCATIONS);
        used[heap] += info->allocationSize;
        allocations[allocationCount++] =
            (Allocation){.memory = *memory, .size = info->allocationSize, .type = info->memoryTypeIndex, .heap = heap};
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

VKAPI_ATTR void VKAPI_CALL clampFree(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks* allocator) {
    pthread_mutex_lock(&mutex);
    if (memory) {
        Allocation* freed = find(memory);
        used[freed->heap] -= freed->size;
        free(freed->shadow);
        *freed = allocations[--allocationCount];
    }
    LAYER_NEXT(vkFreeMemory)(device, memory, allocator);
    pthread_mutex_unlock(&mutex);
}

// ---- Maps ----------------------------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL clampMap(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size,
                                        VkMemoryMapFlags flags, void** data) {
    pthread_mutex_lock(&mutex);
    Allocation* allocation = find(memory);
    VkMemoryPropertyFlags flagsOfType = shown.memoryTypes[allocation->type].propertyFlags;
    bool coherent = flagsOfType & COHERENT;
    void *real = NULL, *shadow = NULL;
    if (!(flagsOfType & VISIBLE))
        clampBroken("vkMapMemory: memory of type %u is not visible to the host", allocation->type);
    VkResult result = LAYER_NEXT(vkMapMemory)(device, memory, coherent ? offset : 0,
                                              coherent ? size : VK_WHOLE_SIZE, flags, &real);
    if (result == VK_SUCCESS && !coherent) {
        if (posix_memalign(&shadow, PAGE, allocation->size))
            abort();
        memset(shadow, STALE, allocation->size); // what the host sees before it invalidates
        allocation->real = real;
        allocation->shadow = shadow;
        allocation->mapped = offset;
        allocation->mappedEnd = size == VK_WHOLE_SIZE ? allocation->size : offset + size;
        real = (char*)shadow + offset;
    }
    if (result == VK_SUCCESS)
        *data = real;
    pthread_mutex_unlock(&mutex);
    return result;
}

VKAPI_ATTR void VKAPI_CALL clampUnmap(VkDevice device, VkDeviceMemory memory) {
    pthread_mutex_lock(&mutex);
    Allocation* allocation = find(memory);
    free(allocation->shadow); // unflushed writes are lost
    allocation->real = allocation->shadow = NULL;
    LAYER_NEXT(vkUnmapMemory)(device, memory);
    pthread_mutex_unlock(&mutex);
}

static void copy(const char* call, uint32_t count, const VkMappedMemoryRange* ranges, bool toDevice) {
    const VkDeviceSize atom = clampLimits.nonCoherentAtomSize;
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < count; i++) {
        Allocation* allocation = find(ranges[i].memory);
        if (!allocation->shadow)
            continue;
        VkDeviceSize begin = ranges[i].offset;
        VkDeviceSize end = ranges[i].size == VK_WHOLE_SIZE ? allocation->mappedEnd : begin + ranges[i].size;
        if (begin % atom || (end % atom && end != allocation->size))
            clampBroken("%s: bytes %llu to %llu are no multiples of nonCoherentAtomSize, %llu", call,
                        (unsigned long long)begin, (unsigned long long)end, (unsigned long long)atom);
        if (begin < allocation->mapped || end > allocation->mappedEnd || begin > end)
            clampBroken("%s: bytes %llu to %llu are not all mapped", call, (unsigned long long)begin,
                        (unsigned long long)end);
        if (toDevice)
            memcpy(allocation->real + begin, allocation->shadow + begin, end - begin);
        else
            memcpy(allocation->shadow + begin, allocation->real + begin, end - begin);
    }
    pthread_mutex_unlock(&mutex);
}

VKAPI_ATTR VkResult VKAPI_CALL clampFlush(VkDevice device, uint32_t count, const VkMappedMemoryRange* ranges) {
    (void)device; // the driver's memory is coherent
    copy("vkFlushMappedMemoryRanges", count, ranges, true);
    return VK_SUCCESS;
}

VKAPI_ATTR VkResult VKAPI_CALL clampInvalidate(VkDevice device, uint32_t count, const VkMappedMemoryRange* ranges) {
    (void)device;
    copy("vkInvalidateMappedMemoryRanges", count, ranges, false);
    return VK_SUCCESS;
}

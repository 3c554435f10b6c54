// Buffers with memory of their own.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

// A host-visible window into device memory may be as small as 256 MiB for the whole machine, so one
// buffer takes at most this part of its heap.
#define WINDOW_SHARE 16

bool vkmqa_is_memory(VkmqaMemory memory) { return memory && memory->magic == VKMQA_MAGIC_MEMORY; }

// How well a memory type suits a kind; 0 means not at all.
static uint32_t score_type(const VkPhysicalDeviceMemoryProperties* properties, uint32_t type,
                           VkmqaMemoryKind kind, VkDeviceSize size) {
    // Everything else is protected, lazily allocated, or a vendor's type that needs a feature.
    const VkMemoryPropertyFlags known =
        VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
        VK_MEMORY_PROPERTY_HOST_COHERENT_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    VkMemoryPropertyFlags flags = properties->memoryTypes[type].propertyFlags;
    VkDeviceSize heap = properties->memoryHeaps[properties->memoryTypes[type].heapIndex].size;
    bool local = flags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    bool cached = flags & VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    bool visible = flags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT;
    bool coherent = visible && (flags & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT);
    if ((flags & ~known) || size > heap)
        return 0;
    switch (kind) {
    case VKMQA_MEMORY_UPLOAD:
        if (!coherent)
            return 0;
        return 1 + (local && size <= heap / WINDOW_SHARE ? 2 : 0) + (cached ? 0 : 1);
    case VKMQA_MEMORY_DOWNLOAD:
        return coherent ? 1 + (cached ? 2 : 0) + (local ? 0 : 1) : 0;
    default:
        return 1 + (local ? 2 : 0) + (visible ? 0 : 1);
    }
}

// Tries the types that suit the kind, best first, until one has room.
static VkResult allocate(VkmqaMemory memory, const char* call) {
    VkmqaDevice device = memory->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    const VkPhysicalDeviceMemoryProperties* properties = &device->memoryProperties;
    VkMemoryRequirements requirements;
    vk->GetBufferMemoryRequirements(device->handle, memory->buffer, &requirements);
    VkMemoryAllocateFlagsInfo flags = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
        .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT,
    };
    uint32_t candidates = requirements.memoryTypeBits, local = 0; // types
    VkResult result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    // A cache that quietly lay in host memory would be ten times slower than an error is clear.
    for (uint32_t i = 0; memory->kind == VKMQA_MEMORY_DEVICE && i < properties->memoryTypeCount; i++)
        if (properties->memoryTypes[i].propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT)
            local |= 1u << i;
    if (candidates & local)
        candidates &= local;
    bool tried = false;
    for (;;) {
        uint32_t best = 0, bestScore = 0;
        for (uint32_t i = 0; i < properties->memoryTypeCount; i++) {
            uint32_t score = candidates >> i & 1
                                 ? score_type(properties, i, memory->kind, requirements.size)
                                 : 0;
            if (score > bestScore) {
                best = i;
                bestScore = score;
            }
        }
        if (!bestScore)
            break;
        tried = true;
        VkMemoryAllocateInfo info = {
            .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
            .pNext = device->deviceAddresses ? &flags : NULL,
            .allocationSize = requirements.size,
            .memoryTypeIndex = best,
        };
        result = vk->AllocateMemory(device->handle, &info, vkmqa_device_allocator(device), &memory->memory);
        if (result == VK_SUCCESS)
            return VK_SUCCESS;
        memory->memory = VK_NULL_HANDLE;
        if (result != VK_ERROR_OUT_OF_DEVICE_MEMORY && result != VK_ERROR_OUT_OF_HOST_MEMORY)
            return vkmqa_device_result(device, result, call, "vkAllocateMemory");
        candidates &= ~(1u << best);
    }
    return vkmqa_device_fail(
        &device->messenger, result,
        tried ? "%s: no memory left for %llu bytes (vkAllocateMemory returned %s); ask for less, such as fewer pages"
              : "%s: size %llu fits in no memory heap of the device (%s); ask for less, such as fewer pages",
        call, (unsigned long long)memory->size, vkmqa_result_name(result));
}

static VkResult create_buffer(VkmqaMemory memory, const char* call) {
    VkmqaDevice device = memory->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    uint32_t families[2] = {device->physical.computeFamily, device->physical.transferFamily};
    bool shared = families[0] != families[1];
    VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = (memory->size + 3) & ~(VkDeviceSize)3, // kernels and copies move words
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                 VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                 (device->deviceAddresses ? VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT : 0u),
        // For buffers it costs nothing on known drivers and saves the ownership transfers.
        .sharingMode = shared ? VK_SHARING_MODE_CONCURRENT : VK_SHARING_MODE_EXCLUSIVE,
        .queueFamilyIndexCount = shared ? 2 : 0,
        .pQueueFamilyIndices = shared ? families : NULL,
    };
    VkResult result = vk->CreateBuffer(device->handle, &info, vkmqa_device_allocator(device), &memory->buffer);
    if (result)
        memory->buffer = VK_NULL_HANDLE;
    return vkmqa_device_result(device, result, call, "vkCreateBuffer");
}

static VkResult bind(VkmqaMemory memory, const char* call) {
    VkmqaDevice device = memory->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    VkResult result = vk->BindBufferMemory(device->handle, memory->buffer, memory->memory, 0);
    if (result)
        return vkmqa_device_result(device, result, call, "vkBindBufferMemory");
    if (device->deviceAddresses) {
        VkBufferDeviceAddressInfo info = {
            .sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
            .buffer = memory->buffer,
        };
        memory->address = vk->GetBufferDeviceAddress(device->handle, &info);
    }
    if (memory->kind == VKMQA_MEMORY_DEVICE)
        return VK_SUCCESS;
    result = vk->MapMemory(device->handle, memory->memory, 0, VK_WHOLE_SIZE, 0, &memory->mapped);
    if (result)
        memory->mapped = NULL;
    return vkmqa_device_result(device, result, call, "vkMapMemory");
}

VkResult vkmqa_make_memory(VkmqaDevice device, const char* call, VkmqaMemoryKind kind,
                           VkDeviceSize size, VkmqaMemory* memory) {
    // Before any driver sees it: some add to the size of a buffer and wrap around.
    VkDeviceSize largest = 0;
    for (uint32_t i = 0; i < device->memoryProperties.memoryHeapCount; i++)
        if (device->memoryProperties.memoryHeaps[i].size > largest)
            largest = device->memoryProperties.memoryHeaps[i].size;
    if (size > largest)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_OUT_OF_DEVICE_MEMORY,
                                 "%s: size %llu is more than the largest memory heap of the "
                                 "device, %llu bytes; ask for less, such as fewer pages",
                                 call, (unsigned long long)size, (unsigned long long)largest);
    VkmqaMemory made = vkmqa_allocate(vkmqa_device_allocator(device), sizeof(*made));
    if (!made)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "the host allocator");
    made->magic = VKMQA_MAGIC_MEMORY;
    made->kind = kind;
    made->device = device;
    made->size = size;
    VkResult result = create_buffer(made, call);
    if (!result)
        result = allocate(made, call);
    if (!result)
        result = bind(made, call);
    if (result) {
        vkmqa_free_memory(made);
        return result;
    }
    *memory = made;
    return VK_SUCCESS;
}

void vkmqa_free_memory(VkmqaMemory memory) {
    VkmqaDevice device = memory->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    const bool inherited = device->processId != vkmqa_process_id(); // see vkmqaCloseDevice
    if (memory->buffer && !inherited)
        vk->DestroyBuffer(device->handle, memory->buffer, vkmqa_device_allocator(device));
    if (memory->memory && !inherited)
        vk->FreeMemory(device->handle, memory->memory, vkmqa_device_allocator(device)); // which unmaps it
    memory->magic = 0;
    vkmqa_free(vkmqa_device_allocator(device), memory);
}

void vkmqa_leave_memory(VkmqaMemory memory) {
    memory->magic = 0;
    memory->nextLeft = memory->device->leftMemories;
    memory->device->leftMemories = memory;
}

VkDeviceSize vkmqa_device_budget(VkmqaDevice device) {
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT,
    };
    VkPhysicalDeviceMemoryProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
        .pNext = &budget,
    };
    if (!device->physical.memoryBudget || vkmqa_check_device(device, "vkmqaGetCacheRequirements"))
        return 0;
    device->loader.vk.GetPhysicalDeviceMemoryProperties2(device->physical.handle, &properties);
    const VkPhysicalDeviceMemoryProperties* memory = &properties.memoryProperties;
    VkDeviceSize left = 0, largest = 0;
    for (uint32_t i = 0; i < memory->memoryHeapCount; ++i) {
        if (!(memory->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) ||
            memory->memoryHeaps[i].size <= largest)
            continue;
        largest = memory->memoryHeaps[i].size;
        left = budget.heapBudget[i] > budget.heapUsage[i] ? budget.heapBudget[i] - budget.heapUsage[i] : 1;
    }
    return left;
}

VkResult vkmqaCreateMemory(VkmqaDevice device, VkmqaMemoryKind kind, VkDeviceSize size,
                           VkmqaMemory* memory) {
    static const char call[] = "vkmqaCreateMemory";
    if (memory)
        *memory = NULL;
    VkResult result = vkmqa_check_device(device, call);
    if (result)
        return result;
    if (!memory)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: memory is null; pass a VkmqaMemory to fill", call);
    if ((int)kind < VKMQA_MEMORY_DEVICE || (int)kind > VKMQA_MEMORY_DOWNLOAD)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: kind is %d; use a VkmqaMemoryKind", call, (int)kind);
    if (size == 0)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: size is 0; make nothing, or at least a byte", call);
    result = vkmqa_make_memory(device, call, kind, size, memory);
    if (!result)
        device->memoryCount++;
    return result;
}

void vkmqaDestroyMemory(VkmqaMemory memory) {
    static const char call[] = "vkmqaDestroyMemory";
    if (!vkmqa_is_memory(memory))
        return;
    VkmqaDevice device = memory->device;
    device->memoryCount--;
    if (device->processId == vkmqa_process_id() && !vkmqa_transfers_done(device, call)) {
        vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                          "%s: a copy is still pending, so the memory is left to vkmqaCloseDevice "
                          "rather than destroyed under it",
                          call);
        vkmqa_leave_memory(memory);
        return;
    }
    vkmqa_free_memory(memory);
}

VkmqaBuffer vkmqaGetMemoryRange(VkmqaMemory memory, VkDeviceSize offset, VkDeviceSize size) {
    VkmqaBuffer range = {0};
    if (!vkmqa_is_memory(memory) || offset >= memory->size || size > memory->size - offset)
        return range;
    range.buffer = memory->buffer;
    range.offset = offset;
    range.size = size ? size : memory->size - offset;
    range.address = memory->address ? memory->address + offset : 0;
    return range;
}

void* vkmqaGetMemoryPointer(VkmqaMemory memory) {
    return vkmqa_is_memory(memory) ? memory->mapped : NULL;
}

// Uploads and downloads of any size through a staging buffer of fixed size.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

// Two slots take turns: the host copies through one while the device copies through the other. Past
// a few MiB a bus is at its full speed.
#define SLOT_COUNT 2u
#define SLOT_SIZE ((VkDeviceSize)8 << 20)

struct Slot {
    VkCommandBuffer commandBuffer;
    VkFence fence;
    bool pending;
    void* target; // of a download: where the host's copy goes once the fence has signalled
    size_t size;
};

struct VkmqaTransfer {
    VkCommandPool pool;
    VkmqaMemory staging; // slot i is bytes [i * SLOT_SIZE, (i + 1) * SLOT_SIZE)
    struct Slot slots[SLOT_COUNT];
};

void vkmqa_cmd_full_barrier(const struct VkmqaVk* vk, VkCommandBuffer commandBuffer) {
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
        .dstAccessMask =
            VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT | VK_ACCESS_HOST_READ_BIT,
    };
    vk->CmdPipelineBarrier(commandBuffer, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT,
                           VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                           &barrier, 0, NULL, 0, NULL);
}

static VkResult make_slots(VkmqaDevice device, const char* call) {
    const struct VkmqaVk* vk = &device->loader.vk;
    struct VkmqaTransfer* transfer = device->transfer;
    VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .flags =
            VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT | VK_COMMAND_POOL_CREATE_TRANSIENT_BIT,
        .queueFamilyIndex = device->physical.transferFamily,
    };
    VkResult result = vk->CreateCommandPool(device->handle, &pool, vkmqa_device_allocator(device), &transfer->pool);
    if (result) {
        transfer->pool = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateCommandPool");
    }
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        struct Slot* slot = &transfer->slots[i];
        VkCommandBufferAllocateInfo buffer = {
            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
            .commandPool = transfer->pool,
            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
            .commandBufferCount = 1,
        };
        result = vk->AllocateCommandBuffers(device->handle, &buffer, &slot->commandBuffer);
        if (result) {
            slot->commandBuffer = VK_NULL_HANDLE;
            return vkmqa_device_result(device, result, call, "vkAllocateCommandBuffers");
        }
        VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
        result = vk->CreateFence(device->handle, &fence, vkmqa_device_allocator(device), &slot->fence);
        if (result) {
            slot->fence = VK_NULL_HANDLE;
            return vkmqa_device_result(device, result, call, "vkCreateFence");
        }
    }
    return VK_SUCCESS;
}

static VkResult make_transfer(VkmqaDevice device, const char* call) {
    if (device->transfer)
        return VK_SUCCESS;
    device->transfer = vkmqa_allocate(vkmqa_device_allocator(device), sizeof(*device->transfer));
    if (!device->transfer)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "the host allocator");
    // Cached, because the host reads it when downloading; writing to it is as fast as to any.
    VkResult result = vkmqa_make_memory(device, call, VKMQA_MEMORY_DOWNLOAD, SLOT_COUNT * SLOT_SIZE,
                                        &device->transfer->staging);
    if (!result)
        result = make_slots(device, call);
    if (result)
        vkmqa_destroy_transfer(device);
    return result;
}

void vkmqa_destroy_transfer(VkmqaDevice device) {
    const struct VkmqaVk* vk = &device->loader.vk;
    struct VkmqaTransfer* transfer = device->transfer;
    for (uint32_t i = 0; i < SLOT_COUNT; i++)
        if (transfer->slots[i].fence)
            vk->DestroyFence(device->handle, transfer->slots[i].fence, vkmqa_device_allocator(device));
    if (transfer->pool)
        vk->DestroyCommandPool(device->handle, transfer->pool, vkmqa_device_allocator(device));
    if (transfer->staging)
        vkmqa_free_memory(transfer->staging);
    vkmqa_free(vkmqa_device_allocator(device), transfer);
    device->transfer = NULL;
}

void vkmqa_forget_transfer(VkmqaDevice device) {
    if (!device->transfer)
        return;
    if (device->transfer->staging)
        vkmqa_free_memory(device->transfer->staging);
    vkmqa_free(vkmqa_device_allocator(device), device->transfer);
    device->transfer = NULL;
}

// Waits for the slot's copy and completes it on the host.
static VkResult finish_slot(VkmqaDevice device, const char* call, uint32_t index) {
    struct VkmqaTransfer* transfer = device->transfer;
    struct Slot* slot = &transfer->slots[index];
    if (!slot->pending)
        return VK_SUCCESS;
    VkResult result = device->loader.vk.WaitForFences(device->handle, 1, &slot->fence, VK_TRUE,
                                                      device->waitLimitNs);
    if (result == VK_TIMEOUT)
        return vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                                 "%s: a copy had not finished after %llu s", call,
                                 (unsigned long long)(device->waitLimitNs / 1000000000));
    if (result)
        return vkmqa_device_result(device, result, call, "vkWaitForFences");
    slot->pending = false;
    if (slot->target)
        memcpy(slot->target, (const char*)transfer->staging->mapped + index * SLOT_SIZE,
               slot->size);
    return VK_SUCCESS;
}

static VkResult submit_slot(VkmqaDevice device, const char* call, uint32_t index, VkBuffer source,
                            VkBuffer destination, const VkBufferCopy* region) {
    const struct VkmqaVk* vk = &device->loader.vk;
    struct Slot* slot = &device->transfer->slots[index];
    VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    VkResult result = vk->BeginCommandBuffer(slot->commandBuffer, &begin);
    if (result)
        return vkmqa_device_result(device, result, call, "vkBeginCommandBuffer");
    vkmqa_cmd_full_barrier(vk, slot->commandBuffer);
    vk->CmdCopyBuffer(slot->commandBuffer, source, destination, 1, region);
    vkmqa_cmd_full_barrier(vk, slot->commandBuffer);
    result = vk->EndCommandBuffer(slot->commandBuffer);
    if (result)
        return vkmqa_device_result(device, result, call, "vkEndCommandBuffer");
    result = vk->ResetFences(device->handle, 1, &slot->fence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkResetFences");
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = &slot->commandBuffer,
    };
    result = vkmqa_submit(device, device->transferQueue, 1, &submit, slot->fence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkQueueSubmit");
    slot->pending = true;
    return VK_SUCCESS;
}

// Exactly one of source and target is not null.
static VkResult copy(VkmqaMemory memory, const char* call, VkDeviceSize offset, const char* source,
                     char* target, VkDeviceSize size) {
    VkmqaDevice device = memory->device;
    VkResult result = make_transfer(device, call);
    if (result)
        return result;
    struct VkmqaTransfer* transfer = device->transfer;
    uint32_t index = 0;
    for (VkDeviceSize done = 0; done < size && !result; index = (index + 1) % SLOT_COUNT) {
        struct Slot* slot = &transfer->slots[index];
        result = finish_slot(device, call, index);
        if (result)
            break;
        VkDeviceSize part = size - done < SLOT_SIZE ? size - done : SLOT_SIZE;
        VkDeviceSize staged = index * SLOT_SIZE;
        slot->size = (size_t)part;
        if (source) {
            VkBufferCopy region = {staged, offset + done, part};
            slot->target = NULL;
            memcpy((char*)transfer->staging->mapped + staged, source + done, slot->size);
            result = submit_slot(device, call, index, transfer->staging->buffer, memory->buffer,
                                 &region);
        } else {
            VkBufferCopy region = {offset + done, staged, part};
            slot->target = target + done;
            result = submit_slot(device, call, index, memory->buffer, transfer->staging->buffer,
                                 &region);
        }
        done += part;
    }
    for (uint32_t i = 0; i < SLOT_COUNT; i++, index = (index + 1) % SLOT_COUNT) {
        if (!result)
            result = finish_slot(device, call, index);
        // After a failure: the caller's memory is no longer ours to write to.
        transfer->slots[index].target = NULL;
    }
    if (result && result != VK_TIMEOUT) // after which the next call waits
        vkmqa_transfers_done(device, call);
    return result;
}

bool vkmqa_transfers_done(VkmqaDevice device, const char* call) {
    struct VkmqaTransfer* transfer = device->transfer;
    VkResult result = VK_SUCCESS;
    for (uint32_t i = 0; transfer && i < SLOT_COUNT && !result; i++)
        if (transfer->slots[i].pending)
            result = device->lost ? VK_ERROR_DEVICE_LOST : finish_slot(device, call, i);
    if (result == VK_SUCCESS || result == VK_TIMEOUT)
        return result == VK_SUCCESS;
    if (vkmqa_drain_device(device, call) != VK_SUCCESS)
        return false;
    for (uint32_t i = 0; i < SLOT_COUNT; i++)
        transfer->slots[i].pending = false;
    return true;
}

// What upload and download check alike.
static VkResult check(VkmqaMemory memory, const char* call, VkDeviceSize offset, const void* data,
                      VkDeviceSize size) {
    if (!vkmqa_is_memory(memory))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaMessenger* messenger = &memory->device->messenger;
    VkResult result = vkmqa_check_device(memory->device, call);
    if (result)
        return result;
    if (!data && size)
        return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: data is null; pass %llu bytes", call,
                                 (unsigned long long)size);
    if (offset % 4 || size % 4)
        return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: offset %llu and size %llu must be multiples of 4", call,
                                 (unsigned long long)offset, (unsigned long long)size);
    // A size that is no multiple of 4 leaves a last word of which the buffer has all.
    VkDeviceSize end = (memory->size + 3) & ~(VkDeviceSize)3;
    if (offset > end || size > end - offset)
        return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: offset %llu plus size %llu is past the memory's %llu bytes",
                                 call, (unsigned long long)offset, (unsigned long long)size,
                                 (unsigned long long)memory->size);
    if (size > SIZE_MAX)
        return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: size %llu is more than this process can address", call,
                                 (unsigned long long)size);
    return VK_SUCCESS;
}

VkResult vkmqaUpload(VkmqaMemory memory, VkDeviceSize offset, const void* data, VkDeviceSize size) {
    static const char call[] = "vkmqaUpload";
    VkResult result = check(memory, call, offset, data, size);
    if (result || size == 0)
        return result;
    if (memory->mapped) {
        memcpy((char*)memory->mapped + offset, data, (size_t)size);
        return VK_SUCCESS;
    }
    return copy(memory, call, offset, data, NULL, size);
}

VkResult vkmqaDownload(VkmqaMemory memory, VkDeviceSize offset, void* data, VkDeviceSize size) {
    static const char call[] = "vkmqaDownload";
    VkResult result = check(memory, call, offset, data, size);
    if (result || size == 0)
        return result;
    if (memory->mapped) {
        memcpy(data, (const char*)memory->mapped + offset, (size_t)size);
        return VK_SUCCESS;
    }
    return copy(memory, call, offset, NULL, data, size);
}

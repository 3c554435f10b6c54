// Copies between buffers that run on the transfer queue while host and compute queue do something else.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>

enum { MAX_REGIONS = 256 }; // of one vkCmdCopyBuffer

// Made when none is idle, kept for the next copies, destroyed with the device.
struct VkmqaCopies {
    struct VkmqaCopies* next;
    enum { IDLE, PENDING, BROKEN } state; // broken: never to be used again, and not to be touched before a drain
    VkCommandPool pool;
    VkCommandBuffer commandBuffer;
    VkFence fence;
    // Where there are two queues: what compute has done before, and what it waits for. Both may be used again
    // as soon as the fence has signalled: the compute queue's wait stands before its next signal.
    VkSemaphore before, after;
};

static VkResult make_copies(VkmqaDevice device, const char* call, struct VkmqaCopies* made) {
    const struct VkmqaVk* vk = &device->loader.vk;
    VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT,
        .queueFamilyIndex = device->physical.transferFamily,
    };
    VkResult result = vk->CreateCommandPool(device->handle, &pool, vkmqa_device_allocator(device), &made->pool);
    if (result) { // after a failure handles hold anything
        made->pool = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateCommandPool");
    }
    VkCommandBufferAllocateInfo buffer = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = made->pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    result = vk->AllocateCommandBuffers(device->handle, &buffer, &made->commandBuffer);
    if (result)
        return vkmqa_device_result(device, result, call, "vkAllocateCommandBuffers");
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    result = vk->CreateFence(device->handle, &fence, vkmqa_device_allocator(device), &made->fence);
    if (result) {
        made->fence = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateFence");
    }
    VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
    if (device->transferQueue == device->computeQueue)
        return VK_SUCCESS;
    VkSemaphore* both[] = {&made->before, &made->after};
    for (int i = 0; i < 2 && result == VK_SUCCESS; i++) {
        result = vk->CreateSemaphore(device->handle, &semaphore, vkmqa_device_allocator(device), both[i]);
        if (result)
            *both[i] = VK_NULL_HANDLE;
    }
    return vkmqa_device_result(device, result, call, "vkCreateSemaphore");
}

static void destroy_copies(VkmqaDevice device, struct VkmqaCopies* copies) {
    const struct VkmqaVk* vk = &device->loader.vk;
    if (copies->after)
        vk->DestroySemaphore(device->handle, copies->after, vkmqa_device_allocator(device));
    if (copies->before)
        vk->DestroySemaphore(device->handle, copies->before, vkmqa_device_allocator(device));
    if (copies->fence)
        vk->DestroyFence(device->handle, copies->fence, vkmqa_device_allocator(device));
    if (copies->pool)
        vk->DestroyCommandPool(device->handle, copies->pool, vkmqa_device_allocator(device));
    vkmqa_free(vkmqa_device_allocator(device), copies);
}

void vkmqa_destroy_copies(VkmqaDevice device) {
    while (device->copies) {
        struct VkmqaCopies* copies = device->copies;
        device->copies = copies->next;
        destroy_copies(device, copies);
    }
}

void vkmqa_forget_copies(VkmqaDevice device) {
    while (device->copies) {
        struct VkmqaCopies* copies = device->copies;
        device->copies = copies->next;
        vkmqa_free(vkmqa_device_allocator(device), copies);
    }
}

static VkResult find_idle(VkmqaDevice device, const char* call, struct VkmqaCopies** found) {
    for (*found = device->copies; *found; *found = (*found)->next)
        if ((*found)->state == IDLE)
            return VK_SUCCESS;
    struct VkmqaCopies* made = vkmqa_allocate(vkmqa_device_allocator(device), sizeof *made);
    if (!made)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "the host allocator");
    VkResult result = make_copies(device, call, made);
    if (result) {
        destroy_copies(device, made);
        return result;
    }
    made->next = device->copies;
    device->copies = *found = made;
    return VK_SUCCESS;
}

static bool continues(const VkBufferCopy* region, const VkBufferCopy* next) {
    return region->srcOffset + region->size == next->srcOffset &&
           region->dstOffset + region->size == next->dstOffset;
}

// Neighbours between the same buffers go together, and what lies side by side is one region.
static void record_copies(const struct VkmqaVk* vk, VkCommandBuffer commandBuffer, uint32_t count,
                          const struct VkmqaCopy* copies) {
    VkBufferCopy regions[MAX_REGIONS];
    uint32_t regionCount = 0;
    for (uint32_t i = 0; i < count; ++i) {
        const struct VkmqaCopy* copy = &copies[i];
        if (regionCount && continues(&regions[regionCount - 1], &copy->region))
            regions[regionCount - 1].size += copy->region.size;
        else
            regions[regionCount++] = copy->region;
        bool last = i + 1 == count || copies[i + 1].from != copy->from || copies[i + 1].to != copy->to;
        if (!last && regionCount < MAX_REGIONS)
            continue;
        vk->CmdCopyBuffer(commandBuffer, copy->from, copy->to, regionCount, regions);
        regionCount = 0;
    }
}

static VkResult submit_copies(VkmqaDevice device, const char* call, struct VkmqaCopies* copies, bool computeWaits,
                              const char** what) {
    const struct VkmqaVk* vk = &device->loader.vk;
    const VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    bool queues = device->transferQueue != device->computeQueue;
    *what = "vkResetFences";
    VkResult result = vk->ResetFences(device->handle, 1, &copies->fence);
    if (result)
        return result;
    *what = "vkQueueSubmit";
    VkSubmitInfo before = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .signalSemaphoreCount = 1,
        .pSignalSemaphores = &copies->before,
    };
    if (queues)
        result = vkmqa_submit(device, device->computeQueue, 1, &before, VK_NULL_HANDLE);
    if (result)
        return result;
    copies->state = BROKEN; // from here on until all is submitted
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .waitSemaphoreCount = queues,
        .pWaitSemaphores = &copies->before,
        .pWaitDstStageMask = &all,
        .commandBufferCount = 1,
        .pCommandBuffers = &copies->commandBuffer,
        .signalSemaphoreCount = queues && computeWaits,
        .pSignalSemaphores = &copies->after,
    };
    result = vkmqa_submit(device, device->transferQueue, 1, &submit, copies->fence);
    VkSubmitInfo after = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .waitSemaphoreCount = 1,
        .pWaitSemaphores = &copies->after,
        .pWaitDstStageMask = &all,
    };
    if (result)
        return result;
    if (queues && computeWaits) {
        result = vkmqa_submit(device, device->computeQueue, 1, &after, VK_NULL_HANDLE);
        if (result) { // the caller reuses what the copies write to
            vkmqa_drain_device(device, call);
            return result;
        }
    }
    copies->state = PENDING;
    return VK_SUCCESS;
}

VkResult vkmqa_start_copies(VkmqaDevice device, const char* call, uint32_t count,
                            const struct VkmqaCopy* copies, bool computeWaits,
                            struct VkmqaCopies** pending) {
    const struct VkmqaVk* vk = &device->loader.vk;
    *pending = NULL;
    VkResult result = vkmqa_check_device(device, call);
    struct VkmqaCopies* made = NULL;
    if (result == VK_SUCCESS)
        result = find_idle(device, call, &made);
    if (result)
        return result;
    const char* what = "vkResetCommandPool";
    VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    result = vk->ResetCommandPool(device->handle, made->pool, 0);
    if (result == VK_SUCCESS) {
        what = "vkBeginCommandBuffer";
        result = vk->BeginCommandBuffer(made->commandBuffer, &begin);
    }
    if (result == VK_SUCCESS) {
        vkmqa_cmd_full_barrier(vk, made->commandBuffer);
        record_copies(vk, made->commandBuffer, count, copies);
        vkmqa_cmd_full_barrier(vk, made->commandBuffer);
        what = "vkEndCommandBuffer";
        result = vk->EndCommandBuffer(made->commandBuffer);
    }
    if (result == VK_SUCCESS)
        result = submit_copies(device, call, made, computeWaits, &what);
    if (result)
        return vkmqa_device_result(device, result, call, what);
    *pending = made;
    return VK_SUCCESS;
}

VkResult vkmqa_finish_copies(VkmqaDevice device, const char* call, uint64_t timeoutNs,
                             struct VkmqaCopies** pending) {
    struct VkmqaCopies* copies = *pending;
    VkResult result = vkmqa_check_device(device, call);
    if (result == VK_SUCCESS) {
        result = device->loader.vk.WaitForFences(device->handle, 1, &copies->fence, VK_TRUE, timeoutNs);
        if (result == VK_TIMEOUT)
            return result;
        result = vkmqa_device_result(device, result, call, "vkWaitForFences");
        if (result < 0 && vkmqa_drain_device(device, call) != VK_SUCCESS)
            return result; // nothing to be learned from the fence, and nothing may be reused
    }
    copies->state = result == VK_SUCCESS ? IDLE : BROKEN;
    *pending = NULL;
    return result;
}

// Command buffers with a fence, a recorder and the time they took.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

// Enough for the layers of the largest models, append and attention each, some steps long.
#define RECORDER_CALLS 1024u

enum State {
    STATE_EMPTY,     // nothing recorded
    STATE_RECORDING, // between begin and submit
    STATE_READY,     // recorded and not submitted, or finished
    STATE_PENDING,   // submitted
};

struct VkmqaCommands_T {
    uint32_t magic;
    enum State state;
    VkmqaDevice device;
    VkCommandPool pool;
    VkCommandBuffer commandBuffer;
    VkFence fence;
    VkQueryPool queries; // two timestamps; null where the queue has none
    VkmqaRecorder recorder;
    double seconds;
    VkmqaCommands nextLeft; // of VkmqaDevice_T::leftCommands
};

static bool is_commands(VkmqaCommands commands) {
    return commands && commands->magic == VKMQA_MAGIC_COMMANDS;
}

VkmqaDevice vkmqa_commands_device(VkmqaCommands commands) {
    return is_commands(commands) ? commands->device : NULL;
}

static VkResult check(VkmqaCommands commands, const char* call) {
    if (!is_commands(commands))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    return vkmqa_check_device(commands->device, call);
}

static VkResult make(VkmqaCommands commands, const char* call) {
    VkmqaDevice device = commands->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .queueFamilyIndex = device->physical.computeFamily,
    };
    VkResult result = vk->CreateCommandPool(device->handle, &pool, vkmqa_device_allocator(device), &commands->pool);
    if (result) {
        commands->pool = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateCommandPool");
    }
    VkCommandBufferAllocateInfo buffer = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = commands->pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    result = vk->AllocateCommandBuffers(device->handle, &buffer, &commands->commandBuffer);
    if (result) {
        commands->commandBuffer = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkAllocateCommandBuffers");
    }
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    result = vk->CreateFence(device->handle, &fence, vkmqa_device_allocator(device), &commands->fence);
    if (result) {
        commands->fence = VK_NULL_HANDLE;
        return vkmqa_device_result(device, result, call, "vkCreateFence");
    }
    if (device->physical.timestampBits) {
        VkQueryPoolCreateInfo queries = {
            .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
            .queryType = VK_QUERY_TYPE_TIMESTAMP,
            .queryCount = 2,
        };
        result = vk->CreateQueryPool(device->handle, &queries, vkmqa_device_allocator(device), &commands->queries);
        if (result) {
            commands->queries = VK_NULL_HANDLE;
            return vkmqa_device_result(device, result, call, "vkCreateQueryPool");
        }
    }
    VkmqaRecorderCreateInfo recorder = {.structSize = sizeof(recorder), .maxCalls = RECORDER_CALLS};
    result = vkmqaCreateRecorder(device->context, &recorder, &commands->recorder);
    if (result)
        commands->recorder = NULL;
    return vkmqa_device_result(device, result, call, "vkmqaCreateRecorder");
}

static void destroy(VkmqaCommands commands) {
    VkmqaDevice device = commands->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    VkDevice handle = device->handle;
    const bool inherited = device->processId != vkmqa_process_id(); // see vkmqaCloseDevice
    vkmqaDestroyRecorder(commands->recorder);
    if (commands->queries && !inherited)
        vk->DestroyQueryPool(handle, commands->queries, vkmqa_device_allocator(device));
    if (commands->fence && !inherited)
        vk->DestroyFence(handle, commands->fence, vkmqa_device_allocator(device));
    if (commands->pool && !inherited)
        vk->DestroyCommandPool(handle, commands->pool, vkmqa_device_allocator(device));
    commands->magic = 0;
    vkmqa_free(vkmqa_device_allocator(device), commands);
}

void vkmqa_destroy_left_commands(VkmqaDevice device) {
    while (device->leftCommands) {
        VkmqaCommands commands = device->leftCommands;
        device->leftCommands = commands->nextLeft;
        destroy(commands);
    }
}

VkResult vkmqaCreateCommands(VkmqaDevice device, VkmqaCommands* commands) {
    static const char call[] = "vkmqaCreateCommands";
    if (commands)
        *commands = NULL;
    VkResult result = vkmqa_check_device(device, call);
    if (result)
        return result;
    if (!commands)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: commands is null; pass a VkmqaCommands to fill", call);
    VkmqaCommands made = vkmqa_allocate(vkmqa_device_allocator(device), sizeof(*made));
    if (!made)
        return vkmqa_device_result(device, VK_ERROR_OUT_OF_HOST_MEMORY, call, "the host allocator");
    made->magic = VKMQA_MAGIC_COMMANDS;
    made->device = device;
    result = make(made, call);
    if (result) {
        destroy(made);
        return result;
    }
    device->commandsCount++;
    *commands = made;
    return VK_SUCCESS;
}

// The device's seconds between the two timestamps, 0 where they are not to be had.
static double read_seconds(VkmqaCommands commands) {
    VkmqaDevice device = commands->device;
    uint64_t ticks[2];
    if (!commands->queries || device->loader.vk.GetQueryPoolResults(
                                  device->handle, commands->queries, 0, 2, sizeof(ticks), ticks,
                                  sizeof(ticks[0]), VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
        return 0.0;
    uint32_t bits = device->physical.timestampBits;
    uint64_t mask = bits >= 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1; // counters wrap around
    return (double)((ticks[1] - ticks[0]) & mask) * 1e-9 *
           (double)device->physical.properties.timestampPeriod;
}

static VkResult wait_pending(VkmqaCommands commands, const char* call, uint64_t timeoutNs) {
    VkmqaDevice device = commands->device;
    if (commands->state != STATE_PENDING)
        return VK_SUCCESS;
    VkResult result =
        device->loader.vk.WaitForFences(device->handle, 1, &commands->fence, VK_TRUE, timeoutNs);
    if (result == VK_TIMEOUT)
        return VK_TIMEOUT; // an answer rather than an error
    if (result)
        return vkmqa_device_result(device, result, call, "vkWaitForFences");
    commands->state = STATE_READY;
    commands->seconds = read_seconds(commands);
    return VK_SUCCESS;
}

void vkmqaDestroyCommands(VkmqaCommands commands) {
    static const char call[] = "vkmqaDestroyCommands";
    if (!is_commands(commands))
        return;
    VkmqaDevice device = commands->device;
    device->commandsCount--;
    if (device->processId != vkmqa_process_id()) {
        destroy(commands);
        return;
    }
    VkResult result = device->lost && commands->state == STATE_PENDING
                          ? VK_ERROR_DEVICE_LOST
                          : wait_pending(commands, call, device->waitLimitNs);
    if (result < 0) // nothing to be learned from the fence
        result = vkmqa_drain_device(device, call);
    if (result) {
        vkmqa_device_fail(&device->messenger, VK_TIMEOUT,
                          "%s: the commands had not finished after %llu s, so they are left to "
                          "vkmqaCloseDevice rather than destroyed while they run",
                          call, (unsigned long long)(device->waitLimitNs / 1000000000));
        commands->magic = 0;
        commands->nextLeft = device->leftCommands;
        device->leftCommands = commands;
        return;
    }
    destroy(commands);
}

VkResult vkmqaBeginCommands(VkmqaCommands commands) {
    static const char call[] = "vkmqaBeginCommands";
    VkResult result = check(commands, call);
    if (result)
        return result;
    VkmqaDevice device = commands->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    result = wait_pending(commands, call, 0);
    if (result == VK_TIMEOUT)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: the commands are still pending; call vkmqaWaitCommands first",
                                 call);
    if (result)
        return result;
    commands->state = STATE_EMPTY;
    result = vkmqaResetRecorder(commands->recorder);
    if (result)
        return vkmqa_device_result(device, result, call, "vkmqaResetRecorder");
    result = vk->ResetCommandPool(device->handle, commands->pool, 0);
    if (result)
        return vkmqa_device_result(device, result, call, "vkResetCommandPool");
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    result = vk->BeginCommandBuffer(commands->commandBuffer, &begin);
    if (result)
        return vkmqa_device_result(device, result, call, "vkBeginCommandBuffer");
    vkmqa_cmd_full_barrier(vk, commands->commandBuffer);
    if (commands->queries) {
        // At the bottom of the pipe, so that earlier submissions are not counted.
        vk->CmdResetQueryPool(commands->commandBuffer, commands->queries, 0, 2);
        vk->CmdWriteTimestamp(commands->commandBuffer, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT,
                              commands->queries, 0);
    }
    commands->state = STATE_RECORDING;
    return VK_SUCCESS;
}

VkCommandBuffer vkmqaGetCommandBuffer(VkmqaCommands commands) {
    return is_commands(commands) && commands->state == STATE_RECORDING ? commands->commandBuffer
                                                                       : VK_NULL_HANDLE;
}

VkmqaRecorder vkmqaGetCommandsRecorder(VkmqaCommands commands) {
    return is_commands(commands) ? commands->recorder : NULL;
}

VkResult vkmqaSubmitCommands(VkmqaCommands commands) {
    static const char call[] = "vkmqaSubmitCommands";
    VkResult result = check(commands, call);
    if (result)
        return result;
    VkmqaDevice device = commands->device;
    const struct VkmqaVk* vk = &device->loader.vk;
    result = wait_pending(commands, call, 0);
    if (result < 0)
        return result;
    if (result == VK_TIMEOUT || commands->state == STATE_EMPTY)
        return vkmqa_device_fail(&device->messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 commands->state == STATE_EMPTY
                                     ? "%s: nothing is recorded; call vkmqaBeginCommands first"
                                     : "%s: the commands are still pending; call "
                                       "vkmqaWaitCommands first",
                                 call);
    if (commands->state == STATE_RECORDING) {
        if (commands->queries)
            vk->CmdWriteTimestamp(commands->commandBuffer, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT,
                                  commands->queries, 1);
        vkmqa_cmd_full_barrier(vk, commands->commandBuffer);
        result = vk->EndCommandBuffer(commands->commandBuffer);
        commands->state = result ? STATE_EMPTY : STATE_READY;
        if (result)
            return vkmqa_device_result(device, result, call, "vkEndCommandBuffer");
    }
    result = vk->ResetFences(device->handle, 1, &commands->fence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkResetFences");
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = &commands->commandBuffer,
    };
    result = vkmqa_submit(device, device->computeQueue, 1, &submit, commands->fence);
    if (result)
        return vkmqa_device_result(device, result, call, "vkQueueSubmit");
    commands->state = STATE_PENDING;
    return VK_SUCCESS;
}

VkResult vkmqaWaitCommands(VkmqaCommands commands, uint64_t timeoutNs) {
    static const char call[] = "vkmqaWaitCommands";
    VkResult result = check(commands, call);
    return result ? result : wait_pending(commands, call, timeoutNs);
}

double vkmqaGetCommandsTime(VkmqaCommands commands) {
    return is_commands(commands) ? commands->seconds : 0.0;
}

// Descriptor sets of the portable tier, where push descriptors are not enabled.
// SPDX-License-Identifier: MIT
#include "recorder.h"

VkResult vkmqaCreateRecorder(VkmqaContext context, const VkmqaRecorderCreateInfo* given,
                             VkmqaRecorder* result) {
    static const char call[] = "vkmqaCreateRecorder";
    if (result)
        *result = NULL;
    if (!vkmqa_is_context(context) || vkmqa_check_process(context, call) != VK_SUCCESS)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaRecorderCreateInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    if (!result)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: recorder is null; give a place for the handle", call);
    if (info.maxCalls == 0 || info.maxCalls > 1u << 20)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: info.maxCalls is %u; use 1 to %u", call, info.maxCalls, 1u << 20);
    struct VkmqaRecorder_T* recorder = vkmqa_allocate(vkmqa_allocator(context), sizeof *recorder);
    if (!recorder)
        return vkmqa_fail(context, VK_ERROR_OUT_OF_HOST_MEMORY,
                          "%s: no memory for the object", call);
    recorder->context = context;
    recorder->setCount = info.maxCalls * 2; // attention and merge
    // Nothing to pool where descriptors are pushed or never used.
    if (!context->caps.pushDescriptor && context->bindLayout) {
        VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                     recorder->setCount * VKMQA_BIND_COUNT};
        VkDescriptorPoolCreateInfo poolInfo = {
            .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
            .maxSets = recorder->setCount,
            .poolSizeCount = 1,
            .pPoolSizes = &size,
        };
        VkResult error = context->vk.CreateDescriptorPool(context->device, &poolInfo,
                                                          vkmqa_allocator(context), &recorder->pool);
        if (error != VK_SUCCESS) {
            vkmqa_free(vkmqa_allocator(context), recorder);
            return vkmqa_fail(context, error,
                              "%s: Vulkan could not create the descriptor pool (%d)", call, error);
        }
    }
    recorder->magic = VKMQA_MAGIC_RECORDER;
    *result = recorder;
    return VK_SUCCESS;
}

VkResult vkmqaResetRecorder(VkmqaRecorder recorder) {
    if (!recorder || recorder->magic != VKMQA_MAGIC_RECORDER)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaContext_T* context = recorder->context;
    if (vkmqa_check_process(context, "vkmqaResetRecorder") != VK_SUCCESS)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    recorder->setsUsed = 0;
    if (!recorder->pool)
        return VK_SUCCESS;
    return context->vk.ResetDescriptorPool(context->device, recorder->pool, 0);
}

void vkmqaDestroyRecorder(VkmqaRecorder recorder) {
    if (!recorder || recorder->magic != VKMQA_MAGIC_RECORDER)
        return;
    struct VkmqaContext_T* context = recorder->context;
    if (!vkmqa_is_inherited(context))
        context->vk.DestroyDescriptorPool(context->device, recorder->pool, vkmqa_allocator(context));
    recorder->magic = 0;
    vkmqa_free(vkmqa_allocator(context), recorder);
}

VkResult vkmqa_check_recorder(const struct VkmqaContext_T* context, const char* call, VkmqaRecorder recorder,
                              uint32_t sets) {
    const bool needed = sets > 0 && !context->caps.pushDescriptor;
    if (recorder ? recorder->magic != VKMQA_MAGIC_RECORDER : needed)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: info.recorder is %s; kernels with descriptors, where none can be pushed, need a "
                          "VkmqaRecorder", call, recorder ? "not a VkmqaRecorder" : "null");
    if (recorder && recorder->context != context)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: info.recorder belongs to another context; use one of this context", call);
    if (needed && recorder->setCount - recorder->setsUsed < sets)
        return vkmqa_fail(context, VK_ERROR_OUT_OF_POOL_MEMORY,
                          "%s: info.recorder is full after maxCalls %u; reset it, or create it with more", call,
                          recorder->setCount / 2);
    return VK_SUCCESS;
}

VkResult vkmqa_make_sets(const struct VkmqaContext_T* context, VkmqaRecorder recorder,
                         uint32_t count, VkDescriptorSet* sets) {
    if (context->caps.pushDescriptor)
        return VK_SUCCESS;
    VkDescriptorSetLayout layouts[2] = {context->setLayout, context->setLayout};
    VkDescriptorSetAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
        .descriptorPool = recorder->pool,
        .descriptorSetCount = count, // 1 or 2: all or none
        .pSetLayouts = layouts,
    };
    VkResult result = context->vk.AllocateDescriptorSets(context->device, &info, sets);
    if (result != VK_SUCCESS)
        return vkmqa_fail(context, result, "Vulkan could not allocate descriptor sets (%d)", result);
    recorder->setsUsed += count;
    return VK_SUCCESS;
}

void vkmqa_bind_buffers(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer,
                        VkDescriptorSet set, const VkDescriptorBufferInfo buffers[VKMQA_BIND_COUNT]) {
    VkWriteDescriptorSet write = {
        .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
        .dstSet = set,
        .descriptorCount = VKMQA_BIND_COUNT, // consecutive bindings
        .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
        .pBufferInfo = buffers,
    };
    if (context->caps.pushDescriptor) {
        context->vk.CmdPushDescriptorSetKHR(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE,
                                            context->bindLayout, 0, 1, &write);
    } else {
        context->vk.UpdateDescriptorSets(context->device, 1, &write, 0, NULL);
        context->vk.CmdBindDescriptorSets(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE,
                                          context->bindLayout, 0, 1, &set, 0, NULL);
    }
}

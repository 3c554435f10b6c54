// What recording calls have in common. SPDX-License-Identifier: MIT
#include "call.h"

#include <string.h>

void vkmqa_reject(struct VkmqaCall* call, const char* format, ...) {
    if (call->result != VK_SUCCESS)
        return;
    struct VkmqaProblem problem;
    va_list arguments;
    va_start(arguments, format);
    vkmqa_problem_list(&problem, format, arguments);
    va_end(arguments);
    call->result = vkmqa_fail(call->attention->context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s",
                              call->name, problem.text);
}

// The one before `extent` that shares bytes with it, where one of the two is written. Scratch is given in parts.
static const struct VkmqaExtent* find_overlap(const struct VkmqaExtent* before, uint32_t count,
                                              const struct VkmqaExtent* extent) {
    for (uint32_t i = 0; i < count; ++i)
        if ((extent->writes || before[i].writes) && extent->field != before[i].field &&
            extent->buffer == before[i].buffer && extent->start < before[i].start + before[i].bytes &&
            before[i].start < extent->start + extent->bytes)
            return &before[i];
    return NULL;
}

static void add_range(struct VkmqaCall* call, struct VkmqaExtent range) {
    const struct VkmqaExtent* other = find_overlap(call->ranges, call->rangeCount, &range);
    if (other)
        vkmqa_reject(call, "%s overlaps %s, and this call writes %s; give it a place of its own", range.field,
                     other->field, range.writes ? range.field : other->field);
    else if (call->result == VK_SUCCESS)
        call->ranges[call->rangeCount++] = range;
}

static uint64_t check_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer, uint64_t bytes,
                             uint32_t binding) {
    const struct VkmqaContext_T* context = call->attention->context;
    if (call->result != VK_SUCCESS)
        return 0;
    bool bind = call->attention->choice.bind;
    if (!buffer->buffer && !buffer->address) {
        vkmqa_reject(call, "%s has no buffer and no address; this call needs %llu bytes there (of a range outside "
                           "its memory vkmqaGetMemoryRange gives nothing)", field, (unsigned long long)bytes);
        return 0;
    }
    if (!buffer->buffer && bind) {
        vkmqa_reject(call, "%s has no buffer, only an address; give the VkBuffer too, which kernels with "
                           "descriptors need", field);
        return 0;
    }
    if (buffer->size < bytes) {
        vkmqa_reject(call, "%s.size is %llu; this call touches %llu bytes", field,
               (unsigned long long)buffer->size, (unsigned long long)bytes);
        return 0;
    }
    if (buffer->offset % 16 != 0 || buffer->address % 16 != 0) {
        vkmqa_reject(call, "%s.%s is 0x%llx; use a multiple of 16", field,
               buffer->offset % 16 ? "offset" : "address",
               (unsigned long long)(buffer->offset % 16 ? buffer->offset : buffer->address));
        return 0;
    }
    if (buffer->size > UINT64_MAX - buffer->offset || buffer->size > UINT64_MAX - buffer->address) {
        vkmqa_reject(call, "%s.size is %llu; offset or address plus size pass 64 bits", field,
               (unsigned long long)buffer->size);
        return 0;
    }
    if (!bind) {
        if (buffer->address)
            return buffer->address;
        VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                          .buffer = buffer->buffer};
        VkDeviceAddress address = context->vk.GetBufferDeviceAddress(context->device, &info);
        if (!address)
            vkmqa_reject(call, "%s.buffer has no device address; create it with "
                         "VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT", field);
        else if (address % 16 != 0)
            vkmqa_reject(call, "%s.buffer lies at the address 0x%llx; bind it at a multiple of 16", field,
                   (unsigned long long)address);
        return address + buffer->offset;
    }
    uint64_t before = buffer->offset % context->caps.storageAlignment;
    uint64_t range = (before + bytes + 15) & ~(uint64_t)15; // kernels load 16 bytes at a time
    if (range > before + buffer->size)
        range = before + buffer->size;
    if (range > context->caps.maxStorageRange) {
        vkmqa_reject(call, "%s takes %llu bytes, and kernels with descriptors reach %llu "
                     "(maxStorageBufferRange)", field, (unsigned long long)range,
               (unsigned long long)context->caps.maxStorageRange);
        return 0;
    }
    call->buffers[binding] = (VkDescriptorBufferInfo){buffer->buffer, buffer->offset - before, range};
    return before;
}

static uint64_t use_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer, uint64_t bytes,
                           uint32_t binding, bool writes) {
    bool bind = call->attention->choice.bind;
    uint64_t place = check_buffer(call, field, buffer, bytes, binding);
    if (call->result == VK_SUCCESS)
        add_range(call, (struct VkmqaExtent){.field = field,
                                             .buffer = bind ? buffer->buffer : VK_NULL_HANDLE,
                                             .start = bind ? buffer->offset : place,
                                             .bytes = bytes,
                                             .writes = writes});
    return place;
}

uint64_t vkmqa_use_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer,
                          uint64_t bytes, uint32_t binding) {
    return use_buffer(call, field, buffer, bytes, binding, false);
}

uint64_t vkmqa_write_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer,
                            uint64_t bytes, uint32_t binding) {
    return use_buffer(call, field, buffer, bytes, binding, true);
}

// Kernels reach it by 32-bit offsets, or through one descriptor.
static uint64_t metadata_bytes(const struct VkmqaCall* call, const VkmqaStep* step) {
    uint64_t reach = UINT32_MAX & ~15u;
    const struct VkmqaCaps* caps = &call->attention->context->caps;
    if (call->attention->choice.bind && caps->maxStorageRange - caps->storageAlignment < reach)
        reach = caps->maxStorageRange - caps->storageAlignment;
    return (step->metadata.size < reach ? step->metadata.size : reach) & ~3ull;
}

uint32_t vkmqa_read_word(struct VkmqaCall* call, const char* field, uint32_t offset, uint64_t count,
                          const VkmqaStep* step, bool optional) {
    if (offset == VKMQA_NONE && optional)
        return VKMQA_ABSENT;
    if (offset % 4 != 0)
        vkmqa_reject(call, "step.layout.%s is %u; use a multiple of 4", field, offset);
    else if (count * 4 > metadata_bytes(call, step) ||
             offset > metadata_bytes(call, step) - count * 4)
        vkmqa_reject(call, "step.layout.%s is %u: its %llu entries pass what kernels reach of "
                     "step.metadata, %llu bytes", field, offset, (unsigned long long)count,
               (unsigned long long)metadata_bytes(call, step));
    struct VkmqaExtent array = {.field = field, .start = offset, .bytes = count * 4, .writes = true};
    const struct VkmqaExtent* other = find_overlap(call->arrays, call->arrayCount, &array);
    // Queries that are rotated with the new rows may share their positions.
    if (other && !(other->start == offset && strcmp(field, "queryPositions") == 0 &&
                   strcmp(other->field, "positions") == 0))
        vkmqa_reject(call, "step.layout.%s is %u: its %llu entries overlap those of %s at %llu; vkmqaGetStepLayout "
                           "gives each a place", field, offset, (unsigned long long)count, other->field,
                     (unsigned long long)other->start);
    if (call->result == VK_SUCCESS)
        call->arrays[call->arrayCount++] = array;
    return offset / 4;
}

uint64_t vkmqa_use_step(struct VkmqaCall* call, const VkmqaStep* step) {
    uint64_t place = vkmqa_use_buffer(call, "step.metadata", &step->metadata, metadata_bytes(call, step),
                                      VKMQA_BIND_STEP);
    if (call->result != VK_SUCCESS)
        return place;
    struct VkmqaExtent* range = &call->ranges[call->rangeCount - 1];
    range->bytes = 0; // what lies behind the last array is not the call's
    for (uint32_t i = 0; i < call->arrayCount; ++i)
        if (range->bytes < call->arrays[i].start + call->arrays[i].bytes)
            range->bytes = call->arrays[i].start + call->arrays[i].bytes;
    return place;
}

bool vkmqa_read_step(struct VkmqaCall* call, const VkmqaStep* given, VkmqaStep* step,
                      VkmqaStepLimits* limits) {
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, step, sizeof *step, sizeof *step, "step", &problem) ||
        !vkmqa_make_limits(&call->attention->shape, &step->limits, limits, &problem)) {
        vkmqa_reject(call, "%s", problem.text);
        return false;
    }
    return true;
}

uint64_t vkmqa_read_strides(struct VkmqaCall* call, const char* field, VkmqaStrides given,
                             uint32_t tokens, uint32_t heads, uint32_t dim, VkmqaType type,
                             VkmqaStrides* strides) {
    uint32_t grain = 16 / vkmqa_type_size(type);
    strides->head = given.head ? given.head : dim;
    strides->token = given.token ? given.token : strides->head * heads;
    if (strides->head % grain || strides->token % grain)
        vkmqa_reject(call, "%s is {%u, %u}; use multiples of %u elements of %s", field, given.token,
               given.head, grain, vkmqa_type_name(type));
    else if (strides->head < dim && heads > 1)
        vkmqa_reject(call, "%s.head is %u; heads of %u elements would overlap", field, given.head, dim);
    else if ((uint64_t)strides->head * heads > 1u << 28 || strides->token > 1u << 28)
        vkmqa_reject(call, "%s is {%u, %u}; use at most %u elements per token", field, given.token,
               given.head, 1u << 28);
    uint64_t last = (uint64_t)(tokens - 1) * strides->token + (uint64_t)(heads - 1) * strides->head;
    return (last + dim) * vkmqa_type_size(type);
}

void vkmqa_check_apart(struct VkmqaCall* call, const char* field, const VkmqaStrides* strides,
                       uint32_t tokens, uint32_t heads, uint32_t dim) {
    uint64_t byToken = (uint64_t)(heads - 1) * strides->head + dim; // [tokens, heads, dim]
    uint64_t byHead = (uint64_t)(tokens - 1) * strides->token + dim; // [heads, tokens, dim]
    if (strides->token < dim || (tokens > 1 && strides->token < byToken && strides->head < byHead))
        vkmqa_reject(call, "%s.token is %u; tokens of %u heads of %u elements would overlap", field,
                     strides->token, heads, dim);
}

void vkmqa_use_cache(struct VkmqaCall* call, const VkmqaKv* kv, bool writes, uint64_t* k, uint64_t* v) {
    struct VkmqaProblem problem;
    struct VkmqaCacheBytes bytes;
    if (!kv) {
        vkmqa_reject(call, "info.kv is null; give the layer's cache");
        return;
    }
    if (!vkmqa_cache_bytes(&call->attention->shape, kv->numPages, &bytes, &problem)) {
        vkmqa_reject(call, "kv.%s", problem.text);
        return;
    }
    *k = use_buffer(call, "kv.k", &kv->k, bytes.allK, VKMQA_BIND_K, writes);
    if (call->attention->shape.vPrefix) {
        *v = *k;
        call->buffers[VKMQA_BIND_V] = call->buffers[VKMQA_BIND_K];
    } else {
        *v = use_buffer(call, "kv.v", &kv->v, bytes.allV, VKMQA_BIND_V, writes);
    }
}

uint64_t vkmqa_use_parameters(struct VkmqaCall* call, const VkmqaBuffer* parameters, bool needed) {
    if (!needed)
        return 0;
    return vkmqa_use_buffer(call, "info.parameters", parameters,
                            vkmqa_parameter_bytes(&call->attention->shape), VKMQA_BIND_PARAMS);
}

VkResult vkmqa_check_call(VkmqaAttention attention, VkCommandBuffer commandBuffer, const char* name) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!commandBuffer)
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: commandBuffer is null; give one in the recording state", name);
    return VK_SUCCESS;
}

void vkmqa_order(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer) {
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT,
    };
    context->vk.CmdPipelineBarrier(commandBuffer, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                   VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0, NULL, 0,
                                   NULL);
}

void vkmqa_take_sets(struct VkmqaCall* call, VkmqaRecorder recorder, uint32_t count,
                     VkDescriptorSet* sets) {
    const struct VkmqaContext_T* context = call->attention->context;
    if (call->result == VK_SUCCESS)
        call->result = vkmqa_check_recorder(context, call->name, recorder, call->attention->choice.bind ? count : 0);
    if (call->result == VK_SUCCESS && call->attention->choice.bind)
        call->result = vkmqa_make_sets(context, recorder, count, sets);
}

void vkmqa_bind(struct VkmqaCall* call, VkCommandBuffer commandBuffer, VkPipeline pipeline,
                VkDescriptorSet set, const void* push, uint32_t pushSize) {
    const struct VkmqaContext_T* context = call->attention->context;
    bool bind = call->attention->choice.bind;
    vkmqa_order(context, commandBuffer);
    context->vk.CmdBindPipeline(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    if (bind) {
        // Descriptors of bindings that a kernel does not touch must still be valid: any will do.
        const VkDescriptorBufferInfo* any = call->buffers;
        while (!any->buffer)
            ++any;
        for (uint32_t i = 0; i < VKMQA_BIND_COUNT; ++i)
            if (!call->buffers[i].buffer)
                call->buffers[i] = *any;
        vkmqa_bind_buffers(context, commandBuffer, set, call->buffers);
    }
    context->vk.CmdPushConstants(commandBuffer, bind ? context->bindLayout : context->addressLayout,
                                 VK_SHADER_STAGE_COMPUTE_BIT, 0, pushSize, push);
}

void vkmqa_dispatch(struct VkmqaCall* call, VkCommandBuffer commandBuffer, VkPipeline pipeline,
                    VkDescriptorSet set, const void* push, uint32_t pushSize,
                    const uint32_t groups[3]) {
    vkmqa_bind(call, commandBuffer, pipeline, set, push, pushSize);
    call->attention->context->vk.CmdDispatch(commandBuffer, groups[0], groups[1], groups[2]);
}

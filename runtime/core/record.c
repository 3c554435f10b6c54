// From a call's buffers to dispatches. Everything is checked before anything is recorded.
// SPDX-License-Identifier: MIT
#include "recorder.h"

#include <math.h>
#include <string.h>

// What a call needs of the device, collected while its buffers are checked: device addresses, or
// descriptors and the bytes between bound and wanted offset.
struct Call {
    const struct VkmqaAttention_T* attention;
    const char* name;
    VkResult result; // of the first wrong argument
    VkDescriptorBufferInfo buffers[VKMQA_BIND_COUNT];
};

static void reject(struct Call* call, const char* format, ...) {
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

// Checks a buffer for `bytes` bytes and returns what the kernel gets for it: its address, or the bytes
// from the bound offset on, `binding` being bound accordingly.
static uint64_t use_buffer(struct Call* call, const char* field, const VkmqaBuffer* buffer,
                           uint64_t bytes, uint32_t binding) {
    const struct VkmqaContext_T* context = call->attention->context;
    if (call->result != VK_SUCCESS)
        return 0;
    bool bind = call->attention->choice.bind;
    if (!buffer->buffer && (bind || !buffer->address)) {
        reject(call, "%s has no buffer%s; give a VkBuffer%s", field, bind ? "" : " and no address",
               bind ? ", which kernels with descriptors need" : " or a device address");
        return 0;
    }
    if (buffer->size < bytes) {
        reject(call, "%s.size is %llu; this call touches %llu bytes", field,
               (unsigned long long)buffer->size, (unsigned long long)bytes);
        return 0;
    }
    if (buffer->offset % 16 != 0 || buffer->address % 16 != 0) {
        reject(call, "%s.%s is 0x%llx; use a multiple of 16", field,
               buffer->offset % 16 ? "offset" : "address",
               (unsigned long long)(buffer->offset % 16 ? buffer->offset : buffer->address));
        return 0;
    }
    if (buffer->size > UINT64_MAX - buffer->offset || buffer->size > UINT64_MAX - buffer->address) {
        reject(call, "%s.size is %llu; offset or address plus size pass 64 bits", field,
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
            reject(call, "%s.buffer has no device address; create it with "
                         "VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT", field);
        else if (address % 16 != 0)
            reject(call, "%s.buffer lies at the address 0x%llx; bind it at a multiple of 16", field,
                   (unsigned long long)address);
        return address + buffer->offset;
    }
    uint64_t before = buffer->offset % context->caps.storageAlignment;
    uint64_t range = (before + bytes + 15) & ~(uint64_t)15; // kernels load 16 bytes at a time
    if (range > before + buffer->size)
        range = before + buffer->size;
    if (range > context->caps.maxStorageRange) {
        reject(call, "%s takes %llu bytes, and kernels with descriptors reach %llu "
                     "(maxStorageBufferRange)", field, (unsigned long long)range,
               (unsigned long long)context->caps.maxStorageRange);
        return 0;
    }
    call->buffers[binding] = (VkDescriptorBufferInfo){buffer->buffer, buffer->offset - before, range};
    return before;
}

// ---- what calls have in common ---------------------------------------------------------------

// Kernels reach it by 32-bit offsets, or through one descriptor.
static uint64_t metadata_bytes(const struct Call* call, const VkmqaStep* step) {
    uint64_t reach = UINT32_MAX & ~15u;
    const struct VkmqaCaps* caps = &call->attention->context->caps;
    if (call->attention->choice.bind && caps->maxStorageRange - caps->storageAlignment < reach)
        reach = caps->maxStorageRange - caps->storageAlignment;
    return (step->metadata.size < reach ? step->metadata.size : reach) & ~3ull;
}

static uint32_t read_word(struct Call* call, const char* field, uint32_t offset, uint64_t count,
                          const VkmqaStep* step, bool optional) {
    if (offset == VKMQA_NONE && optional)
        return VKMQA_ABSENT;
    if (offset % 4 != 0)
        reject(call, "step.layout.%s is %u; use a multiple of 4", field, offset);
    else if (count * 4 > metadata_bytes(call, step) ||
             offset > metadata_bytes(call, step) - count * 4)
        reject(call, "step.layout.%s is %u: its %llu entries pass what kernels reach of "
                     "step.metadata, %llu bytes", field, offset, (unsigned long long)count,
               (unsigned long long)metadata_bytes(call, step));
    return offset / 4;
}

static bool read_step(struct Call* call, const VkmqaStep* given, VkmqaStep* step,
                      VkmqaStepLimits* limits) {
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, step, sizeof *step, sizeof *step, "step", &problem) ||
        !vkmqa_make_limits(&call->attention->shape, &step->limits, limits, &problem)) {
        reject(call, "%s", problem.text);
        return false;
    }
    return true;
}

// Strides in elements with their defaults, and the bytes of the tensor [tokens, heads, dim].
static uint64_t read_strides(struct Call* call, const char* field, VkmqaStrides given,
                             uint32_t tokens, uint32_t heads, uint32_t dim, VkmqaType type,
                             VkmqaStrides* strides) {
    uint32_t grain = 16 / vkmqa_type_size(type);
    strides->head = given.head ? given.head : dim;
    strides->token = given.token ? given.token : strides->head * heads;
    if (strides->head % grain || strides->token % grain)
        reject(call, "%s is {%u, %u}; use multiples of %u elements of %s", field, given.token,
               given.head, grain, vkmqa_type_name(type));
    else if (strides->head < dim && heads > 1)
        reject(call, "%s.head is %u; heads of %u elements would overlap", field, given.head, dim);
    else if ((uint64_t)strides->head * heads > 1u << 28 || strides->token > 1u << 28)
        reject(call, "%s is {%u, %u}; use at most %u elements per token", field, given.token,
               given.head, 1u << 28);
    uint64_t last = (uint64_t)(tokens - 1) * strides->token + (uint64_t)(heads - 1) * strides->head;
    return (last + dim) * vkmqa_type_size(type);
}

static void use_cache(struct Call* call, const VkmqaKv* kv, uint64_t* k, uint64_t* v) {
    struct VkmqaProblem problem;
    uint64_t bytesK, bytesV;
    if (!kv) {
        reject(call, "info.kv is null; give the layer's cache");
        return;
    }
    if (!vkmqa_cache_bytes(&call->attention->shape, kv->numPages, &bytesK, &bytesV, &problem)) {
        reject(call, "kv.%s", problem.text);
        return;
    }
    *k = use_buffer(call, "kv.k", &kv->k, bytesK, VKMQA_BIND_K);
    *v = use_buffer(call, "kv.v", &kv->v, bytesV, VKMQA_BIND_V);
}

static VkResult check_call(VkmqaAttention attention, VkCommandBuffer commandBuffer) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!commandBuffer)
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "commandBuffer is null; give one in the recording state");
    return VK_SUCCESS;
}

// Orders this library's dispatches in one command buffer.
static void order(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer) {
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT,
    };
    context->vk.CmdPipelineBarrier(commandBuffer, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                   VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0, NULL, 0,
                                   NULL);
}

static void dispatch(const struct Call* call, VkCommandBuffer commandBuffer, VkPipeline pipeline,
                     VkDescriptorSet set, const void* push, uint32_t pushSize, uint32_t x,
                     uint32_t y, uint32_t z) {
    const struct VkmqaContext_T* context = call->attention->context;
    bool bind = call->attention->choice.bind;
    order(context, commandBuffer);
    context->vk.CmdBindPipeline(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    if (bind)
        vkmqa_bind_buffers(context, commandBuffer, set, call->buffers);
    context->vk.CmdPushConstants(commandBuffer, bind ? context->bindLayout : context->addressLayout,
                                 VK_SHADER_STAGE_COMPUTE_BIT, 0, pushSize, push);
    context->vk.CmdDispatch(commandBuffer, x, y, z);
}

// Descriptors of bindings that a kernel does not touch must still be valid.
static void fill_bindings(struct Call* call) {
    for (uint32_t i = 0; i < VKMQA_BIND_COUNT; ++i)
        if (!call->buffers[i].buffer)
            call->buffers[i] = call->buffers[VKMQA_BIND_STEP];
}

// ---- append ----------------------------------------------------------------------------------

VkResult vkmqaCmdAppendKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                          const VkmqaAppendInfo* given) {
    VkResult result = check_call(attention, commandBuffer);
    if (result != VK_SUCCESS)
        return result;
    const struct VkmqaShape* shape = &attention->shape;
    const struct VkmqaContext_T* context = attention->context;
    struct Call call = {.attention = attention, .name = "vkmqaCmdAppendKv"};
    struct VkmqaProblem problem;
    VkmqaAppendInfo info;
    VkmqaStep step;
    VkmqaStepLimits limits;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        reject(&call, "%s", problem.text);
    if (call.result != VK_SUCCESS || !read_step(&call, info.step, &step, &limits))
        return call.result;

    VkmqaStrides k, v;
    uint64_t bytesK = read_strides(&call, "info.strideK", info.strideK, limits.newTokens,
                                   shape->numHeadsKv, shape->headDimQk, shape->newType, &k);
    uint64_t bytesV = read_strides(&call, "info.strideV", info.strideV, limits.newTokens,
                                   shape->numHeadsKv, shape->headDimV, shape->newType, &v);
    struct VkmqaAppendPush push = {
        .slotMapping = read_word(&call, "slotMapping", step.layout.slotMapping, limits.newTokens,
                                 &step, false),
        .status = read_word(&call, "status", step.layout.status, 1, &step, true),
        .newTokens = limits.newTokens,
        .numPages = info.kv ? info.kv->numPages : 0,
        .pageTokens = shape->pageTokens,
        .kTokenStride = k.token,
        .kHeadStride = k.head,
        .vTokenStride = v.token,
        .vHeadStride = v.head,
    };
    use_cache(&call, info.kv, &push.k, &push.v);
    push.newK = use_buffer(&call, "info.newK", &info.newK, bytesK, VKMQA_BIND_Q);
    push.newV = use_buffer(&call, "info.newV", &info.newV, bytesV, VKMQA_BIND_OUT);
    push.step = use_buffer(&call, "step.metadata", &step.metadata, metadata_bytes(&call, &step),
                           VKMQA_BIND_STEP);
    uint64_t eights = (uint64_t)limits.newTokens * shape->numHeadsKv *
                      ((shape->headDimQk + shape->headDimV) / 8);
    const struct VkmqaChoice* choice = &attention->choice;
    uint64_t units = choice->appendTokens ? limits.newTokens : eights;
    uint32_t unitsPerGroup =
        choice->appendTokens ? choice->appendTokens : choice->appendWorkgroupSize;
    uint32_t groups[2];
    if (eights > UINT32_MAX ||
        !vkmqa_fold_grid(&context->caps, (units + unitsPerGroup - 1) / unitsPerGroup, groups))
        reject(&call, "limits.newTokens is %u; append fewer rows per call", limits.newTokens);
    VkDescriptorSet set = VK_NULL_HANDLE;
    if (call.result == VK_SUCCESS && attention->choice.bind) {
        call.result = vkmqa_check_recorder(context, info.recorder, 1);
        if (call.result == VK_SUCCESS)
            call.result = vkmqa_make_sets(context, info.recorder, 1, &set);
    }
    if (call.result != VK_SUCCESS)
        return call.result;
    fill_bindings(&call);
    dispatch(&call, commandBuffer, attention->append, set, &push, sizeof push, groups[0], groups[1],
             1);
    return VK_SUCCESS;
}

// ---- attention -------------------------------------------------------------------------------

VkResult vkmqa_record_attention(const struct VkmqaAttention_T* attention,
                                VkCommandBuffer commandBuffer, const VkmqaAttentionInfo* info,
                                const VkmqaStep* step, const VkmqaStepLimits* limits,
                                const struct VkmqaPlan* plan) {
    const struct VkmqaShape* shape = &attention->shape;
    const struct VkmqaContext_T* context = attention->context;
    struct Call call = {.attention = attention, .name = "vkmqaCmdAttention"};
    bool paged = shape->pageShift != VKMQA_CONTIGUOUS;
    bool split = plan->splits > 1;
    bool writeLse = info->lse.buffer || info->lse.address;
    uint32_t maxPages = paged ? step->layout.maxPages : 1;
    if (paged && maxPages == 0)
        reject(&call, "step.layout.maxPages is 0; give the row length of the page table");

    VkmqaStrides q, o;
    uint64_t bytesQ = read_strides(&call, "info.strideQ", info->strideQ, limits->totalQ,
                                   shape->numHeadsQ, shape->headDimQk, shape->ioType, &q);
    uint64_t bytesOut = read_strides(&call, "info.strideOut", info->strideOut, limits->totalQ,
                                     shape->numHeadsQ, shape->headDimV, shape->ioType, &o);
    uint64_t bytesLse = (uint64_t)limits->totalQ * shape->numHeadsQ * 4;
    struct VkmqaAttentionPush push = {
        .cuSeqlensQ = read_word(&call, "cuSeqlensQ", step->layout.cuSeqlensQ,
                                (uint64_t)limits->batch + 1, step, false),
        .seqLensKv = read_word(&call, "seqLensKv", step->layout.seqLensKv, limits->batch, step, false),
        .pageTable = paged ? read_word(&call, "pageTable", step->layout.pageTable,
                                       (uint64_t)limits->batch * maxPages, step, false)
                           : VKMQA_ABSENT,
        .status = read_word(&call, "status", step->layout.status, 1, step, true),
        .batch = limits->batch,
        .totalQ = limits->totalQ,
        .splits = plan->splits,
        .splitTokens = plan->splitTokens,
        .maxTokens = limits->maxSeqLenKv,
        .maxPages = maxPages,
        .numPages = info->kv ? info->kv->numPages : 0,
        .pageTokens = shape->pageTokens,
        .qTokenStride = q.token,
        .qHeadStride = q.head,
        .outTokenStride = o.token,
        .outHeadStride = o.head,
        .writeLse = writeLse,
        .scaleLog2 = shape->scale * 1.44269504088896341f,
    };
    if (!paged && info->kv && limits->batch > info->kv->numPages)
        reject(&call, "limits.batch is %u; the contiguous cache holds kv.numPages %u sequences",
               limits->batch, info->kv->numPages);
    use_cache(&call, info->kv, &push.k, &push.v);
    push.q = use_buffer(&call, "info.q", &info->q, bytesQ, VKMQA_BIND_Q);
    uint64_t out = use_buffer(&call, "info.out", &info->out, bytesOut, VKMQA_BIND_OUT);
    uint64_t lse = 0;
    if (writeLse)
        lse = use_buffer(&call, "info.lse", &info->lse, bytesLse, VKMQA_BIND_LSE);
    push.step = use_buffer(&call, "step.metadata", &step->metadata, metadata_bytes(&call, step),
                           VKMQA_BIND_STEP);
    struct VkmqaMergePush merge = {0};
    struct Call second = call; // the merge's descriptors
    if (split) {
        VkmqaBuffer stats = info->scratch;
        merge.parts = use_buffer(&second, "info.scratch", &info->scratch, plan->scratchBytes,
                                 VKMQA_BIND_Q);
        if (second.result == VK_SUCCESS) {
            stats.offset += plan->statsOffset;
            stats.size -= plan->statsOffset;
            stats.address += stats.address ? plan->statsOffset : 0;
            merge.stats = use_buffer(&second, "info.scratch", &stats,
                                     plan->scratchBytes - plan->statsOffset, VKMQA_BIND_K);
        }
        call.result = second.result;
        call.buffers[VKMQA_BIND_OUT] = second.buffers[VKMQA_BIND_Q];
        call.buffers[VKMQA_BIND_LSE] = second.buffers[VKMQA_BIND_K];
        push.out_ = merge.parts;
        push.lse = merge.stats;
        merge.out_ = out;
        merge.lse = lse;
        merge.step = push.step;
        merge.cuSeqlensQ = push.cuSeqlensQ;
        merge.seqLensKv = push.seqLensKv;
        merge.batch = push.batch;
        merge.totalQ = push.totalQ;
        merge.splitTokens = push.splitTokens;
        merge.maxTokens = push.maxTokens;
        merge.outTokenStride = push.outTokenStride;
        merge.outHeadStride = push.outHeadStride;
        merge.writeLse = writeLse;
        merge.scaleLog2 = push.scaleLog2;
    } else {
        push.out_ = out;
        push.lse = lse;
    }
    VkDescriptorSet sets[2] = {VK_NULL_HANDLE, VK_NULL_HANDLE};
    if (call.result == VK_SUCCESS && attention->choice.bind) {
        call.result = vkmqa_check_recorder(context, info->recorder, split ? 2 : 1);
        if (call.result == VK_SUCCESS)
            call.result = vkmqa_make_sets(context, info->recorder, split ? 2 : 1, sets);
    }
    if (call.result != VK_SUCCESS)
        return call.result;
    fill_bindings(&call);
    dispatch(&call, commandBuffer, attention->attention[plan->candidate], sets[0], &push,
             sizeof push, plan->groups[0], plan->groups[1], plan->groups[2]);
    if (split) {
        fill_bindings(&second);
        dispatch(&second, commandBuffer, attention->merge, sets[1], &merge, sizeof merge,
                 plan->mergeGroups[0], plan->mergeGroups[1], 1);
    }
    return VK_SUCCESS;
}

VkResult vkmqaCmdAttention(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                           const VkmqaAttentionInfo* given) {
    VkResult result = check_call(attention, commandBuffer);
    if (result != VK_SUCCESS)
        return result;
    struct Call call = {.attention = attention, .name = "vkmqaCmdAttention"};
    struct VkmqaProblem problem;
    VkmqaAttentionInfo info;
    VkmqaStep step;
    VkmqaStepLimits limits;
    struct VkmqaPlan plan;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        reject(&call, "%s", problem.text);
    if (call.result != VK_SUCCESS || !read_step(&call, info.step, &step, &limits))
        return call.result;
    // No sequence is longer than its row of the page table.
    const struct VkmqaShape* shape = &attention->shape;
    uint64_t paged = (uint64_t)step.layout.maxPages * shape->pageTokens;
    if (shape->pageShift != VKMQA_CONTIGUOUS && paged > 0 && paged < limits.maxSeqLenKv)
        limits.maxSeqLenKv = (uint32_t)paged;
    if (!vkmqa_make_plan(&attention->context->caps, shape, &attention->choice, &limits, &plan,
                         &problem)) {
        reject(&call, "%s", problem.text);
        return call.result;
    }
    return vkmqa_record_attention(attention, commandBuffer, &info, &step, &limits, &plan);
}

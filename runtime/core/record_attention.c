// vkmqaCmdAttention. SPDX-License-Identifier: MIT
#include "call.h"

// The mask's row length in words, checked against what the call may look at. maxSeqLenKv: as recorded, not
// bounded by the page table.
static uint32_t read_mask_stride(struct VkmqaCall* call, const VkmqaAttentionInfo* info,
                                 const VkmqaStepLimits* limits, uint32_t maxSeqLenKv) {
    bool tree = call->attention->shape.maskKind == VKMQA_MASK_TREE;
    uint32_t bits = tree ? limits->maxSeqLenQ : maxSeqLenKv, words = (bits + 31) / 32;
    uint32_t stride = info->maskStride ? info->maskStride : words;
    if (stride < words)
        vkmqa_reject(call, "info.maskStride is %u; rows of %u bits (%s) need at least %u words", stride,
                     bits, tree ? "limits.maxSeqLenQ" : "limits.maxSeqLenKv", words);
    else if (stride > 1u << 25)
        vkmqa_reject(call, "info.maskStride is %u; use at most %u words", stride, 1u << 25);
    return stride;
}

static uint32_t pack_flags(const struct VkmqaShape* shape, const VkmqaAttentionInfo* info,
                           const struct VkmqaPlan* plan) {
    return plan->splits << 2 | (info->lse.buffer || info->lse.address ? VKMQA_WRITE_LSE : 0) |
           (shape->sinks && !info->omitSinks ? VKMQA_ADD_SINKS : 0);
}

// Returns the number of dispatches: more than groups / perDispatch where pieces end at rows and planes of the grid.
static uint32_t dispatch_range(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer,
                               const struct VkmqaPlan* plan) {
    uint32_t count = 0;
    for (uint64_t at = plan->first; at < plan->end;) {
        uint64_t left = plan->end - at;
        struct VkmqaBox box =
            vkmqa_cut_box(plan->groups, at, at + (left < plan->perDispatch ? left : plan->perDispatch));
        if (at > plan->first) // what they write is apart, which validation layers cannot know
            vkmqa_order(context, commandBuffer);
        context->vk.CmdDispatchBase(commandBuffer, box.base[0], box.base[1], box.base[2], box.size[0],
                                    box.size[1], box.size[2]);
        at += box.groups;
        ++count;
    }
    return count;
}

VkResult vkmqa_record_attention(const struct VkmqaAttention_T* attention, VkCommandBuffer commandBuffer,
                                const char* name, const VkmqaAttentionInfo* info, const VkmqaStep* step,
                                const VkmqaStepLimits* limits, const struct VkmqaPlan* plan,
                                uint32_t* dispatches) {
    const struct VkmqaShape* shape = &attention->shape;
    struct VkmqaCall call = {.attention = attention, .name = name};
    bool paged = shape->pageShift != VKMQA_CONTIGUOUS;
    bool split = plan->splits > 1;
    uint32_t maxPages = paged ? step->layout.maxPages : 0;
    if (paged && maxPages == 0)
        vkmqa_reject(&call, "step.layout.maxPages is 0; a paged cache needs a page table");
    VkmqaStrides q, o;
    uint64_t bytesQ = vkmqa_read_strides(&call, "info.strideQ", info->strideQ, limits->totalQ,
                                         shape->numHeadsQ, shape->headDimQk, shape->ioType, &q);
    uint64_t bytesOut = vkmqa_read_strides(&call, "info.strideOut", info->strideOut, limits->totalQ,
                                           shape->numHeadsQ, shape->headDimV, shape->ioType, &o);
    vkmqa_check_apart(&call, "info.strideOut", &o, limits->totalQ, shape->numHeadsQ, shape->headDimV);
    struct VkmqaAttentionPush push = {
        .cuSeqlensQ = vkmqa_read_word(&call, "cuSeqlensQ", step->layout.cuSeqlensQ,
                                      (uint64_t)limits->batch + 1, step, false),
        .seqLensKv =
            vkmqa_read_word(&call, "seqLensKv", step->layout.seqLensKv, limits->batch, step, false),
        .pageTable = paged ? vkmqa_read_word(&call, "pageTable", step->layout.pageTable,
                                             (uint64_t)limits->batch * maxPages, step, false)
                           : VKMQA_ABSENT,
        .status = vkmqa_read_word(&call, "status", step->layout.status, 1, step, true),
        .batch = limits->batch,
        .totalQ = limits->totalQ,
        .splitsAndFlags = pack_flags(shape, info, plan),
        .splitTokens = plan->splitTokens,
        .maxTokens = limits->maxSeqLenKv,
        .maxPages = paged ? maxPages : shape->pageTokens,
        .numPages = info->kv ? info->kv->numPages : 0,
        .qTokenStride = q.token,
        .qHeadStride = q.head,
        .outTokenStride = o.token,
        .outHeadStride = o.head,
    };
    if (!paged && info->kv && limits->batch > info->kv->numPages)
        vkmqa_reject(&call, "limits.batch is %u; the contiguous cache holds kv.numPages %u sequences",
                     limits->batch, info->kv->numPages);
    vkmqa_use_cache(&call, info->kv, false, &push.k, &push.v);
    push.q = vkmqa_use_buffer(&call, "info.q", &info->q, bytesQ, VKMQA_BIND_Q);
    push.step = vkmqa_use_step(&call, step);
    push.params = vkmqa_use_parameters(&call, &info->parameters,
                                       shape->sinks || shape->alibi || vkmqa_has_fp8(shape));
    if (shape->maskKind != VKMQA_MASK_NONE) {
        push.maskStride = read_mask_stride(
            &call, info, limits,
            step->limits.maxSeqLenKv ? step->limits.maxSeqLenKv : shape->maxSeqLenKv);
        push.mask = vkmqa_use_buffer(&call, "info.mask", &info->mask,
                                     (uint64_t)limits->totalQ * push.maskStride * 4, VKMQA_BIND_MASK);
    }
    // The result's buffers, and scratch in their place where there are splits.
    uint64_t out = vkmqa_write_buffer(&call, "info.out", &info->out, bytesOut, VKMQA_BIND_OUT), lse = 0;
    if (push.splitsAndFlags & VKMQA_WRITE_LSE)
        lse = vkmqa_write_buffer(&call, "info.lse", &info->lse,
                               (uint64_t)limits->totalQ * shape->numHeadsQ * 4, VKMQA_BIND_LSE);
    struct VkmqaCall second = call; // the merge's descriptors
    struct VkmqaMergePush merge = {
        .out_ = out,
        .lse = lse,
        .step = push.step,
        .params = push.params,
        .cuSeqlensQ = push.cuSeqlensQ,
        .seqLensKv = push.seqLensKv,
        .batch = push.batch,
        .totalQ = push.totalQ,
        .splitsAndFlags = push.splitsAndFlags,
        .splitTokens = push.splitTokens,
        .maxTokens = push.maxTokens,
        .outTokenStride = push.outTokenStride,
        .outHeadStride = push.outHeadStride,
    };
    if (split) {
        VkmqaBuffer stats = info->scratch;
        static const char scratch[] = "info.scratch";
        merge.parts = vkmqa_write_buffer(&second, scratch, &info->scratch, plan->scratchBytes, VKMQA_BIND_Q);
        if (second.result == VK_SUCCESS) {
            stats.offset += plan->statsOffset;
            stats.size -= plan->statsOffset;
            stats.address += stats.address ? plan->statsOffset : 0;
            merge.stats = vkmqa_write_buffer(&second, scratch, &stats,
                                             plan->scratchBytes - plan->statsOffset, VKMQA_BIND_K);
        }
        call.result = second.result;
        call.buffers[VKMQA_BIND_OUT] = second.buffers[VKMQA_BIND_Q];
        call.buffers[VKMQA_BIND_LSE] = second.buffers[VKMQA_BIND_K];
    }
    push.out_ = split ? merge.parts : out;
    push.lse = split ? merge.stats : lse;
    VkDescriptorSet sets[2] = {VK_NULL_HANDLE, VK_NULL_HANDLE};
    bool merges = split && plan->end == vkmqa_plan_groups(plan);
    vkmqa_take_sets(&call, info->recorder, merges ? 2 : 1, sets);
    if (call.result != VK_SUCCESS)
        return call.result;
    vkmqa_bind(&call, commandBuffer, attention->attention[plan->candidate], sets[0], &push, sizeof push);
    *dispatches = dispatch_range(attention->context, commandBuffer, plan);
    if (merges)
        vkmqa_dispatch(&second, commandBuffer, attention->merge, sets[1], &merge, sizeof merge,
                       plan->mergeGroups);
    return VK_SUCCESS;
}

VkResult vkmqa_read_attention(VkmqaAttention attention, VkCommandBuffer commandBuffer, const char* name,
                              const VkmqaAttentionInfo* given, struct VkmqaAttentionCall* read) {
    VkResult result = vkmqa_check_call(attention, commandBuffer, name);
    if (result != VK_SUCCESS)
        return result;
    struct VkmqaCall call = {.attention = attention, .name = name};
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &read->info, sizeof read->info, sizeof read->info, "info", &problem))
        vkmqa_reject(&call, "%s", problem.text);
    if (call.result == VK_SUCCESS)
        vkmqa_read_plan(&call, read->info.step, &read->step, &read->limits, &read->plan);
    return call.result;
}

void vkmqa_read_plan(struct VkmqaCall* call, const VkmqaStep* given, VkmqaStep* step, VkmqaStepLimits* limits,
                     struct VkmqaPlan* plan) {
    const struct VkmqaAttention_T* attention = call->attention;
    const struct VkmqaContext_T* context = attention->context;
    struct VkmqaProblem problem;
    if (!vkmqa_read_step(call, given, step, limits))
        return;
    vkmqa_bound_by_pages(&attention->shape, &step->layout, limits);
    if (!vkmqa_make_plan(&context->caps, &attention->shape, &attention->choice, limits, plan, &problem)) {
        vkmqa_reject(call, "%s", problem.text);
        return;
    }
    double seconds = vkmqa_estimate(&context->caps, &attention->shape, &attention->choice, limits, plan).seconds;
    plan->perDispatch =
        vkmqa_groups_in(plan, seconds / (double)vkmqa_plan_groups(plan), context->maxDispatchSeconds);
}

VkResult vkmqaCmdAttention(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                           const VkmqaAttentionInfo* given) {
    static const char name[] = "vkmqaCmdAttention";
    struct VkmqaAttentionCall call;
    uint32_t dispatches = 0;
    VkResult result = vkmqa_read_attention(attention, commandBuffer, name, given, &call);
    if (result == VK_SUCCESS)
        result = vkmqa_record_attention(attention, commandBuffer, name, &call.info, &call.step, &call.limits,
                                        &call.plan, &dispatches);
    if (dispatches > 1)
        vkmqa_message(attention->context, VKMQA_SEVERITY_INFO,
                      "%s: recorded as %u dispatches of at most %g s each as estimated; "
                      "vkmqaCmdAttentionSlice spreads them over submissions, where a watchdog or a frame asks for it",
                      name, dispatches, attention->context->maxDispatchSeconds);
    return result;
}

VkResult vkmqaCmdMergeStates(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                             const VkmqaMergeInfo* given) {
    VkResult result = vkmqa_check_call(attention, commandBuffer, "vkmqaCmdMergeStates");
    if (result != VK_SUCCESS)
        return result;
    const struct VkmqaShape* shape = &attention->shape;
    struct VkmqaCall call = {.attention = attention, .name = "vkmqaCmdMergeStates"};
    struct VkmqaProblem problem;
    VkmqaMergeInfo info;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem)) {
        vkmqa_reject(&call, "%s", problem.text);
        return call.result;
    }
    const uint32_t most = vkmqa_most_queries(shape);
    if (info.parts == 0 || info.parts > 1024)
        vkmqa_reject(&call, "info.parts is %u; use 1 to 1024", info.parts);
    if (info.totalQ == 0 || info.totalQ > most)
        vkmqa_reject(&call, "info.totalQ is %u; use the number of query tokens, 1 to %u", info.totalQ,
                     most);
    uint64_t rows = (uint64_t)info.totalQ * shape->numHeadsQ;
    if (call.result == VK_SUCCESS && rows * info.parts > UINT32_MAX)
        vkmqa_reject(&call, "info.parts is %u: %llu rows in all; merge at most %u rows per call",
                     info.parts, (unsigned long long)(rows * info.parts), UINT32_MAX);
    if (call.result != VK_SUCCESS)
        return call.result;
    VkmqaStrides o;
    uint64_t bytesOut = vkmqa_read_strides(&call, "info.strideOut", info.strideOut, info.totalQ,
                                           shape->numHeadsQ, shape->headDimV, shape->ioType, &o);
    vkmqa_check_apart(&call, "info.strideOut", &o, info.totalQ, shape->numHeadsQ, shape->headDimV);
    bool writeLse = info.lse.buffer || info.lse.address;
    struct VkmqaMergeStatesPush push = {
        .parts = info.parts,
        .totalQ = info.totalQ,
        .flags = (writeLse ? VKMQA_WRITE_LSE : 0) | (shape->sinks ? VKMQA_ADD_SINKS : 0),
        .outTokenStride = o.token,
        .outHeadStride = o.head,
    };
    push.partOut = vkmqa_use_buffer(&call, "info.partOut", &info.partOut,
                                    rows * info.parts * shape->headDimV * vkmqa_type_size(shape->ioType),
                                    VKMQA_BIND_Q);
    push.partLse =
        vkmqa_use_buffer(&call, "info.partLse", &info.partLse, rows * info.parts * 4, VKMQA_BIND_K);
    push.out_ = vkmqa_write_buffer(&call, "info.out", &info.out, bytesOut, VKMQA_BIND_OUT);
    if (writeLse)
        push.lse = vkmqa_write_buffer(&call, "info.lse", &info.lse, rows * 4, VKMQA_BIND_LSE);
    push.params = vkmqa_use_parameters(&call, &info.parameters, shape->sinks);
    uint32_t groups[3] = {0, 0, 1};
    if (!vkmqa_fold_grid(&attention->context->caps, rows, groups))
        vkmqa_reject(&call, "info.totalQ is %u; merge fewer query tokens per call", info.totalQ);
    VkDescriptorSet set = VK_NULL_HANDLE;
    vkmqa_take_sets(&call, info.recorder, 1, &set);
    if (call.result == VK_SUCCESS)
        vkmqa_dispatch(&call, commandBuffer, attention->mergeStates, set, &push, sizeof push, groups);
    return call.result;
}

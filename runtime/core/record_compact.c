// vkmqaCmdCompactKv: accepted drafts to the front. SPDX-License-Identifier: MIT
#include "call.h"

// Columns that the kernel moves for each KV head, see compact.comp: 16 bytes of rows, words of scales.
static uint32_t count_columns(uint32_t headDim, VkmqaType type) {
    return vkmqa_row_bytes(headDim, type) / 16 + vkmqa_scale_bytes(headDim, type) / 4;
}

static uint32_t read_accepted(struct VkmqaCall* call, const char* field, uint32_t offset, uint64_t count,
                              const VkmqaStep* step) {
    if (offset == VKMQA_NONE)
        vkmqa_reject(call, "step.layout.%s is VKMQA_NONE; say which drafts stay", field);
    return vkmqa_read_word(call, field, offset, count, step, true);
}

VkResult vkmqaCmdCompactKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                           const VkmqaCompactInfo* given) {
    VkResult result = vkmqa_check_call(attention, commandBuffer, "vkmqaCmdCompactKv");
    if (result != VK_SUCCESS)
        return result;
    const struct VkmqaShape* shape = &attention->shape;
    struct VkmqaCall call = {.attention = attention, .name = "vkmqaCmdCompactKv"};
    struct VkmqaProblem problem;
    VkmqaCompactInfo info;
    VkmqaStep step;
    VkmqaStepLimits limits;
    if (shape->maskKind != VKMQA_MASK_TREE)
        vkmqa_reject(&call, "attention was created without VKMQA_ATTENTION_TREE_MASK_BIT; create it with "
                            "the flag");
    else if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        vkmqa_reject(&call, "%s", problem.text);
    if (call.result != VK_SUCCESS || !vkmqa_read_step(&call, info.step, &step, &limits))
        return call.result;
    vkmqa_bound_by_pages(shape, &step.layout, &limits);

    bool paged = shape->pageShift != VKMQA_CONTIGUOUS;
    uint32_t maxPages = paged ? step.layout.maxPages : 0;
    if (paged && maxPages == 0)
        vkmqa_reject(&call, "step.layout.maxPages is 0; a paged cache needs a page table");
    if (!paged && info.kv && limits.batch > info.kv->numPages)
        vkmqa_reject(&call, "limits.batch is %u; the contiguous cache holds kv.numPages %u sequences",
                     limits.batch, info.kv->numPages);
    struct VkmqaCompactPush push = {
        .cuSeqlensQ = vkmqa_read_word(&call, "cuSeqlensQ", step.layout.cuSeqlensQ,
                                      (uint64_t)limits.batch + 1, &step, false),
        .seqLensKv =
            vkmqa_read_word(&call, "seqLensKv", step.layout.seqLensKv, limits.batch, &step, false),
        .pageTable = paged ? vkmqa_read_word(&call, "pageTable", step.layout.pageTable,
                                             (uint64_t)limits.batch * maxPages, &step, false)
                           : VKMQA_ABSENT,
        .cuAccepted = read_accepted(&call, "cuAccepted", step.layout.cuAccepted,
                                    (uint64_t)limits.batch + 1, &step),
        .accepted = read_accepted(&call, "accepted", step.layout.accepted, limits.totalQ, &step),
        .status = vkmqa_read_word(&call, "status", step.layout.status, 1, &step, true),
        .batch = limits.batch,
        .totalQ = limits.totalQ,
        .maxTokens = limits.maxSeqLenKv,
        .maxPages = paged ? maxPages : shape->pageTokens,
        .numPages = info.kv ? info.kv->numPages : 0,
    };
    vkmqa_use_cache(&call, info.kv, true, &push.k, &push.v);
    push.step = vkmqa_use_step(&call, &step);
    uint32_t columns = count_columns(shape->headDimQk, shape->kType) +
                       (shape->vPrefix ? 0 : count_columns(shape->headDimV, shape->vType));
    uint32_t size = attention->choice.compactWorkgroupSize;
    uint64_t count = (uint64_t)limits.batch * shape->numHeadsKv * ((columns + size - 1) / size);
    uint32_t groups[3] = {0, 0, 1};
    // Kernels number workgroups with 32 bits, the folded grid's last ones, which do not exist, included.
    if (count > INT32_MAX || !vkmqa_fold_grid(&attention->context->caps, count, groups))
        vkmqa_reject(&call, "limits.batch is %u; compact fewer sequences per call", limits.batch);
    VkDescriptorSet set = VK_NULL_HANDLE;
    vkmqa_take_sets(&call, info.recorder, 1, &set);
    if (call.result == VK_SUCCESS)
        vkmqa_dispatch(&call, commandBuffer, attention->compact, set, &push, sizeof push, groups);
    return call.result;
}

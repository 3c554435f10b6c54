// vkmqaCmdAppendKv: new rows into the cache, and queries rotated. SPDX-License-Identifier: MIT
#include "call.h"

static bool is_given(const VkmqaBuffer* buffer) { return buffer->buffer || buffer->address; }

// Whether there are queries to rotate, `rotates` being whether this object does that.
static bool check_queries(struct VkmqaCall* call, const VkmqaAppendInfo* info, bool rotates) {
    bool given = is_given(&info->q);
    if (given && !rotates)
        vkmqa_reject(call, "info.q is given, and this object has neither a ropeStyle nor "
                           "VKMQA_ATTENTION_HADAMARD_BIT; leave it all zero");
    else if (given && !is_given(&info->rotatedQ))
        vkmqa_reject(call, "info.rotatedQ has no buffer; info.q is given, so give a place for its result");
    else if (!given && is_given(&info->rotatedQ))
        vkmqa_reject(call, "info.q has no buffer; info.rotatedQ is given, so give the queries to rotate");
    return given;
}

// Rotated queries may take the place of the queries, row for row; otherwise they lie apart, as all else.
static bool rotates_in_place(struct VkmqaCall* call, const VkmqaAppendInfo* info, const VkmqaStrides* q,
                             const VkmqaStrides* rotated) {
    const struct VkmqaShape* shape = &call->attention->shape;
    bool same = info->q.buffer == info->rotatedQ.buffer && info->q.offset == info->rotatedQ.offset &&
                info->q.address == info->rotatedQ.address;
    if (same && (q->token != rotated->token || q->head != rotated->head || shape->ioType != shape->newType))
        vkmqa_reject(call, "info.rotatedQ overlaps info.q; in place it needs the same strides and an object whose "
                           "ioType (%s) is its newType (%s)",
                     vkmqa_type_name(shape->ioType), vkmqa_type_name(shape->newType));
    return same;
}

static uint32_t read_positions(struct VkmqaCall* call, const char* field, uint32_t offset,
                               uint32_t count, const VkmqaStep* step) {
    if (offset == VKMQA_NONE)
        vkmqa_reject(call, "step.layout.%s is VKMQA_NONE; an object with a ropeStyle needs them", field);
    return vkmqa_read_word(call, field, offset, count, step, true);
}

// What the kernel takes, in its units, as many for each workgroup.
static uint64_t count_groups(const struct VkmqaAttention_T* attention, const VkmqaStepLimits* limits,
                             bool queries) {
    const struct VkmqaShape* shape = &attention->shape;
    uint64_t rowsK = (uint64_t)limits->newTokens * shape->numHeadsKv, rowsV = shape->vPrefix ? 0 : rowsK;
    uint64_t units, unitsPerGroup = 1;
    switch (attention->choice.appendUnit) {
    case VKMQA_APPEND_EIGHTS:
        units = rowsK * (shape->headDimQk / 8) + rowsV * (shape->headDimV / 8);
        unitsPerGroup = attention->choice.appendWorkgroupSize;
        break;
    case VKMQA_APPEND_TOKEN:
        units = limits->newTokens;
        break;
    default: // VKMQA_APPEND_ROW
        units = rowsK + rowsV + (queries ? (uint64_t)limits->totalQ * shape->numHeadsQ : 0);
        break;
    }
    // Kernels number units with 32 bits, the folded grid's last ones, which do not exist, included.
    return units > INT32_MAX ? 0 : (units + unitsPerGroup - 1) / unitsPerGroup;
}

VkResult vkmqaCmdAppendKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                          const VkmqaAppendInfo* given) {
    VkResult result = vkmqa_check_call(attention, commandBuffer, "vkmqaCmdAppendKv");
    if (result != VK_SUCCESS)
        return result;
    const struct VkmqaShape* shape = &attention->shape;
    struct VkmqaCall call = {.attention = attention, .name = "vkmqaCmdAppendKv"};
    struct VkmqaProblem problem;
    VkmqaAppendInfo info;
    VkmqaStep step;
    VkmqaStepLimits limits;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        vkmqa_reject(&call, "%s", problem.text);
    if (call.result != VK_SUCCESS || !vkmqa_read_step(&call, info.step, &step, &limits))
        return call.result;

    bool rope = shape->ropeStyle != VKMQA_ROPE_NONE;
    bool inPlace = false, queries = check_queries(&call, &info, rope || shape->hadamard > 1);
    VkmqaStrides k, v = {0}, q = {0}, rotated = {0};
    uint64_t bytesK = vkmqa_read_strides(&call, "info.strideK", info.strideK, limits.newTokens,
                                         shape->numHeadsKv, shape->headDimQk, shape->newType, &k);
    uint64_t bytesV = 0, bytesQ = 0, bytesRotated = 0;
    if (!shape->vPrefix)
        bytesV = vkmqa_read_strides(&call, "info.strideV", info.strideV, limits.newTokens,
                                    shape->numHeadsKv, shape->headDimV, shape->newType, &v);
    if (queries) {
        bytesQ = vkmqa_read_strides(&call, "info.strideQ", info.strideQ, limits.totalQ, shape->numHeadsQ,
                                    shape->headDimQk, shape->newType, &q);
        bytesRotated =
            vkmqa_read_strides(&call, "info.strideRotatedQ", info.strideRotatedQ, limits.totalQ,
                               shape->numHeadsQ, shape->headDimQk, shape->ioType, &rotated);
        vkmqa_check_apart(&call, "info.strideRotatedQ", &rotated, limits.totalQ, shape->numHeadsQ,
                          shape->headDimQk);
        inPlace = rotates_in_place(&call, &info, &q, &rotated);
    }
    struct VkmqaAppendPush push = {
        .slotMapping = vkmqa_read_word(&call, "slotMapping", step.layout.slotMapping, limits.newTokens,
                                       &step, false),
        .positions = rope ? read_positions(&call, "positions", step.layout.positions, limits.newTokens,
                                           &step)
                          : VKMQA_ABSENT,
        .queryPositions = rope && queries ? read_positions(&call, "queryPositions",
                                                           step.layout.queryPositions, limits.totalQ,
                                                           &step)
                                          : VKMQA_ABSENT,
        .status = vkmqa_read_word(&call, "status", step.layout.status, 1, &step, true),
        .newTokens = limits.newTokens,
        .totalQ = queries ? limits.totalQ : 0,
        .numPages = info.kv ? info.kv->numPages : 0,
        .pageTokens = shape->pageTokens,
        .kTokenStride = k.token,
        .kHeadStride = k.head,
        .vTokenStride = v.token,
        .vHeadStride = v.head,
        .qTokenStride = q.token,
        .qHeadStride = q.head,
        .rotatedTokenStride = rotated.token,
        .rotatedHeadStride = rotated.head,
    };
    vkmqa_use_cache(&call, info.kv, true, &push.k, &push.v);
    push.newK = vkmqa_use_buffer(&call, "info.newK", &info.newK, bytesK, VKMQA_BIND_Q);
    if (!shape->vPrefix)
        push.newV = vkmqa_use_buffer(&call, "info.newV", &info.newV, bytesV, VKMQA_BIND_OUT);
    if (queries) {
        push.q = vkmqa_use_buffer(&call, "info.q", &info.q, bytesQ, VKMQA_BIND_MASK);
        if (inPlace && call.result == VK_SUCCESS)
            --call.rangeCount; // rotatedQ's range stands for both
        push.rotatedQ =
            vkmqa_write_buffer(&call, "info.rotatedQ", &info.rotatedQ, bytesRotated, VKMQA_BIND_LSE);
    }
    push.step = vkmqa_use_step(&call, &step);
    push.params = vkmqa_use_parameters(&call, &info.parameters, rope || vkmqa_has_fp8(shape));
    uint32_t groups[3] = {0, 0, 1};
    uint64_t count = count_groups(attention, &limits, queries);
    if (count == 0 || !vkmqa_fold_grid(&attention->context->caps, count, groups))
        vkmqa_reject(&call, "limits.newTokens is %u%s; append fewer rows per call", limits.newTokens,
                     queries ? ", with the queries beside them" : "");
    VkDescriptorSet set = VK_NULL_HANDLE;
    vkmqa_take_sets(&call, info.recorder, 1, &set);
    if (call.result == VK_SUCCESS)
        vkmqa_dispatch(&call, commandBuffer, attention->append, set, &push, sizeof push, groups);
    return call.result;
}

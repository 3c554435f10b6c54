#version 460
// Converts new K and V rows to the cache's types and scatters them to their slots: one dispatch for all
// sequences of a step. The fast way for rows that are not rotated and types without blocks; append_row.comp
// does the rest. The grid is flat over [newTokens, numHeadsKv, eights of K then of V]; an invocation moves 8
// elements.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaAppendPush pc; };
BUFFER(newK, VKMQA_BIND_Q)
BUFFER(newV, VKMQA_BIND_OUT)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
ROW_READER(newK)
ROW_READER(newV)
#include "append.glsl"

// f32 is moved, never counted with, so that f32 rows keep every bit.
#define WRITE8(name, row, i, type, inverse, low, high)                                             \
    if (type == VKMQA_F32) {                                                                       \
        store16_##name(add_offset(row, (i) * 4u), floatBitsToUint(low));                           \
        store16_##name(add_offset(row, (i) * 4u + 16u), floatBitsToUint(high));                    \
    } else if (type == VKMQA_FP8) {                                                                \
        float factor = inverse;                                                                    \
        store8_##name(add_offset(row, i), uvec2(fp8_encode(low * factor), fp8_encode(high * factor))); \
    } else if (type == VKMQA_F16) {                                                                \
        store16_##name(add_offset(row, (i) * 2u), uvec4(f16_encode(low), f16_encode(high)));       \
    } else {                                                                                       \
        store16_##name(add_offset(row, (i) * 2u), uvec4(bf16_encode(low), bf16_encode(high)));     \
    }

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint index = group * WG_SIZE + gl_LocalInvocationIndex;
    uint eightsK = HEAD_DIM_QK / 8u, perHead = eightsK;
    if (V_PREFIX == 0u)
        perHead += HEAD_DIM_V / 8u;
    uint i = index % perHead, head = index / perHead % NUM_HEADS_KV;
    uint token = index / (perHead * NUM_HEADS_KV);
    if (token >= pc.newTokens)
        return;
    NewSlot slot = new_slot(token, i == 0u && head == 0u);
    if (!slot.given)
        return;
    vec4 low, high;
    if (i < eightsK) {
        uvec2 from = tensor_row(pc.newK, token, head, pc.kTokenStride, pc.kHeadStride, NEW_TYPE);
        uvec2 to = slot_row(pc.k, slot, head, HEAD_DIM_QK, K_TYPE);
        read8_newK(from, i * 8u, NEW_TYPE, low, high);
        WRITE8(k, to, i * 8u, K_TYPE, k_inverse_scale(head), low, high)
    } else {
        i -= eightsK;
        uvec2 from = tensor_row(pc.newV, token, head, pc.vTokenStride, pc.vHeadStride, NEW_TYPE);
        uvec2 to = slot_row(pc.v, slot, head, HEAD_DIM_V, V_TYPE);
        read8_newV(from, i * 8u, NEW_TYPE, low, high);
        WRITE8(v, to, i * 8u, V_TYPE, v_inverse_scale(head), low, high)
    }
}

#version 460
// Converts new K and V rows to the cache's types and scatters them to their slots: one dispatch for
// all sequences of a step. The grid is flat over [newTokens, numHeadsKv, K quads then V quads]; an
// invocation moves 8 elements.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAppendPush pc; };
BUFFER(newK, VKMQA_BIND_Q)
BUFFER(newV, VKMQA_BIND_OUT)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(step, VKMQA_BIND_STEP)
ROW_READER8(newK)
ROW_READER8(newV)

const uint EIGHTS_K = HEAD_DIM_QK / 8u;
const uint EIGHTS_V = HEAD_DIM_V / 8u;

#define WRITE8(name, row, i, type, low, high)                                                      \
    if (type == VKMQA_F16)                                                                         \
        store16_##name(add_offset(row, (i) * 2u), uvec4(pack_f16(low), pack_f16(high)));           \
    else {                                                                                         \
        store16_##name(add_offset(row, (i) * 4u), floatBitsToUint(low));                           \
        store16_##name(add_offset(row, (i) * 4u + 16u), floatBitsToUint(high));                    \
    }

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint index = group * WG_SIZE + gl_LocalInvocationIndex;
    uint perHead = EIGHTS_K + EIGHTS_V;
    uint i = index % perHead, head = index / perHead % NUM_HEADS_KV;
    uint token = index / (perHead * NUM_HEADS_KV);
    if (token >= pc.newTokens)
        return;
    int slot = int(load4_step(add_offset(pc.step, (pc.slotMapping + token) * 4u)));
    uint page = uint(slot) / pc.pageTokens, offset = uint(slot) % pc.pageTokens;
    if (slot < 0 || page >= pc.numPages) {
        if (slot != -1 && i == 0u && pc.status != VKMQA_ABSENT)
            or4_step(add_offset(pc.step, pc.status * 4u), VKMQA_BAD_SLOT);
        return;
    }
    uint plane = page * NUM_HEADS_KV + head;
    vec4 low, high;
    if (i < EIGHTS_K) {
        uvec2 from = add_product(pc.newK, token, pc.kTokenStride * element_bytes(NEW_TYPE));
        from = add_offset(from, head * pc.kHeadStride * element_bytes(NEW_TYPE));
        uint rowBytes = row_bytes(HEAD_DIM_QK, K_TYPE);
        uvec2 to = add_offset(add_product(pc.k, plane, pc.pageTokens * rowBytes), offset * rowBytes);
        read8_newK(from, i * 8u, NEW_TYPE, low, high);
        WRITE8(k, to, i * 8u, K_TYPE, low, high)
    } else {
        i -= EIGHTS_K;
        uvec2 from = add_product(pc.newV, token, pc.vTokenStride * element_bytes(NEW_TYPE));
        from = add_offset(from, head * pc.vHeadStride * element_bytes(NEW_TYPE));
        uint rowBytes = row_bytes(HEAD_DIM_V, V_TYPE);
        uvec2 to = add_offset(add_product(pc.v, plane, pc.pageTokens * rowBytes), offset * rowBytes);
        read8_newV(from, i * 8u, NEW_TYPE, low, high);
        WRITE8(v, to, i * 8u, V_TYPE, low, high)
    }
}

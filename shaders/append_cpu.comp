#version 460
// Append for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): one subgroup
// moves the K and V row of one (token, KV head). Loads whose address is the same in all lanes, of which
// every lane selects its own, become vector loads (see attn_cpu.comp); a lane stores one word.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAppendPush pc; };
BUFFER(step, VKMQA_BIND_STEP)

layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Floats { vec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Halves { f16vec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer WordOut { uint x; };
#define LANE_TAG 0x01010101u

#ifndef MODE
#define MODE 0
#endif
#if MODE == 0
// pairs
void move_row(uvec2 from, uvec2 to) {
    uint lane = gl_SubgroupInvocationID * LANE_TAG;
    const uint CH = (HEAD_DIM_QK + 2u * SUBGROUP - 1u) / (2u * SUBGROUP);
    [[unroll]] for (uint c = 0u; c < CH; ++c) {
        float x, y;
        [[unroll]] for (uint i = 0u; i < SUBGROUP / 2u; ++i) {
            uint quad = c * (SUBGROUP / 2u) + i;
            vec4 w = Floats(from).quads[quad];
            x = i == 0u ? w.x : mix(x, w.x, lane == (2u * i) * LANE_TAG);
            y = i == 0u ? w.y : mix(y, w.y, lane == (2u * i) * LANE_TAG);
            x = mix(x, w.z, lane == (2u * i + 1u) * LANE_TAG);
            y = mix(y, w.w, lane == (2u * i + 1u) * LANE_TAG);
        }
        WordOut(add_offset(to, (c * SUBGROUP + gl_SubgroupInvocationID) * 4u)).x = packHalf2x16(vec2(x, y));
    }
}
#elif MODE == 1
layout(buffer_reference, std430, buffer_reference_align = 2) writeonly buffer HalfOut { float16_t x; };
void move_row(uvec2 from, uvec2 to) {
    uint lane = gl_SubgroupInvocationID * LANE_TAG;
    const uint CH = (HEAD_DIM_QK + SUBGROUP - 1u) / SUBGROUP;
    [[unroll]] for (uint c = 0u; c < CH; ++c) {
        float x;
        [[unroll]] for (uint i = 0u; i < SUBGROUP / 4u; ++i) {
            uint quad = c * (SUBGROUP / 4u) + i;
            vec4 w = Floats(from).quads[quad];
            x = i == 0u ? w.x : mix(x, w.x, lane == (4u * i + 0u) * LANE_TAG);
            x = mix(x, w.y, lane == (4u * i + 1u) * LANE_TAG);
            x = mix(x, w.z, lane == (4u * i + 2u) * LANE_TAG);
            x = mix(x, w.w, lane == (4u * i + 3u) * LANE_TAG);
        }
        HalfOut(add_offset(to, (c * SUBGROUP + gl_SubgroupInvocationID) * 2u)).x = float16_t(x);
    }
}
#endif
void main() {
    uint token = min(gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x, pc.newTokens - 1u);
    int slot = int(load4_step(add_offset(pc.step, (pc.slotMapping + token) * 4u)));
    uint page = PAGE_SHIFT == VKMQA_CONTIGUOUS ? uint(slot) / pc.pageTokens : uint(slot) >> (PAGE_SHIFT & 15u);
    uint offset = uint(slot) - page * pc.pageTokens;
    if (slot < 0 || page >= pc.numPages) return;
    uint bytesK = row_bytes(HEAD_DIM_QK, K_TYPE), bytesV = row_bytes(HEAD_DIM_V, V_TYPE);
    uvec2 fromK = add_product(pc.newK, token, pc.kTokenStride * 4u);
    uvec2 fromV = add_product(pc.newV, token, pc.vTokenStride * 4u);
    uvec2 toK = add_offset(add_product(pc.k, page * NUM_HEADS_KV, pc.pageTokens * bytesK), offset * bytesK);
    uvec2 toV = add_offset(add_product(pc.v, page * NUM_HEADS_KV, pc.pageTokens * bytesV), offset * bytesV);
    uint head = 0u;
    do {
        move_row(fromK, toK);
        move_row(fromV, toV);
        fromK = add_offset(fromK, pc.kHeadStride * 4u);
        fromV = add_offset(fromV, pc.vHeadStride * 4u);
        toK = add_offset(toK, pc.pageTokens * bytesK);
        toV = add_offset(toV, pc.pageTokens * bytesV);
    } while (++head < NUM_HEADS_KV);
}

#version 460
// Append for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): a workgroup
// is one subgroup and moves all K and V rows of one token, SUBGROUP 32-bit words of the cache at a
// time. What append_kv.comp does, from f32 and f16 rows to f32 and f16 caches, for a driver on which its
// loads are gathers and a workgroup costs as much as a row.
//
// What the driver turns into good code, and why the text looks as it does (see also attn_cpu.comp):
// - loads whose address is the same in all lanes, of which every lane selects its own element, become
//   vector loads of consecutive elements; subgroupShuffle by constants becomes a vector permutation;
// - every store is a scatter, about as dear as 16 conversions: store words, never halves; an array in
//   the buffer reference keeps the 64-bit address sums scalar;
// - packHalf2x16 and float16_t(float) become branches, and f16_bits 25 operations: see f16_word;
// - a loop costs by the variables it carries: there is one, the head;
// - code after a `return` still runs, masked, and uniform loads in it do take place: addresses are
//   clamped into their buffers.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "common.glsl"
#include "access.glsl"
#include "lane_elements.glsl"
layout(push_constant) uniform Push { VkmqaAppendPush pc; };
BUFFER(step, VKMQA_BIND_STEP)

layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Halves { f16vec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Words { uvec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer WordsOut { uint x[]; };

ELEMENTS(float16_t, f16vec4, Halves)
ELEMENTS(uint, uvec4, Words)

// f32 -> f16 as f16_bits in codec_f16.glsl, in fewer operations: overflow is a bound, and a subnormal is
// rounded by the addition that moves its last bit to that of 0.5 (IEEE addition, round to nearest).
uint f16_word(uint bits) {
    uint magnitude = bits & 0x7FFFFFFFu;
    uint bounded = min(magnitude, 0x47800000u);
    uint normal = (bounded - 0x38000000u + 0xFFFu + ((bounded >> 13) & 1u)) >> 13;
    precise float sum = uintBitsToFloat(magnitude) + 0.5;
    uint small = floatBitsToUint(sum) - 0x3F000000u;
    uint result = ((bits >> 16) & 0x8000u) | mix(normal, small, magnitude < 0x38800000u);
    return mix(result, 0x7E00u, magnitude > 0x7F800000u);
}

// NaNs of two f16 become the canonical one, as by way of f32.
uint canonical(uint word) {
    word = mix(word, (word & 0xFFFF0000u) | 0x7E00u, (word & 0x7FFFu) > 0x7C00u);
    return mix(word, (word & 0xFFFFu) | 0x7E000000u, (word & 0x7FFF0000u) > 0x7C000000u);
}

// Lane i's word of the pairs (low lanes' words of a, then of b).
uint pair_words(uint a, uint b) {
    uint first = (2u * gl_SubgroupInvocationID) & (SUBGROUP - 1u);
    bool upper = gl_SubgroupInvocationID * LANE_TAG >= SUBGROUP / 2u * LANE_TAG;
    uint low = mix(subgroupShuffle(a, first), subgroupShuffle(b, first), upper);
    uint high = mix(subgroupShuffle(a, first + 1u), subgroupShuffle(b, first + 1u), upper);
    return low | (high << 16);
}

void move_row(uvec2 from, uvec2 to, uint dim, uint type) {
    uint words = dim * element_bytes(type) / 4u, chunks = (words + SUBGROUP - 1u) / SUBGROUP;
    [[unroll]] for (uint chunk = 0u; chunk < chunks; ++chunk) {
        uint word;
        if (type == VKMQA_F32 && NEW_TYPE == VKMQA_F32)
            word = elements_Words(from, 0u, chunk, words);
        else if (type == VKMQA_F32)
            word = floatBitsToUint(float(elements_Halves(from, 0u, chunk, words)));
        else if (NEW_TYPE == VKMQA_F16)
            word = canonical(elements_Words(from, 0u, chunk, words));
        else {
            uint a = f16_word(elements_Words(from, 0u, chunk * 2u, dim)), b = 0u;
            if ((chunk * 2u + 1u) * SUBGROUP < dim)
                b = f16_word(elements_Words(from, 0u, chunk * 2u + 1u, dim));
            word = pair_words(a, b);
        }
        uint index = chunk * SUBGROUP + gl_SubgroupInvocationID;
        if ((chunk + 1u) * SUBGROUP <= words || index < words)
            WordsOut(to).x[index] = word;
    }
}

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint token = min(group, pc.newTokens - 1u);
    int slot = int(load4_step(add_offset(pc.step, (pc.slotMapping + token) * 4u)));
    bool paged = PAGE_SHIFT != VKMQA_CONTIGUOUS;
    uint page = paged ? uint(slot) >> (PAGE_SHIFT & 15u) : uint(slot) / pc.pageTokens;
    uint offset = uint(slot) - page * pc.pageTokens;
    if (group != token)
        return;
    if (slot < 0 || page >= pc.numPages) {
        if (slot != -1 && gl_SubgroupInvocationID == 0u && pc.status != VKMQA_ABSENT)
            or4_step(add_offset(pc.step, pc.status * 4u), VKMQA_BAD_SLOT);
        return;
    }
    uint bytes = element_bytes(NEW_TYPE);
    uvec2 fromK = add_product(pc.newK, token, pc.kTokenStride * bytes);
    uvec2 fromV = add_product(pc.newV, token, pc.vTokenStride * bytes);
    uint rowK = row_bytes(HEAD_DIM_QK, K_TYPE), planeK = pc.pageTokens * rowK;
    uint rowV = row_bytes(HEAD_DIM_V, V_TYPE), planeV = pc.pageTokens * rowV;
    uvec2 toK = add_offset(add_product(pc.k, page * NUM_HEADS_KV, planeK), offset * rowK);
    uvec2 toV = add_offset(add_product(pc.v, page * NUM_HEADS_KV, planeV), offset * rowV);
    uint next = 0u;
    do {
        uint head = min(next, NUM_HEADS_KV - 1u);
        move_row(add_offset(fromK, head * (pc.kHeadStride * bytes)),
                 add_product(toK, head, planeK), HEAD_DIM_QK, K_TYPE);
        if (V_PREFIX == 0u)
            move_row(add_offset(fromV, head * (pc.vHeadStride * bytes)),
                     add_product(toV, head, planeV), HEAD_DIM_V, V_TYPE);
    } while (++next < NUM_HEADS_KV);
}

#version 460
// Append for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): a workgroup
// is one subgroup and moves all K and V rows of one token, SUBGROUP 32-bit words of the cache at a
// time. What append_kv.comp does, from f32 and f16 rows to f32, f16 and q8_0 caches, for a driver on which
// its loads are gathers and a workgroup costs as much as a row.
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
BUFFER(params, VKMQA_BIND_PARAMS)
#include "append.glsl"

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

void move_floats(uvec2 from, uvec2 to, uint dim, uint type) {
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

// Chunk `chunk` of the row as what a block can hold, with zeros behind its end.
float block_lane(uvec2 from, uint chunk, uint dim) {
    if (chunk * SUBGROUP >= dim)
        return 0.0;
    float x = NEW_TYPE == VKMQA_F16 ? float(elements_Halves(from, 0u, chunk, dim))
                                    : uintBitsToFloat(elements_Words(from, 0u, chunk, dim));
    if ((chunk + 1u) * SUBGROUP > dim)
        x = mix(0.0, x, gl_SubgroupInvocationID < dim - chunk * SUBGROUP);
    return block_input(vec4(x), Q8_LARGEST).x;
}
float subgroup_largest(float x) {
    [[unroll]] for (uint reach = 1u; reach < SUBGROUP; reach *= 2u)
        x = max(x, subgroupShuffle(x, gl_SubgroupInvocationID ^ reach));
    return x;
}
// Lane i's word of the row of bytes whose chunk c is byte c of `packed`.
uint transpose_bytes(uint packed) {
    uint first = 4u * gl_SubgroupInvocationID, shift = first / SUBGROUP * 8u, word = 0u;
    [[unroll]] for (uint i = 0u; i < 4u; ++i)
        word |= ((subgroupShuffle(packed, (first + i) & (SUBGROUP - 1u)) >> shift) & 0xFFu) << (8u * i);
    return word;
}
// x in -127.5 .. 127.5 to the integer that q8_encode rounds it to: 256 is added so that it stands in the upper bits of
// the significand, as the driver's conversion, which saturates, takes longer than all the rest.
uint code_byte(float x) {
    uint magnitude = min((floatBitsToUint(abs(x) + 256.5) >> 15) & 0xFFu, 127u);
    uint sign = uint(floatBitsToInt(x) >> 31);
    return ((magnitude ^ sign) - sign) & 0xFFu;
}
// A row of q8_0 blocks, and their scales, two in a word, of which each lane gathers one.
void move_blocks(uvec2 from, uvec2 to, uvec2 scalesTo, uint dim) {
    const uint perBlock = 32u / SUBGROUP; // chunks
    uint blocks = (dim + 31u) / 32u, scaleWord = 0u, lane = gl_SubgroupInvocationID * LANE_TAG;
    [[unroll]] for (uint block = 0u; block < blocks; ++block) {
        float x[8];
        float amax = 0.0;
        [[unroll]] for (uint c = 0u; c < perBlock; ++c) {
            x[c] = block_lane(from, block * perBlock + c, dim);
            amax = max(amax, abs(x[c]));
        }
        amax = subgroup_largest(amax);
        [[unroll]] for (uint c = 0u; c < perBlock; c += 4u) {
            uint packed = 0u;
            [[unroll]] for (uint i = 0u; i < min(perBlock, 4u); ++i)
                packed |= code_byte(q8_scaled(vec4(x[c + i]), amax).x) << (8u * i);
            uint word = transpose_bytes(packed);
            if (SUBGROUP <= 8u || gl_SubgroupInvocationID < 8u)
                WordsOut(to).x[block * 8u + c / 4u * SUBGROUP + gl_SubgroupInvocationID] = word;
        }
        uint scale = f16_word(floatBitsToUint(q8_scale(amax))) << (block % 2u * 16u);
        scaleWord |= mix(0u, scale, lane == block / 2u % SUBGROUP * LANE_TAG);
        uint words = block / 2u % SUBGROUP + 1u; // gathered
        if (block + 1u == blocks || (block % 2u == 1u && words == SUBGROUP)) {
            if (gl_SubgroupInvocationID < words)
                WordsOut(scalesTo).x[block / 2u + 1u - words + gl_SubgroupInvocationID] = scaleWord;
            scaleWord = 0u;
        }
    }
}

// `to`, `scalesTo`: head 0's.
void move_row(uvec2 from, uvec2 to, uvec2 scalesTo, uint head, uint dim, uint type) {
    to = add_product(to, head, pc.pageTokens * row_bytes(dim, type));
    if (type == VKMQA_Q8)
        move_blocks(from, to, add_product(scalesTo, head, pc.pageTokens * scale_bytes(dim)), dim);
    else
        move_floats(from, to, dim, type);
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
    NewSlot at = NewSlot(page, offset, true);
    uvec2 toK = slot_row(pc.k, at, 0u, HEAD_DIM_QK, K_TYPE), scalesK = slot_scales(pc.k, at, 0u, HEAD_DIM_QK, K_TYPE);
    uvec2 toV = slot_row(pc.v, at, 0u, HEAD_DIM_V, V_TYPE), scalesV = slot_scales(pc.v, at, 0u, HEAD_DIM_V, V_TYPE);
    uint next = 0u;
    do {
        uint head = min(next, NUM_HEADS_KV - 1u);
        move_row(tensor_row(pc.newK, token, head, pc.kTokenStride, pc.kHeadStride, NEW_TYPE), toK, scalesK, head,
                 HEAD_DIM_QK, K_TYPE);
        if (V_PREFIX == 0u)
            move_row(tensor_row(pc.newV, token, head, pc.vTokenStride, pc.vHeadStride, NEW_TYPE), toV, scalesV, head,
                     HEAD_DIM_V, V_TYPE);
    } while (++next < NUM_HEADS_KV);
}

#version 460
// Drops a range of tokens of one sequence: token t >= first moves to t - distance, in place, K turned back to its
// new position. Tokens t, t + distance, t + 2 distance ... are a chain: each row's target is the row that the chain
// has read before, so a workgroup walks one chain of one KV head's K or V, and chains meet nowhere. With a distance
// of 0 (whole pages were taken out of the list) each token is a chain, and only K is turned.
//
// Rows that are not turned move as bits. Others are decoded, freed of the Hadamard matrix (its own inverse), turned
// by -turn positions, mixed and encoded again; an fp8 head's scale would cancel out.
//
// The grid is flat over K [chains, numHeadsKv], then V likewise where it moves at all.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaShiftPush pc; };
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(list, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
CACHE_READER(k)
#include "params.glsl"
#define STORE(bytes, kind, p, value) store##bytes##_k(p, value);
#include "row_shared.glsl"

const uint PAGE_TOKENS = 1u << (PAGE_SHIFT & 15u);

// Where a token's row is. Indices are clamped: drivers may load behind a return or a loop's end.
CacheRow find_row(uvec2 base, uint token, uint head, uint dim, uint type) {
    token = min(token, pc.length_ - 1u);
    uint page = load4_list(add_offset(pc.list, token / PAGE_TOKENS * 4u));
    uint plane = min(page, pc.numPages - 1u) * NUM_HEADS_KV + head, within = token % PAGE_TOKENS;
    uint rowBytes = row_bytes(dim, type), scaleBytes = has_scales(type) ? scale_bytes(dim) : 0u;
    uvec2 data = add_product(base, plane, PAGE_TOKENS * rowBytes);
    uvec2 scales = add_product(base, pc.numPages * NUM_HEADS_KV, PAGE_TOKENS * rowBytes);
    scales = add_product(scales, plane, PAGE_TOKENS * scaleBytes);
    return CacheRow(add_offset(data, within * rowBytes), add_offset(scales, within * scaleBytes));
}

// A lane moves the same columns of every row of the chain: it has read what it writes over.
void move_k(CacheRow from, CacheRow to) {
    for (uint i = gl_LocalInvocationIndex * 16u; i < row_bytes(HEAD_DIM_QK, K_TYPE); i += WG_SIZE * 16u)
        store16_k(add_offset(to.data, i), load16_k(add_offset(from.data, i)));
    uint scaleBytes = has_scales(K_TYPE) ? scale_bytes(HEAD_DIM_QK) : 0u;
    for (uint i = gl_LocalInvocationIndex * 4u; i < scaleBytes; i += WG_SIZE * 4u)
        store4_k(add_offset(to.scales, i), load4_k(add_offset(from.scales, i)));
}
void move_v(CacheRow from, CacheRow to) {
    for (uint i = gl_LocalInvocationIndex * 16u; i < row_bytes(HEAD_DIM_V, V_TYPE); i += WG_SIZE * 16u)
        store16_v(add_offset(to.data, i), load16_v(add_offset(from.data, i)));
    uint scaleBytes = has_scales(V_TYPE) ? scale_bytes(HEAD_DIM_V) : 0u;
    for (uint i = gl_LocalInvocationIndex * 4u; i < scaleBytes; i += WG_SIZE * 4u)
        store4_v(add_offset(to.scales, i), load4_v(add_offset(from.scales, i)));
}

void mix_row() {
    for (uint reach = 1u; reach < HADAMARD; reach *= 2u) {
        float factor = reach * 2u == HADAMARD ? hadamard_factor() : 1.0;
        mix_pairs(HEAD_DIM_QK / 2u, reach, factor);
        barrier();
    }
}

void turn_k(CacheRow from, CacheRow to) {
    bool blocks = has_scales(K_TYPE);
    uint padded = blocks ? (HEAD_DIM_QK + 31u) & ~31u : HEAD_DIM_QK;
    for (uint i = gl_LocalInvocationIndex * 8u; i < padded; i += WG_SIZE * 8u) {
        vec4 low = vec4(0.0), high = vec4(0.0);
        if (i < HEAD_DIM_QK)
            cache8_k(from, i, K_TYPE, low, high);
        put_bits(i, floatBitsToUint(low));
        put_bits(i + 4u, floatBitsToUint(high));
    }
    barrier();
    mix_row();
    rotate_pairs(ROPE_DIM / 2u, -int(pc.turn), 1.0);
    barrier();
    mix_row();
    if (blocks)
        find_extremes(padded, K_TYPE == VKMQA_Q8 ? Q8_LARGEST : Q4_LARGEST);
    barrier();
    store_row(0u, to.data, K_TYPE, padded, 1.0);
    if (blocks)
        store_scales(0u, to.scales, K_TYPE, padded / 32u);
    barrier(); // before the next row takes its place
}

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint rows = pc.chains * NUM_HEADS_KV;
    bool isV = group >= rows;
    uint index = isV ? group - rows : group, head = index % NUM_HEADS_KV, chain = index / NUM_HEADS_KV;
    if (chain >= pc.chains || (isV && (pc.distance_ == 0u || V_PREFIX != 0u)))
        return;
    uint token = pc.first + chain;
    uint count = pc.distance_ == 0u ? 1u : (pc.length_ - token + pc.distance_ - 1u) / pc.distance_;
    for (uint i = 0u; i < count; ++i, token += pc.distance_) {
        if (isV) {
            move_v(find_row(pc.v, token, head, HEAD_DIM_V, V_TYPE),
                   find_row(pc.v, token - pc.distance_, head, HEAD_DIM_V, V_TYPE));
            continue;
        }
        CacheRow from = find_row(pc.k, token, head, HEAD_DIM_QK, K_TYPE);
        CacheRow to = find_row(pc.k, token - pc.distance_, head, HEAD_DIM_QK, K_TYPE);
        if (ROPE_STYLE == 0u)
            move_k(from, to);
        else
            turn_k(from, to);
    }
}

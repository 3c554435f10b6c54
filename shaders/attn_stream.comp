#version 460
// Attention with subgroup shuffles. A cluster of CLUSTER lanes holds one token's
// row at a time, eight elements per lane and turn by 16-byte loads; every cluster of the workgroup
// streams its own tokens with its own online softmax (Milakov and Gimelshein, arXiv 1805.02867), with
// no barrier in the loop. The states are merged once, at the end: over the clusters of a subgroup by
// shuffles, over subgroups through shared memory (flash-decoding inside the workgroup).
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(q, VKMQA_BIND_Q)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
BUFFER(mask, VKMQA_BIND_MASK)
ROW_READER(q)
CACHE_READER(k)
CACHE_READER(v)
ROW_WRITER(out)
#include "tile.glsl"

// Eights (8 elements) of a row per lane: lane c of a cluster holds eights c, c + CLUSTER, ...
const uint EIGHTS_K = HEAD_DIM_QK / 8u;
const uint EIGHTS_V = HEAD_DIM_V / 8u;
const uint TURNS_K = (EIGHTS_K + CLUSTER - 1u) / CLUSTER;
const uint TURNS_V = (EIGHTS_V + CLUSTER - 1u) / CLUSTER;
const uint CLUSTERS = WG_SIZE / CLUSTER;
const uint SUBGROUPS = WG_SIZE / SUBGROUP;

shared vec4 sharedO[SUBGROUPS > 1u ? EIGHTS_V * 2u : 1u]; // one row's merged output
shared vec2 sharedState[SUBGROUPS];                      // (m, l) of each subgroup

vec4 q[ROWS * TURNS_K * 2u], o[ROWS * TURNS_V * 2u];
float m[ROWS], l[ROWS], slope[ROWS];

float cluster_add(float x) {
    if (CLUSTER > 1u) x += subgroupShuffleXor(x, 1u);
    if (CLUSTER > 2u) x += subgroupShuffleXor(x, 2u);
    if (CLUSTER > 4u) x += subgroupShuffleXor(x, 4u);
    if (CLUSTER > 8u) x += subgroupShuffleXor(x, 8u);
    if (CLUSTER > 16u) x += subgroupShuffleXor(x, 16u);
    return x;
}

// One token: scores of all rows, then the rows' states. masked: it may be invisible to some row.
void stream_token(Tile tile, uint position, uint column, bool masked) {
    bool exists = !masked || (position >= tile.first && position < tile.end);
    Slot slot = find_slot(tile, masked ? clamp_position(tile, position) : position);
    exists = exists && slot.allowed;
    CacheRow row = k_row(slot);
    vec4 held[V_PREFIX != 0u ? TURNS_K * 2u : 1u]; // K that is V as well is loaded once
    float s[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] = 0.0;
    [[unroll]] for (uint turn = 0u; turn < TURNS_K; ++turn) {
        uint eight = column + turn * CLUSTER;
        bool inside = EIGHTS_K % CLUSTER == 0u || eight < EIGHTS_K;
        vec4 low, high;
        cache8_k(row, (inside ? eight : 0u) * 8u, K_TYPE, low, high);
        if (V_PREFIX != 0u) {
            held[turn * 2u] = low;
            held[turn * 2u + 1u] = high;
        }
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
            uint i = (r * TURNS_K + turn) * 2u;
            float part = dot(q[i], low) + dot(q[i + 1u], high);
            s[r] += inside ? part : 0.0;
        }
    }
    float p[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        float score = shape_score(cluster_add(s[r]), slope[r], row_position(tile, r) - int(position));
        bool visible = exists && (!masked || row_sees(tile, r, position));
        score = visible ? score : NEGATIVE;
        float top = max(m[r], score);
        float alpha = softmax_weight(m[r] - top);
        p[r] = visible ? softmax_weight(score - top) : 0.0;
        p[r] = is_nan(score) ? score : p[r]; // a hidden one's is NEGATIVE
        m[r] = top;
        l[r] = l[r] * alpha + p[r];
        [[unroll]] for (uint i = 0u; i < TURNS_V * 2u; ++i) o[r * TURNS_V * 2u + i] *= alpha;
    }
    row = v_row(slot);
    [[unroll]] for (uint turn = 0u; turn < TURNS_V; ++turn) {
        uint eight = column + turn * CLUSTER;
        bool inside = EIGHTS_V % CLUSTER == 0u || eight < EIGHTS_V;
        vec4 low, high;
        if (V_PREFIX != 0u) {
            low = held[turn * 2u];
            high = held[turn * 2u + 1u];
        } else {
            cache8_v(row, (inside ? eight : 0u) * 8u, V_TYPE, low, high);
        }
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
            uint i = (r * TURNS_V + turn) * 2u;
            // Select, never 0 * V: what a row may not see may be NaN.
            bool seen = !masked || p[r] > 0.0;
            o[i] += seen ? p[r] * low : vec4(0.0);
            o[i + 1u] += seen ? p[r] * high : vec4(0.0);
        }
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint lane = gl_SubgroupInvocationID;
    uint subgroup = SUBGROUPS > 1u ? gl_SubgroupID : 0u;
    uint column = lane % CLUSTER;
    uint cluster = subgroup * (SUBGROUP / CLUSTER) + lane / CLUSTER;

    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        uvec2 row = query_row(tile, r);
        [[unroll]] for (uint turn = 0u; turn < TURNS_K; ++turn) {
            uint eight = min(column + turn * CLUSTER, EIGHTS_K - 1u);
            uint i = (r * TURNS_K + turn) * 2u;
            read8_q(row, eight * 8u, IO_TYPE, q[i], q[i + 1u]);
            q[i] *= query_factor(tile);
            q[i + 1u] *= query_factor(tile);
        }
        [[unroll]] for (uint i = 0u; i < TURNS_V * 2u; ++i) o[r * TURNS_V * 2u + i] = vec4(0.0);
        m[r] = NEGATIVE;
        l[r] = 0.0;
        slope[r] = alibi_slope(row_head(tile, r));
    }

    // Every cluster makes the same number of turns, so that shuffles meet all lanes. Tokens of
    // [from, to) are seen by all rows.
    uint from = common_begin(tile), to = common_limit(tile);
    for (uint next = tile.begin; next < tile.end; next += CLUSTERS) {
        if (next >= from && next + CLUSTERS <= to)
            stream_token(tile, next + cluster, column, PAGE_SHIFT != VKMQA_CONTIGUOUS);
        else
            stream_token(tile, next + cluster, column, true);
    }

    // Merge the clusters of the subgroup.
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        for (uint step = CLUSTER; step < SUBGROUP; step *= 2u) {
            float otherM = subgroupShuffleXor(m[r], step), otherL = subgroupShuffleXor(l[r], step);
            float top = max(m[r], otherM);
            float mine = softmax_weight(m[r] - top), theirs = softmax_weight(otherM - top);
            [[unroll]] for (uint i = 0u; i < TURNS_V * 2u; ++i) {
                vec4 other;
                uint at = r * TURNS_V * 2u + i;
                other.x = subgroupShuffleXor(o[at].x, step);
                other.y = subgroupShuffleXor(o[at].y, step);
                other.z = subgroupShuffleXor(o[at].z, step);
                other.w = subgroupShuffleXor(o[at].w, step);
                o[at] = o[at] * mine + other * theirs;
            }
            l[r] = l[r] * mine + otherL * theirs;
            m[r] = top;
        }
    }

    // Merge the subgroups, one row after the other, in ascending order.
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        float top = m[r], sum = l[r], factor = 1.0;
        Norm norm = row_norm(tile, r, top, sum);
        if (SUBGROUPS > 1u) {
            if (lane == 0u)
                sharedState[subgroup] = vec2(m[r], l[r]);
            barrier();
            for (uint s = 0u; s < SUBGROUPS; ++s)
                top = max(top, sharedState[s].x);
            sum = 0.0;
            for (uint s = 0u; s < SUBGROUPS; ++s)
                sum += softmax_weight(sharedState[s].x - top) * sharedState[s].y;
            factor = softmax_weight(m[r] - top);
            norm = row_norm(tile, r, top, sum);
            for (uint s = 0u; s < SUBGROUPS; ++s) {
                if (s == subgroup && lane < CLUSTER) {
                    [[unroll]] for (uint turn = 0u; turn < TURNS_V; ++turn) {
                        uint eight = column + turn * CLUSTER, i = (r * TURNS_V + turn) * 2u;
                        if (eight < EIGHTS_V) {
                            vec4 low = o[i] * factor, high = o[i + 1u] * factor;
                            sharedO[eight * 2u] = s == 0u ? low : sharedO[eight * 2u] + low;
                            sharedO[eight * 2u + 1u] =
                                s == 0u ? high : sharedO[eight * 2u + 1u] + high;
                        }
                    }
                }
                barrier();
            }
            for (uint quad = gl_LocalInvocationIndex; quad < EIGHTS_V * 2u; quad += WG_SIZE)
                write_columns(tile, r, quad * 4u, sharedO[quad], norm);
            barrier();
        } else if (lane < CLUSTER) {
            [[unroll]] for (uint turn = 0u; turn < TURNS_V; ++turn) {
                uint eight = column + turn * CLUSTER, i = (r * TURNS_V + turn) * 2u;
                if (eight < EIGHTS_V) {
                    write_columns(tile, r, eight * 8u, o[i], norm);
                    write_columns(tile, r, eight * 8u + 4u, o[i + 1u], norm);
                }
            }
        }
        if (gl_LocalInvocationIndex == 0u)
            write_state(tile, r, top, sum, norm);
    }
}

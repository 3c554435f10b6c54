#version 460
// Attention for CPU drivers without fast vector loads: a lane is a row, all lanes read the same K and V,
// so that loads are uniform and nothing is reduced across lanes. Tokens go in blocks of TOKENS: scores,
// one step of online softmax (Milakov and Gimelshein, arXiv 1805.02867), then the values; the loops over
// eights (8 elements) stay rolled, q and o being arrays in memory that the first-level cache holds.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(q, VKMQA_BIND_Q)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
ROW_READER8(q)
ROW_READER8(k)
ROW_READER8(v)
ROW_WRITER(out)
#include "tile.glsl"

const uint EIGHTS_K = HEAD_DIM_QK / 8u;
const uint EIGHTS_V = HEAD_DIM_V / 8u;
const uint TOKENS = 8u;

vec4 q[EIGHTS_K * 2u], o[EIGHTS_V * 2u];
float m = NEGATIVE, l = 0.0;

// Tokens [first, first + TOKENS). masked: some of them may be invisible to some row.
void stream_block(Tile tile, uint first, uint limit, bool masked) {
    uvec2 rowK[TOKENS], rowV[TOKENS];
    bool visible[TOKENS];
    float s[TOKENS];
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        uint position = masked ? min(first + t, tile.end - 1u) : first + t;
        Slot slot = find_slot(tile, position);
        rowK[t] = cache_row(pc.k, slot, row_bytes(HEAD_DIM_QK, K_TYPE));
        rowV[t] = cache_row(pc.v, slot, row_bytes(HEAD_DIM_V, V_TYPE));
        visible[t] = !masked || (slot.allowed && first + t < limit);
        s[t] = 0.0;
    }
    [[dont_unroll]] for (uint eight = 0u; eight < EIGHTS_K; ++eight) {
        vec4 qLow = q[eight * 2u], qHigh = q[eight * 2u + 1u];
        [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            vec4 low, high;
            read8_k(rowK[t], eight * 8u, K_TYPE, low, high);
            vec4 sum = qLow * low + qHigh * high;
            s[t] += (sum.x + sum.y) + (sum.z + sum.w);
        }
    }
    float top = m;
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        s[t] = visible[t] ? s[t] * pc.scaleLog2 : NEGATIVE;
        top = max(top, s[t]);
    }
    float alpha = exp2(m - top);
    l *= alpha;
    m = top;
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
        s[t] = visible[t] ? exp2(s[t] - top) : 0.0;
        l += s[t];
    }
    [[dont_unroll]] for (uint eight = 0u; eight < EIGHTS_V; ++eight) {
        vec4 oLow = o[eight * 2u] * alpha, oHigh = o[eight * 2u + 1u] * alpha;
        [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            vec4 low, high;
            read8_v(rowV[t], eight * 8u, V_TYPE, low, high);
            // Select, never 0 * V: what a row may not see may be NaN.
            oLow += !masked || visible[t] ? s[t] * low : vec4(0.0);
            oHigh += !masked || visible[t] ? s[t] * high : vec4(0.0);
        }
        o[eight * 2u] = oLow;
        o[eight * 2u + 1u] = oHigh;
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint row = gl_LocalInvocationIndex;
    uvec2 queryRow = query_row(tile, row);
    [[dont_unroll]] for (uint eight = 0u; eight < EIGHTS_K; ++eight)
        read8_q(queryRow, eight * 8u, IO_TYPE, q[eight * 2u], q[eight * 2u + 1u]);
    [[dont_unroll]] for (uint quad = 0u; quad < EIGHTS_V * 2u; ++quad)
        o[quad] = vec4(0.0);

    uint limit = row_limit(tile, row);
    uint whole = PAGE_SHIFT == VKMQA_CONTIGUOUS ? min(common_limit(tile), tile.end) : 0u;
    uint block = tile.begin;
    [[dont_unroll]] for (; block + TOKENS <= whole; block += TOKENS)
        stream_block(tile, block, limit, false);
    [[dont_unroll]] for (; block < tile.end; block += TOKENS)
        stream_block(tile, block, limit, true);

    [[dont_unroll]] for (uint quad = 0u; quad < EIGHTS_V * 2u; ++quad)
        write_columns(tile, row, quad * 4u, o[quad], l);
    write_state(tile, row, m, l);
}

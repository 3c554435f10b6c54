#version 460
// Attention for any Vulkan 1.1 device: no subgroup operations, no 16-bit types, no device addresses,
// 16 KiB of shared memory. One workgroup streams K and V once for ROWS rows in blocks of BLOCK tokens:
//   S = Q K^T          [ROWS, BLOCK]  one (row, token) pair per invocation and turn, in shared memory
//   m, l, P            online softmax (Milakov and Gimelshein, arXiv 1805.02867)
//   O = O alpha + P V  [ROWS, headDimV]  four columns per invocation and turn, in registers
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#define VKMQA_EXACT_EXP2 1
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

const uint QUADS_K = HEAD_DIM_QK / 4u;
const uint QUADS_V = HEAD_DIM_V / 4u;
const uint ITEMS = (ROWS * QUADS_V + WG_SIZE - 1u) / WG_SIZE; // output quads per invocation

shared vec4 sharedQ[ROWS * QUADS_K];     // [ROWS, headDimQk / 4]
shared float sharedS[ROWS * BLOCK];      // [ROWS, BLOCK]: scores, then probabilities
shared uvec4 sharedV[BLOCK];             // pointers to the V row of each token of the block
shared bool sharedAllowed[BLOCK];
shared float sharedM[ROWS], sharedL[ROWS], sharedAlpha[ROWS];

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint lane = gl_LocalInvocationIndex;

    for (uint i = lane; i < ROWS * QUADS_K; i += WG_SIZE)
        sharedQ[i] = query_factor(tile) *
                     read4_q(query_row(tile, i / QUADS_K), i % QUADS_K * 4u, IO_TYPE);
    if (lane < ROWS) {
        sharedM[lane] = NEGATIVE;
        sharedL[lane] = 0.0;
    }
    vec4 o[ITEMS];
    for (uint item = 0u; item < ITEMS; ++item)
        o[item] = vec4(0.0);

    for (uint block = tile.begin; block < tile.end; block += BLOCK) {
        barrier(); // the previous block's P has been read
        for (uint i = lane; i < ROWS * BLOCK; i += WG_SIZE) {
            uint r = i / BLOCK, t = i % BLOCK, position = block + t;
            float s = NEGATIVE;
            Slot slot;
            slot.allowed = false;
            if (position >= tile.first && position < tile.end) {
                slot = find_slot(tile, position);
                CacheRow row = v_row(slot);
                if (r == 0u)
                    sharedV[t] = uvec4(row.data, row.scales);
                if (slot.allowed && row_sees(tile, r, position)) {
                    row = k_row(slot);
                    vec4 sum = vec4(0.0);
                    for (uint quad = 0u; quad < QUADS_K; ++quad)
                        sum += sharedQ[r * QUADS_K + quad] * cache4_k(row, quad * 4u, K_TYPE);
                    s = shape_score((sum.x + sum.y) + (sum.z + sum.w),
                                    alibi_slope(row_head(tile, r)),
                                    row_position(tile, r) - int(position));
                }
            }
            if (r == 0u)
                sharedAllowed[t] = slot.allowed;
            sharedS[i] = s;
        }
        barrier();
        if (lane < ROWS) {
            float m = sharedM[lane], l = 0.0;
            for (uint t = 0u; t < BLOCK; ++t)
                m = max(m, sharedS[lane * BLOCK + t]);
            for (uint t = 0u; t < BLOCK; ++t) {
                float s = sharedS[lane * BLOCK + t];
                float p = s == NEGATIVE ? 0.0 : softmax_weight(s - m);
                sharedS[lane * BLOCK + t] = p;
                l += p;
            }
            float alpha = softmax_weight(sharedM[lane] - m);
            sharedAlpha[lane] = alpha;
            sharedL[lane] = sharedL[lane] * alpha + l;
            sharedM[lane] = m;
        }
        barrier();
        for (uint item = 0u; item < ITEMS; ++item)
            o[item] *= sharedAlpha[min((item * WG_SIZE + lane) / QUADS_V, ROWS - 1u)];
        uint count = min(tile.end - block, BLOCK);
        for (uint t = 0u; t < count; ++t) {
            if (!sharedAllowed[t])
                continue;
            CacheRow row = CacheRow(sharedV[t].xy, sharedV[t].zw);
            for (uint item = 0u; item < ITEMS; ++item) {
                uint i = item * WG_SIZE + lane;
                float p = sharedS[min(i / QUADS_V, ROWS - 1u) * BLOCK + t];
                // A row that may not see the token must not see its NaN either: select, not 0 * V.
                vec4 v = cache4_v(row, i % QUADS_V * 4u, V_TYPE);
                o[item] += p != 0.0 ? p * v : vec4(0.0);
            }
        }
    }
    barrier();
    for (uint item = 0u; item < ITEMS; ++item) {
        uint i = item * WG_SIZE + lane, r = i / QUADS_V;
        if (r < ROWS)
            write_columns(tile, r, i % QUADS_V * 4u, o[item],
                          row_norm(tile, r, sharedM[r], sharedL[r]));
    }
    if (lane < ROWS)
        write_state(tile, lane, sharedM[lane], sharedL[lane],
                    row_norm(tile, lane, sharedM[lane], sharedL[lane]));
}

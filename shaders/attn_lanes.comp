#version 460
// Attention for SwiftShader, which folds no specialisation constants, so that only small rolled code
// compiles well: a lane is a row, all lanes read the same K and V, one token at a time, nothing is reduced
// across lanes; the types are told apart once a token. Descriptors only. Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
#extension GL_GOOGLE_include_directive : require
#define VKMQA_EXACT_EXP2 1
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(q, VKMQA_BIND_Q)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
ROW_READER(q)
ROW_WRITER(out)
#include "tile.glsl"

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint row = gl_LocalInvocationIndex;
    float q[HEAD_DIM_QK], o[HEAD_DIM_V];
    uvec2 from = query_row(tile, row);
    for (uint i = 0u; i < HEAD_DIM_QK; i += 4u) {
        vec4 quad = read4_q(from, i, IO_TYPE) * score_sign();
        for (uint j = 0u; j < 4u; ++j)
            q[i + j] = quad[j];
    }
    for (uint i = 0u; i < HEAD_DIM_V; ++i)
        o[i] = 0.0;
    float m = NEGATIVE, l = 0.0;
    uint limit = row_limit(tile, row);
    for (uint position = tile.begin; position < tile.end; ++position) {
        Slot slot = find_slot(tile, position);
        // What a row may not see may be NaN: it is not read for the row.
        if (!slot.allowed || position >= limit)
            continue;
        uint at = cache_row(pc.k, slot, row_bytes(HEAD_DIM_QK, K_TYPE)).x >> 4;
        float s = 0.0;
        if (K_TYPE == VKMQA_F16) {
            for (uint eight = 0u; eight < HEAD_DIM_QK / 8u; ++eight) {
                uvec4 words = quads_k[at + eight];
                for (uint j = 0u; j < 4u; ++j) {
                    vec2 pair = unpackHalf2x16(words[j]);
                    s += pair.x * q[eight * 8u + j * 2u] + pair.y * q[eight * 8u + j * 2u + 1u];
                }
            }
        } else {
            for (uint quad = 0u; quad < HEAD_DIM_QK / 4u; ++quad) {
                vec4 x = uintBitsToFloat(quads_k[at + quad]);
                for (uint j = 0u; j < 4u; ++j)
                    s += x[j] * q[quad * 4u + j];
            }
        }
        float top = max(m, s), alpha = softmax_weight(m - top), p = softmax_weight(s - top);
        l = l * alpha + p;
        m = top;
        at = cache_row(pc.v, slot, row_bytes(HEAD_DIM_V, V_TYPE)).x >> 4;
        if (V_TYPE == VKMQA_F16) {
            for (uint eight = 0u; eight < HEAD_DIM_V / 8u; ++eight) {
                uvec4 words = quads_v[at + eight];
                for (uint j = 0u; j < 4u; ++j) {
                    vec2 pair = unpackHalf2x16(words[j]);
                    uint i = eight * 8u + j * 2u;
                    o[i] = o[i] * alpha + p * pair.x;
                    o[i + 1u] = o[i + 1u] * alpha + p * pair.y;
                }
            }
        } else {
            for (uint quad = 0u; quad < HEAD_DIM_V / 4u; ++quad) {
                vec4 x = uintBitsToFloat(quads_v[at + quad]);
                for (uint j = 0u; j < 4u; ++j)
                    o[quad * 4u + j] = o[quad * 4u + j] * alpha + p * x[j];
            }
        }
    }
    for (uint i = 0u; i < HEAD_DIM_V; i += 4u)
        write_columns(tile, row, i, vec4(o[i], o[i + 1u], o[i + 2u], o[i + 3u]), l);
    write_state(tile, row, m, l);
}

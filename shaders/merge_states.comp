#version 460
// Merges attention over disjoint sets of positions: with M = max lse_p,  w_p = exp(lse_p - M),
// out = sum_p w_p out_p / sum_p w_p,  lse = M + log(sum_p w_p)  (section 2.2 of arXiv 2501.01005), and the
// sink as one part more whose out is 0. One workgroup per row, parts in ascending order.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#define VKMQA_EXACT_EXP2 1
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaMergeStatesPush pc; };
BUFFER(partOut, VKMQA_BIND_Q)
BUFFER(partLse, VKMQA_BIND_K)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(params, VKMQA_BIND_PARAMS)
ROW_READER(partOut)
ROW_WRITER(out)

#include "params.glsl"
#include "softmax.glsl"

void main() {
    uint row = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x; // [totalQ, numHeadsQ]
    uint token = row / NUM_HEADS_Q, head = row % NUM_HEADS_Q;
    uint rows = pc.totalQ * NUM_HEADS_Q, last = pc.parts - 1u;
    if (token >= pc.totalQ)
        return;
    row = min(row, rows - 1u);
    // Part p of the row is p * rows + row; clamped, see attn_merge.comp.
#define LSE(p)                                                                                     \
    uintBitsToFloat(load4_partLse(add_product(pc.partLse, min(p, last) * rows + row, 4u)))
    // An empty part's lse is -infinity. A NaN is no empty part, and reaches the result.
#define WEIGHT(x) ((x) <= NEGATIVE ? 0.0 : exp2_negative(((x) - m) * LOG2E))
    float m = NEGATIVE, sum = 0.0;
    bool sinks = SINKS != 0u && (pc.flags & VKMQA_ADD_SINKS) != 0u;
    if (sinks)
        m = max(m, param(VKMQA_PARAM_SINKS(NUM_HEADS_Q, NUM_HEADS_KV) + head));
    float sink = m;
    for (uint p = 0u; p < pc.parts; ++p)
        m = max(m, LSE(p));
    if (sinks)
        sum = WEIGHT(sink);
    for (uint p = 0u; p < pc.parts; ++p)
        sum += WEIGHT(LSE(p));
    bool nothing = sum == 0.0; // no part has anything, and there is no sink
    uint lane = gl_LocalInvocationIndex, bytes = element_bytes(IO_TYPE);
    uvec2 outRow = add_offset(add_product(pc.out_, token, pc.outTokenStride * bytes),
                              head * pc.outHeadStride * bytes);
    for (uint column = lane * 4u; column < HEAD_DIM_V; column += WG_SIZE * 4u) {
        vec4 o = vec4(0.0);
        for (uint p = 0u; p < pc.parts; ++p) {
            float weight = WEIGHT(LSE(p));
            uvec2 part = add_product(pc.partOut, min(p, last) * rows + row, HEAD_DIM_V * bytes);
            if (weight != 0.0)
                o += weight * read4_partOut(part, column, IO_TYPE);
        }
        write4_out(outRow, column, IO_TYPE, nothing ? vec4(0.0) : o / sum);
    }
    if (lane == 0u && (pc.flags & VKMQA_WRITE_LSE) != 0u)
        store4_lse(add_product(pc.lse, row, 4u),
                   nothing ? MINUS_INFINITY_BITS : floatBitsToUint(m + log2(sum) * LN2));
}

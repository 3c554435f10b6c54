#version 460
// Merges the partial states of split-KV attention (flash-decoding): with M = max m_s and w_s =
// exp(scale (m_s - M)),  out = sum_s w_s o_s / sum_s w_s l_s,  lse = scale M + log(sum_s w_s l_s).
// One workgroup per row, splits in ascending order, so that the result is the same in every run.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#define VKMQA_EXACT_EXP2 1 // a row's few weights: accuracy costs nothing
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaMergePush pc; };
BUFFER(parts, VKMQA_BIND_Q)
BUFFER(stats, VKMQA_BIND_K)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
ROW_WRITER(out)

#include "params.glsl"
#include "softmax.glsl"
#include "step.glsl"

void main() {
    uint row = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x; // [totalQ, numHeadsQ]
    uint token = row / NUM_HEADS_Q, head = row % NUM_HEADS_Q;
    if (token >= pc.totalQ)
        return;
    uint low = 0u, high = pc.batch; // the sequence: the last one that starts at or before the token
    while (high - low > 1u) {
        uint middle = (low + high) / 2u;
        if (query_start(middle) <= token)
            low = middle;
        else
            high = middle;
    }
    int start = step_int(pc.cuSeqlensQ, low), stop = step_int(pc.cuSeqlensQ, low + 1u);
    if (start < 0 || stop > int(pc.totalQ) || int(token) < start || int(token) >= stop)
        return; // a token of no sequence
    int lenKv = believed_length(step_int(pc.seqLensKv, low));
    uint splits = split_span(uint(stop - start), lenKv, min(uint(lenKv), pc.maxTokens)).count;

    // Split s of the row is its part s * rows + row. s is clamped, as lavapipe does loads at an address that
    // all lanes share once more after a loop's end, and after a return.
    uint rows = pc.totalQ * NUM_HEADS_Q, last = splits - 1u;
    row = min(row, rows - 1u);
#define STATE(s)                                                                                   \
    uintBitsToFloat(load8_stats(add_product(pc.stats, min(s, last) * rows + row, 8u)))
    float m = NEGATIVE, l = 0.0;
    for (uint s = 0u; s < splits; ++s)
        m = max(m, STATE(s).x);
    for (uint s = 0u; s < splits; ++s) {
        vec2 state = STATE(s);
        l += softmax_weight(state.x - m) * state.y;
    }
    Norm norm = normalise(m, l, head, has_flag(VKMQA_ADD_SINKS));
    uint lane = gl_LocalInvocationIndex;
    uvec2 outRow = add_offset(add_product(pc.out_, token, pc.outTokenStride * element_bytes(IO_TYPE)),
                              head * pc.outHeadStride * element_bytes(IO_TYPE));
    for (uint column = lane * 4u; column < HEAD_DIM_V; column += WG_SIZE * 4u) {
        vec4 o = vec4(0.0);
        for (uint s = 0u; s < splits; ++s) {
            vec2 state = STATE(s);
            uvec2 part = add_product(pc.parts, min(s, last) * rows + row, HEAD_DIM_V * 4u);
            if (state.y != 0.0)
                o += softmax_weight(state.x - m) *
                     uintBitsToFloat(load16_parts(add_offset(part, column * 4u)));
        }
        write4_out(outRow, column, IO_TYPE, o * norm.factor / norm.divisor);
    }
    if (lane == 0u && has_flag(VKMQA_WRITE_LSE))
        store4_lse(add_product(pc.lse, row, 4u), norm.lseBits);
}

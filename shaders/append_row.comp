#version 460
// Append for everything: a workgroup takes one row (token, head) of new K, of new V, or of q to be
// rotated. Rotary embedding, then a Hadamard matrix (K and q), then conversion to the cache's type,
// blocks and scales included. The grid is flat over K rows [newTokens, numHeadsKv], V rows likewise (none
// with V_PREFIX), and q rows [totalQ, numHeadsQ].
//
// Rotary embedding: Su et al., arXiv 2104.09864. Hadamard: QuaRot, Ashkboos et al., arXiv 2404.00456.
//
// The row stands in shared memory as the bits of f32: what is not rotated and stays f32 keeps every bit.
// All of it is read before any of it is written, so that rotated q may take the place of q.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAppendPush pc; };
BUFFER(newK, VKMQA_BIND_Q)
BUFFER(newV, VKMQA_BIND_OUT)
BUFFER(q, VKMQA_BIND_MASK)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(rotatedQ, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
#include "append.glsl"

const uint ROW_K = 0u, ROW_V = 1u, ROW_Q = 2u; // kinds of rows
#ifdef VKMQA_BIND
#define LOAD(bytes, kind, p)                                                                       \
    (kind == ROW_K ? load##bytes##_newK(p) : kind == ROW_V ? load##bytes##_newV(p) : load##bytes##_q(p))
#define STORE(bytes, kind, p, value)                                                               \
    if (kind == ROW_K)                                                                             \
        store##bytes##_k(p, value);                                                                \
    else if (kind == ROW_V)                                                                        \
        store##bytes##_v(p, value);                                                                \
    else                                                                                           \
        store##bytes##_rotatedQ(p, value);
#else // every name reaches every address
#define LOAD(bytes, kind, p) load##bytes##_newK(p)
#define STORE(bytes, kind, p, value) store##bytes##_k(p, value);
#endif

#include "row_shared.glsl"

// Elements dim .. padded - 1 become 0.
void load_row(uint kind, uvec2 from, uint dim, uint padded) {
    for (uint i = gl_LocalInvocationIndex * 4u; i < padded; i += WG_SIZE * 4u) {
        uvec4 bits = uvec4(0u);
        if (i < dim) {
            if (NEW_TYPE == VKMQA_F32) {
                bits = LOAD(16, kind, add_offset(from, i * 4u));
            } else {
                uvec2 words = LOAD(8, kind, add_offset(from, i * 2u));
                bits = floatBitsToUint(NEW_TYPE == VKMQA_F16 ? f16_decode(words) : bf16_decode(words));
            }
        }
        put_bits(i, bits);
    }
}

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint rowsK = pc.newTokens * NUM_HEADS_KV, rowsKv = V_PREFIX != 0u ? rowsK : 2u * rowsK;
    uint index = min(group, rowsKv + pc.totalQ * NUM_HEADS_Q - 1u); // drivers may load behind a return
    if (index != group)
        return;
    uint kind = index < rowsK ? ROW_K : index < rowsKv ? ROW_V : ROW_Q;
    index -= kind == ROW_K ? 0u : kind == ROW_V ? rowsK : rowsKv;
    uint heads = kind == ROW_Q ? NUM_HEADS_Q : NUM_HEADS_KV, head = index % heads, token = index / heads;

    uvec2 from, to, scales = uvec2(0u);
    uint dim = HEAD_DIM_QK, type = IO_TYPE;
    float inverse = 1.0;
    if (kind == ROW_Q) {
        from = tensor_row(pc.q, token, head, pc.qTokenStride, pc.qHeadStride, NEW_TYPE);
        to = tensor_row(pc.rotatedQ, token, head, pc.rotatedTokenStride, pc.rotatedHeadStride, IO_TYPE);
    } else {
        NewSlot slot = new_slot(token, kind == ROW_K && head == 0u && gl_LocalInvocationIndex == 0u);
        if (!slot.given)
            return; // as all of the workgroup
        if (kind == ROW_K) {
            type = K_TYPE;
            from = tensor_row(pc.newK, token, head, pc.kTokenStride, pc.kHeadStride, NEW_TYPE);
            to = slot_row(pc.k, slot, head, dim, type);
            scales = slot_scales(pc.k, slot, head, dim, type);
            inverse = k_inverse_scale(head);
        } else {
            dim = HEAD_DIM_V;
            type = V_TYPE;
            from = tensor_row(pc.newV, token, head, pc.vTokenStride, pc.vHeadStride, NEW_TYPE);
            to = slot_row(pc.v, slot, head, dim, type);
            scales = slot_scales(pc.v, slot, head, dim, type);
            inverse = v_inverse_scale(head);
        }
    }
    uint padded = has_scales(type) ? (dim + 31u) & ~31u : dim;
    load_row(kind, from, dim, padded);
    barrier();
    // The same barriers for all kinds: only the work between them differs.
    if (ROPE_STYLE != 0u) {
        uint word = (kind == ROW_Q ? pc.queryPositions : pc.positions) + token;
        if (kind != ROW_V)
            rotate_pairs(ROPE_DIM / 2u, int(load4_step(add_offset(pc.step, word * 4u))),
                         param(VKMQA_PARAM_ROPE_MAGNITUDE(NUM_HEADS_Q, NUM_HEADS_KV)));
        barrier();
    }
    for (uint reach = 1u; reach < HADAMARD; reach *= 2u) {
        float factor = reach * 2u == HADAMARD ? hadamard_factor() : 1.0;
        mix_pairs(kind == ROW_V ? 0u : dim / 2u, reach, factor);
        barrier();
    }
    if (K_TYPE >= VKMQA_Q8 || V_TYPE >= VKMQA_Q8) {
        if (has_scales(type))
            find_extremes(padded, type == VKMQA_Q8 ? Q8_LARGEST : Q4_LARGEST);
        barrier();
    }
    store_row(kind, to, type, padded, inverse);
    if (has_scales(type))
        store_scales(kind, scales, type, padded / 32u);
}

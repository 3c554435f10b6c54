#version 450
// The baseline that anybody would write first: one lane per query head, all heads of a KV head side by
// side, a loop over tokens, online softmax. f16 contiguous cache, decode, batch 1. One split of the
// tokens per workgroup row; a second dispatch of the same file (MERGE) joins the splits.
// SPDX-License-Identifier: MIT
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint HEADS_Q = 32;
layout(constant_id = 2) const uint HEADS_KV = 8;
layout(constant_id = 3) const uint DIM = 128; // of K and of V, a multiple of 8
layout(constant_id = 4) const uint SPLIT = 256; // tokens
layout(constant_id = 5) const uint MERGE = 0;
const uint RATIO = HEADS_Q / HEADS_KV;
layout(binding = 0, std430) readonly buffer Query { uint q[]; };  // f16 [HEADS_Q, DIM]
layout(binding = 1, std430) readonly buffer Keys { uvec4 k[]; };   // f16 [HEADS_KV, tokens, DIM]
layout(binding = 2, std430) readonly buffer Values { uvec4 v[]; }; // likewise
layout(binding = 3, std430) buffer Out { float o[]; }; // [HEADS_Q, DIM], then (m, l, o) of each split
layout(push_constant) uniform Push { uint tokens; uint splits; float scale; };

void merge(uint head) {
    float m = -3.0e38, l = 0.0;
    uint base = HEADS_Q * DIM;
    for (uint s = 0u; s < splits; s++)
        m = max(m, o[base + (s * HEADS_Q + head) * (DIM + 2u)]);
    for (uint s = 0u; s < splits; s++) {
        uint at = base + (s * HEADS_Q + head) * (DIM + 2u);
        l += o[at + 1u] * exp(o[at] - m);
    }
    for (uint d = 0u; d < DIM; d++) {
        float sum = 0.0;
        for (uint s = 0u; s < splits; s++) {
            uint at = base + (s * HEADS_Q + head) * (DIM + 2u);
            sum += o[at + 2u + d] * exp(o[at] - m);
        }
        o[head * DIM + d] = sum / l;
    }
}

void main() {
    uint groupsPerHead = (RATIO + gl_WorkGroupSize.x - 1u) / gl_WorkGroupSize.x;
    uint lane = gl_WorkGroupID.x % groupsPerHead * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
    uint rest = gl_WorkGroupID.x / groupsPerHead;
    uint headKv = rest % HEADS_KV, split = rest / HEADS_KV;
    uint head = headKv * RATIO + lane;
    if (lane >= RATIO || split >= splits)
        return;
    if (MERGE != 0u) {
        merge(head);
        return;
    }
    float query[DIM], acc[DIM];
    for (uint d = 0u; d < DIM; d += 2u) {
        vec2 pair = unpackHalf2x16(q[(head * DIM + d) / 2u]) * scale;
        query[d] = pair.x;
        query[d + 1u] = pair.y;
        acc[d] = acc[d + 1u] = 0.0;
    }
    float m = -3.0e38, l = 0.0;
    uint last = min(tokens, (split + 1u) * SPLIT);
    for (uint t = split * SPLIT; t < last; t++) {
        uint row = (headKv * tokens + t) * (DIM / 8u);
        float s = 0.0;
        for (uint w = 0u; w < DIM / 8u; w++) {
            uvec4 quad = k[row + w];
            for (uint i = 0u; i < 4u; i++) {
                vec2 pair = unpackHalf2x16(quad[i]);
                s += pair.x * query[w * 8u + i * 2u] + pair.y * query[w * 8u + i * 2u + 1u];
            }
        }
        float larger = max(m, s), old = exp(m - larger), p = exp(s - larger);
        l = l * old + p;
        m = larger;
        for (uint w = 0u; w < DIM / 8u; w++) {
            uvec4 quad = v[row + w];
            for (uint i = 0u; i < 4u; i++) {
                vec2 pair = unpackHalf2x16(quad[i]);
                uint d = w * 8u + i * 2u;
                acc[d] = acc[d] * old + p * pair.x;
                acc[d + 1u] = acc[d + 1u] * old + p * pair.y;
            }
        }
    }
    uint at = HEADS_Q * DIM + (split * HEADS_Q + head) * (DIM + 2u);
    o[at] = m;
    o[at + 1u] = l;
    for (uint d = 0u; d < DIM; d++)
        o[at + 2u + d] = acc[d];
}

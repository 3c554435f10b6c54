#version 460
// The matrix units' roof: every subgroup multiplies one pair of tiles into four accumulators, again and
// again, without memory; the sums are stored at the end.
// SPDX-License-Identifier: MIT
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint M = 16;
layout(constant_id = 2) const uint N = 16;
layout(constant_id = 3) const uint K = 16;
// A compiler that sees through a matrix product takes it out of the loop: 1 makes every turn's differ.
layout(constant_id = 4) const uint VARY = 0;
layout(binding = 0, std430) buffer Target { float target[]; }; // [subgroups, M, N]
layout(binding = 1, std430) buffer Count { uint subgroups; };  // of a workgroup
layout(push_constant) uniform Push { uint turns; float value; float one; };

#define ACCUMULATOR coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>

void main() {
    // 1/32 each: products of K of them stay far from f16's limits, sums from f32's.
    coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a =
        coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA>(float16_t(value));
    coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b =
        coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB>(float16_t(value));
    ACCUMULATOR c0 = ACCUMULATOR(0.0), c1 = ACCUMULATOR(1.0);
    ACCUMULATOR c2 = ACCUMULATOR(2.0), c3 = ACCUMULATOR(3.0);
    for (uint turn = 0u; turn < turns; turn++) {
        c0 = coopMatMulAdd(a, b, c0);
        c1 = coopMatMulAdd(a, b, c1);
        c2 = coopMatMulAdd(a, b, c2);
        c3 = coopMatMulAdd(a, b, c3);
        if (VARY != 0u)
            a = a * float16_t(one);
    }
    uint subgroup = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID;
    coopMatStore(c0 + c1 + (c2 + c3), target, subgroup * M * N, N, gl_CooperativeMatrixLayoutRowMajor);
    if (gl_GlobalInvocationID.x == 0u)
        subgroups = gl_NumSubgroups;
}

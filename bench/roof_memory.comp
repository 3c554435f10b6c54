#version 450
// Memory's roofs: every invocation moves or reads QUADS 16-byte words, neighbours side by side.
// SPDX-License-Identifier: MIT
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint QUADS = 4;
layout(constant_id = 2) const uint WRITE = 1; // 0: read only
layout(binding = 0, std430) readonly buffer Source { uvec4 source[]; };
layout(binding = 1, std430) writeonly buffer Target { uvec4 target[]; };
layout(push_constant) uniform Push { uint count; };

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint first = group * gl_WorkGroupSize.x * QUADS + gl_LocalInvocationIndex;
    if (first + (QUADS - 1u) * gl_WorkGroupSize.x >= count)
        return;
    uvec4 sum = uvec4(0u);
    for (uint i = 0u; i < QUADS; i++) {
        uvec4 quad = source[first + i * gl_WorkGroupSize.x];
        if (WRITE != 0u)
            target[first + i * gl_WorkGroupSize.x] = quad;
        else
            sum |= quad;
    }
    // Never true for what the tool writes there, and no compiler can know.
    if (WRITE == 0u && sum == uvec4(0xDEADBEEFu))
        target[first] = sum;
}

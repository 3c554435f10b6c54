#version 460
// Memory's roofs for CPU drivers that turn uniform loads into vector loads: a workgroup of 8 lanes
// moves or reads 16 runs of 8 words. Every lane names all 8 words of a run, at constant offsets from
// one uniform address, and picks its own: that is what such compilers fuse into one load.
// SPDX-License-Identifier: MIT
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
layout(local_size_x = 8) in;
layout(constant_id = 0) const uint WRITE = 1; // 0: read only
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Words { uint w[128]; };
layout(push_constant) uniform Push { uvec2 source; uvec2 target; uint groups; };

uvec2 advance(uvec2 address, uint bytes) {
    uint carry, low = uaddCarry(address.x, bytes, carry);
    return uvec2(low, address.y + carry);
}

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (group >= groups) // the grid has two dimensions and may be a little larger
        return;
    uint lane = gl_LocalInvocationIndex;
    bool odd = (lane & 1u) != 0u, upper = (lane & 2u) != 0u, high = (lane & 4u) != 0u;
    Words from = Words(advance(source, group * 512u)), to = Words(advance(target, group * 512u));
    uint sum = 0u;
#define PAIR(i) mix(from.w[i], from.w[i + 1], odd)
#define FOUR(i) mix(PAIR(i), PAIR(i + 2), upper)
#define EIGHT(i) mix(FOUR(i), FOUR(i + 4), high)
#define RUN(i)                                                                                     \
    {                                                                                              \
        uint word = EIGHT(i);                                                                      \
        if (WRITE != 0u)                                                                           \
            to.w[i + lane] = word;                                                                 \
        else                                                                                       \
            sum |= word;                                                                           \
    }
    RUN(0) RUN(8) RUN(16) RUN(24) RUN(32) RUN(40) RUN(48) RUN(56)
    RUN(64) RUN(72) RUN(80) RUN(88) RUN(96) RUN(104) RUN(112) RUN(120)
    // Never true for what the tool writes there, and no compiler can know.
    if (WRITE == 0u && sum == 0xDEADBEEFu)
        to.w[lane] = sum;
}

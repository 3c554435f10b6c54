// An element of an array for each lane, by loads that all lanes share, see attn_cpu_elements.glsl.

// Lanes are told apart by a multiple of their index, as Mesa may keep a small constant such as 1 in a
// register of a loop, where LLVM cannot see it.
#define LANE_TAG 0x01010101u
// Lane i gets element chunk * SUBGROUP + i, of `dim`, of the T4 quads from `skip` on.
#define ELEMENTS(T, T4, REF)                                                                       \
    T elements_##REF(uvec2 row, uint skip, uint chunk, uint dim) {                                 \
        uint lane = gl_SubgroupInvocationID * LANE_TAG;                                            \
        T x;                                                                                       \
        [[unroll]] for (uint i = 0u; i < SUBGROUP / 4u; ++i) {                                     \
            uint quad = chunk * (SUBGROUP / 4u) + i;                                               \
            if (quad * 4u >= dim)                                                                  \
                continue;                                                                          \
            T4 w = REF(row).quads[skip + quad];                                                    \
            x = i == 0u ? w.x : mix(x, w.x, lane == (4u * i + 0u) * LANE_TAG);                     \
            x = mix(x, w.y, lane == (4u * i + 1u) * LANE_TAG);                                     \
            x = mix(x, w.z, lane == (4u * i + 2u) * LANE_TAG);                                     \
            x = mix(x, w.w, lane == (4u * i + 3u) * LANE_TAG);                                     \
        }                                                                                          \
        return x;                                                                                  \
    }

// How kernels reach buffers: device addresses, or descriptors in the portable tier (VKMQA_BIND). Both
// speak in uvec2 pointers; with descriptors a pointer is the byte offset in its binding, in .x.
// BUFFER(name, binding) declares load16_name, load4_name, store8_name, store4_name ...
#ifdef VKMQA_BIND
#define BUFFER(name, number)                                                                       \
    layout(binding = number, std430) buffer Words_##name { uint words_##name[]; };                 \
    layout(binding = number, std430) buffer Quads_##name { uvec4 quads_##name[]; };                \
    uvec4 load16_##name(uvec2 p) { return quads_##name[p.x >> 4]; }                                \
    uvec2 load8_##name(uvec2 p) {                                                                  \
        return uvec2(words_##name[p.x >> 2], words_##name[(p.x >> 2) + 1u]);                       \
    }                                                                                              \
    uint load4_##name(uvec2 p) { return words_##name[p.x >> 2]; }                                  \
    void store16_##name(uvec2 p, uvec4 value) { quads_##name[p.x >> 4] = value; }                  \
    void store8_##name(uvec2 p, uvec2 value) {                                                     \
        words_##name[p.x >> 2] = value.x;                                                          \
        words_##name[(p.x >> 2) + 1u] = value.y;                                                   \
    }                                                                                              \
    void store4_##name(uvec2 p, uint value) { words_##name[p.x >> 2] = value; }                    \
    void or4_##name(uvec2 p, uint value) { atomicOr(words_##name[p.x >> 2], value); }
#else
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Ref16 { uvec4 value; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Ref8 { uvec2 value; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Ref4 { uint value; };
#define BUFFER(name, number)                                                                       \
    uvec4 load16_##name(uvec2 p) { return Ref16(p).value; }                                        \
    uvec2 load8_##name(uvec2 p) { return Ref8(p).value; }                                          \
    uint load4_##name(uvec2 p) { return Ref4(p).value; }                                           \
    void store16_##name(uvec2 p, uvec4 value) { Ref16(p).value = value; }                          \
    void store8_##name(uvec2 p, uvec2 value) { Ref8(p).value = value; }                            \
    void store4_##name(uvec2 p, uint value) { Ref4(p).value = value; }                             \
    void or4_##name(uvec2 p, uint value) { atomicOr(Ref4(p).value, value); }
#endif

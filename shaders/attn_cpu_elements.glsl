// Elements of a row, one a lane, for attn_cpu.comp: a load whose address is the same in all lanes is a scalar
// load with no bounds check; where all lanes then select their own element, LLVM folds the loads into one
// vector load, for 16 and 8 bits into one that converts. A load per lane would be a gather.

#include "lane_elements.glsl"

#define REFERENCE(align) layout(buffer_reference, std430, buffer_reference_align = align) buffer
REFERENCE(8) Halves { f16vec4 quads[]; };
REFERENCE(16) Floats { vec4 quads[]; };
REFERENCE(2) Half { float16_t x[]; };
REFERENCE(2) HalfOut { float16_t x[]; };
REFERENCE(4) FloatOut { float x[]; };

ELEMENTS(float16_t, f16vec4, Halves)
ELEMENTS(float, vec4, Floats)
#ifdef VKMQA_NARROW
REFERENCE(8) Shorts { u16vec4 quads[]; };
REFERENCE(2) ShortOut { uint16_t x[]; };
REFERENCE(4) Bytes { u8vec4 quads[]; };
REFERENCE(4) SignedBytes { i8vec4 quads[]; };
ELEMENTS(uint16_t, u16vec4, Shorts)
ELEMENTS(uint8_t, u8vec4, Bytes)
ELEMENTS(int8_t, i8vec4, SignedBytes)

float fp8_lane(uint bits) {
    uint magnitude = bits & 0x7Fu;
    float small = float(int(magnitude)) * (1.0 / 512.0);
    float x = mix(uintBitsToFloat((magnitude << 20) + 0x3C000000u), small, magnitude < 8u);
    uint word = mix(floatBitsToUint(x), 0x7FC00000u, magnitude == 0x7Fu);
    return uintBitsToFloat(word | ((bits & 0x80u) << 24));
}
#endif

// Chunk c of the row `token` rows of rowBytes after `row`. Block types give their codes.
float elements(uvec2 row, uint token, uint rowBytes, uint chunk, uint dim, uint type) {
    float x;
    if (type == VKMQA_F32)
        x = elements_Floats(row, token * rowBytes / 16u, chunk, dim);
    else if (type == VKMQA_F16)
        x = float(elements_Halves(row, token * rowBytes / 8u, chunk, dim));
#ifdef VKMQA_NARROW
    else if (type == VKMQA_BF16)
        x = uintBitsToFloat(uint(elements_Shorts(row, token * rowBytes / 8u, chunk, dim)) << 16);
    else if (type == VKMQA_FP8)
        x = fp8_lane(uint(elements_Bytes(row, token * rowBytes / 4u, chunk, dim)));
    else if (type == VKMQA_Q8)
        x = float(int(elements_SignedBytes(row, token * rowBytes / 4u, chunk, dim)));
    else { // byte j of a q4_0 block: elements j and j + 16
        uint perHalf = 16u / SUBGROUP, block = chunk / (2u * perHalf), part = chunk % (2u * perHalf);
        uint bytes = uint(elements_Bytes(row, token * rowBytes / 4u + block * 4u, part % perHalf, 16u));
        x = float(int((bytes >> (part / perHalf * 4u)) & 15u) - 8);
    }
#endif
    if ((chunk + 1u) * SUBGROUP > dim) // the row ends inside the chunk
        x = mix(0.0, x, gl_SubgroupInvocationID < dim % SUBGROUP);
    return x;
}
// The scale of the block that begins at element i.
float block_scale(uvec2 scales, uint token, uint scaleBytes, uint i) {
    return float(Half(scales).x[token * (scaleBytes / 2u) + i / 32u]);
}

// bfloat16: the upper half of an f32, two elements in a word.

// Round to nearest even; NaN becomes the canonical 0x7FC0.
uvec4 bf16_bits(vec4 value) {
    uvec4 bits = floatBitsToUint(value);
    uvec4 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return mix(rounded, uvec4(0x7FC0u), greaterThan(bits & 0x7FFFFFFFu, uvec4(0x7F800000u)));
}
uvec2 bf16_encode(vec4 value) {
    uvec4 bits = bf16_bits(value);
    return uvec2(bits.x | (bits.y << 16), bits.z | (bits.w << 16));
}
vec4 bf16_decode(uvec2 words) {
    return uintBitsToFloat(uvec4(words.x << 16, words.x & 0xFFFF0000u, words.y << 16,
                                 words.y & 0xFFFF0000u));
}

// IEEE 754 binary16, two elements in a word.

// f32 -> f16 bits, round to nearest even, by integer operations (packHalf2x16 may round either way).
// NaN becomes the canonical 0x7E00, overflow infinity. Four at a time: drivers vectorise it.
uvec4 f16_bits(vec4 value) {
    uvec4 bits = floatBitsToUint(value);
    uvec4 sign = (bits >> 16) & 0x8000u;
    uvec4 magnitude = bits & 0x7FFFFFFFu;
    // Normal results: rebias the exponent (127 - 15 = 112) and round on the 13 bits that go.
    uvec4 normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal results: shift the significand with its hidden bit; below 2^-25 everything goes.
    uvec4 shift = min(126u - min(magnitude >> 23, 113u), 31u); // 13 + (113 - exponent)
    uvec4 significand = (magnitude & 0x7FFFFFu) | 0x800000u;
    uvec4 dropped = significand & ((uvec4(1u) << shift) - 1u);
    uvec4 half_ = uvec4(1u) << (shift - 1u);
    uvec4 small = significand >> shift;
    small += uvec4(greaterThan(dropped, half_)) | (uvec4(equal(dropped, half_)) & (small & 1u));
    uvec4 result = mix(normal, small, lessThan(magnitude, uvec4(0x38800000u)));
    result = mix(result, uvec4(0u), lessThan(magnitude, uvec4(0x33000000u)));
    result = mix(result, uvec4(0x7C00u), greaterThanEqual(magnitude, uvec4(0x477FF000u)));
    bvec4 nan = greaterThan(magnitude, uvec4(0x7F800000u));
    return mix(sign | result, uvec4(0x7E00u), nan);
}
uvec2 f16_encode(vec4 value) {
    uvec4 bits = f16_bits(value);
    return uvec2(bits.x | (bits.y << 16), bits.z | (bits.w << 16));
}
vec4 f16_decode(uvec2 words) { return vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y)); }

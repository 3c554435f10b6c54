// e4m3fn of the OCP 8-bit floating point specification, four elements in a word: no infinities, NaN 0x7F,
// largest 448. The scale of a KV head is applied by the caller.

// Round to nearest even, saturating.
uint fp8_encode(vec4 value) {
    uvec4 bits = floatBitsToUint(value);
    uvec4 magnitude = bits & 0x7FFFFFFFu;
    // Normal results: rebias the exponent (127 - 7 = 120) and round on the 20 bits that go.
    uvec4 normal = (magnitude - 0x3C000000u + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20;
    // Subnormal results, units of 2^-9: shift the significand with its hidden bit.
    uvec4 shift = min(141u - min(magnitude >> 23, 121u), 31u); // 20 + (121 - exponent)
    uvec4 significand = (magnitude & 0x7FFFFFu) | 0x800000u;
    uvec4 dropped = significand & ((uvec4(1u) << shift) - 1u);
    uvec4 half_ = uvec4(1u) << (shift - 1u);
    uvec4 small = significand >> shift;
    small += uvec4(greaterThan(dropped, half_)) | (uvec4(equal(dropped, half_)) & (small & 1u));
    uvec4 result = mix(normal, small, lessThan(magnitude, uvec4(0x3C800000u)));
    result = mix(result, uvec4(0x7Eu), greaterThanEqual(magnitude, uvec4(0x43E00000u)));
    result |= (bits >> 24) & 0x80u;
    result = mix(result, uvec4(0x7Fu), greaterThan(magnitude, uvec4(0x7F800000u)));
    return result.x | (result.y << 8) | (result.z << 16) | (result.w << 24);
}
vec4 fp8_decode(uint word) {
    uvec4 bits = (uvec4(word) >> uvec4(0u, 8u, 16u, 24u)) & 0xFFu;
    uvec4 magnitude = bits & 0x7Fu;
    vec4 value = mix(uintBitsToFloat((magnitude << 20) + 0x3C000000u), vec4(magnitude) * (1.0 / 512.0),
                     lessThan(magnitude, uvec4(8u)));
    uvec4 words = mix(floatBitsToUint(value), uvec4(0x7FC00000u), equal(magnitude, uvec4(0x7Fu)));
    return uintBitsToFloat(words | ((bits & 0x80u) << 24));
}

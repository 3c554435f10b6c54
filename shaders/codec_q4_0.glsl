// GGML's q4_0 block: x ~ d * (code - 8), code 4 bits, d = f16(m / -8) with m the first value of largest
// magnitude. Byte j holds elements j (low half) and j + 16 of the block.
const float Q4_LARGEST = 524032.0; // 8 * 65504

uint q4_scale_bits(float m) { return m == 0.0 ? 0u : f16_bits(vec4(m * -0.125)).x; }
// The word of elements j .. j + 3 and j + 16 .. j + 19, which block_input has seen.
uint q4_encode(vec4 low, vec4 high, float m) {
    float lift = block_lift(abs(m)), inverse = m != 0.0 ? -8.0 / (m * lift) : 0.0;
    uvec4 codes = uvec4(clamp(ivec4(low * lift * inverse + 8.5), 0, 15)) |
                  uvec4(clamp(ivec4(high * lift * inverse + 8.5), 0, 15)) << 4;
    return codes.x | (codes.y << 8) | (codes.z << 16) | (codes.w << 24);
}
// Elements of the word's low (shift 0) or high halves (shift 4).
vec4 q4_decode(uint word, uint shift) {
    return vec4((uvec4(word) >> (uvec4(0u, 8u, 16u, 24u) + shift)) & 0xFu) - 8.0;
}

// GGML's q8_0 block: x ~ d * code, code an int8, d = f16(amax / 127). Four codes in a word.
const float Q8_LARGEST = 8319008.0; // 127 * 65504

uint q8_scale_bits(float amax) { return f16_bits(vec4(amax * (1.0 / 127.0))).x; }
// The codes of four elements, which block_input has seen, of a block with this amax.
uint q8_encode(vec4 value, float amax) {
    float lift = block_lift(amax), inverse = amax > 0.0 ? 127.0 / (amax * lift) : 0.0;
    vec4 scaled = value * lift * inverse;
    ivec4 codes = ivec4(scaled + mix(vec4(0.5), vec4(-0.5), lessThan(scaled, vec4(0.0))));
    uvec4 bytes = uvec4(clamp(codes, -127, 127)) & 0xFFu;
    return bytes.x | (bytes.y << 8) | (bytes.z << 16) | (bytes.w << 24);
}
vec4 q8_decode(uint word) { return vec4(ivec4(uvec4(word) << uvec4(24u, 16u, 8u, 0u)) >> 24); }

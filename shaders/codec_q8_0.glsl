// GGML's q8_0 block: x ~ d * code, code an int8, d = f16(amax / 127). Four codes in a word.
const float Q8_LARGEST = 8319008.0; // 127 * 65504

float q8_scale(float amax) { return amax * (1.0 / 127.0); }
uint q8_scale_bits(float amax) { return f16_bits(vec4(q8_scale(amax))).x; }
// What is rounded to codes, of elements that block_input has seen, of a block with this amax.
vec4 q8_scaled(vec4 value, float amax) {
    float lift = block_lift(amax), inverse = amax > 0.0 ? 127.0 / (amax * lift) : 0.0;
    return value * lift * inverse;
}
uint q8_encode(vec4 value, float amax) {
    vec4 scaled = q8_scaled(value, amax);
    ivec4 codes = ivec4(scaled + mix(vec4(0.5), vec4(-0.5), lessThan(scaled, vec4(0.0))));
    uvec4 bytes = uvec4(clamp(codes, -127, 127)) & 0xFFu;
    return bytes.x | (bytes.y << 8) | (bytes.z << 16) | (bytes.w << 24);
}
vec4 q8_decode(uint word) { return vec4(ivec4(uvec4(word) << uvec4(24u, 16u, 8u, 0u)) >> 24); }

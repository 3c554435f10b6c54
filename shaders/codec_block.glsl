// What q8_0 and q4_0 share: blocks of 32 elements with one f16 scale, what they make of odd values, and
// sums that stay away from f32's edges.
#define VKMQA_BLOCK_ELEMENTS 32u

// NaN and denormals count 0; `largest` keeps the scale a finite f16.
vec4 block_input(vec4 value, float largest) {
    uvec4 magnitude = floatBitsToUint(value) & 0x7FFFFFFFu;
    bvec4 odd = greaterThan(magnitude - 0x00800000u, uvec4(0x7F800000u - 0x00800000u));
    return mix(clamp(value, -largest, largest), vec4(0.0), odd);
}
// A factor that keeps 127 / amax finite for blocks of tiny values.
float block_lift(float amax) { return amax < 1.0e-18 ? 1208925819614629174706176.0 : 1.0; } // 2^80

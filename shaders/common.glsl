// What every kernel starts with: extensions, specialisation constants, types, address arithmetic.
#define VKMQA_GLSL 1
#include "shared.h"

#define VKMQA_SPEC(id, name, value) layout(constant_id = id) const uint name = value;
VKMQA_SPEC_LIST(VKMQA_SPEC)
layout(local_size_x_id = 0) in;

const uint RATIO = NUM_HEADS_Q / NUM_HEADS_KV;

#include "codec_f16.glsl"
#include "codec_bf16.glsl"
#include "codec_fp8.glsl"
#include "codec_block.glsl"
#include "codec_q8_0.glsl"
#include "codec_q4_0.glsl"

// Of q, out and new rows.
uint element_bytes(uint type) { return type == VKMQA_F32 ? 4u : 2u; }
// Bytes from one row of the cache to the next, padded to 16.
uint row_bytes(uint dim, uint type) {
    uint blocks = (dim + 31u) / 32u;
    uint bytes = type == VKMQA_F32   ? dim * 4u
                 : type == VKMQA_FP8 ? dim
                 : type == VKMQA_Q8  ? blocks * 32u
                 : type == VKMQA_Q4  ? blocks * 16u
                                     : dim * 2u;
    return (bytes + 15u) & ~15u;
}
bool has_scales(uint type) { return type >= VKMQA_Q8; }
// Bytes from one row's block scales to the next, padded to 4.
uint scale_bytes(uint dim) { return ((dim + 31u) / 32u * 2u + 3u) & ~3u; }

const float LOG2E = 1.44269504088896341;
const float LN2 = 0.693147180559945;
const uint MINUS_INFINITY_BITS = 0xFF800000u;

// 64-bit address arithmetic on uvec2 (low, high): devices without Int64 run it too.
uvec2 add_offset(uvec2 address, uint bytes) {
    uint carry;
    uint low = uaddCarry(address.x, bytes, carry);
    return uvec2(low, address.y + carry);
}
uvec2 add_product(uvec2 address, uint count, uint bytes) {
    uint high, low, carry;
    umulExtended(count, bytes, high, low);
    low = uaddCarry(address.x, low, carry);
    return uvec2(low, address.y + high + carry);
}

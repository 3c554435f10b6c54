// A row in shared memory, as the bits of f32, and what is done to it by all lanes of a workgroup: rotary embedding
// (Su et al., arXiv 2104.09864), a Hadamard matrix (QuaRot, Ashkboos et al., arXiv 2404.00456), conversion to a
// cache's type, blocks and scales included. What is not rotated and stays f32 keeps every bit. Every function
// leaves it to the caller to put barriers between them. Needs params.glsl and STORE(bytes, kind, p, value).
#include "rope.glsl"

#define LARGEST_DIM 576 // VKMQA_MAX_HEAD_DIM, a multiple of 32
shared uint elements[LARGEST_DIM];
shared float extremes[LARGEST_DIM / 4]; // the first value of largest magnitude of each four

uvec4 bits_from(uint i) {
    return uvec4(elements[i], elements[i + 1u], elements[i + 2u], elements[i + 3u]);
}
vec4 four_from(uint i) { return uintBitsToFloat(bits_from(i)); }
void put_bits(uint i, uvec4 bits) {
    elements[i] = bits.x;
    elements[i + 1u] = bits.y;
    elements[i + 2u] = bits.z;
    elements[i + 3u] = bits.w;
}

void rotate_pairs(uint pairs, int position, float magnitude) {
    uint first = VKMQA_PARAM_ROPE(NUM_HEADS_Q, NUM_HEADS_KV);
    bool neox = ROPE_STYLE == VKMQA_ROPE_PAIRS_NEOX;
    for (uint pair = gl_LocalInvocationIndex; pair < pairs; pair += WG_SIZE) {
        uvec2 turns = load8_params(add_offset(pc.params, (first + 2u * pair) * 4u));
        uint a = ROPE_OFFSET + (neox ? pair : 2u * pair), b = a + (neox ? ROPE_DIM / 2u : 1u);
        vec2 x = uintBitsToFloat(uvec2(elements[a], elements[b]));
        uvec2 turned = floatBitsToUint(rope_rotate(x, position, turns, magnitude));
        elements[a] = turned.x;
        elements[b] = turned.y;
    }
}

// One stage of the fast transform: sums and differences of elements `reach` apart.
void mix_pairs(uint pairs, uint reach, float factor) {
    for (uint pair = gl_LocalInvocationIndex; pair < pairs; pair += WG_SIZE) {
        uint low = pair & (reach - 1u), a = (pair - low) * 2u + low, b = a + reach;
        vec2 x = uintBitsToFloat(uvec2(elements[a], elements[b]));
        elements[a] = floatBitsToUint((x.x + x.y) * factor);
        elements[b] = floatBitsToUint((x.x - x.y) * factor);
    }
}
// 1 / sqrt(HADAMARD), which inversesqrt may miss by 2 ulp.
float hadamard_factor() {
    uint log2_ = uint(findMSB(HADAMARD));
    float power = uintBitsToFloat((127u - (log2_ + 1u) / 2u) << 23);
    return (log2_ & 1u) != 0u ? power * 1.41421356237309505 : power;
}

float larger(float a, float b) { return abs(b) > abs(a) ? b : a; }
// Makes the row what blocks can hold, and finds the extreme of each four.
void find_extremes(uint padded, float largest) {
    for (uint i = gl_LocalInvocationIndex * 4u; i < padded; i += WG_SIZE * 4u) {
        vec4 x = block_input(four_from(i), largest);
        put_bits(i, floatBitsToUint(x));
        extremes[i / 4u] = larger(larger(larger(x.x, x.y), x.z), x.w);
    }
}
float block_extreme(uint block) {
    float extreme = 0.0;
    for (uint i = block * 8u; i < block * 8u + 8u; ++i)
        extreme = larger(extreme, extremes[i]);
    return extreme;
}
uint block_scale_bits(uint block, uint type) {
    float extreme = block_extreme(block);
    return type == VKMQA_Q8 ? q8_scale_bits(abs(extreme)) : q4_scale_bits(extreme);
}

void store_row(uint kind, uvec2 to, uint type, uint padded, float inverse) {
    for (uint i = gl_LocalInvocationIndex * 4u; i < padded; i += WG_SIZE * 4u) {
        if (type == VKMQA_F32) {
            STORE(16, kind, add_offset(to, i * 4u), bits_from(i))
            continue;
        }
        vec4 x = four_from(i);
        if (type < VKMQA_FP8) {
            uvec2 words = type == VKMQA_F16 ? f16_encode(x) : bf16_encode(x);
            STORE(8, kind, add_offset(to, i * 2u), words)
            continue;
        }
        uint word, at = i;
        if (type == VKMQA_FP8) {
            word = fp8_encode(x * inverse);
        } else {
            float extreme = block_extreme(i / 32u);
            if (type == VKMQA_Q8) {
                word = q8_encode(x, abs(extreme));
            } else {
                if ((i & 16u) != 0u)
                    continue; // in the word of the four 16 elements before
                word = q4_encode(x, four_from(i + 16u), extreme);
                at = i / 32u * 16u + (i & 15u);
            }
        }
        STORE(4, kind, add_offset(to, at), word)
    }
}
// Whole words: an odd number of blocks leaves 0 in the upper half of the last.
void store_scales(uint kind, uvec2 to, uint type, uint blocks) {
    for (uint block = gl_LocalInvocationIndex * 2u; block < blocks; block += WG_SIZE * 2u) {
        uint word = block_scale_bits(block, type);
        if (block + 1u < blocks)
            word |= block_scale_bits(block + 1u, type) << 16;
        STORE(4, kind, add_offset(to, block * 2u), word)
    }
}

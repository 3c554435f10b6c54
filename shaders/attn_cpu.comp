#version 460
// Attention for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): one
// subgroup per workgroup, lanes = elements of the head dimension, no shared memory, no barriers. A
// workgroup streams the tokens of its split once for ROWS rows, eight (SUBGROUP) tokens at a time,
// with the online softmax of Milakov and Gimelshein (arXiv 1805.02867); O stays unnormalised until
// the end as in FlashAttention-2 (arXiv 2307.08691); attn_merge merges splits (flash-decoding).
//
// What the driver turns into good code, and why the text looks as it does:
// - loads: see attn_cpu_elements.glsl;
// - [[unroll]] turns arrays into registers, but only where every loop's bounds are constants by
//   themselves: a start that an outer loop sets leaves all of them rolled, 50 times slower;
// - code after a `break` or `return` still runs, masked, and uniform loads in it do take place:
//   addresses are clamped into their buffers, and the loop over blocks tests at its end;
// - a pointer that differs between lanes aborts lavapipe 26.1 at 16 lanes: stores index from a
//   common pointer instead. subgroupAny is a loop over lanes, a shuffle of eight one instruction.
// VKMQA_NARROW adds the types of 16-bit and 8-bit integers, for devices with those.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#ifdef VKMQA_NARROW
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#endif
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#define VKMQA_EXACT_EXP2 1
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
BUFFER(mask, VKMQA_BIND_MASK)
ROW_WRITER(out) // for write_columns of tile.glsl
#include "tile.glsl"
#include "attn_cpu_elements.glsl"

const uint TOKENS = SUBGROUP; // of a block: token t's score ends up in lane t
// Chunks of SUBGROUP elements in a row; lane i holds element chunk * SUBGROUP + i.
const uint CHUNKS_K = (HEAD_DIM_QK + SUBGROUP - 1u) / SUBGROUP;
const uint CHUNKS_V = (HEAD_DIM_V + SUBGROUP - 1u) / SUBGROUP;
const uint PER_BLOCK = VKMQA_BLOCK_ELEMENTS / SUBGROUP; // chunks that share a scale
// Tokens in a row of the same page, so that one look-up serves them.
const uint PAGE_RUN = (1u << (PAGE_SHIFT & 15u)) < TOKENS ? 1u << (PAGE_SHIFT & 15u) : TOKENS;
const uint RUNS = TOKENS / PAGE_RUN; // of a block
const uint GROUP = 4u; // tokens whose chunks are in registers at a time; 2, 4, 8 are equally fast

float q[ROWS * CHUNKS_K], o[ROWS * CHUNKS_V]; // [ROWS, chunks]
float m[ROWS], l[ROWS]; // running maximum, or nearly, and each lane's share of the running sum
float slope[ROWS];
int own[ROWS]; // positions

uint bytes_k() { return row_bytes(HEAD_DIM_QK, K_TYPE); }
uint bytes_v() { return row_bytes(V_ROW_DIM, V_TYPE); }
float elements_k(uvec2 row, uint token, uint chunk) {
    return elements(row, token, bytes_k(), chunk, HEAD_DIM_QK, K_TYPE);
}
float elements_v(uvec2 row, uint token, uint chunk) {
    return elements(row, token, bytes_v(), chunk, HEAD_DIM_V, V_TYPE);
}
// Scale of the block that chunk c of a token belongs to.
float scale_k(uvec2 scales, uint token, uint c) {
    return has_scales(K_TYPE) ? block_scale(scales, token, scale_bytes(HEAD_DIM_QK), c * SUBGROUP) : 1.0;
}
float scale_v(uvec2 scales, uint token, uint c) {
    return has_scales(V_TYPE) ? block_scale(scales, token, scale_bytes(V_ROW_DIM), c * SUBGROUP) : 1.0;
}

float lane_max(float x) {
    x = max(x, subgroupShuffleXor(x, 1u));
    x = max(x, subgroupShuffleXor(x, 2u));
    if (SUBGROUP > 4u) x = max(x, subgroupShuffleXor(x, 4u));
    if (SUBGROUP > 8u) x = max(x, subgroupShuffleXor(x, 8u));
    return x;
}
float lane_sum(float x) {
    x += subgroupShuffleXor(x, 1u);
    x += subgroupShuffleXor(x, 2u);
    if (SUBGROUP > 4u) x += subgroupShuffleXor(x, 4u);
    if (SUBGROUP > 8u) x += subgroupShuffleXor(x, 8u);
    return x;
}

// Raises a row's maximum to top (the same in all lanes) and rescales what was summed below it.
void raise_maximum(uint r, float top) {
    float alpha = softmax_weight(m[r] - top);
    m[r] = top;
    l[r] *= alpha;
    [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) o[r * CHUNKS_V + c] *= alpha;
}

// Of the block at hand, lane t for token t: products q k, then weights; and what the rows may see.
float p[ROWS];
bool seen[ROWS];
CacheRow kRun[16], vRun[16]; // the first token of each of RUNS runs

// shape_score for the rows of a block. Few scores come near a softcap: then no exponential is needed.
void shape_scores(uint position) {
    float cap = uintBitsToFloat(SOFTCAP), largest = 0.0;
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] *= uintBitsToFloat(SCALE);
        largest = max(largest, abs(p[r]));
    }
    if (SOFTCAP != 0u) {
        if (lane_max(largest) < TANH_NEAR * cap) {
            [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = cap * tanh_near_zero(p[r] / cap);
        } else {
            [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = cap * exact_tanh(p[r] / cap);
        }
    }
    if (ALIBI != 0u) {
        int at = int(position + gl_SubgroupInvocationID);
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] -= slope[r] * float(abs(own[r] - at));
    }
}

// Turns the products of the block at `position` into weights and takes them into the running sums.
void softmax(uint position) {
    float growth = 0.0;
    if (SHAPED != 0u)
        shape_scores(position);
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] = mix(NEGATIVE, p[r], seen[r]);
        growth = max(growth, mix(0.0, p[r] - m[r], p[r] > m[r])); // one row's NaN is not the others'
    }
    // A maximum that is some powers of 2 too low does as well, so that few blocks raise it, even where ALiBi
    // makes each token count more than the one before. The same in all lanes: faster than subgroupAny here.
    if (lane_max(growth) * score_unit() > 6.0) {
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) raise_maximum(r, max(m[r], lane_max(p[r])));
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] = mix(0.0, softmax_weight(p[r] - m[r]), seen[r]);
        l[r] += p[r];
    }
}

// TOKENS tokens that every row sees, at kRun and vRun.
void stream_block(uint position) {
    float s[TOKENS * ROWS];  // [TOKENS, ROWS], each lane's part of q k
    float sum[GROUP * ROWS]; // the same of the block of elements at hand, before its scale
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
            bool last = c % PER_BLOCK == PER_BLOCK - 1u || c == CHUNKS_K - 1u;
            [[unroll]] for (uint i = 0u; i < GROUP; ++i) {
                uint t = group + i;
                float x = elements_k(kRun[t / PAGE_RUN].data, t % PAGE_RUN, c), d = 1.0;
                if (has_scales(K_TYPE) && last)
                    d = scale_k(kRun[t / PAGE_RUN].scales, t % PAGE_RUN, c);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
                    float product = q[r * CHUNKS_K + c] * x;
                    uint at = t * ROWS + r;
                    if (has_scales(K_TYPE)) {
                        sum[i * ROWS + r] = c % PER_BLOCK == 0u ? product : sum[i * ROWS + r] + product;
                        product = sum[i * ROWS + r] * d;
                        if (last)
                            s[at] = c < PER_BLOCK ? product : s[at] + product;
                    } else {
                        s[at] = c == 0u ? product : s[at] + product;
                    }
                }
            }
        }
    }

    // Sum over the lanes of all tokens at once (transpose-reduce): in each turn half of the lanes
    // keep an even token, half an odd one, until lane t holds token t.
    uint lane = gl_SubgroupInvocationID;
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        [[unroll]] for (uint turn = 0u; turn < 4u; ++turn) {
            uint width = 1u << turn;
            if (width >= TOKENS)
                continue;
            bool odd = (lane & width) != 0u;
            [[unroll]] for (uint t = 0u; t < 8u; ++t) {
                uint even_ = t * 2u * width;
                if (even_ >= TOKENS)
                    continue;
                float a = s[even_ * ROWS + r], b = s[(even_ + width) * ROWS + r];
                s[even_ * ROWS + r] = mix(a, b, odd) + subgroupShuffleXor(mix(b, a, odd), width);
            }
        }
        p[r] = s[r];
        seen[r] = true;
    }
    softmax(position);

    float weight[TOKENS * ROWS]; // [TOKENS, ROWS], the same in all lanes
    float scaled[GROUP * ROWS]; // weights times the scale of the block of elements at hand
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t)
        [[unroll]] for (uint r = 0u; r < ROWS; ++r)
            weight[t * ROWS + r] = subgroupBroadcast(p[r], t);
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
            [[unroll]] for (uint i = 0u; i < GROUP; ++i) {
                uint t = group + i;
                float x = elements_v(vRun[t / PAGE_RUN].data, t % PAGE_RUN, c), d = 1.0;
                if (has_scales(V_TYPE) && c % PER_BLOCK == 0u)
                    d = scale_v(vRun[t / PAGE_RUN].scales, t % PAGE_RUN, c);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
                    if (!has_scales(V_TYPE))
                        scaled[i * ROWS + r] = weight[t * ROWS + r];
                    else if (c % PER_BLOCK == 0u)
                        scaled[i * ROWS + r] = weight[t * ROWS + r] * d;
                    o[r * CHUNKS_V + c] += scaled[i * ROWS + r] * x;
                }
            }
        }
    }
}

// Bit i: whether the mask allows row r the position + i. The position is the same in all lanes, as a load of
// each lane's own word would be a gather.
uint mask_bits(Tile tile, uint r, uint position) {
    if (MASK_KIND == VKMQA_MASK_NONE)
        return ~0u;
    int first = int(position) - (MASK_KIND == VKMQA_MASK_TREE ? tile.offset : 0);
    uint bit = uint(max(first, 0)), shift = bit & 31u;
    uvec2 row = add_product(pc.mask, tile.query + row_token(tile, r), pc.maskStride * 4u);
    uint low = load4_mask(add_offset(row, min(bit >> 5, pc.maskStride - 1u) * 4u));
    uint high = load4_mask(add_offset(row, min((bit >> 5) + 1u, pc.maskStride - 1u) * 4u));
    uint bits = shift == 0u ? low : (low >> shift) | (high << (32u - shift));
    uint before = uint(clamp(-first, 0, 32)); // positions before the tree
    return before == 0u ? bits : before >= 32u ? ~0u : (bits << before) | ((1u << before) - 1u);
}

// The same for tokens [position, position + TOKENS) of which some are not there, lie in a bad page,
// or are not seen by every row: one token after the other. Select, never 0 * V: V may be NaN.
void stream_edge(Tile tile, uint position) {
    uint lane = gl_SubgroupInvocationID, count = min(max(tile.end, position) - position, TOKENS);
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = 0.0;
    uint allowed = 0u;
    for (uint t = 0u; t < count; ++t) {
        Slot slot = find_slot(tile, clamp_position(tile, position + t));
        allowed |= slot.allowed ? 1u << t : 0u;
        CacheRow row = k_row(slot);
        float s[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] = 0.0;
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
            float x = elements_k(row.data, 0u, c) * scale_k(row.scales, 0u, c);
            [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] += q[r * CHUNKS_K + c] * x;
        }
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = mix(p[r], lane_sum(s[r]), lane == t);
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r)
        seen[r] = ((allowed & mask_bits(tile, r, position)) >> lane & 1u) != 0u &&
                  position + lane >= row_begin(tile, r) && position + lane < row_limit(tile, r);
    softmax(position);
    for (uint t = 0u; t < count; ++t) {
        Slot slot = find_slot(tile, clamp_position(tile, position + t));
        CacheRow row = v_row(slot);
        float weight[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) weight[r] = subgroupShuffle(p[r], t);
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
            float x = elements_v(row.data, 0u, c) * scale_v(row.scales, 0u, c);
            [[unroll]] for (uint r = 0u; r < ROWS; ++r)
                o[r * CHUNKS_V + c] += mix(0.0, weight[r] * x, weight[r] > 0.0);
        }
    }
}

// Row r of the tile: [HEAD_DIM_V] of out, or of the split's part, not normalised.
void write_row(Tile tile, uint r, Norm norm) {
    uvec2 row = out_row(tile, r);
    if (partial())
        row = add_product(pc.out_, part_index(tile, r), HEAD_DIM_V * 4u);
    float factor = norm.factor * v_scale(tile.kvHead);
    uint lane = gl_SubgroupInvocationID;
    [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
        uint column = c * SUBGROUP + lane;
        float x = o[r * CHUNKS_V + c] * factor / norm.divisor;
        if ((c + 1u) * SUBGROUP > HEAD_DIM_V && column >= HEAD_DIM_V)
            continue;
        if (partial() || IO_TYPE == VKMQA_F32)
            FloatOut(row).x[column] = x;
        else if (IO_TYPE == VKMQA_F16)
            HalfOut(row).x[column] = float16_t(x);
#ifdef VKMQA_NARROW
        else
            ShortOut(row).x[column] = uint16_t(bf16_bits(vec4(x)).x);
#endif
    }
}

void main() {
    Tile tile = find_tile();
    bool empty = tile.rows == 0u;
    if (empty) { // what follows runs all the same: let it read what exists
        tile.query = 0u;
        tile.row = 0u;
        tile.rows = 1u;
        tile.first = 0u;
        tile.begin = 0u;
        tile.end = 0u;
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        uvec2 row = query_row(tile, r);
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c)
            q[r * CHUNKS_K + c] = query_factor(tile) * elements(row, 0u, 0u, c, HEAD_DIM_QK, IO_TYPE);
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) o[r * CHUNKS_V + c] = 0.0;
        m[r] = NEGATIVE;
        l[r] = 0.0;
        slope[r] = alibi_slope(row_head(tile, r));
        own[r] = row_position(tile, r);
    }

    // Blocks inside of [from, to) are seen by all rows.
    uint position = tile.begin, from = common_begin(tile), to = common_limit(tile);
    if (position < tile.end) {
        do {
            bool all_ = position >= from && position + TOKENS <= to;
            [[unroll]] for (uint run = 0u; run < RUNS; ++run) {
                Slot slot = find_slot(tile, clamp_position(tile, position + run * PAGE_RUN));
                all_ = all_ && slot.allowed;
                kRun[run] = k_row(slot);
                vRun[run] = v_row(slot);
            }
            if (all_)
                stream_block(position);
            else
                stream_edge(tile, position);
            position += TOKENS;
        } while (position < tile.end);
    }

    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        float sum = lane_sum(l[r]);
        Norm norm = row_norm(tile, r, m[r], sum);
        if (!empty && r < tile.rows) {
            write_row(tile, r, norm);
            if (gl_SubgroupInvocationID == 0u)
                write_state(tile, r, m[r], sum, norm);
        }
    }
}

#version 460
// Attention for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): one
// subgroup per workgroup, lanes = elements of the head dimension, no shared memory, no barriers. A
// workgroup streams the tokens of its split once for ROWS rows, eight (SUBGROUP) tokens at a time,
// with the online softmax of Milakov and Gimelshein (arXiv 1805.02867); O stays unnormalised until the
// end as in FlashAttention-2 (arXiv 2307.08691), splits are merged by attn_merge (flash-decoding).
//
// What the driver turns into good code, and why the text looks as it does:
// - a load whose address is the same in all lanes is a scalar load without a bounds check; when every
//   lane then selects its own element (elements_*), LLVM folds eight loads into one vector load, for
//   f16 into one that converts. A load per lane would be a gather;
// - loops are unrolled ([[unroll]] with a plain counter), so that arrays become registers;
// - code after a `break` or `return` still runs, masked, and uniform loads in it do take place: every
//   address is clamped into its buffer, and the loop tests at its end.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_vote : require
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
ROW_WRITER(out)
#include "tile.glsl"

layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Halves { f16vec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Floats { vec4 quads[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer FloatOut { float x; };
layout(buffer_reference, std430, buffer_reference_align = 2) writeonly buffer HalfOut { float16_t x; };

const uint TOKENS = SUBGROUP; // of a block: token t's score ends up in lane t
// Chunks of SUBGROUP elements in a row; lane i holds element chunk * SUBGROUP + i.
const uint CHUNKS_K = (HEAD_DIM_QK + SUBGROUP - 1u) / SUBGROUP;
const uint CHUNKS_V = (HEAD_DIM_V + SUBGROUP - 1u) / SUBGROUP;
// Tokens in a row of the same page, so that one look-up serves them.
const uint PAGE_RUN = (1u << (PAGE_SHIFT & 15u)) < TOKENS ? 1u << (PAGE_SHIFT & 15u) : TOKENS;
const uint BYTES_K = ((HEAD_DIM_QK * (K_TYPE == VKMQA_F16 ? 2u : 4u)) + 15u) & ~15u;
const uint BYTES_V = ((HEAD_DIM_V * (V_TYPE == VKMQA_F16 ? 2u : 4u)) + 15u) & ~15u;
// Whether rows of one tile may belong to different tokens, and so see different positions.
const bool MIXED = CAUSAL * (RATIO % ROWS) != 0u; // no &&: glslang would not fold it
#ifndef GROUP
#define GROUP 4u
#endif

float q[ROWS * CHUNKS_K], o[ROWS * CHUNKS_V]; // [ROWS, chunks]
float m[ROWS], l[ROWS]; // running maximum (log2 units), and each lane's share of the running sum

// SUBGROUP elements of a row of T4 quads. Lanes are told apart by a multiple of their index, because
// Mesa may keep a small constant such as 1 in a loop variable's register, where LLVM cannot see it.
#define LANE_TAG 0x01010101u
#define ELEMENTS(T, T4, REF)                                                                       \
    T elements_##REF(uvec2 row, uint chunk, uint dim) {                                            \
        uint lane = gl_SubgroupInvocationID * LANE_TAG;                                            \
        T x;                                                                                       \
        [[unroll]] for (uint i = 0u; i < SUBGROUP / 4u; ++i) {                                     \
            uint quad = chunk * (SUBGROUP / 4u) + i;                                               \
            if (quad * 4u >= dim)                                                                  \
                continue;                                                                          \
            T4 w = REF(row).quads[quad];                                                           \
            x = i == 0u ? w.x : mix(x, w.x, lane == (4u * i + 0u) * LANE_TAG);                     \
            x = mix(x, w.y, lane == (4u * i + 1u) * LANE_TAG);                                     \
            x = mix(x, w.z, lane == (4u * i + 2u) * LANE_TAG);                                     \
            x = mix(x, w.w, lane == (4u * i + 3u) * LANE_TAG);                                     \
        }                                                                                          \
        return x;                                                                                  \
    }
ELEMENTS(float16_t, f16vec4, Halves)
ELEMENTS(float, vec4, Floats)
float elements(uvec2 row, uint chunk, uint dim, uint type) {
    float x;
    if (type == VKMQA_F16)
        x = float(elements_Halves(row, chunk, dim));
    else
        x = elements_Floats(row, chunk, dim);
    if ((chunk + 1u) * SUBGROUP > dim) // the row ends inside the chunk
        x = mix(0.0, x, gl_SubgroupInvocationID < dim % SUBGROUP);
    return x;
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
    float alpha = exp2(m[r] - top);
    m[r] = top;
    l[r] *= alpha;
    [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) o[r * CHUNKS_V + c] *= alpha;
}

// Where the tokens of a block lie. Positions outside [0, end) and in bad pages are not in `seen`, and
// point to a token that is, so that nothing of theirs is read.
struct Block {
    uvec2 k[16]; // TOKENS of them
    uvec2 v[16];
    uint seen; // bit t: token t
};
Block find_block(Tile tile, uint position, uint end) {
    Block block;
    uint last = min(max(end, position + 1u) - 1u - position, TOKENS - 1u);
    block.seen = 0u;
    uvec2 safeK = pc.k, safeV = pc.v;
    [[unroll]] for (uint run = 0u; run < TOKENS; run += PAGE_RUN) {
        uint first = min(run, last);
        Slot slot = find_slot(tile, min(position + first, max(end, 1u) - 1u));
        uvec2 k = cache_row(pc.k, slot, BYTES_K), v = cache_row(pc.v, slot, BYTES_V);
        [[unroll]] for (uint t = 0u; t < PAGE_RUN; ++t) {
            uint token = min(run + t, last) - first;
            block.k[run + t] = add_offset(k, token * BYTES_K);
            block.v[run + t] = add_offset(v, token * BYTES_V);
        }
        uint tokens = run <= last ? min(last + 1u - run, PAGE_RUN) : 0u;
        if (slot.allowed)
            block.seen |= ((1u << tokens) - 1u) << run;
        if (slot.allowed && tokens > 0u) {
            safeK = k;
            safeV = v;
        }
    }
    if (PAGE_RUN < TOKENS) {
        [[unroll]] for (uint t = 0u; t < TOKENS; ++t) {
            bool seen = (block.seen & (1u << t)) != 0u;
            block.k[t] = mix(safeK, block.k[t], bvec2(seen));
            block.v[t] = mix(safeV, block.v[t], bvec2(seen));
        }
    }
    return block;
}

// A block of tokens that are all seen by every row, or by none.
void stream_block(Block block) {
    float s[TOKENS * ROWS]; // [TOKENS, ROWS], each lane's part of q k
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
            [[unroll]] for (uint t = group; t < group + GROUP; ++t) {
                float k = elements(block.k[t], c, HEAD_DIM_QK, K_TYPE);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
                    float product = q[r * CHUNKS_K + c] * k;
                    s[t * ROWS + r] = c == 0u ? product : s[t * ROWS + r] + product;
                }
            }
        }
    }

    // Sum over the lanes of all tokens at once (transpose-reduce): in each turn half of the lanes keep
    // an even token, half an odd one, until lane t holds token t.
    uint lane = gl_SubgroupInvocationID;
    float p[ROWS];
    bool seen = ((block.seen >> lane) & 1u) != 0u, grows = false;
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
        p[r] = mix(NEGATIVE, s[r] * pc.scaleLog2, seen);
        grows = grows || p[r] > m[r];
    }
    // Most blocks do not raise any maximum.
    if (subgroupAny(grows)) {
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) raise_maximum(r, max(m[r], lane_max(p[r])));
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] = mix(0.0, exp2(p[r] - m[r]), seen);
        l[r] += p[r];
    }

    float weight[TOKENS * ROWS]; // [TOKENS, ROWS], the same in all lanes
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t)
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) weight[t * ROWS + r] = subgroupBroadcast(p[r], t);
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
            [[unroll]] for (uint t = group; t < group + GROUP; ++t) {
                float v = elements(block.v[t], c, HEAD_DIM_V, V_TYPE);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r)
                    o[r * CHUNKS_V + c] += weight[t * ROWS + r] * v;
            }
        }
    }
}

// One token that some rows see and others do not. Select, never 0 * V: it may be NaN.
void stream_token(Tile tile, uint position) {
    Slot slot = find_slot(tile, min(position, max(tile.end, 1u) - 1u));
    uvec2 row = cache_row(pc.k, slot, BYTES_K);
    float s[ROWS], p[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] = 0.0;
    [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
        float k = elements(row, c, HEAD_DIM_QK, K_TYPE);
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] += q[r * CHUNKS_K + c] * k;
    }
    bool seen[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        seen[r] = slot.allowed && position < row_limit(tile, r);
        float score = mix(NEGATIVE, lane_sum(s[r]) * pc.scaleLog2, seen[r]);
        raise_maximum(r, max(m[r], score));
        p[r] = mix(0.0, exp2(score - m[r]), seen[r]);
        l[r] += gl_SubgroupInvocationID == 0u ? p[r] : 0.0;
    }
    row = cache_row(pc.v, slot, BYTES_V);
    [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
        float v = elements(row, c, HEAD_DIM_V, V_TYPE);
        [[unroll]] for (uint r = 0u; r < ROWS; ++r)
            o[r * CHUNKS_V + c] += mix(0.0, p[r] * v, seen[r]);
    }
}

// Row r of the tile: [HEAD_DIM_V] of out, or of the split's part, not normalised.
void write_row(Tile tile, uint r, float sum) {
    bool parts = pc.splits > 1u;
    uvec2 row = out_row(tile, r);
    if (parts)
        row = add_product(pc.out_, part_index(tile, r), HEAD_DIM_V * 4u);
    float divisor = parts || sum == 0.0 ? 1.0 : sum;
    uint lane = gl_SubgroupInvocationID;
    [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
        uint column = c * SUBGROUP + lane;
        float x = o[r * CHUNKS_V + c] / divisor;
        if ((c + 1u) * SUBGROUP > HEAD_DIM_V && column >= HEAD_DIM_V)
            continue;
        if (parts || IO_TYPE == VKMQA_F32)
            FloatOut(add_offset(row, column * 4u)).x = x;
        else
            HalfOut(add_offset(row, column * 2u)).x = float16_t(x);
    }
}

void main() {
    Tile tile = find_tile();
    bool empty = tile.rows == 0u;
    if (empty) { // what follows runs all the same: let it read what exists
        tile.query = 0u;
        tile.row = 0u;
        tile.rows = 1u;
        tile.begin = 0u;
        tile.end = 0u;
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        uvec2 row = query_row(tile, r);
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c)
            q[r * CHUNKS_K + c] = elements(row, c, HEAD_DIM_QK, IO_TYPE);
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) o[r * CHUNKS_V + c] = 0.0;
        m[r] = NEGATIVE;
        l[r] = 0.0;
    }

    uint end = empty ? 0u : MIXED ? max(common_limit(tile), tile.begin) : tile.end;
    uint position = tile.begin;
    if (position < end) {
        do {
            Block block = find_block(tile, position, end);
            if (block.seen != 0u)
                stream_block(block);
            position += TOKENS;
        } while (position < end);
    }
    if (MIXED) {
        for (position = end; position < tile.end; ++position) stream_token(tile, position);
    }

    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        float sum = lane_sum(l[r]);
        if (!empty && r < tile.rows) {
            write_row(tile, r, sum);
            if (gl_SubgroupInvocationID == 0u)
                write_state(tile, r, m[r], sum);
        }
    }
}

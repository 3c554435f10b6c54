#version 460
// Attention for CPU drivers that compile shaders to wide vectors (lavapipe from Mesa 26 on): one
// subgroup per workgroup, lanes = elements of the head dimension, no shared memory, no barriers. A
// workgroup streams the tokens of its split once for ROWS rows, eight (SUBGROUP) tokens at a time,
// with the online softmax of Milakov and Gimelshein (arXiv 1805.02867); O stays unnormalised until
// the end as in FlashAttention-2 (arXiv 2307.08691); attn_merge merges splits (flash-decoding).
//
// What the driver turns into good code, and why the text looks as it does:
// - a load whose address is the same in all lanes is a scalar load with no bounds check; where all
//   lanes then select their own element (elements_*), LLVM folds eight loads into one vector load,
//   for f16 into one that converts. A load per lane would be a gather;
// - [[unroll]] turns arrays into registers, but only where every loop's bounds are constants by
//   themselves: a start that an outer loop sets leaves all of them rolled, 50 times slower;
// - code after a `break` or `return` still runs, masked, and uniform loads in it do take place:
//   addresses are clamped into their buffers, and the loop over blocks tests at its end;
// - a pointer that differs between lanes aborts lavapipe 26.1 at 16 lanes: stores index from a
//   common pointer instead. subgroupAny is a loop over lanes, a shuffle of eight one instruction.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#define VKMQA_EXACT_EXP2 1
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
ROW_WRITER(out) // for write_columns of tile.glsl
#include "tile.glsl"

#define REFERENCE(align) layout(buffer_reference, std430, buffer_reference_align = align) buffer
REFERENCE(8) Halves { f16vec4 quads[]; };
REFERENCE(16) Floats { vec4 quads[]; };
REFERENCE(2) HalfOut { float16_t x[]; };
REFERENCE(4) FloatOut { float x[]; };

const uint TOKENS = SUBGROUP; // of a block: token t's score ends up in lane t
// Chunks of SUBGROUP elements in a row; lane i holds element chunk * SUBGROUP + i.
const uint CHUNKS_K = (HEAD_DIM_QK + SUBGROUP - 1u) / SUBGROUP;
const uint CHUNKS_V = (HEAD_DIM_V + SUBGROUP - 1u) / SUBGROUP;
// Tokens in a row of the same page, so that one look-up serves them.
const uint PAGE_RUN = (1u << (PAGE_SHIFT & 15u)) < TOKENS ? 1u << (PAGE_SHIFT & 15u) : TOKENS;
const uint RUNS = TOKENS / PAGE_RUN; // of a block
const uint BYTES_K = ((HEAD_DIM_QK * (K_TYPE == VKMQA_F16 ? 2u : 4u)) + 15u) & ~15u;
const uint BYTES_V = ((HEAD_DIM_V * (V_TYPE == VKMQA_F16 ? 2u : 4u)) + 15u) & ~15u;
// Whether rows of one tile may belong to different tokens, and so see different positions.
const bool MIXED = CAUSAL * (RATIO % ROWS) != 0u; // no &&: glslang would not fold it
const uint GROUP = 4u; // tokens whose chunks are in registers at a time; 2, 4, 8 are equally fast

float q[ROWS * CHUNKS_K], o[ROWS * CHUNKS_V]; // [ROWS, chunks]
float m[ROWS], l[ROWS]; // running maximum (log2 units), and each lane's share of the running sum

// SUBGROUP elements of a row of T4 quads. Lanes are told apart by a multiple of their index, as
// Mesa may keep a small constant such as 1 in a register of a loop, where LLVM cannot see it.
#define LANE_TAG 0x01010101u
#define ELEMENTS(T, T4, REF)                                                                       \
    T elements_##REF(uvec2 row, uint skip, uint chunk, uint dim) {                                 \
        uint lane = gl_SubgroupInvocationID * LANE_TAG;                                            \
        T x;                                                                                       \
        [[unroll]] for (uint i = 0u; i < SUBGROUP / 4u; ++i) {                                     \
            uint quad = chunk * (SUBGROUP / 4u) + i;                                               \
            if (quad * 4u >= dim)                                                                  \
                continue;                                                                          \
            T4 w = REF(row).quads[skip + quad];                                                    \
            x = i == 0u ? w.x : mix(x, w.x, lane == (4u * i + 0u) * LANE_TAG);                     \
            x = mix(x, w.y, lane == (4u * i + 1u) * LANE_TAG);                                     \
            x = mix(x, w.z, lane == (4u * i + 2u) * LANE_TAG);                                     \
            x = mix(x, w.w, lane == (4u * i + 3u) * LANE_TAG);                                     \
        }                                                                                          \
        return x;                                                                                  \
    }
ELEMENTS(float16_t, f16vec4, Halves)
ELEMENTS(float, vec4, Floats)
// Chunk c of the row `token` rows of rowBytes after `row`.
float elements(uvec2 row, uint token, uint rowBytes, uint chunk, uint dim, uint type) {
    float x;
    if (type == VKMQA_F16)
        x = float(elements_Halves(row, token * rowBytes / 8u, chunk, dim));
    else
        x = elements_Floats(row, token * rowBytes / 16u, chunk, dim);
    if ((chunk + 1u) * SUBGROUP > dim) // the row ends inside the chunk
        x = mix(0.0, x, gl_SubgroupInvocationID < dim % SUBGROUP);
    return x;
}
float elements_k(uvec2 row, uint token, uint chunk) {
    return elements(row, token, BYTES_K, chunk, HEAD_DIM_QK, K_TYPE);
}
float elements_v(uvec2 row, uint token, uint chunk) {
    return elements(row, token, BYTES_V, chunk, HEAD_DIM_V, V_TYPE);
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

// Of the block at hand, lane t for token t: scores q k, then weights; and what the rows may see.
float p[ROWS];
bool seen[ROWS];
uvec2 kRun[16], vRun[16]; // the first token of each of RUNS runs

// Turns the scores into weights and takes them into the running sums.
void softmax() {
    float growth = 0.0;
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] = mix(NEGATIVE, p[r], seen[r]);
        growth = max(growth, p[r] - m[r]);
    }
    // Most blocks raise no maximum. The same in all lanes, and faster here than subgroupAny.
    if (lane_max(growth) > 0.0) {
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) raise_maximum(r, max(m[r], lane_max(p[r])));
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
        p[r] = mix(0.0, softmax_weight(p[r] - m[r]), seen[r]);
        l[r] += p[r];
    }
}

// TOKENS tokens that every row sees, at kRun and vRun.
void stream_block() {
    float s[TOKENS * ROWS]; // [TOKENS, ROWS], each lane's part of q k
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
            [[unroll]] for (uint i = 0u; i < GROUP; ++i) {
                uint t = group + i;
                float x = elements_k(kRun[t / PAGE_RUN], t % PAGE_RUN, c);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r) {
                    float product = q[r * CHUNKS_K + c] * x;
                    s[t * ROWS + r] = c == 0u ? product : s[t * ROWS + r] + product;
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
    softmax();

    float weight[TOKENS * ROWS]; // [TOKENS, ROWS], the same in all lanes
    [[unroll]] for (uint t = 0u; t < TOKENS; ++t)
        [[unroll]] for (uint r = 0u; r < ROWS; ++r)
            weight[t * ROWS + r] = subgroupBroadcast(p[r], t);
    [[unroll]] for (uint group = 0u; group < TOKENS; group += GROUP) {
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
            [[unroll]] for (uint i = 0u; i < GROUP; ++i) {
                uint t = group + i;
                float x = elements_v(vRun[t / PAGE_RUN], t % PAGE_RUN, c);
                [[unroll]] for (uint r = 0u; r < ROWS; ++r)
                    o[r * CHUNKS_V + c] += weight[t * ROWS + r] * x;
            }
        }
    }
}

// The same for tokens [position, position + TOKENS) of which some are not there, lie in a bad page,
// or are not seen by every row: one token after the other. Select, never 0 * V: V may be NaN.
void stream_edge(Tile tile, uint position) {
    uint lane = gl_SubgroupInvocationID, count = min(max(tile.end, position) - position, TOKENS);
    [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = 0.0;
    uint allowed = 0u;
    uint last = max(tile.end, 1u) - 1u;
    for (uint t = 0u; t < count; ++t) {
        Slot slot = find_slot(tile, min(position + t, last));
        allowed |= slot.allowed ? 1u << t : 0u;
        uvec2 row = cache_row(pc.k, slot, BYTES_K);
        float s[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] = 0.0;
        [[unroll]] for (uint c = 0u; c < CHUNKS_K; ++c) {
            float x = elements_k(row, 0u, c);
            [[unroll]] for (uint r = 0u; r < ROWS; ++r) s[r] += q[r * CHUNKS_K + c] * x;
        }
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) p[r] = mix(p[r], lane_sum(s[r]), lane == t);
    }
    [[unroll]] for (uint r = 0u; r < ROWS; ++r)
        seen[r] = (allowed >> lane & 1u) != 0u && position + lane < row_limit(tile, r);
    softmax();
    for (uint t = 0u; t < count; ++t) {
        Slot slot = find_slot(tile, min(position + t, last));
        uvec2 row = cache_row(pc.v, slot, BYTES_V);
        float weight[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; ++r) weight[r] = subgroupShuffle(p[r], t);
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) {
            float x = elements_v(row, 0u, c);
            [[unroll]] for (uint r = 0u; r < ROWS; ++r)
                o[r * CHUNKS_V + c] += mix(0.0, weight[r] * x, weight[r] > 0.0);
        }
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
            FloatOut(row).x[column] = x;
        else
            HalfOut(row).x[column] = float16_t(x);
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
            q[r * CHUNKS_K + c] = score_sign() * elements(row, 0u, 0u, c, HEAD_DIM_QK, IO_TYPE);
        [[unroll]] for (uint c = 0u; c < CHUNKS_V; ++c) o[r * CHUNKS_V + c] = 0.0;
        m[r] = NEGATIVE;
        l[r] = 0.0;
    }

    // Blocks up to `whole` are seen by all rows.
    uint position = tile.begin, whole = MIXED ? min(common_limit(tile), tile.end) : tile.end;
    if (position < tile.end) {
        do {
            bool all_ = position + TOKENS <= whole;
            [[unroll]] for (uint run = 0u; run < RUNS; ++run) {
                Slot slot = find_slot(tile, min(position + run * PAGE_RUN, tile.end - 1u));
                all_ = all_ && slot.allowed;
                kRun[run] = cache_row(pc.k, slot, BYTES_K);
                vRun[run] = cache_row(pc.v, slot, BYTES_V);
            }
            if (all_)
                stream_block();
            else
                stream_edge(tile, position);
            position += TOKENS;
        } while (position < tile.end);
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

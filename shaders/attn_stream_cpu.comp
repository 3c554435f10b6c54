#version 460
// Attention for older drivers that run on the CPU. There a load is a loop over lanes, as dear for
// one word as for a uvec4, for equal addresses as for different ones, and so is each access to an
// array that is not indexed by literals. So the lanes of the workgroup (one subgroup) split a
// token's row into eights of 16-byte loads, each load serves all rows of the tile, and everything
// but the loops over tokens is unrolled by macros.
//
// A step takes TOKENS x ROWS = PAIRS scores. Their partial sums are reduced and transposed at once,
// which leaves pair i in lane i: one maximum and one exp2 serve all of them. Then come the values,
// by lanes = elements again. Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#define VKMQA_EXACT_EXP2 1
#include "common.glsl"
#include "access.glsl"
#include "rows.glsl"
layout(push_constant) uniform Push { VkmqaAttentionPush pc; };
BUFFER(q, VKMQA_BIND_Q)
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(out, VKMQA_BIND_OUT)
BUFFER(lse, VKMQA_BIND_LSE)
BUFFER(step, VKMQA_BIND_STEP)
BUFFER(params, VKMQA_BIND_PARAMS)
BUFFER(mask, VKMQA_BIND_MASK)
ROW_READER(q)
CACHE_READER(k)
CACHE_READER(v)
ROW_WRITER(out)
#include "tile.glsl"

// Fixed for the variant, not for the pipeline: SPIR-V for every count at once is slow to compile.
#define ROWS_ uint(VKMQA_ROWS) // = ROWS
#if VKMQA_ROWS == 1
#define TOKENS 4u
#define EACH_TOKEN(X) X(0u) X(1u) X(2u) X(3u)
#define EACH_ROW(X, a, b) X(a, b, 0u)
#elif VKMQA_ROWS == 4
#define TOKENS 1u
#define EACH_TOKEN(X) X(0u)
#define EACH_ROW(X, a, b) X(a, b, 0u) X(a, b, 1u) X(a, b, 2u) X(a, b, 3u)
#else
#define TOKENS 1u
#define EACH_TOKEN(X) X(0u)
#define EACH_ROW(X, a, b)                                                                          \
    X(a, b, 0u) X(a, b, 1u) X(a, b, 2u) X(a, b, 3u) X(a, b, 4u) X(a, b, 5u) X(a, b, 6u) X(a, b, 7u)
#endif

// Lane c holds eights (8 elements) c, c + SUBGROUP, ... of every row.
const uint EIGHTS_K = HEAD_DIM_QK / 8u;
const uint EIGHTS_V = HEAD_DIM_V / 8u;
const uint TURNS_K = (EIGHTS_K + SUBGROUP - 1u) / SUBGROUP; // at most 4: 256 elements, 8 lanes
const uint TURNS_V = (EIGHTS_V + SUBGROUP - 1u) / SUBGROUP;
const uint PAIRS = ROWS_ * TOKENS; // 4 or 8
// Whether a row of a tile may see a token that another may not: rows of different query tokens.
const uint RESTRICTED = ~WINDOW_LEFT | ~WINDOW_RIGHT | CHUNK | MASK_KIND; // 0: every row sees all
const bool ROWS_DIFFER = uint(RESTRICTED != 0u) * (RATIO % ROWS_) != 0u;

// Sizes are literals, and so is every index: only then are these registers.
vec4 q[VKMQA_ROWS * 8], o[VKMQA_ROWS * 8]; // [row][turn][half]
vec4 staged[VKMQA_ROWS * 8]; // either, where a loop indexes it: slow, and rare
float m = NEGATIVE, l = 0.0; // of row lane % ROWS; l of the tokens of this lane only

// What a lane knows of its row.
struct LaneRow {
    uint index;
    uint begin, limit;
    int position;
    float slope;
};

// Unrolling: X gets a turn, and what it stands in.
#define EACH_TURN(count, X, a, b)                                                                  \
    X(a, b, 0u)                                                                                    \
    if (count > 1u) { X(a, b, 1u) }                                                                \
    if (count > 2u) { X(a, b, 2u) }                                                                \
    if (count > 3u) { X(a, b, 3u) }

// Two pairs' partial sums become one: lanes with the bit keep b's, the others a's.
float fold(float a, float b, uint lane, uint bit) {
    bool upper = (lane & bit) != 0u;
    return (upper ? b : a) + subgroupShuffleXor(upper ? a : b, bit);
}
// Sums over all lanes; lane i gets those of s[i % PAIRS].
float transpose_reduce(float s[8], uint lane) {
    if (PAIRS > 4u) {
        s[0] = fold(s[0], s[4], lane, 4u);
        s[1] = fold(s[1], s[5], lane, 4u);
        s[2] = fold(s[2], s[6], lane, 4u);
        s[3] = fold(s[3], s[7], lane, 4u);
    }
    s[0] = fold(s[0], s[2], lane, 2u);
    s[1] = fold(s[1], s[3], lane, 2u);
    float sum = fold(s[0], s[1], lane, 1u);
    if (PAIRS < 8u && SUBGROUP > 4u) sum += subgroupShuffleXor(sum, 4u);
    if (SUBGROUP > 8u) sum += subgroupShuffleXor(sum, 8u);
    return sum;
}

CacheRow shuffle_row(CacheRow row, uint lane, uint type) {
    row.data = uvec2(subgroupShuffle(row.data.x, lane), subgroupShuffle(row.data.y, lane));
    if (has_scales(type))
        row.scales = uvec2(subgroupShuffle(row.scales.x, lane), subgroupShuffle(row.scales.y, lane));
    return row;
}

// TOKENS tokens from `first` on. Lanes `from` on know their addresses and whether they may be read.
void stream_tokens(Tile tile, uint lane, CacheRow rowK, CacheRow rowV, bool allowed, uint from,
                   uint first, LaneRow own) {
    float s[8];
    s[0] = s[1] = s[2] = s[3] = s[4] = s[5] = s[6] = s[7] = 0.0;
#define SCORE(token, turn, row)                                                                    \
    s[token * ROWS_ + row] += dot(q[row * 8u + turn * 2u], low) +                                  \
                             dot(q[row * 8u + turn * 2u + 1u], high);
#define SCORES(token, _, turn)                                                                     \
    {                                                                                              \
        vec4 low, high;                                                                            \
        cache8_k(at, min(lane + turn * SUBGROUP, EIGHTS_K - 1u) * 8u, K_TYPE, low, high);           \
        bool inside = EIGHTS_K % SUBGROUP == 0u || lane + turn * SUBGROUP < EIGHTS_K;              \
        low = inside ? low : vec4(0.0); /* q is 0 there, but 0 * infinity is not */                \
        high = inside ? high : vec4(0.0);                                                          \
        EACH_ROW(SCORE, token, turn)                                                               \
    }
#define SCORES_OF_TOKEN(token)                                                                     \
    {                                                                                              \
        CacheRow at = shuffle_row(rowK, from + token, K_TYPE);                                     \
        EACH_TURN(TURNS_K, SCORES, token, _)                                                       \
    }
    EACH_TOKEN(SCORES_OF_TOKEN)

    float score = transpose_reduce(s, lane);
    uint token = (lane % PAIRS) / ROWS_;
    uint position = first + token;
    bool visible = subgroupShuffle(uint(allowed), from + token) != 0u && position >= own.begin &&
                   position < own.limit && mask_allows(tile, own.index, position);
    score = visible ? shape_score(score, own.slope, own.position - int(position)) : NEGATIVE;
    float top = max(m, score);
    if (ROWS_ < 8u && PAIRS > 4u) top = max(top, subgroupShuffleXor(top, 4u));
    if (ROWS_ < 4u) top = max(top, subgroupShuffleXor(top, 2u));
    if (ROWS_ < 2u) top = max(top, subgroupShuffleXor(top, 1u));
    float p = softmax_weight(score - top), alpha = softmax_weight(m - top);
    p = visible ? p : 0.0;
    l = l * alpha + p;
    m = top;
#define RESCALE_TURN(row, _, turn)                                                                 \
    o[row * 8u + turn * 2u] *= factor;                                                             \
    o[row * 8u + turn * 2u + 1u] *= factor;
#define RESCALE(_, __, row)                                                                        \
    {                                                                                              \
        float factor = subgroupShuffle(alpha, row);                                                \
        EACH_TURN(TURNS_V, RESCALE_TURN, row, _)                                                   \
    }
    EACH_ROW(RESCALE, _, _)

    float w[8];
    // Select, never 0 * V: what a row may not see may be NaN.
#define VALUE(_, turn, row)                                                                        \
    {                                                                                              \
        bool seen = !ROWS_DIFFER || w[row] > 0.0;                                                  \
        o[row * 8u + turn * 2u] += seen ? w[row] * low : vec4(0.0);                                \
        o[row * 8u + turn * 2u + 1u] += seen ? w[row] * high : vec4(0.0);                          \
    }
#define VALUES(token, _, turn)                                                                     \
    {                                                                                              \
        vec4 low, high;                                                                            \
        cache8_v(at, min(lane + turn * SUBGROUP, EIGHTS_V - 1u) * 8u, V_TYPE, low, high);           \
        low = readable ? low : vec4(0.0);                                                          \
        high = readable ? high : vec4(0.0);                                                        \
        EACH_ROW(VALUE, token, turn)                                                               \
    }
#define WEIGHT(token, _, row) w[row] = subgroupShuffle(p, token * ROWS_ + row);
#define VALUES_OF_TOKEN(token)                                                                     \
    {                                                                                              \
        CacheRow at = shuffle_row(rowV, from + token, V_TYPE);                                     \
        bool readable = ROWS_DIFFER || subgroupShuffle(uint(visible), token * ROWS_) != 0u;        \
        EACH_ROW(WEIGHT, token, _)                                                                 \
        EACH_TURN(TURNS_V, VALUES, token, _)                                                       \
    }
    EACH_TOKEN(VALUES_OF_TOKEN)
}

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint lane = gl_SubgroupInvocationID;

    [[dont_unroll]] for (uint row = 0u; row < ROWS_; ++row) {
        uvec2 at = query_row(tile, row);
        [[dont_unroll]] for (uint turn = 0u; turn < TURNS_K; ++turn) {
            uint eight = lane + turn * SUBGROUP, i = row * 8u + turn * 2u;
            vec4 low, high;
            read8_q(at, min(eight, EIGHTS_K - 1u) * 8u, IO_TYPE, low, high);
            staged[i] = eight < EIGHTS_K ? low * query_factor(tile) : vec4(0.0);
            staged[i + 1u] = eight < EIGHTS_K ? high * query_factor(tile) : vec4(0.0);
        }
    }
#define TAKE_TURN(row, _, turn)                                                                    \
    q[row * 8u + turn * 2u] = staged[row * 8u + turn * 2u];                                        \
    q[row * 8u + turn * 2u + 1u] = staged[row * 8u + turn * 2u + 1u];
#define ZERO_TURN(row, _, turn)                                                                    \
    o[row * 8u + turn * 2u] = o[row * 8u + turn * 2u + 1u] = vec4(0.0);
#define BEGIN(_, __, row)                                                                          \
    EACH_TURN(TURNS_K, TAKE_TURN, row, _)                                                          \
    EACH_TURN(TURNS_V, ZERO_TURN, row, _)
    EACH_ROW(BEGIN, _, _)

    // Each lane finds the place of one token, and steps of TOKENS take them.
    uint mine = lane % ROWS_;
    LaneRow own = LaneRow(mine, row_begin(tile, mine), row_limit(tile, mine), row_position(tile, mine),
                          alibi_slope(row_head(tile, mine)));
    [[dont_unroll]] for (uint block = tile.begin; block < tile.end; block += SUBGROUP) {
        Slot slot = find_slot(tile, clamp_position(tile, block + lane));
        CacheRow rowK = k_row(slot), rowV = v_row(slot);
        uint stop = min(SUBGROUP, tile.end - block);
        [[dont_unroll]] for (uint from = 0u; from < stop; from += TOKENS)
            stream_tokens(tile, lane, rowK, rowV, slot.allowed, from, block + from, own);
    }

    if (ROWS_ < 8u && PAIRS > 4u) l += subgroupShuffleXor(l, 4u);
    if (ROWS_ < 4u) l += subgroupShuffleXor(l, 2u);
    if (ROWS_ < 2u) l += subgroupShuffleXor(l, 1u);
#define STAGE_TURN(row, _, turn)                                                                   \
    staged[row * 8u + turn * 2u] = o[row * 8u + turn * 2u];                                        \
    staged[row * 8u + turn * 2u + 1u] = o[row * 8u + turn * 2u + 1u];
#define STAGE(_, __, row) EACH_TURN(TURNS_V, STAGE_TURN, row, _)
    EACH_ROW(STAGE, _, _)
    [[dont_unroll]] for (uint row = 0u; row < ROWS_; ++row) {
        Norm norm = row_norm(tile, row, subgroupShuffle(m, row), subgroupShuffle(l, row));
        [[dont_unroll]] for (uint quad = 0u; quad < TURNS_V * 2u; ++quad) {
            uint column = (lane + quad / 2u * SUBGROUP) * 8u + quad % 2u * 4u;
            if (column < HEAD_DIM_V)
                write_columns(tile, row, column, staged[row * 8u + quad], norm);
        }
    }
    if (lane < ROWS_)
        write_state(tile, lane, m, l, row_norm(tile, lane, m, l));
}

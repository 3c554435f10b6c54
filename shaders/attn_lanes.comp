#version 460
// Attention for SwiftShader, of which three things are peculiar:
//   - A load or store at an index that is no literal goes word by word and lane by lane, some 40
//     instructions a word, in a local array as in a buffer, even where all lanes' indices are equal.
//   - An `if` skips nothing: both sides run under a mask, and a loop runs once before it is left.
//   - Each `if` in a loop doubles the time to compile the loops around it (a search for paths enters
//     a block once per way that leads there). So the loops have mix(), and neither ?: nor &&.
//
// So the four lanes split a row into eights (8 elements), each load serves all rows of the tile, and
// arrays are read outside of the loops over tokens. A block of tokens takes four steps:
//   1. find_places: lane t looks up token t of each group of four.
//   2. add_scores:  per turn (32 elements): q's eights stay while the groups pass by. A group's partial
//                   sums are reduced and transposed at once, which leaves token t's in lane t.
//   3. weigh:       per row: one maximum of the block, then four exponentials at once.
//   4. add_values:  per turn: the block's sums of weight * V, from zero, then one update of o.
// No sum is a long chain of additions, which would be too coarse beside an f32 cache: they go by the
// group, then the block, then the split. Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
// Descriptors only.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_quad : require
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
ROW_READER(k)
ROW_READER(v)
ROW_WRITER(out)
#include "tile.glsl"

// Fixed for the variant: only then are rows unrolled, and the indices of what they need literals.
#define ROWS_ uint(VKMQA_ROWS) // = ROWS
#if VKMQA_ROWS == 1
#define EACH_ROW(X, a) X(a, 0u)
#elif VKMQA_ROWS == 4
#define EACH_ROW(X, a) X(a, 0u) X(a, 1u) X(a, 2u) X(a, 3u)
#else
#define EACH_ROW(X, a)                                                                             \
    X(a, 0u) X(a, 1u) X(a, 2u) X(a, 3u) X(a, 4u) X(a, 5u) X(a, 6u) X(a, 7u)
#endif
#define EACH_TOKEN(X) X(0u) X(1u) X(2u) X(3u) // of a group
// Each type of a cache has loops of its own; those of the others are left after one round.
#define EACH_TYPE(X) X(VKMQA_F16) X(VKMQA_F32)

const uint LANES = 4u;
const uint GROUPS = 32u; // of LANES tokens: a block
const uint EIGHTS_K = HEAD_DIM_QK / 8u, TURNS_K = (EIGHTS_K + LANES - 1u) / LANES;
const uint EIGHTS_V = HEAD_DIM_V / 8u, TURNS_V = (EIGHTS_V + LANES - 1u) / LANES;

vec4 q[8u * 2u * ROWS_], o[8u * 2u * ROWS_]; // [turn][row][half]: this lane's eights
uint placeK[GROUPS], placeV[GROUPS];         // of token `lane` of each group, in bytes
uint allowed[GROUPS]; // 0, or more than any position
// Whether scores and masks need a look at each token, which plain calls leave after one round.
const uint SPECIAL = SHAPED | MASK_KIND;
float weight[GROUPS * ROWS_]; // [group][row] of token `lane`; first the score
float m[ROWS_], l[ROWS_], alpha[ROWS_];

void find_places(Tile tile, uint block, uint groups, uint lane) {
    uint bytesK = row_bytes(HEAD_DIM_QK, K_TYPE), bytesV = row_bytes(V_ROW_DIM, V_TYPE);
    for (uint group = 0u; group < groups; ++group) {
        Slot slot = find_slot(tile, clamp_position(tile, block + group * LANES + lane));
        placeK[group] = cache_data(pc.k, slot, bytesK).x;
        placeV[group] = cache_data(pc.v, slot, bytesV).x;
        allowed[group] = mix(0u, ~0u, slot.allowed);
    }
}

// Lane t gets the sum over the lanes of token t's partial sums.
float sum_lanes(vec4 tokens, uint lane) {
    bool odd = (lane & 1u) != 0u, upper = (lane & 2u) != 0u;
    vec2 kept = mix(tokens.xz, tokens.yw, bvec2(odd));
    vec2 given = mix(tokens.yw, tokens.xz, bvec2(odd));
    vec2 pair = kept + subgroupQuadSwapHorizontal(given);
    return mix(pair.x, pair.y, upper) + subgroupQuadSwapVertical(mix(pair.y, pair.x, upper));
}

void add_scores(uint groups, uint lane, uint type) {
    uint turns = K_TYPE == type ? TURNS_K : 0u;
    for (uint turn = 0u; turn < turns; ++turn) {
        uint eight = turn * LANES + lane, i = min(eight, EIGHTS_K - 1u) * 8u;
        vec4 eights[2u * ROWS_];
#define TAKE(_, row)                                                                               \
    eights[row * 2u] = q[(turn * ROWS_ + row) * 2u];                                               \
    eights[row * 2u + 1u] = q[(turn * ROWS_ + row) * 2u + 1u];
        EACH_ROW(TAKE, _)
        for (uint group = 0u; group < groups; ++group) {
            uint place = placeK[group];
            vec4 sums[ROWS_];
#define SCORE(token, row)                                                                          \
    sums[row][token] = dot(eights[row * 2u], low) + dot(eights[row * 2u + 1u], high);
#define SCORES(token)                                                                              \
    {                                                                                              \
        vec4 low, high;                                                                            \
        read8_k(uvec2(subgroupBroadcast(place, token), 0u), i, type, low, high);                   \
        EACH_ROW(SCORE, token)                                                                     \
    }
            EACH_TOKEN(SCORES)
            // Past the row's end q is 0, but 0 * infinity is not. The first turn finds old weights.
#define KEEP(_, row)                                                                               \
    {                                                                                              \
        float sum = sum_lanes(mix(vec4(0.0), sums[row], bvec4(eight < EIGHTS_K)), lane);           \
        float before = mix(weight[group * ROWS_ + row], 0.0, turn == 0u);                          \
        weight[group * ROWS_ + row] = before + sum;                                                \
    }
            EACH_ROW(KEEP, _)
        }
    }
}

void weigh(Tile tile, uint block, uint groups, uint lane) {
    for (uint row = 0u; row < ROWS_; ++row) {
        uint begin = row_begin(tile, row), length = max(row_limit(tile, row), begin) - begin;
        float top = m[row], slope = alibi_slope(row_head(tile, row));
        uint special = SPECIAL != 0u ? groups : 0u;
        for (uint group = 0u; group < special; ++group) {
            uint position = block + group * LANES + lane;
            float score = shape_score(weight[group * ROWS_ + row], slope,
                                      row_position(tile, row) - int(position));
            weight[group * ROWS_ + row] = mix(NEGATIVE, score, mask_allows(tile, row, position));
        }
        for (uint group = 0u; group < groups; ++group) {
            bool visible = block + group * LANES + lane - begin < min(length, allowed[group]);
            float score = mix(NEGATIVE, weight[group * ROWS_ + row], visible);
            weight[group * ROWS_ + row] = score;
            top = max(top, score);
        }
        top = max(top, subgroupQuadSwapHorizontal(top));
        top = max(top, subgroupQuadSwapVertical(top));
        float sum = 0.0;
        for (uint group = 0u; group < groups; ++group) {
            float score = weight[group * ROWS_ + row];
            float p = mix(softmax_weight(score - top), 0.0, score == NEGATIVE);
            weight[group * ROWS_ + row] = p;
            sum += p;
        }
        sum += subgroupQuadSwapHorizontal(sum);
        sum += subgroupQuadSwapVertical(sum);
        float scale = softmax_weight(m[row] - top);
        alpha[row] = scale;
        l[row] = l[row] * scale + sum;
        m[row] = top;
    }
}

// Selected, never multiplied by 0: what a row may not see may be NaN.
vec4 times(float p, uint seen, vec4 x) {
    return uintBitsToFloat(floatBitsToUint(p * x) & seen);
}
void add_values(uint groups, uint lane, uint type) {
    uint turns = V_TYPE == type ? TURNS_V : 0u;
    for (uint turn = 0u; turn < turns; ++turn) {
        uint i = min(turn * LANES + lane, EIGHTS_V - 1u) * 8u;
        vec4 sums[2u * ROWS_];
#define ZERO(_, row) sums[row * 2u] = sums[row * 2u + 1u] = vec4(0.0);
        EACH_ROW(ZERO, _)
        for (uint group = 0u; group < groups; ++group) {
            uint place = placeV[group];
            float weights[ROWS_];
            vec4 parts[2u * ROWS_];
#define WEIGHT(_, row)                                                                             \
    weights[row] = weight[group * ROWS_ + row];                                                    \
    parts[row * 2u] = parts[row * 2u + 1u] = vec4(0.0);
            EACH_ROW(WEIGHT, _)
#define VALUE(token, row)                                                                          \
    {                                                                                              \
        float p = subgroupBroadcast(weights[row], token);                                          \
        uint seen = mix(~0u, 0u, p == 0.0);                                                        \
        parts[row * 2u] += times(p, seen, low);                                                    \
        parts[row * 2u + 1u] += times(p, seen, high);                                              \
    }
#define VALUES(token)                                                                              \
    {                                                                                              \
        vec4 low, high;                                                                            \
        read8_v(uvec2(subgroupBroadcast(place, token), 0u), i, type, low, high);                   \
        EACH_ROW(VALUE, token)                                                                     \
    }
            EACH_TOKEN(VALUES)
#define SUM(_, row)                                                                                \
    sums[row * 2u] += parts[row * 2u];                                                             \
    sums[row * 2u + 1u] += parts[row * 2u + 1u];
            EACH_ROW(SUM, _)
        }
#define UPDATE(_, row)                                                                             \
    {                                                                                              \
        uint at = (turn * ROWS_ + row) * 2u;                                                       \
        o[at] = o[at] * alpha[row] + sums[row * 2u];                                               \
        o[at + 1u] = o[at + 1u] * alpha[row] + sums[row * 2u + 1u];                                \
    }
        EACH_ROW(UPDATE, _)
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    uint lane = gl_LocalInvocationIndex;
    for (uint row = 0u; row < ROWS_; ++row) {
        m[row] = NEGATIVE;
        l[row] = 0.0;
        uvec2 from = query_row(tile, row);
        for (uint turn = 0u; turn < TURNS_K; ++turn) {
            uint eight = turn * LANES + lane, at = (turn * ROWS_ + row) * 2u;
            vec4 low, high;
            read8_q(from, min(eight, EIGHTS_K - 1u) * 8u, IO_TYPE, low, high);
            q[at] = eight < EIGHTS_K ? low * query_factor(tile) : vec4(0.0);
            q[at + 1u] = eight < EIGHTS_K ? high * query_factor(tile) : vec4(0.0);
        }
    }
    for (uint i = 0u; i < TURNS_V * ROWS_ * 2u; ++i)
        o[i] = vec4(0.0);

    for (uint block = tile.begin; block < tile.end; block += GROUPS * LANES) {
        uint groups = min((tile.end - block + LANES - 1u) / LANES, GROUPS);
        find_places(tile, block, groups, lane);
#define ADD_SCORES(type) add_scores(groups, lane, type);
        EACH_TYPE(ADD_SCORES)
        weigh(tile, block, groups, lane);
#define ADD_VALUES(type) add_values(groups, lane, type);
        EACH_TYPE(ADD_VALUES)
    }

    for (uint row = 0u; row < ROWS_; ++row) {
        Norm norm = row_norm(tile, row, m[row], l[row]);
        for (uint half_ = 0u; half_ < TURNS_V * 2u; ++half_) {
            uint column = (half_ / 2u * LANES + lane) * 8u + half_ % 2u * 4u;
            if (column < HEAD_DIM_V)
                write_columns(tile, row, column,
                              o[(half_ / 2u * ROWS_ + row) * 2u + half_ % 2u], norm);
        }
        if (lane == 0u)
            write_state(tile, row, m[row], l[row], norm);
    }
}

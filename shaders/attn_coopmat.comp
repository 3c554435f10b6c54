#version 460
// Attention on matrix units (VK_KHR_cooperative_matrix), of tiles of whatever M x N x K the device lists. A
// workgroup of R x C subgroups streams K and V once for ROWS = R * M rows, in blocks of BLOCK tokens:
//   S = Q K^T          [ROWS, BLOCK]    subgroup (r, c): M rows, every C-th tile of tokens
//   m, l, P            online softmax (Milakov and Gimelshein, arXiv 1805.02867), through shared memory:
//                      subgroup (r, c) has M / C rows, SUBGROUP * C / M lanes to each
//   O = O alpha + P V  [ROWS, headDimV]  subgroup (r, c): M rows, a C-th of the columns, in registers
// K, then V take turns in sharedRows; the next of them is on its way to registers meanwhile. Q, K, V and P have
// the matrix's 16-bit type, everything else is f32. Values that the type cannot hold, and NaN, take the careful
// way: element by element, from the cache itself. Source: FlashAttention-2 (Dao, arXiv 2307.08691).
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_vote : require
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

// Arrays in registers want constant indices, so GPUs unroll; a driver on the CPU would compile for minutes.
#ifdef VKMQA_ROLLED
#define EACH_TILE [[dont_unroll]]
#else
#define EACH_TILE [[unroll]]
#endif
const uint M = MATRIX_M, N = MATRIX_N, K = MATRIX_K, C = COLUMN_GROUPS, R = ROWS / M;
const uint DIM_K = (HEAD_DIM_QK + 31u) / 32u * 32u, DIM_V = (HEAD_DIM_V + 31u) / 32u * 32u; // with padding
const uint ROW_UNITS = (DIM_K > DIM_V ? DIM_K : DIM_V) / 8u + 1u; // the odd one spreads rows over banks
const uint SCORE_WORDS = BLOCK + 4u;
const uint SCRATCH_UNITS = 2u * N > K ? M * N / 4u : M * K / 8u;
const uint TOKEN_TILES = (BLOCK + N * C - 1u) / (N * C);           // of a subgroup, the last of some past the block
const uint COLUMN_TILES = (DIM_V / N + C - 1u) / C;                // of a subgroup
const uint ROW_LANES = SUBGROUP * C / M, PAIRS = BLOCK / 2u / ROW_LANES; // tokens of a lane in softmax
const bool HOLD_Q = HOLD_QUERIES != 0u;

shared uvec2 sharedPlaces[2u * BLOCK];
shared uvec4 sharedRows[BLOCK * ROW_UNITS];
shared uvec4 sharedQ[HOLD_Q ? 1u : ROWS * ROW_UNITS];
shared uint sharedScores[ROWS * SCORE_WORDS]; // S as f32, then P in pairs, in the same rows
shared uvec4 sharedScratch[R * C * SCRATCH_UNITS];
shared float sharedAlpha[ROWS];
shared vec2 sharedState[ROWS]; // (m, l)
shared uint sharedBeyond[2];   // the last block + 1 whose K, V have a value beyond range; all ones: Q has
#include "matrix_stage.glsl"
BLOCK_STAGE(k, HEAD_DIM_QK, K_TYPE)
BLOCK_STAGE(v, V_ROW_DIM, V_TYPE)

#define MATRIX_A coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA>
#define MATRIX_B coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB>
#define ACCUMULATOR coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>
const int BY_ROWS = gl_CooperativeMatrixLayoutRowMajor, BY_COLUMNS = gl_CooperativeMatrixLayoutColumnMajor;

MATRIX_A q[HOLD_Q ? DIM_K / K : 1u];
ACCUMULATOR o[COLUMN_TILES];
uint lane, group, column, scratch; // group and column: r and c of the subgroup

void order_subgroup() {
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

// The unit of Q at element d of a row.
uvec4 query_unit(Tile tile, uint r, uint d) {
    vec4 low = vec4(0.0), high = vec4(0.0);
    if (d < HEAD_DIM_QK)
        read8_q(query_row(tile, r), d, IO_TYPE, low, high);
    uvec4 unit = pack_unit(low, high);
    if (beyond_range(unit) != 0u)
        atomicMax(sharedBeyond[0], 0xFFFFFFFFu);
    return unit;
}
void load_queries(Tile tile) {
    if (!HOLD_Q) {
        for (uint i = gl_LocalInvocationIndex; i < ROWS * (DIM_K / 8u); i += WG_SIZE)
            sharedQ[i / (DIM_K / 8u) * ROW_UNITS + i % (DIM_K / 8u)] =
                query_unit(tile, i / (DIM_K / 8u), i % (DIM_K / 8u) * 8u);
        return;
    }
    EACH_TILE for (uint kk = 0u; kk < DIM_K / K; ++kk) {
        for (uint i = lane; i < M * K / 8u; i += SUBGROUP)
            sharedScratch[scratch + i] =
                query_unit(tile, group * M + i / (K / 8u), kk * K + i % (K / 8u) * 8u);
        order_subgroup();
        coopMatLoad(q[kk], sharedScratch, scratch, K / 8u, BY_ROWS);
        order_subgroup();
    }
}

void multiply_keys() {
    EACH_TILE for (uint tt = 0u; tt < TOKEN_TILES; ++tt) {
        uint token = (tt * C + column) * N;
        if (token >= BLOCK)
            break;
        ACCUMULATOR s = ACCUMULATOR(0.0);
        EACH_TILE for (uint kk = 0u; kk < DIM_K / K; ++kk) {
            MATRIX_B keys;
            coopMatLoad(keys, sharedRows, token * ROW_UNITS + kk * K / 8u, ROW_UNITS, BY_COLUMNS);
            if (!HOLD_Q)
                coopMatLoad(q[0], sharedQ, group * M * ROW_UNITS + kk * K / 8u, ROW_UNITS, BY_ROWS);
            s = coopMatMulAdd(q[HOLD_Q ? kk : 0u], keys, s);
        }
        coopMatStore(s, sharedScores, group * M * SCORE_WORDS + token, SCORE_WORDS, BY_ROWS);
    }
}

// The product of a row of Q and one of K, from the cache itself.
float careful_score(Tile tile, uint r, uvec2 place) {
    if (place.x == ABSENT)
        return 0.0;
    CacheRow row = k_row(Slot(place.x, place.y, true));
    uvec2 query = query_row(tile, r);
    float sum = 0.0;
    for (uint d = 0u; d < HEAD_DIM_QK; d += 8u) {
        vec4 low, high, qLow, qHigh;
        cache8_k(row, d, K_TYPE, low, high);
        read8_q(query, d, IO_TYPE, qLow, qHigh);
        sum += dot(low, qLow) + dot(high, qHigh);
    }
    return sum;
}

// Of the lane's row, over its pairs of tokens: P in place of S. `limits`: the positions the row sees.
void weigh(Tile tile, uint block, uint parity, uint r, float factor, float slope, uvec2 limits, bool masked,
           inout float m, inout float l) {
    uint first = r * SCORE_WORDS, own = lane % ROW_LANES;
    int position = row_position(tile, r);
    [[dont_unroll]] for (uint i = 0u; i < PAIRS * 2u && sharedBeyond[0] > block; ++i) {
        uint t = (i / 2u * ROW_LANES + own) * 2u + (i & 1u);
        sharedScores[first + t] =
            floatBitsToUint(careful_score(tile, r, sharedPlaces[parity * BLOCK + t]));
    }
    float s[PAIRS * 2u], top = m;
    EACH_TILE for (uint i = 0u; i < PAIRS * 2u; ++i) {
        uint t = (i / 2u * ROW_LANES + own) * 2u + (i & 1u), p = block + t;
        s[i] = shape_score(uintBitsToFloat(sharedScores[first + t]) * factor, slope, position - int(p));
        if (masked && !(p >= limits.x && p < limits.y && sharedPlaces[parity * BLOCK + t].x != ABSENT &&
                        mask_allows(tile, r, p)))
            s[i] = NEGATIVE;
        top = max(top, s[i]);
    }
    [[unroll]] for (uint reach = 1u; reach < ROW_LANES; reach *= 2u) top = max(top, subgroupShuffleXor(top, reach));
    order_subgroup(); // all of S has been read
    float alpha = softmax_weight(m - top);
    l *= alpha;
    EACH_TILE for (uint i = 0u; i < PAIRS; ++i) {
        vec2 p;
        [[unroll]] for (uint half_ = 0u; half_ < 2u; ++half_) {
            float score = s[i * 2u + half_];
            p[half_] = is_nan(score) ? score : score == NEGATIVE ? 0.0 : softmax_weight(score - top);
        }
        l += p.x + p.y;
        sharedScores[first + i * ROW_LANES + own] = packHalf2x16(p);
    }
    m = top;
    if (own == 0u)
        sharedAlpha[r] = alpha;
}

// Of tile n of the subgroup; tiles past the last repeat it, and are not written.
uint first_column(uint n) { return min(column * COLUMN_TILES + n, DIM_V / N - 1u) * N; }

// What the block adds to one tile of columns of O, element by element, from the cache itself: a weight of 0
// leaves everything out. Into scratch.
void careful_values(Tile tile, uint parity, uint firstColumn) {
    for (uint i = lane; i < M * N; i += SUBGROUP) {
        uint r = group * M + i / N, d = firstColumn + i % N;
        float sum = 0.0;
        for (uint t = 0u; t < BLOCK && d < HEAD_DIM_V; ++t) {
            vec2 pair = unpackHalf2x16(sharedScores[r * SCORE_WORDS + t / 2u]);
            float p = (t & 1u) == 0u ? pair.x : pair.y;
            uvec2 place = sharedPlaces[parity * BLOCK + t];
            if (p == 0.0 || place.x == ABSENT)
                continue;
            vec4 quad = cache4_v(v_row(Slot(place.x, place.y, true)), d & ~3u, V_TYPE);
            sum += p * quad[d & 3u];
        }
        sharedScratch[scratch + i / 4u][i & 3u] = floatBitsToUint(sum);
    }
}

void multiply_values(Tile tile, uint block, uint parity) {
    // A factor for each row: a column of them, again and again. Spread ones are made whether needed or not: lavapipe
    // takes a subgroup's barrier for the workgroup's, which must not hang on what one subgroup found.
    bool rescale = SPREAD_FACTORS != 0u || subgroupAny(sharedAlpha[group * M + lane % M] != 1.0);
    ACCUMULATOR alpha;
    if (rescale && SPREAD_FACTORS == 0u) {
        coopMatLoad(alpha, sharedAlpha, group * M, 0u, BY_COLUMNS);
    } else if (rescale) {
        for (uint i = lane; i < M * N / 4u; i += SUBGROUP)
            sharedScratch[scratch + i] = uvec4(floatBitsToUint(sharedAlpha[group * M + i / (N / 4u)]));
        order_subgroup();
        coopMatLoad(alpha, sharedScratch, scratch, N / 4u, BY_ROWS);
        order_subgroup();
    }
    bool careful = sharedBeyond[V_PREFIX != 0u ? 0 : 1] > block;
    EACH_TILE for (uint n = 0u; n < COLUMN_TILES; ++n) {
        if (rescale)
            o[n] = o[n] * alpha;
        EACH_TILE for (uint kk = 0u; kk < BLOCK / K && !careful; ++kk) {
            MATRIX_A weights;
            MATRIX_B values;
            coopMatLoad(weights, sharedScores, group * M * SCORE_WORDS + kk * K / 2u, SCORE_WORDS, BY_ROWS);
            coopMatLoad(values, sharedRows, kk * K * ROW_UNITS + first_column(n) / 8u, ROW_UNITS, BY_ROWS);
            o[n] = coopMatMulAdd(weights, values, o[n]);
        }
    }
    [[dont_unroll]] for (uint careful_n = 0u; careful && careful_n < COLUMN_TILES; ++careful_n) {
        careful_values(tile, parity, first_column(careful_n));
        order_subgroup();
        EACH_TILE for (uint n = 0u; n < COLUMN_TILES; ++n) {
            if (n != careful_n)
                continue;
            ACCUMULATOR more;
            coopMatLoad(more, sharedScratch, scratch, N / 4u, BY_ROWS);
            o[n] = o[n] + more;
        }
        order_subgroup();
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.rows == 0u)
        return;
    lane = gl_SubgroupInvocationID;
    group = gl_SubgroupID / C;
    column = gl_SubgroupID % C;
    scratch = gl_SubgroupID * SCRATCH_UNITS;
    uint r = group * M + column * (M / C) + lane / ROW_LANES; // of softmax
    float m = NEGATIVE, l = 0.0, factor = query_factor(tile), slope = alibi_slope(row_head(tile, r));
    uvec2 limits = uvec2(row_begin(tile, r), row_limit(tile, r));

    for (uint i = gl_LocalInvocationIndex; i < BLOCK * ROW_UNITS; i += WG_SIZE)
        sharedRows[i] = uvec4(0u); // the padding stays
    if (gl_LocalInvocationIndex < 2u)
        sharedBeyond[gl_LocalInvocationIndex] = 0u;
    barrier();
    load_queries(tile);
    EACH_TILE for (uint n = 0u; n < COLUMN_TILES; ++n) o[n] = ACCUMULATOR(0.0);

    // Blocks begin at multiples of their size, so that a row's bits do not depend on its neighbours in the tile.
    // Tokens of [from, to) are seen by all rows.
    uint from = common_begin(tile), to = common_limit(tile), parity = 0u, block = tile.first / BLOCK * BLOCK;
    find_places(tile, block, 0u);
    barrier();
    fetch_k(0u);
    for (; block < tile.end; block += BLOCK, parity ^= 1u) {
        if (put_k(parity) != 0u)
            atomicMax(sharedBeyond[0], block + 1u);
        find_places(tile, block + BLOCK, parity ^ 1u);
        barrier();
        if (V_PREFIX == 0u)
            fetch_v(parity);
        multiply_keys();
        barrier();
        bool masked = PAGE_SHIFT != VKMQA_CONTIGUOUS || block < from || block + BLOCK > to;
        weigh(tile, block, parity, r, factor, slope, limits, masked, m, l);
        if (V_PREFIX == 0u && put_v(parity) != 0u)
            atomicMax(sharedBeyond[1], block + 1u);
        barrier();
        fetch_k(parity ^ 1u);
        multiply_values(tile, block, parity);
        barrier();
    }

    [[unroll]] for (uint reach = 1u; reach < ROW_LANES; reach *= 2u) l += subgroupShuffleXor(l, reach);
    if (lane % ROW_LANES == 0u) {
        sharedState[r] = vec2(m, l);
        if (column * (M / C) + lane / ROW_LANES < M)
            write_state(tile, r, m, l, row_norm(tile, r, m, l));
    }
    barrier();
    EACH_TILE for (uint n = 0u; n < COLUMN_TILES; ++n) {
        uint first = (column * COLUMN_TILES + n) * N;
        coopMatStore(o[n], sharedScratch, scratch, N / 4u, BY_ROWS);
        order_subgroup();
        for (uint i = lane; i < M * N / 4u; i += SUBGROUP) {
            uint row = group * M + i / (N / 4u), d = first + i % (N / 4u) * 4u;
            vec2 state = sharedState[row];
            if (d < HEAD_DIM_V)
                write_columns(tile, row, d, uintBitsToFloat(sharedScratch[scratch + i]),
                              row_norm(tile, row, state.x, state.y));
        }
        order_subgroup();
    }
}

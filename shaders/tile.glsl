// From a workgroup to its work: which sequence, which rows, which tokens; and from rows to results. Needs
// rows.glsl, the push constants as `pc` and BUFFER(step, params, mask, out, lse). Everything read from the
// step metadata is checked before it is believed.
//
// The grid is flat over tiles of ROWS rows (row = token * RATIO + head, of one KV head). Sequence b owns
// the tiles from floor(cuSeqlensQ[b] * RATIO / ROWS) + b on: room for each of its tiles, known without
// a prefix sum, found by binary search.
#include "params.glsl"
#include "softmax.glsl"
#include "step.glsl"

void set_status(uint bit) {
    if (pc.status != VKMQA_ABSENT)
        or4_step(add_offset(pc.step, pc.status * 4u), bit);
}
uint first_tile(uint b) { return query_start(b) * RATIO / ROWS + b; }

// The first workgroup looks at all sequences: a range that goes backwards may own no tile.
void check_queries(uint one) {
    if (gl_WorkGroupID != uvec3(0u))
        return;
    bool ordered = true;
    for (uint b = gl_LocalInvocationIndex; b < pc.batch; b += WG_SIZE) {
        int start = step_int(pc.cuSeqlensQ, b), stop = step_int(pc.cuSeqlensQ + one, b);
        ordered = ordered && start >= 0 && stop >= start && stop <= int(pc.totalQ);
    }
    if (!ordered)
        set_status(VKMQA_BAD_QUERY_RANGE);
}

struct Tile {
    uint sequence;
    uint query;   // first query token of the sequence
    uint lenQ;    // its query tokens
    uint row;     // first row of the tile, in the sequence
    uint rows;    // rows of the tile that exist; 0 = nothing to do
    int offset;   // position of a row's token = token + offset
    uint kvHead;
    uint split;   // of the sequence's Span
    uint first;   // tokens [first, end) are this workgroup's, what no row sees left out
    uint end;
    uint begin;   // first rounded down, so that blocks of tokens do not straddle pages
};
const uint GRAIN = 32u; // begin is a multiple of it; splits are

Tile find_tile() {
    Tile tile;
    uint splits = split_count();
    tile.kvHead = gl_WorkGroupID.z / splits;
    tile.split = gl_WorkGroupID.z % splits;
    // Not gl_NumWorkGroups.x: a slice dispatches part of the grid.
    uint index = gl_WorkGroupID.x + gl_WorkGroupID.y * GRID_WIDTH;
    uint low = 0u, high = pc.batch; // first_tile(low) <= index
    // A 1 that is no constant: Mesa would keep the constant in a register of the loop for all of
    // the shader, and lavapipe could no longer see that, say, lane == 1 is known.
    uint one = min(pc.batch, 1u);
    check_queries(one);
    while (high - low > one) {
        uint middle = (low + high) >> one;
        if (first_tile(middle) <= index)
            low = middle;
        else
            high = middle;
    }
    tile.sequence = low;

    int start = step_int(pc.cuSeqlensQ, low), stop = step_int(pc.cuSeqlensQ, low + 1u);
    bool ordered = start >= 0 && stop >= start && stop <= int(pc.totalQ);
    tile.query = ordered ? uint(start) : 0u;
    tile.lenQ = ordered ? uint(stop - start) : 0u;
    uint rows = tile.lenQ * RATIO;
    // Causal tiles grow with their position; drivers that give each thread one contiguous piece of
    // the grid want short and long ones to alternate: 0, n - 1, 1, n - 2 ...
    uint turn = index - first_tile(low), tiles = (rows + ROWS - 1u) / ROWS;
    if (BOUNDED && turn < tiles)
        turn = turn % 2u == 0u ? turn / 2u : tiles - 1u - turn / 2u;
    tile.row = turn * ROWS;
    tile.rows = tile.row < rows ? min(rows - tile.row, ROWS) : 0u;

    int given = step_int(pc.seqLensKv, low), lenKv = believed_length(given);
    uint room = pc.maxTokens;
    if (PAGE_SHIFT == VKMQA_CONTIGUOUS && low >= pc.numPages)
        room = 0u;
    if (gl_LocalInvocationIndex == 0u && (given < 0 || uint(given) > room))
        set_status(VKMQA_BAD_LENGTH);
    uint len = min(uint(lenKv), room);
    tile.offset = lenKv - int(tile.lenQ);
    Span span = split_span(tile.lenQ, lenKv, len);
    bool maskHolds = MASK_KIND != VKMQA_MASK_TREE || tile.lenQ <= pc.maskStride * 32u;
    if (gl_LocalInvocationIndex == 0u && !(span.whole && maskHolds))
        set_status(VKMQA_BAD_QUERY_RANGE);
    uint splitBegin = (span.first + tile.split) * pc.splitTokens;
    tile.first = splitBegin;
    tile.end = min(splitBegin + pc.splitTokens, len);
    if (BOUNDED && tile.rows > 0u) { // the first row sees furthest back, the last furthest ahead
        tile.first = max(tile.first, visible_begin(int(tile.row / RATIO) + tile.offset));
        tile.end = visible_end(int((tile.row + tile.rows - 1u) / RATIO) + tile.offset, tile.end);
    }
    tile.first = min(tile.first, tile.end);
    tile.begin = tile.first & ~(GRAIN - 1u);
    if (tile.split >= span.count)
        tile.rows = 0u; // the merge does not read this split
    return tile;
}

// Row r of the tile: its token in the sequence, its query head, its position. Rows past the last repeat it.
uint row_token(Tile tile, uint r) { return (tile.row + min(r, tile.rows - 1u)) / RATIO; }
uint row_head(Tile tile, uint r) {
    return tile.kvHead * RATIO + (tile.row + min(r, tile.rows - 1u)) % RATIO;
}
int row_position(Tile tile, uint r) { return int(row_token(tile, r)) + tile.offset; }
// The row sees positions from row_begin on and below row_limit, as far as the mask allows.
uint row_begin(Tile tile, uint r) {
    return BOUNDED_LEFT ? max(visible_begin(row_position(tile, r)), tile.first) : tile.first;
}
uint row_limit(Tile tile, uint r) {
    return BOUNDED ? visible_end(row_position(tile, r), tile.end) : tile.end;
}
bool mask_allows(Tile tile, uint r, uint position) {
    if (MASK_KIND == VKMQA_MASK_NONE)
        return true;
    int bit = int(position) - (MASK_KIND == VKMQA_MASK_TREE ? tile.offset : 0);
    uint word = min(uint(max(bit, 0)) >> 5, pc.maskStride - 1u);
    uvec2 row = add_product(pc.mask, tile.query + row_token(tile, r), pc.maskStride * 4u);
    return bit < 0 || (load4_mask(add_offset(row, word * 4u)) >> (uint(bit) & 31u) & 1u) != 0u;
}
bool row_sees(Tile tile, uint r, uint position) {
    return position >= row_begin(tile, r) && position < row_limit(tile, r) &&
           mask_allows(tile, r, position);
}
// Every row of the tile sees the positions [common_begin, common_limit).
uint common_begin(Tile tile) { return row_begin(tile, ROWS - 1u); }
uint common_limit(Tile tile) {
    if (MASK_KIND == VKMQA_MASK_FULL)
        return 0u;
    uint limit = row_limit(tile, 0u);
    return MASK_KIND == VKMQA_MASK_TREE ? min(limit, uint(max(tile.offset, 0))) : limit;
}

// The cache row of a position: page * numHeadsKv + head, and the token in the page. allowed is false,
// and the page clamped into the cache, when the page table's entry is outside it.
struct Slot {
    uint plane;
    uint token;
    bool allowed;
};
Slot find_slot(Tile tile, uint position) {
    Slot slot;
    if (PAGE_SHIFT == VKMQA_CONTIGUOUS) {
        slot.plane = tile.sequence * NUM_HEADS_KV + tile.kvHead;
        slot.token = position;
        slot.allowed = true;
    } else {
        uint page = uint(step_int(pc.pageTable, tile.sequence * pc.maxPages +
                                                    (position >> (PAGE_SHIFT & 15u))));
        slot.allowed = page < pc.numPages;
        if (!slot.allowed)
            set_status(VKMQA_BAD_PAGE);
        slot.plane = min(page, pc.numPages - 1u) * NUM_HEADS_KV + tile.kvHead;
        slot.token = position & ((1u << (PAGE_SHIFT & 15u)) - 1u);
    }
    return slot;
}
// A position that may be looked up without a false alarm: outside of [first, end) pages may be anything.
uint clamp_position(Tile tile, uint position) {
    return min(max(position, tile.first), max(tile.end, 1u) - 1u);
}
uint page_tokens() {
    return PAGE_SHIFT == VKMQA_CONTIGUOUS ? pc.maxPages : 1u << (PAGE_SHIFT & 15u);
}
uvec2 cache_data(uvec2 base, Slot slot, uint rowBytes) {
    return add_offset(add_product(base, slot.plane, page_tokens() * rowBytes), slot.token * rowBytes);
}
CacheRow cache_row(uvec2 base, Slot slot, uint dim, uint type) {
    uint rowBytes = row_bytes(dim, type);
    CacheRow row;
    row.data = cache_data(base, slot, rowBytes);
    row.scales = uvec2(0u);
    if (has_scales(type)) {
        uvec2 scales = add_product(base, pc.numPages * NUM_HEADS_KV, page_tokens() * rowBytes);
        scales = add_product(scales, slot.plane, page_tokens() * scale_bytes(dim));
        row.scales = add_offset(scales, slot.token * scale_bytes(dim));
    }
    return row;
}
const uint V_ROW_DIM = V_PREFIX != 0u ? HEAD_DIM_QK : HEAD_DIM_V; // pc.v is pc.k, then
CacheRow k_row(Slot slot) { return cache_row(pc.k, slot, HEAD_DIM_QK, K_TYPE); }
CacheRow v_row(Slot slot) { return cache_row(pc.v, slot, V_ROW_DIM, V_TYPE); }

// What q is multiplied by when it is loaded.
float query_factor(Tile tile) { return score_sign() * k_scale(tile.kvHead); }
uvec2 query_row(Tile tile, uint r) {
    uint elements = row_head(tile, r) * pc.qHeadStride;
    uvec2 token = add_product(pc.q, tile.query + row_token(tile, r),
                              pc.qTokenStride * element_bytes(IO_TYPE));
    return add_offset(token, elements * element_bytes(IO_TYPE));
}
uvec2 out_row(Tile tile, uint r) {
    uvec2 token = add_product(pc.out_, tile.query + row_token(tile, r),
                              pc.outTokenStride * element_bytes(IO_TYPE));
    return add_offset(token, row_head(tile, r) * pc.outHeadStride * element_bytes(IO_TYPE));
}
// Index of the row in [totalQ, numHeadsQ], and in [splits, totalQ, numHeadsQ].
uint row_index(Tile tile, uint r) {
    return (tile.query + row_token(tile, r)) * NUM_HEADS_Q + row_head(tile, r);
}
uint part_index(Tile tile, uint r) {
    return tile.split * (pc.totalQ * NUM_HEADS_Q) + row_index(tile, r);
}

// Results of row r: its state, then its columns, four at a time. Where there are splits, both are partial.
bool partial() { return split_count() > 1u; }
Norm row_norm(Tile tile, uint r, float m, float l) {
    if (partial())
        return Norm(1.0, 1.0, 0u);
    return normalise(m, l, row_head(tile, r), has_flag(VKMQA_ADD_SINKS));
}
void write_columns(Tile tile, uint r, uint column, vec4 o, Norm norm) {
    if (r >= tile.rows)
        return;
    o *= v_scale(tile.kvHead);
    if (partial())
        store16_out(add_offset(add_product(pc.out_, part_index(tile, r), HEAD_DIM_V * 4u),
                               column * 4u),
                    floatBitsToUint(o));
    else
        write4_out(out_row(tile, r), column, IO_TYPE, o * norm.factor / norm.divisor);
}
void write_state(Tile tile, uint r, float m, float l, Norm norm) {
    if (r >= tile.rows)
        return;
    if (partial())
        store8_lse(add_product(pc.lse, part_index(tile, r), 8u), floatBitsToUint(vec2(m, l)));
    else if (has_flag(VKMQA_WRITE_LSE))
        store4_lse(add_product(pc.lse, row_index(tile, r), 4u), norm.lseBits);
}

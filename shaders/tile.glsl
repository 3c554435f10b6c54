// From a workgroup to its work: which sequence, which rows, which tokens. Needs the push constants as
// `pc` and BUFFER(step). Everything read from the step metadata is checked before it is believed.
//
// The grid is flat over tiles of ROWS rows (row = token * RATIO + head, of one KV head). Sequence b owns
// the tiles from floor(cuSeqlensQ[b] * RATIO / ROWS) + b on: room for each of its tiles, known without
// a prefix sum, found by binary search.
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
    uint split;
    uint begin;   // tokens [begin, end) are this workgroup's
    uint end;
    uint active_; // splits that hold tokens of the sequence (at least 1)
};

Tile find_tile() {
    Tile tile;
    tile.kvHead = gl_WorkGroupID.z / pc.splits;
    tile.split = gl_WorkGroupID.z % pc.splits;
    uint index = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
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
    if (CAUSAL != 0u && turn < tiles)
        turn = turn % 2u == 0u ? turn / 2u : tiles - 1u - turn / 2u;
    tile.row = turn * ROWS;
    tile.rows = tile.row < rows ? min(rows - tile.row, ROWS) : 0u;

    int lenKv = step_int(pc.seqLensKv, low);
    uint room = pc.maxTokens;
    if (PAGE_SHIFT == VKMQA_CONTIGUOUS && low >= pc.numPages)
        room = 0u;
    if (gl_LocalInvocationIndex == 0u && (lenKv < 0 || uint(lenKv) > room))
        set_status(VKMQA_BAD_LENGTH);
    lenKv = max(lenKv, 0);
    uint len = min(uint(lenKv), room);
    tile.offset = lenKv - int(tile.lenQ);
    tile.active_ = active_splits(len);
    tile.begin = min(tile.split * pc.splitTokens, len);
    tile.end = min(tile.begin + pc.splitTokens, len);
    if (CAUSAL != 0u && tile.rows > 0u) { // the last row sees furthest
        int visible = int((tile.row + tile.rows - 1u) / RATIO) + tile.offset + 1;
        tile.end = uint(clamp(visible, int(tile.begin), int(tile.end)));
    }
    if (tile.split >= tile.active_)
        tile.rows = 0u; // the merge knows that this split is empty
    return tile;
}

// Row r of the tile: its token in the sequence, its query head. Rows past the last repeat it.
uint row_token(Tile tile, uint r) { return (tile.row + min(r, tile.rows - 1u)) / RATIO; }
uint row_head(Tile tile, uint r) {
    return tile.kvHead * RATIO + (tile.row + min(r, tile.rows - 1u)) % RATIO;
}
// The row sees positions below this.
uint row_limit(Tile tile, uint r) {
    if (CAUSAL == 0u)
        return tile.end;
    return uint(clamp(int(row_token(tile, r)) + tile.offset + 1, 0, int(tile.end)));
}
// Positions below this are seen by every row of the tile.
uint common_limit(Tile tile) { return row_limit(tile, 0u); }

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
uvec2 cache_row(uvec2 base, Slot slot, uint rowBytes) {
    return add_offset(add_product(base, slot.plane, pc.pageTokens * rowBytes),
                      slot.token * rowBytes);
}

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

// Results of row r: four columns at a time, then the row's state (m, l).
void write_columns(Tile tile, uint r, uint column, vec4 o, float l) {
    if (r >= tile.rows)
        return;
    if (pc.splits > 1u)
        store16_out(add_offset(add_product(pc.out_, part_index(tile, r), HEAD_DIM_V * 4u),
                               column * 4u),
                    floatBitsToUint(o));
    else
        write4_out(out_row(tile, r), column, IO_TYPE, l == 0.0 ? vec4(0.0) : o / l);
}
void write_state(Tile tile, uint r, float m, float l) {
    if (r >= tile.rows)
        return;
    if (pc.splits > 1u) {
        store8_lse(add_product(pc.lse, part_index(tile, r), 8u), floatBitsToUint(vec2(m, l)));
    } else if (pc.writeLse != 0u) {
        uint bits = l == 0.0 ? MINUS_INFINITY_BITS
                             : floatBitsToUint((m * abs(pc.scaleLog2) + log2(l)) * LN2);
        store4_lse(add_product(pc.lse, row_index(tile, r), 4u), bits);
    }
}

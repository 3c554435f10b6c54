#version 460
// After speculative decoding: moves the accepted drafts of every sequence to the front of its last lenQ
// positions. An invocation moves one 16-byte column of a K or V row, or one word of its scales, of one
// sequence and KV head: it walks the accepted drafts in ascending order, so that nothing is overwritten
// before it has been moved, and no two invocations touch the same bytes.
//
// The grid is flat over [batch, numHeadsKv, workgroups of columns: K rows, V rows, K scales, V scales]. A
// sequence with anything wrong in its metadata is left as it is: every invocation looks at all of it first.
#extension GL_GOOGLE_include_directive : require
#ifndef VKMQA_BIND
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#endif
#include "common.glsl"
#include "access.glsl"
layout(push_constant) uniform Push { VkmqaCompactPush pc; };
BUFFER(k, VKMQA_BIND_K)
BUFFER(v, VKMQA_BIND_V)
BUFFER(step, VKMQA_BIND_STEP)

uint page_tokens() { return PAGE_SHIFT == VKMQA_CONTIGUOUS ? pc.maxPages : 1u << (PAGE_SHIFT & 15u); }
int step_int(uint word, uint index) { return int(load4_step(add_offset(pc.step, (word + index) * 4u))); }

// Which drafts of a sequence stay, and where they are.
struct Drafts {
    uint sequence;
    uint base; // position of the first draft
    uint lenQ;
    uint list; // first of `count` entries of accepted
    uint count;
};
// Indices and positions are clamped where they are used: drivers may load behind a return or a loop's end.
uint accepted_draft(Drafts drafts, uint i) {
    return uint(step_int(pc.accepted, min(drafts.list + i, pc.totalQ - 1u)));
}
uint find_page(Drafts drafts, uint position) {
    if (PAGE_SHIFT == VKMQA_CONTIGUOUS)
        return drafts.sequence;
    uint entry = min(position, pc.maxTokens - 1u) >> (PAGE_SHIFT & 15u);
    return uint(step_int(pc.pageTable, drafts.sequence * pc.maxPages + entry));
}

// Fills drafts and returns the status bits of what is wrong.
uint read_drafts(uint sequence, out Drafts drafts) {
    drafts = Drafts(sequence, 0u, 0u, 0u, 0u);
    int start = step_int(pc.cuSeqlensQ, sequence), stop = step_int(pc.cuSeqlensQ, sequence + 1u);
    if (start < 0 || stop < start || stop > int(pc.totalQ))
        return VKMQA_BAD_QUERY_RANGE;
    drafts.lenQ = uint(stop - start);
    start = step_int(pc.cuAccepted, sequence);
    stop = step_int(pc.cuAccepted, sequence + 1u);
    if (start < 0 || stop < start || stop > int(pc.totalQ))
        return VKMQA_BAD_ACCEPTED;
    drafts.list = uint(start);
    drafts.count = uint(stop - start);
    int lenKv = step_int(pc.seqLensKv, sequence);
    bool room = PAGE_SHIFT != VKMQA_CONTIGUOUS || sequence < pc.numPages;
    if (lenKv < 0 || lenKv > (room ? int(pc.maxTokens) : 0))
        return VKMQA_BAD_LENGTH;
    if (drafts.count == 0u)
        return 0u;
    if (lenKv < int(drafts.lenQ))
        return VKMQA_BAD_LENGTH;
    drafts.base = uint(lenKv) - drafts.lenQ;
    uint least = 0u; // what the next draft must be
    for (uint i = 0u; i < drafts.count; ++i) {
        uint draft = accepted_draft(drafts, i);
        if (draft < least || draft >= drafts.lenQ)
            return VKMQA_BAD_ACCEPTED;
        least = draft + 1u;
        if (draft != i && (find_page(drafts, drafts.base + draft) >= pc.numPages ||
                           find_page(drafts, drafts.base + i) >= pc.numPages))
            return VKMQA_BAD_PAGE;
    }
    return 0u;
}

// A column: `bytes` apart from token to token, `offset` in a row, in the planes from `planes` on.
struct Column {
    uvec2 planes;
    uint bytes;
    uint offset;
    bool scales, v;
};
uint columns_of(uint dim, uint type) { return row_bytes(dim, type) / 16u; }
uint scale_words(uint dim, uint type) { return has_scales(type) ? scale_bytes(dim) / 4u : 0u; }
uvec2 scale_planes(uvec2 base, uint dim, uint type) {
    return add_product(base, pc.numPages * NUM_HEADS_KV, page_tokens() * row_bytes(dim, type));
}
uint column_count() {
    uint count = columns_of(HEAD_DIM_QK, K_TYPE) + scale_words(HEAD_DIM_QK, K_TYPE);
    if (V_PREFIX == 0u)
        count += columns_of(HEAD_DIM_V, V_TYPE) + scale_words(HEAD_DIM_V, V_TYPE);
    return count;
}
Column find_column(uint i) {
    uint rowsK = columns_of(HEAD_DIM_QK, K_TYPE);
    if (i < rowsK)
        return Column(pc.k, row_bytes(HEAD_DIM_QK, K_TYPE), i * 16u, false, false);
    i -= rowsK;
    uint rowsV = V_PREFIX != 0u ? 0u : columns_of(HEAD_DIM_V, V_TYPE);
    if (i < rowsV)
        return Column(pc.v, row_bytes(HEAD_DIM_V, V_TYPE), i * 16u, false, true);
    i -= rowsV;
    uint scalesK = scale_words(HEAD_DIM_QK, K_TYPE);
    if (i < scalesK)
        return Column(scale_planes(pc.k, HEAD_DIM_QK, K_TYPE), scale_bytes(HEAD_DIM_QK), i * 4u, true, false);
    i -= scalesK;
    return Column(scale_planes(pc.v, HEAD_DIM_V, V_TYPE), scale_bytes(HEAD_DIM_V), i * 4u, true, true);
}

uvec2 find_cell(Drafts drafts, Column column, uint head, uint position) {
    uint plane = min(find_page(drafts, position), pc.numPages - 1u) * NUM_HEADS_KV + head;
    uint token = min(position, pc.maxTokens - 1u);
    if (PAGE_SHIFT != VKMQA_CONTIGUOUS)
        token &= page_tokens() - 1u;
    uvec2 first = add_product(column.planes, plane, page_tokens() * column.bytes);
    return add_offset(first, token * column.bytes + column.offset);
}
void move_cell(Column column, uvec2 from, uvec2 to) {
#ifdef VKMQA_BIND
    if (column.v) {
        if (column.scales)
            store4_v(to, load4_v(from));
        else
            store16_v(to, load16_v(from));
        return;
    }
#endif
    if (column.scales)
        store4_k(to, load4_k(from));
    else
        store16_k(to, load16_k(from));
}

void main() {
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint columns = column_count(), groups = (columns + WG_SIZE - 1u) / WG_SIZE;
    uint i = group % groups * WG_SIZE + gl_LocalInvocationIndex;
    uint head = group / groups % NUM_HEADS_KV;
    uint given = group / (groups * NUM_HEADS_KV), sequence = min(given, pc.batch - 1u);
    if (sequence != given || i >= columns)
        return;
    Drafts drafts;
    uint wrong = read_drafts(sequence, drafts);
    if (wrong != 0u) {
        if (i == 0u && head == 0u && pc.status != VKMQA_ABSENT)
            or4_step(add_offset(pc.step, pc.status * 4u), wrong);
        return;
    }
    Column column = find_column(min(i, columns - 1u));
    for (uint draft = 0u; draft < drafts.count; ++draft) {
        uint from = accepted_draft(drafts, draft);
        if (from != draft)
            move_cell(column, find_cell(drafts, column, head, drafts.base + from),
                      find_cell(drafts, column, head, drafts.base + draft));
    }
}

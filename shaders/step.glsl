// The step metadata and what follows from it, for attention and its merge. Needs the push constants as `pc`
// and BUFFER(step).
int step_int(uint word, uint index) {
    return int(load4_step(add_offset(pc.step, (word + index) * 4u)));
}
uint query_start(uint b) { return uint(clamp(step_int(pc.cuSeqlensQ, b), 0, int(pc.totalQ))); }
uint split_count() { return pc.splitsAndFlags >> 2; }
bool has_flag(uint bit) { return (pc.splitsAndFlags & bit) != 0u; }

// A query token at `position` (negative where a sequence has more queries than tokens) sees the positions
// [visible_begin, visible_end), masks aside. The host bounds windows and chunks by 2^30, and so are lengths.
// (~x is 0 where x is unbounded; glslang folds no || of specialisation constants.)
const bool BOUNDED_LEFT = (~WINDOW_LEFT | CHUNK) != 0u;
const bool BOUNDED = (~WINDOW_LEFT | ~WINDOW_RIGHT | CHUNK) != 0u;
uint visible_begin(int position) {
    int begin = 0;
    if (WINDOW_LEFT != VKMQA_UNBOUNDED)
        begin = max(begin, position - int(WINDOW_LEFT));
    if (CHUNK != 0u)
        begin = max(begin, max(position, 0) / int(max(CHUNK, 1u)) * int(CHUNK));
    return uint(begin);
}
uint visible_end(int position, uint len) {
    int end = int(len);
    if (WINDOW_RIGHT != VKMQA_UNBOUNDED)
        end = min(end, position + int(WINDOW_RIGHT) + 1);
    if (CHUNK != 0u) {
        int chunk = max(position, 0) / int(max(CHUNK, 1u));
        end = position < 0 ? 0 : min(end, (chunk + 1) * int(CHUNK));
    }
    return uint(max(end, 0));
}

// The length that is believed, and the one that positions are counted from.
int believed_length(int lenKv) { return clamp(lenKv, 0, 1 << 30); }

// The splits of a sequence that hold what its queries may see: `count` of splitTokens each, the first one
// beginning at first * splitTokens. A sequence without tokens has one, which is empty.
struct Span {
    uint first;
    uint count;
    bool whole; // false: more query tokens than recorded, whose last positions have no split
};
Span split_span(uint lenQ, int lenKv, uint len) {
    uint first = BOUNDED_LEFT ? min(visible_begin(lenKv - int(lenQ)), len) / pc.splitTokens : 0u;
    uint end = (len + pc.splitTokens - 1u) / pc.splitTokens;
    uint count = max(end - min(first, end), 1u);
    return Span(first, min(count, split_count()), count <= split_count());
}

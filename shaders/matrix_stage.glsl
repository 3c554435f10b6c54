// From the cache to shared memory, for kernels on matrix units: a block's rows as the matrix's element type,
// whatever the cache holds. What is fetched stays in registers until it is put down, so that loads are under
// way while something else is computed. Needs tile.glsl, CACHE_READER(k, v) and
//   shared uvec2 sharedPlaces[2 * BLOCK]         of two blocks: (page * numHeadsKv + head, token in the page)
//   shared uvec4 sharedRows[BLOCK * ROW_UNITS]   eight elements a unit
const uint ABSENT = 0xFFFFFFFFu;

// Elements in 16 bytes of a cache row, which are a chunk.
#define CHUNK_ELEMENTS(type) ((type) == VKMQA_Q4 ? 32u : (type) >= VKMQA_FP8 ? 16u : 8u)

uvec4 pack_unit(vec4 low, vec4 high) {
    return uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy), packHalf2x16(high.zw));
}
// Not 0 where an element is infinite or NaN: 0 times it would reach rows that do not see it.
uint beyond_range(uvec4 unit) {
    uvec4 words = ((unit & 0x7C007C00u) + 0x04000400u) & 0x80008000u;
    return words.x | words.y | words.z | words.w;
}

void find_places(Tile tile, uint block, uint parity) {
    for (uint t = gl_LocalInvocationIndex; t < BLOCK; t += WG_SIZE) {
        uint position = block + t;
        uvec2 place = uvec2(ABSENT);
        if (position >= tile.first && position < tile.end) {
            Slot slot = find_slot(tile, position);
            if (slot.allowed)
                place = uvec2(slot.plane, slot.token);
        }
        sharedPlaces[parity * BLOCK + t] = place;
    }
}

// Unit `unit` of a chunk that lies in four words.
uvec4 decode_unit(uvec4 words, uint unit, uint type, float scale) {
    if (type < VKMQA_FP8)
        return type == VKMQA_F16 ? words : pack_unit(bf16_decode(words.xy), bf16_decode(words.zw));
    uvec2 pair = (unit & 1u) == 0u ? words.xy : words.zw;
    if (type == VKMQA_Q4) {
        uint shift = unit < 2u ? 0u : 4u; // elements j and j + 16 share a byte
        return pack_unit(q4_decode(pair.x, shift) * scale, q4_decode(pair.y, shift) * scale);
    }
    if (type == VKMQA_Q8)
        return pack_unit(q8_decode(pair.x) * scale, q8_decode(pair.y) * scale);
    return pack_unit(fp8_decode(pair.x), fp8_decode(pair.y));
}

// fetch_name: this invocation's part of a block, under way to registers. put_name: from there into sharedRows, or all
// the way where registers are few (PREFETCH 0); not 0 where a value is beyond range.
#define BLOCK_STAGE(name, dim, type)                                                               \
    const uint CHUNK_UNITS_##name = CHUNK_ELEMENTS(type) / 8u;                                     \
    const uint CHUNKS_##name = ((dim) + CHUNK_ELEMENTS(type) - 1u) / CHUNK_ELEMENTS(type);         \
    const uint TURNS_##name = (BLOCK * CHUNKS_##name + WG_SIZE - 1u) / WG_SIZE;                    \
    uvec4 words_##name[PREFETCH != 0u ? TURNS_##name : 1u];                                        \
    float scales_##name[PREFETCH != 0u ? TURNS_##name : 1u];                                       \
    void fetch_turn_##name(uint parity, uint turn, uint to) {                                      \
        uint i = turn * WG_SIZE + gl_LocalInvocationIndex, chunk = i % CHUNKS_##name;              \
        uvec2 place = sharedPlaces[parity * BLOCK + min(i / CHUNKS_##name, BLOCK - 1u)];           \
        words_##name[to] = uvec4(0u);                                                              \
        scales_##name[to] = 0.0;                                                                   \
        if (place.x == ABSENT)                                                                     \
            return;                                                                                \
        CacheRow row = name##_row(Slot(place.x, place.y, true));                                   \
        words_##name[to] = load16_##name(add_offset(row.data, chunk * 16u));                       \
        if (has_scales(type))                                                                      \
            scales_##name[to] = block_scale_##name(row, chunk * CHUNK_ELEMENTS(type));             \
    }                                                                                              \
    void fetch_##name(uint parity) {                                                               \
        EACH_TILE for (uint turn = 0u; turn < TURNS_##name && PREFETCH != 0u; ++turn)              \
            fetch_turn_##name(parity, turn, turn);                                                 \
    }                                                                                              \
    uint put_turn_##name(uint turn, uint from) {                                                   \
        uint i = turn * WG_SIZE + gl_LocalInvocationIndex, beyond = 0u;                            \
        uint t = i / CHUNKS_##name, first = i % CHUNKS_##name * CHUNK_UNITS_##name;                \
        EACH_TILE for (uint unit = 0u; unit < CHUNK_UNITS_##name; ++unit) {                        \
            if (i >= BLOCK * CHUNKS_##name || first + unit >= (dim) / 8u)                          \
                continue;                                                                          \
            uvec4 packed = decode_unit(words_##name[from], unit, type, scales_##name[from]);       \
            sharedRows[t * ROW_UNITS + first + unit] = packed;                                     \
            beyond |= beyond_range(packed);                                                        \
        }                                                                                          \
        return beyond;                                                                             \
    }                                                                                              \
    uint put_##name(uint parity) {                                                                 \
        uint beyond = 0u;                                                                          \
        EACH_TILE for (uint turn = 0u; turn < TURNS_##name && PREFETCH != 0u; ++turn)              \
            beyond |= put_turn_##name(turn, turn);                                                 \
        [[dont_unroll]] for (uint turn = 0u; turn < TURNS_##name && PREFETCH == 0u; ++turn) {      \
            fetch_turn_##name(parity, turn, 0u);                                                   \
            beyond |= put_turn_##name(turn, 0u);                                                   \
        }                                                                                          \
        return beyond;                                                                             \
    }

// Rows of elements as f32: ROW_READER and ROW_WRITER for q, out and new rows (f32, f16, bf16), CACHE_READER
// for K and V of any type. `name` is that of a BUFFER; types are specialisation constants, so that one
// branch of each function stays.

// A row of the cache, and the scales of its blocks where the type has any.
struct CacheRow {
    uvec2 data;
    uvec2 scales;
};

// Elements i .. i + 3 (i a multiple of 4), or i .. i + 7 (a multiple of 8).
#define ROW_READER(name)                                                                           \
    vec4 read4_##name(uvec2 row, uint i, uint type) {                                              \
        if (type == VKMQA_F32)                                                                     \
            return uintBitsToFloat(load16_##name(add_offset(row, i * 4u)));                        \
        uvec2 words = load8_##name(add_offset(row, i * 2u));                                       \
        return type == VKMQA_F16 ? f16_decode(words) : bf16_decode(words);                         \
    }                                                                                              \
    void read8_##name(uvec2 row, uint i, uint type, out vec4 low, out vec4 high) {                 \
        if (type == VKMQA_F32) {                                                                   \
            low = uintBitsToFloat(load16_##name(add_offset(row, i * 4u)));                         \
            high = uintBitsToFloat(load16_##name(add_offset(row, i * 4u + 16u)));                  \
            return;                                                                                \
        }                                                                                          \
        uvec4 words = load16_##name(add_offset(row, i * 2u));                                      \
        low = type == VKMQA_F16 ? f16_decode(words.xy) : bf16_decode(words.xy);                    \
        high = type == VKMQA_F16 ? f16_decode(words.zw) : bf16_decode(words.zw);                   \
    }
#define ROW_WRITER(name)                                                                           \
    void write4_##name(uvec2 row, uint i, uint type, vec4 value) {                                 \
        if (type == VKMQA_F32)                                                                     \
            store16_##name(add_offset(row, i * 4u), floatBitsToUint(value));                       \
        else                                                                                       \
            store8_##name(add_offset(row, i * 2u),                                                 \
                          type == VKMQA_F16 ? f16_encode(value) : bf16_encode(value));             \
    }
#define CACHE_READER(name)                                                                         \
    ROW_READER(name)                                                                               \
    float block_scale_##name(CacheRow row, uint i) {                                               \
        uint block = i / VKMQA_BLOCK_ELEMENTS;                                                     \
        vec2 pair = unpackHalf2x16(load4_##name(add_offset(row.scales, (block & ~1u) * 2u)));      \
        return (block & 1u) != 0u ? pair.y : pair.x;                                               \
    }                                                                                              \
    /* Bytes i .. i + 3 of an 8-bit row, or the halves of q4_0 bytes. */                           \
    vec4 small4_##name(CacheRow row, uint i, uint type) {                                          \
        if (type == VKMQA_FP8)                                                                     \
            return fp8_decode(load4_##name(add_offset(row.data, i)));                              \
        if (type == VKMQA_Q8)                                                                      \
            return q8_decode(load4_##name(add_offset(row.data, i))) * block_scale_##name(row, i);  \
        uint byte_ = i / 32u * 16u + (i & 15u);                                                    \
        return q4_decode(load4_##name(add_offset(row.data, byte_)), (i & 16u) >> 2) *              \
               block_scale_##name(row, i);                                                         \
    }                                                                                              \
    vec4 cache4_##name(CacheRow row, uint i, uint type) {                                          \
        return type < VKMQA_FP8 ? read4_##name(row.data, i, type) : small4_##name(row, i, type);   \
    }                                                                                              \
    void cache8_##name(CacheRow row, uint i, uint type, out vec4 low, out vec4 high) {             \
        if (type < VKMQA_FP8) {                                                                    \
            read8_##name(row.data, i, type, low, high);                                            \
        } else {                                                                                   \
            low = small4_##name(row, i, type);                                                     \
            high = small4_##name(row, i + 4u, type);                                               \
        }                                                                                          \
    }

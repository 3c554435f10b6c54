// Element types and the rows they make. SPDX-License-Identifier: MIT
#include "internal.h"

// One row a type; its kernels' side is shaders/codec_*.glsl.
static const struct {
    const char* name;
    uint32_t bytes; // of 32 elements
    bool io;        // q, out and new rows may have it
    bool scales;    // an f16 scale for each block of 32
} types[] = {
    [VKMQA_TYPE_F32] = {"f32", 128, true, false},          [VKMQA_TYPE_F16] = {"f16", 64, true, false},
    [VKMQA_TYPE_BF16] = {"bf16", 64, true, false},         [VKMQA_TYPE_FP8_E4M3] = {"fp8_e4m3", 32, false, false},
    [VKMQA_TYPE_Q8_0] = {"q8_0", 32, false, true},         [VKMQA_TYPE_Q4_0] = {"q4_0", 16, false, true},
};
enum { TYPE_COUNT = sizeof types / sizeof types[0] };

bool vkmqa_is_type(VkmqaType type, bool io) {
    return (uint32_t)type < TYPE_COUNT && types[type].name && (types[type].io || !io);
}

const char* vkmqa_type_name(VkmqaType type) {
    return vkmqa_is_type(type, false) ? types[type].name : "unknown";
}

uint32_t vkmqa_type_size(VkmqaType type) { return types[type].bytes / 32; }

uint32_t vkmqa_row_bytes(uint32_t headDim, VkmqaType type) {
    uint32_t elements = types[type].scales ? (headDim + 31) / 32 * 32 : headDim;
    return (elements * types[type].bytes / 32 + 15) & ~15u;
}

uint32_t vkmqa_scale_bytes(uint32_t headDim, VkmqaType type) {
    return types[type].scales ? ((headDim + 31) / 32 * 2 + 3) & ~3u : 0;
}

// Cache rows on the host. SPDX-License-Identifier: MIT
#ifndef VKMQA_CODEC_H
#define VKMQA_CODEC_H

#include "internal.h"

// `count` elements of a row of any type, from element 0 on; scales: the row's block scales, or null where the
// type has none. fp8 values come without their head's scale.
void vkmqa_decode_row(VkmqaType type, const void* row, const void* scales, uint32_t count, float* values);
// Values that f32, f16 and bf16 hold exactly.
void vkmqa_encode_exact(VkmqaType type, const float* values, uint32_t count, void* row);

#endif

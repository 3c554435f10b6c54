// SPDX-License-Identifier: MIT
#include "codec.h"

#include <math.h>
#include <string.h>

static float decode_small_float(uint32_t bits, int exponentBits, int fractionBits) {
    int bias = (1 << (exponentBits - 1)) - 1;
    int exponent = (int)(bits >> fractionBits) & ((1 << exponentBits) - 1);
    float fraction = ldexpf((float)(bits & ((1u << fractionBits) - 1)), -fractionBits);
    float value = exponent ? ldexpf(1 + fraction, exponent - bias) : ldexpf(fraction, 1 - bias);
    return bits >> (exponentBits + fractionBits) & 1 ? -value : value;
}

static float decode_f16(uint16_t bits) {
    if ((bits & 0x7C00) != 0x7C00)
        return decode_small_float(bits, 5, 10);
    return bits & 0x3FF ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
}

static float decode_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static float decode_fp8(uint8_t bits) { return (bits & 0x7F) == 0x7F ? NAN : decode_small_float(bits, 4, 3); }

void vkmqa_decode_row(VkmqaType type, const void* row, const void* scales, uint32_t count, float* values) {
    const uint8_t* bytes = row;
    for (uint32_t i = 0; i < count; ++i) {
        uint16_t half = 0;
        if (type == VKMQA_TYPE_F16 || type == VKMQA_TYPE_BF16)
            memcpy(&half, bytes + 2 * i, 2);
        else if (scales)
            memcpy(&half, (const uint8_t*)scales + i / 32 * 2, 2);
        switch (type) {
        case VKMQA_TYPE_F16:
            values[i] = decode_f16(half);
            break;
        case VKMQA_TYPE_BF16:
            values[i] = decode_bf16(half);
            break;
        case VKMQA_TYPE_FP8_E4M3:
            values[i] = decode_fp8(bytes[i]);
            break;
        case VKMQA_TYPE_Q8_0:
            values[i] = decode_f16(half) * (float)(int8_t)bytes[i];
            break;
        case VKMQA_TYPE_Q4_0: {
            int pair = bytes[i / 32 * 16 + i % 16], code = i % 32 < 16 ? pair & 15 : pair >> 4;
            values[i] = decode_f16(half) * (float)(code - 8);
            break;
        }
        default:
            memcpy(&values[i], bytes + 4 * i, 4);
        }
    }
}

void vkmqa_encode_exact(VkmqaType type, const float* values, uint32_t count, void* row) {
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t bits;
        memcpy(&bits, &values[i], 4);
        uint16_t half = (uint16_t)(bits >> 16); // bf16
        if (type == VKMQA_TYPE_F32) {
            memcpy((uint8_t*)row + 4 * i, &bits, 4);
            continue;
        }
        if (type == VKMQA_TYPE_F16)
            half = values[i] == 0 ? half & 0x8000
                                  : (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) |
                                               (bits >> 13 & 0x3FF));
        memcpy((uint8_t*)row + 2 * i, &half, 2);
    }
}

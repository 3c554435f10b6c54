// Element types: one row each, and the conversions that the host needs.
// SPDX-License-Identifier: MIT
#include "types.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

// Bounds on the normalised mean squared error of an output: the roundings of the type and nothing more.
static const TypeTraits table[] = {
    {"f32", "F32", VKMQA_TYPE_F32, 4, 0, 1e-10, 1e-10, 0},
    {"f16", "F16", VKMQA_TYPE_F16, 2, 0, 1e-6, 1e-6, 0x1p-11},
    {"bf16", "BF16", VKMQA_TYPE_BF16, 2, 0, 3e-5, 1e-5, 0x1p-8},
    {"fp8_e4m3", NULL, VKMQA_TYPE_FP8_E4M3, 1, 0, 5e-3, 1e-6, -1},
    {"q8_0", NULL, VKMQA_TYPE_Q8_0, 0, 32, 1e-3, 1e-6, -1},
    {"q4_0", NULL, VKMQA_TYPE_Q4_0, 0, 16, 1e-1, 1e-6, -1},
};
enum { TYPE_COUNT = sizeof(table) / sizeof(table[0]) };

const TypeTraits* typeByName(const char* name) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

const TypeTraits* typeByDtype(const char* dtype) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (table[i].dtype && strcmp(table[i].dtype, dtype) == 0)
            return &table[i];
    return NULL;
}

const TypeTraits* typeTraits(VkmqaType type) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (table[i].type == type)
            return &table[i];
    return &table[1];
}

const char* typeNames(void) { return "f32, f16, bf16, fp8_e4m3, q8_0, q4_0"; }
const char* ioTypeNames(void) { return "f32, f16, bf16"; }
bool isIoType(const TypeTraits* traits) { return traits->dtype != NULL; }

uint16_t encodeHalf(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
        return sign | 0x7E00u;
    if (magnitude >= 0x477FF000u) // rounds to 65536 or more
        return sign | 0x7C00u;
    if (magnitude < 0x38800000u) { // a subnormal: units of 2^-24, rounded to even by the FPU
        float scaled;
        memcpy(&scaled, &magnitude, 4);
        return sign | (uint16_t)lrintf(scaled * 0x1p24f);
    }
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return sign | (uint16_t)((magnitude - 0x38000000u) >> 13);
}

float decodeHalf(uint16_t bits) {
    uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3FFu;
    float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                      : exponent == 0 ? (float)fraction * 0x1p-24f
                                      : ldexpf((float)(fraction | 0x400u), (int)exponent - 25);
    return bits & 0x8000u ? -magnitude : magnitude;
}

static uint16_t encodeBrain(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((bits >> 16 & 0x8000u) | 0x7FC0u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static float decodeBrain(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static uint8_t encodeFp8(float value) {
    uint8_t sign = signbit(value) ? 0x80u : 0;
    float magnitude = fabsf(value);
    int exponent;
    if (isnan(value))
        return sign | 0x7Fu;
    if (magnitude >= 448)
        return sign | 0x7Eu;
    frexpf(magnitude, &exponent);
    exponent = magnitude < 0x1p-6f ? -6 : exponent - 1;
    long eighths =
        lrintf(ldexpf(magnitude, 3 - exponent)); // of 2^exponent, rounded to even by the FPU
    // A carry out of the mantissa lands in the exponent, where it belongs.
    return sign | (uint8_t)(eighths < 8 ? eighths : ((exponent + 7) << 3) + (eighths - 8));
}

static float decodeFp8(uint8_t bits) {
    int exponent = bits >> 3 & 15, fraction = bits & 7;
    float magnitude = (bits & 0x7F) == 0x7F ? NAN
                      : exponent == 0       ? ldexpf((float)fraction, -9)
                                            : ldexpf((float)(fraction | 8), exponent - 10);
    return bits & 0x80 ? -magnitude : magnitude;
}

// ldexpf per element is too slow for caches of millions of rows, which many threads decode.
static float halfValues[65536], fp8Values[256];
static pthread_once_t tablesOnce = PTHREAD_ONCE_INIT;
static void fillTables(void) {
    for (uint32_t i = 0; i < 65536; i++)
        halfValues[i] = decodeHalf((uint16_t)i);
    for (uint32_t i = 0; i < 256; i++)
        fp8Values[i] = decodeFp8((uint8_t)i);
}

void decodeElements(const TypeTraits* traits, const void* data, size_t count, float* values) {
    const uint8_t* bytes = data;
    uint16_t bits;
    pthread_once(&tablesOnce, fillTables);
    if (traits->type == VKMQA_TYPE_F32 && count) {
        memcpy(values, data, count * 4);
    } else if (traits->type == VKMQA_TYPE_FP8_E4M3) {
        for (size_t i = 0; i < count; i++)
            values[i] = fp8Values[bytes[i]];
    } else if (traits->type == VKMQA_TYPE_BF16) {
        for (size_t i = 0; i < count; i++, bytes += 2) {
            memcpy(&bits, bytes, 2);
            values[i] = decodeBrain(bits);
        }
    } else {
        for (size_t i = 0; i < count; i++, bytes += 2) {
            memcpy(&bits, bytes, 2);
            values[i] = halfValues[bits];
        }
    }
}

void encodeElements(const TypeTraits* traits, const float* values, size_t count, void* data) {
    uint8_t* bytes = data;
    if (traits->type == VKMQA_TYPE_F32 && count)
        memcpy(data, values, count * 4);
    for (size_t i = 0; traits->bytes < 4 && i < count; i++, bytes += traits->bytes) {
        if (traits->type == VKMQA_TYPE_FP8_E4M3) {
            *bytes = encodeFp8(values[i]);
            continue;
        }
        uint16_t bits =
            traits->type == VKMQA_TYPE_BF16 ? encodeBrain(values[i]) : encodeHalf(values[i]);
        memcpy(bytes, &bits, 2);
    }
}

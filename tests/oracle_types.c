#include "oracle.h"

#include <math.h>
#include <string.h>

static const char* const names[] = {"f32", "f16", "bf16", "fp8_e4m3", "q8_0", "q4_0"};

const char* oracleTypeName(OracleType type) { return names[type]; }

bool oracleTypeHasBlocks(OracleType type) { return type == ORACLE_Q8_0 || type == ORACLE_Q4_0; }

size_t oracleElementBytes(OracleType type) {
    return type == ORACLE_F32 ? 4 : type == ORACLE_FP8 ? 1 : 2;
}

// A small float: bits of its mantissa, and its smallest exponent.
typedef struct Format {
    int mantissa, minExponent;
} Format;

static const Format formats[] = {
    [ORACLE_F32] = {23, -126},
    [ORACLE_F16] = {10, -14},
    [ORACLE_BF16] = {7, -126},
    [ORACLE_FP8] = {3, -6},
};

double oracleRounding(OracleType type, double magnitude) {
    // Half the distance to the next value, and never less than half the smallest denormal.
    const Format* format = &formats[type];
    return fmax(ldexp(magnitude, -format->mantissa - 1),
                ldexp(1, format->minExponent - format->mantissa - 1));
}

static float fromBits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Exponent and mantissa of the nearest value of a format that has no largest one. Carrying into the
// exponent field is what reaching the next power of two has to do.
static uint32_t roundMagnitude(const Format* format, double magnitude) {
    int exponent =
        magnitude < ldexp(1, format->minExponent) ? format->minExponent : ilogb(magnitude);
    // Multiples of the spacing at this exponent; nearbyint's default is ties to even.
    double multiples = nearbyint(ldexp(magnitude, format->mantissa - exponent));
    return ((uint32_t)(exponent - format->minExponent) << format->mantissa) + (uint32_t)multiples;
}

uint16_t oracleF16FromF32(float value) {
    if (isnan(value))
        return 0x7E00;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs((double)value);
    if (magnitude >= 65520) // half way between the largest f16 and what would follow it
        return sign | 0x7C00;
    return (uint16_t)(sign | roundMagnitude(&formats[ORACLE_F16], magnitude));
}

uint16_t oracleBf16FromF32(float value) {
    if (isnan(value))
        return 0x7FC0;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs((double)value);
    if (magnitude >= ldexp(511, 119)) // half way between the largest bf16, 255 * 2^120, and 2^128
        return sign | 0x7F80;
    return (uint16_t)(sign | roundMagnitude(&formats[ORACLE_BF16], magnitude));
}

uint8_t oracleFp8FromF32(float value) {
    if (isnan(value))
        return 0x7F;
    uint8_t sign = signbit(value) ? 0x80 : 0;
    double magnitude = fmin(fabs((double)value), 448);
    return (uint8_t)(sign | roundMagnitude(&formats[ORACLE_FP8], magnitude));
}

float oracleF32FromF16(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    int mantissa = bits & 1023;
    if (exponent == 31)
        return fromBits((uint32_t)(bits & 0x8000) << 16 | 0x7F800000u | (uint32_t)mantissa << 13);
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return (float)(bits & 0x8000 ? -magnitude : magnitude);
}

float oracleF32FromBf16(uint16_t bits) { return fromBits((uint32_t)bits << 16); }

float oracleF32FromFp8(uint8_t bits) {
    int exponent = bits >> 3 & 15;
    int mantissa = bits & 7;
    if ((bits & 0x7F) == 0x7F)
        return fromBits(bits & 0x80 ? 0xFFC00000u : 0x7FC00000u);
    double magnitude = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return (float)(bits & 0x80 ? -magnitude : magnitude);
}

void oracleEncode(OracleType type, const float* values, size_t count, void* bytes) {
    if (type == ORACLE_F32) {
        memcpy(bytes, values, count * 4);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (type == ORACLE_F16)
            ((uint16_t*)bytes)[i] = oracleF16FromF32(values[i]);
        else if (type == ORACLE_BF16)
            ((uint16_t*)bytes)[i] = oracleBf16FromF32(values[i]);
        else
            ((uint8_t*)bytes)[i] = oracleFp8FromF32(values[i]);
    }
}

void oracleDecode(OracleType type, const void* bytes, size_t count, float* values) {
    if (type == ORACLE_F32) {
        memcpy(values, bytes, count * 4);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (type == ORACLE_F16)
            values[i] = oracleF32FromF16(((const uint16_t*)bytes)[i]);
        else if (type == ORACLE_BF16)
            values[i] = oracleF32FromBf16(((const uint16_t*)bytes)[i]);
        else
            values[i] = oracleF32FromFp8(((const uint8_t*)bytes)[i]);
    }
}

void oracleRound(OracleType type, float* values, size_t count) {
    uint32_t bits;
    for (size_t i = 0; i < count && type != ORACLE_F32; i++) {
        oracleEncode(type, &values[i], 1, &bits);
        oracleDecode(type, &bits, 1, &values[i]);
    }
}

// ---- Blocks ------------------------------------------------------------------------------------

// What a block makes of a value before it looks for the largest: the scale must stay a finite f16.
static double blockInput(OracleType type, float value) {
    double largest = 65504.0 * (type == ORACLE_Q8_0 ? 127 : 8);
    if (isnan(value) || fabs((double)value) < ldexp(1, -126))
        return 0;
    return fmax(-largest, fmin(largest, value));
}

// Drivers divide differently: this close to a tie, both neighbours are right.
static const double TIE_SLACK = 1.0 / (1 << 14);

// Truncates value >= 0, which has had its 0.5 added; *other is the other code that is right, if any.
static int truncated(double value, int* other) {
    int code = (int)value;
    double nearest = nearbyint(value);
    *other = code;
    if (fabs(value - nearest) <= TIE_SLACK && nearest >= 1)
        *other = code == (int)nearest ? code - 1 : code + 1;
    return code;
}

static void encodeQ8(const double* x, OracleBlock* block) {
    double largest = 0;
    for (int i = 0; i < ORACLE_BLOCK; i++)
        largest = fmax(largest, fabs(x[i]));
    const float inverse = 1.0f / 127;
    volatile float d =
        (float)largest * inverse; // an f32 product, whatever the compiler would rather
    block->scale = oracleF16FromF32(d);
    for (int i = 0; i < ORACLE_BLOCK; i++) {
        int sign = x[i] < 0 ? -1 : 1, other = 0;
        int code = largest > 0 ? truncated(fabs(x[i]) * 127 / largest + 0.5, &other) : 0;
        block->codes[i] = sign * code;
        block->others[i] = sign * other;
    }
}

static int smaller(int a, int b) { return a < b ? a : b; }

static void encodeQ4(const double* x, OracleBlock* block) {
    double m = 0; // the first value of largest magnitude
    for (int i = 0; i < ORACLE_BLOCK; i++)
        if (fabs(x[i]) > fabs(m))
            m = x[i];
    double d = m / -8;
    block->scale = m != 0 ? oracleF16FromF32((float)d) : 0;
    for (int i = 0; i < ORACLE_BLOCK; i++) {
        int other = 8;
        int code = m != 0 ? truncated(x[i] / d + 8.5, &other) : 8;
        block->codes[i] = smaller(15, code);
        block->others[i] = smaller(15, other);
    }
}

void oracleEncodeBlock(OracleType type, const float* values, size_t count, OracleBlock* block) {
    double x[ORACLE_BLOCK] = {0};
    for (size_t i = 0; i < count; i++)
        x[i] = blockInput(type, values[i]);
    if (type == ORACLE_Q8_0)
        encodeQ8(x, block);
    else
        encodeQ4(x, block);
}

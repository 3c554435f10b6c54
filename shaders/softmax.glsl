// From scores to weights and from sums to results, for attention and its merge. Needs params.glsl.

// Stands for -infinity: drivers disagree about (-inf) - (-inf), and none about this.
const float NEGATIVE = -1.0e37;

// Plain scores stay products q k (of -q k where the scale is negative), because a difference of them is exact
// where it matters, and weights are exp2(difference * unit). Softcap and ALiBi need the score itself.
const uint SHAPED = SOFTCAP | ALIBI; // not 0: shape_score changes the scores
float score_unit() { return SHAPED != 0u ? LOG2E : abs(uintBitsToFloat(SCALE)) * LOG2E; }
float score_sign() { return SHAPED == 0u && uintBitsToFloat(SCALE) < 0.0 ? -1.0 : 1.0; }

// By the bits: drivers may take x != x for false, and SwiftShader's exp2 and log2 make numbers of NaN.
bool is_nan(float x) { return (floatBitsToUint(x) & 0x7FFFFFFFu) > 0x7F800000u; }

#ifdef VKMQA_EXACT_EXP2
// CPU drivers approximate exp2 to some 2e-7, which is more than everything else here loses. With x = n + f,
// |f| <= 1/2: 2^n by its bits, 2^f by a polynomial (interpolated at Chebyshev nodes; relative error 2e-9).
// A NaN stays one; weights below 2^-126 count as 2^-126, nothing beside the largest weight, 1.
float exp2_negative(float x) {
    x = x < -126.0 ? -126.0 : x;
    float n = floor(x + 0.5), f = x - n;
    float p = 1.545316294e-04;
    p = p * f + 1.339086336e-03;
    p = p * f + 9.618082557e-03;
    p = p * f + 5.550357114e-02;
    p = p * f + 2.402265076e-01;
    p = p * f + 6.931471880e-01;
    p = p * f + 1.0;
    return p * uintBitsToFloat(uint(127 + int(n)) << 23);
}
#else
#define exp2_negative exp2
#endif
float softmax_weight(float difference) { return exp2_negative(difference * score_unit()); }

// tanh: drivers' own differ by 1e-5 and more. Near 0 a polynomial in x^2 (interpolated at Chebyshev nodes;
// relative error 1e-8), elsewhere by the exponential.
const float TANH_NEAR = 0.75;
float tanh_near_zero(float x) {
    float z = x * x;
    float p = 1.909502449e-03;
    p = p * z - 7.933807618e-03;
    p = p * z + 2.161531890e-02;
    p = p * z - 5.393585355e-02;
    p = p * z + 1.333317964e-01;
    p = p * z - 3.333333214e-01;
    return x + x * z * p;
}
float exact_tanh(float x) {
    float e = exp2_negative(abs(x) * (-2.0 * LOG2E));
    float large = (1.0 - e) / (1.0 + e);
    return mix(x < 0.0 ? -large : large, tanh_near_zero(x), abs(x) < TANH_NEAR);
}
// A product q k becomes a score: scale, softcap, ALiBi, in this order.
float shape_score(float product, float slope, int distance) {
    if (SHAPED == 0u)
        return product;
    float score = product * uintBitsToFloat(SCALE);
    if (SOFTCAP != 0u)
        score = uintBitsToFloat(SOFTCAP) * exact_tanh(score / uintBitsToFloat(SOFTCAP));
    return ALIBI != 0u ? score - slope * float(abs(distance)) : score;
}
float alibi_slope(uint head) {
    return ALIBI != 0u ? param(VKMQA_PARAM_SLOPES(NUM_HEADS_Q, NUM_HEADS_KV) + head) : 0.0;
}

// A row's result: out = o * factor / divisor, with its lse. m and l are maximum and sum of its weights.
struct Norm {
    float factor;
    float divisor;
    uint lseBits;
};
Norm normalise(float m, float l, uint head, bool addSinks) {
    float top = m * score_unit();
    Norm norm = Norm(1.0, l == 0.0 ? 1.0 : l, MINUS_INFINITY_BITS);
    bool sinks = SINKS != 0u && addSinks;
    float sink = sinks ? param(VKMQA_PARAM_SINKS(NUM_HEADS_Q, NUM_HEADS_KV) + head) : 0.0;
    if (l == 0.0) { // no token: o is 0
        norm.lseBits = sinks ? floatBitsToUint(sink) : MINUS_INFINITY_BITS;
        return norm;
    }
    if (sinks) {
        float higher = max(top, sink * LOG2E);
        norm.factor = exp2_negative(top - higher);
        norm.divisor = l * norm.factor + exp2_negative(sink * LOG2E - higher);
        top = higher;
    }
    norm.lseBits = is_nan(norm.divisor) ? 0x7FC00000u
                                        : floatBitsToUint((top + log2(norm.divisor)) * LN2);
    return norm;
}

// What all attention kernels do with their push constants `pc`: reading the step metadata, which needs
// BUFFER(step), and turning scores into weights.
int step_int(uint word, uint index) {
    return int(load4_step(add_offset(pc.step, (word + index) * 4u)));
}
// Splits that hold tokens of a sequence of so many; one of none has an empty one.
uint active_splits(uint tokens) {
    return max((tokens + pc.splitTokens - 1u) / pc.splitTokens, 1u);
}
uint query_start(uint b) { return uint(clamp(step_int(pc.cuSeqlensQ, b), 0, int(pc.totalQ))); }

// Maxima and differences are of raw scores q k (of -q k where the scale is negative): a difference is
// exact where it matters, so that the weight's error does not grow with the scores.
float score_sign() { return pc.scaleLog2 < 0.0 ? -1.0 : 1.0; }
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
float softmax_weight(float difference) {
    return exp2_negative(difference * abs(pc.scaleLog2));
}

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
float softmax_weight(float difference) { return exp2(difference * abs(pc.scaleLog2)); }

// Reading the step metadata. Needs the push constants as `pc` and BUFFER(step).
int step_int(uint word, uint index) {
    return int(load4_step(add_offset(pc.step, (word + index) * 4u)));
}
uint query_start(uint b) { return uint(clamp(step_int(pc.cuSeqlensQ, b), 0, int(pc.totalQ))); }

// Rotary position embedding (Su et al., arXiv 2104.09864): a pair of elements turns by position * frequency.
// The angle is counted in turns, in 64-bit fixed point, where the product with a position is exact and whole
// turns fall off by themselves: far positions turn as precisely as near ones, and no driver's sin or cos,
// which may be as coarse as 2^-11, takes part.

// A turn is 2^32: the high word of position * turns modulo 2^64. turns: {low, high} per position.
uint rope_phase(int position, uvec2 turns) {
    uint high, low;
    umulExtended(uint(position), turns.x, high, low);
    high += uint(position) * turns.y;
    return position < 0 ? high - turns.x : high; // uint(position) is 2^32 too many
}

// sin and cos of a phase: the nearest quarter turn, and what remains, in [-pi/4, pi/4], by polynomials that
// interpolate at Chebyshev nodes (errors below 3e-9).
vec2 rope_sin_cos(uint phase) {
    uint quadrant = (phase + (1u << 29)) >> 30;
    float x = float(int(phase - (quadrant << 30))) * 1.46291807926715968e-9; // 2 pi / 2^32
    float z = x * x;
    float s = x + x * z *
                      (-1.666666666e-01 +
                       z * (8.333331870e-03 + z * (-1.984008437e-04 + z * 2.724961934e-06)));
    float c = 1.0 + z * (-4.999999997e-01 +
                         z * (4.166665060e-02 + z * (-1.388758657e-03 + z * 2.446345270e-05)));
    vec2 turned = (quadrant & 1u) != 0u ? vec2(c, -s) : vec2(s, c);
    return (quadrant & 2u) != 0u ? -turned : turned;
}

vec2 rope_rotate(vec2 pair, int position, uvec2 turns, float magnitude) {
    vec2 sinCos = rope_sin_cos(rope_phase(position, turns)) * magnitude;
    return vec2(pair.x * sinCos.y - pair.y * sinCos.x, pair.x * sinCos.x + pair.y * sinCos.y);
}

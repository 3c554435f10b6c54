#version 450
// The arithmetic roof: twelve independent chains of f32 multiply-adds, no memory.
// SPDX-License-Identifier: MIT
layout(local_size_x_id = 0) in;
layout(binding = 0, std430) writeonly buffer Target { float target[]; };
layout(push_constant) uniform Push { uint turns; float factor; float summand; };

void main() {
    float x = float(gl_LocalInvocationIndex) * 0.001;
    float a = x, b = x + 0.1, c = x + 0.2, d = x + 0.3, e = x + 0.4;
    float f = x + 0.5, g = x + 0.6, h = x + 0.7, i = x + 0.8, j = x + 0.9;
    float k = x + 1.0, l = x + 1.1;
#define STEP(v) v = v * factor + summand;
#define ROUND                                                                                      \
    STEP(a) STEP(b) STEP(c) STEP(d) STEP(e) STEP(f) STEP(g) STEP(h) STEP(i) STEP(j) STEP(k) STEP(l)
    for (uint turn = 0u; turn < turns; turn++) {
        ROUND ROUND ROUND ROUND ROUND ROUND ROUND ROUND
    }
    float sum = ((a + b) + (c + d)) + ((e + f) + (g + h)) + ((i + j) + (k + l));
    if (sum == 12345.678) // keeps the work alive
        target[0] = sum;
}

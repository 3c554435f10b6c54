#version 460
// The softmax weights of one query row, without a second softmax: exp(score - lse), lse being attention's own. A column
// of the picture shows the largest weight of its tokens.
#extension GL_GOOGLE_include_directive : require
#include "view.glsl"

void main() {
    uint column = gl_GlobalInvocationID.x;
    if (column >= width)
        return;
    uint kvHead = head / (heads / headsKv);
    uint first = uint(float(column) * float(tokens) / float(width));
    uint last = max(uint(float(column + 1u) * float(tokens) / float(width)), first + 1u);
    float most = 0.0;
    for (uint token = first; token < min(last, tokens); ++token) {
        float score = 0.0;
        for (uint pair = 0u; pair < dim / 2u; ++pair) {
            vec2 key = unpackHalf2x16(k[(kvHead * maxTokens + token) * (dim / 2u) + pair]);
            uint at = (row * heads + head) * dim + pair * 2u;
            score += key.x * q[at] + key.y * q[at + 1u];
        }
        most = max(most, exp(score * inversesqrt(float(dim)) - lse[row * heads + head]));
    }
    heat[head * width + column] = most;
}

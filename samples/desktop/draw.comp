#version 460
// The heat map, a band for each head, and below it the time of each frame as a bar, the newest at the right.
#extension GL_GOOGLE_include_directive : require
#include "view.glsl"

vec3 warm(float t) { return clamp(vec3(t * 2.0, t * 2.0 - 0.7, t * 4.0 - 3.0), 0.0, 1.0); }

void main() {
    uint x = gl_GlobalInvocationID.x, y = gl_GlobalInvocationID.y;
    if (x >= width || y >= heatHeight + graphHeight)
        return;
    vec3 colour;
    if (y < heatHeight) {
        uint band = y * heads / heatHeight;
        // 0 for a weight that all tokens share alike, 1 for one of them that has it all.
        float t = log2(max(heat[band * width + x] * float(tokens), 1.0)) / log2(float(tokens));
        colour = warm(t);
    } else {
        float milliseconds = times[(newest + 1u + x) % width];
        float height = float(heatHeight + graphHeight - y);
        const float perPixel = 1.0;
        bool target = abs(height * perPixel - 16.7) < 0.5 * perPixel;
        colour = height * perPixel <= milliseconds ? vec3(0.3, 0.8, 0.4) : vec3(0.08);
        colour = target ? vec3(0.6) : colour;
    }
    imageStore(canvas, ivec2(x, y), vec4(colour, 1.0));
}

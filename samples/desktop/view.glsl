// Bindings and push constants of both shaders; view.c fills them.
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) readonly buffer Q { float q[]; };     // [TOKENS, heads, dim]
layout(set = 0, binding = 1) readonly buffer K { uint k[]; };      // f16 pairs, [headsKv, maxTokens, dim]
layout(set = 0, binding = 2) readonly buffer Lse { float lse[]; }; // [TOKENS, heads]
layout(set = 0, binding = 3) buffer Heat { float heat[]; };        // [heads, width]
layout(set = 0, binding = 4) readonly buffer Times { float times[]; };
layout(set = 0, binding = 5, rgba8) writeonly uniform image2D canvas;
layout(push_constant) uniform Push {
    uint heads, headsKv, dim, tokens, maxTokens;
    uint row;   // query token that is shown
    uint head;  // of weights.comp
    uint width; // columns of the heat map, and of the graph
    uint heatHeight, graphHeight;
    uint newest; // of times
};

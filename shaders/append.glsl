// What append kernels share: from a new token to its place in the cache. Needs the push constants as `pc` and
// BUFFER(step, params).
#include "params.glsl"

// A slot that is not `given` is -1 or out of range; its page is clamped into the cache, because drivers may
// go on loading behind a return.
struct NewSlot {
    uint page;
    uint token; // of the page
    bool given;
};
// `report`: true in one invocation of all that look at this token.
NewSlot new_slot(uint token, bool report) {
    int slot = int(load4_step(add_offset(pc.step, (pc.slotMapping + token) * 4u)));
    uint page = uint(slot) / pc.pageTokens;
    bool given = slot >= 0 && page < pc.numPages;
    if (report && !given && slot != -1 && pc.status != VKMQA_ABSENT)
        or4_step(add_offset(pc.step, pc.status * 4u), VKMQA_BAD_SLOT);
    return NewSlot(min(page, pc.numPages - 1u), uint(slot) % pc.pageTokens, given);
}

// Strides in elements of `type`.
uvec2 tensor_row(uvec2 base, uint token, uint head, uint tokenStride, uint headStride, uint type) {
    uint bytes = element_bytes(type);
    return add_offset(add_product(base, token, tokenStride * bytes), head * headStride * bytes);
}
uvec2 slot_row(uvec2 base, NewSlot slot, uint head, uint dim, uint type) {
    uint rowBytes = row_bytes(dim, type), plane = slot.page * NUM_HEADS_KV + head;
    return add_offset(add_product(base, plane, pc.pageTokens * rowBytes), slot.token * rowBytes);
}
// The scales of the row's blocks, in the plane behind all rows.
uvec2 slot_scales(uvec2 base, NewSlot slot, uint head, uint dim, uint type) {
    uint scaleBytes = scale_bytes(dim), plane = slot.page * NUM_HEADS_KV + head;
    base = add_product(base, pc.numPages * NUM_HEADS_KV, pc.pageTokens * row_bytes(dim, type));
    return add_offset(add_product(base, plane, pc.pageTokens * scaleBytes), slot.token * scaleBytes);
}

// What fp8 values are multiplied by before they are stored.
float k_inverse_scale(uint head) {
    return K_TYPE == VKMQA_FP8 ? param(VKMQA_PARAM_K_SCALES(NUM_HEADS_Q, NUM_HEADS_KV) + 2u * head + 1u)
                               : 1.0;
}
float v_inverse_scale(uint head) {
    return V_TYPE == VKMQA_FP8 ? param(VKMQA_PARAM_V_SCALES(NUM_HEADS_Q, NUM_HEADS_KV) + 2u * head + 1u)
                               : 1.0;
}

// The parameters buffer, which needs BUFFER(params) and the push constants as `pc`.
uint param_bits(uint word) { return load4_params(add_offset(pc.params, word * 4u)); }
float param(uint word) { return uintBitsToFloat(param_bits(word)); }
// What a KV head's stored fp8 values are multiplied by; 1 for every other type.
float k_scale(uint kvHead) {
    return K_TYPE == VKMQA_FP8 ? param(VKMQA_PARAM_K_SCALES(NUM_HEADS_Q, NUM_HEADS_KV) + 2u * kvHead) : 1.0;
}
float v_scale(uint kvHead) {
    if (V_TYPE != VKMQA_FP8)
        return 1.0;
    return V_PREFIX != 0u ? k_scale(kvHead)
                          : param(VKMQA_PARAM_V_SCALES(NUM_HEADS_Q, NUM_HEADS_KV) + 2u * kvHead);
}

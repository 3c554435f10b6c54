// The parameters buffer: a layer's constants, as kernels want them (VKMQA_PARAM_* in shaders/shared.h).
// SPDX-License-Identifier: MIT
#include "context.h"

#include <float.h>
#include <math.h>
#include <string.h>

// Words from the buffer's start to its rope pairs, which are the last: one for every two elements of a row,
// whatever ropeDim, so that the layout depends on the heads and headDimQk alone.
static uint64_t rope_word(const struct VkmqaShape* shape) {
    return VKMQA_PARAM_ROPE((uint64_t)shape->numHeadsQ, (uint64_t)shape->numHeadsKv);
}

uint64_t vkmqa_parameter_bytes(const struct VkmqaShape* shape) {
    if (!shape->sinks && !shape->alibi && !vkmqa_has_fp8(shape) && shape->ropeStyle == VKMQA_ROPE_NONE)
        return 0;
    return ((rope_word(shape) + shape->headDimQk) * 4 + 15) & ~(uint64_t)15;
}

VkResult vkmqaGetParametersRequirements(VkmqaAttention attention,
                                        VkmqaBufferRequirements* requirements) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!requirements)
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaGetParametersRequirements: requirements is null; give a place for them");
    *requirements = (VkmqaBufferRequirements){
        .size = vkmqa_parameter_bytes(&attention->shape),
        .alignment = 16,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                 (attention->choice.bind ? 0 : VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT),
    };
    return VK_SUCCESS;
}

// ---- turns -----------------------------------------------------------------------------------

// 2^64 x modulo 2^64, to the nearest integer.
static uint64_t to_fixed(double x) {
    if (x < 0)
        return 0 - to_fixed(-x);
    return (uint64_t)floor(ldexp(x - floor(x), 64) + 0.5); // adds nothing from 2^53 on
}

// Turns per position, in fixed point. The division by 2 pi is done in two doubles: one alone would be off by
// up to 1e-16 of the angle, and positions multiply that by 2^31.
static uint64_t to_turns(double frequency) {
    const double inverse = 0.15915494309189535, rest = -9.839338337591243e-18; // 1 / (2 pi)
    double turns = frequency * inverse;
    return to_fixed(turns) + to_fixed(fma(frequency, inverse, -turns) + frequency * rest);
}

static double rope_frequency(const struct VkmqaShape* shape, const VkmqaParametersInfo* info,
                             uint32_t pair) {
    if (info->ropeFrequencies)
        return info->ropeFrequencies[pair];
    double theta = info->ropeTheta != 0 ? info->ropeTheta : 10000;
    return pow(theta, -2.0 * pair / shape->ropeDim);
}

// ---- checks ----------------------------------------------------------------------------------

static bool check_finite(const char* field, const float* values, uint32_t count, const char* flag,
                         struct VkmqaProblem* problem) {
    if (!values) {
        vkmqa_problem(problem, "info.%s is null; an object with %s needs one for each of %u query heads",
                      field, flag, count);
        return false;
    }
    for (uint32_t i = 0; i < count; ++i)
        if (!(fabsf(values[i]) <= 1e30f)) { // times log2(e), or a distance, it stays finite
            vkmqa_problem(problem, "info.%s[%u] is %g; use a number from -1e30 to 1e30", field, i,
                          values[i]);
            return false;
        }
    return true;
}

// Kernels multiply by the scale and by its inverse, and may flush denormals.
static bool check_scales(const char* field, const float* scales, uint32_t count,
                         struct VkmqaProblem* problem) {
    for (uint32_t i = 0; scales && i < count; ++i)
        if (!(scales[i] >= FLT_MIN && scales[i] <= 1 / FLT_MIN)) {
            vkmqa_problem(problem, "info.%s[%u] is %g; use a positive scale from 2^-126 to 2^126, so that "
                                   "its inverse is one too", field, i, scales[i]);
            return false;
        }
    return true;
}

static bool check_rope(const struct VkmqaShape* shape, const VkmqaParametersInfo* info,
                       struct VkmqaProblem* problem) {
    if (!isfinite(info->ropeMagnitude)) {
        vkmqa_problem(problem, "info.ropeMagnitude is %g; use a finite factor, or 0 for 1",
                      info->ropeMagnitude);
        return false;
    }
    if (!info->ropeFrequencies) {
        if (info->ropeTheta == 0 || (isfinite(info->ropeTheta) && info->ropeTheta > 1))
            return true;
        vkmqa_problem(problem, "info.ropeTheta is %g; use a finite number above 1, or 0 for 10000",
                      info->ropeTheta);
        return false;
    }
    for (uint32_t i = 0; i < shape->ropeDim / 2; ++i)
        if (!isfinite(info->ropeFrequencies[i])) {
            vkmqa_problem(problem, "info.ropeFrequencies[%u] is %g; use a finite number of radians per "
                                   "position", i, info->ropeFrequencies[i]);
            return false;
        }
    return true;
}

static bool is_k_scaled(const struct VkmqaShape* shape) { return shape->kType == VKMQA_TYPE_FP8_E4M3; }
static bool is_v_scaled(const struct VkmqaShape* shape) {
    return shape->vType == VKMQA_TYPE_FP8_E4M3 && !shape->vPrefix;
}

static bool check_parameters(const struct VkmqaShape* shape, const VkmqaParametersInfo* info,
                             size_t size, const void* data, struct VkmqaProblem* problem) {
    uint64_t bytes = vkmqa_parameter_bytes(shape);
    if (bytes && !data) {
        vkmqa_problem(problem, "data is null; give memory for %llu bytes", (unsigned long long)bytes);
        return false;
    }
    if (size < bytes) {
        vkmqa_problem(problem, "size is %llu; give the %llu bytes of vkmqaGetParametersRequirements",
                      (unsigned long long)size, (unsigned long long)bytes);
        return false;
    }
    return (!shape->sinks || check_finite("sinks", info->sinks, shape->numHeadsQ,
                                          "VKMQA_ATTENTION_SINKS_BIT", problem)) &&
           (!shape->alibi || check_finite("alibiSlopes", info->alibiSlopes, shape->numHeadsQ,
                                          "VKMQA_ATTENTION_ALIBI_BIT", problem)) &&
           (!is_k_scaled(shape) ||
            check_scales("kScales", info->kScales, shape->numHeadsKv, problem)) &&
           (!is_v_scaled(shape) ||
            check_scales("vScales", info->vScales, shape->numHeadsKv, problem)) &&
           (shape->ropeStyle == VKMQA_ROPE_NONE || check_rope(shape, info, problem));
}

// ---- writing ---------------------------------------------------------------------------------

// `data` may be any mapped memory: words go there in ascending order and are never read back.
struct Writer {
    unsigned char* data;
};
static void put(struct Writer* writer, const void* bytes, size_t count) {
    memcpy(writer->data, bytes, count);
    writer->data += count;
}
static void put_floats(struct Writer* writer, const float* values, uint32_t count) {
    const float zero = 0;
    for (uint32_t i = 0; i < count; ++i)
        put(writer, values ? &values[i] : &zero, sizeof zero);
}
static void put_scales(struct Writer* writer, const float* scales, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
        float scale = scales ? scales[i] : 1;
        put_floats(writer, (float[]){scale, 1 / scale}, 2);
    }
}

VkResult vkmqaWriteParameters(VkmqaAttention attention, const VkmqaParametersInfo* given, size_t size,
                              void* data) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaShape* shape = &attention->shape;
    VkmqaParametersInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem) ||
        !check_parameters(shape, &info, size, data, &problem))
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT, "vkmqaWriteParameters: %s",
                          problem.text);
    uint64_t bytes = vkmqa_parameter_bytes(shape);
    if (bytes == 0)
        return VK_SUCCESS;
    bool rope = shape->ropeStyle != VKMQA_ROPE_NONE;
    struct Writer writer = {data};
    put_floats(&writer, shape->sinks ? info.sinks : NULL, shape->numHeadsQ);
    put_floats(&writer, shape->alibi ? info.alibiSlopes : NULL, shape->numHeadsQ);
    put_scales(&writer, is_k_scaled(shape) ? info.kScales : NULL, shape->numHeadsKv);
    put_scales(&writer, is_v_scaled(shape) ? info.vScales : NULL, shape->numHeadsKv);
    float magnitude = rope && info.ropeMagnitude != 0 ? info.ropeMagnitude : 1;
    put_floats(&writer, (float[]){magnitude, 0}, 2);
    for (uint32_t i = 0; rope && i < shape->ropeDim / 2; ++i) {
        uint64_t turns = to_turns(rope_frequency(shape, &info, i));
        put(&writer, (uint32_t[]){(uint32_t)turns, (uint32_t)(turns >> 32)}, 8);
    }
    put_floats(&writer, NULL, (uint32_t)(((unsigned char*)data + bytes - writer.data) / 4));
    return VK_SUCCESS;
}

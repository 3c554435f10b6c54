// A model's shape, checked once at creation; sizes with checked arithmetic. Pure C.
// SPDX-License-Identifier: MIT
#include "internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

void vkmqa_problem_list(struct VkmqaProblem* problem, const char* format, va_list arguments) {
    vsnprintf(problem->text, sizeof problem->text, format, arguments);
}

void vkmqa_problem(struct VkmqaProblem* problem, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vkmqa_problem_list(problem, format, arguments);
    va_end(arguments);
}

uint32_t vkmqa_type_size(VkmqaType type) { return type == VKMQA_TYPE_F16 ? 2 : 4; }

const char* vkmqa_type_name(VkmqaType type) {
    return type == VKMQA_TYPE_F16 ? "f16" : type == VKMQA_TYPE_F32 ? "f32" : "unknown";
}

uint32_t vkmqa_row_bytes(uint32_t headDim, VkmqaType type) {
    return (headDim * vkmqa_type_size(type) + 15u) & ~15u;
}

bool vkmqa_multiply(uint64_t a, uint64_t b, uint64_t* result) {
    if (a != 0 && b > UINT64_MAX / a)
        return false;
    *result = a * b;
    return true;
}

static bool choose_type(const char* field, VkmqaType given, VkmqaType fallback, VkmqaType* type,
                        struct VkmqaProblem* problem) {
    *type = given == VKMQA_TYPE_DEFAULT ? fallback : given;
    if (*type == VKMQA_TYPE_F32 || *type == VKMQA_TYPE_F16)
        return true;
    vkmqa_problem(problem, "%s is %d; use VKMQA_TYPE_F32 or VKMQA_TYPE_F16", field, (int)given);
    return false;
}

static bool check_dim(const char* field, uint32_t value, struct VkmqaProblem* problem) {
    if (value >= 8 && value <= VKMQA_MAX_HEAD_DIM && value % 8 == 0)
        return true;
    vkmqa_problem(problem, "%s is %u; use a multiple of 8 from 8 to %d", field, value,
                  VKMQA_MAX_HEAD_DIM);
    return false;
}

static bool is_power_of_two(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

static uint32_t log2_of(uint32_t powerOfTwo) {
    uint32_t shift = 0;
    while (powerOfTwo >> (shift + 1))
        ++shift;
    return shift;
}

bool vkmqa_make_shape(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                      struct VkmqaProblem* problem) {
    *shape = (struct VkmqaShape){0};
    const VkmqaAttentionFlags known = VKMQA_ATTENTION_CAUSAL_BIT;
    if (info->flags & ~known) {
        vkmqa_problem(problem, "flags is 0x%x; this version knows 0x%x", info->flags, known);
        return false;
    }
    shape->causal = info->flags & VKMQA_ATTENTION_CAUSAL_BIT;
    if (info->numHeadsKv == 0) {
        vkmqa_problem(problem, "numHeadsKv is 0; use at least 1");
        return false;
    }
    if (info->numHeadsQ == 0 || info->numHeadsQ % info->numHeadsKv != 0) {
        vkmqa_problem(problem, "numHeadsQ is %u; use a multiple of numHeadsKv, which is %u",
                      info->numHeadsQ, info->numHeadsKv);
        return false;
    }
    shape->ratio = info->numHeadsQ / info->numHeadsKv;
    if (shape->ratio > VKMQA_MAX_RATIO) {
        vkmqa_problem(problem, "numHeadsQ is %u times numHeadsKv; use at most %d times",
                      shape->ratio, VKMQA_MAX_RATIO);
        return false;
    }
    if (info->numHeadsQ > 65536) {
        vkmqa_problem(problem, "numHeadsQ is %u; use at most 65536", info->numHeadsQ);
        return false;
    }
    shape->numHeadsQ = info->numHeadsQ;
    shape->numHeadsKv = info->numHeadsKv;
    shape->headDimQk = info->headDimQk;
    shape->headDimV = info->headDimV ? info->headDimV : info->headDimQk;
    if (!check_dim("headDimQk", shape->headDimQk, problem) ||
        !check_dim("headDimV", shape->headDimV, problem))
        return false;
    if (!choose_type("ioType", info->ioType, VKMQA_TYPE_F16, &shape->ioType, problem) ||
        !choose_type("newType", info->newType, shape->ioType, &shape->newType, problem) ||
        !choose_type("kType", info->kType, VKMQA_TYPE_F16, &shape->kType, problem) ||
        !choose_type("vType", info->vType, shape->kType, &shape->vType, problem))
        return false;
    if (info->pageSize != 0) {
        if (!is_power_of_two(info->pageSize) || info->pageSize > VKMQA_MAX_PAGE_SIZE) {
            vkmqa_problem(problem, "pageSize is %u; use a power of two from 1 to %d, or 0 for a "
                                   "contiguous cache", info->pageSize, VKMQA_MAX_PAGE_SIZE);
            return false;
        }
        shape->maxSeqLenKv = info->maxSeqLenKv ? info->maxSeqLenKv : 1u << 20;
        shape->pageTokens = info->pageSize;
        shape->pageShift = log2_of(info->pageSize);
    } else {
        if (info->maxSeqLenKv == 0) {
            vkmqa_problem(problem, "maxSeqLenKv is 0; a contiguous cache (pageSize 0) needs the "
                                   "tokens of its longest sequence");
            return false;
        }
        shape->maxSeqLenKv = info->maxSeqLenKv;
        shape->pageTokens = info->maxSeqLenKv;
        shape->pageShift = VKMQA_CONTIGUOUS;
    }
    // Kernels step through one head's tokens of a page with 32-bit byte offsets, and positions are int32.
    uint64_t widest = vkmqa_row_bytes(shape->headDimQk, shape->kType);
    if (vkmqa_row_bytes(shape->headDimV, shape->vType) > widest)
        widest = vkmqa_row_bytes(shape->headDimV, shape->vType);
    if (shape->maxSeqLenKv > INT32_MAX / 2 || shape->pageTokens * widest > UINT32_MAX) {
        vkmqa_problem(problem, "maxSeqLenKv is %u; use at most %llu for rows of %llu bytes",
                      shape->maxSeqLenKv,
                      (unsigned long long)(UINT32_MAX / widest < INT32_MAX / 2
                                               ? UINT32_MAX / widest : INT32_MAX / 2),
                      (unsigned long long)widest);
        return false;
    }
    if (info->splitSize != 0 &&
        (!is_power_of_two(info->splitSize) || info->splitSize < 64 || info->splitSize > 1u << 30)) {
        vkmqa_problem(problem, "splitSize is %u; use a power of two from 64, or 0 for the default",
                      info->splitSize);
        return false;
    }
    shape->splitSize = info->splitSize;
    if (!isfinite(info->scale)) {
        vkmqa_problem(problem, "scale is not finite; use a finite factor, or 0 for "
                               "1 / sqrt(headDimQk)");
        return false;
    }
    shape->scale = info->scale != 0 ? info->scale : 1.0f / sqrtf((float)shape->headDimQk);
    if ((uint32_t)info->tier > VKMQA_TIER_CPU) {
        vkmqa_problem(problem, "tier is %d; use a VkmqaTier", (int)info->tier);
        return false;
    }
    shape->tier = info->tier;
    shape->avoidKernels = info->avoidKernels;
    return true;
}

bool vkmqa_make_limits(const struct VkmqaShape* shape, const VkmqaStepLimits* given,
                       VkmqaStepLimits* limits, struct VkmqaProblem* problem) {
    *limits = *given;
    if (limits->batch == 0 || limits->batch > 1u << 20) {
        vkmqa_problem(problem, "limits.batch is %u; use the number of sequences, 1 to %u",
                      limits->batch, 1u << 20);
        return false;
    }
    if (limits->totalQ == 0 || limits->totalQ > INT32_MAX / shape->numHeadsQ / 2) {
        vkmqa_problem(problem, "limits.totalQ is %u; use the query tokens of all sequences, 1 to %u",
                      limits->totalQ, INT32_MAX / shape->numHeadsQ / 2);
        return false;
    }
    if (limits->maxSeqLenQ == 0)
        limits->maxSeqLenQ = limits->totalQ;
    if (limits->maxSeqLenQ > limits->totalQ) {
        vkmqa_problem(problem, "limits.maxSeqLenQ is %u; use at most limits.totalQ, which is %u",
                      limits->maxSeqLenQ, limits->totalQ);
        return false;
    }
    if (limits->maxSeqLenKv == 0)
        limits->maxSeqLenKv = shape->maxSeqLenKv;
    if (limits->maxSeqLenKv > shape->maxSeqLenKv) {
        vkmqa_problem(problem, "limits.maxSeqLenKv is %u; the attention object was created with %u",
                      limits->maxSeqLenKv, shape->maxSeqLenKv);
        return false;
    }
    if (limits->newTokens == 0)
        limits->newTokens = limits->totalQ;
    if (limits->newTokens > 1u << 30) {
        vkmqa_problem(problem, "limits.newTokens is %u; use at most %u", limits->newTokens, 1u << 30);
        return false;
    }
    return true;
}

bool vkmqa_cache_bytes(const struct VkmqaShape* shape, uint32_t numPages, uint64_t* k, uint64_t* v,
                       struct VkmqaProblem* problem) {
    // Slots are int32, and planes (page * numHeadsKv + head) 32 bits wide.
    if (numPages == 0 || (uint64_t)numPages * shape->pageTokens > INT32_MAX ||
        (uint64_t)numPages * shape->numHeadsKv > UINT32_MAX) {
        uint32_t most = INT32_MAX / shape->pageTokens;
        if (UINT32_MAX / shape->numHeadsKv < most)
            most = UINT32_MAX / shape->numHeadsKv;
        vkmqa_problem(problem, "numPages is %u; use 1 to %u with pages of %u tokens and %u KV heads",
                      numPages, most, shape->pageTokens, shape->numHeadsKv);
        return false;
    }
    uint64_t rows = (uint64_t)numPages * shape->pageTokens;
    if (!vkmqa_multiply(rows, shape->numHeadsKv, &rows) ||
        !vkmqa_multiply(rows, vkmqa_row_bytes(shape->headDimQk, shape->kType), k) ||
        !vkmqa_multiply(rows, vkmqa_row_bytes(shape->headDimV, shape->vType), v)) {
        vkmqa_problem(problem, "numPages is %u; the cache would not fit 64-bit sizes", numPages);
        return false;
    }
    return true;
}

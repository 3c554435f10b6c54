// A model's shape, checked once at creation; sizes with checked arithmetic. Pure C.
// SPDX-License-Identifier: MIT
#include "internal.h"

#include <math.h>

bool vkmqa_multiply(uint64_t a, uint64_t b, uint64_t* result) {
    if (a != 0 && b > UINT64_MAX / a)
        return false;
    *result = a * b;
    return true;
}

static bool choose_type(const char* field, VkmqaType given, VkmqaType fallback, bool io,
                        VkmqaType* type, struct VkmqaProblem* problem) {
    *type = given == VKMQA_TYPE_DEFAULT ? fallback : given;
    if (vkmqa_is_type(*type, io))
        return true;
    vkmqa_problem(problem, "%s is %s (%d); use VKMQA_TYPE_F32, F16%s", field, vkmqa_type_name(given),
                  (int)given, io ? " or BF16" : ", BF16, FP8_E4M3, Q8_0 or Q4_0");
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

bool vkmqa_has_fp8(const struct VkmqaShape* shape) {
    return shape->kType == VKMQA_TYPE_FP8_E4M3 || shape->vType == VKMQA_TYPE_FP8_E4M3;
}

// Which positions a query sees, and what becomes of its scores. Distances are bounded by 2^30 - 1, as
// positions are, so that sums of them fit 32 bits.
static bool read_visibility(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                            struct VkmqaProblem* problem) {
    const uint32_t most = (1u << 30) - 1;
    const VkmqaAttentionFlags masks = VKMQA_ATTENTION_MASK_BIT | VKMQA_ATTENTION_TREE_MASK_BIT;
    shape->windowLeft = shape->windowRight = VKMQA_UNBOUNDED;
    if (info->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT)
        shape->windowLeft = info->windowLeft < most ? info->windowLeft : most;
    if (info->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT)
        shape->windowRight = info->windowRight < most ? info->windowRight : most;
    if (info->flags & VKMQA_ATTENTION_CAUSAL_BIT)
        shape->windowRight = 0;
    shape->chunk = info->chunkSize < most ? info->chunkSize : most;
    if ((info->flags & masks) == masks) {
        vkmqa_problem(problem, "flags has MASK and TREE_MASK; use one of them");
        return false;
    }
    shape->maskKind = info->flags & VKMQA_ATTENTION_MASK_BIT        ? VKMQA_MASK_FULL
                      : info->flags & VKMQA_ATTENTION_TREE_MASK_BIT ? VKMQA_MASK_TREE
                                                                    : VKMQA_MASK_NONE;
    shape->alibi = info->flags & VKMQA_ATTENTION_ALIBI_BIT;
    shape->sinks = info->flags & VKMQA_ATTENTION_SINKS_BIT;
    if (!isfinite(info->softcap) || info->softcap < 0) {
        vkmqa_problem(problem, "softcap is %g; use a positive number, or 0 for none", info->softcap);
        return false;
    }
    shape->softcap = info->softcap;
    if (!isfinite(info->scale)) {
        vkmqa_problem(problem, "scale is not finite; use a finite factor, or 0 for "
                               "1 / sqrt(headDimQk)");
        return false;
    }
    shape->scale = info->scale != 0 ? info->scale : 1.0f / sqrtf((float)shape->headDimQk);
    return true;
}

// What append does to K and q.
static bool read_rotation(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                          struct VkmqaProblem* problem) {
    shape->hadamard = 1;
    if (info->flags & VKMQA_ATTENTION_HADAMARD_BIT) {
        if (shape->vPrefix) {
            vkmqa_problem(problem, "flags has HADAMARD and V_PREFIX_OF_K; V would come out rotated: use "
                                   "one of them");
            return false;
        }
        shape->hadamard = shape->headDimQk & (0u - shape->headDimQk);
    }
    if ((uint32_t)info->ropeStyle > VKMQA_ROPE_INTERLEAVED) {
        vkmqa_problem(problem, "ropeStyle is %d; use a VkmqaRopeStyle", (int)info->ropeStyle);
        return false;
    }
    if (info->ropeStyle == VKMQA_ROPE_NONE) {
        if (info->ropeDim || info->ropeOffset)
            vkmqa_problem(problem, "%s is %u without a ropeStyle; name one, or use 0",
                          info->ropeDim ? "ropeDim" : "ropeOffset",
                          info->ropeDim ? info->ropeDim : info->ropeOffset);
        return !info->ropeDim && !info->ropeOffset;
    }
    shape->ropeStyle = info->ropeStyle;
    shape->ropeOffset = info->ropeOffset;
    if (info->ropeOffset % 2 || info->ropeOffset >= shape->headDimQk) {
        vkmqa_problem(problem, "ropeOffset is %u; use an even number below headDimQk, which is %u",
                      info->ropeOffset, shape->headDimQk);
        return false;
    }
    uint32_t rest = shape->headDimQk - info->ropeOffset;
    shape->ropeDim = info->ropeDim ? info->ropeDim : rest;
    if (shape->ropeDim % 2 || shape->ropeDim > rest) {
        vkmqa_problem(problem, "ropeDim is %u; use an even number up to %u, the elements from ropeOffset on",
                      shape->ropeDim, rest);
        return false;
    }
    return true;
}

bool vkmqa_make_shape(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                      struct VkmqaProblem* problem) {
    *shape = (struct VkmqaShape){0};
    const VkmqaAttentionFlags known = 2 * VKMQA_ATTENTION_BATCH_INVARIANT_BIT - 1;
    if (info->flags & ~known) {
        vkmqa_problem(problem, "flags is 0x%x; this version knows 0x%x", info->flags, known);
        return false;
    }
    shape->vPrefix = info->flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT;
    shape->invariant = info->flags & VKMQA_ATTENTION_BATCH_INVARIANT_BIT;
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
    if (!choose_type("ioType", info->ioType, VKMQA_TYPE_F16, true, &shape->ioType, problem) ||
        !choose_type("newType", info->newType, shape->ioType, true, &shape->newType, problem) ||
        !choose_type("kType", info->kType, VKMQA_TYPE_F16, false, &shape->kType, problem) ||
        !choose_type("vType", info->vType, shape->kType, false, &shape->vType, problem))
        return false;
    if (shape->vPrefix && shape->headDimV > shape->headDimQk) {
        vkmqa_problem(problem, "headDimV is %u with V_PREFIX_OF_K; use at most headDimQk, which is %u",
                      shape->headDimV, shape->headDimQk);
        return false;
    }
    if (shape->vPrefix && shape->vType != shape->kType) {
        vkmqa_problem(problem, "vType is %s with V_PREFIX_OF_K; leave it at its default, kType, which is %s",
                      vkmqa_type_name(shape->vType), vkmqa_type_name(shape->kType));
        return false;
    }
    if (!read_visibility(info, shape, problem) || !read_rotation(info, shape, problem))
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
    if ((uint32_t)info->tier > VKMQA_TIER_COOPMAT) {
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
    if (limits->batch == 0 || limits->batch > VKMQA_MAX_BATCH) {
        vkmqa_problem(problem, "limits.batch is %u; use the number of sequences, 1 to %d",
                      limits->batch, VKMQA_MAX_BATCH);
        return false;
    }
    if (limits->totalQ == 0 || limits->totalQ > vkmqa_most_queries(shape)) {
        vkmqa_problem(problem, "limits.totalQ is %u; use the query tokens of all sequences, 1 to %u",
                      limits->totalQ, vkmqa_most_queries(shape));
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

void vkmqa_bound_by_pages(const struct VkmqaShape* shape, const VkmqaStepLayout* layout,
                          VkmqaStepLimits* limits) {
    uint64_t tokens = (uint64_t)layout->maxPages * shape->pageTokens;
    if (shape->pageShift != VKMQA_CONTIGUOUS && tokens > 0 && tokens < limits->maxSeqLenKv)
        limits->maxSeqLenKv = (uint32_t)tokens;
}

// Tokens before a query's own position that it may see.
static uint32_t tokens_back(const struct VkmqaShape* shape) {
    uint32_t back = shape->windowLeft;
    return shape->chunk && shape->chunk - 1 < back ? shape->chunk - 1 : back;
}

static uint32_t bounded_sum(uint32_t a, uint32_t b, uint32_t most) {
    return a > most || b > most - a ? most : a + b;
}

uint32_t vkmqa_row_tokens(const struct VkmqaShape* shape, const VkmqaStepLimits* limits) {
    uint32_t tokens = bounded_sum(tokens_back(shape), shape->windowRight, limits->maxSeqLenKv);
    tokens = bounded_sum(tokens, 1, limits->maxSeqLenKv);
    return shape->chunk && shape->chunk < tokens ? shape->chunk : tokens;
}

uint32_t vkmqa_span_tokens(const struct VkmqaShape* shape, const VkmqaStepLimits* limits) {
    return bounded_sum(tokens_back(shape), limits->maxSeqLenQ, limits->maxSeqLenKv);
}

// Bytes of one layer's K or V: its rows, and all with the scales.
static bool plane_bytes(uint64_t rows, uint32_t dim, VkmqaType type, uint64_t* rowPlane, uint64_t* all) {
    uint64_t scales;
    if (!vkmqa_multiply(rows, vkmqa_row_bytes(dim, type), rowPlane) ||
        !vkmqa_multiply(rows, vkmqa_scale_bytes(dim, type), &scales) || *rowPlane > UINT64_MAX - scales)
        return false;
    *all = *rowPlane + scales;
    return true;
}

uint64_t vkmqa_token_bytes(const struct VkmqaShape* shape) {
    uint64_t k = vkmqa_row_bytes(shape->headDimQk, shape->kType) +
                 vkmqa_scale_bytes(shape->headDimQk, shape->kType);
    uint64_t v = vkmqa_row_bytes(shape->headDimV, shape->vType) +
                 vkmqa_scale_bytes(shape->headDimV, shape->vType);
    return (k + (shape->vPrefix ? 0 : v)) * shape->numHeadsKv;
}

bool vkmqa_cache_bytes(const struct VkmqaShape* shape, uint32_t numPages, struct VkmqaCacheBytes* bytes,
                       struct VkmqaProblem* problem) {
    *bytes = (struct VkmqaCacheBytes){0};
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
        !plane_bytes(rows, shape->headDimQk, shape->kType, &bytes->rowsK, &bytes->allK) ||
        (!shape->vPrefix &&
         !plane_bytes(rows, shape->headDimV, shape->vType, &bytes->rowsV, &bytes->allV))) {
        vkmqa_problem(problem, "numPages is %u; the cache would not fit 64-bit sizes", numPages);
        return false;
    }
    return true;
}

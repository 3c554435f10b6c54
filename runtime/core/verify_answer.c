// What the known-answer test expects, in float64. SPDX-License-Identifier: MIT
#include <math.h>
#include <string.h>

#include "codec.h"
#include "verify.h"

// ---- append ----------------------------------------------------------------------------------

// Rotary embedding with the default frequencies, then Hadamard, in place.
static void rotate(const struct VkmqaShape* shape, uint32_t position, double* row) {
    uint32_t half = shape->ropeDim / 2;
    for (uint32_t i = 0; i < half; ++i) {
        bool neox = shape->ropeStyle == VKMQA_ROPE_NEOX;
        double* a = row + shape->ropeOffset + (neox ? i : 2 * i);
        double* b = neox ? a + half : a + 1;
        double angle = position * pow(10000, -2.0 * i / shape->ropeDim), x = *a, y = *b;
        *a = x * cos(angle) - y * sin(angle);
        *b = x * sin(angle) + y * cos(angle);
    }
    for (uint32_t width = 1; width < shape->hadamard; width *= 2)
        for (uint32_t i = 0; i < shape->headDimQk; ++i) {
            double x = row[i], y = row[i ^ width];
            if (i & width)
                continue;
            row[i] = (x + y) / sqrt(2);
            row[i ^ width] = (x - y) / sqrt(2);
        }
}

// Error that storing a row may bring, relative to the row's largest magnitude.
static double storage_error(VkmqaType type) {
    switch (type) {
    case VKMQA_TYPE_F16: return 0x1p-10;
    case VKMQA_TYPE_BF16: return 0x1p-7;
    case VKMQA_TYPE_FP8_E4M3: return 0x1p-4 + 1e-3;
    case VKMQA_TYPE_Q8_0: return 0.5 / 127 + 2e-3;
    case VKMQA_TYPE_Q4_0: return 0.13; // a step is 1/8 of the largest value, whose negative it cannot hold
    default: return 4e-6;
    }
}

static bool row_is_right(const double* expected, const float* stored, uint32_t dim, VkmqaType type,
                         bool exact) {
    double largest = 0, error = storage_error(type);
    for (uint32_t e = 0; e < dim; ++e)
        largest = fmax(largest, fabs(expected[e]));
    for (uint32_t e = 0; e < dim; ++e)
        if (exact ? stored[e] != expected[e] : !(fabs(stored[e] - expected[e]) <= error * largest))
            return false;
    return true;
}

// The cached values of a token's row, as attention is to understand them.
static void read_cache(const struct VkmqaTrial* trial, const char* memory, bool isV, uint32_t b,
                       uint32_t t, uint32_t head, uint32_t dim, float* values) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    bool fromK = !isV || shape->vPrefix;
    VkmqaType type = fromK ? shape->kType : shape->vType;
    uint32_t whole = fromK ? shape->headDimQk : shape->headDimV;
    const char* cache = memory + (fromK ? trial->k : trial->v);
    uint64_t page = vkmqa_trial_page(trial, b, t / shape->pageTokens);
    uint64_t row = (page * shape->numHeadsKv + head) * shape->pageTokens + t % shape->pageTokens;
    uint32_t scaleBytes = vkmqa_scale_bytes(whole, type);
    uint64_t scales = fromK ? trial->cache.rowsK : trial->cache.rowsV;
    vkmqa_decode_row(type, cache + row * vkmqa_row_bytes(whole, type),
                     scaleBytes ? cache + scales + row * scaleBytes : NULL, dim, values);
    for (uint32_t e = 0; e < dim && type == VKMQA_TYPE_FP8_E4M3; ++e)
        values[e] *= vkmqa_trial_scale(!fromK, head);
}

static bool cache_is_right(const struct VkmqaTrial* trial, const char* memory, bool isV) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    uint32_t dim = isV ? shape->headDimV : shape->headDimQk, newToken = 0;
    VkmqaType type = isV ? shape->vType : shape->kType;
    bool exact = (isV || !trial->rotates) && vkmqa_is_type(type, true);
    double expected[VKMQA_MAX_HEAD_DIM];
    float stored[VKMQA_MAX_HEAD_DIM];
    for (uint32_t b = 0; b < VKMQA_TRIAL_SEQUENCES; ++b)
        for (uint32_t t = 0; t < vkmqaTrialLenKv[b]; ++t, ++newToken)
            for (uint32_t head = 0; head < shape->numHeadsKv; ++head) {
                for (uint32_t e = 0; e < dim; ++e)
                    expected[e] =
                        vkmqa_trial_value(isV ? VKMQA_TRIAL_V : VKMQA_TRIAL_K, newToken, head, e);
                if (!isV)
                    rotate(shape, vkmqa_trial_position(b, t), expected);
                read_cache(trial, memory, isV, b, t, head, dim, stored);
                if (!row_is_right(expected, stored, dim, type, exact))
                    return false;
            }
    return true;
}

static void read_query(const struct VkmqaTrial* trial, const char* memory, uint32_t query, uint32_t head,
                       float* values) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    uint64_t row = (uint64_t)query * shape->numHeadsQ + head;
    vkmqa_decode_row(shape->ioType,
                     memory + (trial->rotates ? trial->rotatedQ : trial->q) +
                         row * shape->headDimQk * vkmqa_type_size(shape->ioType),
                     NULL, shape->headDimQk, values);
}

bool vkmqa_append_is_right(const struct VkmqaTrial* trial, const char* memory) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    double expected[VKMQA_MAX_HEAD_DIM];
    float got[VKMQA_MAX_HEAD_DIM];
    if (!cache_is_right(trial, memory, false) || (!shape->vPrefix && !cache_is_right(trial, memory, true)))
        return false;
    for (uint32_t b = 0, query = 0; b < VKMQA_TRIAL_SEQUENCES && trial->rotates; ++b)
        for (uint32_t i = 0; i < vkmqaTrialLenQ[b]; ++i, ++query)
            for (uint32_t head = 0; head < shape->numHeadsQ; ++head) {
                for (uint32_t e = 0; e < shape->headDimQk; ++e)
                    expected[e] = vkmqa_trial_value(VKMQA_TRIAL_Q, query, head, e);
                rotate(shape, vkmqa_trial_position(b, vkmqaTrialLenKv[b] - vkmqaTrialLenQ[b] + i),
                       expected);
                read_query(trial, memory, query, head, got);
                if (!row_is_right(expected, got, shape->headDimQk, shape->ioType, false))
                    return false;
            }
    return true;
}

// ---- attention -------------------------------------------------------------------------------

static bool sees(const struct VkmqaShape* shape, uint32_t b, uint32_t query, int64_t own, int64_t position) {
    int64_t bit = position;
    if (shape->windowLeft != VKMQA_UNBOUNDED && own - position > shape->windowLeft)
        return false;
    if (shape->windowRight != VKMQA_UNBOUNDED && position - own > shape->windowRight)
        return false;
    if (shape->chunk && position / shape->chunk != own / shape->chunk)
        return false;
    if (shape->maskKind == VKMQA_MASK_TREE)
        bit = position - (vkmqaTrialLenKv[b] - vkmqaTrialLenQ[b]);
    return shape->maskKind == VKMQA_MASK_NONE || bit < 0 || vkmqa_trial_mask(query, (uint32_t)bit);
}

static double score_of(const struct VkmqaShape* shape, const float* q, const float* k, uint32_t head,
                       int64_t distance) {
    double score = 0;
    for (uint32_t e = 0; e < shape->headDimQk; ++e)
        score += (double)q[e] * k[e];
    score *= shape->scale;
    if (shape->softcap > 0)
        score = shape->softcap * tanh(score / shape->softcap);
    return shape->alibi ? score - vkmqa_trial_slope(head) * fabs((double)distance) : score;
}

static bool head_is_right(const struct VkmqaTrial* trial, const char* memory, uint32_t b, uint32_t i,
                          uint32_t query, uint32_t head) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    uint32_t kvHead = head / shape->ratio, len = vkmqaTrialLenKv[b];
    int64_t own = (int64_t)i + len - vkmqaTrialLenQ[b];
    float q[VKMQA_MAX_HEAD_DIM], row[VKMQA_MAX_HEAD_DIM];
    double weights[VKMQA_TRIAL_TOKENS], expected[VKMQA_MAX_HEAD_DIM] = {0};
    double most = shape->sinks ? vkmqa_trial_sink(head) : -INFINITY, steepest = 0;
    read_query(trial, memory, query, head, q);
    for (uint32_t t = 0; t < len; ++t) {
        read_cache(trial, memory, false, b, t, kvHead, shape->headDimQk, row);
        weights[t] = -INFINITY;
        if (!sees(shape, b, query, own, t))
            continue;
        weights[t] = score_of(shape, q, row, head, own - t);
        most = fmax(most, weights[t]);
        steepest = fmax(steepest, fabs(weights[t]));
    }
    double sum = shape->sinks ? exp(vkmqa_trial_sink(head) - most) : 0;
    for (uint32_t t = 0; t < len && most > -INFINITY; ++t)
        sum += weights[t] = exp(weights[t] - most);
    for (uint32_t t = 0; t < len && sum > 0; ++t) {
        read_cache(trial, memory, true, b, t, kvHead, shape->headDimV, row);
        for (uint32_t e = 0; e < shape->headDimV; ++e)
            expected[e] += weights[t] / sum * row[e];
    }
    float got[VKMQA_MAX_HEAD_DIM];
    uint64_t index = (uint64_t)query * shape->numHeadsQ + head;
    vkmqa_decode_row(shape->ioType,
                     memory + trial->out + index * shape->headDimV * vkmqa_type_size(shape->ioType), NULL,
                     shape->headDimV, got);
    // Large scores carry larger errors, and so do their weights.
    double slack = 4e-6 * steepest;
    double tolerance = slack + (shape->ioType == VKMQA_TYPE_F32   ? 1e-4
                                : shape->ioType == VKMQA_TYPE_F16 ? 2e-3
                                                                  : 1.6e-2);
    for (uint32_t e = 0; e < shape->headDimV; ++e)
        if (!(fabs(got[e] - expected[e]) <= tolerance)) // NaN is wrong too
            return false;
    float lse = ((const float*)(memory + trial->lse))[index];
    if (sum == 0)
        return lse == -INFINITY;
    return fabs(lse - (most + log(sum))) <= 1e-3 + slack;
}

bool vkmqa_answer_is_right(const struct VkmqaTrial* trial, const char* memory) {
    for (uint32_t b = 0, query = 0; b < VKMQA_TRIAL_SEQUENCES; ++b)
        for (uint32_t i = 0; i < vkmqaTrialLenQ[b]; ++i, ++query)
            for (uint32_t head = 0; head < trial->attention.shape.numHeadsQ; ++head)
                if (!head_is_right(trial, memory, b, i, query, head))
                    return false;
    int32_t status;
    memcpy(&status, memory + trial->metadata + trial->step.status, 4);
    return status == 0;
}

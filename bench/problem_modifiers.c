// The inputs that masks, sinks, ALiBi, rotary embedding and fp8 caches need beside q, K and V.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float* copyFloats(const float* values, uint32_t count) {
    float* copy = allocate(count, sizeof(float));
    if (values && count)
        memcpy(copy, values, count * sizeof(float));
    return copy;
}

// Press et al., arXiv 2108.12409: a geometric sequence over the heads.
static float slopeOf(uint32_t head, uint32_t heads) {
    return exp2f(-8.0f * (float)(head + 1) / (float)heads);
}

static void fillHeads(Problem* p, const ProblemInfo* info) {
    if (p->info.flags & VKMQA_ATTENTION_SINKS_BIT) {
        p->sinks = copyFloats(info->sinks, p->numHeadsQ);
        for (uint32_t h = 0; !info->sinks && h < p->numHeadsQ; h++)
            p->sinks[h] = (float)(h % 5) - 1; // less and more than usual scores
    }
    if (p->info.flags & VKMQA_ATTENTION_ALIBI_BIT) {
        p->alibiSlopes = copyFloats(info->alibiSlopes, p->numHeadsQ);
        for (uint32_t h = 0; !info->alibiSlopes && h < p->numHeadsQ; h++)
            p->alibiSlopes[h] = slopeOf(h, p->numHeadsQ);
    }
}

// Without a scale given: powers of two with which fillProblem's values stay below 448.
static float* scalesOf(const TypeTraits* type, const float* given, uint32_t heads) {
    if (type->type != VKMQA_TYPE_FP8_E4M3)
        return NULL;
    float* scales = copyFloats(given, heads);
    for (uint32_t h = 0; !given && h < heads; h++)
        scales[h] = h % 2 ? 0x1p-5f : 0x1p-6f;
    return scales;
}

static void allow(Problem* p, uint32_t token, uint32_t bit) {
    p->mask[(size_t)token * p->maskStride + bit / 32] |= 1u << bit % 32;
}

// Random bits; a query token sees itself, which no other restriction can take away.
static void inventMask(Problem* p) {
    bool tree = p->info.flags & VKMQA_ATTENTION_TREE_MASK_BIT;
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < (size_t)p->totalQ * p->maskStride; i++)
        p->mask[i] = (uint32_t)nextRandom(&state) << 16 ^ (uint32_t)nextRandom(&state);
    for (uint32_t b = 0; b < p->batch; b++)
        for (int32_t t = p->cuSeqlensQ[b]; t < p->cuSeqlensQ[b + 1]; t++) {
            int32_t own = tree ? t - p->cuSeqlensQ[b] : p->queryPositions[t];
            if (own >= 0)
                allow(p, (uint32_t)t, (uint32_t)own);
        }
}

void fillModifiers(Problem* p, const ProblemInfo* info) {
    fillHeads(p, info);
    p->kScales = scalesOf(p->kType, info->kScales, p->numHeadsKv);
    p->vScales = scalesOf(p->vType, info->vScales, p->numHeadsKv);
    if (!(p->info.flags & (VKMQA_ATTENTION_MASK_BIT | VKMQA_ATTENTION_TREE_MASK_BIT)))
        return;
    bool tree = p->info.flags & VKMQA_ATTENTION_TREE_MASK_BIT;
    uint32_t bits = tree ? p->step.limits.maxSeqLenQ : p->step.limits.maxSeqLenKv;
    p->maskStride = info->mask ? info->maskStride : (bits + 31) / 32;
    size_t words = (size_t)p->totalQ * p->maskStride;
    p->mask = allocate(words, 4);
    if (info->mask && words)
        memcpy(p->mask, info->mask, words * 4);
    else
        inventMask(p);
}

static BenchResult createParameters(Problem* p) {
    VkmqaBufferRequirements requirements = {0};
    BenchResult result =
        checkVk(vkmqaGetParametersRequirements(p->attention, &requirements), "sizing parameters");
    if (result != BENCH_OK || !requirements.size)
        return result;
    size_t size = ((size_t)requirements.size + 3) & ~(size_t)3;
    VkmqaParametersInfo info = {
        .structSize = sizeof(info),
        .sinks = p->sinks,
        .alibiSlopes = p->alibiSlopes,
        .kScales = p->kScales,
        .vScales = p->vScales,
        .ropeTheta = p->ropeTheta,
    };
    void* data = allocate(size, 1);
    result = checkVk(vkmqaWriteParameters(p->attention, &info, (size_t)requirements.size, data),
                     "writing parameters");
    if (result == BENCH_OK)
        result = createMemory(p->session, size, &p->parameters, "parameters");
    if (result == BENCH_OK)
        result = checkVk(vkmqaUpload(p->parameters, 0, data, size), "uploading parameters");
    free(data);
    return result;
}

BenchResult createModifiers(Problem* p) {
    size_t bytes = (size_t)p->totalQ * p->maskStride * 4;
    BenchResult result = createParameters(p);
    if (result != BENCH_OK || !p->mask)
        return result;
    result = createMemory(p->session, bytes, &p->maskBits, "the mask");
    if (result == BENCH_OK && bytes)
        result = checkVk(vkmqaUpload(p->maskBits, 0, p->mask, bytes), "uploading the mask");
    return result;
}

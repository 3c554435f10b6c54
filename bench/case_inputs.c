// From a case file to a step of attention: conversions, masks, fp8 scales, and the reference's view.
// SPDX-License-Identifier: MIT
#include "case_inputs.h"
#include "rotation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Rotated queries in bf16 would be rounded a second time, which the bounds of the other types do not allow for.
const TypeTraits* caseIoType(const CaseFile* c) {
    bool wide = caseHasRope(c) && c->qDtype->type == VKMQA_TYPE_BF16;
    return wide ? typeTraits(VKMQA_TYPE_F32) : c->qDtype;
}

// One type for K, V and, where append rotates it, q: their own where they agree, else f32, which holds all.
const TypeTraits* caseNewType(const CaseFile* c) {
    bool same = c->kDtype == c->vDtype && (!caseHasRope(c) || c->qDtype == c->kDtype);
    return same ? c->kDtype : typeTraits(VKMQA_TYPE_F32);
}

static uint8_t* convertTensor(const Tensor* tensor, const TypeTraits* from, const TypeTraits* to) {
    uint8_t* data = allocate(tensor->count * to->bytes + 4, 1);
    if (from != to)
        decodeElements(from, tensor->data, tensor->count, (float*)data);
    else if (tensor->count)
        memcpy(data, tensor->data, tensor->count * to->bytes);
    return data;
}

static void readRow(const Tensor* tensor, const TypeTraits* type, uint64_t token, uint32_t head,
                    float* row) {
    uint64_t at = (token * tensor->shape[1] + head) * tensor->shape[2];
    decodeElements(type, tensor->data + at * type->bytes, tensor->shape[2], row);
}

static void readCaseQ(const void* user, uint32_t token, uint32_t head, float* row) {
    const CaseView* view = user;
    const Problem* p = view->problem;
    readRow(view->c->q, view->c->qDtype, token, head, row);
    rotateRow(&p->info, p->ropeTheta, p->queryPositions[token], row);
}

static void readCaseK(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                      float* row) {
    const CaseView* view = user;
    const Problem* p = view->problem;
    uint64_t token = (uint64_t)intAt(view->c->cuSeqlensKv, sequence) + position;
    readRow(view->c->k, view->c->kDtype, token, head, row);
    rotateRow(&p->info, p->ropeTheta, position, row);
}

static void readCaseV(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                      float* row) {
    const CaseView* view = user;
    uint64_t token = (uint64_t)intAt(view->c->cuSeqlensKv, sequence) + position;
    if (view->c->v) {
        readRow(view->c->v, view->c->vDtype, token, head, row);
        return;
    }
    float k[1024]; // the prefix of what the cache's row holds, rotation included
    readCaseK(user, sequence, head, position, k);
    memcpy(row, k, view->c->headDimV * sizeof(float));
}

static bool caseAllows(const void* user, uint32_t sequence, uint32_t token, uint32_t position) {
    const CaseFile* c = ((const CaseView*)user)->c;
    (void)sequence;
    return c->mask->data[(uint64_t)token * c->longestKv + position];
}

static void readStoredK(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                        float* row) {
    const Problem* p = ((const CaseView*)user)->problem;
    referenceOf(p).readK(p, sequence, head, position, row);
}
static void readStoredV(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                        float* row) {
    const Problem* p = ((const CaseView*)user)->problem;
    referenceOf(p).readV(p, sequence, head, position, row);
}

ReferenceProblem caseReference(const CaseView* view) {
    ReferenceProblem reference = referenceOf(view->problem);
    reference.readQ = readCaseQ;
    reference.readK = readCaseK;
    reference.readV = readCaseV;
    reference.allows = view->c->mask ? caseAllows : NULL;
    reference.user = view;
    return reference;
}

ReferenceProblem storedCaseReference(const CaseView* view) {
    ReferenceProblem reference = caseReference(view);
    reference.readK = readStoredK;
    reference.readV = readStoredV;
    return reference;
}

// [totalQ, words of the longest sequence]
static uint32_t* packMask(const CaseFile* c, uint32_t* stride) {
    *stride = (c->longestKv + 31) / 32 ? (c->longestKv + 31) / 32 : 1;
    if (!c->mask)
        return NULL;
    uint32_t* words = allocate((size_t)c->totalQ * *stride, 4);
    for (size_t t = 0; t < c->totalQ; t++)
        for (size_t j = 0; j < c->longestKv; j++)
            if (c->mask->data[t * c->longestKv + j])
                words[t * *stride + j / 32] |= 1u << j % 32;
    return words;
}

// fp8: a scale for each head. A rotation of pairs may make an element sqrt(2) times as large.
static float* fitScales(const Tensor* tensor, const TypeTraits* type, bool rotated) {
    uint32_t heads = (uint32_t)tensor->shape[1];
    float* scales = allocate(heads, sizeof(float));
    float row[1024];
    for (uint32_t h = 0; h < heads; h++) {
        float most = 0;
        for (uint64_t t = 0; t < tensor->shape[0]; t++) {
            readRow(tensor, type, t, h, row);
            for (uint64_t d = 0; d < tensor->shape[2]; d++)
                most = isfinite(row[d]) && fabsf(row[d]) > most ? fabsf(row[d]) : most;
        }
        scales[h] = fitScale(rotated ? most * 1.4143f : most);
    }
    return scales;
}

// Tensors in a file stand at any byte.
static float* copyFloats(const Tensor* tensor) {
    if (!tensor)
        return NULL;
    float* values = allocate(tensor->count, sizeof(float));
    memcpy(values, tensor->data, tensor->count * sizeof(float));
    return values;
}

static VkmqaAttentionCreateInfo caseAttention(const CaseFile* c) {
    VkmqaAttentionCreateInfo info = {
        .numHeadsQ = c->numHeadsQ,
        .numHeadsKv = c->numHeadsKv,
        .headDimQk = c->headDimQk,
        .headDimV = c->headDimV,
        .ioType = caseIoType(c)->type,
        .newType = caseNewType(c)->type,
        .kType = c->kType->type,
        .vType = c->vType->type,
        .pageSize = (uint32_t)c->pageSize,
        .scale = (float)c->scale,
        .softcap = (float)c->softcap,
        .windowLeft = (uint32_t)c->windowLeft,
        .windowRight = (uint32_t)c->windowRight,
    };
    const struct {
        bool asked;
        VkmqaAttentionFlags flag;
    } flags[] = {
        {c->causal, VKMQA_ATTENTION_CAUSAL_BIT},
        {c->hasWindowLeft, VKMQA_ATTENTION_WINDOW_LEFT_BIT},
        {c->hasWindowRight, VKMQA_ATTENTION_WINDOW_RIGHT_BIT},
        {c->alibiSlopes, VKMQA_ATTENTION_ALIBI_BIT},
        {c->sinks, VKMQA_ATTENTION_SINKS_BIT},
        {c->mask, VKMQA_ATTENTION_MASK_BIT},
        {c->vPrefixOfK, VKMQA_ATTENTION_V_PREFIX_OF_K_BIT},
    };
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        info.flags |= flags[i].asked ? flags[i].flag : 0;
    if (caseHasRope(c)) {
        bool pairs = c->ropeStyle && strcmp(c->ropeStyle, "interleaved") == 0;
        info.ropeStyle = pairs ? VKMQA_ROPE_INTERLEAVED : VKMQA_ROPE_NEOX;
        info.ropeDim = (uint32_t)(c->ropeDim ? c->ropeDim : c->headDimQk);
    }
    return info;
}

static void convertTensors(const CaseFile* c, Problem* problem) {
    if (caseHasRope(c) && c->totalQ)
        problem->hostRawQ = convertTensor(c->q, c->qDtype, problem->newType);
    problem->hostQ = convertTensor(c->q, c->qDtype, problem->ioType);
    problem->hostNewK = convertTensor(c->k, c->kDtype, problem->newType);
    if (c->v)
        problem->hostNewV = convertTensor(c->v, c->vDtype, problem->newType);
}

BenchResult createCaseProblem(Session* session, const CaseFile* c, Problem* problem) {
    int32_t* queries = allocate(c->batch, 4);
    int32_t* contexts = allocate(c->batch, 4);
    for (uint32_t b = 0; b < c->batch; b++) {
        queries[b] = intAt(c->cuSeqlensQ, b + 1) - intAt(c->cuSeqlensQ, b);
        contexts[b] = intAt(c->cuSeqlensKv, b + 1) - intAt(c->cuSeqlensKv, b);
    }
    uint32_t maskStride;
    uint32_t* mask = packMask(c, &maskStride);
    float *sinks = copyFloats(c->sinks), *slopes = copyFloats(c->alibiSlopes);
    float* kScales = fitScales(c->k, c->kDtype, caseHasRope(c));
    float* vScales = c->v ? fitScales(c->v, c->vDtype, false) : NULL;
    ProblemInfo info = {
        .attention = caseAttention(c),
        .batch = c->batch,
        .queryTokens = queries,
        .contexts = contexts,
        .newTokens = contexts,
        .ropeTheta = c->ropeTheta,
        .sinks = sinks,
        .alibiSlopes = slopes,
        .kScales = kScales,
        .vScales = vScales ? vScales : kScales,
        .mask = mask,
        .maskStride = maskStride,
    };
    BenchResult result = createProblem(session, &info, problem);
    if (result == BENCH_OK) {
        // Judged in full precision.
        problem->scale = c->scale;
        problem->softcap = c->softcap;
        convertTensors(c, problem);
    }
    void* host[] = {queries, contexts, mask, sinks, slopes, kScales, vScales};
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        free(host[i]);
    return result;
}

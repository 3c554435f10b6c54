// SPDX-License-Identifier: MIT
#include "verify.h"

#include <string.h>

#include "codec.h"

const uint32_t vkmqaTrialLenQ[VKMQA_TRIAL_SEQUENCES] = {3, 1};
const uint32_t vkmqaTrialLenKv[VKMQA_TRIAL_SEQUENCES] = {VKMQA_TRIAL_LONGEST, 5};

enum { CONTIGUOUS_PAGE = 96 };

// ---- layout ----------------------------------------------------------------------------------

static uint64_t place(uint64_t* size, uint64_t bytes) {
    uint64_t offset = *size;
    *size += (bytes + 255) & ~(uint64_t)255;
    return offset;
}

VkResult vkmqa_make_trial(const struct VkmqaAttention_T* attention, struct VkmqaTrial* trial) {
    *trial = (struct VkmqaTrial){.attention = *attention,
                                 .limits = {.batch = VKMQA_TRIAL_SEQUENCES,
                                            .totalQ = VKMQA_TRIAL_QUERIES,
                                            .maxSeqLenQ = 3,
                                            .maxSeqLenKv = VKMQA_TRIAL_LONGEST,
                                            .newTokens = VKMQA_TRIAL_TOKENS}};
    struct VkmqaShape* shape = &trial->attention.shape;
    if (shape->pageShift == VKMQA_CONTIGUOUS)
        shape->pageTokens = CONTIGUOUS_PAGE;
    shape->maxSeqLenKv = CONTIGUOUS_PAGE;
    trial->rotates = shape->ropeStyle != VKMQA_ROPE_NONE || shape->hadamard > 1;
    trial->maxPages = (VKMQA_TRIAL_LONGEST + shape->pageTokens - 1) / shape->pageTokens;
    trial->numPages = trial->maxPages + (5 + shape->pageTokens - 1) / shape->pageTokens + 1;
    trial->maskStride = (VKMQA_TRIAL_LONGEST + 31) / 32;
    VkmqaBufferRequirements metadata;
    struct VkmqaProblem problem;
    VkResult result = vkmqaGetStepLayout(&trial->attention, &trial->limits, &trial->step, &metadata);
    if (result != VK_SUCCESS)
        return result;
    if (!vkmqa_cache_bytes(shape, trial->numPages, &trial->cache, &problem))
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaVerifyAttention: %s", problem.text);
    uint64_t rowsQ = VKMQA_TRIAL_QUERIES * (uint64_t)shape->numHeadsQ;
    uint64_t rowsKv = VKMQA_TRIAL_TOKENS * (uint64_t)shape->numHeadsKv;
    uint64_t newSize = vkmqa_type_size(shape->newType), ioSize = vkmqa_type_size(shape->ioType);
    trial->bytesMetadata = metadata.size;
    trial->bytesNewK = rowsKv * shape->headDimQk * newSize;
    trial->bytesNewV = rowsKv * shape->headDimV * newSize;
    trial->bytesK = trial->cache.allK;
    trial->bytesV = trial->cache.allV;
    trial->bytesQ = rowsQ * shape->headDimQk * (trial->rotates ? newSize : ioSize);
    trial->bytesRotatedQ = trial->rotates ? rowsQ * shape->headDimQk * ioSize : 0;
    trial->bytesOut = rowsQ * shape->headDimV * ioSize;
    trial->bytesLse = rowsQ * 4;
    trial->bytesScratch = rowsQ * 2 * (shape->headDimV * 4 + 8) + 256;
    trial->bytesParameters = vkmqa_parameter_bytes(shape);
    trial->bytesMask = VKMQA_TRIAL_QUERIES * trial->maskStride * 4;
#define PLACE(name, bytes) trial->name = place(&trial->size, trial->bytes);
    PLACE(metadata, bytesMetadata)
    PLACE(newK, bytesNewK)
    PLACE(newV, bytesNewV)
    PLACE(k, bytesK)
    PLACE(v, bytesV)
    PLACE(q, bytesQ)
    PLACE(rotatedQ, bytesRotatedQ)
    PLACE(out, bytesOut)
    PLACE(lse, bytesLse)
    PLACE(scratch, bytesScratch)
    PLACE(parameters, bytesParameters)
    PLACE(mask, bytesMask)
#undef PLACE
    return VK_SUCCESS;
}

// ---- values ----------------------------------------------------------------------------------

// Multiples of 1/128 in [-1, 1): exact in f16, bf16 and f32, so that append's bytes are known. Each (tensor,
// token, head, element) has its own.
float vkmqa_trial_value(enum VkmqaTrialTensor tensor, uint32_t token, uint32_t head, uint32_t element) {
    uint32_t hash = (uint32_t)tensor * 0x9E3779B9u + token * 0x85EBCA6Bu + head * 0xC2B2AE35u +
                    element * 0x27D4EB2Fu;
    hash ^= hash >> 15;
    hash *= 0x2C1B3C6Du;
    hash ^= hash >> 12;
    return (float)(int)(hash >> 24) / 128.0f - 1.0f;
}

uint32_t vkmqa_trial_page(const struct VkmqaTrial* trial, uint32_t sequence, uint32_t index) {
    if (trial->attention.shape.pageShift == VKMQA_CONTIGUOUS)
        return sequence;
    // From the back: no page lies where its index says.
    return trial->numPages - 1 - (sequence == 0 ? index : trial->maxPages + index);
}

uint32_t vkmqa_trial_position(uint32_t sequence, uint32_t token) { return sequence * 10000 + token * 3; }
bool vkmqa_trial_mask(uint32_t query, uint32_t bit) { return (bit + query) % 5 != 1; }
float vkmqa_trial_slope(uint32_t head) { return 0.25f / (float)(1 + head % 8); }
float vkmqa_trial_sink(uint32_t head) { return (float)(head % 5) - 2.0f; }
float vkmqa_trial_scale(bool isV, uint32_t head) {
    static const float scales[] = {0.5f, 2.0f, 1.0f};
    return scales[(head + isV) % 3];
}

static void fill_tensor(char* base, enum VkmqaTrialTensor tensor, uint32_t tokens, uint32_t heads,
                        uint32_t dim, VkmqaType type) {
    float values[VKMQA_MAX_HEAD_DIM];
    for (uint32_t token = 0; token < tokens; ++token)
        for (uint32_t head = 0; head < heads; ++head) {
            for (uint32_t element = 0; element < dim; ++element)
                values[element] = vkmqa_trial_value(tensor, token, head, element);
            vkmqa_encode_exact(type, values, dim,
                               base + ((uint64_t)token * heads + head) * dim * vkmqa_type_size(type));
        }
}

static VkResult write_parameters(struct VkmqaTrial* trial, char* memory) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    const VkAllocationCallbacks* allocator = vkmqa_allocator(trial->attention.context);
    if (trial->bytesParameters == 0)
        return VK_SUCCESS;
    uint32_t headsQ = shape->numHeadsQ, headsKv = shape->numHeadsKv;
    float* values = vkmqa_allocate(allocator, sizeof(float) * (2 * (size_t)headsQ + 2 * (size_t)headsKv));
    if (!values)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    for (uint32_t head = 0; head < headsQ; ++head) {
        values[head] = vkmqa_trial_sink(head);
        values[headsQ + head] = vkmqa_trial_slope(head);
    }
    for (uint32_t head = 0; head < headsKv; ++head) {
        values[2 * headsQ + head] = vkmqa_trial_scale(false, head);
        values[2 * headsQ + headsKv + head] = vkmqa_trial_scale(true, head);
    }
    VkmqaParametersInfo info = {
        .structSize = sizeof info,
        .sinks = values,
        .alibiSlopes = values + headsQ,
        .kScales = values + 2 * headsQ,
        .vScales = values + 2 * headsQ + headsKv,
    };
    VkResult result = vkmqaWriteParameters(&trial->attention, &info, trial->bytesParameters,
                                           memory + trial->parameters);
    vkmqa_free(allocator, values);
    return result;
}

VkResult vkmqa_write_question(struct VkmqaTrial* trial, char* memory) {
    const struct VkmqaShape* shape = &trial->attention.shape;
    memset(memory, 0xFF, trial->size);
    char* metadata = memory + trial->metadata;
    int32_t* cuSeqlensQ = (int32_t*)(metadata + trial->step.cuSeqlensQ);
    int32_t* seqLensKv = (int32_t*)(metadata + trial->step.seqLensKv);
    int32_t* slots = (int32_t*)(metadata + trial->step.slotMapping);
    bool rope = shape->ropeStyle != VKMQA_ROPE_NONE;
    int32_t* positions = rope ? (int32_t*)(metadata + trial->step.positions) : NULL;
    int32_t* queryPositions = rope ? (int32_t*)(metadata + trial->step.queryPositions) : NULL;
    memset(metadata + trial->step.status, 0, 4);
    cuSeqlensQ[0] = 0;
    for (uint32_t b = 0; b < VKMQA_TRIAL_SEQUENCES; ++b) {
        cuSeqlensQ[b + 1] = cuSeqlensQ[b] + (int32_t)vkmqaTrialLenQ[b];
        seqLensKv[b] = (int32_t)vkmqaTrialLenKv[b];
        for (uint32_t t = 0; t < vkmqaTrialLenKv[b]; ++t) {
            uint32_t index = t / shape->pageTokens, page = vkmqa_trial_page(trial, b, index);
            if (trial->step.pageTable != VKMQA_NONE)
                ((int32_t*)(metadata + trial->step.pageTable))[b * trial->step.maxPages + index] =
                    (int32_t)page;
            *slots++ = (int32_t)(page * shape->pageTokens + t % shape->pageTokens);
            if (rope)
                *positions++ = (int32_t)vkmqa_trial_position(b, t);
        }
        for (uint32_t i = 0; i < vkmqaTrialLenQ[b] && rope; ++i)
            *queryPositions++ =
                (int32_t)vkmqa_trial_position(b, vkmqaTrialLenKv[b] - vkmqaTrialLenQ[b] + i);
    }
    fill_tensor(memory + trial->newK, VKMQA_TRIAL_K, VKMQA_TRIAL_TOKENS, shape->numHeadsKv,
                shape->headDimQk, shape->newType);
    fill_tensor(memory + trial->newV, VKMQA_TRIAL_V, VKMQA_TRIAL_TOKENS, shape->numHeadsKv,
                shape->headDimV, shape->newType);
    fill_tensor(memory + trial->q, VKMQA_TRIAL_Q, VKMQA_TRIAL_QUERIES, shape->numHeadsQ, shape->headDimQk,
                trial->rotates ? shape->newType : shape->ioType);
    uint32_t* mask = (uint32_t*)(memory + trial->mask);
    memset(mask, 0, trial->bytesMask);
    for (uint32_t query = 0; query < VKMQA_TRIAL_QUERIES; ++query)
        for (uint32_t bit = 0; bit < 32 * trial->maskStride; ++bit)
            if (vkmqa_trial_mask(query, bit))
                mask[query * trial->maskStride + bit / 32] |= 1u << bit % 32;
    return write_parameters(trial, memory);
}

// The known-answer test in three files: verify_question.c lays out memory and writes the inputs,
// verify_answer.c knows what must come back, verify.c runs kernels between them. SPDX-License-Identifier: MIT
#ifndef VKMQA_VERIFY_H
#define VKMQA_VERIFY_H

#include "context.h"

// Two ragged sequences, one longer than a split; everything else of the memory is NaN.
enum {
    VKMQA_TRIAL_SEQUENCES = 2,
    VKMQA_TRIAL_QUERIES = 4, // of both
    VKMQA_TRIAL_TOKENS = 75, // of both
    VKMQA_TRIAL_LONGEST = 70,
    VKMQA_TRIAL_SPLIT = 64,
};
extern const uint32_t vkmqaTrialLenQ[VKMQA_TRIAL_SEQUENCES], vkmqaTrialLenKv[VKMQA_TRIAL_SEQUENCES];

// The object under test, with the page and limits of the test, on which its pipelines do not depend, and
// where everything lies in the caller's memory.
struct VkmqaTrial {
    struct VkmqaAttention_T attention;
    VkmqaStepLimits limits;
    VkmqaStepLayout step;
    uint32_t numPages;
    uint32_t maxPages;   // pages of one sequence
    uint32_t maskStride; // words
    bool rotates;        // q goes through append
    struct VkmqaCacheBytes cache;
    uint64_t metadata, newK, newV, k, v, q, rotatedQ, out, lse, scratch, parameters, mask; // offsets
    uint64_t bytesMetadata, bytesNewK, bytesNewV, bytesK, bytesV, bytesQ, bytesRotatedQ, bytesOut,
        bytesLse, bytesScratch, bytesParameters, bytesMask, size;
};

VkResult vkmqa_make_trial(const struct VkmqaAttention_T* attention, struct VkmqaTrial* trial);
VkResult vkmqa_write_question(struct VkmqaTrial* trial, char* memory);

// What the question is made of, for the answer.
enum VkmqaTrialTensor { VKMQA_TRIAL_Q, VKMQA_TRIAL_K, VKMQA_TRIAL_V };
float vkmqa_trial_value(enum VkmqaTrialTensor tensor, uint32_t token, uint32_t head, uint32_t element);
uint32_t vkmqa_trial_page(const struct VkmqaTrial* trial, uint32_t sequence, uint32_t index);
uint32_t vkmqa_trial_position(uint32_t sequence, uint32_t token); // for rotary embedding
bool vkmqa_trial_mask(uint32_t query, uint32_t bit);
float vkmqa_trial_slope(uint32_t head);
float vkmqa_trial_sink(uint32_t head);
float vkmqa_trial_scale(bool isV, uint32_t head); // of fp8 caches

// Whether append has written the cache and rotated q rightly, and attention answered so.
bool vkmqa_append_is_right(const struct VkmqaTrial* trial, const char* memory);
bool vkmqa_answer_is_right(const struct VkmqaTrial* trial, const char* memory);

#endif

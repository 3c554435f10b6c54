// Generating and scoring text. SPDX-License-Identifier: MIT
#include "generate.h"

#include <math.h>
#include <stdlib.h>

// Between 0 and 1, 1 excluded. Source: splitmix64 (Steele, Lea and Flood 2014).
static double uniform(uint64_t* state) {
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

static uint32_t likeliest(const float logits[VOCABULARY]) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < VOCABULARY; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

uint8_t sampleByte(Sampler* sampler, const float logits[VOCABULARY]) {
    uint32_t best = likeliest(logits);
    if (sampler->temperature <= 0)
        return (uint8_t)best;
    double weights[VOCABULARY], sum = 0;
    for (uint32_t i = 0; i < VOCABULARY; i++)
        sum += weights[i] = exp(((double)logits[i] - (double)logits[best]) / sampler->temperature);
    double left = uniform(&sampler->state) * sum;
    for (uint32_t i = 0; i < VOCABULARY; i++)
        if ((left -= weights[i]) < 0)
            return (uint8_t)i;
    return (uint8_t)best; // rounding
}

bool prefill(Model* model, const uint8_t* prompt, size_t count, float logits[VOCABULARY], Error* error) {
    if (count == 0)
        return explain(error, "the prompt is empty; give at least one byte");
    for (size_t done = 0, step; done < count; done += step) {
        step = count - done < MAX_STEP ? count - done : MAX_STEP;
        if (!modelForward(model, prompt + done, (uint32_t)step, done + step == count, logits, error))
            return false;
    }
    return true;
}

bool generate(Model* model, Sampler* sampler, float logits[VOCABULARY], uint32_t count, uint8_t* text,
              void (*emit)(uint8_t byte), Error* error) {
    for (uint32_t i = 0; i < count; i++) {
        text[i] = sampleByte(sampler, logits);
        if (emit)
            emit(text[i]);
        if (i + 1 < count && !modelForward(model, text + i, 1, 1, logits, error))
            return false;
    }
    return true;
}

static double lossOf(const float logits[VOCABULARY], uint8_t byte) {
    double best = (double)logits[likeliest(logits)], sum = 0;
    for (uint32_t i = 0; i < VOCABULARY; i++)
        sum += exp((double)logits[i] - best);
    return log(sum) + best - (double)logits[byte];
}

bool measureLoss(Model* model, const uint8_t* text, size_t count, uint32_t context, uint32_t perStep, double* loss,
                 size_t* scored, Error* error) {
    if (count <= context)
        return explain(error, "the text has %zu bytes; give more than the model's context of %u", count, context);
    if (perStep == 0 || perStep > MAX_STEP)
        return explain(error, "perStep is %u; give 1 to %d", perStep, MAX_STEP);
    float* logits = malloc(sizeof(float) * MAX_STEP * VOCABULARY);
    if (!logits)
        return explain(error, "no memory for logits");
    bool good = true;
    *loss = 0;
    *scored = 0;
    for (size_t start = 0; good && start + context < count; start += context) {
        good = modelTruncate(model, 0, error);
        for (uint32_t done = 0, step; good && done < context; done += step) {
            step = context - done < perStep ? context - done : perStep;
            const uint8_t* tokens = text + start + done;
            good = modelForward(model, tokens, step, step, logits, error);
            for (uint32_t i = 0; good && i < step; i++)
                *loss += lossOf(logits + (size_t)i * VOCABULARY, tokens[i + 1]);
        }
        *scored += context;
    }
    *loss /= (double)*scored;
    free(logits);
    return good;
}

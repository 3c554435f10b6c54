// The transformer of samples/generate in f64 and plain loops, from the file on: shares no code with the sample or the
// library. SPDX-License-Identifier: MIT
#ifndef GENERATE_REFERENCE_H
#define GENERATE_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { REFERENCE_MAX_LAYERS = 16 };

typedef struct ReferenceLayer {
    double *attentionNorm, *q, *k, *v, *o, *mlpNorm, *gate, *up, *down;
} ReferenceLayer;

typedef struct Reference {
    uint32_t width, mlpWidth, layers, headsQ, headsKv, headDim, context;
    double theta, eps;
    double *embedding, *norm;
    ReferenceLayer layer[REFERENCE_MAX_LAYERS];
} Reference;

// Believes the file: it has to be one that train.py wrote, of f16 tensors. False where a part of it is not found.
bool referenceRead(const char* path, Reference* reference);
void referenceFree(Reference* reference);

// logits[count, 256] of a text; a byte sees `window` bytes, its own included (0: all).
void referenceLogits(const Reference* reference, const uint8_t* text, uint32_t count, uint32_t window, double* logits);

// Mean of -log(probability), in nats per byte, over windows of the model's context that know nothing of each other.
double referenceLoss(const Reference* reference, const uint8_t* text, size_t count);

#endif

// Text from a small transformer: layers on the CPU with BLAS, attention and its cache on a Vulkan device with vkmqa.
//   main.c     the command line, and what was measured
//   text.c     generating and scoring text: prompts, sampling, perplexity
//   model.c    the forward pass, and vkmqa: device, cache, append with rotary embedding, attention
//   layers.c   what is not attention: norms, matrix products, the gated MLP
//   weights.c  safetensors
// SPDX-License-Identifier: MIT
#ifndef GENERATE_H
#define GENERATE_H

#include <vkmqa/vkmqa_cache.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Why a call returned false.
typedef struct Error {
    char text[400];
} Error;
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool explain(Error* error, const char* format, ...); // returns false

enum { VOCABULARY = 256 }; // a token is a byte

// ---- weights.c ----

// Matrices are [out, in], row after row, as the file has them; converted to f32.
typedef struct LayerWeights {
    const float *attentionNorm, *q, *k, *v, *o;
    const float *mlpNorm, *gate, *up, *down;
} LayerWeights;

typedef struct Weights {
    uint32_t width, mlpWidth, numLayers, numHeadsQ, numHeadsKv, headDim;
    uint32_t context; // tokens that the model has seen at once in training
    double ropeTheta;
    float rmsEps;
    double heldOutLoss; // as the training script measured it, nats per byte; 0: not in the file
    const float *embedding, *norm;
    LayerWeights* layers;
    float* data; // of all tensors
    size_t count, capacity;
} Weights;

bool weightsRead(const char* path, Weights* weights, Error* error);
void weightsFree(Weights* weights);

// ---- layers.c ----

// Once, before the others: for matrices this small threads cost more than they gain, and the device may be the CPU.
void useOneThread(void);
// out[rows, n] = in[rows, k] matrix[n, k]^T, added to what is there if `add`.
void multiply(uint32_t rows, uint32_t n, uint32_t k, const float* in, const float* matrix, bool add, float* out);
// out = in / sqrt(mean(in^2) + eps) * weight, row by row.
void rmsNorm(uint32_t rows, uint32_t width, const float* in, const float* weight, float eps, float* out);
// gate = silu(gate) * up
void gateWithSilu(size_t count, float* gate, const float* up);

double secondsNow(void);

// ---- model.c ----

enum { MAX_STEP = 256 }; // tokens of one forward pass

typedef struct ModelOptions {
    const char* device; // selector of vkmqaOpenDevice, or null
    VkmqaType kvType;   // of cached K and V
    uint32_t maxTokens; // room in the cache
    uint32_t window;    // positions that a token sees, its own included; 0: all before it
} ModelOptions;

typedef struct Model {
    const Weights* weights;
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaSequence sequence;
    VkmqaCommands commands;
    VkmqaMemory parameters, scratch, rotatedQ, q, k, v, out;
    float *x, *normed, *gate, *up; // activations of MAX_STEP tokens
    uint32_t length, maxTokens;    // of the sequence
    size_t bytesPerToken;          // of the cache, all layers
    double attentionSeconds;       // in append and attention so far, submission and wait included
    char deviceName[256];
    Error* error; // of the call under way
} Model;

// *model must be all zero, or closed. Closes what it has opened when it fails.
bool modelOpen(Model* model, const Weights* weights, const ModelOptions* options, Error* error);
void modelClose(Model* model);
// Appends up to MAX_STEP tokens to the sequence. logits: [logitRows, VOCABULARY] of the last logitRows of them.
bool modelForward(Model* model, const uint8_t* tokens, uint32_t count, uint32_t logitRows, float* logits, Error* error);
// Forgets the tokens from `length` on.
bool modelTruncate(Model* model, uint32_t length, Error* error);

// ---- text.c ----

typedef struct Sampler {
    double temperature; // 0: the likeliest byte
    uint64_t state;     // seeded with anything
} Sampler;

uint8_t sampleByte(Sampler* sampler, const float logits[VOCABULARY]);

// The prompt, in steps of MAX_STEP; logits of its last byte.
bool prefill(Model* model, const uint8_t* prompt, size_t count, float logits[VOCABULARY], Error* error);

// Writes `count` bytes to `text`, the first of them chosen by `logits`; each is given to `emit` (may be null) as it
// comes.
bool generate(Model* model, Sampler* sampler, float logits[VOCABULARY], uint32_t count, uint8_t* text,
              void (*emit)(uint8_t byte), Error* error);

// Mean of -log(probability) of the bytes, in nats, over windows of `context` tokens that know nothing of each other;
// bytes behind the last whole window count nothing. perStep: tokens of one forward pass.
bool measureLoss(Model* model, const uint8_t* text, size_t count, uint32_t context, uint32_t perStep, double* loss,
                 size_t* scored, Error* error);

#endif

#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// What belongs to one token of a sequence is a function of these alone, never of the batch.
static Random tokenRandom(const Problem* problem, uint32_t b, int32_t position, uint64_t kind) {
    uint64_t name = problem->batch.names[b] ? problem->batch.names[b] : b + 1;
    return randomFor(harness.seed * 1000003 + problem->seed, name << 8 | kind,
                     (uint64_t)(uint32_t)position);
}

static void fillToken(Random random, float* values, size_t count, float factor, OracleType type) {
    for (size_t i = 0; i < count; i++)
        values[i] = randomNormal(&random) * factor;
    oracleRound(type, values, count);
}

enum { OF_Q = 1, OF_K = 2, OF_V = 3, OF_MASK = 4, OF_PARAMETERS = 5 };

float* problemRandomTokens(const Problem* problem, bool isV) {
    uint32_t headDim = isV ? problem->model.headDimV : problem->model.headDimQk;
    size_t perToken = (size_t)problem->model.numHeadsKv * headDim;
    float* values = malloc(sizeof(float) * (problem->totalKv * perToken + 1));
    float magnitude = problem->batch.magnitude > 0 ? problem->batch.magnitude : 1;
    float* next = values;
    for (uint32_t b = 0; b < problem->batch.count; b++)
        for (int32_t t = 0; t < problem->seqLensKv[b]; t++, next += perToken)
            fillToken(tokenRandom(problem, b, t, isV ? OF_V : OF_K), next, perToken, magnitude,
                      problem->model.source);
    return values;
}

float* problemRandomQueries(const Problem* problem) {
    const Model* model = &problem->model;
    size_t perToken = (size_t)model->numHeadsQ * model->headDimQk;
    float sharpness = problem->batch.sharpness > 0 ? problem->batch.sharpness : 1;
    float* values = malloc(sizeof(float) * problem->totalQ * perToken);
    for (size_t i = 0; i < problem->totalQ * perToken; i++)
        values[i] = NAN;
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        for (int32_t i = 0; i < queries; i++) {
            int32_t position = i + problem->seqLensKv[b] - queries;
            fillToken(tokenRandom(problem, b, position, OF_Q),
                      values + (size_t)(problem->cuSeqlensQ[b] + i) * perToken, perToken, sharpness,
                      problemRotates(problem) ? model->source : model->io);
        }
    }
    return values;
}

static void maskToken(Random random, uint32_t* row, uint32_t words) {
    bool nothing = randomBelow(&random, 16) == 0;
    for (uint32_t w = 0; w < words; w++) {
        uint32_t a = randomBelow(&random, UINT32_MAX), b = randomBelow(&random, UINT32_MAX);
        uint32_t kind = randomBelow(&random, 4);
        row[w] = nothing || kind == 0 ? 0 : kind == 1 ? UINT32_MAX : a | b;
    }
}

// Node i of a tree of drafts sees its ancestors and itself; what lies past the drafts is set, to no
// effect. The accepted drafts are one path from the root.
static void growTree(Problem* problem, uint32_t b, Random* random) {
    int32_t first = problem->cuSeqlensQ[b], nodes = problem->cuSeqlensQ[b + 1] - first;
    int32_t* parents = malloc(sizeof(int32_t) * ((size_t)nodes + 1));
    for (int32_t i = 0; i < nodes; i++) {
        uint32_t* row = problem->mask + (size_t)(first + i) * problem->maskStride;
        uint32_t back = i > 0 ? 1 + randomBelow(random, i < 4 ? (uint32_t)i : 4) : 1;
        parents[i] = i - (int32_t)back;
        memset(row, 0, 4 * problem->maskStride);
        if (parents[i] >= 0)
            memcpy(row, problem->mask + (size_t)(first + parents[i]) * problem->maskStride,
                   4 * problem->maskStride);
        for (uint32_t j = (uint32_t)nodes; j < 32 * problem->maskStride; j++)
            row[j / 32] |= 1u << j % 32;
        row[i / 32] |= 1u << i % 32;
    }
    int32_t depth = 0, begin = problem->cuAccepted[b];
    int32_t leaf = nodes > 0 ? (int32_t)randomBelow(random, (uint32_t)nodes) : -1;
    for (int32_t i = leaf; i >= 0; i = parents[i])
        depth++;
    for (int32_t i = leaf, at = begin + depth; i >= 0; i = parents[i])
        problem->accepted[--at] = i;
    problem->cuAccepted[b + 1] = begin + depth;
    free(parents);
}

void problemMakeMask(Problem* problem) {
    bool tree = problem->model.flags & VKMQA_ATTENTION_TREE_MASK_BIT;
    if (!tree && !(problem->model.flags & VKMQA_ATTENTION_MASK_BIT))
        return;
    int32_t bits = 1;
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        const Sequence* sequence = &problem->batch.sequences[b];
        int32_t needed = tree ? sequence->queries : sequence->tokens;
        bits = needed > bits ? needed : bits;
    }
    problem->maskStride = ((uint32_t)bits + 31) / 32;
    problem->mask = malloc(sizeof(uint32_t) * problem->totalQ * problem->maskStride);
    memset(problem->mask, 0xFF, sizeof(uint32_t) * problem->totalQ * problem->maskStride);
    problem->accepted = calloc(problem->totalQ, sizeof(int32_t));
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        Random random = tokenRandom(problem, b, 0, OF_MASK);
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        if (tree)
            growTree(problem, b, &random);
        for (int32_t i = 0; i < queries && !tree; i++) {
            int32_t position = i + problem->seqLensKv[b] - queries;
            maskToken(tokenRandom(problem, b, position, OF_MASK),
                      problem->mask + (size_t)(problem->cuSeqlensQ[b] + i) * problem->maskStride,
                      problem->maskStride);
        }
    }
}

// ---- Parameters: the same for all problems of a model ----------------------------------------------

static float* randomScales(Fp8Scales kind, OracleType type, uint32_t heads, uint64_t which) {
    if (kind == FP8_UNSCALED || type != ORACLE_FP8)
        return NULL;
    Random random = randomFor(harness.seed, OF_PARAMETERS, which);
    float* scales = malloc(sizeof(float) * heads);
    for (uint32_t h = 0; h < heads; h++)
        scales[h] = ldexpf(kind == FP8_ANY ? 1 + (float)randomBelow(&random, 1000) / 1000 : 1,
                           -(int)(4 + randomBelow(&random, 3)));
    return scales;
}

void problemMakeParameters(Problem* problem) {
    const Model* model = &problem->model;
    Random random = randomFor(harness.seed, OF_PARAMETERS, 0);
    if (model->flags & VKMQA_ATTENTION_SINKS_BIT) {
        problem->sinks = malloc(sizeof(float) * model->numHeadsQ);
        for (uint32_t h = 0; h < model->numHeadsQ; h++)
            problem->sinks[h] = 2 * randomNormal(&random);
    }
    if (model->flags & VKMQA_ATTENTION_ALIBI_BIT) {
        problem->alibiSlopes = malloc(sizeof(float) * model->numHeadsQ);
        for (uint32_t h = 0; h < model->numHeadsQ; h++)
            problem->alibiSlopes[h] = exp2f(-8 * (float)(h + 1) / (float)model->numHeadsQ);
    }
    problem->kScales = randomScales(model->fp8Scales, model->k, model->numHeadsKv, 1);
    problem->vScales = randomScales(model->fp8Scales, model->v, model->numHeadsKv, 2);
    uint32_t dim = model->ropeDim ? model->ropeDim : model->headDimQk - model->ropeOffset;
    if (model->rope != ORACLE_ROPE_NONE && model->ropeCustom) {
        // As YaRN has them: the slow half stretched, the fast half as it was, a ramp between.
        problem->ropeMagnitude = 1.1875f;
        problem->frequencies = malloc(sizeof(double) * (dim / 2 + 1));
        for (uint32_t i = 0; i < dim / 2; i++) {
            double ramp = fmin(1, fmax(0, 4.0 * i / dim - 0.5));
            problem->frequencies[i] = pow(500000, -2.0 * i / dim) * (1 - ramp + ramp / 8);
        }
    }
    problem->rotation = (OracleRotation){
        .style = model->rope,
        .dim = dim,
        .offset = model->ropeOffset,
        .frequencies = problem->frequencies,
        .theta = model->ropeTheta,
        .magnitude = problem->ropeMagnitude,
        .hadamard = (model->flags & VKMQA_ATTENTION_HADAMARD_BIT) != 0,
    };
}

// quality: what storing K and V in a type costs. Rows are appended and attended on the device, and the output is
// compared with f64 attention on the rows as they were.
// SPDX-License-Identifier: MIT
#include "problem.h"
#include "rotation.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double referenceBudget = 2e8;

static float* gaussian(uint64_t seed, size_t count) {
    float* values = allocate(count + 1, sizeof(float));
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < count; i += 2) { // Box and Muller
        double radius = sqrt(-2 * log(((double)nextRandom(&state) + 1) * 0x1p-24));
        double angle = 6.283185307179586 * (double)nextRandom(&state) * 0x1p-24;
        values[i] = (float)(radius * cos(angle));
        values[i + 1] = (float)(radius * sin(angle));
    }
    return values;
}

// One channel of each block of 32 is ten times as large, as some channels of K are in real models
// (KIVI, arXiv 2402.02750), so that every block spends its range on it.
static void addOutliers(const Item* item, size_t rows, float* k) {
    for (size_t r = 0; r < rows; r++)
        for (uint32_t d = 7; d < item->headDimQk; d += 32)
            k[r * item->headDimQk + d] *= 10;
}

// fp8 scales for rows [tokens, heads, dim] as append stores them.
static float* fitScales(const VkmqaAttentionCreateInfo* info, bool keys, const float* values,
                        uint32_t tokens) {
    uint32_t heads = info->numHeadsKv, dim = keys ? info->headDimQk : info->headDimV;
    float* scales = allocate(heads, sizeof(float));
    float row[1024];
    for (size_t r = 0; r < (size_t)tokens * heads; r++) {
        memcpy(row, values + r * dim, dim * sizeof(float));
        if (keys)
            rotateRow(info, 1, 0, row);
        for (uint32_t d = 0; d < dim; d++)
            scales[r % heads] = fmaxf(scales[r % heads], fabsf(row[d]));
    }
    for (uint32_t h = 0; h < heads; h++)
        scales[h] = fitScale(scales[h]);
    return scales;
}

// The rows as they were before append. A rotation of both q and K changes no score.
static void readQ(const void* user, uint32_t token, uint32_t head, float* row) {
    const Problem* p = user;
    const float* q = (const float*)(p->hostRawQ ? p->hostRawQ : p->hostQ);
    memcpy(row, q + ((size_t)token * p->numHeadsQ + head) * p->headDimQk,
           p->headDimQk * sizeof(float));
}
static size_t newRow(const Problem* p, uint32_t sequence, uint32_t head, uint32_t position) {
    return ((size_t)sequence * (p->totalNew / p->batch) + position) * p->numHeadsKv + head;
}
static void readK(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row) {
    const Problem* p = user;
    const float* k = (const float*)p->hostNewK;
    memcpy(row, k + newRow(p, sequence, head, position) * p->headDimQk,
           p->headDimQk * sizeof(float));
}
static void readV(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row) {
    const Problem* p = user;
    const uint8_t* v = p->hostNewV ? p->hostNewV : p->hostNewK;
    size_t stride = p->hostNewV ? p->headDimV : p->headDimQk; // a prefix of K without V of its own
    memcpy(row, (const float*)v + newRow(p, sequence, head, position) * stride,
           p->headDimV * sizeof(float));
}

static BenchResult createQualityProblem(Session* session, const Item* item, Problem* p) {
    int32_t queries = (int32_t)item->queryTokens, context = (int32_t)item->context;
    size_t rows = (size_t)item->context * item->numHeadsKv;
    float* q = gaussian(1, (size_t)item->queryTokens * item->numHeadsQ * item->headDimQk);
    float* k = gaussian(2, rows * item->headDimQk);
    float* v = gaussian(3, rows * item->headDimV);
    if (item->outliers)
        addOutliers(item, rows, k);
    ProblemInfo info = {
        .attention = attentionInfo(item),
        .batch = 1,
        .queryTokens = &queries,
        .contexts = &context,
        .newTokens = &context,
    };
    float* kScales = fitScales(&info.attention, true, k, item->context);
    float* vScales = fitScales(&info.attention, false, v, item->context);
    info.kScales = kScales;
    info.vScales = vScales;
    BenchResult result = createProblem(session, &info, p);
    free(kScales);
    free(vScales);
    if (result != BENCH_OK || !p->kvRequirements.v.size) {
        free(v);
        v = NULL;
    }
    if (result != BENCH_OK) {
        free(q);
        free(k);
        return result;
    }
    p->hostNewK = (uint8_t*)k;
    p->hostNewV = (uint8_t*)v;
    if (rotatesRows(&p->info))
        p->hostRawQ = (uint8_t*)q;
    else
        p->hostQ = (uint8_t*)q;
    return BENCH_OK;
}

static BenchResult runSteps(Problem* p) {
    size_t sizeQ = (size_t)p->totalQ * p->numHeadsQ * p->headDimQk * sizeof(float);
    BenchResult result = poisonCache(p);
    if (result == BENCH_OK && p->hostQ)
        result = checkVk(vkmqaUpload(p->q, 0, p->hostQ, sizeQ), "uploading queries");
    if (result == BENCH_OK)
        result = uploadNewRows(p);
    if (result == BENCH_OK)
        result = runOnce(p->session, recordAppend, p);
    if (result == BENCH_OK)
        result = poisonOutput(p);
    return result == BENCH_OK ? runOnce(p->session, recordAttention, p) : result;
}

// The kernel itself must be right: exact attention over what the cache stores.
static BenchResult judgeKernel(Problem* p, Row* row) {
    Reference expected = {0};
    Judgement judgement = {0};
    BenchResult result = downloadInputs(p, 0);
    if (result != BENCH_OK)
        return result;
    ReferenceProblem reference = referenceOf(p);
    computeReference(&reference, referenceBudget, &expected);
    result = judgeOutput(p, &expected, &judgement);
    row->wrong = judgement.wrong;
    if (judgement.wrong)
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    freeReference(&expected);
    return result;
}

// Against the rows as they were. For Gaussian data the type's bound holds; outliers have none.
static BenchResult measureError(Problem* p, const Item* item, Row* row) {
    Reference expected = {0};
    Judgement judgement = {0};
    ReferenceProblem reference = referenceOf(p);
    reference.readQ = readQ;
    reference.readK = readK;
    reference.readV = readV;
    computeReference(&reference, referenceBudget, &expected);
    p->bounds = (Bounds){.nmse = INFINITY, .lseRelative = -1}; // a measurement, no judgement
    BenchResult result = judgeOutput(p, &expected, &judgement);
    double bound = boundsOf((const TypeTraits*[]){p->ioType, p->kType, p->vType}, 3, false).nmse;
    row->nmse = judgement.nmse;
    if (result == BENCH_OK && !row->wrong && !item->outliers && !(row->nmse <= bound)) {
        row->wrong = true;
        snprintf(row->note, sizeof(row->note), "NMSE of out is %.3g, the bound is %.3g", row->nmse,
                 bound);
    }
    freeReference(&expected);
    return result;
}

BenchResult runQuality(Session* session, const Item* item, Row* row) {
    Problem problem;
    BenchResult result = createQualityProblem(session, item, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    row->bytes = row->flops = 0; // nothing is timed
    result = runSteps(&problem);
    if (result == BENCH_OK)
        result = judgeKernel(&problem, row);
    if (result == BENCH_OK)
        result = measureError(&problem, item, row);
    if (result == BENCH_OK && !row->wrong)
        snprintf(row->note, sizeof(row->note), "NMSE of storing %s in this type%s",
                 item->outliers ? "Gaussian data with outlier channels of K" : "Gaussian data",
                 problem.hostRawQ ? ", K rotated" : "");
    destroyProblem(&problem);
    return result;
}

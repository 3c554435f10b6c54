#include "oracle.h"

#include <math.h>
#include <stdlib.h>

static int64_t floorDivide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

static bool maskAllows(const OracleProblem* problem, uint32_t b, int32_t i, int32_t bit) {
    const uint32_t* words =
        problem->mask + (size_t)(problem->cuSeqlensQ[b] + i) * problem->maskStride;
    return words[bit / 32] >> bit % 32 & 1;
}

bool oracleSees(const OracleProblem* problem, uint32_t b, int32_t i, int32_t j) {
    int64_t tokens = problem->seqLensKv[b];
    int64_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
    int64_t position = i + tokens - queries; // may be negative
    if (problem->causal && j > position)
        return false;
    if (problem->hasWindowLeft && position - j > (int64_t)problem->windowLeft)
        return false;
    if (problem->hasWindowRight && j - position > (int64_t)problem->windowRight)
        return false;
    if (problem->chunkSize &&
        floorDivide(j, problem->chunkSize) != floorDivide(position, problem->chunkSize))
        return false;
    if (problem->mask && !problem->treeMask)
        return maskAllows(problem, b, i, j);
    if (problem->mask && j >= tokens - queries)
        return maskAllows(problem, b, i, (int32_t)(j - (tokens - queries)));
    return true;
}

// One query token and head. List of the positions it sees, so that nothing reads any other.
typedef struct Row {
    const float* q; // [headDimQk]
    const float* k; // the KV head's first key; the next is `stepK` further
    const float* v;
    size_t stepK, stepV;
    const int32_t* seen; // [count]
    int32_t count;
    int32_t position; // its own
    uint32_t head;
    size_t index;  // of the row in lse; of its first element in out, divided by headDimV
    void* weights; // room for count doubles
} Row;

typedef void (*RowFunction)(const OracleProblem* problem, const Row* row, void* out, void* lse);

static void attendHeads(const OracleProblem* problem, uint32_t b, int32_t i, size_t firstToken,
                        Row* row, RowFunction function, void* out, void* lse) {
    uint32_t ratio = problem->numHeadsQ / problem->numHeadsKv;
    for (uint32_t h = 0; h < problem->numHeadsQ; h++) {
        size_t firstRow = firstToken * problem->numHeadsKv + h / ratio;
        row->head = h;
        row->index = (size_t)(problem->cuSeqlensQ[b] + i) * problem->numHeadsQ + h;
        row->q = problem->q + row->index * problem->headDimQk;
        row->k = problem->k + firstRow * problem->headDimQk;
        row->stepK = (size_t)problem->numHeadsKv * problem->headDimQk;
        row->v = problem->v ? problem->v + firstRow * problem->headDimV : row->k;
        row->stepV = problem->v ? (size_t)problem->numHeadsKv * problem->headDimV : row->stepK;
        function(problem, row, out, lse);
    }
}

static void forEachRow(const OracleProblem* problem, RowFunction function, void* out, void* lse) {
    size_t firstToken = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        int32_t tokens = problem->seqLensKv[b];
        int32_t* seen = malloc(sizeof(int32_t) * ((size_t)tokens + 1));
        Row row = {.seen = seen, .weights = malloc(sizeof(double) * ((size_t)tokens + 1))};
        for (int32_t i = 0; i < queries; i++) {
            row.position = i + tokens - queries;
            row.count = 0;
            for (int32_t j = 0; j < tokens; j++)
                if (oracleSees(problem, b, i, j))
                    seen[row.count++] = j;
            attendHeads(problem, b, i, firstToken, &row, function, out, lse);
        }
        free(row.weights);
        free(seen);
        firstToken += (size_t)tokens;
    }
}

static double scaleOf(const OracleProblem* problem) {
    return problem->scale != 0 ? problem->scale : 1 / sqrt(problem->headDimQk);
}

static void attendRow(const OracleProblem* problem, const Row* row, void* outs, void* lses) {
    double* out = outs ? (double*)outs + row->index * problem->headDimV : NULL;
    double* lse = lses ? (double*)lses + row->index : NULL;
    double* weights = row->weights;
    double sink = problem->sinks ? problem->sinks[row->head] : -INFINITY;
    double largest = sink;
    for (int32_t n = 0; n < row->count; n++) {
        const float* k = row->k + (size_t)row->seen[n] * row->stepK;
        double score = 0;
        for (uint32_t d = 0; d < problem->headDimQk; d++)
            score += (double)row->q[d] * k[d];
        score *= scaleOf(problem);
        if (problem->softcap != 0)
            score = problem->softcap * tanh(score / problem->softcap);
        if (problem->alibiSlopes)
            score -= problem->alibiSlopes[row->head] * fabs((double)row->position - row->seen[n]);
        weights[n] = score;
        largest = fmax(largest, score);
    }
    double sum = sink == -INFINITY ? 0 : exp(sink - largest);
    for (int32_t n = 0; n < row->count; n++)
        sum += weights[n] = exp(weights[n] - largest);
    if (lse)
        *lse = sum > 0 ? largest + log(sum) : -INFINITY;
    for (uint32_t d = 0; out && d < problem->headDimV; d++)
        out[d] = 0;
    for (int32_t n = 0; out && n < row->count; n++) {
        const float* v = row->v + (size_t)row->seen[n] * row->stepV;
        double weight = weights[n] / sum;
        for (uint32_t d = 0; d < problem->headDimV; d++)
            out[d] += weight * v[d];
    }
}

void oracleAttention(const OracleProblem* problem, double* out, double* lse) {
    forEachRow(problem, attendRow, out, lse);
}

// An operand of a product, as P rounds it.
static float operand(const OracleProblem* problem, float value) {
    if (problem->operands != ORACLE_F32)
        oracleRound(problem->operands, &value, 1);
    return value;
}

static void attendRowPlainly(const OracleProblem* problem, const Row* row, void* outs, void* lses) {
    float* out = outs ? (float*)outs + row->index * problem->headDimV : NULL;
    float* lse = lses ? (float*)lses + row->index : NULL;
    float* weights = row->weights;
    float scale = (float)scaleOf(problem);
    float softcap = (float)problem->softcap;
    float sink = problem->sinks ? problem->sinks[row->head] : -INFINITY;
    float largest = sink;
    for (int32_t n = 0; n < row->count; n++) {
        const float* k = row->k + (size_t)row->seen[n] * row->stepK;
        float score = 0;
        for (uint32_t d = 0; d < problem->headDimQk; d++)
            score += operand(problem, row->q[d]) * operand(problem, k[d]);
        score *= scale;
        if (softcap != 0)
            score = softcap * tanhf(score / softcap);
        if (problem->alibiSlopes)
            score -= problem->alibiSlopes[row->head] * fabsf((float)(row->position - row->seen[n]));
        weights[n] = score;
        largest = fmaxf(largest, score);
    }
    float sum = sink == -INFINITY ? 0 : expf(sink - largest);
    for (int32_t n = 0; n < row->count; n++)
        sum += weights[n] = expf(weights[n] - largest);
    if (lse)
        *lse = sum > 0 ? largest + logf(sum) : -INFINITY;
    for (uint32_t d = 0; out && d < problem->headDimV; d++)
        out[d] = 0;
    for (int32_t n = 0; out && n < row->count; n++) {
        const float* v = row->v + (size_t)row->seen[n] * row->stepV;
        for (uint32_t d = 0; d < problem->headDimV; d++)
            out[d] += operand(problem, weights[n]) * operand(problem, v[d]);
    }
    for (uint32_t d = 0; out && row->count && d < problem->headDimV; d++)
        out[d] /= sum;
}

void oraclePlainAttention(const OracleProblem* problem, float* out, float* lse) {
    forEachRow(problem, attendRowPlainly, out, lse);
}

void oracleMerge(uint32_t parts, size_t rows, uint32_t width, const float* partOut,
                 const float* partLse, const float* sinks, uint32_t numHeads, double* out,
                 double* lse) {
    for (size_t r = 0; r < rows; r++) {
        double sink = sinks ? sinks[r % numHeads] : -INFINITY;
        double largest = sink;
        for (uint32_t p = 0; p < parts; p++)
            largest = fmax(largest, partLse[p * rows + r]);
        double sum = sink == -INFINITY ? 0 : exp(sink - largest);
        for (uint32_t d = 0; d < width; d++)
            out[r * width + d] = 0;
        for (uint32_t p = 0; p < parts; p++) {
            if (partLse[p * rows + r] == -INFINITY)
                continue; // whatever its out
            double weight = exp(partLse[p * rows + r] - largest);
            sum += weight;
            for (uint32_t d = 0; d < width; d++)
                out[r * width + d] += weight * partOut[(p * rows + r) * width + d];
        }
        for (uint32_t d = 0; d < width && sum > 0; d++)
            out[r * width + d] /= sum;
        lse[r] = sum > 0 ? largest + log(sum) : -INFINITY;
    }
}

void oraclePlainMerge(uint32_t parts, size_t rows, uint32_t width, const float* partOut,
                      const float* partLse, const float* sinks, uint32_t numHeads, float* out,
                      float* lse) {
    for (size_t r = 0; r < rows; r++) {
        float sink = sinks ? sinks[r % numHeads] : -INFINITY;
        float largest = sink;
        for (uint32_t p = 0; p < parts; p++)
            largest = fmaxf(largest, partLse[p * rows + r]);
        float sum = sink == -INFINITY ? 0 : expf(sink - largest);
        for (uint32_t d = 0; d < width; d++)
            out[r * width + d] = 0;
        for (uint32_t p = 0; p < parts; p++) {
            if (partLse[p * rows + r] == -INFINITY)
                continue;
            float weight = expf(partLse[p * rows + r] - largest);
            sum += weight;
            for (uint32_t d = 0; d < width; d++)
                out[r * width + d] += weight * partOut[(p * rows + r) * width + d];
        }
        for (uint32_t d = 0; d < width && sum > 0; d++)
            out[r * width + d] /= sum;
        lse[r] = sum > 0 ? largest + logf(sum) : -INFINITY;
    }
}

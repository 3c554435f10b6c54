#include "harness.h"

#include "compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t outOffset(const Run* run, size_t token, uint32_t head) {
    return (token * run->strideOut.token + (size_t)head * run->strideOut.head) *
           oracleElementBytes(run->model.io);
}

float* outputValues(const Run* run, const Problem* problem, const Output* output) {
    uint32_t heads = run->model.numHeadsQ, dim = run->model.headDimV;
    float* values = malloc(sizeof(float) * problem->totalQ * heads * dim);
    for (uint32_t t = 0; t < problem->totalQ; t++)
        for (uint32_t h = 0; h < heads; h++)
            oracleDecode(run->model.io, output->out + outOffset(run, t, h), dim,
                         values + ((size_t)t * heads + h) * dim);
    return values;
}

float* runQueries(const Run* run, const Problem* problem) {
    uint32_t heads = run->model.numHeadsQ, dim = run->model.headDimQk;
    float* values = malloc(sizeof(float) * problem->totalQ * heads * dim);
    uint8_t* bytes = malloc(run->q.range.size);
    guardedDownload(&run->q, bytes);
    for (uint32_t t = 0; t < problem->totalQ; t++)
        for (uint32_t h = 0; h < heads; h++)
            oracleDecode(run->model.io,
                         bytes + ((size_t)t * run->strideQ.token + (size_t)h * run->strideQ.head) *
                                     oracleElementBytes(run->model.io),
                         dim, values + ((size_t)t * heads + h) * dim);
    free(bytes);
    return values;
}

// What out is judged by: the problem's own, or computed anew from what the device has stored.
typedef struct References {
    const double *out, *lse;
    const float *plainOut, *plainLse;
    float *k, *v, *q; // as stored
    void* owned[4];
} References;

static void checkResult(CompareResult result, const char* label) {
    if (!result.right)
        fail_msg("%s: %s", label, result.text);
}

// Judges the bytes of K or V; returns the values that they stand for.
static float* checkCache(const Run* run, const Problem* problem, bool isV, const char* label) {
    OracleCache cache = problemCache(problem, isV);
    size_t size = oracleCacheBytes(&cache);
    uint8_t* before = malloc(size);
    uint8_t* got = malloc(size);
    memset(before, CACHE_POISON & 0xFF, size);
    guardedDownload(isV ? &run->v : &run->k, got);
    const CompareCache compare = {
        .cache = cache,
        .values = problemStored(problem, isV),
        .slots = problem->slots,
        .tokens = problem->totalKv,
        .before = before,
        .got = got,
        .byValue = (!isV && problemRotates(problem)) ||
                   (cache.type == ORACLE_FP8 && problem->model.fp8Scales == FP8_ANY),
        .hadamard = problem->rotation.hadamard,
    };
    CompareResult result = compareCache(&compare);
    float* values =
        malloc(sizeof(float) * ((size_t)problem->totalKv * cache.numHeads * cache.headDim + 1));
    oracleGather(&cache, got, problem->slots, problem->totalKv, values);
    free(before);
    free(got);
    checkResult(result, label);
    return values;
}

static float* checkQueries(const Run* run, const Problem* problem, const char* label) {
    uint32_t heads = run->model.numHeadsQ, dim = run->model.headDimQk;
    size_t rows = (size_t)problem->totalQ * heads;
    float* got = runQueries(run, problem);
    float* expected = malloc(sizeof(float) * rows * dim);
    memcpy(expected, problem->newQ, sizeof(float) * rows * dim);
    oracleRotateRows(&problem->rotation, problem->queryPositions, problem->totalQ, heads, dim,
                     expected);
    size_t first = (size_t)problem->cuSeqlensQ[0] * heads;
    size_t end = (size_t)problem->cuSeqlensQ[problem->batch.count] * heads;
    CompareResult result = compareRows(run->model.io, expected + first * dim, got + first * dim,
                                       end - first, dim, problem->rotation.hadamard);
    free(expected);
    checkResult(result, label);
    return got;
}

static bool sameValues(const float* a, const float* b, size_t count) {
    return memcmp(a, b, sizeof(float) * count) == 0;
}

static OracleProblem asStored(const Problem* problem, const References* references) {
    OracleProblem oracle = problemOracle(problem);
    oracle.k = references->k ? references->k : oracle.k;
    oracle.v = references->v ? references->v : oracle.v;
    oracle.q = references->q ? references->q : oracle.q;
    return oracle;
}

static void computePlainly(const OracleProblem* oracle, size_t rows, References* references) {
    free(references->owned[2]);
    free(references->owned[3]);
    references->plainOut = references->owned[2] = calloc(rows * oracle->headDimV, sizeof(float));
    references->plainLse = references->owned[3] = calloc(rows, sizeof(float));
    oraclePlainAttention(oracle, references->owned[2], references->owned[3]);
}

// Judges what append has stored. Where it differs from what the oracle would have stored, as it may,
// attention is judged by what is there.
static void checkAppended(const Run* run, const Problem* problem, const char* label,
                          References* references) {
    const Model* model = &run->model;
    size_t rowsKv = (size_t)problem->totalKv * model->numHeadsKv;
    size_t rowsQ = (size_t)problem->totalQ * model->numHeadsQ;
    references->k = checkCache(run, problem, false, label);
    bool same = sameValues(references->k, problem->k, rowsKv * model->headDimQk);
    if (problemHasV(problem)) {
        references->v = checkCache(run, problem, true, label);
        same &= sameValues(references->v, problem->v, rowsKv * model->headDimV);
    }
    if (problemRotates(problem)) {
        references->q = checkQueries(run, problem, label);
        same &= sameValues(references->q, problem->q, rowsQ * model->headDimQk);
    }
    if (same)
        return;
    OracleProblem oracle = asStored(problem, references);
    references->owned[0] = calloc(rowsQ * model->headDimV, sizeof(double));
    references->owned[1] = calloc(rowsQ, sizeof(double));
    oracleAttention(&oracle, references->owned[0], references->owned[1]);
    references->out = references->owned[0];
    references->lse = references->owned[1];
    computePlainly(&oracle, rowsQ, references);
}

// Kernels on matrix units round their operands to f16, and are judged by what does so, too: also values of a
// quantised cache, which costs more than the types' bound where softmax is near one-hot. Returns the bound.
static double allowRounding(const Run* run, const Problem* problem, References* references) {
    const Model* model = &run->model;
    double bound = compareMaxNmse(model->io, model->k, model->v), error = 0, all = 0;
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    REQUIRE(vkmqaGetKernelInfo(run->attention, &run->step.limits, &kernel));
    if (kernel.tier != VKMQA_TIER_COOPMAT)
        return bound;
    OracleProblem oracle = asStored(problem, references);
    // What f16 cannot hold is not rounded; its weights are, and bf16 has the range for the comparison.
    oracle.operands = problem->batch.magnitude > 65504 ? ORACLE_BF16 : ORACLE_F16;
    size_t rows = (size_t)problem->totalQ * model->numHeadsQ;
    computePlainly(&oracle, rows, references);
    for (size_t i = 0; i < rows * model->headDimV; i++) {
        double plain = references->plainOut[i], right = references->out[i];
        error += (plain - right) * (plain - right);
        all += right * right;
    }
    return all > 0 ? fmax(bound, 4 * error / all) : bound;
}

static void referencesDestroy(References* references) {
    free(references->k);
    free(references->v);
    free(references->q);
    for (int i = 0; i < 4; i++)
        free(references->owned[i]);
}

// Everything of out and lse that is no row of a sequence must still be poison.
static void checkUntouched(const Run* run, const Problem* problem, const Output* output,
                           const char* label) {
    uint32_t heads = run->model.numHeadsQ;
    size_t rowBytes = run->model.headDimV * oracleElementBytes(run->model.io);
    uint8_t* out = malloc(run->out.range.size);
    void* poison = poisonedBytes(run->out.range.size);
    memcpy(out, output->out, run->out.range.size);
    uint32_t first = (uint32_t)problem->cuSeqlensQ[0];
    uint32_t end = (uint32_t)problem->cuSeqlensQ[problem->batch.count];
    for (uint32_t t = first; t < end; t++)
        for (uint32_t h = 0; h < heads; h++)
            memcpy(out + outOffset(run, t, h), poison, rowBytes);
    for (size_t i = 0; i < run->out.range.size; i += 4)
        if (memcmp(out + i, poison, 4) != 0)
            fail_msg("%s: out was written at byte %zu, which belongs to no row", label, i);
    free(poison);
    free(out);
    for (uint32_t t = 0; t < run->step.limits.totalQ; t++) {
        for (uint32_t h = 0; h < heads && (t < first || t >= end); h++) {
            uint32_t word;
            memcpy(&word, &output->lse[(size_t)t * heads + h], 4);
            if (word != COMPARE_POISON)
                fail_msg("%s: lse of row %u, which belongs to no sequence, was written", label, t);
        }
    }
}

void runCheckGuards(const Run* run) {
    Run copy = *run;
    NamedBuffer buffers[RUN_BUFFERS];
    runBuffers(&copy, buffers);
    for (size_t i = 0; i < RUN_BUFFERS; i++)
        guardedCheck(buffers[i].guarded, buffers[i].name);
}

void runCheck(const Run* run, const Problem* problem, const Output* output, const char* label) {
    const Model* model = &run->model;
    References references = {.out = problem->out,
                             .lse = problem->lse,
                             .plainOut = problem->plainOut,
                             .plainLse = problem->plainLse};
    if (problem->batch.append)
        checkAppended(run, problem, label, &references);
    double maxNmse = allowRounding(run, problem, &references);
    float* got = outputValues(run, problem, output);
    CompareTensor out = {
        .batch = problem->batch.count,
        .numHeads = model->numHeadsQ,
        .width = model->headDimV,
        .cuSeqlensQ = problem->cuSeqlensQ,
        .reference = references.out,
        .plain = references.plainOut,
        .got = got,
        .type = model->io,
        .maxNmse = maxNmse,
    };
    CompareTensor lse = out;
    lse.width = 1;
    lse.reference = references.lse;
    lse.plain = references.plainLse;
    lse.got = output->lse;
    CompareResult outResult = compareOut(&out);
    CompareResult lseResult = compareLse(&lse);
    free(got);
    referencesDestroy(&references);
    checkResult(outResult, label);
    checkResult(lseResult, label);
    if (output->status != 0)
        fail_msg("%s: status 0x%x for good metadata", label, output->status);
    checkUntouched(run, problem, output, label);
    runCheckGuards(run);
}

void runProblem(VkmqaAttention attention, const Problem* problem, const char* label) {
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, problem->batch.append);
    runSubmit(&run);
    Output output = runRead(&run);
    runCheck(&run, problem, &output, label);
    outputDestroy(&output);
    runDestroy(&run);
}

#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- Where every token stands --------------------------------------------------------------------

// Gives every sequence its pages in random order, among three that nobody owns.
static void assignPages(Problem* problem, Random* random) {
    const Batch* batch = &problem->batch;
    uint32_t pageSize = problem->model.pageSize;
    problem->pageTokens = pageSize ? pageSize : problem->model.maxSeqLenKv;
    problem->numPages = pageSize ? 3 : batch->count;
    for (uint32_t b = 0; b < batch->count && pageSize; b++) {
        uint32_t pages = ((uint32_t)batch->sequences[b].tokens + pageSize - 1) / pageSize;
        problem->numPages += pages;
        if (problem->maxPages < pages + 1)
            problem->maxPages = pages + 1;
    }
    if (pageSize && batch->numPages > problem->numPages)
        problem->numPages = batch->numPages;
    int32_t* order = malloc(sizeof(int32_t) * problem->numPages);
    for (uint32_t i = 0; i < problem->numPages; i++) {
        uint32_t j = pageSize ? randomBelow(random, i + 1) : i;
        order[i] = order[j];
        order[j] = (int32_t)i;
    }
    size_t entries = (size_t)batch->count * problem->maxPages;
    problem->pageTable = pageSize ? malloc(sizeof(int32_t) * entries) : NULL;
    for (size_t i = 0; i < entries; i++)
        problem->pageTable[i] = INT32_MAX;
    problem->slots = malloc(sizeof(int32_t) * (problem->totalKv + 1));
    uint32_t nextPage = 0, token = 0;
    for (uint32_t b = 0; b < batch->count; b++) {
        for (uint32_t t = 0; t < (uint32_t)batch->sequences[b].tokens; t++) {
            uint32_t offset = t % problem->pageTokens;
            int32_t page = pageSize ? order[nextPage] : (int32_t)b;
            if (pageSize)
                problem->pageTable[(size_t)b * problem->maxPages + t / pageSize] = page;
            problem->slots[token++] = page * (int32_t)problem->pageTokens + (int32_t)offset;
            bool last = t + 1 == (uint32_t)batch->sequences[b].tokens;
            nextPage += last || offset + 1 == problem->pageTokens;
        }
    }
    free(order);
}

static void assignPositions(Problem* problem) {
    const Batch* batch = &problem->batch;
    problem->positions = calloc(problem->totalKv + 1, sizeof(int32_t));
    problem->queryPositions = calloc(problem->totalQ, sizeof(int32_t));
    int32_t* next = problem->positions;
    for (uint32_t b = 0; b < batch->count; b++) {
        const Sequence* sequence = &batch->sequences[b];
        for (int32_t t = 0; t < sequence->tokens; t++)
            *next++ = batch->firstPosition + t;
        for (int32_t i = 0; i < sequence->queries; i++)
            problem->queryPositions[problem->cuSeqlensQ[b] + i] =
                batch->firstPosition + i + sequence->tokens - sequence->queries;
    }
}

// Leaves the data to the caller.
static Problem problemLayout(const Model* model, const Batch* batch, uint64_t seed) {
    Problem problem = {.model = *model, .batch = *batch, .seed = seed};
    Random random = randomFor(harness.seed, seed, 1);
    int32_t row = problem.cuSeqlensQ[0] = batch->gaps ? 2 : 0;
    for (uint32_t b = 0; b < batch->count; b++) {
        row += batch->sequences[b].queries;
        problem.cuSeqlensQ[b + 1] = row;
        problem.seqLensKv[b] = batch->sequences[b].tokens;
        problem.totalKv += (uint32_t)batch->sequences[b].tokens;
    }
    problem.totalQ = (uint32_t)row + (batch->gaps ? 3 : 0);
    problem.totalQ += problem.totalQ == 0;
    assignPages(&problem, &random);
    assignPositions(&problem);
    return problem;
}

// ---- Problems --------------------------------------------------------------------------------------

static float* copyOf(const float* values, size_t count) {
    float* copy = malloc(sizeof(float) * (count + 1));
    memcpy(copy, values, sizeof(float) * count);
    return copy;
}

// Everything that follows from newQ, newK, newV and mask.
static void problemDerive(Problem* problem, bool referenced) {
    const Model* model = &problem->model;
    size_t rowsQ = (size_t)problem->totalQ * model->numHeadsQ;
    size_t rowsKv = (size_t)problem->totalKv * model->numHeadsKv;
    problem->q = copyOf(problem->newQ, rowsQ * model->headDimQk);
    problem->turnedK = copyOf(problem->newK, rowsKv * model->headDimQk);
    oracleRotateRows(&problem->rotation, problem->queryPositions, problem->totalQ, model->numHeadsQ,
                     model->headDimQk, problem->q);
    oracleRotateRows(&problem->rotation, problem->positions, problem->totalKv, model->numHeadsKv,
                     model->headDimQk, problem->turnedK);
    oracleRound(model->io, problem->q, rowsQ * model->headDimQk);
    for (int isV = 0; isV < 1 + problemHasV(problem); isV++) {
        OracleCache cache = problemCache(problem, isV);
        uint8_t* image = problemImage(problem, isV);
        float* values = malloc(sizeof(float) * (rowsKv * cache.headDim + 1));
        oracleGather(&cache, image, problem->slots, problem->totalKv, values);
        *(isV ? &problem->v : &problem->k) = values;
        free(image);
    }
    problem->out = calloc(rowsQ * model->headDimV, sizeof(double));
    problem->lse = calloc(rowsQ, sizeof(double));
    problem->plainOut = calloc(rowsQ * model->headDimV, sizeof(float));
    problem->plainLse = calloc(rowsQ, sizeof(float));
    if (referenced) {
        OracleProblem oracle = problemOracle(problem);
        oracleAttention(&oracle, problem->out, problem->lse);
        oraclePlainAttention(&oracle, problem->plainOut, problem->plainLse);
    }
}

Problem problemCreate(const Model* model, const Batch* batch, uint64_t seed, bool referenced) {
    Problem problem = problemLayout(model, batch, seed);
    problemMakeParameters(&problem);
    problemMakeMask(&problem);
    problem.newQ = problemRandomQueries(&problem);
    problem.newK = problemRandomTokens(&problem, false);
    problem.newV = problemHasV(&problem) ? problemRandomTokens(&problem, true) : NULL;
    problemDerive(&problem, referenced);
    return problem;
}

static VkmqaAttentionFlags flagsOf(const OracleProblem* given) {
    return (given->hasWindowLeft ? VKMQA_ATTENTION_WINDOW_LEFT_BIT : 0u) |
           (given->hasWindowRight ? VKMQA_ATTENTION_WINDOW_RIGHT_BIT : 0u) |
           (given->alibiSlopes ? VKMQA_ATTENTION_ALIBI_BIT : 0u) |
           (given->sinks ? VKMQA_ATTENTION_SINKS_BIT : 0u) |
           (given->mask ? VKMQA_ATTENTION_MASK_BIT : 0u) |
           (given->v ? 0u : VKMQA_ATTENTION_V_PREFIX_OF_K_BIT);
}

Problem problemFromCase(const CaseFile* file, uint64_t seed) {
    const OracleProblem* given = &file->problem;
    const Model model = {.numHeadsQ = given->numHeadsQ,
                         .numHeadsKv = given->numHeadsKv,
                         .headDimQk = given->headDimQk,
                         .headDimV = given->headDimV,
                         .pageSize = file->pageSize,
                         .io = file->type,
                         .k = file->kType,
                         .v = file->vType,
                         .causal = given->causal,
                         .maxSeqLenKv = 512,
                         .scale = (float)given->scale,
                         .source = file->type,
                         .flags = flagsOf(given),
                         .windowLeft = given->windowLeft,
                         .windowRight = given->windowRight,
                         .softcap = (float)given->softcap,
                         .rope = file->rotation.style,
                         .ropeDim = file->rotation.dim,
                         .ropeTheta = file->rotation.theta};
    Batch batch = {.count = given->batch, .append = true};
    assert_true(given->batch <= MAX_SEQUENCES);
    for (uint32_t b = 0; b < batch.count; b++)
        batch.sequences[b] =
            (Sequence){given->cuSeqlensQ[b + 1] - given->cuSeqlensQ[b], given->seqLensKv[b]};
    Problem problem = problemLayout(&model, &batch, seed);
    problemMakeParameters(&problem);
    size_t rowsQ = (size_t)problem.totalQ * model.numHeadsQ;
    size_t rowsKv = (size_t)problem.totalKv * model.numHeadsKv;
    if (given->sinks)
        memcpy(problem.sinks, given->sinks, sizeof(float) * model.numHeadsQ);
    if (given->alibiSlopes)
        memcpy(problem.alibiSlopes, given->alibiSlopes, sizeof(float) * model.numHeadsQ);
    if (given->mask) {
        problem.maskStride = given->maskStride;
        problem.mask = malloc(sizeof(uint32_t) * problem.totalQ * problem.maskStride);
        memcpy(problem.mask, given->mask, sizeof(uint32_t) * problem.totalQ * problem.maskStride);
    }
    problem.newQ = copyOf(given->q, rowsQ * model.headDimQk);
    problem.newK = copyOf(given->k, rowsKv * model.headDimQk);
    problem.newV = given->v ? copyOf(given->v, rowsKv * model.headDimV) : NULL;
    problemDerive(&problem, true);
    return problem;
}

void problemDestroy(Problem* problem) {
    void* all[] = {
        problem->pageTable,   problem->slots,       problem->positions, problem->queryPositions,
        problem->newQ,        problem->q,           problem->newK,      problem->newV,
        problem->turnedK,     problem->k,           problem->v,         problem->mask,
        problem->sinks,       problem->alibiSlopes, problem->kScales,   problem->vScales,
        problem->frequencies, problem->accepted,    problem->out,       problem->lse,
        problem->plainOut,    problem->plainLse};
    for (size_t i = 0; i < COUNT(all); i++)
        free(all[i]);
    memset(problem, 0, sizeof(*problem));
}

bool problemRotates(const Problem* problem) { return oracleRotates(&problem->rotation); }

bool problemHasV(const Problem* problem) {
    return !(problem->model.flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT);
}

OracleProblem problemOracle(const Problem* problem) {
    const Model* model = &problem->model;
    OracleProblem oracle = {
        .batch = problem->batch.count,
        .numHeadsQ = model->numHeadsQ,
        .numHeadsKv = model->numHeadsKv,
        .headDimQk = model->headDimQk,
        .headDimV = model->headDimV,
        .cuSeqlensQ = problem->cuSeqlensQ,
        .seqLensKv = problem->seqLensKv,
        .q = problem->q,
        .k = problem->k,
        .v = problem->v,
        .scale = model->scale,
        .causal = model->causal,
        .hasWindowLeft = (model->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT) != 0,
        .hasWindowRight = (model->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT) != 0,
        .windowLeft = model->windowLeft,
        .windowRight = model->windowRight,
        .chunkSize = model->chunkSize,
        .softcap = model->softcap,
        .alibiSlopes = problem->alibiSlopes,
        .sinks = problem->sinks,
        .mask = problem->mask,
        .maskStride = problem->maskStride,
        .treeMask = (model->flags & VKMQA_ATTENTION_TREE_MASK_BIT) != 0,
    };
    return oracle;
}

OracleCache problemCache(const Problem* problem, bool isV) {
    OracleCache cache = {
        .type = isV ? problem->model.v : problem->model.k,
        .numPages = problem->numPages,
        .numHeads = problem->model.numHeadsKv,
        .pageTokens = problem->pageTokens,
        .headDim = isV ? problem->model.headDimV : problem->model.headDimQk,
        .scales = isV ? problem->vScales : problem->kScales,
    };
    return cache;
}

const float* problemStored(const Problem* problem, bool isV) {
    return isV ? problem->newV : problem->turnedK;
}

uint8_t* problemImage(const Problem* problem, bool isV) {
    OracleCache cache = problemCache(problem, isV);
    size_t size = oracleCacheBytes(&cache);
    uint8_t* image = malloc(size + 4);
    memset(image, CACHE_POISON & 0xFF, size);
    oracleAppend(&cache, image, NULL, problemStored(problem, isV), problem->slots,
                 problem->totalKv);
    return image;
}

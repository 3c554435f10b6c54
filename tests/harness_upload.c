#include "harness.h"

#include <stdlib.h>
#include <string.h>

// Spreads packed rows over a strided range, NaN in the gaps, and uploads it.
static void uploadStrided(const Guarded* guarded, const float* values, VkmqaStrides strides,
                          uint32_t tokens, uint32_t heads, uint32_t dim, OracleType type) {
    uint8_t* bytes = poisonedBytes(guarded->range.size);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < heads; h++)
            oracleEncode(type, values + ((size_t)t * heads + h) * dim, dim,
                         bytes + ((size_t)t * strides.token + (size_t)h * strides.head) *
                                     oracleElementBytes(type));
    guardedUpload(guarded, bytes);
    free(bytes);
}

static void copyInts(int32_t* words, uint32_t offset, const int32_t* values, uint32_t count) {
    if (offset != VKMQA_NONE && values)
        memcpy(words + offset / 4, values, 4 * (size_t)count);
}

static uint32_t lesser(uint32_t a, uint32_t b) { return a < b ? a : b; }

int32_t* runMetadata(const Run* run, const Problem* problem) {
    const VkmqaStepLayout* layout = &run->step.layout;
    const VkmqaStepLimits* limits = &run->step.limits;
    int32_t* words = poisonedBytes(run->metadata.range.size);
    copyInts(words, layout->cuSeqlensQ, problem->cuSeqlensQ, limits->batch + 1);
    copyInts(words, layout->seqLensKv, problem->seqLensKv, limits->batch);
    for (uint32_t i = 0; i < limits->newTokens; i++)
        words[layout->slotMapping / 4 + i] = i < problem->totalKv ? problem->slots[i] : -1;
    for (uint32_t b = 0; b < limits->batch && problem->pageTable; b++)
        copyInts(words, layout->pageTable + 4 * b * layout->maxPages,
                 problem->pageTable + (size_t)b * problem->maxPages,
                 lesser(layout->maxPages, problem->maxPages));
    copyInts(words, layout->positions, problem->positions,
             lesser(limits->newTokens, problem->totalKv));
    copyInts(words, layout->queryPositions, problem->queryPositions,
             lesser(limits->totalQ, problem->totalQ));
    copyInts(words, layout->cuAccepted, problem->cuAccepted, limits->batch + 1);
    copyInts(words, layout->accepted, problem->accepted, lesser(limits->totalQ, problem->totalQ));
    words[layout->status / 4] = 0;
    return words;
}

// Of the slots, those of tokens that some query sees; -1 for the others. To be freed.
static int32_t* seenSlots(const Problem* problem) {
    OracleProblem oracle = problemOracle(problem);
    int32_t* slots = malloc(sizeof(int32_t) * (problem->totalKv + 1));
    size_t token = 0;
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        for (int32_t j = 0; j < problem->seqLensKv[b]; j++, token++) {
            slots[token] = -1;
            for (int32_t i = 0; i < queries && slots[token] < 0; i++)
                if (oracleSees(&oracle, b, i, j))
                    slots[token] = problem->slots[token];
        }
    }
    return slots;
}

void runFillUnowned(Run* run, const Problem* problem, uint32_t word, bool unseen) {
    int32_t* seen = unseen ? seenSlots(problem) : NULL;
    for (int isV = 0; isV < 1 + problemHasV(problem); isV++) {
        OracleCache cache = problemCache(problem, isV);
        uint8_t* image = malloc(oracleCacheBytes(&cache));
        for (size_t i = 0; i < oracleCacheBytes(&cache); i += 4)
            memcpy(image + i, &word, 4);
        oracleAppend(&cache, image, NULL, problemStored(problem, isV), seen ? seen : problem->slots,
                     problem->totalKv);
        guardedUpload(isV ? &run->v : &run->k, image);
        free(image);
    }
    free(seen);
}

static void uploadMask(const Run* run, const Problem* problem) {
    if (!problem->mask)
        return;
    uint32_t* words = malloc(run->mask.range.size);
    memset(words, 0xFF, run->mask.range.size);
    size_t rowBytes = 4 * (size_t)lesser(problem->maskStride, run->maskStride);
    for (uint32_t t = 0; t < problem->totalQ; t++)
        memcpy(words + (size_t)t * run->maskStride, problem->mask + (size_t)t * problem->maskStride,
               rowBytes);
    guardedUpload(&run->mask, words);
    free(words);
}

static void uploadParameters(const Run* run, const Problem* problem) {
    if (!run->parameters.memory)
        return;
    const VkmqaParametersInfo info = parametersInfo(problem);
    void* bytes = poisonedBytes(run->parameters.range.size);
    REQUIRE(vkmqaWriteParameters(run->attention, &info, run->parameters.range.size, bytes));
    guardedUpload(&run->parameters, bytes);
    free(bytes);
}

static void uploadQueries(const Run* run, const Problem* problem) {
    const Model* model = &run->model;
    bool byAppend = problemRotates(problem) && problem->batch.append;
    if (byAppend && !run->inPlace)
        uploadStrided(&run->newQ, problem->newQ, run->strideNewQ, problem->totalQ, model->numHeadsQ,
                      model->headDimQk, model->source);
    // What append is to write is poison before.
    uploadStrided(&run->q, byAppend ? problem->newQ : problem->q, run->strideQ,
                  byAppend && !run->inPlace ? 0 : problem->totalQ, model->numHeadsQ,
                  model->headDimQk, model->io);
}

void runUpload(Run* run, const Problem* problem) {
    const Model* model = &run->model;
    int32_t* words = runMetadata(run, problem);
    guardedUpload(&run->metadata, words);
    free(words);
    uploadQueries(run, problem);
    uploadMask(run, problem);
    uploadParameters(run, problem);
    Guarded* caches[] = {&run->k, &run->v};
    for (int isV = 0; isV < 1 + problemHasV(problem); isV++) {
        uint8_t* image = problemImage(problem, isV);
        if (problem->batch.append)
            memset(image, CACHE_POISON & 0xFF, caches[isV]->range.size);
        guardedUpload(caches[isV], image);
        free(image);
    }
    if (problem->batch.append) {
        uploadStrided(&run->newK, problem->newK, run->strideK, problem->totalKv, model->numHeadsKv,
                      model->headDimQk, model->source);
        if (problemHasV(problem))
            uploadStrided(&run->newV, problem->newV, run->strideV, problem->totalKv,
                          model->numHeadsKv, model->headDimV, model->source);
    }
    Guarded* outputs[] = {&run->out, &run->lse};
    for (int i = 0; i < 2; i++) {
        void* bytes = poisonedBytes(outputs[i]->range.size);
        guardedUpload(outputs[i], bytes);
        free(bytes);
    }
}

// What a problem's outputs must be: the reference's view of its inputs, and the judgement of a run.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void readQ(const void* user, uint32_t token, uint32_t head, float* row) {
    const Problem* p = user;
    size_t at = ((size_t)token * p->numHeadsQ + head) * p->headDimQk;
    decodeElements(p->ioType, p->hostQ + at * p->ioType->bytes, p->headDimQk, row);
}
static void readK(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row) {
    const Problem* p = user;
    decodeCacheRow(&p->planeK, p->hostK, rowOf(p, head, slotOf(p, sequence, position)), head, row);
}
static void readV(const void* user, uint32_t sequence, uint32_t head, uint32_t position,
                  float* row) {
    const Problem* p = user;
    const uint8_t* cache = p->info.flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT ? p->hostK : p->hostV;
    decodeCacheRow(&p->planeV, cache, rowOf(p, head, slotOf(p, sequence, position)), head, row);
}

static bool allows(const void* user, uint32_t sequence, uint32_t token, uint32_t position) {
    const Problem* p = user;
    int64_t bit = position;
    if (p->info.flags & VKMQA_ATTENTION_TREE_MASK_BIT)
        bit -= p->seqLensKv[sequence] - (p->cuSeqlensQ[sequence + 1] - p->cuSeqlensQ[sequence]);
    return bit < 0 || p->mask[(size_t)token * p->maskStride + bit / 32] >> bit % 32 & 1;
}

ReferenceProblem referenceOf(const Problem* p) {
    return (ReferenceProblem){
        .info = &p->info,
        .scale = p->scale,
        .softcap = p->softcap,
        .batch = p->batch,
        .cuSeqlensQ = p->cuSeqlensQ,
        .seqLensKv = p->seqLensKv,
        .sinks = p->sinks,
        .alibiSlopes = p->alibiSlopes,
        .readQ = readQ,
        .readK = readK,
        .readV = readV,
        .allows = p->mask ? allows : NULL,
        .user = p,
    };
}

BenchResult readStatus(Problem* problem) {
    uint32_t status = 0;
    if (problem->step.layout.status == VKMQA_NONE)
        return BENCH_OK;
    BenchResult result =
        checkVk(vkmqaDownload(problem->metadata, problem->step.layout.status, &status, 4),
                "reading the status word");
    if (result == BENCH_OK && status)
        return fail(BENCH_WRONG, "kernel %s reports status 0x%x on good metadata",
                    problem->kernel.name, status);
    return result;
}

BenchResult judgeOutput(Problem* problem, const Reference* expected, Judgement* judgement) {
    size_t rows = (size_t)problem->totalQ * problem->numHeadsQ;
    size_t elements = rows * problem->headDimV, bytes = elements * problem->ioType->bytes;
    uint8_t* out = allocate(bytes + 4, 1);
    float* lse = allocate(rows + 1, 4);
    BenchResult result = checkVk(vkmqaDownload(problem->out, 0, out, (bytes + 3) & ~(size_t)3),
                                 "downloading the output");
    if (result == BENCH_OK)
        result = checkVk(vkmqaDownload(problem->lse, 0, lse, rows * 4), "downloading lse");
    if (result == BENCH_OK)
        result = readStatus(problem);
    if (result == BENCH_OK)
        *judgement = judge(expected, problem->numHeadsQ, problem->headDimV, problem->ioType, out,
                           lse, problem->bounds);
    // The sample leaves rows out: none of those may be NaN, which is also what an untouched one is.
    float row[1024];
    for (size_t i = 0; result == BENCH_OK && !expected->complete && !judgement->wrong && i < rows;
         i++) {
        decodeElements(problem->ioType, out + i * problem->headDimV * problem->ioType->bytes,
                       problem->headDimV, row);
        for (uint32_t d = 0; d < problem->headDimV && !judgement->wrong; d++) {
            if (isfinite(row[d]))
                continue;
            judgement->wrong = true;
            snprintf(judgement->why, sizeof(judgement->why),
                     "out of query token %zu, head %zu is not finite, or was not written",
                     i / problem->numHeadsQ, i % problem->numHeadsQ);
        }
    }
    free(out);
    free(lse);
    return result;
}

BenchResult poisonOutput(Problem* problem) {
    size_t rows = (size_t)problem->totalQ * problem->numHeadsQ;
    size_t bytes = (rows * problem->headDimV * problem->ioType->bytes + 3) & ~(size_t)3;
    size_t most = bytes > rows * 4 ? bytes : rows * 4;
    uint8_t* poison = allocate(most, 1);
    memset(poison, 0xFF, most);
    BenchResult result =
        checkVk(vkmqaUpload(problem->out, 0, poison, bytes), "clearing the output");
    if (result == BENCH_OK)
        result = checkVk(vkmqaUpload(problem->lse, 0, poison, rows * 4), "clearing lse");
    free(poison);
    return result;
}

BenchResult verifyAttention(Problem* problem, const Reference* expected, Judgement* judgement) {
    BenchResult result = poisonOutput(problem);
    if (result == BENCH_OK)
        result = runOnce(problem->session, recordAttention, problem);
    if (result == BENCH_OK)
        result = judgeOutput(problem, expected, judgement);
    return result;
}

// append: conversion and scatter of new rows into the cache.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What the cache must hold: the bytes from before, and each new row converted by the host.
static void applyOnHost(const Problem* problem, const TypeTraits* type, uint32_t headDim,
                        uint32_t rowBytes, const uint8_t* rows, uint8_t* cache) {
    float values[1024];
    size_t row = 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        uint32_t count = (uint32_t)(problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b]);
        for (uint32_t t = 0; t < count; t++) {
            uint32_t position = (uint32_t)problem->seqLensKv[b] - count + t;
            for (uint32_t h = 0; h < problem->numHeadsKv; h++, row++) {
                decodeElements(problem->newType, rows + row * headDim * problem->newType->bytes,
                               headDim, values);
                encodeElements(type, values, headDim,
                               cache + rowOffset(problem, b, h, position, rowBytes));
            }
        }
    }
}

// Conversions are exact, so every byte counts, those that append must leave alone too.
static BenchResult comparePlane(const Problem* problem, VkmqaMemory memory, VkDeviceSize size,
                                uint32_t headDim, const TypeTraits* type, uint32_t rowBytes,
                                const uint8_t* expected, const char* plane, Row* row) {
    uint8_t* got = allocate(size, 1);
    BenchResult result = checkVk(vkmqaDownload(memory, 0, got, size), "downloading the cache");
    for (size_t at = 0; result == BENCH_OK && at < size && !row->wrong; at += rowBytes) {
        if (memcmp(got + at, expected + at, (size_t)headDim * type->bytes) == 0)
            continue;
        row->wrong = true;
        snprintf(row->note, sizeof(row->note),
                 "%s cache row %zu (slot %zu) is not what was appended", plane, at / rowBytes,
                 at / rowBytes / problem->numHeadsKv); // in [page, head, offset] order
    }
    free(got);
    return result;
}

static BenchResult verifyAppend(Problem* problem, Row* row) {
    const VkmqaKvRequirements* kv = &problem->kvRequirements;
    applyOnHost(problem, problem->kType, problem->headDimQk, kv->rowBytesK, problem->hostNewK,
                problem->hostK);
    applyOnHost(problem, problem->vType, problem->headDimV, kv->rowBytesV, problem->hostNewV,
                problem->hostV);
    BenchResult result = comparePlane(problem, problem->k, kv->k.size, problem->headDimQk,
                                      problem->kType, kv->rowBytesK, problem->hostK, "K", row);
    if (result == BENCH_OK && !row->wrong)
        result = comparePlane(problem, problem->v, kv->v.size, problem->headDimV, problem->vType,
                              kv->rowBytesV, problem->hostV, "V", row);
    if (result == BENCH_OK)
        result = readStatus(problem);
    row->nmse = 0; // or the row is wrong
    return result;
}

BenchResult runAppend(Session* session, const Item* item, Row* row) {
    Problem problem;
    BenchResult result = createItemProblem(session, item, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    size_t rows = (size_t)problem.totalNew * problem.numHeadsKv;
    size_t elements = rows * (problem.headDimQk + problem.headDimV);
    row->flops = 0;
    row->bytes =
        (double)elements * problem.newType->bytes +
        (double)rows * (problem.kvRequirements.rowBytesK + problem.kvRequirements.rowBytesV);
    snprintf(row->kernel, sizeof(row->kernel), "append");
    snprintf(row->reason, sizeof(row->reason), "converts and scatters K and V in one dispatch");
    problem.hostNewK = allocate(rows * problem.headDimQk + 4, 4);
    problem.hostNewV = allocate(rows * problem.headDimV + 4, 4);
    fillRandom(problem.newType, 4, rows * problem.headDimQk, problem.hostNewK);
    fillRandom(problem.newType, 5, rows * problem.headDimV, problem.hostNewV);
    result = fillProblem(&problem);
    if (result == BENCH_OK)
        result = uploadNewRows(&problem);
    if (result == BENCH_OK)
        result = measure(session, recordAppend, &problem, problem.copies, &row->time);
    if (result == BENCH_OK && session->options->verify)
        result = verifyAppend(&problem, row);
    if (result == BENCH_OK)
        applyRoof(session, row);
    destroyProblem(&problem);
    return result;
}

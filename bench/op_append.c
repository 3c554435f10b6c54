// append: conversion and scatter of new rows into the cache.
// SPDX-License-Identifier: MIT
#include "problem.h"
#include "rotation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct AppendCheck {
    const Problem* problem;
    const CachePlane* plane;
    const char* name;
    const uint8_t* rows;   // [totalNew, numHeadsKv, headDim] of newType
    const uint8_t* before; // the whole cache
    bool rotated;
} AppendCheck;

// Marks the cache rows that append must have written, and compares them with what the host makes of the new
// rows: every byte, except that a rotation's last bits are the device's own.
static void checkWritten(const AppendCheck* check, const uint8_t* got, bool* written, Row* row) {
    const Problem* p = check->problem;
    float values[1024];
    for (uint32_t t = 0; t < p->totalNew && !row->wrong; t++)
        for (uint32_t h = 0; h < p->numHeadsKv && !row->wrong; h++) {
            size_t at = ((size_t)t * p->numHeadsKv + h) * check->plane->headDim;
            size_t cacheRow = rowOf(p, h, (uint32_t)p->slots[t]);
            decodeElements(p->newType, check->rows + at * p->newType->bytes, check->plane->headDim,
                           values);
            if (check->rotated)
                rotateRow(&p->info, p->ropeTheta, p->positions[t], values);
            written[cacheRow] = true;
            if (cacheRowAgrees(check->plane, values, h, got, cacheRow, !check->rotated))
                continue;
            row->wrong = true;
            snprintf(row->note, sizeof(row->note),
                     "%s cache, slot %d, head %u is not what was appended", check->name,
                     p->slots[t], h);
        }
}

// Bytes of the other rows, which append must leave alone.
static void checkUntouched(const AppendCheck* check, const uint8_t* got, const bool* written,
                           Row* row) {
    const CachePlane* plane = check->plane;
    size_t codes = plane->scalesOffset ? plane->scalesOffset : plane->size;
    for (size_t r = 0; (r + 1) * plane->rowBytes <= codes && !row->wrong; r++) {
        const uint8_t *a = got + r * plane->rowBytes, *b = check->before + r * plane->rowBytes;
        size_t scales = plane->scalesOffset + r * plane->scaleBytes;
        if (written[r] || (memcmp(a, b, plane->rowBytes) == 0 &&
                           memcmp(got + scales, check->before + scales, plane->scaleBytes) == 0))
            continue;
        row->wrong = true;
        snprintf(row->note, sizeof(row->note), "%s cache, row %zu changed and was not appended to",
                 check->name, r);
    }
}

BenchResult verifyAppendedPlane(const Problem* p, bool keys, uint32_t copy, Row* row) {
    AppendCheck check = {
        .problem = p,
        .plane = keys ? &p->planeK : &p->planeV,
        .name = keys ? "K" : "V",
        .rows = keys ? p->hostNewK : p->hostNewV,
        .before = keys ? p->hostK : p->hostV,
        .rotated = keys && rotatesRows(&p->info),
    };
    size_t size = (check.plane->size + 3) & ~(size_t)3;
    uint8_t* got = allocate(size, 1);
    bool* written = allocate(check.plane->size / check.plane->rowBytes + 1, sizeof(bool));
    BenchResult result = checkVk(keys ? vkmqaDownload(p->k, copy * p->strideK, got, size)
                                      : vkmqaDownload(p->v, copy * p->strideV, got, size),
                                 "downloading the cache");
    if (result == BENCH_OK)
        checkWritten(&check, got, written, row);
    if (result == BENCH_OK && !row->wrong)
        checkUntouched(&check, got, written, row);
    free(written);
    free(got);
    return result;
}

// Rotated queries, by value: what the reference rotates, rounded to the io type.
BenchResult verifyRotatedQ(const Problem* p, Row* row) {
    size_t rows = (size_t)p->totalQ * p->numHeadsQ, elements = rows * p->headDimQk;
    size_t bytes = (elements * p->ioType->bytes + 3) & ~(size_t)3;
    CachePlane plane = {
        .type = p->ioType, .headDim = p->headDimQk, .rowBytes = p->headDimQk * p->ioType->bytes};
    uint8_t* got = allocate(bytes, 1);
    float values[1024];
    BenchResult result =
        checkVk(vkmqaDownload(p->q, 0, got, bytes), "downloading the rotated queries");
    for (size_t r = 0; result == BENCH_OK && r < rows && !row->wrong; r++) {
        size_t at = r * p->headDimQk * p->newType->bytes;
        decodeElements(p->newType, p->hostRawQ + at, p->headDimQk, values);
        rotateRow(&p->info, p->ropeTheta, p->queryPositions[r / p->numHeadsQ], values);
        if (cacheRowAgrees(&plane, values, 0, got, r, false))
            continue;
        row->wrong = true;
        snprintf(row->note, sizeof(row->note), "query token %zu, head %zu is not rotated rightly",
                 r / p->numHeadsQ, r % p->numHeadsQ);
    }
    free(got);
    return result;
}

static BenchResult verifyAppend(Problem* problem, Row* row) {
    BenchResult result = verifyAppendedPlane(problem, true, 0, row);
    if (result == BENCH_OK && !row->wrong && problem->kvRequirements.v.size)
        result = verifyAppendedPlane(problem, false, 0, row);
    if (result == BENCH_OK && !row->wrong && problem->rawQ)
        result = verifyRotatedQ(problem, row);
    if (result == BENCH_OK)
        result = readStatus(problem);
    if (!rotatesRows(&problem->info))
        row->nmse = 0; // or the row is wrong
    else if (result == BENCH_OK && !row->wrong)
        snprintf(row->note, sizeof(row->note), "rotated rows agree by value");
    return result;
}

static uint8_t* randomRows(const TypeTraits* type, uint64_t seed, size_t elements) {
    uint8_t* rows = allocate(elements + 4, type->bytes);
    fillRandom(type, 1, seed, elements * type->bytes, rows);
    return rows;
}

void fillNewRows(Problem* p) {
    size_t rows = (size_t)p->totalNew * p->numHeadsKv;
    p->hostNewK = randomRows(p->newType, 4, rows * p->headDimQk);
    if (p->kvRequirements.v.size)
        p->hostNewV = randomRows(p->newType, 5, rows * p->headDimV);
    if (rotatesRows(&p->info))
        p->hostRawQ = randomRows(p->newType, 6, (size_t)p->totalQ * p->numHeadsQ * p->headDimQk);
}

// Bytes read and written, one layer.
double appendBytes(const Problem* p) {
    const VkmqaKvRequirements* kv = &p->kvRequirements;
    double rows = (double)p->totalNew * p->numHeadsKv;
    double elements = rows * (p->headDimQk + (p->hostNewV ? p->headDimV : 0));
    double rotated = p->hostRawQ ? (double)p->totalQ * p->numHeadsQ * p->headDimQk : 0;
    return elements * p->newType->bytes + p->totalNew * (double)kv->bytesPerToken +
           rotated * (p->newType->bytes + p->ioType->bytes);
}

BenchResult runAppend(Session* session, const Item* item, Row* row) {
    Problem problem;
    BenchResult result = createItemProblem(session, item, 0, &problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&problem, row);
    fillNewRows(&problem);
    row->flops = 0;
    row->bytes = appendBytes(&problem);
    snprintf(row->kernel, sizeof(row->kernel), "%s", problem.kernel.appendName);
    snprintf(row->reason, sizeof(row->reason),
             problem.hostRawQ ? "rotates K and q, converts and scatters K and V in one dispatch"
                              : "converts and scatters K and V in one dispatch");
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

// A step of attention on the device: the library's object, caches, queries, outputs and metadata.
// SPDX-License-Identifier: MIT
#ifndef BENCH_PROBLEM_H
#define BENCH_PROBLEM_H

#include "reference.h"

typedef struct ProblemInfo {
    VkmqaAttentionCreateInfo attention; // pageSize, types, heads; maxSeqLenKv is filled in
    uint32_t batch;
    const int32_t* queryTokens; // [batch], of each sequence
    const int32_t* contexts;    // [batch], tokens in the cache
    const int32_t* newTokens;   // [batch]: appended, the last ones of each context
    uint64_t rotateBytes;       // make copies of the cache until they fill this much; 0: one
} ProblemInfo;

typedef struct Problem {
    Session* session;
    VkmqaAttention attention;
    VkmqaKernelInfo kernel;
    VkmqaStep step;
    VkmqaKvRequirements kvRequirements;
    uint32_t batch, totalQ, totalKv, totalNew, numPages, copies;
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV, maxPages;
    bool causal;
    double scale;
    Bounds bounds; // of the output's error
    const TypeTraits *ioType, *newType, *kType, *vType;
    int32_t *cuSeqlensQ, *seqLensKv, *pageTable, *slots; // host copies of the metadata
    VkmqaMemory metadata, q, out, lse, scratch, k, v, newK, newV;
    VkDeviceSize strideK, strideV, strideNewK, strideNewV; // bytes from one copy to the next
    uint8_t *hostQ, *hostK, *hostV, *hostNewK, *hostNewV; // contents of one copy; null until filled
} Problem;

// Creates the object, honouring --kernel, and every buffer but newK and newV. Lengths, pages (in random
// order, when paged) and slots are uploaded. On failure nothing is left.
BenchResult createProblem(Session* session, const ProblemInfo* info, Problem* problem);
// The same for an item: equal sequences, rotating past the caches.
BenchResult createItemProblem(Session* session, const Item* item, Problem* problem);
void destroyProblem(Problem* problem);

// Random queries and cache contents, in every copy.
BenchResult fillProblem(Problem* problem);
// Every byte of every cache copy, so that a read of what was not written shows: 0xFF is NaN.
BenchResult poisonCache(Problem* problem);
// Space for the rows to append, one or `copies` of them, filled from hostNewK and hostNewV.
BenchResult uploadNewRows(Problem* problem);

VkmqaKv cacheCopy(const Problem* problem, uint32_t copy);
// RecordCall functions; user is the Problem.
BenchResult recordAttention(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                            uint32_t index);
BenchResult recordAppend(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                         uint32_t index);

// Where a token's row stands in hostK or hostV.
size_t rowOffset(const Problem* problem, uint32_t sequence, uint32_t head, uint32_t position,
                 uint32_t rowBytes);
// The reference's view of hostQ, hostK and hostV.
ReferenceProblem referenceOf(const Problem* problem);

// Fills out with NaN, runs attention once and judges what came back; out must be finite everywhere.
BenchResult verifyAttention(Problem* problem, const Reference* expected, Judgement* judgement);
// Reads what the last run left and judges that.
BenchResult judgeOutput(Problem* problem, const Reference* expected, Judgement* judgement);
BenchResult readStatus(Problem* problem); // BENCH_WRONG when a kernel met bad metadata

// The item's or file's numbers for a row: kernel, bytes, flops.
void describeAttention(const Problem* problem, Row* row);

#endif

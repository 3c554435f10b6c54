// A step of attention on the device: the library's object, caches, queries, outputs and metadata.
// SPDX-License-Identifier: MIT
#ifndef BENCH_PROBLEM_H
#define BENCH_PROBLEM_H

#include "cache_rows.h"
#include "reference.h"

typedef struct ProblemInfo {
    VkmqaAttentionCreateInfo attention; // all but maxSeqLenKv and tier, which are filled in
    uint32_t batch;
    const int32_t* queryTokens; // [batch], of each sequence
    const int32_t* contexts;    // [batch], tokens in the cache
    const int32_t* newTokens;   // [batch]: appended, the last ones of each context
    uint64_t rotateBytes;       // make copies of the cache until they fill this much; 0: one
    uint32_t copies;            // of the cache, whatever rotateBytes says; 0: as it says
    double ropeTheta;           // 0: the library's default
    // What the attention's flags and types call for; null: invented (fp8 scales to suit fillProblem).
    const float *sinks, *alibiSlopes; // [numHeadsQ]
    const float *kScales, *vScales;   // [numHeadsKv]
    const uint32_t* mask;             // [totalQ, maskStride], in the library's layout
    uint32_t maskStride;
} ProblemInfo;

typedef struct Problem {
    Session* session;
    VkmqaAttention attention;
    VkmqaAttentionCreateInfo info; // as created, but for kernels avoided on the way
    VkmqaKernelInfo kernel;
    VkmqaStep step;
    VkmqaKvRequirements kvRequirements;
    CachePlane planeK, planeV; // one and the same cache with V_PREFIX_OF_K
    uint32_t batch, totalQ, totalKv, totalNew, numPages, copies;
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV, maxPages, maskStride;
    double scale, softcap, ropeTheta;
    Bounds bounds; // of the output's error
    const TypeTraits *ioType, *newType, *kType, *vType;
    // Host copies of the metadata, of the parameters and of the mask.
    int32_t *cuSeqlensQ, *seqLensKv, *pageTable, *slots, *positions, *queryPositions;
    float *sinks, *alibiSlopes, *kScales, *vScales;
    uint32_t* mask;
    VkmqaMemory metadata, parameters, maskBits, q, out, lse, scratch, k, v, newK, newV;
    VkmqaMemory rawQ; // of newType, for append to rotate into q; or null
    VkDeviceSize strideK, strideV, strideNewK, strideNewV; // bytes from one copy to the next
    uint8_t *hostQ, *hostK, *hostV, *hostNewK, *hostNewV,
        *hostRawQ; // of one copy; null until filled
} Problem;

// Creates the object, honouring --kernel, and every buffer but newK, newV and rawQ. Lengths, pages (in random
// order, when paged), slots, parameters and mask are uploaded. On failure nothing is left.
BenchResult createProblem(Session* session, const ProblemInfo* info, Problem* problem);
// The same for an item: equal sequences, each appending its query tokens. copies 0: rotating past the caches.
BenchResult createItemProblem(Session* session, const Item* item, uint32_t copies,
                              Problem* problem);
VkmqaAttentionCreateInfo attentionInfo(const Item* item);
void destroyProblem(Problem* problem);

// Random queries and cache contents, in every copy.
BenchResult fillProblem(Problem* problem);
// Every byte of every cache copy, so that a read of what was not written shows: 0xFF is NaN.
BenchResult poisonCache(Problem* problem);
// Space for the rows to append, one or `copies` of them, filled from hostNewK and hostNewV, and for
// the queries to rotate, where there is a hostRawQ.
BenchResult uploadNewRows(Problem* problem);
// After a change of the host copies: the lengths, slots and positions of another step.
BenchResult uploadMetadata(Problem* problem);
BenchResult createMemory(Session* session, VkDeviceSize size, VkmqaMemory* memory,
                         const char* what);
// The library's object alone, honouring --kernel, with its self-test.
BenchResult createAttention(Session* session, VkmqaAttentionCreateInfo info,
                            const VkmqaStepLimits* limits, VkmqaAttention* attention);
// ---- problem_modifiers.c: what masks, sinks, ALiBi, RoPE and fp8 need ----

// Copies or invents the host arrays, after the metadata; then makes their buffers.
void fillModifiers(Problem* problem, const ProblemInfo* info);
BenchResult createModifiers(Problem* problem);

// Copies that fill rotateBytes, within the device's memory.
uint32_t countCopies(const Session* session, VkDeviceSize one, uint64_t rotateBytes);
// hostK and hostV as the first copy of the cache is now; hostQ too, where append rotates queries.
BenchResult downloadInputs(Problem* problem, uint32_t copy);

VkmqaKv cacheCopy(const Problem* problem, uint32_t copy);
// The arguments of the calls, all but the recorder.
VkmqaAttentionInfo attentionCall(const Problem* problem, const VkmqaKv* kv);
VkmqaAppendInfo appendCall(const Problem* problem, const VkmqaKv* kv, uint32_t copy);
// RecordCall functions; user is the Problem.
BenchResult recordAttention(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                            uint32_t index);
BenchResult recordAppend(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                         uint32_t index);

// The slot of a position, and the number of its row in a plane of the cache.
uint32_t slotOf(const Problem* problem, uint32_t sequence, uint32_t position);
size_t rowOf(const Problem* problem, uint32_t headKv, uint32_t slot);
// The reference's view of hostQ, hostK and hostV.
ReferenceProblem referenceOf(const Problem* problem);

// Fills out with NaN, runs attention once and judges what came back; out must be finite everywhere.
BenchResult verifyAttention(Problem* problem, const Reference* expected, Judgement* judgement);
BenchResult poisonOutput(Problem* problem); // with NaN
// Reads what the last run left and judges that.
BenchResult judgeOutput(Problem* problem, const Reference* expected, Judgement* judgement);
BenchResult readStatus(Problem* problem); // BENCH_WRONG when a kernel met bad metadata

// ---- op_append.c ----

// Random rows to append, and queries to rotate where the object's append rotates.
void fillNewRows(Problem* problem);
double appendBytes(const Problem* problem);                   // read and written, for one layer
BenchResult verifyRotatedQ(const Problem* problem, Row* row); // hostRawQ, as it stands in q
// A copy of the K (keys) or V cache, after an append of hostNewK or hostNewV: the row becomes wrong where it does
// not hold them, or where it differs elsewhere from hostK or hostV.
BenchResult verifyAppendedPlane(const Problem* problem, bool keys, uint32_t copy, Row* row);

// The item's or file's numbers for a row: kernel, bytes, flops.
void describeAttention(const Problem* problem, Row* row);

#endif

// Opens the device under test, builds attention problems with random data, runs them through the public
// interface and judges what comes back. Every buffer lies between guard bytes, and everything that
// nobody owns (cache slots past a length, unowned pages, gaps of strides, rows of no sequence) holds NaN.
//
// Environment: VKMQA_TEST_DEVICE   selector of vkmqaOpenDevice, default "auto"
//              VKMQA_TEST_PORTABLE 1 = open the device with nothing beyond Vulkan 1.1
//              VKMQA_TEST_SEED     seed of the random data, default 1
//              VKMQA_TEST_TIER     run this tier only, such as "cpu"
//              VKMQA_TEST_FILTER   pattern of the test names to run, such as "heads 8:1*"
//              VKMQA_TEST_LONG     1 = every shape on every tier; else each on one of them, by turns,
//                                  another one with another seed
//              VKMQA_TEST_VERBOSE  1 = print the library's messages
#ifndef HARNESS_H
#define HARNESS_H

#include "casefile.h"
#include "oracle.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <vkmqa/vkmqa_runtime.h>

#define HARNESS_SKIPPED 77 // exit code of a test that has no device to run on
#define HARNESS_REFUSED 3  // exit code of a test whose device executes nothing
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

typedef struct Harness {
    VkmqaDevice device;
    VkmqaContext context;
    VkmqaDeviceProperties properties;
    VkmqaTier tiers[3]; // those that the device supports
    uint32_t tierCount;
    uint64_t seed;
    char message[1024]; // the library's last error message
} Harness;

extern Harness harness;

// Opens the device, exits with HARNESS_SKIPPED where there is none and with HARNESS_REFUSED where it
// accepts work without executing it: a test that passes on such a device would prove nothing.
void harnessOpen(void);
void harnessClose(void);
// The callback that fills harness.message.
void harnessMessage(VkmqaSeverity severity, const char* text, void* userData);

#define HARNESS_MAIN(tests)                                                                        \
    int main(void) {                                                                               \
        harnessOpen();                                                                             \
        int failed = cmocka_run_group_tests(tests, NULL, NULL);                                    \
        harnessClose();                                                                            \
        return failed != 0;                                                                        \
    }

// Fails the running test unless the call returns VK_SUCCESS.
#define REQUIRE(call)                                                                              \
    do {                                                                                           \
        VkResult result_ = (call);                                                                 \
        if (result_ != VK_SUCCESS)                                                                 \
            fail_msg("%s: VkResult %d: %s", #call, result_, harness.message);                      \
    } while (0)

const char* tierName(VkmqaTier tier);
// Whether the index-th shape of a table runs on harness.tiers[tier]: drivers take seconds to compile the
// pipelines of one object.
bool tierHasTurn(uint32_t tier, size_t index);

// ---- Random numbers: splitmix64 ----------------------------------------------------------------

typedef struct Random {
    uint64_t state;
} Random;

uint32_t randomBelow(Random* random, uint32_t bound);
float randomNormal(Random* random); // mean 0, deviation 1, within +-3.5

// ---- Memory between guard bytes ----------------------------------------------------------------

typedef struct Guarded {
    VkmqaMemory memory;
    VkDeviceSize before; // guard bytes in front
    VkmqaBuffer range;   // all zero when created with size 0
} Guarded;

Guarded guardedCreate(const VkmqaBufferRequirements* requirements); // filled with NaN
void guardedDestroy(Guarded* guarded);
void guardedUpload(const Guarded* guarded, const void* bytes);
void guardedDownload(const Guarded* guarded, void* bytes);
void guardedCheck(const Guarded* guarded, const char* name); // fails the test if a guard changed

// ---- Problems ----------------------------------------------------------------------------------

// One attention object: the model's shape.
typedef struct Model {
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV;
    uint32_t pageSize;   // 0 = contiguous
    OracleType io, k, v; // new rows come as f32
    bool causal;
    uint32_t splitSize; // 0 = default
    uint32_t maxSeqLenKv;
    float scale; // 0 = default
} Model;

typedef struct Sequence {
    int32_t queries, tokens;
} Sequence;

#define MAX_SEQUENCES 8

typedef struct Batch {
    uint32_t count;
    Sequence sequences[MAX_SEQUENCES];
    bool gaps;   // rows in strided slices, query rows that belong to no sequence, slack in limits
    bool append; // the cache is filled by vkmqaCmdAppendKv, else by the oracle
    float sharpness;   // factor of q; 0 = 1; 20 makes softmax near one-hot
    uint32_t numPages; // 0 = what the sequences need and three more; ignored when contiguous
} Batch;

typedef struct Problem {
    Model model;
    Batch batch;
    int32_t cuSeqlensQ[MAX_SEQUENCES + 1], seqLensKv[MAX_SEQUENCES];
    int32_t*
        pageTable;  // [batch, maxPages]; entries past a length are garbage; null when contiguous
    int32_t* slots; // [totalKv]
    uint32_t maxPages, numPages, pageTokens, totalQ, totalKv;
    float* q;                   // [totalQ, numHeadsQ, headDimQk], as stored
    float *newK, *newV;         // [totalKv, numHeadsKv, headDim], before conversion
    float *k, *v;               // the same as stored in the cache
    double *out, *lse;          // R
    float *plainOut, *plainLse; // P
} Problem;

// referenced = false leaves out R and P, for tests that compare bits.
Problem problemCreate(const Model* model, const Batch* batch, uint64_t seed, bool referenced);
// The tensors of a case file, in a cache of `cacheType`; the file's expected output is R.
Problem problemFromCase(const CaseFile* file, OracleType cacheType, uint64_t seed);
void problemDestroy(Problem* problem);
OracleProblem problemOracle(const Problem* problem);
// The K (or V) cache of a problem and its bytes: rows of owned slots, NaN everywhere else.
OracleCache problemCache(const Problem* problem, bool isV);
uint8_t* problemImage(const Problem* problem, bool isV);

VkmqaAttentionCreateInfo attentionInfo(const Model* model, VkmqaTier tier);
VkResult attentionCreate(const Model* model, VkmqaTier tier, VkmqaAttention* attention);

// ---- Runs --------------------------------------------------------------------------------------

// The buffers of one step and the commands that compute it.
typedef struct Run {
    VkmqaAttention attention;
    Model model;
    Guarded k, v, q, newK, newV, out, lse, metadata, scratch;
    VkmqaStrides strideQ, strideK, strideV, strideOut;
    VkmqaStep step;
    VkmqaKv kv;
    VkmqaCommands commands;
} Run;

typedef struct Output {
    uint8_t* out; // bytes of the whole range, gaps included
    float* lse;
    uint32_t status;
} Output;

// Allocates for these limits, or for the problem's own when limits is null.
Run runCreate(VkmqaAttention attention, const Problem* problem, const VkmqaStepLimits* limits);
void runDestroy(Run* run);
// Writes the problem's data and poisons out and lse. A problem that differs from the one of creation
// must fit in its limits and have the same numPages.
void runUpload(Run* run, const Problem* problem);
// The step's metadata, for tests that spoil it before they upload it themselves. To be freed.
int32_t* runMetadata(const Run* run, const Problem* problem);
// Overwrites every word of K and V that holds no token of a sequence.
void runFillUnowned(Run* run, const Problem* problem, uint32_t word);
void runRecord(Run* run, bool append);
void runSubmit(Run* run); // and waits
Output runRead(const Run* run);
void outputDestroy(Output* output);
bool outputsEqual(const Run* run, const Output* a, const Output* b); // bit by bit
// Values [totalQ, numHeadsQ, headDimV] of the strided bytes.
float* outputValues(const Run* run, const Problem* problem, const Output* output);
// Fails the test unless out and lse are right, what nobody owns is untouched and the status is 0.
void runCheck(const Run* run, const Problem* problem, const Output* output, const char* label);
// All of the above in one go.
void runProblem(VkmqaAttention attention, const Problem* problem, const char* label);

#endif

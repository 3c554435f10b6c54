// Opens the device under test, builds attention problems with random data, runs them through the public
// interface and judges what comes back. Every buffer lies between guard bytes, and everything that
// nobody owns (cache slots past a length, unowned pages, gaps of strides, rows of no sequence) holds NaN.
//   harness_device.c    the device under test
//   harness_memory.c    random numbers, memory between guards
//   harness_problem.c   inputs and expected outputs; harness_data.c: the random ones
//   harness_run.c       the buffers of a step and the commands that compute it
//   harness_upload.c    what those buffers hold
//   harness_check.c     whether what came back is right
//
// Environment: VKMQA_TEST_DEVICE   selector of vkmqaOpenDevice, default "auto"
//              VKMQA_TEST_PORTABLE 1 = open the device with nothing beyond Vulkan 1.1
//              VKMQA_TEST_SEED     seed of the random data, default 1
//              VKMQA_TEST_TIER     run this tier only, such as "cpu"
//              VKMQA_TEST_TIERS    without VKMQA_TEST_LONG these tiers only, such as "portable,cpu"
//              VKMQA_TEST_FILTER   pattern of the test names to run, such as "heads 8:1*"
//              VKMQA_TEST_ALWAYS   this tier has every turn
//              VKMQA_TEST_SHARE    "1/4": of the shapes of a table only the fourth part with number 1 (from 0);
//                                  another part with another seed
//              VKMQA_TEST_PART     likewise for the tables of which all legs run all shapes
//              VKMQA_TEST_LONG     1 = every shape on every tier; else each on one of them, by turns,
//                                  another one with another seed
//              VKMQA_TEST_GUARD    none = no guard bytes: every buffer is its memory, for VKMQA_LAYER=guard
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

enum { HARNESS_TIMEOUT_SECONDS = 120 };

typedef struct Harness {
    VkmqaDevice device;
    VkmqaContext context;
    VkmqaDeviceProperties properties;
    VkmqaTier tiers[4]; // those that the device supports
    uint32_t tierCount;
    uint64_t seed;
    char message[1024]; // the library's last error message
} Harness;

extern Harness harness;

// Opens the device, exits with HARNESS_SKIPPED where there is none (with 1 below the tests' own layer, where there
// has to be one) and with HARNESS_REFUSED where it accepts work without executing it: a test that passes on such a
// device would prove nothing.
void harnessOpen(void);
void harnessClose(void);
// Judges what a call returned and the message heard since harness.message was emptied. word: must appear in it; null where
// no message can be had (there is no context to ask).
void expectCall(VkResult got, VkResult wanted, const char* word, const char* what);

// In the child of fork() a failed assertion of cmocka would jump back into the parent's list of tests.
#define CHILD_NEEDS(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "in the child: %s does not hold (\"%s\")\n", #condition,               \
                    harness.message);                                                              \
            _exit(1);                                                                              \
        }                                                                                          \
        harness.message[0] = 0;                                                                    \
    } while (0)

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
// Whether this driver leg runs the index-th shape of a table (VKMQA_TEST_SHARE).
bool legHasShare(size_t index);
bool legHasPart(size_t index); // likewise VKMQA_TEST_PART
bool harnessIsLong(void);      // VKMQA_TEST_LONG

// ---- Random numbers: splitmix64 ----------------------------------------------------------------

typedef struct Random {
    uint64_t state;
} Random;

uint32_t randomBelow(Random* random, uint32_t bound);
// A generator of its own for the thing that these three numbers name.
Random randomFor(uint64_t a, uint64_t b, uint64_t c);
float randomNormal(Random* random); // mean 0, deviation 1, within +-3.5

// ---- Memory between guard bytes ----------------------------------------------------------------

typedef struct Guarded {
    VkmqaMemory memory;
    VkDeviceSize before; // guard bytes in front
    VkmqaBuffer range;   // all zero when created with size 0
} Guarded;

// To be freed: so many bytes, rounded up to words, of COMPARE_POISON.
void* poisonedBytes(size_t bytes);
Guarded guardedCreate(const VkmqaBufferRequirements* requirements); // filled with NaN
void guardedDestroy(Guarded* guarded);
void guardedUpload(const Guarded* guarded, const void* bytes);
void guardedDownload(const Guarded* guarded, void* bytes);
void guardedCheck(const Guarded* guarded, const char* name); // fails the test if a guard changed

// ---- Problems ----------------------------------------------------------------------------------

// What cache memory holds that nobody has written: NaN as f32, f16, bf16, fp8 and as a block's scale.
#define CACHE_POISON 0xFFFFFFFFu

// Scales of an fp8 cache: none given, powers of two (division by them is exact), or any.
typedef enum Fp8Scales { FP8_UNSCALED, FP8_POWERS, FP8_ANY } Fp8Scales;

// One attention object: the model's shape.
typedef struct Model {
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV;
    uint32_t pageSize; // 0 = contiguous
    OracleType io, k, v;
    bool causal;
    uint32_t splitSize; // 0 = default
    uint32_t maxSeqLenKv;
    float scale;               // 0 = default
    OracleType source;         // of new rows and of queries to be rotated
    VkmqaAttentionFlags flags; // all but causal
    uint32_t windowLeft, windowRight, chunkSize;
    float softcap;
    OracleRopeStyle rope;
    uint32_t ropeDim, ropeOffset; // 0 = default
    bool ropeCustom;              // frequencies and a magnitude of its own
    double ropeTheta;             // 0 = default
    Fp8Scales fp8Scales;
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
    float sharpness;       // factor of q; 0 = 1; 20 makes softmax near one-hot
    float magnitude;       // factor of k and v; 0 = 1; above f16's range kernels on matrix units must not round them
    uint32_t numPages;     // 0 = what the sequences need and three more; ignored when contiguous
    int32_t firstPosition; // of every sequence's first token, for rotary embedding
    bool inPlace;          // append rotates q where it stands; io and source must be the same type
    // Names of the sequences; 0 = their number from 1. Data are a function of seed, name and place in the
    // sequence, so a sequence is the same in any batch, and shorter by some tokens where its length is.
    uint32_t names[MAX_SEQUENCES];
} Batch;

typedef struct Problem {
    Model model;
    Batch batch;
    uint64_t seed;
    int32_t cuSeqlensQ[MAX_SEQUENCES + 1], seqLensKv[MAX_SEQUENCES];
    int32_t*
        pageTable;  // [batch, maxPages]; entries past a length are garbage; null when contiguous
    int32_t* slots; // [totalKv]
    uint32_t maxPages, numPages, pageTokens, totalQ, totalKv;
    int32_t *positions, *queryPositions; // [totalKv], [totalQ], for rotary embedding
    OracleRotation rotation;
    float* newQ; // [totalQ, numHeadsQ, headDimQk], as given to append; rows of no sequence NaN
    float* q;    // as given to attention
    float *newK, *newV; // [totalKv, numHeadsKv, headDim], as given to append; V null: prefix of K
    float* turnedK;     // newK rotated
    float *k, *v;       // as stored in the cache
    uint32_t* mask;     // [totalQ, maskStride] words, or null
    uint32_t maskStride;
    float *sinks, *alibiSlopes, *kScales, *vScales; // null where the model has none
    double* frequencies;
    float ropeMagnitude;
    int32_t cuAccepted[MAX_SEQUENCES + 1];
    int32_t* accepted;          // [totalQ] of a tree of drafts
    double *out, *lse;          // R
    float *plainOut, *plainLse; // P
} Problem;

// referenced = false leaves out R and P, for tests that compare bits.
Problem problemCreate(const Model* model, const Batch* batch, uint64_t seed, bool referenced);
// The tensors of a case file. R comes from the cache as stored; the file's own output is
// caseFileAccepts's to judge.
Problem problemFromCase(const CaseFile* file, uint64_t seed);
void problemDestroy(Problem* problem);
OracleProblem problemOracle(const Problem* problem);
bool problemRotates(const Problem* problem);
bool problemHasV(const Problem* problem); // false: V is a prefix of K
// The K (or V) cache of a problem and its bytes: rows of owned slots, CACHE_POISON everywhere else.
OracleCache problemCache(const Problem* problem, bool isV);
uint8_t* problemImage(const Problem* problem, bool isV);
const float* problemStored(const Problem* problem,
                           bool isV); // what append has to store: turnedK, newV

// Random data of a problem that has its layout: rows [totalKv, numHeadsKv, headDim], queries [totalQ,
// numHeadsQ, headDimQk], mask and accepted drafts, parameters.
float* problemRandomTokens(const Problem* problem, bool isV);
float* problemRandomQueries(const Problem* problem);
void problemMakeMask(Problem* problem);
void problemMakeParameters(Problem* problem);

VkmqaType libraryType(OracleType type);
VkmqaAttentionCreateInfo attentionInfo(const Model* model, VkmqaTier tier);
VkResult attentionCreate(const Model* model, VkmqaTier tier, VkmqaAttention* attention);
VkmqaParametersInfo parametersInfo(const Problem* problem);

// ---- Runs --------------------------------------------------------------------------------------

// The buffers of one step and the commands that compute it.
typedef struct Run {
    VkmqaAttention attention;
    Model model;
    Guarded k, v, q, newQ, newK, newV, out, lse, metadata, scratch, mask, parameters;
    VkmqaStrides strideQ, strideNewQ, strideK, strideV, strideOut;
    uint32_t maskStride; // words of a row
    bool maskGiven;      // maskStride is given, not the default
    bool inPlace, omitSinks;
    VkmqaStep step;
    VkmqaKv kv;
    VkmqaCommands commands;
} Run;

#define RUN_BUFFERS 12
typedef struct NamedBuffer {
    const char* name;
    Guarded* guarded;
} NamedBuffer;
void runBuffers(Run* run, NamedBuffer buffers[RUN_BUFFERS]); // all of them, K and V first

typedef struct Output {
    uint8_t* out; // bytes of the whole range, gaps included
    float* lse;
    uint32_t status;
} Output;

// The maxima of a problem itself.
VkmqaStepLimits problemLimits(const Problem* problem);
// Allocates for these limits, or for the problem's own when limits is null.
Run runCreate(VkmqaAttention attention, const Problem* problem, const VkmqaStepLimits* limits);
void runDestroy(Run* run);
// Writes the problem's data and poisons out and lse. A problem that differs from the one of creation
// must fit in its limits and have the same numPages.
void runUpload(Run* run, const Problem* problem);
// The step's metadata, for tests that spoil it before they upload it themselves. To be freed.
int32_t* runMetadata(const Run* run, const Problem* problem);
// Overwrites every word of K and V that holds no token of a sequence, and with `unseen` also the tokens
// that no query sees.
void runFillUnowned(Run* run, const Problem* problem, uint32_t word, bool unseen);
// The calls' arguments, for tests that spoil or vary them.
VkmqaAppendInfo runAppendInfo(const Run* run);
VkmqaAttentionInfo runAttentionInfo(const Run* run);
void runRecord(Run* run, bool append);
void runSubmit(Run* run); // and waits
Output runRead(const Run* run);
void outputDestroy(Output* output);
bool outputsEqual(const Run* run, const Output* a, const Output* b); // bit by bit
// Values [totalQ, numHeadsQ, headDimV] of the strided bytes.
float* outputValues(const Run* run, const Problem* problem, const Output* output);
// Values [totalQ, numHeadsQ, headDimQk] of q as attention reads it.
float* runQueries(const Run* run, const Problem* problem);
size_t outOffset(const Run* run, size_t token, uint32_t head); // in bytes

// ---- One append by itself ------------------------------------------------------------------------

// Model's heads, dims, page size, source, cache types, flags and rotation count. Rows are packed
// [tokens, numHeadsKv, headDim] of the source type; no rowsV with a prefix.
typedef struct AppendCase {
    Model model;
    uint32_t numPages, tokens;
    VkmqaStrides strideK, strideV; // 0 = packed
    const void *rowsK, *rowsV;
    const int32_t *slots, *positions;     // [tokens]
    const float *kScales, *vScales;       // [numHeadsKv] or null
    const double* frequencies;            // of the rotation, or null
    float ropeMagnitude;                  // 0 = default
    uint32_t queries;                     // 0 = no q
    const void* q;                        // [queries, numHeadsQ, headDimQk] of the source type
    const int32_t* queryPositions;        // [queries]
    bool inPlace;                         // q is rotated where it stands
    VkmqaStrides strideQ, strideRotatedQ; // 0 = packed
} AppendCase;

// Fails the test unless the caches (random bytes before) and rotated queries are what they have to be.
void appendCheck(const AppendCase* given, VkmqaTier tier, const char* label);
enum { APPEND_CONTIGUOUS_TOKENS = 96 }; // maxSeqLenKv where pageSize is 0
uint32_t appendPageTokens(const AppendCase* given);
uint8_t* randomBytes(Random* random, size_t size); // to be freed

// ---- Judgement ---------------------------------------------------------------------------------

// Fails the test unless out and lse are right, the caches and queries are what append has to make of them,
// what nobody owns is untouched and the status is 0. Where append has a choice (codes near a tie, rotated
// values), out is judged by what it chose.
void runCheck(const Run* run, const Problem* problem, const Output* output, const char* label);
void runCheckGuards(const Run* run);
// All of the above in one go.
void runProblem(VkmqaAttention attention, const Problem* problem, const char* label);

#endif

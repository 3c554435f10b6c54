// What the files of vkmqa-bench share: exit codes, options, one planned measurement, one result row.
// SPDX-License-Identifier: MIT
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vkmqa/vkmqa_cache.h>

#include "platform.h"

#if defined(__MINGW32__) && !defined(__clang__)
#define BENCH_PRINTF(text, first) __attribute__((format(gnu_printf, text, first)))
#elif defined(__GNUC__)
#define BENCH_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define BENCH_PRINTF(text, first)
#endif

// Exit codes of the program. Functions return one and have printed the reason when it is not BENCH_OK.
typedef enum BenchResult {
    BENCH_OK = 0,
    BENCH_ERROR = 1,    // Vulkan or the operating system refused something at run time
    BENCH_USAGE = 2,    // a wrong argument or case file
    BENCH_MISSING = 3,  // no device, or a feature that the device or this version does not have
    BENCH_WRONG = 4,    // a result outside its bound
    BENCH_SKIPPED = 77, // nothing of what was asked for exists here
} BenchResult;

typedef enum BenchOp {
    OP_COPY,
    OP_READ,
    OP_FMA,
    OP_MATRIX,
    OP_DECODE,
    OP_PREFILL,
    OP_APPEND,
    OP_CREATE,
    OP_RECORD,
    OP_PLAIN,
    OP_MERGE,
    OP_REPLAY,
    OP_QUALITY,
    OP_FORK,
    OP_STEP,
    OP_OFFLOAD,
    OP_SAVE,
    OP_LOAD,
    OP_CASE, // by --case only
    OP_COUNT
} BenchOp;

typedef enum OutputFormat { OUTPUT_MD, OUTPUT_CSV, OUTPUT_JSON, OUTPUT_JSONL } OutputFormat;

// A cross product's axis: "512,1024" or "1024-8192*2".
typedef struct NumberList {
    uint32_t count;
    uint32_t values[64];
} NumberList;

// What attention and append do beside the plain thing, in the words of VkmqaAttentionCreateInfo. Presets have
// some, options add to them.
typedef struct Modifiers {
    VkmqaAttentionFlags flags; // all but causality, which has a column of its own
    uint32_t windowLeft, windowRight, chunkSize;
    float softcap;
    VkmqaRopeStyle ropeStyle;
    uint32_t ropeDim, ropeOffset;
} Modifiers;

typedef struct Options {
    bool listDevices, systemReport, quick, cacheHot, portableOnly, wallTimer, verify, skipSelfTest;
    char* device;
    uint32_t ops; // bit per BenchOp; 0: the default set
    const struct Preset* preset;
    bool headTable;                                            // --preset heads-32
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV;       // 0: the preset's
    NumberList queryTokens, contexts, batches, kTypes, vTypes; // count 0: the default
    VkmqaType ioType, newType;
    uint32_t pageSize;
    uint32_t parts, layers; // of merge; of replay and the cache layer's ops
    bool causal, modified;  // modified: an option for modifiers was given
    Modifiers modifiers;
    VkmqaTier tier;
    char* kernelName; // or null
    char *tunePath, *profilePath; // or null: the tuning profile to write, to use
    uint32_t repetitions;
    double warmupSeconds;
    OutputFormat format;
    const char** caseFiles;
    uint32_t caseFileCount;
} Options;

// One measurement to make.
typedef struct Item {
    BenchOp op;
    const char* model; // a preset's name, a case file's, or ""
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV;
    uint32_t queryTokens, context, batch; // of one sequence; context includes the query tokens
    uint32_t pageSize;
    VkmqaType ioType, newType, kType, vType;
    bool causal;
    bool outliers; // quality: some channels of K are much larger than the others
    uint32_t parts, layers;
    Modifiers modifiers;
} Item;

typedef struct Stats {
    uint32_t count;
    double median, p95, best, mean; // seconds of one call
} Stats;

// A result. Zero means "does not apply" for every number except nmse, which is negative then.
typedef struct Row {
    Item item;
    char kernel[48];
    char reason[200];
    char note[200];
    Stats time;
    double bytes, flops; // of one call; each cache byte counted once
    double percentOfRoof;
    const char* roof; // the op whose figure bounds this row
    double nmse;
    double cacheBytesPerToken; // one layer, K and V of all heads
    double overhead; // replay: time of a step over that of one recorded for its own length
    bool wrong;
} Row;

// The device's measured limits, in bytes or operations per second; 0 where not measured.
typedef struct Roofs {
    double copy, read, fma, matrix;
} Roofs;

struct Report;
struct ShaderTable;

// An open device and all that a measurement needs to know.
typedef struct Session {
    const Options* options;
    VkmqaDevice device;
    VkmqaDeviceProperties properties;
    VkmqaDeviceHandles handles;
    struct ShaderTable* shaders; // the tool's own shaders: roofs.c, op_plain.c
    Roofs roofs;
    uint64_t rotateBytes; // buffers rotate over this much memory, or 0: not at all
    const char* profile;  // a tuning profile for attention objects, or null
    size_t profileSize;
    bool trusted; // attention objects are made without the library's self-test
    struct Report* report;
} Session;

// ---- main.c ----

extern const char* const opNames[OP_COUNT];
// Prints "vkmqa-bench: ..." on stderr and returns the code.
BenchResult fail(BenchResult code, const char* format, ...) BENCH_PRINTF(2, 3);
// BENCH_OK, or a sentence about `what` and the exit code that suits the Vulkan error.
BenchResult checkVk(VkResult result, const char* what);
void* allocate(size_t count, size_t size); // zeroed; ends the program when there is no memory
BenchResult openSession(Session* session, const void* pipelineCache, size_t pipelineCacheSize);
BenchResult runItem(Session* session, const Item* item, Row* row);

// ---- options.c ----

BenchResult parseOptions(int argc, const char** argv, Options* options, bool* exitNow);
void freeOptions(Options* options);

// ---- presets.c ----

typedef struct Preset {
    const char* name;
    uint32_t numHeadsQ, numHeadsKv, headDimQk, headDimV;
    const char* about;
    Modifiers modifiers;
} Preset;

const Preset* findPreset(const char* name); // null when there is none
void printPresets(void);
// The preset's modifiers with the options' on top, for heads of these dimensions.
Modifiers combineModifiers(const Options* options, const Preset* preset, uint32_t headDimV);
// The measurements that the options ask for, roofs first. The caller frees *items.
uint32_t planItems(const Options* options, Item** items);
uint32_t planTuning(const Options* options, Item** items); // the shapes that --tune tunes

// ---- stats.c ----

Stats summarise(double* samples, uint32_t count); // sorts the samples

// Records call number `index`: with rotating buffers, the one on copy index % copies.
typedef BenchResult (*RecordCall)(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                                  uint32_t index);
// Times a call: calls are batched into submissions of a few milliseconds, which cycle over `copies`.
BenchResult measure(Session* session, RecordCall record, void* user, uint32_t copies, Stats* stats);
BenchResult submitAndWait(Session* session, VkmqaCommands commands, double* seconds);
// Records one call, submits it and waits.
BenchResult runOnce(Session* session, RecordCall record, void* user);

// ---- report.c ----

struct Report* createReport(const Session* session);
void addRow(struct Report* report, const Row* row);
void finishReport(struct Report* report); // prints what is left and frees it
void showProgress(const Session* session, uint32_t index, uint32_t count, const Item* item);
void clearProgress(void);
void listDevices(const VkmqaDeviceProperties* devices, uint32_t count, OutputFormat format);
const char* deviceTypeName(VkPhysicalDeviceType type);
void uuidText(const uint8_t uuid[16], char text[33]); // 32 hexadecimal digits

// ---- the rest, one call each ----

BenchResult runRoof(Session* session, const Item* item, Row* row);
BenchResult runMatrixRoof(Session* session, const Item* item, Row* row);
BenchResult runAttention(Session* session, const Item* item, Row* row);
BenchResult runAppend(Session* session, const Item* item, Row* row);
BenchResult runCreate(Session* session, const Item* item, Row* row);
BenchResult runRecord(Session* session, const Item* item, Row* row);
BenchResult runPlain(Session* session, const Item* item, Row* row);
BenchResult runMerge(Session* session, const Item* item, Row* row);
BenchResult runReplay(Session* session, const Item* item, Row* row);
BenchResult runQuality(Session* session, const Item* item, Row* row);
BenchResult runFork(Session* session, const Item* item, Row* row);
BenchResult runStep(Session* session, const Item* item, Row* row);
BenchResult runOffload(Session* session, const Item* item, Row* row);
BenchResult runSnapshot(Session* session, const Item* item, Row* row);
BenchResult runCaseFile(Session* session, const char* path);
BenchResult printSystemReport(Session* session);
BenchResult runTune(Session* session);
void applyRoof(const Session* session, Row* row);

#endif

// vkmqa-bench: verifies and times shared-KV attention on whatever Vulkan device is there.
// SPDX-License-Identifier: MIT
#include "bench.h"
#include "shader.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char* const opNames[OP_COUNT] = {"copy",    "read",   "fma",     "matrix", "decode",
                                       "prefill", "append", "create",  "record", "plain",
                                       "merge",   "replay", "quality", "fork",   "step",
                                       "offload", "save",   "load",    "case"};

BenchResult fail(BenchResult code, const char* format, ...) {
    va_list arguments;
    clearProgress();
    fputs("vkmqa-bench: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return code;
}

BenchResult checkVk(VkResult result, const char* what) {
    switch (result) {
    case VK_SUCCESS:
        return BENCH_OK;
    case VK_ERROR_VALIDATION_FAILED_EXT: // the library has said which argument
        return fail(BENCH_USAGE, "%s: not possible with these arguments", what);
    case VK_ERROR_FEATURE_NOT_PRESENT:
        return fail(BENCH_MISSING, "%s: the device does not have what this needs", what);
    case VK_ERROR_INCOMPATIBLE_DRIVER:
    case VK_ERROR_INITIALIZATION_FAILED:
        return fail(BENCH_MISSING,
                    "%s: no usable Vulkan device; --list-devices shows what is there", what);
    case VK_ERROR_DEVICE_LOST:
        return fail(BENCH_ERROR, "%s: the device was lost", what);
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return fail(BENCH_ERROR, "%s: out of memory; choose a smaller shape", what);
    default:
        return fail(BENCH_ERROR, "%s: VkResult %d", what, result);
    }
}

void* allocate(size_t count, size_t size) {
    void* memory = calloc(count ? count : 1, size ? size : 1);
    if (memory)
        return memory;
    fail(BENCH_ERROR, "no %zu bytes of host memory; choose a smaller shape", count * size);
    exit(BENCH_ERROR);
}

// The library's own explanations.
static void printMessage(VkmqaSeverity severity, const char* text, void* userData) {
    (void)userData;
    if (severity == VKMQA_SEVERITY_INFO)
        return;
    clearProgress();
    fprintf(stderr, "vkmqa: %s%s\n", severity == VKMQA_SEVERITY_WARNING ? "warning: " : "", text);
}

// Twice the last level cache, which Vulkan does not tell: a generous guess for GPUs.
static uint64_t chooseRotateBytes(const Session* session) {
    const uint64_t mebibyte = 1 << 20;
    if (session->options->cacheHot)
        return 0;
    if (session->properties.type != VK_PHYSICAL_DEVICE_TYPE_CPU)
        return 256 * mebibyte;
    uint64_t bytes = (2 * lastLevelCacheBytes() + mebibyte - 1) / mebibyte * mebibyte;
    return bytes < 64 * mebibyte ? 64 * mebibyte : bytes > 128 * mebibyte ? 128 * mebibyte : bytes;
}

BenchResult openSession(Session* session, const void* pipelineCache, size_t pipelineCacheSize) {
    const Options* options = session->options;
    VkmqaDeviceOpenInfo info = {
        .structSize = sizeof(info),
        .selector = options->device,
        .portableOnly = options->portableOnly,
        .skipVerification = options->skipSelfTest,
        .pipelineCacheData = pipelineCache,
        .pipelineCacheSize = pipelineCacheSize,
        .messageCallback = printMessage,
    };
    BenchResult result =
        checkVk(vkmqaOpenDevice(&info, &session->device), "opening a Vulkan device");
    if (result != BENCH_OK)
        return result;
    session->properties.structSize = sizeof(session->properties);
    session->handles.structSize = sizeof(session->handles);
    result = checkVk(vkmqaGetDeviceProperties(session->device, &session->properties),
                     "asking for the device's properties");
    if (result == BENCH_OK)
        result = checkVk(vkmqaGetDeviceHandles(session->device, &session->handles),
                         "asking for the device's handles");
    if (result == BENCH_OK)
        session->rotateBytes = chooseRotateBytes(session);
    if (result != BENCH_OK) {
        vkmqaCloseDevice(session->device);
        session->device = NULL;
    }
    return result;
}

BenchResult runItem(Session* session, const Item* item, Row* row) {
    *row = (Row){.item = *item, .nmse = -1};
    switch (item->op) {
    case OP_COPY:
    case OP_READ:
    case OP_FMA:
    case OP_MATRIX:
        return runRoof(session, item, row);
    case OP_DECODE:
    case OP_PREFILL:
        return runAttention(session, item, row);
    case OP_APPEND:
        return runAppend(session, item, row);
    case OP_CREATE:
        return runCreate(session, item, row);
    case OP_RECORD:
        return runRecord(session, item, row);
    case OP_PLAIN:
        return runPlain(session, item, row);
    case OP_MERGE:
        return runMerge(session, item, row);
    case OP_REPLAY:
        return runReplay(session, item, row);
    case OP_QUALITY:
        return runQuality(session, item, row);
    case OP_FORK:
        return runFork(session, item, row);
    case OP_STEP:
        return runStep(session, item, row);
    case OP_OFFLOAD:
        return runOffload(session, item, row);
    case OP_SAVE:
    case OP_LOAD:
        return runSnapshot(session, item, row);
    default:
        return BENCH_ERROR;
    }
}

// A wrong result outweighs an error, an error a bad argument, that a missing feature.
static BenchResult worse(BenchResult a, BenchResult b) {
    static const BenchResult order[] = {BENCH_WRONG, BENCH_ERROR, BENCH_USAGE, BENCH_MISSING};
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++)
        if (a == order[i] || b == order[i])
            return order[i];
    return BENCH_OK;
}

static BenchResult runItems(Session* session) {
    Item* items;
    uint32_t count = planItems(session->options, &items), done = 0, skipped = 0;
    BenchResult overall = BENCH_OK;
    for (uint32_t i = 0; i < count; i++) {
        Row row;
        showProgress(session, i, count, &items[i]);
        BenchResult result = runItem(session, &items[i], &row);
        clearProgress();
        if (result == BENCH_SKIPPED) {
            skipped++;
            continue;
        }
        if (result == BENCH_OK) {
            addRow(session->report, &row);
            done++;
            if (row.wrong)
                result =
                    fail(BENCH_WRONG, "%s %s %u:%u, %u x %u: wrong result: %s",
                         opNames[items[i].op], row.kernel, items[i].numHeadsQ, items[i].numHeadsKv,
                         items[i].queryTokens, items[i].context, row.note);
        }
        overall = worse(overall, result);
        if (result == BENCH_ERROR || result == BENCH_USAGE)
            break; // the rest would only repeat it
    }
    free(items);
    if (overall == BENCH_OK && !done && skipped)
        return fail(BENCH_SKIPPED, "skipped: this device has nothing to measure for --op");
    return overall;
}

static BenchResult printDevices(const Options* options) {
    uint32_t count = 0;
    BenchResult result =
        checkVk(vkmqaListDevices(&count, NULL, printMessage, NULL), "listing devices");
    if (result != BENCH_OK)
        return result;
    VkmqaDeviceProperties* devices = allocate(count, sizeof(*devices));
    for (uint32_t i = 0; i < count; i++)
        devices[i].structSize = sizeof(devices[i]);
    result = checkVk(vkmqaListDevices(&count, devices, printMessage, NULL), "listing devices");
    if (result == BENCH_OK)
        listDevices(devices, count, options->format);
    if (result == BENCH_OK && count == 0)
        result = fail(BENCH_MISSING, "there is no Vulkan device");
    free(devices);
    return result;
}

static BenchResult readProfile(const char* path, char** text, size_t* size) {
    enum { MOST = 1 << 20 };
    FILE* file = fopen(path, "rb");
    if (!file)
        return fail(BENCH_USAGE, "--profile: %s cannot be opened", path);
    *text = allocate(MOST + 1, 1);
    *size = fread(*text, 1, MOST + 1, file);
    bool failed = ferror(file) != 0;
    fclose(file);
    return failed ? fail(BENCH_ERROR, "--profile: %s cannot be read", path) : BENCH_OK;
}

static BenchResult runSession(const Options* options) {
    Session session = {.options = options};
    char* profile = NULL;
    BenchResult result = BENCH_OK;
    if (options->profilePath)
        result = readProfile(options->profilePath, &profile, &session.profileSize);
    session.profile = profile;
    if (result == BENCH_OK)
        result = openSession(&session, NULL, 0);
    if (result == BENCH_OK)
        result = loadShaderTable(&session);
    if (result == BENCH_OK && options->systemReport) {
        result = printSystemReport(&session);
    } else if (result == BENCH_OK && options->tunePath) {
        result = runTune(&session);
    } else if (result == BENCH_OK) {
        session.report = createReport(&session);
        for (uint32_t i = 0; i < options->caseFileCount; i++)
            result = worse(result, runCaseFile(&session, options->caseFiles[i]));
        if (!options->caseFileCount)
            result = runItems(&session);
        finishReport(session.report);
    }
    free(session.shaders);
    free(profile);
    vkmqaCloseDevice(session.device);
    return result;
}

int main(int argc, const char** argv) {
    Options options;
    bool exitNow;
    BenchResult result = parseOptions(argc, argv, &options, &exitNow);
    if (result == BENCH_OK && !exitNow)
        result = options.listDevices ? printDevices(&options) : runSession(&options);
    freeOptions(&options);
    if (fflush(stdout) != 0 && result == BENCH_OK)
        result = fail(BENCH_ERROR, "standard output cannot be written");
    return (int)result;
}

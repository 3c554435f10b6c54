// The command line, through popt.
// SPDX-License-Identifier: MIT
#include "bench.h"
#include "options_modifiers.h"
#include "types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What popt fills in; parseOptions turns it into Options.
typedef struct RawOptions {
    int listDevices, systemReport, quick, noVerify, verify, cacheHot, portableOnly, skipSelfTest;
    int help, version, listPresets, causal, repetitions;
    double warmup;
    char *device, *ops, *preset, *headDim, *queryTokens, *contexts, *batches, *kTypes, *vTypes;
    char *ioType, *newType, *kernel, *timer, *format, *caseFile, *pageSize, *numHeadsQ, *numHeadsKv;
    char *parts, *layers, *tune, *profile;
} RawOptions;

BenchResult parseNumber(const char* option, const char* text, uint32_t low, uint32_t high,
                        uint32_t* value) {
    char* end;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || number < low || number > high)
        return fail(BENCH_USAGE, "%s is '%s'; give a whole number from %u to %u", option, text, low,
                    high);
    *value = (uint32_t)number;
    return BENCH_OK;
}

// One element of a list: "N", "A-B" (steps of 1), "A-B+S" or "A-B*F", as llama-bench reads them.
static BenchResult parseRange(const char* option, const char* text, NumberList* list) {
    unsigned long long first, last, step = 1;
    char sign = '+';
    int used = 0;
    int fields =
        sscanf(text, "%llu%n-%llu%n%c%llu%n", &first, &used, &last, &used, &sign, &step, &used);
    bool good = text[0] >= '0' && text[0] <= '9' && text[used] == 0 && fields != 3 && fields > 0;
    if (fields == 1)
        last = first;
    if (!good || first == 0 || last < first || last > INT32_MAX || (sign != '+' && sign != '*') ||
        step < (sign == '*' ? 2u : 1u))
        return fail(BENCH_USAGE,
                    "%s has '%s'; write N, FIRST-LAST, FIRST-LAST+STEP or "
                    "FIRST-LAST*FACTOR with numbers from 1 to %d",
                    option, text, INT32_MAX);
    for (unsigned long long n = first; n <= last; n = sign == '*' ? n * step : n + step) {
        if (list->count == sizeof(list->values) / sizeof(list->values[0]))
            return fail(BENCH_USAGE, "%s lists more than %u values; split the run", option,
                        list->count);
        list->values[list->count++] = (uint32_t)n;
    }
    return BENCH_OK;
}

static BenchResult parseType(const char* option, const char* text, uint32_t* type) {
    const TypeTraits* traits = typeByName(text);
    if (!traits)
        return fail(BENCH_USAGE, "%s is '%s'; the types are %s", option, text, typeNames());
    *type = (uint32_t)traits->type;
    return BENCH_OK;
}

static BenchResult parseIoType(const char* option, const char* text, VkmqaType* type) {
    const TypeTraits* traits = typeByName(text);
    if (!traits || !isIoType(traits))
        return fail(BENCH_USAGE, "%s is '%s'; it is one of %s", option, text, ioTypeNames());
    *type = traits->type;
    return BENCH_OK;
}

typedef BenchResult (*ParseElement)(const char* option, const char* text, NumberList* list);

static BenchResult parseTypeElement(const char* option, const char* text, NumberList* list) {
    if (list->count == 8)
        return fail(BENCH_USAGE, "%s lists more than 8 types", option);
    BenchResult result = parseType(option, text, &list->values[list->count]);
    list->count += result == BENCH_OK;
    return result;
}

static BenchResult parseOpElement(const char* option, const char* text, NumberList* list) {
    for (uint32_t op = 0; op < OP_CASE; op++) {
        if (strcmp(opNames[op], text) == 0) {
            list->values[0] |= 1u << op;
            return BENCH_OK;
        }
    }
    char names[200] = "";
    for (uint32_t op = 0; op < OP_CASE; op++)
        snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", op ? ", " : "",
                 opNames[op]);
    return fail(BENCH_USAGE, "%s is '%s'; the operations are %s", option, text, names);
}

static BenchResult parseList(const char* option, const char* text, ParseElement parse,
                             NumberList* list) {
    if (!text)
        return BENCH_OK;
    char element[64];
    for (const char* at = text;; at++) {
        size_t length = strcspn(at, ",");
        snprintf(element, sizeof(element), "%.*s", (int)(length < 64 ? length : 63), at);
        BenchResult result = parse(option, element, list);
        if (result != BENCH_OK)
            return result;
        at += length;
        if (!*at)
            return BENCH_OK;
    }
}

static BenchResult parseKernel(const char* text, Options* options) {
    static const char* const tiers[] = {"auto", "portable", "subgroup", "cpu", "coopmat"};
    for (uint32_t i = 0; i < sizeof(tiers) / sizeof(tiers[0]); i++) {
        if (strcmp(text, tiers[i]) == 0) {
            options->tier = (VkmqaTier)i;
            return BENCH_OK;
        }
    }
    options->kernelName = strdup(text); // judged by the library: names differ from device to device
    return BENCH_OK;
}

static BenchResult parseFormat(const char* text, OutputFormat* format) {
    static const char* const names[] = {"md", "csv", "json", "jsonl"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            *format = (OutputFormat)i;
            return BENCH_OK;
        }
    }
    return fail(BENCH_USAGE, "-o is '%s'; the formats are md, csv, json and jsonl", text);
}

static BenchResult parseHeadDim(const char* text, Options* options) {
    char first[16] = "";
    const char* slash = strchr(text, '/');
    if (!slash)
        slash = text + strlen(text);
    snprintf(first, sizeof(first), "%.*s", (int)(slash - text < 15 ? slash - text : 15), text);
    BenchResult result = parseNumber("-hd", first, 8, 576, &options->headDimQk);
    options->headDimV = options->headDimQk;
    if (result == BENCH_OK && *slash)
        result = parseNumber("-hd (after the slash)", slash + 1, 8, 576, &options->headDimV);
    if (result == BENCH_OK && (options->headDimQk % 8 || options->headDimV % 8))
        return fail(BENCH_USAGE, "-hd is '%s'; give multiples of 8 from 8 to 576", text);
    return result;
}

static BenchResult parseShape(const RawOptions* raw, Options* options) {
    BenchResult result = BENCH_OK;
    if (raw->preset && strcmp(raw->preset, "heads-32") == 0) {
        options->headTable = true;
    } else if (raw->preset && !(options->preset = findPreset(raw->preset))) {
        return fail(BENCH_USAGE,
                    "--preset is '%s', which does not exist; --list-presets shows them",
                    raw->preset);
    }
    if (raw->numHeadsQ)
        result = parseNumber("-hq", raw->numHeadsQ, 1, 65536, &options->numHeadsQ);
    if (result == BENCH_OK && raw->numHeadsKv)
        result = parseNumber("-hkv", raw->numHeadsKv, 1, 65536, &options->numHeadsKv);
    if (result == BENCH_OK && raw->headDim)
        result = parseHeadDim(raw->headDim, options);
    if (result == BENCH_OK && raw->pageSize)
        result = parseNumber("--page-size", raw->pageSize, 0, 256, &options->pageSize);
    if (result == BENCH_OK && (options->pageSize & (options->pageSize - 1)))
        result = fail(BENCH_USAGE,
                      "--page-size is %u; give a power of two from 1 to 256, or 0 for a "
                      "contiguous cache",
                      options->pageSize);
    return result;
}

static BenchResult interpret(const RawOptions* raw, Options* options) {
    NumberList ops = {0, {0}};
    BenchResult result = parseShape(raw, options);
    if (result == BENCH_OK)
        result = parseList("--op", raw->ops, parseOpElement, &ops);
    options->ops = ops.values[0];
    if (result == BENCH_OK)
        result = parseList("-p", raw->queryTokens, parseRange, &options->queryTokens);
    if (result == BENCH_OK)
        result = parseList("-d", raw->contexts, parseRange, &options->contexts);
    if (result == BENCH_OK)
        result = parseList("-b", raw->batches, parseRange, &options->batches);
    if (result == BENCH_OK)
        result = parseList("-ctk", raw->kTypes, parseTypeElement, &options->kTypes);
    if (result == BENCH_OK)
        result = parseList("-ctv", raw->vTypes, parseTypeElement, &options->vTypes);
    if (result == BENCH_OK && raw->ioType)
        result = parseIoType("--io-type", raw->ioType, &options->ioType);
    if (result == BENCH_OK && raw->newType)
        result = parseIoType("--new-type", raw->newType, &options->newType);
    if (result == BENCH_OK && raw->parts)
        result = parseNumber("--parts", raw->parts, 1, 1024, &options->parts);
    if (result == BENCH_OK && raw->layers)
        result = parseNumber("--layers", raw->layers, 1, 256, &options->layers);
    if (result == BENCH_OK)
        result = interpretModifiers(options);
    if (result == BENCH_OK && raw->kernel)
        result = parseKernel(raw->kernel, options);
    if (result == BENCH_OK && raw->format)
        result = parseFormat(raw->format, &options->format);
    if (result != BENCH_OK)
        return result;
    if (raw->timer && strcmp(raw->timer, "gpu") != 0 && strcmp(raw->timer, "wall") != 0)
        return fail(BENCH_USAGE, "--timer is '%s'; it is gpu or wall", raw->timer);
    if (raw->causal != 0 && raw->causal != 1)
        return fail(BENCH_USAGE, "--causal is %d; it is 0 or 1", raw->causal);
    if (raw->repetitions < 0 || raw->repetitions > 100000)
        return fail(BENCH_USAGE, "-r is %d; give a number from 1 to 100000", raw->repetitions);
    if (!(raw->warmup >= 0 && raw->warmup <= 60))
        return fail(BENCH_USAGE, "--warmup-time is %g; give seconds from 0 to 60", raw->warmup);
    options->wallTimer = raw->timer && raw->timer[0] == 'w';
    options->causal = raw->causal != 0;
    options->repetitions = (uint32_t)raw->repetitions;
    options->warmupSeconds = raw->warmup;
    options->listDevices = raw->listDevices;
    options->systemReport = raw->systemReport;
    options->quick = raw->quick;
    options->verify = !raw->noVerify;
    options->cacheHot = raw->cacheHot;
    options->portableOnly = raw->portableOnly;
    options->skipSelfTest = raw->skipSelfTest;
    return BENCH_OK;
}

// The operands are further case files, so that --case takes a shell's *.safetensors.
static BenchResult collectCaseFiles(poptContext context, RawOptions* raw, Options* options) {
    const char** operands = poptGetArgs(context);
    uint32_t count = 0;
    while (operands && operands[count])
        count++;
    if (count && !raw->caseFile)
        return fail(BENCH_USAGE, "'%s' is not an option; case files follow --case", operands[0]);
    if (!raw->caseFile)
        return BENCH_OK;
    options->caseFiles = allocate(count + 1, sizeof(char*));
    options->caseFiles[options->caseFileCount++] = strdup(raw->caseFile);
    for (uint32_t i = 0; i < count; i++)
        options->caseFiles[options->caseFileCount++] = strdup(operands[i]);
    return BENCH_OK;
}

#define FLAG(name, field, text)                                                                    \
    { name, 0, POPT_ARG_NONE, &raw.field, 0, text, NULL }
#define TEXT(name, letter, field, text, value)                                                     \
    { name, letter, POPT_ARG_STRING, &raw.field, 0, text, value }
#define DASH(name, field, text, value)                                                             \
    { name, 0, POPT_ARG_STRING | POPT_ARGFLAG_ONEDASH, &raw.field, 0, text, value }

BenchResult parseOptions(int argc, const char** argv, Options* options, bool* exitNow) {
    RawOptions raw = {.causal = 1, .warmup = 0.2};
    *options =
        (Options){.ioType = VKMQA_TYPE_F16, .newType = VKMQA_TYPE_F32, .parts = 4, .layers = 4};
    struct poptOption table[] = {
        TEXT("device", 0, device, "auto, an index, name:TEXT, uuid:HEX or type:KIND (auto)",
             "SPEC"),
        FLAG("list-devices", listDevices, "list the Vulkan devices and end"),
        TEXT("op", 0, ops,
             "decode, prefill, append, merge, replay, quality, copy, read, fma, matrix, create, "
             "record, plain (all but merge, replay, quality and plain); of the cache layer fork, step, "
             "offload, save, load (none)",
             "OP,..."),
        TEXT("preset", 0, preset, "a model's heads; heads-32 compares MHA, GQA and MQA", "NAME"),
        FLAG("list-presets", listPresets, "list the presets and end"),
        DASH("hq", numHeadsQ, "query heads (32)", "N"),
        DASH("hkv", numHeadsKv, "key/value heads (8)", "N"),
        DASH("hd", headDim, "head dimension to 576, or of keys and of values: 192/128 (128)",
             "N[/N]"),
        TEXT(NULL, 'p', queryTokens,
             "query tokens of prefill and merge, new tokens of append (512); of decode (1) where "
             "--op "
             "names none of those",
             "LIST"),
        TEXT(NULL, 'd', contexts, "tokens in the cache, the new ones included (4096; prefill 2048)",
             "LIST"),
        TEXT(NULL, 'b', batches, "sequences (1)", "LIST"),
        DASH("ctk", kTypes, "types of the K cache: f32, f16, bf16, fp8_e4m3, q8_0, q4_0 (f16)",
             "LIST"),
        DASH("ctv", vTypes, "types of the V cache (as K)", "LIST"),
        TEXT("io-type", 0, ioType, "type of queries and outputs: f32, f16, bf16 (f16)", "TYPE"),
        TEXT("new-type", 0, newType, "type of appended rows: f32, f16, bf16 (f32)", "TYPE"),
        TEXT("page-size", 0, pageSize, "tokens per page, 0 = contiguous (0)", "N"),
        {"causal", 0, POPT_ARG_INT, &raw.causal, 0, "1: a query sees what is before it (1)", "0|1"},
        {NULL, 0, POPT_ARG_INCLUDE_TABLE, modifierOptions, 0, "Kinds of attention:", NULL},
        TEXT("parts", 0, parts, "partial results that merge merges (4)", "N"),
        TEXT("layers", 0, layers, "layers of a step of replay, of a cache that forks, offloads, saves or loads (4)", "N"),
        TEXT("kernel", 0, kernel,
             "auto, a tier (portable, subgroup, cpu, coopmat) or a kernel's name (auto)", "NAME"),
        FLAG("portable-only", portableOnly, "open the device with nothing beyond Vulkan 1.1"),
        {NULL, 'r', POPT_ARG_INT, &raw.repetitions, 0,
         "samples of each row (30, fewer where they would take over a second), steps of replay "
         "(64)",
         "N"},
        {"warmup-time", 0, POPT_ARG_DOUBLE, &raw.warmup, 0, "seconds before the first sample (0.2)",
         "S"},
        TEXT("timer", 0, timer, "gpu timestamps or wall clock (gpu where there are any)",
             "gpu|wall"),
        FLAG("cache-hot", cacheHot, "do not rotate buffers past the caches"),
        FLAG("verify", verify, "compare with the tool's own f64 reference (on)"),
        FLAG("no-verify", noVerify, "only time"),
        FLAG("skip-self-test", skipSelfTest, "do not run the library's known-answer test"),
        TEXT(NULL, 'o', format, "md, csv, json or jsonl (md)", "FORMAT"),
        TEXT("case", 0, caseFile, "run attention case files (safetensors) and judge the results",
             "FILE..."),
        TEXT("tune", 0, tune,
             "measure which kernels and splits are fastest here, for a list of shapes or the one that --preset, -hq, "
             "-hkv, -hd, -ctk and -d name, and write them to FILE", "FILE"),
        TEXT("profile", 0, profile, "choose kernels by a file that --tune has written", "FILE"),
        FLAG("quick", quick, "fewer rows and samples"),
        FLAG("system-report", systemReport, "print a Markdown block for bug reports"),
        FLAG("version", version, "print the version and end"),
        {"help", 'h', POPT_ARG_NONE, &raw.help, 0, "print this text and end", NULL},
        POPT_TABLEEND};
    poptContext context = poptGetContext("vkmqa-bench", argc, argv, table, 0);
    poptSetOtherOptionHelp(context, "[OPTION...]\nMeasures shared-KV attention on a Vulkan device. "
                                    "LIST is N,N,... or FIRST-LAST*FACTOR or FIRST-LAST+STEP.");
    int code = poptGetNextOpt(context);
    BenchResult result = BENCH_OK;
    *exitNow = true;
    if (code < -1) {
        result = fail(BENCH_USAGE, "%s: %s; --help lists the options",
                      poptBadOption(context, POPT_BADOPTION_NOALIAS), poptStrerror(code));
    } else if (raw.help) {
        poptPrintHelp(context, stdout, 0);
        printf("\nExit codes: 0 ok, 1 run-time error, 2 usage, 3 no device or feature, 4 wrong "
               "result, "
               "77 nothing to run\n");
    } else if (raw.version) {
        printf("vkmqa-bench %d.%d.%d\n", VKMQA_VERSION_MAJOR, VKMQA_VERSION_MINOR,
               VKMQA_VERSION_PATCH);
    } else if (raw.listPresets) {
        printPresets();
    } else {
        *exitNow = false;
        result = interpret(&raw, options);
        if (result == BENCH_OK)
            result = collectCaseFiles(context, &raw, options);
        options->device = raw.device;
        options->tunePath = raw.tune;
        options->profilePath = raw.profile;
        raw.device = raw.tune = raw.profile = NULL;
        if (result == BENCH_OK && options->tunePath &&
            (options->profilePath || options->caseFileCount || options->kernelName || options->tier))
            result = fail(BENCH_USAGE, "--tune is given with --profile, --case or --kernel; give it alone");
    }
    poptFreeContext(context);
    char* strings[] = {raw.device,   raw.ops,       raw.preset,     raw.headDim, raw.queryTokens,
                       raw.contexts, raw.batches,   raw.kTypes,     raw.vTypes,  raw.ioType,
                       raw.newType,  raw.kernel,    raw.timer,      raw.format,  raw.caseFile,
                       raw.pageSize, raw.numHeadsQ, raw.numHeadsKv, raw.parts,   raw.layers,
                       raw.tune,     raw.profile};
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
        free(strings[i]);
    freeModifiers();
    return result;
}

void freeOptions(Options* options) {
    free(options->device);
    free(options->kernelName);
    free(options->tunePath);
    free(options->profilePath);
    for (uint32_t i = 0; i < options->caseFileCount; i++)
        free((char*)options->caseFiles[i]);
    free(options->caseFiles);
}

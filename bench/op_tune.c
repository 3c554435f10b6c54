// --tune FILE: which kernel, split and filling are fastest on this device, measured, as a tuning profile that
// VkmqaAttentionCreateInfo::tuningProfile takes. SPDX-License-Identifier: MIT
#include "problem.h"
#include "types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_KERNELS = 64, MAX_LINE = 160 };
static const double worthwhile = 0.97; // of the default's time: less is noise

// Kinds of calls, by ascending rows of a sequence; the last one's kernel takes all larger calls as well.
typedef struct CallKind {
    uint32_t tokens, context;
} CallKind;
enum { KINDS = 3 };

typedef struct Choice {
    char kernel[48];
    uint32_t split, workgroups; // 0: the library's
    double seconds; // median
} Choice;

typedef struct Tuner {
    Session* session;
    Item item; // of the shape at hand
    CallKind kinds[KINDS];
    const char* kernels[MAX_KERNELS]; // that the shape can have
    uint32_t kernelCount;
    Choice start; // split and workgroups to compare kernels with
    char* text;   // of the profile
    size_t size;
} Tuner;

static void append(Tuner* tuner, const char* line) {
    size_t length = strlen(line);
    tuner->text = realloc(tuner->text, tuner->size + length + 1);
    if (!tuner->text)
        abort(); // a few kilobytes: there is nothing to rescue
    memcpy(tuner->text + tuner->size, line, length + 1);
    tuner->size += length;
}

static size_t writeHeader(const Session* session, char* text, size_t size) {
    char uuid[33];
    uuidText(session->properties.uuid, uuid);
    uint32_t version = vkmqaGetVersion();
    int length = snprintf(text, size,
                          "vkmqa-tuning 1\nlibrary %u.%u.%u\ndevice %s\ndriver %u 0x%08x\n"
                          "# heads, dims, types, rows, kernel, split, workgroups; on %.100s\n",
                          version >> 22, version >> 12 & 0x3FF, version & 0xFFF, uuid,
                          session->properties.driverId, session->properties.driverVersion,
                          session->properties.name);
    return (size_t)length;
}

// upTo 0: calls of any number of rows.
static void writeLine(const Item* item, uint32_t upTo, const Choice* choice, char line[MAX_LINE]) {
    char rows[16] = "more";
    if (upTo)
        snprintf(rows, sizeof(rows), "%u", upTo);
    snprintf(line, MAX_LINE, "%u:%u %u/%u %s/%s %s %s %u %u\n", item->numHeadsQ, item->numHeadsKv, item->headDimQk,
             item->headDimV, typeTraits(item->kType)->name, typeTraits(item->vType)->name, rows, choice->kernel,
             choice->split, choice->workgroups);
}

// Far slower than `best` seconds (0: none yet) by one run, which is all that such a kernel gets.
static BenchResult isHopeless(Problem* problem, double best, bool* hopeless, double* seconds) {
    BenchResult result = BENCH_OK;
    *hopeless = false;
    for (int run = 0; run < 2 && result == BENCH_OK && !*hopeless; run++) { // the first one compiles, on some drivers
        double start = secondsNow();
        result = runOnce(problem->session, recordAttention, problem);
        *seconds = secondsNow() - start;
        *hopeless = best > 0 && *seconds > 4 * best + (run ? 0.005 : 2);
    }
    return result;
}

// Times one kind of call, up to the worth of comparing it with `best`; choice null: as the library chooses. The name
// becomes the kernel's that ran. BENCH_SKIPPED where the shape cannot have the chosen kernel, or it computes wrongly.
static BenchResult measureChoice(Tuner* tuner, const CallKind* kind, const Choice* choice, bool time, double best,
                                 Choice* measured) {
    char profile[1024];
    Session* session = tuner->session;
    Item item = tuner->item;
    Problem problem;
    item.queryTokens = kind->tokens;
    item.context = kind->context;
    if (choice) {
        size_t length = writeHeader(session, profile, sizeof(profile));
        writeLine(&item, 0, choice, profile + length);
        session->profile = profile;
        session->profileSize = strlen(profile);
        session->trusted = time; // by then findKernels has kept those that pass
    }
    BenchResult result = createItemProblem(session, &item, time ? 0 : 1, &problem);
    session->profile = NULL;
    session->trusted = false;
    if (result != BENCH_OK)
        return result;
    if (choice)
        *measured = *choice;
    snprintf(measured->kernel, sizeof(measured->kernel), "%s", problem.kernel.name);
    if (choice && strcmp(choice->kernel, problem.kernel.name) != 0)
        result = BENCH_SKIPPED;
    Stats stats = {0};
    bool hopeless = true;
    if (result == BENCH_OK && time)
        result = fillProblem(&problem);
    if (result == BENCH_OK && time)
        result = isHopeless(&problem, best, &hopeless, &stats.median);
    if (result == BENCH_OK && !hopeless)
        result = measure(session, recordAttention, &problem, problem.copies, &stats);
    measured->seconds = stats.median;
    destroyProblem(&problem);
    return result;
}

static BenchResult findKernels(Tuner* tuner) {
    const char* name;
    CallKind small = {1, 64};
    tuner->kernelCount = 0;
    // The names of attention kernels come first, those of append kernels last.
    for (uint32_t k = 0; k < MAX_KERNELS && (name = vkmqaGetKernelName(k)) && strncmp(name, "append", 6); k++) {
        Choice choice = tuner->start, ignored;
        snprintf(choice.kernel, sizeof(choice.kernel), "%s", name);
        BenchResult result = measureChoice(tuner, &small, &choice, false, 0, &ignored);
        if (result == BENCH_OK)
            tuner->kernels[tuner->kernelCount++] = name;
        else if (result != BENCH_SKIPPED)
            return result;
    }
    return BENCH_OK;
}

static void show(const Tuner* tuner, const CallKind* kind, const Choice* before, const Choice* best) {
    const Item* item = &tuner->item;
    printf("| %u:%u | %u/%u | %s/%s | %u x %u | %s | %.3f ms | %s %u/%u | %.3f ms | %.2fx |\n", item->numHeadsQ,
           item->numHeadsKv, item->headDimQk, item->headDimV, typeTraits(item->kType)->name,
           typeTraits(item->vType)->name, kind->tokens, kind->context, before->kernel, before->seconds * 1e3,
           best->kernel, best->split, best->workgroups, best->seconds * 1e3, before->seconds / best->seconds);
    fflush(stdout);
}

// The smallest of many noisy medians flatters itself: it is taken if it wins again, and else what the library does
// by itself.
static BenchResult confirm(Tuner* tuner, const CallKind* kind, Choice* before, Choice* best) {
    Choice measured;
    BenchResult result = measureChoice(tuner, kind, NULL, true, 0, before);
    if (result == BENCH_OK)
        result = measureChoice(tuner, kind, best, true, 0, &measured);
    if (result == BENCH_OK)
        *best = measured.seconds < worthwhile * before->seconds ? measured : *before;
    return result;
}

// The fastest kernel first, then for it, where a call has few workgroups of its own, the fastest split.
static BenchResult tuneKind(Tuner* tuner, const CallKind* kind, Choice* best) {
    static const uint32_t splits[] = {128, 256, 512, 0};
    static const uint32_t ofCpus[] = {8, 16, 32, 0}, ofGpus[] = {32, 64, 128, 256, 512, 1024, 2048, 0};
    bool cpu = tuner->session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    Choice before = {.kernel = ""}, measured, own = {.kernel = ""};
    BenchResult result = measureChoice(tuner, kind, NULL, false, 0, &before); // its name; its time is confirm's
    best->seconds = 0;
    for (uint32_t k = 0; k < tuner->kernelCount && result == BENCH_OK; k++) {
        Choice choice = tuner->start;
        snprintf(choice.kernel, sizeof(choice.kernel), "%s", tuner->kernels[k]);
        result = measureChoice(tuner, kind, &choice, true, best->seconds, &measured);
        if (result == BENCH_OK && strcmp(measured.kernel, before.kernel) == 0)
            own = measured;
        if (result == BENCH_OK && (!best->seconds || measured.seconds < best->seconds))
            *best = measured;
        result = result == BENCH_SKIPPED ? BENCH_OK : result;
    }
    if (own.seconds && best->seconds > worthwhile * own.seconds)
        *best = own;
    for (const uint32_t* split = splits; *split && kind->tokens == 1; split++)
        for (const uint32_t* filling = cpu ? ofCpus : ofGpus; *filling && result == BENCH_OK; filling++) {
            Choice choice = *best;
            choice.split = *split;
            choice.workgroups = *filling;
            result = measureChoice(tuner, kind, &choice, true, best->seconds, &measured);
            if (result == BENCH_OK && measured.seconds < worthwhile * best->seconds)
                *best = measured;
        }
    if (result == BENCH_OK && !best->seconds)
        return fail(BENCH_MISSING, "--tune: no kernel passes its self-test for %u:%u heads of %u/%u",
                    tuner->item.numHeadsQ, tuner->item.numHeadsKv, tuner->item.headDimQk, tuner->item.headDimV);
    if (result == BENCH_OK)
        result = confirm(tuner, kind, &before, best);
    if (result == BENCH_OK)
        show(tuner, kind, &before, best);
    return result;
}

static BenchResult tuneShape(Tuner* tuner) {
    Choice best[KINDS];
    BenchResult result = findKernels(tuner);
    for (int i = 0; i < KINDS && result == BENCH_OK; i++)
        result = tuneKind(tuner, &tuner->kinds[i], &best[i]);
    uint32_t ratio = tuner->item.numHeadsQ / tuner->item.numHeadsKv;
    for (int i = 0, first = 0; i < KINDS && result == BENCH_OK; i++) {
        bool last = i + 1 == KINDS;
        if (!last && strcmp(best[i].kernel, best[i + 1].kernel) == 0)
            continue; // one line for neighbours of one kernel, with the smallest call's split
        char line[MAX_LINE];
        writeLine(&tuner->item, last ? 0 : tuner->kinds[i].tokens * ratio, &best[first], line);
        append(tuner, line);
        first = i + 1;
    }
    return result;
}

// Whole or not at all.
static BenchResult writeProfile(const Tuner* tuner, const char* path) {
    char temporary[4096];
    if (snprintf(temporary, sizeof(temporary), "%s.new", path) >= (int)sizeof(temporary))
        return fail(BENCH_USAGE, "--tune has a path of over %zu characters", sizeof(temporary) - 5);
    FILE* file = fopen(temporary, "wb");
    bool good = file && fwrite(tuner->text, 1, tuner->size, file) == tuner->size;
    if (file && fclose(file) != 0)
        good = false;
    if (!good || rename(temporary, path) != 0) {
        remove(temporary);
        return fail(BENCH_ERROR, "--tune: %s cannot be written", path);
    }
    return BENCH_OK;
}

BenchResult runTune(Session* session) {
    const Options* options = session->options;
    bool cpu = session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    uint32_t context = options->contexts.count ? options->contexts.values[0] : cpu ? 4096 : 32768;
    Tuner tuner = {
        .session = session,
        .kinds = {{1, context}, {8, context}, {512, context < 2048 ? context : 2048}},
        .start = {.split = cpu ? 512 : 256, .workgroups = cpu ? 16 : 512},
    };
    char header[512];
    Item* items;
    uint32_t count = planTuning(options, &items);
    BenchResult result = BENCH_OK;
    writeHeader(session, header, sizeof(header));
    append(&tuner, header);
    printf("| heads | dims | cache | q x context | chosen without | median | fastest, split/workgroups | median | "
           "faster |\n|---|---|---|---|---|---:|---|---:|---:|\n");
    for (uint32_t i = 0; i < count && result == BENCH_OK; i++) {
        tuner.item = items[i];
        result = tuneShape(&tuner);
    }
    if (result == BENCH_OK)
        result = writeProfile(&tuner, options->tunePath);
    if (result == BENCH_OK)
        printf("\nWritten to %s; --profile %s measures with it.\n", options->tunePath, options->tunePath);
    free(items);
    free(tuner.text);
    return result;
}

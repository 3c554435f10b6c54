// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include "flat.h"

#include <dirent.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char* const names[FLAT_SERIES] = {"resident KiB", "heap KiB", "files", "maps", "threads"};

static long entriesOf(const char* path) {
    long count = -2; // . and ..
    DIR* folder = opendir(path);
    while (folder && readdir(folder))
        count++;
    if (folder)
        closedir(folder);
    return count;
}

static long linesOf(const char* path) {
    FILE* file = fopen(path, "r");
    long count = 0;
    for (int c; file && (c = getc(file)) != EOF;)
        count += c == '\n';
    if (file)
        fclose(file);
    return count;
}

static long residentKib(void) {
    long all = 0, resident = 0;
    FILE* file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%ld %ld", &all, &resident) != 2)
        resident = 0;
    if (file)
        fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

void flatAdd(Flat* flat, const long sample[FLAT_SERIES]) {
    if (flat->every == 0)
        flat->every = 1;
    if (++flat->skipped < flat->every)
        return;
    flat->skipped = 0;
    if (flat->count == FLAT_MOST) {
        flat->count /= 2;
        flat->every *= 2;
        for (int s = 0; s < FLAT_SERIES; s++)
            for (size_t i = 0; i < flat->count; i++)
                flat->samples[s][i] = flat->samples[s][2 * i];
    }
    for (int s = 0; s < FLAT_SERIES; s++)
        flat->samples[s][flat->count] = sample[s];
    flat->count++;
}

void flatSample(Flat* flat) {
    malloc_trim(0); // what is freed counts no more
    const struct mallinfo2 heap = mallinfo2();
    const long sample[FLAT_SERIES] = {[FLAT_RESIDENT] = residentKib(),
                                      [FLAT_HEAP] = (long)((heap.uordblks + heap.hblkhd) / 1024),
                                      [FLAT_FILES] = entriesOf("/proc/self/fd"),
                                      [FLAT_MAPS] = linesOf("/proc/self/maps"),
                                      [FLAT_THREADS] = entriesOf("/proc/self/task")};
    flatAdd(flat, sample);
    if (getenv("VKMQA_TEST_VERBOSE"))
        printf("resident %ld KiB, heap %ld KiB, %ld files, %ld maps, %ld threads\n", sample[0], sample[1], sample[2],
               sample[3], sample[4]);
}

static int compareLongs(const void* a, const void* b) {
    long x = *(const long*)a, y = *(const long*)b;
    return (x > y) - (x < y);
}

// Of what is added from one sample to the one `lag` after it.
static long medianGain(const long* samples, size_t count, size_t lag) {
    static long gains[FLAT_MOST];
    for (size_t i = 0; i + lag < count; i++)
        gains[i] = samples[i + lag] - samples[i];
    qsort(gains, count - lag, sizeof(*gains), compareLongs);
    return gains[(count - lag) / 2];
}

bool flatJudge(const Flat* flat, const long bounds[FLAT_SERIES], char text[FLAT_TEXT]) {
    const size_t warm = flat->count / 4, rest = flat->count - warm;
    size_t length = 0;
    if (rest < 6) {
        snprintf(text, FLAT_TEXT, "%zu samples are too few for a judgement\n", flat->count);
        return false;
    }
    bool isFlat = true;
    for (int s = 0; s < FLAT_SERIES; s++) {
        const long* samples = flat->samples[s] + warm;
        const long growth = 4 * medianGain(samples, rest, rest / 4);
        const bool grows = growth > bounds[s];
        isFlat &= !grows;
        length += (size_t)snprintf(text + length, FLAT_TEXT - length, "%s: from %ld to %ld, growth %ld, bound %ld%s\n",
                                   names[s], samples[0], samples[rest - 1], growth, bounds[s], grows ? ": GROWS" : "");
    }
    return isFlat;
}

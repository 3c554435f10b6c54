// What a process holds, sampled over time, and whether it grows.
#ifndef FLAT_H
#define FLAT_H

#include <stdbool.h>
#include <stddef.h>

typedef enum FlatSeries { FLAT_RESIDENT, FLAT_HEAP, FLAT_FILES, FLAT_MAPS, FLAT_THREADS, FLAT_SERIES } FlatSeries;

enum { FLAT_MOST = 8192, FLAT_TEXT = 1024 };

typedef struct Flat {
    long samples[FLAT_SERIES][FLAT_MOST]; // KiB, KiB, and counts
    size_t count;                         // thinned out when the room is full
    size_t every, skipped;                // every how many-th sample is kept
} Flat;

// What this process holds now.
void flatSample(Flat* flat);
void flatAdd(Flat* flat, const long sample[FLAT_SERIES]);
// The first quarter is warm-up. Growth over the rest is four times the median of what was added within any quarter of
// it: noise and a step, as of a driver's compiler coming awake, are no growth. false: something has grown past its
// bound, or there are too few samples to tell. The text has a line per series.
bool flatJudge(const Flat* flat, const long bounds[FLAT_SERIES], char text[FLAT_TEXT]);

#endif

// Tests of the layer itself: what a small device cannot do is noticed. A program that does it is ended, so each
// misuse happens in a process of its own.
#ifndef CLAMP_TEST_H
#define CLAMP_TEST_H

#include "harness.h"

void clampLoad(void); // after harnessOpen
void layerRefusesDevices(void** state);
void layerRefusesShaders(void** state);
void layerRefusesLayouts(void** state);
void layerRefusesTimestamps(void** state);
void layerNeedsFlushes(void** state);
void layerRefusesRanges(void** state);
void layerRefusesQueues(void** state);
// Of the library: its mapped memory needs no flushes.
void mappedMemoryIsCoherent(void** state);

#endif

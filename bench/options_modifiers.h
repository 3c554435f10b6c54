// The part of the command line that says what kind of attention: windows, masks, rotations.
// SPDX-License-Identifier: MIT
#ifndef BENCH_OPTIONS_MODIFIERS_H
#define BENCH_OPTIONS_MODIFIERS_H

#include "bench.h"

#include <popt.h>

extern struct poptOption modifierOptions[]; // popt writes into this file's own variables
// After the shape has been read, with which modifiers must agree.
BenchResult interpretModifiers(Options* options);
void freeModifiers(void);

BenchResult parseNumber(const char* option, const char* text, uint32_t low, uint32_t high,
                        uint32_t* value); // options.c

#endif

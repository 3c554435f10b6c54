// The structs of a call, of whatever version, and what is wrong with them. SPDX-License-Identifier: MIT
#ifndef VKMQA_STRUCTS_H
#define VKMQA_STRUCTS_H

#include "printf.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

// What is wrong with a call's arguments; text is empty when nothing is.
struct VkmqaProblem {
    char text[256];
};
void vkmqa_problem(struct VkmqaProblem* problem, const char* format, ...) VKMQA_PRINTF(2, 3);
void vkmqa_problem_list(struct VkmqaProblem* problem, const char* format, va_list arguments);

// Info structs grow at their end. Copies the known part of `given` into `known` (whose size is knownSize,
// zeroing what an older caller does not give) and refuses a non-zero unknown tail. Both start with
// structSize; of a size that cannot be believed `known` is all zero. minSize: the size of the struct's first published version.
bool vkmqa_read_struct(const void* given, void* known, uint32_t knownSize, uint32_t minSize,
                       const char* name, struct VkmqaProblem* problem);
// Checks an output struct's structSize: at least minSize. Clears what both sides know but structSize.
bool vkmqa_open_output(void* output, uint32_t knownSize, uint32_t minSize, const char* name,
                       struct VkmqaProblem* problem);

#endif

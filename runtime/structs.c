// The structs of a call. SPDX-License-Identifier: MIT
#include "structs.h"

#include <stdio.h>
#include <string.h>

void vkmqa_problem_list(struct VkmqaProblem* problem, const char* format, va_list arguments) {
    vsnprintf(problem->text, sizeof problem->text, format, arguments);
}

void vkmqa_problem(struct VkmqaProblem* problem, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vkmqa_problem_list(problem, format, arguments);
    va_end(arguments);
}

// structSize of a struct, 0 where it cannot be believed.
static uint32_t read_size(const void* object, uint32_t minSize, const char* name, const char* remedy,
                          struct VkmqaProblem* problem) {
    uint32_t size = 0;
    if (!object) {
        vkmqa_problem(problem, "%s is null; give a %s", name, remedy);
        return 0;
    }
    memcpy(&size, object, sizeof size);
    if (size >= minSize)
        return size;
    vkmqa_problem(problem, "%s.structSize is %u; set it to sizeof of the struct, at least %u", name, size, minSize);
    return 0;
}

bool vkmqa_read_struct(const void* given, void* known, uint32_t knownSize, uint32_t minSize,
                       const char* name, struct VkmqaProblem* problem) {
    memset(known, 0, knownSize);
    uint32_t size = read_size(given, minSize, name, "filled struct", problem);
    if (!size)
        return false;
    // A size beyond any struct of this library's future is a mistake, not a newer caller.
    if (size > knownSize + 4096) {
        vkmqa_problem(problem, "%s.structSize is %u; set it to sizeof of the struct, here %u", name,
                      size, knownSize);
        return false;
    }
    memcpy(known, given, size < knownSize ? size : knownSize);
    for (uint32_t i = knownSize; i < size; ++i)
        if (((const unsigned char*)given)[i] != 0) {
            vkmqa_problem(problem, "%s.structSize is %u and byte %u is set; this version knows %u "
                                   "bytes, and what it does not know must be zero", name, size, i,
                          knownSize);
            return false;
        }
    return true;
}

bool vkmqa_open_output(void* output, uint32_t knownSize, uint32_t minSize, const char* name,
                       struct VkmqaProblem* problem) {
    uint32_t size = read_size(output, minSize, name, "struct to fill", problem);
    if (!size)
        return false;
    memset((char*)output + sizeof size, 0, (size < knownSize ? size : knownSize) - sizeof size);
    return true;
}

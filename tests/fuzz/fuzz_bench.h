// In place of vkmqa-bench's own fail(): formats the message and counts it.
#ifndef FUZZ_BENCH_H
#define FUZZ_BENCH_H

#include "fuzz.h"

#include "bench.h"

#include <stdarg.h>

static uint32_t failCount;

BenchResult __wrap_fail(BenchResult code, const char* format, ...);
BenchResult __wrap_fail(BenchResult code, const char* format, ...) {
    static char text[1 << 16];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    REQUIRE(length > 10, "an empty message");
    failCount++;
    if (getenv("FUZZ_SAY"))
        fprintf(stderr, "%s\n", text);
    return code;
}

// In place of fopen in bench/safetensors.c.
FILE* fuzzOpen(const char* path, const char* mode);

#endif

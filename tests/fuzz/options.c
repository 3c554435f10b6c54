// vkmqa-bench's command line: arguments are the lines of the input.
#include "fuzz_bench.h"

enum { MAX_ARGUMENTS = 64 };

FILE* fuzzOpen(const char* path, const char* mode) {
    (void)path, (void)mode;
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    char* text = malloc(size + 1);
    const char* arguments[MAX_ARGUMENTS + 2] = {"vkmqa-bench"};
    int count = 1;
    REQUIRE(text, "no memory");
    memcpy(text, data, size);
    text[size] = 0;
    for (char* at = text; at < text + size && count <= MAX_ARGUMENTS; at += strlen(at) + 1) {
        at[strcspn(at, "\n")] = 0;
        arguments[count++] = at;
    }
    Options options;
    bool exitNow;
    failCount = 0;
    BenchResult result = parseOptions(count, arguments, &options, &exitNow);
    REQUIRE(result == BENCH_OK || failCount == 1, "result %d with %u messages", result, failCount);
    if (result == BENCH_OK && !exitNow) {
        REQUIRE(!options.pageSize || (options.pageSize <= 256 && !(options.pageSize & (options.pageSize - 1))),
                "a page size of %u", options.pageSize);
        REQUIRE(options.headDimQk <= 576 && options.headDimV <= 576, "head dimensions");
        REQUIRE(options.contexts.count <= sizeof(options.contexts.values) / 4, "%u contexts", options.contexts.count);
    }
    freeOptions(&options);
    free(text);
    return 0;
}

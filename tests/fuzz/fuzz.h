// What the fuzzers share: taking values from an input, and hearing what the library says.
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vkmqa/vkmqa_cache.h>

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Ends the process, which is a finding.
#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

typedef struct Input {
    const uint8_t* data;
    size_t size, at;
} Input;

static inline bool inputLeft(const Input* input) { return input->at < input->size; }
// 0 past the end.
static inline uint8_t takeByte(Input* input) { return inputLeft(input) ? input->data[input->at++] : 0; }
static inline uint32_t takeWord(Input* input) {
    uint32_t word = takeByte(input);
    word |= (uint32_t)takeByte(input) << 8;
    word |= (uint32_t)takeByte(input) << 16;
    return word | (uint32_t)takeByte(input) << 24;
}

// Errors that the library has explained to fuzzMessage.
extern uint32_t fuzzErrors;
void fuzzMessage(VkmqaSeverity severity, const char* text, void* userData);

#endif

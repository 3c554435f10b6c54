// What api.c and api_calls.c share.
#ifndef API_H
#define API_H

#include "fuzz.h"

#include "mock_objects.h"

enum { MAX_HEADS = 65536, MAX_DIM = 576, MAX_CALLS = 12, MAX_GIVEN = 16, MOST_HOST_BYTES = 1 << 20, MOST_STRUCT_BYTES = 1 << 16 };
#define NO_POINTER SIZE_MAX

struct World {
    VkDevice devices[MOCK_KINDS];
    VkmqaDevice imported[MOCK_KINDS];
    VkBuffer buffer; // of all 64 bits
    float floats[MAX_HEADS];
    double doubles[MAX_DIM];
    void* given[MAX_GIVEN]; // structs of the current call
    uint32_t givenCount;
};
extern struct World world;

// What an input's calls are made with.
struct Calls {
    MockKind kind;
    VkmqaDevice device;
    VkmqaContext context;
    VkmqaAttention attention;
    VkmqaRecorder recorder;
};

// The call, and that an error has been explained and has recorded nothing.
#define CALL(call)                                                                                                     \
    do {                                                                                                               \
        uint32_t errors = fuzzErrors;                                                                                  \
        uint64_t commands = mockCommands;                                                                              \
        VkResult callResult = (call);                                                                                  \
        REQUIRE(callResult >= 0 || fuzzErrors > errors, "%s: %d without a word", #call, callResult);                   \
        REQUIRE(callResult >= 0 || mockCommands == commands, "%s: %d and yet something recorded", #call, callResult);  \
    } while (0)

VkmqaContextCreateInfo contextInfo(MockKind kind, VkmqaDeviceRequirements* requirements);
uint32_t oddWord(Input* input, uint32_t before);
void mangle(Input* input, void* target, size_t size, const size_t* pointers);
void* given(const void* source, size_t size);
void* output(Input* input, size_t size);
void freeGiven(void);
VkmqaBuffer anyBuffer(void);

// api_calls.c
void askKv(Input* input, struct Calls* calls);
void askScratch(Input* input, struct Calls* calls);
void askLayout(Input* input, struct Calls* calls);
void askKernel(Input* input, struct Calls* calls);
void writeParameters(Input* input, struct Calls* calls);
void recordAppend(Input* input, struct Calls* calls);
void recordAttention(Input* input, struct Calls* calls);
void recordSlices(Input* input, struct Calls* calls);
void recordMerge(Input* input, struct Calls* calls);
void recordCompact(Input* input, struct Calls* calls);
void useMemory(Input* input, struct Calls* calls);
void useCommands(Input* input, struct Calls* calls);
void useRecorder(Input* input, struct Calls* calls);
void makeCache(Input* input, struct Calls* calls);

#endif

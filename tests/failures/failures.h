// Programs of public calls, each of which may fail at any place inside (see ../layer/fail.h).
//   scenario_own.c      a device of the library's own: list, open, compute, close
//   scenario_engine.c   a device of somebody else's, without features, with its allocator
//   scenario_cache.c    conversations: fork, shift, offload, save, load
//   system.c            calls of the C library that fail like the driver's
//   attempt.c           a call, and once more where it failed
//   test_failures.c     which places there are, and what has to be left after one has failed
#ifndef FAILURES_H
#define FAILURES_H

#include "harness.h"

#include "layer/fail.h"

#include <string.h>

enum { RESULT_BYTES = 8192 };

// One run of a scenario.
typedef struct Attempt {
    const char* folder; // for files
    bool retry;         // a call that fails is made once more, and then has to do
    VkResult first;     // what the first failing call returned
    const char* call;   // its text
    char message[1024]; // what the library said of it
    bool whileDestroying; // the failure met a call that has no result
    bool leftAlone;     // the library could not wait for the device, and said that it leaks what may be in use
    VkResult last;      // what ended the scenario; VK_SUCCESS: it came to its end
    const char* lastCall;
    uint8_t result[RESULT_BYTES]; // what was computed
    size_t resultSize;
} Attempt;

typedef void (*Scenario)(Attempt* attempt);

void scenarioOwn(Attempt* attempt);
void scenarioEngine(Attempt* attempt);
void scenarioCache(Attempt* attempt);
// What the scenarios share from run to run: an engine's device, and one for the cache.
void scenariosOpen(void);
void scenariosClose(void);

extern const LayerFail* layerFail;

// Makes the call; after a failure once more where the attempt says so. Whether it succeeded.
bool attemptNote(Attempt* attempt, VkResult result, const char* call, bool again);
#define ATTEMPT(expression)                                                                        \
    do {                                                                                           \
        VkResult result_;                                                                          \
        bool again_ = false;                                                                       \
        do {                                                                                       \
            harness.message[0] = 0;                                                                \
            layerFail->watch(true);                                                                \
            result_ = (expression);                                                                \
            layerFail->watch(false);                                                               \
            if (attemptNote(attempt, result_, #expression, again_))                                \
                break;                                                                             \
            if (again_ || !attempt->retry)                                                         \
                goto end;                                                                          \
            again_ = true;                                                                         \
        } while (1);                                                                               \
    } while (0)
// For destruction, which has no result.
#define WATCHED(call)                                                                              \
    do {                                                                                           \
        const bool before_ = layerFail->hit();                                                     \
        layerFail->watch(true);                                                                    \
        call;                                                                                      \
        layerFail->watch(false);                                                                   \
        attempt->whileDestroying |= !before_ && layerFail->hit();                                  \
        attempt->leftAlone |= strstr(harness.message, "leaked") || strstr(harness.message, "left to");    \
    } while (0)

// Attention and append of a few tokens on a device, by all the calls of the core.
void computeOn(Attempt* attempt, VkmqaDevice device);

// ---- system.c ------------------------------------------------------------------------------------

long systemAllocations(void); // of the library, not freed
long systemFiles(void);       // open file descriptors of this process
// Puts a failing allocator in front of another one.
VkAllocationCallbacks systemAllocator(const VkAllocationCallbacks* next);

#endif

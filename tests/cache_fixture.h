// A small cache and calls on it, for the tests of the cache layer's own decisions: nothing is computed.
#ifndef CACHE_FIXTURE_H
#define CACHE_FIXTURE_H

#include "harness.h"

#include "cache/cache.h"

#include <string.h>

enum { PAGE = 16, PAGES = 24, LAYERS = 2 };

extern VkmqaAttention attention; // of all tests: GQA 4:2, d 32, f16, rope

int createAttention(void** state); // of the whole group, on the harness' device
int destroyAttention(void** state);

VkmqaCacheCreateInfo goodInfo(void);
VkmqaCache makeCache(const VkmqaCacheCreateInfo* info);
VkmqaSequence makeSequence(VkmqaCache cache);
// A step whose command buffer is left out.
void buildStep(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaCacheStep* step);
void grow(VkmqaCache cache, VkmqaSequence sequence, uint32_t count); // by tokens without ids
VkmqaCacheState stateOf(VkmqaCache cache);
uint32_t reusedTokens(VkmqaCache cache, const uint32_t* ids, uint32_t count); // by a sequence of that prompt

#define FAILS(wanted, call, word)                                                                  \
    do {                                                                                           \
        harness.message[0] = 0;                                                                    \
        expectCall((call), (wanted), (word), #call);                                               \
    } while (0)
#define REJECTS(call, word) FAILS(VK_ERROR_VALIDATION_FAILED_EXT, call, word)

#endif

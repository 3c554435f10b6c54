// Which page holds which tokens, for sequences that begin alike. Pure C. SPDX-License-Identifier: MIT
//
// A full page is known by the page before it, its own tokens and the salt. `serial` numbers such contents; a
// page whose tokens another indexed page holds already takes over that one's serial, and what stands behind
// either is found behind both. Source: automatic prefix caching of vLLM (Kwon et al., arXiv 2309.06180).
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "cache.h"

static uint32_t* page_ids(VkmqaCache cache, uint32_t page) {
    return cache->ids + (size_t)page * cache->pageTokens;
}

static uint32_t* find_bucket(VkmqaCache cache, uint64_t parent, uint64_t salt, const uint32_t* ids) {
    uint64_t seed = (parent ^ salt) * 0x9E3779B97F4A7C15u + salt;
    uint64_t hash = XXH3_64bits_withSeed(ids, cache->pageTokens * sizeof *ids, seed);
    return &cache->buckets[hash & (cache->bucketCount - 1)];
}

uint32_t vkmqa_find_page(VkmqaCache cache, uint64_t parent, uint64_t salt, const uint32_t* ids) {
    uint32_t page = *find_bucket(cache, parent, salt, ids);
    for (; page != VKMQA_NO_PAGE; page = cache->pages[page].nextInBucket) {
        const struct VkmqaPage* state = &cache->pages[page];
        if (state->parent == parent && state->salt == salt &&
            memcmp(page_ids(cache, page), ids, cache->pageTokens * sizeof *ids) == 0)
            break;
    }
    return page;
}

void vkmqa_unindex_page(VkmqaCache cache, uint32_t page) {
    struct VkmqaPage* state = &cache->pages[page];
    uint32_t* link = find_bucket(cache, state->parent, state->salt, page_ids(cache, page));
    while (*link != page)
        link = &cache->pages[*link].nextInBucket;
    *link = state->nextInBucket;
    state->indexed = false;
}

void vkmqa_index_page(VkmqaCache cache, uint32_t page, uint32_t before, uint64_t salt) {
    struct VkmqaPage* state = &cache->pages[page];
    uint64_t parent = before == VKMQA_NO_PAGE ? 0 : cache->pages[before].serial;
    if (state->idCount < cache->pageTokens || (before != VKMQA_NO_PAGE && parent == 0))
        return;
    uint32_t same = vkmqa_find_page(cache, parent, salt, page_ids(cache, page));
    if (same != VKMQA_NO_PAGE) {
        state->serial = cache->pages[same].serial;
        return;
    }
    state->serial = ++cache->lastSerial;
    state->parent = parent;
    state->salt = salt;
    uint32_t* bucket = find_bucket(cache, parent, salt, page_ids(cache, page));
    state->nextInBucket = *bucket;
    *bucket = page;
    state->indexed = true;
}

void vkmqa_discard_steps(VkmqaCache cache, uint64_t last) {
    for (uint32_t page = 0; page < cache->numPages && cache->recordedSteps < last; ++page) {
        struct VkmqaPage* state = &cache->pages[page];
        if (state->step <= cache->recordedSteps || state->step > last)
            continue;
        vkmqa_forget_tokens(cache, page, 0);
        vkmqa_free_unindexed(cache, page);
    }
    if (cache->recordedSteps < last)
        cache->recordedSteps = last;
}

void vkmqa_forget_tokens(VkmqaCache cache, uint32_t page, uint32_t offset) {
    struct VkmqaPage* state = &cache->pages[page];
    if (state->indexed)
        vkmqa_unindex_page(cache, page);
    state->serial = 0;
    if (state->idCount > offset)
        state->idCount = offset;
}

void vkmqa_learn_tokens(VkmqaCache cache, uint32_t page, uint32_t offset, uint32_t count,
                        const uint32_t* ids) {
    if (!ids || cache->pages[page].idCount < offset)
        return;
    memcpy(page_ids(cache, page) + offset, ids, count * sizeof *ids);
    cache->pages[page].idCount = offset + count;
}

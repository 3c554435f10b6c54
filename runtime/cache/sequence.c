// Sequences: lists of pages. Pure C. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>

VkmqaSequence vkmqa_sequence_id(VkmqaCache cache, const struct VkmqaSequenceRecord* record) {
    return (uint64_t)record->generation << 32 | (uint64_t)(record - cache->sequences + 1);
}

struct VkmqaSequenceRecord* vkmqa_find_sequence(VkmqaCache cache, const char* call,
                                                VkmqaSequence sequence) {
    uint32_t index = (uint32_t)sequence - 1;
    if (index < cache->maxSequences) {
        struct VkmqaSequenceRecord* record = &cache->sequences[index];
        if (record->alive && record->generation == sequence >> 32)
            return record;
    }
    vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                     "%s: sequence 0x%llx is none of this cache, or has been destroyed", call,
                     (unsigned long long)sequence);
    return NULL;
}

VkResult vkmqa_check_resident(VkmqaCache cache, const char* call,
                              const struct VkmqaSequenceRecord* record) {
    if (record->offloaded == 0)
        return VK_SUCCESS;
    return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                            "%s: sequence 0x%llx has %u pages in host memory; call vkmqaRestoreSequence",
                            call, (unsigned long long)vkmqa_sequence_id(cache, record),
                            record->offloaded);
}

static VkResult grow(VkmqaCache cache, const char* call, struct VkmqaSequenceRecord* record,
                     uint32_t count) {
    if (count <= record->pageCapacity)
        return VK_SUCCESS;
    uint32_t capacity = count + count / 2 + 8;
    uint32_t* pages = vkmqa_cache_allocate(cache, capacity, sizeof *pages);
    if (!pages)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for a list of %u pages",
                                call, capacity);
    if (record->pageCount)
        memcpy(pages, record->pages, record->pageCount * sizeof *pages);
    vkmqa_cache_free(cache, record->pages);
    record->pages = pages;
    record->pageCapacity = capacity;
    return VK_SUCCESS;
}

VkResult vkmqa_make_sequence(VkmqaCache cache, const char* call, uint32_t pageCapacity,
                             struct VkmqaSequenceRecord** result) {
    if (cache->firstFreeSequence == VKMQA_NO_PAGE)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY,
                                "%s: maxSequences is %u, and all are alive; destroy one", call,
                                cache->maxSequences);
    struct VkmqaSequenceRecord* record = &cache->sequences[cache->firstFreeSequence];
    VkResult error = grow(cache, call, record, pageCapacity);
    if (error != VK_SUCCESS)
        return error;
    cache->firstFreeSequence = record->nextFree;
    cache->sequenceCount++;
    record->alive = true;
    record->pinned = record->shifted = false;
    record->length = record->pageCount = record->offloaded = record->epoch = 0;
    record->lastUse = record->salt = 0;
    record->touched = ++cache->clock;
    *result = record;
    return VK_SUCCESS;
}

// From the last page to the first: of pages kept for their tokens, the first ones are wanted longest.
void vkmqa_drop_pages(VkmqaCache cache, struct VkmqaSequenceRecord* record, uint32_t count) {
    if (record->pageCount > count)
        record->epoch++;
    while (record->pageCount > count) {
        uint32_t page = record->pages[--record->pageCount];
        if (page & VKMQA_HOST_PAGE) {
            vkmqa_release_host_page(cache, page & ~VKMQA_HOST_PAGE);
            record->offloaded--;
        } else {
            vkmqa_release_page(cache, page);
        }
    }
}

void vkmqa_free_sequence(VkmqaCache cache, struct VkmqaSequenceRecord* record) {
    vkmqa_drop_pages(cache, record, 0);
    record->alive = false;
    record->generation++;
    record->nextFree = cache->firstFreeSequence;
    cache->firstFreeSequence = (uint32_t)(record - cache->sequences);
    cache->sequenceCount--;
}

VkResult vkmqaCreateSequence(VkmqaCache cache, const VkmqaSequenceCreateInfo* given,
                             VkmqaSequence* sequence, uint32_t* reusedTokens) {
    static const char call[] = "vkmqaCreateSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaSequenceCreateInfo info = {.structSize = sizeof info};
    struct VkmqaProblem problem;
    if (given && !vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    if (!sequence)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: sequence is null; give a place for the id", call);
    if (info.tokenCount && !info.tokenIds)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.tokenIds is null; give tokenCount %u of them, or a tokenCount of 0", call,
                                info.tokenCount);
    uint32_t known = info.tokenIds ? info.tokenCount / cache->pageTokens : 0;
    if (known > cache->maxSeqLenKv / cache->pageTokens)
        known = cache->maxSeqLenKv / cache->pageTokens;
    uint32_t found = 0;
    struct VkmqaSequenceRecord* record;
    VkResult error = vkmqa_make_sequence(cache, call, known, &record);
    if (error != VK_SUCCESS)
        return error;
    record->salt = info.salt;
    uint64_t parent = 0;
    for (; found < known; ++found) {
        uint32_t page = vkmqa_find_page(cache, parent, info.salt,
                                        info.tokenIds + (size_t)found * cache->pageTokens);
        if (page == VKMQA_NO_PAGE || cache->pages[page].step > cache->recordedSteps)
            break;
        vkmqa_share_page(cache, page);
        record->pages[record->pageCount++] = page;
        parent = cache->pages[page].serial;
    }
    record->length = found * cache->pageTokens;
    if (reusedTokens)
        *reusedTokens = record->length;
    *sequence = vkmqa_sequence_id(cache, record);
    return VK_SUCCESS;
}

VkResult vkmqaDestroySequence(VkmqaCache cache, VkmqaSequence sequence) {
    static const char call[] = "vkmqaDestroySequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (sequence == 0)
        return VK_SUCCESS;
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    vkmqa_free_sequence(cache, record);
    return VK_SUCCESS;
}

VkResult vkmqaGetSequenceState(VkmqaCache cache, VkmqaSequence sequence, VkmqaSequenceState* state) {
    static const char call[] = "vkmqaGetSequenceState";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    struct VkmqaProblem problem;
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!vkmqa_open_output(state, sizeof *state, sizeof *state, "state", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    state->length = record->length;
    state->pages = record->pageCount;
    state->offloadedPages = record->offloaded;
    for (uint32_t i = 0; i < record->pageCount; ++i)
        if (!(record->pages[i] & VKMQA_HOST_PAGE))
            state->sharedPages += cache->pages[record->pages[i]].refs > 1;
    state->pinned = record->pinned;
    state->lastUse = record->lastUse;
    return VK_SUCCESS;
}

// The shared page that the sequence's next token goes to, or VKMQA_NO_PAGE.
static uint32_t find_shared_tail(VkmqaCache cache, const struct VkmqaSequenceRecord* record) {
    uint32_t entry = record->length / cache->pageTokens;
    if (entry >= record->pageCount || cache->pages[record->pages[entry]].refs == 1)
        return VKMQA_NO_PAGE;
    return record->pages[entry];
}

// Counts the pages that these tokens need; marks the sequences as seen and the shared pages as written to.
static VkResult count_needed(VkmqaCache cache, const char* call, uint32_t count,
                             const VkmqaSequenceTokens* tokens, uint64_t* needed) {
    for (uint32_t i = 0; i < count; ++i) {
        struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, tokens[i].sequence);
        if (!record)
            return VK_ERROR_VALIDATION_FAILED_EXT;
        if (record->stamp == cache->stamp)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: tokens[%u].sequence 0x%llx is given twice; give all of its tokens "
                                    "in one entry", call, i, (unsigned long long)tokens[i].sequence);
        record->stamp = cache->stamp;
        VkResult error = vkmqa_check_resident(cache, call, record);
        if (error != VK_SUCCESS)
            return error;
        uint64_t length = (uint64_t)record->length + tokens[i].newTokens;
        if (length > cache->maxSeqLenKv)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: tokens[%u].newTokens is %u: the sequence would have %llu tokens, and "
                                    "maxSeqLenKv is %u", call, i, tokens[i].newTokens,
                                    (unsigned long long)length, cache->maxSeqLenKv);
        uint32_t pages = vkmqa_pages_of(cache, length);
        error = grow(cache, call, record, pages);
        if (error != VK_SUCCESS)
            return error;
        if (pages > record->pageCount)
            *needed += pages - record->pageCount;
        uint32_t tail = tokens[i].newTokens ? find_shared_tail(cache, record) : VKMQA_NO_PAGE;
        if (tail == VKMQA_NO_PAGE)
            continue;
        struct VkmqaPage* page = &cache->pages[tail];
        if (page->stamp != cache->stamp)
            page->note = 0;
        page->stamp = cache->stamp;
        *needed += ++page->note < page->refs; // the last of all holders keeps it
    }
    return VK_SUCCESS;
}

VkResult vkmqa_reserve(VkmqaCache cache, const char* call, uint32_t count,
                       const VkmqaSequenceTokens* tokens) {
    vkmqa_poll_transfers(cache);
    cache->stamp++;
    uint64_t needed = 0;
    VkResult error = count_needed(cache, call, count, tokens, &needed);
    if (error != VK_SUCCESS)
        return error;
    uint32_t available = vkmqa_available_pages(cache);
    if (needed > available) {
        struct VkmqaProblem problem;
        vkmqa_say_missing(cache, needed, &problem);
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY,
                                "%s: %s", call, problem.text);
    }
    error = vkmqa_reserve_commands(cache, call, (uint32_t)needed);
    if (error != VK_SUCCESS)
        return error;
    for (uint32_t i = 0; i < count; ++i) {
        struct VkmqaSequenceRecord* record = &cache->sequences[(uint32_t)tokens[i].sequence - 1];
        uint32_t tail = tokens[i].newTokens ? find_shared_tail(cache, record) : VKMQA_NO_PAGE;
        if (tail != VKMQA_NO_PAGE) {
            record->pages[record->length / cache->pageTokens] = vkmqa_copy_page(cache, tail);
            record->epoch++;
        }
        uint32_t pages = vkmqa_pages_of(cache, (uint64_t)record->length + tokens[i].newTokens);
        while (record->pageCount < pages)
            record->pages[record->pageCount++] = vkmqa_take_page(cache, false);
    }
    return VK_SUCCESS;
}

VkResult vkmqaReserveTokens(VkmqaCache cache, uint32_t count, const VkmqaSequenceTokens* tokens) {
    static const char call[] = "vkmqaReserveTokens";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (count && !tokens)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: tokens is null; give %u entries",
                                call, count);
    return vkmqa_reserve(cache, call, count, tokens);
}

VkResult vkmqaForkSequence(VkmqaCache cache, VkmqaSequence source, uint32_t length, VkmqaSequence* fork) {
    static const char call[] = "vkmqaForkSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaSequenceRecord* from = vkmqa_find_sequence(cache, call, source);
    if (!from)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!fork)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: fork is null; give a place for the id", call);
    if (length > from->length)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: length is %u; the source has %u tokens: give at most that", call, length,
                                from->length);
    VkResult error = vkmqa_check_resident(cache, call, from);
    uint32_t pages = vkmqa_pages_of(cache, length);
    struct VkmqaSequenceRecord* record;
    if (error == VK_SUCCESS)
        error = vkmqa_make_sequence(cache, call, pages + 1, &record);
    if (error != VK_SUCCESS)
        return error;
    record->length = length;
    record->salt = from->salt;
    record->shifted = from->shifted && length;
    record->lastUse = from->lastUse;
    record->pageCount = pages;
    if (pages)
        memcpy(record->pages, from->pages, pages * sizeof *record->pages);
    for (uint32_t i = 0; i < pages; ++i)
        vkmqa_share_page(cache, record->pages[i]);
    *fork = vkmqa_sequence_id(cache, record);
    return VK_SUCCESS;
}

VkResult vkmqaTruncateSequence(VkmqaCache cache, VkmqaSequence sequence, uint32_t length) {
    static const char call[] = "vkmqaTruncateSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (length > record->length)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: length is %u; the sequence has %u tokens: give at most that", call,
                                length, record->length);
    record->length = length;
    record->shifted &= length > 0;
    vkmqa_drop_pages(cache, record, vkmqa_pages_of(cache, length));
    return VK_SUCCESS;
}

VkResult vkmqaPinSequence(VkmqaCache cache, VkmqaSequence sequence, VkBool32 pinned) {
    static const char call[] = "vkmqaPinSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    record->pinned = pinned != VK_FALSE;
    return VK_SUCCESS;
}

// Who holds which page, and what has to be done to pages on the device. Pure C.
// SPDX-License-Identifier: MIT
#include "cache.h"

#include <stdio.h>
#include <string.h>

static void append(VkmqaCache cache, struct VkmqaPageList* list, uint32_t page) {
    struct VkmqaPage* pages = cache->pages;
    pages[page].previous = list->last;
    pages[page].next = VKMQA_NO_PAGE;
    if (list->last != VKMQA_NO_PAGE)
        pages[list->last].next = page;
    else
        list->first = page;
    list->last = page;
    list->count++;
}

static void detach(VkmqaCache cache, struct VkmqaPageList* list, uint32_t page) {
    struct VkmqaPage* pages = cache->pages;
    uint32_t previous = pages[page].previous, next = pages[page].next;
    if (previous != VKMQA_NO_PAGE)
        pages[previous].next = next;
    else
        list->first = next;
    if (next != VKMQA_NO_PAGE)
        pages[next].previous = previous;
    else
        list->last = previous;
    list->count--;
}

void vkmqa_init_pages(VkmqaCache cache) {
    cache->freePages = cache->reusablePages =
        (struct VkmqaPageList){.first = VKMQA_NO_PAGE, .last = VKMQA_NO_PAGE};
    // In ascending order, so that a sequence's pages lie side by side: copies of many are one.
    for (uint32_t i = 0; i < cache->numPages; ++i)
        append(cache, &cache->freePages, i);
}

void vkmqa_say_missing(VkmqaCache cache, uint64_t needed, struct VkmqaProblem* problem) {
    uint32_t available = vkmqa_available_pages(cache);
    char moving[64] = "";
    if (cache->movingPages)
        snprintf(moving, sizeof moving, " (%u will come when transfers finish)", cache->movingPages);
    vkmqa_problem(problem, "%llu pages are needed, %u are free, %llu missing%s; destroy, truncate or offload sequences",
                  (unsigned long long)needed, available, (unsigned long long)(needed - available), moving);
}

VkResult vkmqa_reserve_commands(VkmqaCache cache, const char* call, uint32_t count) {
    uint64_t needed = (uint64_t)cache->commandCount + count;
    if (needed <= cache->commandCapacity)
        return VK_SUCCESS;
    uint64_t capacity = needed + needed / 2 + 16;
    struct VkmqaPageCommand* commands =
        capacity > UINT32_MAX ? NULL : vkmqa_cache_allocate(cache, capacity, sizeof *commands);
    if (!commands)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY,
                                "%s: no memory for %llu page commands; record vkmqaCmdUpdateCache", call,
                                (unsigned long long)needed);
    if (cache->commandCount)
        memcpy(commands, cache->commands, cache->commandCount * sizeof *commands);
    vkmqa_cache_free(cache, cache->commands);
    cache->commands = commands;
    cache->commandCapacity = (uint32_t)capacity;
    return VK_SUCCESS;
}

static void add_command(VkmqaCache cache, uint32_t from, uint32_t to) {
    cache->commands[cache->commandCount++] = (struct VkmqaPageCommand){from, to, cache->stepCount};
}

uint32_t vkmqa_take_page(VkmqaCache cache, bool overwritten) {
    struct VkmqaPageList* list =
        cache->freePages.count ? &cache->freePages : &cache->reusablePages; // the oldest
    uint32_t page = list->first;
    struct VkmqaPage* state = &cache->pages[page];
    if (state->indexed)
        vkmqa_unindex_page(cache, page);
    detach(cache, list, page);
    if (!overwritten && (cache->flags & VKMQA_CACHE_CLEAR_FREED_BIT))
        add_command(cache, VKMQA_NO_PAGE, page);
    state->state = VKMQA_PAGE_USED;
    state->refs = 1;
    state->idCount = 0;
    state->serial = state->step = 0;
    cache->usedPages++;
    return page;
}

void vkmqa_share_page(VkmqaCache cache, uint32_t page) {
    struct VkmqaPage* state = &cache->pages[page];
    if (state->refs++ == 0) { // found by its tokens
        detach(cache, &cache->reusablePages, page);
        state->state = VKMQA_PAGE_USED;
        cache->usedPages++;
    }
}

void vkmqa_release_page(VkmqaCache cache, uint32_t page) {
    struct VkmqaPage* state = &cache->pages[page];
    if (--state->refs)
        return;
    cache->usedPages--;
    state->state = state->indexed ? VKMQA_PAGE_REUSABLE : VKMQA_PAGE_FREE;
    append(cache, state->indexed ? &cache->reusablePages : &cache->freePages, page);
}

void vkmqa_free_unindexed(VkmqaCache cache, uint32_t page) {
    struct VkmqaPage* state = &cache->pages[page];
    if (state->state != VKMQA_PAGE_REUSABLE || state->indexed)
        return;
    detach(cache, &cache->reusablePages, page);
    state->state = VKMQA_PAGE_FREE;
    append(cache, &cache->freePages, page);
}

uint32_t vkmqa_copy_page(VkmqaCache cache, uint32_t page) {
    uint32_t copy = vkmqa_take_page(cache, true);
    uint32_t known = cache->pages[page].idCount;
    memcpy(cache->ids + (size_t)copy * cache->pageTokens, cache->ids + (size_t)page * cache->pageTokens,
           known * sizeof *cache->ids);
    cache->pages[copy].idCount = known;
    cache->pages[copy].step = cache->pages[page].step;
    add_command(cache, page, copy);
    vkmqa_release_page(cache, page);
    return copy;
}

void vkmqa_begin_moving(VkmqaCache cache, uint32_t page) {
    if (cache->pages[page].indexed)
        vkmqa_unindex_page(cache, page);
    cache->pages[page].state = VKMQA_PAGE_MOVING;
    cache->pages[page].refs = 0;
    cache->usedPages--;
    cache->movingPages++;
}

void vkmqa_end_moving(VkmqaCache cache, uint32_t page) {
    cache->pages[page].state = VKMQA_PAGE_FREE;
    append(cache, &cache->freePages, page);
    cache->movingPages--;
}

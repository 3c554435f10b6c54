// Pages to host memory and back, beside compute. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>

#include "../device/device.h"

// Copies that have been started. Those of one queue end in the order they began.
struct Move {
    struct Move* next;
    struct VkmqaCopies* copies;
    bool toHost;
    uint32_t count;
    uint32_t pages[]; // what the copies read: pages of the device, or of the host
};

struct VkmqaOffload {
    VkmqaMemory memory; // [hostPageCount, numLayers, planes]
    uint32_t freeCount;
    uint32_t* freePages;
    uint32_t* ids; // [hostPageCount, pageTokens], of which idCounts are known
    uint32_t* idCounts;
    struct Move* moves; // the newest first
};

VkResult vkmqa_create_offload(VkmqaCache cache) {
    cache->offload = vkmqa_cache_allocate(cache, 1, sizeof *cache->offload);
    struct VkmqaOffload* offload = cache->offload;
    if (offload) {
        offload->freePages = vkmqa_cache_allocate(cache, cache->hostPageCount, sizeof *offload->freePages);
        offload->ids = vkmqa_cache_allocate(cache, (size_t)cache->hostPageCount * cache->pageTokens,
                                            sizeof *offload->ids);
        offload->idCounts = vkmqa_cache_allocate(cache, cache->hostPageCount, sizeof *offload->idCounts);
    }
    if (!offload || !offload->freePages || !offload->ids || !offload->idCounts)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY,
                                "vkmqaCreateCache: no memory for a list of %u host pages",
                                cache->hostPageCount);
    for (uint32_t i = cache->hostPageCount; i-- > 0;) // the lowest is taken first
        offload->freePages[offload->freeCount++] = i;
    return vkmqaCreateMemory(cache->device, VKMQA_MEMORY_DOWNLOAD, cache->hostPageCount * cache->pageBytes,
                             &offload->memory);
}

// Waits up to timeoutNs; while move->copies stands, nothing of it may be reused.
static VkResult end_move(VkmqaCache cache, struct Move* move, uint64_t timeoutNs) {
    VkResult result = VK_SUCCESS;
    if (move->copies)
        result = vkmqa_finish_copies(cache->device, "vkmqaFinishTransfers", timeoutNs, &move->copies);
    if (move->copies)
        return result;
    for (uint32_t i = 0; i < move->count; ++i) {
        if (move->toHost)
            vkmqa_end_moving(cache, move->pages[i]);
        else
            vkmqa_release_host_page(cache, move->pages[i]);
    }
    move->count = 0;
    return result;
}

// Ends the moves that end in time: the newest is waited for, and when it is done, so are all before it.
static VkResult end_moves(VkmqaCache cache, uint64_t timeoutNs) {
    VkResult result = VK_SUCCESS;
    struct Move** link = cache->offload ? &cache->offload->moves : NULL;
    while (link && *link) {
        struct Move* move = *link;
        VkResult ended = end_move(cache, move, timeoutNs);
        if (ended != VK_SUCCESS)
            result = ended;
        if (move->copies) {
            timeoutNs = 0; // it has been waited for
            link = &move->next;
            continue;
        }
        *link = move->next;
        vkmqa_cache_free(cache, move);
    }
    return result;
}

void vkmqa_poll_transfers(VkmqaCache cache) { end_moves(cache, 0); }

VkResult vkmqaFinishTransfers(VkmqaCache cache, uint64_t timeoutNs) {
    return vkmqa_is_cache(cache, "vkmqaFinishTransfers") ? end_moves(cache, timeoutNs)
                                                         : VK_ERROR_VALIDATION_FAILED_EXT;
}

bool vkmqa_destroy_offload(VkmqaCache cache) {
    struct VkmqaOffload* offload = cache->offload;
    if (!offload)
        return true;
    end_moves(cache, cache->device->waitLimitNs);
    const bool idle = !offload->moves;
    if (idle) {
        vkmqaDestroyMemory(offload->memory);
    } else {
        cache->device->memoryCount--;
        vkmqa_leave_memory(offload->memory);
    }
    while (offload->moves) {
        struct Move* move = offload->moves;
        offload->moves = move->next;
        vkmqa_cache_free(cache, move);
    }
    vkmqa_cache_free(cache, offload->freePages);
    vkmqa_cache_free(cache, offload->ids);
    vkmqa_cache_free(cache, offload->idCounts);
    vkmqa_cache_free(cache, offload);
    cache->offload = NULL;
    return idle;
}

char* vkmqa_host_page(VkmqaCache cache, uint32_t hostPage) {
    return (char*)vkmqaGetMemoryPointer(cache->offload->memory) + hostPage * cache->pageBytes;
}

const uint32_t* vkmqa_host_ids(VkmqaCache cache, uint32_t hostPage, uint32_t* count) {
    *count = cache->offload->idCounts[hostPage];
    return cache->offload->ids + (size_t)hostPage * cache->pageTokens;
}

// A page's ids go with it.
static void keep_ids(VkmqaCache cache, uint32_t page, uint32_t hostPage) {
    uint32_t known = cache->pages[page].idCount;
    memcpy(cache->offload->ids + (size_t)hostPage * cache->pageTokens,
           cache->ids + (size_t)page * cache->pageTokens, known * sizeof *cache->ids);
    cache->offload->idCounts[hostPage] = known;
}

static void bring_ids(VkmqaCache cache, const struct VkmqaSequenceRecord* record, uint32_t entry,
                      uint32_t hostPage) {
    uint32_t known;
    const uint32_t* ids = vkmqa_host_ids(cache, hostPage, &known);
    vkmqa_learn_tokens(cache, record->pages[entry], 0, known, ids);
    if (!record->shifted)
        vkmqa_index_page(cache, record->pages[entry], entry ? record->pages[entry - 1] : VKMQA_NO_PAGE,
                         record->salt);
}

void vkmqa_release_host_page(VkmqaCache cache, uint32_t hostPage) {
    cache->offload->freePages[cache->offload->freeCount++] = hostPage;
}

uint32_t vkmqa_free_host_pages(VkmqaCache cache) { return cache->offload ? cache->offload->freeCount : 0; }

VkResult vkmqa_check_device_work(VkmqaCache cache, const char* call) {
    if (!cache->device)
        return vkmqa_cache_fail(cache, VK_ERROR_FEATURE_NOT_PRESENT,
                                "%s: the cache was created without a device, and this call submits; create it "
                                "with VkmqaCacheCreateInfo::device", call);
    return vkmqa_check_recorded(cache, call, true);
}

static VkResult check_offload(VkmqaCache cache, const char* call) {
    VkResult error = vkmqa_check_device_work(cache, call);
    if (error == VK_SUCCESS && !cache->offload)
        error = vkmqa_cache_fail(cache, VK_ERROR_FEATURE_NOT_PRESENT,
                                 "%s: the cache has no host pages; create it with hostPages", call);
    return error;
}

// Starts the copies of pages between device and host: plane by plane, so that neighbours go together.
static VkResult start_move(VkmqaCache cache, const char* call, bool toHost, uint32_t count,
                           const uint32_t* devicePages, const uint32_t* hostPages) {
    struct VkmqaOffload* offload = cache->offload;
    uint64_t copyCount = (uint64_t)count * cache->numLayers * cache->planeCount;
    struct VkmqaCopy* copies =
        copyCount > UINT32_MAX ? NULL : vkmqa_cache_allocate(cache, copyCount, sizeof *copies);
    struct Move* move = vkmqa_cache_allocate(cache, 1, sizeof *move + count * sizeof *move->pages);
    VkResult error = VK_ERROR_OUT_OF_HOST_MEMORY;
    if (!copies || !move) {
        vkmqa_cache_fail(cache, error, "%s: no memory for the copies of %u pages", call, count);
    } else {
        VkBuffer host = vkmqaGetMemoryRange(offload->memory, 0, 0).buffer;
        uint64_t within = 0; // of a host page
        struct VkmqaCopy* copy = copies;
        for (uint32_t p = 0; p < cache->numLayers * cache->planeCount; ++p) {
            const struct VkmqaPlane* plane = &cache->planes[p % cache->planeCount];
            const VkmqaKv* kv = &cache->layers[p / cache->planeCount];
            const VkmqaBuffer* range = plane->v ? &kv->v : &kv->k;
            for (uint32_t i = 0; i < count; ++i, ++copy) {
                uint64_t device = range->offset + plane->offset + devicePages[i] * plane->pageBytes;
                uint64_t there = hostPages[i] * cache->pageBytes + within;
                *copy = toHost ? (struct VkmqaCopy){range->buffer, host, {device, there, plane->pageBytes}}
                               : (struct VkmqaCopy){host, range->buffer, {there, device, plane->pageBytes}};
            }
            within += plane->pageBytes;
        }
        error = vkmqa_start_copies(cache->device, call, (uint32_t)copyCount, copies, !toHost, &move->copies);
    }
    if (error == VK_SUCCESS) {
        move->toHost = toHost;
        move->count = count;
        for (uint32_t i = 0; i < count; ++i)
            move->pages[i] = toHost ? devicePages[i] : hostPages[i];
        move->next = offload->moves;
        offload->moves = move;
    } else {
        vkmqa_cache_free(cache, move);
    }
    vkmqa_cache_free(cache, copies);
    return error;
}

// Pages that are the sequence's alone.
static uint32_t count_own(VkmqaCache cache, const struct VkmqaSequenceRecord* record) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < record->pageCount; ++i)
        count += !(record->pages[i] & VKMQA_HOST_PAGE) && cache->pages[record->pages[i]].refs == 1;
    return count;
}

static VkResult offload_pages(VkmqaCache cache, const char* call, struct VkmqaSequenceRecord* record,
                              uint32_t count) {
    struct VkmqaOffload* offload = cache->offload;
    if (count == 0)
        return VK_SUCCESS;
    if (count > offload->freeCount)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY,
                                "%s: %u host pages are needed, %u are free: %u are missing; create the cache with "
                                "more hostPages, or restore or destroy offloaded sequences", call, count,
                                offload->freeCount, count - offload->freeCount);
    uint32_t* entries = vkmqa_cache_allocate(cache, 3 * (size_t)count, sizeof *entries);
    if (!entries)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for a list of %u pages",
                                call, count);
    uint32_t *devicePages = entries + count, *hostPages = entries + 2 * count;
    for (uint32_t i = 0, n = 0; i < record->pageCount && n < count; ++i) {
        uint32_t page = record->pages[i];
        if ((page & VKMQA_HOST_PAGE) || cache->pages[page].refs > 1)
            continue;
        entries[n] = i;
        devicePages[n] = page;
        hostPages[n] = offload->freePages[offload->freeCount - 1 - n];
        ++n;
    }
    VkResult error = start_move(cache, call, true, count, devicePages, hostPages);
    if (error == VK_SUCCESS) {
        offload->freeCount -= count;
        for (uint32_t n = 0; n < count; ++n) {
            keep_ids(cache, devicePages[n], hostPages[n]);
            vkmqa_begin_moving(cache, devicePages[n]);
            record->pages[entries[n]] = VKMQA_HOST_PAGE | hostPages[n];
        }
        record->offloaded += count;
        record->epoch++;
    }
    vkmqa_cache_free(cache, entries);
    return error;
}

VkResult vkmqaOffloadSequence(VkmqaCache cache, VkmqaSequence sequence) {
    static const char call[] = "vkmqaOffloadSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkResult error = check_offload(cache, call);
    if (error != VK_SUCCESS)
        return error;
    if (record->pinned)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: sequence 0x%llx is pinned; call vkmqaPinSequence to free it", call,
                                (unsigned long long)sequence);
    vkmqa_poll_transfers(cache);
    return offload_pages(cache, call, record, count_own(cache, record));
}

VkResult vkmqaOffloadLeastRecent(VkmqaCache cache, uint32_t pages, uint32_t* started) {
    static const char call[] = "vkmqaOffloadLeastRecent";
    if (started)
        *started = 0;
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkResult error = check_offload(cache, call);
    vkmqa_poll_transfers(cache);
    while (error == VK_SUCCESS && vkmqa_available_pages(cache) + cache->movingPages < pages) {
        struct VkmqaSequenceRecord* oldest = NULL; // of those that the host pages have room for
        uint32_t oldestOwn = 0;
        for (uint32_t i = 0; i < cache->maxSequences; ++i) {
            struct VkmqaSequenceRecord* record = &cache->sequences[i];
            if (!record->alive || record->pinned || (oldest && record->touched >= oldest->touched) ||
                (record->lastUse && record->lastUse + cache->stepsInFlight > cache->stepCount))
                continue;
            uint32_t own = count_own(cache, record);
            if (own == 0 || own > cache->offload->freeCount)
                continue;
            oldest = record;
            oldestOwn = own;
        }
        if (!oldest)
            return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY,
                                    "%s: %u pages are wanted, %u are free or on their way, and no other "
                                    "sequence may be offloaded into the %u free host pages", call, pages,
                                    vkmqa_available_pages(cache) + cache->movingPages,
                                    cache->offload->freeCount);
        error = offload_pages(cache, call, oldest, oldestOwn);
        if (error == VK_SUCCESS && started)
            *started += oldestOwn;
    }
    return error;
}

VkResult vkmqaRestoreSequence(VkmqaCache cache, VkmqaSequence sequence) {
    static const char call[] = "vkmqaRestoreSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    uint32_t count = record->offloaded;
    VkResult error = check_offload(cache, call);
    if (error != VK_SUCCESS || count == 0)
        return error;
    vkmqa_poll_transfers(cache);
    uint32_t available = vkmqa_available_pages(cache);
    if (count > available) {
        struct VkmqaProblem problem;
        vkmqa_say_missing(cache, count, &problem);
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY, "%s: %s", call, problem.text);
    }
    uint32_t* devicePages = vkmqa_cache_allocate(cache, 2 * (size_t)count, sizeof *devicePages);
    if (!devicePages)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for a list of %u pages",
                                call, count);
    uint32_t* hostPages = devicePages + count;
    for (uint32_t i = 0, n = 0; i < record->pageCount; ++i) {
        if (!(record->pages[i] & VKMQA_HOST_PAGE))
            continue;
        devicePages[n] = vkmqa_take_page(cache, true);
        hostPages[n++] = record->pages[i] & ~VKMQA_HOST_PAGE;
    }
    error = start_move(cache, call, false, count, devicePages, hostPages);
    for (uint32_t n = 0; n < count && error != VK_SUCCESS; ++n)
        vkmqa_release_page(cache, devicePages[n]);
    for (uint32_t i = 0, n = 0; i < record->pageCount && error == VK_SUCCESS; ++i)
        if (record->pages[i] & VKMQA_HOST_PAGE) {
            record->pages[i] = devicePages[n];
            bring_ids(cache, record, i, hostPages[n++]);
        }
    if (error == VK_SUCCESS) {
        record->offloaded = 0;
        record->touched = ++cache->clock;
        record->epoch++;
    }
    vkmqa_cache_free(cache, devicePages);
    return error;
}

// The cache layer's internal vocabulary. SPDX-License-Identifier: MIT
//
//   pages      who holds which page, and what has to be done to pages on the device   (pages.c: pure C)
//   prefix     which page holds which tokens                                          (prefix.c: pure C)
//   sequences  lists of pages                                                         (sequence.c: pure C)
//   step       metadata of a batch                                                    (step.c: pure C)
//   record, shift      the only files that record into command buffers
//   offload, snapshot  submit, through the runtime layer
#ifndef VKMQA_CACHE_INTERNAL_H
#define VKMQA_CACHE_INTERNAL_H

#include <vkmqa/vkmqa_cache.h>

#include "../core/context.h"

enum { VKMQA_MAGIC_CACHE = 0x566b4361 };

#define VKMQA_NO_PAGE 0xFFFFFFFFu // end of a list; as VkmqaPageCommand::from: fill with zeros
#define VKMQA_HOST_PAGE 0x80000000u // bit of an entry of a sequence: a host page

typedef enum VkmqaPageState {
    VKMQA_PAGE_FREE,
    VKMQA_PAGE_REUSABLE, // held by nobody, in the prefix index
    VKMQA_PAGE_USED,     // held by `refs` sequences
    VKMQA_PAGE_MOVING,   // read by a copy to host memory, free afterwards
} VkmqaPageState;

struct VkmqaPage {
    VkmqaPageState state;
    uint32_t refs;
    uint32_t previous, next; // in the list of its state: free, or reusable with the oldest first
    // Prefixes. serial names the tokens from position 0 to the page's end, under one salt; 0: not known.
    bool indexed;
    uint32_t idCount; // leading tokens whose ids stand in cache->ids
    uint64_t serial, parent, salt;
    uint64_t step; // the last one that writes to it, counted from 1; 0: none
    uint32_t nextInBucket;
    // note is of the call that set stamp, and of no other: how many sequences will write to it (sequence.c), which way a
    // batch uses it (record.c), its number in a snapshot (snapshot_save.c), how much of it is filled (snapshot_table.c).
    uint32_t stamp, note;
};

struct VkmqaPageList {
    uint32_t first, last, count;
};

// Done to pages, in all layers, in order.
struct VkmqaPageCommand {
    uint32_t from; // or VKMQA_NO_PAGE
    uint32_t to;
    uint64_t before; // steps built before it: it comes behind what they write
};

struct VkmqaSequenceRecord {
    bool alive, pinned;
    bool shifted; // tokens are missing in the middle: its pages are nobody's prefix any more
    uint32_t generation; // upper half of its id
    uint32_t nextFree;   // index of another free record
    uint32_t stamp;      // of the current call, to find a sequence given twice
    uint32_t length;
    uint32_t pageCount, pageCapacity;
    uint32_t* pages;    // page of tokens i * pageTokens .., or VKMQA_HOST_PAGE | host page
    uint32_t offloaded; // entries that are host pages
    uint32_t epoch;     // grows when an entry changes that a step may have written already
    uint64_t lastUse;   // number of the last step, from 1
    uint64_t touched;   // cache->clock when it was last made, used or brought back
    uint64_t salt;
};

// What a row of a page table in a step's metadata holds.
struct VkmqaRow {
    VkmqaSequence sequence;
    uint32_t epoch;
    uint32_t entries;
};

// A plane of a layer's page: rows or scales of K or V. Page p of plane i of a layer starts at
// offset + p * pageBytes of its buffer.
struct VkmqaPlane {
    bool v; // in kv.v
    uint64_t offset;
    uint64_t pageBytes; // [numHeadsKv, pageTokens, tokenBytes]
    uint32_t tokenBytes;
};
enum { VKMQA_MAX_PLANES = 4 };

struct VkmqaOffload; // offload.c

struct VkmqaCache_T {
    uint32_t magic;
    VkmqaCacheFlags flags;
    struct VkmqaAttention_T* attention;
    VkmqaDevice device; // may be null
    uint32_t numLayers, numPages, pageTokens, maxSequences, maxBatch, maxNewTokens, maxSeqLenKv;
    uint32_t stepsInFlight, hostPageCount;
    VkmqaKv* layers; // [numLayers]
    uint32_t planeCount;
    struct VkmqaPlane planes[VKMQA_MAX_PLANES];
    uint64_t pageBytes; // of all planes and layers
    VkmqaMemory* memories; // what the cache allocated itself
    uint32_t memoryCount;

    struct VkmqaPage* pages; // [numPages]
    struct VkmqaPageList freePages, reusablePages;
    uint32_t usedPages, movingPages;
    struct VkmqaPageCommand* commands;
    uint32_t commandCount, commandCapacity;
    uint32_t stamp; // of the current call

    uint32_t* ids;     // [numPages, pageTokens]
    uint32_t* buckets; // [bucketCount]: a page, then along nextInBucket
    uint32_t bucketCount; // a power of two
    uint64_t lastSerial;

    struct VkmqaSequenceRecord* sequences; // [maxSequences]
    uint32_t firstFreeSequence, sequenceCount;

    uint64_t stepCount; // built so far
    uint64_t recordedSteps; // of them, leading: what they write is in command buffers
    uint64_t clock;     // of VkmqaSequenceRecord::touched
    VkmqaStepLayout layout; // of every step, for the cache's own limits
    uint64_t stepBytes;     // of a slot
    uint64_t tableOffset;   // bytes of a slot before its page table
    VkmqaBuffer stepMemory, localMemory;
    char* stepMapped;
    struct VkmqaRow* rows; // [stepsInFlight, maxBatch], then [maxBatch] of the local metadata
    uint64_t listOffset; // in localMemory: the page list of a shift; the local metadata stands before it

    VkPipeline shift;
    struct VkmqaOffload* offload; // null without host pages
    bool inCallback;              // of a snapshot that counts on nothing changing
};

// ---- cache.c ---------------------------------------------------------------------------------

// Whether the call may use it: no wrong handle, not from a callback of its own, not in a child after fork().
bool vkmqa_is_cache(VkmqaCache cache, const char* call);
// Says why and returns result.
VkResult vkmqa_cache_fail(VkmqaCache cache, VkResult result, const char* format, ...)
    VKMQA_PRINTF(3, 4);
// Zeroed; null when out of memory.
static inline void* vkmqa_cache_allocate(VkmqaCache cache, size_t count, size_t size) {
    return size && count > SIZE_MAX / size
               ? NULL
               : vkmqa_allocate(vkmqa_allocator(cache->attention->context), count * size);
}
static inline void vkmqa_cache_free(VkmqaCache cache, void* memory) {
    vkmqa_free(vkmqa_allocator(cache->attention->context), memory);
}
static inline uint32_t vkmqa_pages_of(VkmqaCache cache, uint64_t tokens) {
    return (uint32_t)((tokens + cache->pageTokens - 1) / cache->pageTokens);
}

// ---- pages.c ---------------------------------------------------------------------------------

void vkmqa_init_pages(VkmqaCache cache);
// Pages that can be had at once.
static inline uint32_t vkmqa_available_pages(VkmqaCache cache) {
    return cache->freePages.count + cache->reusablePages.count;
}
// "N pages are needed, M are free ...": what is missing, and what to do.
void vkmqa_say_missing(VkmqaCache cache, uint64_t needed, struct VkmqaProblem* problem);
// Room for `count` more commands. What follows cannot fail.
VkResult vkmqa_reserve_commands(VkmqaCache cache, const char* call, uint32_t count);
// A page with refs 1; there must be one, and room for a command. `overwritten`: all of it will be.
uint32_t vkmqa_take_page(VkmqaCache cache, bool overwritten);
void vkmqa_share_page(VkmqaCache cache, uint32_t page);
void vkmqa_release_page(VkmqaCache cache, uint32_t page);
// Of pages that nobody holds, one that is not to be found any more is free.
void vkmqa_free_unindexed(VkmqaCache cache, uint32_t page);
// A page of the sequence's own in place of a shared one, with a command that copies the rows.
uint32_t vkmqa_copy_page(VkmqaCache cache, uint32_t page);
// A used page, of refs 1, that a copy to host memory reads; then free.
void vkmqa_begin_moving(VkmqaCache cache, uint32_t page);
void vkmqa_end_moving(VkmqaCache cache, uint32_t page);

// ---- prefix.c --------------------------------------------------------------------------------

// Rows of the page from token `offset` on are about to change.
void vkmqa_forget_tokens(VkmqaCache cache, uint32_t page, uint32_t offset);
// Tokens `offset` .. `offset + count` - 1 of the page have these ids; null: unknown.
void vkmqa_learn_tokens(VkmqaCache cache, uint32_t page, uint32_t offset, uint32_t count,
                        const uint32_t* ids);
// A full page behind `before` (VKMQA_NO_PAGE: the first of a sequence): from now on it can be found.
void vkmqa_index_page(VkmqaCache cache, uint32_t page, uint32_t before, uint64_t salt);
void vkmqa_unindex_page(VkmqaCache cache, uint32_t page);
// Steps up to this one that have not been recorded will not be: what they write is forgotten.
void vkmqa_discard_steps(VkmqaCache cache, uint64_t last);
// The page that holds these pageTokens ids behind the prefix `parent` (a serial, 0 = none), or VKMQA_NO_PAGE. The
// page may be written by a step that is still to be recorded.
uint32_t vkmqa_find_page(VkmqaCache cache, uint64_t parent, uint64_t salt, const uint32_t* ids);

// ---- sequence.c ------------------------------------------------------------------------------

// Null, and a message, for an id that is not alive in this cache.
struct VkmqaSequenceRecord* vkmqa_find_sequence(VkmqaCache cache, const char* call,
                                                VkmqaSequence sequence);
VkmqaSequence vkmqa_sequence_id(VkmqaCache cache, const struct VkmqaSequenceRecord* record);
// A new record with room for `pageCapacity` pages and none in it yet.
VkResult vkmqa_make_sequence(VkmqaCache cache, const char* call, uint32_t pageCapacity,
                             struct VkmqaSequenceRecord** record);
// Gives back the record and all pages it holds.
void vkmqa_free_sequence(VkmqaCache cache, struct VkmqaSequenceRecord* record);
// An error naming the sequence unless all of its pages are on the device.
VkResult vkmqa_check_resident(VkmqaCache cache, const char* call,
                              const struct VkmqaSequenceRecord* record);
// vkmqaReserveTokens, for `call`: everything that can fail, then the pages.
VkResult vkmqa_reserve(VkmqaCache cache, const char* call, uint32_t count, const VkmqaSequenceTokens* tokens);
// Drops the pages from entry `count` on.
void vkmqa_drop_pages(VkmqaCache cache, struct VkmqaSequenceRecord* record, uint32_t count);

// ---- record.c --------------------------------------------------------------------------------

// Records and forgets the page commands that come behind no more than the first `before` steps. The caller puts
// vkmqa_begin_transfers before and vkmqa_end_transfers behind them.
void vkmqa_record_commands(VkmqaCache cache, VkCommandBuffer commandBuffer, uint64_t before);
void vkmqa_begin_transfers(VkmqaCache cache, VkCommandBuffer commandBuffer);
void vkmqa_end_transfers(VkmqaCache cache, VkCommandBuffer commandBuffer);
void vkmqa_end_dispatches(VkmqaCache cache, VkCommandBuffer commandBuffer);

// ---- shift.c ---------------------------------------------------------------------------------

VkResult vkmqa_create_shift(VkmqaCache cache);
void vkmqa_destroy_shift(VkmqaCache cache);

// ---- offload.c -------------------------------------------------------------------------------

VkResult vkmqa_create_offload(VkmqaCache cache);
// False where copies are still pending: then memory must not be freed.
bool vkmqa_destroy_offload(VkmqaCache cache);
// An error unless every step that has been built was recorded; `commands`: page commands too.
VkResult vkmqa_check_recorded(VkmqaCache cache, const char* call, bool commands);
// What submits on its own needs a device, and nothing that is still to be recorded.
VkResult vkmqa_check_device_work(VkmqaCache cache, const char* call);
// Ends the copies that are done; does not wait.
void vkmqa_poll_transfers(VkmqaCache cache);
// Ids of a host page's leading tokens.
const uint32_t* vkmqa_host_ids(VkmqaCache cache, uint32_t hostPage, uint32_t* count);
// Host pages hold planes as the device does: layer after layer, plane after plane.
char* vkmqa_host_page(VkmqaCache cache, uint32_t hostPage);
void vkmqa_release_host_page(VkmqaCache cache, uint32_t hostPage);
uint32_t vkmqa_free_host_pages(VkmqaCache cache);

#endif

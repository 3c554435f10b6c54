// vkmqa cache layer: conversations instead of pages. A cache of many layers is divided into pages, sequences
// own or share them, and every step's metadata is built for vkmqa.h from (sequence, new tokens) pairs.
// SPDX-License-Identifier: MIT
//
// The order of use:
//   1. vkmqaGetCacheRequirements, vkmqaCreateCache   one cache per model
//   2. vkmqaCreateSequence                           one per conversation; vkmqaForkSequence from another
//   3. per step: vkmqaBuildStep, vkmqaCmdUpdateCache, then per layer vkmqaCmdAppendKv and vkmqaCmdAttention
//   4. vkmqaTruncateSequence, vkmqaCmdShiftSequence, vkmqaOffloadSequence, vkmqaSaveSequences ... between steps
//
// Bookkeeping happens at once, on the host; what it asks of the device (copies of pages, clears, the step's
// metadata) is recorded by vkmqaCmdUpdateCache or vkmqaCmdShiftSequence. Steps are recorded in the order they
// were built, and up to stepsInFlight may be built before the first is recorded; sequences may be forked,
// truncated and destroyed meanwhile. Command buffers must be submitted in the order they were recorded, each at
// most once; a command buffer thrown away leaves undefined rows, and with DEVICE_METADATA a page table that is
// good for nothing but destroying the cache. Only vkmqaOffloadSequence, vkmqaRestoreSequence, vkmqaSaveSequences
// and vkmqaLoadSequences submit anything themselves, to the queues of the VkmqaDevice; they count on everything
// recorded so far having been submitted. They and vkmqaCmdShiftSequence are VK_ERROR_VALIDATION_FAILED_EXT while
// a step has been built and not recorded (or, the first four, page copies are due): record vkmqaCmdUpdateCache
// and submit it first, or call vkmqaDiscardSteps.
//
// Isolation: a page table never names a page that its sequence does not own or share, and never more tokens
// than were given to vkmqaBuildStep, whose rows vkmqaCmdAppendKv overwrites. So no row of another sequence is
// ever attended to.
//
// Conventions of vkmqa.h hold: structSize first, zero means default, VkResult everywhere, explanations
// through the message callback of the attention object's context (of the device's, before there is one), and a
// call that failed has changed nothing but its output parameters and, where noted, pages kept for prefixes.
// VK_ERROR_OUT_OF_POOL_MEMORY is a cache without enough free pages or sequences; the message says how
// many are missing. Sequence ids that were destroyed, never given out, or belong to another cache are
// VK_ERROR_VALIDATION_FAILED_EXT.
//
// Threads: a cache may be used by one thread at a time, and one with a device by the device's rules: no other
// thread uses the device or another of its caches meanwhile. In a child after fork() every call but
// vkmqaDestroyCache is VK_ERROR_VALIDATION_FAILED_EXT.
#ifndef VKMQA_CACHE_H
#define VKMQA_CACHE_H

#include <vkmqa/vkmqa_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct VkmqaCache_T* VkmqaCache; // the KV cache of one model
// An index, a generation and the cache's own number, so that a stale id is told from a new one. 0: none.
typedef uint64_t VkmqaSequence;

// ---- 1. The cache ----------------------------------------------------------------------------

// How a cache treats its memory.
typedef enum VkmqaCacheFlagBits {
    // Pages are filled with zeros before a sequence gets them, unless all of them is overwritten by a copy.
    VKMQA_CACHE_CLEAR_FREED_BIT = 0x1,
    // Kernels read the step's metadata from device memory, at an address that stays the same from step to
    // step (so that recorded layers can be replayed); vkmqaCmdUpdateCache copies what changed.
    VKMQA_CACHE_DEVICE_METADATA_BIT = 0x2,
    VKMQA_CACHE_FLAG_BITS_MAX_ENUM = 0x7FFFFFFF
} VkmqaCacheFlagBits;
typedef VkFlags VkmqaCacheFlags; // of VkmqaCacheFlagBits

// Sizes of a cache, and memory for it.
typedef struct VkmqaCacheCreateInfo {
    uint32_t structSize;
    VkmqaCacheFlags flags; // VkmqaCacheFlagBits
    // Paged; its shape is that of all layers. Other objects of the same KV shape, types and page size may
    // record with the cache's steps too. Must outlive the cache.
    VkmqaAttention attention;
    uint32_t numLayers; // of the model, 1 to 4096
    uint32_t numPages;     // of each layer; a sequence of n tokens takes ceil(n / pageSize) of them
    uint32_t maxSequences; // at the same time; default 1024, at most 2^24
    // Limits of a step, see VkmqaStepLimits.
    uint32_t maxBatch;      // default and at most maxSequences, at most 2^20
    uint32_t maxNewTokens;  // of all sequences together; default 2048, at least maxBatch, at most 2^24
    // Default the smaller of the attention object's and numPages * pageSize; a sequence that would pass it is
    // VK_ERROR_VALIDATION_FAILED_EXT, whatever pages there are.
    uint32_t maxSeqLenKv;
    uint32_t stepsInFlight; // steps that may be built before the first has finished executing; default 3, at most 64
    uint32_t hostPages;     // room for offloaded pages, in host memory; needs device; default 0
    // The device allocates what is not given below. Without a device all of it must be given, and
    // vkmqaOffloadSequence, vkmqaRestoreSequence, vkmqaSaveSequences and vkmqaLoadSequences are not available
    // (VK_ERROR_FEATURE_NOT_PRESENT).
    VkmqaDevice device;
    // [numLayers], or null: the layers' buffers, with handles, usable as source and target of transfers;
    // kv.numPages is numPages. Where the device copies on a queue family of its own, with VK_SHARING_MODE_CONCURRENT
    // over both. No two may overlap (not checked). Copied.
    const VkmqaKv* layers;
    // Host-visible, host-coherent and mapped: `step` of the requirements; all zero with a null stepMapped.
    VkmqaBuffer stepMemory;
    void* stepMapped; // host address of stepMemory.offset
    // Device-local, usable as target of transfers: `local` of the requirements, where its size is not 0.
    VkmqaBuffer localMemory;
} VkmqaCacheCreateInfo;

// What a cache takes.
typedef struct VkmqaCacheRequirements {
    uint32_t structSize;
    uint32_t pageTokens; // tokens of a page
    VkmqaKvRequirements kv;        // of each layer; the usages of its buffers include transfers
    VkmqaBufferRequirements step;  // metadata of stepsInFlight steps
    VkmqaBufferRequirements local; // page lists of vkmqaCmdShiftSequence, metadata with DEVICE_METADATA
    VkDeviceSize pageBytes;        // of one page in all layers: what a fork's first new token copies
    VkDeviceSize deviceBytes;      // all layers and local
    VkDeviceSize hostBytes;        // step, offloaded pages and bookkeeping
    // Device memory that the driver says is still to be had (VK_EXT_memory_budget); 0: it does not say, or
    // there is no device.
    VkDeviceSize deviceBudget;
} VkmqaCacheRequirements;

// What vkmqaCreateCache would take. Allocates nothing.
VKMQA_API VkResult vkmqaGetCacheRequirements(const VkmqaCacheCreateInfo* info,
                                             VkmqaCacheRequirements* requirements);

// Errors: VK_ERROR_OUT_OF_DEVICE_MEMORY, with nothing allocated, where deviceBytes exceeds deviceBudget.
// Compiles one pipeline.
VKMQA_API VkResult vkmqaCreateCache(const VkmqaCacheCreateInfo* info, VkmqaCache* cache);

// Null is ignored. No pending commands may use it; its sequences end with it, before its attention object and
// device do.
VKMQA_API void vkmqaDestroyCache(VkmqaCache cache);

// A layer's buffers, for VkmqaAppendInfo::kv and its like; valid as long as the cache. Null for a wrong
// handle or layer.
VKMQA_API const VkmqaKv* vkmqaGetCacheLayer(VkmqaCache cache, uint32_t layer);

// Pages and sequences, as of now.
typedef struct VkmqaCacheState {
    uint32_t structSize;
    uint32_t sequences;   // alive
    uint32_t freePages;   // at once to be had, reusable ones included
    uint32_t reusablePages; // owned by nobody, kept for prefixes until somebody needs them
    uint32_t usedPages;   // owned by at least one sequence
    uint32_t sharedPages; // of them: by more than one
    uint32_t pagesInTransfer; // being offloaded; they are free when their copies are done
    uint32_t freeHostPages; // of hostPages
} VkmqaCacheState;
// Pure bookkeeping: what has been called so far, whether the device has done it or not.
VKMQA_API VkResult vkmqaGetCacheState(VkmqaCache cache, VkmqaCacheState* state);

// ---- 2. Sequences ----------------------------------------------------------------------------

// A prompt to look for.
typedef struct VkmqaSequenceCreateInfo {
    uint32_t structSize;
    uint32_t tokenCount;      // of tokenIds
    const uint32_t* tokenIds; // the prompt's; null only where tokenCount is 0
    // Prefixes are found only under the salt that they were built with: one per user keeps users from
    // learning by timing what others have asked.
    uint64_t salt;
} VkmqaSequenceCreateInfo;

// A new, empty sequence, or one that starts with the pages of a prompt known to the cache: whole pages of
// tokens given to vkmqaBuildStep with their ids, in this order from position 0 on, under this salt, in a
// sequence that may have been destroyed since. *reusedTokens (may be null) says how many there are, a multiple
// of the page size; the caller goes on behind them. To compute at least one token, as a model must to
// continue, leave the prompt's last one out of tokenCount. info may be null: empty, salt 0.
// Pages of a step that has not been recorded, or was discarded, are not found. A hit compares the ids themselves.
// Source: automatic prefix caching of vLLM (Kwon et al., arXiv 2309.06180).
VKMQA_API VkResult vkmqaCreateSequence(VkmqaCache cache, const VkmqaSequenceCreateInfo* info,
                                       VkmqaSequence* sequence, uint32_t* reusedTokens);

// 0 is ignored.
VKMQA_API VkResult vkmqaDestroySequence(VkmqaCache cache, VkmqaSequence sequence);

// A sequence, as of now.
typedef struct VkmqaSequenceState {
    uint32_t structSize;
    uint32_t length; // tokens
    uint32_t pages;  // that hold them
    uint32_t offloadedPages; // of the pages: in host memory
    uint32_t sharedPages; // with other sequences
    VkBool32 pinned; // see vkmqaPinSequence
    uint64_t lastUse; // number of the last step it took part in, from 1
} VkmqaSequenceState;
// Likewise, of one sequence.
VKMQA_API VkResult vkmqaGetSequenceState(VkmqaCache cache, VkmqaSequence sequence,
                                         VkmqaSequenceState* state);

// A sequence's part of a step.
typedef struct VkmqaSequenceTokens {
    VkmqaSequence sequence; // whose they are
    uint32_t newTokens; // how many
    const uint32_t* tokenIds;  // [newTokens], or null: the tokens are not to be found as a prefix
    // [newTokens], or null: length, length + 1, ... Tokens at other positions (drafts of a tree, by depth) are
    // not to be found as a prefix either. After vkmqaCmdCompactKv, truncate to the accepted tokens; the rows have
    // moved in place, so nothing may have been forked since the step was built.
    const int32_t* positions;
} VkmqaSequenceTokens;

// Takes the pages that these tokens will need, the copy of a shared one included, all or none; vkmqaBuildStep
// does it too, when nobody has. Pages reserved before are kept, and count. tokenIds and positions are ignored. A
// sequence may be given once; one that is forked afterwards may need another page.
VKMQA_API VkResult vkmqaReserveTokens(VkmqaCache cache, uint32_t count, const VkmqaSequenceTokens* tokens);

// A new sequence of the first `length` tokens of another. All pages are shared; whoever writes to a shared
// page first gets a copy of its own, recorded by vkmqaCmdUpdateCache.
VKMQA_API VkResult vkmqaForkSequence(VkmqaCache cache, VkmqaSequence source, uint32_t length,
                                     VkmqaSequence* fork);

// Forgets all tokens from `length` on, which is at most the sequence's length; pages behind it are given back,
// reserved ones too.
VKMQA_API VkResult vkmqaTruncateSequence(VkmqaCache cache, VkmqaSequence sequence, uint32_t length);

// Which tokens to drop.
typedef struct VkmqaShiftInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed; a call per layer
    VkmqaSequence sequence; // whose tokens
    uint32_t keep; // tokens at the front that stay: attention sinks
    uint32_t drop; // tokens behind them that go; keep + drop is at most the length
    // [numLayers], with a ropeStyle: what vkmqaCmdAppendKv is given for each layer.
    const VkmqaBuffer* parameters;
} VkmqaShiftInfo;

// Drops a range of tokens; the ones behind move to its place, their K rotated back by `drop` positions where
// the attention object has a ropeStyle (decoded, rotated and encoded again, which for types narrower than f32
// rounds once more; other rows move as they are). Rows move in place; shared pages that change are copied
// first, which may take pages. Records what is due, then one dispatch per layer, and with drop 0 nothing; ordered
// like vkmqaCmdUpdateCache. Source: StreamingLLM (Xiao et al., arXiv 2309.17453).
VKMQA_API VkResult vkmqaCmdShiftSequence(VkmqaCache cache, VkCommandBuffer commandBuffer,
                                         const VkmqaShiftInfo* info);

// ---- 3. Steps --------------------------------------------------------------------------------

// The sequences of a step.
typedef struct VkmqaStepBuildInfo {
    uint32_t structSize;
    uint32_t count; // of tokens: the batch
    const VkmqaSequenceTokens* tokens; // newTokens may be 0; a sequence may be given once
    // What VkmqaCacheStep::step.limits becomes; a member that is 0 takes this step's own value. Give the same
    // limits every time to replay recorded commands; what they have room for beyond the step does nothing.
    VkmqaStepLimits limits;
} VkmqaStepBuildInfo;

// A step as built.
typedef struct VkmqaCacheStep {
    uint32_t structSize;
    uint32_t slot;  // which of the stepsInFlight metadata buffers
    VkmqaStep step; // for vkmqa.h
    // Host address of the metadata as built: word layout.status / 4 holds the status bits afterwards, and
    // accepted drafts are written there (without DEVICE_METADATA; with it both are in step.metadata).
    void* mapped;
    uint64_t number; // of the step, from 1: VkmqaSequenceState::lastUse
} VkmqaCacheStep;

// Appends tokens to sequences: takes the pages they need, makes shared ones the sequence's own, and writes
// cuSeqlensQ, seqLensKv, pageTable, slotMapping, positions and queryPositions in time proportional to the
// tokens and the pages touched since the slot was last used (sequences that keep their place in the batch cost
// least). The queries of the step are the new tokens. Fails with VK_ERROR_OUT_OF_POOL_MEMORY, changing
// nothing, when pages are missing; with VK_ERROR_VALIDATION_FAILED_EXT for an offloaded sequence. The step
// built stepsInFlight builds ago must have finished executing; if it was never recorded it is discarded. Limits
// choose kernels and splits: scratch for the largest limits serves every step within them.
VKMQA_API VkResult vkmqaBuildStep(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaCacheStep* step);

// Records what the calls since the last one ask of the device, and with DEVICE_METADATA the copy of the
// step's metadata. Once for each step, before its first vkmqaCmdAppendKv, also in another command buffer
// submitted before. step may be null: what is due before the next step that is to be recorded. Orders itself
// after all earlier commands of the compute and transfer stages and before all later ones. Errors: a step that
// has been recorded, or that a later one has overtaken; unrecorded steps before this one are discarded.
VKMQA_API VkResult vkmqaCmdUpdateCache(VkmqaCache cache, VkCommandBuffer commandBuffer,
                                       const VkmqaCacheStep* step);

// Steps that have been built and not recorded will not be: their tokens' rows are undefined and are not found as
// prefixes. Their sequences still have them; truncate. Copies and clears of pages stay due.
VKMQA_API VkResult vkmqaDiscardSteps(VkmqaCache cache);

// ---- 4. Host memory --------------------------------------------------------------------------

// Starts copying the sequence's own pages to host memory, on the transfer queue, behind everything submitted
// so far; they are free for others once the copy is done, which later calls notice, and no prefix until they are
// restored. Pages shared with others stay. VK_ERROR_OUT_OF_POOL_MEMORY: too few host pages. A pinned sequence is an
// error.
VKMQA_API VkResult vkmqaOffloadSequence(VkmqaCache cache, VkmqaSequence sequence);
// Starts copying them back; later submissions to the compute queue wait for it, the host does not.
VKMQA_API VkResult vkmqaRestoreSequence(VkmqaCache cache, VkmqaSequence sequence);
// Offloads the sequences not made, used or restored for longest, neither pinned nor part of the last stepsInFlight
// steps, until at least `pages` are free or on their way; *started (may be null): the pages on their way by this call.
// VK_ERROR_OUT_OF_POOL_MEMORY: it cannot free that many; what it has started goes on.
VKMQA_API VkResult vkmqaOffloadLeastRecent(VkmqaCache cache, uint32_t pages, uint32_t* started);
// A pinned sequence is never offloaded.
VKMQA_API VkResult vkmqaPinSequence(VkmqaCache cache, VkmqaSequence sequence, VkBool32 pinned);
// Waits for the copies that vkmqaOffloadSequence and vkmqaRestoreSequence have started; VK_TIMEOUT when they
// have not finished.
VKMQA_API VkResult vkmqaFinishTransfers(VkmqaCache cache, uint64_t timeoutNs);

// ---- 5. Snapshots ----------------------------------------------------------------------------

// Where a snapshot goes to or comes from. The callbacks may not use the cache: VK_ERROR_VALIDATION_FAILED_EXT.
typedef struct VkmqaSnapshotInfo {
    uint32_t structSize;
    // A file: written to a temporary name beside it, synced and renamed, so that there is the old one or the
    // new one at any time. Null: through the callback, which otherwise is not called.
    const char* path;
    // Moves all `size` bytes, in order; false: an error, passed on as VK_ERROR_UNKNOWN. write for
    // vkmqaSaveSequences, read for vkmqaLoadSequences.
    VkBool32 (*write)(void* userData, const void* data, size_t size);
    VkBool32 (*read)(void* userData, void* data, size_t size); // likewise
    // May be null; after every few MiB. false cancels: VK_INCOMPLETE, without a message.
    VkBool32 (*progress)(void* userData, uint64_t doneBytes, uint64_t totalBytes);
    void* userData; // for the callbacks
    const char* modelTag; // up to 63 bytes of UTF-8, default ""; a load refuses a snapshot of another
} VkmqaSnapshotInfo;

// Saves sequences with their pages, shared ones once, offloaded ones too. Waits for what was submitted.
// Errors: VK_ERROR_UNKNOWN for I/O, with errno's text in the message; the old file is whole, or the message says
// that the new one is in its place.
VKMQA_API VkResult vkmqaSaveSequences(VkmqaCache cache, uint32_t count, const VkmqaSequence* sequences,
                                      const VkmqaSnapshotInfo* info);

// Loads all sequences of a snapshot, in the order they were saved, into new pages: also of another page size.
// sequences may be null, to have *count set to their number, for which only the header is read; *count is the
// room there is, and then the number loaded; too little is VK_INCOMPLETE, and nothing is loaded. Pages that were
// saved with ids are found as prefixes again. A load that fails leaves all sequences as they were; one that fails
// late may have cost pages kept for prefixes. With a callback the number must be known, since the stream is read
// only once. Errors: VK_ERROR_FORMAT_NOT_SUPPORTED for a snapshot of another version, shape, type or model,
// VK_ERROR_UNKNOWN for a truncated or damaged one or I/O, VK_ERROR_OUT_OF_POOL_MEMORY for missing pages.
VKMQA_API VkResult vkmqaLoadSequences(VkmqaCache cache, const VkmqaSnapshotInfo* info, uint32_t* count,
                                      VkmqaSequence* sequences);

#ifdef __cplusplus
}
#endif

#endif

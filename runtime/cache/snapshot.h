// Snapshots: sequences and their pages as a file or a stream. SPDX-License-Identifier: MIT
//
// Format, version 1. Numbers are little-endian; nothing is aligned, nothing is compressed, and every section
// begins where the one before it ends, so that it is written and read front to back. The size of everything
// follows from the header.
//
//   header, 256 bytes
//       0  "VKMQASNP"
//       8  u32 version: 1
//      12  u32 256, bytes of the header
//      16  u32 [11]: numLayers, numHeadsKv, headDimQk, headDimV, kType, vType (VkmqaType), 1 where V is a
//          prefix of K, elements that Hadamard rotation mixes (1: none), ropeStyle, ropeDim, ropeOffset. What
//          the bytes of stored K and V mean; a cache that differs in one refuses them.
//      60  u32 tokens of a page: a power of two up to 256
//      64  u32 sequences
//      68  u32 pages, numbered from 0 in the order below
//      72  u64 entries of all sequences' page lists together
//      80  the model tag, filled up to 64 bytes with zeros, of which there is at least one
//     144  zeros
//     248  u64 hash of the 248 bytes before it. Of every later version too: first 8 bytes, version and hash.
//   sequence table
//       of each sequence: u64 salt, u32 length in tokens, u32 pages: ceil(length / tokens of a page), and
//       u32 [pages], which pages. A page may be listed by several sequences, but by all of them at the same
//       place, and by none twice; every page is listed.
//       of each page: u32, how many of its tokens, from the first on, have an id below
//   token ids
//       of each page: u32 [tokens of a page]; 0 where unknown
//   of each layer: K rows, K scales (block types only), V rows and V scales (neither where V is a prefix)
//       of each page: that plane of the page as it stands in the cache, [numHeadsKv, tokens of a page, bytes
//       of a row]; rows that no sequence reaches are zeros
//
// Behind each section but the header stands the u64 XXH3-64 of its bytes (seed 0). Hashes find damage, not
// forgery: who can write a snapshot decides what a load of it puts into the cache, prefixes under any salt
// included.
#ifndef VKMQA_SNAPSHOT_H
#define VKMQA_SNAPSHOT_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "cache.h"

#include "../device/device.h"

enum {
    VKMQA_SNAPSHOT_VERSION = 1,
    VKMQA_SNAPSHOT_HEADER_BYTES = 256,
    VKMQA_SNAPSHOT_SHAPE_WORDS = 11,
    VKMQA_SNAPSHOT_TAG_BYTES = 64,
    VKMQA_SNAPSHOT_PIECE = 64 << 10, // of tables; small enough to be hashed while in the processor's cache
    VKMQA_SNAPSHOT_HALF = 4 << 20,   // of the staging memory; the bus is at its full speed by then
    VKMQA_SNAPSHOT_COPIES = 2048,    // of one submission
};

struct VkmqaSnapshotHeader {
    uint32_t version;
    uint32_t shape[VKMQA_SNAPSHOT_SHAPE_WORDS];
    uint32_t pageTokens, sequenceCount, pageCount;
    uint64_t entryCount;
    char modelTag[VKMQA_SNAPSHOT_TAG_BYTES];
};

// One half of the staging memory is the host's while the other is being copied.
struct VkmqaSnapshotHalf {
    char* mapped;
    uint64_t offset; // in the memory
    struct VkmqaCopies* pending;
    uint32_t section; // of a save: what it holds
    uint64_t position, length;
};

struct VkmqaSnapshotFile {
    bool open;
    intptr_t handle;
    char* temporary; // its name while it is being written; null: it is read
    uint64_t written, sent; // bytes, and those of them whose way to the disk has begun
};

// One call of vkmqaSaveSequences or vkmqaLoadSequences.
struct VkmqaSnapshot {
    VkmqaCache cache;
    const char* call;
    VkmqaSnapshotInfo info;
    bool saving;
    VkResult result; // of the first thing that went wrong
    struct VkmqaSnapshotFile file;
    struct VkmqaSnapshotHeader header;
    uint64_t planeBytes[VKMQA_MAX_PLANES]; // of one page of the snapshot
    uint64_t dataBytes;                    // of all planes and layers
    uint64_t total, done, said;

    char section[40]; // name of the one that is open
    uint64_t left;    // its bytes that have not been moved yet
    XXH3_state_t* hash; // in hashMemory: it is aligned to 64 bytes, allocations are not
    unsigned char hashMemory[sizeof(XXH3_state_t) + 64];
    unsigned char piece[VKMQA_SNAPSHOT_PIECE];
    size_t pieceUsed, pieceFilled;

    VkmqaMemory staging;
    struct VkmqaSnapshotHalf halves[2];
    uint64_t halfBytes;
    struct VkmqaCopy* copies; // [VKMQA_SNAPSHOT_COPIES]
    uint32_t copyCount;
};

static inline void vkmqa_put32(unsigned char* bytes, uint32_t value) {
    for (int i = 0; i < 4; ++i)
        bytes[i] = (unsigned char)(value >> 8 * i);
}
static inline void vkmqa_put64(unsigned char* bytes, uint64_t value) {
    vkmqa_put32(bytes, (uint32_t)value);
    vkmqa_put32(bytes + 4, (uint32_t)(value >> 32));
}
static inline uint32_t vkmqa_get32(const unsigned char* bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}
static inline uint64_t vkmqa_get64(const unsigned char* bytes) {
    return vkmqa_get32(bytes) | (uint64_t)vkmqa_get32(bytes + 4) << 32;
}

// ---- snapshot.c: sections, hashes, staging -----------------------------------------------------

// Checks the arguments that both calls have and opens the file or stream; *snapshot is to be closed even after
// an error, unless null.
VkResult vkmqa_open_snapshot(VkmqaCache cache, const char* call, const VkmqaSnapshotInfo* given, bool saving,
                             struct VkmqaSnapshot** snapshot);
// Waits for copies that an error has left behind.
void vkmqa_settle_snapshot(struct VkmqaSnapshot* snapshot);
// Settles it, frees everything and returns the call's result.
VkResult vkmqa_close_snapshot(struct VkmqaSnapshot* snapshot, VkResult result);
// Keeps and returns `result`, with a message that begins with the call and the open section.
VkResult vkmqa_snapshot_fail(struct VkmqaSnapshot* snapshot, VkResult result, const char* format, ...)
    VKMQA_PRINTF(3, 4);

extern const char* const vkmqa_snapshot_shape_names[VKMQA_SNAPSHOT_SHAPE_WORDS];
void vkmqa_snapshot_shape(VkmqaCache cache, uint32_t shape[VKMQA_SNAPSHOT_SHAPE_WORDS]);
// The sizes that follow from the header. False: they pass 2^64.
bool vkmqa_snapshot_sizes(struct VkmqaSnapshot* snapshot);

// Sections: 0 the header, 1 the sequence table, 2 the token ids, then the planes.
enum { VKMQA_SNAPSHOT_HEADER, VKMQA_SNAPSHOT_TABLE, VKMQA_SNAPSHOT_IDS, VKMQA_SNAPSHOT_PLANES };
static inline uint32_t vkmqa_snapshot_sections(const struct VkmqaSnapshot* snapshot) {
    return VKMQA_SNAPSHOT_PLANES + snapshot->cache->numLayers * snapshot->cache->planeCount;
}
// Bytes of the section without its hash.
uint64_t vkmqa_snapshot_section_bytes(const struct VkmqaSnapshot* snapshot, uint32_t index);
void vkmqa_open_section(struct VkmqaSnapshot* snapshot, uint32_t index);
// Writes the hash, or compares it.
VkResult vkmqa_close_section(struct VkmqaSnapshot* snapshot);
// Writes from, or reads to, `data`, and hashes.
VkResult vkmqa_move_section(struct VkmqaSnapshot* snapshot, void* data, uint64_t size);
// For small things: `size` bytes to be written to, or read from, before the next call; null after an error.
unsigned char* vkmqa_section_bytes(struct VkmqaSnapshot* snapshot, size_t size);

// Staging memory for all planes, in two halves, each followed by `zeroBytes` zeros.
VkResult vkmqa_make_staging(struct VkmqaSnapshot* snapshot, uint64_t zeroBytes);
// Adds a copy between the half, from `staged` on, and a plane of the cache, from byte `at` of its first page on.
VkResult vkmqa_stage(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half, uint64_t staged,
                     uint32_t section, uint64_t at, uint64_t size);
// Starts the copies that have been added, and waits for those of the half.
VkResult vkmqa_start_half(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half);
VkResult vkmqa_finish_half(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half);

// ---- snapshot_table.c: what a load puts where ---------------------------------------------------

struct VkmqaSnapshotTable {
    uint32_t* records; // [sequences]: indices of the new ones
    uint32_t recordCount;
    uint32_t* places; // [pages]: of which entry of a page list
    uint32_t* fills;  // [pages]: tokens that a sequence reaches
    uint32_t* known;  // [pages]: leading tokens with ids
    uint32_t merge;   // pages of the snapshot in one of the cache
    uint32_t split;   // pages of the cache in one of the snapshot; one of both is 1
    // With merge: the sequences sorted by their lists, and the entries each has in common with the one before.
    uint32_t* order;
    uint32_t* common;
    // Pages of the cache that get rows of page p of the snapshot: from ends[p - 1] up to ends[p]. With merge
    // VkmqaPage::note is how many pages of the snapshot each of them gets.
    uint32_t* ends;
    uint32_t* targets;
    uint32_t targetCount;
    bool taken; // the table holds a reference to each target
};

// Reads the section and makes the sequences, with pages of the snapshot in their lists.
VkResult vkmqa_read_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table);
// How many pages of the cache are needed.
VkResult vkmqa_count_targets(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table,
                             uint32_t* needed);
// Takes them, and names them in the sequences' lists.
VkResult vkmqa_take_targets(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table);
static inline uint32_t vkmqa_first_target(const struct VkmqaSnapshotTable* table, uint32_t page) {
    return page ? table->ends[page - 1] : 0;
}
// The sequences stay, or go.
void vkmqa_free_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, bool keep);

// ---- snapshot_file.c ----------------------------------------------------------------------------

// Each of them says what went wrong.
VkResult vkmqa_create_file(struct VkmqaSnapshot* snapshot); // under a temporary name
VkResult vkmqa_open_file(struct VkmqaSnapshot* snapshot);
VkResult vkmqa_file_size(struct VkmqaSnapshot* snapshot, uint64_t* size);
VkResult vkmqa_write_file(struct VkmqaSnapshot* snapshot, const void* data, size_t size);
VkResult vkmqa_read_file(struct VkmqaSnapshot* snapshot, void* data, size_t size);
VkResult vkmqa_seek_file(struct VkmqaSnapshot* snapshot, uint64_t position);
VkResult vkmqa_publish_file(struct VkmqaSnapshot* snapshot); // synced, in place of the old one
void vkmqa_close_file(struct VkmqaSnapshot* snapshot);       // one that was not published is removed

#endif

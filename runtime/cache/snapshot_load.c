// vkmqaLoadSequences. SPDX-License-Identifier: MIT
//
// What a snapshot says is believed in this order: the header once its hash and the cache agree with it and the
// file has the size that follows; the table once it is consistent and its hash agrees; then pages are taken, and
// everything else goes to them. Sequences become visible when all hashes have agreed.
#include "snapshot.h"

#include <string.h>

// What a load may take of host memory beyond the snapshot's own size, this struct included.
enum { SPARE_BYTES = 1 << 20 };

// ---- header ----------------------------------------------------------------------------------------

static const char* shape_value(uint32_t word, uint32_t value, char text[16]) {
    if (word == 4 || word == 5)
        return vkmqa_type_name((VkmqaType)value);
    uint32_t digits = 1; // snprintf would do, with a warning about its length
    for (uint32_t rest = value; rest >= 10; rest /= 10)
        ++digits;
    text[digits] = 0;
    for (; digits; value /= 10)
        text[--digits] = (char)('0' + value % 10);
    return text;
}

static VkResult check_shape(struct VkmqaSnapshot* snapshot) {
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    uint32_t own[VKMQA_SNAPSHOT_SHAPE_WORDS];
    vkmqa_snapshot_shape(snapshot->cache, own);
    for (uint32_t i = 0; i < VKMQA_SNAPSHOT_SHAPE_WORDS; ++i) {
        char theirs[16], ours[16];
        if (header->shape[i] != own[i])
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_FORMAT_NOT_SUPPORTED,
                                       "the snapshot has %s %s, the cache %s; load it into a cache like the one it "
                                       "was saved from", vkmqa_snapshot_shape_names[i],
                                       shape_value(i, header->shape[i], theirs), shape_value(i, own[i], ours));
    }
    const char* tag = snapshot->info.modelTag ? snapshot->info.modelTag : "";
    if (strcmp(header->modelTag, tag) != 0)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_FORMAT_NOT_SUPPORTED,
                                   "the snapshot's model tag is \"%s\", info.modelTag \"%s\"", header->modelTag, tag);
    return VK_SUCCESS;
}

static VkResult read_header(struct VkmqaSnapshot* snapshot) {
    struct VkmqaSnapshotHeader* header = &snapshot->header;
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_HEADER);
    const unsigned char* bytes = vkmqa_section_bytes(snapshot, VKMQA_SNAPSHOT_HEADER_BYTES - 8);
    if (!bytes)
        return snapshot->result;
    if (memcmp(bytes, "VKMQASNP", 8) != 0)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_FORMAT_NOT_SUPPORTED,
                                   "this is not a snapshot: it does not begin with \"VKMQASNP\"");
    VkResult error = vkmqa_close_section(snapshot);
    if (error != VK_SUCCESS)
        return error;
    header->version = vkmqa_get32(bytes + 8);
    if (header->version != VKMQA_SNAPSHOT_VERSION)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_FORMAT_NOT_SUPPORTED,
                                   "the snapshot has version %u; this library reads version %d", header->version,
                                   VKMQA_SNAPSHOT_VERSION);
    for (uint32_t i = 0; i < VKMQA_SNAPSHOT_SHAPE_WORDS; ++i)
        header->shape[i] = vkmqa_get32(bytes + 16 + 4 * i);
    header->pageTokens = vkmqa_get32(bytes + 60);
    header->sequenceCount = vkmqa_get32(bytes + 64);
    header->pageCount = vkmqa_get32(bytes + 68);
    header->entryCount = vkmqa_get64(bytes + 72);
    memcpy(header->modelTag, bytes + 80, sizeof header->modelTag);
    bool ended = false, zeros = true; // the tag is followed by zeros alone
    for (uint32_t i = 80; i < VKMQA_SNAPSHOT_HEADER_BYTES - 8; ++i) {
        ended |= bytes[i] == 0 || i >= 80 + VKMQA_SNAPSHOT_TAG_BYTES - 1;
        zeros &= !ended || bytes[i] == 0;
    }
    if (vkmqa_get32(bytes + 12) != VKMQA_SNAPSHOT_HEADER_BYTES || !zeros)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "%s; the snapshot is damaged",
                                   zeros ? "its own size is wrong" : "bytes that are zeros hold something");
    uint32_t tokens = header->pageTokens;
    if (tokens == 0 || tokens > VKMQA_MAX_PAGE_SIZE || (tokens & (tokens - 1)))
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "pages of %u tokens, which is no power of two up to %d; the snapshot is damaged",
                                   tokens, VKMQA_MAX_PAGE_SIZE);
    return check_shape(snapshot);
}

// The sizes that the header tells, against the file, the cache and memory.
static VkResult check_sizes(struct VkmqaSnapshot* snapshot) {
    VkmqaCache cache = snapshot->cache;
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    uint64_t size, end = VKMQA_SNAPSHOT_HEADER_BYTES;
    if (!vkmqa_snapshot_sizes(snapshot) || header->entryCount > UINT32_MAX)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "%u pages and %llu entries are more than any snapshot has; it is damaged",
                                   header->pageCount, (unsigned long long)header->entryCount);
    if (snapshot->info.path) {
        VkResult error = vkmqa_file_size(snapshot, &size);
        if (error != VK_SUCCESS)
            return error;
        for (uint32_t i = VKMQA_SNAPSHOT_TABLE; size < snapshot->total && size >= end; ++i) {
            vkmqa_open_section(snapshot, i);
            end += vkmqa_snapshot_section_bytes(snapshot, i) + 8;
        }
        if (size != snapshot->total)
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "the file %s: it has %llu bytes of %llu; take another copy of the snapshot",
                                       size < snapshot->total ? "ends in it" : "goes on behind the snapshot",
                                       (unsigned long long)size, (unsigned long long)snapshot->total);
    }
    uint32_t perPage = 24, perEntry = 6; // bytes of the table; lists of sequences have room to grow
    if (header->pageTokens > cache->pageTokens) {
        perPage += header->pageTokens / cache->pageTokens * 4;
        perEntry *= header->pageTokens / cache->pageTokens;
    } else if (header->pageTokens < cache->pageTokens) {
        perEntry += 4;
    }
    uint64_t bytes = header->pageCount * (uint64_t)perPage + header->entryCount * perEntry +
                     header->sequenceCount * 44ull + sizeof *snapshot +
                     VKMQA_SNAPSHOT_COPIES * sizeof *snapshot->copies;
    if (bytes > snapshot->total && bytes - snapshot->total > SPARE_BYTES)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "lists of %llu bytes for a snapshot of %llu, which is more than a load may take",
                                   (unsigned long long)bytes, (unsigned long long)snapshot->total);
    return VK_SUCCESS;
}

// ---- what follows the table ------------------------------------------------------------------------

// Reads the rest of a file only to compare hashes: for a load that takes pages away from prefixes.
static VkResult verify_rest(struct VkmqaSnapshot* snapshot) {
    uint64_t done = snapshot->done, said = snapshot->said;
    VkBool32 (*progress)(void*, uint64_t, uint64_t) = snapshot->info.progress;
    VkResult error = VK_SUCCESS;
    snapshot->info.progress = NULL;
    for (uint32_t i = VKMQA_SNAPSHOT_IDS; i < vkmqa_snapshot_sections(snapshot) && error == VK_SUCCESS; ++i) {
        vkmqa_open_section(snapshot, i);
        while (snapshot->left && error == VK_SUCCESS)
            error = vkmqa_move_section(snapshot, snapshot->piece,
                                       snapshot->left < sizeof snapshot->piece ? snapshot->left
                                                                               : sizeof snapshot->piece);
        if (error == VK_SUCCESS)
            error = vkmqa_close_section(snapshot);
    }
    snapshot->info.progress = progress;
    snapshot->done = done;
    snapshot->said = said;
    return error == VK_SUCCESS ? vkmqa_seek_file(snapshot, done) : error;
}

static VkResult take_pages(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    uint32_t needed, available = vkmqa_available_pages(cache);
    VkResult error = vkmqa_count_targets(snapshot, table, &needed);
    if (error != VK_SUCCESS)
        return error;
    if (needed > available) {
        struct VkmqaProblem problem;
        vkmqa_say_missing(cache, needed, &problem);
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_POOL_MEMORY, "%s", problem.text);
    }
    if (needed > cache->freePages.count && snapshot->info.path)
        error = verify_rest(snapshot);
    return error == VK_SUCCESS ? vkmqa_take_targets(snapshot, table) : error;
}

static VkResult load_ids(struct VkmqaSnapshot* snapshot, const struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    uint32_t theirs = snapshot->header.pageTokens, ours = cache->pageTokens;
    uint32_t run = theirs < ours ? theirs : ours;
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_IDS);
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i) {
        const unsigned char* bytes = vkmqa_section_bytes(snapshot, theirs * 4);
        if (!bytes)
            return snapshot->result;
        uint32_t first = vkmqa_first_target(table, i);
        for (uint32_t t = first; t < table->ends[i]; ++t) {
            uint32_t part = table->split > 1 ? t - first : 0, slot = table->places[i] % table->merge;
            uint32_t* ids = cache->ids + (size_t)table->targets[t] * ours + slot * run;
            for (uint32_t k = 0; k < run; ++k)
                ids[k] = vkmqa_get32(bytes + 4 * (part * run + k));
        }
    }
    return vkmqa_close_section(snapshot);
}

// Sends the half's first `length` bytes, those of a plane from byte `position` on, to their pages.
static VkResult send_half(struct VkmqaSnapshot* snapshot, const struct VkmqaSnapshotTable* table,
                          struct VkmqaSnapshotHalf* half, uint32_t section, uint64_t position, uint64_t length) {
    VkmqaCache cache = snapshot->cache;
    uint32_t plane = (section - VKMQA_SNAPSHOT_PLANES) % cache->planeCount;
    uint64_t theirs = snapshot->planeBytes[plane], ours = cache->planes[plane].pageBytes;
    // Where pages differ in size, runs of the smaller one's tokens stay together, of each head.
    uint32_t heads = theirs == ours ? 1 : cache->attention->shape.numHeadsKv;
    uint64_t theirHead = theirs / heads, ourHead = ours / heads, run = theirHead < ourHead ? theirHead : ourHead;
    bool clear = table->merge > 1 && (cache->flags & VKMQA_CACHE_CLEAR_FREED_BIT);
    VkResult error = VK_SUCCESS;
    for (uint64_t done = 0, part; done < length && error == VK_SUCCESS; done += part) {
        uint64_t at = position + done, inPage = at % theirs, inHead = inPage % theirHead, inRun = inHead % run;
        uint32_t page = (uint32_t)(at / theirs), slot = table->places[page] % table->merge;
        uint32_t first = vkmqa_first_target(table, page), end = table->ends[page];
        uint64_t to = inPage / theirHead * ourHead + slot * run + inRun;
        part = run - inRun < length - done ? run - inRun : length - done;
        if (table->split > 1) { // one of the parts; those behind the last token have no page
            first += (uint32_t)(inHead / run);
            end = first < end ? first + 1 : first;
        }
        for (uint32_t t = first; t < end && error == VK_SUCCESS; ++t) {
            uint64_t target = table->targets[t] * ours + to;
            error = vkmqa_stage(snapshot, half, done, section, target, part);
            uint32_t filled = clear ? cache->pages[table->targets[t]].note : table->merge;
            for (uint32_t rest = filled; slot + 1 == filled && rest < table->merge && error == VK_SUCCESS; ++rest)
                error = vkmqa_stage(snapshot, half, snapshot->halfBytes, section, target + (rest - slot) * run, part);
        }
    }
    return error == VK_SUCCESS ? vkmqa_start_half(snapshot, half) : error;
}

static VkResult load_planes(struct VkmqaSnapshot* snapshot, const struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    uint64_t run = 0; // the longest that is cleared
    for (uint32_t i = 0; table->merge > 1 && i < cache->planeCount; ++i) {
        uint64_t bytes = (uint64_t)snapshot->header.pageTokens * cache->planes[i].tokenBytes;
        run = bytes > run ? bytes : run;
    }
    VkResult error = vkmqa_make_staging(snapshot, run);
    for (uint32_t i = VKMQA_SNAPSHOT_PLANES, turn = 0;
         i < vkmqa_snapshot_sections(snapshot) && error == VK_SUCCESS; ++i) {
        vkmqa_open_section(snapshot, i);
        for (uint64_t position = 0; snapshot->left && error == VK_SUCCESS; turn = !turn) {
            struct VkmqaSnapshotHalf* half = &snapshot->halves[turn];
            uint64_t length = snapshot->left < snapshot->halfBytes ? snapshot->left : snapshot->halfBytes;
            error = vkmqa_finish_half(snapshot, half);
            if (error == VK_SUCCESS)
                error = vkmqa_move_section(snapshot, half->mapped, length);
            if (error == VK_SUCCESS)
                error = send_half(snapshot, table, half, i, position, length);
            position += length;
        }
        if (error == VK_SUCCESS)
            error = vkmqa_close_section(snapshot);
    }
    for (uint32_t i = 0; i < 2 && error == VK_SUCCESS; ++i)
        error = vkmqa_finish_half(snapshot, &snapshot->halves[i]);
    return error;
}

// ---- the call --------------------------------------------------------------------------------------

static void publish(struct VkmqaSnapshot* snapshot, const struct VkmqaSnapshotTable* table,
                    VkmqaSequence* sequences) {
    VkmqaCache cache = snapshot->cache;
    for (uint32_t i = 0; i < table->recordCount; ++i) {
        const struct VkmqaSequenceRecord* record = &cache->sequences[table->records[i]];
        for (uint32_t e = 0; e < record->length / cache->pageTokens; ++e)
            if (cache->pages[record->pages[e]].serial == 0)
                vkmqa_index_page(cache, record->pages[e], e ? record->pages[e - 1] : VKMQA_NO_PAGE, record->salt);
        sequences[i] = vkmqa_sequence_id(cache, record);
    }
}

// Before anything is allocated for them: a stream has no size that would prove the header's numbers.
static VkResult check_room(struct VkmqaSnapshot* snapshot) {
    VkmqaCache cache = snapshot->cache;
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    uint32_t free = cache->maxSequences - cache->sequenceCount, available = vkmqa_available_pages(cache);
    if (header->sequenceCount > free)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_POOL_MEMORY,
                                   "%u sequences, and maxSequences %u leaves %u; destroy %u", header->sequenceCount,
                                   cache->maxSequences, free, header->sequenceCount - free);
    uint64_t tokens = (uint64_t)header->pageCount * header->pageTokens;
    uint64_t needed = header->pageTokens < cache->pageTokens ? vkmqa_pages_of(cache, tokens) : header->pageCount;
    if (needed > available) {
        struct VkmqaProblem problem;
        vkmqa_say_missing(cache, needed, &problem);
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_POOL_MEMORY, "at least %s", problem.text);
    }
    return VK_SUCCESS;
}

static VkResult load_sequences(struct VkmqaSnapshot* snapshot, VkmqaSequence* sequences) {
    struct VkmqaSnapshotTable table = {0};
    VkResult error = check_room(snapshot);
    if (error == VK_SUCCESS)
        error = vkmqa_read_table(snapshot, &table);
    if (error == VK_SUCCESS)
        error = take_pages(snapshot, &table);
    if (error == VK_SUCCESS)
        error = load_ids(snapshot, &table);
    if (error == VK_SUCCESS)
        error = load_planes(snapshot, &table);
    vkmqa_settle_snapshot(snapshot); // before anybody else gets the pages
    if (error == VK_SUCCESS)
        publish(snapshot, &table, sequences);
    vkmqa_free_table(snapshot, &table, error == VK_SUCCESS);
    return error;
}

static VkResult load(struct VkmqaSnapshot* snapshot, uint32_t* count, VkmqaSequence* sequences) {
    VkResult error = snapshot->info.path ? vkmqa_open_file(snapshot) : VK_SUCCESS;
    if (error == VK_SUCCESS)
        error = read_header(snapshot);
    if (error == VK_SUCCESS)
        error = check_sizes(snapshot);
    if (error == VK_SUCCESS && sequences && *count < snapshot->header.sequenceCount)
        error = vkmqa_snapshot_fail(snapshot, VK_INCOMPLETE, "%u sequences, and *count is %u",
                                    snapshot->header.sequenceCount, *count);
    if (error == VK_SUCCESS && sequences)
        error = load_sequences(snapshot, sequences);
    if (error == VK_SUCCESS)
        *count = snapshot->header.sequenceCount;
    return error;
}

VkResult vkmqaLoadSequences(VkmqaCache cache, const VkmqaSnapshotInfo* info, uint32_t* count,
                            VkmqaSequence* sequences) {
    static const char call[] = "vkmqaLoadSequences";
    struct VkmqaSnapshot* snapshot;
    VkResult error = vkmqa_open_snapshot(cache, call, info, false, &snapshot);
    if (error != VK_SUCCESS)
        return error;
    if (!count)
        error = vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: count is null; give a number", call);
    else if (!sequences && !snapshot->info.path)
        error = vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: sequences is null, and the stream of info.read can be read only once; give "
                                 "room for its sequences", call);
    else if (sequences) // commands may read or write pages that are free by now
        error = vkmqa_check_recorded(cache, call, true);
    vkmqa_poll_transfers(cache);
    if (error == VK_SUCCESS)
        error = load(snapshot, count, sequences);
    return vkmqa_close_snapshot(snapshot, error);
}

// The sequences of a snapshot, and which pages of the cache get which of its pages. SPDX-License-Identifier: MIT
#include "snapshot.h"

#include <string.h>

static struct VkmqaSequenceRecord* record_of(const struct VkmqaSnapshot* snapshot,
                                             const struct VkmqaSnapshotTable* table, uint32_t i) {
    return &snapshot->cache->sequences[table->records[i]];
}

// Pages of the snapshot in the sequence's list.
static uint32_t entries_of(const struct VkmqaSnapshot* snapshot, const struct VkmqaSequenceRecord* record) {
    uint32_t pageTokens = snapshot->header.pageTokens;
    return record->length / pageTokens + (record->length % pageTokens != 0);
}

// ---- reading ---------------------------------------------------------------------------------------

static bool allocate_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    struct {
        uint32_t** array;
        uint32_t count;
    } arrays[] = {{&table->records, header->sequenceCount}, {&table->places, header->pageCount},
                  {&table->fills, header->pageCount},       {&table->known, header->pageCount},
                  {&table->ends, header->pageCount}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; ++i) {
        *arrays[i].array =
            arrays[i].count ? vkmqa_cache_allocate(snapshot->cache, arrays[i].count, sizeof(uint32_t)) : NULL;
        if (arrays[i].count && !*arrays[i].array) {
            vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for %u entries",
                                arrays[i].count);
            return false;
        }
    }
    for (uint32_t i = 0; i < header->pageCount; ++i)
        table->places[i] = VKMQA_NO_PAGE;
    return true;
}

static VkResult read_list(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, uint32_t index,
                          uint32_t entries) {
    struct VkmqaSequenceRecord* record = record_of(snapshot, table, index);
    uint32_t pageTokens = snapshot->header.pageTokens;
    for (uint32_t e = 0; e < entries; ++e) {
        const unsigned char* bytes = vkmqa_section_bytes(snapshot, 4);
        if (!bytes)
            return snapshot->result;
        uint32_t page = vkmqa_get32(bytes), rest = record->length - e * pageTokens;
        if (page >= snapshot->header.pageCount)
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "sequence %u, entry %u is page %u of %u; the snapshot is damaged", index, e,
                                       page, snapshot->header.pageCount);
        if (table->places[page] != VKMQA_NO_PAGE && table->places[page] != e)
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "page %u is entry %u of sequence %u, and entry %u elsewhere; the snapshot is "
                                       "damaged", page, e, index, table->places[page]);
        table->places[page] = e;
        if (table->fills[page] < rest)
            table->fills[page] = rest < pageTokens ? rest : pageTokens;
        record->pages[e] = page;
    }
    return VK_SUCCESS;
}

// `left`: entries of the header that no sequence has had yet.
static VkResult read_sequence(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, uint32_t index,
                              uint64_t* left) {
    VkmqaCache cache = snapshot->cache;
    uint32_t pageTokens = snapshot->header.pageTokens;
    const unsigned char* bytes = vkmqa_section_bytes(snapshot, 16);
    if (!bytes)
        return snapshot->result;
    uint64_t salt = vkmqa_get64(bytes);
    uint32_t length = vkmqa_get32(bytes + 8), entries = vkmqa_get32(bytes + 12);
    if (entries != length / pageTokens + (length % pageTokens != 0))
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "sequence %u has %u tokens and %u pages of %u; the snapshot is damaged", index,
                                   length, entries, pageTokens);
    if (entries > *left)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "sequence %u has %u pages, and the header leaves %llu; the snapshot is damaged",
                                   index, entries, (unsigned long long)*left);
    if (length > cache->maxSeqLenKv)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_FORMAT_NOT_SUPPORTED,
                                   "sequence %u has %u tokens; the cache has maxSeqLenKv %u", index, length,
                                   cache->maxSeqLenKv);
    *left -= entries;
    uint32_t own = vkmqa_pages_of(cache, length);
    struct VkmqaSequenceRecord* record;
    VkResult error = vkmqa_make_sequence(cache, snapshot->call, own > entries ? own : entries, &record);
    if (error != VK_SUCCESS)
        return error;
    record->length = length;
    record->salt = salt;
    table->records[table->recordCount++] = (uint32_t)(record - cache->sequences);
    return read_list(snapshot, table, index, entries);
}

VkResult vkmqa_read_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_TABLE);
    if (!allocate_table(snapshot, table))
        return snapshot->result;
    uint64_t left = snapshot->header.entryCount;
    VkResult error = VK_SUCCESS;
    for (uint32_t i = 0; i < snapshot->header.sequenceCount && error == VK_SUCCESS; ++i)
        error = read_sequence(snapshot, table, i, &left);
    if (error == VK_SUCCESS && left)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "the sequences have %llu pages less than the header; the snapshot is damaged",
                                   (unsigned long long)left);
    for (uint32_t i = 0; i < snapshot->header.pageCount && error == VK_SUCCESS; ++i) {
        const unsigned char* bytes = vkmqa_section_bytes(snapshot, 4);
        if (!bytes)
            return snapshot->result;
        table->known[i] = vkmqa_get32(bytes);
        if (table->places[i] == VKMQA_NO_PAGE)
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "page %u belongs to no sequence; the snapshot is damaged", i);
        if (table->known[i] > table->fills[i])
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "page %u has %u tokens and %u token ids; the snapshot is damaged", i,
                                       table->fills[i], table->known[i]);
    }
    return error == VK_SUCCESS ? vkmqa_close_section(snapshot) : error;
}

// ---- pages at least as large as the cache's ---------------------------------------------------------

static VkResult count_parts(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, uint32_t* needed) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i) {
        count += vkmqa_pages_of(snapshot->cache, table->fills[i]);
        if (count > UINT32_MAX) // more than any cache has
            break;
        table->ends[i] = (uint32_t)count;
    }
    *needed = count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
    return VK_SUCCESS;
}

static void take_parts(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i)
        for (uint32_t t = vkmqa_first_target(table, i), known = table->known[i]; t < table->ends[i]; ++t) {
            uint32_t ids = known < cache->pageTokens ? known : cache->pageTokens;
            table->targets[t] = vkmqa_take_page(cache, true);
            cache->pages[table->targets[t]].idCount = ids;
            known -= ids;
        }
    for (uint32_t i = 0; i < table->recordCount; ++i) {
        struct VkmqaSequenceRecord* record = record_of(snapshot, table, i);
        record->pageCount = vkmqa_pages_of(cache, record->length);
        for (uint32_t e = record->pageCount; e-- > 0;) { // from the end: lists grow in place
            uint32_t page = record->pages[e / table->split];
            record->pages[e] = table->targets[vkmqa_first_target(table, page) + e % table->split];
            vkmqa_share_page(cache, record->pages[e]);
        }
    }
}

// ---- pages smaller than the cache's -----------------------------------------------------------------
//
// A page of the cache takes a group of pages of the snapshot. Two sequences can share it where their lists are
// equal up to the end of the shorter one's group. So lists are sorted, and each is compared with the one before,
// with which it has most in common. What differs within a group is copied into several pages.

// Order of lists; of two that begin alike the longer one first.
static bool list_less(const struct VkmqaSnapshot* snapshot, const struct VkmqaSequenceRecord* a,
                      const struct VkmqaSequenceRecord* b) {
    uint32_t countA = entries_of(snapshot, a), countB = entries_of(snapshot, b);
    for (uint32_t i = 0; i < countA && i < countB; ++i)
        if (a->pages[i] != b->pages[i])
            return a->pages[i] < b->pages[i];
    return countA > countB;
}

// Heapsort: no memory, and no input that makes it slow.
static void sort_records(struct VkmqaSnapshot* snapshot, const uint32_t* records, uint32_t* order, uint32_t count) {
    const struct VkmqaSequenceRecord* all = snapshot->cache->sequences;
    for (uint32_t start = count / 2, end = count; end > 1;) {
        if (start > 0) {
            --start;
        } else {
            uint32_t last = order[--end];
            order[end] = order[0];
            order[0] = last;
        }
        for (uint32_t root = start, child; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && list_less(snapshot, &all[records[order[child]]], &all[records[order[child + 1]]]))
                ++child;
            if (!list_less(snapshot, &all[records[order[root]]], &all[records[order[child]]]))
                break;
            uint32_t moved = order[root];
            order[root] = order[child];
            order[child] = moved;
        }
    }
}

static VkResult sort_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    if (table->recordCount == 0)
        return VK_SUCCESS;
    table->order = vkmqa_cache_allocate(cache, table->recordCount, sizeof *table->order);
    table->common = vkmqa_cache_allocate(cache, table->recordCount, sizeof *table->common);
    if (!table->order || !table->common)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for the order of %u sequences",
                                   table->recordCount);
    for (uint32_t i = 0; i < table->recordCount; ++i)
        table->order[i] = i;
    sort_records(snapshot, table->records, table->order, table->recordCount);
    for (uint32_t i = 1; i < table->recordCount; ++i) {
        const struct VkmqaSequenceRecord* a = record_of(snapshot, table, table->order[i - 1]);
        const struct VkmqaSequenceRecord* b = record_of(snapshot, table, table->order[i]);
        uint32_t countA = entries_of(snapshot, a), countB = entries_of(snapshot, b);
        while (table->common[i] < countA && table->common[i] < countB &&
               a->pages[table->common[i]] == b->pages[table->common[i]])
            ++table->common[i];
    }
    return VK_SUCCESS;
}

static uint32_t end_of_group(uint32_t group, uint32_t merge, uint32_t entries) {
    return entries - group * merge < merge ? entries : (group + 1) * merge;
}

static VkResult count_groups(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, uint32_t* needed) {
    VkResult error = sort_table(snapshot, table);
    if (error != VK_SUCCESS)
        return error;
    uint64_t count = 0;
    for (uint32_t i = 0; i < table->recordCount; ++i) {
        const struct VkmqaSequenceRecord* record = record_of(snapshot, table, table->order[i]);
        uint32_t entries = entries_of(snapshot, record);
        for (uint32_t group = 0; group * table->merge < entries; ++group) {
            uint32_t end = end_of_group(group, table->merge, entries);
            if (table->common[i] >= end)
                continue;
            ++count;
            for (uint32_t e = group * table->merge; e < end; ++e)
                table->ends[record->pages[e]]++; // how many, as yet
        }
    }
    *needed = count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
    uint32_t first = 0; // entryCount fits in 32 bits where the pages do
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i) {
        uint32_t own = table->ends[i];
        table->ends[i] = first; // where its targets begin, until they are filled in
        first += own;
    }
    table->targetCount = first;
    return VK_SUCCESS;
}

static void take_groups(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    VkmqaCache cache = snapshot->cache;
    const struct VkmqaSequenceRecord* before = NULL;
    for (uint32_t i = 0; i < table->recordCount; ++i) {
        struct VkmqaSequenceRecord* record = record_of(snapshot, table, table->order[i]);
        uint32_t entries = entries_of(snapshot, record), group = 0;
        for (; group * table->merge < entries; ++group) { // lists shrink in place
            uint32_t end = end_of_group(group, table->merge, entries), target;
            if (table->common[i] >= end) {
                target = before->pages[group];
            } else {
                target = vkmqa_take_page(cache, true);
                struct VkmqaPage* page = &cache->pages[target];
                page->note = end - group * table->merge;
                for (uint32_t e = group * table->merge; e < end; ++e) {
                    table->targets[table->ends[record->pages[e]]++] = target;
                    if (page->idCount == (e - group * table->merge) * snapshot->header.pageTokens)
                        page->idCount += table->known[record->pages[e]];
                }
            }
            vkmqa_share_page(cache, target);
            record->pages[group] = target;
        }
        record->pageCount = group;
        before = record;
    }
}

// ---- both ------------------------------------------------------------------------------------------

VkResult vkmqa_count_targets(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, uint32_t* needed) {
    uint32_t theirs = snapshot->header.pageTokens, ours = snapshot->cache->pageTokens;
    table->merge = ours > theirs ? ours / theirs : 1;
    table->split = theirs > ours ? theirs / ours : 1;
    VkResult error = table->merge > 1 ? count_groups(snapshot, table, needed) : count_parts(snapshot, table, needed);
    if (table->merge == 1)
        table->targetCount = *needed;
    return error;
}

VkResult vkmqa_take_targets(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table) {
    if (table->targetCount &&
        !(table->targets = vkmqa_cache_allocate(snapshot->cache, table->targetCount, sizeof *table->targets)))
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for a list of %u pages",
                                   table->targetCount);
    if (table->merge > 1)
        take_groups(snapshot, table);
    else
        take_parts(snapshot, table);
    table->taken = true;
    return VK_SUCCESS;
}

void vkmqa_free_table(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotTable* table, bool keep) {
    VkmqaCache cache = snapshot->cache;
    while (!keep && table->recordCount) { // the last one first, so that the free ones are in their old order
        struct VkmqaSequenceRecord* record = record_of(snapshot, table, --table->recordCount);
        vkmqa_free_sequence(cache, record);
        vkmqa_cache_free(cache, record->pages); // it may be as large as a wrong snapshot wanted it
        record->pages = NULL;
        record->pageCapacity = 0;
    }
    // The table's own references: of groups, one with the first of their pages.
    for (uint32_t i = 0; table->taken && i < snapshot->header.pageCount; ++i)
        for (uint32_t t = vkmqa_first_target(table, i); table->places[i] % table->merge == 0 && t < table->ends[i];
             ++t)
            vkmqa_release_page(cache, table->targets[t]);
    uint32_t* const arrays[] = {table->records, table->places, table->fills,  table->known,
                                table->ends,    table->order,  table->common, table->targets};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; ++i)
        vkmqa_cache_free(cache, arrays[i]);
}

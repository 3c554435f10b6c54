// vkmqaSaveSequences. SPDX-License-Identifier: MIT
#include "snapshot.h"

#include <string.h>

// A page of the snapshot.
struct SavedPage {
    uint32_t entry; // as in a sequence's list
    uint32_t place; // in it
    uint32_t fill;  // tokens that a sequence reaches
    bool prefix;    // part of a sequence with no tokens missing: its ids mean something
};

struct Save {
    struct VkmqaSnapshot* snapshot;
    uint32_t count;
    const VkmqaSequence* sequences;
    struct SavedPage* pages; // [header.pageCount]
    uint32_t* lists;         // [header.entryCount]: pages of the snapshot, sequence by sequence
    uint32_t section;        // of the next bytes to be fetched from the device
    uint64_t position;
};

static struct VkmqaSequenceRecord* record_of(const struct Save* save, uint32_t i) {
    return &save->snapshot->cache->sequences[(uint32_t)save->sequences[i] - 1];
}

// ---- which pages -----------------------------------------------------------------------------------

static VkResult check_sequences(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    if (save->count == 0 || !save->sequences)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s; give a sequence", snapshot->call,
                                save->count ? "sequences is null" : "count is 0");
    cache->stamp++;
    for (uint32_t i = 0; i < save->count; ++i) {
        struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, snapshot->call, save->sequences[i]);
        if (!record)
            return VK_ERROR_VALIDATION_FAILED_EXT;
        if (record->stamp == cache->stamp)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: sequences[%u] 0x%llx is given twice; give it once, and fork what was loaded",
                                    snapshot->call, i, (unsigned long long)save->sequences[i]);
        record->stamp = cache->stamp;
        snapshot->header.entryCount += vkmqa_pages_of(cache, record->length);
    }
    return VK_SUCCESS;
}

// Numbers the pages in the order in which the sequences name them.
static void collect_pages(struct Save* save) {
    VkmqaCache cache = save->snapshot->cache;
    uint32_t* list = save->lists;
    uint32_t count = 0;
    cache->stamp++; // of pages: VkmqaPage::note is the page's number
    for (uint32_t i = 0; i < save->count; ++i) {
        const struct VkmqaSequenceRecord* record = record_of(save, i);
        uint32_t entries = vkmqa_pages_of(cache, record->length);
        for (uint32_t e = 0; e < entries; ++e) {
            uint32_t entry = record->pages[e], number = count;
            uint32_t rest = record->length - e * cache->pageTokens;
            uint32_t fill = rest < cache->pageTokens ? rest : cache->pageTokens;
            struct VkmqaPage* page = entry & VKMQA_HOST_PAGE ? NULL : &cache->pages[entry];
            // Shifted by whole pages, sequences share pages at different places: there each gets its own.
            if (page && page->stamp == cache->stamp && save->pages[page->note].place == e) {
                number = page->note;
            } else {
                save->pages[count++] = (struct SavedPage){.entry = entry, .place = e};
                if (page) {
                    page->stamp = cache->stamp;
                    page->note = number;
                }
            }
            if (save->pages[number].fill < fill)
                save->pages[number].fill = fill;
            save->pages[number].prefix |= !record->shifted;
            *list++ = number;
        }
    }
    save->snapshot->header.pageCount = count;
}

// A copy or clear that has not been recorded yet would come after the save has read the page.
static VkResult check_commands(struct Save* save) {
    VkmqaCache cache = save->snapshot->cache;
    VkResult error = vkmqa_check_recorded(cache, save->snapshot->call, false);
    if (error != VK_SUCCESS)
        return error;
    for (uint32_t i = 0; i < cache->commandCount; ++i)
        if (cache->pages[cache->commands[i].to].stamp == cache->stamp)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: page %u of the sequences is still to be written to; record "
                                    "vkmqaCmdUpdateCache and submit it first", save->snapshot->call,
                                    cache->commands[i].to);
    return VK_SUCCESS;
}

static VkResult plan_save(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    struct VkmqaSnapshotHeader* header = &snapshot->header;
    VkResult error = check_sequences(save);
    if (error != VK_SUCCESS)
        return error;
    if (header->entryCount > SIZE_MAX ||
        (header->entryCount &&
         (!(save->pages = vkmqa_cache_allocate(cache, (size_t)header->entryCount, sizeof *save->pages)) ||
          !(save->lists = vkmqa_cache_allocate(cache, (size_t)header->entryCount, sizeof *save->lists)))))
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for lists of %llu pages",
                                snapshot->call, (unsigned long long)header->entryCount);
    collect_pages(save);
    error = check_commands(save);
    if (error != VK_SUCCESS)
        return error;
    header->version = VKMQA_SNAPSHOT_VERSION;
    vkmqa_snapshot_shape(cache, header->shape);
    header->pageTokens = cache->pageTokens;
    header->sequenceCount = save->count;
    if (snapshot->info.modelTag) // its length has been checked
        memcpy(header->modelTag, snapshot->info.modelTag, strlen(snapshot->info.modelTag));
    if (!vkmqa_snapshot_sizes(snapshot))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: the snapshot would pass 2^64 bytes; save fewer sequences", snapshot->call);
    return VK_SUCCESS;
}

// ---- header and tables -----------------------------------------------------------------------------

static VkResult write_header(struct VkmqaSnapshot* snapshot) {
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_HEADER);
    unsigned char* bytes = vkmqa_section_bytes(snapshot, VKMQA_SNAPSHOT_HEADER_BYTES - 8);
    memset(bytes, 0, VKMQA_SNAPSHOT_HEADER_BYTES - 8);
    memcpy(bytes, "VKMQASNP", 8);
    vkmqa_put32(bytes + 8, header->version);
    vkmqa_put32(bytes + 12, VKMQA_SNAPSHOT_HEADER_BYTES);
    for (uint32_t i = 0; i < VKMQA_SNAPSHOT_SHAPE_WORDS; ++i)
        vkmqa_put32(bytes + 16 + 4 * i, header->shape[i]);
    vkmqa_put32(bytes + 60, header->pageTokens);
    vkmqa_put32(bytes + 64, header->sequenceCount);
    vkmqa_put32(bytes + 68, header->pageCount);
    vkmqa_put64(bytes + 72, header->entryCount);
    memcpy(bytes + 80, header->modelTag, sizeof header->modelTag);
    return vkmqa_close_section(snapshot);
}

// Ids of rows that are saved: a page that was cut may know more.
static uint32_t known_ids(const struct Save* save, uint32_t number, const uint32_t** ids) {
    VkmqaCache cache = save->snapshot->cache;
    const struct SavedPage* page = &save->pages[number];
    if (!page->prefix)
        return 0;
    uint32_t known;
    if (page->entry & VKMQA_HOST_PAGE) {
        *ids = vkmqa_host_ids(cache, page->entry & ~VKMQA_HOST_PAGE, &known);
    } else {
        known = cache->pages[page->entry].idCount;
        *ids = cache->ids + (size_t)page->entry * cache->pageTokens;
    }
    return known < page->fill ? known : page->fill;
}

static VkResult write_table(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    unsigned char* bytes;
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_TABLE);
    const uint32_t* list = save->lists;
    for (uint32_t i = 0; i < save->count; ++i) {
        const struct VkmqaSequenceRecord* record = record_of(save, i);
        uint32_t entries = vkmqa_pages_of(cache, record->length);
        if (!(bytes = vkmqa_section_bytes(snapshot, 16)))
            return snapshot->result;
        vkmqa_put64(bytes, record->salt);
        vkmqa_put32(bytes + 8, record->length);
        vkmqa_put32(bytes + 12, entries);
        for (uint32_t e = 0; e < entries; ++e) {
            if (!(bytes = vkmqa_section_bytes(snapshot, 4)))
                return snapshot->result;
            vkmqa_put32(bytes, *list++);
        }
    }
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i) {
        if (!(bytes = vkmqa_section_bytes(snapshot, 4)))
            return snapshot->result;
        const uint32_t* ids;
        vkmqa_put32(bytes, known_ids(save, i, &ids));
    }
    return vkmqa_close_section(snapshot);
}

static VkResult write_ids(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_IDS);
    for (uint32_t i = 0; i < snapshot->header.pageCount; ++i) {
        size_t size = cache->pageTokens * 4;
        unsigned char* bytes = vkmqa_section_bytes(snapshot, size);
        if (!bytes)
            return snapshot->result;
        const uint32_t* ids;
        uint32_t known = known_ids(save, i, &ids);
        memset(bytes, 0, size);
        for (uint32_t t = 0; t < known; ++t)
            vkmqa_put32(bytes + 4 * t, ids[t]);
    }
    return vkmqa_close_section(snapshot);
}

// ---- planes ----------------------------------------------------------------------------------------

// Starts to fetch the next bytes of the snapshot's planes, as many as the half holds.
static VkResult fetch_half(struct Save* save, struct VkmqaSnapshotHalf* half) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    uint32_t plane = (save->section - VKMQA_SNAPSHOT_PLANES) % cache->planeCount;
    uint32_t layer = (save->section - VKMQA_SNAPSHOT_PLANES) / cache->planeCount;
    uint64_t pageBytes = snapshot->planeBytes[plane];
    uint64_t inHostPage = cache->pageBytes / cache->numLayers * layer;
    for (uint32_t i = 0; i < plane; ++i)
        inHostPage += snapshot->planeBytes[i];
    uint64_t size = vkmqa_snapshot_section_bytes(snapshot, save->section);
    half->section = save->section;
    half->position = save->position;
    half->length = size - save->position < snapshot->halfBytes ? size - save->position : snapshot->halfBytes;
    for (uint64_t done = 0; done < half->length;) {
        uint64_t position = half->position + done, inPage = position % pageBytes;
        uint64_t part = pageBytes - inPage;
        if (part > half->length - done)
            part = half->length - done;
        uint32_t entry = save->pages[position / pageBytes].entry;
        if (entry & VKMQA_HOST_PAGE) {
            memcpy(half->mapped + done, vkmqa_host_page(cache, entry & ~VKMQA_HOST_PAGE) + inHostPage + inPage,
                   (size_t)part);
        } else {
            VkResult error =
                vkmqa_stage(snapshot, half, done, save->section, entry * pageBytes + inPage, part);
            if (error != VK_SUCCESS)
                return error;
        }
        done += part;
    }
    save->position += half->length;
    if (save->position == size) {
        save->section++;
        save->position = 0;
    }
    return vkmqa_start_half(snapshot, half);
}

// Rows behind a sequence's end may be anybody's.
static void clear_rest(const struct Save* save, struct VkmqaSnapshotHalf* half) {
    VkmqaCache cache = save->snapshot->cache;
    uint32_t plane = (half->section - VKMQA_SNAPSHOT_PLANES) % cache->planeCount;
    uint64_t pageBytes = save->snapshot->planeBytes[plane], end = half->position + half->length;
    uint64_t rowBytes = cache->planes[plane].tokenBytes, headBytes = rowBytes * cache->pageTokens;
    if (half->length == 0)
        return;
    for (uint64_t page = half->position / pageBytes; page * pageBytes < end; ++page) {
        uint32_t fill = save->pages[page].fill;
        for (uint64_t head = 0; fill < cache->pageTokens && head < pageBytes; head += headBytes) {
            uint64_t from = page * pageBytes + head + fill * rowBytes, to = page * pageBytes + head + headBytes;
            from = from > half->position ? from : half->position;
            to = to < end ? to : end;
            if (from < to)
                memset(half->mapped + (from - half->position), 0, (size_t)(to - from));
        }
    }
}

static VkResult write_half(struct Save* save, struct VkmqaSnapshotHalf* half) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkResult error = vkmqa_finish_half(snapshot, half);
    if (error != VK_SUCCESS)
        return error;
    clear_rest(save, half);
    if (half->position == 0)
        vkmqa_open_section(snapshot, half->section);
    error = vkmqa_move_section(snapshot, half->mapped, half->length);
    if (error == VK_SUCCESS && snapshot->left == 0)
        error = vkmqa_close_section(snapshot);
    return error;
}

static VkResult write_planes(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    uint32_t sections = vkmqa_snapshot_sections(snapshot), turn = 0;
    save->section = VKMQA_SNAPSHOT_PLANES;
    VkResult error = fetch_half(save, &snapshot->halves[0]);
    for (bool more = true; more && error == VK_SUCCESS; turn = !turn) {
        more = save->section < sections;
        if (more)
            error = fetch_half(save, &snapshot->halves[!turn]);
        if (error == VK_SUCCESS)
            error = write_half(save, &snapshot->halves[turn]);
    }
    return error;
}

static VkResult save_sequences(struct Save* save) {
    struct VkmqaSnapshot* snapshot = save->snapshot;
    VkmqaCache cache = snapshot->cache;
    VkResult error = plan_save(save);
    if (error == VK_SUCCESS && cache->offload) // host pages may still be on their way
        error = vkmqaFinishTransfers(cache, cache->device->waitLimitNs);
    if (error == VK_SUCCESS)
        error = vkmqa_make_staging(snapshot, 0);
    if (error == VK_SUCCESS && snapshot->info.path)
        error = vkmqa_create_file(snapshot);
    if (error == VK_SUCCESS)
        error = write_header(snapshot);
    if (error == VK_SUCCESS)
        error = write_table(save);
    if (error == VK_SUCCESS)
        error = write_ids(save);
    if (error == VK_SUCCESS)
        error = write_planes(save);
    if (error == VK_SUCCESS && snapshot->info.path)
        error = vkmqa_publish_file(snapshot);
    return error;
}

VkResult vkmqaSaveSequences(VkmqaCache cache, uint32_t count, const VkmqaSequence* sequences,
                            const VkmqaSnapshotInfo* info) {
    struct Save save = {.count = count, .sequences = sequences};
    VkResult error = vkmqa_open_snapshot(cache, "vkmqaSaveSequences", info, true, &save.snapshot);
    if (error != VK_SUCCESS)
        return error;
    error = save_sequences(&save);
    vkmqa_cache_free(cache, save.pages);
    vkmqa_cache_free(cache, save.lists);
    return vkmqa_close_snapshot(save.snapshot, error);
}

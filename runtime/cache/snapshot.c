// What saving and loading have in common: sections, hashes, staging. SPDX-License-Identifier: MIT
#include "snapshot.h"

#include <stdio.h>
#include <string.h>

enum {
    MOVE_BYTES = 256 << 10, // hashed while they are in the processor's cache
    PROGRESS_BYTES = 4 << 20,
};

VkResult vkmqa_snapshot_fail(struct VkmqaSnapshot* snapshot, VkResult result, const char* format, ...) {
    struct VkmqaProblem problem;
    va_list arguments;
    va_start(arguments, format);
    vkmqa_problem_list(&problem, format, arguments);
    va_end(arguments);
    snapshot->result = result;
    return vkmqa_cache_fail(snapshot->cache, result, "%s: section %s: %s", snapshot->call, snapshot->section,
                            problem.text);
}

// ---- sizes -----------------------------------------------------------------------------------------

const char* const vkmqa_snapshot_shape_names[VKMQA_SNAPSHOT_SHAPE_WORDS] = {
    "numLayers", "numHeadsKv",     "headDimQk", "headDimV", "kType",      "vType",
    "V_PREFIX",  "Hadamard block", "ropeStyle", "ropeDim",  "ropeOffset",
};

void vkmqa_snapshot_shape(VkmqaCache cache, uint32_t words[VKMQA_SNAPSHOT_SHAPE_WORDS]) {
    const struct VkmqaShape* shape = &cache->attention->shape;
    const uint32_t values[VKMQA_SNAPSHOT_SHAPE_WORDS] = {
        cache->numLayers,          shape->numHeadsKv,      shape->headDimQk, shape->headDimV,
        (uint32_t)shape->kType,    (uint32_t)shape->vType, shape->vPrefix,   shape->hadamard,
        (uint32_t)shape->ropeStyle, shape->ropeDim,        shape->ropeOffset,
    };
    memcpy(words, values, sizeof values);
}

static bool add(uint64_t* sum, uint64_t count, uint64_t size) {
    uint64_t bytes;
    if (!vkmqa_multiply(count, size, &bytes) || bytes > UINT64_MAX - *sum)
        return false;
    *sum += bytes;
    return true;
}

bool vkmqa_snapshot_sizes(struct VkmqaSnapshot* snapshot) {
    VkmqaCache cache = snapshot->cache;
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    uint64_t rows = (uint64_t)cache->attention->shape.numHeadsKv * header->pageTokens;
    snapshot->dataBytes = 0;
    for (uint32_t i = 0; i < cache->planeCount; ++i) {
        snapshot->planeBytes[i] = rows * cache->planes[i].tokenBytes;
        uint64_t bytes;
        if (!vkmqa_multiply(snapshot->planeBytes[i], header->pageCount, &bytes) ||
            !add(&snapshot->dataBytes, bytes, cache->numLayers))
            return false;
    }
    snapshot->total = VKMQA_SNAPSHOT_HEADER_BYTES;
    return add(&snapshot->total, header->sequenceCount, 16) && add(&snapshot->total, header->entryCount, 4) &&
           add(&snapshot->total, header->pageCount, 4 + 4ull * header->pageTokens) &&
           add(&snapshot->total, snapshot->dataBytes, 1) &&
           add(&snapshot->total, vkmqa_snapshot_sections(snapshot) - 1, 8);
}

uint64_t vkmqa_snapshot_section_bytes(const struct VkmqaSnapshot* snapshot, uint32_t index) {
    const struct VkmqaSnapshotHeader* header = &snapshot->header;
    switch (index) {
    case VKMQA_SNAPSHOT_HEADER:
        return VKMQA_SNAPSHOT_HEADER_BYTES - 8;
    case VKMQA_SNAPSHOT_TABLE:
        return header->sequenceCount * 16ull + header->entryCount * 4 + header->pageCount * 4ull;
    case VKMQA_SNAPSHOT_IDS:
        return header->pageCount * 4ull * header->pageTokens;
    default:
        index = (index - VKMQA_SNAPSHOT_PLANES) % snapshot->cache->planeCount;
        return snapshot->planeBytes[index] * header->pageCount;
    }
}

// ---- sections --------------------------------------------------------------------------------------

void vkmqa_open_section(struct VkmqaSnapshot* snapshot, uint32_t index) {
    static const char* const names[] = {"header", "sequence table", "token ids"};
    VkmqaCache cache = snapshot->cache;
    if (index < VKMQA_SNAPSHOT_PLANES) {
        snprintf(snapshot->section, sizeof snapshot->section, "%s", names[index]);
    } else {
        index -= VKMQA_SNAPSHOT_PLANES;
        const struct VkmqaPlane* plane = &cache->planes[index % cache->planeCount];
        snprintf(snapshot->section, sizeof snapshot->section, "layer %u %c %s", index / cache->planeCount,
                 plane->v ? 'V' : 'K', plane->offset ? "scales" : "rows");
        index += VKMQA_SNAPSHOT_PLANES;
    }
    snapshot->left = vkmqa_snapshot_section_bytes(snapshot, index);
    snapshot->pieceUsed = snapshot->pieceFilled = 0;
    XXH3_64bits_reset(snapshot->hash);
}

static VkResult say_progress(struct VkmqaSnapshot* snapshot) {
    const VkmqaSnapshotInfo* info = &snapshot->info;
    if (snapshot->done - snapshot->said < PROGRESS_BYTES && snapshot->done != snapshot->total)
        return VK_SUCCESS;
    snapshot->said = snapshot->done;
    snapshot->cache->inCallback = true;
    bool goOn = !info->progress || info->progress(info->userData, snapshot->done, snapshot->total);
    snapshot->cache->inCallback = false;
    return goOn ? VK_SUCCESS : (snapshot->result = VK_INCOMPLETE);
}

static bool call_stream(struct VkmqaSnapshot* snapshot, void* data, size_t size) {
    const VkmqaSnapshotInfo* info = &snapshot->info;
    snapshot->cache->inCallback = true;
    bool done = snapshot->saving ? info->write(info->userData, data, size) : info->read(info->userData, data, size);
    snapshot->cache->inCallback = false;
    return done;
}

// Through the file or the callback, and counted.
static VkResult transport(struct VkmqaSnapshot* snapshot, void* data, size_t size) {
    VkResult error = VK_SUCCESS;
    if (snapshot->info.path)
        error = snapshot->saving ? vkmqa_write_file(snapshot, data, size)
                                 : vkmqa_read_file(snapshot, data, size);
    else if (!call_stream(snapshot, data, size))
        error = vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN, "info.%s failed at byte %llu of %llu",
                                    snapshot->saving ? "write" : "read", (unsigned long long)snapshot->done,
                                    (unsigned long long)snapshot->total);
    if (error != VK_SUCCESS)
        return error;
    snapshot->done += size;
    return say_progress(snapshot);
}

VkResult vkmqa_move_section(struct VkmqaSnapshot* snapshot, void* data, uint64_t size) {
    VkResult error = VK_SUCCESS;
    snapshot->left -= size;
    for (char* at = data; size && error == VK_SUCCESS;) {
        size_t part = size < MOVE_BYTES ? (size_t)size : MOVE_BYTES;
        if (snapshot->saving)
            XXH3_64bits_update(snapshot->hash, at, part);
        error = transport(snapshot, at, part);
        if (!snapshot->saving)
            XXH3_64bits_update(snapshot->hash, at, part);
        at += part;
        size -= part;
    }
    return error;
}

unsigned char* vkmqa_section_bytes(struct VkmqaSnapshot* snapshot, size_t size) {
    if (snapshot->pieceUsed + size > snapshot->pieceFilled) {
        size_t rest = snapshot->pieceFilled - snapshot->pieceUsed;
        size_t part = sizeof snapshot->piece - rest;
        if (snapshot->saving) { // all of it is written before any of it is used again
            if (vkmqa_move_section(snapshot, snapshot->piece, snapshot->pieceUsed) != VK_SUCCESS)
                return NULL;
            snapshot->pieceFilled = sizeof snapshot->piece;
        } else {
            memmove(snapshot->piece, snapshot->piece + snapshot->pieceUsed, rest);
            if (part > snapshot->left)
                part = (size_t)snapshot->left;
            if (vkmqa_move_section(snapshot, snapshot->piece + rest, part) != VK_SUCCESS)
                return NULL;
            snapshot->pieceFilled = rest + part;
        }
        snapshot->pieceUsed = 0;
    }
    snapshot->pieceUsed += size;
    return snapshot->piece + snapshot->pieceUsed - size;
}

VkResult vkmqa_close_section(struct VkmqaSnapshot* snapshot) {
    if (snapshot->saving && snapshot->pieceUsed) {
        VkResult error = vkmqa_move_section(snapshot, snapshot->piece, snapshot->pieceUsed);
        if (error != VK_SUCCESS)
            return error;
    }
    unsigned char bytes[8];
    uint64_t hash = XXH3_64bits_digest(snapshot->hash);
    if (snapshot->saving)
        vkmqa_put64(bytes, hash);
    VkResult error = transport(snapshot, bytes, sizeof bytes);
    if (error == VK_SUCCESS && !snapshot->saving && vkmqa_get64(bytes) != hash)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                   "the checksum differs, so the snapshot is damaged; take another copy of it");
    return error;
}

// ---- staging ---------------------------------------------------------------------------------------

VkResult vkmqa_make_staging(struct VkmqaSnapshot* snapshot, uint64_t zeroBytes) {
    if (snapshot->dataBytes == 0)
        return VK_SUCCESS;
    uint64_t largest = 0, quarter = snapshot->dataBytes / 4;
    for (uint32_t i = 0; i < snapshot->cache->planeCount; ++i)
        if (snapshot->planeBytes[i] > largest)
            largest = snapshot->planeBytes[i];
    largest *= snapshot->header.pageCount;
    uint64_t bytes = quarter > 4096 ? quarter : 4096; // never more than there is to move
    bytes = bytes > largest ? largest : bytes;
    bytes = bytes > VKMQA_SNAPSHOT_HALF ? VKMQA_SNAPSHOT_HALF : bytes;
    snapshot->halfBytes = (bytes + 15) & ~15ull;
    uint64_t both = snapshot->halfBytes + ((zeroBytes + 15) & ~15ull);
    snapshot->copies = vkmqa_cache_allocate(snapshot->cache, VKMQA_SNAPSHOT_COPIES, sizeof *snapshot->copies);
    if (!snapshot->copies)
        return snapshot->result = vkmqa_cache_fail(snapshot->cache, VK_ERROR_OUT_OF_HOST_MEMORY,
                                                   "%s: no memory for a list of copies", snapshot->call);
    VkResult error = vkmqa_make_memory(snapshot->cache->device, snapshot->call, VKMQA_MEMORY_DOWNLOAD, 2 * both,
                                       &snapshot->staging);
    if (error != VK_SUCCESS)
        return snapshot->result = error;
    for (uint32_t i = 0; i < 2; ++i) {
        snapshot->halves[i].offset = i * both;
        snapshot->halves[i].mapped = (char*)snapshot->staging->mapped + i * both;
        memset(snapshot->halves[i].mapped + snapshot->halfBytes, 0, (size_t)(both - snapshot->halfBytes));
    }
    return VK_SUCCESS;
}

VkResult vkmqa_stage(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half, uint64_t staged,
                     uint32_t section, uint64_t at, uint64_t size) {
    VkmqaCache cache = snapshot->cache;
    section -= VKMQA_SNAPSHOT_PLANES;
    const struct VkmqaPlane* plane = &cache->planes[section % cache->planeCount];
    const VkmqaKv* kv = &cache->layers[section / cache->planeCount];
    const VkmqaBuffer* range = plane->v ? &kv->v : &kv->k;
    VkBuffer memory = snapshot->staging->buffer;
    uint64_t inMemory = half->offset + staged, inCache = range->offset + plane->offset + at;
    struct VkmqaCopy copy = {
        .from = snapshot->saving ? range->buffer : memory,
        .to = snapshot->saving ? memory : range->buffer,
        .region = {snapshot->saving ? inCache : inMemory, snapshot->saving ? inMemory : inCache, size},
    };
    struct VkmqaCopy* last = snapshot->copyCount ? &snapshot->copies[snapshot->copyCount - 1] : NULL;
    if (last && last->from == copy.from && last->to == copy.to &&
        last->region.srcOffset + last->region.size == copy.region.srcOffset &&
        last->region.dstOffset + last->region.size == copy.region.dstOffset) {
        last->region.size += size;
        return VK_SUCCESS;
    }
    if (snapshot->copyCount == VKMQA_SNAPSHOT_COPIES) {
        VkResult error = vkmqa_start_half(snapshot, half);
        if (error != VK_SUCCESS)
            return error;
    }
    snapshot->copies[snapshot->copyCount++] = copy;
    return VK_SUCCESS;
}

VkResult vkmqa_start_half(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half) {
    if (snapshot->copyCount == 0)
        return VK_SUCCESS;
    VkResult error = vkmqa_finish_half(snapshot, half); // of the same half: only where there are very many
    if (error == VK_SUCCESS)
        error = vkmqa_start_copies(snapshot->cache->device, snapshot->call, snapshot->copyCount, snapshot->copies,
                                   !snapshot->saving, &half->pending);
    snapshot->copyCount = 0;
    if (error != VK_SUCCESS)
        snapshot->result = error;
    return error;
}

VkResult vkmqa_finish_half(struct VkmqaSnapshot* snapshot, struct VkmqaSnapshotHalf* half) {
    if (!half->pending)
        return VK_SUCCESS;
    VkmqaDevice device = snapshot->cache->device;
    VkResult error = vkmqa_finish_copies(device, snapshot->call, device->waitLimitNs, &half->pending);
    if (error == VK_TIMEOUT)
        vkmqa_snapshot_fail(snapshot, error, "a copy had not finished after %llu s",
                            (unsigned long long)(device->waitLimitNs / 1000000000));
    if (error != VK_SUCCESS)
        snapshot->result = error;
    return error;
}

// ---- a call ----------------------------------------------------------------------------------------

static VkResult check_info(VkmqaCache cache, const char* call, const VkmqaSnapshotInfo* info, bool saving) {
    if (!info->path && !(saving ? info->write != NULL : info->read != NULL))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.path and info.%s are null; give one", call, saving ? "write" : "read");
    size_t length = 0;
    while (info->modelTag && length < VKMQA_SNAPSHOT_TAG_BYTES && info->modelTag[length])
        ++length;
    if (length == VKMQA_SNAPSHOT_TAG_BYTES)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.modelTag is longer than %d bytes; shorten it", call,
                                VKMQA_SNAPSHOT_TAG_BYTES - 1);
    if (!cache->device)
        return vkmqa_cache_fail(cache, VK_ERROR_FEATURE_NOT_PRESENT,
                                "%s: the cache has no VkmqaDevice to copy pages with; create it with one", call);
    return vkmqa_check_device(cache->device, call);
}

VkResult vkmqa_open_snapshot(VkmqaCache cache, const char* call, const VkmqaSnapshotInfo* given, bool saving,
                             struct VkmqaSnapshot** result) {
    *result = NULL;
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaSnapshotInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    VkResult error = check_info(cache, call, &info, saving);
    if (error != VK_SUCCESS)
        return error;
    struct VkmqaSnapshot* snapshot = vkmqa_cache_allocate(cache, 1, sizeof *snapshot);
    if (!snapshot)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for %zu bytes", call,
                                sizeof *snapshot);
    snapshot->cache = cache;
    snapshot->call = call;
    snapshot->info = info;
    snapshot->saving = saving;
    snapshot->hash = (XXH3_state_t*)(((uintptr_t)snapshot->hashMemory + 63) & ~(uintptr_t)63);
    snapshot->total = VKMQA_SNAPSHOT_HEADER_BYTES + 1; // until it is known
    vkmqa_open_section(snapshot, VKMQA_SNAPSHOT_HEADER);
    *result = snapshot;
    return VK_SUCCESS;
}

void vkmqa_settle_snapshot(struct VkmqaSnapshot* snapshot) {
    for (uint32_t i = 0; i < 2; ++i)
        vkmqa_finish_half(snapshot, &snapshot->halves[i]);
}

VkResult vkmqa_close_snapshot(struct VkmqaSnapshot* snapshot, VkResult result) {
    if (!snapshot)
        return result;
    VkmqaCache cache = snapshot->cache;
    vkmqa_settle_snapshot(snapshot);
    if (snapshot->staging && (snapshot->halves[0].pending || snapshot->halves[1].pending))
        vkmqa_leave_memory(snapshot->staging); // rather than free it under copies that do not finish
    else if (snapshot->staging)
        vkmqa_free_memory(snapshot->staging);
    vkmqa_close_file(snapshot);
    vkmqa_cache_free(cache, snapshot->copies);
    vkmqa_cache_free(cache, snapshot);
    return result;
}

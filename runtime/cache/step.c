// The metadata of a step, from (sequence, new tokens) pairs. Pure C. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>

// What this step has, and whether the limits have room for it.
static VkResult read_limits(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaStepLimits* limits) {
    static const char call[] = "vkmqaBuildStep";
    uint64_t total = 0;
    uint32_t longestQ = 0, longestKv = 0;
    if (info->count > cache->maxBatch)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.count is %u; the cache was created for a maxBatch of %u", call,
                                info->count, cache->maxBatch);
    for (uint32_t i = 0; i < info->count; ++i) {
        const struct VkmqaSequenceRecord* record =
            vkmqa_find_sequence(cache, call, info->tokens[i].sequence);
        if (!record)
            return VK_ERROR_VALIDATION_FAILED_EXT;
        uint64_t length = (uint64_t)record->length + info->tokens[i].newTokens;
        total += info->tokens[i].newTokens;
        if (info->tokens[i].newTokens > longestQ)
            longestQ = info->tokens[i].newTokens;
        if (length > cache->maxSeqLenKv)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: info.tokens[%u].newTokens is %u: sequence 0x%llx would have %llu tokens, "
                                    "and maxSeqLenKv is %u", call, i, info->tokens[i].newTokens,
                                    (unsigned long long)info->tokens[i].sequence, (unsigned long long)length,
                                    cache->maxSeqLenKv);
        if (length > longestKv)
            longestKv = (uint32_t)length;
    }
    if (total > cache->maxNewTokens)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.tokens have %llu new tokens; the cache was created for a maxNewTokens of "
                                "%u", call, (unsigned long long)total, cache->maxNewTokens);
    const struct {
        const char* name;
        uint64_t own;
        uint32_t* limit;
        uint32_t most;
    } rows[] = {
        {"batch", info->count, &limits->batch, cache->maxBatch},
        {"totalQ", total, &limits->totalQ, cache->maxNewTokens},
        {"newTokens", total, &limits->newTokens, cache->maxNewTokens},
        {"maxSeqLenQ", longestQ, &limits->maxSeqLenQ, cache->maxNewTokens},
        {"maxSeqLenKv", longestKv, &limits->maxSeqLenKv, cache->maxSeqLenKv},
    };
    if (total == 0)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.tokens have no new token; give at least one", call);
    *limits = info->limits;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
        uint64_t limit = *rows[i].limit ? *rows[i].limit : rows[i].own;
        if (limit > rows[i].most)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: info.limits.%s is %llu; the cache was created for at most %u", call,
                                    rows[i].name, (unsigned long long)limit, rows[i].most);
        if (limit < rows[i].own)
            return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                    "%s: info.limits.%s is %llu; this step has %llu", call, rows[i].name,
                                    (unsigned long long)limit, (unsigned long long)rows[i].own);
        *rows[i].limit = (uint32_t)limit;
    }
    return VK_SUCCESS;
}

// Entries that the slot's row of the page table does not have yet.
static void write_pages(const struct VkmqaSequenceRecord* record, VkmqaSequence id, struct VkmqaRow* row,
                        uint32_t entries, int32_t* table) {
    uint32_t first = row->sequence == id && row->epoch == record->epoch ? row->entries : 0;
    if (first < entries)
        memcpy(table + first, record->pages + first, (entries - first) * sizeof *table);
    if (first == 0 || first < entries)
        *row = (struct VkmqaRow){id, record->epoch, entries};
}

static void write_positions(const VkmqaSequenceTokens* tokens, uint32_t first, int32_t* positions) {
    for (uint32_t i = 0; i < tokens->newTokens; ++i)
        positions[i] = tokens->positions ? tokens->positions[i] : (int32_t)(first + i);
}

// A sequence's new tokens: their slots and ids, page by page.
static void append_tokens(VkmqaCache cache, struct VkmqaSequenceRecord* record,
                          const VkmqaSequenceTokens* tokens, int32_t* slots) {
    // Drafts of a tree lie side by side: their rows are those of no prompt.
    const uint32_t* ids = tokens->tokenIds;
    for (uint32_t i = 0; tokens->positions && i < tokens->newTokens; ++i)
        if (tokens->positions[i] != (int32_t)(record->length + i))
            ids = NULL;
    uint32_t done = 0;
    while (done < tokens->newTokens) {
        uint32_t position = record->length + done, offset = position % cache->pageTokens;
        uint32_t entry = position / cache->pageTokens, page = record->pages[entry];
        uint32_t count = cache->pageTokens - offset;
        if (count > tokens->newTokens - done)
            count = tokens->newTokens - done;
        for (uint32_t i = 0; i < count; ++i)
            slots[done + i] = (int32_t)(page * cache->pageTokens + offset + i);
        vkmqa_forget_tokens(cache, page, offset);
        cache->pages[page].step = cache->stepCount;
        vkmqa_learn_tokens(cache, page, offset, count, ids ? ids + done : NULL);
        if (offset + count == cache->pageTokens && !record->shifted)
            vkmqa_index_page(cache, page, entry ? record->pages[entry - 1] : VKMQA_NO_PAGE, record->salt);
        done += count;
    }
    record->length += tokens->newTokens;
    record->lastUse = cache->stepCount;
    record->touched = ++cache->clock;
}

VkResult vkmqaBuildStep(VkmqaCache cache, const VkmqaStepBuildInfo* given, VkmqaCacheStep* step) {
    static const char call[] = "vkmqaBuildStep";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaStepBuildInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem) ||
        !vkmqa_open_output(step, sizeof *step, sizeof *step, "step", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    if (!info.tokens || info.count == 0)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: info.%s; give a sequence", call,
                                info.count ? "tokens is null" : "count is 0");
    VkmqaStepLimits limits;
    VkResult error = read_limits(cache, &info, &limits);
    if (error == VK_SUCCESS)
        error = vkmqa_reserve(cache, call, info.count, info.tokens);
    if (error != VK_SUCCESS)
        return error;

    if (cache->stepCount - cache->recordedSteps == cache->stepsInFlight) // its metadata are overwritten
        vkmqa_discard_steps(cache, cache->recordedSteps + 1);
    uint32_t slot = (uint32_t)(cache->stepCount++ % cache->stepsInFlight);
    char* mapped = cache->stepMapped + slot * cache->stepBytes;
    struct VkmqaRow* rows = cache->rows + (size_t)slot * cache->maxBatch;
    const VkmqaStepLayout* layout = &cache->layout;
    int32_t* cuSeqlensQ = (int32_t*)(mapped + layout->cuSeqlensQ);
    int32_t* seqLensKv = (int32_t*)(mapped + layout->seqLensKv);
    int32_t* slots = (int32_t*)(mapped + layout->slotMapping);
    bool rope = layout->positions != VKMQA_NONE;
    // Written twice: mapped memory may be slow to read.
    int32_t* positions[2] = {rope ? (int32_t*)(mapped + layout->positions) : NULL,
                             rope ? (int32_t*)(mapped + layout->queryPositions) : NULL};
    uint32_t total = 0;
    for (uint32_t i = 0; i < info.count; ++i) {
        const VkmqaSequenceTokens* tokens = &info.tokens[i];
        struct VkmqaSequenceRecord* record = &cache->sequences[(uint32_t)tokens->sequence - 1];
        cuSeqlensQ[i] = (int32_t)total;
        append_tokens(cache, record, tokens, slots + total);
        for (int p = 0; p < 2 && rope; ++p)
            write_positions(tokens, record->length - tokens->newTokens, positions[p] + total);
        total += tokens->newTokens;
        seqLensKv[i] = (int32_t)record->length;
        write_pages(record, tokens->sequence, &rows[i], vkmqa_pages_of(cache, record->length),
                    (int32_t*)(mapped + layout->pageTable) + (size_t)i * layout->maxPages);
    }
    // Room that this step does not take does nothing.
    for (uint32_t i = info.count; i < limits.batch; ++i) {
        cuSeqlensQ[i] = (int32_t)total;
        seqLensKv[i] = 0;
    }
    cuSeqlensQ[limits.batch] = (int32_t)total;
    for (uint32_t i = total; i < limits.newTokens; ++i)
        slots[i] = -1;
    for (uint32_t i = total; rope && i < limits.totalQ; ++i)
        positions[0][i] = positions[1][i] = 0;
    *(uint32_t*)(mapped + layout->status) = 0;

    bool local = cache->flags & VKMQA_CACHE_DEVICE_METADATA_BIT;
    step->slot = slot;
    step->mapped = mapped;
    step->number = cache->stepCount;
    step->step = (VkmqaStep){.structSize = sizeof step->step, .limits = limits, .layout = *layout};
    step->step.metadata = local ? cache->localMemory : cache->stepMemory;
    VkmqaBuffer* metadata = &step->step.metadata;
    uint64_t offset = local ? 0 : slot * cache->stepBytes;
    metadata->offset += offset;
    metadata->size = cache->stepBytes;
    metadata->address += metadata->address ? offset : 0;
    return VK_SUCCESS;
}

VkResult vkmqaDiscardSteps(VkmqaCache cache) {
    if (!vkmqa_is_cache(cache, "vkmqaDiscardSteps"))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    vkmqa_discard_steps(cache, cache->stepCount);
    return VK_SUCCESS;
}

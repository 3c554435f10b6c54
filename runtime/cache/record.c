// What the bookkeeping asks of the device: copies of pages, clears, metadata. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>

enum { MAX_REGIONS = 256 }; // of one vkCmdCopyBuffer

static void order(VkmqaCache cache, VkCommandBuffer commandBuffer, VkPipelineStageFlags from,
                  VkAccessFlags written, VkPipelineStageFlags to, VkAccessFlags wanted) {
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = written,
        .dstAccessMask = wanted,
    };
    cache->attention->context->vk.CmdPipelineBarrier(commandBuffer, from, to, 0, 1, &barrier, 0, NULL, 0,
                                                     NULL);
}

static const VkPipelineStageFlags everyStage =
    VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;

void vkmqa_begin_transfers(VkmqaCache cache, VkCommandBuffer commandBuffer) {
    order(cache, commandBuffer, everyStage, VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
          VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT);
}

void vkmqa_end_transfers(VkmqaCache cache, VkCommandBuffer commandBuffer) {
    order(cache, commandBuffer, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_WRITE_BIT, everyStage,
          VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
              VK_ACCESS_TRANSFER_WRITE_BIT);
}

void vkmqa_end_dispatches(VkmqaCache cache, VkCommandBuffer commandBuffer) {
    order(cache, commandBuffer, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_ACCESS_SHADER_WRITE_BIT, everyStage,
          VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
              VK_ACCESS_TRANSFER_WRITE_BIT);
}

static void record_batch(VkmqaCache cache, VkCommandBuffer commandBuffer,
                         const struct VkmqaPageCommand* commands, uint32_t count) {
    const struct VkmqaVk* vk = &cache->attention->context->vk;
    for (uint32_t i = 0; i < cache->numLayers * cache->planeCount; ++i) {
        const struct VkmqaPlane* plane = &cache->planes[i % cache->planeCount];
        const VkmqaKv* kv = &cache->layers[i / cache->planeCount];
        const VkmqaBuffer* range = plane->v ? &kv->v : &kv->k;
        uint64_t base = range->offset + plane->offset;
        VkBufferCopy regions[MAX_REGIONS];
        uint32_t regionCount = 0;
        for (uint32_t c = 0; c < count; ++c) {
            uint64_t to = base + commands[c].to * plane->pageBytes;
            if (commands[c].from == VKMQA_NO_PAGE)
                vk->CmdFillBuffer(commandBuffer, range->buffer, to, plane->pageBytes, 0);
            else
                regions[regionCount++] = (VkBufferCopy){base + commands[c].from * plane->pageBytes, to,
                                                        plane->pageBytes};
            if (regionCount == MAX_REGIONS || (regionCount && c + 1 == count)) {
                vk->CmdCopyBuffer(commandBuffer, range->buffer, range->buffer, regionCount, regions);
                regionCount = 0;
            }
        }
    }
}

enum { READ = 1, WRITTEN = 2 }; // VkmqaPage::note, of a batch

// Whether the page has been used in this batch already in one of these ways.
static bool is_used(VkmqaCache cache, uint32_t page, uint32_t ways) {
    return page != VKMQA_NO_PAGE && cache->pages[page].stamp == cache->stamp &&
           (cache->pages[page].note & ways);
}

static void use(VkmqaCache cache, uint32_t page, uint32_t way) {
    if (page == VKMQA_NO_PAGE)
        return;
    struct VkmqaPage* state = &cache->pages[page];
    state->note = (state->stamp == cache->stamp ? state->note : 0) | way;
    state->stamp = cache->stamp;
}

void vkmqa_record_commands(VkmqaCache cache, VkCommandBuffer commandBuffer, uint64_t before) {
    uint32_t first = 0, end = 0;
    while (end < cache->commandCount && cache->commands[end].before <= before)
        ++end;
    cache->stamp++;
    for (uint32_t i = 0; i < end; ++i) {
        const struct VkmqaPageCommand* command = &cache->commands[i];
        // Commands of a batch run in any order.
        if (is_used(cache, command->from, WRITTEN) || is_used(cache, command->to, READ | WRITTEN)) {
            record_batch(cache, commandBuffer, cache->commands + first, i - first);
            vkmqa_begin_transfers(cache, commandBuffer);
            first = i;
            cache->stamp++;
        }
        use(cache, command->from, READ);
        use(cache, command->to, WRITTEN);
    }
    record_batch(cache, commandBuffer, cache->commands + first, end - first);
    cache->commandCount -= end;
    if (cache->commandCount)
        memmove(cache->commands, cache->commands + end, cache->commandCount * sizeof *cache->commands);
}

// Rows of the page table that device memory does not have yet, and everything that stands before the table.
static void record_metadata(VkmqaCache cache, VkCommandBuffer commandBuffer, const VkmqaCacheStep* step) {
    const struct VkmqaVk* vk = &cache->attention->context->vk;
    uint64_t from = cache->stepMemory.offset + step->slot * cache->stepBytes;
    uint64_t to = cache->localMemory.offset;
    VkBufferCopy regions[MAX_REGIONS] = {{from, to, cache->layout.pageTable}};
    uint32_t count = 1;
    const struct VkmqaRow* rows = cache->rows + (size_t)step->slot * cache->maxBatch;
    struct VkmqaRow* localRows = cache->rows + (size_t)cache->stepsInFlight * cache->maxBatch;
    for (uint32_t i = 0; i < step->step.limits.batch; ++i) {
        bool same = rows[i].sequence == localRows[i].sequence && rows[i].epoch == localRows[i].epoch;
        uint32_t first = same ? localRows[i].entries : 0;
        if (first < rows[i].entries) {
            uint64_t at = cache->layout.pageTable + ((uint64_t)i * cache->layout.maxPages + first) * 4;
            regions[count++] = (VkBufferCopy){from + at, to + at, (rows[i].entries - first) * 4ull};
            localRows[i] = rows[i];
        }
        if (count == MAX_REGIONS || (count && i + 1 == step->step.limits.batch)) {
            vk->CmdCopyBuffer(commandBuffer, cache->stepMemory.buffer, cache->localMemory.buffer, count,
                              regions);
            count = 0;
        }
    }
}

VkResult vkmqa_check_recorded(VkmqaCache cache, const char* call, bool commands) {
    if (cache->recordedSteps < cache->stepCount)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: %llu steps have been built and not recorded; give them to "
                                "vkmqaCmdUpdateCache and submit them first, or call vkmqaDiscardSteps", call,
                                (unsigned long long)(cache->stepCount - cache->recordedSteps));
    if (commands && cache->commandCount)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: %u copies or clears of pages are due; record vkmqaCmdUpdateCache and submit "
                                "it first", call, cache->commandCount);
    return VK_SUCCESS;
}

VkResult vkmqaCmdUpdateCache(VkmqaCache cache, VkCommandBuffer commandBuffer, const VkmqaCacheStep* step) {
    static const char call[] = "vkmqaCmdUpdateCache";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!commandBuffer)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: commandBuffer is null; give one that is recording", call);
    if (step && (step->number == 0 || step->number > cache->stepCount || step->slot >= cache->stepsInFlight ||
                 step->mapped != cache->stepMapped + step->slot * cache->stepBytes ||
                 step->step.limits.batch > cache->maxBatch))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: step (number %llu, slot %u) is none of this cache's; give what vkmqaBuildStep "
                                "filled", call, (unsigned long long)step->number, step->slot);
    if (step && step->number <= cache->recordedSteps)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: step.number is %llu: it has been recorded or discarded, or a later one has "
                                "overtaken it; record steps once, in the order they were built", call,
                                (unsigned long long)step->number);
    uint64_t before = step ? step->number - 1 : cache->recordedSteps; // steps
    if (step) {
        vkmqa_discard_steps(cache, before);
        cache->recordedSteps = step->number;
    }
    bool metadata = step && (cache->flags & VKMQA_CACHE_DEVICE_METADATA_BIT);
    bool commands = cache->commandCount && cache->commands[0].before <= before;
    if (!commands && !metadata)
        return VK_SUCCESS;
    vkmqa_begin_transfers(cache, commandBuffer);
    vkmqa_record_commands(cache, commandBuffer, before);
    if (metadata)
        record_metadata(cache, commandBuffer, step);
    vkmqa_end_transfers(cache, commandBuffer);
    return VK_SUCCESS;
}

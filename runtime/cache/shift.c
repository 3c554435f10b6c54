// vkmqaCmdShiftSequence: a range of tokens out of the middle. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>

#include "../core/call.h"
#include "vkmqa_shader_ids.h"

VkResult vkmqa_create_shift(VkmqaCache cache) {
    const struct VkmqaChoice* choice = &cache->attention->choice;
    return vkmqa_create_pipeline(cache->attention, choice->shiftShader, choice->mergeWorkgroupSize,
                                 &cache->shift);
}

void vkmqa_destroy_shift(VkmqaCache cache) {
    const struct VkmqaContext_T* context = cache->attention->context;
    if (!vkmqa_is_inherited(context))
        context->vk.DestroyPipeline(context->device, cache->shift, vkmqa_allocator(context));
}

// What a shift does to a sequence.
struct Shift {
    uint32_t keep, drop;
    bool unlink;          // whole pages leave the list: tokens keep their rows
    bool turns;           // K rows are turned back
    uint32_t first, last; // entries whose pages are written to, first to last - 1, after unlinking
    uint32_t copies;      // of them: shared pages
};

static struct Shift plan_shift(VkmqaCache cache, const struct VkmqaSequenceRecord* record, uint32_t keep,
                               uint32_t drop) {
    const struct VkmqaShape* shape = &cache->attention->shape;
    struct Shift shift = {
        .keep = keep,
        .drop = drop,
        .unlink = keep % cache->pageTokens == 0 && drop % cache->pageTokens == 0,
        .turns = shape->ropeStyle != VKMQA_ROPE_NONE,
    };
    uint32_t left = record->length - drop, unlinked = shift.unlink ? drop / cache->pageTokens : 0;
    if (left > keep && (shift.turns || !shift.unlink)) {
        shift.first = keep / cache->pageTokens;
        shift.last = vkmqa_pages_of(cache, left);
    }
    for (uint32_t i = shift.first; i < shift.last; ++i)
        shift.copies += cache->pages[record->pages[i + unlinked]].refs > 1;
    return shift;
}

// A layer's dispatch, checked and ready.
struct LayerCall {
    struct VkmqaCall call;
    struct VkmqaShiftPush push;
    VkDescriptorSet set;
};

static VkResult prepare_layer(VkmqaCache cache, uint32_t layer, const VkmqaShiftInfo* info,
                              const struct Shift* shift, uint32_t length, struct LayerCall* out) {
    struct VkmqaCall* call = &out->call;
    *out = (struct LayerCall){.call = {.attention = cache->attention, .name = "vkmqaCmdShiftSequence"}};
    uint32_t distance = shift->unlink ? 0 : shift->drop, first = shift->keep + distance;
    uint32_t moved = length - first;
    out->push = (struct VkmqaShiftPush){
        .first = first,
        .length_ = length,
        .distance_ = distance,
        .turn = shift->drop,
        .chains = distance && distance < moved ? distance : moved,
        .numPages = cache->numPages,
    };
    vkmqa_use_cache(call, &cache->layers[layer], true, &out->push.k, &out->push.v);
    VkmqaBuffer list = cache->localMemory;
    list.offset += cache->listOffset;
    list.size -= cache->listOffset;
    list.address += list.address ? cache->listOffset : 0;
    out->push.list = vkmqa_use_buffer(call, "localMemory", &list, cache->layout.maxPages * 4ull,
                                      VKMQA_BIND_STEP);
    out->push.params =
        vkmqa_use_parameters(call, info->parameters ? &info->parameters[layer] : &(VkmqaBuffer){0},
                             shift->turns);
    vkmqa_take_sets(call, info->recorder, 1, &out->set);
    return call->result;
}

// All that the layers need, or the reason why not. Null without an error: there is nothing to dispatch.
static VkResult prepare_layers(VkmqaCache cache, const VkmqaShiftInfo* info, const struct Shift* shift,
                               uint32_t length, struct LayerCall** layers, uint32_t groups[3]) {
    const struct VkmqaContext_T* context = cache->attention->context;
    *layers = NULL;
    if (shift->first == shift->last)
        return VK_SUCCESS;
    *layers = vkmqa_cache_allocate(cache, cache->numLayers, sizeof **layers);
    if (!*layers)
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_HOST_MEMORY,
                                "vkmqaCmdShiftSequence: no memory for the commands of %u layers",
                                cache->numLayers);
    VkResult error = VK_SUCCESS;
    if (cache->attention->choice.bind)
        error = vkmqa_check_recorder(context, "vkmqaCmdShiftSequence", info->recorder, cache->numLayers);
    for (uint32_t i = 0; i < cache->numLayers && error == VK_SUCCESS; ++i)
        error = prepare_layer(cache, i, info, shift, length, &(*layers)[i]);
    const struct VkmqaShape* shape = &cache->attention->shape;
    uint64_t rows = error == VK_SUCCESS ? (uint64_t)(*layers)->push.chains * shape->numHeadsKv : 0;
    if (!shift->unlink && !shape->vPrefix)
        rows *= 2;
    if (error == VK_SUCCESS && (rows > INT32_MAX || !vkmqa_fold_grid(&context->caps, rows, groups)))
        error = vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "vkmqaCmdShiftSequence: %llu rows move at a time, more than the device's grid; "
                                 "drop fewer tokens", (unsigned long long)rows);
    if (error != VK_SUCCESS)
        vkmqa_cache_free(cache, *layers);
    return error;
}

enum { MAX_UPDATE = 65536 }; // bytes of one vkCmdUpdateBuffer

// What is due, then the layers, if there are any.
static void record_shift(VkmqaCache cache, VkCommandBuffer commandBuffer,
                         const struct VkmqaSequenceRecord* record, struct LayerCall* layers,
                         const uint32_t groups[3]) {
    const struct VkmqaVk* vk = &cache->attention->context->vk;
    vkmqa_begin_transfers(cache, commandBuffer);
    vkmqa_record_commands(cache, commandBuffer, cache->stepCount);
    if (!layers) {
        vkmqa_end_transfers(cache, commandBuffer);
        return;
    }
    uint64_t bytes = record->pageCount * 4ull, to = cache->localMemory.offset + cache->listOffset;
    for (uint64_t done = 0; done < bytes; done += MAX_UPDATE)
        vk->CmdUpdateBuffer(commandBuffer, cache->localMemory.buffer, to + done,
                            bytes - done < MAX_UPDATE ? bytes - done : MAX_UPDATE,
                            (const char*)record->pages + done);
    vkmqa_end_transfers(cache, commandBuffer);
    for (uint32_t i = 0; i < cache->numLayers; ++i)
        vkmqa_dispatch(&layers[i].call, commandBuffer, cache->shift, layers[i].set, &layers[i].push,
                       sizeof layers[i].push, groups);
    vkmqa_end_dispatches(cache, commandBuffer);
}

// Whole pages out of the list; who else holds them keeps them.
static void unlink_pages(VkmqaCache cache, struct VkmqaSequenceRecord* record, uint32_t first,
                         uint32_t count) {
    for (uint32_t i = first + count; i-- > first;)
        vkmqa_release_page(cache, record->pages[i]);
    record->pageCount -= count;
    memmove(record->pages + first, record->pages + first + count,
            (record->pageCount - first) * sizeof *record->pages);
}

VkResult vkmqaCmdShiftSequence(VkmqaCache cache, VkCommandBuffer commandBuffer,
                               const VkmqaShiftInfo* given) {
    static const char call[] = "vkmqaCmdShiftSequence";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaShiftInfo info;
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    if (!commandBuffer)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: commandBuffer is null; give one that is recording", call);
    struct VkmqaSequenceRecord* record = vkmqa_find_sequence(cache, call, info.sequence);
    if (!record)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (info.keep > record->length || info.drop > record->length - info.keep)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: info.keep %u and drop %u are more than the sequence's %u tokens", call,
                                info.keep, info.drop, record->length);
    VkResult error = vkmqa_check_resident(cache, call, record);
    if (error == VK_SUCCESS)
        error = vkmqa_check_recorded(cache, call, false);
    if (error != VK_SUCCESS || info.drop == 0)
        return error;
    vkmqa_poll_transfers(cache);
    struct Shift shift = plan_shift(cache, record, info.keep, info.drop);
    if (shift.copies > vkmqa_available_pages(cache))
        return vkmqa_cache_fail(cache, VK_ERROR_OUT_OF_POOL_MEMORY,
                                "%s: %u shared pages are copied, %u are free: %u are missing; destroy, truncate "
                                "or offload sequences", call, shift.copies, vkmqa_available_pages(cache),
                                shift.copies - vkmqa_available_pages(cache));
    error = vkmqa_reserve_commands(cache, call, shift.copies);
    if (error != VK_SUCCESS)
        return error;
    struct LayerCall* layers;
    uint32_t groups[3] = {0, 0, 1};
    uint32_t length = record->length - (shift.unlink ? info.drop : 0); // when the kernel runs
    error = prepare_layers(cache, &info, &shift, length, &layers, groups);
    if (error != VK_SUCCESS)
        return error;

    record->epoch++;
    for (uint32_t i = shift.first; i < shift.last; ++i) {
        uint32_t* entry = &record->pages[i + (shift.unlink ? info.drop / cache->pageTokens : 0)];
        if (cache->pages[*entry].refs > 1)
            *entry = vkmqa_copy_page(cache, *entry);
        vkmqa_forget_tokens(cache, *entry, i == shift.first ? info.keep % cache->pageTokens : 0);
    }
    if (shift.unlink)
        unlink_pages(cache, record, info.keep / cache->pageTokens, info.drop / cache->pageTokens);
    if (layers || cache->commandCount)
        record_shift(cache, commandBuffer, record, layers, groups);
    vkmqa_cache_free(cache, layers);
    record->length -= info.drop;
    record->shifted |= record->length > info.keep;
    vkmqa_drop_pages(cache, record, vkmqa_pages_of(cache, record->length));
    return VK_SUCCESS;
}

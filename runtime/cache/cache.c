// The cache: what it takes, what it is made of. SPDX-License-Identifier: MIT
#include "cache.h"

#include <string.h>
#include <time.h>
#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#endif

#include "../device/device.h"

VkResult vkmqa_cache_fail(VkmqaCache cache, VkResult result, const char* format, ...) {
    struct VkmqaProblem problem;
    va_list arguments;
    va_start(arguments, format);
    vkmqa_problem_list(&problem, format, arguments);
    va_end(arguments);
    return vkmqa_fail(cache->attention->context, result, "%s", problem.text);
}

static bool may_destroy(VkmqaCache cache, const char* call) {
    if (!cache || cache->magic != VKMQA_MAGIC_CACHE)
        return false;
    if (cache->inCallback)
        vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                         "%s: called from a callback of vkmqaSaveSequences or vkmqaLoadSequences; use the cache when "
                         "that has returned", call);
    return !cache->inCallback;
}

bool vkmqa_is_cache(VkmqaCache cache, const char* call) {
    // Some drivers share mapped memory with the child, so that even a step's metadata would be the parent's.
    return may_destroy(cache, call) && vkmqa_check_process(cache->attention->context, call) == VK_SUCCESS;
}

// A number that changes all the time.
static uint64_t ticks(void) {
#ifdef _WIN32
    LARGE_INTEGER now;
    QueryPerformanceCounter(&now);
    return (uint64_t)now.QuadPart;
#else
    struct timespec now = {0};
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

// What a cache of these sizes is made of; `cache` is a plan, and holds nothing yet.
struct Sizes {
    VkmqaKvRequirements kv;
    VkmqaBufferRequirements step, local;
    uint64_t deviceBytes, bookkeepingBytes, offloadBytes;
};

// The values of info in the plan, defaults filled.
static bool read_info(const VkmqaCacheCreateInfo* info, struct VkmqaCache_T* plan,
                      struct VkmqaProblem* problem) {
    const struct VkmqaShape* shape = &info->attention->shape;
    if (shape->pageShift == VKMQA_CONTIGUOUS) {
        vkmqa_problem(problem, "attention has pageSize 0; a cache needs pages, create it with 1 to 256");
        return false;
    }
    *plan = (struct VkmqaCache_T){
        .flags = info->flags,
        .attention = info->attention,
        .device = info->device,
        .numLayers = info->numLayers,
        .numPages = info->numPages,
        .pageTokens = shape->pageTokens,
        .maxSequences = info->maxSequences ? info->maxSequences : 1024,
        .stepsInFlight = info->stepsInFlight ? info->stepsInFlight : 3,
        .hostPageCount = info->hostPages,
    };
    plan->maxBatch = info->maxBatch ? info->maxBatch : plan->maxSequences;
    uint32_t tokens = plan->maxBatch > 2048 ? plan->maxBatch : 2048;
    plan->maxNewTokens = info->maxNewTokens ? info->maxNewTokens : tokens;
    uint64_t room = (uint64_t)info->numPages * shape->pageTokens;
    plan->maxSeqLenKv = info->maxSeqLenKv         ? info->maxSeqLenKv
                        : room < shape->maxSeqLenKv ? (uint32_t)room
                                                    : shape->maxSeqLenKv;
    const uint32_t mostBatch = plan->maxSequences < VKMQA_MAX_BATCH ? plan->maxSequences : VKMQA_MAX_BATCH;
    const uint32_t mostQueries = vkmqa_most_queries(shape);
    const uint32_t mostTokens = mostQueries < 1u << 24 ? mostQueries : 1u << 24;
    const struct {
        const char* name;
        uint64_t value, most;
    } rows[] = {
        {"numLayers", info->numLayers, 4096},
        {"numPages", info->numPages, INT32_MAX / shape->pageTokens}, // slots are int32
        {"maxSequences", plan->maxSequences, 1u << 24},
        {"maxBatch", plan->maxBatch, mostBatch},
        {"maxNewTokens", plan->maxNewTokens, mostTokens},
        {"maxSeqLenKv", plan->maxSeqLenKv, shape->maxSeqLenKv},
        {"stepsInFlight", plan->stepsInFlight, 64},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
        if (rows[i].value >= 1 && rows[i].value <= rows[i].most)
            continue;
        vkmqa_problem(problem, "info.%s is %llu; give 1 to %llu", rows[i].name,
                      (unsigned long long)rows[i].value, (unsigned long long)rows[i].most);
        return false;
    }
    if (info->flags & ~(VkmqaCacheFlags)(VKMQA_CACHE_CLEAR_FREED_BIT | VKMQA_CACHE_DEVICE_METADATA_BIT)) {
        vkmqa_problem(problem, "info.flags is 0x%x; use VkmqaCacheFlagBits", info->flags);
        return false;
    }
    if (plan->maxNewTokens < plan->maxBatch) {
        vkmqa_problem(problem, "info.maxNewTokens is %u; it is at least maxBatch, %u", plan->maxNewTokens,
                      plan->maxBatch);
        return false;
    }
    if (info->hostPages > INT32_MAX) {
        vkmqa_problem(problem, "info.hostPages is %u; give at most %d", info->hostPages, INT32_MAX);
        return false;
    }
    if (info->hostPages && !info->device) {
        vkmqa_problem(problem, "info.hostPages is %u without info.device, which copies pages there",
                      info->hostPages);
        return false;
    }
    plan->bucketCount = 1;
    while (plan->bucketCount < info->numPages)
        plan->bucketCount *= 2;
    return true;
}

static void add_planes(struct VkmqaCache_T* plan, bool v, uint32_t rowBytes, uint32_t scaleBytes,
                       uint64_t scalesOffset) {
    const struct {
        uint64_t offset;
        uint32_t bytes;
    } planes[] = {{0, rowBytes}, {scalesOffset, scaleBytes}};
    uint64_t tokens = (uint64_t)plan->attention->shape.numHeadsKv * plan->pageTokens;
    for (uint32_t i = 0; i < 2; ++i) {
        if (planes[i].bytes == 0)
            continue;
        plan->planes[plan->planeCount++] =
            (struct VkmqaPlane){v, planes[i].offset, tokens * planes[i].bytes, planes[i].bytes};
        plan->pageBytes += tokens * planes[i].bytes * plan->numLayers;
    }
}

// The plan's planes, layout and offsets, and the bytes of everything.
static VkResult plan_sizes(struct VkmqaCache_T* plan, struct Sizes* sizes) {
    VkmqaAttention attention = plan->attention;
    sizes->kv.structSize = sizeof sizes->kv;
    VkResult error = vkmqaGetKvRequirements(attention, plan->numPages, &sizes->kv);
    if (error != VK_SUCCESS)
        return error;
    const VkBufferUsageFlags transfers = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
    sizes->kv.k.usage |= transfers;
    sizes->kv.v.usage |= transfers;
    add_planes(plan, false, sizes->kv.rowBytesK, sizes->kv.scaleBytesK, sizes->kv.scalesOffsetK);
    add_planes(plan, true, sizes->kv.rowBytesV, sizes->kv.scaleBytesV, sizes->kv.scalesOffsetV);

    VkmqaStepLimits limits = {
        .batch = plan->maxBatch,
        .totalQ = plan->maxNewTokens,
        .maxSeqLenKv = plan->maxSeqLenKv,
    };
    VkmqaBufferRequirements slot;
    error = vkmqaGetStepLayout(attention, &limits, &plan->layout, &slot);
    if (error != VK_SUCCESS)
        return error;
    plan->stepBytes = (slot.size + 255) & ~(uint64_t)255; // the largest alignment of a storage buffer
    sizes->step = slot;
    sizes->step.size = plan->stepBytes * plan->stepsInFlight;
    sizes->step.usage |= VK_BUFFER_USAGE_TRANSFER_SRC_BIT;
    plan->listOffset = plan->flags & VKMQA_CACHE_DEVICE_METADATA_BIT ? plan->stepBytes : 0;
    sizes->local = slot;
    sizes->local.size = plan->listOffset + ((plan->layout.maxPages * 4ull + 15) & ~15ull);
    sizes->local.usage |= VK_BUFFER_USAGE_TRANSFER_DST_BIT;

    uint64_t layer = sizes->kv.k.size;
    if (sizes->kv.v.size > UINT64_MAX - layer ||
        !vkmqa_multiply(layer + sizes->kv.v.size, plan->numLayers, &sizes->deviceBytes) ||
        sizes->local.size > UINT64_MAX - sizes->deviceBytes ||
        !vkmqa_multiply(plan->pageBytes, plan->hostPageCount, &sizes->offloadBytes))
        return vkmqa_cache_fail(plan, VK_ERROR_VALIDATION_FAILED_EXT,
                                "info.numLayers %u, numPages %u, hostPages %u: the cache passes 2^64 bytes",
                                plan->numLayers, plan->numPages, plan->hostPageCount);
    sizes->deviceBytes += sizes->local.size;
    sizes->bookkeepingBytes =
        sizeof *plan + (uint64_t)plan->numPages * (sizeof *plan->pages + 4ull * plan->pageTokens) +
        4ull * plan->bucketCount + (uint64_t)plan->maxSequences * sizeof *plan->sequences +
        (uint64_t)(plan->stepsInFlight + 1) * plan->maxBatch * sizeof *plan->rows +
        (uint64_t)plan->numLayers * sizeof *plan->layers;
    return VK_SUCCESS;
}

static VkResult make_plan(const VkmqaCacheCreateInfo* given, const char* call, VkmqaCacheCreateInfo* info,
                          struct VkmqaCache_T* plan, struct Sizes* sizes) {
    struct VkmqaProblem problem;
    if (!vkmqa_read_struct(given, info, sizeof *info, sizeof *info, "info", &problem)) {
        return vkmqa_is_attention(info->attention) // read where only the tail is wrong
                   ? vkmqa_fail(info->attention->context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text)
                   : VK_ERROR_VALIDATION_FAILED_EXT; // nobody to tell
    }
    if (!vkmqa_is_attention(info->attention)) {
        VkmqaContext owner = info->device ? vkmqaGetDeviceContext(info->device) : NULL;
        return owner ? vkmqa_fail(owner, VK_ERROR_VALIDATION_FAILED_EXT,
                                  "%s: info.attention is null or no attention object; give a paged one", call)
                     : VK_ERROR_VALIDATION_FAILED_EXT;
    }
    struct VkmqaContext_T* context = info->attention->context;
    if (info->device && vkmqaGetDeviceContext(info->device) != context)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: info.device is not the device of info.attention; give the one it was created on",
                          call);
    if (!read_info(info, plan, &problem))
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    return plan_sizes(plan, sizes);
}

VkResult vkmqaGetCacheRequirements(const VkmqaCacheCreateInfo* given, VkmqaCacheRequirements* requirements) {
    static const char call[] = "vkmqaGetCacheRequirements";
    VkmqaCacheCreateInfo info;
    struct VkmqaCache_T plan;
    struct Sizes sizes = {0};
    struct VkmqaProblem problem;
    VkResult error = make_plan(given, call, &info, &plan, &sizes);
    if (error != VK_SUCCESS)
        return error;
    if (!vkmqa_open_output(requirements, sizeof *requirements, sizeof *requirements, "requirements",
                           &problem))
        return vkmqa_cache_fail(&plan, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    requirements->pageTokens = plan.pageTokens;
    requirements->kv = sizes.kv;
    requirements->step = sizes.step;
    requirements->local = sizes.local;
    requirements->pageBytes = plan.pageBytes;
    requirements->deviceBytes = sizes.deviceBytes;
    requirements->hostBytes = sizes.step.size + sizes.offloadBytes + sizes.bookkeepingBytes;
    requirements->deviceBudget = info.device ? vkmqa_device_budget(info.device) : 0;
    return VK_SUCCESS;
}

// ---- creation --------------------------------------------------------------------------------

static VkResult allocate(VkmqaCache cache, VkmqaMemoryKind kind, uint64_t bytes, VkmqaBuffer* range) {
    VkmqaMemory* memory = &cache->memories[cache->memoryCount];
    VkResult error = vkmqaCreateMemory(cache->device, kind, bytes, memory);
    if (error != VK_SUCCESS)
        return error;
    cache->memoryCount++;
    *range = vkmqaGetMemoryRange(*memory, 0, 0);
    return VK_SUCCESS;
}

static VkResult take_buffer(VkmqaCache cache, const char* field, const VkmqaBuffer* given,
                            const VkmqaBufferRequirements* needed, VkmqaBuffer* range) {
    if (!given->buffer)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "vkmqaCreateCache: info.%s has no VkBuffer; give one, or a device", field);
    if (given->size < needed->size)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "vkmqaCreateCache: info.%s.size is %llu; it takes %llu", field,
                                (unsigned long long)given->size, (unsigned long long)needed->size);
    if (given->offset % 16 || given->address % 16)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "vkmqaCreateCache: info.%s: offset %llu, address 0x%llx; use multiples of 16",
                                field, (unsigned long long)given->offset,
                                (unsigned long long)given->address);
    *range = *given;
    return VK_SUCCESS;
}

static VkResult make_layers(VkmqaCache cache, const VkmqaCacheCreateInfo* info, const struct Sizes* sizes) {
    VkResult error = VK_SUCCESS;
    if (!info->layers && !cache->device)
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "vkmqaCreateCache: info.layers is null; give the layers' buffers, or a device");
    for (uint32_t i = 0; i < cache->numLayers && error == VK_SUCCESS; ++i) {
        VkmqaKv* kv = &cache->layers[i];
        kv->numPages = cache->numPages;
        bool v = sizes->kv.v.size > 0;
        if (info->layers) {
            if (info->layers[i].numPages != cache->numPages)
                return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                        "vkmqaCreateCache: info.layers[%u].numPages is %u; it is numPages, %u",
                                        i, info->layers[i].numPages, cache->numPages);
            error = take_buffer(cache, "layers[].k", &info->layers[i].k, &sizes->kv.k, &kv->k);
            if (error == VK_SUCCESS && v)
                error = take_buffer(cache, "layers[].v", &info->layers[i].v, &sizes->kv.v, &kv->v);
        } else {
            error = allocate(cache, VKMQA_MEMORY_DEVICE, sizes->kv.k.size, &kv->k);
            if (error == VK_SUCCESS && v)
                error = allocate(cache, VKMQA_MEMORY_DEVICE, sizes->kv.v.size, &kv->v);
        }
    }
    return error;
}

static VkResult make_buffers(VkmqaCache cache, const VkmqaCacheCreateInfo* info, const struct Sizes* sizes) {
    VkResult error = make_layers(cache, info, sizes);
    if (error != VK_SUCCESS)
        return error;
    if (info->stepMapped) {
        error = take_buffer(cache, "stepMemory", &info->stepMemory, &sizes->step, &cache->stepMemory);
        cache->stepMapped = info->stepMapped;
    } else if (cache->device) {
        error = allocate(cache, VKMQA_MEMORY_UPLOAD, sizes->step.size, &cache->stepMemory);
        if (error == VK_SUCCESS)
            cache->stepMapped = vkmqaGetMemoryPointer(cache->memories[cache->memoryCount - 1]);
    } else {
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT,
                                "vkmqaCreateCache: info.stepMapped is null; give mapped memory, or a device");
    }
    if (error != VK_SUCCESS)
        return error;
    if (info->localMemory.buffer || !cache->device)
        return take_buffer(cache, "localMemory", &info->localMemory, &sizes->local, &cache->localMemory);
    return allocate(cache, VKMQA_MEMORY_DEVICE, sizes->local.size, &cache->localMemory);
}

static bool make_bookkeeping(VkmqaCache cache) {
    cache->layers = vkmqa_cache_allocate(cache, cache->numLayers, sizeof *cache->layers);
    cache->memories = vkmqa_cache_allocate(cache, 2 * (size_t)cache->numLayers + 2, sizeof *cache->memories);
    cache->pages = vkmqa_cache_allocate(cache, cache->numPages, sizeof *cache->pages);
    cache->ids = vkmqa_cache_allocate(cache, (size_t)cache->numPages * cache->pageTokens, sizeof *cache->ids);
    cache->buckets = vkmqa_cache_allocate(cache, cache->bucketCount, sizeof *cache->buckets);
    cache->sequences = vkmqa_cache_allocate(cache, cache->maxSequences, sizeof *cache->sequences);
    cache->rows = vkmqa_cache_allocate(cache, (size_t)(cache->stepsInFlight + 1) * cache->maxBatch,
                                       sizeof *cache->rows);
    if (!cache->layers || !cache->memories || !cache->pages || !cache->ids || !cache->buckets ||
        !cache->sequences || !cache->rows)
        return false;
    vkmqa_init_pages(cache);
    memset(cache->buckets, 0xFF, cache->bucketCount * sizeof *cache->buckets); // VKMQA_NO_PAGE
    // Ids of another cache, one before it in the same memory too, are very unlikely to be taken for this one's.
    uint64_t number = (uint64_t)(uintptr_t)cache + ticks();
    uint32_t generation = (uint32_t)(number * 0x9E3779B97F4A7C15u >> 32);
    for (uint32_t i = 0; i < cache->maxSequences; ++i) {
        cache->sequences[i].generation = generation;
        cache->sequences[i].nextFree = i + 1 < cache->maxSequences ? i + 1 : VKMQA_NO_PAGE;
    }
    return true;
}

static void destroy(VkmqaCache cache) {
    bool idle = vkmqa_destroy_offload(cache);
    if (!idle)
        vkmqa_cache_fail(cache, VK_TIMEOUT, "vkmqaDestroyCache: copies are still pending, so the cache's memory "
                                            "is left to vkmqaCloseDevice rather than freed under them");
    vkmqa_destroy_shift(cache);
    for (uint32_t i = 0; i < cache->memoryCount; ++i)
        if (idle) {
            vkmqaDestroyMemory(cache->memories[i]);
        } else {
            cache->device->memoryCount--;
            vkmqa_leave_memory(cache->memories[i]);
        }
    for (uint32_t i = 0; cache->sequences && i < cache->maxSequences; ++i)
        vkmqa_cache_free(cache, cache->sequences[i].pages);
    void* const arrays[] = {cache->layers,    cache->memories,  cache->pages, cache->ids,
                            cache->buckets,   cache->sequences, cache->rows,  cache->commands};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; ++i)
        vkmqa_cache_free(cache, arrays[i]);
    cache->magic = 0;
    vkmqa_cache_free(cache, cache);
}

VkResult vkmqaCreateCache(const VkmqaCacheCreateInfo* given, VkmqaCache* result) {
    static const char call[] = "vkmqaCreateCache";
    if (result)
        *result = NULL;
    VkmqaCacheCreateInfo info;
    struct VkmqaCache_T plan;
    struct Sizes sizes = {0};
    VkResult error = make_plan(given, call, &info, &plan, &sizes);
    if (error == VK_SUCCESS)
        error = vkmqa_check_process(plan.attention->context, call);
    if (error != VK_SUCCESS)
        return error;
    if (!result)
        return vkmqa_cache_fail(&plan, VK_ERROR_VALIDATION_FAILED_EXT,
                                "%s: cache is null; give a place for the handle", call);
    uint64_t budget = info.device && !info.layers ? vkmqa_device_budget(info.device) : 0;
    if (budget && sizes.deviceBytes > budget)
        return vkmqa_cache_fail(&plan, VK_ERROR_OUT_OF_DEVICE_MEMORY,
                                "%s: the cache takes %llu bytes of device memory, and the driver's budget has "
                                "%llu left; use fewer pages", call, (unsigned long long)sizes.deviceBytes,
                                (unsigned long long)budget);
    VkmqaCache cache = vkmqa_cache_allocate(&plan, 1, sizeof *cache);
    if (!cache)
        return vkmqa_cache_fail(&plan, VK_ERROR_OUT_OF_HOST_MEMORY, "%s: no memory for the object", call);
    *cache = plan;
    error = VK_ERROR_OUT_OF_HOST_MEMORY;
    if (!make_bookkeeping(cache))
        vkmqa_cache_fail(cache, error, "%s: no memory for the %llu bytes of the bookkeeping", call,
                         (unsigned long long)sizes.bookkeepingBytes);
    else
        error = make_buffers(cache, &info, &sizes);
    if (error == VK_SUCCESS)
        error = vkmqa_create_shift(cache);
    if (error == VK_SUCCESS && cache->hostPageCount)
        error = vkmqa_create_offload(cache);
    if (error != VK_SUCCESS) {
        destroy(cache);
        return error;
    }
    cache->magic = VKMQA_MAGIC_CACHE;
    if (cache->device)
        cache->device->cacheCount++;
    *result = cache;
    return VK_SUCCESS;
}

void vkmqaDestroyCache(VkmqaCache cache) {
    if (!may_destroy(cache, "vkmqaDestroyCache"))
        return;
    if (cache->device)
        cache->device->cacheCount--;
    destroy(cache);
}

const VkmqaKv* vkmqaGetCacheLayer(VkmqaCache cache, uint32_t layer) {
    return vkmqa_is_cache(cache, "vkmqaGetCacheLayer") && layer < cache->numLayers ? &cache->layers[layer] : NULL;
}

VkResult vkmqaGetCacheState(VkmqaCache cache, VkmqaCacheState* state) {
    static const char call[] = "vkmqaGetCacheState";
    if (!vkmqa_is_cache(cache, call))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaProblem problem;
    if (!vkmqa_open_output(state, sizeof *state, sizeof *state, "state", &problem))
        return vkmqa_cache_fail(cache, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    vkmqa_poll_transfers(cache);
    state->sequences = cache->sequenceCount;
    state->freePages = vkmqa_available_pages(cache);
    state->reusablePages = cache->reusablePages.count;
    state->usedPages = cache->usedPages;
    for (uint32_t i = 0; i < cache->numPages; ++i)
        state->sharedPages += cache->pages[i].refs > 1;
    state->pagesInTransfer = cache->movingPages;
    state->freeHostPages = vkmqa_free_host_pages(cache);
    return VK_SUCCESS;
}

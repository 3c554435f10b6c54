// The known-answer test: does this driver compute what the kernels say? SPDX-License-Identifier: MIT
#include "context.h"

#include <math.h>
#include <string.h>

// Two ragged sequences, one longer than a split; everything else of the memory is NaN.
enum { SEQUENCES = 2, QUERIES = 4, TOKENS = 75, SPLIT = 64, CONTIGUOUS_PAGE = 96 };
static const uint32_t lenQ[SEQUENCES] = {3, 1};
static const uint32_t lenKv[SEQUENCES] = {70, 5};

// The object with the page and limits of the test; its pipelines do not depend on them.
static struct VkmqaAttention_T make_trial(const struct VkmqaAttention_T* attention) {
    struct VkmqaAttention_T trial = *attention;
    if (trial.shape.pageShift == VKMQA_CONTIGUOUS)
        trial.shape.pageTokens = CONTIGUOUS_PAGE;
    trial.shape.maxSeqLenKv = CONTIGUOUS_PAGE;
    trial.shape.scale = 1.0f / sqrtf((float)trial.shape.headDimQk); // tolerances are absolute
    return trial;
}

struct Layout {
    VkmqaStepLimits limits;
    VkmqaStepLayout step;
    uint32_t numPages;
    uint32_t maxPages; // pages of one sequence
    uint64_t metadata, newK, newV, k, v, q, out, lse, scratch; // offsets
    uint64_t bytesMetadata, bytesNewK, bytesNewV, bytesK, bytesV, bytesQ, bytesOut, bytesLse;
    uint64_t bytesScratch, size;
};

static uint64_t place(uint64_t* size, uint64_t bytes) {
    uint64_t offset = *size;
    *size += (bytes + 255) & ~(uint64_t)255;
    return offset;
}

static VkResult make_layout(struct VkmqaAttention_T* trial, struct Layout* layout) {
    const struct VkmqaShape* shape = &trial->shape;
    struct VkmqaProblem problem;
    *layout = (struct Layout){.limits = {.batch = SEQUENCES, .totalQ = QUERIES, .maxSeqLenQ = 3,
                                         .maxSeqLenKv = 70, .newTokens = TOKENS}};
    layout->maxPages = (70 + shape->pageTokens - 1) / shape->pageTokens;
    layout->numPages = layout->maxPages + (5 + shape->pageTokens - 1) / shape->pageTokens + 1;
    VkmqaBufferRequirements metadata;
    VkResult result = vkmqaGetStepLayout(trial, &layout->limits, &layout->step, &metadata);
    if (result != VK_SUCCESS)
        return result;
    if (!vkmqa_cache_bytes(shape, layout->numPages, &layout->bytesK, &layout->bytesV, &problem))
        return vkmqa_fail(trial->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaVerifyAttention: %s", problem.text);
    uint64_t rowsQ = QUERIES * (uint64_t)shape->numHeadsQ;
    uint64_t rowsKv = TOKENS * (uint64_t)shape->numHeadsKv;
    layout->bytesMetadata = metadata.size;
    layout->bytesNewK = rowsKv * shape->headDimQk * vkmqa_type_size(shape->newType);
    layout->bytesNewV = rowsKv * shape->headDimV * vkmqa_type_size(shape->newType);
    layout->bytesQ = rowsQ * shape->headDimQk * vkmqa_type_size(shape->ioType);
    layout->bytesOut = rowsQ * shape->headDimV * vkmqa_type_size(shape->ioType);
    layout->bytesLse = rowsQ * 4;
    layout->bytesScratch = rowsQ * 2 * (shape->headDimV * 4 + 8) + 256;
#define PLACE(name, bytes) layout->name = place(&layout->size, layout->bytes);
    PLACE(metadata, bytesMetadata)
    PLACE(newK, bytesNewK)
    PLACE(newV, bytesNewV)
    PLACE(k, bytesK)
    PLACE(v, bytesV)
    PLACE(q, bytesQ)
    PLACE(out, bytesOut)
    PLACE(lse, bytesLse)
    PLACE(scratch, bytesScratch)
#undef PLACE
    return VK_SUCCESS;
}

VkResult vkmqaGetVerifyRequirements(VkmqaAttention attention,
                                    VkmqaBufferRequirements* requirements) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!requirements)
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaGetVerifyRequirements: requirements is null; give a place for them");
    struct VkmqaAttention_T trial = make_trial(attention);
    struct Layout layout;
    VkResult result = make_layout(&trial, &layout);
    if (result != VK_SUCCESS)
        return result;
    uint64_t alignment = attention->context->caps.storageAlignment;
    *requirements = (VkmqaBufferRequirements){
        layout.size, alignment > 256 ? alignment : 256,
        VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
            (trial.choice.bind ? 0 : VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT)};
    return VK_SUCCESS;
}

// ---- values ----------------------------------------------------------------------------------

// Multiples of 1/128 in [-1, 1): exact in f16 and f32, so that append's bytes are known. Each (tensor,
// token, head, element) has its own.
static float value_of(uint32_t tensor, uint32_t token, uint32_t head, uint32_t element) {
    uint32_t hash = tensor * 0x9E3779B9u + token * 0x85EBCA6Bu + head * 0xC2B2AE35u +
                    element * 0x27D4EB2Fu;
    hash ^= hash >> 15;
    hash *= 0x2C1B3C6Du;
    hash ^= hash >> 12;
    return (float)(int)(hash >> 24) / 128.0f - 1.0f;
}

static uint16_t encode_f16(float value) { // exact for value_of's values
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value == 0)
        return 0;
    return (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) |
                      (bits >> 13 & 0x3FF));
}

static float decode_f16(uint16_t half) {
    int exponent = half >> 10 & 31;
    float fraction = (float)(half & 0x3FF) / 1024.0f;
    float value = exponent == 31  ? (half & 0x3FF ? NAN : INFINITY)
                  : exponent == 0 ? ldexpf(fraction, -14)
                                  : ldexpf(1.0f + fraction, exponent - 15);
    return half & 0x8000 ? -value : value;
}

static void store(void* row, uint32_t element, VkmqaType type, float value) {
    if (type == VKMQA_TYPE_F16)
        ((uint16_t*)row)[element] = encode_f16(value);
    else
        ((float*)row)[element] = value;
}

static float fetch(const void* row, uint32_t element, VkmqaType type) {
    return type == VKMQA_TYPE_F16 ? decode_f16(((const uint16_t*)row)[element])
                                  : ((const float*)row)[element];
}

enum { TENSOR_Q, TENSOR_K, TENSOR_V };

// ---- inputs ----------------------------------------------------------------------------------

static uint32_t page_of(const struct VkmqaAttention_T* trial, const struct Layout* layout,
                        uint32_t sequence, uint32_t index) {
    if (trial->shape.pageShift == VKMQA_CONTIGUOUS)
        return sequence;
    // From the back: no page lies where its index says.
    return layout->numPages - 1 - (sequence == 0 ? index : layout->maxPages + index);
}

static void fill_tensor(char* base, uint32_t tensor, uint32_t tokens, uint32_t heads, uint32_t dim,
                        VkmqaType type) {
    for (uint32_t token = 0; token < tokens; ++token)
        for (uint32_t head = 0; head < heads; ++head) {
            char* row = base + ((uint64_t)token * heads + head) * dim * vkmqa_type_size(type);
            for (uint32_t element = 0; element < dim; ++element)
                store(row, element, type, value_of(tensor, token, head, element));
        }
}

static void fill_inputs(const struct VkmqaAttention_T* trial, const struct Layout* layout,
                        char* memory) {
    const struct VkmqaShape* shape = &trial->shape;
    memset(memory, 0xFF, layout->size);
    char* metadata = memory + layout->metadata;
    int32_t* cuSeqlensQ = (int32_t*)(metadata + layout->step.cuSeqlensQ);
    int32_t* seqLensKv = (int32_t*)(metadata + layout->step.seqLensKv);
    int32_t* slots = (int32_t*)(metadata + layout->step.slotMapping);
    memset(metadata + layout->step.status, 0, 4);
    cuSeqlensQ[0] = 0;
    for (uint32_t b = 0; b < SEQUENCES; ++b) {
        cuSeqlensQ[b + 1] = cuSeqlensQ[b] + (int32_t)lenQ[b];
        seqLensKv[b] = (int32_t)lenKv[b];
        for (uint32_t t = 0; t < lenKv[b]; ++t) {
            uint32_t index = t / shape->pageTokens, page = page_of(trial, layout, b, index);
            if (layout->step.pageTable != VKMQA_NONE)
                ((int32_t*)(metadata + layout->step.pageTable))[b * layout->step.maxPages + index] =
                    (int32_t)page;
            *slots++ = (int32_t)(page * shape->pageTokens + t % shape->pageTokens);
        }
    }
    fill_tensor(memory + layout->newK, TENSOR_K, TOKENS, shape->numHeadsKv, shape->headDimQk,
                shape->newType);
    fill_tensor(memory + layout->newV, TENSOR_V, TOKENS, shape->numHeadsKv, shape->headDimV,
                shape->newType);
    fill_tensor(memory + layout->q, TENSOR_Q, QUERIES, shape->numHeadsQ, shape->headDimQk,
                shape->ioType);
}

// ---- answers ---------------------------------------------------------------------------------

static bool cache_is_right(const struct VkmqaAttention_T* trial, const struct Layout* layout,
                           const char* cache, uint32_t tensor, uint32_t dim, VkmqaType type) {
    const struct VkmqaShape* shape = &trial->shape;
    uint32_t rowBytes = vkmqa_row_bytes(dim, type), newToken = 0;
    for (uint32_t b = 0; b < SEQUENCES; ++b)
        for (uint32_t t = 0; t < lenKv[b]; ++t, ++newToken) {
            uint64_t page = page_of(trial, layout, b, t / shape->pageTokens);
            for (uint32_t head = 0; head < shape->numHeadsKv; ++head) {
                const char* row = cache + ((page * shape->numHeadsKv + head) * shape->pageTokens +
                                           t % shape->pageTokens) * rowBytes;
                for (uint32_t e = 0; e < dim; ++e)
                    if (fetch(row, e, type) != value_of(tensor, newToken, head, e))
                        return false;
            }
        }
    return true;
}

static bool row_is_right(const struct VkmqaAttention_T* trial, const struct Layout* layout,
                         const char* memory, uint32_t b, uint32_t token, uint32_t firstKv,
                         uint32_t head) {
    const struct VkmqaShape* shape = &trial->shape;
    uint32_t query = (b ? lenQ[0] : 0) + token, kvHead = head / shape->ratio;
    uint32_t visible = shape->causal ? token + 1 + lenKv[b] - lenQ[b] : lenKv[b];
    double scores[TOKENS], most = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < visible; ++t) {
        double dot = 0;
        for (uint32_t e = 0; e < shape->headDimQk; ++e)
            dot += (double)value_of(TENSOR_Q, query, head, e) *
                   value_of(TENSOR_K, firstKv + t, kvHead, e);
        scores[t] = dot * shape->scale;
        most = fmax(most, scores[t]);
    }
    for (uint32_t t = 0; t < visible; ++t)
        sum += exp(scores[t] - most);
    const char* row = memory + layout->out + ((uint64_t)query * shape->numHeadsQ + head) *
                                                 shape->headDimV * vkmqa_type_size(shape->ioType);
    double tolerance = shape->ioType == VKMQA_TYPE_F16 ? 2e-3 : 1e-4;
    for (uint32_t e = 0; e < shape->headDimV; ++e) {
        double expected = 0;
        for (uint32_t t = 0; t < visible; ++t)
            expected += exp(scores[t] - most) / sum * value_of(TENSOR_V, firstKv + t, kvHead, e);
        if (!(fabs(fetch(row, e, shape->ioType) - expected) <= tolerance)) // NaN is wrong too
            return false;
    }
    float lse = ((const float*)(memory + layout->lse))[query * shape->numHeadsQ + head];
    return fabs(lse - (most + log(sum))) <= 1e-3;
}

static bool answer_is_right(const struct VkmqaAttention_T* trial, const struct Layout* layout,
                            const char* memory) {
    for (uint32_t b = 0, firstKv = 0; b < SEQUENCES; firstKv += lenKv[b++])
        for (uint32_t token = 0; token < lenQ[b]; ++token)
            for (uint32_t head = 0; head < trial->shape.numHeadsQ; ++head)
                if (!row_is_right(trial, layout, memory, b, token, firstKv, head))
                    return false;
    int32_t status;
    memcpy(&status, memory + layout->metadata + layout->step.status, 4);
    return status == 0;
}

// ---- running ---------------------------------------------------------------------------------

struct Runner {
    struct VkmqaAttention_T* trial;
    const VkmqaVerifyInfo* info;
    const struct Layout* layout;
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkFence fence;
    VkmqaRecorder recorder;
    VkmqaStep step;
    VkmqaKv kv;
    bool pending; // submitted, and not known to have finished
};

static VkmqaBuffer range(const struct Runner* runner, uint64_t offset, uint64_t bytes) {
    VkmqaBuffer buffer = runner->info->memory;
    buffer.offset += offset;
    buffer.address += buffer.address ? offset : 0;
    buffer.size = (bytes + 15) & ~(uint64_t)15;
    return buffer;
}

static VkResult create_runner(struct Runner* runner) {
    const struct VkmqaContext_T* context = runner->trial->context;
    const VkAllocationCallbacks* allocator = vkmqa_allocator(context);
    const struct Layout* layout = runner->layout;
    runner->step = (VkmqaStep){.structSize = sizeof(VkmqaStep), .limits = layout->limits,
                               .layout = layout->step,
                               .metadata = range(runner, layout->metadata, layout->bytesMetadata)};
    runner->kv = (VkmqaKv){range(runner, layout->k, layout->bytesK),
                           range(runner, layout->v, layout->bytesV), layout->numPages};
    VkCommandPoolCreateInfo poolInfo = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
        .queueFamilyIndex = runner->info->queueFamilyIndex,
    };
    VkFenceCreateInfo fenceInfo = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkmqaRecorderCreateInfo recorderInfo = {.structSize = sizeof recorderInfo, .maxCalls = 4};
    VkResult result =
        context->vk.CreateCommandPool(context->device, &poolInfo, allocator, &runner->pool);
    if (result != VK_SUCCESS)
        runner->pool = VK_NULL_HANDLE;
    if (result == VK_SUCCESS) {
        result = context->vk.CreateFence(context->device, &fenceInfo, allocator, &runner->fence);
        if (result != VK_SUCCESS)
            runner->fence = VK_NULL_HANDLE;
    }
    if (result == VK_SUCCESS)
        result = vkmqaCreateRecorder(runner->trial->context, &recorderInfo, &runner->recorder);
    if (result == VK_SUCCESS) {
        VkCommandBufferAllocateInfo commandInfo = {
            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
            .commandPool = runner->pool,
            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
            .commandBufferCount = 1,
        };
        result = context->vk.AllocateCommandBuffers(context->device, &commandInfo, &runner->commands);
    }
    return result;
}

static void destroy_runner(struct Runner* runner) {
    const struct VkmqaContext_T* context = runner->trial->context;
    vkmqaDestroyRecorder(runner->recorder);
    context->vk.DestroyFence(context->device, runner->fence, vkmqa_allocator(context));
    context->vk.DestroyCommandPool(context->device, runner->pool, vkmqa_allocator(context));
}

// candidate UINT32_MAX: append.
static VkResult record(struct Runner* runner, uint32_t candidate, uint32_t splits) {
    const struct Layout* layout = runner->layout;
    struct VkmqaAttention_T* trial = runner->trial;
    if (candidate == UINT32_MAX) {
        VkmqaAppendInfo append = {
            .structSize = sizeof append,
            .recorder = runner->recorder,
            .step = &runner->step,
            .kv = &runner->kv,
            .newK = range(runner, layout->newK, layout->bytesNewK),
            .newV = range(runner, layout->newV, layout->bytesNewV),
        };
        return vkmqaCmdAppendKv(trial, runner->commands, &append);
    }
    VkmqaAttentionInfo attend = {
        .structSize = sizeof attend,
        .recorder = runner->recorder,
        .step = &runner->step,
        .kv = &runner->kv,
        .q = range(runner, layout->q, layout->bytesQ),
        .out = range(runner, layout->out, layout->bytesOut),
        .lse = range(runner, layout->lse, layout->bytesLse),
        .scratch = range(runner, layout->scratch, layout->bytesScratch),
    };
    // The plan of this candidate alone, with the splits to be tried.
    struct VkmqaShape shape = trial->shape;
    shape.splitSize = splits == 1 ? 128 : SPLIT;
    struct VkmqaChoice alone = trial->choice;
    alone.count = 1;
    alone.candidates[0] = trial->choice.candidates[candidate];
    struct VkmqaPlan plan;
    struct VkmqaProblem problem;
    if (!vkmqa_make_plan(&trial->context->caps, &shape, &alone, &layout->limits, &plan, &problem))
        return vkmqa_fail(trial->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaVerifyAttention: %s", problem.text);
    plan.candidate = candidate;
    return vkmqa_record_attention(trial, runner->commands, &attend, &runner->step, &layout->limits,
                                  &plan);
}

static VkResult run(struct Runner* runner, uint32_t candidate, uint32_t splits) {
    const struct VkmqaContext_T* context = runner->trial->context;
    VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    VkResult result = vkmqaResetRecorder(runner->recorder);
    if (result == VK_SUCCESS)
        result = context->vk.BeginCommandBuffer(runner->commands, &begin);
    if (result != VK_SUCCESS)
        return result;
    result = record(runner, candidate, splits);
    VkMemoryBarrier toHost = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_HOST_READ_BIT,
    };
    context->vk.CmdPipelineBarrier(runner->commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                   VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &toHost, 0, NULL, 0, NULL);
    VkResult ended = context->vk.EndCommandBuffer(runner->commands);
    if (result == VK_SUCCESS)
        result = ended;
    if (result == VK_SUCCESS)
        result = context->vk.ResetFences(context->device, 1, &runner->fence);
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = &runner->commands,
    };
    if (result == VK_SUCCESS)
        result = context->vk.QueueSubmit(runner->info->queue, 1, &submit, runner->fence);
    if (result != VK_SUCCESS)
        return result;
    uint64_t timeout = runner->info->timeoutNs ? runner->info->timeoutNs : 10000000000ull;
    result = context->vk.WaitForFences(context->device, 1, &runner->fence, VK_TRUE, timeout);
    runner->pending = result != VK_SUCCESS && result != VK_ERROR_DEVICE_LOST;
    return result;
}

// Runs everything once; *failed gets the kernels that answered wrongly.
static VkResult run_all(struct Runner* runner, uint64_t* failed) {
    struct VkmqaAttention_T* trial = runner->trial;
    const struct Layout* layout = runner->layout;
    const struct VkmqaShape* shape = &trial->shape;
    char* memory = runner->info->mapped;
    fill_inputs(trial, layout, memory);
    VkResult result = run(runner, UINT32_MAX, 1);
    if (result != VK_SUCCESS)
        return result;
    if (!cache_is_right(trial, layout, memory + layout->k, TENSOR_K, shape->headDimQk, shape->kType) ||
        !cache_is_right(trial, layout, memory + layout->v, TENSOR_V, shape->headDimV, shape->vType)) {
        // Append has no other kernel within its tier: all that build on it go.
        vkmqa_message(trial->context, VKMQA_SEVERITY_WARNING,
                      "append writes a wrong cache on this driver");
        for (uint32_t i = 0; i < trial->choice.count; ++i)
            *failed |= 1ull << trial->choice.candidates[i].kernel;
        return VK_SUCCESS;
    }
    for (uint32_t i = 0; i < trial->choice.count; ++i)
        for (uint32_t splits = 1; splits <= 2; ++splits) {
            memset(memory + layout->out, 0xFF, layout->bytesOut);
            memset(memory + layout->lse, 0xFF, layout->bytesLse);
            memset(memory + layout->scratch, 0xFF, layout->bytesScratch);
            memset(memory + layout->metadata + layout->step.status, 0, 4);
            result = run(runner, i, splits);
            if (result != VK_SUCCESS)
                return result;
            if (!answer_is_right(trial, layout, memory)) {
                vkmqa_message(trial->context, VKMQA_SEVERITY_WARNING,
                              "kernel %s%s answers wrongly on this driver",
                              trial->choice.candidates[i].name, splits > 1 ? " with a merge" : "");
                *failed |= 1ull << trial->choice.candidates[i].kernel;
            }
        }
    return VK_SUCCESS;
}

VkResult vkmqaVerifyAttention(VkmqaAttention attention, const VkmqaVerifyInfo* given,
                              uint64_t* failedKernels) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaContext_T* context = attention->context;
    VkmqaVerifyInfo info;
    struct VkmqaProblem problem = {""};
    struct VkmqaAttention_T trial = make_trial(attention);
    struct Layout layout = {0};
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem)) {
    } else if (!failedKernels) {
        vkmqa_problem(&problem, "failedKernels is null; give a place for the result");
    } else if (!info.queue) {
        vkmqa_problem(&problem, "info.queue is null; give a queue with compute");
    } else if (!info.mapped) {
        vkmqa_problem(&problem, "info.mapped is null; give the host address of info.memory");
    } else {
        VkResult result = make_layout(&trial, &layout);
        if (result != VK_SUCCESS)
            return result;
        if (info.memory.size < layout.size)
            vkmqa_problem(&problem, "info.memory.size is %llu; use vkmqaGetVerifyRequirements, "
                                    "which says %llu", (unsigned long long)info.memory.size,
                          (unsigned long long)layout.size);
    }
    if (problem.text[0])
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "vkmqaVerifyAttention: %s",
                          problem.text);
    *failedKernels = 0;
    struct Runner runner = {.trial = &trial, .info = &info, .layout = &layout};
    VkResult result = create_runner(&runner);
    if (result == VK_SUCCESS)
        result = run_all(&runner, failedKernels);
    if (!runner.pending) // a queue that hangs still uses them: they are left to it
        destroy_runner(&runner);
    if (result != VK_SUCCESS)
        vkmqa_fail(context, result, "vkmqaVerifyAttention: the test could not run to its end (%d)",
                   result);
    return result;
}

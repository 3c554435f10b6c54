// Attention objects and the questions one may ask of them. SPDX-License-Identifier: MIT
#include "context.h"

#include <string.h>

VkResult vkmqaCreateAttention(VkmqaContext context, const VkmqaAttentionCreateInfo* given,
                              VkmqaAttention* result) {
    static const char call[] = "vkmqaCreateAttention";
    if (result)
        *result = NULL;
    if (!vkmqa_is_context(context) || vkmqa_check_process(context, call) != VK_SUCCESS)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!result)
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "%s: attention is null; give a place for the handle", call);
    VkmqaAttentionCreateInfo info;
    struct VkmqaProblem problem;
    struct VkmqaShape shape;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem) ||
        !vkmqa_make_shape(&info, &shape, &problem))
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    struct VkmqaTuned tuned = {0};
    if (info.tuningProfile && !vkmqa_read_tuning(info.tuningProfile, info.tuningProfileSize, &context->caps, &shape,
                                                 &tuned, &problem))
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    if (tuned.foreign)
        vkmqa_message(context, VKMQA_SEVERITY_WARNING,
                      "%s: tuningProfile is of %s and is not used; measure again with vkmqa-bench --tune", call,
                      tuned.foreign);
    struct VkmqaChoice choice;
    VkResult error = vkmqa_select(&context->caps, &shape, &tuned, &choice, &problem);
    if (error != VK_SUCCESS)
        return vkmqa_fail(context, error, "%s: %s", call, problem.text);

    struct VkmqaAttention_T* attention = vkmqa_allocate(vkmqa_allocator(context), sizeof *attention);
    if (!attention)
        return vkmqa_fail(context, VK_ERROR_OUT_OF_HOST_MEMORY,
                          "%s: no memory for the object", call);
    attention->context = context;
    attention->shape = shape;
    attention->choice = choice;
    error = vkmqa_create_pipelines(attention);
    if (error != VK_SUCCESS) {
        vkmqa_free(vkmqa_allocator(context), attention);
        return error;
    }
    attention->magic = VKMQA_MAGIC_ATTENTION;
    *result = attention;
    return VK_SUCCESS;
}

void vkmqaDestroyAttention(VkmqaAttention attention) {
    if (!vkmqa_is_attention(attention))
        return;
    const struct VkmqaContext_T* context = attention->context;
    if (!vkmqa_is_inherited(context)) {
        vkmqa_destroy_pipelines(attention);
        vkmqaDestroyRecorder(attention->leftRecorder);
        context->vk.DestroyFence(context->device, attention->leftFence, vkmqa_allocator(context));
        context->vk.DestroyCommandPool(context->device, attention->leftPool, vkmqa_allocator(context));
    }
    attention->magic = 0;
    vkmqa_free(vkmqa_allocator(attention->context), attention);
}

static VkResult wrong(VkmqaAttention attention, const char* call,
                      const struct VkmqaProblem* problem) {
    return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call,
                      problem->text);
}

static VkBufferUsageFlags storage_usage(VkmqaAttention attention) {
    return VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
           (attention->choice.bind ? 0 : VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT);
}

VkResult vkmqaGetKvRequirements(VkmqaAttention attention, uint32_t numPages,
                                VkmqaKvRequirements* requirements) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    const struct VkmqaShape* shape = &attention->shape;
    const struct VkmqaCaps* caps = &attention->context->caps;
    struct VkmqaProblem problem;
    struct VkmqaCacheBytes bytes;
    if (!vkmqa_open_output(requirements, sizeof *requirements, sizeof *requirements, "requirements",
                           &problem) ||
        !vkmqa_cache_bytes(shape, numPages, &bytes, &problem))
        return wrong(attention, "vkmqaGetKvRequirements", &problem);
    uint64_t k = bytes.allK, v = bytes.allV;
    if (attention->choice.bind && (k > caps->maxStorageRange || v > caps->maxStorageRange)) {
        vkmqa_problem(&problem, "numPages is %u: one layer's %s takes %llu bytes, and kernels "
                                "with descriptors reach %llu (maxStorageBufferRange)", numPages,
                      k > v ? "K" : "V", (unsigned long long)(k > v ? k : v),
                      (unsigned long long)caps->maxStorageRange);
        return wrong(attention, "vkmqaGetKvRequirements", &problem);
    }
    requirements->pageTokens = shape->pageTokens;
    requirements->rowBytesK = vkmqa_row_bytes(shape->headDimQk, shape->kType);
    requirements->scaleBytesK = vkmqa_scale_bytes(shape->headDimQk, shape->kType);
    requirements->scalesOffsetK = requirements->scaleBytesK ? bytes.rowsK : 0;
    if (!shape->vPrefix) {
        requirements->rowBytesV = vkmqa_row_bytes(shape->headDimV, shape->vType);
        requirements->scaleBytesV = vkmqa_scale_bytes(shape->headDimV, shape->vType);
        requirements->scalesOffsetV = requirements->scaleBytesV ? bytes.rowsV : 0;
    }
    requirements->bytesPerToken = vkmqa_token_bytes(shape);
    requirements->k = (VkmqaBufferRequirements){k, 16, storage_usage(attention)};
    requirements->v = (VkmqaBufferRequirements){v, 16, storage_usage(attention)};
    return VK_SUCCESS;
}

// The limits, defaults filled, or the reason why not.
static VkResult read_limits(VkmqaAttention attention, const char* call,
                            const VkmqaStepLimits* given, const void* output,
                            VkmqaStepLimits* limits) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaProblem problem = {"limits is null; give the maxima of the step"};
    if (!given)
        return wrong(attention, call, &problem);
    if (!output) {
        vkmqa_problem(&problem, "the result's pointer is null; give a place for it");
        return wrong(attention, call, &problem);
    }
    if (!vkmqa_make_limits(&attention->shape, given, limits, &problem))
        return wrong(attention, call, &problem);
    return VK_SUCCESS;
}

VkResult vkmqaGetScratchRequirements(VkmqaAttention attention, const VkmqaStepLimits* given,
                                     VkmqaBufferRequirements* requirements) {
    VkmqaStepLimits limits;
    VkResult result =
        read_limits(attention, "vkmqaGetScratchRequirements", given, requirements, &limits);
    if (result != VK_SUCCESS)
        return result;
    struct VkmqaProblem problem;
    uint64_t bytes;
    if (!vkmqa_scratch_bound(&attention->shape, &attention->choice, &limits, &bytes, &problem))
        return wrong(attention, "vkmqaGetScratchRequirements", &problem);
    *requirements = (VkmqaBufferRequirements){bytes, 16, storage_usage(attention)};
    return VK_SUCCESS;
}

// The byte offset of `count` words more, or VKMQA_NONE.
static uint32_t place(uint64_t* words, uint64_t count, bool wanted) {
    uint64_t offset = *words * 4;
    if (!wanted)
        return VKMQA_NONE;
    *words += count;
    return (uint32_t)offset;
}

VkResult vkmqaGetStepLayout(VkmqaAttention attention, const VkmqaStepLimits* given,
                            VkmqaStepLayout* layout, VkmqaBufferRequirements* requirements) {
    VkmqaStepLimits limits;
    VkResult result = read_limits(attention, "vkmqaGetStepLayout", given,
                                  layout ? (void*)requirements : NULL, &limits);
    if (result != VK_SUCCESS)
        return result;
    const struct VkmqaShape* shape = &attention->shape;
    bool paged = shape->pageShift != VKMQA_CONTIGUOUS;
    uint64_t maxPages =
        paged ? ((uint64_t)limits.maxSeqLenKv + shape->pageTokens - 1) / shape->pageTokens : 0;
    bool rope = shape->ropeStyle != VKMQA_ROPE_NONE, tree = shape->maskKind == VKMQA_MASK_TREE;
    uint64_t words = 0;
    VkmqaStepLayout packed = {.maxPages = (uint32_t)maxPages};
    packed.cuSeqlensQ = place(&words, (uint64_t)limits.batch + 1, true);
    packed.seqLensKv = place(&words, limits.batch, true);
    packed.slotMapping = place(&words, limits.newTokens, true);
    packed.positions = place(&words, limits.newTokens, rope);
    packed.queryPositions = place(&words, limits.totalQ, rope);
    packed.cuAccepted = place(&words, (uint64_t)limits.batch + 1, tree);
    packed.accepted = place(&words, limits.totalQ, tree);
    packed.status = place(&words, 1, true);
    packed.pageTable = place(&words, maxPages * limits.batch, paged);
    if (words * 4 >= VKMQA_NONE) {
        struct VkmqaProblem problem;
        vkmqa_problem(&problem, "limits.batch is %u: a page table of %llu entries each does not fit "
                                "32-bit offsets; use larger pages or a smaller maxSeqLenKv",
                      limits.batch, (unsigned long long)maxPages);
        return wrong(attention, "vkmqaGetStepLayout", &problem);
    }
    *layout = packed;
    *requirements = (VkmqaBufferRequirements){(words * 4 + 15) & ~(uint64_t)15, 16,
                                              storage_usage(attention)};
    return VK_SUCCESS;
}

VkResult vkmqaGetKernelInfo(VkmqaAttention attention, const VkmqaStepLimits* given,
                            VkmqaKernelInfo* kernelInfo) {
    VkmqaStepLimits limits;
    VkResult result = read_limits(attention, "vkmqaGetKernelInfo", given, kernelInfo, &limits);
    if (result != VK_SUCCESS)
        return result;
    struct VkmqaProblem problem;
    const struct VkmqaShape* shape = &attention->shape;
    struct VkmqaPlan plan;
    if (!vkmqa_open_output(kernelInfo, sizeof *kernelInfo, sizeof *kernelInfo, "kernelInfo",
                           &problem) ||
        !vkmqa_make_plan(&attention->context->caps, shape, &attention->choice, &limits, &plan,
                         &problem))
        return wrong(attention, "vkmqaGetKernelInfo", &problem);
    const struct VkmqaCandidate* candidate = &attention->choice.candidates[plan.candidate];
    kernelInfo->kernel = candidate->kernel;
    kernelInfo->tier = candidate->tier;
    kernelInfo->name = candidate->name;
    kernelInfo->reason = candidate->reason;
    memcpy(kernelInfo->workgroups, plan.groups, sizeof plan.groups);
    kernelInfo->usesDescriptors = candidate->bind;
    kernelInfo->splits = plan.splits;
    kernelInfo->rowsPerTile = candidate->rows;
    kernelInfo->subgroupSize = candidate->subgroupSize;
    kernelInfo->sharedMemory = candidate->sharedMemory;
    kernelInfo->appendName = vkmqaGetKernelName(attention->choice.appendKernel);
    struct VkmqaCost cost =
        vkmqa_estimate(&attention->context->caps, shape, &attention->choice, &limits, &plan);
    kernelInfo->cacheBytesRead = cost.cacheBytes;
    kernelInfo->flops = cost.flops;
    kernelInfo->estimatedSeconds = cost.seconds;
    return VK_SUCCESS;
}

// The known-answer test: does this driver compute what the kernels say? SPDX-License-Identifier: MIT
#include "verify.h"

#include <string.h>

VkResult vkmqaGetVerifyRequirements(VkmqaAttention attention,
                                    VkmqaBufferRequirements* requirements) {
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    if (!requirements)
        return vkmqa_fail(attention->context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaGetVerifyRequirements: requirements is null; give a place for them");
    struct VkmqaTrial trial;
    VkResult result = vkmqa_make_trial(attention, &trial);
    if (result != VK_SUCCESS)
        return result;
    uint64_t alignment = attention->context->caps.storageAlignment;
    *requirements = (VkmqaBufferRequirements){
        trial.size, alignment > 256 ? alignment : 256,
        VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
            (attention->choice.bind ? 0 : VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT)};
    return VK_SUCCESS;
}

// ---- running ---------------------------------------------------------------------------------

struct Runner {
    struct VkmqaTrial* trial;
    const VkmqaVerifyInfo* info;
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
    const struct VkmqaContext_T* context = runner->trial->attention.context;
    const VkAllocationCallbacks* allocator = vkmqa_allocator(context);
    const struct VkmqaTrial* trial = runner->trial;
    runner->step = (VkmqaStep){.structSize = sizeof(VkmqaStep), .limits = trial->limits,
                               .layout = trial->step,
                               .metadata = range(runner, trial->metadata, trial->bytesMetadata)};
    runner->kv = (VkmqaKv){range(runner, trial->k, trial->bytesK),
                           range(runner, trial->v, trial->bytesV), trial->numPages};
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
        result = vkmqaCreateRecorder(runner->trial->attention.context, &recorderInfo, &runner->recorder);
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
    const struct VkmqaContext_T* context = runner->trial->attention.context;
    vkmqaDestroyRecorder(runner->recorder);
    context->vk.DestroyFence(context->device, runner->fence, vkmqa_allocator(context));
    context->vk.DestroyCommandPool(context->device, runner->pool, vkmqa_allocator(context));
}

static VkResult record_append(struct Runner* runner) {
    struct VkmqaTrial* trial = runner->trial;
    VkmqaAppendInfo append = {
        .structSize = sizeof append,
        .recorder = runner->recorder,
        .step = &runner->step,
        .kv = &runner->kv,
        .newK = range(runner, trial->newK, trial->bytesNewK),
        .newV = range(runner, trial->newV, trial->bytesNewV),
        .parameters = range(runner, trial->parameters, trial->bytesParameters),
    };
    if (trial->rotates) {
        append.q = range(runner, trial->q, trial->bytesQ);
        append.rotatedQ = range(runner, trial->rotatedQ, trial->bytesRotatedQ);
    }
    return vkmqaCmdAppendKv(&trial->attention, runner->commands, &append);
}

static VkResult record_attention(struct Runner* runner, uint32_t candidate, uint32_t splits) {
    struct VkmqaTrial* trial = runner->trial;
    VkmqaAttentionInfo attend = {
        .structSize = sizeof attend,
        .recorder = runner->recorder,
        .step = &runner->step,
        .kv = &runner->kv,
        .q = trial->rotates ? range(runner, trial->rotatedQ, trial->bytesRotatedQ)
                            : range(runner, trial->q, trial->bytesQ),
        .out = range(runner, trial->out, trial->bytesOut),
        .lse = range(runner, trial->lse, trial->bytesLse),
        .scratch = range(runner, trial->scratch, trial->bytesScratch),
        .parameters = range(runner, trial->parameters, trial->bytesParameters),
        .mask = range(runner, trial->mask, trial->bytesMask),
        .maskStride = trial->maskStride,
    };
    // The plan of this candidate alone, with the splits to be tried.
    struct VkmqaShape shape = trial->attention.shape;
    shape.splitSize = splits == 1 ? 128 : VKMQA_TRIAL_SPLIT;
    struct VkmqaChoice alone = trial->attention.choice;
    alone.count = 1;
    alone.candidates[0] = trial->attention.choice.candidates[candidate];
    struct VkmqaPlan plan;
    struct VkmqaProblem problem;
    if (!vkmqa_make_plan(&trial->attention.context->caps, &shape, &alone, &trial->limits, &plan, &problem))
        return vkmqa_fail(trial->attention.context, VK_ERROR_VALIDATION_FAILED_EXT,
                          "vkmqaVerifyAttention: %s", problem.text);
    plan.candidate = candidate;
    uint32_t dispatches;
    return vkmqa_record_attention(&trial->attention, runner->commands, "vkmqaVerifyAttention", &attend,
                                  &runner->step, &trial->limits, &plan, &dispatches);
}

static void use_queue(const struct Runner* runner, VkmqaQueueCallback callback) {
    if (callback)
        callback(runner->info->queueUserData, runner->info->queue);
}

// splits 0: append.
static VkResult run(struct Runner* runner, uint32_t candidate, uint32_t splits) {
    const struct VkmqaContext_T* context = runner->trial->attention.context;
    VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    VkResult result = vkmqaResetRecorder(runner->recorder);
    if (result == VK_SUCCESS)
        result = context->vk.BeginCommandBuffer(runner->commands, &begin);
    if (result != VK_SUCCESS)
        return result;
    result = splits ? record_attention(runner, candidate, splits) : record_append(runner);
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
    if (result == VK_SUCCESS) {
        use_queue(runner, runner->info->lockQueue);
        result = context->vk.QueueSubmit(runner->info->queue, 1, &submit, runner->fence);
        use_queue(runner, runner->info->unlockQueue);
    }
    if (result != VK_SUCCESS)
        return result;
    uint64_t timeout = runner->info->timeoutNs ? runner->info->timeoutNs : 10000000000ull;
    result = context->vk.WaitForFences(context->device, 1, &runner->fence, VK_TRUE, timeout);
    runner->pending = result == VK_TIMEOUT;
    if (result < 0 && result != VK_ERROR_DEVICE_LOST) { // no memory for this way of waiting
        use_queue(runner, runner->info->lockQueue);
        VkResult idle = context->vk.QueueWaitIdle(runner->info->queue);
        use_queue(runner, runner->info->unlockQueue);
        runner->pending = idle != VK_SUCCESS && idle != VK_ERROR_DEVICE_LOST;
    }
    return result;
}

// Runs everything once; *failed gets the kernels that answered wrongly.
static VkResult run_all(struct Runner* runner, uint64_t* failed) {
    struct VkmqaTrial* trial = runner->trial;
    const struct VkmqaContext_T* context = trial->attention.context;
    const struct VkmqaChoice* choice = &trial->attention.choice;
    char* memory = runner->info->mapped;
    VkResult result = vkmqa_write_question(trial, memory);
    if (result == VK_SUCCESS)
        result = run(runner, 0, 0);
    if (result != VK_SUCCESS)
        return result;
    if (!vkmqa_append_is_right(trial, memory)) {
        vkmqa_message(context, VKMQA_SEVERITY_WARNING, "kernel %s writes a wrong cache on this driver",
                      vkmqaGetKernelName(choice->appendKernel));
        *failed |= 1ull << choice->appendKernel; // what attention makes of that cache says nothing
        return VK_SUCCESS;
    }
    for (uint32_t i = 0; i < choice->count; ++i)
        for (uint32_t splits = 1; splits <= 2; ++splits) {
            memset(memory + trial->out, 0xFF, trial->bytesOut);
            memset(memory + trial->lse, 0xFF, trial->bytesLse);
            memset(memory + trial->scratch, 0xFF, trial->bytesScratch);
            memset(memory + trial->metadata + trial->step.status, 0, 4);
            result = run(runner, i, splits);
            if (result != VK_SUCCESS)
                return result;
            if (!vkmqa_answer_is_right(trial, memory)) {
                vkmqa_message(context, VKMQA_SEVERITY_WARNING, "kernel %s%s answers wrongly on this driver",
                              choice->candidates[i].name, splits > 1 ? " with a merge" : "");
                *failed |= 1ull << choice->candidates[i].kernel;
            }
        }
    return VK_SUCCESS;
}

VkResult vkmqaVerifyAttention(VkmqaAttention attention, const VkmqaVerifyInfo* given,
                              uint64_t* failedKernels) {
    static const char call[] = "vkmqaVerifyAttention";
    if (!vkmqa_is_attention(attention))
        return VK_ERROR_VALIDATION_FAILED_EXT;
    struct VkmqaContext_T* context = attention->context;
    if (vkmqa_check_process(context, call) != VK_SUCCESS)
        return VK_ERROR_VALIDATION_FAILED_EXT;
    VkmqaVerifyInfo info;
    struct VkmqaProblem problem = {""};
    struct VkmqaTrial trial;
    if (!vkmqa_read_struct(given, &info, sizeof info, sizeof info, "info", &problem)) {
    } else if (!failedKernels) {
        vkmqa_problem(&problem, "failedKernels is null; give a place for the result");
    } else if (!info.queue) {
        vkmqa_problem(&problem, "info.queue is null; give a queue with compute");
    } else if (!info.lockQueue != !info.unlockQueue) {
        vkmqa_problem(&problem, "info.%s is null; give both lockQueue and unlockQueue, or none",
                      info.lockQueue ? "unlockQueue" : "lockQueue");
    } else if (!info.mapped) {
        vkmqa_problem(&problem, "info.mapped is null; give the host address of info.memory");
    } else {
        VkResult result = vkmqa_make_trial(attention, &trial);
        if (result != VK_SUCCESS)
            return result;
        if (info.memory.size < trial.size)
            vkmqa_problem(&problem, "info.memory.size is %llu; use vkmqaGetVerifyRequirements, "
                                    "which says %llu", (unsigned long long)info.memory.size,
                          (unsigned long long)trial.size);
    }
    if (problem.text[0])
        return vkmqa_fail(context, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
    *failedKernels = 0;
    struct Runner runner = {.trial = &trial, .info = &info};
    VkResult result = create_runner(&runner);
    if (result == VK_SUCCESS)
        result = run_all(&runner, failedKernels);
    if (runner.pending && !attention->leftPool) { // a queue that hangs still uses them
        attention->leftPool = runner.pool;
        attention->leftFence = runner.fence;
        attention->leftRecorder = runner.recorder;
    } else if (!runner.pending) {
        destroy_runner(&runner);
    }
    if (result != VK_SUCCESS)
        vkmqa_fail(context, result, "%s: the test could not run to its end (%d)", call, result);
    return result;
}

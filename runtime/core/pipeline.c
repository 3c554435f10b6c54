// Layouts, shader modules and pipelines. SPDX-License-Identifier: MIT
#include <string.h>

#include "context.h"
#include "vkmqa_shader_ids.h"
#include "vkmqa_spirv.inc"

struct Spirv {
    const char* name;
    const uint32_t* words;
    size_t count;
};
#define SPIRV_ROW(name, words, count) {#name, words, count},
static const struct Spirv spirv[VKMQA_SHADER_COUNT] = {VKMQA_SPIRV_LIST(SPIRV_ROW)};
#undef SPIRV_ROW

// One uint per specialisation constant, in the order of their ids.
struct SpecData {
#define SPEC_MEMBER(id, name, value) uint32_t name;
    VKMQA_SPEC_LIST(SPEC_MEMBER)
#undef SPEC_MEMBER
};
static const VkSpecializationMapEntry specEntries[] = {
#define SPEC_ENTRY(id, name, value) {id, offsetof(struct SpecData, name), sizeof(uint32_t)},
    VKMQA_SPEC_LIST(SPEC_ENTRY)
#undef SPEC_ENTRY
};

VkResult vkmqa_create_layouts(struct VkmqaContext_T* context) {
    const VkAllocationCallbacks* allocator = vkmqa_allocator(context);
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, 128};
    VkPipelineLayoutCreateInfo layoutInfo = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
        .pushConstantRangeCount = 1,
        .pPushConstantRanges = &range,
    };
    VkResult result = context->vk.CreatePipelineLayout(context->device, &layoutInfo, allocator,
                                                       &context->addressLayout);
    if (result != VK_SUCCESS)
        context->addressLayout = VK_NULL_HANDLE;
    if (result == VK_SUCCESS && context->caps.storageBuffersPerStage >= VKMQA_BIND_COUNT) {
        VkDescriptorSetLayoutBinding bindings[VKMQA_BIND_COUNT];
        for (uint32_t i = 0; i < VKMQA_BIND_COUNT; ++i)
            bindings[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1,
                                                         VK_SHADER_STAGE_COMPUTE_BIT, NULL};
        VkDescriptorSetLayoutCreateInfo setInfo = {
            .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
            .flags = context->caps.pushDescriptor
                         ? VK_DESCRIPTOR_SET_LAYOUT_CREATE_PUSH_DESCRIPTOR_BIT_KHR
                         : 0,
            .bindingCount = VKMQA_BIND_COUNT,
            .pBindings = bindings,
        };
        result = context->vk.CreateDescriptorSetLayout(context->device, &setInfo, allocator,
                                                       &context->setLayout);
        if (result != VK_SUCCESS) {
            context->setLayout = VK_NULL_HANDLE;
        } else {
            layoutInfo.setLayoutCount = 1;
            layoutInfo.pSetLayouts = &context->setLayout;
            result = context->vk.CreatePipelineLayout(context->device, &layoutInfo, allocator,
                                                      &context->bindLayout);
            if (result != VK_SUCCESS)
                context->bindLayout = VK_NULL_HANDLE;
        }
    }
    if (result != VK_SUCCESS) {
        vkmqa_fail(context, result, "Vulkan could not create the pipeline layouts (%d)", result);
        vkmqa_destroy_layouts(context);
    }
    return result;
}

void vkmqa_destroy_layouts(struct VkmqaContext_T* context) {
    const VkAllocationCallbacks* allocator = vkmqa_allocator(context);
    context->vk.DestroyPipelineLayout(context->device, context->bindLayout, allocator);
    context->vk.DestroyPipelineLayout(context->device, context->addressLayout, allocator);
    context->vk.DestroyDescriptorSetLayout(context->device, context->setLayout, allocator);
}

static uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static struct SpecData make_spec(const struct VkmqaAttention_T* attention) {
    const struct VkmqaShape* shape = &attention->shape;
    return (struct SpecData){
        .SUBGROUP = attention->context->caps.subgroupSize,
        .NUM_HEADS_Q = shape->numHeadsQ,
        .NUM_HEADS_KV = shape->numHeadsKv,
        .HEAD_DIM_QK = shape->headDimQk,
        .HEAD_DIM_V = shape->headDimV,
        .IO_TYPE = shape->ioType,
        .K_TYPE = shape->kType,
        .V_TYPE = shape->vType,
        .NEW_TYPE = shape->newType,
        .PAGE_SHIFT = shape->pageShift,
        .ROWS = 1,
        .CLUSTER = 1,
        .BLOCK = 1,
        .SCALE = float_bits(shape->scale),
        .SOFTCAP = float_bits(shape->softcap),
        .WINDOW_LEFT = shape->windowLeft,
        .WINDOW_RIGHT = shape->windowRight,
        .CHUNK = shape->chunk,
        .MASK_KIND = shape->maskKind,
        .ALIBI = shape->alibi,
        .SINKS = shape->sinks,
        .V_PREFIX = shape->vPrefix,
        .ROPE_STYLE = shape->ropeStyle,
        .ROPE_DIM = shape->ropeDim,
        .ROPE_OFFSET = shape->ropeOffset,
        .MATRIX_M = 16, // in bounds for kernels without matrices
        .MATRIX_N = 16,
        .MATRIX_K = 16,
        .COLUMN_GROUPS = 1,
        .HADAMARD = shape->hadamard,
        .GRID_WIDTH = attention->context->caps.maxGroupCount[0],
    };
}

enum { MAX_PIPELINES = VKMQA_MAX_CANDIDATES + 4 };

// Pipelines to compile, and what their infos point to.
struct Batch {
    struct VkmqaContext_T* context;
    uint32_t count;
    VkComputePipelineCreateInfo infos[MAX_PIPELINES];
    VkSpecializationInfo specInfos[MAX_PIPELINES];
    struct SpecData specs[MAX_PIPELINES];
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo sizes[MAX_PIPELINES];
    VkShaderModule modules[MAX_PIPELINES];
    VkPipeline pipelines[MAX_PIPELINES];
    VkResult results[MAX_PIPELINES];
};

// sliced: parts of its grid are dispatched.
static VkResult add_pipeline(struct VkmqaAttention_T* attention, struct Batch* batch,
                             uint32_t shader, uint32_t subgroupSize, struct SpecData spec, bool sliced) {
    struct VkmqaContext_T* context = attention->context;
    uint32_t i = batch->count;
    if (spirv[shader].count == 0)
        return vkmqa_fail(context, VK_ERROR_FEATURE_NOT_PRESENT,
                          "kernel %s was not built into this library", spirv[shader].name);
    VkShaderModuleCreateInfo moduleInfo = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = spirv[shader].count * 4,
        .pCode = spirv[shader].words,
    };
    VkResult result = context->vk.CreateShaderModule(context->device, &moduleInfo,
                                                     vkmqa_allocator(context), &batch->modules[i]);
    if (result != VK_SUCCESS)
        return vkmqa_fail(context, result, "Vulkan could not create the shader module of %s (%d)",
                          spirv[shader].name, result);
    batch->count++;
    batch->specs[i] = spec;
    batch->specInfos[i] = (VkSpecializationInfo){sizeof specEntries / sizeof specEntries[0],
                                                 specEntries, sizeof spec, &batch->specs[i]};
    batch->sizes[i] = (VkPipelineShaderStageRequiredSubgroupSizeCreateInfo){
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = subgroupSize,
    };
    // Kernels of more than one subgroup count on full ones.
    bool full = subgroupSize && context->caps.computeFullSubgroups;
    bool sized = subgroupSize && context->caps.subgroupSizeControl &&
                 subgroupSize >= context->caps.minSubgroupSize &&
                 subgroupSize <= context->caps.maxSubgroupSize;
    batch->infos[i] = (VkComputePipelineCreateInfo){
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = sliced ? VK_PIPELINE_CREATE_DISPATCH_BASE_BIT : 0,
        .stage = {
            .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
            .pNext = sized ? &batch->sizes[i] : NULL,
            .flags = full ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
            .stage = VK_SHADER_STAGE_COMPUTE_BIT,
            .module = batch->modules[i],
            .pName = "main",
            .pSpecializationInfo = &batch->specInfos[i],
        },
        .layout = attention->choice.bind ? context->bindLayout : context->addressLayout,
    };
    return VK_SUCCESS;
}

static void compile_one(void* user, uint32_t index) {
    struct Batch* batch = user;
    struct VkmqaContext_T* context = batch->context;
    batch->results[index] =
        context->vk.CreateComputePipelines(context->device, context->pipelineCache, 1, &batch->infos[index],
                                           vkmqa_allocator(context), &batch->pipelines[index]);
}

// All or none. Modules go, whatever comes of it.
static VkResult compile(struct Batch* batch, VkResult result) {
    struct VkmqaContext_T* context = batch->context;
    const VkAllocationCallbacks* allocator = vkmqa_allocator(context);
    if (result == VK_SUCCESS) {
        if (context->runJobs)
            context->runJobs(context->runJobsUserData, batch->count, compile_one, batch);
        else
            for (uint32_t i = 0; i < batch->count && result == VK_SUCCESS; ++i) {
                compile_one(batch, i);
                result = batch->results[i];
            }
        for (uint32_t i = 0; i < batch->count && result == VK_SUCCESS; ++i)
            result = batch->results[i];
        for (uint32_t i = 0; i < batch->count && result != VK_SUCCESS; ++i)
            if (batch->results[i] == VK_SUCCESS)
                context->vk.DestroyPipeline(context->device, batch->pipelines[i], allocator);
        if (result != VK_SUCCESS) {
            vkmqa_fail(context, result, "Vulkan could not compile the pipelines (%d)", result);
            result = result > 0 ? VK_ERROR_UNKNOWN : result;
        }
    }
    for (uint32_t i = 0; i < batch->count; ++i)
        context->vk.DestroyShaderModule(context->device, batch->modules[i], allocator);
    return result;
}

VkResult vkmqa_create_pipeline(struct VkmqaAttention_T* attention, uint32_t shader,
                               uint32_t workgroupSize, VkPipeline* pipeline) {
    struct Batch batch = {.context = attention->context};
    struct SpecData spec = make_spec(attention);
    spec.WG_SIZE = workgroupSize;
    VkResult result = add_pipeline(attention, &batch, shader, 0, spec, false);
    result = compile(&batch, result);
    if (result == VK_SUCCESS)
        *pipeline = batch.pipelines[0];
    return result;
}

VkResult vkmqa_create_pipelines(struct VkmqaAttention_T* attention) {
    const struct VkmqaChoice* choice = &attention->choice;
    struct Batch batch = {.context = attention->context};
    VkResult result = VK_SUCCESS;
    for (uint32_t i = 0; i < choice->count && result == VK_SUCCESS; ++i) {
        const struct VkmqaCandidate* candidate = &choice->candidates[i];
        struct SpecData spec = make_spec(attention);
        spec.WG_SIZE = candidate->workgroupSize;
        spec.ROWS = candidate->rows;
        spec.CLUSTER = candidate->cluster;
        if (candidate->subgroupSize)
            spec.SUBGROUP = candidate->subgroupSize;
        spec.BLOCK = candidate->block;
        if (candidate->matrix.m) {
            spec.MATRIX_M = candidate->matrix.m;
            spec.MATRIX_N = candidate->matrix.n;
            spec.MATRIX_K = candidate->matrix.k;
            spec.COLUMN_GROUPS = candidate->columnGroups;
            spec.SPREAD_FACTORS = candidate->spreadFactors;
            spec.HOLD_QUERIES = candidate->holdQueries;
            spec.PREFETCH = candidate->prefetch;
        }
        result = add_pipeline(attention, &batch, candidate->shader, candidate->subgroupSize, spec, true);
    }
    const struct {
        uint32_t shader, workgroupSize;
        VkPipeline* pipeline;
    } others[] = {
        {choice->appendShader, choice->appendWorkgroupSize, &attention->append},
        {choice->mergeShader, choice->mergeWorkgroupSize, &attention->merge},
        {choice->mergeStatesShader, choice->mergeWorkgroupSize, &attention->mergeStates},
        {choice->compactShader, choice->compactWorkgroupSize, &attention->compact}, // the last one
    };
    uint32_t otherCount = attention->shape.maskKind == VKMQA_MASK_TREE ? 4 : 3;
    for (uint32_t i = 0; i < otherCount && result == VK_SUCCESS; ++i) {
        struct SpecData spec = make_spec(attention);
        spec.WG_SIZE = others[i].workgroupSize;
        result = add_pipeline(attention, &batch, others[i].shader, 0, spec, false);
    }
    result = compile(&batch, result);
    if (result != VK_SUCCESS)
        return result;
    memcpy(attention->attention, batch.pipelines, choice->count * sizeof(VkPipeline));
    for (uint32_t i = 0; i < otherCount; ++i)
        *others[i].pipeline = batch.pipelines[choice->count + i];
    return VK_SUCCESS;
}

void vkmqa_destroy_pipelines(struct VkmqaAttention_T* attention) {
    struct VkmqaContext_T* context = attention->context;
    for (uint32_t i = 0; i < attention->choice.count; ++i)
        context->vk.DestroyPipeline(context->device, attention->attention[i],
                                    vkmqa_allocator(context));
    const VkPipeline others[] = {attention->append, attention->merge, attention->mergeStates,
                                 attention->compact};
    for (uint32_t i = 0; i < sizeof others / sizeof others[0]; ++i)
        context->vk.DestroyPipeline(context->device, others[i], vkmqa_allocator(context));
}

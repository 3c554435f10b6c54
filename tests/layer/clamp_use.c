// What a small device cannot be handed: shaders, layouts, descriptors.
#include "clamp.h"

#include "clamp_spirv.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// ---- Shaders -------------------------------------------------------------------------------------

enum { SPIRV_1_3 = 0x00010300, MATRIX = 0, SHADER = 1, GROUP_NON_UNIFORM = 61, MAX_MODULES = 4096 };

typedef struct Module {
    VkShaderModule module;
    uint32_t* words;
    size_t count;
} Module;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Module modules[MAX_MODULES];
static uint32_t moduleCount;

static void checkModule(const VkShaderModuleCreateInfo* info) {
    const ClampShader shader = clampReadShader(info->pCode, info->codeSize / 4, NULL);
    if (shader.version > SPIRV_1_3)
        clampBroken("vkCreateShaderModule: SPIR-V version 0x%x; Vulkan 1.1 has 1.3", shader.version);
    const uint64_t beyond = shader.capabilities & ~(1ull << MATRIX | 1ull << SHADER | 1ull << GROUP_NON_UNIFORM);
    if (beyond)
        clampBroken("vkCreateShaderModule: SPIR-V capabilities (bits 0x%llx) that need features the device lacks",
                    (unsigned long long)beyond);
}

VKAPI_ATTR VkResult VKAPI_CALL clampShader(VkDevice device, const VkShaderModuleCreateInfo* info,
                                           const VkAllocationCallbacks* allocator, VkShaderModule* module) {
    if (clampProfile->plain)
        checkModule(info);
    VkResult result = LAYER_NEXT(vkCreateShaderModule)(device, info, allocator, module);
    if (result != VK_SUCCESS)
        return result;
    const Module made = {*module, malloc(info->codeSize), info->codeSize / 4};
    memcpy(made.words, info->pCode, info->codeSize);
    pthread_mutex_lock(&mutex);
    if (moduleCount == MAX_MODULES)
        clampBroken("more than %d shader modules", MAX_MODULES);
    modules[moduleCount++] = made;
    pthread_mutex_unlock(&mutex);
    return result;
}

VKAPI_ATTR void VKAPI_CALL clampDestroyShader(VkDevice device, VkShaderModule module,
                                              const VkAllocationCallbacks* allocator) {
    pthread_mutex_lock(&mutex);
    for (uint32_t i = moduleCount; i-- > 0;)
        if (modules[i].module == module) {
            free(modules[i].words);
            modules[i] = modules[--moduleCount];
        }
    pthread_mutex_unlock(&mutex);
    LAYER_NEXT(vkDestroyShaderModule)(device, module, allocator);
}

static void checkStage(const VkPipelineShaderStageCreateInfo* stage) {
    Module module = {0}; // its words stay: it may not be destroyed while pipelines are made of it
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < moduleCount; i++)
        if (modules[i].module == stage->module)
            module = modules[i];
    pthread_mutex_unlock(&mutex);
    if (!module.words)
        clampBroken("vkCreateComputePipelines: no such shader module");
    const ClampShader shader = clampReadShader(module.words, module.count, stage->pSpecializationInfo);
    uint64_t invocations = 1;
    if (shader.unknown)
        clampBroken("vkCreateComputePipelines: the layer cannot compute OpSpecConstantOp %u", shader.unknown);
    for (int i = 0; i < 3; i++) {
        invocations *= shader.size[i];
        if (shader.size[i] > clampLimits.maxComputeWorkGroupSize[i])
            clampBroken("vkCreateComputePipelines: workgroup size %u, maxComputeWorkGroupSize[%d] is %u",
                        shader.size[i], i, clampLimits.maxComputeWorkGroupSize[i]);
    }
    if (invocations > clampLimits.maxComputeWorkGroupInvocations)
        clampBroken("vkCreateComputePipelines: %llu invocations, maxComputeWorkGroupInvocations is %u",
                    (unsigned long long)invocations, clampLimits.maxComputeWorkGroupInvocations);
    if (shader.shared > clampLimits.maxComputeSharedMemorySize)
        clampBroken("vkCreateComputePipelines: %llu bytes of workgroup memory, maxComputeSharedMemorySize is %u",
                    (unsigned long long)shader.shared, clampLimits.maxComputeSharedMemorySize);
    if (clampProfile->plain && (stage->pNext || stage->flags))
        clampBroken("vkCreateComputePipelines: a stage with flags or a struct of subgroup size control");
}

VKAPI_ATTR VkResult VKAPI_CALL clampPipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                              const VkComputePipelineCreateInfo* infos,
                                              const VkAllocationCallbacks* allocator, VkPipeline* pipelines) {
    for (uint32_t i = 0; i < count; i++)
        checkStage(&infos[i].stage);
    return LAYER_NEXT(vkCreateComputePipelines)(device, cache, count, infos, allocator, pipelines);
}

// ---- Layouts and descriptors ---------------------------------------------------------------------

VKAPI_ATTR VkResult VKAPI_CALL clampSetLayout(VkDevice device, const VkDescriptorSetLayoutCreateInfo* info,
                                              const VkAllocationCallbacks* allocator, VkDescriptorSetLayout* layout) {
    uint32_t buffers = 0;
    for (uint32_t i = 0; i < info->bindingCount; i++)
        if (info->pBindings[i].descriptorType == VK_DESCRIPTOR_TYPE_STORAGE_BUFFER)
            buffers += info->pBindings[i].descriptorCount;
    if (buffers > clampLimits.maxPerStageDescriptorStorageBuffers)
        clampBroken("vkCreateDescriptorSetLayout: %u storage buffers, maxPerStageDescriptorStorageBuffers is %u",
                    buffers, clampLimits.maxPerStageDescriptorStorageBuffers);
    if (clampProfile->plain && info->flags)
        clampBroken("vkCreateDescriptorSetLayout: flags 0x%x are of extensions", info->flags);
    return LAYER_NEXT(vkCreateDescriptorSetLayout)(device, info, allocator, layout);
}

VKAPI_ATTR VkResult VKAPI_CALL clampPipelineLayout(VkDevice device, const VkPipelineLayoutCreateInfo* info,
                                                   const VkAllocationCallbacks* allocator, VkPipelineLayout* layout) {
    for (uint32_t i = 0; i < info->pushConstantRangeCount; i++)
        if (info->pPushConstantRanges[i].offset + info->pPushConstantRanges[i].size > clampLimits.maxPushConstantsSize)
            clampBroken("vkCreatePipelineLayout: %u bytes of push constants, maxPushConstantsSize is %u",
                        info->pPushConstantRanges[i].offset + info->pPushConstantRanges[i].size,
                        clampLimits.maxPushConstantsSize);
    return LAYER_NEXT(vkCreatePipelineLayout)(device, info, allocator, layout);
}

static void checkWrites(const char* call, uint32_t count, const VkWriteDescriptorSet* writes) {
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0;
             writes[i].descriptorType == VK_DESCRIPTOR_TYPE_STORAGE_BUFFER && j < writes[i].descriptorCount; j++) {
            const VkDescriptorBufferInfo* buffer = &writes[i].pBufferInfo[j];
            if (buffer->offset % clampLimits.minStorageBufferOffsetAlignment)
                clampBroken("%s: offset %llu, minStorageBufferOffsetAlignment is %llu", call,
                            (unsigned long long)buffer->offset,
                            (unsigned long long)clampLimits.minStorageBufferOffsetAlignment);
            if (buffer->range != VK_WHOLE_SIZE && buffer->range > clampLimits.maxStorageBufferRange)
                clampBroken("%s: range %llu, maxStorageBufferRange is %u", call, (unsigned long long)buffer->range,
                            clampLimits.maxStorageBufferRange);
        }
}

VKAPI_ATTR void VKAPI_CALL clampDescriptors(VkDevice device, uint32_t writeCount, const VkWriteDescriptorSet* writes,
                                            uint32_t copyCount, const VkCopyDescriptorSet* copies) {
    checkWrites("vkUpdateDescriptorSets", writeCount, writes);
    LAYER_NEXT(vkUpdateDescriptorSets)(device, writeCount, writes, copyCount, copies);
}

VKAPI_ATTR void VKAPI_CALL clampPushDescriptors(VkCommandBuffer commands, VkPipelineBindPoint point,
                                                VkPipelineLayout layout, uint32_t set, uint32_t count,
                                                const VkWriteDescriptorSet* writes) {
    if (clampProfile->plain)
        clampBroken("vkCmdPushDescriptorSetKHR is of an extension");
    checkWrites("vkCmdPushDescriptorSetKHR", count, writes);
    LAYER_NEXT(vkCmdPushDescriptorSetKHR)(commands, point, layout, set, count, writes);
}

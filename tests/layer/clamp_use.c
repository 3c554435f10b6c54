// What a small device cannot be handed: shaders, layouts, descriptors.
#include "clamp.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// ---- Shaders -------------------------------------------------------------------------------------

// From the SPIR-V specification.
enum {
    SPIRV_1_3 = 0x00010300,
    OP_EXECUTION_MODE = 16,
    OP_CAPABILITY = 17,
    OP_CONSTANT = 43,
    OP_CONSTANT_COMPOSITE = 44,
    OP_SPEC_CONSTANT = 50,
    OP_SPEC_CONSTANT_COMPOSITE = 51,
    OP_DECORATE = 71,
    OP_EXECUTION_MODE_ID = 331,
    MODE_LOCAL_SIZE = 17,
    MODE_LOCAL_SIZE_ID = 38,
    DECORATION_SPEC_ID = 1,
    DECORATION_BUILT_IN = 11,
    BUILT_IN_WORKGROUP_SIZE = 25,
    CAPABILITY_MATRIX = 0,
    CAPABILITY_SHADER = 1,
    CAPABILITY_GROUP_NON_UNIFORM = 61,
};

typedef struct Shader {
    VkShaderModule module;
    struct {
        uint32_t value;
        int64_t specId; // -1: none
    } size[3];
} Shader;

enum { MAX_SHADERS = 4096 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Shader shaders[MAX_SHADERS];
static uint32_t shaderCount;

static void checkCapability(uint32_t capability) {
    if (clampProfile->plain && capability != CAPABILITY_MATRIX && capability != CAPABILITY_SHADER &&
        capability != CAPABILITY_GROUP_NON_UNIFORM)
        clampBroken("vkCreateShaderModule: SPIR-V capability %u needs a feature that the device lacks", capability);
}

// Where its workgroup size comes from. Numbers in SPIR-V are ids unless they are literals.
static Shader readShader(const uint32_t* words, size_t count) {
    Shader shader = {.size = {{1, -1}, {1, -1}, {1, -1}}};
    const uint32_t bound = words[3];
    uint32_t* values = calloc(bound, sizeof(*values)); // of constants
    int64_t* specIds = malloc(bound * sizeof(*specIds));
    uint32_t sizeIds[3] = {0}, composite = 0;
    for (uint32_t i = 0; i < bound; i++)
        specIds[i] = -1;
    if (clampProfile->plain && words[1] > SPIRV_1_3)
        clampBroken("vkCreateShaderModule: SPIR-V version 0x%x; Vulkan 1.1 has 1.3", words[1]);
    for (size_t at = 5; at < count && words[at] >> 16; at += words[at] >> 16) {
        const uint32_t* operands = words + at + 1;
        switch (words[at] & 0xFFFF) {
        case OP_CAPABILITY:
            checkCapability(operands[0]);
            break;
        case OP_EXECUTION_MODE:
            for (int i = 0; operands[1] == MODE_LOCAL_SIZE && i < 3; i++)
                shader.size[i].value = operands[2 + i];
            break;
        case OP_EXECUTION_MODE_ID:
            if (operands[1] == MODE_LOCAL_SIZE_ID)
                memcpy(sizeIds, operands + 2, sizeof(sizeIds));
            break;
        case OP_DECORATE:
            if (operands[1] == DECORATION_SPEC_ID)
                specIds[operands[0]] = operands[2];
            if (operands[1] == DECORATION_BUILT_IN && operands[2] == BUILT_IN_WORKGROUP_SIZE)
                composite = operands[0];
            break;
        case OP_CONSTANT:
        case OP_SPEC_CONSTANT:
            values[operands[1]] = operands[2];
            break;
        case OP_CONSTANT_COMPOSITE:
        case OP_SPEC_CONSTANT_COMPOSITE:
            if (operands[1] == composite)
                memcpy(sizeIds, operands + 2, sizeof(sizeIds));
            break;
        }
    }
    for (int i = 0; sizeIds[0] && i < 3; i++) {
        shader.size[i].value = values[sizeIds[i]];
        shader.size[i].specId = specIds[sizeIds[i]];
    }
    free(values);
    free(specIds);
    return shader;
}

VKAPI_ATTR VkResult VKAPI_CALL clampShader(VkDevice device, const VkShaderModuleCreateInfo* info,
                                           const VkAllocationCallbacks* allocator, VkShaderModule* module) {
    Shader shader = readShader(info->pCode, info->codeSize / 4);
    VkResult result = LAYER_NEXT(vkCreateShaderModule)(device, info, allocator, module);
    if (result != VK_SUCCESS)
        return result;
    shader.module = *module;
    pthread_mutex_lock(&mutex);
    if (shaderCount == MAX_SHADERS)
        clampBroken("more than %d shader modules", MAX_SHADERS);
    shaders[shaderCount++] = shader;
    pthread_mutex_unlock(&mutex);
    return result;
}

VKAPI_ATTR void VKAPI_CALL clampDestroyShader(VkDevice device, VkShaderModule module,
                                              const VkAllocationCallbacks* allocator) {
    pthread_mutex_lock(&mutex);
    for (uint32_t i = shaderCount; i-- > 0;)
        if (module && shaders[i].module == module)
            shaders[i] = shaders[--shaderCount];
    pthread_mutex_unlock(&mutex);
    LAYER_NEXT(vkDestroyShaderModule)(device, module, allocator);
}

static uint32_t specialised(uint32_t value, int64_t specId, const VkSpecializationInfo* info) {
    for (uint32_t i = 0; info && i < info->mapEntryCount; i++)
        if (info->pMapEntries[i].constantID == specId)
            memcpy(&value, (const char*)info->pData + info->pMapEntries[i].offset, sizeof(value));
    return value;
}

static void checkWorkgroup(const VkPipelineShaderStageCreateInfo* stage) {
    uint64_t invocations = 1;
    Shader shader = {0};
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < shaderCount; i++)
        if (shaders[i].module == stage->module)
            shader = shaders[i];
    pthread_mutex_unlock(&mutex);
    for (int i = 0; shader.module && i < 3; i++) {
        uint32_t size = specialised(shader.size[i].value, shader.size[i].specId, stage->pSpecializationInfo);
        invocations *= size;
        if (size > clampLimits.maxComputeWorkGroupSize[i])
            clampBroken("vkCreateComputePipelines: workgroup size %u, maxComputeWorkGroupSize[%d] is %u", size, i,
                        clampLimits.maxComputeWorkGroupSize[i]);
    }
    if (invocations > clampLimits.maxComputeWorkGroupInvocations)
        clampBroken("vkCreateComputePipelines: %llu invocations, maxComputeWorkGroupInvocations is %u",
                    (unsigned long long)invocations, clampLimits.maxComputeWorkGroupInvocations);
    if (clampProfile->plain && (stage->pNext || stage->flags))
        clampBroken("vkCreateComputePipelines: a stage with flags or a struct of subgroup size control");
}

VKAPI_ATTR VkResult VKAPI_CALL clampPipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                              const VkComputePipelineCreateInfo* infos,
                                              const VkAllocationCallbacks* allocator, VkPipeline* pipelines) {
    for (uint32_t i = 0; i < count; i++)
        checkWorkgroup(&infos[i].stage);
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

VKAPI_ATTR void VKAPI_CALL clampTimestamp(VkCommandBuffer commands, VkPipelineStageFlagBits stage, VkQueryPool pool,
                                          uint32_t query) {
    if (clampProfile->timestampless)
        clampBroken("vkCmdWriteTimestamp on a queue without timestamps");
    LAYER_NEXT(vkCmdWriteTimestamp)(commands, stage, pool, query);
}

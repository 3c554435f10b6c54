// Pipelines, descriptor sets and dispatches of the tool's own shaders.
// SPDX-License-Identifier: MIT
#include "shader.h"

#include <stdlib.h>

BenchResult loadShaderTable(Session* session) {
    const VkmqaDeviceHandles* h = &session->handles;
    PFN_vkGetDeviceProcAddr load =
        (PFN_vkGetDeviceProcAddr)h->getInstanceProcAddr(h->instance, "vkGetDeviceProcAddr");
    ShaderTable* table = allocate(1, sizeof(*table));
    session->shaders = table;
    bool complete = load != NULL;
#define X(name) complete = complete && (table->name = (PFN_vk##name)load(h->device, "vk" #name));
    SHADER_FUNCTIONS(X)
#undef X
    return complete ? BENCH_OK : fail(BENCH_ERROR, "the driver lacks a function of Vulkan 1.0");
}

static BenchResult createLayouts(const ShaderTable* vk, VkDevice device, const ShaderInfo* info,
                                 Shader* shader) {
    VkDescriptorSetLayoutBinding bindings[SHADER_MAX_BUFFERS];
    for (uint32_t i = 0; i < info->bufferCount; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){
            .binding = i,
            .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .descriptorCount = 1,
            .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
        };
    VkDescriptorSetLayoutCreateInfo setInfo = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = info->bufferCount,
        .pBindings = bindings,
    };
    VkResult result = vk->CreateDescriptorSetLayout(device, &setInfo, NULL, &shader->setLayout);
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, PUSH_WORDS * 4};
    VkPipelineLayoutCreateInfo layoutInfo = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
        .setLayoutCount = 1,
        .pSetLayouts = &shader->setLayout,
        .pushConstantRangeCount = 1,
        .pPushConstantRanges = &range,
    };
    if (result == VK_SUCCESS)
        result = vk->CreatePipelineLayout(device, &layoutInfo, NULL, &shader->layout);
    return checkVk(result, info->name);
}

static BenchResult createPipeline(const ShaderTable* vk, VkDevice device, const ShaderInfo* info,
                                  Shader* shader) {
    VkShaderModuleCreateInfo moduleInfo = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = info->codeBytes,
        .pCode = info->code,
    };
    VkSpecializationMapEntry entries[16];
    for (uint32_t i = 0; i < info->constantCount; i++)
        entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    VkSpecializationInfo constants = {info->constantCount, entries, info->constantCount * 4ul,
                                      info->constants};
    VkResult result = vk->CreateShaderModule(device, &moduleInfo, NULL, &shader->module);
    VkComputePipelineCreateInfo pipelineInfo = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = shader->module,
                  .pName = "main",
                  .pSpecializationInfo = &constants},
        .layout = shader->layout,
    };
    if (result == VK_SUCCESS)
        result = vk->CreateComputePipelines(device, VK_NULL_HANDLE, 1, &pipelineInfo, NULL,
                                            &shader->pipeline);
    return checkVk(result, info->name);
}

static BenchResult createSets(const ShaderTable* vk, VkDevice device, const ShaderInfo* info,
                              Shader* shader) {
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                 info->bufferCount * info->setCount};
    VkDescriptorPoolCreateInfo poolInfo = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
        .maxSets = info->setCount,
        .poolSizeCount = 1,
        .pPoolSizes = &size,
    };
    VkResult result = vk->CreateDescriptorPool(device, &poolInfo, NULL, &shader->pool);
    shader->sets = allocate(info->setCount, sizeof(VkDescriptorSet));
    for (uint32_t i = 0; result == VK_SUCCESS && i < info->setCount; i++) {
        VkDescriptorSetAllocateInfo setInfo = {
            .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
            .descriptorPool = shader->pool,
            .descriptorSetCount = 1,
            .pSetLayouts = &shader->setLayout,
        };
        result = vk->AllocateDescriptorSets(device, &setInfo, &shader->sets[i]);
    }
    return checkVk(result, info->name);
}

BenchResult createShader(const Session* session, const ShaderInfo* info, Shader* shader) {
    const ShaderTable* vk = session->shaders;
    VkDevice device = session->handles.device;
    *shader =
        (Shader){.session = session, .bufferCount = info->bufferCount, .setCount = info->setCount};
    if (!info->codeBytes)
        return BENCH_SKIPPED;
    BenchResult result = createLayouts(vk, device, info, shader);
    if (result == BENCH_OK)
        result = createPipeline(vk, device, info, shader);
    if (result == BENCH_OK)
        result = createSets(vk, device, info, shader);
    if (result != BENCH_OK)
        destroyShader(shader);
    return result;
}

void destroyShader(Shader* shader) {
    if (!shader->session)
        return;
    const ShaderTable* vk = shader->session->shaders;
    VkDevice device = shader->session->handles.device;
    vk->DestroyDescriptorPool(device, shader->pool, NULL);
    vk->DestroyPipeline(device, shader->pipeline, NULL);
    vk->DestroyShaderModule(device, shader->module, NULL);
    vk->DestroyPipelineLayout(device, shader->layout, NULL);
    vk->DestroyDescriptorSetLayout(device, shader->setLayout, NULL);
    free(shader->sets);
    *shader = (Shader){0};
}

void setBuffers(const Shader* shader, uint32_t set, const VkmqaBuffer* buffers) {
    VkDescriptorBufferInfo infos[SHADER_MAX_BUFFERS];
    for (uint32_t i = 0; i < shader->bufferCount; i++)
        infos[i] = (VkDescriptorBufferInfo){buffers[i].buffer, buffers[i].offset, buffers[i].size};
    VkWriteDescriptorSet write = {
        .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
        .dstSet = shader->sets[set],
        .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
        .pBufferInfo = infos,
    };
    for (uint32_t i = 0; i < shader->bufferCount; i++) {
        write.dstBinding = i;
        write.descriptorCount = 1;
        write.pBufferInfo = &infos[i];
        shader->session->shaders->UpdateDescriptorSets(shader->session->handles.device, 1, &write,
                                                       0, NULL);
    }
}

void recordShader(const Shader* shader, VkCommandBuffer commandBuffer, uint32_t set,
                  const uint32_t push[PUSH_WORDS], uint32_t groups) {
    const ShaderTable* vk = shader->session->shaders;
    VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT,
    };
    VkPipelineStageFlags before =
        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    vk->CmdPipelineBarrier(commandBuffer, before, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1,
                           &barrier, 0, NULL, 0, NULL);
    vk->CmdBindPipeline(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, shader->pipeline);
    vk->CmdBindDescriptorSets(commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, shader->layout, 0, 1,
                              &shader->sets[set], 0, NULL);
    vk->CmdPushConstants(commandBuffer, shader->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                         PUSH_WORDS * 4, push);
    // Two dimensions: a device need not take more than 65535 groups in one.
    uint32_t y = (groups + 65534) / 65535, x = (groups + y - 1) / y;
    vk->CmdDispatch(commandBuffer, x, y, 1);
}

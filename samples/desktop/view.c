// Two compute shaders on the window's queue. SPDX-License-Identifier: MIT
#include "desktop.h"

#include "desktop_spirv.h"

#include <string.h>

enum { BINDINGS = 6 };
typedef struct Push {
    uint32_t heads, headsKv, dim, tokens, maxTokens, row, head, width, heatHeight, graphHeight, newest;
} Push;

static VkPipeline createPipeline(const View* view, VkDevice device, const uint32_t* words, size_t bytes) {
    VkShaderModule module;
    VkPipeline pipeline;
    CHECK(vkCreateShaderModule(device, &(VkShaderModuleCreateInfo){
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = bytes, .pCode = words}, NULL, &module));
    CHECK(vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &(VkComputePipelineCreateInfo){
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT, .module = module, .pName = "main"},
        .layout = view->layout}, NULL, &pipeline));
    vkDestroyShaderModule(device, module, NULL);
    return pipeline;
}

void viewOpen(View* view, const Window* window, const Model* model) {
    memset(view, 0, sizeof *view);
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_DEVICE, MAX_HEADS * WIDTH * 4, &view->heat));
    CHECK(vkmqaCreateMemory(model->device, VKMQA_MEMORY_UPLOAD, WIDTH * 4, &view->times));
    void* zero = calloc(MAX_HEADS * WIDTH, 4);
    CHECK(vkmqaUpload(view->heat, 0, zero, MAX_HEADS * WIDTH * 4));
    memcpy(vkmqaGetMemoryPointer(view->times), zero, WIDTH * 4);
    free(zero);
    VkDescriptorSetLayoutBinding bindings[BINDINGS];
    for (uint32_t i = 0; i < BINDINGS; ++i)
        bindings[i] = (VkDescriptorSetLayoutBinding){
            .binding = i, .descriptorCount = 1, .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
            .descriptorType = i == 5 ? VK_DESCRIPTOR_TYPE_STORAGE_IMAGE : VK_DESCRIPTOR_TYPE_STORAGE_BUFFER};
    VkDevice device = window->device;
    CHECK(vkCreateDescriptorSetLayout(device, &(VkDescriptorSetLayoutCreateInfo){
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = BINDINGS,
        .pBindings = bindings}, NULL, &view->setLayout));
    CHECK(vkCreatePipelineLayout(device, &(VkPipelineLayoutCreateInfo){
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = 1, .pSetLayouts = &view->setLayout,
        .pushConstantRangeCount = 1,
        .pPushConstantRanges = &(VkPushConstantRange){VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(Push)}},
        NULL, &view->layout));
    const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 5}, {VK_DESCRIPTOR_TYPE_STORAGE_IMAGE, 1}};
    CHECK(vkCreateDescriptorPool(device, &(VkDescriptorPoolCreateInfo){
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = 1, .poolSizeCount = 2, .pPoolSizes = sizes},
        NULL, &view->pool));
    CHECK(vkAllocateDescriptorSets(device, &(VkDescriptorSetAllocateInfo){
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO, .descriptorPool = view->pool, .descriptorSetCount = 1,
        .pSetLayouts = &view->setLayout}, &view->set));
    view->weights = createPipeline(view, device, spirv_weights, sizeof spirv_weights);
    view->draw = createPipeline(view, device, spirv_draw, sizeof spirv_draw);
}

// The last frame has finished: its set may be written.
static void bind(const View* view, const Window* window, const Model* model) {
    uint32_t shown = 1 - model->running;
    const VkmqaMemory memories[] = {model->q[shown], model->k, model->lse[shown], view->heat, view->times};
    VkDescriptorBufferInfo buffers[5];
    VkDescriptorImageInfo image = {.imageView = window->canvasView, .imageLayout = VK_IMAGE_LAYOUT_GENERAL};
    VkWriteDescriptorSet writes[BINDINGS];
    for (uint32_t i = 0; i < BINDINGS; ++i) {
        if (i < 5) {
            VkmqaBuffer range = vkmqaGetMemoryRange(memories[i], 0, 0);
            buffers[i] = (VkDescriptorBufferInfo){range.buffer, range.offset, range.size};
        }
        writes[i] = (VkWriteDescriptorSet){
            .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET, .dstSet = view->set, .dstBinding = i, .descriptorCount = 1,
            .descriptorType = i == 5 ? VK_DESCRIPTOR_TYPE_STORAGE_IMAGE : VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .pBufferInfo = i < 5 ? &buffers[i] : NULL, .pImageInfo = i == 5 ? &image : NULL};
    }
    vkUpdateDescriptorSets(window->device, BINDINGS, writes, 0, NULL);
}

void viewRecord(View* view, const Window* window, const Model* model, VkCommandBuffer commands, double frameSeconds) {
    Push push = {.heads = model->heads, .headsKv = HEADS_KV, .dim = DIM, .tokens = model->tokens,
                 .maxTokens = MAX_CONTEXT, .row = TOKENS - 1, .head = view->frame % model->heads, .width = WIDTH,
                 .heatHeight = HEAT_HEIGHT, .graphHeight = GRAPH_HEIGHT, .newest = view->frame % WIDTH};
    ((float*)vkmqaGetMemoryPointer(view->times))[push.newest] = (float)(frameSeconds * 1e3);
    bind(view, window, model);
    // What attention wrote, and what the last frame drew.
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1,
                         &barrier, 0, NULL, 0, NULL);
    vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, view->layout, 0, 1, &view->set, 0, NULL);
    vkCmdPushConstants(commands, view->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, &push);
    if (model->steps) { // one head a frame
        vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, view->weights);
        vkCmdDispatch(commands, (WIDTH + 63) / 64, 1, 1);
        vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1,
                             &barrier, 0, NULL, 0, NULL);
    }
    vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, view->draw);
    vkCmdDispatch(commands, (WIDTH + 63) / 64, HEIGHT, 1);
    view->frame++;
}

void viewClose(View* view, const Window* window) {
    vkDestroyPipeline(window->device, view->weights, NULL);
    vkDestroyPipeline(window->device, view->draw, NULL);
    vkDestroyPipelineLayout(window->device, view->layout, NULL);
    vkDestroyDescriptorPool(window->device, view->pool, NULL);
    vkDestroyDescriptorSetLayout(window->device, view->setLayout, NULL);
    vkmqaDestroyMemory(view->heat);
    vkmqaDestroyMemory(view->times);
}

// The roof of the matrix units. The library's device may be created without them, so this opens one of
// its own on the same physical device; nothing else of the tool runs on it.
// SPDX-License-Identifier: MIT
#include "bench.h"
#include "bench_spirv.h"

#include "../runtime/vk_coopmat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INSTANCE_FUNCTIONS(X)                                                                      \
    X(CreateDevice)                                                                                \
    X(EnumerateDeviceExtensionProperties)                                                          \
    X(GetDeviceProcAddr)                                                                           \
    X(GetPhysicalDeviceFeatures2)                                                                  \
    X(GetPhysicalDeviceMemoryProperties)
#define DEVICE_FUNCTIONS(X)                                                                        \
    X(AllocateCommandBuffers)                                                                      \
    X(AllocateDescriptorSets)                                                                      \
    X(AllocateMemory)                                                                              \
    X(BeginCommandBuffer)                                                                          \
    X(BindBufferMemory)                                                                            \
    X(CmdBindDescriptorSets)                                                                       \
    X(CmdBindPipeline)                                                                             \
    X(CmdDispatch)                                                                                 \
    X(CmdPushConstants)                                                                            \
    X(CreateBuffer)                                                                                \
    X(CreateCommandPool)                                                                           \
    X(CreateComputePipelines)                                                                      \
    X(CreateDescriptorPool)                                                                        \
    X(CreateDescriptorSetLayout)                                                                   \
    X(CreatePipelineLayout)                                                                        \
    X(CreateShaderModule)                                                                          \
    X(DestroyBuffer)                                                                               \
    X(DestroyCommandPool)                                                                          \
    X(DestroyDescriptorPool)                                                                       \
    X(DestroyDescriptorSetLayout)                                                                  \
    X(DestroyDevice)                                                                               \
    X(DestroyPipeline)                                                                             \
    X(DestroyPipelineLayout)                                                                       \
    X(DestroyShaderModule)                                                                         \
    X(EndCommandBuffer)                                                                            \
    X(FreeMemory)                                                                                  \
    X(GetBufferMemoryRequirements)                                                                 \
    X(GetDeviceQueue)                                                                              \
    X(MapMemory)                                                                                   \
    X(QueueSubmit)                                                                                 \
    X(QueueWaitIdle)                                                                               \
    X(ResetCommandPool)                                                                            \
    X(UpdateDescriptorSets)

enum { GROUPS = 1024 };

typedef struct Matrix {
    const Session* session;
#define X(name) PFN_vk##name name;
    INSTANCE_FUNCTIONS(X)
    DEVICE_FUNCTIONS(X)
#undef X
    uint32_t m, n, k; // the tile, f16 x f16 -> f32
    VkDevice device;
    VkQueue queue;
    VkBuffer buffers[2];
    VkDeviceMemory memories[2];
    const uint32_t* subgroups; // mapped: what the shader says of its workgroup
    VkShaderModule module;
    VkDescriptorSetLayout setLayout;
    VkPipelineLayout layout;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet set;
    VkCommandPool commandPool;
    VkCommandBuffer commandBuffer;
} Matrix;

static PFN_vkVoidFunction instanceFunction(const Matrix* x, const char* name) {
    return x->session->handles.getInstanceProcAddr(x->session->handles.instance, name);
}

static bool hasExtension(const Matrix* x, const char* name) {
    uint32_t count = 0;
    VkPhysicalDevice physical = x->session->handles.physicalDevice;
    if (x->EnumerateDeviceExtensionProperties(physical, NULL, &count, NULL) != VK_SUCCESS)
        return false;
    VkExtensionProperties* list = allocate(count, sizeof(*list));
    x->EnumerateDeviceExtensionProperties(physical, NULL, &count, list);
    bool found = false;
    for (uint32_t i = 0; i < count; i++)
        found = found || strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

// The largest tile of f16 x f16 -> f32 at subgroup scope.
static bool chooseTile(Matrix* x) {
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR getProperties =
        (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)instanceFunction(
            x, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    uint32_t count = 0;
    VkPhysicalDevice physical = x->session->handles.physicalDevice;
    if (!getProperties || getProperties(physical, &count, NULL) != VK_SUCCESS)
        return false;
    VkCooperativeMatrixPropertiesKHR* list = allocate(count, sizeof(*list));
    for (uint32_t i = 0; i < count; i++)
        list[i].sType = (VkStructureType)VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
    getProperties(physical, &count, list);
    for (uint32_t i = 0; i < count; i++) {
        const VkCooperativeMatrixPropertiesKHR* p = &list[i];
        if ((uint32_t)p->scope == VK_SCOPE_SUBGROUP_KHR && !p->saturatingAccumulation &&
            (uint32_t)p->AType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
            (uint32_t)p->BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
            (uint32_t)p->CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            (uint32_t)p->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            p->MSize * p->NSize * p->KSize > x->m * x->n * x->k)
            x->m = p->MSize, x->n = p->NSize, x->k = p->KSize;
    }
    free(list);
    return x->m != 0;
}

// Opens the device with what the shader needs. BENCH_SKIPPED where there are no matrix units.
static BenchResult openDevice(Matrix* x) {
    const VkmqaDeviceHandles* h = &x->session->handles;
    bool complete = true;
#define X(name) complete = complete && (x->name = (PFN_vk##name)instanceFunction(x, "vk" #name));
    INSTANCE_FUNCTIONS(X)
#undef X
    if (!complete || sizeof(spirv_roof_matrix) == 4 || x->session->options->portableOnly ||
        x->session->properties.apiVersion < VK_API_VERSION_1_2 ||
        !hasExtension(x, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME) || !chooseTile(x))
        return BENCH_SKIPPED;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix = {
        .sType =
            (VkStructureType)VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};
    VkPhysicalDeviceShaderFloat16Int8Features half = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, .pNext = &matrix};
    VkPhysicalDeviceVulkanMemoryModelFeatures model = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, .pNext = &half};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &model};
    x->GetPhysicalDeviceFeatures2(h->physicalDevice, &features);
    if (!matrix.cooperativeMatrix || !half.shaderFloat16 || !model.vulkanMemoryModel)
        return BENCH_SKIPPED;
    features.features = (VkPhysicalDeviceFeatures){0};
    float priority = 1;
    VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = h->computeFamily,
        .queueCount = 1,
        .pQueuePriorities = &priority,
    };
    const char* extensions[] = {VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME};
    VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = &features,
        .queueCreateInfoCount = 1,
        .pQueueCreateInfos = &queue,
        .enabledExtensionCount = 1,
        .ppEnabledExtensionNames = extensions,
    };
    BenchResult result = checkVk(x->CreateDevice(h->physicalDevice, &info, NULL, &x->device),
                                 "opening the matrix units");
    if (result != BENCH_OK)
        return result;
#define X(name)                                                                                    \
    complete = complete && (x->name = (PFN_vk##name)x->GetDeviceProcAddr(x->device, "vk" #name));
    DEVICE_FUNCTIONS(X)
#undef X
    if (!complete)
        return fail(BENCH_ERROR, "the driver lacks a function of Vulkan 1.0");
    x->GetDeviceQueue(x->device, h->computeFamily, 0, &x->queue);
    return BENCH_OK;
}

static VkResult createBuffer(Matrix* x, int index, VkDeviceSize size) {
    VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = size,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT,
    };
    VkResult result = x->CreateBuffer(x->device, &info, NULL, &x->buffers[index]);
    if (result != VK_SUCCESS)
        return result;
    VkMemoryRequirements requirements;
    VkPhysicalDeviceMemoryProperties memory;
    x->GetBufferMemoryRequirements(x->device, x->buffers[index], &requirements);
    x->GetPhysicalDeviceMemoryProperties(x->session->handles.physicalDevice, &memory);
    // Both are small and host-visible memory always exists; only the second is read by the host.
    const VkMemoryPropertyFlags wanted =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    uint32_t type = 0;
    while (type < memory.memoryTypeCount &&
           !(requirements.memoryTypeBits >> type & 1 &&
             (memory.memoryTypes[type].propertyFlags & wanted) == wanted))
        type++;
    VkMemoryAllocateInfo allocation = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
        .allocationSize = requirements.size,
        .memoryTypeIndex = type,
    };
    result = x->AllocateMemory(x->device, &allocation, NULL, &x->memories[index]);
    return result == VK_SUCCESS
               ? x->BindBufferMemory(x->device, x->buffers[index], x->memories[index], 0)
               : result;
}

static VkResult createPipeline(Matrix* x, uint32_t groupSize) {
    VkDescriptorSetLayoutBinding bindings[2] = {
        {0, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL},
        {1, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL},
    };
    VkDescriptorSetLayoutCreateInfo setInfo = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = 2,
        .pBindings = bindings,
    };
    VkResult result = x->CreateDescriptorSetLayout(x->device, &setInfo, NULL, &x->setLayout);
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, 12};
    VkPipelineLayoutCreateInfo layoutInfo = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
        .setLayoutCount = 1,
        .pSetLayouts = &x->setLayout,
        .pushConstantRangeCount = 1,
        .pPushConstantRanges = &range,
    };
    if (result == VK_SUCCESS)
        result = x->CreatePipelineLayout(x->device, &layoutInfo, NULL, &x->layout);
    VkShaderModuleCreateInfo moduleInfo = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = sizeof(spirv_roof_matrix),
        .pCode = spirv_roof_matrix,
    };
    if (result == VK_SUCCESS)
        result = x->CreateShaderModule(x->device, &moduleInfo, NULL, &x->module);
    bool onCpu = x->session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    uint32_t constants[] = {groupSize, x->m, x->n, x->k, onCpu};
    VkSpecializationMapEntry entries[] = {{0, 0, 4}, {1, 4, 4}, {2, 8, 4}, {3, 12, 4}, {4, 16, 4}};
    VkSpecializationInfo specialization = {5, entries, sizeof(constants), constants};
    VkComputePipelineCreateInfo pipelineInfo = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = x->module,
                  .pName = "main",
                  .pSpecializationInfo = &specialization},
        .layout = x->layout,
    };
    if (result == VK_SUCCESS)
        result = x->CreateComputePipelines(x->device, VK_NULL_HANDLE, 1, &pipelineInfo, NULL,
                                           &x->pipeline);
    return result;
}

static VkResult createCommands(Matrix* x) {
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 2};
    VkDescriptorPoolCreateInfo poolInfo = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
        .maxSets = 1,
        .poolSizeCount = 1,
        .pPoolSizes = &size,
    };
    VkResult result = x->CreateDescriptorPool(x->device, &poolInfo, NULL, &x->pool);
    VkDescriptorSetAllocateInfo setInfo = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
        .descriptorPool = x->pool,
        .descriptorSetCount = 1,
        .pSetLayouts = &x->setLayout,
    };
    if (result == VK_SUCCESS)
        result = x->AllocateDescriptorSets(x->device, &setInfo, &x->set);
    if (result != VK_SUCCESS)
        return result;
    for (uint32_t i = 0; i < 2; i++) {
        VkDescriptorBufferInfo buffer = {x->buffers[i], 0, VK_WHOLE_SIZE};
        VkWriteDescriptorSet write = {
            .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
            .dstSet = x->set,
            .dstBinding = i,
            .descriptorCount = 1,
            .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .pBufferInfo = &buffer,
        };
        x->UpdateDescriptorSets(x->device, 1, &write, 0, NULL);
    }
    VkCommandPoolCreateInfo commandInfo = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .queueFamilyIndex = x->session->handles.computeFamily,
    };
    result = x->CreateCommandPool(x->device, &commandInfo, NULL, &x->commandPool);
    VkCommandBufferAllocateInfo bufferInfo = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = x->commandPool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    return result == VK_SUCCESS
               ? x->AllocateCommandBuffers(x->device, &bufferInfo, &x->commandBuffer)
               : result;
}

// Wall time of one submission of `turns` turns.
static VkResult runTurns(Matrix* x, uint32_t turns, double* seconds) {
    struct {
        uint32_t turns;
        float value, one;
    } push = {turns, 0.03125f, 1};
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult result = x->ResetCommandPool(x->device, x->commandPool, 0);
    if (result == VK_SUCCESS)
        result = x->BeginCommandBuffer(x->commandBuffer, &begin);
    if (result != VK_SUCCESS)
        return result;
    x->CmdBindPipeline(x->commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, x->pipeline);
    x->CmdBindDescriptorSets(x->commandBuffer, VK_PIPELINE_BIND_POINT_COMPUTE, x->layout, 0, 1,
                             &x->set, 0, NULL);
    x->CmdPushConstants(x->commandBuffer, x->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(push),
                        &push);
    x->CmdDispatch(x->commandBuffer, GROUPS, 1, 1);
    result = x->EndCommandBuffer(x->commandBuffer);
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = &x->commandBuffer,
    };
    double start = secondsNow();
    if (result == VK_SUCCESS)
        result = x->QueueSubmit(x->queue, 1, &submit, VK_NULL_HANDLE);
    if (result == VK_SUCCESS)
        result = x->QueueWaitIdle(x->queue);
    *seconds = secondsNow() - start;
    return result;
}

static BenchResult measureMatrix(Matrix* x, Row* row) {
    uint32_t turns = 16;
    double seconds = 0, samples[10];
    uint32_t wanted = x->session->options->quick ? 3 : 10;
    VkResult result = runTurns(x, turns, &seconds); // compiles
    if (result == VK_SUCCESS)
        result = runTurns(x, turns, &seconds);
    while (result == VK_SUCCESS && seconds < 0.02 && turns < 1u << 20) {
        turns *= 2;
        result = runTurns(x, turns, &seconds);
    }
    for (uint32_t i = 0; result == VK_SUCCESS && i < wanted; i++)
        result = runTurns(x, turns, &samples[i]);
    if (result != VK_SUCCESS)
        return checkVk(result, "running the matrix units");
    row->time = summarise(samples, wanted);
    row->flops = 2.0 * x->m * x->n * x->k * 4 * turns * GROUPS * *x->subgroups;
    snprintf(row->kernel, sizeof(row->kernel), "f16 %ux%ux%u to f32", x->m, x->n, x->k);
    return BENCH_OK;
}

static void closeDevice(Matrix* x) {
    if (!x->device)
        return;
    if (x->QueueWaitIdle) {
        x->QueueWaitIdle(x->queue);
        x->DestroyCommandPool(x->device, x->commandPool, NULL);
        x->DestroyDescriptorPool(x->device, x->pool, NULL);
        x->DestroyPipeline(x->device, x->pipeline, NULL);
        x->DestroyShaderModule(x->device, x->module, NULL);
        x->DestroyPipelineLayout(x->device, x->layout, NULL);
        x->DestroyDescriptorSetLayout(x->device, x->setLayout, NULL);
        for (int i = 0; i < 2; i++) {
            x->DestroyBuffer(x->device, x->buffers[i], NULL);
            x->FreeMemory(x->device, x->memories[i], NULL);
        }
    }
    if (x->DestroyDevice)
        x->DestroyDevice(x->device, NULL);
}

BenchResult runMatrixRoof(Session* session, const Item* item, Row* row) {
    (void)item;
    Matrix x = {.session = session};
    BenchResult result = openDevice(&x);
    if (result == BENCH_OK) {
        uint32_t subgroup =
            session->properties.subgroupSize ? session->properties.subgroupSize : 32;
        uint32_t groupSize =
            subgroup * (session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU ? 1 : 4);
        VkDeviceSize tiles = (VkDeviceSize)GROUPS * (groupSize / (subgroup < 8 ? subgroup : 8));
        void* mapped = NULL;
        VkResult made = createBuffer(&x, 0, tiles * x.m * x.n * 4);
        if (made == VK_SUCCESS)
            made = createBuffer(&x, 1, 256);
        if (made == VK_SUCCESS)
            made = x.MapMemory(x.device, x.memories[1], 0, VK_WHOLE_SIZE, 0, &mapped);
        if (made == VK_SUCCESS)
            made = createPipeline(&x, groupSize);
        if (made == VK_SUCCESS)
            made = createCommands(&x);
        x.subgroups = mapped;
        result = checkVk(made, "setting up the matrix units");
    }
    if (result == BENCH_OK)
        result = measureMatrix(&x, row);
    closeDevice(&x);
    return result;
}

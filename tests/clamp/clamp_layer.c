#include "clamp.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUNCTIONS(X)                                                                               \
    X(vkCreateDevice)                                                                              \
    X(vkCreateShaderModule)                                                                        \
    X(vkCreateComputePipelines)                                                                    \
    X(vkCreatePipelineLayout)                                                                      \
    X(vkCreateDescriptorSetLayout)                                                                 \
    X(vkCmdWriteTimestamp)                                                                         \
    X(vkQueueSubmit)                                                                               \
    X(vkCmdBindPipeline)                                                                           \
    X(vkCreateCommandPool)                                                                         \
    X(vkDestroyCommandPool)                                                                        \
    X(vkAllocateCommandBuffers)                                                                    \
    X(vkBeginCommandBuffer)                                                                        \
    X(vkCmdCopyBuffer)                                                                             \
    X(vkGetPhysicalDeviceMemoryProperties)                                                         \
    X(vkCreateBuffer)                                                                              \
    X(vkDestroyBuffer)                                                                             \
    X(vkGetBufferMemoryRequirements)                                                               \
    X(vkAllocateMemory)                                                                            \
    X(vkFreeMemory)                                                                                \
    X(vkBindBufferMemory)                                                                          \
    X(vkMapMemory)                                                                                 \
    X(vkFlushMappedMemoryRanges)                                                                   \
    X(vkInvalidateMappedMemoryRanges)

enum { BYTES = 1024, WORDS = BYTES / 4 }; // of a buffer

static VkmqaDeviceHandles handles;
#define POINTER(name) static PFN_##name name;
FUNCTIONS(POINTER)

void clampLoad(void) {
    handles.structSize = sizeof(handles);
    vkmqaGetDeviceHandles(harness.device, &handles);
#define LOAD(name) name = (PFN_##name)handles.getInstanceProcAddr(handles.instance, #name);
    FUNCTIONS(LOAD)
}

// The layer ends a program before it calls the driver, whose threads have stayed in the parent.
static void expectEnd(void (*misuse)(const void*), const void* data) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        misuse(data);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
        fail_msg("the layer has not noticed (status 0x%x)", (unsigned)status);
}

// ---- Devices -------------------------------------------------------------------------------------

static VkResult makeDevice(const void* chain, const VkPhysicalDeviceFeatures* features, const char* extension) {
    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = handles.computeFamily,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = chain,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = extension ? 1 : 0,
                                     .ppEnabledExtensionNames = &extension,
                                     .pEnabledFeatures = features};
    VkDevice device;
    return vkCreateDevice(handles.physicalDevice, &info, NULL, &device);
}

void layerRefusesDevices(void** state) {
    (void)state;
    const VkPhysicalDeviceFeatures int16 = {.shaderInt16 = VK_TRUE};
    VkPhysicalDevice16BitStorageFeatures storage = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, .storageBuffer16BitAccess = VK_TRUE};
    VkPhysicalDeviceBufferDeviceAddressFeatures address = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES};
    assert_int_equal(makeDevice(NULL, &int16, NULL), VK_ERROR_FEATURE_NOT_PRESENT);
    assert_int_equal(makeDevice(&storage, NULL, NULL), VK_ERROR_FEATURE_NOT_PRESENT);
    assert_int_equal(makeDevice(&address, NULL, NULL), VK_ERROR_FEATURE_NOT_PRESENT); // knows no such struct
    assert_int_equal(makeDevice(NULL, NULL, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME), VK_ERROR_EXTENSION_NOT_PRESENT);
}

// ---- Shaders and layouts -------------------------------------------------------------------------

// void main() {} with a workgroup size and one more capability (0: Matrix, which Shader implies).
typedef struct Module {
    uint32_t version, capability, size[3];
} Module;

static void createPipeline(const void* data) {
    const Module* module = data;
    const uint32_t words[] = {
        0x07230203, module->version, 0, 5, 0,                             // header; ids below 5
        2 << 16 | 17, 1, 2 << 16 | 17, module->capability,                // OpCapability
        3 << 16 | 14, 0, 1,                                               // OpMemoryModel Logical GLSL450
        5 << 16 | 15, 5, 1, 0x6E69616D, 0,                                // OpEntryPoint GLCompute %1 "main"
        6 << 16 | 16, 1, 17, module->size[0], module->size[1], module->size[2], // OpExecutionMode LocalSize
        2 << 16 | 19, 2, 3 << 16 | 33, 3, 2,                              // OpTypeVoid, OpTypeFunction
        5 << 16 | 54, 2, 1, 0, 3, 2 << 16 | 248, 4, 1 << 16 | 253, 1 << 16 | 56,
    };
    const VkShaderModuleCreateInfo shader = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = sizeof(words), .pCode = words};
    VkComputePipelineCreateInfo pipeline = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                            .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                      .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                      .pName = "main"}};
    VkPipeline made;
    if (vkCreateShaderModule(handles.device, &shader, NULL, &pipeline.stage.module) == VK_SUCCESS)
        vkCreateComputePipelines(handles.device, VK_NULL_HANDLE, 1, &pipeline, NULL, &made);
}

void layerRefusesShaders(void** state) {
    (void)state;
    static const Module modules[] = {
        {0x10300, 0, {129, 1, 1}}, {0x10300, 0, {16, 3, 3}}, {0x10300, 0, {1, 1, 65}},
        {0x10400, 0, {1, 1, 1}},   {0x10300, 9, {1, 1, 1}}, // Float16
    };
    for (size_t i = 0; i < COUNT(modules); i++)
        expectEnd(createPipeline, &modules[i]);
}

static void createSetLayout(const void* data) {
    const VkDescriptorSetLayoutBinding binding = {0, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, *(const uint32_t*)data,
                                                  VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    const VkDescriptorSetLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                                  .bindingCount = 1,
                                                  .pBindings = &binding};
    VkDescriptorSetLayout layout;
    vkCreateDescriptorSetLayout(handles.device, &info, NULL, &layout);
}

static void createPipelineLayout(const void* range) {
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                             .pushConstantRangeCount = 1,
                                             .pPushConstantRanges = range};
    VkPipelineLayout layout;
    vkCreatePipelineLayout(handles.device, &info, NULL, &layout);
}

void layerRefusesLayouts(void** state) {
    (void)state;
    expectEnd(createSetLayout, &(uint32_t){9});
    expectEnd(createPipelineLayout, &(VkPushConstantRange){VK_SHADER_STAGE_COMPUTE_BIT, 0, 260});
}

static void writeTimestamp(const void* commands) {
    vkCmdWriteTimestamp(*(const VkCommandBuffer*)commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, VK_NULL_HANDLE, 0);
}

void layerRefusesTimestamps(void** state) {
    (void)state;
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    VkCommandBuffer buffer = vkmqaGetCommandBuffer(commands);
    expectEnd(writeTimestamp, &buffer);
    vkmqaDestroyCommands(commands);
}

// ---- Queues --------------------------------------------------------------------------------------

static VkCommandBuffer copyCommands; // of the family of copies, recording

static void submitTo(const void* queue) {
    const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1,
                                 .pCommandBuffers = &copyCommands};
    vkQueueSubmit(*(const VkQueue*)queue, 1, &submit, VK_NULL_HANDLE);
}

static void bindForCopies(const void* nothing) {
    (void)nothing;
    vkCmdBindPipeline(copyCommands, VK_PIPELINE_BIND_POINT_COMPUTE, VK_NULL_HANDLE);
}

static void copyUnshared(const void* buffer) {
    vkCmdCopyBuffer(copyCommands, *(const VkBuffer*)buffer, *(const VkBuffer*)buffer, 1,
                    &(VkBufferCopy){0, BYTES / 2, BYTES / 2});
}

static void createDeviceOfQueues(const void* family) {
    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = *(const uint32_t*)family,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue};
    VkDevice device;
    vkCreateDevice(handles.physicalDevice, &info, NULL, &device);
}

void layerRefusesQueues(void** state) {
    (void)state;
    const VkCommandPoolCreateInfo poolInfo = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                              .queueFamilyIndex = handles.transferFamily};
    VkCommandPool pool;
    REQUIRE(vkCreateCommandPool(handles.device, &poolInfo, NULL, &pool));
    const VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = pool, .commandBufferCount = 1};
    REQUIRE(vkAllocateCommandBuffers(handles.device, &allocate, &copyCommands));
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    REQUIRE(vkBeginCommandBuffer(copyCommands, &begin));
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = BYTES,
                                     .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    VkBuffer buffer;
    REQUIRE(vkCreateBuffer(handles.device, &info, NULL, &buffer));
    expectEnd(submitTo, &handles.computeQueue);
    expectEnd(bindForCopies, NULL);
    expectEnd(copyUnshared, &buffer);
    expectEnd(writeTimestamp, &copyCommands);
    expectEnd(createDeviceOfQueues, &(uint32_t){3}); // of which there is none
    expectEnd(createDeviceOfQueues, &(uint32_t){4});
    vkDestroyBuffer(handles.device, buffer, NULL);
    vkDestroyCommandPool(handles.device, pool, NULL);
}

// ---- Mapped memory -------------------------------------------------------------------------------

// A buffer in visible memory that is not coherent.
typedef struct Incoherent {
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint32_t* words;
} Incoherent;

static Incoherent incoherentCreate(bool cached) {
    const VkMemoryPropertyFlags wanted =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | (cached ? VK_MEMORY_PROPERTY_HOST_CACHED_BIT : 0u);
    Incoherent made;
    VkPhysicalDeviceMemoryProperties properties;
    vkGetPhysicalDeviceMemoryProperties(handles.physicalDevice, &properties);
    uint32_t type = 0;
    while ((properties.memoryTypes[type].propertyFlags & ~(VkFlags)VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) != wanted)
        assert_true(++type < properties.memoryTypeCount);
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = BYTES,
                                     .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    VkMemoryRequirements needs;
    REQUIRE(vkCreateBuffer(handles.device, &info, NULL, &made.buffer));
    vkGetBufferMemoryRequirements(handles.device, made.buffer, &needs);
    assert_true(needs.memoryTypeBits >> type & 1);
    const VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                           .allocationSize = needs.size,
                                           .memoryTypeIndex = type};
    REQUIRE(vkAllocateMemory(handles.device, &allocate, NULL, &made.memory));
    REQUIRE(vkBindBufferMemory(handles.device, made.buffer, made.memory, 0));
    REQUIRE(vkMapMemory(handles.device, made.memory, 0, VK_WHOLE_SIZE, 0, (void**)&made.words));
    return made;
}

static void incoherentDestroy(Incoherent* made) {
    vkDestroyBuffer(handles.device, made->buffer, NULL);
    vkFreeMemory(handles.device, made->memory, NULL);
}

static void copyOnDevice(VkBuffer from, VkBuffer to) {
    const VkBufferCopy region = {0, 0, BYTES};
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    vkCmdCopyBuffer(vkmqaGetCommandBuffer(commands), from, to, 1, &region);
    REQUIRE(vkmqaSubmitCommands(commands));
    REQUIRE(vkmqaWaitCommands(commands, UINT64_MAX));
    vkmqaDestroyCommands(commands);
}

static void fill(uint32_t* words, uint32_t salt) {
    for (uint32_t i = 0; i < WORDS; i++)
        words[i] = (i + salt) * 2654435761u;
}

void mappedMemoryIsCoherent(void** state) {
    (void)state;
    VkmqaMemory up, down;
    uint32_t words[WORDS];
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, BYTES, &up));
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DOWNLOAD, BYTES, &down));
    for (uint32_t salt = 1; salt < 4; salt++) {
        fill(words, salt);
        memcpy(vkmqaGetMemoryPointer(up), words, BYTES);
        copyOnDevice(vkmqaGetMemoryRange(up, 0, 0).buffer, vkmqaGetMemoryRange(down, 0, 0).buffer);
        assert_memory_equal(vkmqaGetMemoryPointer(down), words, BYTES);
    }
    vkmqaDestroyMemory(up);
    vkmqaDestroyMemory(down);
}

static void checkFlushes(bool cached) {
    Incoherent made = incoherentCreate(cached);
    const VkMappedMemoryRange all = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE,
                                     .memory = made.memory,
                                     .size = VK_WHOLE_SIZE};
    VkMappedMemoryRange half = all;
    VkmqaMemory memory;
    uint32_t words[WORDS];
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DOWNLOAD, BYTES, &memory));
    const VkBuffer buffer = vkmqaGetMemoryRange(memory, 0, 0).buffer;
    const uint32_t* back = vkmqaGetMemoryPointer(memory);
    fill(words, 1);
    memcpy(made.words, words, BYTES);
    copyOnDevice(made.buffer, buffer);
    assert_memory_not_equal(back, words, BYTES / 2);
    half.size = BYTES / 2;
    REQUIRE(vkFlushMappedMemoryRanges(handles.device, 1, &half));
    copyOnDevice(made.buffer, buffer);
    assert_memory_equal(back, words, BYTES / 2);
    assert_memory_not_equal(back + WORDS / 2, words + WORDS / 2, BYTES / 2);

    fill(words, 2);
    memcpy(vkmqaGetMemoryPointer(memory), words, BYTES);
    copyOnDevice(buffer, made.buffer);
    assert_memory_not_equal(made.words, words, BYTES);
    REQUIRE(vkInvalidateMappedMemoryRanges(handles.device, 1, &all));
    assert_memory_equal(made.words, words, BYTES);
    vkmqaDestroyMemory(memory);
    incoherentDestroy(&made);
}

void layerNeedsFlushes(void** state) {
    (void)state;
    checkFlushes(false);
    checkFlushes(true);
}

static void flushOddly(const void* range) { vkFlushMappedMemoryRanges(handles.device, 1, range); }

void layerRefusesRanges(void** state) {
    (void)state;
    Incoherent made = incoherentCreate(true);
    VkMappedMemoryRange range = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE,
                                 .memory = made.memory,
                                 .offset = 64,
                                 .size = 256};
    expectEnd(flushOddly, &range);
    range.offset = 256;
    range.size = 64;
    expectEnd(flushOddly, &range);
    incoherentDestroy(&made);
}

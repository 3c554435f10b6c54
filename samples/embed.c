// A program that has Vulkan already, and what it adds to attend: the part between the two lines, which docs/embedding.md
// shows. SPDX-License-Identifier: MIT
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <vkmqa/vkmqa_runtime.h>
#include <vulkan/vulkan.h>

enum { HEADS = 8, DIM = 64, MAX = 1024, TOKENS = 5 }; // 8 query heads on one key/value head
#define TRY(call) do { VkResult r_ = (call); if (r_) return r_; } while (0)

// ---- added -------------------------------------------------------------------------------------------
typedef struct Attention {
    VkmqaDevice device; // yours, imported
    VkmqaAttention object;
    VkmqaRecorder recorder; // of descriptors, which some devices need
    VkmqaMemory k, v, scratch, metadata;
    VkmqaStep step;
} Attention;

static VkResult attentionCreate(Attention* a, const VkmqaDeviceImportInfo* yours) {
    TRY(vkmqaImportDevice(yours, &a->device));
    TRY(vkmqaDeviceCreateAttention(a->device, &(VkmqaAttentionCreateInfo){.structSize = sizeof(VkmqaAttentionCreateInfo),
        .numHeadsQ = HEADS, .numHeadsKv = 1, .headDimQk = DIM, .maxSeqLenKv = MAX, .ioType = VKMQA_TYPE_F32}, &a->object));
    a->step = (VkmqaStep){.structSize = sizeof a->step, .limits = {.batch = 1, .totalQ = 1}}; // one token a time
    VkmqaKvRequirements kv = {.structSize = sizeof kv};
    VkmqaBufferRequirements metadata, scratch;
    TRY(vkmqaGetKvRequirements(a->object, 1, &kv));
    TRY(vkmqaGetStepLayout(a->object, &a->step.limits, &a->step.layout, &metadata));
    TRY(vkmqaGetScratchRequirements(a->object, &a->step.limits, &scratch));
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_DEVICE, kv.k.size, &a->k));
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_DEVICE, kv.v.size, &a->v));
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_DEVICE, scratch.size + 4, &a->scratch)); // it may need none
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_UPLOAD, metadata.size, &a->metadata));
    a->step.metadata = vkmqaGetMemoryRange(a->metadata, 0, 0);
    return vkmqaCreateRecorder(vkmqaGetDeviceContext(a->device),
        &(VkmqaRecorderCreateInfo){.structSize = sizeof(VkmqaRecorderCreateInfo), .maxCalls = 2}, &a->recorder);
}

static VkResult attentionRecord(Attention* a, VkCommandBuffer commands, const VkmqaBuffer io[4]) { // q, new K and V, out
    VkmqaKv kv = {vkmqaGetMemoryRange(a->k, 0, 0), vkmqaGetMemoryRange(a->v, 0, 0), .numPages = 1};
    TRY(vkmqaCmdAppendKv(a->object, commands, &(VkmqaAppendInfo){.structSize = sizeof(VkmqaAppendInfo),
        .recorder = a->recorder, .step = &a->step, .kv = &kv, .newK = io[1], .newV = io[2]}));
    return vkmqaCmdAttention(a->object, commands, &(VkmqaAttentionInfo){.structSize = sizeof(VkmqaAttentionInfo),
        .recorder = a->recorder, .step = &a->step, .kv = &kv, .q = io[0], .out = io[3],
        .scratch = vkmqaGetMemoryRange(a->scratch, 0, 0)});
}

static void attentionStep(Attention* a, int32_t token) { // before its submission: which token this is
    int32_t* words = vkmqaGetMemoryPointer(a->metadata);
    words[a->step.layout.cuSeqlensQ / 4] = words[a->step.layout.status / 4] = 0;
    words[a->step.layout.cuSeqlensQ / 4 + 1] = 1; // one query token
    words[a->step.layout.seqLensKv / 4] = token + 1;
    words[a->step.layout.slotMapping / 4] = token;
}
// ------------------------------------------------------------------------------------------------------

static void attentionDestroy(Attention* a) { // in reverse, once nothing of it is pending
    VkmqaMemory memories[] = {a->k, a->v, a->scratch, a->metadata};
    for (int i = 0; i < 4; ++i)
        vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyRecorder(a->recorder);
    vkmqaDestroyAttention(a->object);
    vkmqaCloseDevice(a->device);
}

static void say(VkmqaSeverity severity, const char* text, void* userData) {
    if (severity == VKMQA_SEVERITY_ERROR)
        fprintf(userData, "vkmqa: %s\n", text);
}

// What such a program has: an instance, a device with a queue, a command buffer. All but the one call of
// vkmqaGetDeviceRequirements is its own.
typedef struct Program {
    VkInstance instance;
    VkPhysicalDevice gpu;
    VkDevice device;
    VkQueue queue;
    uint32_t family;
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkmqaDeviceRequirements needs;
} Program;

static VkResult programCreate(Program* p) {
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_2};
    VkInstance instance; // what fails may leave anything here
    TRY(vkCreateInstance(&(VkInstanceCreateInfo){.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                                 .pApplicationInfo = &app}, NULL, &instance));
    p->instance = instance;
    uint32_t count = 1;
    if (vkEnumeratePhysicalDevices(p->instance, &count, &p->gpu) < 0 || count == 0)
        return VK_ERROR_INITIALIZATION_FAILED;
    VkQueueFamilyProperties families[16];
    count = 16;
    vkGetPhysicalDeviceQueueFamilyProperties(p->gpu, &count, families);
    while (p->family + 1 < count && !(families[p->family].queueFlags & VK_QUEUE_COMPUTE_BIT))
        ++p->family;
    p->needs.structSize = sizeof p->needs;
    TRY(vkmqaGetDeviceRequirements(&(VkmqaDeviceRequirementsInfo){.structSize = sizeof(VkmqaDeviceRequirementsInfo),
        .apiVersion = app.apiVersion, .instance = p->instance, .physicalDevice = p->gpu,
        .getInstanceProcAddr = vkGetInstanceProcAddr}, &p->needs));
    float priority = 1;
    VkDevice device;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = p->family, .queueCount = 1, .pQueuePriorities = &priority};
    TRY(vkCreateDevice(p->gpu, &(VkDeviceCreateInfo){.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = p->needs.features, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue,
        .enabledExtensionCount = p->needs.extensionCount, .ppEnabledExtensionNames = p->needs.extensionNames},
        NULL, &device));
    p->device = device;
    vkGetDeviceQueue(p->device, p->family, 0, &p->queue);
    VkCommandPool pool;
    TRY(vkCreateCommandPool(p->device, &(VkCommandPoolCreateInfo){.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .queueFamilyIndex = p->family}, NULL, &pool));
    p->pool = pool;
    return vkAllocateCommandBuffers(p->device, &(VkCommandBufferAllocateInfo){
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO, .commandPool = p->pool, .commandBufferCount = 1},
        &p->commands);
}

static VkResult programRun(Program* p, Attention* a, VkmqaMemory* inputs, VkmqaMemory* out) {
    const VkmqaContextCreateInfo context = {.structSize = sizeof context, .apiVersion = VK_API_VERSION_1_2,
        .instance = p->instance, .physicalDevice = p->gpu, .device = p->device,
        .getInstanceProcAddr = vkGetInstanceProcAddr, .enabledExtensionCount = p->needs.extensionCount,
        .enabledExtensions = p->needs.extensionNames, .enabledFeatures = p->needs.features,
        .messageCallback = say, .messageUserData = stderr};
    TRY(attentionCreate(a, &(VkmqaDeviceImportInfo){.structSize = sizeof(VkmqaDeviceImportInfo), .context = &context,
                                                    .computeQueue = p->queue, .computeFamily = p->family}));
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_UPLOAD, (HEADS + 2) * DIM * 4, inputs)); // q, k, v
    TRY(vkmqaCreateMemory(a->device, VKMQA_MEMORY_DOWNLOAD, HEADS * DIM * 4, out));
    TRY(vkBeginCommandBuffer(p->commands, &(VkCommandBufferBeginInfo){
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO}));
    TRY(attentionRecord(a, p->commands, (VkmqaBuffer[]){ // once; replayed for every token
        vkmqaGetMemoryRange(*inputs, 0, HEADS * DIM * 4), vkmqaGetMemoryRange(*inputs, HEADS * DIM * 4, DIM * 4),
        vkmqaGetMemoryRange(*inputs, (HEADS + 1) * DIM * 4, 0), vkmqaGetMemoryRange(*out, 0, 0)}));
    VkMemoryBarrier toHost = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                              .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    vkCmdPipelineBarrier(p->commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &toHost, 0,
                         NULL, 0, NULL);
    TRY(vkEndCommandBuffer(p->commands));
    float *in = vkmqaGetMemoryPointer(*inputs), *result = vkmqaGetMemoryPointer(*out);
    for (int token = 0; token < TOKENS; ++token) {
        for (int i = 0; i < (HEADS + 2) * DIM; ++i) // equal keys: attention is the mean of the values so far
            in[i] = i < (HEADS + 1) * DIM ? 0.5f : (float)token;
        attentionStep(a, token);
        TRY(vkQueueSubmit(p->queue, 1, &(VkSubmitInfo){.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1,
                                                       .pCommandBuffers = &p->commands}, VK_NULL_HANDLE));
        TRY(vkQueueWaitIdle(p->queue));
        printf("token %d: %g\n", token, result[0]);
        if (!(fabsf(result[0] - token / 2.0f) <= 1e-3f)) // NaN, too
            return VK_ERROR_UNKNOWN;
    }
    return VK_SUCCESS;
}

int main(void) {
    Program program = {0};
    Attention attention = {0};
    VkmqaMemory inputs = NULL, out = NULL;
    VkResult result = programCreate(&program);
    if (result == VK_SUCCESS)
        result = programRun(&program, &attention, &inputs, &out);
    if (result)
        fprintf(stderr, "embed: VkResult %d\n", result);
    vkmqaDestroyMemory(inputs);
    vkmqaDestroyMemory(out);
    attentionDestroy(&attention);
    if (program.device) {
        vkDestroyCommandPool(program.device, program.pool, NULL);
        vkDestroyDevice(program.device, NULL);
    }
    if (program.instance)
        vkDestroyInstance(program.instance, NULL);
    return result != VK_SUCCESS;
}

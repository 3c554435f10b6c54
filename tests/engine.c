#include "engine.h"

#include "harness.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Engine* current;
static PFN_vkGetInstanceProcAddr nextInstance;
static PFN_vkGetDeviceProcAddr nextDevice;

// ---- Allocator -----------------------------------------------------------------------------------

static VKAPI_ATTR void* VKAPI_CALL allocate(void* user, size_t size, size_t alignment,
                                            VkSystemAllocationScope scope) {
    (void)scope;
    Engine* engine = user;
    if (alignment < 2 * sizeof(size_t))
        alignment = 2 * sizeof(size_t);
    char* block = aligned_alloc(alignment, (alignment + size + alignment - 1) / alignment * alignment);
    if (!block)
        return NULL;
    __atomic_add_fetch(&engine->live, 1, __ATOMIC_RELAXED); // drivers allocate on threads of their own
    size_t* memory = (size_t*)(void*)(block + alignment);
    memory[-1] = alignment;
    memory[-2] = size;
    return memory;
}

static VKAPI_ATTR void VKAPI_CALL release(void* user, void* memory) {
    if (!memory)
        return;
    __atomic_sub_fetch(&((Engine*)user)->live, 1, __ATOMIC_RELAXED);
    free((char*)memory - ((size_t*)memory)[-1]);
}

static VKAPI_ATTR void* VKAPI_CALL reallocate(void* user, void* original, size_t size, size_t alignment,
                                              VkSystemAllocationScope scope) {
    void* memory = size ? allocate(user, size, alignment, scope) : NULL;
    if (memory && original) {
        size_t before = ((size_t*)original)[-2];
        memcpy(memory, original, before < size ? before : size);
    }
    if (memory || size == 0)
        release(user, original);
    return memory;
}

// ---- Functions in front of the driver's ------------------------------------------------------------

static void checkAllocator(const VkAllocationCallbacks* allocator, const char* name) {
    if (allocator && allocator->pUserData == current && allocator->pfnAllocation == allocate)
        return;
    current->unallocated++;
    snprintf(current->lastUnallocated, sizeof(current->lastUnallocated), "%s", name);
}
static void checkLock(void) { current->unlocked += !current->locked; }

#define CREATES(X)                                                                                 \
    X(CreateFence, VkFenceCreateInfo, VkFence)                                                     \
    X(CreateSemaphore, VkSemaphoreCreateInfo, VkSemaphore)                                         \
    X(CreateCommandPool, VkCommandPoolCreateInfo, VkCommandPool)                                   \
    X(CreateQueryPool, VkQueryPoolCreateInfo, VkQueryPool)                                         \
    X(CreateBuffer, VkBufferCreateInfo, VkBuffer)                                                  \
    X(AllocateMemory, VkMemoryAllocateInfo, VkDeviceMemory)                                        \
    X(CreateShaderModule, VkShaderModuleCreateInfo, VkShaderModule)                                \
    X(CreatePipelineLayout, VkPipelineLayoutCreateInfo, VkPipelineLayout)                          \
    X(CreateDescriptorSetLayout, VkDescriptorSetLayoutCreateInfo, VkDescriptorSetLayout)           \
    X(CreateDescriptorPool, VkDescriptorPoolCreateInfo, VkDescriptorPool)
#define DESTROYS(X)                                                                                \
    X(DestroyFence, VkFence)                                                                       \
    X(DestroySemaphore, VkSemaphore)                                                               \
    X(DestroyCommandPool, VkCommandPool)                                                           \
    X(DestroyQueryPool, VkQueryPool)                                                               \
    X(DestroyBuffer, VkBuffer)                                                                     \
    X(FreeMemory, VkDeviceMemory)                                                                  \
    X(DestroyShaderModule, VkShaderModule)                                                         \
    X(DestroyPipeline, VkPipeline)                                                                 \
    X(DestroyPipelineLayout, VkPipelineLayout)                                                     \
    X(DestroyDescriptorSetLayout, VkDescriptorSetLayout)                                           \
    X(DestroyDescriptorPool, VkDescriptorPool)

#define CREATE(name, Info, Handle)                                                                 \
    static PFN_vk##name next##name;                                                                \
    static VKAPI_ATTR VkResult VKAPI_CALL engine##name(VkDevice device, const Info* info,          \
                                                       const VkAllocationCallbacks* allocator,     \
                                                       Handle* handle) {                           \
        checkAllocator(allocator, #name);                                                          \
        return next##name(device, info, allocator, handle);                                        \
    }
#define DESTROY(name, Handle)                                                                      \
    static PFN_vk##name next##name;                                                                \
    static VKAPI_ATTR void VKAPI_CALL engine##name(VkDevice device, Handle handle,                 \
                                                   const VkAllocationCallbacks* allocator) {       \
        checkAllocator(allocator, #name);                                                          \
        next##name(device, handle, allocator);                                                     \
    }
CREATES(CREATE)
DESTROYS(DESTROY)

static PFN_vkCreateComputePipelines nextCreateComputePipelines;
static VKAPI_ATTR VkResult VKAPI_CALL
engineCreateComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                             const VkComputePipelineCreateInfo* infos,
                             const VkAllocationCallbacks* allocator, VkPipeline* pipelines) {
    checkAllocator(allocator, "CreateComputePipelines");
    for (uint32_t i = 0; i < count; i++)
        for (const VkBaseInStructure* next = infos[i].stage.pNext; next; next = next->pNext)
            current->sizedPipelines +=
                next->sType == VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO;
    return nextCreateComputePipelines(device, cache, count, infos, allocator, pipelines);
}

static PFN_vkQueueSubmit nextQueueSubmit;
static VKAPI_ATTR VkResult VKAPI_CALL engineQueueSubmit(VkQueue queue, uint32_t count,
                                                        const VkSubmitInfo* submits, VkFence fence) {
    checkLock();
    current->submits++;
    return nextQueueSubmit(queue, count, submits, fence);
}
static PFN_vkQueueWaitIdle nextQueueWaitIdle;
static VKAPI_ATTR VkResult VKAPI_CALL engineQueueWaitIdle(VkQueue queue) {
    checkLock();
    current->waits++;
    return nextQueueWaitIdle(queue);
}
static PFN_vkCmdDispatchBase nextCmdDispatchBase;
static VKAPI_ATTR void VKAPI_CALL engineCmdDispatchBase(VkCommandBuffer commands, uint32_t x, uint32_t y,
                                                        uint32_t z, uint32_t sizeX, uint32_t sizeY,
                                                        uint32_t sizeZ) {
    current->dispatches++;
    current->workgroups += (uint64_t)sizeX * sizeY * sizeZ;
    nextCmdDispatchBase(commands, x, y, z, sizeX, sizeY, sizeZ);
}

static PFN_vkCmdDispatch nextCmdDispatch;
static VKAPI_ATTR void VKAPI_CALL engineCmdDispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    current->workgroups += (uint64_t)x * y * z;
    nextCmdDispatch(commands, x, y, z);
}

static PFN_vkCmdPipelineBarrier nextCmdPipelineBarrier;
static VKAPI_ATTR void VKAPI_CALL
engineCmdPipelineBarrier(VkCommandBuffer commands, VkPipelineStageFlags from, VkPipelineStageFlags to,
                         VkDependencyFlags flags, uint32_t count, const VkMemoryBarrier* barriers, uint32_t bufferCount,
                         const VkBufferMemoryBarrier* buffers, uint32_t imageCount, const VkImageMemoryBarrier* images) {
    current->barrier = count ? barriers[0] : (VkMemoryBarrier){.srcAccessMask = 0};
    current->barrierTo = to;
    nextCmdPipelineBarrier(commands, from, to, flags, count, barriers, bufferCount, buffers, imageCount, images);
}

static PFN_vkVoidFunction interpose(const char* name, PFN_vkVoidFunction next) {
    if (!next)
        return NULL;
#define INTERPOSE(function, ...)                                                                   \
    if (!strcmp(name, "vk" #function)) {                                                           \
        next##function = (PFN_vk##function)next;                                                   \
        return (PFN_vkVoidFunction)engine##function;                                               \
    }
    CREATES(INTERPOSE)
    DESTROYS(INTERPOSE)
    INTERPOSE(CreateComputePipelines, )
    INTERPOSE(QueueSubmit, )
    INTERPOSE(QueueWaitIdle, )
    INTERPOSE(CmdDispatchBase, )
    INTERPOSE(CmdDispatch, )
    INTERPOSE(CmdPipelineBarrier, )
    return next;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL engineDeviceProc(VkDevice device, const char* name) {
    return interpose(name, nextDevice(device, name));
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL engineInstanceProc(VkInstance instance, const char* name) {
    if (!strcmp(name, "vkGetInstanceProcAddr"))
        return (PFN_vkVoidFunction)engineInstanceProc;
    PFN_vkVoidFunction next = nextInstance(instance, name);
    if (next && !strcmp(name, "vkGetDeviceProcAddr")) {
        nextDevice = (PFN_vkGetDeviceProcAddr)next;
        return (PFN_vkVoidFunction)engineDeviceProc;
    }
    return interpose(name, next);
}

// ---- The engine ------------------------------------------------------------------------------------

static void* library;
#define LOAD(name) PFN_vk##name name = (PFN_vk##name)nextInstance(engine->instance, "vk" #name)

static void lockQueue(void* user, VkQueue queue) {
    Engine* engine = user;
    assert_true(queue == engine->queue || queue == engine->transferQueue);
    assert_false(engine->locked); // never twice
    engine->locked = true;
}
static void unlockQueue(void* user, VkQueue queue) {
    Engine* engine = user;
    assert_true(queue == engine->queue || queue == engine->transferQueue);
    assert_true(engine->locked);
    engine->locked = false;
}

static void choosePhysicalDevice(Engine* engine, const uint8_t uuid[16]) {
    LOAD(EnumeratePhysicalDevices);
    LOAD(GetPhysicalDeviceProperties2);
    VkPhysicalDevice devices[16];
    uint32_t count = COUNT(devices);
    assert_true(EnumeratePhysicalDevices(engine->instance, &count, devices) >= 0);
    for (uint32_t i = 0; i < count; i++) {
        VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
        VkPhysicalDeviceProperties2 properties = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
        GetPhysicalDeviceProperties2(devices[i], &properties);
        if (memcmp(id.deviceUUID, uuid, 16) == 0)
            engine->physicalDevice = devices[i];
    }
    assert_non_null(engine->physicalDevice);
}

static void createDevice(Engine* engine, bool featureless) {
    engine->requirements = (VkmqaDeviceRequirements){.structSize = sizeof(engine->requirements)};
    const VkmqaDeviceRequirementsInfo ask = {
        .structSize = sizeof(ask),
        .apiVersion = engine->apiVersion,
        .instance = engine->instance,
        .physicalDevice = engine->physicalDevice,
        .getInstanceProcAddr = nextInstance,
    };
    if (!featureless)
        REQUIRE(vkmqaGetDeviceRequirements(&ask, &engine->requirements));
    LOAD(GetPhysicalDeviceQueueFamilyProperties);
    VkQueueFamilyProperties families[8];
    uint32_t count = 0;
    GetPhysicalDeviceQueueFamilyProperties(engine->physicalDevice, &count, NULL);
    count = count < COUNT(families) ? count : (uint32_t)COUNT(families);
    GetPhysicalDeviceQueueFamilyProperties(engine->physicalDevice, &count, families);
    engine->family = count;
    for (uint32_t i = 0; i < count; i++) // of compute work beside the graphics, where there is one
        if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) && families[i].queueCount &&
            (engine->family == count || !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT)))
            engine->family = i;
    assert_true(engine->family < count);
    engine->timestamps = families[engine->family].timestampValidBits > 0;
    engine->transferFamily = count;
    for (uint32_t i = 0; i < count; i++)
        if ((families[i].queueFlags & VK_QUEUE_TRANSFER_BIT) && families[i].queueCount &&
            !(families[i].queueFlags & (VK_QUEUE_COMPUTE_BIT | VK_QUEUE_GRAPHICS_BIT)))
            engine->transferFamily = i;
    const bool copies = engine->transferFamily < count;
    const float priority = 1;
    VkDeviceQueueCreateInfo queues[2];
    for (int i = 0; i < 2; i++)
        queues[i] = (VkDeviceQueueCreateInfo){
            .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
            .queueFamilyIndex = i ? engine->transferFamily : engine->family,
            .queueCount = 1,
            .pQueuePriorities = &priority,
        };
    const VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = engine->requirements.features,
        .queueCreateInfoCount = 1 + copies,
        .pQueueCreateInfos = queues,
        .enabledExtensionCount = engine->requirements.extensionCount,
        .ppEnabledExtensionNames = engine->requirements.extensionNames,
    };
    LOAD(CreateDevice);
    LOAD(GetDeviceQueue);
    REQUIRE(CreateDevice(engine->physicalDevice, &info, NULL, &engine->device));
    GetDeviceQueue(engine->device, engine->family, 0, &engine->queue);
    if (copies)
        GetDeviceQueue(engine->device, engine->transferFamily, 0, &engine->transferQueue);
}

void engineOpen(Engine* engine, const uint8_t uuid[16], bool featureless) {
    memset(engine, 0, sizeof(*engine));
    current = engine;
    library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    void* symbol = dlsym(library, "vkGetInstanceProcAddr");
    memcpy(&nextInstance, &symbol, sizeof(symbol));
    engine->apiVersion = harness.properties.apiVersion < VK_API_VERSION_1_3 ? harness.properties.apiVersion
                                                                            : VK_API_VERSION_1_3;
    const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                           .pEngineName = "an engine",
                                           .apiVersion = engine->apiVersion};
    const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                       .pApplicationInfo = &application};
    LOAD(CreateInstance);
    REQUIRE(CreateInstance(&info, NULL, &engine->instance));
    engine->getInstanceProcAddr = engineInstanceProc;
    engine->allocator = (VkAllocationCallbacks){.pUserData = engine,
                                                .pfnAllocation = allocate,
                                                .pfnReallocation = reallocate,
                                                .pfnFree = release};
    choosePhysicalDevice(engine, uuid);
    createDevice(engine, featureless);
}

void engineClose(Engine* engine) {
    LOAD(DestroyDevice);
    LOAD(DestroyInstance);
    DestroyDevice(engine->device, NULL);
    DestroyInstance(engine->instance, NULL);
    dlclose(library);
}

VkmqaContextCreateInfo engineContextInfo(const Engine* engine) {
    return (VkmqaContextCreateInfo){
        .structSize = sizeof(VkmqaContextCreateInfo),
        .apiVersion = engine->apiVersion,
        .instance = engine->instance,
        .physicalDevice = engine->physicalDevice,
        .device = engine->device,
        .getInstanceProcAddr = engine->getInstanceProcAddr,
        .enabledExtensionCount = engine->requirements.extensionCount,
        .enabledExtensions = engine->requirements.extensionNames,
        .enabledFeatures = engine->requirements.features,
        .allocator = &engine->allocator,
        .messageCallback = harnessMessage,
    };
}

VkmqaDeviceImportInfo engineImportInfo(Engine* engine, VkmqaContextCreateInfo* context) {
    *context = engineContextInfo(engine);
    return (VkmqaDeviceImportInfo){
        .structSize = sizeof(VkmqaDeviceImportInfo),
        .context = context,
        .computeQueue = engine->queue,
        .computeFamily = engine->family,
        .transferQueue = engine->transferQueue,
        .transferFamily = engine->transferQueue ? engine->transferFamily : 0,
        .lockQueue = lockQueue,
        .unlockQueue = unlockQueue,
        .queueUserData = engine,
    };
}

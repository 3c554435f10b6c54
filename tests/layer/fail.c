// See fail.h. For programs that know nothing of the layer the environment says what fails:
//   fail             whatever vkmqaLayerFail says
//   fail:N=ERROR     place number N fails with VkResult ERROR, once
//   fail:N=ERROR+    and every call after it that may return it; VKMQA_LAYER_HIT names a file that is then written
#define _GNU_SOURCE
#include "fail.h"

#include "layer.h"
#include "vk_coopmat.h" // for headers that lack it

#include <execinfo.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_HOST VK_ERROR_OUT_OF_HOST_MEMORY
#define NO_DEVICE VK_ERROR_OUT_OF_DEVICE_MEMORY
#define LOST VK_ERROR_DEVICE_LOST

enum { MAX_PLACES = 4096, MAX_ERRORS = 7, FRAMES = 5, OWN_FRAMES = 3 };

// What the specification (1.3) lets each entry point return, as far as the library's features go.
static const struct Failing {
    const char* entry;
    VkResult errors[MAX_ERRORS + 1];
} failing[] = {
    {"vkCreateInstance", {NO_HOST, NO_DEVICE, VK_ERROR_INITIALIZATION_FAILED, VK_ERROR_LAYER_NOT_PRESENT,
                          VK_ERROR_EXTENSION_NOT_PRESENT, VK_ERROR_INCOMPATIBLE_DRIVER}},
    {"vkEnumeratePhysicalDevices", {NO_HOST, NO_DEVICE, VK_ERROR_INITIALIZATION_FAILED}},
    {"vkEnumerateDeviceExtensionProperties", {NO_HOST, NO_DEVICE, VK_ERROR_LAYER_NOT_PRESENT}},
    {"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR", {NO_HOST, NO_DEVICE}},
    {"vkCreateDevice", {NO_HOST, NO_DEVICE, VK_ERROR_INITIALIZATION_FAILED, VK_ERROR_EXTENSION_NOT_PRESENT,
                        VK_ERROR_FEATURE_NOT_PRESENT, VK_ERROR_TOO_MANY_OBJECTS, LOST}},
    {"vkQueueSubmit", {LOST, NO_HOST, NO_DEVICE}},
    {"vkQueueWaitIdle", {LOST, NO_HOST, NO_DEVICE}},
    {"vkDeviceWaitIdle", {LOST, NO_HOST, NO_DEVICE}},
    {"vkWaitForFences", {LOST, NO_HOST, NO_DEVICE}},
    {"vkResetFences", {NO_DEVICE}},
    {"vkCreateFence", {NO_HOST, NO_DEVICE}},
    {"vkCreateSemaphore", {NO_HOST, NO_DEVICE}},
    {"vkAllocateMemory", {NO_DEVICE, NO_HOST, VK_ERROR_TOO_MANY_OBJECTS}},
    {"vkMapMemory", {VK_ERROR_MEMORY_MAP_FAILED, NO_HOST, NO_DEVICE}},
    {"vkCreateBuffer", {NO_HOST, NO_DEVICE}},
    {"vkBindBufferMemory", {NO_HOST, NO_DEVICE}},
    {"vkCreateQueryPool", {NO_HOST, NO_DEVICE}},
    {"vkGetQueryPoolResults", {LOST, NO_HOST, NO_DEVICE}},
    {"vkCreateShaderModule", {NO_HOST, NO_DEVICE}},
    {"vkCreatePipelineCache", {NO_HOST, NO_DEVICE}},
    {"vkCreatePipelineLayout", {NO_HOST, NO_DEVICE}},
    {"vkCreateComputePipelines", {NO_DEVICE, NO_HOST}},
    {"vkCreateDescriptorSetLayout", {NO_HOST, NO_DEVICE}},
    {"vkCreateDescriptorPool", {NO_HOST, NO_DEVICE, VK_ERROR_FRAGMENTATION}},
    {"vkAllocateDescriptorSets", {VK_ERROR_OUT_OF_POOL_MEMORY, NO_HOST, NO_DEVICE, VK_ERROR_FRAGMENTED_POOL}},
    {"vkCreateCommandPool", {NO_HOST, NO_DEVICE}},
    {"vkAllocateCommandBuffers", {NO_HOST, NO_DEVICE}},
    {"vkResetCommandPool", {NO_HOST, NO_DEVICE}},
    {"vkBeginCommandBuffer", {NO_HOST, NO_DEVICE}},
    {"vkEndCommandBuffer", {NO_HOST, NO_DEVICE}},
    // Of tests that wrap the C library: what the library has to answer.
    {"calloc", {NO_HOST}},
    {"pfnAllocation", {NO_HOST}},
    {"pthread_create", {NO_HOST}},
    {"dlopen", {VK_ERROR_INCOMPATIBLE_DRIVER}},
    {"open", {VK_ERROR_UNKNOWN}},
    {"fstat", {VK_ERROR_UNKNOWN}},
    {"fchmod", {VK_ERROR_UNKNOWN}},
    {"fsync", {VK_ERROR_UNKNOWN}},
    {"rename", {VK_ERROR_UNKNOWN}},
    {"read", {VK_ERROR_UNKNOWN}},
    {"write", {VK_ERROR_UNKNOWN}},
    {"lseek", {VK_ERROR_UNKNOWN}},
    {"close", {VK_ERROR_UNKNOWN}},
    {"close after reading", {VK_ERROR_UNKNOWN}},
};

static const VkResult noErrors[] = {VK_SUCCESS};

static const VkResult* errorsOf(const char* entry) {
    for (size_t i = 0; i < sizeof(failing) / sizeof(failing[0]); i++)
        if (strcmp(failing[i].entry, entry) == 0)
            return failing[i].errors;
    return noErrors;
}

// ---- Places --------------------------------------------------------------------------------------

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool watching, planned, wasHit;
    LayerFailPlan plan;
    const char* hitEntry;
    uint32_t count;
    struct {
        const char* entry;
        uint64_t hash;
    } places[MAX_PLACES];
} state;

// Fences of which a wait was given up or failed: until another one tells, what they stand for may still run. The device
// has one queue, so that any later wait tells.
static VkFence unsure[64];
static uint32_t unsureCount;
static bool waitFailed; // without a word of how the work is

static uint64_t hashPlace(const char* entry) {
    void* frames[OWN_FRAMES + FRAMES];
    int count = backtrace(frames, OWN_FRAMES + FRAMES);
    uint64_t hash = 1469598103934665603u; // FNV-1a
    for (const char* c = entry; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 1099511628211u;
    for (int i = OWN_FRAMES; i < count; i++)
        hash = (hash ^ (uint64_t)(uintptr_t)frames[i]) * 1099511628211u;
    return hash;
}

static bool mayReturn(const char* entry, VkResult error) {
    if (error == VK_TIMEOUT)
        return strcmp(entry, "vkWaitForFences") == 0;
    const VkResult* errors = errorsOf(entry);
    while (*errors && *errors != error)
        errors++;
    return *errors != VK_SUCCESS;
}

static void noteHit(const char* entry) {
    const char* path = state.wasHit ? NULL : getenv("VKMQA_LAYER_HIT");
    FILE* file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%s\n", entry);
        fclose(file);
    }
    if (!state.wasHit)
        state.hitEntry = entry;
    state.wasHit = true;
}

// The place where a call counts; below the lock and never inlined, so that OWN_FRAMES stays true.
static __attribute__((noinline)) bool decide(const char* entry) {
    uint64_t hash = hashPlace(entry);
    uint32_t place = 0;
    while (place < state.count && state.places[place].hash != hash)
        place++;
    bool isNew = place == state.count && place < MAX_PLACES;
    if (isNew) {
        state.places[place].entry = entry;
        state.places[place].hash = hash;
        state.count++;
    }
    if (!state.planned)
        return false;
    bool fails = (state.wasHit ? state.plan.onwards : isNew && place == state.plan.place) &&
                 mayReturn(entry, state.plan.error);
    if (fails)
        noteHit(entry);
    return fails;
}

static __attribute__((noinline)) bool fails(const char* entry) {
    pthread_mutex_lock(&mutex);
    bool result = state.watching && decide(entry);
    pthread_mutex_unlock(&mutex);
    __asm__ volatile(""); // no tail call
    return result;
}

// Of a device that is lost all work has ended, and what is given up may be freed; the driver below knows of neither.
static bool ends(void) { return state.plan.error == LOST || state.plan.error == VK_TIMEOUT || state.plan.onwards; }
static void settleDevice(VkDevice device) {
    if (ends())
        LAYER_NEXT(vkDeviceWaitIdle)(device);
}
static void settleQueue(VkQueue queue) {
    if (ends())
        LAYER_NEXT(vkQueueWaitIdle)(queue);
}

static void begin(const LayerFailPlan* plan) {
    pthread_mutex_lock(&mutex);
    state.planned = plan != NULL;
    state.plan = plan ? *plan : (LayerFailPlan){0, VK_SUCCESS, false};
    state.wasHit = false;
    state.count = 0;
    unsureCount = 0;
    waitFailed = false;
    pthread_mutex_unlock(&mutex);
}

static void watch(bool on) { state.watching = on; }
static bool watching(void) { return state.watching; }
static uint32_t placeCount(void) { return state.count; }
static const char* placeEntry(uint32_t place) { return state.places[place].entry; }
static bool hit(void) { return state.wasHit; }
static const char* hitEntry(void) { return state.hitEntry; }

// ---- Work of unknown state -------------------------------------------------------------------------

static void nowUnsure(uint32_t count, const VkFence* fences) {
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < count && state.plan.error != LOST && unsureCount < sizeof(unsure) / sizeof(unsure[0]); i++)
        unsure[unsureCount++] = fences[i];
    waitFailed |= state.plan.error != LOST && state.plan.error != VK_TIMEOUT && !state.plan.onwards;
    pthread_mutex_unlock(&mutex);
}
static VkResult nowSure(VkResult result) {
    pthread_mutex_lock(&mutex);
    if (result == VK_SUCCESS) {
        unsureCount = 0;
        waitFailed = false;
    }
    pthread_mutex_unlock(&mutex);
    return result;
}
static void needSure(const char* what, bool broken) {
    if (!broken || !state.watching)
        return;
    fprintf(stderr, "%s, though work that may still use it has not been waited for\n", what);
    abort();
}
static void needSureFence(const char* what, VkFence fence) {
    for (uint32_t i = 0; i < unsureCount; i++)
        needSure(what, unsure[i] == fence && !state.plan.onwards);
}

// ---- Objects -------------------------------------------------------------------------------------

// Made and destroyed alike.
#define OBJECTS(X)                                                                                 \
    X(Fence, Create, Destroy)                                                                      \
    X(Semaphore, Create, Destroy)                                                                  \
    X(Buffer, Create, Destroy)                                                                     \
    X(QueryPool, Create, Destroy)                                                                  \
    X(ShaderModule, Create, Destroy)                                                               \
    X(PipelineCache, Create, Destroy)                                                              \
    X(PipelineLayout, Create, Destroy)                                                             \
    X(DescriptorSetLayout, Create, Destroy)                                                        \
    X(DescriptorPool, Create, Destroy)                                                             \
    X(CommandPool, Create, Destroy)

#define COUNTER(Type, ...) COUNT_##Type,
enum { OBJECTS(COUNTER) COUNT_Memory, COUNT_Pipeline, COUNT_Device, COUNT_Instance, COUNTERS };
#undef COUNTER
static long counters[COUNTERS];

static void change(int counter, long by) { __atomic_add_fetch(&counters[counter], by, __ATOMIC_RELAXED); }

static const char* alive(void) {
#define NAME(Type, ...) "Vk" #Type,
    static const char* const names[] = {OBJECTS(NAME) "VkDeviceMemory", "VkPipeline", "VkDevice", "VkInstance"};
#undef NAME
    static char text[512];
    size_t length = 0;
    text[0] = 0;
    for (int i = 0; i < COUNTERS; i++)
        if (counters[i])
            length += (size_t)snprintf(text + length, sizeof(text) - length, "%s%ld %s", length ? ", " : "",
                                       counters[i], names[i]);
    return text;
}

// A failed call leaves garbage behind, as it may.
#define GARBAGE ((uintptr_t)0xBAD0BAD0)

#define OBJECT(Type, ...)                                                                          \
    static VKAPI_ATTR VkResult VKAPI_CALL create##Type(VkDevice device, const Vk##Type##CreateInfo* info, \
                                                       const VkAllocationCallbacks* allocator,     \
                                                       Vk##Type* object) {                         \
        if (fails("vkCreate" #Type)) {                                                             \
            *object = (Vk##Type)GARBAGE;                                                           \
            return state.plan.error;                                                               \
        }                                                                                          \
        VkResult result = LAYER_NEXT(vkCreate##Type)(device, info, allocator, object);             \
        change(COUNT_##Type, result == VK_SUCCESS);                                                \
        return result;                                                                             \
    }                                                                                              \
    static VKAPI_ATTR void VKAPI_CALL destroy##Type(VkDevice device, Vk##Type object,              \
                                                    const VkAllocationCallbacks* allocator) {      \
        if (COUNT_##Type == COUNT_Fence)                                                           \
            needSureFence("vkDestroyFence", (VkFence)object);                                      \
        change(COUNT_##Type, object ? -1 : 0);                                                     \
        LAYER_NEXT(vkDestroy##Type)(device, object, allocator);                                    \
    }
OBJECTS(OBJECT)
#undef OBJECT

static VKAPI_ATTR VkResult VKAPI_CALL allocateMemory(VkDevice device, const VkMemoryAllocateInfo* info,
                                                     const VkAllocationCallbacks* allocator,
                                                     VkDeviceMemory* memory) {
    if (fails("vkAllocateMemory")) {
        *memory = (VkDeviceMemory)GARBAGE;
        return state.plan.error;
    }
    VkResult result = LAYER_NEXT(vkAllocateMemory)(device, info, allocator, memory);
    change(COUNT_Memory, result == VK_SUCCESS);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL freeMemory(VkDevice device, VkDeviceMemory memory,
                                             const VkAllocationCallbacks* allocator) {
    needSure("vkFreeMemory", memory && waitFailed);
    change(COUNT_Memory, memory ? -1 : 0);
    LAYER_NEXT(vkFreeMemory)(device, memory, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL createComputePipelines(VkDevice device, VkPipelineCache cache, uint32_t count,
                                                             const VkComputePipelineCreateInfo* infos,
                                                             const VkAllocationCallbacks* allocator,
                                                             VkPipeline* pipelines) {
    if (fails("vkCreateComputePipelines")) {
        memset(pipelines, 0, count * sizeof(*pipelines)); // this one is defined
        return state.plan.error;
    }
    VkResult result = LAYER_NEXT(vkCreateComputePipelines)(device, cache, count, infos, allocator, pipelines);
    for (uint32_t i = 0; i < count; i++)
        change(COUNT_Pipeline, pipelines[i] != VK_NULL_HANDLE);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL destroyPipeline(VkDevice device, VkPipeline pipeline,
                                                  const VkAllocationCallbacks* allocator) {
    change(COUNT_Pipeline, pipeline ? -1 : 0);
    LAYER_NEXT(vkDestroyPipeline)(device, pipeline, allocator);
}

static VkResult refuse(const char* entry) { return fails(entry) ? state.plan.error : VK_SUCCESS; }
static void made(bool instance, long by) { change(instance ? COUNT_Instance : COUNT_Device, by); }

// ---- Calls that make no object --------------------------------------------------------------------

#define CALL(Name, parameters, arguments, before)                                                  \
    static VKAPI_ATTR VkResult VKAPI_CALL call##Name parameters {                                  \
        if (fails("vk" #Name)) {                                                                   \
            before;                                                                                \
            return state.plan.error;                                                               \
        }                                                                                          \
        return LAYER_NEXT(vk##Name) arguments;                                                     \
    }
CALL(QueueSubmit, (VkQueue queue, uint32_t count, const VkSubmitInfo* submits, VkFence fence),
     (queue, count, submits, fence), settleQueue(queue))
CALL(DeviceWaitIdle, (VkDevice device), (device), settleDevice(device))
CALL(ResetFences, (VkDevice device, uint32_t count, const VkFence* fences), (device, count, fences), (void)0)
static VKAPI_ATTR VkResult VKAPI_CALL resetFences(VkDevice device, uint32_t count, const VkFence* fences) {
    for (uint32_t i = 0; i < count; i++)
        needSureFence("vkResetFences", fences[i]);
    return callResetFences(device, count, fences);
}
CALL(MapMemory,
     (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size, VkMemoryMapFlags flags, void** data),
     (device, memory, offset, size, flags, data), *data = (void*)GARBAGE)
CALL(BindBufferMemory, (VkDevice device, VkBuffer buffer, VkDeviceMemory memory, VkDeviceSize offset),
     (device, buffer, memory, offset), (void)0)
CALL(GetQueryPoolResults,
     (VkDevice device, VkQueryPool pool, uint32_t first, uint32_t count, size_t size, void* data, VkDeviceSize stride,
      VkQueryResultFlags flags),
     (device, pool, first, count, size, data, stride, flags), settleDevice(device))
CALL(AllocateDescriptorSets, (VkDevice device, const VkDescriptorSetAllocateInfo* info, VkDescriptorSet* sets),
     (device, info, sets), memset(sets, 0, info->descriptorSetCount * sizeof(*sets)))
CALL(AllocateCommandBuffers, (VkDevice device, const VkCommandBufferAllocateInfo* info, VkCommandBuffer* buffers),
     (device, info, buffers), memset(buffers, 0, info->commandBufferCount * sizeof(*buffers)))
CALL(ResetCommandPool, (VkDevice device, VkCommandPool pool, VkCommandPoolResetFlags flags), (device, pool, flags),
     (void)0)
CALL(BeginCommandBuffer, (VkCommandBuffer commands, const VkCommandBufferBeginInfo* info), (commands, info), (void)0)
CALL(EndCommandBuffer, (VkCommandBuffer commands), (commands), LAYER_NEXT(vkEndCommandBuffer)(commands))

static VKAPI_ATTR VkResult VKAPI_CALL callQueueWaitIdle(VkQueue queue) {
    if (!fails("vkQueueWaitIdle"))
        return nowSure(LAYER_NEXT(vkQueueWaitIdle)(queue));
    settleQueue(queue);
    return state.plan.error;
}
static VKAPI_ATTR VkResult VKAPI_CALL callWaitForFences(VkDevice device, uint32_t count, const VkFence* fences, VkBool32 all,
                                                        uint64_t timeout) {
    if (!fails("vkWaitForFences"))
        return nowSure(LAYER_NEXT(vkWaitForFences)(device, count, fences, all, timeout));
    nowUnsure(count, fences);
    settleDevice(device);
    return state.plan.error;
}

#define INSTANCE_CALL(Name, parameters, arguments)                                                 \
    static VKAPI_ATTR VkResult VKAPI_CALL call##Name parameters {                                  \
        return fails("vk" #Name) ? state.plan.error : LAYER_NEXT_INSTANCE(vk##Name) arguments;     \
    }
INSTANCE_CALL(EnumeratePhysicalDevices, (VkInstance instance, uint32_t* count, VkPhysicalDevice* devices),
              (instance, count, devices))
INSTANCE_CALL(EnumerateDeviceExtensionProperties,
              (VkPhysicalDevice device, const char* layer, uint32_t* count, VkExtensionProperties* properties),
              (device, layer, count, properties))
INSTANCE_CALL(GetPhysicalDeviceCooperativeMatrixPropertiesKHR,
              (VkPhysicalDevice device, uint32_t* count, VkCooperativeMatrixPropertiesKHR* properties),
              (device, count, properties))

// ---- The module ----------------------------------------------------------------------------------

static bool start(const char* how) {
    if (!*how)
        return true;
    unsigned long place;
    int error;
    char onwards = 0;
    int read = sscanf(how, "%lu=%d%c", &place, &error, &onwards);
    if (read < 2 || (onwards && onwards != '+'))
        return false;
    if (!state.planned) // several instances are one run
        begin(&(LayerFailPlan){(uint32_t)place, (VkResult)error, onwards == '+'});
    watch(true);
    return true;
}

#define OBJECT_ENTRIES(Type, ...)                                                                  \
    LAYER_ENTRY(vkCreate##Type, create##Type), LAYER_ENTRY(vkDestroy##Type, destroy##Type),
#define CALL_ENTRY(Name) LAYER_ENTRY(vk##Name, call##Name)
static const LayerEntry entries[] = {
    OBJECTS(OBJECT_ENTRIES) LAYER_ENTRY(vkAllocateMemory, allocateMemory),
    LAYER_ENTRY(vkFreeMemory, freeMemory),
    LAYER_ENTRY(vkCreateComputePipelines, createComputePipelines),
    LAYER_ENTRY(vkDestroyPipeline, destroyPipeline),
    CALL_ENTRY(QueueSubmit),
    CALL_ENTRY(QueueWaitIdle),
    CALL_ENTRY(DeviceWaitIdle),
    CALL_ENTRY(WaitForFences),
    LAYER_ENTRY(vkResetFences, resetFences),
    CALL_ENTRY(MapMemory),
    CALL_ENTRY(BindBufferMemory),
    CALL_ENTRY(GetQueryPoolResults),
    CALL_ENTRY(AllocateDescriptorSets),
    CALL_ENTRY(AllocateCommandBuffers),
    CALL_ENTRY(ResetCommandPool),
    CALL_ENTRY(BeginCommandBuffer),
    CALL_ENTRY(EndCommandBuffer),
    CALL_ENTRY(EnumeratePhysicalDevices),
    CALL_ENTRY(EnumerateDeviceExtensionProperties),
    CALL_ENTRY(GetPhysicalDeviceCooperativeMatrixPropertiesKHR),
};

const LayerModule layerFail = {.name = "fail", .start = start, .entries = entries,
                               .entryCount = sizeof(entries) / sizeof(entries[0]), .refuse = refuse, .made = made};

extern __attribute__((visibility("default"))) const LayerFail vkmqaLayerFail;
const LayerFail vkmqaLayerFail = {begin, watch, watching, placeCount, placeEntry, errorsOf, hit, hitEntry, alive, fails};

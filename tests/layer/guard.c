// Memory of which not one element may be missed: every vkAllocateMemory of host-visible memory imports host memory
// of our own (VK_EXT_external_memory_host) between zones that nobody may touch, for drivers that run on the CPU.
//   guard        the end of the memory meets the zone behind it
//   guard:front  its start meets the zone before it
// Both zones are always there. What pages leave between the memory and the other zone holds canaries, looked at when
// the memory is freed. An access to a zone ends the process with exit code 86, a changed canary with 87.
//
// minImportedHostPointerAlignment, a page on the known drivers, would allow whole pages only. They take any pointer,
// and so get one that is aligned to 16 bytes, which the library's kernels need. Where a size is no multiple of 16, up
// to 15 bytes are left between the end and the zone: canaries notice what is written there, and what is read from
// there is NaN. The drivers ask for no more memory than a buffer's size, which test_guard would notice. What the
// memory holds at first is NaN.
#define _GNU_SOURCE
#include "layer.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { EXIT_BEYOND = 86, EXIT_CANARY = 87, MAX_MEMORIES = 4096, MAX_EXTENSIONS = 128 };
static const size_t ZONE = (size_t)64 << 20; // more than the stride of rows, of pages, of sequences
static const size_t ALIGNMENT = 16;
static const uint32_t CANARY = 0xFFFEFFFE; // NaN as f32, f16 and bf16

static bool front;

typedef struct Guard {
    VkDeviceMemory memory;
    char *zone, *start; // of the mapping, of the memory
    size_t pages, size; // bytes between the zones, of the memory
} Guard;
static Guard guards[MAX_MEMORIES]; // zone null: free
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static size_t wholePages(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

__attribute__((noreturn)) static void stop(int code, const char* text, int length) {
    ssize_t ignored = write(STDERR_FILENO, text, (size_t)length);
    (void)ignored;
    _exit(code);
}

// ---- Accesses to a zone ----------------------------------------------------------------------------

static const char* accessName(const void* context) {
#ifdef __x86_64__
    return ((const ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#else
    (void)context;
    return "access";
#endif
}

// Faults elsewhere are none of ours: the instruction faults again, and ends the process as it would have.
static void onFault(int number, siginfo_t* info, void* context) {
    const char* address = info->si_addr;
    for (size_t i = 0; i < MAX_MEMORIES; i++) {
        const Guard* guard = &guards[i];
        if (!guard->zone || address < guard->zone ||
            address >= guard->zone + ZONE + guard->pages + ZONE)
            continue;
        bool behind = address >= guard->start;
        long long distance =
            behind ? address - (guard->start + guard->size) : guard->start - address;
        char text[160];
        int length = snprintf(
            text, sizeof(text), "guard: access beyond memory of %zu bytes: %s %lld bytes %s\n",
            guard->size, accessName(context), distance, behind ? "behind its end" : "before it");
        stop(EXIT_BEYOND, text, length);
    }
    signal(number, SIG_DFL);
}

// Test frameworks put handlers of their own in place, so before every piece of work.
static void watch(void) {
    struct sigaction action = {.sa_sigaction = onFault, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit(VkQueue queue, uint32_t count,
                                                  const VkSubmitInfo* submits, VkFence fence) {
    watch();
    return LAYER_NEXT(vkQueueSubmit)(queue, count, submits, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit2(VkQueue queue, uint32_t count,
                                                   const VkSubmitInfo2* submits, VkFence fence) {
    watch();
    return LAYER_NEXT(vkQueueSubmit2)(queue, count, submits, fence);
}

// ---- Memory ----------------------------------------------------------------------------------------

static bool place(Guard* guard, VkDeviceSize size) {
    guard->size = (size_t)size;
    guard->pages = wholePages(guard->size);
    char* zone = mmap(NULL, ZONE + guard->pages + ZONE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (zone == MAP_FAILED)
        return false;
    char* pages = zone + ZONE;
    if (mprotect(pages, guard->pages, PROT_READ | PROT_WRITE) != 0) {
        munmap(zone, ZONE + guard->pages + ZONE);
        return false;
    }
    for (size_t i = 0; i < guard->pages; i += sizeof(CANARY))
        memcpy(pages + i, &CANARY, sizeof(CANARY));
    guard->start = front ? pages : pages + (guard->pages - guard->size) / ALIGNMENT * ALIGNMENT;
    guard->zone = zone;
    return true;
}

static void checkCanaries(const Guard* guard) {
    const char *pages = guard->zone + ZONE, *end = guard->start + guard->size;
    for (size_t i = 0; i < guard->pages; i++) {
        const char* byte = pages + i;
        if ((byte >= guard->start && byte < end) ||
            *byte == ((const char*)&CANARY)[i % sizeof(CANARY)])
            continue;
        char text[160];
        int length = snprintf(text, sizeof(text),
                              "guard: canary changed at memory of %zu bytes, byte %lld\n",
                              guard->size, (long long)(byte - guard->start));
        stop(EXIT_CANARY, text, length);
    }
}

static void removePages(Guard* guard) {
    char* zone = guard->zone;
    guard->zone = NULL;
    munmap(zone, ZONE + guard->pages + ZONE);
}

static VkPhysicalDeviceMemoryProperties memoryProperties;

static bool hostVisible(uint32_t type) {
    return memoryProperties.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT;
}

static bool imports(const VkMemoryAllocateInfo* info) {
    for (const VkBaseInStructure* next = info->pNext; next; next = next->pNext)
        if (next->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT ||
            next->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_FD_INFO_KHR ||
            next->sType == VK_STRUCTURE_TYPE_EXPORT_MEMORY_ALLOCATE_INFO)
            return true;
    return false;
}

static VKAPI_ATTR VkResult VKAPI_CALL allocateMemory(VkDevice device,
                                                     const VkMemoryAllocateInfo* info,
                                                     const VkAllocationCallbacks* allocator,
                                                     VkDeviceMemory* memory) {
    if (imports(info) || !hostVisible(info->memoryTypeIndex))
        return LAYER_NEXT(vkAllocateMemory)(device, info, allocator, memory);
    watch();
    pthread_mutex_lock(&mutex);
    size_t i = 0;
    while (i < MAX_MEMORIES && guards[i].zone)
        i++;
    VkResult result = i < MAX_MEMORIES && place(&guards[i], info->allocationSize)
                          ? VK_SUCCESS
                          : VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (result == VK_SUCCESS) {
        const VkImportMemoryHostPointerInfoEXT pointer = {
            .sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
            .pNext = info->pNext,
            .handleType = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT,
            .pHostPointer = guards[i].start,
        };
        VkMemoryAllocateInfo import = *info;
        import.pNext = &pointer;
        result = LAYER_NEXT(vkAllocateMemory)(device, &import, allocator, memory);
        if (result == VK_SUCCESS)
            guards[i].memory = *memory;
        else
            removePages(&guards[i]);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

static VKAPI_ATTR void VKAPI_CALL freeMemory(VkDevice device, VkDeviceMemory memory,
                                             const VkAllocationCallbacks* allocator) {
    pthread_mutex_lock(&mutex);
    Guard* guard = NULL;
    for (size_t i = 0; memory && i < MAX_MEMORIES; i++)
        if (guards[i].zone && guards[i].memory == memory)
            guard = &guards[i];
    if (guard)
        checkCanaries(guard);
    LAYER_NEXT(vkFreeMemory)(device, memory, allocator);
    if (guard)
        removePages(guard);
    pthread_mutex_unlock(&mutex);
}

// Only buffers that say so may be bound to imported memory.
static VKAPI_ATTR VkResult VKAPI_CALL createBuffer(VkDevice device, const VkBufferCreateInfo* info,
                                                   const VkAllocationCallbacks* allocator,
                                                   VkBuffer* buffer) {
    const VkExternalMemoryBufferCreateInfo external = {
        .sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
        .pNext = info->pNext,
        .handleTypes = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT,
    };
    VkBufferCreateInfo ours = *info;
    ours.pNext = &external;
    return LAYER_NEXT(vkCreateBuffer)(device, &ours, allocator, buffer);
}

// ---- The module ------------------------------------------------------------------------------------

static bool robust(const VkDeviceCreateInfo* info) {
    bool is = info->pEnabledFeatures && info->pEnabledFeatures->robustBufferAccess;
    for (const VkBaseInStructure* next = info->pNext; next; next = next->pNext) {
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2)
            is |= ((const VkPhysicalDeviceFeatures2*)next)->features.robustBufferAccess;
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT)
            is |= ((const VkPhysicalDeviceRobustness2FeaturesEXT*)next)->robustBufferAccess2;
    }
    return is;
}

static bool has(const char* const* names, uint32_t count, const char* name) {
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

// Adds the extension. With robust buffers, or without the extension in the driver, nothing would be proved.
static const VkDeviceCreateInfo* deviceInfo(VkPhysicalDevice physicalDevice,
                                            const VkDeviceCreateInfo* info) {
    static _Thread_local const char* names[MAX_EXTENSIONS];
    static _Thread_local VkDeviceCreateInfo ours;
    uint32_t count = info->enabledExtensionCount;
    if (robust(info) || count == MAX_EXTENSIONS) {
        fprintf(stderr, "guard: robust buffer access is enabled, or too many extensions\n");
        abort();
    }
    LAYER_NEXT_INSTANCE(vkGetPhysicalDeviceMemoryProperties)(physicalDevice, &memoryProperties);
    if (has(info->ppEnabledExtensionNames, count, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME))
        return info;
    if (count)
        memcpy(names, info->ppEnabledExtensionNames, count * sizeof(*names));
    names[count++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    ours = *info;
    ours.enabledExtensionCount = count;
    ours.ppEnabledExtensionNames = names;
    return &ours;
}

static bool start(const char* how) {
    front = strcmp(how, "front") == 0;
    return front || !*how;
}

static const LayerEntry entries[] = {
    LAYER_ENTRY(vkAllocateMemory, allocateMemory), LAYER_ENTRY(vkFreeMemory, freeMemory),
    LAYER_ENTRY(vkCreateBuffer, createBuffer),     LAYER_ENTRY(vkQueueSubmit, queueSubmit),
    LAYER_ENTRY(vkQueueSubmit2, queueSubmit2),
};

const LayerModule layerGuard = {.name = "guard",
                                .start = start,
                                .entries = entries,
                                .entryCount = sizeof(entries) / sizeof(entries[0]),
                                .deviceInfo = deviceInfo};

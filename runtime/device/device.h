// What the files of the runtime layer share. The layer uses plain Vulkan and the public core calls
// only. SPDX-License-Identifier: MIT
#ifndef VKMQA_DEVICE_H
#define VKMQA_DEVICE_H

#include <vkmqa/vkmqa_runtime.h>

#include "allocate.h"
#include "process.h"
#include "structs.h"
#include "vk_table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// First word of every handle, so that a null or mixed-up handle is an error and not a crash.
// Cleared at destruction, which catches many uses of a dead handle, though not all.
enum {
    VKMQA_MAGIC_DEVICE = 0x44514D56,
    VKMQA_MAGIC_MEMORY = 0x4D514D56,
    VKMQA_MAGIC_COMMANDS = 0x43514D56,
};

// ---- message.c -------------------------------------------------------------------------------

struct VkmqaMessenger {
    VkmqaMessageCallback callback; // may be null
    void* userData;
};

void vkmqa_device_say(const struct VkmqaMessenger* messenger, VkmqaSeverity severity,
                      const char* format, ...) VKMQA_PRINTF(3, 4);
// Says it with VKMQA_SEVERITY_ERROR and returns result.
VkResult vkmqa_device_fail(const struct VkmqaMessenger* messenger, VkResult result,
                           const char* format, ...) VKMQA_PRINTF(3, 4);
const char* vkmqa_result_name(VkResult result);

// vkmqa_read_struct and vkmqa_open_output, with a message for what is wrong.
VkResult vkmqa_read_info(const struct VkmqaMessenger* messenger, const char* call, const char* type,
                         const void* info, void* copy, uint32_t size, uint32_t minSize);
VkResult vkmqa_check_output(const struct VkmqaMessenger* messenger, const char* call,
                            const char* type, void* target, uint32_t size, uint32_t minSize);
// Copies what target has room for, and keeps its structSize.
void vkmqa_write_output(void* target, const void* source, uint32_t size);

// ---- loader.c --------------------------------------------------------------------------------

struct VkmqaLoader {
    void* library; // libvulkan, opened at run time
    PFN_vkGetInstanceProcAddr getInstanceProcAddr;
    VkInstance instance;
    uint32_t apiVersion; // of the instance
    struct VkmqaVk vk;
};

// Opens the Vulkan loader and makes an instance of the highest version up to maxApiVersion. On
// failure nothing is left open.
VkResult vkmqa_open_loader(const struct VkmqaMessenger* messenger, const char* call,
                           uint32_t maxApiVersion, struct VkmqaLoader* loader);
void vkmqa_close_loader(struct VkmqaLoader* loader);

// ---- jobs.c ----------------------------------------------------------------------------------

// A VkmqaRunJobs on threads that live as long as the call.
void vkmqa_run_jobs(void* user, uint32_t count, VkmqaJob job, void* jobData);

// ---- list.c ----------------------------------------------------------------------------------

struct VkmqaPhysical {
    VkPhysicalDevice handle;
    VkmqaDeviceProperties properties;
    bool usable; // Vulkan 1.1 and a compute queue
    bool portabilitySubset, memoryBudget; // extensions
    const char* globalPriority;           // name of the extension, null without it
    uint32_t computeFamily, transferFamily; // equal where there is no transfer queue of its own
    uint32_t timestampBits;                 // valid bits on the compute family
    float timestampPeriod;                  // of queues that have any
};

// Fills *physical for its handle, which is number `index` of the loader's.
VkResult vkmqa_describe_physical(const struct VkmqaLoader* loader, const VkAllocationCallbacks* allocator,
                                 uint32_t index, struct VkmqaPhysical* physical);
// All devices of the machine in the loader's order; *physicals is the caller's to free().
VkResult vkmqa_list_physicals(const struct VkmqaMessenger* messenger, const char* call,
                              const struct VkmqaLoader* loader, struct VkmqaPhysical** physicals,
                              uint32_t* count);

// ---- select.c --------------------------------------------------------------------------------

// The device that VkmqaDeviceOpenInfo::selector means.
VkResult vkmqa_select_physical(const struct VkmqaMessenger* messenger, const char* call,
                               const char* selector, const struct VkmqaPhysical* physicals,
                               uint32_t count, const struct VkmqaPhysical** selected);

// ---- device.c --------------------------------------------------------------------------------

struct VkmqaTransfer;
struct VkmqaCopies;

struct VkmqaDevice_T {
    uint32_t magic;
    bool imported;  // instance, VkDevice and queues belong to somebody else
    bool used;      // something may have been submitted to its queues
    bool lost;      // sticky
    bool hung;      // lost because a queue never became idle: waiting would not end
    long processId; // of the process that opened it
    struct VkmqaMessenger messenger;
    bool hasAllocator;
    VkAllocationCallbacks allocator;
    VkmqaQueueCallback lockQueue, unlockQueue; // may be null
    void* queueUserData;
    struct VkmqaLoader loader; // with the device functions in loader.vk
    struct VkmqaPhysical physical;
    VkPhysicalDeviceMemoryProperties memoryProperties;
    VkDevice handle;
    VkQueue computeQueue, transferQueue;
    VkFence idleFence; // for waiting with a limit, which vkDeviceWaitIdle does not offer
    bool idlePending;  // submitted, and no wait for it has succeeded yet
    VkPipelineCache pipelineCache;
    VkmqaContext context;
    uint64_t waitLimitNs; // of every wait whose limit the caller did not choose
    bool deviceAddresses;
    bool skipVerification;
    uint32_t cacheCount, memoryCount, commandsCount; // that still exist
    struct VkmqaTransfer* transfer; // made at the first upload or download
    struct VkmqaCopies* copies;     // all that were ever made
    // What could not be destroyed under pending work: closing does it once all has ended.
    VkmqaMemory leftMemories;
    VkmqaCommands leftCommands;
};

static inline const VkAllocationCallbacks* vkmqa_device_allocator(VkmqaDevice device) {
    return device->hasAllocator ? &device->allocator : NULL;
}
// A handle with what both ways of making a device begin with, or null.
VkmqaDevice vkmqa_new_device(const struct VkmqaMessenger* messenger, const char* call,
                             const VkAllocationCallbacks* allocator);
// The device functions, and what the layer itself needs of the VkDevice in device->handle.
VkResult vkmqa_start_device(VkmqaDevice device, const char* call, bool deviceAddresses);
void vkmqa_destroy_device(VkmqaDevice device);

// Around every use of a queue; userData is the device.
void vkmqa_lock_queue(void* userData, VkQueue queue);
void vkmqa_unlock_queue(void* userData, VkQueue queue);
// The core's rule: the feature counts from Vulkan 1.2 on, or with its extension.
bool vkmqa_enables_addresses(uint32_t apiVersion, uint32_t extensionCount, const char* const* extensions,
                             const VkPhysicalDeviceFeatures2* features);
bool vkmqa_is_device(VkmqaDevice device);
// Whether call may use the device: not null, not of the parent process, not lost.
VkResult vkmqa_check_device(VkmqaDevice device, const char* call);
// Passes on what the Vulkan function `what` returned; explains errors and remembers a lost device.
VkResult vkmqa_device_result(VkmqaDevice device, VkResult result, const char* call,
                             const char* what);
// vkQueueSubmit between the caller's lock and unlock.
VkResult vkmqa_submit(VkmqaDevice device, VkQueue queue, uint32_t count, const VkSubmitInfo* submits,
                      VkFence fence);
// Waits until both queues are idle, up to the wait limit. Everything may be destroyed after
// VK_SUCCESS, which a lost device gives too; after any other result nothing that was submitted may.
VkResult vkmqa_drain_device(VkmqaDevice device, const char* call);

// ---- memory.c --------------------------------------------------------------------------------

struct VkmqaMemory_T {
    uint32_t magic;
    VkmqaMemoryKind kind;
    VkmqaDevice device;
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize size;
    VkDeviceAddress address; // 0 without device addresses
    void* mapped;            // null for VKMQA_MEMORY_DEVICE
    VkmqaMemory nextLeft;
};

bool vkmqa_is_memory(VkmqaMemory memory);
// vkmqaCreateMemory and vkmqaDestroyMemory without the counting, for the layer's own buffers.
VkResult vkmqa_make_memory(VkmqaDevice device, const char* call, VkmqaMemoryKind kind,
                           VkDeviceSize size, VkmqaMemory* memory);
void vkmqa_free_memory(VkmqaMemory memory); // in a forked child only what is the child's
void vkmqa_leave_memory(VkmqaMemory memory); // to device->leftMemories; the handle is dead

// Bytes of the largest device-local heap that the driver says this process may still take
// (VK_EXT_memory_budget), at least 1; 0 where it does not say.
VkDeviceSize vkmqa_device_budget(VkmqaDevice device);

// ---- copies.c --------------------------------------------------------------------------------

struct VkmqaCopy {
    VkBuffer from, to;
    VkBufferCopy region;
};

// Starts copies on the transfer queue, after everything submitted to the compute queue so far. With
// computeWaits, what is submitted to the compute queue from now on waits for them.
VkResult vkmqa_start_copies(VkmqaDevice device, const char* call, uint32_t count,
                            const struct VkmqaCopy* copies, bool computeWaits,
                            struct VkmqaCopies** pending);
// Waits. VK_SUCCESS sets *pending to null; so does an error once nothing runs any more, else what they use must stay.
VkResult vkmqa_finish_copies(VkmqaDevice device, const char* call, uint64_t timeoutNs,
                             struct VkmqaCopies** pending);
void vkmqa_destroy_copies(VkmqaDevice device); // nothing may be pending
void vkmqa_forget_copies(VkmqaDevice device);  // what a forked child has of them

// ---- commands.c ------------------------------------------------------------------------------

VkmqaDevice vkmqa_commands_device(VkmqaCommands commands); // null for a wrong handle
void vkmqa_destroy_left_commands(VkmqaDevice device);      // nothing may be pending

// ---- transfer.c ------------------------------------------------------------------------------

// Waits for copies that an earlier call gave up on. True when none is left pending.
bool vkmqa_transfers_done(VkmqaDevice device, const char* call);
void vkmqa_destroy_transfer(VkmqaDevice device);
void vkmqa_forget_transfer(VkmqaDevice device); // what a forked child has of them

// Everything before it, earlier submissions to the queue included, happens before everything after
// it and before what the host does once a fence has signalled. Allowed on every queue.
void vkmqa_cmd_full_barrier(const struct VkmqaVk* vk, VkCommandBuffer commandBuffer);

#endif

// A Vulkan driver that does nothing but judge: handles are small allocations (leaks show), memory comes from calloc
// when it is mapped, and what is recorded is checked against the limits of the device and the sizes of its buffers.
// Commands never execute and submissions are finished at once.
#ifndef MOCK_H
#define MOCK_H

#include <vulkan/vulkan_core.h>

#include <stdbool.h>

// The machine's devices, in this order.
typedef enum MockKind {
    MOCK_GPU,      // everything that the library knows to use, a transfer queue of its own
    MOCK_PORTABLE, // Vulkan 1.1, no extension
    MOCK_PUSH,     // Vulkan 1.2 without device addresses, with push descriptors
    MOCK_CPU,      // Vulkan 1.3, narrow subgroups
    MOCK_KINDS
} MockKind;

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL mockGetInstanceProcAddr(VkInstance instance, const char* name);
VkInstance mockInstance(void);
VkPhysicalDevice mockPhysicalDevice(MockKind kind);

extern uint64_t mockCommands; // recorded so far

// In place of runtime/device/loader.c's own.
void* mock_dlopen(const char* name, int flags);
void* mock_dlsym(void* library, const char* name);
int mock_dlclose(void* library);

// Ends the process with the sentence.
_Noreturn void mockFail(const char* format, ...) __attribute__((format(printf, 1, 2)));

#endif

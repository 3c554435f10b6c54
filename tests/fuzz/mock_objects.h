// What mock_device.c and mock_commands.c share.
#ifndef MOCK_OBJECTS_H
#define MOCK_OBJECTS_H

#include "mock.h"

#include <stddef.h>
#include <stdint.h>

#include "vk_table.h"

enum { MOCK_ALIGNMENT = 64 };
#define MOCK_MAX_RANGE (1u << 30)
#define MOCK_HEAP ((VkDeviceSize)1 << 40)
#define MOCK_CACHE_UUID {0xca, 0xfe, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

struct VkInstance_T {
    int nothing;
};
struct VkPhysicalDevice_T {
    const char* name;
    VkPhysicalDeviceType type;
    uint32_t version;
    const char* const* extensions;
    size_t extensionCount;
    bool all;      // every feature of the library's
    bool matrices; // and cooperative matrices
    uint32_t subgroup;
    uint32_t families;
};
struct VkDevice_T {
    VkPhysicalDevice physical;
};

// Everything that vk_table.h names, as mock_vkNAME.
#define MOCK_DECLARE(name) extern __typeof__(*(PFN_vk##name)0) mock_vk##name;
#define MOCK_DECLARE_OPTIONAL(name, alias) MOCK_DECLARE(name)
VKMQA_VK_INSTANCE_FUNCTIONS(MOCK_DECLARE)
VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(MOCK_DECLARE)
VKMQA_VK_DEVICE_FUNCTIONS(MOCK_DECLARE)
VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(MOCK_DECLARE_OPTIONAL)
#undef MOCK_DECLARE
#undef MOCK_DECLARE_OPTIONAL

#endif

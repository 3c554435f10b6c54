// SPDX-License-Identifier: MIT
#include "allocate.h"

#include <stdlib.h>
#include <string.h>

void* vkmqa_allocate(const VkAllocationCallbacks* allocator, size_t size) {
    if (!allocator)
        return calloc(1, size);
    void* memory = allocator->pfnAllocation(allocator->pUserData, size, sizeof(void*) * 2,
                                            VK_SYSTEM_ALLOCATION_SCOPE_OBJECT);
    if (memory)
        memset(memory, 0, size);
    return memory;
}

void vkmqa_free(const VkAllocationCallbacks* allocator, void* memory) {
    if (!allocator)
        free(memory);
    else if (memory)
        allocator->pfnFree(allocator->pUserData, memory);
}

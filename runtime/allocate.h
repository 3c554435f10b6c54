// Host memory through the caller's allocator, or malloc's. SPDX-License-Identifier: MIT
#ifndef VKMQA_ALLOCATE_H
#define VKMQA_ALLOCATE_H

#include <vulkan/vulkan_core.h>

#include <stddef.h>

void* vkmqa_allocate(const VkAllocationCallbacks* allocator, size_t size); // zeroed; null when out
void vkmqa_free(const VkAllocationCallbacks* allocator, void* memory);

#endif

// Descriptors of the kernels that use them: pushed where enabled, else from a VkmqaRecorder.
// SPDX-License-Identifier: MIT
#ifndef VKMQA_RECORDER_H
#define VKMQA_RECORDER_H

#include "context.h"

// Whether `sets` more can be had, and the handle is one if it is given; the message says why not.
VkResult vkmqa_check_recorder(const struct VkmqaContext_T* context, const char* call, VkmqaRecorder recorder,
                              uint32_t sets);
// count: 1 or 2. Leaves sets untouched where descriptors are pushed.
VkResult vkmqa_make_sets(const struct VkmqaContext_T* context, VkmqaRecorder recorder,
                         uint32_t count, VkDescriptorSet* sets);
void vkmqa_bind_buffers(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer,
                        VkDescriptorSet set, const VkDescriptorBufferInfo buffers[VKMQA_BIND_COUNT]);

#endif

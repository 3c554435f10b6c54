// From a call's buffers to dispatches, in the same steps for every vkmqaCmd function: read the structs, check
// and use each buffer, take descriptor sets, dispatch. Everything is checked before anything is recorded; the
// first wrong argument stays in `result`, and later steps do nothing. SPDX-License-Identifier: MIT
#ifndef VKMQA_CALL_H
#define VKMQA_CALL_H

#include "recorder.h"

// Bytes that a call touches: of a buffer, of the device's addresses (null buffer), or of the step's metadata.
struct VkmqaExtent {
    const char* field;
    VkBuffer buffer;
    uint64_t start, bytes;
    bool writes;
};

enum { VKMQA_MAX_ARRAYS = 8, VKMQA_MAX_RANGES = 12 };

// What a call needs of the device, collected while its buffers are checked: device addresses, or
// descriptors and the bytes between bound and wanted offset.
struct VkmqaCall {
    const struct VkmqaAttention_T* attention;
    const char* name;
    VkResult result; // of the first wrong argument
    VkDescriptorBufferInfo buffers[VKMQA_BIND_COUNT];
    struct VkmqaExtent arrays[VKMQA_MAX_ARRAYS]; // of the step
    struct VkmqaExtent ranges[VKMQA_MAX_RANGES]; // of buffers
    uint32_t arrayCount, rangeCount;
};

// VK_SUCCESS when both handles can be used.
VkResult vkmqa_check_call(VkmqaAttention attention, VkCommandBuffer commandBuffer, const char* name);
// The first of several messages counts.
void vkmqa_reject(struct VkmqaCall* call, const char* format, ...)
    VKMQA_PRINTF(2, 3);
bool vkmqa_read_step(struct VkmqaCall* call, const VkmqaStep* given, VkmqaStep* step,
                     VkmqaStepLimits* limits);
// Word of an array of the step: from its byte offset, checked for `count` entries, apart from the arrays before it.
uint32_t vkmqa_read_word(struct VkmqaCall* call, const char* field, uint32_t offset, uint64_t count,
                         const VkmqaStep* step, bool optional);
// Strides in elements with their defaults, and the bytes of the tensor [tokens, heads, dim].
uint64_t vkmqa_read_strides(struct VkmqaCall* call, const char* field, VkmqaStrides given,
                            uint32_t tokens, uint32_t heads, uint32_t dim, VkmqaType type,
                            VkmqaStrides* strides);
// Rows that are written must not overlap.
void vkmqa_check_apart(struct VkmqaCall* call, const char* field, const VkmqaStrides* strides,
                       uint32_t tokens, uint32_t heads, uint32_t dim);
// Checks a buffer for `bytes` bytes and returns what the kernel gets for it: its address, or the bytes
// from the bound offset on, `binding` being bound accordingly.
uint64_t vkmqa_use_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer,
                          uint64_t bytes, uint32_t binding);
// Likewise, for what is written: it must lie apart from all else that the call uses.
uint64_t vkmqa_write_buffer(struct VkmqaCall* call, const char* field, const VkmqaBuffer* buffer,
                            uint64_t bytes, uint32_t binding);
void vkmqa_use_cache(struct VkmqaCall* call, const VkmqaKv* kv, bool writes, uint64_t* k, uint64_t* v);
// The metadata whose arrays have been read.
uint64_t vkmqa_use_step(struct VkmqaCall* call, const VkmqaStep* step);
// 0 where the object has no parameters.
uint64_t vkmqa_use_parameters(struct VkmqaCall* call, const VkmqaBuffer* parameters, bool needed);
// Descriptor sets for `count` dispatches, where the kernels use any.
void vkmqa_take_sets(struct VkmqaCall* call, VkmqaRecorder recorder, uint32_t count,
                     VkDescriptorSet* sets);
// Barrier between two of this library's dispatches.
void vkmqa_order(const struct VkmqaContext_T* context, VkCommandBuffer commandBuffer);
// Barrier, pipeline, buffers, constants: all that a dispatch needs but its grid.
void vkmqa_bind(struct VkmqaCall* call, VkCommandBuffer commandBuffer, VkPipeline pipeline,
                VkDescriptorSet set, const void* push, uint32_t pushSize);
void vkmqa_dispatch(struct VkmqaCall* call, VkCommandBuffer commandBuffer, VkPipeline pipeline,
                    VkDescriptorSet set, const void* push, uint32_t pushSize,
                    const uint32_t groups[3]);

// The plan of a step, bounded by its page table.
void vkmqa_read_plan(struct VkmqaCall* call, const VkmqaStep* given, VkmqaStep* step, VkmqaStepLimits* limits,
                     struct VkmqaPlan* plan);

// What was read of a call of attention.
struct VkmqaAttentionCall {
    VkmqaAttentionInfo info;
    VkmqaStep step;
    VkmqaStepLimits limits;
    struct VkmqaPlan plan;
};
VkResult vkmqa_read_attention(VkmqaAttention attention, VkCommandBuffer commandBuffer, const char* name,
                              const VkmqaAttentionInfo* given, struct VkmqaAttentionCall* read);

#endif

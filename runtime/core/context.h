// The handles and what they hold. SPDX-License-Identifier: MIT
#ifndef VKMQA_CONTEXT_H
#define VKMQA_CONTEXT_H

#include "../allocate.h"
#include "../process.h"
#include "../vk_table.h"
#include "internal.h"

// The first word of every handle, so that a null, stale or foreign pointer given by mistake is told.
enum {
    VKMQA_MAGIC_CONTEXT = 0x566b4374,
    VKMQA_MAGIC_ATTENTION = 0x566b4174,
    VKMQA_MAGIC_RECORDER = 0x566b5264,
};

struct VkmqaContext_T {
    uint32_t magic;
    struct VkmqaVk vk;
    VkDevice device;
    struct VkmqaCaps caps;
    bool hasAllocator;
    VkAllocationCallbacks allocator;
    VkPipelineCache pipelineCache;
    VkmqaMessageCallback messageCallback;
    void* messageUserData;
    VkmqaRunJobs runJobs; // may be null
    void* runJobsUserData;
    double maxDispatchSeconds;
    VkDescriptorSetLayout setLayout;     // VKMQA_BIND_COUNT storage buffers
    VkPipelineLayout bindLayout;         // set 0 and push constants
    VkPipelineLayout addressLayout;      // push constants alone
    long processId; // of the process that made it
};
// In a child after fork(), the driver's objects are the parent's: some drivers would take them from it.
static inline bool vkmqa_is_inherited(const struct VkmqaContext_T* context) {
    return context->processId != vkmqa_process_id();
}

struct VkmqaAttention_T {
    uint32_t magic;
    struct VkmqaContext_T* context;
    struct VkmqaShape shape;
    struct VkmqaChoice choice;
    VkPipeline attention[VKMQA_MAX_CANDIDATES];
    VkPipeline append, merge, mergeStates;
    VkPipeline compact; // null without TREE_MASK
    // Of a self-test that did not end in time; destroyed with the object, when its queue is idle.
    VkCommandPool leftPool;
    VkFence leftFence;
    struct VkmqaRecorder_T* leftRecorder;
};

struct VkmqaRecorder_T {
    uint32_t magic;
    struct VkmqaContext_T* context;
    VkDescriptorPool pool;
    uint32_t setCount, setsUsed;
};

static inline const VkAllocationCallbacks* vkmqa_allocator(const struct VkmqaContext_T* context) {
    return context->hasAllocator ? &context->allocator : NULL;
}

void vkmqa_message(const struct VkmqaContext_T* context, VkmqaSeverity severity,
                   const char* format, ...)
    VKMQA_PRINTF(3, 4);
// Sends the message as an error and returns result.
VkResult vkmqa_fail(const struct VkmqaContext_T* context, VkResult result, const char* format, ...)
    VKMQA_PRINTF(3, 4);

static inline bool vkmqa_is_context(VkmqaContext context) {
    return context && context->magic == VKMQA_MAGIC_CONTEXT;
}
// An error, with a sentence, in a child after fork().
VkResult vkmqa_check_process(const struct VkmqaContext_T* context, const char* call);
static inline bool vkmqa_is_attention(VkmqaAttention attention) {
    return attention && attention->magic == VKMQA_MAGIC_ATTENTION;
}

// requirements.c: what the feature chain and extension list say.
struct VkmqaEnabled {
    bool deviceAddress;
    bool pushDescriptor;
    bool storage16, float16, narrowIntegers;
    bool subgroupSizeControl, computeFullSubgroups;
    bool matrices;  // cooperativeMatrix, and the memory model its shaders need
    bool scopeless; // vulkanMemoryModel without vulkanMemoryModelDeviceScope
};
void vkmqa_read_enabled(uint32_t apiVersion, uint32_t extensionCount, const char* const* extensions,
                        const VkPhysicalDeviceFeatures2* features, struct VkmqaEnabled* enabled);

// pipeline.c
VkResult vkmqa_create_layouts(struct VkmqaContext_T* context);
void vkmqa_destroy_layouts(struct VkmqaContext_T* context);
VkResult vkmqa_create_pipelines(struct VkmqaAttention_T* attention);
void vkmqa_destroy_pipelines(struct VkmqaAttention_T* attention);
// One more, of the object's shape: the caller's to destroy.
VkResult vkmqa_create_pipeline(struct VkmqaAttention_T* attention, uint32_t shader,
                               uint32_t workgroupSize, VkPipeline* pipeline);

// record_attention.c: the part of an attention call that the plan says.
VkResult vkmqa_record_attention(const struct VkmqaAttention_T* attention, VkCommandBuffer commandBuffer,
                                const char* name, const VkmqaAttentionInfo* info, const VkmqaStep* step,
                                const VkmqaStepLimits* limits, const struct VkmqaPlan* plan,
                                uint32_t* dispatches);

#endif

// The core's internal vocabulary. SPDX-License-Identifier: MIT
//
//   caps    what the device, as created, can do          (context.c, requirements.c)
//   shape   a validated VkmqaAttentionCreateInfo          (shape.c: pure C)
//   choice  kernels for caps and shape                    (select.c: pure C, one table of data)
//   plan    grid and sizes of one call                    (plan.c: pure C)
//   pipelines, record                                     (the only code that calls vkCmd*)
#ifndef VKMQA_INTERNAL_H
#define VKMQA_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <vkmqa/vkmqa.h>

#include "../../shaders/shared.h"

enum {
    VKMQA_MAX_RATIO = 128,
    VKMQA_MAX_HEAD_DIM = 256,
    VKMQA_MAX_PAGE_SIZE = 256,
    VKMQA_MAX_CANDIDATES = 4, // attention kernels one object may hold, by rows of a tile
};

// ---- caps ------------------------------------------------------------------------------------

struct VkmqaCaps {
    VkPhysicalDeviceType type;
    uint32_t driverId; // VkDriverId, 0 = unknown
    uint32_t driverVersion;
    uint32_t apiVersion; // the smaller of instance and device
    bool deviceAddress;
    bool pushDescriptor;
    bool storage16, float16; // 16-bit storage buffers, f16 arithmetic
    bool subgroupShuffle, subgroupBallot; // in compute shaders
    bool subgroupSizeControl, computeFullSubgroups;
    uint32_t subgroupSize, minSubgroupSize, maxSubgroupSize;
    uint32_t maxInvocations;
    uint32_t maxGroupCount[3];
    uint32_t sharedMemory;
    uint32_t storageBuffersPerStage;
    uint64_t maxStorageRange;
    uint64_t storageAlignment;
};

// ---- shape -----------------------------------------------------------------------------------

struct VkmqaShape {
    bool causal;
    uint32_t numHeadsQ, numHeadsKv, ratio;
    uint32_t headDimQk, headDimV;
    VkmqaType ioType, newType, kType, vType;
    uint32_t pageTokens; // tokens per page; maxSeqLenKv when contiguous
    uint32_t pageShift;  // VKMQA_CONTIGUOUS = contiguous
    uint32_t maxSeqLenKv;
    float scale;
    uint32_t splitSize; // 0 = the kernel's own, adapted to the recorded maxima
    VkmqaTier tier;
    uint64_t avoidKernels;
};

// What is wrong with a call's arguments; text is empty when nothing is.
struct VkmqaProblem {
    char text[256];
};
void vkmqa_problem(struct VkmqaProblem* problem, const char* format, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;

void vkmqa_problem_list(struct VkmqaProblem* problem, const char* format, va_list arguments);

uint32_t vkmqa_type_size(VkmqaType type);
const char* vkmqa_type_name(VkmqaType type);
// Bytes from one cache row to the next.
uint32_t vkmqa_row_bytes(uint32_t headDim, VkmqaType type);
bool vkmqa_make_shape(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                      struct VkmqaProblem* problem);
// Fills the defaults of limits and checks them against the shape.
bool vkmqa_make_limits(const struct VkmqaShape* shape, const VkmqaStepLimits* given,
                       VkmqaStepLimits* limits, struct VkmqaProblem* problem);
// Products that tell of an overflow: false, and *result untouched.
bool vkmqa_multiply(uint64_t a, uint64_t b, uint64_t* result);
// Bytes of K and of V of a layer's cache.
bool vkmqa_cache_bytes(const struct VkmqaShape* shape, uint32_t numPages, uint64_t* k, uint64_t* v,
                       struct VkmqaProblem* problem);

// ---- select ----------------------------------------------------------------------------------

struct VkmqaKernel; // a row of the table in select.c

// A kernel with its sizes settled for a device and a shape: one attention pipeline.
struct VkmqaCandidate {
    uint32_t kernel; // row of the table = bit of avoidKernels
    const char* name;
    const char* reason;
    VkmqaTier tier;
    uint32_t shader;
    bool bind; // descriptors instead of device addresses
    uint32_t rows, cluster, block;
    uint32_t subgroupSize; // 0 = uses no subgroup operations
    uint32_t workgroupSize;
    uint32_t sharedMemory;
    uint32_t splitSize; // tokens of a split at the finest
    uint32_t workgroups; // in flight for a full device: fewer, and the KV range is split
};

struct VkmqaChoice {
    uint32_t count;
    struct VkmqaCandidate candidates[VKMQA_MAX_CANDIDATES]; // ascending rows
    bool bind;
    uint32_t appendShader, mergeShader;
    uint32_t appendWorkgroupSize, mergeWorkgroupSize;
    uint32_t appendTokens; // that one workgroup serves; 0 = eight elements per invocation
};

VkResult vkmqa_select(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                      struct VkmqaChoice* choice, struct VkmqaProblem* problem);

// ---- plan ------------------------------------------------------------------------------------

struct VkmqaPlan {
    uint32_t candidate; // index into VkmqaChoice::candidates
    uint32_t tiles;
    uint32_t groups[3];
    uint32_t splits, splitTokens;
    uint32_t mergeGroups[2];
    uint64_t statsOffset;  // in scratch, after the partial outputs
    uint64_t scratchBytes; // 0 when splits == 1
};

bool vkmqa_make_plan(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                     const struct VkmqaChoice* choice, const VkmqaStepLimits* limits,
                     struct VkmqaPlan* plan, struct VkmqaProblem* problem);
// The most scratch any plan within the limits needs.
bool vkmqa_scratch_bound(const struct VkmqaShape* shape, const struct VkmqaChoice* choice,
                         const VkmqaStepLimits* limits, uint64_t* bytes,
                         struct VkmqaProblem* problem);
// x * y >= count with both within the device's limits.
bool vkmqa_fold_grid(const struct VkmqaCaps* caps, uint64_t count, uint32_t groups[2]);

#endif

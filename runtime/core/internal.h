// The core's internal vocabulary. SPDX-License-Identifier: MIT
//
//   caps    what the device, as created, can do          (context.c, requirements.c)
//   shape   a validated VkmqaAttentionCreateInfo          (shape.c: pure C)
//   tuned   a tuning profile's lines for the shape        (tuning.c: pure C)
//   choice  kernels for caps and shape                    (select.c: pure C, one table of data)
//   plan    grid and sizes of one call                    (plan.c: pure C)
//   cost    what it takes                                 (estimate.c: pure C)
//   pipelines, record                                     (with call.c and recorder.c the only code that calls vkCmd*, but for verify.c's)
#ifndef VKMQA_INTERNAL_H
#define VKMQA_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <vkmqa/vkmqa.h>

#include "../../shaders/shared.h"
#include "../structs.h"

enum {
    VKMQA_MAX_RATIO = 128,
    VKMQA_MAX_HEAD_DIM = 576,
    VKMQA_MAX_PAGE_SIZE = 256,
    VKMQA_MAX_CANDIDATES = 8, // attention kernels one object may hold, by rows of a tile
    VKMQA_MAX_MATRICES = 8,   // shapes of matrices that are considered
};

// ---- caps ------------------------------------------------------------------------------------

struct VkmqaCaps {
    VkPhysicalDeviceType type;
    uint32_t vendorId; // PCI's
    uint32_t driverId; // VkDriverId, 0 = unknown
    uint32_t driverVersion;
    uint8_t uuid[16]; // deviceUUID
    uint32_t apiVersion; // the smaller of instance and device
    bool deviceAddress;
    bool pushDescriptor;
    bool storage16, float16; // 16-bit storage buffers, f16 arithmetic
    bool narrowIntegers;     // 8-bit storage buffers, 8-bit and 16-bit integers
    bool subgroupShuffle, subgroupBallot, subgroupVote; // in compute shaders
    bool subgroupSizeControl, computeFullSubgroups;
    uint32_t subgroupSize, minSubgroupSize, maxSubgroupSize;
    uint32_t maxInvocations;
    uint32_t maxGroupCount[3];
    uint32_t sharedMemory;
    uint32_t storageBuffersPerStage;
    uint64_t maxStorageRange;
    uint64_t storageAlignment;
    uint32_t matrixCount; // f16 times f16 plus f32, of a subgroup; 0: no matrix units enabled
    struct VkmqaMatrix {
        uint32_t m, n, k;
    } matrices[VKMQA_MAX_MATRICES];
};

// ---- shape -----------------------------------------------------------------------------------

struct VkmqaShape {
    uint32_t windowLeft, windowRight; // VKMQA_UNBOUNDED = none; causal is windowRight 0
    uint32_t chunk;                   // 0 = off
    float softcap;                    // 0 = off
    uint32_t maskKind;                // VKMQA_MASK_*
    bool alibi, sinks, vPrefix, invariant;
    uint32_t hadamard; // elements that append mixes; 1 = off
    VkmqaRopeStyle ropeStyle;
    uint32_t ropeDim, ropeOffset;
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

// types.c
bool vkmqa_is_type(VkmqaType type, bool io); // io: one that q, out and new rows may have
uint32_t vkmqa_type_size(VkmqaType type);    // bytes of an element of q, out or new rows
const char* vkmqa_type_name(VkmqaType type);
// Bytes from one cache row to the next, and from one row's block scales (0: none) to the next.
uint32_t vkmqa_row_bytes(uint32_t headDim, VkmqaType type);
uint32_t vkmqa_scale_bytes(uint32_t headDim, VkmqaType type);

bool vkmqa_has_fp8(const struct VkmqaShape* shape);
bool vkmqa_make_shape(const VkmqaAttentionCreateInfo* info, struct VkmqaShape* shape,
                      struct VkmqaProblem* problem);
enum { VKMQA_MAX_BATCH = 1 << 20 }; // sequences of a step
// Query tokens of a call: their rows are int32, twice over.
static inline uint32_t vkmqa_most_queries(const struct VkmqaShape* shape) { return INT32_MAX / shape->numHeadsQ / 2; }
// Fills the defaults of limits and checks them against the shape.
bool vkmqa_make_limits(const struct VkmqaShape* shape, const VkmqaStepLimits* given,
                       VkmqaStepLimits* limits, struct VkmqaProblem* problem);
// No sequence is longer than its row of the page table.
void vkmqa_bound_by_pages(const struct VkmqaShape* shape, const VkmqaStepLayout* layout,
                          VkmqaStepLimits* limits);
// The most tokens that one query row, or all queries of a sequence together, may see.
uint32_t vkmqa_row_tokens(const struct VkmqaShape* shape, const VkmqaStepLimits* limits);
uint32_t vkmqa_span_tokens(const struct VkmqaShape* shape, const VkmqaStepLimits* limits);
// Products that tell of an overflow: false, and *result untouched.
bool vkmqa_multiply(uint64_t a, uint64_t b, uint64_t* result);
// Bytes of K and of V of a layer's cache: the plane of rows, and with the plane of scales behind it. V has
// none where it is a prefix of K.
struct VkmqaCacheBytes {
    uint64_t rowsK, allK, rowsV, allV;
};
uint64_t vkmqa_token_bytes(const struct VkmqaShape* shape); // K and V of one token over all KV heads
bool vkmqa_cache_bytes(const struct VkmqaShape* shape, uint32_t numPages, struct VkmqaCacheBytes* bytes,
                       struct VkmqaProblem* problem);
// parameters.c: of the parameters buffer; 0: the shape needs none.
uint64_t vkmqa_parameter_bytes(const struct VkmqaShape* shape);

// ---- tuning ----------------------------------------------------------------------------------

// What a profile says of a shape, by ascending rows; the last kernel takes calls of any number.
struct VkmqaTuned {
    uint32_t count;      // 0: nothing
    const char* foreign; // null, or what the profile is of instead of this device
    struct VkmqaTunedKernel {
        char name[32];
        uint32_t upTo; // rows of a sequence
        uint32_t splitSize, workgroups;
    } kernels[VKMQA_MAX_CANDIDATES];
};
bool vkmqa_read_tuning(const char* text, size_t size, const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                       struct VkmqaTuned* tuned, struct VkmqaProblem* problem);

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
    uint32_t upTo; // takes calls of up to so many rows of a sequence
    struct VkmqaMatrix matrix; // all 0: uses no matrix units
    uint32_t columnGroups;     // subgroups that share a tile of rows
    bool spreadFactors, holdQueries, prefetch; // see shaders/shared.h
    uint32_t subgroupSize; // 0 = uses no subgroup operations
    uint32_t workgroupSize;
    uint32_t sharedMemory;
    uint32_t splitSize; // tokens of a split at the finest
    uint32_t workgroups; // in flight for a full device: fewer, and the KV range is split
};

// What a workgroup of append takes.
typedef enum VkmqaAppendUnit {
    VKMQA_APPEND_EIGHTS, // eight elements of K or V for each invocation
    VKMQA_APPEND_TOKEN,  // all K and V rows of one token
    VKMQA_APPEND_ROW,    // one row of K, V or q
} VkmqaAppendUnit;

struct VkmqaChoice {
    uint32_t count;
    struct VkmqaCandidate candidates[VKMQA_MAX_CANDIDATES]; // ascending upTo
    bool bind;
    uint32_t appendKernel; // bit of avoidKernels
    uint32_t appendShader, mergeShader, mergeStatesShader, compactShader;
    uint32_t shiftShader; // of the cache layer
    uint32_t appendWorkgroupSize, mergeWorkgroupSize, compactWorkgroupSize;
    VkmqaAppendUnit appendUnit;
};

// tuned: may be null.
VkResult vkmqa_select(const struct VkmqaCaps* caps, const struct VkmqaShape* shape, const struct VkmqaTuned* tuned,
                      struct VkmqaChoice* choice, struct VkmqaProblem* problem);

// ---- plan ------------------------------------------------------------------------------------

struct VkmqaPlan {
    uint32_t candidate; // index into VkmqaChoice::candidates
    uint32_t tiles;
    uint32_t groups[3];
    uint32_t splits, splitTokens;
    uint32_t mergeGroups[3];
    uint64_t statsOffset;  // in scratch, after the partial outputs
    uint64_t scratchBytes; // 0 when splits == 1
    // What is recorded: workgroups [first, end), counted x fastest, at most perDispatch in one dispatch; with the
    // last one comes the merge. All of them in one, until somebody cuts.
    uint64_t first, end, perDispatch;
};
static inline uint64_t vkmqa_plan_groups(const struct VkmqaPlan* plan) {
    return (uint64_t)plan->groups[0] * plan->groups[1] * plan->groups[2];
}

bool vkmqa_make_plan(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                     const struct VkmqaChoice* choice, const VkmqaStepLimits* limits,
                     struct VkmqaPlan* plan, struct VkmqaProblem* problem);
// The most scratch any plan within the limits needs.
bool vkmqa_scratch_bound(const struct VkmqaShape* shape, const struct VkmqaChoice* choice,
                         const VkmqaStepLimits* limits, uint64_t* bytes,
                         struct VkmqaProblem* problem);
// The next dispatch of the workgroups [first, end): a box of the grid that begins at first.
struct VkmqaBox {
    uint32_t base[3], size[3];
    uint64_t groups; // workgroups in it
};
struct VkmqaBox vkmqa_cut_box(const uint32_t grid[3], uint64_t first, uint64_t end);
// x * y >= count with both within the device's limits.
bool vkmqa_fold_grid(const struct VkmqaCaps* caps, uint64_t count, uint32_t groups[2]);

// ---- estimate --------------------------------------------------------------------------------

// What a whole call costs at the recorded maxima; seconds as a slow device of its kind takes them.
struct VkmqaCost {
    uint64_t cacheBytes; // read, all tiles' reads counted
    double flops;
    double seconds;
};
struct VkmqaCost vkmqa_estimate(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                                const struct VkmqaChoice* choice, const VkmqaStepLimits* limits,
                                const struct VkmqaPlan* plan);
// Workgroups that take so many seconds: at least one, at most all.
uint64_t vkmqa_groups_in(const struct VkmqaPlan* plan, double secondsPerGroup, double seconds);

#endif

// vkmqa: shared-KV attention (MHA, GQA, MQA) and KV-cache append for any Vulkan device.
// SPDX-License-Identifier: MIT
//
// This header is the manual of the core. The core records into command buffers that you own; it never
// submits (one exception, vkmqaVerifyAttention, on the queue you hand it), never waits, never allocates
// device memory, never prints, never aborts and keeps no global state.
//
// The order of use:
//   1. vkmqaGetDeviceRequirements   which extensions and features to enable      (before vkCreateDevice)
//   2. vkmqaCreateContext           import your VkDevice
//   3. vkmqaCreateAttention         one object per model shape; compiles its pipelines
//   4. vkmqaGetKvRequirements, vkmqaGetScratchRequirements, vkmqaGetStepLayout    allocate buffers
//   5. per token and layer: vkmqaCmdAppendKv, vkmqaCmdAttention
// Apps that have no Vulkan device of their own use <vkmqa/vkmqa_runtime.h> for steps 1, 2 and 4.
//
// Words (the field's own):
//   numHeadsQ, numHeadsKv   query heads, key/value heads; query head h reads KV head
//                           h / (numHeadsQ / numHeadsKv). numHeadsKv == 1 is multi-query attention.
//   headDimQk, headDimV     elements of a query/key row and of a value/output row
//   cuSeqlensQ              int32 [batch + 1]: query tokens of sequence b are the rows
//                           cuSeqlensQ[b] .. cuSeqlensQ[b + 1] - 1 of q
//   seqLensKv               int32 [batch]: tokens in the cache, this step's included
//   pageTable               int32 [batch, maxPages]: the pages of each sequence, in order
//   slotMapping             int32 [newTokens]: page * pageSize + offset of each new token; -1 skips it
//   lse                     natural logarithm of the sum of exp(score), one per query token and head
//   row                     one (query token, query head) pair
//
// Kernels with descriptors: the portable tier, and a few of the cpu tier, reach buffers through descriptor
// sets instead of device addresses (VkmqaKernelInfo::usesDescriptors says so). They need VkBuffer handles,
// a VkmqaRecorder where VK_KHR_push_descriptor is not enabled, and ranges of at most
// maxStorageBufferRange. "With descriptors" below means them.
//
// Semantics: score = scale * dot(q, k) in f32; out = softmax(score) v. Masks are aligned bottom-right:
// query token i of a sequence sits at position i + seqLenKv - seqLenQ. A row that may attend nothing
// gives out = 0 and lse = -inf. Cache slots past a sequence's length may hold anything, NaN included; a
// NaN that a row does attend reaches that row's out and lse.
//
// Conventions: info structs start with structSize = sizeof(the struct); zero means default everywhere;
// structs grow only at their end, and a larger unknown structSize is accepted if its tail is zero.
// Every call that can fail returns a VkResult, and one that failed has changed and recorded nothing and
// has explained itself through the context's message callback:
//   VK_ERROR_VALIDATION_FAILED_EXT   an argument is wrong; the message names field, value and remedy
//   VK_ERROR_FEATURE_NOT_PRESENT     the device, as created, cannot do it
//   VK_ERROR_OUT_OF_POOL_MEMORY      a VkmqaRecorder is full
//   VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_OUT_OF_DEVICE_MEMORY, VK_ERROR_DEVICE_LOST ...   from Vulkan
// Null handles and handles of another kind or of another context are errors; use after destruction is
// undefined, as in Vulkan. Strings returned live as long as the object they were asked of.
//
// Threads: contexts and attention objects are immutable after creation: any number of threads may
// record with one object, each into its own command buffer (and with its own VkmqaRecorder). Creation
// and destruction of one object need the usual external synchronisation.
#ifndef VKMQA_H
#define VKMQA_H

#include <vulkan/vulkan_core.h>

#define VKMQA_VERSION_MAJOR 0
#define VKMQA_VERSION_MINOR 1
#define VKMQA_VERSION_PATCH 0
#define VKMQA_VERSION                                                                              \
    ((VKMQA_VERSION_MAJOR << 22) | (VKMQA_VERSION_MINOR << 12) | VKMQA_VERSION_PATCH)

#ifndef VKMQA_API
#if defined(_WIN32) && defined(VKMQA_SHARED)
#define VKMQA_API __declspec(dllimport) // for who links the DLL
#elif defined(__GNUC__) && !defined(_WIN32)
#define VKMQA_API __attribute__((visibility("default")))
#else
#define VKMQA_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct VkmqaContext_T* VkmqaContext;
typedef struct VkmqaAttention_T* VkmqaAttention;
typedef struct VkmqaRecorder_T* VkmqaRecorder;

// Version of the library that is running, packed as VKMQA_VERSION.
VKMQA_API uint32_t vkmqaGetVersion(void);

// ---- 1. Before vkCreateDevice ----------------------------------------------------------------

typedef struct VkmqaDeviceRequirementsInfo {
    uint32_t structSize;
    uint32_t apiVersion; // the instance's VkApplicationInfo::apiVersion; at least VK_API_VERSION_1_1
    VkInstance instance;
    VkPhysicalDevice physicalDevice;
    PFN_vkGetInstanceProcAddr getInstanceProcAddr;
} VkmqaDeviceRequirementsInfo;

// What to enable at vkCreateDevice. Nothing in it is strictly required: a device created without any of
// it runs the portable kernels; with all of it, the fast ones. The pointers point into `storage`, so do
// not copy the struct while they are in use.
typedef struct VkmqaDeviceRequirements {
    uint32_t structSize;
    uint32_t extensionCount;
    const char* const* extensionNames; // supported by the device and not part of its core version
    // Only supported features, one struct per feature (never VkPhysicalDeviceVulkan1xFeatures): chain it
    // as VkDeviceCreateInfo::pNext, or copy the VK_TRUEs into the structs you already have.
    VkPhysicalDeviceFeatures2* features;
    uint64_t storage[192];
} VkmqaDeviceRequirements;

// Errors: VK_ERROR_VALIDATION_FAILED_EXT for null arguments; VK_ERROR_INCOMPATIBLE_DRIVER when the
// instance or the device is older than Vulkan 1.1; what Vulkan returns.
VKMQA_API VkResult vkmqaGetDeviceRequirements(const VkmqaDeviceRequirementsInfo* info,
                                              VkmqaDeviceRequirements* requirements);

// ---- 2. Context: your device, imported -------------------------------------------------------

typedef enum VkmqaSeverity {
    VKMQA_SEVERITY_INFO = 0,    // a choice worth knowing
    VKMQA_SEVERITY_WARNING = 1, // works, but not as well as it could
    VKMQA_SEVERITY_ERROR = 2,   // the reason of the error code being returned
    VKMQA_SEVERITY_MAX_ENUM = 0x7FFFFFFF
} VkmqaSeverity;

// Called on the thread of the call it speaks of. The text is valid during the callback.
typedef void (*VkmqaMessageCallback)(VkmqaSeverity severity, const char* text, void* userData);

typedef struct VkmqaContextCreateInfo {
    uint32_t structSize;
    uint32_t apiVersion; // the one the instance was created with
    VkInstance instance;
    VkPhysicalDevice physicalDevice;
    VkDevice device; // must outlive the context
    PFN_vkGetInstanceProcAddr getInstanceProcAddr;
    // What the device was created with; enabled features cannot be queried back, so a feature that is
    // not in this chain counts as off. Single feature structs and VkPhysicalDeviceVulkan11/12/13Features
    // are understood. Null: only core features of nothing, that is the portable kernels.
    uint32_t enabledExtensionCount;
    const char* const* enabledExtensions;
    const VkPhysicalDeviceFeatures2* enabledFeatures;
    const VkAllocationCallbacks* allocator; // optional; used for every host allocation; copied
    VkPipelineCache pipelineCache;          // optional; used, never destroyed or saved
    VkmqaMessageCallback messageCallback;   // optional
    void* messageUserData;
} VkmqaContextCreateInfo;

// Errors: VK_ERROR_VALIDATION_FAILED_EXT, VK_ERROR_INCOMPATIBLE_DRIVER (Vulkan 1.0),
// VK_ERROR_FEATURE_NOT_PRESENT (fewer than 6 storage buffers per stage and no device addresses),
// VK_ERROR_OUT_OF_HOST_MEMORY.
VKMQA_API VkResult vkmqaCreateContext(const VkmqaContextCreateInfo* info, VkmqaContext* context);

// Null is ignored. Its attention objects and recorders must have been destroyed.
VKMQA_API void vkmqaDestroyContext(VkmqaContext context);

// ---- 3. Attention: one object per model shape ------------------------------------------------

typedef enum VkmqaType {
    VKMQA_TYPE_DEFAULT = 0,
    VKMQA_TYPE_F32 = 1,
    VKMQA_TYPE_F16 = 2, // IEEE 754 binary16; stored and read also where the device has no 16-bit types
    VKMQA_TYPE_MAX_ENUM = 0x7FFFFFFF
} VkmqaType;

typedef enum VkmqaTier {
    VKMQA_TIER_AUTO = 0,
    VKMQA_TIER_PORTABLE = 1, // plain Vulkan 1.1: descriptors, no subgroup operations
    VKMQA_TIER_SUBGROUP = 2, // device addresses and subgroup operations
    VKMQA_TIER_CPU = 3,      // for Vulkan drivers that run on the CPU
    VKMQA_TIER_MAX_ENUM = 0x7FFFFFFF
} VkmqaTier;

typedef enum VkmqaAttentionFlagBits {
    VKMQA_ATTENTION_CAUSAL_BIT = 0x1, // a query token sees positions up to its own (bottom-right)
    VKMQA_ATTENTION_FLAG_BITS_MAX_ENUM = 0x7FFFFFFF
} VkmqaAttentionFlagBits;
typedef VkFlags VkmqaAttentionFlags;

typedef struct VkmqaAttentionCreateInfo {
    uint32_t structSize;
    VkmqaAttentionFlags flags;
    uint32_t numHeadsQ;  // a multiple of numHeadsKv, at most 128 times as many
    uint32_t numHeadsKv; // at least 1
    uint32_t headDimQk;  // a multiple of 8 from 8 to 256
    uint32_t headDimV;   // likewise; default headDimQk
    VkmqaType ioType;    // q and out; default f16
    VkmqaType newType;   // new K and V rows given to vkmqaCmdAppendKv; default ioType
    VkmqaType kType;     // stored K; default f16
    VkmqaType vType;     // stored V; default kType
    // Tokens per page, a power of two from 1 to 256; 0 = contiguous: sequence b of a step owns
    // page b, which holds maxSeqLenKv tokens, and no page table is read.
    uint32_t pageSize;
    uint32_t maxSeqLenKv; // the longest sequence ever recorded for; default 1 << 20 when paged
    float scale;          // factor of the scores; 0 = 1 / sqrt(headDimQk)
    // Tokens that one workgroup streams before states are merged, a power of two from 64; default
    // chosen for the device. Smaller means more parallelism and more merging.
    uint32_t splitSize;
    VkmqaTier tier;        // force a tier; VK_ERROR_FEATURE_NOT_PRESENT where the device lacks it
    // Bit k: never use kernel k (see VkmqaKernelInfo::kernel). The numbers hold for one version of the
    // library; keep names (vkmqaGetKernelName) if you keep them at all.
    uint64_t avoidKernels;
} VkmqaAttentionCreateInfo;

// Selects kernels and compiles all their pipelines in one batch; this is the slow call (milliseconds to
// a second, by driver; a warm VkPipelineCache helps). Thread-safe for one context.
VKMQA_API VkResult vkmqaCreateAttention(VkmqaContext context, const VkmqaAttentionCreateInfo* info,
                                        VkmqaAttention* attention);

// Null is ignored. No command buffer recorded with it may be pending.
VKMQA_API void vkmqaDestroyAttention(VkmqaAttention attention);

// ---- 4. Sizes: ask before you allocate -------------------------------------------------------

typedef struct VkmqaBufferRequirements {
    VkDeviceSize size;
    VkDeviceSize alignment;   // of the offset into the VkBuffer (and of the device address)
    VkBufferUsageFlags usage; // includes VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT where kernels need it
} VkmqaBufferRequirements;

// The cache of one layer. K is [numPages, numHeadsKv, pageSize, row] and V likewise, a row being
// headDim elements padded to 16 bytes; the contents need no initialisation.
typedef struct VkmqaKvRequirements {
    uint32_t structSize;
    uint32_t pageTokens; // tokens per page: pageSize, or maxSeqLenKv when contiguous
    VkmqaBufferRequirements k;
    VkmqaBufferRequirements v;
    VkDeviceSize bytesPerToken; // K and V of one token over all KV heads
    uint32_t rowBytesK;         // bytes from one token's K row to the next in a page
    uint32_t rowBytesV;
} VkmqaKvRequirements;

// numPages: pages of the layer's cache (sequences, when contiguous). Errors: an overflow of 64 bits, or
// of maxStorageBufferRange with descriptors, is VK_ERROR_VALIDATION_FAILED_EXT naming both numbers.
VKMQA_API VkResult vkmqaGetKvRequirements(VkmqaAttention attention, uint32_t numPages,
                                          VkmqaKvRequirements* requirements);

// The most a recorded call will ever see; the contents of the step metadata may change from one
// execution of the command buffer to the next within them.
typedef struct VkmqaStepLimits {
    uint32_t batch;       // sequences
    uint32_t totalQ;      // query tokens of all sequences
    // Kernel and splits are chosen by these two: leave them at their defaults, and a batch of single tokens
    // is planned as a prefill, and a short context as the longest.
    uint32_t maxSeqLenQ;  // query tokens of one sequence; default totalQ
    uint32_t maxSeqLenKv; // tokens of one sequence; default the attention object's
    uint32_t newTokens;   // rows appended; default totalQ
} VkmqaStepLimits;

// Scratch of one vkmqaCmdAttention within these limits. It may be 0. Calls that may execute at the same
// time need scratch of their own.
VKMQA_API VkResult vkmqaGetScratchRequirements(VkmqaAttention attention,
                                               const VkmqaStepLimits* limits,
                                               VkmqaBufferRequirements* requirements);

// Where the arrays of a step stand in its metadata buffer, in bytes from VkmqaStep::metadata.offset,
// multiples of 4. All arrays are int32; they may overlap nothing. An offset of VKMQA_NONE means absent.
#define VKMQA_NONE 0xFFFFFFFFu
typedef struct VkmqaStepLayout {
    uint32_t cuSeqlensQ;  // [batch + 1]
    uint32_t seqLensKv;   // [batch]
    uint32_t pageTable;   // [batch, maxPages]; VKMQA_NONE when contiguous
    uint32_t maxPages;    // row length of pageTable, in entries; 0 when contiguous
    uint32_t slotMapping; // [newTokens]
    uint32_t positions;   // reserved for rotary embedding, not read by this version; VKMQA_NONE
    uint32_t status;      // one word, or VKMQA_NONE. Kernels OR VkmqaStatusFlagBits into it
} VkmqaStepLayout;

// The packed layout for these limits: fills layout and the requirements of the metadata buffer. Other
// layouts are as good, as long as the arrays lie within the buffer.
VKMQA_API VkResult vkmqaGetStepLayout(VkmqaAttention attention, const VkmqaStepLimits* limits,
                                      VkmqaStepLayout* layout,
                                      VkmqaBufferRequirements* requirements);

// ---- 5. Recording ----------------------------------------------------------------------------

// A range of a buffer: handle, offset and size, or a device address and size. Kernels with descriptors
// need the handle. Addresses and offsets are multiples of 16 bytes.
typedef struct VkmqaBuffer {
    VkBuffer buffer;
    VkDeviceSize offset;
    VkDeviceSize size; // bytes the library may touch, from offset
    VkDeviceAddress address; // of the range itself, offset included; 0: taken from handle and offset
} VkmqaBuffer;

// One forward step: which tokens belong to which sequence. Shared by all layers of the model.
typedef struct VkmqaStep {
    uint32_t structSize;
    VkmqaStepLimits limits; // the recorded maxima
    VkmqaStepLayout layout;
    VkmqaBuffer metadata;
} VkmqaStep;

// What a kernel found in the metadata and treated as forbidden tokens instead of believing it. A bad entry
// of cuSeqlensQ may also cost the sequences beside it their rows.
typedef enum VkmqaStatusFlagBits {
    VKMQA_STATUS_PAGE_OUT_OF_RANGE_BIT = 0x1,   // a page table entry outside [0, numPages)
    VKMQA_STATUS_LENGTH_OUT_OF_RANGE_BIT = 0x2, // seqLensKv negative, or beyond maxSeqLenKv or the pages
    VKMQA_STATUS_QUERY_RANGE_BIT = 0x4,         // cuSeqlensQ goes backwards or leaves [0, totalQ]
    VKMQA_STATUS_SLOT_OUT_OF_RANGE_BIT = 0x8,   // a slot outside [-1, numPages * pageTokens)
    VKMQA_STATUS_FLAG_BITS_MAX_ENUM = 0x7FFFFFFF
} VkmqaStatusFlagBits;

// One layer's cache: ranges of at least vkmqaGetKvRequirements(numPages).
typedef struct VkmqaKv {
    VkmqaBuffer k;
    VkmqaBuffer v;
    uint32_t numPages;
} VkmqaKv;

// Where rows stand in a tensor [tokens, heads, headDim]: element (t, h, d) is at t * token + h * head + d.
// Strides are in elements; zero means packed; a slice of a fused QKV projection needs no copy. Multiples
// of 4 elements (f32) or 8 elements (f16).
typedef struct VkmqaStrides {
    uint32_t token;
    uint32_t head;
} VkmqaStrides;

typedef struct VkmqaAppendInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    const VkmqaStep* step;
    const VkmqaKv* kv;
    VkmqaBuffer newK; // [newTokens, numHeadsKv, headDimQk] of newType
    VkmqaBuffer newV; // [newTokens, numHeadsKv, headDimV] of newType
    VkmqaStrides strideK;
    VkmqaStrides strideV;
} VkmqaAppendInfo;

// Records the conversion and scatter of new K and V rows into the cache, one dispatch for all
// sequences. Reads step.slotMapping, newK, newV; writes the slots' rows and nothing else. A slot given
// twice in one step holds an unspecified mix of both rows. Sync scope: reads and writes in
// VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT; make the inputs visible to it before. A following
// vkmqaCmdAttention or vkmqaCmdAppendKv in the same command buffer is ordered by the library; every
// other consumer needs a barrier from SHADER_WRITE of the compute stage. The previous readers of the
// cache must have been ordered before (those recorded by the library in this command buffer are).
VKMQA_API VkResult vkmqaCmdAppendKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                    const VkmqaAppendInfo* info);

typedef struct VkmqaAttentionInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    const VkmqaStep* step;
    const VkmqaKv* kv;
    VkmqaBuffer q;       // [totalQ, numHeadsQ, headDimQk] of ioType
    VkmqaBuffer out;     // [totalQ, numHeadsQ, headDimV] of ioType
    VkmqaBuffer lse;     // f32 [totalQ, numHeadsQ]; all zero: not written
    VkmqaBuffer scratch; // vkmqaGetScratchRequirements(step.limits)
    VkmqaStrides strideQ;
    VkmqaStrides strideOut;
} VkmqaAttentionInfo;

// Records attention of the step's query tokens over the cache. Writes out (and lse) for every token of
// every sequence, nothing for tokens of none. Sync scope as for vkmqaCmdAppendKv; scratch is the
// library's between two of its calls in one command buffer. Records one or two dispatches.
// Source: online softmax (Milakov and Gimelshein, arXiv 1805.02867); FlashAttention-2 (Dao, arXiv
// 2307.08691); split-KV (Flash-Decoding, Dao et al. 2023).
VKMQA_API VkResult vkmqaCmdAttention(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                     const VkmqaAttentionInfo* info);

// Descriptor sets for kernels with descriptors where VK_KHR_push_descriptor is not enabled: like a
// VkCommandPool, one per recording thread, reset by you when its command buffers have finished. Other
// kernels ignore it. A full one makes vkmqaCmd calls return VK_ERROR_OUT_OF_POOL_MEMORY. Reset takes back
// all of its sets; destroying null is ignored; it goes before its context.
typedef struct VkmqaRecorderCreateInfo {
    uint32_t structSize;
    uint32_t maxCalls; // vkmqaCmd calls between two resets
} VkmqaRecorderCreateInfo;
VKMQA_API VkResult vkmqaCreateRecorder(VkmqaContext context, const VkmqaRecorderCreateInfo* info,
                                       VkmqaRecorder* recorder);
VKMQA_API VkResult vkmqaResetRecorder(VkmqaRecorder recorder);
VKMQA_API void vkmqaDestroyRecorder(VkmqaRecorder recorder);

// ---- Which kernel, and does it compute rightly here? -----------------------------------------

typedef struct VkmqaKernelInfo {
    uint32_t structSize;
    uint32_t kernel;    // bit number for avoidKernels
    VkmqaTier tier;
    const char* name;   // for logs, such as "cpu-wide-r4"
    const char* reason; // why it was chosen, one sentence
    uint32_t workgroups[3];
    VkBool32 usesDescriptors; // see the top of this file
    uint32_t splits;        // parts of the KV range, merged by a second dispatch when above 1
    uint32_t rowsPerTile;   // rows that share one read of K and V
    uint32_t subgroupSize;  // 0 where the kernel uses none
    VkDeviceSize sharedMemory;
    VkDeviceSize cacheBytesRead; // at these limits, all tiles' reads counted
    double flops;                // 2 * rows * tokens * (headDimQk + headDimV)
} VkmqaKernelInfo;

// What vkmqaCmdAttention will dispatch within these limits.
VKMQA_API VkResult vkmqaGetKernelInfo(VkmqaAttention attention, const VkmqaStepLimits* limits,
                                      VkmqaKernelInfo* kernelInfo);

// Name of kernel number `kernel` (bit of avoidKernels), or null past the last.
VKMQA_API const char* vkmqaGetKernelName(uint32_t kernel);

// Memory of the known-answer test: one buffer of these usages in host-visible, host-coherent memory that
// stays mapped.
VKMQA_API VkResult vkmqaGetVerifyRequirements(VkmqaAttention attention,
                                              VkmqaBufferRequirements* requirements);

typedef struct VkmqaVerifyInfo {
    uint32_t structSize;
    uint32_t queueFamilyIndex; // with compute
    VkQueue queue;             // used by this call alone while it runs
    VkmqaBuffer memory;
    void* mapped;       // host address of memory.offset
    uint64_t timeoutNs; // default 10 s
} VkmqaVerifyInfo;

// Runs append and attention with every pipeline of the object on small known inputs and compares with
// arithmetic on the host. failedKernels: bit k set, kernel k answered wrongly: create the object anew
// with avoidKernels |= failedKernels. VK_SUCCESS means the test ran, VK_TIMEOUT that it did not finish
// (the queue may still be at it, so its command buffer and fence are left behind). This call submits to
// the queue and waits.
VKMQA_API VkResult vkmqaVerifyAttention(VkmqaAttention attention, const VkmqaVerifyInfo* info,
                                        uint64_t* failedKernels);

#ifdef __cplusplus
}
#endif

#endif

// vkmqa: shared-KV attention (MHA, GQA, MQA, MLA) and KV-cache append for any Vulkan device.
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
//   4. vkmqaGetKvRequirements, vkmqaGetScratchRequirements, vkmqaGetStepLayout,
//      vkmqaGetParametersRequirements                                             allocate buffers
//   5. per step:           fill the step's metadata (VkmqaStepLayout)
//   6. per step and layer: vkmqaCmdAppendKv, vkmqaCmdAttention; submit
// Where no extension is enabled, a VkmqaRecorder (vkmqaCreateRecorder) goes with each recording thread.
// Apps that have no Vulkan device of their own use <vkmqa/vkmqa_runtime.h> for steps 1, 2 and 4; apps that
// think in conversations and not in pages, <vkmqa/vkmqa_cache.h>.
//
// Words (the field's own):
//   numHeadsQ, numHeadsKv   query heads, key/value heads; query head h reads KV head
//                           h / (numHeadsQ / numHeadsKv). numHeadsKv == 1 is multi-query attention.
//   headDimQk, headDimV     elements of a query/key row and of a value/output row
//   cuSeqlensQ              int32 [batch + 1]: query tokens of sequence b are the rows
//                           cuSeqlensQ[b] .. cuSeqlensQ[b + 1] - 1 of q
//   seqLensKv               int32 [batch]: tokens in the cache, this step's included
//   pageTable               int32 [batch, maxPages]: the pages of each sequence, in order
//   slotMapping             int32 [newTokens]: page * pageSize + offset of each new token; -1 skips it. For
//                           position p of a sequence: pageTable[p / pageSize] * pageSize + p % pageSize
//   positions               int32 [newTokens]: of each new token in its sequence, for rotary embedding
//   lse                     natural logarithm of the sum of exp(score), the sink's included, one per query
//                           token and head
//   row                     one (query token, query head) pair
//
// Kernels with descriptors: the portable tier, and a few of the cpu tier, reach buffers through descriptor
// sets instead of device addresses (VkmqaKernelInfo::usesDescriptors says so). They need VkBuffer handles,
// a VkmqaRecorder where VK_KHR_push_descriptor is not enabled, and ranges of at most
// maxStorageBufferRange. "With descriptors" below means them.
//
// Semantics: score = scale * dot(q, k) in f32, then softcap * tanh(score / softcap), then ALiBi, then the
// masks; out = softmax(score) v, a sink (a logit as it is: neither scaled nor capped) counting in the
// softmax's denominator only. Query token i of a
// sequence sits at position i + seqLenKv - seqLenQ (bottom-right alignment); windows, chunks and ALiBi
// measure from there. Every restriction that is asked for must allow a position. A row that may attend
// nothing gives out = 0 and lse = its sink, or -inf without one. What no row may attend may hold anything,
// NaN included: slots past a length or before every window, other pages. A NaN in K that a row does
// attend reaches that row's out and lse; one in V reaches out, unless its weight has underflowed to 0.
//
// Everything below may be combined with everything else, but for two pairs of flags, MASK with TREE_MASK and
// HADAMARD with V_PREFIX_OF_K, which are errors. V_PREFIX_OF_K has no type and no more elements for V than K.
//
// Conventions: structs that may grow start with structSize = sizeof(the struct); they grow only at their end,
// and a larger unknown structSize is accepted if its tail is zero. (VkmqaKv, VkmqaStepLimits, VkmqaStepLayout,
// VkmqaBuffer, VkmqaBufferRequirements and VkmqaStrides never grow and have none.) Zero means default everywhere.
// Every call that can fail returns a VkResult, and one that failed has changed and recorded nothing and
// has explained itself through the context's message callback, if a context or an object of one was given
// (outside of a struct whose structSize is wrong: what such a struct names is not believed):
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
//
// After fork() a Vulkan driver works in the parent only. The child may destroy what it has inherited, which frees
// host memory alone; creating from it, vkmqaVerifyAttention and vkmqaResetRecorder are
// VK_ERROR_VALIDATION_FAILED_EXT there. Recording is not checked, as the command buffer itself is the parent's.
#ifndef VKMQA_H
#define VKMQA_H

#include <vulkan/vulkan_core.h>

// Of this header.
#define VKMQA_VERSION_MAJOR 0
// Likewise.
#define VKMQA_VERSION_MINOR 1
// Likewise.
#define VKMQA_VERSION_PATCH 0
// major << 22 | minor << 12 | patch
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

typedef struct VkmqaContext_T* VkmqaContext;     // a device of yours
typedef struct VkmqaAttention_T* VkmqaAttention; // a model's shape, with its pipelines
typedef struct VkmqaRecorder_T* VkmqaRecorder;   // descriptor sets of one recording thread

// Version of the library that is running, packed as VKMQA_VERSION.
VKMQA_API uint32_t vkmqaGetVersion(void);

// ---- 1. Before vkCreateDevice ----------------------------------------------------------------

// Of the device to be created.
typedef struct VkmqaDeviceRequirementsInfo {
    uint32_t structSize;
    uint32_t apiVersion; // the instance's VkApplicationInfo::apiVersion; at least VK_API_VERSION_1_1
    VkInstance instance; // created with apiVersion
    VkPhysicalDevice physicalDevice; // of the instance
    PFN_vkGetInstanceProcAddr getInstanceProcAddr; // the loader's, or what your engine puts in front of it
} VkmqaDeviceRequirementsInfo;

// What to enable at vkCreateDevice. Nothing in it is strictly required: a device created without any of
// it runs the portable kernels; with all of it, the fast ones. The pointers point into `storage`, so do
// not copy the struct while they are in use.
typedef struct VkmqaDeviceRequirements {
    uint32_t structSize;
    uint32_t extensionCount; // of extensionNames
    const char* const* extensionNames; // supported by the device and not part of its core version
    // Only supported features, one struct per feature (never VkPhysicalDeviceVulkan1xFeatures): chain it
    // as VkDeviceCreateInfo::pNext, or copy the VK_TRUEs into the structs you already have.
    VkPhysicalDeviceFeatures2* features;
    uint64_t storage[192]; // the library's
} VkmqaDeviceRequirements;

// Errors: VK_ERROR_VALIDATION_FAILED_EXT for null arguments; VK_ERROR_INCOMPATIBLE_DRIVER when the
// instance or the device is older than Vulkan 1.1; what Vulkan returns.
VKMQA_API VkResult vkmqaGetDeviceRequirements(const VkmqaDeviceRequirementsInfo* info,
                                              VkmqaDeviceRequirements* requirements);

// ---- 2. Context: your device, imported -------------------------------------------------------

// Of a message.
typedef enum VkmqaSeverity {
    VKMQA_SEVERITY_INFO = 0,    // a choice worth knowing
    VKMQA_SEVERITY_WARNING = 1, // works, but not as well as it could
    VKMQA_SEVERITY_ERROR = 2,   // the reason of the error code being returned
    VKMQA_SEVERITY_MAX_ENUM = 0x7FFFFFFF
} VkmqaSeverity;

// Called on the thread of the call it speaks of. The text is valid during the callback.
typedef void (*VkmqaMessageCallback)(VkmqaSeverity severity, const char* text, void* userData);

// Runs job(jobData, i) once for each i < count, on any threads and in any order, and returns when all are done.
typedef void (*VkmqaJob)(void* jobData, uint32_t index);
// A thread pool's entry.
typedef void (*VkmqaRunJobs)(void* userData, uint32_t count, VkmqaJob job, void* jobData);

// Around a use of a queue that others use too: a lock, an unlock.
typedef void (*VkmqaQueueCallback)(void* userData, VkQueue queue);

// Your device, and how the library behaves on it.
typedef struct VkmqaContextCreateInfo {
    uint32_t structSize;
    uint32_t apiVersion; // the one the instance was created with
    VkInstance instance; // created with apiVersion
    VkPhysicalDevice physicalDevice; // of the instance
    VkDevice device; // must outlive the context
    PFN_vkGetInstanceProcAddr getInstanceProcAddr; // the loader's, or what your engine puts in front of it
    // What the device was created with; enabled features cannot be queried back, so a feature that is
    // not in this chain counts as off. Single feature structs and VkPhysicalDeviceVulkan11/12/13Features
    // are understood. Null: only core features of nothing, that is the portable kernels.
    uint32_t enabledExtensionCount;
    const char* const* enabledExtensions;             // VkDeviceCreateInfo::ppEnabledExtensionNames
    const VkPhysicalDeviceFeatures2* enabledFeatures; // with its pNext
    const VkAllocationCallbacks* allocator; // optional; used for every host allocation; copied
    VkPipelineCache pipelineCache;          // optional; used, never destroyed or saved
    VkmqaMessageCallback messageCallback;   // optional
    void* messageUserData; // for it
    // Optional: your thread pool. Pipelines of an object are then compiled side by side, and `allocator` is called
    // on its threads; without it they are compiled on the calling thread, one after another.
    VkmqaRunJobs runJobs;
    void* runJobsUserData; // for it
    // vkmqaCmdAttention cuts what it estimates to take longer into several dispatches, since one alone cannot be
    // interrupted on most GPUs; results are the same. Default 0.1, on CPU devices no limit; HUGE_VAL: never.
    double maxDispatchSeconds;
} VkmqaContextCreateInfo;

// Errors: VK_ERROR_VALIDATION_FAILED_EXT, VK_ERROR_INCOMPATIBLE_DRIVER (Vulkan 1.0),
// VK_ERROR_FEATURE_NOT_PRESENT (fewer than 8 storage buffers per stage and no device addresses),
// VK_ERROR_OUT_OF_HOST_MEMORY.
VKMQA_API VkResult vkmqaCreateContext(const VkmqaContextCreateInfo* info, VkmqaContext* context);

// Null is ignored. Its attention objects and recorders must have been destroyed.
VKMQA_API void vkmqaDestroyContext(VkmqaContext context);

// ---- 3. Attention: one object per model shape ------------------------------------------------

// Every type works on every device, whatever types it has itself. Conversions round to nearest even and
// make NaN canonical. Of values outside a type's range, f16 and bf16 make infinities; fp8 and the block
// types saturate. In blocks a NaN counts as 0, f32 denormals too, magnitudes are bounded so that d stays a
// finite f16, and a short last block is filled up with elements of value 0:
//   q8_0: d = f16(amax * (1/127)), code = trunc(x * 127/amax +- 0.5),         x ~ d * code
//   q4_0: d = m / -8, m the first value of largest magnitude,
//         code = min(15, trunc(x/d + 8.5)),                                    x ~ f16(d) * (code - 8)
// A code whose exact value lies within 2^-14 of a tie may be either neighbour (drivers divide differently).
typedef enum VkmqaType {
    VKMQA_TYPE_DEFAULT = 0,
    VKMQA_TYPE_F32 = 1,
    VKMQA_TYPE_F16 = 2,  // IEEE 754 binary16
    VKMQA_TYPE_BF16 = 3, // the upper half of an f32
    // Of cached K and V only:
    VKMQA_TYPE_FP8_E4M3 = 4, // OCP e4m3fn, saturating at 448, times a scale for each KV head
    VKMQA_TYPE_Q8_0 = 5,     // blocks of 32 int8 with one f16 scale, numerically GGML's
    VKMQA_TYPE_Q4_0 = 6,     // blocks of 32 4-bit integers with one f16 scale, numerically GGML's
    VKMQA_TYPE_MAX_ENUM = 0x7FFFFFFF
} VkmqaType;

// A family of kernels.
typedef enum VkmqaTier {
    VKMQA_TIER_AUTO = 0,
    VKMQA_TIER_PORTABLE = 1, // plain Vulkan 1.1: descriptors, no subgroup operations
    VKMQA_TIER_SUBGROUP = 2, // device addresses and subgroup operations
    VKMQA_TIER_CPU = 3,      // for Vulkan drivers that run on the CPU
    // Matrix units, VK_KHR_cooperative_matrix: many rows at a time. Q, K, V and the softmax weights are rounded to
    // f16 (what f16 cannot hold is multiplied in f32, more slowly; of bf16 values below 2^-14 digits are lost),
    // sums are f32. Not for f32 caches.
    VKMQA_TIER_COOPMAT = 4,
    VKMQA_TIER_MAX_ENUM = 0x7FFFFFFF
} VkmqaTier;

// Kinds of attention, all of which may be combined but for the pairs named at the top.
typedef enum VkmqaAttentionFlagBits {
    VKMQA_ATTENTION_CAUSAL_BIT = 0x1,       // a query token sees positions up to its own
    VKMQA_ATTENTION_WINDOW_LEFT_BIT = 0x2,  // and at most windowLeft before its own
    VKMQA_ATTENTION_WINDOW_RIGHT_BIT = 0x4, // and at most windowRight after its own
    VKMQA_ATTENTION_ALIBI_BIT = 0x8,  // score -= slope * |query position - position|; slopes in parameters
    VKMQA_ATTENTION_SINKS_BIT = 0x10, // one logit per query head in the denominator; in parameters
    // VkmqaAttentionInfo::mask says which positions a query token sees: all of them, or only which of the
    // last seqLenQ ones (a tree of drafts; it sees everything before them).
    VKMQA_ATTENTION_MASK_BIT = 0x20,
    VKMQA_ATTENTION_TREE_MASK_BIT = 0x40,
    // MLA: V is the first headDimV elements of each K row. There is no V cache and no new V; vType is kType.
    VKMQA_ATTENTION_V_PREFIX_OF_K_BIT = 0x80,
    // Append multiplies K, and q where it is given, by a Hadamard matrix (Sylvester's order, after rotary
    // embedding) in blocks of the largest power of two that divides headDimQk, scaled to keep lengths.
    // Scores stay what they were, and outlier channels of K spread over the block before they are quantised
    // (QuaRot, arXiv 2404.00456). vkmqaCmdAttention expects VkmqaAppendInfo::rotatedQ. Not with V_PREFIX_OF_K: V would
    // come out rotated.
    VKMQA_ATTENTION_HADAMARD_BIT = 0x100,
    // A sequence's out and lse are the same bits alone and in any batch, whatever the recorded maxima, the
    // neighbours and their lengths, and after a rollback, if its queries come in the same calls. Costs: one
    // tile size for all calls, splits of fixed size, a merge wherever maxSeqLenKv exceeds a split. Without it the
    // bits depend on the recorded maxima, and are still the same in every run.
    VKMQA_ATTENTION_BATCH_INVARIANT_BIT = 0x200,
    VKMQA_ATTENTION_FLAG_BITS_MAX_ENUM = 0x7FFFFFFF
} VkmqaAttentionFlagBits;
typedef VkFlags VkmqaAttentionFlags; // of VkmqaAttentionFlagBits

// Rotary position embedding (Su et al., arXiv 2104.09864), done by append: elements (a, b) of pair i turn by
// position * frequency[i]: a' = a cos - b sin, b' = a sin + b cos.
typedef enum VkmqaRopeStyle {
    VKMQA_ROPE_NONE = 0,
    VKMQA_ROPE_NEOX = 1,        // pair i is elements i and i + ropeDim / 2
    VKMQA_ROPE_INTERLEAVED = 2, // pair i is elements 2 i and 2 i + 1
    VKMQA_ROPE_STYLE_MAX_ENUM = 0x7FFFFFFF
} VkmqaRopeStyle;

// A model's shape, and what its attention looks like.
typedef struct VkmqaAttentionCreateInfo {
    uint32_t structSize;
    VkmqaAttentionFlags flags; // VkmqaAttentionFlagBits
    uint32_t numHeadsQ;  // a multiple of numHeadsKv, at most 128 times as many
    uint32_t numHeadsKv; // at least 1
    uint32_t headDimQk;  // a multiple of 8 from 8 to 576
    uint32_t headDimV;   // likewise; default headDimQk
    VkmqaType ioType;    // q and out: f32, f16 or bf16; default f16
    VkmqaType newType;   // rows given to vkmqaCmdAppendKv: f32, f16 or bf16; default ioType
    VkmqaType kType;     // stored K: any; default f16
    VkmqaType vType;     // stored V: any; default kType
    // Tokens per page, a power of two from 1 to 256; 0 = contiguous: sequence b of a step owns
    // page b, which holds maxSeqLenKv tokens, and no page table is read.
    uint32_t pageSize;
    uint32_t maxSeqLenKv; // the longest sequence ever recorded for; default 1 << 20 when paged, else required
    float scale;          // factor of the scores; 0 = 1 / sqrt(headDimQk)
    // Tokens that one workgroup streams before states are merged, a power of two from 64; default
    // chosen for the device. Smaller means more parallelism and more merging.
    uint32_t splitSize;
    VkmqaTier tier;        // force a tier; VK_ERROR_FEATURE_NOT_PRESENT where the device lacks it
    // Bit k: never use kernel k (see VkmqaKernelInfo::kernel). The numbers hold for one version of the
    // library; keep names (vkmqaGetKernelName) if you keep them at all.
    uint64_t avoidKernels;
    // Distances that count only with their flags; 0 is a window of the own position alone.
    uint32_t windowLeft;
    uint32_t windowRight; // likewise
    // Chunked-local attention: a query token sees only positions p with p / chunkSize (floored) that of its
    // own; 0 = off.
    uint32_t chunkSize;
    float softcap; // 0 = off
    VkmqaRopeStyle ropeStyle; // which elements make a pair; default none turns
    uint32_t ropeDim;    // elements that turn, an even number; default headDimQk - ropeOffset
    uint32_t ropeOffset; // the first of them, an even number (MLA: 512); both are errors without a style
    // The bytes of a file that vkmqa-bench --tune has measured, or null; read during the call only. For the shapes
    // that it lists it says which kernels to use and how far to split, as long as tier, splitSize and
    // BATCH_INVARIANT leave it the choice. A profile of another device, driver or version of the library is left
    // aside with a warning; one that is damaged is an error that names the line.
    const char* tuningProfile;
    size_t tuningProfileSize; // its bytes
} VkmqaAttentionCreateInfo;

// Selects kernels and compiles all their pipelines; this is the slow call (milliseconds to a second, by driver; a
// warm VkPipelineCache and VkmqaContextCreateInfo::runJobs help). Thread-safe for one context.
VKMQA_API VkResult vkmqaCreateAttention(VkmqaContext context, const VkmqaAttentionCreateInfo* info,
                                        VkmqaAttention* attention);

// Null is ignored. No command buffer recorded with it may be pending.
VKMQA_API void vkmqaDestroyAttention(VkmqaAttention attention);

// ---- 4. Sizes: ask before you allocate -------------------------------------------------------

// What a buffer, or a range of one, must be like.
typedef struct VkmqaBufferRequirements {
    VkDeviceSize size; // bytes, of the range
    VkDeviceSize alignment;   // of the offset into the VkBuffer (and of the device address)
    VkBufferUsageFlags usage; // includes VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT where kernels need it
} VkmqaBufferRequirements;

// The cache of one layer. K is [numPages, numHeadsKv, pageSize, row] and V likewise, a row being headDim
// elements (codes, in blocks of 32) padded to 16 bytes. Block types have a second plane behind it, in the
// same range: [numPages, numHeadsKv, pageSize, scales], a row's f16 scales padded to 4 bytes. In a q4_0
// block byte j holds element j in its low and element j + 16 in its high half. The contents need no
// initialisation. v.size is 0 with V_PREFIX_OF_K.
typedef struct VkmqaKvRequirements {
    uint32_t structSize;
    uint32_t pageTokens; // tokens per page: pageSize, or maxSeqLenKv when contiguous
    VkmqaBufferRequirements k;  // the layer's K
    VkmqaBufferRequirements v;  // and V
    VkDeviceSize bytesPerToken; // K and V of one token over all KV heads, scales included
    uint32_t rowBytesK;         // bytes from one token's K row to the next in a page
    uint32_t rowBytesV; // likewise for V
    VkDeviceSize scalesOffsetK; // of the plane of scales in k; 0: the type has none
    VkDeviceSize scalesOffsetV; // likewise for V
    uint32_t scaleBytesK; // bytes from one token's scales to the next
    uint32_t scaleBytesV; // likewise for V
} VkmqaKvRequirements;

// numPages: pages of the layer's cache (sequences, when contiguous). Errors: an overflow of 64 bits, or
// of maxStorageBufferRange with descriptors, is VK_ERROR_VALIDATION_FAILED_EXT naming both numbers.
VKMQA_API VkResult vkmqaGetKvRequirements(VkmqaAttention attention, uint32_t numPages,
                                          VkmqaKvRequirements* requirements);

// The most a recorded call will ever see; the contents of the step metadata may change from one
// execution of the command buffer to the next within them. For fewer sequences repeat the last entry of
// cuSeqlensQ and give 0 in seqLensKv; for fewer new tokens give -1 in slotMapping.
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
// multiples of 4. All arrays are int32 and lie apart, but that queryPositions may be positions. An offset of
// VKMQA_NONE means absent; 0 is a place as any other, so start from vkmqaGetStepLayout.
#define VKMQA_NONE 0xFFFFFFFFu
// Byte offsets of a step's arrays in its metadata.
typedef struct VkmqaStepLayout {
    uint32_t cuSeqlensQ;  // [batch + 1]
    uint32_t seqLensKv;   // [batch]
    uint32_t pageTable;   // [batch, maxPages]; VKMQA_NONE when contiguous
    uint32_t maxPages;    // row length of pageTable, in entries; 0 when contiguous
    uint32_t slotMapping; // [newTokens]
    uint32_t positions;      // [newTokens], with a ropeStyle; else VKMQA_NONE
    uint32_t queryPositions; // [totalQ], of the q given to vkmqaCmdAppendKv; like positions
    // For vkmqaCmdCompactKv: which of its query tokens each sequence keeps, ascending, as indices from 0 in
    // the sequence's own; those of sequence b are accepted[cuAccepted[b]] .. [cuAccepted[b + 1] - 1].
    uint32_t cuAccepted; // [batch + 1], with TREE_MASK; else VKMQA_NONE
    uint32_t accepted;   // [totalQ]
    uint32_t status; // one word, or VKMQA_NONE. Kernels OR VkmqaStatusFlagBits into it; you set it to 0
} VkmqaStepLayout;

// The packed layout for these limits: fills layout and the requirements of the metadata buffer. Other
// layouts are as good, as long as the arrays lie within the buffer.
VKMQA_API VkResult vkmqaGetStepLayout(VkmqaAttention attention, const VkmqaStepLimits* limits,
                                      VkmqaStepLayout* layout,
                                      VkmqaBufferRequirements* requirements);

// Per-layer constants of the model: one small buffer, filled once, read by append, attention and merge.
// Values must be finite. What the object does not need is ignored.
typedef struct VkmqaParametersInfo {
    uint32_t structSize;
    float ropeMagnitude;       // factor of what rotary embedding turns (YaRN's attention factor); default 1
    const float* sinks;        // [numHeadsQ], with SINKS
    const float* alibiSlopes;  // [numHeadsQ], with ALIBI
    const float* kScales;      // [numHeadsKv], 2^-126 to 2^126, for fp8: K = scale * stored; default all 1
    const float* vScales;      // likewise
    double ropeTheta;          // default 10000
    const double* ropeFrequencies; // [ropeDim / 2], radians per position; default theta^(-2 i / ropeDim)
} VkmqaParametersInfo;

// Size 0: this object needs none, and VkmqaBuffer parameters may stay all zero.
VKMQA_API VkResult vkmqaGetParametersRequirements(VkmqaAttention attention,
                                                  VkmqaBufferRequirements* requirements);

// Writes the buffer's contents to host memory of requirements.size bytes, for you to upload. Pure
// arithmetic: no Vulkan call. Positions up to +-2^31 turn to within 1e-6 rad of the given frequencies.
VKMQA_API VkResult vkmqaWriteParameters(VkmqaAttention attention, const VkmqaParametersInfo* info,
                                        size_t size, void* data);

// ---- 5. Recording ----------------------------------------------------------------------------

// A range of a buffer: handle, offset and size, or a device address and size. Kernels with descriptors
// need the handle. Addresses and offsets are multiples of 16 bytes, whatever the device's own alignments. Every
// buffer, those of q, out, lse, mask and new rows included, is created with VK_BUFFER_USAGE_STORAGE_BUFFER_BIT, and
// with VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT unless VkmqaKernelInfo::usesDescriptors. What a call writes lies
// apart from all else that it is given.
typedef struct VkmqaBuffer {
    VkBuffer buffer;         // null: by address
    VkDeviceSize offset;     // bytes
    VkDeviceSize size;       // bytes the library may touch, from offset
    VkDeviceAddress address; // of the range itself, offset included; 0: taken from handle and offset
} VkmqaBuffer;

// One forward step: which tokens belong to which sequence. Shared by all layers of the model.
typedef struct VkmqaStep {
    uint32_t structSize;
    VkmqaStepLimits limits; // the recorded maxima
    VkmqaStepLayout layout; // where its arrays stand
    VkmqaBuffer metadata; // the arrays
} VkmqaStep;

// What a kernel found in the metadata and did not believe. Tokens of a bad page count as forbidden, a bad slot is
// skipped, a length is cut off at what fits (a negative one at 0) and so is a range of queries; a bad entry of
// cuSeqlensQ may also cost the sequences beside it their rows.
typedef enum VkmqaStatusFlagBits {
    VKMQA_STATUS_PAGE_OUT_OF_RANGE_BIT = 0x1,   // a page table entry outside [0, numPages)
    VKMQA_STATUS_LENGTH_OUT_OF_RANGE_BIT = 0x2, // seqLensKv negative, or beyond maxSeqLenKv or the pages
    // cuSeqlensQ goes backwards or leaves [0, totalQ], or a sequence has more query tokens than maxSeqLenQ
    // where that cuts off what it may see (windows, chunks, tree masks)
    VKMQA_STATUS_QUERY_RANGE_BIT = 0x4,
    VKMQA_STATUS_SLOT_OUT_OF_RANGE_BIT = 0x8,   // a slot outside [-1, numPages * pageTokens)
    VKMQA_STATUS_ACCEPTED_BIT = 0x10,           // cuAccepted or accepted: out of range or not ascending
    VKMQA_STATUS_FLAG_BITS_MAX_ENUM = 0x7FFFFFFF
} VkmqaStatusFlagBits;

// One layer's cache: ranges of at least vkmqaGetKvRequirements(numPages).
typedef struct VkmqaKv {
    VkmqaBuffer k;     // rows of kType
    VkmqaBuffer v;     // rows of vType; ignored with V_PREFIX_OF_K
    uint32_t numPages; // what the ranges have room for
} VkmqaKv;

// Where rows stand in a tensor [tokens, heads, headDim]: element (t, h, d) is at t * token + h * head + d.
// Strides are in elements; zero means packed; a slice of a fused QKV projection needs no copy. Multiples
// of 4 elements (f32) or 8 elements (f16, bf16).
typedef struct VkmqaStrides {
    uint32_t token; // from one token to the next
    uint32_t head;  // from one head to the next
} VkmqaStrides;

// New rows, and where they go.
typedef struct VkmqaAppendInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    const VkmqaStep* step; // the tokens
    const VkmqaKv* kv; // the layer
    VkmqaBuffer newK; // [newTokens, numHeadsKv, headDimQk] of newType
    VkmqaBuffer newV; // [newTokens, numHeadsKv, headDimV] of newType; ignored with V_PREFIX_OF_K
    VkmqaStrides strideK; // of newK
    VkmqaStrides strideV; // of newV
    VkmqaBuffer parameters; // with a ropeStyle or an fp8 cache
    // Optional, with a ropeStyle or HADAMARD: queries to be rotated as K is, for vkmqaCmdAttention.
    VkmqaBuffer q;        // [totalQ, numHeadsQ, headDimQk] of newType
    VkmqaBuffer rotatedQ; // likewise, of ioType; may be q itself if ioType is newType and strides are equal
    VkmqaStrides strideQ; // of q
    VkmqaStrides strideRotatedQ; // of rotatedQ
} VkmqaAppendInfo;

// Records rotary embedding, Hadamard rotation, conversion and scatter of new K and V rows into the cache,
// one dispatch for all sequences. Reads slotMapping (and positions, queryPositions) of the step; writes the
// slots' rows, rotatedQ and nothing else. A slot given twice in one step holds an unspecified mix of both rows. Sync
// scope: reads and writes in VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT; make the inputs visible to it before. A following
// vkmqaCmdAttention or vkmqaCmdAppendKv in the same command buffer is ordered by the library; every other consumer
// needs a barrier from SHADER_WRITE of the compute stage. The previous readers of the cache must have been ordered
// before (those recorded by the library in this command buffer are).
VKMQA_API VkResult vkmqaCmdAppendKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                    const VkmqaAppendInfo* info);

// Queries, cache and outputs of one call.
typedef struct VkmqaAttentionInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    const VkmqaStep* step; // the tokens
    const VkmqaKv* kv; // the layer
    // [totalQ, numHeadsQ, headDimQk] of ioType; with a ropeStyle or HADAMARD VkmqaAppendInfo::rotatedQ, since this
    // call turns nothing.
    VkmqaBuffer q;
    VkmqaBuffer out;     // [totalQ, numHeadsQ, headDimV] of ioType
    VkmqaBuffer lse;     // f32 [totalQ, numHeadsQ]; all zero: not written
    VkmqaBuffer scratch; // vkmqaGetScratchRequirements(step.limits)
    VkmqaStrides strideQ; // of q
    VkmqaStrides strideOut; // of out
    VkmqaBuffer parameters; // with SINKS, ALIBI or an fp8 cache
    // With MASK or TREE_MASK: u32 [totalQ, maskStride]; bit j % 32 of word j / 32 of a query token's row allows
    // it position j, or with TREE_MASK position seqLenKv - seqLenQ + j.
    VkmqaBuffer mask;
    uint32_t maskStride; // words; default those of the step's maxSeqLenKv bits, with TREE_MASK maxSeqLenQ's
    VkBool32 omitSinks;  // the result is a partial one, to be merged by vkmqaCmdMergeStates
} VkmqaAttentionInfo;

// Records attention of the step's query tokens over the cache. Writes out (and lse) for every token of
// every sequence, nothing for tokens of none. Sync scope as for vkmqaCmdAppendKv; scratch is the
// library's between two of its calls in one command buffer. Records one dispatch, or as many as
// maxDispatchSeconds asks for, and a merge where the plan has splits.
// Source: online softmax (Milakov and Gimelshein, arXiv 1805.02867); FlashAttention-2 (Dao, arXiv
// 2307.08691); split-KV (Flash-Decoding, Dao et al. 2023).
VKMQA_API VkResult vkmqaCmdAttention(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                     const VkmqaAttentionInfo* info);

// ---- Slices: one call of attention over several submissions ----------------------------------
//
// A call's grid of workgroups may be recorded in pieces, into command buffers that are submitted frames apart, so
// that none of them holds up rendering or meets a watchdog (2 s on Windows):
//
//     uint64_t done = 0;
//     double correction = 1; // kept from call to call
//     VkmqaSlices slices = {.structSize = sizeof slices};
//     do { // once per frame
//         vkmqaGetSliceCount(attention, &(VkmqaSliceInfo){.structSize = sizeof(VkmqaSliceInfo), .step = &step,
//                                                         .seconds = 0.002, .correction = correction}, &slices);
//         vkmqaCmdAttentionSlice(attention, commandBuffer, &info, done, slices.groupsPerSlice);
//         ... submit, with a timestamp before and after; once they have come back:
//         correction = vkmqaCorrectSlices(correction, measuredSeconds, groupsRecorded * slices.secondsPerGroup);
//         done += slices.groupsPerSlice;
//     } while (done < slices.groups);
//
// Lengths in the metadata may be shorter than the recorded maxima; then slices are shorter than estimated.
typedef struct VkmqaSliceInfo {
    uint32_t structSize;
    const VkmqaStep* step; // the call's
    double seconds; // that one slice may take; default 0.002
    // Estimates assume a slow device of its kind. This factor makes them right: the seconds that slices of this
    // object took, divided by what was estimated for them with correction 1; default 1.
    double correction;
} VkmqaSliceInfo;

// How a call is cut.
typedef struct VkmqaSlices {
    uint32_t structSize;
    uint64_t groups;         // workgroups of the whole call
    uint64_t groupsPerSlice; // within the given seconds, as estimated; at least 1
    uint64_t sliceCount;     // groups / groupsPerSlice, rounded up
    double secondsPerGroup;  // as estimated and corrected
} VkmqaSlices;

// Pure arithmetic, no Vulkan call: may be asked before every slice.
VKMQA_API VkResult vkmqaGetSliceCount(VkmqaAttention attention, const VkmqaSliceInfo* info,
                                      VkmqaSlices* slices);

// VkmqaSliceInfo::correction after a slice that was estimated, with `correction`, to take estimatedSeconds and took
// measuredSeconds. One slice changes it by at most a factor of 8; where one of the times is 0, as on queues without
// timestamps, it stays.
VKMQA_API double vkmqaCorrectSlices(double correction, double measuredSeconds, double estimatedSeconds);

// Records workgroups [firstGroup, firstGroup + groupCount) of vkmqaCmdAttention(info), cut off at its last; with the
// last one comes the merge. Slices that cover every group once, in ascending order, write what the whole call
// writes, bit by bit; out, lse and scratch are the call's until the last of them has run, and everything that it
// reads stays as it is. Slices on one queue need no barrier between them; on several queues all must have finished,
// by semaphore, before the last one. Each is a call for its VkmqaRecorder.
VKMQA_API VkResult vkmqaCmdAttentionSlice(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                          const VkmqaAttentionInfo* info, uint64_t firstGroup,
                                          uint64_t groupCount);

// Partial results, and where their merge goes.
typedef struct VkmqaMergeInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    uint32_t parts;         // 1 to 1024
    uint32_t totalQ;        // query tokens
    VkmqaBuffer partOut;    // [parts, totalQ, numHeadsQ, headDimV] of ioType, packed
    VkmqaBuffer partLse;    // f32 [parts, totalQ, numHeadsQ]
    VkmqaBuffer out;        // [totalQ, numHeadsQ, headDimV] of ioType
    VkmqaBuffer lse;        // f32 [totalQ, numHeadsQ]; all zero: not written
    VkmqaStrides strideOut; // of out
    VkmqaBuffer parameters; // with SINKS
} VkmqaMergeInfo;

// Records the merge of attention over disjoint sets of positions into attention over all of them: a prefix
// that many sequences share attended once (cascade), several GPUs, several hosts. A part whose lse is -inf
// counts nothing, whatever its out. With SINKS the sink is added here, once: record the parts with omitSinks.
// The order of the parts is the order of the sums. Sync scope as for vkmqaCmdAttention.
// Source: section 2.2 of FlashInfer (Ye et al., arXiv 2501.01005).
VKMQA_API VkResult vkmqaCmdMergeStates(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                       const VkmqaMergeInfo* info);

// Which cache, and in the step which drafts.
typedef struct VkmqaCompactInfo {
    uint32_t structSize;
    VkmqaRecorder recorder; // with descriptors, where none can be pushed
    const VkmqaStep* step;  // of the drafts: cuSeqlensQ, seqLensKv, pageTable, cuAccepted, accepted
    const VkmqaKv* kv; // the layer
} VkmqaCompactInfo;

// After speculative decoding: moves the accepted drafts of every sequence to the front of its last seqLenQ
// positions, in the cache, for an object with TREE_MASK. The k-th accepted one goes to position seqLenKv -
// seqLenQ + k; set seqLensKv to seqLenKv - seqLenQ + their number for the next step. Rows are copied as
// they are: drafts that rotary embedding has put at the position of their depth are right where they land.
// A sequence with anything wrong in its metadata is left as it is, and a status bit says what.
// Reads and writes the cache; sync scope as for vkmqaCmdAppendKv.
VKMQA_API VkResult vkmqaCmdCompactKv(VkmqaAttention attention, VkCommandBuffer commandBuffer,
                                     const VkmqaCompactInfo* info);

// Descriptor sets for kernels with descriptors where VK_KHR_push_descriptor is not enabled: like a
// VkCommandPool, one per recording thread, reset by you when its command buffers have finished. Other
// kernels have no use for it. A full one makes vkmqaCmd calls return VK_ERROR_OUT_OF_POOL_MEMORY. Reset takes back
// all of its sets; destroying null is ignored; it goes before its context.
typedef struct VkmqaRecorderCreateInfo {
    uint32_t structSize;
    uint32_t maxCalls; // vkmqaCmd calls between two resets
} VkmqaRecorderCreateInfo;
// Its memory is allocated here, none later.
VKMQA_API VkResult vkmqaCreateRecorder(VkmqaContext context, const VkmqaRecorderCreateInfo* info,
                                       VkmqaRecorder* recorder);
// None of the command buffers recorded with it may be pending.
VKMQA_API VkResult vkmqaResetRecorder(VkmqaRecorder recorder);
// Likewise. Null is ignored.
VKMQA_API void vkmqaDestroyRecorder(VkmqaRecorder recorder);

// ---- Which kernel, and does it compute rightly here? -----------------------------------------

// A kernel, and what it does within given limits.
typedef struct VkmqaKernelInfo {
    uint32_t structSize;
    uint32_t kernel;    // bit number for avoidKernels
    VkmqaTier tier; // the kernel's
    const char* name;   // for logs, such as "cpu-wide-r4"
    const char* reason; // why it was chosen, one sentence
    uint32_t workgroups[3]; // the grid
    VkBool32 usesDescriptors; // see the top of this file
    uint32_t splits;        // parts of the KV range, merged by a second dispatch when above 1
    uint32_t rowsPerTile;   // rows that share one read of K and V
    uint32_t subgroupSize;  // 0 where the kernel uses none
    VkDeviceSize sharedMemory; // bytes of a workgroup
    VkDeviceSize cacheBytesRead; // at these limits, all tiles' reads counted
    const char* appendName;      // the kernel of vkmqaCmdAppendKv
    double flops;                // 2 * rows * tokens seen at most * (headDimQk + headDimV)
    double estimatedSeconds;     // as a slow device of this kind takes, see VkmqaSliceInfo
} VkmqaKernelInfo;

// What vkmqaCmdAttention will dispatch within these limits, and a page table that holds them.
VKMQA_API VkResult vkmqaGetKernelInfo(VkmqaAttention attention, const VkmqaStepLimits* limits,
                                      VkmqaKernelInfo* kernelInfo);

// Name of kernel number `kernel` (bit of avoidKernels), or null past the last.
VKMQA_API const char* vkmqaGetKernelName(uint32_t kernel);

// Memory of the known-answer test: one buffer of these usages in host-visible, host-coherent memory that
// stays mapped.
VKMQA_API VkResult vkmqaGetVerifyRequirements(VkmqaAttention attention,
                                              VkmqaBufferRequirements* requirements);

// A queue and memory for the test.
typedef struct VkmqaVerifyInfo {
    uint32_t structSize;
    uint32_t queueFamilyIndex; // with compute
    VkQueue queue; // used by this call alone while it runs, or with lockQueue
    VkmqaBuffer memory; // of vkmqaGetVerifyRequirements
    void* mapped;       // host address of memory.offset
    uint64_t timeoutNs; // default 10 s
    // Both or none: called around each submission, for a queue that other threads submit to as well.
    VkmqaQueueCallback lockQueue;
    VkmqaQueueCallback unlockQueue; // the other one
    void* queueUserData;            // for both
} VkmqaVerifyInfo;

// Runs every append and attention pipeline of the object, with and without a merge, on small known inputs and
// compares with arithmetic on the host. failedKernels: bit k set, kernel k answered wrongly: create the object anew
// with avoidKernels |= failedKernels. VK_SUCCESS means the test ran, VK_TIMEOUT that it did not finish
// (the queue may still be at it, so its command buffer and fence are left behind). This call submits to
// the queue and waits.
VKMQA_API VkResult vkmqaVerifyAttention(VkmqaAttention attention, const VkmqaVerifyInfo* info,
                                        uint64_t* failedKernels);

#ifdef __cplusplus
}
#endif

#endif

// Which kernels a device and a shape get: one table of data, first match wins, the last rows fit every
// device. Pure C. SPDX-License-Identifier: MIT
#include "internal.h"

#include <stdio.h>
#include <string.h>

#include "vkmqa_shader_ids.h"

#define LAVAPIPE VK_DRIVER_ID_MESA_LLVMPIPE
#define SWIFTSHADER VK_DRIVER_ID_GOOGLE_SWIFTSHADER
#define MESA(major, minor) VK_MAKE_API_VERSION(0, major, minor, 0)

// Sets of element types.
#define BIT(type) (1u << VKMQA_TYPE_##type)
#define WIDE_FLOATS (BIT(F32) | BIT(F16))

// Zero in a condition means any.
struct VkmqaKernel {
    const char* name;
    VkmqaTier tier;
    uint32_t shader;
    bool bind; // descriptors instead of device addresses
    // Conditions.
    bool cpu;                  // devices of type CPU only
    bool half;                 // needs 16-bit storage buffers and f16 arithmetic
    bool narrow;               // needs 8-bit storage buffers, 8-bit and 16-bit integers
    uint32_t driverId;         // of this driver only,
    uint32_t minDriverVersion; // from this version on
    uint32_t minSubgroup, maxSubgroup; // 0: uses no subgroup operations
    uint32_t maxHeadDim;
    uint32_t cacheTypes, ioTypes; // sets; 0 = all
    // Sizes.
    uint32_t rows;        // rows of a tile
    uint32_t invocations; // of a workgroup; 0 = one subgroup
    uint32_t cluster;     // most lanes that share one token's row, twice as many above 128 elements
    uint32_t block;       // tokens of a shared-memory tile
    uint32_t splitSize;
    uint32_t workgroups; // enough to fill such devices
    // Of kernels on matrix units, whose `rows` follow from the matrix and whose `block` is the most they take.
    uint32_t tiles;        // of matrix rows
    uint32_t columnGroups; // subgroups that share them, at least; more where rows are wide
    bool spread;           // factors of rows without loads of stride 0
    bool few;              // for devices of few registers: Q in shared memory
    const char* reason;
};

// The row's number is the kernel's bit in avoidKernels. Rows of the same name up to its last '-' (same_family) are a
// family, of which an object has every kernel that fits: a call takes the fewest rows that hold a sequence's, or else
// the most.
static const struct VkmqaKernel kernels[] = {
#define WIDE "lavapipe from Mesa 26 on: lanes are head elements, loads become whole vectors"
#define EIGHTS "a driver that runs on the CPU: one subgroup per workgroup, no barriers"
#define LANES "SwiftShader: lanes split rows, few loads, no branches in loops"
#define SLOW_CPU "a driver that runs on the CPU and compiles no faster kernel well: shared-memory tiles"
#define MATRIX "matrix units: tiles of rows share one read of K and V"
#define FEW "matrix units beside few registers: many subgroups share a tile of rows"
#define SPREAD "matrix units, of a driver that cannot load one column again and again"
#define MATRIX_CACHE (BIT(F16) | BIT(BF16) | BIT(FP8_E4M3) | BIT(Q8_0) | BIT(Q4_0))
#define ALL_IO 0
#define STREAM "device addresses and subgroup shuffles: clusters of lanes stream tokens, one merge at the end"
#define TILE "no device addresses or subgroup shuffles enabled: shared-memory tiles"
    // clang-format off
    // name          tier                 shader                                bind   cpu    half   narrow driver       from       sg min max  dim cache        io        rows inv clu blk split wgs tls col spread few   reason
    {"cpu-wide-r1",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU,                false, true,  true,  false, LAVAPIPE,    MESA(26, 0), 4, 16, 576, WIDE_FLOATS, WIDE_FLOATS, 1,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-wide-r2",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU,                false, true,  true,  false, LAVAPIPE,    MESA(26, 0), 4, 16, 256, WIDE_FLOATS, WIDE_FLOATS, 2,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-wide-r4",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU,                false, true,  true,  false, LAVAPIPE,    MESA(26, 0), 4, 16, 128, WIDE_FLOATS, WIDE_FLOATS, 4,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-wide-r8",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU,                false, true,  true,  false, LAVAPIPE,    MESA(26, 0), 4, 16,  64, WIDE_FLOATS, WIDE_FLOATS, 8,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-narrow-r1", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU_NARROW,         false, true,  true,  true,  LAVAPIPE,    MESA(26, 0), 4, 16, 576, 0,           0,           1,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-narrow-r2", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU_NARROW,         false, true,  true,  true,  LAVAPIPE,    MESA(26, 0), 4, 16, 256, 0,           0,           2,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-narrow-r4", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU_NARROW,         false, true,  true,  true,  LAVAPIPE,    MESA(26, 0), 4, 16, 128, 0,           0,           4,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-narrow-r8", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_CPU_NARROW,         false, true,  true,  true,  LAVAPIPE,    MESA(26, 0), 4, 16,  64, 0,           0,           8,   0,  1,  0, 512,  16, 0,  0,  false, false, WIDE},
    {"cpu-eights-r1", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_STREAM_CPU_R1_BIND, true,  true,  false, false, 0,           0,           8, 16, 256, 0,           0,           1,   0, 16,  0, 512,  16, 0,  0,  false, false, EIGHTS},
    {"cpu-eights-r4", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_STREAM_CPU_R4_BIND, true,  true,  false, false, 0,           0,           8, 16, 256, 0,           0,           4,   0, 16,  0, 512,  16, 0,  0,  false, false, EIGHTS},
    {"cpu-eights-r8", VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_STREAM_CPU_R8_BIND, true,  true,  false, false, 0,           0,           8, 16, 128, 0,           0,           8,   0, 16,  0, 512,  16, 0,  0,  false, false, EIGHTS},
    {"cpu-quads-r1",  VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_STREAM_BIND,        true,  true,  false, false, LAVAPIPE,    0,           4,  4, 128, 0,           0,           1,   0, 16,  0, 512,  16, 0,  0,  false, false, EIGHTS},
    {"cpu-quads-r4",  VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_STREAM_CPU_R4_BIND, true,  true,  false, false, LAVAPIPE,    0,           4,  4, 128, 0,           0,           4,   0, 16,  0, 512,  16, 0,  0,  false, false, EIGHTS},
    {"cpu-lanes-r1",  VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_LANES_R1_BIND,      true,  true,  false, false, SWIFTSHADER, 0,           4,  4, 256, WIDE_FLOATS, 0,           1,   0,  1,  0, 512,  16, 0,  0,  false, false, LANES},
    {"cpu-lanes-r4",  VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_LANES_R4_BIND,      true,  true,  false, false, SWIFTSHADER, 0,           4,  4, 256, WIDE_FLOATS, 0,           4,   0,  1,  0, 512,  16, 0,  0,  false, false, LANES},
    {"cpu-lanes-r8",  VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_LANES_R8_BIND,      true,  true,  false, false, SWIFTSHADER, 0,           4,  4, 256, WIDE_FLOATS, 0,           8,   0,  1,  0, 512,  16, 0,  0,  false, false, LANES},
    {"cpu-tile-r1",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_TILE_BIND,          true,  true,  false, false, 0,           0,           0,  0, 576, 0,           0,           1,  64,  0, 32, 512,  16, 0,  0,  false, false, SLOW_CPU},
    {"cpu-tile-r8",   VKMQA_TIER_CPU,      VKMQA_SHADER_ATTN_TILE_BIND,          true,  true,  false, false, 0,           0,           0,  0, 576, 0,           0,           8,  64,  0, 32, 512,  16, 0,  0,  false, false, SLOW_CPU},
    {"coopmat-few-t1",VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 1,  8,  false, true,  FEW},
    {"coopmat-few-t2",VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 2,  4,  false, true,  FEW},
    {"coopmat-few-t4",VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 4,  4,  false, true,  FEW},
    {"coopmat-t1",    VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 64, 256, 512, 1,  4,  false, false, MATRIX},
    {"coopmat-t2",    VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 64, 256, 512, 2,  2,  false, false, MATRIX},
    {"coopmat-t4",    VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 4,  1,  false, false, MATRIX},
    {"coopmat-t8",    VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 8,  1,  false, false, MATRIX},
    {"spread-t1",     VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 64, 256, 512, 1,  4,  true,  false, SPREAD},
    {"spread-t4",     VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT,            false, false, false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256, 512, 4,  1,  true,  false, SPREAD},
    {"rolled-t1",     VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT_ROLLED,     false, true,  false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 64, 256,  16, 1,  4,  false, false, MATRIX},
    {"rolled-t4",     VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT_ROLLED,     false, true,  false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256,  16, 4,  1,  false, false, MATRIX},
    {"rolled-spread-t4", VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT_ROLLED,     false, true,  false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256,  16, 4,  1,  true,  false, SPREAD},
    {"rolled-few-t2", VKMQA_TIER_COOPMAT,  VKMQA_SHADER_ATTN_COOPMAT_ROLLED,     false, true,  false, false, 0,           0,           8, 128, 576, MATRIX_CACHE, ALL_IO,      0,   0,  1, 32, 256,  16, 2,  4,  false, true,  FEW},
    {"stream-r1",     VKMQA_TIER_SUBGROUP, VKMQA_SHADER_ATTN_STREAM,             false, false, false, false, 0,           0,           4, 128, 576, 0,          0,           1, 128, 16,  0, 256, 512, 0,  0,  false, false, STREAM},
    {"stream-r2",     VKMQA_TIER_SUBGROUP, VKMQA_SHADER_ATTN_STREAM,             false, false, false, false, 0,           0,           4, 128, 576, 0,          0,           2, 128, 16,  0, 256, 512, 0,  0,  false, false, STREAM},
    {"stream-r4",     VKMQA_TIER_SUBGROUP, VKMQA_SHADER_ATTN_STREAM,             false, false, false, false, 0,           0,           4, 128, 576, 0,          0,           4, 128, 16,  0, 256, 512, 0,  0,  false, false, STREAM},
    {"tile-r1",       VKMQA_TIER_PORTABLE, VKMQA_SHADER_ATTN_TILE_BIND,          true,  false, false, false, 0,           0,           0,  0, 576, 0,           0,           1,  64,  0, 32, 256, 128, 0,  0,  false, false, TILE},
    {"tile-r8",       VKMQA_TIER_PORTABLE, VKMQA_SHADER_ATTN_TILE_BIND,          true,  false, false, false, 0,           0,           0,  0, 576, 0,           0,           8,  64,  0, 32, 256, 128, 0,  0,  false, false, TILE},
    // clang-format on
#undef WIDE
#undef EIGHTS
#undef LANES
#undef SLOW_CPU
#undef MATRIX
#undef FEW
#undef SPREAD
#undef MATRIX_CACHE
#undef ALL_IO
#undef STREAM
#undef TILE
};
enum { KERNEL_COUNT = sizeof kernels / sizeof kernels[0] };
// How new rows get into the cache: the first row that fits, the last two fit everything. On CPU
// drivers, too, workgroups of 64 beat single subgroups: 2 times on lavapipe 22.3, 1.6 on SwiftShader.
static const struct VkmqaAppendKernel {
    const char* name;
    uint32_t shader;
    bool bind; // as the attention kernels of the choice
    // Conditions, as above.
    bool cpu, half;
    uint32_t driverId, minDriverVersion;
    uint32_t minSubgroup, maxSubgroup; // of kernels with subgroup shuffles
    bool plain;                        // converts each element by itself: no rotation
    uint32_t cacheTypes, newTypes;     // sets; 0 = all
    // Sizes.
    uint32_t invocations; // of a workgroup; 0 = one subgroup
    VkmqaAppendUnit unit;
} appendKernels[] = {
#define BY_ELEMENT (BIT(F32) | BIT(F16) | BIT(BF16) | BIT(FP8_E4M3))
    // clang-format off
    // name              shader                       bind   cpu    half   driver    from        sg min max  plain  cache       new         inv unit
    {"append-wide",      VKMQA_SHADER_APPEND_CPU,      false, true,  true,  LAVAPIPE, MESA(26, 0), 4, 16,    true,  WIDE_FLOATS | BIT(Q8_0), WIDE_FLOATS, 0, VKMQA_APPEND_TOKEN},
    {"append",           VKMQA_SHADER_APPEND_KV,       false, false, false, 0,        0,           0, 0,     true,  BY_ELEMENT,  0,          64, VKMQA_APPEND_EIGHTS},
    {"append-bind",      VKMQA_SHADER_APPEND_KV_BIND,  true,  false, false, 0,        0,           0, 0,     true,  BY_ELEMENT,  0,          64, VKMQA_APPEND_EIGHTS},
    {"append-row",       VKMQA_SHADER_APPEND_ROW,      false, false, false, 0,        0,           0, 0,     false, 0,           0,          64, VKMQA_APPEND_ROW},
    {"append-row-bind",  VKMQA_SHADER_APPEND_ROW_BIND, true,  false, false, 0,        0,           0, 0,     false, 0,           0,          64, VKMQA_APPEND_ROW},
    // clang-format on
#undef BY_ELEMENT
};
enum { APPEND_COUNT = sizeof appendKernels / sizeof appendKernels[0] };

// Append kernels have the bits after the attention kernels'.
_Static_assert(KERNEL_COUNT + APPEND_COUNT <= 64, "one bit of avoidKernels each");

const char* vkmqaGetKernelName(uint32_t kernel) {
    if (kernel < KERNEL_COUNT)
        return kernels[kernel].name;
    return kernel < KERNEL_COUNT + APPEND_COUNT ? appendKernels[kernel - KERNEL_COUNT].name : NULL;
}

static const char* tier_name(VkmqaTier tier) {
    static const char* const names[] = {"auto", "portable", "subgroup", "cpu", "coopmat"};
    return names[tier];
}

// What rows of both tables may ask of a device.
static bool has_driver(const struct VkmqaCaps* caps, uint32_t driverId, uint32_t minVersion) {
    return !driverId || (driverId == caps->driverId && caps->driverVersion >= minVersion);
}
static bool has_half(const struct VkmqaCaps* caps) {
    return caps->storage16 && caps->float16 && caps->apiVersion >= VK_API_VERSION_1_2;
}
static bool has_subgroups(const struct VkmqaCaps* caps, uint32_t min, uint32_t max) {
    return caps->subgroupShuffle && caps->subgroupSize >= min && caps->subgroupSize <= max;
}

static bool within(uint32_t types, uint32_t set) { return !set || (types & ~set) == 0; }
static uint32_t cache_types(const struct VkmqaShape* shape) {
    return 1u << shape->kType | 1u << shape->vType;
}

// ---- what vendors' compute units are like ----------------------------------------------------

enum { INTEL = 0x8086, APPLE = 0x106B, QUALCOMM = 0x5143, ARM = 0x13B5, // vendorID
       HONEYKRISP = 26 }; // VkDriverId of Mesa's driver for Apple's chips, which has Mesa's vendorID

// Lanes of a subgroup. Intel's compilers offer up to 32, with half the registers for each; matrix units before Xe2
// work on 8.
static uint32_t subgroup_lanes(const struct VkmqaCaps* caps, bool matrices) {
    uint32_t lanes = matrices && caps->minSubgroupSize <= 8 ? 8 : 16;
    bool choose = caps->vendorId == INTEL && caps->subgroupSizeControl && caps->minSubgroupSize <= lanes &&
                  caps->maxSubgroupSize >= lanes;
    return choose ? lanes : caps->subgroupSize;
}

// 32-bit registers that a lane can have, more or less. Intel: 128 of 32 bytes before Xe2, whose subgroups start
// at 8, of 64 bytes from then on (measured: kernels of 120 spill).
static uint32_t lane_registers(const struct VkmqaCaps* caps) {
    if (caps->driverId == HONEYKRISP)
        return 128;
    switch (caps->vendorId) {
    case INTEL: return caps->minSubgroupSize <= 8 ? 64 : 116;
    case APPLE:
    case QUALCOMM:
    case ARM: return 128;
    default: return 256;
    }
}

// Null when the device can run the kernel for the shape, or else what it lacks.
static const char* find_lack(const struct VkmqaKernel* kernel, const struct VkmqaCaps* caps,
                             const struct VkmqaShape* shape) {
    uint32_t dim = shape->headDimQk > shape->headDimV ? shape->headDimQk : shape->headDimV;
    bool isCpu = caps->type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    if (kernel->cpu && !isCpu)
        return "a driver that runs on the CPU";
    if (kernel->tiles && kernel->cpu != isCpu)
        return "a driver that does not run on the CPU";
    if (kernel->tiles && !caps->matrixCount)
        return "VK_KHR_cooperative_matrix with matrices of f16, added in f32, and vulkanMemoryModel with device scope";
    if (kernel->tiles && !kernel->cpu && kernel->few != (lane_registers(caps) <= 128))
        return "a device of fewer, or of more registers";
    if (kernel->tiles && !(caps->float16 && caps->subgroupVote && caps->computeFullSubgroups))
        return "the features shaderFloat16 and computeFullSubgroups, and subgroup votes";
    if (!has_driver(caps, kernel->driverId, kernel->minDriverVersion))
        return "another driver, or a newer version of it";
    if (!within(cache_types(shape), kernel->cacheTypes) || !within(1u << shape->ioType, kernel->ioTypes))
        return "other types of the cache, or of queries and outputs";
    if (kernel->narrow && !caps->narrowIntegers)
        return "the features storageBuffer8BitAccess, shaderInt8 and shaderInt16";
    if (kernel->half && !kernel->tiles && !caps->subgroupBallot)
        return "subgroup ballots in compute shaders";
    if (kernel->half && !has_half(caps))
        return "Vulkan 1.2 with the features storageBuffer16BitAccess and shaderFloat16";
    if (kernel->bind && caps->storageBuffersPerStage < VKMQA_BIND_COUNT)
        return "more storage buffers per shader stage";
    if (!kernel->bind && !caps->deviceAddress)
        return "the feature bufferDeviceAddress";
    if (kernel->minSubgroup && !caps->subgroupShuffle)
        return "subgroup shuffles in compute shaders";
    if (kernel->minSubgroup && !has_subgroups(caps, kernel->minSubgroup, kernel->maxSubgroup))
        return "another subgroup size";
    if (dim > kernel->maxHeadDim)
        return "smaller head dims";
    return NULL;
}

static uint32_t power_of_two_from(uint32_t value) {
    uint32_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

static uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_of(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Shared memory of attn_coopmat.comp, from the sizes of its arrays.
static uint32_t matrix_memory(const struct VkmqaCandidate* c, const struct VkmqaShape* shape) {
    uint32_t dimK = (shape->headDimQk + 31) / 32 * 32, dimV = (shape->headDimV + 31) / 32 * 32;
    uint32_t rowUnits = max_of(dimK, dimV) / 8 + 1, subgroups = c->workgroupSize / c->subgroupSize;
    uint32_t scratch = max_of(c->matrix.m * c->matrix.n / 4, c->matrix.m * c->matrix.k / 8);
    return 16 * c->block + 16 * c->block * rowUnits + 16 * (c->holdQueries ? 1 : c->rows * rowUnits) +
           4 * c->rows * (c->block + 4) + 16 * subgroups * scratch + 12 * c->rows + 8;
}

// Sizes of a kernel on matrix units: the largest matrix, no more accumulators to a subgroup than registers hold,
// and the longest block of tokens that shared memory has room for; above 32 tokens for two of them, so that
// workgroups hide each other's barriers.
static bool settle_matrix(const struct VkmqaKernel* kernel, const struct VkmqaCaps* caps,
                          const struct VkmqaShape* shape, struct VkmqaCandidate* candidate) {
    uint32_t lanes = candidate->subgroupSize, columns = kernel->few ? 2 * lanes : 128; // of O in a subgroup
    candidate->columnGroups = kernel->columnGroups;
    while (candidate->columnGroups * columns < shape->headDimV && candidate->columnGroups < 8)
        candidate->columnGroups *= 2;
    uint32_t most = 0;
    for (uint32_t i = 0; i < caps->matrixCount; ++i) {
        const struct VkmqaMatrix* matrix = &caps->matrices[i];
        uint32_t volume = matrix->m * matrix->n * matrix->k;
        bool fits = matrix->m >= 8 && matrix->n >= 8 && matrix->k >= 8 && matrix->n <= 32 && matrix->k <= 32 &&
                    (matrix->m & (matrix->m - 1)) == 0 && (matrix->n & (matrix->n - 1)) == 0 &&
                    (matrix->k & (matrix->k - 1)) == 0 && matrix->m <= lanes &&
                    candidate->columnGroups <= matrix->m;
        if (!fits || volume <= most)
            continue;
        most = volume;
        candidate->matrix = *matrix;
    }
    if (!most)
        return false;
    candidate->rows = kernel->tiles * candidate->matrix.m;
    candidate->workgroupSize = kernel->tiles * candidate->columnGroups * lanes;
    candidate->spreadFactors = kernel->spread;
    candidate->holdQueries = !kernel->few && shape->headDimQk <= 128;
    candidate->prefetch = !kernel->few;
    uint32_t least = max_of(max_of(candidate->matrix.n, candidate->matrix.k),
                            2 * lanes * candidate->columnGroups / candidate->matrix.m);
    candidate->block = max_of(kernel->block, least);
    while (candidate->block > least &&
           matrix_memory(candidate, shape) * (candidate->block > 32 ? 2 : 1) > caps->sharedMemory)
        candidate->block /= 2;
    candidate->sharedMemory = matrix_memory(candidate, shape);
    return candidate->sharedMemory <= caps->sharedMemory && candidate->workgroupSize <= caps->maxInvocations;
}

static bool settle(uint32_t index, const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                   struct VkmqaCandidate* candidate) {
    const struct VkmqaKernel* kernel = &kernels[index];
    bool subgroups = kernel->minSubgroup != 0;
    *candidate = (struct VkmqaCandidate){
        .kernel = index,
        .name = kernel->name,
        .reason = kernel->reason,
        .tier = kernel->tier,
        .shader = kernel->shader,
        .bind = kernel->bind,
        .rows = kernel->rows,
        .block = kernel->block ? kernel->block : 1,
        .cluster = 1,
        .subgroupSize = subgroups ? subgroup_lanes(caps, kernel->tiles != 0) : 0,
        .splitSize = kernel->splitSize,
        .workgroups = kernel->workgroups,
    };
    if (kernel->tiles)
        return settle_matrix(kernel, caps, shape, candidate);
    candidate->workgroupSize = kernel->invocations;
    if (subgroups) {
        uint32_t eights = max_of(shape->headDimQk, shape->headDimV) / 8, lanes = candidate->subgroupSize;
        candidate->cluster = min_of(min_of(eights > 16 ? 2 * kernel->cluster : kernel->cluster, lanes),
                                    power_of_two_from(eights));
        uint32_t turnsK = (shape->headDimQk / 8 + candidate->cluster - 1) / candidate->cluster;
        uint32_t turnsV = (shape->headDimV / 8 + candidate->cluster - 1) / candidate->cluster;
        // Of attn_stream.comp: q, o, the token at hand, and some fifty for addresses and the like.
        uint32_t registers = 8 * kernel->rows * (turnsK + turnsV) + 8 * turnsK + 48;
        if (kernel->tier == VKMQA_TIER_SUBGROUP && kernel->rows > 1 && registers > lane_registers(caps))
            return false;
        // More than one subgroup only where all are sure to be full.
        uint32_t invocations = caps->computeFullSubgroups ? kernel->invocations : 0;
        candidate->workgroupSize =
            max_of(min_of(invocations, caps->maxInvocations) / lanes, 1) * lanes;
    }
    uint32_t quadsK = shape->headDimQk / 4, quadsV = shape->headDimV / 4;
    if (kernel->shader == VKMQA_SHADER_ATTN_TILE_BIND) // see the shared arrays of attn_tile.comp
        candidate->sharedMemory = 16 * kernel->rows * quadsK + 4 * kernel->rows * kernel->block +
                                  20 * kernel->block + 12 * kernel->rows;
    else if (subgroups && candidate->workgroupSize > candidate->subgroupSize) // attn_stream.comp
        candidate->sharedMemory = 16 * quadsV + 8 * candidate->workgroupSize / candidate->subgroupSize;
    return candidate->sharedMemory <= caps->sharedMemory &&
           candidate->workgroupSize <= caps->maxInvocations;
}

// Drops candidates that no call can take: a sequence has a multiple of `ratio` rows, and a call takes the
// first candidate with at least that many, or the last.
static void drop_unreachable(struct VkmqaChoice* choice, uint32_t ratio) {
    uint32_t kept = 0, below = 0; // rows of the candidate before
    for (uint32_t i = 0; i < choice->count; ++i) {
        uint32_t rows = choice->candidates[i].rows;
        uint32_t fits = rows / ratio * ratio; // the most rows of a sequence that it holds
        if (fits > below || i + 1 == choice->count)
            choice->candidates[kept++] = choice->candidates[i];
        below = rows;
    }
    choice->count = kept;
}

static bool same_family(const char* a, const char* b) {
    size_t length = (size_t)(strrchr(a, '-') - a);
    return length == (size_t)(strrchr(b, '-') - b) && strncmp(a, b, length) == 0;
}

static void sort_by_rows(struct VkmqaChoice* choice) {
    for (uint32_t i = 1; i < choice->count; ++i)
        for (uint32_t j = i; j > 0 && choice->candidates[j].rows < choice->candidates[j - 1].rows; --j) {
            struct VkmqaCandidate swap = choice->candidates[j];
            choice->candidates[j] = choice->candidates[j - 1];
            choice->candidates[j - 1] = swap;
        }
}

// Where bits are not to depend on the call, all calls get the tile that suits a single query token, and splits
// that the device's grid can hold at any length.
static void keep_one(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                     struct VkmqaChoice* choice) {
    uint32_t i = 0;
    while (i + 1 < choice->count && choice->candidates[i].rows < shape->ratio)
        ++i;
    struct VkmqaCandidate* kept = &choice->candidates[0];
    *kept = choice->candidates[i];
    choice->count = 1;
    while ((uint64_t)(shape->maxSeqLenKv / kept->splitSize + 1) * shape->numHeadsKv > caps->maxGroupCount[2] &&
           kept->splitSize < shape->maxSeqLenKv)
        kept->splitSize *= 2;
}

// False where avoidKernels leaves none.
static bool select_append(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                          struct VkmqaChoice* choice) {
    bool isCpu = caps->type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    bool rotates = shape->ropeStyle != VKMQA_ROPE_NONE || shape->hadamard > 1;
    for (uint32_t i = 0; i < APPEND_COUNT; ++i) {
        const struct VkmqaAppendKernel* kernel = &appendKernels[i];
        if (kernel->bind != choice->bind || shape->avoidKernels >> (KERNEL_COUNT + i) & 1 ||
            (kernel->cpu && !isCpu) ||
            (kernel->half && !has_half(caps)) || (kernel->plain && rotates) ||
            !within(cache_types(shape), kernel->cacheTypes) ||
            !within(1u << shape->newType, kernel->newTypes) ||
            !has_driver(caps, kernel->driverId, kernel->minDriverVersion) ||
            (kernel->minSubgroup &&
             !has_subgroups(caps, kernel->minSubgroup, kernel->maxSubgroup)))
            continue;
        choice->appendKernel = KERNEL_COUNT + i;
        choice->appendShader = kernel->shader;
        choice->appendUnit = kernel->unit;
        choice->appendWorkgroupSize =
            kernel->invocations ? kernel->invocations : max_of(caps->subgroupSize, 4);
        return true;
    }
    return false;
}

// The kernels that a tuning profile names, or false where this object cannot have one of them.
static bool take_tuned(const struct VkmqaCaps* caps, const struct VkmqaShape* shape, const struct VkmqaTuned* tuned,
                       struct VkmqaChoice* choice) {
    for (uint32_t i = 0; i < tuned->count; ++i) {
        const struct VkmqaTunedKernel* line = &tuned->kernels[i];
        struct VkmqaCandidate* candidate = &choice->candidates[i];
        uint32_t k = 0;
        while (k < KERNEL_COUNT && strcmp(kernels[k].name, line->name) != 0)
            ++k;
        if (k == KERNEL_COUNT || shape->avoidKernels >> k & 1 || find_lack(&kernels[k], caps, shape) ||
            !settle(k, caps, shape, candidate) || candidate->bind != choice->candidates[0].bind)
            return false;
        candidate->reason = "the tuning profile: measured to be fastest on this device";
        candidate->upTo = line->upTo;
        if (line->splitSize)
            candidate->splitSize = line->splitSize;
        if (line->workgroups)
            candidate->workgroups = line->workgroups;
    }
    choice->count = tuned->count;
    return tuned->count != 0;
}

// Kernels on matrix units leave calls of less than half a tile of rows to the next family.
static bool helps_with_few(const struct VkmqaKernel* kernel, const struct VkmqaChoice* choice) {
    const struct VkmqaCandidate* first = &choice->candidates[0];
    const struct VkmqaCandidate* last = &choice->candidates[choice->count - 1];
    return first->matrix.m && !kernel->tiles && kernel->bind == first->bind &&
           2 * kernel->rows < first->matrix.m && (last->matrix.m || same_family(kernel->name, last->name));
}

// Of another kind of device, whatever else it may ask for.
static bool is_foreign(const struct VkmqaKernel* kernel, const struct VkmqaCaps* caps) {
    bool isCpu = caps->type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    if (!kernel->tiles)
        return kernel->cpu && !isCpu;
    return kernel->cpu != isCpu || (!isCpu && kernel->few != (lane_registers(caps) <= 128));
}

// The first family of the table that fits, or else what is missing.
static const char* take_first(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                              struct VkmqaChoice* choice) {
    const char* lack = NULL; // of the last kernel for such a device that could not be taken
    for (uint32_t i = 0; i < KERNEL_COUNT && choice->count < VKMQA_MAX_CANDIDATES; ++i) {
        if (shape->tier != VKMQA_TIER_AUTO && kernels[i].tier != shape->tier)
            continue;
        if (choice->count && !same_family(kernels[i].name, choice->candidates[0].name) &&
            !helps_with_few(&kernels[i], choice))
            continue;
        const char* missing = find_lack(&kernels[i], caps, shape);
        if (!missing && shape->avoidKernels >> i & 1)
            missing = "kernels that avoidKernels does not name";
        struct VkmqaCandidate* candidate = &choice->candidates[choice->count];
        if (!missing && !settle(i, caps, shape, candidate))
            missing = "larger workgroups, more shared memory or more registers";
        if (!missing)
            ++choice->count;
        else if (!lack || !is_foreign(&kernels[i], caps))
            lack = missing;
    }
    if (choice->count == 0)
        return lack;
    sort_by_rows(choice);
    drop_unreachable(choice, shape->ratio);
    if (shape->invariant)
        keep_one(caps, shape, choice);
    for (uint32_t i = 0; i < choice->count; ++i)
        choice->candidates[i].upTo = choice->candidates[i].rows;
    choice->candidates[choice->count - 1].upTo = UINT32_MAX;
    return NULL;
}

VkResult vkmqa_select(const struct VkmqaCaps* caps, const struct VkmqaShape* shape, const struct VkmqaTuned* tuned,
                      struct VkmqaChoice* choice, struct VkmqaProblem* problem) {
    *choice = (struct VkmqaChoice){0};
    // What the caller fixes is not for a profile to change.
    bool open = shape->tier == VKMQA_TIER_AUTO && !shape->invariant && !shape->splitSize;
    if (!tuned || !open || !take_tuned(caps, shape, tuned, choice)) {
        const char* lack = take_first(caps, shape, choice);
        if (lack) {
            vkmqa_problem(problem, "tier is %s: no kernel of it runs on this device as it was created; "
                                   "it needs %s", tier_name(shape->tier), lack);
            return VK_ERROR_FEATURE_NOT_PRESENT;
        }
    }
    const bool bind = choice->candidates[0].bind;
    choice->bind = bind;
    if (!select_append(caps, shape, choice)) {
        vkmqa_problem(problem, "avoidKernels is 0x%llx, which leaves no append kernel for this shape",
                      (unsigned long long)shape->avoidKernels);
        return VK_ERROR_FEATURE_NOT_PRESENT;
    }
    choice->mergeShader = bind ? VKMQA_SHADER_ATTN_MERGE_BIND : VKMQA_SHADER_ATTN_MERGE;
    choice->mergeStatesShader = bind ? VKMQA_SHADER_MERGE_STATES_BIND : VKMQA_SHADER_MERGE_STATES;
    choice->compactShader = bind ? VKMQA_SHADER_COMPACT_BIND : VKMQA_SHADER_COMPACT;
    choice->compactWorkgroupSize = 32;
    choice->shiftShader = bind ? VKMQA_SHADER_SHIFT_BIND : VKMQA_SHADER_SHIFT;
    // CPU drivers run a workgroup as one loop over subgroups: small ones cost them nothing.
    bool cpu = caps->type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    choice->mergeWorkgroupSize = cpu ? max_of(caps->subgroupSize, 4) : 32;
    return VK_SUCCESS;
}

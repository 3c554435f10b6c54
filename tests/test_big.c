// Sizes at the edges of 31, 32 and 63 bits: each count and size of the interface gives what arithmetic in 128 bits
// gives, or is refused by name. And caches past 2^31 and 2^32 bytes and elements, with the sequence in pages on both
// sides of each border. Where addresses are the host's (CPU drivers) such a cache is reserved address space, of which
// only the pages in use take memory.
#define _GNU_SOURCE // mincore
#include "harness.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vkmqa/vkmqa_cache.h>

__extension__ typedef unsigned __int128 Wide;

static const uint32_t edges[] = {0, 1, 2, 1u << 20, (1u << 30) - 1, 1u << 30, INT32_MAX, 1u << 31, (1u << 31) + 1,
                                 UINT32_MAX - 1, UINT32_MAX};
static const uint64_t longEdges[] = {(UINT64_C(1) << 31) - 4, UINT64_C(1) << 31, (UINT64_C(1) << 32) - 4,
                                     (UINT64_C(1) << 32) - 1, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 4,
                                     INT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 3, UINT64_MAX};

// A size is the exact one, or the call has refused it and named the field.
static void judge(VkResult result, const char* field, uint64_t given, uint64_t size, Wide exact) {
    if (result == VK_SUCCESS) {
        if (size != exact)
            fail_msg("%s %" PRIu64 ": size %" PRIu64 " should be %" PRIu64 " (%s 64 bits)", field, given, size,
                     (uint64_t)exact, exact >> 64 ? "beyond" : "within");
    } else if (!strstr(harness.message, field)) {
        fail_msg("%s %" PRIu64 " is refused with %d, but its name is not in \"%s\"", field, given, result,
                 harness.message);
    }
    harness.message[0] = 0;
}

// ---- Attention objects ----

static const VkmqaAttentionCreateInfo shapes[] = {
    {.numHeadsQ = 128, .numHeadsKv = 1, .headDimQk = 576, .headDimV = 512, .ioType = VKMQA_TYPE_F32,
     .kType = VKMQA_TYPE_F32, .pageSize = 256, .maxSeqLenKv = (1u << 30) - 1, .splitSize = 64},
    {.numHeadsQ = 4, .numHeadsKv = 4, .headDimQk = 40, .ioType = VKMQA_TYPE_F32, .kType = VKMQA_TYPE_Q4_0, .pageSize = 1,
     .maxSeqLenKv = (1u << 30) - 1, .splitSize = 1024},
    {.numHeadsQ = 8, .numHeadsKv = 2, .headDimQk = 64, .ioType = VKMQA_TYPE_F32, .kType = VKMQA_TYPE_Q8_0, .pageSize = 0,
     .maxSeqLenKv = 1u << 20, .splitSize = 256},
};
static const OracleType shapeTypes[COUNT(shapes)] = {ORACLE_F32, ORACLE_Q4_0, ORACLE_Q8_0};

static VkmqaAttention create(VkmqaAttentionCreateInfo info) {
    VkmqaAttention attention;
    info.structSize = sizeof(info);
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    return attention;
}

// Bytes of K or V of so many pages.
static Wide planeBytes(size_t shape, uint64_t pages, bool isV) {
    const VkmqaAttentionCreateInfo* info = &shapes[shape];
    const OracleCache row = {.type = shapeTypes[shape], .numPages = 1, .numHeads = 1, .pageTokens = 1,
                             .headDim = isV && info->headDimV ? info->headDimV : info->headDimQk};
    return (Wide)pages * (info->pageSize ? info->pageSize : info->maxSeqLenKv) * info->numHeadsKv *
           (oracleRowBytes(&row) + oracleScaleBytes(&row));
}

static void pagesHaveExactSizes(VkmqaAttention attention, size_t shape) {
    for (size_t i = 0; i < COUNT(edges); i++) {
        VkmqaKvRequirements kv = {.structSize = sizeof(kv)};
        VkResult result = vkmqaGetKvRequirements(attention, edges[i], &kv);
        assert_true(result == VK_SUCCESS || edges[i] != 1);
        judge(result, "numPages", edges[i], kv.k.size, planeBytes(shape, edges[i], false));
        if (result == VK_SUCCESS)
            judge(result, "numPages", edges[i], kv.v.size, planeBytes(shape, edges[i], true));
    }
}

static Wide roundUp(Wide value, uint64_t to) { return (value + to - 1) / to * to; }

// All partial rows of the longest call, with splits of the given size and no window.
static Wide scratchBytes(size_t shape, const VkmqaStepLimits* limits) {
    const VkmqaAttentionCreateInfo* info = &shapes[shape];
    uint64_t tokens = limits->maxSeqLenKv ? limits->maxSeqLenKv : info->maxSeqLenKv;
    uint64_t splits = (tokens + info->splitSize - 1) / info->splitSize;
    Wide parts = splits < 2 ? 0 : (Wide)limits->totalQ * info->numHeadsQ * splits;
    return roundUp(parts * (info->headDimV ? info->headDimV : info->headDimQk) * 4, 256) + parts * 8;
}

static void limitsHaveExactSizes(VkmqaAttention attention, size_t shape) {
    const VkmqaAttentionCreateInfo* info = &shapes[shape];
    static const char* const fields[] = {"limits.batch", "limits.totalQ", "limits.maxSeqLenQ", "limits.maxSeqLenKv",
                                         "limits.newTokens"};
    for (size_t f = 0; f < COUNT(fields); f++)
        for (size_t i = 0; i < 2 * COUNT(edges); i++) {
            const uint32_t most = 0x7FFFFFFF / info->numHeadsQ / 2, edge = edges[i / 2];
            // The other fields small, and large.
            VkmqaStepLimits limits = i % 2 ? (VkmqaStepLimits){1, most, most, info->maxSeqLenKv, 1u << 30}
                                           : (VkmqaStepLimits){1, 1, 1, 64, 1};
            uint32_t* const members[] = {&limits.batch, &limits.totalQ, &limits.maxSeqLenQ, &limits.maxSeqLenKv,
                                         &limits.newTokens};
            *members[f] = edge;
            VkmqaStepLayout layout;
            VkmqaBufferRequirements needs = {0};
            VkResult result = vkmqaGetStepLayout(attention, &limits, &layout, &needs);
            const VkmqaStepLimits full = {limits.batch, limits.totalQ, limits.maxSeqLenQ ? limits.maxSeqLenQ : limits.totalQ,
                                          limits.maxSeqLenKv ? limits.maxSeqLenKv : info->maxSeqLenKv,
                                          limits.newTokens ? limits.newTokens : limits.totalQ};
            const Wide pages = info->pageSize ? ((Wide)full.maxSeqLenKv + info->pageSize - 1) / info->pageSize : 0;
            const Wide words = 2 * (Wide)full.batch + 2 + full.newTokens + pages * full.batch;
            const char* field = strstr(harness.message, "limits.") ? "limits." : fields[f]; // or one that depends on it
            judge(result, field, edge, needs.size, roundUp(4 * words, 16));
            if (result == VK_SUCCESS && info->pageSize)
                assert_true(layout.maxPages == pages && layout.pageTable + 4 * pages * full.batch <= needs.size);
            result = vkmqaGetScratchRequirements(attention, &limits, &needs);
            field = strstr(harness.message, "limits.") ? "limits." : fields[f];
            judge(result, field, edge, needs.size, scratchBytes(shape, &full));
        }
}

static void cachesHaveExactSizes(VkmqaAttention attention, size_t shape) {
    static const char* const fields[] = {"numLayers", "numPages", "maxSequences", "maxBatch", "maxNewTokens", "maxSeqLenKv",
                                         "stepsInFlight", "hostPages"};
    for (size_t f = 0; f < COUNT(fields); f++)
        for (size_t i = 0; i < COUNT(edges); i++) {
            VkmqaCacheCreateInfo info = {.structSize = sizeof(info), .attention = attention, .numLayers = 64,
                                         .numPages = 4096, .maxSequences = 8, .maxNewTokens = 64, .maxSeqLenKv = 1024,
                                         .hostPages = 16, .device = harness.device};
            uint32_t* const members[] = {&info.numLayers, &info.numPages, &info.maxSequences, &info.maxBatch,
                                         &info.maxNewTokens, &info.maxSeqLenKv, &info.stepsInFlight, &info.hostPages};
            *members[f] = edges[i];
            if (f == 2 || f == 3) // a batch has so many tokens
                info.maxNewTokens = 1u << 20;
            if (f == 3)
                info.maxSequences = 1u << 24, info.maxSeqLenKv = 64;
            VkmqaCacheRequirements needs = {.structSize = sizeof(needs)};
            VkResult result = vkmqaGetCacheRequirements(&info, &needs);
            const char* field = strstr(harness.message, "limits.batch") ? "limits.batch" : fields[f];
            const Wide layer = planeBytes(shape, info.numPages, false) + planeBytes(shape, info.numPages, true);
            judge(result, field, edges[i], needs.deviceBytes, layer * info.numLayers + needs.local.size);
            if (result != VK_SUCCESS)
                continue;
            assert_true(needs.pageBytes == layer / info.numPages * info.numLayers);
            assert_true(needs.hostBytes >= (Wide)needs.pageBytes * info.hostPages + needs.step.size);
        }
}

static void sizesAreExactOrRefused(void** state) {
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++) {
        VkmqaAttention attention = create(shapes[s]);
        pagesHaveExactSizes(attention, s);
        limitsHaveExactSizes(attention, s);
        if (shapes[s].pageSize)
            cachesHaveExactSizes(attention, s);
        vkmqaDestroyAttention(attention);
    }
}

static void memoryDoesNotWrap(void** state) {
    (void)state;
    VkmqaMemory memory, large;
    uint8_t bytes[64] = {0};
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, sizeof(bytes), &memory));
    for (size_t i = 0; i < COUNT(longEdges); i++) {
        harness.message[0] = 0;
        VkResult result = vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, longEdges[i], &large);
        if (result == VK_SUCCESS) {
            assert_true(vkmqaGetMemoryRange(large, 0, 0).size == longEdges[i]);
            vkmqaDestroyMemory(large);
        } else {
            assert_true(*harness.message);
        }
        assert_true(result != VK_SUCCESS || longEdges[i] < INT64_MAX);
        const uint64_t offsets[] = {0, 4, 60, longEdges[i], UINT64_MAX - longEdges[i], 4 - longEdges[i], 64 - longEdges[i]};
        for (size_t o = 0; o < COUNT(offsets); o++) { // no such range ends within 64 bytes
            if (!offsets[o] && !longEdges[i])
                continue;
            const VkmqaBuffer range = vkmqaGetMemoryRange(memory, offsets[o], longEdges[i]);
            assert_true(!range.buffer && !range.size && !range.address && !range.offset);
            assert_int_equal(vkmqaUpload(memory, offsets[o], bytes, longEdges[i]), VK_ERROR_VALIDATION_FAILED_EXT);
            assert_int_equal(vkmqaDownload(memory, offsets[o], bytes, longEdges[i]), VK_ERROR_VALIDATION_FAILED_EXT);
            assert_int_equal(vkmqaUpload(memory, longEdges[i], bytes, 4), VK_ERROR_VALIDATION_FAILED_EXT);
        }
    }
    vkmqaDestroyMemory(memory);
}

// ---- Caches past 32 bits ----

enum { PAGE = 16, TOKENS = 160, HEADS = 2, DIM = 64 };

// Rows of 2^32 elements and a few pages more.
static const uint32_t PAGES = (uint32_t)((UINT64_C(1) << 32) / DIM / PAGE) + 4;

typedef struct Big {
    VkmqaType type;
    OracleType oracle;
    double error; // of a stored value, of the row's largest
} Big;

static const Big bigs[] = {{VKMQA_TYPE_F32, ORACLE_F32, 0},
                           {VKMQA_TYPE_F16, ORACLE_F16, 1.0 / 2048},
                           {VKMQA_TYPE_FP8_E4M3, ORACLE_FP8, 1.0 / 16},
                           {VKMQA_TYPE_Q8_0, ORACLE_Q8_0, 1.0 / 127},
                           {VKMQA_TYPE_Q4_0, ORACLE_Q4_0, 1.0 / 7}};

// Address space of which pages come when they are touched; 0 where there is not enough of it.
static uint8_t* reserve(size_t size) {
    void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

// Pages on both sides of every border of 31 and 32 bits, in bytes and in elements; the last one; the first.
static uint32_t choosePages(const OracleCache* shape, int32_t pages[TOKENS / PAGE]) {
    const uint64_t pageBytes = PAGE * oracleRowBytes(shape), pageElements = PAGE * DIM;
    const uint64_t wanted[] = {PAGES - 1, 0, (UINT64_C(1) << 31) / pageBytes, (UINT64_C(1) << 31) / pageBytes - 1,
                               (UINT64_C(1) << 32) / pageBytes, (UINT64_C(1) << 32) / pageBytes - 1,
                               (UINT64_C(1) << 31) / pageElements, (UINT64_C(1) << 31) / pageElements - 1,
                               (UINT64_C(1) << 32) / pageElements, (UINT64_C(1) << 32) / pageElements - 1,
                               PAGES - 2, PAGES / 2 + 1, PAGES / 3, 5, 6, 7, 8};
    uint32_t count = 0;
    for (size_t i = 0; i < COUNT(wanted) && count < TOKENS / PAGE; i++) {
        bool known = wanted[i] >= PAGES; // a q4_0 cache of 2^32 elements has 2^31 bytes
        for (uint32_t p = 0; p < count; p++)
            known |= pages[p] == (int32_t)wanted[i];
        if (!known)
            pages[count++] = (int32_t)wanted[i];
    }
    return count;
}

// Whatever was written lies where it should: of all that the system has given memory, the rest is zero.
static void checkElsewhere(const OracleCache* shape, const uint8_t* image, size_t size, const int32_t* slots) {
    const size_t grain = (size_t)sysconf(_SC_PAGESIZE), grains = (size + grain - 1) / grain;
    unsigned char* resident = malloc(grains);
    uint8_t* copy = malloc(grain);
    assert_int_equal(mincore((void*)(uintptr_t)image, size, resident), 0);
    for (size_t g = 0; g < grains; g++) {
        if (!(resident[g] & 1))
            continue;
        const size_t from = g * grain, to = from + grain < size ? from + grain : size;
        memcpy(copy, image + from, to - from);
        for (uint32_t t = 0; t < TOKENS; t++) {
            const size_t at[2] = {oracleRowOffset(shape, (uint32_t)slots[t], 0),
                                  oracleScaleBytes(shape) ? oracleScaleOffset(shape, (uint32_t)slots[t], 0) : 0};
            const size_t bytes[2] = {oracleRowBytes(shape), oracleScaleBytes(shape)};
            for (int i = 0; i < 2; i++)
                for (size_t b = at[i]; b < at[i] + bytes[i]; b++)
                    if (b >= from && b < to)
                        copy[b - from] = 0;
        }
        for (size_t b = 0; b < to - from; b++)
            if (copy[b])
                fail_msg("%s: byte %zu of the cache was written, and no slot is there", oracleTypeName(shape->type),
                         from + b);
    }
    free(resident);
    free(copy);
}

static VkmqaMemory upload(const void* bytes, size_t size) {
    VkmqaMemory memory;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, size, &memory));
    memcpy(vkmqaGetMemoryPointer(memory), bytes, size);
    return memory;
}

static void runBig(const Big* big, VkmqaTier tier) {
    const OracleCache shape = {.type = big->oracle, .numPages = PAGES, .numHeads = 1, .pageTokens = PAGE, .headDim = DIM};
    const size_t size = oracleCacheBytes(&shape);
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info), .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                           .numHeadsQ = HEADS, .numHeadsKv = 1, .headDimQk = DIM,
                                           .ioType = VKMQA_TYPE_F32, .kType = big->type, .pageSize = PAGE,
                                           .maxSeqLenKv = TOKENS, .tier = tier};
    VkmqaAttention attention;
    VkResult created = vkmqaCreateAttention(harness.context, &info, &attention);
    if (created == VK_ERROR_FEATURE_NOT_PRESENT)
        return;
    REQUIRE(created);
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = TOKENS};
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    REQUIRE(vkmqaGetKernelInfo(attention, &limits, &kernel));
    uint8_t* images[2] = {reserve(size), reserve(size)};
    if (kernel.usesDescriptors || !images[0] || !images[1])
        goto end; // these refuse such sizes, see pagesHaveExactSizes
    VkmqaKvRequirements needs = {.structSize = sizeof(needs)};
    REQUIRE(vkmqaGetKvRequirements(attention, PAGES, &needs));
    assert_true(needs.k.size == size && needs.v.size == size);

    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaBufferRequirements metadataNeeds, scratchNeeds;
    REQUIRE(vkmqaGetStepLayout(attention, &limits, &step.layout, &metadataNeeds));
    REQUIRE(vkmqaGetScratchRequirements(attention, &limits, &scratchNeeds));
    int32_t pages[TOKENS / PAGE], slots[TOKENS];
    assert_int_equal(choosePages(&shape, pages), TOKENS / PAGE);
    for (int32_t t = 0; t < TOKENS; t++)
        slots[t] = pages[t / PAGE] * PAGE + t % PAGE;
    static float rows[2][TOKENS * DIM], stored[2][TOKENS * DIM], q[TOKENS * HEADS * DIM];
    Random random = randomFor(harness.seed, big->type, 12);
    for (int i = 0; i < TOKENS * DIM; i++) {
        rows[0][i] = randomNormal(&random);
        rows[1][i] = randomNormal(&random);
    }
    for (int i = 0; i < TOKENS * HEADS * DIM; i++)
        q[i] = randomNormal(&random);
    uint8_t* metadata = calloc(1, metadataNeeds.size);
    memcpy(metadata + step.layout.cuSeqlensQ, (const int32_t[]){0, TOKENS}, 8);
    memcpy(metadata + step.layout.seqLensKv, (const int32_t[]){TOKENS}, 4);
    memcpy(metadata + step.layout.pageTable, pages, sizeof(pages));
    memcpy(metadata + step.layout.slotMapping, slots, sizeof(slots));
    VkmqaMemory memories[] = {upload(metadata, metadataNeeds.size), upload(rows[0], sizeof(rows[0])),
                              upload(rows[1], sizeof(rows[1])), upload(q, sizeof(q)), upload(q, sizeof(q)), NULL, NULL};
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, scratchNeeds.size + 16, &memories[5]));
    VkmqaBufferRequirements parametersNeeds;
    REQUIRE(vkmqaGetParametersRequirements(attention, &parametersNeeds));
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, parametersNeeds.size + 16, &memories[6]));
    const VkmqaParametersInfo constants = {.structSize = sizeof(constants)};
    REQUIRE(vkmqaWriteParameters(attention, &constants, parametersNeeds.size, vkmqaGetMemoryPointer(memories[6])));
    VkmqaBuffer ranges[COUNT(memories)];
    for (size_t i = 0; i < COUNT(memories); i++)
        ranges[i] = vkmqaGetMemoryRange(memories[i], 0, 0);
    step.metadata = ranges[0];
    const VkmqaKv kv = {{.size = size, .address = (uintptr_t)images[0]}, {.size = size, .address = (uintptr_t)images[1]},
                        PAGES};
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    const VkmqaAppendInfo append = {.structSize = sizeof(append), .recorder = vkmqaGetCommandsRecorder(commands),
                                    .step = &step, .kv = &kv, .newK = ranges[1], .newV = ranges[2],
                                    .parameters = ranges[6]};
    const VkmqaAttentionInfo attend = {.structSize = sizeof(attend), .recorder = append.recorder, .step = &step,
                                       .kv = &kv, .q = ranges[3], .out = ranges[4], .scratch = ranges[5],
                                       .parameters = ranges[6]};
    REQUIRE(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &append));
    REQUIRE(vkmqaCmdAttention(attention, vkmqaGetCommandBuffer(commands), &attend));
    REQUIRE(vkmqaSubmitCommands(commands));
    REQUIRE(vkmqaWaitCommands(commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull));

    for (int isV = 0; isV < 2; isV++) {
        oracleGather(&shape, images[isV], slots, TOKENS, stored[isV]);
        for (int i = 0; i < TOKENS * DIM; i++)
            if (!(fabs(stored[isV][i] - rows[isV][i]) <= big->error * 3.5))
                fail_msg("%s, %s: element %d of token %d of page %d is stored as %g, should be %g", tierName(tier),
                         oracleTypeName(big->oracle), i % DIM, i / DIM, pages[i / DIM / PAGE], stored[isV][i],
                         rows[isV][i]);
        checkElsewhere(&shape, images[isV], size, slots);
    }
    static double expected[TOKENS * HEADS * DIM];
    const int32_t cuSeqlensQ[] = {0, TOKENS}, seqLensKv[] = {TOKENS};
    const OracleProblem problem = {.batch = 1, .numHeadsQ = HEADS, .numHeadsKv = 1, .headDimQk = DIM, .headDimV = DIM,
                                   .cuSeqlensQ = cuSeqlensQ, .seqLensKv = seqLensKv, .q = q, .k = stored[0],
                                   .v = stored[1], .causal = true};
    oracleAttention(&problem, expected, NULL);
    const double tolerance = tier == VKMQA_TIER_COOPMAT ? 4e-3 : 2e-5; // matrix units round to f16
    const float* out = vkmqaGetMemoryPointer(memories[4]);
    for (int i = 0; i < TOKENS * HEADS * DIM; i++)
        if (!(fabs(out[i] - expected[i]) <= tolerance))
            fail_msg("%s, %s: output %d is %g, should be %g", tierName(tier), oracleTypeName(big->oracle), i, out[i],
                     expected[i]);
    print_message("%s, %s: %.2f GiB each of K and V\n", tierName(tier), oracleTypeName(big->oracle),
                  (double)size / (1 << 30));
    free(metadata);
    vkmqaDestroyCommands(commands);
    for (size_t i = 0; i < COUNT(memories); i++)
        vkmqaDestroyMemory(memories[i]);
end:
    for (int i = 0; i < 2; i++)
        if (images[i])
            munmap(images[i], size);
    vkmqaDestroyAttention(attention);
}

static void cachesPass32Bits(void** state) {
    (void)state;
    VkmqaMemory probe;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 16, &probe));
    const bool hostAddresses = vkmqaGetMemoryRange(probe, 0, 0).address == (uintptr_t)vkmqaGetMemoryPointer(probe);
    vkmqaDestroyMemory(probe);
    if (harness.properties.type != VK_PHYSICAL_DEVICE_TYPE_CPU || !hostAddresses) {
        print_message("skipped: device addresses are not the host's\n");
        skip();
    }
    for (size_t b = 0; b < COUNT(bigs); b++)
        for (uint32_t t = 0; t < harness.tierCount; t++)
            runBig(&bigs[b], harness.tiers[t]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sizesAreExactOrRefused),
    cmocka_unit_test(memoryDoesNotWrap),
    cmocka_unit_test(cachesPass32Bits),
};

HARNESS_MAIN(tests)

// Snapshots of the cache layer. The first byte says how the rest is loaded:
//   0x01 checksums are made right first    0x02 through a file    0x04 filled up with zeros to its whole size
//   0x38 which cache                       0x40 into a cache whose pages are kept for prefixes
// What could be loaded is saved again and loaded from that.
#define _GNU_SOURCE // memfd_create
#include "fuzz.h"

#include <unistd.h>

#include <sys/mman.h>

#include "cache/snapshot.h"
#include "mock.h"

enum { PAGES = 24, SEQUENCES = 6, MAX_IMAGE = 64 << 10, CACHES = 6 };

static VkmqaDevice device;
static VkmqaAttention attentions[CACHES];
static const struct {
    VkmqaAttentionFlags attentionFlags;
    uint32_t pageSize, layers, vDim;
    VkmqaType kType, vType;
    VkmqaCacheFlags flags;
} kinds[CACHES] = {
    {0, 16, 1, 0, VKMQA_TYPE_F16, VKMQA_TYPE_F16, 0},
    {0, 64, 1, 0, VKMQA_TYPE_F16, VKMQA_TYPE_F16, 0},
    {0, 4, 1, 0, VKMQA_TYPE_F16, VKMQA_TYPE_F16, VKMQA_CACHE_DEVICE_METADATA_BIT},
    {0, 16, 2, 16, VKMQA_TYPE_Q8_0, VKMQA_TYPE_F16, 0},
    {VKMQA_ATTENTION_V_PREFIX_OF_K_BIT, 16, 1, 0, VKMQA_TYPE_FP8_E4M3, VKMQA_TYPE_FP8_E4M3,
     VKMQA_CACHE_CLEAR_FREED_BIT},
    {0, 64, 1, 0, VKMQA_TYPE_F16, VKMQA_TYPE_F16, VKMQA_CACHE_CLEAR_FREED_BIT},
};

typedef struct Image {
    uint8_t* bytes; // [MAX_IMAGE]
    size_t size, at;
} Image;

static VkBool32 readImage(void* user, void* data, size_t size) {
    Image* image = user;
    if (size > image->size - image->at)
        return VK_FALSE;
    memcpy(data, image->bytes + image->at, size);
    image->at += size;
    return VK_TRUE;
}
static VkBool32 writeImage(void* user, const void* data, size_t size) {
    Image* image = user;
    if (size > MAX_IMAGE - image->size)
        return VK_FALSE;
    memcpy(image->bytes + image->size, data, size);
    image->size += size;
    return VK_TRUE;
}

static void openDevice(void) {
    const VkmqaDeviceOpenInfo open = {
        .structSize = sizeof(open), .skipVerification = VK_TRUE, .messageCallback = fuzzMessage};
    REQUIRE(vkmqaOpenDevice(&open, &device) == VK_SUCCESS, "no device");
    for (int i = 0; i < CACHES; i++) {
        const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                               .flags = kinds[i].attentionFlags,
                                               .numHeadsQ = 2,
                                               .numHeadsKv = 2,
                                               .headDimQk = 8,
                                               .headDimV = kinds[i].vDim,
                                               .kType = kinds[i].kType,
                                               .vType = kinds[i].vType,
                                               .pageSize = kinds[i].pageSize};
        REQUIRE(vkmqaCreateAttention(vkmqaGetDeviceContext(device), &info, &attentions[i]) == VK_SUCCESS, "cache %d",
                i);
    }
}

// The size that the header asks for, and with `seal` the checksums of what is there; 0: more than the image holds.
static size_t seal(VkmqaCache cache, Image* image, bool seal) {
    if (image->size < VKMQA_SNAPSHOT_HEADER_BYTES)
        return 0;
    uint8_t* bytes = image->bytes;
    if (seal)
        vkmqa_put64(bytes + VKMQA_SNAPSHOT_HEADER_BYTES - 8, XXH3_64bits(bytes, VKMQA_SNAPSHOT_HEADER_BYTES - 8));
    uint64_t pageTokens = vkmqa_get32(bytes + 60), sequences = vkmqa_get32(bytes + 64);
    uint64_t pages = vkmqa_get32(bytes + 68), entries = vkmqa_get64(bytes + 72), at = VKMQA_SNAPSHOT_HEADER_BYTES;
    if (pageTokens > 256 || sequences > MAX_IMAGE || pages > MAX_IMAGE || entries > MAX_IMAGE)
        return 0;
    for (uint32_t section = 0; section < 2 + cache->planeCount * cache->numLayers; section++) {
        uint64_t size = section == 0   ? sequences * 16 + entries * 4 + pages * 4
                        : section == 1 ? pages * pageTokens * 4
                                       : pages * pageTokens * cache->attention->shape.numHeadsKv *
                                             cache->planes[(section - 2) % cache->planeCount].tokenBytes;
        if (size + 8 > MAX_IMAGE - at)
            return 0;
        if (seal)
            vkmqa_put64(bytes + at + size, XXH3_64bits(bytes + at, size));
        at += size + 8;
    }
    return at;
}

// Steps and sequences that come and go, so that all pages but a few are kept for prefixes.
static void keepPages(VkmqaCache cache) {
    uint32_t ids[64];
    uint32_t pageTokens = cache->pageTokens;
    for (uint32_t i = 0; i < 64; i++)
        ids[i] = i;
    for (uint32_t i = 0; i < PAGES - 2; i++) {
        VkmqaSequence sequence;
        ids[0] = 1000 + i;
        REQUIRE(vkmqaCreateSequence(cache, NULL, &sequence, NULL) == VK_SUCCESS, "no sequence");
        const VkmqaSequenceTokens tokens = {sequence, pageTokens, ids, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &tokens};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        REQUIRE(vkmqaBuildStep(cache, &info, &step) == VK_SUCCESS, "no step");
        REQUIRE(vkmqaCmdUpdateCache(cache, (VkCommandBuffer)(void*)ids, &step) == VK_SUCCESS, "no update");
        vkmqaDestroySequence(cache, sequence);
    }
}

static void drop(VkmqaCache cache, uint32_t count, const VkmqaSequence* sequences) {
    for (uint32_t i = 0; i < count; i++)
        REQUIRE(vkmqaDestroySequence(cache, sequences[i]) == VK_SUCCESS, "sequence %u", i);
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(cache, &state) == VK_SUCCESS, "no state");
    REQUIRE(state.sequences == 0 && state.usedPages == 0 && state.freePages == PAGES,
            "%u sequences, %u pages in use, %u free", state.sequences, state.usedPages, state.freePages);
}

// What came of a load, which the mock driver has judged already, holds together.
static void judge(VkmqaCache cache, uint32_t count, const VkmqaSequence* sequences) {
    static uint8_t bytes[MAX_IMAGE];
    Image saved = {bytes, 0, 0};
    const VkmqaSnapshotInfo info = {
        .structSize = sizeof(info), .write = writeImage, .read = readImage, .userData = &saved, .modelTag = "again"};
    for (uint32_t i = 0; i < count; i++) {
        VkmqaSequenceState state = {.structSize = sizeof(state)};
        REQUIRE(vkmqaGetSequenceState(cache, sequences[i], &state) == VK_SUCCESS, "sequence %u", i);
        REQUIRE(state.pages == vkmqa_pages_of(cache, state.length), "%u tokens in %u pages", state.length,
                state.pages);
    }
    if (count == 0)
        return; // nothing is not saved
    VkResult result = vkmqaSaveSequences(cache, count, sequences, &info);
    drop(cache, count, sequences);
    if (result != VK_SUCCESS) {
        REQUIRE(saved.size > MAX_IMAGE / 2, "what was loaded cannot be saved: %d", result);
        return;
    }
    VkmqaSequence again[SEQUENCES];
    uint32_t number = SEQUENCES;
    result = vkmqaLoadSequences(cache, &info, &number, again);
    REQUIRE(result == VK_SUCCESS && number == count, "what was saved cannot be loaded: %d, %u of %u", result, number,
            count);
    drop(cache, count, again);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static uint8_t bytes[MAX_IMAGE];
    if (size == 0 || size > MAX_IMAGE)
        return 0;
    if (!device)
        openDevice();
    uint8_t how = data[0];
    uint32_t kind = (how >> 3 & 7) % CACHES;
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create),
                                         .flags = kinds[kind].flags,
                                         .attention = attentions[kind],
                                         .numLayers = kinds[kind].layers,
                                         .numPages = PAGES,
                                         .maxSequences = SEQUENCES,
                                         .maxNewTokens = 64,
                                         .stepsInFlight = 1,
                                         .device = device};
    VkmqaCache cache;
    REQUIRE(vkmqaCreateCache(&create, &cache) == VK_SUCCESS, "no cache");
    if (how & 0x40)
        keepPages(cache);
    Image image = {bytes, size - 1, 0};
    memset(bytes, 0, sizeof(bytes));
    memcpy(bytes, data + 1, size - 1);
    size_t whole = seal(cache, &image, how & 1);
    if (whole && (how & 4))
        image.size = whole;
    char path[32] = "";
    int file = -1;
    if (how & 2) {
        file = memfd_create("snapshot", 0);
        REQUIRE(file >= 0 && write(file, bytes, image.size) == (ssize_t)image.size, "no file");
        snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    }
    const VkmqaSnapshotInfo info = {
        .structSize = sizeof(info), .path = file >= 0 ? path : NULL, .read = readImage, .userData = &image};
    VkmqaSequence sequences[SEQUENCES];
    uint32_t count = SEQUENCES;
    fuzzErrors = 0;
    VkResult result = vkmqaLoadSequences(cache, &info, &count, sequences);
    REQUIRE(result == VK_SUCCESS || fuzzErrors, "result %d without a word", result);
    if (result == VK_SUCCESS)
        judge(cache, count, sequences);
    else
        drop(cache, 0, NULL);
    if (file >= 0)
        close(file);
    vkmqaDestroyCache(cache);
    return 0;
}

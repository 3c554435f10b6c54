// Snapshots of sequences: what is loaded is what was saved, whatever the page size; what is damaged, hostile or
// foreign is an error that names the section and changes nothing; a saver that fails or is killed leaves a file
// that is whole.
#define _DEFAULT_SOURCE // usleep, mkdtemp
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "harness.h"

#include "cache/cache.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LAYERS = 2, PAGES = 24, HEADS = 2, DIM = 40 }; // 40: the second block of a q8_0 row is short

static char folder[] = "/tmp/vkmqa-test-XXXXXX";
static char path[64];

typedef struct World {
    VkmqaAttention attention;
    VkmqaCache cache;
} World;

static World openWorld(uint32_t pageSize, uint32_t headDim, VkmqaType vType, uint32_t layers) {
    World world;
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .numHeadsQ = HEADS,
                                           .numHeadsKv = HEADS,
                                           .headDimQk = headDim,
                                           .kType = VKMQA_TYPE_Q8_0,
                                           .vType = vType,
                                           .pageSize = pageSize,
                                           .maxSeqLenKv = 96};
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &world.attention));
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create),
                                         .attention = world.attention,
                                         .numLayers = layers,
                                         .numPages = PAGES * 4 / pageSize,
                                         .maxSequences = 8,
                                         .maxNewTokens = 96,
                                         .hostPages = 8,
                                         .device = harness.device};
    REQUIRE(vkmqaCreateCache(&create, &world.cache));
    return world;
}
static World usualWorld(uint32_t pageSize) { return openWorld(pageSize, DIM, VKMQA_TYPE_F16, LAYERS); }

static void closeWorld(World* world) {
    vkmqaDestroyCache(world->cache);
    vkmqaDestroyAttention(world->attention);
}

// Every byte of the cache tells where it stands, modulo 251.
static void fillLayers(World* world, uint32_t seed) {
    for (uint32_t i = 0; i < 2 * world->cache->numLayers; i++) {
        VkmqaMemory memory = world->cache->memories[i];
        size_t size = (size_t)vkmqaGetMemoryRange(memory, 0, 0).size;
        uint8_t* bytes = malloc(size);
        for (size_t b = 0; b < size; b++)
            bytes[b] = (uint8_t)((b * 31 + i * 7 + seed) % 251);
        REQUIRE(vkmqaUpload(memory, 0, bytes, size));
        free(bytes);
    }
}

// A step whose command buffer is left out.
static void buildStep(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaCacheStep* step) {
    REQUIRE(vkmqaBuildStep(cache, info, step));
    cache->recordedSteps = cache->stepCount;
}

static VkmqaSequence makeSequence(World* world, uint32_t length, uint32_t firstId) {
    VkmqaSequence sequence;
    uint32_t ids[96];
    for (uint32_t i = 0; i < 96; i++)
        ids[i] = firstId + i;
    REQUIRE(vkmqaCreateSequence(world->cache, NULL, &sequence, NULL));
    const VkmqaSequenceTokens tokens = {sequence, length, ids, NULL};
    const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    if (length)
        buildStep(world->cache, &info, &step);
    return sequence;
}

// The bytes of a sequence's tokens, token by token and free of pages: [tokens, layers, planes, heads, bytes].
static uint8_t* readTokens(World* world, VkmqaSequence sequence, uint32_t* length, size_t* size) {
    VkmqaCache cache = world->cache;
    const struct VkmqaSequenceRecord* record = &cache->sequences[(uint32_t)sequence - 1];
    *length = record->length;
    size_t perToken = 0, at = 0;
    for (uint32_t p = 0; p < cache->planeCount; p++)
        perToken += cache->planes[p].tokenBytes * HEADS;
    *size = perToken * cache->numLayers * record->length;
    uint8_t* tokens = malloc(*size + 1);
    for (uint32_t p = 0; p < cache->numLayers * cache->planeCount; p++) {
        const struct VkmqaPlane* plane = &cache->planes[p % cache->planeCount];
        VkmqaMemory memory = cache->memories[p / cache->planeCount * 2 + plane->v];
        size_t bytes = (size_t)vkmqaGetMemoryRange(memory, 0, 0).size;
        uint8_t* image = malloc(bytes);
        REQUIRE(vkmqaDownload(memory, 0, image, bytes));
        for (uint32_t t = 0; t < record->length; t++)
            for (uint32_t h = 0; h < HEADS; h++) {
                uint64_t page = plane->offset + record->pages[t / cache->pageTokens] * plane->pageBytes;
                uint64_t row = (h * cache->pageTokens + t % cache->pageTokens) * plane->tokenBytes;
                memcpy(tokens + at, image + page + row, plane->tokenBytes);
                at += plane->tokenBytes;
            }
        free(image);
    }
    assert_int_equal(at, *size);
    return tokens;
}

static VkmqaSnapshotInfo fileInfo(void) {
    return (VkmqaSnapshotInfo){.structSize = sizeof(VkmqaSnapshotInfo), .path = path, .modelTag = "a model"};
}

static uint8_t* readFile(const char* name, size_t* size) {
    FILE* file = fopen(name, "rb");
    assert_non_null(file);
    uint8_t* bytes = malloc(1 << 20);
    *size = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}
static void writeFile(const char* name, const uint8_t* bytes, size_t size) {
    FILE* file = fopen(name, "wb");
    assert_true(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

static VkmqaCacheState stateOf(World* world) {
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(world->cache, &state));
    return state;
}

// ---- Whole -------------------------------------------------------------------------------------------

enum { SAVED = 5 };

// Five sequences: at page edges, empty, a fork that shares pages, and one of a page and a bit.
static void makeSequences(World* world, VkmqaSequence sequences[SAVED]) {
    fillLayers(world, 3);
    sequences[0] = makeSequence(world, 16, 100);
    sequences[1] = makeSequence(world, 0, 200);
    REQUIRE(vkmqaForkSequence(world->cache, sequences[0], 13, &sequences[2]));
    sequences[3] = makeSequence(world, 9, 300);
    sequences[4] = makeSequence(world, 1, 400);
}

static void loadedIsWhatWasSaved(void** state) {
    (void)state;
    static const uint32_t pageSizes[] = {4, 1, 16};
    const VkmqaSnapshotInfo info = fileInfo();
    for (size_t from = 0; from < COUNT(pageSizes); from++) {
        World source = usualWorld(pageSizes[from]);
        VkmqaSequence saved[SAVED], loaded[SAVED];
        makeSequences(&source, saved);
        REQUIRE(vkmqaSaveSequences(source.cache, SAVED, saved, &info));
        for (size_t to = 0; to < COUNT(pageSizes); to++) {
            if (!harnessIsLong() && from && to && from != to)
                continue; // objects cost seconds
            World target = usualWorld(pageSizes[to]);
            fillLayers(&target, 99);
            VkmqaSequence other = makeSequence(&target, 3, 500); // so that pages begin elsewhere
            uint32_t count = 0;
            REQUIRE(vkmqaLoadSequences(target.cache, &info, &count, NULL));
            assert_int_equal(count, SAVED);
            REQUIRE(vkmqaLoadSequences(target.cache, &info, &count, loaded));
            for (uint32_t i = 0; i < SAVED; i++) {
                uint32_t lengths[2];
                size_t sizes[2];
                uint8_t* before = readTokens(&source, saved[i], &lengths[0], &sizes[0]);
                uint8_t* after = readTokens(&target, loaded[i], &lengths[1], &sizes[1]);
                assert_int_equal(lengths[0], lengths[1]);
                assert_int_equal(sizes[0], sizes[1]);
                assert_memory_equal(before, after, sizes[0]);
                free(before);
                free(after);
            }
            if (pageSizes[from] == pageSizes[to]) // shared pages are shared again
                assert_int_equal(stateOf(&target).sharedPages, stateOf(&source).sharedPages);
            // A prompt is found in the new cache.
            uint32_t ids[16], reused;
            for (uint32_t i = 0; i < 16; i++)
                ids[i] = 100 + i;
            const VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = 16, .tokenIds = ids};
            VkmqaSequence found;
            REQUIRE(vkmqaCreateSequence(target.cache, &create, &found, &reused));
            assert_int_equal(reused, 16);
            REQUIRE(vkmqaDestroySequence(target.cache, found));
            for (uint32_t i = 0; i < SAVED; i++)
                REQUIRE(vkmqaDestroySequence(target.cache, loaded[i]));
            REQUIRE(vkmqaDestroySequence(target.cache, other));
            assert_int_equal(stateOf(&target).usedPages, 0);
            closeWorld(&target);
        }
        closeWorld(&source);
    }
}

// ---- Damaged, hostile, foreign -----------------------------------------------------------------------

static World world; // pages of 4, with makeSequences
static uint8_t* good; // its snapshot
static size_t goodSize;

static int makeGood(void** state) {
    (void)state;
    VkmqaSequence sequences[SAVED];
    const VkmqaSnapshotInfo info = fileInfo();
    world = usualWorld(4);
    makeSequences(&world, sequences);
    REQUIRE(vkmqaSaveSequences(world.cache, SAVED, sequences, &info));
    good = readFile(path, &goodSize);
    for (uint32_t i = 0; i < SAVED; i++)
        REQUIRE(vkmqaDestroySequence(world.cache, sequences[i]));
    return 0;
}
static int freeGood(void** state) {
    (void)state;
    free(good);
    closeWorld(&world);
    return 0;
}

typedef struct Bytes {
    const uint8_t* bytes;
    size_t size, at;
} Bytes;
static VkBool32 readBytes(void* user, void* data, size_t size) {
    Bytes* from = user;
    if (size > from->size - from->at)
        return VK_FALSE;
    memcpy(data, from->bytes + from->at, size);
    from->at += size;
    return VK_TRUE;
}

// Loads bytes as a file and as a stream: both refuse them, say `word`, and leave the cache as it was.
static void expectRefused(const uint8_t* bytes, size_t size, VkResult wanted, const char* word, const char* label,
                          bool stream) {
    const VkmqaCacheState before = stateOf(&world);
    for (int i = 0; i < 1 + stream; i++) {
        VkmqaSnapshotInfo info = fileInfo();
        Bytes from = {bytes, size, 0};
        VkmqaSequence sequences[8];
        uint32_t count = COUNT(sequences);
        if (i == 0) {
            writeFile(path, bytes, size);
        } else {
            info.path = NULL;
            info.read = readBytes;
            info.userData = &from;
        }
        harness.message[0] = 0;
        VkResult result = vkmqaLoadSequences(world.cache, &info, &count, sequences);
        // A stream has no size to compare with: how it is refused depends on what runs out first.
        if (result == VK_SUCCESS || (wanted && i == 0 && result != wanted))
            fail_msg("%s: VkResult %d (%s)", label, result, harness.message);
        if (!harness.message[0])
            fail_msg("%s: VkResult %d without a word", label, result);
        if (i == 0 && !strstr(harness.message, word))
            fail_msg("%s: the message does not speak of %s: \"%s\"", label, word, harness.message);
        const VkmqaCacheState after = stateOf(&world);
        assert_memory_equal(&before, &after, sizeof(before));
    }
}

static void damageIsNoticed(void** state) {
    (void)state;
    uint8_t* bytes = malloc(goodSize + 1);
    char label[64];
    for (size_t size = 0; size < goodSize; size += harnessIsLong() ? 1 : 5) {
        snprintf(label, sizeof(label), "cut to %zu of %zu bytes", size, goodSize);
        expectRefused(good, size, VK_ERROR_UNKNOWN, "section", label, size % 16 == 0);
    }
    memcpy(bytes, good, goodSize);
    bytes[goodSize] = 0;
    expectRefused(bytes, goodSize + 1, VK_ERROR_UNKNOWN, "goes on behind", "a byte more", false);
    uint32_t step = harnessIsLong() ? 1 : 37; // every byte in turn, another bit each time
    for (size_t i = 0; i < goodSize * 8; i += step) {
        memcpy(bytes, good, goodSize);
        bytes[i / 8] ^= (uint8_t)(1 << i % 8);
        snprintf(label, sizeof(label), "bit %zu of byte %zu", i % 8, i / 8);
        expectRefused(bytes, goodSize, 0, i / 8 < 8 ? "VKMQASNP" : "", label, false);
    }
    free(bytes);
    writeFile(path, good, goodSize);
    VkmqaSequence sequences[8]; // and the good one is good
    uint32_t count = COUNT(sequences);
    const VkmqaSnapshotInfo info = fileInfo();
    REQUIRE(vkmqaLoadSequences(world.cache, &info, &count, sequences));
    for (uint32_t i = 0; i < count; i++)
        REQUIRE(vkmqaDestroySequence(world.cache, sequences[i]));
}

static void put32(uint8_t* at, uint32_t value) {
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}
static void put64(uint8_t* at, uint64_t value) {
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

// Numbers that a forger has given right hashes.
static void forgeryIsRefused(void** state) {
    (void)state;
    static const struct {
        uint32_t offset, value;
        VkResult wanted;
        const char* word;
    } headers[] = {
        {8, 2, VK_ERROR_FORMAT_NOT_SUPPORTED, "version 2"},
        {12, 255, VK_ERROR_UNKNOWN, "header"},
        {16, 3, VK_ERROR_FORMAT_NOT_SUPPORTED, "numLayers 3, the cache 2"},
        {20, 4, VK_ERROR_FORMAT_NOT_SUPPORTED, "numHeadsKv 4, the cache 2"},
        {24, 128, VK_ERROR_FORMAT_NOT_SUPPORTED, "headDimQk 128, the cache 40"},
        {28, 48, VK_ERROR_FORMAT_NOT_SUPPORTED, "headDimV 48, the cache 40"},
        {32, VKMQA_TYPE_F16, VK_ERROR_FORMAT_NOT_SUPPORTED, "kType f16, the cache q8_0"},
        {36, 77, VK_ERROR_FORMAT_NOT_SUPPORTED, "vType"},
        {48, 1, VK_ERROR_FORMAT_NOT_SUPPORTED, "ropeStyle 1, the cache 0"},
        {60, 3, VK_ERROR_UNKNOWN, "pages of 3 tokens"},
        {60, 512, VK_ERROR_UNKNOWN, "pages of 512 tokens"},
        {60, 0, VK_ERROR_UNKNOWN, "pages of 0 tokens"},
        {64, 0xFFFFFFFF, VK_ERROR_UNKNOWN, ""},
        {64, 4, VK_ERROR_UNKNOWN, ""},
        {68, 0xFFFFFFFF, VK_ERROR_UNKNOWN, ""},
        {68, 1, VK_ERROR_UNKNOWN, ""},
        {72, 0xFFFFFFFF, VK_ERROR_UNKNOWN, ""},
        {76, 0xFFFFFFFF, VK_ERROR_UNKNOWN, "more than any snapshot"},
        {80, 0x4F6D2061, VK_ERROR_FORMAT_NOT_SUPPORTED, "model tag is \"a mOdel\""},
        {140, 0x01010101, VK_ERROR_UNKNOWN, ""},
        {200, 1, VK_ERROR_UNKNOWN, "zeros"},
    };
    uint8_t* bytes = malloc(goodSize);
    for (size_t i = 0; i < COUNT(headers); i++) {
        char label[64];
        snprintf(label, sizeof(label), "%u at byte %u of the header", headers[i].value, headers[i].offset);
        memcpy(bytes, good, goodSize);
        put32(bytes + headers[i].offset, headers[i].value);
        put64(bytes + 248, XXH3_64bits(bytes, 248));
        expectRefused(bytes, goodSize, headers[i].wanted, headers[i].word, label, true);
    }
    // The table: {salt, length, pages, list}: 16 tokens in 4 pages, 0 tokens, 13 tokens in 4 pages ...
    uint32_t entries = 4 + 0 + 4 + 3 + 1, pages = 4 + 3 + 1;
    size_t tableSize = SAVED * 16 + entries * 4 + pages * 4;
    static const struct {
        uint32_t offset, value;
        const char* word;
    } tables[] = {
        {8, 17, "17 tokens and 4 pages"},      {8, 0xFFFFFFFF, "tokens"}, {8, 0, "0 tokens and 4 pages"},
        {12, 5, "5 pages"},                    {12, 0xFFFFFFFF, "pages"}, {16, 8, "page 8 of 8"},
        {16, 0xFFFFFFFF, "sequence 0, entry 0"}, {20, 0, "page 0 is entry"}, {16, 1, "page 1"},
        {48 + 16, 3, "page 3"},                {(uint32_t)(16 * SAVED + 48), 5, "page 0"},
    };
    for (size_t i = 0; i < COUNT(tables); i++) {
        char label[64];
        snprintf(label, sizeof(label), "%u at byte %u of the table", tables[i].value, tables[i].offset);
        memcpy(bytes, good, goodSize);
        put32(bytes + 256 + tables[i].offset, tables[i].value);
        put64(bytes + 256 + tableSize, XXH3_64bits(bytes + 256, tableSize));
        expectRefused(bytes, goodSize, VK_ERROR_UNKNOWN, "table", label, true);
    }
    free(bytes);
}

static void anotherCacheRefuses(void** state) {
    (void)state;
    World small = openWorld(4, DIM, VKMQA_TYPE_F16, 1);
    writeFile(path, good, goodSize);
    VkmqaSnapshotInfo info = fileInfo();
    VkmqaSequence sequences[8];
    uint32_t count = COUNT(sequences);
    assert_int_equal(vkmqaLoadSequences(small.cache, &info, &count, sequences), VK_ERROR_FORMAT_NOT_SUPPORTED);
    closeWorld(&small);
    info.modelTag = "another";
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_FORMAT_NOT_SUPPORTED);
    assert_non_null(strstr(harness.message, "another"));
    info = fileInfo();
    count = SAVED - 1;
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_INCOMPLETE);
    info.path = NULL;
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaSaveSequences(world.cache, 1, sequences, &info), VK_ERROR_VALIDATION_FAILED_EXT);
    info = fileInfo();
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, NULL, sequences), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaSaveSequences(world.cache, 0, sequences, &info), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaSaveSequences(world.cache, 1, NULL, &info), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "give a sequence"));
    char tag[100] = "";
    memset(tag, 't', 64);
    info.modelTag = tag;
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "info.modelTag is longer than"));
    info = fileInfo();
    info.structSize = 2;
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "structSize"));
    info = fileInfo();
    info.path = "/tmp"; // no file
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_UNKNOWN);
    assert_non_null(strstr(harness.message, "info.path is not a file"));
    info.path = "/tmp/no/such/folder/file";
    assert_int_equal(vkmqaLoadSequences(world.cache, &info, &count, sequences), VK_ERROR_UNKNOWN);
    assert_non_null(strstr(harness.message, strerror(ENOENT)));
    assert_int_equal(stateOf(&world).usedPages, 0);
}

// Host memory that a load asks for, counted through the context's allocator. Behind it is what nobody may change, and
// what leads far away as an index.
enum { GUARD = 64, GUARD_BYTE = 0xA5 };
static size_t allocated, mostAllocated;
static VKAPI_ATTR void* VKAPI_CALL countedAllocation(void* user, size_t size, size_t alignment,
                                                     VkSystemAllocationScope scope) {
    (void)user, (void)alignment, (void)scope;
    size_t* memory = aligned_alloc(64, (64 + size + GUARD + 63) & ~(size_t)63);
    memory[0] = size;
    memset((char*)memory + 64 + size, GUARD_BYTE, GUARD);
    allocated += size;
    if (allocated > mostAllocated)
        mostAllocated = allocated;
    return (char*)memory + 64;
}
static VKAPI_ATTR void VKAPI_CALL countedFree(void* user, void* memory) {
    (void)user;
    if (!memory)
        return;
    size_t* base = (size_t*)((char*)memory - 64);
    const uint8_t* guard = (const uint8_t*)memory + base[0];
    for (int i = 0; i < GUARD; i++)
        if (guard[i] != GUARD_BYTE)
            fail_msg("byte %d behind an allocation of %zu was written", i, base[0]);
    allocated -= base[0];
    free(base);
}
static VKAPI_ATTR void* VKAPI_CALL countedReallocation(void* user, void* old, size_t size, size_t alignment,
                                                       VkSystemAllocationScope scope) {
    void* memory = size ? countedAllocation(user, size, alignment, scope) : NULL;
    if (old && memory) {
        size_t before = *(size_t*)((char*)old - 64);
        memcpy(memory, old, before < size ? before : size);
    }
    countedFree(user, old);
    return memory;
}

static void memoryIsBoundedByTheFile(void** state) {
    (void)state;
    struct VkmqaContext_T* context = (struct VkmqaContext_T*)harness.context;
    World own;
    VkmqaContext before = harness.context;
    // The cache's own allocations are made and freed by the allocator that it was created with.
    context->hasAllocator = true;
    context->allocator = (VkAllocationCallbacks){.pfnAllocation = countedAllocation,
                                                 .pfnReallocation = countedReallocation,
                                                 .pfnFree = countedFree};
    own = usualWorld(4);
    size_t base = allocated;
    uint8_t* bytes = malloc(goodSize);
    for (uint32_t offset = 60; offset < 80; offset += 4)
        for (int shift = 0; shift < 32; shift++) {
            memcpy(bytes, good, goodSize);
            put32(bytes + offset, 1u << shift);
            put64(bytes + 248, XXH3_64bits(bytes, 248));
            Bytes from = {bytes, goodSize, 0};
            const VkmqaSnapshotInfo info = {.structSize = sizeof(info), .read = readBytes, .userData = &from,
                                            .modelTag = "a model"};
            VkmqaSequence sequences[8];
            uint32_t count = COUNT(sequences);
            mostAllocated = allocated;
            if (vkmqaLoadSequences(own.cache, &info, &count, sequences) == VK_SUCCESS)
                for (uint32_t i = 0; i < count; i++)
                    REQUIRE(vkmqaDestroySequence(own.cache, sequences[i]));
            if (mostAllocated - base > goodSize + (1 << 20))
                fail_msg("2^%d at byte %u: %zu bytes were allocated for a file of %zu", shift, offset,
                         mostAllocated - base, goodSize);
        }
    free(bytes);
    closeWorld(&own);
    own = usualWorld(16); // where pages of 4 tokens are put together
    Bytes from = {good, goodSize, 0};
    const VkmqaSnapshotInfo info = {.structSize = sizeof(info), .read = readBytes, .userData = &from, .modelTag = "a model"};
    VkmqaSequence sequences[8];
    uint32_t count = COUNT(sequences);
    REQUIRE(vkmqaLoadSequences(own.cache, &info, &count, sequences));
    assert_int_equal(count, SAVED);
    closeWorld(&own);
    context->hasAllocator = false;
    assert_ptr_equal(before, harness.context);
    assert_int_equal(allocated, 0);
}

// ---- Savers that fail, savers that are killed ----------------------------------------------------------

static size_t writeLimit, written;
static VkBool32 writeSome(void* user, const void* data, size_t size) {
    (void)user, (void)data;
    written += size;
    return written <= writeLimit;
}

static VkBool32 cancelAt(void* user, uint64_t done, uint64_t total) {
    uint64_t* largest = user;
    assert_true(done <= total);
    *largest = done;
    return VK_FALSE;
}

// A callback that uses the cache it is called for: refused, and the save goes on.
static VkBool32 meddle(void* user, const void* data, size_t size) {
    VkmqaCacheState state = {.structSize = sizeof(state)};
    VkmqaSequence* sequence = user;
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    const VkmqaSequenceTokens tokens = {*sequence, 7, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    (void)data, (void)size;
    expectCall(vkmqaBuildStep(world.cache, &build, &step), VK_ERROR_VALIDATION_FAILED_EXT, "callback", "a step");
    expectCall(vkmqaGetCacheState(world.cache, &state), VK_ERROR_VALIDATION_FAILED_EXT, "callback", "the state");
    expectCall(vkmqaDestroySequence(world.cache, *sequence), VK_ERROR_VALIDATION_FAILED_EXT, "callback", "the end");
    vkmqaDestroyCache(world.cache);
    return VK_TRUE;
}
static VkBool32 meddleWithProgress(void* user, uint64_t done, uint64_t total) {
    return done <= total && meddle(user, NULL, 0);
}

static void callbacksMayNotUseTheCache(void** state) {
    (void)state;
    VkmqaSequence sequence = makeSequence(&world, 6, 900);
    const VkmqaSnapshotInfo info = {.structSize = sizeof(info), .write = meddle, .progress = meddleWithProgress,
                                    .userData = &sequence};
    REQUIRE(vkmqaSaveSequences(world.cache, 1, &sequence, &info));
    REQUIRE(vkmqaDestroySequence(world.cache, sequence));
}

static void failedSavesLeaveTheOldFile(void** state) {
    (void)state;
    VkmqaSequence sequence = makeSequence(&world, 16, 700);
    VkmqaSnapshotInfo info = fileInfo();
    writeFile(path, good, goodSize);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, limit;
    getrlimit(RLIMIT_FSIZE, &old);
    for (rlim_t bytes = 0; bytes < 3000; bytes += 500) { // as a full disk
        limit = (struct rlimit){bytes, old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        VkResult result = vkmqaSaveSequences(world.cache, 1, &sequence, &info);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(result, VK_ERROR_UNKNOWN);
        assert_non_null(strstr(harness.message, strerror(EFBIG)));
        size_t size;
        uint8_t* left = readFile(path, &size);
        assert_true(size == goodSize && memcmp(left, good, size) == 0);
        free(left);
    }
    uint64_t done = 0;
    info.progress = cancelAt;
    info.userData = &done;
    assert_int_equal(vkmqaSaveSequences(world.cache, 1, &sequence, &info), VK_INCOMPLETE);
    assert_true(done > 0);
    size_t size;
    uint8_t* left = readFile(path, &size);
    assert_true(size == goodSize && memcmp(left, good, size) == 0);
    free(left);
    char command[128]; // no temporary file is left behind
    snprintf(command, sizeof(command), "test \"$(ls -A %s | wc -l)\" = 1", folder);
    assert_int_equal(system(command), 0);
    info = (VkmqaSnapshotInfo){.structSize = sizeof(info), .write = writeSome};
    for (writeLimit = 0; writeLimit < 5000; writeLimit += 97) {
        written = 0;
        VkResult result = vkmqaSaveSequences(world.cache, 1, &sequence, &info);
        assert_int_equal(result, written > writeLimit ? VK_ERROR_UNKNOWN : VK_SUCCESS);
    }
    info.path = "/tmp/no/such/folder/file";
    assert_int_equal(vkmqaSaveSequences(world.cache, 1, &sequence, &info), VK_ERROR_UNKNOWN);
    info.path = folder; // nothing can take its place
    assert_int_equal(vkmqaSaveSequences(world.cache, 1, &sequence, &info), VK_ERROR_UNKNOWN);
    assert_non_null(strstr(harness.message, "section end: renaming failed"));
    char before[1024]; // a name alone is a file of the working folder
    assert_true(getcwd(before, sizeof(before)) && chdir(folder) == 0);
    info = (VkmqaSnapshotInfo){.structSize = sizeof(info), .path = "name"};
    REQUIRE(vkmqaSaveSequences(world.cache, 1, &sequence, &info));
    assert_int_equal(remove("name"), 0);
    assert_int_equal(chdir(before), 0);
    REQUIRE(vkmqaDestroySequence(world.cache, sequence));
}

// The child: saves 5 tokens and 9 tokens in turns, over and over.
static _Noreturn void saveForever(const char* file) {
    snprintf(path, sizeof(path), "%s", file);
    World own = usualWorld(4);
    fillLayers(&own, 3);
    const VkmqaSequence sequences[] = {makeSequence(&own, 5, 10), makeSequence(&own, 9, 20)};
    const VkmqaSnapshotInfo info = fileInfo();
    for (uint32_t i = 0;; i++)
        REQUIRE(vkmqaSaveSequences(own.cache, 1, &sequences[i % 2], &info));
}

static char* self;

static void killedSaversLeaveAWholeFile(void** state) {
    (void)state;
    Random random = randomFor(harness.seed, 8, 8);
    uint32_t seen[2] = {0}, kills = harnessIsLong() ? 1000 : 8;
    const VkmqaSnapshotInfo info = fileInfo();
    for (uint32_t i = 0; i < kills; i++) {
        unlink(path);
        pid_t child = fork();
        if (child == 0) {
            execl(self, self, path, (char*)NULL);
            _exit(127);
        }
        struct stat there;
        for (int waited = 0; stat(path, &there) != 0; waited++) {
            assert_true(waited < 60000);
            usleep(1000);
        }
        usleep(randomBelow(&random, 20000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        VkmqaSequence sequence;
        uint32_t count = 1, length;
        size_t size;
        REQUIRE(vkmqaLoadSequences(world.cache, &info, &count, &sequence));
        uint8_t* bytes = readTokens(&world, sequence, &length, &size);
        assert_true(length == 5 || length == 9);
        seen[length == 9]++;
        free(bytes);
        REQUIRE(vkmqaDestroySequence(world.cache, sequence));
    }
    print_message("%u savers killed: %u files of the one, %u of the other\n", kills, seen[0], seen[1]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(loadedIsWhatWasSaved),
    cmocka_unit_test_setup_teardown(damageIsNoticed, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(forgeryIsRefused, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(anotherCacheRefuses, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(memoryIsBoundedByTheFile, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(callbacksMayNotUseTheCache, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(failedSavesLeaveTheOldFile, makeGood, freeGood),
    cmocka_unit_test_setup_teardown(killedSaversLeaveAWholeFile, makeGood, freeGood),
};

int main(int argc, char** argv) {
    self = argv[0];
    harnessOpen();
    if (argc > 1)
        saveForever(argv[1]);
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof(path), "%s/snapshot", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    failed |= system(command);
    harnessClose();
    return failed != 0;
}

// The cache layer's calls with bad input: an error code, a message that names field and value, nothing changed.
// And what its pages promise: a thousand conversations hold their common prompt once.
#include "harness.h"

#include "cache/cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const VkResult INVALID = VK_ERROR_VALIDATION_FAILED_EXT;

enum { PAGE = 16, PAGES = 24, LAYERS = 2 };

static VkmqaAttention attention; // of all tests: GQA 4:2, d 32, f16, rope

static int createAttention(void** state) {
    (void)state;
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                           .numHeadsQ = 4,
                                           .numHeadsKv = 2,
                                           .headDimQk = 32,
                                           .pageSize = PAGE,
                                           .maxSeqLenKv = 4096,
                                           .ropeStyle = VKMQA_ROPE_NEOX};
    return vkmqaCreateAttention(harness.context, &info, &attention) != VK_SUCCESS;
}
static int destroyAttention(void** state) {
    (void)state;
    vkmqaDestroyAttention(attention);
    return 0;
}

static VkmqaCacheCreateInfo goodInfo(void) {
    return (VkmqaCacheCreateInfo){.structSize = sizeof(VkmqaCacheCreateInfo),
                                  .attention = attention,
                                  .numLayers = LAYERS,
                                  .numPages = PAGES,
                                  .maxSequences = 4,
                                  .maxNewTokens = 64,
                                  .hostPages = 8,
                                  .device = harness.device};
}

static VkmqaCache makeCache(const VkmqaCacheCreateInfo* info) {
    VkmqaCache cache;
    REQUIRE(vkmqaCreateCache(info, &cache));
    return cache;
}

static VkmqaSequence makeSequence(VkmqaCache cache) {
    VkmqaSequence sequence;
    REQUIRE(vkmqaCreateSequence(cache, NULL, &sequence, NULL));
    return sequence;
}

// A step whose command buffer is left out.
static void buildStep(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaCacheStep* step) {
    REQUIRE(vkmqaBuildStep(cache, info, step));
    cache->recordedSteps = cache->stepCount;
}

// Tokens without ids.
static void grow(VkmqaCache cache, VkmqaSequence sequence, uint32_t count) {
    while (count) {
        const VkmqaSequenceTokens tokens = {sequence, count < 64 ? count : 64, NULL, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &tokens};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        buildStep(cache, &info, &step);
        count -= tokens.newTokens;
    }
}

static VkmqaCacheState stateOf(VkmqaCache cache) {
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(cache, &state));
    return state;
}

static void expect(VkResult got, VkResult wanted, const char* word, const char* what) {
    if (got != wanted)
        fail_msg("%s: VkResult %d, should be %d (%s)", what, got, wanted, harness.message);
    if (word && !strstr(harness.message, word))
        fail_msg("%s: the message does not speak of %s: \"%s\"", what, word, harness.message);
}
#define FAILS(wanted, call, word)                                                                  \
    do {                                                                                           \
        harness.message[0] = 0;                                                                    \
        expect((call), (wanted), (word), #call);                                                   \
    } while (0)
#define REJECTS(call, word) FAILS(INVALID, call, word)

// ---- Creation --------------------------------------------------------------------------------------

static void creationRejectsBadInput(void** state) {
    (void)state;
    VkmqaCache cache = (VkmqaCache)&cache;
    VkmqaCacheCreateInfo info;
#define SPOILED(wanted, field, value, word)                                                        \
    info = goodInfo();                                                                             \
    info.field = (value);                                                                          \
    FAILS(wanted, vkmqaCreateCache(&info, &cache), word);                                          \
    assert_null(cache)
    SPOILED(INVALID, structSize, 8, NULL);
    SPOILED(INVALID, attention, NULL, NULL);
    SPOILED(INVALID, attention, (VkmqaAttention)harness.context, NULL);
    SPOILED(INVALID, numLayers, 0, "numLayers is 0");
    SPOILED(INVALID, numLayers, 5000, "numLayers is 5000");
    SPOILED(INVALID, numPages, 0, "numPages is 0");
    SPOILED(INVALID, numPages, UINT32_MAX, "numPages is 4294967295");
    SPOILED(INVALID, maxBatch, 5, "maxBatch is 5");
    SPOILED(INVALID, maxNewTokens, 3, "maxNewTokens is 3");
    SPOILED(INVALID, maxSeqLenKv, 4097, "maxSeqLenKv is 4097");
    SPOILED(INVALID, stepsInFlight, 65, "stepsInFlight is 65");
    SPOILED(INVALID, flags, 0x80, "flags is 0x80");
    SPOILED(INVALID, device, NULL, "hostPages is 8");
    info = goodInfo();
    REJECTS(vkmqaCreateCache(&info, NULL), "cache is null");
    assert_int_equal(vkmqaCreateCache(NULL, &cache), INVALID);
    VkmqaCacheRequirements needed = {.structSize = 4};
    REJECTS(vkmqaGetCacheRequirements(&info, &needed), "requirements");

    VkmqaAttention contiguous;
    const VkmqaAttentionCreateInfo plain = {.structSize = sizeof(plain), .numHeadsQ = 2, .numHeadsKv = 1,
                                            .headDimQk = 32, .maxSeqLenKv = 64};
    REQUIRE(vkmqaCreateAttention(harness.context, &plain, &contiguous));
    SPOILED(INVALID, attention, contiguous, "pageSize 0");
    vkmqaDestroyAttention(contiguous);

    // Nobody to allocate, nothing given; too small; misaligned; another number of pages.
    info = goodInfo();
    info.device = NULL;
    info.hostPages = 0;
    needed = (VkmqaCacheRequirements){.structSize = sizeof(needed)};
    REQUIRE(vkmqaGetCacheRequirements(&info, &needed));
    assert_true(needed.deviceBudget == 0);
    VkmqaMemory memory;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 1 << 22, &memory));
    const VkmqaBuffer all = vkmqaGetMemoryRange(memory, 0, 0);
    VkmqaKv layers[LAYERS] = {{all, all, PAGES}, {all, all, PAGES}};
    REJECTS(vkmqaCreateCache(&info, &cache), "layers is null");
    info.layers = layers;
    REJECTS(vkmqaCreateCache(&info, &cache), "stepMapped is null");
    info.stepMapped = vkmqaGetMemoryPointer(memory);
    REJECTS(vkmqaCreateCache(&info, &cache), "stepMemory");
    info.stepMemory = all;
    REJECTS(vkmqaCreateCache(&info, &cache), "localMemory");
    info.localMemory = all;
    layers[1].numPages = PAGES - 1;
    REJECTS(vkmqaCreateCache(&info, &cache), "layers[1].numPages is 23");
    layers[1].numPages = PAGES;
    layers[1].v.size = needed.kv.v.size - 1;
    REJECTS(vkmqaCreateCache(&info, &cache), "layers[].v.size");
    layers[1].v = all;
    layers[1].v.offset = 8;
    REJECTS(vkmqaCreateCache(&info, &cache), "multiples of 16");
    layers[1].v = all;

    // What submits needs a device.
    REQUIRE(vkmqaCreateCache(&info, &cache));
    VkmqaSequence sequence = makeSequence(cache);
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .path = "never"};
    uint32_t count = 1;
    FAILS(VK_ERROR_FEATURE_NOT_PRESENT, vkmqaOffloadSequence(cache, sequence), "device");
    FAILS(VK_ERROR_FEATURE_NOT_PRESENT, vkmqaOffloadLeastRecent(cache, 1, NULL), "device");
    FAILS(VK_ERROR_FEATURE_NOT_PRESENT, vkmqaSaveSequences(cache, 1, &sequence, &snapshot), "evice");
    FAILS(VK_ERROR_FEATURE_NOT_PRESENT, vkmqaLoadSequences(cache, &snapshot, &count, &sequence), "evice");
    vkmqaDestroyCache(cache);
    vkmqaDestroyMemory(memory);
}

// A cache beyond the driver's budget is refused before anything is allocated.
static void budgetIsRespected(void** state) {
    (void)state;
    VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCacheRequirements needed = {.structSize = sizeof(needed)};
    REQUIRE(vkmqaGetCacheRequirements(&info, &needed));
    assert_true(needed.deviceBytes >= (needed.kv.k.size + needed.kv.v.size) * LAYERS);
    assert_true(needed.pageBytes == (needed.kv.k.size + needed.kv.v.size) * LAYERS / PAGES);
    if (needed.deviceBudget == 0)
        skip(); // a driver without VK_EXT_memory_budget
    info.numLayers = 4096;
    info.numPages = 1 << 24;
    VkmqaCache cache;
    FAILS(VK_ERROR_OUT_OF_DEVICE_MEMORY, vkmqaCreateCache(&info, &cache), "budget");
}

// ---- Sequences and steps -----------------------------------------------------------------------------

static void callsRejectBadInput(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info), other = makeCache(&info);
    VkmqaSequence a = makeSequence(cache), b = makeSequence(cache), foreign = makeSequence(other), fork;
    grow(cache, a, 20);
    const VkmqaCacheState before = stateOf(cache);

    assert_int_equal(vkmqaCreateSequence(NULL, NULL, &fork, NULL), INVALID);
    assert_int_equal(vkmqaDestroySequence((VkmqaCache)attention, a), INVALID);
    assert_null(vkmqaGetCacheLayer(cache, LAYERS));
    REJECTS(vkmqaCreateSequence(cache, NULL, NULL, NULL), "sequence is null");
    REJECTS(vkmqaForkSequence(cache, a, 21, &fork), "length is 21; the source has 20");
    REJECTS(vkmqaForkSequence(cache, foreign, 0, &fork), "none of this cache");
    REJECTS(vkmqaForkSequence(cache, a, 1, NULL), "fork is null");
    REJECTS(vkmqaTruncateSequence(cache, a, 21), "length is 21");
    REJECTS(vkmqaTruncateSequence(cache, 0, 0), "sequence 0x0");
    REJECTS(vkmqaTruncateSequence(cache, a + 3, 0), "none of this cache");
    REJECTS(vkmqaDestroySequence(cache, foreign), "none of this cache");
    REJECTS(vkmqaPinSequence(cache, foreign, VK_TRUE), "none of this cache");
    assert_int_equal(vkmqaDestroySequence(cache, 0), VK_SUCCESS);

    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkmqaSequenceTokens tokens[] = {{a, 1, NULL, NULL}, {b, 1, NULL, NULL}};
    VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 2, .tokens = tokens};
#define BUILD(word) REJECTS(vkmqaBuildStep(cache, &build, &step), word)
    build.count = 0;
    BUILD("count is 0");
    build.count = 2;
    build.tokens = NULL;
    BUILD("tokens is null");
    build.tokens = tokens;
    tokens[1].sequence = a;
    BUILD("tokens[1].sequence");
    tokens[1].sequence = foreign;
    BUILD("none of this cache");
    tokens[1].sequence = b;
    tokens[0].newTokens = tokens[1].newTokens = 0;
    BUILD("no new token");
    tokens[0].newTokens = 65;
    BUILD("65 new tokens");
    tokens[0].newTokens = 10;
    build.limits.batch = 1;
    BUILD("limits.batch is 1; this step has 2");
    build.limits.batch = 5;
    BUILD("limits.batch is 5");
    build.limits.batch = 0;
    build.limits.maxSeqLenKv = 29;
    BUILD("maxSeqLenKv is 29; this step has 30");
    build.limits.maxSeqLenKv = 0;
    REJECTS(vkmqaBuildStep(cache, &build, NULL), "step");
    step.structSize = 4;
    BUILD("structSize");
    step.structSize = sizeof(step);
    build.structSize = 3;
    BUILD("structSize");
    build.structSize = sizeof(build);
    REJECTS(vkmqaReserveTokens(cache, 1, NULL), "tokens is null");
    tokens[0].newTokens = PAGES * PAGE;
    REJECTS(vkmqaReserveTokens(cache, 1, tokens), "would have 404 tokens");

    REJECTS(vkmqaCmdUpdateCache(cache, VK_NULL_HANDLE, NULL), "commandBuffer is null");
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
    step.slot = 3;
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &step), "slot 3");
    VkmqaShiftInfo shift = {.structSize = sizeof(shift), .recorder = vkmqaGetCommandsRecorder(commands),
                            .sequence = a, .keep = 1, .drop = 20};
#define SHIFT(word) REJECTS(vkmqaCmdShiftSequence(cache, commandBuffer, &shift), word)
    SHIFT("keep 1 and drop 20");
    shift.keep = UINT32_MAX;
    SHIFT("keep 4294967295");
    shift.keep = 1;
    shift.drop = 3;
    SHIFT("parameters"); // with a ropeStyle
    shift.sequence = foreign;
    SHIFT("none of this cache");
    shift.structSize = 1;
    SHIFT("structSize");
    vkmqaDestroyCommands(commands);

    REQUIRE(vkmqaPinSequence(cache, a, VK_TRUE));
    REJECTS(vkmqaOffloadSequence(cache, a), "pinned");
    REQUIRE(vkmqaPinSequence(cache, a, VK_FALSE));
    const VkmqaCacheState after = stateOf(cache);
    assert_memory_equal(&before, &after, sizeof(before));

    // Ids do not come back.
    REQUIRE(vkmqaDestroySequence(cache, b));
    VkmqaSequence c = makeSequence(cache);
    assert_true((uint32_t)c == (uint32_t)b && c != b);
    REJECTS(vkmqaDestroySequence(cache, b), "has been destroyed");
    vkmqaDestroyCache(other);
    vkmqaDestroyCache(cache);
    vkmqaDestroyCache(NULL);
}

static void fullCachesSayWhatIsMissing(void** state) {
    (void)state;
    VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    VkmqaSequence sequences[4];
    for (int i = 0; i < 4; i++)
        sequences[i] = makeSequence(cache);
    VkmqaSequence fifth;
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaCreateSequence(cache, NULL, &fifth, NULL), "maxSequences is 4");
    grow(cache, sequences[0], 20 * PAGE);
    const VkmqaSequenceTokens tokens[] = {{sequences[1], 3 * PAGE, NULL, NULL},
                                          {sequences[2], 2 * PAGE + 1, NULL, NULL}};
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaReserveTokens(cache, 2, tokens),
          "6 pages are needed, 4 are free: 2 are missing");
    assert_int_equal(stateOf(cache).freePages, 4); // all or nothing
    REQUIRE(vkmqaReserveTokens(cache, 1, tokens));
    assert_int_equal(stateOf(cache).freePages, 1);
    REQUIRE(vkmqaReserveTokens(cache, 1, tokens)); // it has them
    assert_int_equal(stateOf(cache).freePages, 1);
    REQUIRE(vkmqaTruncateSequence(cache, sequences[1], 0));
    assert_int_equal(stateOf(cache).freePages, 4);
    // 20 pages are the sequence's own, and the host has room for 8.
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaOffloadSequence(cache, sequences[0]),
          "20 host pages are needed, 8 are free: 12 are missing");
    // Part of the last steps: not to be offloaded for others.
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaOffloadLeastRecent(cache, 10, NULL), "10 pages are wanted, 4");
    vkmqaDestroyCache(cache);
}

// Two holders of a page that both write to it need one copy: the last one keeps the page.
static void lastHolderKeepsThePage(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    VkmqaSequence first = makeSequence(cache), rest = makeSequence(cache), second;
    grow(cache, first, PAGE / 2);
    REQUIRE(vkmqaForkSequence(cache, first, PAGE / 2, &second));
    grow(cache, rest, (PAGES - 2) * PAGE);
    assert_int_equal(stateOf(cache).freePages, 1);
    const VkmqaSequenceTokens tokens[] = {{first, 1, NULL, NULL}, {second, 1, NULL, NULL}};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 2, .tokens = tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    buildStep(cache, &build, &step);
    assert_int_equal(stateOf(cache).freePages, 0);
    assert_int_equal(stateOf(cache).sharedPages, 0);
    vkmqaDestroyCache(cache);
}

// ---- Sharing ---------------------------------------------------------------------------------------

enum { CONVERSATIONS = 1000, PROMPT = 2000 };

static void conversationsShareTheirPrompt(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = {.structSize = sizeof(info), .attention = attention, .numLayers = 1,
                                       .numPages = PROMPT / PAGE + 3 * CONVERSATIONS,
                                       .maxSequences = 2 * CONVERSATIONS + 2, .maxNewTokens = 4096,
                                       .maxSeqLenKv = 4096, .device = harness.device};
    VkmqaCache cache = makeCache(&info);
    uint32_t ids[PROMPT + 1];
    for (uint32_t i = 0; i <= PROMPT; i++)
        ids[i] = i * i;
    VkmqaSequence first = makeSequence(cache);
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkmqaSequenceTokens tokens = {first, PROMPT, ids, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    buildStep(cache, &build, &step);
    const uint32_t promptPages = PROMPT / PAGE;
    assert_int_equal(stateOf(cache).usedPages, promptPages);
    for (uint32_t i = 0; i < CONVERSATIONS; i++) { // by their tokens, and by forks
        const VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = PROMPT + 1,
                                                .tokenIds = ids};
        uint32_t reused;
        REQUIRE(vkmqaCreateSequence(cache, &create, &tokens.sequence, &reused));
        assert_int_equal(reused, PROMPT);
        tokens.newTokens = 1;
        tokens.tokenIds = ids + PROMPT;
        buildStep(cache, &build, &step);
        VkmqaSequence fork;
        REQUIRE(vkmqaForkSequence(cache, tokens.sequence, PROMPT, &fork));
    }
    VkmqaCacheState shared = stateOf(cache);
    assert_int_equal(shared.usedPages, promptPages + CONVERSATIONS); // and one of each conversation's own
    assert_int_equal(shared.sharedPages, promptPages);
    // Another salt, or another token, shares nothing of it.
    VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = PROMPT, .tokenIds = ids,
                                      .salt = 1};
    uint32_t reused;
    REQUIRE(vkmqaCreateSequence(cache, &create, &tokens.sequence, &reused));
    assert_int_equal(reused, 0);
    REQUIRE(vkmqaDestroySequence(cache, tokens.sequence));
    create.salt = 0;
    ids[5 * PAGE + 3]++;
    REQUIRE(vkmqaCreateSequence(cache, &create, &tokens.sequence, &reused));
    assert_int_equal(reused, 5 * PAGE);
    vkmqaDestroyCache(cache);
}

// Pages that nobody holds are found again until they are needed, the oldest and the last of a prompt first.
static void prefixesOutliveTheirSequences(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    uint32_t ids[8 * PAGE];
    for (uint32_t i = 0; i < COUNT(ids); i++)
        ids[i] = 7 * i;
    VkmqaSequence sequence = makeSequence(cache), other = makeSequence(cache);
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    for (uint32_t i = 0; i < 2; i++) {
        const VkmqaSequenceTokens tokens = {sequence, 4 * PAGE, ids + i * 4 * PAGE, NULL};
        const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
        buildStep(cache, &build, &step);
    }
    REQUIRE(vkmqaDestroySequence(cache, sequence));
    assert_int_equal(stateOf(cache).freePages, PAGES);
    assert_int_equal(stateOf(cache).reusablePages, 8);
    grow(cache, other, (PAGES - 8 + 3) * PAGE); // the free ones, and three that could be found
    const VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = COUNT(ids),
                                            .tokenIds = ids};
    uint32_t reused;
    REQUIRE(vkmqaCreateSequence(cache, &create, &sequence, &reused));
    assert_int_equal(reused, 5 * PAGE);
    assert_int_equal(stateOf(cache).freePages, 0);
    vkmqaDestroyCache(cache);
}

static uint32_t reusedTokens(VkmqaCache cache, const uint32_t* ids, uint32_t count) {
    const VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = count, .tokenIds = ids};
    VkmqaSequence sequence;
    uint32_t reused;
    REQUIRE(vkmqaCreateSequence(cache, &create, &sequence, &reused));
    REQUIRE(vkmqaDestroySequence(cache, sequence));
    return reused;
}

// All pages in one bucket: what is found is found by its ids and by what stands before it.
static void hashesProveNothing(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    cache->bucketCount = 1;
    enum { FIRST, SECOND, OTHER }; // pages by what they hold
    uint32_t ids[3][PAGE], prompt[2 * PAGE];
    for (uint32_t i = 0; i < PAGE; i++)
        for (uint32_t page = FIRST; page <= OTHER; page++)
            ids[page][i] = 10 * i + (i == PAGE - 1 ? page : 0);
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    const uint32_t begun[][2] = {{FIRST, 1}, {SECOND, 1}, {OTHER, 0}}; // and the sequence it goes to
    VkmqaSequence sequences[2] = {makeSequence(cache), makeSequence(cache)};
    for (size_t i = 0; i < COUNT(begun); i++) { // [first, second] and [other]
        const VkmqaSequenceTokens tokens = {sequences[begun[i][1]], PAGE, ids[begun[i][0]], NULL};
        const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
        buildStep(cache, &build, &step);
    }
    const uint32_t expected[3][3] = {{1, 2, 1}, {0, 0, 0}, {1, 1, 1}}; // pages
    for (uint32_t i = 0; i < 9; i++) {
        memcpy(prompt, ids[i / 3], sizeof ids[0]);
        memcpy(prompt + PAGE, ids[i % 3], sizeof ids[0]);
        uint32_t reused = reusedTokens(cache, prompt, COUNT(prompt));
        if (reused != expected[i / 3][i % 3] * PAGE)
            fail_msg("%u tokens of the prompt of pages %u and %u are found", reused, i / 3, i % 3);
    }
    vkmqaDestroyCache(cache);
}

// Steps that are built and not recorded: nothing that misses them goes on, and what they never wrote is no prefix.
static void unrecordedStepsCount(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info), other = makeCache(&info);
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
    uint32_t ids[4 * PAGE];
    for (uint32_t i = 0; i < COUNT(ids); i++)
        ids[i] = 5 * i;
    VkmqaSequence sequence = makeSequence(cache);
    VkmqaCacheStep steps[5];
    for (uint32_t i = 0; i < COUNT(steps); i++) {
        const VkmqaSequenceTokens tokens = {sequence, PAGE, ids + (i < 4 ? i : 0) * PAGE, NULL};
        const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
        steps[i] = (VkmqaCacheStep){.structSize = sizeof(steps[i])};
        if (i == 4)
            REQUIRE(vkmqaTruncateSequence(cache, sequence, 0));
        REQUIRE(vkmqaBuildStep(cache, &build, &steps[i]));
        assert_int_equal(steps[i].number, i + 1);
        if (i == 1)
            REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[0]));
        if (i == 3)
            break; // three wait: numbers 2, 3 and 4
    }
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    const VkmqaShiftInfo shift = {.structSize = sizeof(shift), .sequence = sequence, .drop = 1};
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .path = "/tmp/never-written"};
    uint32_t count = 1;
    VkmqaSequence loaded;
    REJECTS(vkmqaOffloadSequence(cache, sequence), "3 steps have been built and not recorded");
    REJECTS(vkmqaCmdShiftSequence(cache, commandBuffer, &shift), "not recorded");
    REJECTS(vkmqaSaveSequences(cache, 1, &sequence, &snapshot), "not recorded");
    REJECTS(vkmqaLoadSequences(cache, &snapshot, &count, &loaded), "not recorded");
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[0]), "number is 1: it has been recorded");
    REJECTS(vkmqaCmdUpdateCache(other, commandBuffer, &steps[1]), "none of this cache's");
    VkmqaCacheStep wrong = steps[1];
    wrong.step.limits.batch = 5;
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &wrong), "none of this cache's");
    // A later step overtakes: the second page was never written, and what stands behind it is lost with it.
    REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[2]));
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[1]), "overtaken");
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    REQUIRE(vkmqaDiscardSteps(cache));
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    REQUIRE(vkmqaOffloadSequence(cache, sequence));
    REQUIRE(vkmqaFinishTransfers(cache, UINT64_MAX));
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), 0);
    REQUIRE(vkmqaRestoreSequence(cache, sequence));
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    // Its sequence gone, a page that was discarded is free, and not for whoever has its ids.
    REQUIRE(vkmqaTruncateSequence(cache, sequence, 0));
    const VkmqaSequenceTokens tokens = {sequence, 2 * PAGE, ids + 2 * PAGE, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    REQUIRE(vkmqaBuildStep(cache, &build, &steps[1]));
    REQUIRE(vkmqaDestroySequence(cache, sequence));
    uint32_t reusable = stateOf(cache).reusablePages;
    assert_int_equal(reusedTokens(cache, ids + 2 * PAGE, 2 * PAGE), 0);
    REQUIRE(vkmqaDiscardSteps(cache));
    assert_int_equal(stateOf(cache).reusablePages, reusable - 2);
    assert_int_equal(reusedTokens(cache, ids + 2 * PAGE, 2 * PAGE), 0);
    vkmqaDestroyCommands(commands);
    vkmqaDestroyCache(other);
    vkmqaDestroyCache(cache);
}

// Two steps are built before the first is recorded: a page copy for the last waits for the one before.
static void copiesComeBehindEarlierSteps(void** state) {
    (void)state;
    VkmqaCacheCreateInfo info = goodInfo();
    info.flags = VKMQA_CACHE_CLEAR_FREED_BIT; // of the first step's page
    VkmqaCache cache = makeCache(&info);
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
    VkmqaSequence first = makeSequence(cache), fork;
    VkmqaSequenceTokens tokens = {first, PAGE / 2, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep steps[2] = {{.structSize = sizeof(steps[0])}, {.structSize = sizeof(steps[1])}};
    REQUIRE(vkmqaBuildStep(cache, &build, &steps[0]));
    REQUIRE(vkmqaForkSequence(cache, first, PAGE / 2, &fork));
    tokens = (VkmqaSequenceTokens){fork, 1, NULL, NULL};
    REQUIRE(vkmqaReserveTokens(cache, 1, &tokens)); // the copy, and nothing is left for the build to take
    uint32_t used = stateOf(cache).usedPages;
    assert_int_equal(used, 2);
    REQUIRE(vkmqaBuildStep(cache, &build, &steps[1]));
    assert_int_equal(stateOf(cache).usedPages, used);
    assert_int_equal(cache->commandCount, 2);
    REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, NULL));
    assert_int_equal(cache->commandCount, 1);
    REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[0]));
    assert_int_equal(cache->commandCount, 1);
    REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[1]));
    assert_int_equal(cache->commandCount, 0);
    vkmqaDestroyCommands(commands);
    vkmqaDestroyCache(cache);
}

// Tokens at other positions than their places are no prefix; nor does what follows them become one.
static void draftsAreNoPrefix(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    uint32_t ids[3 * PAGE];
    int32_t positions[COUNT(ids)];
    for (uint32_t i = 0; i < COUNT(ids); i++) {
        ids[i] = 11 * i;
        positions[i] = (int32_t)i - (i > PAGE + 3);
    }
    VkmqaSequence sequence = makeSequence(cache);
    VkmqaSequenceTokens tokens = {sequence, PAGE + 2, ids, positions};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    buildStep(cache, &build, &step);
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    tokens = (VkmqaSequenceTokens){sequence, 8, ids + PAGE + 2, positions + PAGE + 2};
    buildStep(cache, &build, &step); // drafts
    REQUIRE(vkmqaTruncateSequence(cache, sequence, PAGE + 4));
    tokens = (VkmqaSequenceTokens){sequence, PAGE - 4, ids + PAGE + 4, NULL};
    buildStep(cache, &build, &step);
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    vkmqaDestroyCache(cache);
}

// Least recent is who was last made, used or restored before all others; those too large for the host are passed
// over.
static void leastRecentGoesFirst(void** state) {
    (void)state;
    VkmqaCacheCreateInfo info = goodInfo(); // 8 host pages
    info.maxSequences = 6;
    VkmqaCache cache = makeCache(&info);
    VkmqaSequence large = makeSequence(cache), old = makeSequence(cache), idle = makeSequence(cache);
    VkmqaSequence used = makeSequence(cache), fork;
    grow(cache, large, 9 * PAGE);
    grow(cache, old, 2 * PAGE);
    grow(cache, idle, 2 * PAGE);
    grow(cache, used, 2 * PAGE);
    for (uint32_t i = 0; i < 4; i++) { // all of the above leave the last steps
        grow(cache, used, 1);
        REQUIRE(vkmqaForkSequence(cache, used, 0, &fork));
        REQUIRE(vkmqaDestroySequence(cache, fork));
    }
    REQUIRE(vkmqaOffloadSequence(cache, old));
    REQUIRE(vkmqaFinishTransfers(cache, UINT64_MAX));
    REQUIRE(vkmqaRestoreSequence(cache, old));
    REQUIRE(vkmqaFinishTransfers(cache, UINT64_MAX));
    VkmqaSequence newest = makeSequence(cache);
    grow(cache, newest, PAGE);
    uint32_t started, available = stateOf(cache).freePages;
    REQUIRE(vkmqaOffloadLeastRecent(cache, available + 2, &started));
    assert_int_equal(started, 2);
    VkmqaSequenceState is = {.structSize = sizeof(is)};
    REQUIRE(vkmqaGetSequenceState(cache, idle, &is));
    assert_int_equal(is.offloadedPages, 2);
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaOffloadLeastRecent(cache, available + 5, &started), "4 free host");
    assert_int_equal(started, 2); // not `large`, and `used` and `newest` are part of the last steps
    REQUIRE(vkmqaGetSequenceState(cache, old, &is));
    assert_int_equal(is.offloadedPages, 2);
    REQUIRE(vkmqaFinishTransfers(cache, UINT64_MAX));
    vkmqaDestroyCache(cache);
}

// What has been turned to other positions, or follows after a gap, stands for no prompt any more.
static void shiftedPagesAreNoPrefix(void** state) {
    (void)state;
    VkmqaAttention still; // without rotary embedding a shift of whole pages changes no row
    const VkmqaAttentionCreateInfo plain = {.structSize = sizeof(plain), .numHeadsQ = 2, .numHeadsKv = 1,
                                            .headDimQk = 32, .pageSize = PAGE, .maxSeqLenKv = 4096};
    REQUIRE(vkmqaCreateAttention(harness.context, &plain, &still));
    for (int turns = 0; turns < 2; turns++) {
        VkmqaCacheCreateInfo info = goodInfo();
        info.attention = turns ? attention : still;
        VkmqaCache cache = makeCache(&info);
        VkmqaSequence sequence = makeSequence(cache);
        uint32_t ids[4 * PAGE];
        for (uint32_t i = 0; i < COUNT(ids); i++)
            ids[i] = 3 * i;
        VkmqaSequenceTokens tokens = {sequence, 3 * PAGE, ids, NULL};
        const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        buildStep(cache, &build, &step);
        assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), 3 * PAGE);

        VkmqaMemory parameters;
        REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 4096, &parameters));
        const VkmqaBuffer range = vkmqaGetMemoryRange(parameters, 0, 0), both[LAYERS] = {range, range};
        VkmqaCommands commands;
        REQUIRE(vkmqaCreateCommands(harness.device, &commands));
        REQUIRE(vkmqaBeginCommands(commands));
        const VkmqaShiftInfo shift = {.structSize = sizeof(shift),
                                      .recorder = vkmqaGetCommandsRecorder(commands),
                                      .sequence = sequence,
                                      .keep = PAGE,
                                      .drop = PAGE,
                                      .parameters = both};
        REQUIRE(vkmqaCmdShiftSequence(cache, vkmqaGetCommandBuffer(commands), &shift));
        // The page that was dropped is whole; the one behind it has been turned.
        assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), (turns ? 2 : 3) * PAGE);
        tokens.newTokens = PAGE;
        tokens.tokenIds = ids + 3 * PAGE;
        buildStep(cache, &build, &step);
        assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), (turns ? 2 : 3) * PAGE);
        vkmqaDestroyCommands(commands);
        vkmqaDestroyMemory(parameters);
        vkmqaDestroyCache(cache);
    }
    vkmqaDestroyAttention(still);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(creationRejectsBadInput), cmocka_unit_test(budgetIsRespected),
    cmocka_unit_test(callsRejectBadInput),     cmocka_unit_test(fullCachesSayWhatIsMissing),
    cmocka_unit_test(lastHolderKeepsThePage),
    cmocka_unit_test(conversationsShareTheirPrompt), cmocka_unit_test(prefixesOutliveTheirSequences),
    cmocka_unit_test(hashesProveNothing),      cmocka_unit_test(shiftedPagesAreNoPrefix),
    cmocka_unit_test(unrecordedStepsCount),    cmocka_unit_test(copiesComeBehindEarlierSteps),
    cmocka_unit_test(draftsAreNoPrefix),       cmocka_unit_test(leastRecentGoesFirst),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, createAttention, destroyAttention);
    harnessClose();
    return failed != 0;
}

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

// Tokens without ids, in a step that nobody records.
static void grow(VkmqaCache cache, VkmqaSequence sequence, uint32_t count) {
    while (count) {
        const VkmqaSequenceTokens tokens = {sequence, count < 64 ? count : 64, NULL, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &tokens};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        REQUIRE(vkmqaBuildStep(cache, &info, &step));
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
    BUILD("totalQ would be 65");
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
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &step), "slot is 3");
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
    REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
    REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
        REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
        REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
        REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
        REQUIRE(vkmqaBuildStep(cache, &build, &step));
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
    cmocka_unit_test(shiftedPagesAreNoPrefix),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, createAttention, destroyAttention);
    harnessClose();
    return failed != 0;
}

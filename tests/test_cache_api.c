// The cache layer's calls with bad input: an error code, a message that names field and value, nothing changed.
#include "cache_fixture.h"

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
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, structSize, 8, NULL);
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, attention, NULL, NULL);
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, attention, (VkmqaAttention)harness.context, NULL);
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, numLayers, 0, "numLayers is 0");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, numLayers, 5000, "numLayers is 5000");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, numPages, 0, "numPages is 0");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, numPages, UINT32_MAX, "numPages is 4294967295");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, maxBatch, 5, "maxBatch is 5");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, maxNewTokens, 3, "maxNewTokens is 3");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, maxSeqLenKv, 4097, "maxSeqLenKv is 4097");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, stepsInFlight, 65, "stepsInFlight is 65");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, flags, 0x80, "flags is 0x80");
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, device, NULL, "hostPages is 8");
    info = goodInfo();
    REJECTS(vkmqaCreateCache(&info, NULL), "cache is null");
    assert_int_equal(vkmqaCreateCache(NULL, &cache), VK_ERROR_VALIDATION_FAILED_EXT);
    VkmqaCacheRequirements needed = {.structSize = 4};
    REJECTS(vkmqaGetCacheRequirements(&info, &needed), "requirements");

    VkmqaAttention contiguous;
    const VkmqaAttentionCreateInfo plain = {.structSize = sizeof(plain), .numHeadsQ = 2, .numHeadsKv = 1,
                                            .headDimQk = 32, .maxSeqLenKv = 64};
    REQUIRE(vkmqaCreateAttention(harness.context, &plain, &contiguous));
    SPOILED(VK_ERROR_VALIDATION_FAILED_EXT, attention, contiguous, "pageSize 0");
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
    layers[1].v.offset = 0;
    layers[1].v.address = 8;
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

    assert_int_equal(vkmqaCreateSequence(NULL, NULL, &fork, NULL), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_int_equal(vkmqaDestroySequence((VkmqaCache)attention, a), VK_ERROR_VALIDATION_FAILED_EXT);
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
    VkmqaSequenceCreateInfo begin = {.structSize = 3};
    REJECTS(vkmqaCreateSequence(cache, &begin, &fork, NULL), "structSize");
    begin = (VkmqaSequenceCreateInfo){.structSize = sizeof(begin), .tokenCount = 3};
    REJECTS(vkmqaCreateSequence(cache, &begin, &fork, NULL), "tokenIds is null");
    VkmqaCacheState cacheState = {.structSize = 4};
    REJECTS(vkmqaGetCacheState(cache, &cacheState), "structSize");
    VkmqaSequenceState sequenceState = {.structSize = 4};
    REJECTS(vkmqaGetSequenceState(cache, a, &sequenceState), "structSize");

    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkmqaSequenceTokens tokens[] = {{a, 1, NULL, NULL}, {b, 1, NULL, NULL}};
    VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 2, .tokens = tokens};
#define BUILD(word) REJECTS(vkmqaBuildStep(cache, &build, &step), word)
    build.count = 0;
    BUILD("count is 0");
    build.count = 5;
    BUILD("info.count is 5; the cache was created for a maxBatch of 4");
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
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .path = "/tmp/never-written"};
    REJECTS(vkmqaSaveSequences(cache, 0, &a, &snapshot), "count is 0");
    REJECTS(vkmqaSaveSequences(cache, 1, NULL, &snapshot), "sequences is null");
    REJECTS(vkmqaSaveSequences(cache, 1, &foreign, &snapshot), "none of this cache");

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
    REJECTS(vkmqaCmdShiftSequence(cache, VK_NULL_HANDLE, &shift), "commandBuffer is null");
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
          "6 pages are needed, 4 are free, 2 missing");
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
    // A device stays open under its caches, whoever allocated their buffers.
    harness.message[0] = 0;
    vkmqaCloseDevice(harness.device);
    assert_non_null(strstr(harness.message, "1 caches"));
    // Part of the last steps: not to be offloaded for others.
    FAILS(VK_ERROR_OUT_OF_POOL_MEMORY, vkmqaOffloadLeastRecent(cache, 10, NULL), "10 pages are wanted, 4");
    vkmqaDestroyCache(cache);
}

// Nothing is dropped, nothing is done: shared pages stay shared, and prefixes are found.
static void shiftsByNothingDoNothing(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    uint32_t ids[3 * PAGE];
    for (uint32_t i = 0; i < COUNT(ids); i++)
        ids[i] = 100 + i;
    VkmqaSequence first = makeSequence(cache), second;
    const VkmqaSequenceTokens tokens = {first, COUNT(ids), ids, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    buildStep(cache, &build, &step);
    REQUIRE(vkmqaForkSequence(cache, first, COUNT(ids), &second));
    const VkmqaCacheState before = stateOf(cache);
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    for (uint32_t keep = 0; keep <= COUNT(ids); keep += PAGE / 2) {
        const VkmqaShiftInfo shift = {.structSize = sizeof(shift), .recorder = vkmqaGetCommandsRecorder(commands),
                                      .sequence = second, .keep = keep};
        REQUIRE(vkmqaCmdShiftSequence(cache, vkmqaGetCommandBuffer(commands), &shift));
    }
    const VkmqaCacheState after = stateOf(cache);
    assert_memory_equal(&before, &after, sizeof(before));
    // The end dropped, no row moves; what was due before is recorded all the same.
    VkmqaSequence third;
    REQUIRE(vkmqaForkSequence(cache, first, PAGE + 3, &third));
    grow(cache, third, 1); // copies the page
    assert_int_equal(cache->commandCount, 1);
    const VkmqaShiftInfo end = {.structSize = sizeof(end), .recorder = vkmqaGetCommandsRecorder(commands),
                                .sequence = third, .keep = 2, .drop = PAGE + 2};
    REQUIRE(vkmqaCmdShiftSequence(cache, vkmqaGetCommandBuffer(commands), &end));
    assert_int_equal(cache->commandCount, 0);
    REQUIRE(vkmqaDestroySequence(cache, third));
    REQUIRE(vkmqaDestroySequence(cache, first));
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), 3 * PAGE);
    grow(cache, second, 2 * PAGE);
    REQUIRE(vkmqaDestroySequence(cache, second));
    vkmqaDestroyCommands(commands);
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
    wrong = steps[1];
    wrong.mapped = &wrong;
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &wrong), "none of this cache's");
    wrong = steps[1];
    wrong.slot = 1000;
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &wrong), "none of this cache's");
    wrong = steps[1];
    wrong.number = 1000;
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &wrong), "none of this cache's");
    // A later step overtakes: the second page was never written, and what stands behind it is lost with it.
    REQUIRE(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[2]));
    REJECTS(vkmqaCmdUpdateCache(cache, commandBuffer, &steps[1]), "overtaken");
    assert_int_equal(reusedTokens(cache, ids, COUNT(ids)), PAGE);
    const uint32_t held = stateOf(cache).usedPages, rest = stateOf(cache).freePages;
    REQUIRE(vkmqaDiscardSteps(cache));
    assert_int_equal(stateOf(cache).usedPages, held);
    assert_int_equal(stateOf(cache).freePages, rest);
    const struct VkmqaSequenceRecord* record = &cache->sequences[(uint32_t)sequence - 1];
    for (uint32_t i = 0; i < record->pageCount; i++) // what was never written is still the sequence's
        assert_int_equal(cache->pages[record->pages[i]].state, VKMQA_PAGE_USED);
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

// ---- Snapshots -------------------------------------------------------------------------------------

typedef struct Progress {
    uint32_t calls;
    uint64_t done, total, written;
} Progress;

static VkBool32 countProgress(void* user, uint64_t done, uint64_t total) {
    Progress* progress = user;
    progress->calls++;
    assert_true(done > progress->done && done <= total && done - progress->done < 9 << 20);
    progress->done = done;
    progress->total = total;
    return VK_TRUE;
}

static VkBool32 countBytes(void* user, const void* data, size_t size) {
    (void)data;
    ((Progress*)user)->written += size;
    return VK_TRUE;
}

// Every few megabytes, and at the end.
static void savesTellTheirProgress(void** state) {
    (void)state;
    VkmqaCacheCreateInfo info = goodInfo();
    info.numPages = 4 * 256 + 1;
    info.maxNewTokens = 4096;
    VkmqaCache cache = makeCache(&info);
    VkmqaSequence sequences[4];
    for (uint32_t i = 0; i < COUNT(sequences); i++) {
        sequences[i] = makeSequence(cache);
        grow(cache, sequences[i], 4096);
    }
    Progress progress = {0};
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .write = countBytes,
                                        .progress = countProgress, .userData = &progress};
    REQUIRE(vkmqaSaveSequences(cache, COUNT(sequences), sequences, &snapshot));
    assert_true(progress.written >= 8 << 20); // 4 x 256 pages of 8 KiB
    assert_true(progress.calls >= 2);
    assert_true(progress.done == progress.total);
    vkmqaDestroyCache(cache);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(creationRejectsBadInput), cmocka_unit_test(budgetIsRespected),
    cmocka_unit_test(callsRejectBadInput),     cmocka_unit_test(fullCachesSayWhatIsMissing),
    cmocka_unit_test(shiftsByNothingDoNothing),
    cmocka_unit_test(lastHolderKeepsThePage),  cmocka_unit_test(unrecordedStepsCount),
    cmocka_unit_test(copiesComeBehindEarlierSteps), cmocka_unit_test(leastRecentGoesFirst),
    cmocka_unit_test(savesTellTheirProgress),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, createAttention, destroyAttention);
    harnessClose();
    return failed != 0;
}

// What the cache layer's pages promise: a thousand conversations hold their common prompt once, and a prompt finds what
// holds its tokens, and nothing else.
#include "cache_fixture.h"

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

// A page of which some tokens came without ids is no prefix, whatever ids its place in memory held.
static void tokensWithoutIdsAreNoPrefix(void** state) {
    (void)state;
    const VkmqaCacheCreateInfo info = goodInfo();
    VkmqaCache cache = makeCache(&info);
    const uint32_t ids[PAGE] = {0}; // as in memory that nobody has used
    VkmqaSequence sequence = makeSequence(cache);
    grow(cache, sequence, PAGE / 2);
    const VkmqaSequenceTokens tokens = {sequence, PAGE / 2, ids, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    buildStep(cache, &build, &step);
    assert_int_equal(reusedTokens(cache, ids, PAGE), 0);
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
    cmocka_unit_test(conversationsShareTheirPrompt), cmocka_unit_test(prefixesOutliveTheirSequences),
    cmocka_unit_test(hashesProveNothing),            cmocka_unit_test(draftsAreNoPrefix),
    cmocka_unit_test(tokensWithoutIdsAreNoPrefix),   cmocka_unit_test(shiftedPagesAreNoPrefix),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, createAttention, destroyAttention);
    harnessClose();
    return failed != 0;
}

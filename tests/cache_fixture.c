#include "cache_fixture.h"

VkmqaAttention attention;

int createAttention(void** state) {
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
int destroyAttention(void** state) {
    (void)state;
    vkmqaDestroyAttention(attention);
    return 0;
}

VkmqaCacheCreateInfo goodInfo(void) {
    return (VkmqaCacheCreateInfo){.structSize = sizeof(VkmqaCacheCreateInfo),
                                  .attention = attention,
                                  .numLayers = LAYERS,
                                  .numPages = PAGES,
                                  .maxSequences = 4,
                                  .maxNewTokens = 64,
                                  .hostPages = 8,
                                  .device = harness.device};
}

VkmqaCache makeCache(const VkmqaCacheCreateInfo* info) {
    VkmqaCache cache;
    REQUIRE(vkmqaCreateCache(info, &cache));
    return cache;
}

VkmqaSequence makeSequence(VkmqaCache cache) {
    VkmqaSequence sequence;
    REQUIRE(vkmqaCreateSequence(cache, NULL, &sequence, NULL));
    return sequence;
}

void buildStep(VkmqaCache cache, const VkmqaStepBuildInfo* info, VkmqaCacheStep* step) {
    REQUIRE(vkmqaBuildStep(cache, info, step));
    cache->recordedSteps = cache->stepCount;
}

void grow(VkmqaCache cache, VkmqaSequence sequence, uint32_t count) {
    while (count) {
        const VkmqaSequenceTokens tokens = {sequence, count < 64 ? count : 64, NULL, NULL};
        const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = 1, .tokens = &tokens};
        VkmqaCacheStep step = {.structSize = sizeof(step)};
        buildStep(cache, &info, &step);
        count -= tokens.newTokens;
    }
}

VkmqaCacheState stateOf(VkmqaCache cache) {
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(cache, &state));
    return state;
}

uint32_t reusedTokens(VkmqaCache cache, const uint32_t* ids, uint32_t count) {
    const VkmqaSequenceCreateInfo create = {.structSize = sizeof(create), .tokenCount = count, .tokenIds = ids};
    VkmqaSequence sequence;
    uint32_t reused;
    REQUIRE(vkmqaCreateSequence(cache, &create, &sequence, &reused));
    REQUIRE(vkmqaDestroySequence(cache, sequence));
    return reused;
}

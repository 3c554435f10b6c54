// The cache layer's bookkeeping: the first byte says which cache, every other one begins a call. After each call all
// pages are counted by hand.
#include "fuzz.h"

#include "cache/cache.h"
#include "mock.h"

enum { PAGES = 12, SEQUENCES = 4, IDS = 6, MAX_CALLS = 40, MAX_TOKENS = 48 };

static const VkCommandBuffer commandBuffer = (VkCommandBuffer)(void*)&commandBuffer;
static VkmqaDevice device;
static VkmqaAttention attentions[4];

static void openDevice(void) {
    const VkmqaDeviceOpenInfo open = {
        .structSize = sizeof(open), .skipVerification = VK_TRUE, .messageCallback = fuzzMessage};
    REQUIRE(vkmqaOpenDevice(&open, &device) == VK_SUCCESS, "no device");
    for (uint32_t i = 0; i < 4; i++) {
        const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                               .numHeadsQ = 2,
                                               .numHeadsKv = 1,
                                               .headDimQk = 8,
                                               .kType = i & 1 ? VKMQA_TYPE_Q8_0 : VKMQA_TYPE_F16,
                                               .ropeStyle = i & 2 ? VKMQA_ROPE_NEOX : VKMQA_ROPE_NONE,
                                               .pageSize = i & 1 ? 4 : 1};
        REQUIRE(vkmqaCreateAttention(vkmqaGetDeviceContext(device), &info, &attentions[i]) == VK_SUCCESS, "%u", i);
    }
}

// Ids live on in the list when their sequences are gone.
typedef struct Calls {
    VkmqaCache cache;
    VkmqaSequence ids[IDS];
    VkmqaCacheStep step; // the last one built
} Calls;

static void checkPages(VkmqaCache cache) {
    uint32_t refs[PAGES] = {0}, used = 0, shared = 0, alive = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const struct VkmqaSequenceRecord* record = &cache->sequences[i];
        if (!record->alive)
            continue;
        alive++;
        REQUIRE(record->pageCount >= vkmqa_pages_of(cache, record->length), "%u pages of %u tokens",
                record->pageCount, record->length);
        for (uint32_t p = 0; p < record->pageCount; p++)
            if (!(record->pages[p] & VKMQA_HOST_PAGE)) {
                REQUIRE(record->pages[p] < PAGES, "page %u", record->pages[p]);
                refs[record->pages[p]]++;
            }
    }
    for (uint32_t i = 0; i < PAGES; i++) {
        used += refs[i] > 0;
        shared += refs[i] > 1;
    }
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(cache, &state) == VK_SUCCESS, "no state");
    REQUIRE(state.sequences == alive && state.usedPages == used && state.sharedPages == shared,
            "%u sequences, %u pages in use, %u shared; there are %u, %u, %u", state.sequences, state.usedPages,
            state.sharedPages, alive, used, shared);
    REQUIRE(state.freePages + state.usedPages + state.pagesInTransfer == PAGES, "%u free, %u in use, %u in transfer",
            state.freePages, state.usedPages, state.pagesInTransfer);
}

// What the kernels will be told: row b names the pages of sequence b alone, slots lie in pages that nobody shares.
static void checkStep(VkmqaCache cache, const VkmqaCacheStep* step, uint32_t count, const VkmqaSequenceTokens* tokens) {
    const VkmqaStepLayout* layout = &step->step.layout;
    const VkmqaStepLimits* limits = &step->step.limits;
    const int32_t* words = step->mapped;
    const int32_t *cu = words + layout->cuSeqlensQ / 4, *lengths = words + layout->seqLensKv / 4;
    REQUIRE(cu[0] == 0, "cuSeqlensQ begins with %d", cu[0]);
    for (uint32_t b = 0; b < limits->batch; b++) {
        REQUIRE(cu[b + 1] >= cu[b] && (uint32_t)cu[b + 1] <= limits->totalQ, "cuSeqlensQ[%u] is %d", b + 1, cu[b + 1]);
        REQUIRE(lengths[b] >= 0 && (uint32_t)lengths[b] <= limits->maxSeqLenKv, "seqLensKv[%u] is %d", b, lengths[b]);
        const struct VkmqaSequenceRecord* record = b < count ? vkmqa_find_sequence(cache, "", tokens[b].sequence) : NULL;
        REQUIRE((uint32_t)lengths[b] == (record ? record->length : 0), "seqLensKv[%u] is %d", b, lengths[b]);
        for (uint32_t p = 0; p < vkmqa_pages_of(cache, (uint32_t)lengths[b]); p++) {
            int32_t page = words[layout->pageTable / 4 + b * layout->maxPages + p];
            REQUIRE(page >= 0 && page < PAGES && (uint32_t)page == record->pages[p], "entry %u of %u is page %d", p, b,
                    page);
        }
    }
    for (uint32_t i = 0; i < limits->newTokens; i++) {
        int32_t slot = words[layout->slotMapping / 4 + i];
        REQUIRE(slot >= -1 && slot < (int32_t)(PAGES * cache->pageTokens), "slot %d", slot);
        REQUIRE(slot < 0 || cache->pages[(uint32_t)slot / cache->pageTokens].refs == 1, "a slot of a shared page");
    }
}

static VkResult build(Input* input, Calls* calls, bool reserve) {
    static uint32_t ids[MAX_TOKENS];
    static int32_t positions[MAX_TOKENS];
    VkmqaSequenceTokens tokens[SEQUENCES];
    uint8_t how = takeByte(input);
    uint32_t count = how % (SEQUENCES + 1);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        ids[i] = i + (how >> 6);
        positions[i] = (int32_t)(i / 2);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t which = takeByte(input), number = takeByte(input);
        tokens[i] = (VkmqaSequenceTokens){calls->ids[which % IDS], number == 255 ? UINT32_MAX : number % MAX_TOKENS,
                                          which & 0x40 ? ids : NULL, which & 0x80 ? positions : NULL};
    }
    if (reserve)
        return vkmqaReserveTokens(calls->cache, count, tokens);
    VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = count, .tokens = tokens};
    if (how & 0x20)
        info.limits = (VkmqaStepLimits){takeByte(input), takeByte(input), takeByte(input), takeByte(input),
                                        takeByte(input)};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkResult result = vkmqaBuildStep(calls->cache, &info, &step);
    if (result == VK_SUCCESS) {
        checkStep(calls->cache, &step, count, tokens);
        calls->step = step;
    }
    return result;
}

static VkResult create(Input* input, Calls* calls, VkmqaSequence* id) {
    uint32_t ids[MAX_TOKENS], reused;
    uint8_t how = takeByte(input);
    for (uint32_t i = 0; i < MAX_TOKENS; i++)
        ids[i] = i + (how >> 6);
    const VkmqaSequenceCreateInfo info = {.structSize = sizeof(info), .tokenCount = how % MAX_TOKENS, .tokenIds = ids};
    VkResult result = vkmqaCreateSequence(calls->cache, &info, id, &reused);
    REQUIRE(result != VK_SUCCESS || (reused <= info.tokenCount && reused % calls->cache->pageTokens == 0),
            "%u tokens reused", reused);
    return result;
}

static VkResult shift(Input* input, Calls* calls, VkmqaSequence id) {
    const VkmqaBuffer parameters[2] = {{.buffer = calls->cache->localMemory.buffer, .size = 1 << 20},
                                       {.buffer = calls->cache->localMemory.buffer, .size = 1 << 20}};
    const VkmqaShiftInfo info = {.structSize = sizeof(info),
                                 .sequence = id,
                                 .keep = takeByte(input),
                                 .drop = takeByte(input),
                                 .parameters = parameters};
    return vkmqaCmdShiftSequence(calls->cache, commandBuffer, &info);
}

static VkResult call(Input* input, Calls* calls) {
    uint8_t what = takeByte(input);
    VkmqaCache cache = calls->cache;
    VkmqaSequence* id = &calls->ids[(what >> 4) % IDS];
    uint32_t started;
    switch (what & 15) {
    case 0:
        return create(input, calls, id);
    case 1:
        return vkmqaDestroySequence(cache, *id);
    case 2:
    case 3:
        return build(input, calls, false);
    case 4:
        return vkmqaCmdUpdateCache(cache, commandBuffer, takeByte(input) & 1 ? NULL : &calls->step);
    case 5:
        return vkmqaForkSequence(cache, *id, takeByte(input), &calls->ids[takeByte(input) % IDS]);
    case 6:
        return vkmqaTruncateSequence(cache, *id, takeByte(input));
    case 7:
        return build(input, calls, true);
    case 8:
        return shift(input, calls, *id);
    case 9:
        return vkmqaOffloadSequence(cache, *id);
    case 10:
        return vkmqaRestoreSequence(cache, *id);
    case 11:
        return vkmqaOffloadLeastRecent(cache, takeByte(input), &started);
    case 12:
        return vkmqaPinSequence(cache, *id, takeByte(input) & 1);
    case 13:
        return vkmqaFinishTransfers(cache, 0);
    case 14:
        return vkmqaDiscardSteps(cache);
    default: {
        VkmqaSequenceState state = {.structSize = sizeof(state)};
        return vkmqaGetSequenceState(cache, *id, &state);
    }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input = {data, size, 0};
    if (!device)
        openDevice();
    uint8_t how = takeByte(&input);
    const VkmqaCacheCreateInfo info = {.structSize = sizeof(info),
                                       .flags = how >> 2 & 3,
                                       .attention = attentions[how & 3],
                                       .numLayers = 2,
                                       .numPages = PAGES,
                                       .maxSequences = SEQUENCES,
                                       .maxNewTokens = MAX_TOKENS,
                                       .stepsInFlight = 1 + (how >> 4 & 1),
                                       .hostPages = how >> 5 & 7,
                                       .device = device};
    Calls calls = {.step = {.structSize = sizeof(VkmqaCacheStep)}};
    REQUIRE(vkmqaCreateCache(&info, &calls.cache) == VK_SUCCESS, "no cache");
    for (int i = 0; i < MAX_CALLS && inputLeft(&input); i++) {
        uint32_t errors = fuzzErrors;
        VkResult result = call(&input, &calls);
        REQUIRE(result >= 0 || fuzzErrors > errors, "result %d without a word", result);
        checkPages(calls.cache);
    }
    vkmqaDestroyCache(calls.cache);
    return 0;
}

// The random operations of a world (cache_world.h). Each does to the model what it does to the cache, and looks at both.
// SPDX-License-Identifier: MIT
#include "cache_world.h"

#include <stdlib.h>
#include <string.h>

#define CLEAR VKMQA_CACHE_CLEAR_FREED_BIT
#define LOCAL VKMQA_CACHE_DEVICE_METADATA_BIT
const Kind kinds[KINDS] = {
    {"f32, rope", ORACLE_F32, ORACLE_ROPE_NEOX, false, 4, 40, 0, VKMQA_TIER_AUTO, false},
    {"q8_0, rope, local metadata", ORACLE_Q8_0, ORACLE_ROPE_INTERLEAVED, false, 8, 24, LOCAL, VKMQA_TIER_AUTO, false},
    {"f16, cleared, pages of 1", ORACLE_F16, ORACLE_ROPE_NONE, false, 1, 128, CLEAR, VKMQA_TIER_AUTO, false},
    {"q4_0, rope, hadamard, cleared", ORACLE_Q4_0, ORACLE_ROPE_NEOX, true, 4, 40, CLEAR | LOCAL, VKMQA_TIER_AUTO, false},
    {"f16, rope, own buffers, portable", ORACLE_F16, ORACLE_ROPE_NEOX, false, 4, 40, LOCAL, VKMQA_TIER_PORTABLE, true},
};

// NaN in all pages that nobody holds, or will read from.
static void poisonFreePages(World* world) {
    VkmqaCache cache = world->cache;
    flush(world);
    uint32_t* nan = poisonedBytes(cache->planes[0].pageBytes);
    for (uint32_t p = cache->freePages.first; p != VKMQA_NO_PAGE; p = cache->pages[p].next)
        for (uint32_t i = 0; i < LAYERS * cache->planeCount; i++) {
            const struct VkmqaPlane* plane = &cache->planes[i % cache->planeCount];
            REQUIRE(vkmqaUpload(world->layers[i / cache->planeCount][plane->v],
                                plane->offset + p * plane->pageBytes, nan, plane->pageBytes));
        }
    free(nan);
}

static ModelSequence* pick(World* world, bool alive) {
    uint32_t first = randomBelow(&world->random, SEQUENCES);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        ModelSequence* sequence = &world->sequences[(first + i) % SEQUENCES];
        if (sequence->alive == alive)
            return sequence;
    }
    return NULL;
}

// Prompts of a few families that part late, so that new sequences find pages.
static uint32_t promptId(World* world, uint32_t position) {
    return 1000 + position * 16 + (position >= 18 ? randomBelow(&world->random, 2) : 0);
}

static void create(World* world) {
    ModelSequence* sequence = pick(world, false);
    if (!sequence)
        return;
    uint32_t ids[40], count = randomBelow(&world->random, COUNT(ids) + 1), reused;
    for (uint32_t i = 0; i < count; i++)
        ids[i] = promptId(world, i);
    const VkmqaSequenceCreateInfo info = {.structSize = sizeof(info), .tokenCount = count, .tokenIds = ids,
                                          .salt = randomBelow(&world->random, 2)};
    REQUIRE(vkmqaCreateSequence(world->cache, &info, &sequence->id, &reused));
    assert_true(reused <= count && reused % world->kind->pageSize == 0);
    sequence->alive = true;
    sequence->shifted = sequence->offloaded = sequence->pinned = false;
    sequence->pure = true;
    sequence->salt = info.salt;
    sequence->length = 0;
    for (uint32_t i = 0; i < reused; i++)
        modelAppend(world->kind, sequence, ids[i], keyOf(sequence, ids[i]));
    world->counts[CREATED]++;
    world->counts[REUSED] += reused > 0;
    if (reused)
        checkAllRows(world);
}

static void fork_(World* world) {
    ModelSequence *source = pick(world, true), *fork = pick(world, false);
    if (!source || !fork || source->offloaded)
        return;
    uint32_t length = randomBelow(&world->random, source->length + 1);
    VkmqaSequence id;
    REQUIRE(vkmqaForkSequence(world->cache, source->id, length, &id));
    Token* tokens = fork->tokens;
    memcpy(tokens, source->tokens, length * sizeof(Token));
    *fork = *source;
    fork->tokens = tokens;
    fork->id = id;
    fork->length = length;
    fork->shifted &= length > 0;
    fork->pinned = fork->pure = source->pure = false;
    world->counts[FORKED]++;
}

static void truncate_(World* world) {
    ModelSequence* sequence = pick(world, true);
    if (!sequence)
        return;
    uint32_t length = randomBelow(&world->random, sequence->length + 1);
    REQUIRE(vkmqaTruncateSequence(world->cache, sequence->id, length));
    sequence->length = length;
    sequence->shifted &= length > 0;
    sequence->pure = false;
    sequence->offloaded = recordOf(world, sequence)->offloaded > 0;
    world->counts[TRUNCATED]++;
}

static void destroy(World* world) {
    ModelSequence* sequence = pick(world, true);
    if (!sequence)
        return;
    REQUIRE(vkmqaDestroySequence(world->cache, sequence->id));
    assert_int_equal(vkmqaDestroySequence(world->cache, sequence->id), VK_ERROR_VALIDATION_FAILED_EXT);
    sequence->alive = false;
    world->counts[DESTROYED]++;
}

static void shift(World* world) {
    ModelSequence* sequence = pick(world, true);
    if (!sequence || sequence->offloaded)
        return;
    uint32_t keep = randomBelow(&world->random, sequence->length + 1);
    uint32_t drop = randomBelow(&world->random, sequence->length - keep + 1);
    if (randomBelow(&world->random, 2)) { // whole pages
        keep -= keep % world->kind->pageSize;
        drop -= drop % world->kind->pageSize;
    }
    VkmqaBuffer parameters[LAYERS];
    for (uint32_t l = 0; l < LAYERS; l++)
        parameters[l] = vkmqaGetMemoryRange(world->parameters, 0, 0);
    const VkmqaShiftInfo info = {.structSize = sizeof(info),
                                 .recorder = vkmqaGetCommandsRecorder(world->commands),
                                 .sequence = sequence->id,
                                 .keep = keep,
                                 .drop = drop,
                                 .parameters = parameters};
    REQUIRE(vkmqaBeginCommands(world->commands));
    VkResult result = vkmqaCmdShiftSequence(world->cache, vkmqaGetCommandBuffer(world->commands), &info);
    submit(world);
    if (result == VK_ERROR_OUT_OF_POOL_MEMORY)
        return;
    REQUIRE(result);
    sequence->shifted |= drop > 0 && sequence->length > keep + drop;
    sequence->pure = false;
    modelShift(world->kind, sequence, keep, drop);
    world->counts[SHIFTED]++;
    checkAllRows(world);
}

static void move(World* world) {
    ModelSequence* sequence = pick(world, true);
    if (!sequence || world->kind->ownBuffers)
        return;
    flush(world);
    VkResult result;
    if (randomBelow(&world->random, 6) == 0) {
        result = vkmqaOffloadLeastRecent(world->cache, randomBelow(&world->random, world->kind->pages), NULL);
    } else if (sequence->offloaded) {
        result = vkmqaRestoreSequence(world->cache, sequence->id);
        world->counts[RESTORED] += result == VK_SUCCESS;
    } else {
        result = vkmqaOffloadSequence(world->cache, sequence->id);
        world->counts[OFFLOADED] += result == VK_SUCCESS;
    }
    if (result != VK_ERROR_OUT_OF_POOL_MEMORY)
        REQUIRE(result);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        if (world->sequences[i].alive)
            world->sequences[i].offloaded = recordOf(world, &world->sequences[i])->offloaded > 0;
    if (!sequence->offloaded)
        checkRows(world, sequence);
}

// ---- Snapshots into memory ----

typedef struct Stream {
    uint8_t bytes[1 << 21];
    size_t size, read;
} Stream;

static VkBool32 streamWrite(void* user, const void* data, size_t size) {
    Stream* stream = user;
    if (size > sizeof(stream->bytes) - stream->size)
        return VK_FALSE;
    memcpy(stream->bytes + stream->size, data, size);
    stream->size += size;
    return VK_TRUE;
}

static VkBool32 streamRead(void* user, void* data, size_t size) {
    Stream* stream = user;
    if (size > stream->size - stream->read)
        return VK_FALSE;
    memcpy(data, stream->bytes + stream->read, size);
    stream->read += size;
    return VK_TRUE;
}

// Saves up to three sequences and loads them beside the old ones, shared pages shared again.
static void saveAndLoad(World* world) {
    static Stream stream;
    ModelSequence *from[3], *to[3];
    VkmqaSequence saved[3], loaded[3];
    uint32_t count = 0, room = 0, most = 1 + randomBelow(&world->random, 3);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        ModelSequence* sequence = &world->sequences[i];
        if (sequence->alive && count < most) {
            saved[count] = sequence->id;
            from[count++] = sequence;
        } else if (!sequence->alive && room < most) {
            to[room++] = sequence;
        }
    }
    if (world->kind->ownBuffers || count == 0 || room < count)
        return;
    flush(world);
    stream.size = stream.read = 0;
    const VkmqaSnapshotInfo info = {.structSize = sizeof(info), .write = streamWrite, .read = streamRead,
                                    .userData = &stream, .modelTag = world->kind->name};
    REQUIRE(vkmqaSaveSequences(world->cache, count, saved, &info));
    uint32_t got = count;
    VkResult result = vkmqaLoadSequences(world->cache, &info, &got, loaded);
    if (result == VK_ERROR_OUT_OF_POOL_MEMORY)
        return; // and checkBooks finds everything as it was
    REQUIRE(result);
    assert_int_equal(got, count);
    assert_int_equal(stream.read, stream.size);
    for (uint32_t i = 0; i < count; i++) {
        Token* tokens = to[i]->tokens;
        memcpy(tokens, from[i]->tokens, from[i]->length * sizeof(Token));
        *to[i] = *from[i];
        to[i]->tokens = tokens;
        to[i]->id = loaded[i];
        to[i]->offloaded = to[i]->pinned = to[i]->pure = false;
        checkRows(world, to[i]);
    }
    world->counts[SAVED]++;
}

void recordLayers(World* world, VkmqaCommands commands, const VkmqaCacheStep* step) {
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(commands);
    bool rotates = world->kind->rope != ORACLE_ROPE_NONE || world->kind->hadamard;
    for (uint32_t l = 0; l < LAYERS; l++) {
        VkDeviceSize at = l * LAYER_BYTES;
        VkmqaBuffer q = vkmqaGetMemoryRange(world->inputs, at, Q_BYTES);
        VkmqaBuffer rotated = vkmqaGetMemoryRange(world->inputs, at + Q_BYTES, Q_BYTES);
        VkmqaAppendInfo append = {.structSize = sizeof(append),
                                  .recorder = recorder,
                                  .step = &step->step,
                                  .kv = vkmqaGetCacheLayer(world->cache, l),
                                  .newK = vkmqaGetMemoryRange(world->inputs, at + 2 * Q_BYTES, KV_BYTES),
                                  .newV = vkmqaGetMemoryRange(world->inputs, at + 2 * Q_BYTES + KV_BYTES, KV_BYTES),
                                  .parameters = vkmqaGetMemoryRange(world->parameters, 0, 0)};
        if (rotates) {
            append.q = q;
            append.rotatedQ = rotated;
        }
        REQUIRE(vkmqaCmdAppendKv(world->attention, commandBuffer, &append));
        const VkmqaAttentionInfo attend = {.structSize = sizeof(attend),
                                           .recorder = recorder,
                                           .step = &step->step,
                                           .kv = append.kv,
                                           .q = rotates ? rotated : q,
                                           .out = vkmqaGetMemoryRange(world->out, l * Q_BYTES, Q_BYTES),
                                           .scratch = vkmqaGetMemoryRange(world->scratch, 0, 0),
                                           .parameters = append.parameters};
        REQUIRE(vkmqaCmdAttention(world->attention, commandBuffer, &attend));
    }
}

static void append(World* world) {
    VkmqaSequenceTokens tokens[SEQUENCES];
    uint32_t ids[MOST_NEW], who[SEQUENCES], count = 0, total = 0;
    uint32_t first = randomBelow(&world->random, SEQUENCES);
    bool known = randomBelow(&world->random, 4) > 0;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        ModelSequence* sequence = &world->sequences[(first + i) % SEQUENCES];
        uint32_t fresh = randomBelow(&world->random, 3) ? 1 : 1 + randomBelow(&world->random, 10);
        if (!sequence->alive || sequence->offloaded || randomBelow(&world->random, 2) ||
            total + fresh > MOST_NEW || sequence->length + fresh > world->cache->maxSeqLenKv)
            continue;
        for (uint32_t t = 0; t < fresh; t++)
            ids[total + t] = promptId(world, sequence->length + t);
        tokens[count] = (VkmqaSequenceTokens){sequence->id, fresh, known ? ids + total : NULL, NULL};
        who[count++] = (first + i) % SEQUENCES;
        total += fresh;
    }
    if (count == 0)
        return;
    VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = count, .tokens = tokens};
    if (randomBelow(&world->random, 2))
        info.limits = (VkmqaStepLimits){.batch = SEQUENCES, .totalQ = MOST_NEW, .maxSeqLenQ = MOST_NEW,
                                        .maxSeqLenKv = world->cache->maxSeqLenKv, .newTokens = MOST_NEW};
    const bool settled = world->cache->movingPages == 0; // else pages may come free between the two calls
    bool reserve = randomBelow(&world->random, 4) == 0; // what is reserved must serve
    VkResult reserved = reserve ? vkmqaReserveTokens(world->cache, count, tokens) : VK_SUCCESS;
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkResult result = vkmqaBuildStep(world->cache, &info, &step);
    assert_true(!reserve || result == reserved || (reserved && !settled));
    world->counts[result == VK_SUCCESS ? APPENDED : FULL]++;
    if (result == VK_ERROR_OUT_OF_POOL_MEMORY)
        return; // and checkBooks finds everything as it was
    REQUIRE(result);
    char* inputs = vkmqaGetMemoryPointer(world->inputs);
    memset(vkmqaGetMemoryPointer(world->out), 0xFF, LAYERS * Q_BYTES);
    for (uint32_t b = 0, row = 0; b < count; b++) {
        ModelSequence* sequence = &world->sequences[who[b]];
        for (uint32_t t = 0; t < tokens[b].newTokens; t++, row++) {
            bool own = sequence->shifted || !known; // no prefix that others could have
            uint64_t key = own ? 2 * ++world->lastKey : keyOf(sequence, ids[row]);
            modelAppend(world->kind, sequence, ids[row], key);
            for (uint32_t l = 0; l < LAYERS; l++) {
                float* k = (float*)(inputs + l * LAYER_BYTES + 2 * Q_BYTES) + row * ROW;
                sourceRow(key, l, false, k);
                sourceRow(key, l, true, k + KV_BYTES / 4);
                float* q = (float*)(inputs + l * LAYER_BYTES) + row * HEADS_Q * DIM;
                for (uint32_t i = 0; i < HEADS_Q * DIM; i++)
                    q[i] = 2 * randomNormal(&world->random);
            }
        }
    }
    REQUIRE(vkmqaBeginCommands(world->commands));
    REQUIRE(vkmqaCmdUpdateCache(world->cache, vkmqaGetCommandBuffer(world->commands), &step));
    recordLayers(world, world->commands, &step);
    submit(world);
    checkMetadata(world, &step, count, who, tokens);
    for (uint32_t b = 0; b < count; b++)
        checkRows(world, &world->sequences[who[b]]);
    checkAttention(world, count, who, tokens);
}

void operate(World* world) {
    uint32_t choice = randomBelow(&world->random, 25);
    if (choice < 3)
        create(world);
    else if (choice < 5)
        fork_(world);
    else if (choice < 7)
        truncate_(world);
    else if (choice < 9)
        destroy(world);
    else if (choice < 11)
        shift(world);
    else if (choice < 14)
        move(world);
    else if (choice < 15 && !(world->kind->flags & CLEAR))
        poisonFreePages(world);
    else if (choice < 16)
        saveAndLoad(world);
    else
        append(world);
    checkBooks(world);
}

void emptyWorld(World* world) {
    flush(world);
    REQUIRE(vkmqaFinishTransfers(world->cache, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        if (world->sequences[i].alive)
            REQUIRE(vkmqaDestroySequence(world->cache, world->sequences[i].id));
        world->sequences[i].alive = false;
    }
    checkBooks(world);
    VkmqaCacheState state = {.structSize = sizeof(state)};
    REQUIRE(vkmqaGetCacheState(world->cache, &state));
    assert_int_equal(state.freePages, world->kind->pages);
    assert_int_equal(state.usedPages, 0);
    assert_int_equal(state.freeHostPages, world->kind->ownBuffers ? 0 : world->kind->pages);
}

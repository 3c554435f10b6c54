// SPDX-License-Identifier: MIT
#include "cache_world.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static OracleRotation rotationOf(const Kind* kind) {
    return (OracleRotation){.style = kind->rope, .hadamard = kind->hadamard};
}

// What remains of a row of all heads after storing it.
static void store(const Kind* kind, OracleType type, float* row) {
    const OracleCache one = {.type = type, .numPages = 1, .numHeads = HEADS, .pageTokens = 1, .headDim = DIM};
    uint8_t image[HEADS * DIM * 8] = {0};
    const int32_t slot = 0;
    (void)kind;
    oracleAppend(&one, image, NULL, row, &slot, 1);
    oracleGather(&one, image, &slot, 1, row);
}

void sourceRow(uint64_t key, uint32_t layer, bool isV, float* row) {
    Random random = randomFor(key, layer, isV);
    for (uint32_t i = 0; i < ROW; i++)
        row[i] = randomNormal(&random);
}

void modelAppend(const Kind* kind, ModelSequence* sequence, uint32_t id, uint64_t key) {
    const OracleRotation rotation = rotationOf(kind);
    int32_t position = (int32_t)sequence->length;
    Token* token = &sequence->tokens[sequence->length++];
    token->id = id;
    token->key = key;
    for (uint32_t l = 0; l < LAYERS; l++) {
        sourceRow(key, l, false, token->k[l]);
        sourceRow(key, l, true, token->v[l]);
        oracleRotateRows(&rotation, &position, 1, HEADS, DIM, token->k[l]);
        store(kind, kind->type, token->k[l]);
        store(kind, kind->type, token->v[l]);
    }
}

void modelShift(const Kind* kind, ModelSequence* sequence, uint32_t keep, uint32_t drop) {
    const OracleRotation mix = {.hadamard = kind->hadamard}, rotation = rotationOf(kind);
    int32_t turn = -(int32_t)drop;
    memmove(sequence->tokens + keep, sequence->tokens + keep + drop,
            (sequence->length - keep - drop) * sizeof(Token));
    sequence->length -= drop;
    for (uint32_t t = keep; t < sequence->length && kind->rope != ORACLE_ROPE_NONE; t++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            float* row = sequence->tokens[t].k[l];
            oracleRotateRows(&mix, &turn, 1, HEADS, DIM, row);
            oracleRotateRows(&rotation, &turn, 1, HEADS, DIM, row);
            store(kind, kind->type, row);
        }
    }
}

uint64_t keyOf(const ModelSequence* sequence, uint32_t id) {
    uint64_t before = sequence->length ? sequence->tokens[sequence->length - 1].key : sequence->salt * 2 + 1;
    Random mixed = randomFor(before, id, 77);
    return mixed.state | 1;
}

// ---- The cache under test ------------------------------------------------------------------------

static VkmqaMemory makeMemory(VkmqaMemoryKind kind, VkDeviceSize size) {
    VkmqaMemory memory;
    REQUIRE(vkmqaCreateMemory(harness.device, kind, size, &memory));
    return memory;
}

static const VkmqaType types[] = {VKMQA_TYPE_F32, VKMQA_TYPE_F16, VKMQA_TYPE_BF16,
                                  VKMQA_TYPE_FP8_E4M3, VKMQA_TYPE_Q8_0, VKMQA_TYPE_Q4_0};

static void makeCache(World* world) {
    const Kind* kind = world->kind;
    VkmqaCacheCreateInfo info = {.structSize = sizeof(info),
                                 .flags = kind->flags,
                                 .attention = world->attention,
                                 .numLayers = LAYERS,
                                 .numPages = kind->pages,
                                 .maxSequences = SEQUENCES,
                                 .maxNewTokens = MOST_NEW,
                                 .hostPages = kind->ownBuffers ? 0 : kind->pages,
                                 .device = harness.device};
    VkmqaKv layers[LAYERS] = {0};
    if (kind->ownBuffers) {
        VkmqaCacheRequirements needed = {.structSize = sizeof(needed)};
        REQUIRE(vkmqaGetCacheRequirements(&info, &needed));
        for (uint32_t l = 0; l < LAYERS; l++) {
            world->layers[l][0] = makeMemory(VKMQA_MEMORY_DEVICE, needed.kv.k.size);
            world->layers[l][1] = makeMemory(VKMQA_MEMORY_DEVICE, needed.kv.v.size);
            layers[l] = (VkmqaKv){vkmqaGetMemoryRange(world->layers[l][0], 0, 0),
                                  vkmqaGetMemoryRange(world->layers[l][1], 0, 0), kind->pages};
        }
        world->step = makeMemory(VKMQA_MEMORY_UPLOAD, needed.step.size);
        world->local = makeMemory(VKMQA_MEMORY_DEVICE, needed.local.size);
        info.layers = layers;
        info.stepMemory = vkmqaGetMemoryRange(world->step, 0, 0);
        info.stepMapped = vkmqaGetMemoryPointer(world->step);
        info.localMemory = vkmqaGetMemoryRange(world->local, 0, 0);
        info.device = NULL;
    }
    REQUIRE(vkmqaCreateCache(&info, &world->cache));
    world->cache->bucketCount = 1; // every hash collides: what is compared decides
    for (uint32_t i = 0; i < 2 * LAYERS && !kind->ownBuffers; i++)
        world->layers[i / 2][i % 2] = world->cache->memories[i];
}

// Products of f32, where none is asked for: checkAttention judges what the cache holds, not f16 operands.
static VkmqaTier exactTier(void) {
    for (uint32_t i = harness.tierCount; i-- > 0;)
        if (harness.tiers[i] != VKMQA_TIER_COOPMAT)
            return harness.tiers[i];
    return VKMQA_TIER_AUTO;
}

void openWorld(World* world, const Kind* kind, uint64_t seed) {
    *world = (World){.kind = kind, .random = randomFor(harness.seed, seed, 5)};
    const VkmqaAttentionCreateInfo info = {
        .structSize = sizeof(info),
        .flags = VKMQA_ATTENTION_CAUSAL_BIT | (kind->hadamard ? VKMQA_ATTENTION_HADAMARD_BIT : 0u),
        .numHeadsQ = HEADS_Q,
        .numHeadsKv = HEADS,
        .headDimQk = DIM,
        .ioType = VKMQA_TYPE_F32,
        .kType = types[kind->type],
        .pageSize = kind->pageSize,
        .maxSeqLenKv = MOST_TOKENS,
        .tier = kind->tier ? kind->tier : exactTier(),
        .ropeStyle = (VkmqaRopeStyle)kind->rope};
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &world->attention));
    makeCache(world);
    REQUIRE(vkmqaCreateCommands(harness.device, &world->commands));
    const VkmqaStepLimits limits = {.batch = SEQUENCES, .totalQ = MOST_NEW, .maxSeqLenKv = MOST_TOKENS};
    VkmqaBufferRequirements scratch, parameters;
    REQUIRE(vkmqaGetScratchRequirements(world->attention, &limits, &scratch));
    REQUIRE(vkmqaGetParametersRequirements(world->attention, &parameters));
    world->inputs = makeMemory(VKMQA_MEMORY_UPLOAD, LAYERS * LAYER_BYTES);
    world->out = makeMemory(VKMQA_MEMORY_DOWNLOAD, LAYERS * Q_BYTES);
    world->scratch = makeMemory(VKMQA_MEMORY_DEVICE, scratch.size + 16);
    world->parameters = makeMemory(VKMQA_MEMORY_UPLOAD, parameters.size + 16);
    const VkmqaParametersInfo constants = {.structSize = sizeof(constants)};
    REQUIRE(vkmqaWriteParameters(world->attention, &constants, parameters.size,
                                 vkmqaGetMemoryPointer(world->parameters)));
    for (uint32_t i = 0; i < SEQUENCES; i++)
        world->sequences[i].tokens = calloc(MOST_TOKENS, sizeof(Token));
}

void closeWorld(World* world) {
    vkmqaDestroyCache(world->cache);
    vkmqaDestroyCommands(world->commands);
    const VkmqaMemory memories[] = {world->inputs, world->out, world->scratch, world->parameters, world->step,
                                    world->local};
    for (size_t i = 0; i < COUNT(memories); i++)
        vkmqaDestroyMemory(memories[i]);
    for (uint32_t i = 0; i < 2 * LAYERS && world->kind->ownBuffers; i++)
        vkmqaDestroyMemory(world->layers[i / 2][i % 2]);
    vkmqaDestroyAttention(world->attention);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        free(world->sequences[i].tokens);
}

void submit(World* world) {
    REQUIRE(vkmqaSubmitCommands(world->commands));
    REQUIRE(vkmqaWaitCommands(world->commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
}

void flush(World* world) {
    REQUIRE(vkmqaBeginCommands(world->commands));
    REQUIRE(vkmqaCmdUpdateCache(world->cache, vkmqaGetCommandBuffer(world->commands), NULL));
    submit(world);
}

struct VkmqaSequenceRecord* recordOf(World* world, const ModelSequence* sequence) {
    return &world->cache->sequences[(uint32_t)sequence->id - 1];
}

// ---- Checks ----------------------------------------------------------------------------------------

void checkBooks(World* world) {
    VkmqaCache cache = world->cache;
    uint32_t holders[MOST_PAGES] = {0}, listed[MOST_PAGES] = {0}, used = 0, moving = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const ModelSequence* sequence = &world->sequences[i];
        if (!sequence->alive)
            continue;
        const struct VkmqaSequenceRecord* record = recordOf(world, sequence);
        assert_true(record->alive);
        assert_int_equal(record->length, sequence->length);
        assert_true(record->pageCount >= vkmqa_pages_of(cache, record->length));
        uint32_t offloaded = 0;
        for (uint32_t p = 0; p < record->pageCount; p++) {
            if (record->pages[p] & VKMQA_HOST_PAGE)
                offloaded++;
            else
                holders[record->pages[p]]++;
        }
        assert_int_equal(offloaded, record->offloaded);
    }
    const struct VkmqaPageList* lists[] = {&cache->freePages, &cache->reusablePages};
    for (int i = 0; i < 2; i++) {
        uint32_t count = 0, previous = VKMQA_NO_PAGE;
        for (uint32_t p = lists[i]->first; p != VKMQA_NO_PAGE; p = cache->pages[p].next) {
            assert_int_equal(cache->pages[p].previous, previous);
            assert_int_equal(cache->pages[p].state, i ? VKMQA_PAGE_REUSABLE : VKMQA_PAGE_FREE);
            assert_int_equal(cache->pages[p].indexed, i);
            listed[previous = p]++;
            count++;
        }
        assert_int_equal(lists[i]->last, previous);
        assert_int_equal(lists[i]->count, count);
    }
    for (uint32_t p = 0; p < world->kind->pages; p++) {
        const struct VkmqaPage* page = &cache->pages[p];
        assert_int_equal(page->refs, holders[p]);
        assert_int_equal(listed[p], page->state == VKMQA_PAGE_FREE || page->state == VKMQA_PAGE_REUSABLE);
        used += page->state == VKMQA_PAGE_USED;
        moving += page->state == VKMQA_PAGE_MOVING;
    }
    assert_int_equal(used, cache->usedPages);
    assert_int_equal(moving, cache->movingPages);
    assert_int_equal(used + moving + cache->freePages.count + cache->reusablePages.count, world->kind->pages);
}

// How far a stored value may be from the model's: a neighbouring code, where rotation or a tie decided.
static double allowance(OracleType type, const float* row, uint32_t i, bool rotated) {
    double largest = 0;
    for (uint32_t d = 0; d < DIM; d++)
        largest = fmax(largest, fabs(row[i / DIM * DIM + d]));
    switch (type) {
    case ORACLE_F32:
        return rotated ? 2e-6 * largest + 1e-30 : 0;
    case ORACLE_Q8_0:
        return largest * (1.0 / 127 + 1.0 / 512);
    case ORACLE_Q4_0:
        return largest * (1.0 / 8 + 1.0 / 512);
    default:
        return rotated ? 2.02 * oracleRounding(type, fabs(row[i])) + 1e-6 * largest : 0;
    }
}

void checkRows(World* world, ModelSequence* sequence) {
    const Kind* kind = world->kind;
    const struct VkmqaSequenceRecord* record = recordOf(world, sequence);
    int32_t slots[MOST_TOKENS];
    for (uint32_t t = 0; t < sequence->length; t++)
        slots[t] = (int32_t)(record->pages[t / kind->pageSize] * kind->pageSize + t % kind->pageSize);
    const OracleCache shape = {.type = kind->type, .numPages = kind->pages, .numHeads = HEADS,
                               .pageTokens = kind->pageSize, .headDim = DIM};
    uint8_t* image = malloc(oracleCacheBytes(&shape));
    float* rows = malloc(MOST_TOKENS * ROW * sizeof(*rows));
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (int isV = 0; isV < 2; isV++) {
            REQUIRE(vkmqaDownload(world->layers[l][isV], 0, image, oracleCacheBytes(&shape)));
            oracleGather(&shape, image, slots, sequence->length, rows);
            for (uint32_t t = 0; t < sequence->length; t++) {
                float* model = isV ? sequence->tokens[t].v[l] : sequence->tokens[t].k[l];
                const float* device = rows + (size_t)t * ROW;
                bool rotated = !isV && kind->rope != ORACLE_ROPE_NONE;
                for (uint32_t i = 0; i < ROW; i++)
                    if (!(fabs((double)device[i] - model[i]) <= allowance(kind->type, model, i, rotated)))
                        fail_msg("%s: layer %u, %c row of token %u of %u: element %u is %g, should be %g",
                                 kind->name, l, isV ? 'V' : 'K', t, sequence->length, i, device[i],
                                 model[i]);
                memcpy(model, device, ROW * sizeof(*model));
            }
            // A page that nobody else has had since it was cleared holds zeros past the length.
            if (!(kind->flags & VKMQA_CACHE_CLEAR_FREED_BIT) || !sequence->pure || sequence->length % kind->pageSize == 0)
                continue;
            uint32_t page = record->pages[sequence->length / kind->pageSize];
            for (uint32_t t = sequence->length % kind->pageSize; t < kind->pageSize; t++)
                for (uint32_t i = 0; i < HEADS * oracleRowDataBytes(&shape); i++) {
                    uint32_t h = i / (uint32_t)oracleRowDataBytes(&shape);
                    const uint8_t* row = image + oracleRowOffset(&shape, page * kind->pageSize + t, h);
                    if (row[i % oracleRowDataBytes(&shape)])
                        fail_msg("%s: layer %u, %c: page %u was not cleared", kind->name, l, isV ? 'V' : 'K', page);
                }
        }
    }
    free(rows);
    free(image);
}

void checkAllRows(World* world) {
    flush(world);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        if (world->sequences[i].alive && !world->sequences[i].offloaded)
            checkRows(world, &world->sequences[i]);
}

void checkMetadata(World* world, const VkmqaCacheStep* step, uint32_t count, const uint32_t* who,
                          const VkmqaSequenceTokens* tokens) {
    const VkmqaStepLayout* layout = &step->step.layout;
    const VkmqaStepLimits* limits = &step->step.limits;
    uint8_t* bytes = malloc(step->step.metadata.size);
    memcpy(bytes, step->mapped, step->step.metadata.size);
    if (world->kind->flags & VKMQA_CACHE_DEVICE_METADATA_BIT) {
        VkmqaMemory local = world->kind->ownBuffers ? world->local
                                                    : world->cache->memories[world->cache->memoryCount - 1];
        REQUIRE(vkmqaDownload(local, 0, bytes, step->step.metadata.size));
    }
    const int32_t* words = (const int32_t*)bytes;
    assert_int_equal(words[layout->status / 4], 0);
    uint32_t pageSize = world->kind->pageSize, row = 0;
    for (uint32_t b = 0; b < limits->batch; b++) {
        assert_int_equal(words[layout->cuSeqlensQ / 4 + b], row);
        const ModelSequence* sequence = b < count ? &world->sequences[who[b]] : NULL;
        assert_int_equal(words[layout->seqLensKv / 4 + b], sequence ? sequence->length : 0);
        if (!sequence)
            continue;
        const struct VkmqaSequenceRecord* record = recordOf(world, sequence);
        for (uint32_t p = 0; p < (sequence->length + pageSize - 1) / pageSize; p++)
            assert_int_equal(words[layout->pageTable / 4 + b * layout->maxPages + p], record->pages[p]);
        for (uint32_t i = 0; i < tokens[b].newTokens; i++, row++) {
            uint32_t position = sequence->length - tokens[b].newTokens + i;
            assert_int_equal(words[layout->slotMapping / 4 + row],
                             record->pages[position / pageSize] * pageSize + position % pageSize);
            if (layout->positions != VKMQA_NONE) {
                assert_int_equal(words[layout->positions / 4 + row], position);
                assert_int_equal(words[layout->queryPositions / 4 + row], position);
            }
        }
    }
    assert_int_equal(words[layout->cuSeqlensQ / 4 + limits->batch], row);
    for (; row < limits->newTokens; row++)
        assert_int_equal(words[layout->slotMapping / 4 + row], -1);
    free(bytes);
}

void checkAttention(World* world, uint32_t count, const uint32_t* who, const VkmqaSequenceTokens* tokens) {
    const OracleRotation rotation = rotationOf(world->kind);
    const float* outputs = vkmqaGetMemoryPointer(world->out);
    const char* inputs = vkmqaGetMemoryPointer(world->inputs);
    float k[MOST_TOKENS * ROW], v[MOST_TOKENS * ROW], q[MOST_NEW * HEADS_Q * DIM];
    double out[MOST_NEW * HEADS_Q * DIM];
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t row = 0;
        for (uint32_t b = 0; b < count; row += tokens[b++].newTokens) {
            const ModelSequence* sequence = &world->sequences[who[b]];
            int32_t positions[MOST_NEW];
            for (uint32_t t = 0; t < sequence->length; t++) {
                memcpy(k + t * ROW, sequence->tokens[t].k[l], ROW * sizeof(float));
                memcpy(v + t * ROW, sequence->tokens[t].v[l], ROW * sizeof(float));
            }
            uint32_t fresh = tokens[b].newTokens, values = fresh * HEADS_Q * DIM;
            memcpy(q, inputs + l * LAYER_BYTES + row * HEADS_Q * DIM * 4, values * 4);
            for (uint32_t i = 0; i < fresh; i++)
                positions[i] = (int32_t)(sequence->length - fresh + i);
            oracleRotateRows(&rotation, positions, fresh, HEADS_Q, DIM, q);
            const int32_t cuSeqlensQ[] = {0, (int32_t)fresh}, seqLensKv[] = {(int32_t)sequence->length};
            const OracleProblem problem = {.batch = 1, .numHeadsQ = HEADS_Q, .numHeadsKv = HEADS,
                                           .headDimQk = DIM, .headDimV = DIM, .cuSeqlensQ = cuSeqlensQ,
                                           .seqLensKv = seqLensKv, .q = q, .k = k, .v = v, .causal = true};
            oracleAttention(&problem, out, NULL);
            const float* device = outputs + l * Q_BYTES / 4 + row * HEADS_Q * DIM;
            for (uint32_t i = 0; i < values; i++)
                if (!(fabs(device[i] - out[i]) <= 2e-5))
                    fail_msg("%s: layer %u, sequence %u of %u tokens, output %u is %g, should be %g",
                             world->kind->name, l, who[b], sequence->length, i, device[i], out[i]);
        }
    }
}

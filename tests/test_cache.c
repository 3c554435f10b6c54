// The cache layer against a model: thousands of random operations on sequences, and beside them arrays of
// tokens with the rows that each must have. After every step the rows are read back and attention is compared
// with f64 attention over the model's rows; after every operation the books are checked page by page.
//
// Environment: VKMQA_TEST_OPERATIONS   random operations of each kind of cache, default 300 (4000 if long)
#include "cache_world.h"

#include <stdlib.h>
#include <string.h>

static void randomOperations(const Kind* kind, uint64_t seed, uint32_t operations, uint32_t* totals) {
    static World world;
    openWorld(&world, kind, seed);
    for (uint32_t i = 0; i < operations; i++)
        operate(&world);
    emptyWorld(&world);
    const uint32_t* n = world.counts;
    print_message("%s, seed %llu: %u steps (%u found no pages), %u created (%u with a prefix), %u forks, %u "
                  "rollbacks, %u shifts, %u offloads, %u restores, %u saved and loaded, %u destroyed\n", kind->name,
                  (unsigned long long)seed, n[APPENDED], n[FULL], n[CREATED], n[REUSED], n[FORKED],
                  n[TRUNCATED], n[SHIFTED], n[OFFLOADED], n[RESTORED], n[SAVED], n[DESTROYED]);
    for (size_t i = 0; i < COUNT(world.counts); i++)
        totals[i] += n[i];
    closeWorld(&world);
}

static void randomOperationsAgreeWithTheModel(void** state) {
    (void)state;
    const char* given = getenv("VKMQA_TEST_OPERATIONS");
    uint32_t totals[16] = {0};
    uint32_t operations = given ? (uint32_t)strtoul(given, NULL, 10) : harnessIsLong() ? 4000 : 300;
    for (size_t i = 0; i < KINDS; i++)
        for (uint64_t seed = 0; seed < (harnessIsLong() ? 5u : 1u); seed++)
            randomOperations(&kinds[i], 10 * seed + i, operations, totals);
    for (size_t i = APPENDED; i <= SAVED && operations >= 300; i++) // fewer need not have done all
        assert_true(totals[i] > 0);
}

// ---- Replay ----------------------------------------------------------------------------------------

// With metadata in device memory (kinds[1]) the layers are recorded once, and a small command buffer before them brings each
// step's metadata: bit for bit what layers recorded for every step give.
static void recordedLayersAreReplayed(void** state) {
    (void)state;
    static World worlds[2]; // replayed; recorded anew, with metadata that the host writes for the kernels
    Kind direct = kinds[1];
    direct.flags = 0;
    enum { COUNT_SEQUENCES = 3, STEPS = 30 };
    VkmqaSequenceTokens tokens[2][COUNT_SEQUENCES] = {0};
    VkmqaCommands layers;
    VkDeviceSize metadata = 0;
    REQUIRE(vkmqaCreateCommands(harness.device, &layers));
    for (int w = 0; w < 2; w++) {
        openWorld(&worlds[w], w ? &direct : &kinds[1], 50);
        for (int i = 0; i < COUNT_SEQUENCES; i++)
            REQUIRE(vkmqaCreateSequence(worlds[w].cache, NULL, &tokens[w][i].sequence, NULL));
    }
    for (uint32_t s = 0; s < STEPS; s++) {
        for (int w = 0; w < 2; w++) {
            World* world = &worlds[w];
            for (uint32_t i = 0; i < COUNT_SEQUENCES; i++)
                tokens[w][i].newTokens = s == 0 ? 5 + i : s % 7 == i ? 0 : 1;
            const VkmqaStepBuildInfo info = {.structSize = sizeof(info), .count = COUNT_SEQUENCES,
                                             .tokens = tokens[w],
                                             .limits = {.batch = 4, .totalQ = 24, .maxSeqLenQ = 8,
                                                        .maxSeqLenKv = 64, .newTokens = 24}};
            VkmqaCacheStep step = {.structSize = sizeof(step)};
            REQUIRE(vkmqaBuildStep(world->cache, &info, &step));
            Random random = randomFor(harness.seed, s, 60);
            float* inputs = vkmqaGetMemoryPointer(world->inputs);
            for (uint32_t i = 0; i < LAYERS * LAYER_BYTES / 4; i++)
                inputs[i] = randomNormal(&random);
            memset(vkmqaGetMemoryPointer(world->out), 0, LAYERS * Q_BYTES);
            REQUIRE(vkmqaBeginCommands(world->commands));
            REQUIRE(vkmqaCmdUpdateCache(world->cache, vkmqaGetCommandBuffer(world->commands), &step));
            if (w == 1)
                recordLayers(world, world->commands, &step);
            REQUIRE(vkmqaSubmitCommands(world->commands));
            if (w == 0 && s == 0) {
                metadata = step.step.metadata.offset;
                REQUIRE(vkmqaBeginCommands(layers));
                recordLayers(world, layers, &step);
            }
            assert_true(w == 1 || metadata == step.step.metadata.offset);
            if (w == 0) {
                REQUIRE(vkmqaSubmitCommands(layers));
                REQUIRE(vkmqaWaitCommands(layers, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
            }
            REQUIRE(vkmqaWaitCommands(world->commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
        }
        assert_memory_equal(vkmqaGetMemoryPointer(worlds[0].out), vkmqaGetMemoryPointer(worlds[1].out),
                            LAYERS * Q_BYTES);
    }
    vkmqaDestroyCommands(layers);
    for (int w = 0; w < 2; w++)
        closeWorld(&worlds[w]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(randomOperationsAgreeWithTheModel),
    cmocka_unit_test(recordedLayersAreReplayed),
};
HARNESS_MAIN(tests)

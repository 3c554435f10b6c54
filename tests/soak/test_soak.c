// Serving for a long time. Sequences come and go in caches of all types, caches come and go on a device, the device is
// closed and opened again, and now and then a call of Vulkan fails; all of it is judged by the model of test_cache.
// After each round the process must hold what it held before (flat.h), and after each device no Vulkan object.
//
// Environment: VKMQA_SOAK_SECONDS   how long, default 180 (3600 if long)
#define _POSIX_C_SOURCE 200809L
#include "cache_world.h"
#include "failures/failures.h"
#include "flat.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    ROUNDS = 3,      // of a device
    SHORT_LIFE = 40, // operations of a cache that comes and goes in a round
    LONG_LIFE = 100, // operations in a round of the cache that stays
    FAILS_EVERY = 4, // rounds
    DEVICES = 10,    // at least, however slow the machine
};

// What is called growth: a driver's own caches and arenas breathe by some MiB, its heap
// less, and descriptors and threads do not.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNLESS_SANITIZED(bound) LONG_MAX // what is freed is kept there for a while, and leaks are told at the end
#else
#define UNLESS_SANITIZED(bound) (bound)
#endif
static const long boundsAtWork[FLAT_SERIES] = {[FLAT_RESIDENT] = UNLESS_SANITIZED(24576),
                                               [FLAT_HEAP] = UNLESS_SANITIZED(256),
                                               [FLAT_MAPS] = UNLESS_SANITIZED(8)};
static const long boundsAtRest[FLAT_SERIES] = {[FLAT_RESIDENT] = UNLESS_SANITIZED(24576),
                                               [FLAT_HEAP] = UNLESS_SANITIZED(64),
                                               [FLAT_MAPS] = UNLESS_SANITIZED(8)};

const LayerFail* layerFail;
static char folder[] = "/tmp/vkmqa-soak-XXXXXX";

// What kinds[] leaves out.
static const Kind moreKinds[] = {
    {"bf16, rope", ORACLE_BF16, ORACLE_ROPE_NEOX, false, 8, 24, 0, VKMQA_TIER_AUTO, false},
    {"fp8, rope, portable", ORACLE_FP8, ORACLE_ROPE_NEOX, false, 4, 40, 0, VKMQA_TIER_PORTABLE, false},
};
enum { MORE = COUNT(moreKinds) };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double secondsToRun(void) {
    const char* given = getenv("VKMQA_SOAK_SECONDS");
    return given ? strtod(given, NULL) : harnessIsLong() ? 3600 : 180;
}

static void openDevice(void) {
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .selector = "0", .skipVerification = VK_TRUE,
                                      .messageCallback = harnessMessage};
    REQUIRE(vkmqaOpenDevice(&info, &harness.device));
    harness.context = vkmqaGetDeviceContext(harness.device);
}

static void closeDevice(void) {
    vkmqaCloseDevice(harness.device);
    harness.device = NULL;
    if (*layerFail->alive())
        fail_msg("after the device was closed: %s", layerFail->alive());
}

// ---- Calls that fail --------------------------------------------------------------------------------

// One place of a scenario fails once, on a device beside the one at work; what it must answer is for test_failures.
static void failSomewhere(Random* random) {
    static const Scenario scenarios[] = {scenarioOwn, scenarioCache};
    static Attempt clean[COUNT(scenarios)], attempt;
    static uint32_t places[COUNT(scenarios)];
    char before[512];
    uint32_t which = randomBelow(random, COUNT(scenarios));
    snprintf(before, sizeof(before), "%s", layerFail->alive());
    if (!places[which]) {
        clean[which] = (Attempt){.folder = folder};
        layerFail->begin(NULL);
        scenarios[which](&clean[which]);
        REQUIRE(clean[which].last);
        places[which] = layerFail->placeCount();
    }
    LayerFailPlan plan = {.place = randomBelow(random, places[which])};
    layerFail->begin(NULL);
    attempt = (Attempt){.folder = folder};
    scenarios[which](&attempt); // threads may come by in another order than last time
    if (plan.place >= layerFail->placeCount())
        return;
    const VkResult* errors = layerFail->errors(layerFail->placeEntry(plan.place));
    uint32_t ways = 0;
    while (errors[ways])
        ways++;
    plan.error = errors[randomBelow(random, ways)];
    layerFail->begin(&plan);
    attempt = (Attempt){.folder = folder, .retry = true};
    scenarios[which](&attempt);
    layerFail->begin(NULL);
    if (!attempt.last && memcmp(attempt.result, clean[which].result, clean[which].resultSize) != 0)
        fail_msg("after a failed call the result is another");
    if (strcmp(layerFail->alive(), before) != 0)
        fail_msg("alive after place %u failed with %d: %s; before: %s", plan.place, plan.error, layerFail->alive(),
                 before);
}

// ---- The soak ---------------------------------------------------------------------------------------

// Kinds by turns.
static void serve(World* world, uint64_t seed, uint32_t* counts) {
    size_t kind = seed % (KINDS + MORE);
    openWorld(world, kind < KINDS ? &kinds[kind] : &moreKinds[kind - KINDS], seed);
    for (int i = 0; i < SHORT_LIFE; i++)
        operate(world);
    emptyWorld(world);
    for (size_t i = 0; i < COUNT(world->counts); i++)
        counts[i] += world->counts[i];
    closeWorld(world);
}

static bool judge(const Flat* flat, const long bounds[FLAT_SERIES], const char* label) {
    char text[FLAT_TEXT];
    bool isFlat = flatJudge(flat, bounds, text);
    print_message("%s, %zu samples\n%s", label, flat->count, text);
    return isFlat;
}

static void servingIsFlat(void** state) {
    (void)state;
    static World lasting, passing;
    static Flat atWork, atRest; // after each round, after each device
    uint32_t devices = 0, rounds = 0, counts[16] = {0};
    uint64_t seed = 0;
    Random random = randomFor(harness.seed, 1, 90);
    const double begin = now(), end = begin + secondsToRun();
    while (now() < end || devices < DEVICES) {
        openDevice();
        openWorld(&lasting, &kinds[1], 1000000 + devices);
        for (int r = 0; r < ROUNDS; r++, rounds++) {
            serve(&passing, seed++, counts);
            for (int i = 0; i < LONG_LIFE; i++)
                operate(&lasting);
            if (rounds % FAILS_EVERY == 0)
                failSomewhere(&random);
            if (getenv("VKMQA_TEST_VERBOSE"))
                printf("round %u, after %.1f s: ", rounds, now() - begin);
            flatSample(&atWork);
        }
        for (size_t i = 0; i < COUNT(counts); i++)
            counts[i] += lasting.counts[i];
        closeWorld(&lasting); // with whatever sequences there are
        closeDevice();
        flatSample(&atRest);
        devices++;
    }
    print_message("%u devices, %u rounds: %u steps, %u created, %u forks, %u rollbacks, %u shifts, %u offloads, %u saved\n",
                  devices, rounds, counts[APPENDED], counts[CREATED], counts[FORKED], counts[TRUNCATED], counts[SHIFTED],
                  counts[OFFLOADED], counts[SAVED]);
    bool isFlat = judge(&atWork, boundsAtWork, "at work") & judge(&atRest, boundsAtRest, "at rest");
    if (!isFlat)
        fail_msg("not flat");
}

// Noise and a step are no trend; a slow leak between them is one.
static void trendsAreTold(void** state) {
    (void)state;
    static Flat steady, leaking, tooShort, full;
    static const long bounds[FLAT_SERIES] = {[FLAT_HEAP] = 256};
    Random random = randomFor(1, 2, 3);
    char text[FLAT_TEXT];
    for (long i = 0; i < 48; i++) {
        const long noise = (long)randomBelow(&random, 40) + (i % 5 ? 0 : 3000), step = i < 25 ? 0 : 20000;
        const long calm[FLAT_SERIES] = {[FLAT_HEAP] = 50000 + noise + step + (i < 12 ? i * 999 : 12000), [FLAT_FILES] = 7};
        const long leak[FLAT_SERIES] = {[FLAT_HEAP] = 50000 + noise + step + i * 12, [FLAT_FILES] = 7};
        flatAdd(&steady, calm);
        flatAdd(&leaking, leak);
        if (i < 7)
            flatAdd(&tooShort, calm);
    }
    assert_true(flatJudge(&steady, bounds, text));
    assert_false(flatJudge(&leaking, bounds, text));
    assert_non_null(strstr(text, "heap KiB"));
    assert_false(flatJudge(&tooShort, bounds, text));
    for (long i = 0; i < 3 * FLAT_MOST; i++)
        flatAdd(&full, (const long[FLAT_SERIES]){[FLAT_FILES] = i / 1000});
    assert_in_range(full.count, FLAT_MOST / 2, FLAT_MOST);
    assert_false(flatJudge(&full, bounds, text));
    assert_non_null(strstr(text, "files: from"));
}

int main(void) {
    const char* seed = getenv("VKMQA_TEST_SEED");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trendsAreTold),
        cmocka_unit_test(servingIsFlat),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    harness.seed = seed ? strtoull(seed, NULL, 0) : 1;
    void* layer = dlopen(VKMQA_TEST_LAYER, RTLD_NOW | RTLD_LOCAL); // stays when the loader lets go of it
    layerFail = layer ? (const LayerFail*)dlsym(layer, "vkmqaLayerFail") : NULL;
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = harnessMessage};
    if (!layerFail || vkmqaOpenDevice(&open, &harness.device) != VK_SUCCESS) {
        fprintf(stderr, "failed: no %s (%s)\n", layerFail ? "Vulkan device" : "test layer", harness.message);
        return 1;
    }
    if (!*layerFail->alive()) {
        fprintf(stderr, "the test layer is not in the chain\n");
        return 1;
    }
    vkmqaCloseDevice(harness.device);
    if (!mkdtemp(folder))
        return 1;
    cmocka_set_test_filter(getenv("VKMQA_TEST_FILTER"));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}

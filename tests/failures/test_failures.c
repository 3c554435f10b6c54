// Every place where the library calls Vulkan or the C library, failing with an error that it may return: the right code
// comes out, with a sentence; nothing is leaked; everything can be destroyed; a second attempt works, and computes what
// it should. With VKMQA_TEST_LONG=1 in every such way, else in one of them, in another one with another VKMQA_TEST_SEED,
// and where VKMQA_TEST_ENTRIES lists entry points (":vkCreateSemaphore:vkQueueSubmit:") at these alone.
#define _DEFAULT_SOURCE // mkdtemp
#include "failures.h"

#include "vk_table.h"

#include <vkmqa/vkmqa_cache.h>

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const LayerFail* layerFail;
static char folder[] = "/tmp/vkmqa-failures-XXXXXX";

// Failures that the library can live with, and how.
static const char* survivable(const char* entry) {
    static const char* const entries[][2] = {
        {"vkGetQueryPoolResults", "a time is then 0"},
        {"vkCreateDevice", "it is opened without a low priority"},
        {"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR", "it counts as having no matrices"},
        {"close after reading", "nothing is lost"},
        {"pthread_create", "the calling thread does it all"},
        {"vkEnumerateDeviceExtensionProperties", "of the Vulkan loader's own, which it lives with"},
    };
    for (size_t i = 0; i < COUNT(entries); i++)
        if (strcmp(entries[i][0], entry) == 0)
            return entries[i][1];
    if (getenv("VKMQA_LAYER_BELOW") && strcmp(entry, "vkAllocateMemory") == 0)
        return "a card has other types of memory";
    return NULL;
}

static long filesIn(const char* path) {
    long count = -2; // . and ..
    DIR* opened = opendir(path);
    while (opened && readdir(opened))
        count++;
    closedir(opened);
    return count;
}

typedef struct Baseline {
    char alive[512];
    long allocations, files;
} Baseline;

static Baseline baseline(void) {
    Baseline now = {.allocations = systemAllocations(), .files = systemFiles()};
    snprintf(now.alive, sizeof(now.alive), "%s", layerFail->alive());
    return now;
}

// What was left alone before may end meanwhile: fewer are no leak, and more than those are.
static void judgeRemains(Baseline* before, const char* label) {
    if (strcmp(layerFail->alive(), before->alive) != 0)
        fail_msg("%s: alive afterwards: %s; before: %s", label, layerFail->alive(), before->alive);
    if (systemAllocations() > before->allocations)
        fail_msg("%s: %ld allocations leaked", label, systemAllocations() - before->allocations);
    if (systemFiles() > before->files)
        fail_msg("%s: %ld open files leaked", label, systemFiles() - before->files);
    before->allocations = systemAllocations();
    before->files = systemFiles();
    if (filesIn(folder) != 0)
        fail_msg("%s: %ld files left in the folder", label, filesIn(folder));
}

static void judge(const Attempt* attempt, const Attempt* clean, const LayerFailPlan* plan, const char* entry,
                  const char* label) {
    const bool lost = plan->error == VK_ERROR_DEVICE_LOST && strcmp(entry, "vkCreateDevice") != 0;
    if (!attempt->first) {
        if (!survivable(entry) && !attempt->whileDestroying)
            fail_msg("%s: no call said so", label);
    } else {
        if (attempt->first != plan->error)
            fail_msg("%s: %s returned %d (%s)", label, attempt->call, attempt->first, attempt->message);
        if (!*attempt->message)
            fail_msg("%s: %s returned %d without a word", label, attempt->call, attempt->first);
        if ((plan->onwards || lost) && attempt->last != plan->error)
            fail_msg("%s: then %s returned %d (%s)", label, attempt->lastCall, attempt->last, harness.message);
        if (plan->onwards || lost)
            return;
    }
    // A command buffer that could not be ended is lost, and so is what was recorded in it.
    if (strcmp(entry, "vkEndCommandBuffer") == 0 && attempt->last == VK_ERROR_VALIDATION_FAILED_EXT &&
        strstr(harness.message, "nothing is recorded"))
        return;
    if (attempt->last)
        fail_msg("%s: a second %s returned %d (%s)", label, attempt->lastCall, attempt->last, harness.message);
    if (attempt->resultSize != clean->resultSize || memcmp(attempt->result, clean->result, clean->resultSize) != 0)
        fail_msg("%s: the result is another", label);
}

static void runOnce(Attempt* attempt, bool retry, const LayerFailPlan* plan, Scenario scenario) {
    *attempt = (Attempt){.folder = folder, .retry = retry};
    layerFail->begin(plan);
    scenario(attempt);
}

static bool isWanted(const char* entry) {
    const char* list = harnessIsLong() ? NULL : getenv("VKMQA_TEST_ENTRIES");
    char colons[64];
    snprintf(colons, sizeof(colons), ":%s:", entry);
    return !list || strstr(list, colons);
}

// Ways: every error that the place's entry may return, once and from then on.
static void failEverywhere(const char* name, Scenario scenario) {
    enum { MOST = 2048 };
    static Attempt clean, attempt;
    static const char* entries[MOST];
    runOnce(&clean, false, NULL, scenario); // what the driver keeps for good is there now
    Baseline before = baseline();
    runOnce(&clean, false, NULL, scenario);
    if (clean.last)
        fail_msg("%s: without any failure %s returned %d (%s)", name, clean.lastCall, clean.last, harness.message);
    judgeRemains(&before, name);
    const uint32_t places = layerFail->placeCount();
    assert_in_range(places, 20, MOST);
    for (uint32_t place = 0; place < places; place++)
        entries[place] = layerFail->placeEntry(place);
    uint32_t runs = 0, missed = 0, left = 0;
    for (uint32_t place = 0; place < places; place++) {
        if (!isWanted(entries[place]))
            continue;
        const VkResult* errors = layerFail->errors(entries[place]);
        uint32_t ways = 0;
        while (errors[ways])
            ways++;
        assert_true(ways > 0);
        for (uint32_t way = 0; way < 2 * ways; way++) {
            if (!harnessIsLong() && way != (place + harness.seed) % (2 * ways))
                continue;
            const LayerFailPlan plan = {place, errors[way / 2], way % 2};
            char label[160];
            snprintf(label, sizeof(label), "%s, place %u: %s returns %d%s", name, place, entries[place], plan.error,
                     plan.onwards ? " from then on" : "");
            if (getenv("VKMQA_TEST_VERBOSE"))
                print_message("%s\n", label);
            runOnce(&attempt, !plan.onwards, &plan, scenario);
            runs++;
            if (!layerFail->hit()) { // threads have come by in another order
                missed++;
                continue;
            }
            judge(&attempt, &clean, &plan, layerFail->hitEntry(), label);
            if (attempt.leftAlone && plan.onwards && plan.error != VK_ERROR_DEVICE_LOST)
                before = baseline();
            else
                judgeRemains(&before, label);
            left += attempt.leftAlone;
        }
    }
    layerFail->begin(NULL);
    print_message("%s: %u places, %u runs; %u had no failure, %u left alone what nothing could wait for\n", name, places,
                  runs, missed, left);
    assert_true(runs > 0 && missed * 20 <= runs);
}

// A function that is new in the table must be made to fail, or be one that cannot.
static void everyFunctionCanFail(void** state) {
    (void)state;
    static const char* const names[] = {
#define NAME(name) "vk" #name,
#define NAMES(name, alias) "vk" #name,
        VKMQA_VK_INSTANCE_FUNCTIONS(NAME) VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(NAME) VKMQA_VK_DEVICE_FUNCTIONS(NAME)
            VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(NAMES)
#undef NAME
#undef NAMES
    };
    // Without a result, or without an error in it.
    static const char* const certain[] = {
        "vkCmd", "vkDestroy", "vkFree", "vkGetPhysicalDeviceProperties", "vkGetPhysicalDeviceFeatures",
        "vkGetPhysicalDeviceQueueFamilyProperties", "vkGetPhysicalDeviceMemoryProperties", "vkGetDeviceProcAddr",
        "vkGetDeviceQueue", "vkGetBuffer", "vkUpdateDescriptorSets", "vkResetDescriptorPool"};
    for (size_t i = 0; i < COUNT(names); i++) {
        bool covered = layerFail->errors(names[i])[0] != VK_SUCCESS;
        for (size_t k = 0; k < COUNT(certain); k++)
            covered = covered || strncmp(names[i], certain[k], strlen(certain[k])) == 0;
        if (!covered)
            fail_msg("%s is called, and never fails in this test; see ../layer/fail.c", names[i]);
    }
}

static void onADeviceOfItsOwn(void** state) {
    (void)state;
    failEverywhere("own device", scenarioOwn);
}
static void onAnEnginesDevice(void** state) {
    (void)state;
    failEverywhere("engine's device", scenarioEngine);
}
static void ofACache(void** state) {
    (void)state;
    failEverywhere("cache", scenarioCache);
}

// Work that does not end is VK_TIMEOUT wherever somebody waits for it, and never a hang or a crash; a wait that is given up
// once may be repeated. What may still be in use is left behind.
static void hangEverywhere(const char* name, Scenario scenario) {
    static Attempt clean, attempt;
    uint32_t places[64], count = 0, runs = 0, said = 0;
    runOnce(&clean, false, NULL, scenario);
    Baseline before = baseline();
    for (uint32_t place = 0; place < layerFail->placeCount(); place++)
        if (strcmp(layerFail->placeEntry(place), "vkWaitForFences") == 0 && count < COUNT(places))
            places[count++] = place;
    assert_in_range(count, 3, COUNT(places) - 1);
    for (uint32_t i = 0; i < 2 * count; i++) {
        const LayerFailPlan plan = {places[i / 2], VK_TIMEOUT, i % 2};
        if (!harnessIsLong() && i % 2 != i / 2 % 2)
            continue;
        char label[128];
        snprintf(label, sizeof(label), "%s, place %u: a wait times out%s", name, plan.place,
                 plan.onwards ? ", and all after it" : "");
        runOnce(&attempt, !plan.onwards, &plan, scenario);
        if (!layerFail->hit())
            continue; // threads have come by in another order
        runs++;
        said += attempt.first == VK_TIMEOUT;
        if (attempt.first && attempt.first != VK_TIMEOUT)
            fail_msg("%s: %s returned %d (%s)", label, attempt.call, attempt.first, attempt.message);
        if (!attempt.first && !attempt.whileDestroying)
            fail_msg("%s: no call said so", label);
        if (!plan.onwards && attempt.last)
            fail_msg("%s: a second %s returned %d (%s)", label, attempt.lastCall, attempt.last, harness.message);
        if (plan.onwards || strstr(harness.message, "leaked")) // the device itself stays
            before = baseline();
        else // what was left under pending work ends with it
            judgeRemains(&before, label);
        if (!plan.onwards &&
            (attempt.resultSize != clean.resultSize || memcmp(attempt.result, clean.result, clean.resultSize) != 0))
            fail_msg("%s: the result is another", label);
    }
    layerFail->begin(NULL);
    print_message("%s: %u waits, %u runs, %u times VK_TIMEOUT\n", name, count, runs, said);
    assert_true(2 * runs >= count && 2 * said >= runs);
}

static uint32_t placesOf(const char* entry) {
    uint32_t count = 0;
    for (uint32_t place = 0; place < layerFail->placeCount(); place++)
        count += strcmp(layerFail->placeEntry(place), entry) == 0;
    return count;
}

// Whoever has asked for the queues may have submitted to them: closing waits for that, and not for what nobody could do.
static void closingWaitsForWhoeverHasTheQueues(void** state) {
    (void)state;
    for (int asked = 0; asked < 2; asked++) {
        const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = harnessMessage};
        VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
        VkmqaDevice device;
        REQUIRE(vkmqaOpenDevice(&open, &device));
        if (asked)
            REQUIRE(vkmqaGetDeviceHandles(device, &handles));
        layerFail->begin(NULL);
        layerFail->watch(true);
        vkmqaCloseDevice(device);
        layerFail->watch(false);
        assert_int_equal(placesOf("vkWaitForFences") > 0, asked);
    }
}

static VkmqaDevice openOne(void) {
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .skipVerification = VK_TRUE,
                                      .messageCallback = harnessMessage};
    VkmqaDevice device;
    REQUIRE(vkmqaOpenDevice(&open, &device));
    return device;
}

// What cannot be destroyed under pending work is destroyed when the device is closed.
static void closingDestroysWhatWasLeft(void** state) {
    (void)state;
    const LayerFailPlan plan = {0, VK_TIMEOUT, true};
    uint32_t word = 1;
    Baseline before = baseline();
    VkmqaDevice device = openOne();
    VkmqaMemory memory;
    VkmqaCommands commands;
    REQUIRE(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, 64, &memory));
    REQUIRE(vkmqaCreateCommands(device, &commands));
    REQUIRE(vkmqaBeginCommands(commands));
    REQUIRE(vkmqaSubmitCommands(commands));
    layerFail->begin(&plan);
    layerFail->watch(true);
    vkmqaDestroyCommands(commands);
    assert_non_null(strstr(harness.message, "left to vkmqaCloseDevice"));
    assert_int_equal(vkmqaUpload(memory, 0, &word, 4), VK_TIMEOUT);
    harness.message[0] = 0;
    vkmqaDestroyMemory(memory);
    assert_non_null(strstr(harness.message, "left to vkmqaCloseDevice"));
    layerFail->watch(false);
    layerFail->begin(NULL);
    vkmqaCloseDevice(device);
    judgeRemains(&before, "left under pending work");
}

// The fence of a wait that was given up is not used again before it has signalled; the layer ends who does.
static void closingMayBeTriedAgain(void** state) {
    (void)state;
    LayerFailPlan plan = {0, VK_TIMEOUT, false};
    Baseline before = baseline();
    for (int hangs = 0; hangs < 2; hangs++) {
        VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
        VkmqaDevice device = openOne();
        REQUIRE(vkmqaGetDeviceHandles(device, &handles));
        layerFail->begin(hangs ? &plan : NULL);
        layerFail->watch(true);
        vkmqaCloseDevice(device);
        while (!hangs && strcmp(layerFail->placeEntry(plan.place), "vkWaitForFences") != 0)
            plan.place++;
        if (hangs) {
            assert_non_null(strstr(harness.message, "leaked"));
            vkmqaCloseDevice(device);
        }
        layerFail->watch(false);
    }
    layerFail->begin(NULL);
    judgeRemains(&before, "closed twice");
}

// A cache of which a sequence is on its way to host memory.
typedef struct Moving {
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaSequence sequence;
    VkmqaCommands commands;
} Moving;

static Moving startMoving(void) {
    const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape), .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 16,
                                            .pageSize = 16, .maxSeqLenKv = 64};
    Moving m = {.device = openOne()};
    REQUIRE(vkmqaCreateAttention(vkmqaGetDeviceContext(m.device), &shape, &m.attention));
    const VkmqaCacheCreateInfo create = {.structSize = sizeof(create), .attention = m.attention, .numLayers = 1,
                                         .numPages = 4, .maxSequences = 1, .maxNewTokens = 16, .hostPages = 4,
                                         .device = m.device};
    REQUIRE(vkmqaCreateCache(&create, &m.cache));
    REQUIRE(vkmqaCreateSequence(m.cache, NULL, &m.sequence, NULL));
    const VkmqaSequenceTokens tokens = {m.sequence, 16, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    REQUIRE(vkmqaCreateCommands(m.device, &m.commands));
    REQUIRE(vkmqaBuildStep(m.cache, &build, &step));
    REQUIRE(vkmqaBeginCommands(m.commands));
    REQUIRE(vkmqaCmdUpdateCache(m.cache, vkmqaGetCommandBuffer(m.commands), &step));
    REQUIRE(vkmqaSubmitCommands(m.commands));
    REQUIRE(vkmqaOffloadSequence(m.cache, m.sequence));
    return m;
}

static void endMoving(Moving* m) {
    vkmqaDestroyCommands(m->commands);
    vkmqaDestroyAttention(m->attention);
    vkmqaCloseDevice(m->device);
}

// A failed wait tells nothing of the copies: before anything of them is used again, the queue is waited for.
static void failedWaitsForCopiesAreWaitedOut(void** state) {
    (void)state;
    const LayerFailPlan plan = {0, VK_ERROR_OUT_OF_HOST_MEMORY, false};
    Moving m = startMoving();
    layerFail->begin(&plan);
    layerFail->watch(true);
    assert_int_equal(vkmqaFinishTransfers(m.cache, UINT64_MAX), plan.error);
    layerFail->watch(false);
    assert_int_equal(placesOf("vkWaitForFences"), 2);
    layerFail->begin(NULL);
    REQUIRE(vkmqaRestoreSequence(m.cache, m.sequence));
    vkmqaDestroyCache(m.cache);
    endMoving(&m);
}

static void cachesUnderCopiesAreLeft(void** state) {
    (void)state;
    const LayerFailPlan plan = {0, VK_TIMEOUT, true};
    Baseline before = baseline();
    Moving m = startMoving();
    layerFail->begin(&plan);
    layerFail->watch(true);
    vkmqaDestroyCache(m.cache);
    layerFail->watch(false);
    layerFail->begin(NULL);
    assert_non_null(strstr(harness.message, "left to vkmqaCloseDevice"));
    endMoving(&m);
    judgeRemains(&before, "a cache under copies");
}

// A kernel that never answers its self-test: the device is lost to whoever goes on, and can be closed.
static void aHungDeviceIsLost(void** state) {
    (void)state;
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = harnessMessage};
    const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape), .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 16,
                                            .maxSeqLenKv = 64};
    LayerFailPlan plan = {0, VK_TIMEOUT, true};
    for (int hangs = 0; hangs < 2; hangs++) {
        VkmqaDevice device;
        VkmqaAttention attention;
        VkmqaMemory memory;
        REQUIRE(vkmqaOpenDevice(&open, &device));
        layerFail->begin(hangs ? &plan : NULL);
        layerFail->watch(true);
        VkResult result = vkmqaDeviceCreateAttention(device, &shape, &attention);
        layerFail->watch(false);
        while (!hangs && strcmp(layerFail->placeEntry(plan.place), "vkWaitForFences") != 0)
            plan.place++;
        layerFail->begin(NULL); // whatever follows succeeds, and yet
        assert_int_equal(result, hangs ? VK_TIMEOUT : VK_SUCCESS);
        if (hangs)
            expectCall(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, 64, &memory), VK_ERROR_DEVICE_LOST, "lost", "memory");
        else
            vkmqaDestroyAttention(attention);
        vkmqaCloseDevice(device);
    }
}

static void aHangIsATimeout(void** state) {
    (void)state;
    hangEverywhere("own device", scenarioOwn);
    hangEverywhere("engine's device", scenarioEngine);
    hangEverywhere("cache", scenarioCache);
}

// Opens nothing by harnessOpen: the devices come and go here.
int main(void) {
    const char* seed = getenv("VKMQA_TEST_SEED");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everyFunctionCanFail),
        cmocka_unit_test(onADeviceOfItsOwn),
        cmocka_unit_test(onAnEnginesDevice),
        cmocka_unit_test(ofACache),
        cmocka_unit_test(aHangIsATimeout),
        cmocka_unit_test(closingDestroysWhatWasLeft),
        cmocka_unit_test(closingMayBeTriedAgain),
        cmocka_unit_test(failedWaitsForCopiesAreWaitedOut),
        cmocka_unit_test(cachesUnderCopiesAreLeft),
        cmocka_unit_test(aHungDeviceIsLost),
        cmocka_unit_test(closingWaitsForWhoeverHasTheQueues),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    harness.seed = seed ? strtoull(seed, NULL, 0) : 1;
    void* layer = dlopen(VKMQA_TEST_LAYER, RTLD_NOW | RTLD_LOCAL); // stays when the loader lets go of it
    layerFail = layer ? (const LayerFail*)dlsym(layer, "vkmqaLayerFail") : NULL;
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = "0", .messageCallback = harnessMessage};
    VkmqaDevice device;
    if (!layerFail || vkmqaOpenDevice(&open, &device) != VK_SUCCESS) {
        fprintf(stderr, "failed: no %s (%s)\n", layerFail ? "Vulkan device" : "test layer", harness.message);
        return 1; // a driver that is not at hand is no run at all
    }
    if (strcmp(layerFail->alive(), "") == 0) {
        fprintf(stderr, "the test layer is not in the chain\n");
        return 1;
    }
    vkmqaCloseDevice(device);
    if (!mkdtemp(folder))
        return 1;
    scenariosOpen();
    cmocka_set_test_filter(getenv("VKMQA_TEST_FILTER"));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scenariosClose();
    remove(folder);
    return failed;
}

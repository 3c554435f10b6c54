// In a child of fork() a driver's threads are gone: nothing that a cache or an object of the parent's device is asked
// there may wait for them. Every call but destruction is an error with a sentence, destruction ends, and the parent goes
// on as if nothing had been. (Devices, memories and commands alone: test_api.)
//
// Use after destruction is undefined, as vkmqa.h says, but for sequence ids, which are told apart for good.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vkmqa/vkmqa_cache.h>

#define INVALID VK_ERROR_VALIDATION_FAILED_EXT
enum { CHILD_SECONDS = 60 };

typedef struct Inherited {
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaSequence sequence;
    VkmqaCommands commands;
} Inherited;

static const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape), .flags = VKMQA_ATTENTION_CAUSAL_BIT,
                                               .numHeadsQ = 2, .numHeadsKv = 1, .headDimQk = 16, .pageSize = 16,
                                               .maxSeqLenKv = 128};

static VkmqaCacheCreateInfo cacheInfo(const Inherited* inherited) {
    return (VkmqaCacheCreateInfo){.structSize = sizeof(VkmqaCacheCreateInfo), .attention = inherited->attention,
                                  .numLayers = 2, .numPages = 16, .maxSequences = 8, .maxNewTokens = 32,
                                  .hostPages = 16, .device = inherited->device};
}

// A step of 20 tokens whose rows nobody has written.
static VkResult runStep(Inherited* inherited) {
    const VkmqaSequenceTokens tokens = {inherited->sequence, 20, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkResult result = vkmqaBuildStep(inherited->cache, &build, &step);
    if (!result)
        result = vkmqaBeginCommands(inherited->commands);
    if (!result)
        result = vkmqaCmdUpdateCache(inherited->cache, vkmqaGetCommandBuffer(inherited->commands), &step);
    if (!result)
        result = vkmqaSubmitCommands(inherited->commands);
    return result ? result : vkmqaWaitCommands(inherited->commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull);
}

static Inherited inherit(void) {
    Inherited inherited = {0};
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info), .selector = getenv("VKMQA_TEST_DEVICE"),
                                      .skipVerification = VK_TRUE, .messageCallback = harnessMessage};
    REQUIRE(vkmqaOpenDevice(&info, &inherited.device));
    REQUIRE(vkmqaCreateAttention(vkmqaGetDeviceContext(inherited.device), &shape, &inherited.attention));
    REQUIRE(vkmqaCreateCommands(inherited.device, &inherited.commands));
    const VkmqaCacheCreateInfo create = cacheInfo(&inherited);
    REQUIRE(vkmqaCreateCache(&create, &inherited.cache));
    REQUIRE(vkmqaCreateSequence(inherited.cache, NULL, &inherited.sequence, NULL));
    REQUIRE(runStep(&inherited));
    // So that transfers have a command pool and fences of their own to be inherited.
    REQUIRE(vkmqaOffloadSequence(inherited.cache, inherited.sequence));
    REQUIRE(vkmqaRestoreSequence(inherited.cache, inherited.sequence));
    REQUIRE(vkmqaFinishTransfers(inherited.cache, UINT64_MAX));
    return inherited;
}

static void release(Inherited* inherited) {
    vkmqaDestroyCache(inherited->cache);
    vkmqaDestroyCommands(inherited->commands);
    vkmqaDestroyAttention(inherited->attention);
    vkmqaCloseDevice(inherited->device);
}

static VkBool32 ignore(void* user, const void* data, size_t size) {
    (void)user;
    (void)data;
    (void)size;
    return VK_TRUE;
}

// Each with a sentence of its own.
#define REFUSED(call)                                                            \
    do {                                                                         \
        harness.message[0] = 0;                                                  \
        CHILD_NEEDS((call) == INVALID && strstr(harness.message, "fork"));       \
    } while (0)

static void asksEverything(Inherited* inherited) {
    VkmqaAttention attention;
    VkmqaCache cache;
    const VkmqaCacheCreateInfo create = cacheInfo(inherited);
    const VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot), .write = ignore};
    const VkmqaRecorderCreateInfo calls = {.structSize = sizeof(calls), .maxCalls = 1};
    const VkmqaSequenceTokens tokens = {inherited->sequence, 1, NULL, NULL};
    const VkmqaStepBuildInfo build = {.structSize = sizeof(build), .count = 1, .tokens = &tokens};
    VkmqaCacheState state = {.structSize = sizeof(state)};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkmqaRecorder recorder;
    VkmqaSequence sequence;
    uint64_t failed;
    const VkmqaContext context = vkmqaGetDeviceContext(inherited->device);
    REFUSED(vkmqaCreateAttention(context, &shape, &attention));
    REFUSED(vkmqaVerifyAttention(inherited->attention, &(VkmqaVerifyInfo){.structSize = sizeof(VkmqaVerifyInfo)}, &failed));
    REFUSED(vkmqaCreateRecorder(context, &calls, &recorder));
    REFUSED(vkmqaResetRecorder(vkmqaGetCommandsRecorder(inherited->commands)));
    REFUSED(vkmqaDeviceCreateAttention(inherited->device, &shape, &attention));
    REFUSED(vkmqaCreateCache(&create, &cache));
    REFUSED(vkmqaBeginCommands(inherited->commands));
    REFUSED(vkmqaCreateSequence(inherited->cache, NULL, &sequence, NULL));
    REFUSED(vkmqaTruncateSequence(inherited->cache, inherited->sequence, 0));
    REFUSED(vkmqaDestroySequence(inherited->cache, inherited->sequence));
    REFUSED(vkmqaBuildStep(inherited->cache, &build, &step)); // lavapipe shares the mapped metadata with the parent
    REFUSED(vkmqaCmdUpdateCache(inherited->cache, vkmqaGetCommandBuffer(inherited->commands), NULL));
    REFUSED(vkmqaOffloadSequence(inherited->cache, inherited->sequence));
    REFUSED(vkmqaFinishTransfers(inherited->cache, UINT64_MAX));
    REFUSED(vkmqaSaveSequences(inherited->cache, 1, &inherited->sequence, &snapshot));
    REFUSED(vkmqaGetCacheState(inherited->cache, &state));
}

static void inChild(Inherited* inherited, void (*act)(Inherited*), const char* what) {
    fflush(NULL);
    pid_t process = fork();
    assert_true(process >= 0);
    if (process == 0) {
        alarm(CHILD_SECONDS); // what waits for the driver's threads would wait for good
        act(inherited);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(process, &status, 0), process);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        fail_msg("the child that %s ended with wait status 0x%x", what, (unsigned)status);
}

static void childrenOfForkDoNotHang(void** state) {
    (void)state;
    Inherited inherited = inherit();
    inChild(&inherited, asksEverything, "asked everything");
    inChild(&inherited, release, "released everything");
    // Nothing of it has touched the parent's.
    VkmqaSequenceState held = {.structSize = sizeof(held)};
    REQUIRE(vkmqaGetSequenceState(inherited.cache, inherited.sequence, &held));
    assert_int_equal(held.length, 20);
    REQUIRE(runStep(&inherited));
    REQUIRE(vkmqaOffloadSequence(inherited.cache, inherited.sequence));
    REQUIRE(vkmqaFinishTransfers(inherited.cache, UINT64_MAX));
    release(&inherited);
}

// A child may have a device of its own, opened after fork().
static void opensItsOwn(Inherited* unused) {
    (void)unused;
    harness.message[0] = 0;
    Inherited own = inherit(); // a failure would end in the parent's list of tests, and is told by its exit code
    CHILD_NEEDS(runStep(&own) == VK_SUCCESS);
    release(&own);
}

static void childrenOfForkOpenTheirOwn(void** state) {
    (void)state;
    inChild(NULL, opensItsOwn, "opened a device of its own");
}

static void sequenceIdsAreNeverTakenForAnother(void** state) {
    (void)state;
    Inherited inherited = inherit();
    const VkmqaCacheCreateInfo create = cacheInfo(&inherited);
    VkmqaCache other;
    REQUIRE(vkmqaCreateCache(&create, &other));
    VkmqaSequence stale = inherited.sequence, fresh = 0, copy = 0;
    VkmqaSequenceState held = {.structSize = sizeof(held)};
    assert_int_equal(vkmqaGetSequenceState(other, stale, &held), INVALID);
    for (int i = 0; i < 100; i++) { // the place is used again, the id is not
        REQUIRE(vkmqaDestroySequence(inherited.cache, stale));
        REQUIRE(vkmqaCreateSequence(inherited.cache, NULL, &fresh, NULL));
        assert_int_equal(vkmqaDestroySequence(inherited.cache, stale), INVALID);
        assert_int_equal(vkmqaTruncateSequence(inherited.cache, stale, 0), INVALID);
        assert_int_equal(vkmqaForkSequence(inherited.cache, stale, 0, &copy), INVALID);
        assert_int_equal(vkmqaOffloadSequence(inherited.cache, stale), INVALID);
        stale = fresh;
    }
    vkmqaDestroyCache(other);
    release(&inherited);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(childrenOfForkDoNotHang),
    cmocka_unit_test(childrenOfForkOpenTheirOwn),
    cmocka_unit_test(sequenceIdsAreNeverTakenForAnother),
};

HARNESS_MAIN(tests)

// The runtime layer's calls with bad input, what its transfers leave alone, and its objects after fork().
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const VkResult INVALID = VK_ERROR_VALIDATION_FAILED_EXT;

#define REJECTS(call, expected, word)                                                              \
    do {                                                                                           \
        harness.message[0] = 0;                                                                    \
        expectCall((call), (expected), (word), #call);                                           \
    } while (0)

// ---- Devices and memory ----------------------------------------------------------------------------

static void selectorsRejectWhatFitsNothing(void** state) {
    (void)state;
    static const char* const selectors[] = {
        "99",   "name:no such device", "uuid:zz", "uuid:00", "type:quantum", "gpu", "", "-1",
        "name:"};
    for (size_t i = 0; i < COUNT(selectors); i++) {
        VkmqaDeviceOpenInfo info = {.structSize = sizeof(info),
                                    .selector = selectors[i],
                                    .messageCallback = harnessMessage};
        VkmqaDevice device = NULL;
        harness.message[0] = 0;
        VkResult result = vkmqaOpenDevice(&info, &device);
        if (result == VK_SUCCESS) {
            // An empty selector may mean the default.
            assert_true(selectors[i][0] == 0 || strcmp(selectors[i], "name:") == 0);
            vkmqaCloseDevice(device);
            continue;
        }
        if (result != VK_ERROR_INITIALIZATION_FAILED && result != INVALID)
            fail_msg("selector \"%s\": VkResult %d", selectors[i], result);
        if (!harness.message[0])
            fail_msg("selector \"%s\": no message", selectors[i]);
        assert_null(device);
    }
    const VkmqaDeviceOpenInfo good = {.structSize = sizeof(good)};
    VkmqaDevice device = (VkmqaDevice)&good;
    assert_int_equal(vkmqaOpenDevice(NULL, &device), INVALID);
    assert_null(device);
    assert_int_equal(vkmqaOpenDevice(&good, NULL), INVALID);
    vkmqaCloseDevice(NULL);
}

static void memoriesRejectBadRanges(void** state) {
    (void)state;
    VkmqaMemory memory = NULL;
    uint32_t word = 0;
    assert_int_equal(vkmqaCreateMemory(NULL, VKMQA_MEMORY_DEVICE, 64, &memory), INVALID);
    REJECTS(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 0, &memory), INVALID, "size");
    REJECTS(vkmqaCreateMemory(harness.device, (VkmqaMemoryKind)7, 64, &memory), INVALID, "kind");
    REJECTS(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 64, NULL), INVALID, "memory");
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, 64, &memory));
    REJECTS(vkmqaUpload(memory, 64, &word, 4), INVALID, "size");
    REJECTS(vkmqaUpload(memory, 60, &word, 8), INVALID, "size");
    REJECTS(vkmqaUpload(memory, ~(VkDeviceSize)3, &word, 8), INVALID, "offset");
    REJECTS(vkmqaUpload(memory, 2, &word, 4), INVALID, "offset");
    REJECTS(vkmqaUpload(memory, 0, &word, 3), INVALID, "size");
    REJECTS(vkmqaUpload(memory, 0, NULL, 4), INVALID, "data");
    REJECTS(vkmqaDownload(memory, 64, &word, 4), INVALID, "size");
    REJECTS(vkmqaDownload(memory, 0, NULL, 4), INVALID, "data");
    VkmqaBuffer none = vkmqaGetMemoryRange(memory, 64, 16);
    assert_true(!none.buffer && none.size == 0 && none.address == 0);
    none = vkmqaGetMemoryRange(memory, 48, 17);
    assert_true(!none.buffer && none.size == 0);
    none = vkmqaGetMemoryRange(memory, 16, ~(VkDeviceSize)0);
    assert_true(!none.buffer && none.size == 0);
    VkmqaBuffer rest = vkmqaGetMemoryRange(memory, 16, 0);
    assert_true(rest.buffer && rest.offset == 16 && rest.size == 48);
    assert_null(vkmqaGetMemoryPointer(memory));
    vkmqaDestroyMemory(memory);
    vkmqaDestroyMemory(NULL);
    vkmqaDestroyCommands(NULL);
}

// Many times the staging buffer, which is of two slots of 8 MiB, and no multiple of it.
static void largeTransfersAreWhole(void** state) {
    (void)state;
    enum { WORDS = (43 << 20) / 4 + 3 };
    uint32_t* words = malloc(WORDS * 4);
    VkmqaMemory memory;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, WORDS * 4, &memory));
    for (uint32_t i = 0; i < WORDS; i++)
        words[i] = i * 2654435761u;
    REQUIRE(vkmqaUpload(memory, 0, words, WORDS * 4));
    memset(words, 0, WORDS * 4);
    REQUIRE(vkmqaDownload(memory, 0, words, WORDS * 4));
    for (uint32_t i = 0; i < WORDS; i++)
        if (words[i] != i * 2654435761u)
            fail_msg("word %u is 0x%x", i, words[i]);
    free(words);
    vkmqaDestroyMemory(memory);
}

// What has been downloaded is the caller's: later transfers through the same staging buffer leave it alone.
static void downloadsAreWrittenOnce(void** state) {
    (void)state;
    enum { BYTES = 3 << 20, TURNS = 12 };
    VkmqaMemory memory;
    uint8_t *first = malloc(BYTES), *rest = malloc(BYTES);
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, BYTES, &memory));
    memset(first, 1, BYTES);
    REQUIRE(vkmqaUpload(memory, 0, first, BYTES));
    memset(first, 0, BYTES);
    REQUIRE(vkmqaDownload(memory, 0, first, BYTES));
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal(first[i], 1);
    memset(first, 2, BYTES);
    for (uint32_t turn = 0; turn < TURNS; turn++)
        REQUIRE(turn % 2 ? vkmqaUpload(memory, 0, rest, BYTES) : vkmqaDownload(memory, 0, rest, BYTES));
    for (size_t i = 0; i < BYTES; i++)
        if (first[i] != 2 || rest[i] != 1)
            fail_msg("byte %zu is %u in what was downloaded first and %u in the last", i, first[i], rest[i]);
    free(first);
    free(rest);
    vkmqaDestroyMemory(memory);
}

// Between nothing and what a clock beside it says.
static void timesArePlausible(void** state) {
    (void)state;
    enum { BYTES = 16 << 20 };
    VkmqaCommands commands;
    VkmqaMemory memory;
    struct timespec begin, end;
    VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
    REQUIRE(vkmqaGetDeviceHandles(harness.device, &handles));
    PFN_vkCmdFillBuffer fill = (PFN_vkCmdFillBuffer)handles.getInstanceProcAddr(handles.instance, "vkCmdFillBuffer");
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, BYTES, &memory));
    REQUIRE(vkmqaCreateCommands(harness.device, &commands));
    for (uint32_t turn = 0; turn < 5; turn++) {
        REQUIRE(vkmqaBeginCommands(commands));
        fill(vkmqaGetCommandBuffer(commands), vkmqaGetMemoryRange(memory, 0, 0).buffer, 0, BYTES, turn);
        timespec_get(&begin, TIME_UTC);
        REQUIRE(vkmqaSubmitCommands(commands));
        REQUIRE(vkmqaWaitCommands(commands, UINT64_MAX));
        timespec_get(&end, TIME_UTC);
        const double took = vkmqaGetCommandsTime(commands);
        const double beside = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
        if (harness.properties.timestampPeriod > 0 ? took <= 0 || took > beside + 1 : took != 0)
            fail_msg("the device says %g s, the clock %g s", took, beside);
    }
    vkmqaDestroyCommands(commands);
    vkmqaDestroyMemory(memory);
}

// ---- After fork() ----------------------------------------------------------------------------------

// A device with everything that hangs from one: a staging buffer, a mapped memory, recorded commands.
typedef struct Inherited {
    VkmqaDevice device;
    VkmqaMemory memory, mapped;
    VkmqaCommands commands, recorded;
} Inherited;

static void closesEarly(Inherited* inherited, const char* what) {
    vkmqaCloseDevice(inherited->device); // must leave it open
    CHILD_NEEDS(strstr(harness.message, what));
    VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
    CHILD_NEEDS(vkmqaGetDeviceProperties(inherited->device, &properties) == VK_SUCCESS);
}

// The sanitizers tell whether anything is used after it was freed.
static void destroysInTheChild(Inherited* inherited, bool closeFirst) {
    uint32_t word = 0;
    VkmqaMemory memory;
    VkmqaCommands commands;
    CHILD_NEEDS(vkmqaCreateMemory(inherited->device, VKMQA_MEMORY_UPLOAD, 64, &memory) == INVALID);
    CHILD_NEEDS(vkmqaCreateCommands(inherited->device, &commands) == INVALID);
    CHILD_NEEDS(vkmqaUpload(inherited->memory, 0, &word, 4) == INVALID);
    CHILD_NEEDS(vkmqaSubmitCommands(inherited->recorded) == INVALID);
    CHILD_NEEDS(vkmqaWaitCommands(inherited->recorded, 0) == INVALID);
    if (closeFirst)
        closesEarly(inherited, "2 memories and 2 commands");
    vkmqaDestroyCommands(inherited->recorded);
    vkmqaDestroyMemory(inherited->memory);
    if (closeFirst)
        closesEarly(inherited, "1 memories and 1 commands");
    vkmqaDestroyMemory(inherited->mapped);
    if (closeFirst)
        closesEarly(inherited, "0 caches, and with theirs 0 memories and 1 commands");
    vkmqaDestroyCommands(inherited->commands);
    harness.message[0] = 0;
    vkmqaCloseDevice(inherited->device);
    CHILD_NEEDS(!harness.message[0]);
    _exit(0); // the driver's objects are the parent's: no exit handlers, no search for leaks
}

static void forkedChildrenDestroyInAnyOrder(void** state) {
    (void)state;
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info),
                                      .selector = getenv("VKMQA_TEST_DEVICE"),
                                      .skipVerification = VK_TRUE,
                                      .messageCallback = harnessMessage};
    Inherited inherited;
    uint32_t word = 0x600D600D, back = 0;
    REQUIRE(vkmqaOpenDevice(&info, &inherited.device));
    REQUIRE(vkmqaCreateMemory(inherited.device, VKMQA_MEMORY_DEVICE, 64, &inherited.memory));
    REQUIRE(vkmqaCreateMemory(inherited.device, VKMQA_MEMORY_UPLOAD, 64, &inherited.mapped));
    REQUIRE(vkmqaCreateCommands(inherited.device, &inherited.commands));
    REQUIRE(vkmqaCreateCommands(inherited.device, &inherited.recorded));
    REQUIRE(vkmqaUpload(inherited.memory, 0, &word, sizeof(word)));
    REQUIRE(vkmqaBeginCommands(inherited.recorded));
    for (int closeFirst = 0; closeFirst < 2; closeFirst++) {
        fflush(NULL);
        pid_t process = fork();
        assert_true(process >= 0);
        if (process == 0)
            destroysInTheChild(&inherited, closeFirst);
        int status = 0;
        assert_int_equal(waitpid(process, &status, 0), process);
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            fail_msg("the child that %s ended with wait status 0x%x",
                     closeFirst ? "closed first" : "closed last", (unsigned)status);
    }
    // Nothing of it has touched the parent's device.
    REQUIRE(vkmqaSubmitCommands(inherited.recorded));
    REQUIRE(vkmqaWaitCommands(inherited.recorded, UINT64_MAX));
    REQUIRE(vkmqaDownload(inherited.memory, 0, &back, sizeof(back)));
    assert_int_equal(back, word);
    vkmqaDestroyCommands(inherited.recorded);
    vkmqaDestroyCommands(inherited.commands);
    vkmqaDestroyMemory(inherited.mapped);
    vkmqaDestroyMemory(inherited.memory);
    vkmqaCloseDevice(inherited.device);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(selectorsRejectWhatFitsNothing), cmocka_unit_test(memoriesRejectBadRanges),
    cmocka_unit_test(largeTransfersAreWhole),         cmocka_unit_test(downloadsAreWrittenOnce),
    cmocka_unit_test(timesArePlausible),
    cmocka_unit_test(forkedChildrenDestroyInAnyOrder),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    harnessClose();
    return failed != 0;
}

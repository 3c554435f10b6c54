// That the layer's guards (layer/guard.c) notice what they are for: the library's append, given memory that is one
// row smaller than the range says, must not survive. Children are forked before anything of Vulkan is opened, each
// with an environment of its own.
#define _POSIX_C_SOURCE 200809L // setenv
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 4, PAGE_TOKENS = 64, ROW_BYTES = 16, EXIT_BEYOND = 86, EXIT_CANARY = 87 };
// A range by address only is refused: nothing lies before a descriptor's start.
enum { EXIT_DESCRIPTORS = 4 };

typedef struct Mistake {
    const char* name;
    const char* layer;
    VkDeviceSize newRowsMissing, cacheRowsMissing; // of memory
    VkDeviceSize rowsBefore;                       // newK's range begins before its memory
    bool slack; // a word is written right behind a memory of one word
    int exitCode;
} Mistake;

static VkmqaMemory makeMemory(VkDeviceSize size) {
    VkmqaMemory memory = NULL;
    if (vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, size, &memory) != VK_SUCCESS)
        _exit(2);
    return memory;
}

// The range that the library is told of, whatever the memory is.
static VkmqaBuffer claimRange(VkmqaMemory memory, VkDeviceSize size, VkDeviceSize before) {
    VkmqaBuffer range = vkmqaGetMemoryRange(memory, 0, 0);
    range.size = size;
    if (before) {
        range.buffer = VK_NULL_HANDLE;
        range.address -= before;
    }
    return range;
}

static int append(const Mistake* mistake) {
    const Model model = {.numHeadsQ = 1,
                         .numHeadsKv = 1,
                         .headDimQk = 8,
                         .headDimV = 8,
                         .io = ORACLE_F16,
                         .source = ORACLE_F16,
                         .k = ORACLE_F16,
                         .v = ORACLE_F16,
                         .maxSeqLenKv = PAGE_TOKENS};
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1, .newTokens = TOKENS};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaBufferRequirements stepNeeds;
    VkmqaAttention attention;
    VkmqaCommands commands;
    if (attentionCreate(&model, VKMQA_TIER_CPU, &attention) ||
        vkmqaGetStepLayout(attention, &limits, &step.layout, &stepNeeds) ||
        vkmqaCreateCommands(harness.device, &commands))
        return 2;
    VkmqaMemory source = makeMemory((TOKENS - mistake->newRowsMissing) * ROW_BYTES);
    VkmqaMemory k = makeMemory((PAGE_TOKENS - mistake->cacheRowsMissing) * ROW_BYTES);
    VkmqaMemory v = makeMemory(PAGE_TOKENS * ROW_BYTES), metadata = makeMemory(stepNeeds.size);
    int32_t* words = calloc(1, stepNeeds.size);
    for (int32_t i = 0; i < TOKENS; i++)
        words[step.layout.slotMapping / 4 + (uint32_t)i] = PAGE_TOKENS - TOKENS + i;
    step.metadata = vkmqaGetMemoryRange(metadata, 0, 0);
    const VkmqaKv kv = {claimRange(k, PAGE_TOKENS * ROW_BYTES, 0),
                        claimRange(v, PAGE_TOKENS * ROW_BYTES, 0), 1};
    const VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(commands),
        .step = &step,
        .kv = &kv,
        .newK = claimRange(source, TOKENS * ROW_BYTES, mistake->rowsBefore * ROW_BYTES),
        .newV = claimRange(source, TOKENS * ROW_BYTES, 0),
    };
    bool done = !vkmqaUpload(metadata, 0, words, stepNeeds.size) && !vkmqaBeginCommands(commands);
    if (done && vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &info))
        return mistake->rowsBefore ? EXIT_DESCRIPTORS : 2;
    done = done && !vkmqaSubmitCommands(commands) &&
           !vkmqaWaitCommands(commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull);
    free(words);
    VkmqaMemory memories[] = {source, k, v, metadata};
    vkmqaDestroyCommands(commands);
    for (size_t i = 0; i < COUNT(memories); i++)
        vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyAttention(attention);
    return done ? 0 : 2;
}

// Without harnessOpen, which compiles pipelines for every tier.
static int child(const Mistake* mistake) {
    const VkmqaDeviceOpenInfo info = {.structSize = sizeof(info),
                                      .selector = getenv("VKMQA_TEST_DEVICE"),
                                      .skipVerification = VK_TRUE,
                                      .messageCallback = harnessMessage};
    if (vkmqaOpenDevice(&info, &harness.device) != VK_SUCCESS)
        return 2;
    if (mistake->slack) {
        VkmqaMemory memory = NULL;
        if (vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, 4, &memory) != VK_SUCCESS)
            return 2;
        memset((char*)vkmqaGetMemoryPointer(memory) + 4, 0, 4);
        vkmqaDestroyMemory(memory);
    }
    int code = append(mistake);
    harnessClose();
    return code;
}

static const Mistake mistakes[] = {
    {"none", "guard", 0, 0, 0, false, 0},
    {"a row is read behind the memory", "guard", 1, 0, 0, false, EXIT_BEYOND},
    {"a row is written behind the memory", "guard", 0, 1, 0, false, EXIT_BEYOND},
    {"a row is read before the memory", "guard:front", 0, 0, 1, false, EXIT_BEYOND},
    {"a word is written that alignment leaves over", "guard", 0, 0, 0, true, EXIT_CANARY},
};

static int childExit(const Mistake* mistake) {
    fflush(stdout);
    pid_t process = fork();
    if (process == 0) {
        setenv("VKMQA_LAYER", mistake->layer, 1);
        setenv("VKMQA_TEST_GUARD", "none", 1);
        _exit(child(mistake));
    }
    int status = 0;
    waitpid(process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void mistakesAreFatal(void** state) {
    (void)state;
    for (size_t i = 0; i < COUNT(mistakes); i++) {
        int code = childExit(&mistakes[i]);
        if (code != mistakes[i].exitCode && code != EXIT_DESCRIPTORS)
            fail_msg("%s, %s: exit code %d, should be %d", mistakes[i].layer, mistakes[i].name,
                     code, mistakes[i].exitCode);
    }
}

// With a number: that mistake, in this process, for whoever watches it.
int main(int count, char** arguments) {
    if (count > 1)
        return child(&mistakes[strtoul(arguments[1], NULL, 10) % COUNT(mistakes)]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(mistakesAreFatal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

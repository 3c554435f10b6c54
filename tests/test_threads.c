// Any number of threads may record with one attention object, each into its own command buffer; objects
// of one context may be created from several threads at once, and devices too, a device per thread.
//
// Environment: VKMQA_TEST_THREADS   how many, default 4, at most 16
#define _XOPEN_SOURCE 700 // pthread_barrier_t
#include "harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 16, ROUNDS = 24 };
static uint32_t threads = 4;

static const Model model = {.numHeadsQ = 8,
                            .numHeadsKv = 2,
                            .headDimQk = 64,
                            .headDimV = 64,
                            .pageSize = 16,
                            .io = ORACLE_F16,
                            .k = ORACLE_F16,
                            .v = ORACLE_F16,
                            .causal = true,
                            .splitSize = 64,
                            .maxSeqLenKv = 512};

typedef struct Worker {
    pthread_t thread;
    pthread_barrier_t* start;
    VkmqaAttention attention;
    VkCommandBuffer commandBuffer;
    VkmqaRecorder recorder;
    Run* run;
    VkmqaMemory outs; // [ROUNDS] as large as run->out: what every call of its own has written
    VkmqaBuffer out[ROUNDS];
    VkResult result; // the first failure
} Worker;

// Records append and attention over and over into one command buffer; no call of cmocka from here.
static void* record(void* argument) {
    Worker* worker = argument;
    Run* run = worker->run;
    const VkmqaAppendInfo append = {.structSize = sizeof(append),
                                    .recorder = worker->recorder,
                                    .step = &run->step,
                                    .kv = &run->kv,
                                    .newK = run->newK.range,
                                    .newV = run->newV.range};
    VkmqaAttentionInfo attend = {.structSize = sizeof(attend),
                                 .recorder = worker->recorder,
                                 .step = &run->step,
                                 .kv = &run->kv,
                                 .q = run->q.range,
                                 .lse = run->lse.range,
                                 .scratch = run->scratch.range};
    pthread_barrier_wait(worker->start);
    worker->result = vkmqaCmdAppendKv(worker->attention, worker->commandBuffer, &append);
    for (int i = 0; i < ROUNDS && worker->result == VK_SUCCESS; i++) {
        attend.out = worker->out[i];
        worker->result = vkmqaCmdAttention(worker->attention, worker->commandBuffer, &attend);
    }
    return NULL;
}

// The first call's output goes to run->out, where the oracle judges it; the others must equal it.
static void prepareOutputs(Worker* worker) {
    VkDeviceSize size = (worker->run->out.range.size + 15) / 16 * 16;
    uint8_t* zeros = calloc(ROUNDS, size);
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, ROUNDS * size, &worker->outs));
    REQUIRE(vkmqaUpload(worker->outs, 0, zeros, ROUNDS * size));
    worker->out[0] = worker->run->out.range;
    for (int i = 1; i < ROUNDS; i++)
        worker->out[i] =
            vkmqaGetMemoryRange(worker->outs, (VkDeviceSize)i * size, worker->run->out.range.size);
    free(zeros);
}

static void checkOutputs(const Worker* worker, const Output* output, const char* label) {
    VkDeviceSize used = worker->run->out.range.size;
    VkDeviceSize size = (used + 15) / 16 * 16;
    uint8_t* outs = malloc(ROUNDS * size);
    REQUIRE(vkmqaDownload(worker->outs, 0, outs, ROUNDS * size));
    for (int i = 1; i < ROUNDS; i++)
        if (memcmp(outs + (size_t)i * size, output->out, used) != 0)
            fail_msg("%s: call %d computed something else than the first", label, i);
    free(outs);
}

static void threadsShareOneObject(void** state) {
    (void)state;
    for (uint32_t t = 0; t < harness.tierCount; t++) {
        VkmqaAttention attention;
        REQUIRE(attentionCreate(&model, harness.tiers[t], &attention));
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, threads);
        Worker workers[MOST_THREADS] = {0};
        Problem problems[MOST_THREADS];
        Run runs[MOST_THREADS];
        for (uint32_t i = 0; i < threads; i++) {
            const Batch batch = {.count = 2,
                                 .sequences = {{1, 200 + 31 * (int32_t)(i % 10)}, {1 + (int32_t)i, 60}},
                                 .append = true};
            problems[i] = problemCreate(&model, &batch, 50 + i, true);
            runs[i] = runCreate(attention, &problems[i], NULL);
            runUpload(&runs[i], &problems[i]);
            REQUIRE(vkmqaBeginCommands(runs[i].commands));
            workers[i] = (Worker){.start = &start,
                                  .attention = attention,
                                  .commandBuffer = vkmqaGetCommandBuffer(runs[i].commands),
                                  .recorder = vkmqaGetCommandsRecorder(runs[i].commands),
                                  .run = &runs[i]};
            prepareOutputs(&workers[i]);
        }
        for (uint32_t i = 0; i < threads; i++)
            assert_int_equal(pthread_create(&workers[i].thread, NULL, record, &workers[i]), 0);
        for (uint32_t i = 0; i < threads; i++)
            pthread_join(workers[i].thread, NULL);
        for (uint32_t i = 0; i < threads; i++) {
            char label[64];
            snprintf(label, sizeof(label), "%s, thread %u", tierName(harness.tiers[t]), i);
            if (workers[i].result != VK_SUCCESS)
                fail_msg("%s: VkResult %d (%s)", label, workers[i].result, harness.message);
            runSubmit(&runs[i]);
            Output output = runRead(&runs[i]);
            runCheck(&runs[i], &problems[i], &output, label);
            checkOutputs(&workers[i], &output, label);
            vkmqaDestroyMemory(workers[i].outs);
            outputDestroy(&output);
            runDestroy(&runs[i]);
            problemDestroy(&problems[i]);
        }
        pthread_barrier_destroy(&start);
        vkmqaDestroyAttention(attention);
    }
}

static void* create(void* argument) {
    Worker* worker = argument;
    pthread_barrier_wait(worker->start);
    const VkmqaAttentionCreateInfo info = attentionInfo(&model, VKMQA_TIER_AUTO);
    worker->result = vkmqaCreateAttention(harness.context, &info, &worker->attention);
    return NULL;
}

// All of them run the function at once; the caller looks at what they leave.
static void runThreads(Worker workers[], void* (*function)(void*)) {
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        workers[i].start = &start;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, function, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_barrier_destroy(&start);
}

static void threadsCreateObjects(void** state) {
    (void)state;
    Worker workers[MOST_THREADS] = {0};
    runThreads(workers, create);
    for (uint32_t i = 0; i < threads; i++) {
        REQUIRE(workers[i].result);
        vkmqaDestroyAttention(workers[i].attention);
    }
}

// Odd ones create and destroy objects of the context while even ones record with one that they share.
static void* recordOrCreate(void* argument) {
    Worker* worker = argument;
    if (worker->run)
        return record(worker);
    create(worker);
    if (worker->result == VK_SUCCESS)
        vkmqaDestroyAttention(worker->attention);
    return NULL;
}

static void threadsRecordWhileOthersCreate(void** state) {
    (void)state;
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, VKMQA_TIER_AUTO, &attention));
    Worker workers[MOST_THREADS] = {0};
    Problem problems[MOST_THREADS];
    Run runs[MOST_THREADS];
    const Batch batch = {.count = 1, .sequences = {{1, 100}}, .append = true};
    for (uint32_t i = 0; i < threads; i += 2) {
        problems[i] = problemCreate(&model, &batch, 80 + i, true);
        runs[i] = runCreate(attention, &problems[i], NULL);
        runUpload(&runs[i], &problems[i]);
        REQUIRE(vkmqaBeginCommands(runs[i].commands));
        workers[i] = (Worker){.attention = attention,
                              .commandBuffer = vkmqaGetCommandBuffer(runs[i].commands),
                              .recorder = vkmqaGetCommandsRecorder(runs[i].commands),
                              .run = &runs[i]};
        prepareOutputs(&workers[i]);
    }
    runThreads(workers, recordOrCreate);
    for (uint32_t i = 0; i < threads; i++) {
        REQUIRE(workers[i].result);
        if (!workers[i].run)
            continue;
        runSubmit(&runs[i]);
        Output output = runRead(&runs[i]);
        runCheck(&runs[i], &problems[i], &output, "while others create");
        vkmqaDestroyMemory(workers[i].outs);
        outputDestroy(&output);
        runDestroy(&runs[i]);
        problemDestroy(&problems[i]);
    }
    vkmqaDestroyAttention(attention);
}

// A device of its own, from opening to closing.
static void* useDevice(void* argument) {
    Worker* worker = argument;
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .selector = getenv("VKMQA_TEST_DEVICE")};
    const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape), .numHeadsQ = 1, .numHeadsKv = 1,
                                            .headDimQk = 16, .pageSize = 16};
    VkmqaDevice device = NULL;
    VkmqaMemory memory = NULL;
    VkmqaCommands commands = NULL;
    uint32_t count = 0, sent[64] = {0}, received[64] = {1};
    sent[63] = (uint32_t)(uintptr_t)worker;
    pthread_barrier_wait(worker->start);
    VkResult result = vkmqaListDevices(&count, NULL, NULL, NULL);
    if (!result)
        result = vkmqaOpenDevice(&open, &device);
    if (!result)
        result = vkmqaDeviceCreateAttention(device, &shape, &worker->attention); // verified
    if (!result)
        result = vkmqaCreateCommands(device, &commands);
    if (!result)
        result = vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, sizeof(sent), &memory);
    if (!result)
        result = vkmqaUpload(memory, 0, sent, sizeof(sent));
    if (!result)
        result = vkmqaDownload(memory, 0, received, sizeof(received));
    if (!result && memcmp(sent, received, sizeof(sent)) != 0)
        result = VK_ERROR_UNKNOWN;
    vkmqaDestroyMemory(memory);
    vkmqaDestroyCommands(commands);
    vkmqaDestroyAttention(worker->attention);
    vkmqaCloseDevice(device);
    worker->result = result;
    return NULL;
}

static void threadsOpenDevices(void** state) {
    (void)state;
    Worker workers[MOST_THREADS] = {0};
    const uint32_t all = threads;
    threads = all < 6 ? all : 6; // each verifies its kernels, which takes its time
    runThreads(workers, useDevice);
    for (uint32_t i = 0; i < threads; i++)
        REQUIRE(workers[i].result);
    threads = all;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(threadsShareOneObject),
    cmocka_unit_test(threadsCreateObjects),
    cmocka_unit_test(threadsRecordWhileOthersCreate),
    cmocka_unit_test(threadsOpenDevices),
};

int main(void) {
    const char* given = getenv("VKMQA_TEST_THREADS");
    const unsigned long count = given ? strtoul(given, NULL, 10) : threads;
    threads = count >= 1 && count <= MOST_THREADS ? (uint32_t)count : MOST_THREADS;
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    harnessClose();
    return failed != 0;
}

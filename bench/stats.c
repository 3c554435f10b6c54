// Time: clocks, order statistics, and the loop that measures a call.
// SPDX-License-Identifier: MIT
#include "bench.h"

#include <math.h>
#include <stdlib.h>

static int compareDoubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

Stats summarise(double* samples, uint32_t count) {
    Stats stats = {.count = count};
    if (count == 0)
        return stats;
    qsort(samples, count, sizeof(double), compareDoubles);
    for (uint32_t i = 0; i < count; i++)
        stats.mean += samples[i] / count;
    stats.best = samples[0];
    stats.median = 0.5 * (samples[(count - 1) / 2] + samples[count / 2]);
    stats.p95 = samples[(uint32_t)ceil(0.95 * count) - 1]; // nearest rank
    return stats;
}

enum {
    MAX_CALLS = 16, // of one submission
    MAX_SUBMISSIONS = 32
};
static const double submissionSeconds = 2e-3; // long against the cost of submitting and waiting
static const uint64_t timeoutNs = 120ull * 1000000000ull;

BenchResult submitAndWait(Session* session, VkmqaCommands commands, double* seconds) {
    double start = secondsNow();
    BenchResult result = checkVk(vkmqaSubmitCommands(commands), "submitting work");
    if (result != BENCH_OK)
        return result;
    VkResult waited = vkmqaWaitCommands(commands, timeoutNs);
    double wall = secondsNow() - start;
    if (waited == VK_TIMEOUT)
        return fail(BENCH_ERROR, "the device has not finished after %g s",
                    (double)timeoutNs * 1e-9);
    double device = vkmqaGetCommandsTime(commands);
    *seconds = session->options->wallTimer || device <= 0 ? wall : device;
    return checkVk(waited, "waiting for the device");
}

static BenchResult recordCalls(VkmqaCommands commands, RecordCall record, void* user,
                               uint32_t first, uint32_t calls) {
    BenchResult result = checkVk(vkmqaBeginCommands(commands), "beginning a command buffer");
    for (uint32_t i = 0; result == BENCH_OK && i < calls; i++)
        result = record(user, vkmqaGetCommandBuffer(commands), vkmqaGetCommandsRecorder(commands),
                        first + i);
    return result;
}

BenchResult runOnce(Session* session, RecordCall record, void* user) {
    VkmqaCommands commands = NULL;
    double seconds;
    BenchResult result =
        checkVk(vkmqaCreateCommands(session->device, &commands), "creating a command buffer");
    if (result == BENCH_OK)
        result = recordCalls(commands, record, user, 0, 1);
    if (result == BENCH_OK)
        result = submitAndWait(session, commands, &seconds);
    vkmqaDestroyCommands(commands);
    return result;
}

// Enough samples for a p95 where the call is fast, 3 where it is slow, 2 where it takes seconds.
static uint32_t chooseSamples(const Options* options, double submission) {
    if (options->repetitions)
        return options->repetitions;
    uint32_t most = options->quick ? 10 : 30;
    double budget = options->quick ? 0.3 : 1.0;
    double fit = budget / (submission > 1e-6 ? submission : 1e-6);
    uint32_t least = submission > 1 ? 2 : 3;
    return fit >= most ? most : fit <= least ? least : (uint32_t)fit;
}

BenchResult measure(Session* session, RecordCall record, void* user, uint32_t copies,
                    Stats* stats) {
    VkmqaCommands commands[MAX_SUBMISSIONS] = {NULL};
    double* samples = NULL;
    double seconds = 0;
    BenchResult result =
        checkVk(vkmqaCreateCommands(session->device, &commands[0]), "creating a command buffer");
    // The first run may compile, the second tells how long a call takes.
    if (result == BENCH_OK)
        result = recordCalls(commands[0], record, user, 0, 1);
    for (int i = 0; i < 2 && result == BENCH_OK; i++)
        result = submitAndWait(session, commands[0], &seconds);
    if (result != BENCH_OK)
        goto done;
    double wanted = ceil(submissionSeconds / (seconds > 1e-6 ? seconds : 1e-6));
    uint32_t calls = wanted > MAX_CALLS ? MAX_CALLS : (uint32_t)wanted;
    uint32_t submissions = (copies + calls - 1) / calls;
    if (submissions > MAX_SUBMISSIONS)
        submissions = MAX_SUBMISSIONS;
    for (uint32_t i = 0; i < submissions && result == BENCH_OK; i++) {
        if (i > 0)
            result = checkVk(vkmqaCreateCommands(session->device, &commands[i]),
                             "creating a command buffer");
        if (result == BENCH_OK)
            result = recordCalls(commands[i], record, user, i * calls, calls);
    }
    uint32_t count = chooseSamples(session->options, seconds * calls);
    samples = allocate(count, sizeof(double));
    uint32_t turn = 0;
    // The two runs above have warmed up what takes longer than the warm-up itself.
    double warm = secondsNow() + session->options->warmupSeconds;
    bool needed = submissions > 1 || seconds * calls < session->options->warmupSeconds;
    while (result == BENCH_OK && needed && (turn < submissions || secondsNow() < warm))
        result = submitAndWait(session, commands[turn++ % submissions], &seconds);
    for (uint32_t i = 0; i < count && result == BENCH_OK; i++) {
        result = submitAndWait(session, commands[turn++ % submissions], &seconds);
        samples[i] = seconds / calls;
    }
    if (result == BENCH_OK)
        *stats = summarise(samples, count);
done:
    for (uint32_t i = 0; i < MAX_SUBMISSIONS; i++)
        vkmqaDestroyCommands(commands[i]);
    free(samples);
    return result;
}

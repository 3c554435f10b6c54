// Work side by side, on threads of the layer's own. SPDX-License-Identifier: MIT
#include "device.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <pthread.h>
#include <unistd.h>
#endif

enum { MOST_THREADS = 8 };

// Thread t of n does the jobs t, t + n, ...
struct Share {
    VkmqaJob job;
    void* jobData;
    uint32_t first, step, count;
};

static void work(const struct Share* share) {
    for (uint32_t i = share->first; i < share->count; i += share->step)
        share->job(share->jobData, i);
}

#ifdef _WIN32
typedef HANDLE Thread;
static DWORD WINAPI start(LPVOID share) {
    work(share);
    return 0;
}
static bool create(Thread* thread, struct Share* share) {
    return (*thread = CreateThread(NULL, 0, start, share, 0, NULL)) != NULL;
}
static void join(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
static uint32_t processors(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (uint32_t)info.dwNumberOfProcessors;
}
#else
typedef pthread_t Thread;
static void* start(void* share) {
    work(share);
    return NULL;
}
static bool create(Thread* thread, struct Share* share) { return pthread_create(thread, NULL, start, share) == 0; }
static void join(Thread thread) { pthread_join(thread, NULL); }
static uint32_t processors(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (uint32_t)count : 1;
}
#endif

void vkmqa_run_jobs(void* user, uint32_t count, VkmqaJob job, void* jobData) {
    Thread threads[MOST_THREADS];
    struct Share shares[MOST_THREADS];
    bool running[MOST_THREADS] = {false};
    uint32_t n = processors();
    (void)user;
    n = n < MOST_THREADS ? n : MOST_THREADS;
    n = n < count ? n : count;
    for (uint32_t t = 0; t < n; ++t) {
        shares[t] = (struct Share){job, jobData, t, n, count};
        running[t] = t > 0 && create(&threads[t], &shares[t]);
    }
    for (uint32_t t = 0; t < n; ++t) // the caller's own share, and of threads that could not be had
        if (!running[t])
            work(&shares[t]);
    for (uint32_t t = 0; t < n; ++t)
        if (running[t])
            join(threads[t]);
}

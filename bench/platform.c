// POSIX and Windows. SPDX-License-Identifier: MIT
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifdef _WIN32
#include <io.h>
#include <process.h>
#include <windows.h>
#define open _open
#define read _read
#define write _write
#define close _close
#define fsync _commit
#define FLAGS _O_BINARY
#define MODE (_S_IREAD | _S_IWRITE)
#include <sys/stat.h>
#else
#include <sys/utsname.h>
#include <unistd.h>
#define FLAGS 0
#define MODE 0600
#endif

enum { PIECE = 8 << 20 }; // of a file, in one call

double secondsNow(void) {
#ifdef _WIN32
    LARGE_INTEGER ticks, perSecond;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&perSecond);
    return (double)ticks.QuadPart / (double)perSecond.QuadPart;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

uint32_t processorCount(void) {
#ifdef _WIN32
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    long count = (long)info.dwNumberOfProcessors;
#else
    long count = sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return count < 1 ? 1 : (uint32_t)count;
}

uint64_t lastLevelCacheBytes(void) {
#ifdef _SC_LEVEL3_CACHE_SIZE
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? (uint64_t)bytes : 0;
#else
    return 0;
#endif
}

bool terminalAtStderr(void) {
#ifdef _WIN32
    return _isatty(_fileno(stderr)) != 0;
#else
    return isatty(STDERR_FILENO) != 0;
#endif
}

long processNumber(void) {
#ifdef _WIN32
    return (long)_getpid();
#else
    return (long)getpid();
#endif
}

void systemName(char* text, size_t size) {
#ifdef _WIN32
    snprintf(text, size, "Windows");
#else
    struct utsname system;
    if (uname(&system) != 0)
        snprintf(text, size, "unknown system");
    else
        snprintf(text, size, "%s %s %s", system.sysname, system.release, system.machine);
#endif
}

static unsigned pieceOf(size_t left) { return left < PIECE ? (unsigned)left : PIECE; }

bool writeWholeFile(const char* path, const char* temporary, const void* bytes, size_t size) {
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | FLAGS, MODE);
    if (file < 0)
        return false;
    bool done = true;
    for (size_t at = 0; done && at < size;) {
        int wrote = (int)write(file, (const char*)bytes + at, pieceOf(size - at));
        done = wrote > 0;
        at += done ? (size_t)wrote : 0;
    }
    done = done && fsync(file) == 0;
    done = close(file) == 0 && done;
#ifdef _WIN32
    if (done)
        remove(path); // rename does not replace
#endif
    return done && rename(temporary, path) == 0;
}

bool readWholeFile(const char* path, void* bytes, size_t size) {
    int file = open(path, O_RDONLY | FLAGS);
    if (file < 0)
        return false;
    bool done = true;
    errno = 0;
    for (size_t at = 0; done && at < size;) {
        int got = (int)read(file, (char*)bytes + at, pieceOf(size - at));
        done = got > 0;
        at += done ? (size_t)got : 0;
    }
    close(file);
    return done;
}

// The C library's calls, wrapped by the linker (--wrap) for the library's objects in this program.
#define _DEFAULT_SOURCE
#include "failures.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// ---- Memory --------------------------------------------------------------------------------------

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
enum { GUARD = 64, GUARD_BYTE = 0xA5 }; // behind every allocation; an index read from there leads far away
static struct Live {
    void* memory;
    size_t size;
} live[65536];
static size_t liveCount;

static void remember(void* memory, size_t size) {
    memset((char*)memory + size, GUARD_BYTE, GUARD);
    pthread_mutex_lock(&mutex);
    assert_true(liveCount < COUNT(live));
    live[liveCount++] = (struct Live){memory, size};
    pthread_mutex_unlock(&mutex);
}

static void checkGuard(const struct Live* allocation) {
    const uint8_t* guard = (const uint8_t*)allocation->memory + allocation->size;
    for (int i = 0; i < GUARD; i++)
        if (guard[i] != GUARD_BYTE) {
            fprintf(stderr, "byte %d behind an allocation of %zu was written\n", i, allocation->size);
            abort();
        }
}

static void forget(void* memory) {
    pthread_mutex_lock(&mutex);
    for (size_t i = liveCount; i-- > 0;)
        if (live[i].memory == memory) {
            checkGuard(&live[i]);
            live[i] = live[--liveCount];
            break;
        }
    pthread_mutex_unlock(&mutex);
}

long systemAllocations(void) { return (long)liveCount; }

// The library's own code is linked into this program; drivers and layers are not.
extern char __executable_start[], etext[];
static bool isOurs(const void* address) {
    return (const char*)address >= __executable_start && (const char*)address < etext;
}

void* __real_calloc(size_t count, size_t size);
void* __wrap_calloc(size_t count, size_t size);
void* __wrap_calloc(size_t count, size_t size) {
    if (!layerFail)
        return __real_calloc(count, size);
    if (layerFail->fails("calloc"))
        return NULL;
    if (!layerFail->watching() || (size && count > (SIZE_MAX - GUARD) / size))
        return __real_calloc(count, size);
    void* memory = __real_calloc(1, count * size + GUARD);
    if (memory)
        remember(memory, count * size);
    return memory;
}

void __real_free(void* memory);
void __wrap_free(void* memory);
void __wrap_free(void* memory) {
    if (memory)
        forget(memory);
    __real_free(memory);
}

static const VkAllocationCallbacks* below;
static VKAPI_ATTR void* VKAPI_CALL allocate(void* user, size_t size, size_t alignment, VkSystemAllocationScope scope) {
    if (isOurs(__builtin_return_address(0)) && layerFail->fails("pfnAllocation"))
        return NULL;
    return below->pfnAllocation(user, size, alignment, scope);
}
VkAllocationCallbacks systemAllocator(const VkAllocationCallbacks* next) {
    VkAllocationCallbacks callbacks = *next;
    below = next;
    callbacks.pfnAllocation = allocate;
    return callbacks;
}

// ---- Files and threads -----------------------------------------------------------------------------

#define WRAP(type, name, parameters, arguments, failure, error)                                    \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        if (layerFail && layerFail->fails(#name)) {                                                \
            errno = error;                                                                         \
            return failure;                                                                        \
        }                                                                                          \
        return __real_##name arguments;                                                            \
    }
WRAP(int, fstat, (int file, struct stat* state), (file, state), -1, EIO)
WRAP(int, fchmod, (int file, mode_t mode), (file, mode), -1, EPERM)
WRAP(int, fsync, (int file), (file), -1, EIO)
WRAP(int, rename, (const char* from, const char* to), (from, to), -1, EACCES)
WRAP(ssize_t, read, (int file, void* data, size_t size), (file, data, size), -1, EIO)
WRAP(ssize_t, write, (int file, const void* data, size_t size), (file, data, size), -1, ENOSPC)
WRAP(off_t, lseek, (int file, off_t offset, int from), (file, offset, from), -1, EIO)
WRAP(int, pthread_create,
     (pthread_t * thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument),
     (thread, attributes, start, argument), EAGAIN, EAGAIN)

// Loaders alone are opened, by their names.
void* __real_dlopen(const char* name, int flags);
void* __wrap_dlopen(const char* name, int flags);
void* __wrap_dlopen(const char* name, int flags) {
    if (layerFail && strncmp(name, "libvulkan.so", 12) != 0)
        abort();
    return layerFail && layerFail->fails("dlopen") ? NULL : __real_dlopen(name, flags);
}

int __real_open(const char* name, int flags, ...);
int __wrap_open(const char* name, int flags, mode_t mode);
int __wrap_open(const char* name, int flags, mode_t mode) {
    if (layerFail && layerFail->fails("open")) {
        errno = EMFILE;
        return -1;
    }
    return __real_open(name, flags, mode);
}

// A close that fails has closed.
int __real_close(int file);
int __wrap_close(int file);
int __wrap_close(int file) {
    bool reads = (fcntl(file, F_GETFL) & O_ACCMODE) == O_RDONLY;
    bool fails = layerFail && layerFail->fails(reads ? "close after reading" : "close");
    int result = __real_close(file);
    if (fails)
        errno = EIO;
    return fails ? -1 : result;
}

long systemFiles(void) {
    long count = 0;
    DIR* folder = opendir("/proc/self/fd");
    while (folder && readdir(folder))
        count++;
    if (folder)
        closedir(folder);
    return count;
}

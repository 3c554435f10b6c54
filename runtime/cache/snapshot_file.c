// Files of snapshots: POSIX and Windows. SPDX-License-Identifier: MIT
//
// A file is written under another name in the same folder, NAME.unfinished-PROCESS-NUMBER, synced, and renamed.
// So there is the old file or the new one, whole, whenever the program or the machine stops; at worst a file
// of that name is left over, which nobody reads.
#define _FILE_OFFSET_BITS 64
#include "snapshot.h"

#include <stdio.h>
#include <string.h>

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum {
    MAX_TRIES = 1000,          // of temporary names
    MAX_TRANSFER = 1 << 30,    // of one call; some systems refuse more than 2^31
    SEND_BYTES = 32 << 20,     // written before their way to the disk begins, so that syncing waits for little
};

// ---- what the systems do ----------------------------------------------------------------------------

#ifdef _WIN32

static void error_text(char* text, size_t size) {
    DWORD length = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL,
                                  GetLastError(), 0, text, (DWORD)size, NULL);
    while (length && (unsigned char)text[length - 1] <= ' ')
        --length;
    text[length] = 0;
}

// 0: done, 1: the name is taken, -1: an error.
static int create(const char* name, const char* old, intptr_t* handle) {
    (void)old; // the folder's rights are inherited
    HANDLE file = CreateFileA(name, GENERIC_WRITE, 0, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
    *handle = (intptr_t)file;
    return file != INVALID_HANDLE_VALUE ? 0 : GetLastError() == ERROR_FILE_EXISTS ? 1 : -1;
}

static bool open_existing(const char* name, intptr_t* handle, bool* regular) {
    HANDLE file = CreateFileA(name, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                              FILE_FLAG_SEQUENTIAL_SCAN, NULL);
    *handle = (intptr_t)file;
    *regular = file != INVALID_HANDLE_VALUE && GetFileType(file) == FILE_TYPE_DISK;
    return file != INVALID_HANDLE_VALUE;
}

static bool size_of(intptr_t handle, uint64_t* size) {
    LARGE_INTEGER bytes;
    if (!GetFileSizeEx((HANDLE)handle, &bytes))
        return false;
    *size = (uint64_t)bytes.QuadPart;
    return true;
}

// Bytes moved, 0: the end of the file; -1: an error.
static long long transfer(intptr_t handle, bool write, void* data, size_t size) {
    DWORD moved = 0;
    BOOL done = write ? WriteFile((HANDLE)handle, data, (DWORD)size, &moved, NULL)
                      : ReadFile((HANDLE)handle, data, (DWORD)size, &moved, NULL);
    return done ? (long long)moved : -1;
}

static bool seek(intptr_t handle, uint64_t position) {
    LARGE_INTEGER to = {.QuadPart = (LONGLONG)position};
    return SetFilePointerEx((HANDLE)handle, to, NULL, FILE_BEGIN);
}

static void start_writing(intptr_t handle, uint64_t offset, uint64_t size) { (void)handle, (void)offset, (void)size; }
static bool sync_file(intptr_t handle) { return FlushFileBuffers((HANDLE)handle); }
static bool close_handle(intptr_t handle) { return CloseHandle((HANDLE)handle); }
static bool replace(const char* from, const char* to) {
    return MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
}
static bool sync_folder(const char* name, char* scratch) {
    (void)name, (void)scratch; // MOVEFILE_WRITE_THROUGH has done it
    return true;
}
static void remove_file(const char* name) { DeleteFileA(name); }
static unsigned long process_number(void) { return GetCurrentProcessId(); }

#else

static void error_text(char* text, size_t size) {
    int error = errno;
    if (strerror_r(error, text, size) != 0)
        snprintf(text, size, "error %d", error);
}

static int create(const char* name, const char* old, intptr_t* handle) {
    int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    *handle = file;
    if (file < 0)
        return errno == EEXIST ? 1 : -1;
    struct stat state; // whoever could not read the old file cannot read the new one
    if (stat(old, &state) == 0 && S_ISREG(state.st_mode) && fchmod(file, state.st_mode & 0777) != 0) {
        int error = errno;
        close(file);
        unlink(name);
        errno = error;
        return -1;
    }
    return 0;
}

static bool open_existing(const char* name, intptr_t* handle, bool* regular) {
    int file = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe would wait for its writer
    *handle = file;
    struct stat state;
    *regular = file >= 0 && fstat(file, &state) == 0 && S_ISREG(state.st_mode);
    return file >= 0;
}

static bool size_of(intptr_t handle, uint64_t* size) {
    struct stat state;
    if (fstat((int)handle, &state) != 0)
        return false;
    *size = (uint64_t)state.st_size;
    return true;
}

static long long transfer(intptr_t handle, bool writes, void* data, size_t size) {
    ssize_t moved;
    do
        moved = writes ? write((int)handle, data, size) : read((int)handle, data, size);
    while (moved < 0 && errno == EINTR);
    return moved;
}

static bool seek(intptr_t handle, uint64_t position) {
    return lseek((int)handle, (off_t)position, SEEK_SET) >= 0;
}

// Lets the disk begin while the device is still being read. Systems that do not take the hint lose time alone.
static void start_writing(intptr_t handle, uint64_t offset, uint64_t size) {
#ifdef POSIX_FADV_DONTNEED
    (void)posix_fadvise((int)handle, (off_t)offset, (off_t)size, POSIX_FADV_DONTNEED);
#else
    (void)handle, (void)offset, (void)size;
#endif
}

static bool sync_file(intptr_t handle) {
#ifdef F_FULLFSYNC // where fsync stops at the disk's own cache
    if (fcntl((int)handle, F_FULLFSYNC) == 0)
        return true;
#endif
    return fsync((int)handle) == 0;
}

static bool close_handle(intptr_t handle) { return close((int)handle) == 0; }
static bool replace(const char* from, const char* to) { return rename(from, to) == 0; }

// `scratch` has room for the name.
static bool sync_folder(const char* name, char* scratch) {
    const char* slash = strrchr(name, '/');
    size_t length = slash ? (size_t)(slash - name) : 0;
    memcpy(scratch, name, length);
    scratch[length] = 0;
    int folder = open(length ? scratch : slash ? "/" : ".", O_RDONLY | O_CLOEXEC);
    if (folder < 0)
        return errno == EACCES; // a folder that may be written to, not read
    bool done = fsync(folder) == 0 || errno == EINVAL; // not every file system can
    close(folder);
    return done;
}

static void remove_file(const char* name) { unlink(name); }
static unsigned long process_number(void) { return (unsigned long)getpid(); }

#endif

// ---- what snapshots do ------------------------------------------------------------------------------

static VkResult fail(struct VkmqaSnapshot* snapshot, const char* what, const char* name) {
    char text[128];
    error_text(text, sizeof text);
    const char* rest = !snapshot->saving ? "" : "; what info.path named before is untouched";
    return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN, "%s: %s%s (%s)", what, text, rest, name);
}

VkResult vkmqa_create_file(struct VkmqaSnapshot* snapshot) {
    struct VkmqaSnapshotFile* file = &snapshot->file;
    const char* path = snapshot->info.path;
    size_t room = strlen(path) + 64;
    file->temporary = vkmqa_cache_allocate(snapshot->cache, room, 1);
    if (!file->temporary)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_OUT_OF_HOST_MEMORY, "no memory for a file name");
    int taken = 1;
    for (int i = 0; i < MAX_TRIES && taken == 1; ++i) {
        snprintf(file->temporary, room, "%s.unfinished-%lu-%d", path, process_number(), i);
        taken = create(file->temporary, path, &file->handle);
    }
    if (taken != 0)
        return fail(snapshot, "the file cannot be created", file->temporary);
    file->open = true;
    return VK_SUCCESS;
}

VkResult vkmqa_open_file(struct VkmqaSnapshot* snapshot) {
    bool regular;
    if (!open_existing(snapshot->info.path, &snapshot->file.handle, &regular))
        return fail(snapshot, "the file cannot be opened", snapshot->info.path);
    snapshot->file.open = true;
    if (!regular)
        return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN, "info.path is not a file; use info.read (%s)",
                                   snapshot->info.path);
    return VK_SUCCESS;
}

VkResult vkmqa_file_size(struct VkmqaSnapshot* snapshot, uint64_t* size) {
    return size_of(snapshot->file.handle, size)
               ? VK_SUCCESS
               : fail(snapshot, "the file's size cannot be asked for", snapshot->info.path);
}

VkResult vkmqa_write_file(struct VkmqaSnapshot* snapshot, const void* data, size_t size) {
    struct VkmqaSnapshotFile* file = &snapshot->file;
    for (const char* at = data; size;) {
        long long moved = transfer(file->handle, true, (void*)at, size < MAX_TRANSFER ? size : MAX_TRANSFER);
        if (moved < 0)
            return fail(snapshot, "writing failed", file->temporary);
        at += moved;
        size -= (size_t)moved;
        file->written += (uint64_t)moved;
        if (file->written - file->sent >= SEND_BYTES) {
            start_writing(file->handle, file->sent, file->written - file->sent);
            file->sent = file->written;
        }
    }
    return VK_SUCCESS;
}

VkResult vkmqa_read_file(struct VkmqaSnapshot* snapshot, void* data, size_t size) {
    for (char* at = data; size;) {
        long long moved = transfer(snapshot->file.handle, false, at,
                                   size < MAX_TRANSFER ? size : MAX_TRANSFER);
        if (moved < 0)
            return fail(snapshot, "reading failed", snapshot->info.path);
        if (moved == 0)
            return vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                       "the file ends in it; take another copy of the snapshot (%s)",
                                       snapshot->info.path);
        at += moved;
        size -= (size_t)moved;
    }
    return VK_SUCCESS;
}

VkResult vkmqa_seek_file(struct VkmqaSnapshot* snapshot, uint64_t position) {
    return seek(snapshot->file.handle, position) ? VK_SUCCESS
                                                 : fail(snapshot, "seeking failed", snapshot->info.path);
}

VkResult vkmqa_publish_file(struct VkmqaSnapshot* snapshot) {
    struct VkmqaSnapshotFile* file = &snapshot->file;
    snprintf(snapshot->section, sizeof snapshot->section, "%s", "end");
    if (!sync_file(file->handle))
        return fail(snapshot, "syncing failed", file->temporary);
    file->open = false;
    bool closed = close_handle(file->handle);
    VkResult error = VK_SUCCESS;
    if (!closed)
        error = fail(snapshot, "closing failed", file->temporary);
    else if (!replace(file->temporary, snapshot->info.path))
        error = fail(snapshot, "renaming failed", snapshot->info.path);
    if (error != VK_SUCCESS) {
        remove_file(file->temporary);
    } else if (!sync_folder(snapshot->info.path, file->temporary)) {
        char text[128];
        error_text(text, sizeof text);
        error = vkmqa_snapshot_fail(snapshot, VK_ERROR_UNKNOWN,
                                    "the snapshot is written, but its folder could not be synced: %s", text);
    }
    vkmqa_cache_free(snapshot->cache, file->temporary);
    file->temporary = NULL;
    return error;
}

void vkmqa_close_file(struct VkmqaSnapshot* snapshot) {
    struct VkmqaSnapshotFile* file = &snapshot->file;
    if (file->open)
        close_handle(file->handle);
    if (file->open && file->temporary)
        remove_file(file->temporary);
    vkmqa_cache_free(snapshot->cache, file->temporary);
    *file = (struct VkmqaSnapshotFile){0};
}

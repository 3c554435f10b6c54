// What the tool asks of the operating system beyond C11 and threads. SPDX-License-Identifier: MIT
#ifndef BENCH_PLATFORM_H
#define BENCH_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

double secondsNow(void); // of a clock that only goes forward
uint32_t processorCount(void);
uint64_t lastLevelCacheBytes(void); // 0 where the system does not say
bool terminalAtStderr(void);
long processNumber(void);
void systemName(char* text, size_t size); // such as "Linux 6.1.0 x86_64"

// Moves the whole of a file, opening and closing included; false with errno. Writing ends with a sync, in
// `temporary`, which then becomes `path`.
bool writeWholeFile(const char* path, const char* temporary, const void* bytes, size_t size);
bool readWholeFile(const char* path, void* bytes, size_t size);

#endif

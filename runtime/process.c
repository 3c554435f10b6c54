// SPDX-License-Identifier: MIT
#include "process.h"

#ifdef _WIN32
long vkmqa_process_id(void) { return 0; }
#else
#include <unistd.h>
long vkmqa_process_id(void) { return (long)getpid(); }
#endif

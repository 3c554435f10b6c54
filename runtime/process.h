// Which process this is: after fork() a driver works in the parent only. SPDX-License-Identifier: MIT
#ifndef VKMQA_PROCESS_H
#define VKMQA_PROCESS_H

// 0 where processes cannot fork.
long vkmqa_process_id(void);

#endif

// The rotations that append applies to rows of K and of q, in f64 on the host.
// SPDX-License-Identifier: MIT
#ifndef BENCH_ROTATION_H
#define BENCH_ROTATION_H

#include <stdbool.h>
#include <stdint.h>
#include <vkmqa/vkmqa.h>

// Whether the object's append turns rows at all.
bool rotatesRows(const VkmqaAttentionCreateInfo* info);
// Rotary embedding for the position, then the Hadamard matrix: whatever of them the object has.
void rotateRow(const VkmqaAttentionCreateInfo* info, double ropeTheta, int64_t position,
               float* row);

#endif

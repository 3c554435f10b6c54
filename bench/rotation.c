// Rotary embedding (Su et al., arXiv 2104.09864) and Hadamard rotation (QuaRot, arXiv 2404.00456).
// SPDX-License-Identifier: MIT
#include "rotation.h"

#include <math.h>

bool rotatesRows(const VkmqaAttentionCreateInfo* info) {
    return info->ropeStyle != VKMQA_ROPE_NONE || (info->flags & VKMQA_ATTENTION_HADAMARD_BIT);
}

static void ropeRow(const VkmqaAttentionCreateInfo* info, double theta, int64_t position,
                    float* row) {
    uint32_t dim = info->ropeDim ? info->ropeDim : info->headDimQk - info->ropeOffset;
    bool neox = info->ropeStyle == VKMQA_ROPE_NEOX;
    row += info->ropeOffset;
    for (uint32_t i = 0; i < dim / 2; i++) {
        double angle = (double)position * pow(theta, -2.0 * i / dim), c = cos(angle),
               s = sin(angle);
        float* a = &row[neox ? i : 2 * i];
        float* b = &row[neox ? i + dim / 2 : 2 * i + 1];
        double x = *a, y = *b;
        *a = (float)(x * c - y * s);
        *b = (float)(x * s + y * c);
    }
}

// Sylvester's matrix over each run of the largest power of two that divides headDim.
static void hadamardRow(uint32_t headDim, float* row) {
    uint32_t size = headDim & (~headDim + 1);
    double values[1024];
    for (uint32_t i = 0; i < headDim; i++)
        values[i] = row[i];
    for (uint32_t half = 1; half < size; half *= 2)
        for (uint32_t i = 0; i < headDim; i++)
            if (!(i & half)) {
                double x = values[i], y = values[i + half];
                values[i] = x + y;
                values[i + half] = x - y;
            }
    for (uint32_t i = 0; i < headDim; i++)
        row[i] = (float)(values[i] / sqrt(size));
}

void rotateRow(const VkmqaAttentionCreateInfo* info, double ropeTheta, int64_t position,
               float* row) {
    if (info->ropeStyle != VKMQA_ROPE_NONE)
        ropeRow(info, ropeTheta, position, row);
    if (info->flags & VKMQA_ATTENTION_HADAMARD_BIT)
        hadamardRow(info->headDimQk, row);
}

// What is not attention, on the CPU. SPDX-License-Identifier: MIT
#include "generate.h"

#include <cblas.h>
#include <math.h>
#include <time.h>

void useOneThread(void) {
    openblas_set_num_threads(1);
}

void multiply(uint32_t rows, uint32_t n, uint32_t k, const float* in, const float* matrix, bool add, float* out) {
    float beta = add ? 1.0f : 0.0f;
    if (rows == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)k, 1, matrix, (int)k, in, 1, beta, out, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)n, (int)k, 1, in, (int)k, matrix, (int)k,
                    beta, out, (int)n);
}

void rmsNorm(uint32_t rows, uint32_t width, const float* in, const float* weight, float eps, float* out) {
    for (uint32_t row = 0; row < rows; row++, in += width, out += width) {
        float squares = cblas_sdot((int)width, in, 1, in, 1);
        float factor = 1 / sqrtf(squares / (float)width + eps);
        for (uint32_t i = 0; i < width; i++)
            out[i] = in[i] * factor * weight[i];
    }
}

void gateWithSilu(size_t count, float* gate, const float* up) {
    for (size_t i = 0; i < count; i++)
        gate[i] *= up[i] / (1 + expf(-gate[i]));
}

double secondsNow(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

// A strict reader of safetensors files: 8 bytes of header length, a JSON header, the tensors' bytes.
// SPDX-License-Identifier: MIT
#ifndef BENCH_SAFETENSORS_H
#define BENCH_SAFETENSORS_H

#include "bench.h"

#include <cjson/cJSON.h>

enum { TENSOR_MAX_DIMS = 8 };

typedef struct Tensor {
    const char* name;
    const char* dtype;
    uint32_t dims;
    uint64_t shape[TENSOR_MAX_DIMS];
    uint64_t count; // elements
    const uint8_t* data;
    uint64_t begin, end; // bytes after the header
} Tensor;

typedef struct TensorFile {
    const char* path;
    uint8_t* bytes;
    cJSON* header;
    const cJSON* metadata; // of strings, or null
    uint32_t tensorCount;
    Tensor* tensors; // sorted by place
} TensorFile;

// BENCH_USAGE, having named what is wrong, for whatever is not a whole and consistent file.
BenchResult readTensorFile(const char* path, TensorFile* file);
void freeTensorFile(TensorFile* file);
const Tensor* findTensor(const TensorFile* file, const char* name);
const char* findMetadata(const TensorFile* file, const char* key); // null when absent

#endif

#include "casefile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Tensor {
    const void* data;
    char dtype[8];
    uint32_t shape[3];
} Tensor;

// header: the JSON object of the file as one string; data: what follows it.
static bool findTensor(const char* header, const uint8_t* data, const char* name, Tensor* tensor) {
    char key[64];
    snprintf(key, sizeof(key), "\"%s\": {\"dtype\": \"", name);
    const char* at = strstr(header, key);
    if (!at || sscanf(at + strlen(key), "%7[A-Z0-9]", tensor->dtype) != 1)
        return false;
    const char* shape = strstr(at, "\"shape\": [");
    const char* offsets = strstr(at, "\"data_offsets\": [");
    unsigned long begin;
    if (!shape || !offsets || sscanf(offsets, "\"data_offsets\": [%lu", &begin) != 1)
        return false;
    tensor->data = data + begin;
    return sscanf(shape, "\"shape\": [%u, %u, %u", &tensor->shape[0], &tensor->shape[1],
                  &tensor->shape[2]) >= 1;
}

static uint32_t readNumber(const char* header, const char* name) {
    char key[64];
    snprintf(key, sizeof(key), "\"%s\": \"", name);
    const char* at = strstr(header, key);
    return at ? (uint32_t)strtoul(at + strlen(key), NULL, 10) : 0;
}

static void* readBytes(const char* path, size_t* size) {
    FILE* stream = fopen(path, "rb");
    if (!stream)
        return NULL;
    fseek(stream, 0, SEEK_END);
    *size = (size_t)ftell(stream);
    rewind(stream);
    uint8_t* bytes = malloc(*size + 1);
    if (fread(bytes, 1, *size, stream) != *size) {
        free(bytes);
        bytes = NULL;
    }
    fclose(stream);
    return bytes;
}

static float* floatsOf(const Tensor* tensor, OracleType type) {
    size_t count = (size_t)tensor->shape[0] * tensor->shape[1] * tensor->shape[2];
    float* values = malloc(count * sizeof(float));
    oracleDecode(type, tensor->data, count, values);
    return values;
}

bool caseFileRead(const char* path, CaseFile* file) {
    memset(file, 0, sizeof(*file));
    size_t size = 0;
    uint8_t* bytes = file->bytes = readBytes(path, &size);
    uint64_t headerSize = 0;
    if (bytes && size > 8)
        memcpy(&headerSize, bytes, 8);
    if (headerSize == 0 || headerSize > size - 8) {
        fprintf(stderr, "%s: cannot be read\n", path);
        return false;
    }
    char* header = calloc(headerSize + 1, 1);
    memcpy(header, bytes + 8, headerSize);
    const uint8_t* data = bytes + 8 + headerSize;
    Tensor q, k, v, cuQ, cuKv, out, lse;
    bool found = findTensor(header, data, "q", &q) && findTensor(header, data, "k", &k) &&
                 findTensor(header, data, "v", &v) && findTensor(header, data, "out", &out) &&
                 findTensor(header, data, "lse", &lse) &&
                 findTensor(header, data, "cu_seqlens_q", &cuQ) &&
                 findTensor(header, data, "cu_seqlens_kv", &cuKv) && cuQ.shape[0] <= 64;
    if (found) {
        file->type = strcmp(q.dtype, "F16") == 0 ? ORACLE_F16 : ORACLE_F32;
        file->pageSize = readNumber(header, "page_size");
        const int32_t* kvStart = cuKv.data;
        for (uint32_t b = 0; b + 1 < cuKv.shape[0]; b++)
            file->seqLensKv[b] = kvStart[b + 1] - kvStart[b];
        file->out = out.data;
        file->lse = lse.data;
        file->problem = (OracleProblem){
            .batch = cuQ.shape[0] - 1,
            .numHeadsQ = q.shape[1],
            .numHeadsKv = k.shape[1],
            .headDimQk = q.shape[2],
            .headDimV = v.shape[2],
            .cuSeqlensQ = cuQ.data,
            .seqLensKv = file->seqLensKv,
            .q = floatsOf(&q, file->type),
            .k = floatsOf(&k, file->type),
            .v = floatsOf(&v, file->type),
            .causal = readNumber(header, "causal") != 0,
        };
    } else {
        fprintf(stderr, "%s: a tensor is missing\n", path);
    }
    free(header);
    return found;
}

void caseFileFree(CaseFile* file) {
    free((void*)file->problem.q);
    free((void*)file->problem.k);
    free((void*)file->problem.v);
    free(file->bytes);
    memset(file, 0, sizeof(*file));
}

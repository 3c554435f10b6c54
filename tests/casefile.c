#include "casefile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Tensor {
    const void* data;
    char dtype[8];
    uint32_t shape[3]; // 1 where it has fewer dimensions
} Tensor;

// header: the JSON object of the file as one string; data: what follows it.
typedef struct Reader {
    char* header;
    const uint8_t* data;
} Reader;

static bool findTensor(const Reader* reader, const char* name, Tensor* tensor) {
    char key[64];
    snprintf(key, sizeof(key), "\"%s\": {\"dtype\": \"", name);
    memset(tensor, 0, sizeof(*tensor));
    const char* at = strstr(reader->header, key);
    if (!at || sscanf(at + strlen(key), "%7[A-Z0-9]", tensor->dtype) != 1)
        return false;
    const char* shape = strstr(at, "\"shape\": [");
    const char* offsets = strstr(at, "\"data_offsets\": [");
    unsigned long begin;
    if (!shape || !offsets || sscanf(offsets, "\"data_offsets\": [%lu", &begin) != 1)
        return false;
    tensor->data = reader->data + begin;
    tensor->shape[0] = tensor->shape[1] = tensor->shape[2] = 1;
    return sscanf(shape, "\"shape\": [%u, %u, %u", &tensor->shape[0], &tensor->shape[1],
                  &tensor->shape[2]) >= 1;
}

// The value of a metadata key, or null.
static const char* findText(const Reader* reader, const char* name) {
    char key[64];
    snprintf(key, sizeof(key), "\"%s\": \"", name);
    const char* at = strstr(reader->header, key);
    return at ? at + strlen(key) : NULL;
}

static double findNumber(const Reader* reader, const char* name) {
    const char* text = findText(reader, name);
    return text ? strtod(text, NULL) : 0;
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
    float* values = malloc(count * sizeof(float) + 1);
    oracleDecode(type, tensor->data, count, values);
    return values;
}

static OracleType tensorType(const char* dtype) {
    return strcmp(dtype, "F16") == 0    ? ORACLE_F16
           : strcmp(dtype, "BF16") == 0 ? ORACLE_BF16
                                        : ORACLE_F32;
}

static bool cacheType(const char* name, size_t length, OracleType* type) {
    for (int i = 0; i < ORACLE_TYPE_COUNT; i++) {
        const char* known = oracleTypeName((OracleType)i);
        if (strlen(known) == length && memcmp(known, name, length) == 0) {
            *type = (OracleType)i;
            return true;
        }
    }
    return false;
}

// "f16", or "q8_0/f16" for K and V.
static bool readCacheTypes(const Reader* reader, CaseFile* file) {
    const char* text = findText(reader, "kv_type");
    if (!text)
        return false;
    size_t length = strcspn(text, "/\"");
    if (!cacheType(text, length, &file->kType))
        return false;
    file->vType = file->kType;
    const char* second = text + length + 1;
    return text[length] != '/' || cacheType(second, strcspn(second, "\""), &file->vType);
}

static void readModifiers(const Reader* reader, CaseFile* file) {
    OracleProblem* problem = &file->problem;
    problem->causal = findNumber(reader, "causal") != 0;
    problem->scale = findNumber(reader, "scale");
    problem->softcap = findNumber(reader, "softcap");
    problem->hasWindowLeft = findText(reader, "window_left") != NULL;
    problem->hasWindowRight = findText(reader, "window_right") != NULL;
    problem->windowLeft = (uint32_t)findNumber(reader, "window_left");
    problem->windowRight = (uint32_t)findNumber(reader, "window_right");
    const char* style = findText(reader, "rope_style");
    if (style)
        file->rotation.style =
            strncmp(style, "neox", 4) == 0 ? ORACLE_ROPE_NEOX : ORACLE_ROPE_INTERLEAVED;
    file->rotation.theta = findNumber(reader, "rope_theta");
    file->rotation.dim = (uint32_t)findNumber(reader, "rope_dim");
    Tensor tensor;
    if (findTensor(reader, "alibi_slopes", &tensor))
        problem->alibiSlopes = floatsOf(&tensor, ORACLE_F32);
    if (findTensor(reader, "sinks", &tensor))
        problem->sinks = floatsOf(&tensor, ORACLE_F32);
    if (findTensor(reader, "mask", &tensor)) {
        problem->maskStride = (tensor.shape[1] + 31) / 32;
        uint32_t* words = calloc((size_t)tensor.shape[0] * problem->maskStride + 1, 4);
        const uint8_t* allowed = tensor.data;
        for (uint32_t t = 0; t < tensor.shape[0]; t++)
            for (uint32_t j = 0; j < tensor.shape[1]; j++)
                if (allowed[(size_t)t * tensor.shape[1] + j])
                    words[(size_t)t * problem->maskStride + j / 32] |= 1u << j % 32;
        problem->mask = words;
    }
}

static bool readTensors(const Reader* reader, CaseFile* file) {
    Tensor q, k, v, cuQ, cuKv, out, lse;
    uint32_t prefix = (uint32_t)findNumber(reader, "v_prefix_of_k");
    bool found = findTensor(reader, "q", &q) && findTensor(reader, "k", &k) &&
                 (findTensor(reader, "v", &v) || prefix) && findTensor(reader, "out", &out) &&
                 findTensor(reader, "lse", &lse) && findTensor(reader, "cu_seqlens_q", &cuQ) &&
                 findTensor(reader, "cu_seqlens_kv", &cuKv) && cuQ.shape[0] <= CASE_MAX_BATCH &&
                 readCacheTypes(reader, file);
    if (!found)
        return false;
    file->type = tensorType(q.dtype);
    file->pageSize = (uint32_t)findNumber(reader, "page_size");
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
        .headDimV = prefix ? prefix : v.shape[2],
        .cuSeqlensQ = cuQ.data,
        .seqLensKv = file->seqLensKv,
        .q = floatsOf(&q, file->type),
        .k = floatsOf(&k, file->type),
        .v = prefix ? NULL : floatsOf(&v, file->type),
    };
    readModifiers(reader, file);
    return true;
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
    Reader reader = {calloc(headerSize + 1, 1), bytes + 8 + headerSize};
    memcpy(reader.header, bytes + 8, headerSize);
    bool found = readTensors(&reader, file);
    if (!found)
        fprintf(stderr, "%s: a tensor or the cache type is missing\n", path);
    free(reader.header);
    return found;
}

void caseFileFree(CaseFile* file) {
    free((void*)file->problem.q);
    free((void*)file->problem.k);
    free((void*)file->problem.v);
    free((void*)file->problem.alibiSlopes);
    free((void*)file->problem.sinks);
    free((void*)file->problem.mask);
    free(file->bytes);
    memset(file, 0, sizeof(*file));
}

int32_t* caseFilePositions(const CaseFile* file, bool ofQueries) {
    const OracleProblem* problem = &file->problem;
    size_t count = (size_t)problem->cuSeqlensQ[problem->batch];
    for (uint32_t b = 0; b < problem->batch; b++)
        count += (size_t)problem->seqLensKv[b];
    int32_t* positions = calloc(count + 1, sizeof(int32_t));
    int32_t row = ofQueries ? problem->cuSeqlensQ[0] : 0;
    for (uint32_t b = 0; b < problem->batch; b++) {
        int32_t tokens = problem->seqLensKv[b];
        int32_t queries = problem->cuSeqlensQ[b + 1] - problem->cuSeqlensQ[b];
        for (int32_t i = 0; i < (ofQueries ? queries : tokens); i++)
            positions[row++] = ofQueries ? i + tokens - queries : i;
    }
    return positions;
}

// What each cache type may add to the error against tensors before any cache.
static double maxNmse(const CaseFile* file) {
    static const double bounds[] = {
        [ORACLE_F32] = 1e-10, [ORACLE_F16] = 1e-6,  [ORACLE_BF16] = 3e-5,
        [ORACLE_FP8] = 5e-3,  [ORACLE_Q8_0] = 1e-3, [ORACLE_Q4_0] = 1e-1};
    return fmax(bounds[file->type], fmax(bounds[file->kType], bounds[file->vType]));
}

static double maxLseError(const CaseFile* file, double lse) {
    if (file->kType >= ORACLE_FP8)
        return INFINITY; // not judged
    bool bf16 = file->kType == ORACLE_BF16 || file->type == ORACLE_BF16;
    bool f16 = file->kType == ORACLE_F16 || file->type == ORACLE_F16;
    return 1e-3 + (bf16 ? ldexp(fabs(lse), -8) : f16 ? ldexp(fabs(lse), -11) : 0);
}

bool caseFileAccepts(const CaseFile* file, const float* out, const float* lse, char* text,
                     size_t size) {
    const OracleProblem* problem = &file->problem;
    size_t rows = (size_t)problem->cuSeqlensQ[problem->batch] * problem->numHeadsQ;
    double errors = 0, squares = 0;
    for (size_t i = 0; i < rows * problem->headDimV; i++) {
        double error = out[i] - file->out[i];
        errors += error * error;
        squares += file->out[i] * file->out[i];
    }
    double nmse = squares > 0 ? errors / squares : errors;
    if (!(nmse <= maxNmse(file))) { // a NaN fails
        snprintf(text, size, "NMSE %.3g against the file's out, allowed %.3g", nmse, maxNmse(file));
        return false;
    }
    for (size_t i = 0; i < rows; i++) {
        bool right = isinf(file->lse[i]) ? lse[i] == file->lse[i]
                     : file->kType >= ORACLE_FP8
                         ? isfinite(lse[i])
                         : fabs(lse[i] - file->lse[i]) <= maxLseError(file, file->lse[i]);
        if (right)
            continue;
        snprintf(text, size, "lse of row %zu is %.9g, the file says %.9g", i, lse[i], file->lse[i]);
        return false;
    }
    return true;
}

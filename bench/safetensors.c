// Reading and checking of safetensors files.
// SPDX-License-Identifier: MIT
#include "safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The format's own limit.
static const uint64_t mostHeaderBytes = 100000000;

static const struct {
    const char* name;
    uint32_t bytes;
} dtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
    {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8},
};

static uint32_t bytesOfDtype(const char* name) {
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return dtypes[i].bytes;
    return 0;
}

static BenchResult readBytes(const char* path, uint8_t** bytes, uint64_t* size) {
    FILE* stream = fopen(path, "rb");
    if (!stream)
        return fail(BENCH_USAGE, "%s: cannot be opened: %s", path, strerror(errno));
    // Read until the end instead of trusting a size: works for pipes, and shows a folder's error.
    uint64_t capacity = 1 << 16, used = 0;
    uint8_t* data = malloc(capacity);
    while (data) {
        used += fread(data + used, 1, capacity - used, stream);
        if (used < capacity)
            break;
        capacity *= 2;
        uint8_t* larger = realloc(data, capacity);
        if (!larger) {
            free(data);
            fclose(stream);
            return fail(BENCH_ERROR, "%s: no memory for a file of more than %" PRIu64 " bytes",
                        path, capacity / 2);
        }
        data = larger;
    }
    int error = ferror(stream) ? errno : 0;
    fclose(stream);
    if (error || !data) {
        free(data);
        return fail(BENCH_USAGE, "%s: cannot be read: %s", path, strerror(error ? error : ENOMEM));
    }
    uint8_t* fitting = realloc(data, used ? used : 1); // tools that watch memory see what passes the file's end
    *bytes = fitting ? fitting : data;
    *size = used;
    return BENCH_OK;
}

// A JSON number that is a whole one from 0 to 2^53, where doubles are exact.
static bool wholeNumber(const cJSON* item, uint64_t* value) {
    if (!cJSON_IsNumber(item))
        return false;
    double number = cJSON_GetNumberValue(item);
    if (!(number >= 0 && number <= 0x1p53) || number != floor(number))
        return false;
    *value = (uint64_t)number;
    return true;
}

static BenchResult parseShape(const TensorFile* file, const cJSON* shape, Tensor* tensor) {
    if (!cJSON_IsArray(shape))
        return fail(BENCH_USAGE, "%s: tensor '%s': \"shape\" is missing; give an array of numbers",
                    file->path, tensor->name);
    tensor->count = 1;
    const cJSON* dim;
    cJSON_ArrayForEach(dim, shape) {
        if (tensor->dims == TENSOR_MAX_DIMS)
            return fail(BENCH_USAGE, "%s: tensor '%s' has more than %d dimensions", file->path,
                        tensor->name, TENSOR_MAX_DIMS);
        uint64_t* extent = &tensor->shape[tensor->dims++];
        if (!wholeNumber(dim, extent))
            return fail(BENCH_USAGE, "%s: tensor '%s': dimension %u is not a whole number",
                        file->path, tensor->name, tensor->dims - 1);
        if (*extent && tensor->count > UINT64_MAX / 8 / *extent)
            return fail(BENCH_USAGE, "%s: tensor '%s': its shape overflows 64 bits", file->path,
                        tensor->name);
        tensor->count *= *extent;
    }
    return BENCH_OK;
}

static BenchResult parseTensor(const TensorFile* file, const cJSON* item, const uint8_t* data,
                               uint64_t dataSize, Tensor* tensor) {
    const cJSON* dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    const cJSON* offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    tensor->name = item->string;
    if (!cJSON_IsObject(item) || !cJSON_IsString(dtype))
        return fail(BENCH_USAGE,
                    "%s: tensor '%s': \"dtype\" is missing; give a string such as \"F16\"",
                    file->path, tensor->name);
    tensor->dtype = dtype->valuestring;
    uint64_t elementBytes = bytesOfDtype(tensor->dtype);
    if (!elementBytes)
        return fail(BENCH_USAGE,
                    "%s: tensor '%s': dtype '%s' is unknown; the format has F16, BF16, F32, "
                    "F64, I32 and others",
                    file->path, tensor->name, tensor->dtype);
    BenchResult result = parseShape(file, cJSON_GetObjectItemCaseSensitive(item, "shape"), tensor);
    if (result != BENCH_OK)
        return result;
    if (cJSON_GetArraySize(offsets) != 2 || !cJSON_IsArray(offsets) ||
        !wholeNumber(cJSON_GetArrayItem(offsets, 0), &tensor->begin) ||
        !wholeNumber(cJSON_GetArrayItem(offsets, 1), &tensor->end))
        return fail(BENCH_USAGE, "%s: tensor '%s': \"data_offsets\" must be two whole numbers",
                    file->path, tensor->name);
    if (tensor->begin > tensor->end || tensor->end > dataSize)
        return fail(BENCH_USAGE,
                    "%s: tensor '%s': data_offsets [%" PRIu64 ", %" PRIu64
                    "] lie outside the file's %" PRIu64 " bytes of data%s",
                    file->path, tensor->name, tensor->begin, tensor->end, dataSize,
                    tensor->end > dataSize ? "; the file is truncated" : "");
    if (tensor->end - tensor->begin != tensor->count * elementBytes)
        return fail(BENCH_USAGE,
                    "%s: tensor '%s': data_offsets span %" PRIu64
                    " bytes, its dtype and shape need %" PRIu64,
                    file->path, tensor->name, tensor->end - tensor->begin,
                    tensor->count * elementBytes);
    tensor->data = data + tensor->begin;
    return BENCH_OK;
}

static int compareNames(const void* a, const void* b) {
    return strcmp(((const Tensor*)a)->name, ((const Tensor*)b)->name);
}
static int comparePlaces(const void* a, const void* b) {
    const Tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

// Each byte of the data belongs to exactly one tensor.
static BenchResult checkPlaces(TensorFile* file, uint64_t dataSize) {
    Tensor* t = file->tensors;
    qsort(t, file->tensorCount, sizeof(Tensor), compareNames);
    for (uint32_t i = 1; i < file->tensorCount; i++)
        if (strcmp(t[i].name, t[i - 1].name) == 0)
            return fail(BENCH_USAGE, "%s: there are two tensors named '%s'", file->path, t[i].name);
    qsort(t, file->tensorCount, sizeof(Tensor), comparePlaces);
    uint64_t end = 0;
    for (uint32_t i = 0; i < file->tensorCount; i++) {
        if (t[i].begin < end)
            return fail(BENCH_USAGE, "%s: tensors '%s' and '%s' overlap", file->path, t[i - 1].name,
                        t[i].name);
        if (t[i].begin > end)
            return fail(BENCH_USAGE, "%s: %" PRIu64 " bytes before tensor '%s' belong to no tensor",
                        file->path, t[i].begin - end, t[i].name);
        end = t[i].end;
    }
    if (end != dataSize)
        return fail(BENCH_USAGE, "%s: %" PRIu64 " bytes after the last tensor belong to no tensor",
                    file->path, dataSize - end);
    return BENCH_OK;
}

static BenchResult checkMetadata(const TensorFile* file) {
    const cJSON *item, *other;
    if (!file->metadata)
        return BENCH_OK;
    if (!cJSON_IsObject(file->metadata) || cJSON_GetArraySize(file->metadata) > 1000)
        return fail(BENCH_USAGE, "%s: __metadata__ must be an object of at most 1000 strings",
                    file->path);
    cJSON_ArrayForEach(item, file->metadata) {
        if (!cJSON_IsString(item))
            return fail(BENCH_USAGE, "%s: __metadata__ '%s' is not a string", file->path,
                        item->string);
        for (other = item->next; other; other = other->next)
            if (strcmp(item->string, other->string) == 0)
                return fail(BENCH_USAGE, "%s: __metadata__ has '%s' twice", file->path,
                            item->string);
    }
    return BENCH_OK;
}

static BenchResult parseHeader(TensorFile* file, uint64_t size) {
    if (size < 8)
        return fail(BENCH_USAGE,
                    "%s: %" PRIu64 " bytes are no safetensors file: the first 8 are the "
                    "header's length",
                    file->path, size);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | file->bytes[i];
    if (length > size - 8 || length > mostHeaderBytes)
        return fail(BENCH_USAGE, "%s: the header's length of %" PRIu64 " bytes is beyond %s",
                    file->path, length,
                    length > size - 8 ? "the end of the file: truncated, or no safetensors file"
                                      : "the format's limit of 100 MB");
    const char *end = NULL, *text = (const char*)file->bytes + 8;
    file->header = cJSON_ParseWithLengthOpts(text, length, &end, 0);
    if (!file->header || !cJSON_IsObject(file->header))
        return fail(BENCH_USAGE, "%s: the header is not a JSON object (near byte %zu)", file->path,
                    end ? (size_t)(end - text) + 8 : 8);
    for (; end < text + length; end++)
        if (*end != ' ') // the only padding that the format knows
            return fail(BENCH_USAGE, "%s: the header goes on after its JSON object (byte %zu)",
                        file->path, (size_t)(end - text) + 8);
    uint64_t dataSize = size - 8 - length;
    const cJSON* item;
    file->tensors = allocate((size_t)cJSON_GetArraySize(file->header), sizeof(Tensor));
    cJSON_ArrayForEach(item, file->header) {
        if (strcmp(item->string, "__metadata__") == 0) {
            if (file->metadata)
                return fail(BENCH_USAGE, "%s: there are two __metadata__", file->path);
            file->metadata = item;
            continue;
        }
        BenchResult result = parseTensor(file, item, file->bytes + 8 + length, dataSize,
                                         &file->tensors[file->tensorCount++]);
        if (result != BENCH_OK)
            return result;
    }
    BenchResult result = checkMetadata(file);
    return result == BENCH_OK ? checkPlaces(file, dataSize) : result;
}

BenchResult readTensorFile(const char* path, TensorFile* file) {
    uint64_t size = 0;
    *file = (TensorFile){.path = path};
    BenchResult result = readBytes(path, &file->bytes, &size);
    if (result == BENCH_OK)
        result = parseHeader(file, size);
    if (result != BENCH_OK)
        freeTensorFile(file);
    return result;
}

void freeTensorFile(TensorFile* file) {
    cJSON_Delete(file->header);
    free(file->tensors);
    free(file->bytes);
    *file = (TensorFile){0};
}

const Tensor* findTensor(const TensorFile* file, const char* name) {
    for (uint32_t i = 0; i < file->tensorCount; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

const char* findMetadata(const TensorFile* file, const char* key) {
    const cJSON* item = cJSON_GetObjectItemCaseSensitive(file->metadata, key);
    return item ? item->valuestring : NULL;
}

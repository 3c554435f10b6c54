// Reads a model from a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes.
// SPDX-License-Identifier: MIT
#include "generate.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool explain(Error* error, const char* format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(error->text, sizeof(error->text), format, list);
    va_end(list);
    return false;
}

typedef struct File {
    const char* path;
    uint8_t* bytes;
    size_t size;
    cJSON* header;
    const cJSON* metadata;
    const uint8_t* data; // behind the header
    size_t dataSize;
} File;

static bool readBytes(File* file, Error* error) {
    FILE* stream = fopen(file->path, "rb");
    if (!stream)
        return explain(error, "%s: cannot be opened: %s", file->path, strerror(errno));
    size_t capacity = 1 << 20;
    file->bytes = malloc(capacity);
    while (file->bytes) {
        file->size += fread(file->bytes + file->size, 1, capacity - file->size, stream);
        if (file->size < capacity)
            break;
        uint8_t* larger = realloc(file->bytes, capacity *= 2);
        if (!larger)
            free(file->bytes);
        file->bytes = larger;
    }
    int readError = ferror(stream) ? errno : 0;
    fclose(stream);
    if (!file->bytes)
        return explain(error, "%s: no memory for %zu bytes", file->path, capacity);
    return !readError || explain(error, "%s: cannot be read: %s", file->path, strerror(readError));
}

static bool readHeader(File* file, Error* error) {
    uint64_t length = 0;
    if (file->size < 8)
        return explain(error, "%s: %zu bytes are no safetensors file: the first 8 are the header's length", file->path,
                       file->size);
    for (int i = 7; i >= 0; i--)
        length = length << 8 | file->bytes[i];
    if (length > file->size - 8)
        return explain(error, "%s: the header's length of %llu bytes is beyond the end of the file: truncated, or no "
                       "safetensors file", file->path, (unsigned long long)length);
    file->header = cJSON_ParseWithLength((const char*)file->bytes + 8, length);
    if (!cJSON_IsObject(file->header))
        return explain(error, "%s: the header is not a JSON object", file->path);
    file->metadata = cJSON_GetObjectItemCaseSensitive(file->header, "__metadata__");
    file->data = file->bytes + 8 + length;
    file->dataSize = file->size - 8 - length;
    return true;
}

// A number of the metadata from low to high; fallback where it is absent, unless that is NaN.
static bool readNumber(const File* file, const char* key, double low, double high, double fallback, double* value,
                       Error* error) {
    const cJSON* item = cJSON_GetObjectItemCaseSensitive(file->metadata, key);
    char* end = NULL;
    *value = fallback;
    if (!item && !isnan(fallback))
        return true;
    if (!cJSON_IsString(item))
        return explain(error, "%s: __metadata__ has no text '%s'; write it with train.py", file->path, key);
    *value = strtod(item->valuestring, &end);
    if (end == item->valuestring || *end || !(*value >= low && *value <= high))
        return explain(error, "%s: __metadata__ '%s' is '%s'; give a number from %g to %g", file->path, key,
                       item->valuestring, low, high);
    return true;
}

static bool readWhole(const File* file, const char* key, double high, double fallback, uint32_t* value, Error* error) {
    double number;
    if (!readNumber(file, key, 1, high, fallback, &number, error))
        return false;
    *value = (uint32_t)number;
    return number == floor(number) ||
           explain(error, "%s: __metadata__ '%s' is %g; give a whole number", file->path, key, number);
}

static float decodeHalf(uint16_t half) {
    float sign = half >> 15 ? -1.0f : 1.0f;
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31)
        return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexpf((float)(mantissa + 1024), exponent - 25) : ldexpf((float)mantissa, -24));
}

static float decodeElement(const uint8_t* at, int dtype) { // 0 F16, 1 BF16, 2 F32; little-endian
    uint32_t bits = (uint32_t)at[0] | (uint32_t)at[1] << 8;
    if (dtype == 0)
        return decodeHalf((uint16_t)bits);
    bits = dtype == 1 ? bits << 16 : bits | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// The text "[2, 3]" of a shape, as it is found or wanted.
static const char* shapeText(const cJSON* shape, char* text, size_t size) {
    snprintf(text, size, "nothing");
    if (!cJSON_IsArray(shape))
        return text;
    size_t used = (size_t)snprintf(text, size, "[");
    const cJSON* item;
    cJSON_ArrayForEach(item, shape)
        if (used < size)
            used += (size_t)snprintf(text + used, size - used, "%s%.10g", item == shape->child ? "" : ", ",
                                     cJSON_GetNumberValue(item));
    if (used < size)
        snprintf(text + used, size - used, "]");
    return text;
}

// rows and columns of tensor `name`; a vector has 0 columns. An error where it is absent or has other dimensions.
static bool findShape(const File* file, const char* name, uint32_t dims, uint32_t shape[2], Error* error) {
    const cJSON* item = cJSON_GetObjectItemCaseSensitive(file->header, name);
    const cJSON* array = cJSON_GetObjectItemCaseSensitive(item, "shape");
    char found[80];
    if (!item)
        return explain(error, "%s: tensor '%s' is missing", file->path, name);
    shape[1] = 0;
    bool good = cJSON_IsArray(array) && cJSON_GetArraySize(array) == (int)dims;
    for (int i = 0; good && i < (int)dims; i++) {
        double extent = cJSON_GetNumberValue(cJSON_GetArrayItem(array, i));
        good = extent >= 1 && extent <= 65536 && extent == floor(extent);
        if (good)
            shape[i] = (uint32_t)extent;
    }
    return good || explain(error, "%s: tensor '%s' has shape %s; wanted are %u dimensions of 1 to 65536", file->path,
                           name, shapeText(array, found, sizeof(found)), dims);
}

// Reads [rows, columns], or [rows] where columns is 0, into weights->data behind what is there.
static bool readTensor(File* file, Weights* weights, const char* name, uint32_t rows, uint32_t columns,
                       const float** values, Error* error) {
    static const char* const dtypes[] = {"F16", "BF16", "F32"};
    uint32_t shape[2];
    if (!findShape(file, name, columns ? 2 : 1, shape, error))
        return false;
    const cJSON* item = cJSON_GetObjectItemCaseSensitive(file->header, name);
    if (shape[0] != rows || shape[1] != columns) {
        char found[80], wanted[80];
        snprintf(wanted, sizeof(wanted), columns ? "[%u, %u]" : "[%u]", rows, columns);
        return explain(error, "%s: tensor '%s' has shape %s; wanted is %s", file->path, name,
                       shapeText(cJSON_GetObjectItemCaseSensitive(item, "shape"), found, sizeof(found)), wanted);
    }
    const char* dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "dtype"));
    int type = 0;
    while (type < 3 && (!dtype || strcmp(dtype, dtypes[type]) != 0))
        type++;
    if (type == 3)
        return explain(error, "%s: tensor '%s' has dtype '%s'; wanted is F16, BF16 or F32", file->path, name,
                       dtype ? dtype : "");
    const cJSON* offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    double begin = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 0));
    double end = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 1));
    size_t count = (size_t)rows * (columns ? columns : 1), bytes = type == 2 ? 4 : 2;
    if (!(begin >= 0 && begin == floor(begin) && end == begin + (double)(count * bytes)))
        return explain(error, "%s: tensor '%s' has data_offsets %.17g to %.17g; wanted are %zu bytes", file->path, name,
                       begin, end, count * bytes);
    if (end > (double)file->dataSize)
        return explain(error, "%s: tensor '%s' ends at byte %.17g of the data, of which the file has %zu: truncated",
                       file->path, name, end, file->dataSize);
    if (count > weights->capacity - weights->count)
        return explain(error, "%s: tensors up to '%s' have more elements than the file: they overlap", file->path,
                       name);
    float* out = weights->data + weights->count;
    for (size_t i = 0; i < count; i++) {
        out[i] = decodeElement(file->data + (size_t)begin + i * bytes, type);
        if (!isfinite(out[i]))
            return explain(error, "%s: element %zu of tensor '%s' is not finite", file->path, i, name);
    }
    *values = out;
    weights->count += count;
    cJSON_DeleteItemFromObjectCaseSensitive(file->header, name); // what is left at the end is unknown
    return true;
}

static bool readShapes(const File* file, Weights* w, Error* error) {
    uint32_t embedding[2], q[2], gate[2];
    double eps;
    char name[64];
    if (!readWhole(file, "num_heads_q", 65536, NAN, &w->numHeadsQ, error) ||
        !readWhole(file, "num_heads_kv", 65536, NAN, &w->numHeadsKv, error) ||
        !readWhole(file, "context", 1 << 20, NAN, &w->context, error) ||
        !readNumber(file, "rope_theta", 1, 1e12, NAN, &w->ropeTheta, error) ||
        !readNumber(file, "rms_eps", 0, 1, NAN, &eps, error) ||
        !readNumber(file, "held_out_loss", 0, 100, 0, &w->heldOutLoss, error) ||
        !findShape(file, "embedding.weight", 2, embedding, error) ||
        !findShape(file, "layers.0.attention.q.weight", 2, q, error) ||
        !findShape(file, "layers.0.mlp.gate.weight", 2, gate, error))
        return false;
    w->rmsEps = (float)eps;
    w->width = embedding[1];
    w->mlpWidth = gate[0];
    w->headDim = q[0] / w->numHeadsQ;
    if (w->numHeadsQ % w->numHeadsKv)
        return explain(error, "%s: num_heads_q is %u; give a multiple of num_heads_kv, which is %u", file->path,
                       w->numHeadsQ, w->numHeadsKv);
    if (q[0] % w->numHeadsQ || w->headDim % 8 || w->headDim < 8 || w->headDim > 576)
        return explain(error, "%s: tensor 'layers.0.attention.q.weight' has %u rows for %u heads; wanted for each is a "
                       "multiple of 8 from 8 to 576", file->path, q[0], w->numHeadsQ);
    do
        snprintf(name, sizeof(name), "layers.%u.attention_norm.weight", ++w->numLayers);
    while (cJSON_GetObjectItemCaseSensitive(file->header, name));
    return true;
}

static bool readLayer(File* file, Weights* w, uint32_t number, Error* error) {
    LayerWeights* layer = &w->layers[number];
    uint32_t q = w->numHeadsQ * w->headDim, kv = w->numHeadsKv * w->headDim;
    const struct {
        const char* name;
        uint32_t rows, columns;
        const float** values;
    } tensors[] = {
        {"attention_norm", w->width, 0, &layer->attentionNorm}, {"attention.q", q, w->width, &layer->q},
        {"attention.k", kv, w->width, &layer->k},               {"attention.v", kv, w->width, &layer->v},
        {"attention.o", w->width, q, &layer->o},                {"mlp_norm", w->width, 0, &layer->mlpNorm},
        {"mlp.gate", w->mlpWidth, w->width, &layer->gate},      {"mlp.up", w->mlpWidth, w->width, &layer->up},
        {"mlp.down", w->width, w->mlpWidth, &layer->down},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "layers.%u.%s.weight", number, tensors[i].name);
        if (!readTensor(file, w, name, tensors[i].rows, tensors[i].columns, tensors[i].values, error))
            return false;
    }
    return true;
}

static bool readModel(File* file, Weights* w, Error* error) {
    if (!readShapes(file, w, error))
        return false;
    w->capacity = file->dataSize / 2; // no element is smaller
    w->data = malloc(w->capacity * sizeof(float) + 1);
    w->layers = calloc(w->numLayers, sizeof(LayerWeights));
    if (!w->data || !w->layers)
        return explain(error, "%s: no memory for its weights", file->path);
    if (!readTensor(file, w, "embedding.weight", VOCABULARY, w->width, &w->embedding, error) ||
        !readTensor(file, w, "norm.weight", w->width, 0, &w->norm, error))
        return false;
    for (uint32_t i = 0; i < w->numLayers; i++)
        if (!readLayer(file, w, i, error))
            return false;
    const cJSON* item;
    cJSON_ArrayForEach(item, file->header)
        if (item != file->metadata)
            return explain(error, "%s: tensor '%s' is not one of a model of %u layers; see README.md", file->path,
                           item->string, w->numLayers);
    return true;
}

bool weightsRead(const char* path, Weights* weights, Error* error) {
    File file = {.path = path};
    *weights = (Weights){0};
    bool good = readBytes(&file, error) && readHeader(&file, error) && readModel(&file, weights, error);
    cJSON_Delete(file.header);
    free(file.bytes);
    if (!good)
        weightsFree(weights);
    return good;
}

void weightsFree(Weights* weights) {
    free(weights->data);
    free(weights->layers);
    *weights = (Weights){0};
}

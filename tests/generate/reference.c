// SPDX-License-Identifier: MIT
#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the file ----

typedef struct Source {
    char* header;
    const uint8_t* data;
} Source;

static double halfToDouble(unsigned bits) {
    double magnitude = (bits & 0x7C00) ? ldexp(1 + (bits & 0x3FF) / 1024.0, (int)(bits >> 10 & 31) - 15)
                                       : ldexp((bits & 0x3FF) / 1024.0, -14);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static double* readTensor(const Source* source, const char* name, uint32_t rows, uint32_t columns) {
    char key[80], shape[80];
    unsigned long begin, end;
    snprintf(key, sizeof(key), "\"%s.weight\": {", name);
    snprintf(shape, sizeof(shape),
             columns > 1 ? "\"dtype\": \"F16\", \"shape\": [%u, %u]" : "\"dtype\": \"F16\", \"shape\": [%u]", rows,
             columns);
    const char* at = strstr(source->header, key);
    size_t count = (size_t)rows * columns;
    if (!at || strncmp(at + strlen(key), shape, strlen(shape)) != 0 ||
        sscanf(at + strlen(key) + strlen(shape), ", \"data_offsets\": [%lu, %lu]", &begin, &end) != 2 ||
        end - begin != 2 * count)
        return NULL;
    double* values = malloc(count * sizeof(double));
    for (size_t i = 0; i < count; i++)
        values[i] = halfToDouble(source->data[begin + 2 * i] | (unsigned)source->data[begin + 2 * i + 1] << 8);
    return values;
}

static double number(const Source* source, const char* key) {
    char text[40];
    snprintf(text, sizeof(text), "\"%s\": \"", key);
    const char* at = strstr(source->header, text);
    return at ? strtod(at + strlen(text), NULL) : 0;
}

// The shape of a matrix that decides a size.
static bool sizes(const Source* source, const char* name, uint32_t* rows, uint32_t* columns) {
    char key[80];
    snprintf(key, sizeof(key), "\"%s.weight\": {\"dtype\": \"F16\", \"shape\": [", name);
    const char* at = strstr(source->header, key);
    return at && sscanf(at + strlen(key), "%u, %u", rows, columns) == 2;
}

static bool readLayer(const Source* source, Reference* r, uint32_t index) {
    ReferenceLayer* layer = &r->layer[index];
    uint32_t q = r->headsQ * r->headDim, kv = r->headsKv * r->headDim;
    const struct {
        const char* name;
        double** values;
        uint32_t rows, columns;
    } parts[] = {{"attention_norm", &layer->attentionNorm, r->width, 1},
                 {"attention.q", &layer->q, q, r->width},
                 {"attention.k", &layer->k, kv, r->width},
                 {"attention.v", &layer->v, kv, r->width},
                 {"attention.o", &layer->o, r->width, q},
                 {"mlp_norm", &layer->mlpNorm, r->width, 1},
                 {"mlp.gate", &layer->gate, r->mlpWidth, r->width},
                 {"mlp.up", &layer->up, r->mlpWidth, r->width},
                 {"mlp.down", &layer->down, r->width, r->mlpWidth}};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "layers.%u.%s", index, parts[i].name);
        *parts[i].values = readTensor(source, name, parts[i].rows, parts[i].columns);
        if (!*parts[i].values)
            return false;
    }
    return true;
}

static bool readAll(const Source* source, Reference* r) {
    uint32_t bytes, rows, columns;
    if (!sizes(source, "embedding", &bytes, &r->width) || !sizes(source, "layers.0.attention.q", &rows, &columns) ||
        !sizes(source, "layers.0.mlp.gate", &r->mlpWidth, &columns))
        return false;
    r->headsQ = (uint32_t)number(source, "num_heads_q");
    r->headsKv = (uint32_t)number(source, "num_heads_kv");
    r->context = (uint32_t)number(source, "context");
    r->theta = number(source, "rope_theta");
    r->eps = number(source, "rms_eps");
    if (!r->headsQ || !r->headsKv || !r->context)
        return false;
    r->headDim = rows / r->headsQ;
    r->embedding = readTensor(source, "embedding", bytes, r->width);
    r->norm = readTensor(source, "norm", r->width, 1);
    while (r->layers < REFERENCE_MAX_LAYERS && readLayer(source, r, r->layers))
        r->layers++;
    return r->embedding && r->norm && r->layers;
}

bool referenceRead(const char* path, Reference* reference) {
    *reference = (Reference){0};
    FILE* stream = fopen(path, "rb");
    uint8_t* bytes = calloc(1, 1 << 24);
    size_t size = stream ? fread(bytes, 1, (1 << 24) - 1, stream) : 0, length = 0;
    for (int i = 0; i < 4; i++)
        length |= (size_t)bytes[i] << 8 * i;
    bool good = size > 8 && length < size - 8;
    if (good) {
        Source source = {malloc(length + 1), bytes + 8 + length};
        memcpy(source.header, bytes + 8, length);
        source.header[length] = 0;
        good = readAll(&source, reference);
        free(source.header);
    }
    if (stream)
        fclose(stream);
    free(bytes);
    return good;
}

void referenceFree(Reference* r) {
    free(r->embedding);
    free(r->norm);
    for (uint32_t i = 0; i < REFERENCE_MAX_LAYERS; i++) {
        ReferenceLayer* l = &r->layer[i];
        double* parts[] = {l->attentionNorm, l->q, l->k, l->v, l->o, l->mlpNorm, l->gate, l->up, l->down};
        for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++)
            free(parts[p]);
    }
    *r = (Reference){0};
}

// ---- one token after another; keys and values of all of them are kept as they are ----

typedef struct Token {
    double *key, *value; // [layers, headsKv, headDim]
} Token;

static void product(const double* matrix, const double* in, uint32_t rows, uint32_t columns, double* out) {
    for (uint32_t r = 0; r < rows; r++) {
        double sums[4] = {0};
        uint32_t c = 0;
        for (; c + 4 <= columns; c += 4)
            for (uint32_t i = 0; i < 4; i++)
                sums[i] += matrix[(size_t)r * columns + c + i] * in[c + i];
        for (; c < columns; c++)
            sums[0] += matrix[(size_t)r * columns + c] * in[c];
        out[r] = sums[0] + sums[1] + sums[2] + sums[3];
    }
}

static void normalise(const Reference* r, const double* in, const double* weight, double* out) {
    double squares = 0;
    for (uint32_t i = 0; i < r->width; i++)
        squares += in[i] * in[i];
    for (uint32_t i = 0; i < r->width; i++)
        out[i] = in[i] / sqrt(squares / r->width + r->eps) * weight[i];
}

// Turns heads by their position: elements i and i + headDim / 2 are a plane.
static void turn(const Reference* r, double* heads, uint32_t count, uint32_t position) {
    uint32_t half = r->headDim / 2;
    for (uint32_t i = 0; i < half; i++) {
        double angle = position * pow(r->theta, -2.0 * i / r->headDim);
        for (uint32_t h = 0; h < count; h++) {
            double *a = heads + h * r->headDim + i, *b = a + half, first = *a;
            *a = first * cos(angle) - *b * sin(angle);
            *b = first * sin(angle) + *b * cos(angle);
        }
    }
}

static void attend(const Reference* r, const Token* tokens, uint32_t layer, uint32_t first, uint32_t last,
                   const double* q, double* weights, double* out) {
    for (uint32_t h = 0; h < r->headsQ; h++, q += r->headDim, out += r->headDim) {
        size_t kv = ((size_t)layer * r->headsKv + h / (r->headsQ / r->headsKv)) * r->headDim;
        double largest = -INFINITY, sum = 0;
        for (uint32_t t = first; t <= last; t++) {
            weights[t] = 0;
            for (uint32_t d = 0; d < r->headDim; d++)
                weights[t] += q[d] * tokens[t].key[kv + d];
            weights[t] /= sqrt(r->headDim);
            largest = fmax(largest, weights[t]);
        }
        memset(out, 0, r->headDim * sizeof(double));
        for (uint32_t t = first; t <= last; t++) {
            double weight = exp(weights[t] - largest);
            sum += weight;
            for (uint32_t d = 0; d < r->headDim; d++)
                out[d] += weight * tokens[t].value[kv + d];
        }
        for (uint32_t d = 0; d < r->headDim; d++)
            out[d] /= sum;
    }
}

void referenceLogits(const Reference* r, const uint8_t* text, uint32_t count, uint32_t window, double* logits) {
    uint32_t q = r->headsQ * r->headDim, kv = r->headsKv * r->headDim;
    Token* tokens = calloc(count, sizeof(Token));
    double* rows = calloc((size_t)count * r->layers * kv * 2, sizeof(double));
    double* scratch = calloc(3 * (size_t)r->width + 2 * q + 2 * (size_t)r->mlpWidth + count, sizeof(double));
    double *x = scratch, *normed = x + r->width, *more = normed + r->width, *query = more + r->width, *out = query + q;
    double *gate = out + q, *up = gate + r->mlpWidth, *weights = up + r->mlpWidth;
    for (uint32_t t = 0; t < count; t++) {
        tokens[t].key = rows + (size_t)t * r->layers * kv * 2;
        tokens[t].value = tokens[t].key + (size_t)r->layers * kv;
        memcpy(x, r->embedding + (size_t)text[t] * r->width, r->width * sizeof(double));
        for (uint32_t l = 0; l < r->layers; l++) {
            const ReferenceLayer* layer = &r->layer[l];
            normalise(r, x, layer->attentionNorm, normed);
            product(layer->q, normed, q, r->width, query);
            product(layer->k, normed, kv, r->width, tokens[t].key + (size_t)l * kv);
            product(layer->v, normed, kv, r->width, tokens[t].value + (size_t)l * kv);
            turn(r, query, r->headsQ, t);
            turn(r, tokens[t].key + (size_t)l * kv, r->headsKv, t);
            attend(r, tokens, l, window && t + 1 > window ? t + 1 - window : 0, t, query, weights, out);
            product(layer->o, out, r->width, q, more);
            for (uint32_t i = 0; i < r->width; i++)
                x[i] += more[i];
            normalise(r, x, layer->mlpNorm, normed);
            product(layer->gate, normed, r->mlpWidth, r->width, gate);
            product(layer->up, normed, r->mlpWidth, r->width, up);
            for (uint32_t i = 0; i < r->mlpWidth; i++)
                gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            product(layer->down, gate, r->width, r->mlpWidth, more);
            for (uint32_t i = 0; i < r->width; i++)
                x[i] += more[i];
        }
        normalise(r, x, r->norm, normed);
        product(r->embedding, normed, 256, r->width, logits + (size_t)t * 256);
    }
    free(scratch);
    free(rows);
    free(tokens);
}

double referenceLoss(const Reference* r, const uint8_t* text, size_t count) {
    double total = 0, *logits = malloc(sizeof(double) * 256 * r->context);
    size_t windows = 0;
    for (; windows * r->context + r->context < count; windows++) {
        const uint8_t* window = text + windows * r->context;
        referenceLogits(r, window, r->context, 0, logits);
        for (uint32_t t = 0; t < r->context; t++) {
            double sum = 0;
            for (uint32_t i = 0; i < 256; i++)
                sum += exp(logits[t * 256 + i]);
            total += log(sum) - logits[t * 256 + window[t + 1]];
        }
    }
    free(logits);
    return total / ((double)windows * r->context);
}

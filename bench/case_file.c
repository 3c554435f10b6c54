// An attention case file: its metadata keys, its tensors, and the library's limits.
// SPDX-License-Identifier: MIT
#include "case_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- metadata: one row per key -----------------------------------------------------------------

typedef enum KeyKind { KEY_TEXT, KEY_WHOLE, KEY_REAL } KeyKind;

static const struct {
    const char* name;
    KeyKind kind;
    size_t field;   // of CaseFile
    size_t present; // of a bool that tells 0 from absent, or 0
    uint64_t most;  // of KEY_WHOLE
} keys[] = {
    {"description", KEY_TEXT, offsetof(CaseFile, description), 0, 0},
    {"causal", KEY_WHOLE, offsetof(CaseFile, causal), 0, 1},
    {"page_size", KEY_WHOLE, offsetof(CaseFile, pageSize), 0, 256},
    {"scale", KEY_REAL, offsetof(CaseFile, scale), 0, 0},
    {"softcap", KEY_REAL, offsetof(CaseFile, softcap), 0, 0},
    {"window_left", KEY_WHOLE, offsetof(CaseFile, windowLeft), offsetof(CaseFile, hasWindowLeft),
     INT32_MAX},
    {"window_right", KEY_WHOLE, offsetof(CaseFile, windowRight), offsetof(CaseFile, hasWindowRight),
     INT32_MAX},
    {"v_prefix_of_k", KEY_WHOLE, offsetof(CaseFile, vPrefixOfK), 0, 65536},
    {"rope_theta", KEY_REAL, offsetof(CaseFile, ropeTheta), 0, 0},
    {"rope_dim", KEY_WHOLE, offsetof(CaseFile, ropeDim), 0, 65536},
    {"rope_style", KEY_TEXT, offsetof(CaseFile, ropeStyle), 0, 0},
};
enum { KEY_COUNT = sizeof(keys) / sizeof(keys[0]) };

static BenchResult readKey(CaseFile* c, int k) {
    const char* text = findMetadata(&c->file, keys[k].name);
    void* field = (char*)c + keys[k].field;
    char* end;
    if (!text)
        return BENCH_OK;
    if (keys[k].present)
        *(bool*)((char*)c + keys[k].present) = true;
    if (keys[k].kind == KEY_TEXT) {
        *(const char**)field = text;
    } else if (keys[k].kind == KEY_WHOLE) {
        unsigned long long value = strtoull(text, &end, 10);
        if (*text < '0' || *text > '9' || *end || value > keys[k].most)
            return fail(BENCH_USAGE,
                        "%s: __metadata__ %s is '%s'; give a whole number from 0 to %" PRIu64,
                        c->file.path, keys[k].name, text, keys[k].most);
        *(uint64_t*)field = value;
    } else {
        double value = strtod(text, &end);
        if (end == text || *end || !isfinite(value))
            return fail(BENCH_USAGE, "%s: __metadata__ %s is '%s'; give a finite number",
                        c->file.path, keys[k].name, text);
        *(double*)field = value;
    }
    return BENCH_OK;
}

static bool isKnownKey(const char* name) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (strcmp(keys[i].name, name) == 0)
            return true;
    return strcmp(name, "vkmqa.case") == 0 || strcmp(name, "kv_type") == 0 ||
           strcmp(name, "format") == 0; // which PyTorch's writer adds
}

static BenchResult readMetadata(CaseFile* c) {
    const char* version = findMetadata(&c->file, "vkmqa.case");
    if (!version)
        return fail(BENCH_USAGE,
                    "%s: __metadata__ has no 'vkmqa.case'; an attention case has \"1\"",
                    c->file.path);
    if (strcmp(version, "1") != 0)
        return fail(BENCH_USAGE, "%s: __metadata__ vkmqa.case is '%s'; this version reads \"1\"",
                    c->file.path, version);
    for (int i = 0; i < KEY_COUNT; i++) {
        BenchResult result = readKey(c, i);
        if (result != BENCH_OK)
            return result;
    }
    const cJSON* item;
    cJSON_ArrayForEach(item, c->file.metadata) if (!isKnownKey(item->string))
        fprintf(stderr, "vkmqa-bench: %s: note: __metadata__ '%s' is unknown and ignored\n",
                c->file.path, item->string);
    if (c->pageSize & (c->pageSize - 1))
        return fail(BENCH_USAGE,
                    "%s: __metadata__ page_size is %" PRIu64
                    "; give a power of two from 1 to 256, or 0",
                    c->file.path, c->pageSize);
    if (c->softcap < 0)
        return fail(BENCH_USAGE, "%s: __metadata__ softcap is %g; give a positive number, or 0",
                    c->file.path, c->softcap);
    if (findMetadata(&c->file, "rope_theta") && !(c->ropeTheta > 0))
        return fail(BENCH_USAGE, "%s: __metadata__ rope_theta is %g; give a positive number",
                    c->file.path, c->ropeTheta);
    if (c->ropeStyle && strcmp(c->ropeStyle, "neox") != 0 &&
        strcmp(c->ropeStyle, "interleaved") != 0)
        return fail(BENCH_USAGE, "%s: __metadata__ rope_style is '%s'; it is neox or interleaved",
                    c->file.path, c->ropeStyle);
    return BENCH_OK;
}

// "TYPE" or "KTYPE/VTYPE"
static BenchResult readCacheTypes(CaseFile* c) {
    const char* text = findMetadata(&c->file, "kv_type");
    if (!text)
        return fail(BENCH_USAGE, "%s: __metadata__ has no 'kv_type'; give one of %s, or K/V",
                    c->file.path, typeNames());
    char first[32];
    const char* slash = strchr(text, '/');
    size_t length = slash ? (size_t)(slash - text) : strlen(text);
    snprintf(first, sizeof(first), "%.*s", length < 31 ? (int)length : 31, text);
    c->kType = typeByName(first);
    c->vType = slash ? typeByName(slash + 1) : c->kType;
    if (!c->kType || !c->vType)
        return fail(BENCH_USAGE, "%s: __metadata__ kv_type is '%s'; give one of %s, or K/V",
                    c->file.path, text, typeNames());
    return BENCH_OK;
}

// ---- tensors -----------------------------------------------------------------------------------

// A tensor's role: its dtypes, its shape in terms of what is known so far.
static BenchResult checkShape(const CaseFile* c, const Tensor* t, const char* dtypes, uint32_t dims,
                              const uint64_t* shape, const char* shapeText) {
    char dtype[16];
    snprintf(dtype, sizeof(dtype), " %s ", t->dtype);
    if (!strstr(dtypes, dtype))
        return fail(BENCH_USAGE, "%s: tensor '%s' is %s; it must be one of%s", c->file.path,
                    t->name, t->dtype, dtypes);
    bool fits = t->dims == dims;
    for (uint32_t i = 0; fits && i < dims; i++)
        fits = shape[i] == UINT64_MAX || t->shape[i] == shape[i];
    if (fits)
        return BENCH_OK;
    char found[160] = "", expected[160] = "";
    for (uint32_t i = 0; i < t->dims; i++)
        snprintf(found + strlen(found), sizeof(found) - strlen(found), "%s%" PRIu64, i ? ", " : "",
                 t->shape[i]);
    for (uint32_t i = 0; i < dims; i++) {
        size_t used = strlen(expected);
        if (shape[i] == UINT64_MAX)
            snprintf(expected + used, sizeof(expected) - used, "%sany", i ? ", " : "");
        else
            snprintf(expected + used, sizeof(expected) - used, "%s%" PRIu64, i ? ", " : "",
                     shape[i]);
    }
    return fail(BENCH_USAGE, "%s: tensor '%s' has shape [%s]; expected %s = [%s]", c->file.path,
                t->name, found, shapeText, expected);
}

int32_t intAt(const Tensor* tensor, uint64_t index) {
    const uint8_t* b = tensor->data + 4 * index;
    return (int32_t)((uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
                     (uint32_t)b[3] << 24);
}

static BenchResult checkOffsets(const CaseFile* c, const Tensor* t, uint64_t total) {
    for (uint64_t i = 0; i < t->count; i++) {
        if (i == 0 ? intAt(t, 0) == 0 : intAt(t, i) >= intAt(t, i - 1))
            continue;
        return fail(BENCH_USAGE, "%s: %s[%" PRIu64 "] is %d; it must %s", c->file.path, t->name, i,
                    intAt(t, i), i == 0 ? "be 0" : "not be less than the one before");
    }
    if ((uint64_t)intAt(t, t->count - 1) != total)
        return fail(BENCH_USAGE, "%s: %s ends with %d; there are %" PRIu64 " tokens", c->file.path,
                    t->name, intAt(t, t->count - 1), total);
    return BENCH_OK;
}

static const char floatTypes[] = " F32 F16 BF16 ";

static BenchResult findRequired(CaseFile* c) {
    struct {
        const char* name;
        const Tensor** tensor;
        bool required;
    } all[] = {
        {"q", &c->q, true},
        {"k", &c->k, true},
        {"v", &c->v, !c->vPrefixOfK},
        {"cu_seqlens_q", &c->cuSeqlensQ, true},
        {"cu_seqlens_kv", &c->cuSeqlensKv, true},
        {"out", &c->out, false},
        {"lse", &c->lse, false},
        {"alibi_slopes", &c->alibiSlopes, false},
        {"sinks", &c->sinks, false},
        {"mask", &c->mask, false},
    };
    enum { COUNT = sizeof(all) / sizeof(all[0]) };
    for (int i = 0; i < COUNT; i++) {
        *all[i].tensor = findTensor(&c->file, all[i].name);
        if (!*all[i].tensor && all[i].required)
            return fail(BENCH_USAGE, "%s: tensor '%s' is missing", c->file.path, all[i].name);
    }
    if (c->v && c->vPrefixOfK)
        return fail(BENCH_USAGE,
                    "%s: there is a tensor 'v' and __metadata__ v_prefix_of_k; give one of them",
                    c->file.path);
    for (uint32_t t = 0; t < c->file.tensorCount; t++) {
        bool known = false;
        for (int i = 0; i < COUNT; i++)
            known = known || *all[i].tensor == &c->file.tensors[t];
        if (!known)
            fprintf(stderr, "vkmqa-bench: %s: note: tensor '%s' is unknown and ignored\n",
                    c->file.path, c->file.tensors[t].name);
    }
    return BENCH_OK;
}

static BenchResult checkSizes(CaseFile* c) {
    const struct {
        const char* name;
        uint64_t value;
        uint64_t least;
    } sizes[] = {
        {"num_heads_q", c->q->shape[1], 1},
        {"num_heads_kv", c->k->shape[1], 1},
        {"head_dim_qk", c->q->shape[2], 1},
        {"head_dim_v", c->v ? c->v->shape[2] : c->vPrefixOfK, 1},
        {"total_q", c->q->shape[0], 0},
        {"total_kv", c->k->shape[0], 0},
        {"batch + 1", c->cuSeqlensQ->shape[0], 2},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (sizes[i].value < sizes[i].least || sizes[i].value > INT32_MAX)
            return fail(BENCH_USAGE, "%s: %s is %" PRIu64 "; it must be from %" PRIu64 " to %d",
                        c->file.path, sizes[i].name, sizes[i].value, sizes[i].least, INT32_MAX);
    c->totalQ = (uint32_t)c->q->shape[0], c->numHeadsQ = (uint32_t)c->q->shape[1];
    c->headDimQk = (uint32_t)c->q->shape[2];
    c->totalKv = (uint32_t)c->k->shape[0], c->numHeadsKv = (uint32_t)c->k->shape[1];
    c->headDimV = (uint32_t)(c->v ? c->v->shape[2] : c->vPrefixOfK);
    c->batch = (uint32_t)c->cuSeqlensQ->shape[0] - 1;
    if (c->numHeadsQ % c->numHeadsKv)
        return fail(BENCH_USAGE, "%s: %u query heads are not a multiple of %u key/value heads",
                    c->file.path, c->numHeadsQ, c->numHeadsKv);
    if (c->headDimV > c->headDimQk && c->vPrefixOfK)
        return fail(BENCH_USAGE, "%s: v_prefix_of_k is %u, more than the %u columns of k",
                    c->file.path, c->headDimV, c->headDimQk);
    if (c->ropeDim > c->headDimQk || c->ropeDim % 2)
        return fail(BENCH_USAGE,
                    "%s: rope_dim is %" PRIu64 "; give an even number up to head_dim_qk = %u",
                    c->file.path, c->ropeDim, c->headDimQk);
    if (c->vPrefixOfK && c->kType != c->vType)
        return fail(BENCH_USAGE,
                    "%s: kv_type is %s/%s, but with v_prefix_of_k V is part of K; give one type",
                    c->file.path, c->kType->name, c->vType->name);
    return BENCH_OK;
}

static BenchResult checkTensors(CaseFile* c) {
    const uint64_t any = UINT64_MAX;
    uint64_t qShape[] = {any, any, any}, cuShape[] = {any};
    BenchResult result =
        checkShape(c, c->q, floatTypes, 3, qShape, "[total_q, num_heads_q, head_dim_qk]");
    uint64_t kShape[] = {any, any, c->q->shape[2]};
    if (result == BENCH_OK)
        result =
            checkShape(c, c->k, floatTypes, 3, kShape, "[total_kv, num_heads_kv, head_dim_qk]");
    uint64_t vShape[] = {c->k->shape[0], c->k->shape[1], any};
    if (result == BENCH_OK && c->v)
        result = checkShape(c, c->v, floatTypes, 3, vShape, "[total_kv, num_heads_kv, head_dim_v]");
    if (result == BENCH_OK)
        result = checkShape(c, c->cuSeqlensQ, " I32 ", 1, cuShape, "[batch + 1]");
    cuShape[0] = c->cuSeqlensQ->shape[0];
    if (result == BENCH_OK)
        result = checkShape(c, c->cuSeqlensKv, " I32 ", 1, cuShape, "[batch + 1]");
    if (result == BENCH_OK)
        result = checkSizes(c);
    if (result == BENCH_OK)
        result = checkOffsets(c, c->cuSeqlensQ, c->totalQ);
    if (result == BENCH_OK)
        result = checkOffsets(c, c->cuSeqlensKv, c->totalKv);
    if (result != BENCH_OK)
        return result;
    for (uint32_t b = 0; b < c->batch; b++) {
        uint32_t queries = (uint32_t)(intAt(c->cuSeqlensQ, b + 1) - intAt(c->cuSeqlensQ, b));
        uint32_t length = (uint32_t)(intAt(c->cuSeqlensKv, b + 1) - intAt(c->cuSeqlensKv, b));
        c->longestQ = queries > c->longestQ ? queries : c->longestQ;
        c->longestKv = length > c->longestKv ? length : c->longestKv;
    }
    uint64_t headShape[] = {c->numHeadsQ}, maskShape[] = {c->totalQ, c->longestKv};
    uint64_t outShape[] = {c->totalQ, c->numHeadsQ, c->headDimV};
    if (c->out)
        result = checkShape(c, c->out, " F64 ", 3, outShape, "[total_q, num_heads_q, head_dim_v]");
    if (result == BENCH_OK && c->lse)
        result = checkShape(c, c->lse, " F64 ", 2, outShape, "[total_q, num_heads_q]");
    if (result == BENCH_OK && c->alibiSlopes)
        result = checkShape(c, c->alibiSlopes, " F32 ", 1, headShape, "[num_heads_q]");
    if (result == BENCH_OK && c->sinks)
        result = checkShape(c, c->sinks, " F32 ", 1, headShape, "[num_heads_q]");
    if (result == BENCH_OK && c->mask)
        result = checkShape(c, c->mask, " U8 ", 2, maskShape, "[total_q, max seq_len_kv]");
    c->qDtype = typeByDtype(c->q->dtype);
    c->kDtype = typeByDtype(c->k->dtype);
    c->vDtype = c->v ? typeByDtype(c->v->dtype) : c->kDtype;
    return result;
}

BenchResult readCaseFile(const char* path, CaseFile* c) {
    *c = (CaseFile){.description = ""};
    BenchResult result = readTensorFile(path, &c->file);
    if (result == BENCH_OK)
        result = readMetadata(c);
    if (result == BENCH_OK)
        result = readCacheTypes(c);
    if (result == BENCH_OK)
        result = findRequired(c);
    if (result == BENCH_OK)
        result = checkTensors(c);
    if (result != BENCH_OK)
        freeCaseFile(c);
    return result;
}

void freeCaseFile(CaseFile* c) { freeTensorFile(&c->file); }

bool caseHasRope(const CaseFile* c) { return c->ropeStyle || c->ropeTheta > 0 || c->ropeDim; }

// ---- the library's limits ------------------------------------------------------------------------

BenchResult checkCaseSupported(const CaseFile* c) {
    uint32_t dims[] = {c->headDimQk, c->headDimV};
    for (int i = 0; i < 2; i++)
        if (dims[i] % 8 || dims[i] > 576)
            return fail(
                BENCH_MISSING,
                "%s: needs a head dimension of %u; the library has multiples of 8 up to 576",
                c->file.path, dims[i]);
    if (c->numHeadsQ > 65536)
        return fail(BENCH_MISSING, "%s: needs %u query heads; the library has up to 65536", c->file.path,
                    c->numHeadsQ);
    if (c->numHeadsQ / c->numHeadsKv > 128)
        return fail(BENCH_MISSING,
                    "%s: needs %u query heads per key/value head; the library has up to 128",
                    c->file.path, c->numHeadsQ / c->numHeadsKv);
    return BENCH_OK;
}

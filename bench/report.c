// Output: Markdown as rows arrive, CSV, JSON and JSON lines through cJSON; progress on a terminal.
// SPDX-License-Identifier: MIT
#include "bench.h"
#include "types.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Report {
    const Session* session;
    bool headerPrinted;
    uint32_t rowCount;
    Row* rows; // kept for JSON, the kernels' footnotes and the table of heads-32
} Report;

static bool progressShown;

void clearProgress(void) {
    if (progressShown)
        fprintf(stderr, "\r\033[K");
    progressShown = false;
}

void showProgress(const Session* session, uint32_t index, uint32_t count, const Item* item) {
    if (!terminalAtStderr())
        return;
    clearProgress();
    progressShown = true;
    fprintf(stderr, "[%u/%u] %s %s on %s", index + 1, count, opNames[item->op], item->model,
            session->properties.name);
    fflush(stderr);
}

const char* deviceTypeName(VkPhysicalDeviceType type) {
    static const char* const names[] = {"other", "integrated", "discrete", "virtual", "cpu"};
    return (uint32_t)type < 5 ? names[type] : "unknown";
}

static void apiVersion(uint32_t version, char text[16]) {
    snprintf(text, 16, "%u.%u.%u", version >> 22 & 0x7F, version >> 12 & 0x3FF, version & 0xFFF);
}

void uuidText(const uint8_t uuid[16], char text[33]) {
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", uuid[i]);
}

static cJSON* deviceJson(const VkmqaDeviceProperties* d) {
    char api[16], uuid[33];
    apiVersion(d->apiVersion, api);
    uuidText(d->uuid, uuid);
    cJSON* json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "index", d->index);
    cJSON_AddStringToObject(json, "name", d->name);
    cJSON_AddStringToObject(json, "type", deviceTypeName(d->type));
    cJSON_AddStringToObject(json, "uuid", uuid);
    cJSON_AddStringToObject(json, "driver", d->driverName);
    cJSON_AddStringToObject(json, "driver_info", d->driverInfo);
    cJSON_AddNumberToObject(json, "driver_version", d->driverVersion);
    cJSON_AddStringToObject(json, "api_version", api);
    cJSON_AddNumberToObject(json, "memory_bytes", (double)d->deviceMemory);
    return json;
}

static void printJson(cJSON* json, bool pretty) {
    char* text = pretty ? cJSON_Print(json) : cJSON_PrintUnformatted(json);
    if (text)
        printf("%s\n", text);
    cJSON_free(text);
    cJSON_Delete(json);
}

void listDevices(const VkmqaDeviceProperties* devices, uint32_t count, OutputFormat format) {
    cJSON* list = cJSON_CreateArray();
    for (uint32_t i = 0; i < count; i++) {
        char api[16];
        apiVersion(devices[i].apiVersion, api);
        if (format == OUTPUT_MD)
            printf("%u: %s (%s, %s %s, Vulkan %s, %.1f GiB)\n", devices[i].index, devices[i].name,
                   deviceTypeName(devices[i].type), devices[i].driverName, devices[i].driverInfo,
                   api, (double)devices[i].deviceMemory / (1 << 30));
        else if (format == OUTPUT_CSV)
            printf("%s%u,\"%s\",%s,\"%s\",\"%s\",%s\n",
                   i ? "" : "index,name,type,driver,driver_info,api_version\n", devices[i].index,
                   devices[i].name, deviceTypeName(devices[i].type), devices[i].driverName,
                   devices[i].driverInfo, api);
        else if (format == OUTPUT_JSONL)
            printJson(deviceJson(&devices[i]), false);
        else
            cJSON_AddItemToArray(list, deviceJson(&devices[i]));
    }
    if (format == OUTPUT_JSON)
        printJson(list, true);
    else
        cJSON_Delete(list);
}

struct Report* createReport(const Session* session) {
    Report* report = allocate(1, sizeof(*report));
    report->session = session;
    return report;
}

// ---- one row as text ---------------------------------------------------------------------------

typedef struct RowText {
    char model[200], heads[24], dim[16], tokens[32], batch[16], cache[24], median[16], p95[16],
        rate[16], arithmetic[16], roof[20], nmse[24];
} RowText;

static void timeText(double seconds, char text[16]) {
    if (seconds < 1e-3)
        snprintf(text, 16, seconds < 1e-5 ? "%.2f us" : "%.1f us", seconds * 1e6);
    else
        snprintf(text, 16, seconds < 1 ? "%.2f ms" : "%.0f ms", seconds * 1e3);
}

static double rateOf(const Row* row, double work) {
    return row->time.median > 0 ? work / row->time.median : 0;
}

static bool isShaped(const Row* row) { return row->item.op >= OP_DECODE; }

// "window 1023 sinks": what the row has beside the plain thing. No commas, for CSV.
static void modifierText(const Modifiers* m, char text[128]) {
    static const struct {
        VkmqaAttentionFlags flag;
        const char* name;
    } names[] = {
        {VKMQA_ATTENTION_ALIBI_BIT, "alibi"},
        {VKMQA_ATTENTION_SINKS_BIT, "sinks"},
        {VKMQA_ATTENTION_MASK_BIT, "mask"},
        {VKMQA_ATTENTION_TREE_MASK_BIT, "tree"},
        {VKMQA_ATTENTION_V_PREFIX_OF_K_BIT, "v-prefix"},
        {VKMQA_ATTENTION_HADAMARD_BIT, "hadamard"},
        {VKMQA_ATTENTION_BATCH_INVARIANT_BIT, "batch-invariant"},
    };
    size_t used = 0;
    text[0] = 0;
#define ADD(...) (used += (size_t)snprintf(text + used, 128 - used, __VA_ARGS__))
    if (m->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT)
        ADD(" left %u", m->windowLeft);
    if (m->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT)
        ADD(" right %u", m->windowRight);
    if (m->chunkSize)
        ADD(" chunk %u", m->chunkSize);
    if (m->softcap > 0)
        ADD(" softcap %g", (double)m->softcap);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (m->flags & names[i].flag)
            ADD(" %s", names[i].name);
    if (m->ropeStyle != VKMQA_ROPE_NONE)
        ADD(" rope %s", m->ropeStyle == VKMQA_ROPE_NEOX ? "neox" : "interleaved");
    if (m->ropeDim)
        ADD(" %u", m->ropeDim);
#undef ADD
    memmove(text, text + (used > 0), used + (used == 0)); // the first blank
}

static RowText rowText(const Row* row) {
    const Item* i = &row->item;
    RowText t = {0};
    int length = (int)(row->item.op == OP_CASE ? strcspn(i->model, ".") : strlen(i->model));
    snprintf(t.model, sizeof(t.model), "%.*s", length < 60 ? length : 60, i->model);
    if (isShaped(row)) {
        char modifiers[128];
        modifierText(&i->modifiers, modifiers);
        snprintf(t.model + strlen(t.model), sizeof(t.model) - strlen(t.model), "%s%s",
                 t.model[0] && modifiers[0] ? " " : "", modifiers);
        snprintf(t.heads, sizeof(t.heads), "%u:%u", i->numHeadsQ, i->numHeadsKv);
        snprintf(t.dim, sizeof(t.dim), i->headDimQk == i->headDimV ? "%u" : "%u/%u", i->headDimQk,
                 i->headDimV);
        snprintf(t.tokens, sizeof(t.tokens), "%u x %u", i->queryTokens, i->context);
        snprintf(t.batch, sizeof(t.batch), "%u", i->batch);
        char types[24];
        snprintf(types, sizeof(types), i->kType == i->vType ? "%s" : "%s/%s",
                 typeTraits(i->kType)->name, typeTraits(i->vType)->name);
        snprintf(t.cache, sizeof(t.cache), i->pageSize ? "%s p%u" : "%s", types, i->pageSize);
    }
    timeText(row->time.median, t.median);
    timeText(row->time.p95, t.p95);
    if (row->bytes > 0)
        snprintf(t.rate, sizeof(t.rate), "%.3g", rateOf(row, row->bytes) * 1e-9);
    if (row->flops > 0)
        snprintf(t.arithmetic, sizeof(t.arithmetic), "%.3g", rateOf(row, row->flops) * 1e-12);
    if (row->roof)
        snprintf(t.roof, sizeof(t.roof), "%.0f %% %s", row->percentOfRoof, row->roof);
    if (row->wrong)
        snprintf(t.nmse, sizeof(t.nmse), "WRONG");
    else if (row->nmse >= 0)
        snprintf(t.nmse, sizeof(t.nmse), row->nmse > 0 ? "%.1e" : "exact", row->nmse);
    return t;
}

static void printDevice(const Session* session) {
    const VkmqaDeviceProperties* d = &session->properties;
    char api[16];
    apiVersion(d->apiVersion, api);
    printf("vkmqa-bench %d.%d.%d on %s (%s, %s %s, Vulkan %s)\n\n", VKMQA_VERSION_MAJOR,
           VKMQA_VERSION_MINOR, VKMQA_VERSION_PATCH, d->name, deviceTypeName(d->type),
           d->driverName, d->driverInfo, api);
}

#define MD_FORMAT                                                                                  \
    "| %-7s | %-18s | %6s | %7s | %11s | %5s | %-7s | %-22s | %9s | %9s | %6s | %7s | %9s | %7s "  \
    "|\n"

static void printMarkdown(Report* report, const Row* row) {
    if (!report->headerPrinted) {
        printDevice(report->session);
        printf(MD_FORMAT, "op", "model", "heads", "dim", "q x context", "batch", "cache", "kernel",
               "median", "p95", "GB/s", "TFLOP/s", "of roof", "NMSE");
        printf("|---------|--------------------|-------:|--------:|------------:|------:|---------|"
               "------------------------|----------:|----------:|-------:|--------:|----------:|"
               "--------:|\n");
        report->headerPrinted = true;
    }
    if (row->item.op == OP_QUALITY && !row->wrong)
        return; // they have a table of their own
    RowText t = rowText(row);
    printf(MD_FORMAT, opNames[row->item.op], t.model, t.heads, t.dim, t.tokens, t.batch, t.cache,
           row->kernel, t.median, t.p95, t.rate, t.arithmetic, t.roof, t.nmse);
    fflush(stdout);
}

static const char* dataName(const Item* item) {
    return item->op != OP_QUALITY ? "" : item->outliers ? "outliers" : "gaussian";
}

static bool hasLayers(const Item* item) {
    return item->op >= OP_REPLAY && item->op != OP_QUALITY && item->op < OP_CASE;
}

static void printCsv(Report* report, const Row* row) {
    const Item* i = &row->item;
    if (!report->headerPrinted)
        printf(
            "op,model,heads_q,heads_kv,head_dim_qk,head_dim_v,query_tokens,context,batch,page_size,"
            "causal,k_type,v_type,kernel,samples,median_s,p95_s,best_s,mean_s,gb_per_s,tflop_per_s,"
            "percent_of_roof,roof,nmse,ok,modifiers,data,parts,layers,cache_bytes_per_token,"
            "overhead\n");
    report->headerPrinted = true;
    printf("%s,\"%s\",", opNames[i->op], i->model);
    if (isShaped(row))
        printf("%u,%u,%u,%u,%u,%u,%u,%u,%d,%s,%s,", i->numHeadsQ, i->numHeadsKv, i->headDimQk,
               i->headDimV, i->queryTokens, i->context, i->batch, i->pageSize, i->causal,
               typeTraits(i->kType)->name, typeTraits(i->vType)->name);
    else
        printf(",,,,,,,,,,,");
    printf("\"%s\",%u,%.9g,%.9g,%.9g,%.9g,%.6g,%.6g,%.4g,%s,", row->kernel, row->time.count,
           row->time.median, row->time.p95, row->time.best, row->time.mean,
           rateOf(row, row->bytes) * 1e-9, rateOf(row, row->flops) * 1e-12, row->percentOfRoof,
           row->roof ? row->roof : "");
    if (row->nmse >= 0)
        printf("%.4g", row->nmse);
    char modifiers[128];
    modifierText(&i->modifiers, modifiers);
    printf(",%d,\"%s\",%s,", !row->wrong, isShaped(row) ? modifiers : "", dataName(i));
    if (i->op == OP_MERGE)
        printf("%u", i->parts);
    printf(hasLayers(i) ? ",%u," : ",,", i->layers);
    if (row->cacheBytesPerToken > 0)
        printf("%.9g", row->cacheBytesPerToken);
    printf(row->overhead > 0 ? ",%.4g\n" : ",\n", row->overhead);
    fflush(stdout);
}

// Only what the row has.
static void addModifiers(cJSON* json, const Item* i) {
    const Modifiers* m = &i->modifiers;
    const struct {
        bool present;
        const char* name;
        double value;
    } numbers[] = {
        {m->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT, "window_left", m->windowLeft},
        {m->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT, "window_right", m->windowRight},
        {m->chunkSize, "chunk", m->chunkSize},
        {m->softcap > 0, "softcap", (double)m->softcap},
        {m->ropeDim, "rope_dim", m->ropeDim},
        {i->op == OP_MERGE, "parts", i->parts},
        {hasLayers(i), "layers", i->layers},
    };
    char text[128];
    modifierText(m, text);
    if (text[0])
        cJSON_AddStringToObject(json, "modifiers", text);
    if (i->op == OP_QUALITY)
        cJSON_AddStringToObject(json, "data", dataName(i));
    for (size_t n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++)
        if (numbers[n].present)
            cJSON_AddNumberToObject(json, numbers[n].name, numbers[n].value);
}

static cJSON* rowJson(const Row* row) {
    const Item* i = &row->item;
    cJSON* json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "op", opNames[i->op]);
    if (isShaped(row)) {
        cJSON_AddStringToObject(json, "model", i->model);
        cJSON_AddNumberToObject(json, "heads_q", i->numHeadsQ);
        cJSON_AddNumberToObject(json, "heads_kv", i->numHeadsKv);
        cJSON_AddNumberToObject(json, "head_dim_qk", i->headDimQk);
        cJSON_AddNumberToObject(json, "head_dim_v", i->headDimV);
        cJSON_AddNumberToObject(json, "query_tokens", i->queryTokens);
        cJSON_AddNumberToObject(json, "context", i->context);
        cJSON_AddNumberToObject(json, "batch", i->batch);
        cJSON_AddNumberToObject(json, "page_size", i->pageSize);
        cJSON_AddBoolToObject(json, "causal", i->causal);
        cJSON_AddStringToObject(json, "io_type", typeTraits(i->ioType)->name);
        cJSON_AddStringToObject(json, "new_type", typeTraits(i->newType)->name);
        cJSON_AddStringToObject(json, "k_type", typeTraits(i->kType)->name);
        cJSON_AddStringToObject(json, "v_type", typeTraits(i->vType)->name);
        cJSON_AddNumberToObject(json, "cache_bytes_per_token", row->cacheBytesPerToken);
        addModifiers(json, i);
    }
    if (row->overhead > 0)
        cJSON_AddNumberToObject(json, "overhead", row->overhead);
    cJSON_AddStringToObject(json, "kernel", row->kernel);
    cJSON_AddStringToObject(json, "reason", row->reason);
    if (row->note[0])
        cJSON_AddStringToObject(json, "note", row->note);
    cJSON_AddNumberToObject(json, "samples", row->time.count);
    cJSON_AddNumberToObject(json, "median_s", row->time.median);
    cJSON_AddNumberToObject(json, "p95_s", row->time.p95);
    cJSON_AddNumberToObject(json, "best_s", row->time.best);
    cJSON_AddNumberToObject(json, "mean_s", row->time.mean);
    cJSON_AddNumberToObject(json, "gb_per_s", rateOf(row, row->bytes) * 1e-9);
    cJSON_AddNumberToObject(json, "tflop_per_s", rateOf(row, row->flops) * 1e-12);
    if (row->roof) {
        cJSON_AddNumberToObject(json, "percent_of_roof", row->percentOfRoof);
        cJSON_AddStringToObject(json, "roof", row->roof);
    }
    if (row->nmse >= 0 && isfinite(row->nmse))
        cJSON_AddNumberToObject(json, "nmse", row->nmse);
    cJSON_AddBoolToObject(json, "ok", !row->wrong);
    return json;
}

void addRow(struct Report* report, const Row* row) {
    clearProgress();
    report->rows = realloc(report->rows, (report->rowCount + 1) * sizeof(Row));
    if (!report->rows)
        abort();
    report->rows[report->rowCount++] = *row;
    switch (report->session->options->format) {
    case OUTPUT_MD:
        printMarkdown(report, row);
        break;
    case OUTPUT_CSV:
        printCsv(report, row);
        break;
    case OUTPUT_JSONL: {
        cJSON* json = rowJson(row);
        cJSON_AddStringToObject(json, "device", report->session->properties.name);
        printJson(json, false);
        fflush(stdout);
        break;
    }
    case OUTPUT_JSON:
        break;
    }
}

// ---- the end of a report -----------------------------------------------------------------------

// Why these kernels: one line per kernel and reason.
static void printReasons(const Report* report) {
    bool first = true;
    for (uint32_t i = 0; i < report->rowCount; i++) {
        const Row* row = &report->rows[i];
        bool told = (!row->reason[0] && !row->note[0]) || row->item.op == OP_QUALITY;
        for (uint32_t j = 0; j < i && !told; j++)
            told = strcmp(report->rows[j].kernel, row->kernel) == 0 &&
                   strcmp(report->rows[j].reason, row->reason) == 0 &&
                   strcmp(report->rows[j].note, row->note) == 0;
        if (told)
            continue;
        printf("%s- %s: %s%s%s\n", first ? "\n" : "", row->kernel, row->reason,
               row->reason[0] && row->note[0] ? "; " : "", row->note);
        first = false;
    }
}

// What sharing K and V buys: the reason multi-query attention exists.
static void printHeadTable(const Report* report) {
    const Row* base = NULL;
    printf("\n| heads | KV heads | cache per token | cache at context | longest context per GiB | "
           "median |"
           " faster than MHA |\n|---|---:|---:|---:|---:|---:|---:|\n");
    for (uint32_t i = 0; i < report->rowCount; i++) {
        const Row* row = &report->rows[i];
        if (row->item.op != OP_DECODE)
            continue;
        if (!base || row->item.numHeadsKv == row->item.numHeadsQ)
            base = row;
        for (uint32_t j = 0; j < report->rowCount; j++) // the MHA row of the same context and batch
            if (report->rows[j].item.op == OP_DECODE &&
                report->rows[j].item.numHeadsKv == report->rows[j].item.numHeadsQ &&
                report->rows[j].item.context == row->item.context &&
                report->rows[j].item.batch == row->item.batch &&
                report->rows[j].item.kType == row->item.kType &&
                report->rows[j].item.vType == row->item.vType)
                base = &report->rows[j];
        char median[16];
        timeText(row->time.median, median);
        double perToken = row->cacheBytesPerToken;
        const char* kind = row->item.numHeadsKv == row->item.numHeadsQ ? "MHA"
                           : row->item.numHeadsKv == 1                 ? "MQA"
                                                                       : "GQA";
        printf("| %s | %u | %.1f KiB | %.1f MiB at %u | %.0f tokens | %s | %.1fx |\n", kind,
               row->item.numHeadsKv, perToken / 1024,
               perToken * row->item.context * row->item.batch / (1 << 20), row->item.context,
               perToken > 0 ? floor((1 << 30) / perToken) : 0, median,
               base->time.median / row->time.median);
    }
    printf("\nCache sizes are of one layer.\n");
}

static const Row* findQuality(const Report* report, const Item* like, bool outliers,
                              VkmqaAttentionFlags hadamard) {
    for (uint32_t i = 0; i < report->rowCount; i++) {
        const Item* item = &report->rows[i].item;
        if (item->op == OP_QUALITY && item->kType == like->kType && item->vType == like->vType &&
            item->outliers == outliers &&
            (item->modifiers.flags & VKMQA_ATTENTION_HADAMARD_BIT) == hadamard)
            return &report->rows[i];
    }
    return NULL;
}

static void printNmse(const Row* row) {
    if (row)
        printf(" %.1e |", row->nmse);
    else
        printf(" |");
}

// What a cache type costs and saves: one line per type.
static void printQualityTable(const Report* report) {
    bool first = true;
    for (uint32_t i = 0; i < report->rowCount; i++) {
        const Row* row = &report->rows[i];
        const Item* item = &row->item;
        if (item->op != OP_QUALITY ||
            (findQuality(report, item, false, 0) != row &&
             (findQuality(report, item, false, 0) ||
              findQuality(report, item, false, VKMQA_ATTENTION_HADAMARD_BIT) != row)))
            continue; // another line has it
        if (first)
            printf(
                "\nNMSE of attention over a cache of each type, against f64 on the K and V before "
                "they were stored (%s%s%u:%u d%u, %u tokens)\n\n"
                "| cache | bytes per token | Gaussian | with --hadamard | outlier channels | "
                "with --hadamard |\n|---|---:|---:|---:|---:|---:|\n",
                item->model, item->model[0] ? " " : "", item->numHeadsQ, item->numHeadsKv,
                item->headDimQk, item->context);
        first = false;
        RowText t = rowText(row);
        printf("| %s | %.0f |", t.cache, row->cacheBytesPerToken);
        for (int outliers = 0; outliers < 2; outliers++) {
            printNmse(findQuality(report, item, outliers, 0));
            printNmse(findQuality(report, item, outliers, VKMQA_ATTENTION_HADAMARD_BIT));
        }
        printf("\n");
    }
}

void finishReport(struct Report* report) {
    if (!report)
        return;
    clearProgress();
    OutputFormat format = report->session->options->format;
    if (format == OUTPUT_MD && report->rowCount) {
        printReasons(report);
        if (report->session->options->headTable)
            printHeadTable(report);
        printQualityTable(report);
    } else if (format == OUTPUT_JSON) {
        char version[16];
        apiVersion(vkmqaGetVersion(), version);
        cJSON* json = cJSON_CreateObject();
        cJSON_AddNumberToObject(json, "schema_version", 1);
        cJSON_AddStringToObject(json, "version", version);
        cJSON_AddItemToObject(json, "device", deviceJson(&report->session->properties));
        cJSON* rows = cJSON_AddArrayToObject(json, "rows");
        for (uint32_t i = 0; i < report->rowCount; i++)
            cJSON_AddItemToArray(rows, rowJson(&report->rows[i]));
        printJson(json, true);
    }
    free(report->rows);
    free(report);
}

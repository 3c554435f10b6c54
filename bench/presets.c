// The shapes of well-known models, and what a run measures by default.
// SPDX-License-Identifier: MIT
#include "bench.h"
#include "types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Preset presets[] = {
    {"falcon-7b", 71, 1, 64, 64, "MQA 71:1", {0}},
    {"starcoder", 48, 1, 128, 128, "MQA 48:1", {0}},
    {"gemma-2b", 8, 1, 256, 256, "MQA 8:1, wide heads", {0}},
    {"mqa-32", 32, 1, 128, 128, "MQA 32:1", {0}},
    {"gqa-32", 32, 8, 128, 128, "GQA 4:1, the heads of llama3-8b", {0}},
    {"mha-32", 32, 32, 128, 128, "MHA, the heads of llama2-7b", {0}},
    {"llama2-7b", 32, 32, 128, 128, "MHA", {0}},
    {"llama3-8b", 32, 8, 128, 128, "GQA 4:1", {0}},
    {"llama3-70b", 64, 8, 128, 128, "GQA 8:1", {0}},
    {"llama3.2-1b", 32, 8, 64, 64, "GQA 4:1, small heads", {0}},
    {"mistral-7b", 32, 8, 128, 128, "GQA 4:1", {0}},
    {"qwen2.5-7b", 28, 4, 128, 128, "GQA 7:1", {0}},
    {"qwen3-30b-a3b", 32, 4, 128, 128, "GQA 8:1", {0}},
    {"gemma3-4b", 8, 4, 256, 256, "GQA 2:1, wide heads", {0}},
    {"phi-2", 32, 32, 80, 80, "MHA, 80-element heads", {0}},
    {"deepseek-mha", 128, 128, 192, 128, "MHA with keys wider than values", {0}},
    {"deepseek-mla",
     128,
     1,
     576,
     512,
     "MLA 128:1, V a prefix of K",
     {.flags = VKMQA_ATTENTION_V_PREFIX_OF_K_BIT}},
    {"gpt-oss",
     64,
     8,
     64,
     64,
     "GQA 8:1, small heads, sinks, window of 128 (every other layer)",
     {.flags = VKMQA_ATTENTION_SINKS_BIT | VKMQA_ATTENTION_WINDOW_LEFT_BIT, .windowLeft = 127}},
    {"gemma2-9b", 16, 8, 256, 256, "GQA 2:1, wide heads, softcap 50", {.softcap = 50}},
    {"bloom-7b", 32, 32, 128, 128, "MHA, ALiBi", {.flags = VKMQA_ATTENTION_ALIBI_BIT}},
};
enum { PRESET_COUNT = sizeof(presets) / sizeof(presets[0]) };

const Preset* findPreset(const char* name) {
    for (int i = 0; i < PRESET_COUNT; i++)
        if (strcmp(presets[i].name, name) == 0)
            return &presets[i];
    return NULL;
}

void printPresets(void) {
    for (int i = 0; i < PRESET_COUNT; i++) {
        const Preset* p = &presets[i];
        char dim[16];
        snprintf(dim, sizeof(dim), p->headDimQk == p->headDimV ? "%u" : "%u/%u", p->headDimQk,
                 p->headDimV);
        printf("%-14s -hq %-3u -hkv %-3u -hd %-8s %s\n", p->name, p->numHeadsQ, p->numHeadsKv, dim,
               p->about);
    }
    printf("%-14s %-30s the same 32 query heads as MHA, GQA and MQA, side by side\n", "heads-32",
           "");
}

Modifiers combineModifiers(const Options* o, const Preset* preset, uint32_t headDimV) {
    Modifiers all = preset ? preset->modifiers : (Modifiers){0};
    const Modifiers* m = &o->modifiers;
    all.flags |= m->flags;
    if (m->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT)
        all.windowLeft = m->windowLeft;
    if (m->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT)
        all.windowRight = m->windowRight;
    all.chunkSize = m->chunkSize ? m->chunkSize : all.chunkSize;
    all.softcap = m->softcap > 0 ? m->softcap : all.softcap;
    all.ropeStyle = m->ropeStyle ? m->ropeStyle : all.ropeStyle;
    all.ropeDim = m->ropeDim ? m->ropeDim : all.ropeDim;
    if (all.ropeStyle && all.flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT)
        all.ropeOffset = headDimV; // V's columns do not turn
    return all;
}

// What a run without a shape measures: the ratios people have, decode first.
static const struct {
    BenchOp op;
    const char* preset;
    uint32_t queryTokens, context;
    bool quick; // part of --quick
    VkmqaType kType;
    uint32_t window; // tokens that a query sees; 0: no window
} defaultRows[] = {
    {OP_DECODE, "llama2-7b", 1, 4096, false, VKMQA_TYPE_F16, 0},
    {OP_DECODE, "llama3-8b", 1, 4096, true, VKMQA_TYPE_F16, 0},
    {OP_DECODE, "llama3-8b", 1, 4096, true, VKMQA_TYPE_Q8_0, 0},
    {OP_DECODE, "llama3-8b", 1, 16384, false, VKMQA_TYPE_F16, 0},
    {OP_DECODE, "llama3-8b", 1, 32768, false, VKMQA_TYPE_F16, 1024},
    {OP_DECODE, "mqa-32", 1, 16384, true, VKMQA_TYPE_F16, 0},
    {OP_DECODE, "falcon-7b", 1, 16384, false, VKMQA_TYPE_F16, 0},
    {OP_DECODE, "gemma-2b", 1, 8192, false, VKMQA_TYPE_F16, 0},
    {OP_PREFILL, "llama3-8b", 512, 2048, true, VKMQA_TYPE_F16, 0},
    {OP_PREFILL, "falcon-7b", 512, 512, false, VKMQA_TYPE_F16, 0},
    {OP_APPEND, "llama3-8b", 512, 2048, true, VKMQA_TYPE_F16, 0},
    {OP_CREATE, "llama3-8b", 1, 4096, true, VKMQA_TYPE_F16, 0},
    {OP_RECORD, "llama3-8b", 1, 4096, true, VKMQA_TYPE_F16, 0},
    // Only where --op names it: a CPU driver takes seconds for each of its rows.
    {OP_QUALITY, "llama3-8b", 1, 512, true, VKMQA_TYPE_F16, 0},
};

typedef struct Plan {
    Item* items;
    uint32_t count;
} Plan;

static Item* addItem(Plan* plan, Item item) {
    plan->items = realloc(plan->items, (plan->count + 1) * sizeof(Item));
    if (!plan->items)
        abort(); // a few kilobytes: there is nothing to rescue
    plan->items[plan->count] = item;
    return &plan->items[plan->count++];
}

static uint32_t pick(const NumberList* list, uint32_t index, uint32_t byDefault) {
    return list->count ? list->values[index] : byDefault;
}
static uint32_t lengthOf(const NumberList* list) { return list->count ? list->count : 1; }

// Every combination of the lists for one op and one set of heads.
static void addCombinations(Plan* plan, const Options* o, BenchOp op, Item item, uint32_t context) {
    const uint32_t many = 1u << OP_PREFILL | 1u << OP_APPEND | 1u << OP_MERGE;
    bool manyQueries = many & 1u << op;
    bool speculative = op == OP_DECODE && o->ops && !(o->ops & many); // -p can only be meant for it
    uint32_t queryCounts = manyQueries || speculative ? lengthOf(&o->queryTokens) : 1;
    uint32_t vTypes = o->vTypes.count ? o->vTypes.count : 1;
    item.op = op;
    for (uint32_t d = 0; d < lengthOf(&o->contexts); d++)
        for (uint32_t p = 0; p < queryCounts; p++)
            for (uint32_t b = 0; b < lengthOf(&o->batches); b++)
                for (uint32_t k = 0; k < lengthOf(&o->kTypes); k++)
                    for (uint32_t v = 0; v < vTypes; v++) {
                        item.queryTokens = manyQueries ? pick(&o->queryTokens, p, item.queryTokens)
                                           : speculative ? pick(&o->queryTokens, p, 1)
                                                         : 1;
                        item.context = pick(&o->contexts, d, context);
                        if (item.context < item.queryTokens || op == OP_MERGE)
                            item.context = item.queryTokens;
                        item.batch = pick(&o->batches, b, 1);
                        item.kType = (VkmqaType)pick(&o->kTypes, k, item.kType);
                        item.vType = (VkmqaType)pick(&o->vTypes, v, item.kType);
                        addItem(plan, item);
                    }
}

// One row per cache type, kind of data and, where it may help, Hadamard rotation.
static void addQuality(Plan* plan, const Options* o, Item item, uint32_t context) {
    static const VkmqaType all[] = {VKMQA_TYPE_F32,      VKMQA_TYPE_F16,  VKMQA_TYPE_BF16,
                                    VKMQA_TYPE_FP8_E4M3, VKMQA_TYPE_Q8_0, VKMQA_TYPE_Q4_0};
    const VkmqaAttentionFlags fixed =
        VKMQA_ATTENTION_HADAMARD_BIT | VKMQA_ATTENTION_V_PREFIX_OF_K_BIT;
    uint32_t count = o->kTypes.count ? o->kTypes.count : sizeof(all) / sizeof(all[0]);
    VkmqaAttentionFlags flags = item.modifiers.flags;
    item.op = OP_QUALITY;
    item.queryTokens = 1;
    item.context = pick(&o->contexts, 0, context);
    item.batch = 1;
    item.ioType = item.newType = VKMQA_TYPE_F32; // the cache's errors alone
    item.modifiers.ropeStyle = VKMQA_ROPE_NONE;
    item.modifiers.ropeDim = item.modifiers.ropeOffset = 0;
    for (uint32_t i = 0; i < count; i++) {
        item.kType = o->kTypes.count ? (VkmqaType)o->kTypes.values[i] : all[i];
        item.vType = (VkmqaType)pick(&o->vTypes, 0, item.kType);
        bool both = typeTraits(item.kType)->lseBound < 0 && !(flags & fixed);
        for (int hadamard = 0; hadamard <= both; hadamard++) {
            item.modifiers.flags = flags | (hadamard ? VKMQA_ATTENTION_HADAMARD_BIT : 0);
            for (int outliers = 0; outliers < 2; outliers++) {
                item.outliers = outliers;
                addItem(plan, item);
            }
        }
    }
}

static void addOp(Plan* plan, const Options* o, BenchOp op, Item item, uint32_t context) {
    if (op == OP_QUALITY)
        addQuality(plan, o, item, context);
    else
        addCombinations(plan, o, op, item, context);
}

static void setHeads(Item* item, const Options* o, const Preset* preset) {
    item->model = preset ? preset->name : "";
    item->numHeadsQ = o->numHeadsQ ? o->numHeadsQ : preset ? preset->numHeadsQ : 32;
    item->numHeadsKv = o->numHeadsKv ? o->numHeadsKv : preset ? preset->numHeadsKv : 8;
    item->headDimQk = o->headDimQk ? o->headDimQk : preset ? preset->headDimQk : 128;
    item->headDimV = o->headDimV ? o->headDimV : preset ? preset->headDimV : 128;
    item->modifiers = combineModifiers(o, preset, item->headDimV);
}

// What every item of a run has in common.
static Item baseItem(const Options* o) {
    return (Item){.model = "",
                  .ioType = o->ioType,
                  .newType = o->newType,
                  .kType = VKMQA_TYPE_F16,
                  .vType = VKMQA_TYPE_F16,
                  .pageSize = o->pageSize,
                  .causal = o->causal,
                  .queryTokens = 512,
                  .parts = o->parts,
                  .layers = o->layers};
}

uint32_t planTuning(const Options* o, Item** items) {
    static const char* const usual[] = {"llama2-7b", "llama3-8b", "llama3-70b", "mqa-32", "falcon-7b", "gemma-2b"};
    bool given = o->preset || o->numHeadsQ || o->numHeadsKv || o->headDimQk;
    Plan plan = {0};
    for (size_t i = 0; i < (given ? 1 : sizeof(usual) / sizeof(usual[0])); i++) {
        Item item = baseItem(o);
        item.batch = 1;
        setHeads(&item, o, given ? o->preset : findPreset(usual[i]));
        for (uint32_t k = 0; k < lengthOf(&o->kTypes); k++) {
            item.kType = (VkmqaType)pick(&o->kTypes, k, VKMQA_TYPE_F16);
            item.vType = (VkmqaType)pick(&o->vTypes, 0, item.kType);
            addItem(&plan, item);
        }
    }
    *items = plan.items;
    return plan.count;
}

uint32_t planItems(const Options* o, Item** items) {
    Plan plan = {0};
    Item base = baseItem(o);
    bool shapeGiven = o->preset || o->numHeadsQ || o->numHeadsKv || o->headDimQk ||
                      o->queryTokens.count || o->contexts.count || o->batches.count ||
                      o->kTypes.count || o->vTypes.count || o->modified;
    uint32_t roofs = 1u << OP_COPY | 1u << OP_READ | 1u << OP_FMA | 1u << OP_MATRIX;
    uint32_t usual = roofs | 1u << OP_DECODE | 1u << OP_PREFILL | 1u << OP_APPEND;
    if (!shapeGiven)
        usual |= 1u << OP_CREATE | 1u << OP_RECORD;
    uint32_t ops = o->ops ? o->ops : o->headTable ? roofs | 1u << OP_DECODE : usual;

    // Roofs come first: the rows of the other ops are judged against them.
    uint32_t judged =
        1u << OP_DECODE | 1u << OP_PREFILL | 1u << OP_APPEND | 1u << OP_MERGE | 1u << OP_REPLAY;
    uint32_t cacheOps = 1u << OP_FORK | 1u << OP_STEP | 1u << OP_OFFLOAD | 1u << OP_SAVE | 1u << OP_LOAD;
    uint32_t noDefaultRows = 1u << OP_PLAIN | 1u << OP_MERGE | 1u << OP_REPLAY | cacheOps;
    for (BenchOp op = OP_COPY; op <= OP_MATRIX; op++)
        if ((ops | (ops & judged && !(o->quick && o->ops) ? roofs : 0)) & 1u << op)
            addItem(&plan, base)->op = op;
    if (o->headTable) {
        static const char* const names[] = {"mha-32", "gqa-32", "mqa-32"};
        for (BenchOp op = OP_DECODE; op < OP_CASE; op++)
            for (int i = 0; ops & 1u << op && i < 3; i++) {
                Item item = base;
                setHeads(&item, o, findPreset(names[i]));
                addOp(&plan, o, op, item, o->quick ? 4096 : 16384);
            }
    } else if (shapeGiven || ops & noDefaultRows) {
        for (BenchOp op = OP_DECODE; op < OP_CASE; op++) {
            Item item = base;
            setHeads(&item, o, o->preset);
            if (ops & 1u << op)
                addOp(&plan, o, op, item,
                      op == OP_PREFILL                     ? 2048
                      : op == OP_FORK || op == OP_STEP     ? 2000
                      : op == OP_QUALITY                   ? 512
                                                           : 4096);
        }
    } else {
        for (size_t i = 0; i < sizeof(defaultRows) / sizeof(defaultRows[0]); i++) {
            Item item = base;
            setHeads(&item, o, findPreset(defaultRows[i].preset));
            item.queryTokens = defaultRows[i].queryTokens;
            item.kType = defaultRows[i].kType;
            if (defaultRows[i].window) {
                item.modifiers.flags |= VKMQA_ATTENTION_WINDOW_LEFT_BIT;
                item.modifiers.windowLeft = defaultRows[i].window - 1; // and the own position
            }
            if ((ops & 1u << defaultRows[i].op) && (defaultRows[i].quick || !o->quick))
                addOp(&plan, o, defaultRows[i].op, item, defaultRows[i].context);
        }
    }
    *items = plan.items;
    return plan.count;
}

#include "harness.h"

#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Harness harness;

static const uint64_t TIMEOUT_NS = 120ull * 1000 * 1000 * 1000;

const char* tierName(VkmqaTier tier) {
    static const char* const names[] = {"auto", "portable", "subgroup", "cpu"};
    return names[tier];
}

bool tierHasTurn(uint32_t tier, size_t index) {
    const char* all = getenv("VKMQA_TEST_LONG");
    return (all && strcmp(all, "1") == 0) || (index + harness.seed) % harness.tierCount == tier;
}

void harnessMessage(VkmqaSeverity severity, const char* text, void* userData) {
    (void)userData;
    if (getenv("VKMQA_TEST_VERBOSE"))
        fprintf(stderr, "vkmqa: %s\n", text);
    if (severity == VKMQA_SEVERITY_ERROR)
        snprintf(harness.message, sizeof(harness.message), "%s", text);
}

// Whether a row handed to append arrives in the cache. Uses no test framework: it decides whether there
// is anything to test on.
static bool deviceExecutes(void) {
    const Model model = {
        .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 8, .headDimV = 8, .maxSeqLenKv = 64};
    float row[8] = {1, -2, 3, -4, 5, -6, 7, -8};
    float stored[8] = {0};
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = 1};
    VkmqaStep step = {.structSize = sizeof(step), .limits = limits};
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof(kvNeeds)};
    VkmqaBufferRequirements stepNeeds;
    VkmqaAttention attention = NULL;
    VkmqaMemory source = NULL, k = NULL, v = NULL, metadata = NULL;
    VkmqaCommands commands = NULL;
    bool executes = false;

    if (attentionCreate(&model, VKMQA_TIER_AUTO, &attention) ||
        vkmqaGetKvRequirements(attention, 1, &kvNeeds) ||
        vkmqaGetStepLayout(attention, &limits, &step.layout, &stepNeeds) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, sizeof(row), &source) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, kvNeeds.k.size, &k) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, kvNeeds.v.size, &v) ||
        vkmqaCreateMemory(harness.device, VKMQA_MEMORY_UPLOAD, stepNeeds.size, &metadata) ||
        vkmqaCreateCommands(harness.device, &commands))
        goto end;
    step.metadata = vkmqaGetMemoryRange(metadata, 0, 0);
    memset(vkmqaGetMemoryPointer(metadata), 0, stepNeeds.size); // slot 0
    const VkmqaKv kv = {vkmqaGetMemoryRange(k, 0, 0), vkmqaGetMemoryRange(v, 0, 0), 1};
    if (vkmqaUpload(source, 0, row, sizeof(row)) || vkmqaUpload(k, 0, stored, sizeof(stored)) ||
        vkmqaBeginCommands(commands))
        goto end;
    const VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(commands),
        .step = &step,
        .kv = &kv,
        .newK = vkmqaGetMemoryRange(source, 0, 0),
        .newV = vkmqaGetMemoryRange(source, 0, 0),
    };
    if (vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands), &info) ||
        vkmqaSubmitCommands(commands) || vkmqaWaitCommands(commands, TIMEOUT_NS) ||
        vkmqaDownload(k, 0, stored, sizeof(stored)))
        goto end;
    executes = memcmp(row, stored, sizeof(row)) == 0;
end:
    vkmqaDestroyCommands(commands);
    vkmqaDestroyMemory(source);
    vkmqaDestroyMemory(k);
    vkmqaDestroyMemory(v);
    vkmqaDestroyMemory(metadata);
    vkmqaDestroyAttention(attention);
    return executes;
}

static void findTiers(void) {
    const Model model = {
        .numHeadsQ = 1, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .maxSeqLenKv = 64};
    static const VkmqaTier tiers[] = {VKMQA_TIER_PORTABLE, VKMQA_TIER_SUBGROUP, VKMQA_TIER_CPU};
    const char* only = getenv("VKMQA_TEST_TIER");
    for (size_t i = 0; i < COUNT(tiers); i++) {
        VkmqaAttention attention;
        if (only && strcmp(only, tierName(tiers[i])) != 0)
            continue;
        if (attentionCreate(&model, tiers[i], &attention) != VK_SUCCESS)
            continue;
        vkmqaDestroyAttention(attention);
        harness.tiers[harness.tierCount++] = tiers[i];
    }
}

void harnessOpen(void) {
    const char* seed = getenv("VKMQA_TEST_SEED");
    const char* portable = getenv("VKMQA_TEST_PORTABLE");
    const VkmqaDeviceOpenInfo info = {
        .structSize = sizeof(info),
        .selector = getenv("VKMQA_TEST_DEVICE"),
        .portableOnly = portable && strcmp(portable, "1") == 0,
        .skipVerification = VK_TRUE, // test_verify's own business, and slow
        .messageCallback = harnessMessage,
    };
    setvbuf(stdout, NULL, _IOLBF, 0); // so that a test that hangs or dies has said its name
    cmocka_set_test_filter(getenv("VKMQA_TEST_FILTER"));
    harness.seed = seed ? strtoull(seed, NULL, 0) : 1;
    VkResult result = vkmqaOpenDevice(&info, &harness.device);
    if (result != VK_SUCCESS) {
        fprintf(stderr, "skipped: no Vulkan device (VkResult %d: %s)\n", result, harness.message);
        exit(HARNESS_SKIPPED);
    }
    harness.context = vkmqaGetDeviceContext(harness.device);
    harness.properties.structSize = sizeof(harness.properties);
    vkmqaGetDeviceProperties(harness.device, &harness.properties);
    if (!deviceExecutes()) {
        fprintf(stderr, "refused: %s executes nothing, or cannot even append one row (%s)\n",
                harness.properties.name, harness.message);
        fflush(stderr);
        _Exit(HARNESS_REFUSED);
    }
    findTiers();
    printf("device: %s, %s; seed %llu; tiers:", harness.properties.name,
           harness.properties.driverInfo, (unsigned long long)harness.seed);
    for (uint32_t i = 0; i < harness.tierCount; i++)
        printf(" %s", tierName(harness.tiers[i]));
    printf("\n");
    fflush(stdout);
    if (harness.tierCount == 0) {
        fprintf(stderr, "no tier can be forced: %s\n", harness.message);
        exit(1);
    }
}

void harnessClose(void) {
    vkmqaCloseDevice(harness.device);
    memset(&harness, 0, sizeof(harness));
}

// ---- Random numbers ----------------------------------------------------------------------------

static uint64_t randomNext(Random* random) {
    uint64_t z = random->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t randomBelow(Random* random, uint32_t bound) {
    return (uint32_t)(randomNext(random) >> 32) % bound;
}

float randomNormal(Random* random) {
    // Four 16-bit uniforms: their sum has variance 4 / 12.
    uint64_t bits = randomNext(random);
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)(bits >> 16 * i & 0xFFFF) / 65535 - 0.5;
    return (float)(sum * sqrt(3));
}

// ---- Memory ------------------------------------------------------------------------------------

static void* poisoned(size_t bytes) {
    uint32_t* words = malloc(bytes + 4);
    for (size_t i = 0; i < (bytes + 3) / 4; i++)
        words[i] = COMPARE_POISON;
    return words;
}

static const VkDeviceSize GUARD_BYTES = 256; // behind the range

Guarded guardedCreate(const VkmqaBufferRequirements* requirements) {
    Guarded guarded = {0};
    if (requirements->size == 0)
        return guarded;
    // In front: an odd multiple of the alignment, which exposes code that needs more than it asks for.
    VkDeviceSize alignment = requirements->alignment > 16 ? requirements->alignment : 16;
    guarded.before = 3 * alignment;
    VkDeviceSize size = (requirements->size + 3) / 4 * 4;
    VkDeviceSize all = guarded.before + size + GUARD_BYTES;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, all, &guarded.memory));
    void* bytes = poisoned(all);
    REQUIRE(vkmqaUpload(guarded.memory, 0, bytes, all));
    free(bytes);
    guarded.range = vkmqaGetMemoryRange(guarded.memory, guarded.before, size);
    return guarded;
}

void guardedDestroy(Guarded* guarded) {
    vkmqaDestroyMemory(guarded->memory);
    memset(guarded, 0, sizeof(*guarded));
}

void guardedUpload(const Guarded* guarded, const void* bytes) {
    REQUIRE(vkmqaUpload(guarded->memory, guarded->before, bytes, guarded->range.size));
}

void guardedDownload(const Guarded* guarded, void* bytes) {
    REQUIRE(vkmqaDownload(guarded->memory, guarded->before, bytes, guarded->range.size));
}

void guardedCheck(const Guarded* guarded, const char* name) {
    if (!guarded->memory)
        return;
    VkDeviceSize behind = guarded->before + guarded->range.size;
    uint32_t* words = malloc(guarded->before + GUARD_BYTES);
    REQUIRE(vkmqaDownload(guarded->memory, 0, words, guarded->before));
    REQUIRE(vkmqaDownload(guarded->memory, behind, words + guarded->before / 4, GUARD_BYTES));
    for (size_t i = 0; i < (guarded->before + GUARD_BYTES) / 4; i++)
        if (words[i] != COMPARE_POISON)
            fail_msg("guard word %zu of %s was overwritten with 0x%08x (%s the range)", i, name,
                     words[i], i < guarded->before / 4 ? "before" : "behind");
    free(words);
}

// ---- Problems ----------------------------------------------------------------------------------

static float* randomValues(Random* random, size_t count, float factor, OracleType type) {
    float* values = malloc(sizeof(float) * (count + 1));
    for (size_t i = 0; i < count; i++)
        values[i] = randomNormal(random) * factor;
    oracleRound(type, values, count);
    return values;
}

// Gives every sequence its pages in random order, among three that nobody owns.
static void assignPages(Problem* problem, Random* random) {
    const Batch* batch = &problem->batch;
    uint32_t pageSize = problem->model.pageSize;
    problem->pageTokens = pageSize ? pageSize : problem->model.maxSeqLenKv;
    problem->numPages = pageSize ? 3 : batch->count;
    for (uint32_t b = 0; b < batch->count && pageSize; b++) {
        uint32_t pages = ((uint32_t)batch->sequences[b].tokens + pageSize - 1) / pageSize;
        problem->numPages += pages;
        if (problem->maxPages < pages + 1)
            problem->maxPages = pages + 1;
    }
    if (pageSize && batch->numPages > problem->numPages)
        problem->numPages = batch->numPages;
    int32_t* order = malloc(sizeof(int32_t) * problem->numPages);
    for (uint32_t i = 0; i < problem->numPages; i++) {
        uint32_t j = pageSize ? randomBelow(random, i + 1) : i;
        order[i] = order[j];
        order[j] = (int32_t)i;
    }
    size_t entries = (size_t)batch->count * problem->maxPages;
    problem->pageTable = pageSize ? malloc(sizeof(int32_t) * entries) : NULL;
    for (size_t i = 0; i < entries; i++)
        problem->pageTable[i] = INT32_MAX;
    problem->slots = malloc(sizeof(int32_t) * (problem->totalKv + 1));
    uint32_t nextPage = 0, token = 0;
    for (uint32_t b = 0; b < batch->count; b++) {
        for (uint32_t t = 0; t < (uint32_t)batch->sequences[b].tokens; t++) {
            uint32_t offset = t % problem->pageTokens;
            int32_t page = pageSize ? order[nextPage] : (int32_t)b;
            if (pageSize)
                problem->pageTable[(size_t)b * problem->maxPages + t / pageSize] = page;
            problem->slots[token++] = page * (int32_t)problem->pageTokens + (int32_t)offset;
            bool last = t + 1 == (uint32_t)batch->sequences[b].tokens;
            nextPage += last || offset + 1 == problem->pageTokens;
        }
    }
    free(order);
}

static float* copyOf(const float* values, size_t count) {
    float* copy = malloc(sizeof(float) * (count + 1));
    memcpy(copy, values, sizeof(float) * count);
    return copy;
}

// Where every token stands; leaves the data to the caller.
static Problem problemLayout(const Model* model, const Batch* batch, Random* random) {
    Problem problem = {.model = *model, .batch = *batch};
    int32_t row = problem.cuSeqlensQ[0] = batch->gaps ? 2 : 0;
    for (uint32_t b = 0; b < batch->count; b++) {
        row += batch->sequences[b].queries;
        problem.cuSeqlensQ[b + 1] = row;
        problem.seqLensKv[b] = batch->sequences[b].tokens;
        problem.totalKv += (uint32_t)batch->sequences[b].tokens;
    }
    problem.totalQ = (uint32_t)row + (batch->gaps ? 3 : 0);
    problem.totalQ += problem.totalQ == 0;
    assignPages(&problem, random);
    return problem;
}

// What the cache holds of the new rows, and P.
static void problemDerive(Problem* problem) {
    const Model* model = &problem->model;
    size_t rowsQ = (size_t)problem->totalQ * model->numHeadsQ;
    size_t rowsKv = (size_t)problem->totalKv * model->numHeadsKv;
    problem->k = copyOf(problem->newK, rowsKv * model->headDimQk);
    problem->v = copyOf(problem->newV, rowsKv * model->headDimV);
    oracleRound(model->k, problem->k, rowsKv * model->headDimQk);
    oracleRound(model->v, problem->v, rowsKv * model->headDimV);
    problem->out = calloc(rowsQ * model->headDimV, sizeof(double));
    problem->lse = calloc(rowsQ, sizeof(double));
    problem->plainOut = calloc(rowsQ * model->headDimV, sizeof(float));
    problem->plainLse = calloc(rowsQ, sizeof(float));
}

Problem problemCreate(const Model* model, const Batch* batch, uint64_t seed, bool referenced) {
    Random random = {seed * 1000003 + harness.seed};
    Problem problem = problemLayout(model, batch, &random);
    size_t rowsQ = (size_t)problem.totalQ * model->numHeadsQ;
    size_t rowsKv = (size_t)problem.totalKv * model->numHeadsKv;
    float sharpness = batch->sharpness > 0 ? batch->sharpness : 1;
    problem.q = randomValues(&random, rowsQ * model->headDimQk, sharpness, model->io);
    problem.newK = randomValues(&random, rowsKv * model->headDimQk, 1, ORACLE_F32);
    problem.newV = randomValues(&random, rowsKv * model->headDimV, 1, ORACLE_F32);
    problemDerive(&problem);
    if (referenced) {
        OracleProblem oracle = problemOracle(&problem);
        oracleAttention(&oracle, problem.out, problem.lse);
        oraclePlainAttention(&oracle, problem.plainOut, problem.plainLse);
    }
    return problem;
}

Problem problemFromCase(const CaseFile* file, OracleType cacheType, uint64_t seed) {
    const OracleProblem* given = &file->problem;
    Model model = {.numHeadsQ = given->numHeadsQ,
                   .numHeadsKv = given->numHeadsKv,
                   .headDimQk = given->headDimQk,
                   .headDimV = given->headDimV,
                   .pageSize = file->pageSize,
                   .io = file->type,
                   .k = cacheType,
                   .v = cacheType,
                   .causal = given->causal,
                   .maxSeqLenKv = 512,
                   .scale = (float)given->scale};
    Batch batch = {.count = given->batch, .append = true};
    assert_true(given->batch <= MAX_SEQUENCES);
    for (uint32_t b = 0; b < batch.count; b++)
        batch.sequences[b] =
            (Sequence){given->cuSeqlensQ[b + 1] - given->cuSeqlensQ[b], given->seqLensKv[b]};
    Random random = {seed};
    Problem problem = problemLayout(&model, &batch, &random);
    size_t rowsQ = (size_t)problem.totalQ * model.numHeadsQ;
    size_t rowsKv = (size_t)problem.totalKv * model.numHeadsKv;
    problem.q = copyOf(given->q, rowsQ * model.headDimQk);
    problem.newK = copyOf(given->k, rowsKv * model.headDimQk);
    problem.newV = copyOf(given->v, rowsKv * model.headDimV);
    problemDerive(&problem);
    OracleProblem oracle = problemOracle(&problem);
    oraclePlainAttention(&oracle, problem.plainOut, problem.plainLse);
    memcpy(problem.out, file->out, sizeof(double) * rowsQ * model.headDimV);
    memcpy(problem.lse, file->lse, sizeof(double) * rowsQ);
    return problem;
}

void problemDestroy(Problem* problem) {
    free(problem->pageTable);
    free(problem->slots);
    free(problem->q);
    free(problem->newK);
    free(problem->newV);
    free(problem->k);
    free(problem->v);
    free(problem->out);
    free(problem->lse);
    free(problem->plainOut);
    free(problem->plainLse);
    memset(problem, 0, sizeof(*problem));
}

OracleProblem problemOracle(const Problem* problem) {
    OracleProblem oracle = {
        .batch = problem->batch.count,
        .numHeadsQ = problem->model.numHeadsQ,
        .numHeadsKv = problem->model.numHeadsKv,
        .headDimQk = problem->model.headDimQk,
        .headDimV = problem->model.headDimV,
        .cuSeqlensQ = problem->cuSeqlensQ,
        .seqLensKv = problem->seqLensKv,
        .q = problem->q,
        .k = problem->k,
        .v = problem->v,
        .scale = problem->model.scale,
        .causal = problem->model.causal,
    };
    return oracle;
}

OracleCache problemCache(const Problem* problem, bool isV) {
    OracleCache cache = {
        .type = isV ? problem->model.v : problem->model.k,
        .numPages = problem->numPages,
        .numHeads = problem->model.numHeadsKv,
        .pageTokens = problem->pageTokens,
        .headDim = isV ? problem->model.headDimV : problem->model.headDimQk,
    };
    return cache;
}

uint8_t* problemImage(const Problem* problem, bool isV) {
    OracleCache cache = problemCache(problem, isV);
    uint8_t* image = poisoned(oracleCacheBytes(&cache));
    oracleAppend(&cache, image, ORACLE_F32, isV ? problem->newV : problem->newK, problem->slots,
                 problem->totalKv);
    return image;
}

static VkmqaType libraryType(OracleType type) {
    return type == ORACLE_F32 ? VKMQA_TYPE_F32 : VKMQA_TYPE_F16;
}

VkmqaAttentionCreateInfo attentionInfo(const Model* model, VkmqaTier tier) {
    const VkmqaAttentionCreateInfo info = {
        .structSize = sizeof(info),
        .flags = model->causal ? VKMQA_ATTENTION_CAUSAL_BIT : 0,
        .numHeadsQ = model->numHeadsQ,
        .numHeadsKv = model->numHeadsKv,
        .headDimQk = model->headDimQk,
        .headDimV = model->headDimV,
        .ioType = libraryType(model->io),
        .newType = VKMQA_TYPE_F32,
        .kType = libraryType(model->k),
        .vType = libraryType(model->v),
        .pageSize = model->pageSize,
        .maxSeqLenKv = model->maxSeqLenKv,
        .scale = model->scale,
        .splitSize = model->splitSize,
        .tier = tier,
    };
    return info;
}

VkResult attentionCreate(const Model* model, VkmqaTier tier, VkmqaAttention* attention) {
    const VkmqaAttentionCreateInfo info = attentionInfo(model, tier);
    return vkmqaDeviceCreateAttention(harness.device, &info, attention);
}

// ---- Runs --------------------------------------------------------------------------------------

static VkmqaStrides stridesOf(uint32_t heads, uint32_t dim, bool gaps) {
    VkmqaStrides strides = {heads * dim, dim};
    if (gaps) {
        strides.head = dim + 8;
        strides.token = heads * strides.head + 24;
    }
    return strides;
}

static size_t stridedElements(VkmqaStrides strides, uint32_t tokens, uint32_t heads, uint32_t dim) {
    return (size_t)(tokens - 1) * strides.token + (size_t)(heads - 1) * strides.head + dim;
}

static Guarded createStrided(VkmqaStrides strides, uint32_t tokens, uint32_t heads, uint32_t dim,
                             OracleType type) {
    const VkmqaBufferRequirements needs = {.size = stridedElements(strides, tokens, heads, dim) *
                                                   oracleElementBytes(type)};
    return guardedCreate(&needs);
}

// Spreads packed rows over a strided range, NaN in the gaps, and uploads it.
static void uploadStrided(const Guarded* guarded, const float* values, VkmqaStrides strides,
                          uint32_t tokens, uint32_t heads, uint32_t dim, OracleType type) {
    uint8_t* bytes = poisoned(guarded->range.size);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < heads; h++)
            oracleEncode(type, values + ((size_t)t * heads + h) * dim, dim,
                         bytes + ((size_t)t * strides.token + (size_t)h * strides.head) *
                                     oracleElementBytes(type));
    guardedUpload(guarded, bytes);
    free(bytes);
}

static VkmqaStepLimits problemLimits(const Problem* problem) {
    VkmqaStepLimits limits = {.batch = problem->batch.count, .totalQ = problem->totalQ};
    limits.maxSeqLenQ = limits.maxSeqLenKv = 1;
    for (uint32_t b = 0; b < problem->batch.count; b++) {
        const Sequence* sequence = &problem->batch.sequences[b];
        if (limits.maxSeqLenQ < (uint32_t)sequence->queries)
            limits.maxSeqLenQ = (uint32_t)sequence->queries;
        if (limits.maxSeqLenKv < (uint32_t)sequence->tokens)
            limits.maxSeqLenKv = (uint32_t)sequence->tokens;
    }
    limits.newTokens = problem->totalKv + (problem->totalKv == 0);
    if (problem->batch.gaps) {
        limits.maxSeqLenQ += limits.maxSeqLenQ < limits.totalQ;
        limits.maxSeqLenKv += (problem->model.maxSeqLenKv - limits.maxSeqLenKv) / 2;
    }
    return limits;
}

Run runCreate(VkmqaAttention attention, const Problem* problem, const VkmqaStepLimits* limits) {
    const Model* model = &problem->model;
    bool gaps = problem->batch.gaps;
    Run run = {
        .attention = attention,
        .model = *model,
        .strideQ = stridesOf(model->numHeadsQ, model->headDimQk, gaps),
        .strideK = stridesOf(model->numHeadsKv, model->headDimQk, gaps),
        .strideV = stridesOf(model->numHeadsKv, model->headDimV, gaps),
        .strideOut = stridesOf(model->numHeadsQ, model->headDimV, gaps),
        .step = {.structSize = sizeof(VkmqaStep),
                 .limits = limits ? *limits : problemLimits(problem)},
    };
    const VkmqaStepLimits* most = &run.step.limits;
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof(kvNeeds)};
    VkmqaBufferRequirements stepNeeds, scratchNeeds;
    const VkmqaBufferRequirements lseNeeds = {.size = sizeof(float) * (VkDeviceSize)most->totalQ *
                                                      model->numHeadsQ};
    REQUIRE(vkmqaGetKvRequirements(attention, problem->numPages, &kvNeeds));
    REQUIRE(vkmqaGetStepLayout(attention, most, &run.step.layout, &stepNeeds));
    REQUIRE(vkmqaGetScratchRequirements(attention, most, &scratchNeeds));
    OracleCache kCache = problemCache(problem, false), vCache = problemCache(problem, true);
    assert_int_equal(kvNeeds.k.size, oracleCacheBytes(&kCache));
    assert_int_equal(kvNeeds.v.size, oracleCacheBytes(&vCache));
    assert_int_equal(kvNeeds.pageTokens, problem->pageTokens);

    run.k = guardedCreate(&kvNeeds.k);
    run.v = guardedCreate(&kvNeeds.v);
    run.metadata = guardedCreate(&stepNeeds);
    run.scratch = guardedCreate(&scratchNeeds);
    run.lse = guardedCreate(&lseNeeds);
    run.q = createStrided(run.strideQ, most->totalQ, model->numHeadsQ, model->headDimQk, model->io);
    run.out =
        createStrided(run.strideOut, most->totalQ, model->numHeadsQ, model->headDimV, model->io);
    run.newK = createStrided(run.strideK, most->newTokens, model->numHeadsKv, model->headDimQk,
                             ORACLE_F32);
    run.newV =
        createStrided(run.strideV, most->newTokens, model->numHeadsKv, model->headDimV, ORACLE_F32);
    run.step.metadata = run.metadata.range;
    run.kv = (VkmqaKv){run.k.range, run.v.range, problem->numPages};
    REQUIRE(vkmqaCreateCommands(harness.device, &run.commands));
    return run;
}

void runDestroy(Run* run) {
    vkmqaDestroyCommands(run->commands);
    Guarded* all[] = {&run->k,   &run->v,   &run->q,        &run->newK,   &run->newV,
                      &run->out, &run->lse, &run->metadata, &run->scratch};
    for (size_t i = 0; i < COUNT(all); i++)
        guardedDestroy(all[i]);
}

int32_t* runMetadata(const Run* run, const Problem* problem) {
    const VkmqaStepLayout* layout = &run->step.layout;
    const VkmqaStepLimits* limits = &run->step.limits;
    int32_t* words = poisoned(run->metadata.range.size);
    memcpy(words + layout->cuSeqlensQ / 4, problem->cuSeqlensQ, 4 * (limits->batch + 1));
    memcpy(words + layout->seqLensKv / 4, problem->seqLensKv, 4 * limits->batch);
    for (uint32_t i = 0; i < limits->newTokens; i++)
        words[layout->slotMapping / 4 + i] = i < problem->totalKv ? problem->slots[i] : -1;
    for (uint32_t b = 0; b < limits->batch && problem->pageTable; b++) {
        uint32_t shorter =
            layout->maxPages < problem->maxPages ? layout->maxPages : problem->maxPages;
        int32_t* row = words + layout->pageTable / 4 + (size_t)b * layout->maxPages;
        memcpy(row, problem->pageTable + (size_t)b * problem->maxPages, 4 * shorter);
    }
    words[layout->status / 4] = 0;
    return words;
}

void runFillUnowned(Run* run, const Problem* problem, uint32_t word) {
    for (int isV = 0; isV < 2; isV++) {
        OracleCache cache = problemCache(problem, isV);
        uint8_t* image = malloc(oracleCacheBytes(&cache));
        for (size_t i = 0; i < oracleCacheBytes(&cache); i += 4)
            memcpy(image + i, &word, 4);
        oracleAppend(&cache, image, ORACLE_F32, isV ? problem->newV : problem->newK, problem->slots,
                     problem->totalKv);
        guardedUpload(isV ? &run->v : &run->k, image);
        free(image);
    }
}

void runUpload(Run* run, const Problem* problem) {
    const Model* model = &run->model;
    int32_t* words = runMetadata(run, problem);
    guardedUpload(&run->metadata, words);
    free(words);
    uploadStrided(&run->q, problem->q, run->strideQ, problem->totalQ, model->numHeadsQ,
                  model->headDimQk, model->io);
    Guarded* caches[] = {&run->k, &run->v};
    for (int isV = 0; isV < 2; isV++) {
        uint8_t* image =
            problem->batch.append ? poisoned(caches[isV]->range.size) : problemImage(problem, isV);
        guardedUpload(caches[isV], image);
        free(image);
    }
    if (problem->batch.append) {
        uploadStrided(&run->newK, problem->newK, run->strideK, problem->totalKv, model->numHeadsKv,
                      model->headDimQk, ORACLE_F32);
        uploadStrided(&run->newV, problem->newV, run->strideV, problem->totalKv, model->numHeadsKv,
                      model->headDimV, ORACLE_F32);
    }
    Guarded* outputs[] = {&run->out, &run->lse};
    for (int i = 0; i < 2; i++) {
        void* bytes = poisoned(outputs[i]->range.size);
        guardedUpload(outputs[i], bytes);
        free(bytes);
    }
}

void runRecord(Run* run, bool append) {
    REQUIRE(vkmqaBeginCommands(run->commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(run->commands);
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(run->commands);
    if (append) {
        const VkmqaAppendInfo info = {
            .structSize = sizeof(info),
            .recorder = recorder,
            .step = &run->step,
            .kv = &run->kv,
            .newK = run->newK.range,
            .newV = run->newV.range,
            .strideK = run->strideK,
            .strideV = run->strideV,
        };
        REQUIRE(vkmqaCmdAppendKv(run->attention, commandBuffer, &info));
    }
    const VkmqaAttentionInfo info = {
        .structSize = sizeof(info),
        .recorder = recorder,
        .step = &run->step,
        .kv = &run->kv,
        .q = run->q.range,
        .out = run->out.range,
        .lse = run->lse.range,
        .scratch = run->scratch.range,
        .strideQ = run->strideQ,
        .strideOut = run->strideOut,
    };
    REQUIRE(vkmqaCmdAttention(run->attention, commandBuffer, &info));
}

void runSubmit(Run* run) {
    REQUIRE(vkmqaSubmitCommands(run->commands));
    REQUIRE(vkmqaWaitCommands(run->commands, TIMEOUT_NS));
}

Output runRead(const Run* run) {
    Output output = {malloc(run->out.range.size), malloc(run->lse.range.size), 0};
    guardedDownload(&run->out, output.out);
    guardedDownload(&run->lse, output.lse);
    REQUIRE(vkmqaDownload(run->metadata.memory, run->metadata.before + run->step.layout.status,
                          &output.status, 4));
    return output;
}

void outputDestroy(Output* output) {
    free(output->out);
    free(output->lse);
    memset(output, 0, sizeof(*output));
}

bool outputsEqual(const Run* run, const Output* a, const Output* b) {
    return memcmp(a->out, b->out, run->out.range.size) == 0 &&
           memcmp(a->lse, b->lse, run->lse.range.size) == 0;
}

static size_t outOffset(const Run* run, size_t token, uint32_t head) {
    return (token * run->strideOut.token + (size_t)head * run->strideOut.head) *
           oracleElementBytes(run->model.io);
}

float* outputValues(const Run* run, const Problem* problem, const Output* output) {
    uint32_t heads = run->model.numHeadsQ, dim = run->model.headDimV;
    float* values = malloc(sizeof(float) * problem->totalQ * heads * dim);
    for (uint32_t t = 0; t < problem->totalQ; t++)
        for (uint32_t h = 0; h < heads; h++)
            oracleDecode(run->model.io, output->out + outOffset(run, t, h), dim,
                         values + ((size_t)t * heads + h) * dim);
    return values;
}

// Everything of out and lse that is no row of a sequence must still be poison.
static void checkUntouched(const Run* run, const Problem* problem, const Output* output,
                           const char* label) {
    uint32_t heads = run->model.numHeadsQ;
    size_t rowBytes = run->model.headDimV * oracleElementBytes(run->model.io);
    uint8_t* out = malloc(run->out.range.size);
    void* poison = poisoned(run->out.range.size);
    memcpy(out, output->out, run->out.range.size);
    uint32_t first = (uint32_t)problem->cuSeqlensQ[0];
    uint32_t end = (uint32_t)problem->cuSeqlensQ[problem->batch.count];
    for (uint32_t t = first; t < end; t++)
        for (uint32_t h = 0; h < heads; h++)
            memcpy(out + outOffset(run, t, h), poison, rowBytes);
    for (size_t i = 0; i < run->out.range.size; i += 4)
        if (memcmp(out + i, poison, 4) != 0)
            fail_msg("%s: out was written at byte %zu, which belongs to no row", label, i);
    free(poison);
    free(out);
    for (uint32_t t = 0; t < run->step.limits.totalQ; t++) {
        for (uint32_t h = 0; h < heads && (t < first || t >= end); h++) {
            uint32_t word;
            memcpy(&word, &output->lse[(size_t)t * heads + h], 4);
            if (word != COMPARE_POISON)
                fail_msg("%s: lse of row %u, which belongs to no sequence, was written", label, t);
        }
    }
}

void runCheck(const Run* run, const Problem* problem, const Output* output, const char* label) {
    const Model* model = &run->model;
    float* got = outputValues(run, problem, output);
    CompareTensor out = {
        .batch = problem->batch.count,
        .numHeads = model->numHeadsQ,
        .width = model->headDimV,
        .cuSeqlensQ = problem->cuSeqlensQ,
        .reference = problem->out,
        .plain = problem->plainOut,
        .got = got,
        .type = model->io,
        .maxNmse = compareMaxNmse(model->io, model->k, model->v),
    };
    CompareTensor lse = out;
    lse.width = 1;
    lse.reference = problem->lse;
    lse.plain = problem->plainLse;
    lse.got = output->lse;
    CompareResult outResult = compareOut(&out);
    CompareResult lseResult = compareLse(&lse);
    free(got);
    if (!outResult.right)
        fail_msg("%s: %s", label, outResult.text);
    if (!lseResult.right)
        fail_msg("%s: %s", label, lseResult.text);
    if (output->status != 0)
        fail_msg("%s: status 0x%x for good metadata", label, output->status);
    checkUntouched(run, problem, output, label);
    const Guarded* all[] = {&run->k,   &run->v,   &run->q,        &run->newK,   &run->newV,
                            &run->out, &run->lse, &run->metadata, &run->scratch};
    static const char* const names[] = {"K",   "V",   "q",        "new K",  "new V",
                                        "out", "lse", "metadata", "scratch"};
    for (size_t i = 0; i < COUNT(all); i++)
        guardedCheck(all[i], names[i]);
}

void runProblem(VkmqaAttention attention, const Problem* problem, const char* label) {
    Run run = runCreate(attention, problem, NULL);
    runUpload(&run, problem);
    runRecord(&run, problem->batch.append);
    runSubmit(&run);
    Output output = runRead(&run);
    runCheck(&run, problem, &output, label);
    outputDestroy(&output);
    runDestroy(&run);
}

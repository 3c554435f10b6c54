#include "harness.h"

#include "compare.h"

#include <stdlib.h>
#include <string.h>

// ---- The library's view of a model -----------------------------------------------------------------

VkmqaType libraryType(OracleType type) {
    static const VkmqaType types[] = {
        [ORACLE_F32] = VKMQA_TYPE_F32,   [ORACLE_F16] = VKMQA_TYPE_F16,
        [ORACLE_BF16] = VKMQA_TYPE_BF16, [ORACLE_FP8] = VKMQA_TYPE_FP8_E4M3,
        [ORACLE_Q8_0] = VKMQA_TYPE_Q8_0, [ORACLE_Q4_0] = VKMQA_TYPE_Q4_0,
    };
    return types[type];
}

// Matrices of f16 hold what has no more digits.
static bool fitsMatrices(const Model* model) { return model->k != ORACLE_F32 && model->v != ORACLE_F32; }

VkmqaAttentionCreateInfo attentionInfo(const Model* model, VkmqaTier tier) {
    static const VkmqaRopeStyle styles[] = {
        [ORACLE_ROPE_NONE] = VKMQA_ROPE_NONE,
        [ORACLE_ROPE_NEOX] = VKMQA_ROPE_NEOX,
        [ORACLE_ROPE_INTERLEAVED] = VKMQA_ROPE_INTERLEAVED,
    };
    const VkmqaAttentionCreateInfo info = {
        .structSize = sizeof(info),
        .flags = model->flags | (model->causal ? VKMQA_ATTENTION_CAUSAL_BIT : 0u),
        .numHeadsQ = model->numHeadsQ,
        .numHeadsKv = model->numHeadsKv,
        .headDimQk = model->headDimQk,
        .headDimV = model->headDimV,
        .ioType = libraryType(model->io),
        .newType = libraryType(model->source),
        .kType = libraryType(model->k),
        .vType = libraryType(model->v),
        .pageSize = model->pageSize,
        .maxSeqLenKv = model->maxSeqLenKv,
        .scale = model->scale,
        .splitSize = model->splitSize,
        .tier = tier == VKMQA_TIER_COOPMAT && !fitsMatrices(model) ? VKMQA_TIER_AUTO : tier,
        .windowLeft = model->windowLeft,
        .windowRight = model->windowRight,
        .chunkSize = model->chunkSize,
        .softcap = model->softcap,
        .ropeStyle = styles[model->rope],
        .ropeDim = model->ropeDim,
        .ropeOffset = model->ropeOffset,
    };
    return info;
}

VkResult attentionCreate(const Model* model, VkmqaTier tier, VkmqaAttention* attention) {
    const VkmqaAttentionCreateInfo info = attentionInfo(model, tier);
    return vkmqaDeviceCreateAttention(harness.device, &info, attention);
}

VkmqaParametersInfo parametersInfo(const Problem* problem) {
    const VkmqaParametersInfo info = {
        .structSize = sizeof(info),
        .ropeMagnitude = problem->ropeMagnitude,
        .sinks = problem->sinks,
        .alibiSlopes = problem->alibiSlopes,
        .kScales = problem->kScales,
        .vScales = problem->vScales,
        .ropeTheta = problem->model.ropeTheta,
        .ropeFrequencies = problem->frequencies,
    };
    return info;
}

// ---- Buffers ---------------------------------------------------------------------------------------

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

VkmqaStepLimits problemLimits(const Problem* problem) {
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

// The layout of the cache is part of the interface: apps save and load it.
static void checkKvRequirements(const Problem* problem, const VkmqaKvRequirements* needs) {
    OracleCache k = problemCache(problem, false), v = problemCache(problem, true);
    bool hasV = problemHasV(problem);
    assert_int_equal(needs->pageTokens, problem->pageTokens);
    assert_int_equal(needs->k.size, oracleCacheBytes(&k));
    assert_int_equal(needs->rowBytesK, oracleRowBytes(&k));
    assert_int_equal(needs->scaleBytesK, oracleScaleBytes(&k));
    assert_int_equal(needs->scalesOffsetK, oracleScaleBytes(&k) ? oracleScalesOffset(&k) : 0);
    assert_int_equal(needs->v.size, hasV ? oracleCacheBytes(&v) : 0);
    size_t perRow = oracleRowBytes(&k) + oracleScaleBytes(&k);
    if (hasV) {
        assert_int_equal(needs->rowBytesV, oracleRowBytes(&v));
        assert_int_equal(needs->scaleBytesV, oracleScaleBytes(&v));
        assert_int_equal(needs->scalesOffsetV, oracleScaleBytes(&v) ? oracleScalesOffset(&v) : 0);
        perRow += oracleRowBytes(&v) + oracleScaleBytes(&v);
    }
    assert_int_equal(needs->bytesPerToken, perRow * problem->model.numHeadsKv);
}

static void createMask(Run* run, const Problem* problem) {
    const VkmqaStepLimits* most = &run->step.limits;
    if (!problem->mask)
        return;
    bool tree = run->model.flags & VKMQA_ATTENTION_TREE_MASK_BIT;
    run->maskStride = ((tree ? most->maxSeqLenQ : most->maxSeqLenKv) + 31) / 32;
    run->maskGiven = problem->batch.gaps;
    if (run->maskGiven)
        run->maskStride += 3;
    const VkmqaBufferRequirements needs = {.size = sizeof(uint32_t) * (VkDeviceSize)most->totalQ *
                                                   run->maskStride};
    run->mask = guardedCreate(&needs);
}

Run runCreate(VkmqaAttention attention, const Problem* problem, const VkmqaStepLimits* limits) {
    const Model* model = &problem->model;
    bool gaps = problem->batch.gaps, rotates = problemRotates(problem);
    bool inPlace = problem->batch.inPlace;
    Run run = {
        .attention = attention,
        .model = *model,
        .strideQ = stridesOf(model->numHeadsQ, model->headDimQk, gaps),
        .strideNewQ = stridesOf(model->numHeadsQ, model->headDimQk, gaps && inPlace),
        .strideK = stridesOf(model->numHeadsKv, model->headDimQk, gaps),
        .strideV = stridesOf(model->numHeadsKv, model->headDimV, gaps),
        .strideOut = stridesOf(model->numHeadsQ, model->headDimV, gaps),
        .inPlace = inPlace,
        .step = {.structSize = sizeof(VkmqaStep),
                 .limits = limits ? *limits : problemLimits(problem)},
    };
    const VkmqaStepLimits* most = &run.step.limits;
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof(kvNeeds)};
    VkmqaBufferRequirements stepNeeds, scratchNeeds, parameterNeeds;
    const VkmqaBufferRequirements lseNeeds = {.size = sizeof(float) * (VkDeviceSize)most->totalQ *
                                                      model->numHeadsQ};
    REQUIRE(vkmqaGetKvRequirements(attention, problem->numPages, &kvNeeds));
    REQUIRE(vkmqaGetStepLayout(attention, most, &run.step.layout, &stepNeeds));
    uint32_t pageSize = problem->model.pageSize;
    assert_int_equal(run.step.layout.maxPages, pageSize ? (most->maxSeqLenKv + pageSize - 1) / pageSize : 0);
    REQUIRE(vkmqaGetScratchRequirements(attention, most, &scratchNeeds));
    REQUIRE(vkmqaGetParametersRequirements(attention, &parameterNeeds));
    checkKvRequirements(problem, &kvNeeds);

    run.k = guardedCreate(&kvNeeds.k);
    run.v = guardedCreate(&kvNeeds.v);
    run.metadata = guardedCreate(&stepNeeds);
    run.scratch = guardedCreate(&scratchNeeds);
    run.parameters = guardedCreate(&parameterNeeds);
    run.lse = guardedCreate(&lseNeeds);
    run.q = createStrided(run.strideQ, most->totalQ, model->numHeadsQ, model->headDimQk, model->io);
    if (rotates && !inPlace)
        run.newQ = createStrided(run.strideNewQ, most->totalQ, model->numHeadsQ, model->headDimQk,
                                 model->source);
    run.out =
        createStrided(run.strideOut, most->totalQ, model->numHeadsQ, model->headDimV, model->io);
    run.newK = createStrided(run.strideK, most->newTokens, model->numHeadsKv, model->headDimQk,
                             model->source);
    if (problemHasV(problem))
        run.newV = createStrided(run.strideV, most->newTokens, model->numHeadsKv, model->headDimV,
                                 model->source);
    createMask(&run, problem);
    run.step.metadata = run.metadata.range;
    run.kv = (VkmqaKv){run.k.range, run.v.range, problem->numPages};
    REQUIRE(vkmqaCreateCommands(harness.device, &run.commands));
    return run;
}

void runBuffers(Run* run, NamedBuffer buffers[RUN_BUFFERS]) {
    const NamedBuffer all[RUN_BUFFERS] = {
        {"K", &run->k},
        {"V", &run->v},
        {"q", &run->q},
        {"new q", &run->newQ},
        {"new K", &run->newK},
        {"new V", &run->newV},
        {"out", &run->out},
        {"lse", &run->lse},
        {"metadata", &run->metadata},
        {"scratch", &run->scratch},
        {"mask", &run->mask},
        {"parameters", &run->parameters},
    };
    memcpy(buffers, all, sizeof(all));
}

void runDestroy(Run* run) {
    NamedBuffer buffers[RUN_BUFFERS];
    vkmqaDestroyCommands(run->commands);
    runBuffers(run, buffers);
    for (size_t i = 0; i < RUN_BUFFERS; i++)
        guardedDestroy(buffers[i].guarded);
}

// ---- Commands --------------------------------------------------------------------------------------

VkmqaAppendInfo runAppendInfo(const Run* run) {
    VkmqaAppendInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(run->commands),
        .step = &run->step,
        .kv = &run->kv,
        .newK = run->newK.range,
        .newV = run->newV.range,
        .strideK = run->strideK,
        .strideV = run->strideV,
        .parameters = run->parameters.range,
    };
    if (run->newQ.memory || run->inPlace) {
        info.q = run->inPlace ? run->q.range : run->newQ.range;
        info.strideQ = run->inPlace ? run->strideQ : run->strideNewQ;
        info.rotatedQ = run->q.range;
        info.strideRotatedQ = run->strideQ;
    }
    return info;
}

VkmqaAttentionInfo runAttentionInfo(const Run* run) {
    const VkmqaAttentionInfo info = {
        .structSize = sizeof(info),
        .recorder = vkmqaGetCommandsRecorder(run->commands),
        .step = &run->step,
        .kv = &run->kv,
        .q = run->q.range,
        .out = run->out.range,
        .lse = run->lse.range,
        .scratch = run->scratch.range,
        .strideQ = run->strideQ,
        .strideOut = run->strideOut,
        .parameters = run->parameters.range,
        .mask = run->mask.range,
        .maskStride = run->maskGiven ? run->maskStride : 0,
        .omitSinks = run->omitSinks,
    };
    return info;
}

void runRecord(Run* run, bool append) {
    REQUIRE(vkmqaBeginCommands(run->commands));
    VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(run->commands);
    if (append) {
        const VkmqaAppendInfo info = runAppendInfo(run);
        REQUIRE(vkmqaCmdAppendKv(run->attention, commandBuffer, &info));
    }
    const VkmqaAttentionInfo info = runAttentionInfo(run);
    REQUIRE(vkmqaCmdAttention(run->attention, commandBuffer, &info));
}

void runSubmit(Run* run) {
    REQUIRE(vkmqaSubmitCommands(run->commands));
    REQUIRE(vkmqaWaitCommands(run->commands, HARNESS_TIMEOUT_SECONDS * 1000000000ull));
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

// plain: decode by a plain lanes-are-heads kernel, the baseline for the library's own (bench/peers).
// SPDX-License-Identifier: MIT
#include "bench_spirv.h"
#include "problem.h"
#include "shader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct PlainCall {
    Problem problem; // the library's buffers, filled as for decode
    Shader attend, merge;
    VkmqaMemory out; // f32 [heads, dim], then the splits' states
    uint32_t splits, groupsPerSplit;
} PlainCall;

enum { SPLIT_TOKENS = 256 };

static BenchResult recordPlain(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                               uint32_t index) {
    const PlainCall* call = user;
    const Problem* p = &call->problem;
    (void)recorder;
    float scale = 1 / sqrtf((float)p->headDimQk);
    uint32_t push[PUSH_WORDS] = {(uint32_t)p->seqLensKv[0], call->splits};
    memcpy(&push[2], &scale, 4);
    uint32_t set = index % p->copies;
    recordShader(&call->attend, commandBuffer, set, push, call->groupsPerSplit * call->splits);
    recordShader(&call->merge, commandBuffer, set, push, call->groupsPerSplit);
    return BENCH_OK;
}

static BenchResult createPlain(Session* session, PlainCall* call) {
    const Problem* p = &call->problem;
    uint32_t ratio = p->numHeadsQ / p->numHeadsKv;
    // One vector of a CPU driver, a common subgroup of GPUs; never more lanes than heads.
    uint32_t wide = session->properties.subgroupSize ? session->properties.subgroupSize : 32;
    uint32_t lanes = ratio < wide ? ratio : wide;
    uint32_t constants[] = {lanes, p->numHeadsQ, p->numHeadsKv, p->headDimQk, SPLIT_TOKENS, 0};
    ShaderInfo info = {
        spirv_plain, sizeof(spirv_plain), "the plain kernel", 4, p->copies, constants, 6};
    call->splits = ((uint32_t)p->seqLensKv[0] + SPLIT_TOKENS - 1) / SPLIT_TOKENS;
    call->groupsPerSplit = p->numHeadsKv * ((ratio + lanes - 1) / lanes);
    BenchResult result = createShader(session, &info, &call->attend);
    constants[5] = 1;
    if (result == BENCH_OK)
        result = createShader(session, &info, &call->merge);
    VkDeviceSize floats =
        (VkDeviceSize)p->numHeadsQ * (p->headDimV + call->splits * (p->headDimV + 2ull));
    if (result == BENCH_OK)
        result =
            checkVk(vkmqaCreateMemory(session->device, VKMQA_MEMORY_DEVICE, floats * 4, &call->out),
                    "allocating the plain kernel's output");
    for (uint32_t i = 0; result == BENCH_OK && i < p->copies; i++) {
        VkmqaKv kv = cacheCopy(p, i);
        VkmqaBuffer buffers[] = {vkmqaGetMemoryRange(p->q, 0, 0), kv.k, kv.v,
                                 vkmqaGetMemoryRange(call->out, 0, 0)};
        setBuffers(&call->attend, i, buffers);
        setBuffers(&call->merge, i, buffers);
    }
    return result;
}

static BenchResult verifyPlain(PlainCall* call, Row* row) {
    const Problem* p = &call->problem;
    const TypeTraits* f32 = typeTraits(VKMQA_TYPE_F32);
    size_t elements = (size_t)p->numHeadsQ * p->headDimV;
    float* out = allocate(elements, 4);
    Reference expected = {0};
    ReferenceProblem reference = referenceOf(p);
    computeReference(&reference, 2e8, &expected);
    BenchResult result =
        checkVk(vkmqaDownload(call->out, 0, out, elements * 4), "downloading the output");
    if (result == BENCH_OK) {
        Judgement judgement =
            judge(&expected, p->numHeadsQ, p->headDimV, f32, out, NULL, p->bounds);
        row->nmse = judgement.nmse;
        row->wrong = judgement.wrong;
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    }
    freeReference(&expected);
    free(out);
    return result;
}

BenchResult runPlain(Session* session, const Item* item, Row* row) {
    if (item->headDimQk != item->headDimV || item->batch != 1 || item->pageSize ||
        item->kType != VKMQA_TYPE_F16 || item->vType != VKMQA_TYPE_F16 ||
        item->ioType != VKMQA_TYPE_F16 || item->queryTokens != 1 || item->modifiers.flags ||
        item->modifiers.chunkSize || item->modifiers.softcap != 0)
        return fail(
            BENCH_USAGE,
            "--op plain knows one sequence, one query token, f16, a contiguous cache, equal "
            "head dimensions and no windows, masks or other modifiers");
    PlainCall call = {0};
    BenchResult result = createItemProblem(session, item, 0, &call.problem);
    if (result != BENCH_OK)
        return result;
    describeAttention(&call.problem, row);
    snprintf(row->kernel, sizeof(row->kernel), "plain");
    snprintf(row->reason, sizeof(row->reason), "a plain lanes-are-heads kernel, for comparison");
    result = fillProblem(&call.problem);
    if (result == BENCH_OK)
        result = createPlain(session, &call);
    if (result == BENCH_OK)
        result = measure(session, recordPlain, &call, call.problem.copies, &row->time);
    if (result == BENCH_OK && session->options->verify)
        result = verifyPlain(&call, row);
    if (result == BENCH_OK)
        applyRoof(session, row);
    destroyShader(&call.attend);
    destroyShader(&call.merge);
    if (call.out)
        vkmqaDestroyMemory(call.out);
    destroyProblem(&call.problem);
    return result;
}

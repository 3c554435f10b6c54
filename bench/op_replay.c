// replay: a decode step of several layers, recorded once for the longest context and submitted again for every
// token while the lengths in GPU memory grow; beside it, steps recorded for the length that they have.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double referenceBudget = 2e8;

typedef struct Replay {
    Problem problem; // one copy of the cache per layer
    VkmqaCommands once, anew;
    uint32_t start, steps; // lengths start .. start + steps - 1
    double *onceSeconds, *anewSeconds;
} Replay;

// Append and attention of every layer, recorded for contexts of up to `longest` tokens.
static BenchResult recordStep(Replay* replay, VkmqaCommands commands, uint32_t longest) {
    Problem* p = &replay->problem;
    VkmqaStep step = p->step;
    step.limits.maxSeqLenKv = longest;
    BenchResult result = checkVk(vkmqaBeginCommands(commands), "beginning a command buffer");
    for (uint32_t layer = 0; result == BENCH_OK && layer < p->copies; layer++) {
        VkmqaKv kv = cacheCopy(p, layer);
        VkmqaAppendInfo append = appendCall(p, &kv, layer);
        VkmqaAttentionInfo attention = attentionCall(p, &kv);
        append.step = attention.step = &step;
        append.recorder = attention.recorder = vkmqaGetCommandsRecorder(commands);
        VkCommandBuffer commandBuffer = vkmqaGetCommandBuffer(commands);
        result =
            checkVk(vkmqaCmdAppendKv(p->attention, commandBuffer, &append), "recording append");
        if (result == BENCH_OK)
            result = checkVk(vkmqaCmdAttention(p->attention, commandBuffer, &attention),
                             "recording attention");
    }
    return result;
}

// Every sequence's next token is the one at length - 1.
static BenchResult moveTo(Replay* replay, uint32_t length) {
    Problem* p = &replay->problem;
    for (uint32_t b = 0; b < p->batch; b++) {
        p->seqLensKv[b] = (int32_t)length;
        p->positions[b] = p->queryPositions[b] = (int32_t)length - 1;
        p->slots[b] = (int32_t)slotOf(p, b, length - 1);
    }
    return uploadMetadata(p);
}

static BenchResult timeAnew(Replay* replay, uint32_t length, double* seconds) {
    BenchResult result = recordStep(replay, replay->anew, length);
    return result == BENCH_OK ? submitAndWait(replay->problem.session, replay->anew, seconds)
                              : result;
}

// Both kinds of step at every length, in turns, so that neither always finds what the other has cached. They append
// the same rows to the same slots.
static BenchResult timeSteps(Replay* replay) {
    Session* session = replay->problem.session;
    double unused;
    BenchResult result = moveTo(replay, replay->start);
    if (result == BENCH_OK)
        result = submitAndWait(session, replay->once, &unused); // the first run may compile
    if (result == BENCH_OK)
        result = timeAnew(replay, replay->start, &unused);
    for (uint32_t i = 0; result == BENCH_OK && i < replay->steps; i++) {
        result = moveTo(replay, replay->start + i);
        for (uint32_t turn = 0; result == BENCH_OK && turn < 2; turn++)
            result = (turn + i) % 2 ? timeAnew(replay, replay->start + i, &replay->anewSeconds[i])
                                    : submitAndWait(session, replay->once, &replay->onceSeconds[i]);
    }
    return result;
}

// The caches of the first and the last layer must hold every step's rows, and what was there before.
static BenchResult verifyCaches(const Replay* replay, Row* row) {
    const Problem* p = &replay->problem;
    Problem all = *p; // as if all steps had been one append
    size_t sizeK = (size_t)p->totalNew * p->numHeadsKv * p->headDimQk * p->newType->bytes;
    size_t sizeV = (size_t)p->totalNew * p->numHeadsKv * p->headDimV * p->newType->bytes;
    BenchResult result = BENCH_OK;
    all.totalNew = p->totalNew * replay->steps;
    all.slots = allocate(all.totalNew, 4);
    all.positions = allocate(all.totalNew, 4);
    all.hostNewK = allocate(sizeK, replay->steps);
    all.hostNewV = allocate(sizeV, replay->steps);
    for (uint32_t i = 0; i < replay->steps; i++) {
        for (uint32_t b = 0; b < p->batch; b++) {
            uint32_t position = replay->start + i - 1;
            all.positions[i * p->batch + b] = (int32_t)position;
            all.slots[i * p->batch + b] = (int32_t)slotOf(p, b, position);
        }
        memcpy(all.hostNewK + i * sizeK, p->hostNewK, sizeK);
        if (p->hostNewV)
            memcpy(all.hostNewV + i * sizeV, p->hostNewV, sizeV);
    }
    for (uint32_t layer = 0;
         result == BENCH_OK && layer<p->copies; layer += p->copies> 1 ? p->copies - 1 : 1) {
        result = verifyAppendedPlane(&all, true, layer, row);
        if (result == BENCH_OK && !row->wrong && p->hostNewV)
            result = verifyAppendedPlane(&all, false, layer, row);
    }
    if (result == BENCH_OK && !row->wrong && p->rawQ)
        result = verifyRotatedQ(p, row);
    free(all.slots);
    free(all.positions);
    free(all.hostNewK);
    free(all.hostNewV);
    return result;
}

// The last token's output of the last layer against the f64 reference on the cache as it is now.
static BenchResult verifyLast(Replay* replay, Row* row) {
    Problem* p = &replay->problem;
    Reference expected = {0};
    Judgement judgement = {0};
    BenchResult result = downloadInputs(p, p->copies - 1);
    if (result != BENCH_OK)
        return result;
    ReferenceProblem reference = referenceOf(p);
    computeReference(&reference, referenceBudget, &expected);
    result = judgeOutput(p, &expected, &judgement);
    row->nmse = judgement.nmse;
    row->wrong = judgement.wrong;
    if (judgement.wrong)
        snprintf(row->note, sizeof(row->note), "%s", judgement.why);
    freeReference(&expected);
    return result;
}

static BenchResult runInto(Replay* replay, VkmqaCommands commands, uint8_t* out, size_t bytes) {
    double unused;
    BenchResult result = poisonOutput(&replay->problem);
    if (result == BENCH_OK)
        result = submitAndWait(replay->problem.session, commands, &unused);
    if (result == BENCH_OK)
        result =
            checkVk(vkmqaDownload(replay->problem.out, 0, out, bytes), "downloading the output");
    return result;
}

// A step recorded anew with the same maxima must give the same bits.
static BenchResult verifyBits(Replay* replay, Row* row) {
    Problem* p = &replay->problem;
    size_t bytes = (size_t)p->totalQ * p->numHeadsQ * p->headDimV * p->ioType->bytes;
    bytes = (bytes + 3) & ~(size_t)3;
    uint8_t *anew = allocate(bytes, 1), *once = allocate(bytes, 1);
    BenchResult result = recordStep(replay, replay->anew, p->step.limits.maxSeqLenKv);
    if (result == BENCH_OK)
        result = runInto(replay, replay->anew, anew, bytes);
    if (result == BENCH_OK)
        result = runInto(replay, replay->once, once, bytes);
    if (result == BENCH_OK && memcmp(anew, once, bytes) != 0) {
        row->wrong = true;
        snprintf(row->note, sizeof(row->note),
                 "a replayed step differs in its bits from one recorded anew with the same maxima");
    }
    free(anew);
    free(once);
    return result;
}

static BenchResult verifyReplay(Replay* replay, Row* row) {
    BenchResult result = verifyCaches(replay, row);
    if (result == BENCH_OK && !row->wrong)
        result = verifyBits(replay, row); // leaves the replayed step's output
    if (result == BENCH_OK && !row->wrong)
        result = verifyLast(replay, row);
    if (result == BENCH_OK && row->wrong)
        row->nmse = 0; // there was no comparison
    return result;
}

// Two rows: steps recorded anew, and the one that is replayed.
static void describeReplay(Replay* replay, const Stats* anew, Row* row) {
    Problem* p = &replay->problem;
    describeAttention(p, row);
    row->bytes = (row->bytes + appendBytes(p)) * p->copies; // at the last length
    row->flops *= p->copies;
    Row other = *row;
    other.time = *anew;
    other.nmse = -1;
    other.wrong = false;
    snprintf(other.kernel, sizeof(other.kernel), "recorded anew");
    snprintf(other.reason, sizeof(other.reason), "append and attention of %u layers", p->copies);
    snprintf(other.note, sizeof(other.note), "every token's step is recorded for its own length");
    snprintf(row->kernel, sizeof(row->kernel), "replayed");
    snprintf(row->reason, sizeof(row->reason), "append and attention of %u layers by %.32s",
             p->copies, p->kernel.name);
    applyRoof(p->session, &other);
    applyRoof(p->session, row);
    addRow(p->session->report, &other);
    row->overhead = row->time.median / other.time.median;
    if (!row->wrong)
        snprintf(
            row->note, sizeof(row->note),
            "recorded once for %u tokens, replayed at lengths %u to %u: %.2f times the time of "
            "steps recorded for their length",
            p->step.limits.maxSeqLenKv, replay->start, replay->start + replay->steps - 1,
            row->overhead);
}

BenchResult runReplay(Session* session, const Item* item, Row* row) {
    const Options* o = session->options;
    Replay replay = {.steps = o->repetitions ? o->repetitions : o->quick ? 16 : 64};
    BenchResult result = createItemProblem(session, item, item->layers, &replay.problem);
    if (result != BENCH_OK)
        return result;
    Problem* p = &replay.problem;
    // An eighth of what was recorded for, where the overhead shows, and no step beyond it.
    uint32_t longest = item->context;
    replay.steps = replay.steps > longest ? longest : replay.steps;
    replay.start = longest / 8 > 0 ? longest / 8 : 1;
    if (replay.start + replay.steps - 1 > longest)
        replay.start = longest - replay.steps + 1;
    replay.onceSeconds = allocate(replay.steps, sizeof(double));
    replay.anewSeconds = allocate(replay.steps, sizeof(double));
    fillNewRows(p);
    result = fillProblem(p);
    if (result == BENCH_OK)
        result = uploadNewRows(p);
    if (result == BENCH_OK)
        result = checkVk(vkmqaCreateCommands(session->device, &replay.once),
                         "creating a command buffer");
    if (result == BENCH_OK)
        result = checkVk(vkmqaCreateCommands(session->device, &replay.anew),
                         "creating a command buffer");
    if (result == BENCH_OK)
        result = recordStep(&replay, replay.once, longest);
    if (result == BENCH_OK)
        result = timeSteps(&replay);
    if (result == BENCH_OK && o->verify)
        result = verifyReplay(&replay, row);
    if (result == BENCH_OK) {
        Stats anew = summarise(replay.anewSeconds, replay.steps);
        row->time = summarise(replay.onceSeconds, replay.steps);
        describeReplay(&replay, &anew, row);
    }
    vkmqaDestroyCommands(replay.once);
    vkmqaDestroyCommands(replay.anew);
    free(replay.onceSeconds);
    free(replay.anewSeconds);
    destroyProblem(p);
    return result;
}

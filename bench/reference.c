// Attention in f64, in the order the formula is written, and the comparison with it.
// SPDX-License-Identifier: MIT
#include "reference.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS_PER_TASK = 8 }; // rows of one sequence and KV head that share the decoding of K and V

typedef struct Task {
    uint32_t first, count; // of the reference's rows
} Task;

typedef struct Pool {
    const ReferenceProblem* problem;
    Reference* reference;
    Task* tasks;
    uint32_t taskCount;
    atomic_uint next;
} Pool;

static double dot(const float* a, const float* b, uint32_t count) {
    double sums[8] = {0}; // independent sums, so that the compiler may vectorise
    for (uint32_t i = 0; i < count; i += 8)
        for (uint32_t j = 0; j < 8 && i + j < count; j++)
            sums[j] += (double)a[i + j] * (double)b[i + j];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void seenRange(const VkmqaAttentionCreateInfo* info, int64_t position, int64_t length,
               int64_t* first, int64_t* end) {
    int64_t low = 0, high = length;
    if (info->flags & VKMQA_ATTENTION_CAUSAL_BIT && high > position + 1)
        high = position + 1;
    if (info->flags & VKMQA_ATTENTION_WINDOW_LEFT_BIT && low < position - info->windowLeft)
        low = position - info->windowLeft;
    if (info->flags & VKMQA_ATTENTION_WINDOW_RIGHT_BIT && high > position + info->windowRight + 1)
        high = position + info->windowRight + 1;
    if (info->chunkSize) {
        int64_t size = info->chunkSize;
        int64_t chunk = position >= 0 ? position / size : -((size - 1 - position) / size);
        low = low < chunk * size ? chunk * size : low;
        high = high > (chunk + 1) * size ? (chunk + 1) * size : high;
    }
    *first = low;
    *end = high;
}

// A row at work: what it may see, and the running state of its softmax.
typedef struct RowState {
    int64_t position, first, end;
    double slope, sink;  // 0 and -inf without
    double largest, sum; // of the scores, the sink's included
    const float* q;
    double* out;
} RowState;

static RowState beginRow(const ReferenceProblem* p, const ReferenceRow* row) {
    int64_t length = p->seqLensKv[row->sequence], last = p->cuSeqlensQ[row->sequence + 1];
    RowState s = {.position = length - last + (int64_t)row->token, .sink = -INFINITY};
    seenRange(p->info, s.position, length, &s.first, &s.end);
    if (p->info->flags & VKMQA_ATTENTION_ALIBI_BIT)
        s.slope = p->alibiSlopes[row->head];
    if (p->info->flags & VKMQA_ATTENTION_SINKS_BIT)
        s.sink = p->sinks[row->head];
    s.largest = s.sink;
    return s;
}

static double scoreOf(const ReferenceProblem* p, const RowState* s, int64_t position,
                      const float* k) {
    double scale = p->scale != 0 ? p->scale : 1 / sqrt(p->info->headDimQk);
    double score = scale * dot(s->q, k, p->info->headDimQk);
    if (p->softcap != 0)
        score = p->softcap * tanh(score / p->softcap);
    return score - s->slope * (double)llabs(s->position - position);
}

static bool sees(const ReferenceProblem* p, const ReferenceRow* row, const RowState* s, int64_t j) {
    return j >= s->first && j < s->end &&
           (!p->allows || p->allows(p->user, row->sequence, row->token, (uint32_t)j));
}

// Two passes over the keys and one over the values, in the order the formula is written.
static void runTask(const Pool* pool, const Task* task) {
    const ReferenceProblem* p = pool->problem;
    const ReferenceRow* rows = pool->reference->rows + task->first;
    uint32_t dimQk = p->info->headDimQk, dimV = p->info->headDimV;
    uint32_t headKv = rows[0].head / (p->info->numHeadsQ / p->info->numHeadsKv);
    float* q = allocate(ROWS_PER_TASK * (size_t)dimQk, sizeof(float));
    float* row = allocate(dimQk > dimV ? dimQk : dimV, sizeof(float));
    RowState states[ROWS_PER_TASK];
    int64_t first = INT64_MAX, end = 0;
    for (uint32_t r = 0; r < task->count; r++) {
        RowState* s = &states[r];
        *s = beginRow(p, &rows[r]);
        s->q = q + (size_t)r * dimQk;
        s->out = pool->reference->out + (size_t)(task->first + r) * dimV;
        p->readQ(p->user, rows[r].token, rows[r].head, q + (size_t)r * dimQk);
        if (s->first < s->end) {
            first = s->first < first ? s->first : first;
            end = s->end > end ? s->end : end;
        }
    }
    size_t keys = first < end ? (size_t)(end - first) : 0;
    double* scores = allocate(keys * ROWS_PER_TASK + 1, sizeof(double));
    for (int64_t j = first; j < end; j++) {
        p->readK(p->user, rows[0].sequence, headKv, (uint32_t)j, row);
        for (uint32_t r = 0; r < task->count; r++) {
            double* score = &scores[(size_t)(j - first) * ROWS_PER_TASK + r];
            *score = -INFINITY;
            if (!sees(p, &rows[r], &states[r], j))
                continue;
            *score = scoreOf(p, &states[r], j, row);
            states[r].largest = fmax(states[r].largest, *score);
        }
    }
    for (uint32_t r = 0; r < task->count; r++)
        states[r].sum = states[r].sink > -INFINITY ? exp(states[r].sink - states[r].largest) : 0;
    for (int64_t j = first; j < end; j++) {
        p->readV(p->user, rows[0].sequence, headKv, (uint32_t)j, row);
        for (uint32_t r = 0; r < task->count; r++) {
            double score = scores[(size_t)(j - first) * ROWS_PER_TASK + r];
            if (score == -INFINITY) // not seen, or of no weight
                continue;
            double weight = exp(score - states[r].largest);
            states[r].sum += weight;
            for (uint32_t d = 0; d < dimV; d++)
                states[r].out[d] += weight * (double)row[d];
        }
    }
    for (uint32_t r = 0; r < task->count; r++) {
        bool seen = states[r].sum != 0; // NaN is something seen
        for (uint32_t d = 0; d < dimV && seen; d++)
            states[r].out[d] /= states[r].sum;
        pool->reference->lse[task->first + r] =
            seen ? states[r].largest + log(states[r].sum) : -INFINITY;
    }
    free(scores);
    free(row);
    free(q);
}

static void* worker(void* user) {
    Pool* pool = user;
    for (;;) {
        uint32_t index = atomic_fetch_add(&pool->next, 1);
        if (index >= pool->taskCount)
            return NULL;
        runTask(pool, &pool->tasks[index]);
    }
}

static void runTasks(Pool* pool) {
    enum { MAX_THREADS = 64 };
    pthread_t threads[MAX_THREADS];
    uint32_t extra = 0, wanted = processorCount() - 1;
    wanted = wanted > MAX_THREADS ? MAX_THREADS : wanted;
    while (extra < wanted && pthread_create(&threads[extra], NULL, worker, pool) == 0)
        extra++;
    worker(pool); // this thread works too, also when no other could be started
    for (uint32_t i = 0; i < extra; i++)
        pthread_join(threads[i], NULL);
}

typedef struct KeyedRow {
    uint64_t key; // sequence and KV head
    ReferenceRow row;
} KeyedRow;

static int compareKeys(const void* a, const void* b) {
    const KeyedRow *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->row.token != y->row.token ? (x->row.token < y->row.token ? -1 : 1)
                                        : (x->row.head > y->row.head) - (x->row.head < y->row.head);
}

// Which rows: all, or the first, the last and a sequence that spreads evenly over tokens and heads.
static KeyedRow* chooseRows(const ReferenceProblem* p, double budget, Reference* reference) {
    uint32_t numHeadsQ = p->info->numHeadsQ, ratio = numHeadsQ / p->info->numHeadsKv;
    double work = 0, tokens = 0;
    for (uint32_t b = 0; b < p->batch; b++) {
        double queries = p->cuSeqlensQ[b + 1] - p->cuSeqlensQ[b];
        int64_t first, end, length = p->seqLensKv[b];
        seenRange(p->info, length - 1, length, &first,
                  &end); // the last query's: hardly any sees more
        tokens += queries;
        if (first < end)
            work += queries * numHeadsQ * (double)(end - first) *
                    (double)(p->info->headDimQk + p->info->headDimV);
    }
    double total = tokens * numHeadsQ;
    double count = work <= budget ? total : fmax(16, floor(total * (budget / work)));
    reference->complete = count >= total;
    reference->count = (uint32_t)fmin(count, total);
    KeyedRow* chosen = allocate(reference->count + 1, sizeof(KeyedRow));
    uint32_t sequence = 0;
    for (uint32_t i = 0; i < reference->count; i++) {
        double spread = fmod((i + 1) * 0.6180339887498949, 1.0);
        uint64_t index = reference->complete         ? i
                         : i == 0                    ? 0
                         : i + 1 == reference->count ? (uint64_t)total - 1
                                                     : (uint64_t)(spread * total);
        uint32_t token = (uint32_t)(p->cuSeqlensQ[0] + (int64_t)(index / numHeadsQ));
        if (!reference->complete || i == 0)
            sequence = 0;
        while ((int64_t)token >= p->cuSeqlensQ[sequence + 1])
            sequence++;
        uint32_t head = (uint32_t)(index % numHeadsQ);
        uint64_t headKv = head / ratio;
        chosen[i] = (KeyedRow){(uint64_t)sequence << 32 | headKv, {sequence, token, head}};
    }
    qsort(chosen, reference->count, sizeof(KeyedRow), compareKeys);
    return chosen;
}

void computeReference(const ReferenceProblem* p, double budget, Reference* reference) {
    KeyedRow* chosen = chooseRows(p, budget, reference);
    uint32_t count = reference->count;
    reference->rows = allocate(count + 1, sizeof(ReferenceRow));
    reference->out = allocate((size_t)count * p->info->headDimV + 1, sizeof(double));
    reference->lse = allocate(count + 1, sizeof(double));
    Pool pool = {.problem = p, .reference = reference, .tasks = allocate(count + 1, sizeof(Task))};
    for (uint32_t i = 0; i < count; i++) {
        reference->rows[i] = chosen[i].row;
        Task* task = pool.taskCount ? &pool.tasks[pool.taskCount - 1] : NULL;
        if (task && task->count < ROWS_PER_TASK && chosen[i].key == chosen[i - 1].key)
            task->count++;
        else
            pool.tasks[pool.taskCount++] = (Task){i, 1};
    }
    runTasks(&pool);
    free(pool.tasks);
    free(chosen);
}

void freeReference(Reference* reference) {
    free(reference->rows);
    free(reference->out);
    free(reference->lse);
    *reference = (Reference){0};
}

Bounds boundsOf(const TypeTraits* const* types, uint32_t count, bool stored) {
    Bounds bounds = {.lseAbsolute = 1e-3};
    for (uint32_t i = 0; i < count; i++) {
        const TypeTraits* type = types[i];
        // What a format loses is no part of a comparison with what it stores.
        double lse = stored && type->lseBound < 0 ? 0 : type->lseBound;
        bounds.nmse = fmax(bounds.nmse, stored ? type->storedBound : type->nmseBound);
        bounds.lseRelative = lse < 0 || bounds.lseRelative < 0 ? -1 : fmax(bounds.lseRelative, lse);
    }
    return bounds;
}

static void explain(Judgement* judgement, const char* what, const ReferenceRow* row, double got,
                    double expected) {
    if (judgement->wrong)
        return; // the first fault is the one to report
    judgement->wrong = true;
    snprintf(judgement->why, sizeof(judgement->why),
             "%s of query token %u, head %u is %.9g, expected %.9g", what, row->token, row->head,
             got, expected);
}

// Infinities must be the same one, NaN must be NaN; true where both are finite.
static bool bothFinite(double got, double expected, bool* same) {
    *same = isnan(expected) ? isnan(got) : isinf(expected) ? got == expected : isfinite(got);
    return isfinite(got) && isfinite(expected);
}

Judgement judge(const Reference* expected, uint32_t numHeadsQ, uint32_t headDimV,
                const TypeTraits* io, const void* out, const float* lse, Bounds bounds) {
    // A row of its own may err by this much more than the whole: a wrong one is off by far more.
    const double rowFactor = 1000;
    Judgement judgement = {0};
    float* row = allocate(headDimV, sizeof(float));
    double error = 0, energy = 0;
    for (size_t i = 0; i < (size_t)expected->count * headDimV; i++)
        if (isfinite(expected->out[i]))
            energy += expected->out[i] * expected->out[i];
    double meanEnergy = expected->count ? energy / expected->count : 0;
    for (uint32_t r = 0; r < expected->count; r++) {
        const ReferenceRow* where = &expected->rows[r];
        const double* want = expected->out + (size_t)r * headDimV;
        size_t at = (size_t)where->token * numHeadsQ + where->head;
        decodeElements(io, (const uint8_t*)out + at * headDimV * io->bytes, headDimV, row);
        double rowError = 0, rowEnergy = 0, worst = -1;
        uint32_t worstAt = 0;
        for (uint32_t d = 0; d < headDimV; d++) {
            bool same;
            if (!bothFinite(row[d], want[d], &same)) {
                if (!same)
                    explain(&judgement, "out", where, row[d], want[d]);
                continue;
            }
            double difference = (double)row[d] - want[d];
            rowError += difference * difference;
            rowEnergy += want[d] * want[d];
            if (fabs(difference) > worst) {
                worst = fabs(difference);
                worstAt = d;
            }
        }
        if (rowError > rowFactor * bounds.nmse * fmax(rowEnergy, meanEnergy))
            explain(&judgement, "out", where, row[worstAt], want[worstAt]);
        error += rowError;
        if (lse && bounds.lseRelative >= 0) {
            bool same;
            double difference = fabs((double)lse[at] - expected->lse[r]);
            double allowed = bounds.lseAbsolute + bounds.lseRelative * fabs(expected->lse[r]);
            if (!bothFinite(lse[at], expected->lse[r], &same)) {
                if (!same)
                    explain(&judgement, "lse", where, lse[at], expected->lse[r]);
                continue;
            }
            judgement.lseError = fmax(judgement.lseError, difference);
            if (difference > allowed)
                explain(&judgement, "lse", where, lse[at], expected->lse[r]);
        }
    }
    judgement.nmse = energy > 0 ? error / energy : error > 0 ? INFINITY : 0;
    if (!judgement.wrong && !(judgement.nmse <= bounds.nmse)) {
        judgement.wrong = true;
        snprintf(judgement.why, sizeof(judgement.why), "NMSE of out is %.3g, the bound is %.3g",
                 judgement.nmse, bounds.nmse);
    }
    free(row);
    return judgement;
}

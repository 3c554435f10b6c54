// Attention in f64, in the order the formula is written, and the comparison with it.
// SPDX-License-Identifier: MIT
#include "reference.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

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

// Positions that the row sees: masks are aligned bottom-right.
static uint32_t visibleTokens(const ReferenceProblem* p, const ReferenceRow* row) {
    int64_t length = p->seqLensKv[row->sequence];
    int64_t first = p->cuSeqlensQ[row->sequence], last = p->cuSeqlensQ[row->sequence + 1];
    int64_t seen = p->causal ? length - (last - (int64_t)row->token) + 1 : length;
    return seen < 0 || first > last ? 0 : (uint32_t)seen;
}

// Two passes over the keys and one over the values, in the order the formula is written.
static void runTask(const Pool* pool, const Task* task) {
    const ReferenceProblem* p = pool->problem;
    const ReferenceRow* rows = pool->reference->rows + task->first;
    uint32_t dims = p->headDimQk > p->headDimV ? p->headDimQk : p->headDimV;
    uint32_t headKv = rows[0].head / (p->numHeadsQ / p->numHeadsKv), longest = 0;
    double scale = p->scale != 0 ? p->scale : 1 / sqrt(p->headDimQk);
    float* q = allocate(ROWS_PER_TASK * (size_t)dims, sizeof(float));
    float* row = allocate(dims, sizeof(float));
    uint32_t visible[ROWS_PER_TASK];
    for (uint32_t r = 0; r < task->count; r++) {
        p->readQ(p->user, rows[r].token, rows[r].head, q + (size_t)r * dims);
        visible[r] = visibleTokens(p, &rows[r]);
        longest = visible[r] > longest ? visible[r] : longest;
    }
    double* scores = allocate((size_t)longest * ROWS_PER_TASK + 1, sizeof(double));
    double largest[ROWS_PER_TASK], sum[ROWS_PER_TASK] = {0};
    for (uint32_t r = 0; r < ROWS_PER_TASK; r++)
        largest[r] = -INFINITY;
    for (uint32_t j = 0; j < longest; j++) {
        p->readK(p->user, rows[0].sequence, headKv, j, row);
        for (uint32_t r = 0; r < task->count; r++) {
            if (j >= visible[r])
                continue;
            double score = scale * dot(q + (size_t)r * dims, row, p->headDimQk);
            scores[(size_t)j * ROWS_PER_TASK + r] = score;
            largest[r] = fmax(largest[r], score);
        }
    }
    double* out = pool->reference->out + (size_t)task->first * p->headDimV;
    for (uint32_t j = 0; j < longest; j++) {
        p->readV(p->user, rows[0].sequence, headKv, j, row);
        for (uint32_t r = 0; r < task->count; r++) {
            if (j >= visible[r])
                continue;
            double weight = exp(scores[(size_t)j * ROWS_PER_TASK + r] - largest[r]);
            sum[r] += weight;
            for (uint32_t d = 0; d < p->headDimV; d++)
                out[(size_t)r * p->headDimV + d] += weight * (double)row[d];
        }
    }
    for (uint32_t r = 0; r < task->count; r++) {
        for (uint32_t d = 0; d < p->headDimV && visible[r]; d++)
            out[(size_t)r * p->headDimV + d] /= sum[r];
        pool->reference->lse[task->first + r] = visible[r] ? largest[r] + log(sum[r]) : -INFINITY;
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
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t extra = 0, wanted = cores < 2             ? 0
                                 : cores > MAX_THREADS ? MAX_THREADS
                                                       : (uint32_t)cores - 1;
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
    double work = 0, tokens = 0;
    for (uint32_t b = 0; b < p->batch; b++) {
        double queries = p->cuSeqlensQ[b + 1] - p->cuSeqlensQ[b];
        tokens += queries;
        work += queries * p->numHeadsQ * p->seqLensKv[b] * (double)(p->headDimQk + p->headDimV);
    }
    double total = tokens * p->numHeadsQ;
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
        uint32_t token = (uint32_t)(p->cuSeqlensQ[0] + (int64_t)(index / p->numHeadsQ));
        if (!reference->complete || i == 0)
            sequence = 0;
        while ((int64_t)token >= p->cuSeqlensQ[sequence + 1])
            sequence++;
        uint32_t head = (uint32_t)(index % p->numHeadsQ);
        uint64_t headKv = head / (p->numHeadsQ / p->numHeadsKv);
        chosen[i] = (KeyedRow){(uint64_t)sequence << 32 | headKv, {sequence, token, head}};
    }
    qsort(chosen, reference->count, sizeof(KeyedRow), compareKeys);
    return chosen;
}

void computeReference(const ReferenceProblem* p, double budget, Reference* reference) {
    KeyedRow* chosen = chooseRows(p, budget, reference);
    uint32_t count = reference->count;
    reference->rows = allocate(count + 1, sizeof(ReferenceRow));
    reference->out = allocate((size_t)count * p->headDimV + 1, sizeof(double));
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

Bounds boundsOf(const TypeTraits* const* types, uint32_t count) {
    Bounds bounds = {.lseAbsolute = 1e-3};
    for (uint32_t i = 0; i < count; i++) {
        bounds.nmse = fmax(bounds.nmse, types[i]->nmseBound);
        if (types[i]->lseBound < 0 || bounds.lseRelative < 0)
            bounds.lseRelative = -1;
        else
            bounds.lseRelative = fmax(bounds.lseRelative, types[i]->lseBound);
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

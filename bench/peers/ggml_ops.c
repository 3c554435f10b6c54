// Times attention and cache writes of ggml, on any of its back ends, for bench/peers/compare.
//   ggml_ops BACKEND_FOLDER DEVICE attention HEADS_Q HEADS_KV HEAD_DIM[/V_DIM] CONTEXT QUERY_TOKENS REPETITIONS
//   ggml_ops BACKEND_FOLDER DEVICE append    HEADS_KV HEAD_DIM CONTEXT NEW_TOKENS REPETITIONS
// Prints the median time of one call in seconds. Buffers stay the same from call to call (cache-hot). With V_DIM rows of
// V are the beginnings of K's. One repetition is the first one, after a small call that compiles the kernels.
// Exit: 0 printed, 2 usage, 3 no such device, 4 the back end does not do this call.
//   ggml_ops case HEADS_Q HEADS_KV HEAD_DIM CONTEXT QUERY_TOKENS
// Prints the same attention as a line for test-backend-ops --test-file.
// SPDX-License-Identifier: MIT
#include <ggml-backend.h>
#include <ggml.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// Values around zero; a mask of zeros hides nothing.
static void fill(struct ggml_tensor* t, float scale) {
    size_t count = (size_t)ggml_nelements(t);
    unsigned char* bytes = malloc(ggml_nbytes(t));
    for (size_t i = 0; i < count; i++) {
        float value = scale * (float)((double)rand() / RAND_MAX - 0.5);
        if (t->type == GGML_TYPE_F16)
            ((ggml_fp16_t*)bytes)[i] = ggml_fp32_to_fp16(value);
        else if (t->type == GGML_TYPE_F32)
            ((float*)bytes)[i] = value;
        else
            ((int64_t*)bytes)[i] = (int64_t)i; // rows to write, one after the other
    }
    ggml_backend_tensor_set(t, bytes, 0, ggml_nbytes(t));
    free(bytes);
}

static struct ggml_tensor* attention(struct ggml_context* c, const long* a,
                                     struct ggml_tensor** in) {
    long headsQ = a[0], headsKv = a[1], dim = a[2], context = a[3], queries = a[4], dimV = a[6];
    in[0] = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, queries, headsQ);
    in[1] = ggml_new_tensor_3d(c, GGML_TYPE_F16, dim, context, headsKv);
    struct ggml_tensor* v = in[2] = dimV ? NULL : ggml_new_tensor_3d(c, GGML_TYPE_F16, dim, context, headsKv);
    if (dimV)
        v = ggml_view_3d(c, in[1], dimV, context, headsKv, in[1]->nb[1], in[1]->nb[2], 0);
    in[3] = ggml_new_tensor_2d(c, GGML_TYPE_F16, context, queries);
    struct ggml_tensor* t = ggml_flash_attn_ext(c, in[0], in[1], v, in[3], 1 / sqrtf((float)dim), 0, 0);
    t->op_params[3] = GGML_PREC_F32; // as llama.cpp asks for, by a call that its releases rename
    return t;
}

static struct ggml_tensor* append(struct ggml_context* c, const long* a, struct ggml_tensor** in) {
    long row = a[0] * a[1], context = a[2], tokens = a[3];
    in[0] = ggml_new_tensor_2d(c, GGML_TYPE_F16, row, context);
    in[1] = ggml_new_tensor_2d(c, GGML_TYPE_F32, row, tokens);
    in[2] = ggml_new_tensor_1d(c, GGML_TYPE_I64, tokens);
    return ggml_set_rows(c, in[0], in[1], in[2]);
}

// The harness moves 32 GiB on a GPU whatever the shape: up to 8192 calls, hours of a prefill on a CPU
// driver. Heads that lie far apart, as in a larger tensor of which this one is a view, count as bytes
// moved and change nothing of the work. Drivers bind as little as 128 MiB at once.
static void spread_heads(struct ggml_tensor* t) {
    size_t stride = ((size_t)120 << 20) / (size_t)t->ne[2] / 4096 * 4096;
    if (t->ne[2] > 1 && stride > t->nb[2]) {
        t->nb[2] = stride;
        t->nb[3] = stride * (size_t)t->ne[2];
    }
}

static int print_case(const long* a) {
    struct ggml_init_params params = {1 << 20, NULL, true};
    struct ggml_tensor* inputs[4] = {NULL};
    struct ggml_tensor* t = attention(ggml_init(params), a, inputs);
    for (int i = 0; i < 3; i++)
        spread_heads(inputs[i]);
    printf("%d %d", (int)t->op, (int)t->type);
    for (int i = 0; i < GGML_MAX_DIMS; i++)
        printf(" %lld", (long long)t->ne[i]);
    int count = (int)(sizeof(t->op_params) / sizeof(t->op_params[0]));
    printf(" %d", count);
    for (int i = 0; i < count; i++)
        printf(" %d", (int)t->op_params[i]);
    printf(" 4");
    for (int i = 0; i < 4; i++) {
        printf(" %d", (int)inputs[i]->type);
        for (int k = 0; k < GGML_MAX_DIMS; k++)
            printf(" %lld", (long long)inputs[i]->ne[k]);
        for (int k = 0; k < GGML_MAX_DIMS; k++)
            printf(" %zu", inputs[i]->nb[k]);
    }
    printf(" -\n"); // no name
    return 0;
}

// The median of `count` calls after `before` others, in seconds; 0: the back end does not do it.
static double measure(ggml_backend_t backend, bool attend, const long* a, long before, long count) {
    struct ggml_init_params params = {1 << 20, NULL, true};
    struct ggml_context* context = ggml_init(params);
    struct ggml_cgraph* graph = ggml_new_graph(context);
    struct ggml_tensor* inputs[4] = {NULL};
    struct ggml_tensor* result = (attend ? attention : append)(context, a, inputs);
    if (!ggml_backend_supports_op(backend, result))
        return 0;
    ggml_build_forward_expand(graph, result);
    if (!attend) { // K, and V in a dispatch of its own
        struct ggml_tensor* second[4] = {NULL};
        ggml_build_forward_expand(graph, append(context, a, second));
        inputs[3] = second[2];
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
    if (!buffer)
        return 0;
    for (int i = 0; i < 4; i++)
        if (inputs[i])
            fill(inputs[i], attend && i == 3 ? 0 : 1);
    double* samples = malloc((size_t)count * sizeof(double));
    for (long i = -before; i < count; i++) {
        double start = now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS)
            exit(1);
        if (i >= 0)
            samples[i] = now() - start;
    }
    qsort(samples, (size_t)count, sizeof(double), compare);
    double median = samples[count / 2];
    free(samples);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    return median;
}

int main(int argc, char** argv) {
    long a[7] = {0}; // as in the usage, and V_DIM
    if (argc == 7 && strcmp(argv[1], "case") == 0) {
        for (int i = 2; i < argc; i++)
            a[i - 2] = atol(argv[i]);
        return print_case(a);
    }
    bool attend = argc == 10 && strcmp(argv[3], "attention") == 0;
    if (!attend && !(argc == 9 && strcmp(argv[3], "append") == 0)) {
        fprintf(stderr, "usage: see the head of ggml_ops.c\n");
        return 2;
    }
    for (int i = 4; i < argc; i++)
        a[i - 4] = atol(argv[i]);
    if (attend && strchr(argv[6], '/'))
        a[6] = atol(strchr(argv[6], '/') + 1);
    long repetitions = a[argc - 5];
    ggml_backend_load_all_from_path(argv[1]);
    ggml_backend_dev_t device = ggml_backend_dev_by_name(argv[2]);
    ggml_backend_t backend = device ? ggml_backend_dev_init(device, NULL) : NULL;
    if (!backend || repetitions < 1) {
        fprintf(stderr, "ggml_ops: %s\n", backend ? "no repetitions" : "there is no such device");
        return 3;
    }
    ggml_backend_set_n_threads_t setThreads =
        (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (setThreads)
        setThreads(backend, (int)sysconf(_SC_NPROCESSORS_ONLN));
    if (attend && repetitions == 1) {
        long small[7] = {a[0], a[1], a[2], a[3] < 1024 ? a[3] : 1024, a[4] < 256 ? a[4] : 256, 1, a[6]};
        measure(backend, true, small, 0, 1);
    }
    double median = measure(backend, attend, a, repetitions == 1 ? 0 : 2, repetitions);
    if (median == 0) {
        fprintf(stderr, "ggml_ops: %s does not do this\n", argv[2]);
        return 4;
    }
    printf("%.9f\n", median);
    fflush(stdout);
    _Exit(0); // the back ends' own tear-down is not what is measured
}

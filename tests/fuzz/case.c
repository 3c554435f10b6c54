// Attention case files, and the safetensors files that they are: the input is the file. A case that is whole is turned
// into what the device would get.
#include "fuzz_bench.h"

#include "case_inputs.h"
#include "problem.h"

static struct {
    const uint8_t* data;
    size_t size;
} file;

FILE* fuzzOpen(const char* path, const char* mode) {
    (void)path;
    return fmemopen((void*)file.data, file.size, mode);
}

static volatile uint8_t sink; // what is read is used

// Reads every element, which the file has promised to hold.
static void readAll(const CaseFile* c) {
    const Tensor* tensors[] = {c->q, c->k, c->v, c->out, c->lse, c->alibiSlopes, c->sinks, c->mask};
    uint8_t sum = 0;
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++)
        for (uint64_t at = 0; tensors[i] && at < tensors[i]->end - tensors[i]->begin; at++)
            sum += tensors[i]->data[at];
    sink = sum;
    for (uint32_t b = 0; b < c->batch; b++) {
        int32_t queries = intAt(c->cuSeqlensQ, b + 1) - intAt(c->cuSeqlensQ, b);
        int32_t tokens = intAt(c->cuSeqlensKv, b + 1) - intAt(c->cuSeqlensKv, b);
        REQUIRE(queries >= 0 && (uint32_t)queries <= c->longestQ && tokens >= 0 && (uint32_t)tokens <= c->longestKv,
                "sequence %u has %d query tokens and %d tokens", b, queries, tokens);
    }
    if (c->mask)
        REQUIRE(c->mask->count == (uint64_t)c->totalQ * c->longestKv, "a mask of %llu",
                (unsigned long long)c->mask->count);
}

static void prepare(const CaseFile* c) {
    static Options options = {.device = (char*)"0"};
    static Session session = {.options = &options, .trusted = true};
    if (!session.device)
        REQUIRE(openSession(&session, NULL, 0) == BENCH_OK, "no device");
    Problem problem;
    if (createCaseProblem(&session, c, &problem) != BENCH_OK)
        return;
    CaseView view = {c, &problem};
    ReferenceProblem reference = caseReference(&view);
    float row[1024];
    for (uint32_t b = 0; b < problem.batch; b++)
        for (uint32_t p = 0; p < (uint32_t)(intAt(c->cuSeqlensKv, b + 1) - intAt(c->cuSeqlensKv, b)); p++) {
            reference.readK(reference.user, b, c->numHeadsKv - 1, p, row);
            reference.readV(reference.user, b, c->numHeadsKv - 1, p, row);
        }
    for (uint32_t t = 0; t < c->totalQ; t++)
        reference.readQ(reference.user, t, c->numHeadsQ - 1, row);
    destroyProblem(&problem);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    CaseFile c;
    if (size == 0)
        return 0; // fmemopen wants a byte
    file.data = data;
    file.size = size;
    failCount = 0;
    BenchResult result = readCaseFile("FILE", &c);
    REQUIRE(result == BENCH_OK ? !failCount : failCount == 1, "result %d with %u messages", result, failCount);
    if (result != BENCH_OK)
        return 0;
    REQUIRE(c.qDtype && c.kDtype && c.vDtype && c.kType && c.vType && c.batch, "half a case");
    readAll(&c);
    if (checkCaseSupported(&c) == BENCH_OK)
        prepare(&c);
    freeCaseFile(&c);
    return 0;
}

// The suite cannot be fooled: wrong outputs are rejected, drivers that execute nothing are refused, a
// driver that loses part of the work fails the tests and the library's own known-answer test.
#define _DEFAULT_SOURCE // setenv
#include "compare.h"
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// ---- The comparison rejects what is wrong -------------------------------------------------------

// A right output to spoil: 3 sequences (one of them empty), 4 heads.
typedef struct Sample {
    int32_t cu[4], tokens[3];
    float *q, *k, *v, *plain, *plainLse, *got, *gotLse;
    double *out, *lse;
    size_t count, rows;
    CompareTensor tensor, lseTensor;
} Sample;

enum { HEADS = 4, DIM = 32 };

static Sample sampleCreate(OracleType type) {
    Sample sample = {.cu = {0, 3, 3, 4}, .tokens = {40, 7, 200}};
    Random random = {5};
    float* tensors[3];
    size_t sizes[3] = {4 * HEADS * DIM, 247 * DIM, 247 * DIM};
    for (int i = 0; i < 3; i++) {
        tensors[i] = malloc(sizes[i] * sizeof(float));
        for (size_t j = 0; j < sizes[i]; j++)
            tensors[i][j] = randomNormal(&random);
        oracleRound(type, tensors[i], sizes[i]);
    }
    sample.q = tensors[0];
    sample.k = tensors[1];
    sample.v = tensors[2];
    sample.rows = 4 * HEADS;
    sample.count = sample.rows * DIM;
    sample.out = calloc(sample.count, sizeof(double));
    sample.lse = calloc(sample.rows, sizeof(double));
    sample.plain = calloc(sample.count, sizeof(float));
    sample.plainLse = calloc(sample.rows, sizeof(float));
    sample.got = malloc(sample.count * sizeof(float));
    sample.gotLse = malloc(sample.rows * sizeof(float));
    return sample;
}

// Fills the pointers, which must point into the sample's final place.
static void sampleCompute(Sample* sample, OracleType type) {
    OracleProblem problem = {.batch = 3,
                             .numHeadsQ = HEADS,
                             .numHeadsKv = 1,
                             .headDimQk = DIM,
                             .headDimV = DIM,
                             .cuSeqlensQ = sample->cu,
                             .seqLensKv = sample->tokens,
                             .q = sample->q,
                             .k = sample->k,
                             .v = sample->v};
    oracleAttention(&problem, sample->out, sample->lse);
    oraclePlainAttention(&problem, sample->plain, sample->plainLse);
    memcpy(sample->got, sample->plain, sample->count * sizeof(float));
    memcpy(sample->gotLse, sample->plainLse, sample->rows * sizeof(float));
    oracleRound(type, sample->got, sample->count);
    sample->tensor = (CompareTensor){.batch = 3,
                                     .numHeads = HEADS,
                                     .width = DIM,
                                     .cuSeqlensQ = sample->cu,
                                     .reference = sample->out,
                                     .plain = sample->plain,
                                     .got = sample->got,
                                     .type = type,
                                     .maxNmse = compareMaxNmse(type, type, type)};
    sample->lseTensor = sample->tensor;
    sample->lseTensor.width = 1;
    sample->lseTensor.reference = sample->lse;
    sample->lseTensor.plain = sample->plainLse;
    sample->lseTensor.got = sample->gotLse;
}

static void sampleDestroy(Sample* sample) {
    void* all[] = {sample->q,        sample->k,   sample->v,      sample->plain, sample->out,
                   sample->plainLse, sample->got, sample->gotLse, sample->lse};
    for (size_t i = 0; i < COUNT(all); i++)
        free(all[i]);
}

typedef void (*Spoil)(Sample* sample);

static float fromBits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void spoilNothing(Sample* sample) { (void)sample; }
static void spoilOneNan(Sample* sample) { sample->got[77] = NAN; }
static void spoilAllZero(Sample* sample) { memset(sample->got, 0, sample->count * sizeof(float)); }
static void spoilOneRowZero(Sample* sample) { memset(sample->got + 5 * DIM, 0, DIM * 4); }
static void spoilOneElement(Sample* sample) { sample->got[200] += 1e-2f; }
static void spoilInfinity(Sample* sample) { sample->got[3] = INFINITY; }
static void spoilHugeRow(Sample* sample) { sample->got[DIM] = 3e38f; }
static void spoilSmallBias(Sample* sample) {
    for (size_t i = 0; i < sample->count; i++)
        sample->got[i] += 2e-3f;
}
static void spoilLongerSoftmax(Sample* sample) { // as if one more token of value zero were seen
    for (size_t i = 0; i < sample->count; i++)
        sample->got[i] *= 199.0f / 200;
}
static void spoilSwappedHeads(Sample* sample) {
    float row[DIM];
    memcpy(row, sample->got, sizeof(row));
    memcpy(sample->got, sample->got + DIM, sizeof(row));
    memcpy(sample->got + DIM, row, sizeof(row));
}
static void spoilUntouched(Sample* sample) {
    sample->got[12 * DIM] = sample->tensor.type == ORACLE_F32
                                ? fromBits(COMPARE_POISON)
                                : oracleF32FromF16(COMPARE_POISON & 0xFFFF);
}
static void spoilLseNan(Sample* sample) { sample->gotLse[2] = NAN; }
static void spoilLseUntouched(Sample* sample) { sample->gotLse[2] = fromBits(COMPARE_POISON); }
static void spoilLseOff(Sample* sample) { sample->gotLse[9] += 1e-3f; }
static void spoilLseBase2(Sample* sample) { sample->gotLse[0] *= 1.442695f; }
static void spoilLseMinusInfinity(Sample* sample) { sample->gotLse[0] = -INFINITY; }

static void wrongOutputsAreRejected(void** state) {
    (void)state;
    static const struct {
        const char* name;
        Spoil spoil;
        const char* text; // what the explanation has to contain; null: the output is right
    } cases[] = {
        {"nothing", spoilNothing, NULL},
        {"one NaN", spoilOneNan, "NaN"},
        {"all zero", spoilAllZero, "max |O-R|"},
        {"one row zero", spoilOneRowZero, "sequence 0, head 1"},
        {"one element off by 1e-2", spoilOneElement, "sequence 0, head 2"},
        {"infinity", spoilInfinity, "max |O-R|"},
        {"3e38", spoilHugeRow, "max |O-R|"},
        {"bias of 2e-3", spoilSmallBias, "|O-R|"},
        {"one token too many", spoilLongerSoftmax, "O"},
        {"swapped heads", spoilSwappedHeads, "sequence 0, head 0"},
        {"untouched", spoilUntouched, "never written"},
        {"lse NaN", spoilLseNan, "lse of"},
        {"lse untouched", spoilLseUntouched, "never written"},
        {"lse off by 1e-3", spoilLseOff, "lse of"},
        {"lse in base 2", spoilLseBase2, "lse of"},
        {"lse -inf", spoilLseMinusInfinity, "lse of"},
    };
    for (int type = ORACLE_F32; type <= ORACLE_F16; type++) {
        for (size_t i = 0; i < COUNT(cases); i++) {
            Sample sample = sampleCreate((OracleType)type);
            sampleCompute(&sample, (OracleType)type);
            cases[i].spoil(&sample);
            CompareResult out = compareOut(&sample.tensor);
            CompareResult lse = compareLse(&sample.lseTensor);
            const char* text = out.right ? lse.text : out.text;
            if (cases[i].text ? !strstr(text, cases[i].text) : !out.right || !lse.right)
                fail_msg("%s, %s: out %s, lse %s, text \"%s\"", cases[i].name,
                         oracleTypeName((OracleType)type), out.right ? "right" : "wrong",
                         lse.right ? "right" : "wrong", text);
            sampleDestroy(&sample);
        }
    }
}

// A row that attends nothing has to be zeros and -inf, whatever its group is allowed.
static void emptyRowsAreExact(void** state) {
    (void)state;
    const int32_t cu[2] = {0, 2};
    const double out[4] = {0, 0, 1, 2}, lse[2] = {-INFINITY, 1};
    const float plain[4] = {0, 0, 1.5f, 2}, plainLse[2] = {-INFINITY, 1.5f};
    float got[4] = {0, 0, 1, 2}, gotLse[2] = {-INFINITY, 1};
    CompareTensor tensor = {.batch = 1,
                            .numHeads = 1,
                            .width = 2,
                            .cuSeqlensQ = cu,
                            .reference = out,
                            .plain = plain,
                            .got = got,
                            .maxNmse = 1};
    CompareTensor lseTensor = tensor;
    lseTensor.width = 1;
    lseTensor.reference = lse;
    lseTensor.plain = plainLse;
    lseTensor.got = gotLse;
    assert_true(compareOut(&tensor).right && compareLse(&lseTensor).right);
    got[1] = 1e-7f;
    gotLse[0] = -3e38f;
    assert_false(compareOut(&tensor).right);
    assert_false(compareLse(&lseTensor).right);
}

// A right cache of every type, then one thing wrong with it.
static void wrongCachesAreRejected(void** state) {
    (void)state;
    enum { TOKENS = 5, WIDTH = 40 };
    static const int32_t slots[TOKENS] = {3, 0, -1, 6, 5};
    for (int type = ORACLE_F32; type < ORACLE_TYPE_COUNT; type++) {
        const OracleCache cache = {(OracleType)type, 2, 1, 4, WIDTH, NULL};
        size_t size = oracleCacheBytes(&cache);
        uint8_t* before = malloc(size);
        uint8_t* got = malloc(size);
        float values[TOKENS * WIDTH];
        Random random = {6};
        for (size_t i = 0; i < size; i++)
            before[i] = (uint8_t)randomBelow(&random, 256);
        for (int i = 0; i < TOKENS * WIDTH; i++)
            values[i] = randomNormal(&random);
        CompareCache compare = {.cache = cache,
                                .values = values,
                                .slots = slots,
                                .tokens = TOKENS,
                                .before = before,
                                .got = got};
        // Bytes of a written row, of a skipped one, of one that nobody named, behind a row's elements.
        const size_t row = oracleRowOffset(&cache, 6, 0), data = oracleRowDataBytes(&cache);
        const size_t spoiled[] = {row, row + data - 1, oracleRowOffset(&cache, 1, 0), size - 1,
                                  oracleTypeHasBlocks(cache.type) ? oracleScaleOffset(&cache, 6, 0)
                                                                  : row + data / 2};
        for (int byValue = 0; byValue < 2; byValue++) {
            compare.byValue = byValue;
            memcpy(got, before, size);
            oracleAppend(&cache, got, NULL, values, slots, TOKENS);
            CompareResult right = compareCache(&compare);
            if (!right.right)
                fail_msg("%s, by %s: %s", oracleTypeName(cache.type), byValue ? "value" : "byte",
                         right.text);
            for (size_t i = 0; i < COUNT(spoiled); i++) {
                // By value a code's lowest bit, or a scale's, is within the allowance; the top one is not.
                uint8_t bit = byValue && spoiled[i] != row + data / 2 ? 0x88 : 0x01;
                if (byValue && i == COUNT(spoiled) - 1)
                    continue;
                if (byValue && i == 0 && type < ORACLE_FP8)
                    continue; // the low byte of an element
                got[spoiled[i]] ^= bit;
                if (compareCache(&compare).right)
                    fail_msg("%s, by %s: spoiled byte %zu was not noticed",
                             oracleTypeName(cache.type), byValue ? "value" : "byte", spoiled[i]);
                got[spoiled[i]] ^= bit;
            }
        }
        free(before);
        free(got);
    }
}

static void wrongRotationsAreRejected(void** state) {
    (void)state;
    float expected[2 * 32], got[2 * 32];
    Random random = {7};
    for (int i = 0; i < 64; i++)
        expected[i] = got[i] = randomNormal(&random);
    assert_true(compareRows(ORACLE_F32, expected, got, 2, 32, false).right);
    got[40] += 2e-5f;
    assert_false(compareRows(ORACLE_F32, expected, got, 2, 32, false).right);
    assert_false(compareRows(ORACLE_F32, expected, got, 2, 32, true).right);
    assert_true(compareRows(ORACLE_F16, expected, got, 2, 32, false).right ||
                fabsf(expected[40]) < 0.02f);
    got[40] = NAN;
    assert_false(compareRows(ORACLE_F16, expected, got, 2, 32, false).right);
}

// ---- Faulty drivers -----------------------------------------------------------------------------

// Children are forked before anything of Vulkan is opened here, each with an environment of its own.
typedef struct Child {
    const char* layer;   // VKMQA_LAYER; null: without the tests' layer
    const char* drivers; // another driver's manifest, or null
    int (*run)(void);    // its exit code
} Child;

static int childExit(const Child* child) {
    fflush(stdout);
    pid_t process = fork();
    if (process == 0) {
        // Its failures are the expected outcome: not to be mistaken for the test's own.
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(99);
        if (child->layer)
            setenv("VKMQA_LAYER", child->layer, 1);
        else
            unsetenv("VK_INSTANCE_LAYERS");
        if (child->drivers) {
            setenv("VK_ICD_FILENAMES", child->drivers, 1);
            setenv("VK_DRIVER_FILES", child->drivers, 1);
        }
        _exit(child->run());
    }
    int status = 0;
    waitpid(process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Append, attention and merge: three dispatches in one command buffer.
static void oneProblem(void** state) {
    (void)state;
    const Model model = {.numHeadsQ = 4,
                         .numHeadsKv = 1,
                         .headDimQk = 64,
                         .headDimV = 64,
                         .pageSize = 16,
                         .causal = true,
                         .splitSize = 64,
                         .maxSeqLenKv = 512};
    const Batch batch = {.count = 1, .sequences = {{1, 300}}, .append = true};
    Problem problem = problemCreate(&model, &batch, 1, true);
    VkmqaAttention attention;
    REQUIRE(attentionCreate(&model, VKMQA_TIER_AUTO, &attention));
    runProblem(attention, &problem, "one problem");
    vkmqaDestroyAttention(attention);
    problemDestroy(&problem);
}

static int openAndRun(void) {
    harnessOpen();
    const struct CMUnitTest tests[] = {cmocka_unit_test(oneProblem)};
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}

// 0: verification passed an object; 1: it refused every kernel, as it should; 2: something else.
static int openAndVerify(void) {
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open),
                                      .selector = getenv("VKMQA_TEST_DEVICE"),
                                      .messageCallback = harnessMessage};
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info),
                                           .numHeadsQ = 8,
                                           .numHeadsKv = 1,
                                           .headDimQk = 64,
                                           .pageSize = 16};
    VkmqaDevice device;
    VkmqaAttention attention;
    if (vkmqaOpenDevice(&open, &device) != VK_SUCCESS)
        return HARNESS_SKIPPED;
    VkResult result = vkmqaDeviceCreateAttention(device, &info, &attention);
    return result == VK_SUCCESS ? 0 : result == VK_ERROR_FEATURE_NOT_PRESENT ? 1 : 2;
}

static void lostWorkIsNoticed(void** state) {
    (void)state;
    if (childExit(&(Child){.run = openAndRun}) == HARNESS_SKIPPED)
        skip();
    // The layer itself disturbs nothing, so what follows is due to the faults.
    assert_int_equal(childExit(&(Child){.layer = "pass", .run = openAndRun}), 0);
    assert_int_equal(childExit(&(Child){.layer = "pass", .run = openAndVerify}), 0);
    assert_int_equal(childExit(&(Child){.layer = "lose:dispatch", .run = openAndRun}), HARNESS_REFUSED);
    assert_int_equal(childExit(&(Child){.layer = "lose:submit", .run = openAndRun}), HARNESS_REFUSED);
    assert_int_equal(childExit(&(Child){.layer = "lose:second", .run = openAndRun}), 1);
    assert_int_equal(childExit(&(Child){.layer = "lose:dispatch", .run = openAndVerify}), 1);
    assert_int_equal(childExit(&(Child){.layer = "lose:second", .run = openAndVerify}), 1);
    assert_int_equal(childExit(&(Child){.layer = "lose:submit", .run = openAndVerify}), 1);
}

// VKMQA_TEST_NULL_DRIVERS: manifests of drivers known to execute nothing, divided by colons. The library
// may turn them down by itself; then the tests are skipped, which is no pass either.
static void driversThatExecuteNothingAreRefused(void** state) {
    (void)state;
    const char* list = getenv("VKMQA_TEST_NULL_DRIVERS");
    if (!list || !*list)
        skip();
    int refused = 0;
    char drivers[4096];
    snprintf(drivers, sizeof(drivers), "%s", list);
    for (char* one = strtok(drivers, ":"); one; one = strtok(NULL, ":")) {
        if (access(one, R_OK) != 0) {
            print_message("not at hand: %s\n", one);
            continue;
        }
        int code = childExit(&(Child){.drivers = one, .run = openAndRun});
        if (code != HARNESS_REFUSED && code != HARNESS_SKIPPED)
            fail_msg("%s: exit code %d", one, code);
        refused++;
    }
    if (refused == 0)
        skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrongOutputsAreRejected),
        cmocka_unit_test(emptyRowsAreExact),
        cmocka_unit_test(wrongCachesAreRejected),
        cmocka_unit_test(wrongRotationsAreRejected),
        cmocka_unit_test(lostWorkIsNoticed),
        cmocka_unit_test(driversThatExecuteNothingAreRefused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

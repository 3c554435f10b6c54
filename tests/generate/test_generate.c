// samples/generate against a forward pass in f64, on held-out text; rollback, seeds, and files that are no model.
// SPDX-License-Identifier: MIT
#define _POSIX_C_SOURCE 200809L // mkdtemp
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "generate.h"
#include "reference.h"

#define MODEL_PATH VKMQA_GENERATE_DIR "/model.safetensors"
#define TEXT_PATH VKMQA_GENERATE_DIR "/held_out.txt"

enum { SCORED_BYTES = 4 * 256 + 1, LONG_BYTES = 400 }; // with VKMQA_TEST_LONG the whole text is scored

static struct {
    uint8_t* text;
    uint8_t* file; // the model's bytes
    size_t textSize, fileSize, scored;
    Weights weights;
    Reference reference;
    double referenceLoss;
    char badPath[64];
} world;

static uint8_t* readBytes(const char* path, size_t* size) {
    FILE* stream = fopen(path, "rb");
    assert_non_null(stream);
    uint8_t* bytes = malloc(1 << 23);
    *size = fread(bytes, 1, 1 << 23, stream);
    fclose(stream);
    return bytes;
}

static int setUp(void** state) {
    (void)state;
    Error error = {""};
    world.text = readBytes(TEXT_PATH, &world.textSize);
    world.file = readBytes(MODEL_PATH, &world.fileSize);
    assert_true(world.textSize > SCORED_BYTES);
    world.scored = getenv("VKMQA_TEST_LONG") ? world.textSize : SCORED_BYTES;
    if (!weightsRead(MODEL_PATH, &world.weights, &error))
        fail_msg("%s", error.text);
    assert_true(referenceRead(MODEL_PATH, &world.reference));
    assert_int_equal(world.reference.layers, world.weights.numLayers);
    world.referenceLoss = referenceLoss(&world.reference, world.text, world.scored);
    print_message("f64: loss %.5f, perplexity %.4f\n", world.referenceLoss, exp(world.referenceLoss));
    return 0;
}

static int tearDown(void** state) {
    (void)state;
    free(world.text);
    free(world.file);
    weightsFree(&world.weights);
    referenceFree(&world.reference);
    return 0;
}

static void openModel(Model* model, VkmqaType type, uint32_t maxTokens) {
    Error error;
    const ModelOptions options = {.kvType = type, .maxTokens = maxTokens, .window = world.weights.context};
    if (!modelOpen(model, &world.weights, &options, &error))
        fail_msg("%s", error.text);
}
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            fail_msg("%s: %s", #call, error.text);                                                                     \
    } while (0)

// An untrained model would agree with the reference as well: the text must have become likely.
static void theModelHasLearnt(void** state) {
    (void)state;
    assert_true(world.referenceLoss < 1.6); // bytes at random: 5.5; at the frequencies of the text: 3.2
    assert_true(world.weights.heldOutLoss > 0);
    assert_true(fabs(world.referenceLoss - world.weights.heldOutLoss) < 0.15);
}

// What a cache type may change the perplexity by, as a fraction of the reference's. Beyond f32 and f16 the bounds are
// three to four times what was measured.
static void perplexityIsTheReferences(void** state) {
    (void)state;
    static const struct {
        VkmqaType type;
        const char* name;
        double bound;
    } types[] = {{VKMQA_TYPE_F32, "f32", 1e-5},        {VKMQA_TYPE_F16, "f16", 1e-3},
                 {VKMQA_TYPE_BF16, "bf16", 3e-3},      {VKMQA_TYPE_Q8_0, "q8_0", 3e-3},
                 {VKMQA_TYPE_FP8_E4M3, "fp8", 1.5e-2}, {VKMQA_TYPE_Q4_0, "q4_0", 6e-2}};
    double f32 = 0;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        Model model;
        Error error;
        double loss;
        size_t scored;
        openModel(&model, types[i].type, world.weights.context);
        size_t bytesPerToken = model.bytesPerToken;
        MUST(measureLoss(&model, world.text, world.scored, world.weights.context, MAX_STEP, &loss, &scored, &error));
        modelClose(&model);
        double off = exp(loss - world.referenceLoss) - 1;
        print_message("%-5s loss %.5f, perplexity %.4f, off by %+.4f %%, %zu bytes per token\n", types[i].name, loss,
                      exp(loss), off * 100, bytesPerToken);
        assert_int_equal(scored, (world.scored - 1) / world.weights.context * world.weights.context);
        if (!(fabs(off) <= types[i].bound))
            fail_msg("%s: perplexity is off by %g of itself; bound %g", types[i].name, off, types[i].bound);
        f32 = i ? f32 : loss;
        if (types[i].type == VKMQA_TYPE_Q4_0)
            assert_true(loss != f32); // the type has an effect at all
    }
}

// Token by token, as generation goes.
static void decodingScoresLikePrefill(void** state) {
    (void)state;
    Model model;
    Error error;
    double loss;
    size_t scored;
    uint32_t context = world.weights.context;
    openModel(&model, VKMQA_TYPE_F32, context);
    MUST(measureLoss(&model, world.text, context + 1, context, 1, &loss, &scored, &error));
    modelClose(&model);
    double expected = referenceLoss(&world.reference, world.text, context + 1);
    if (!(fabs(loss - expected) < 1e-5))
        fail_msg("token by token the loss is %.7f, by the reference %.7f", loss, expected);
}

// Past the context of the training: the window slides, in steps of any size.
static void logitsAreTheReferences(void** state) {
    (void)state;
    static const uint32_t steps[] = {MAX_STEP, 100, 1, 1, LONG_BYTES - MAX_STEP - 102};
    double* expected = malloc(sizeof(double) * LONG_BYTES * VOCABULARY);
    float* logits = malloc(sizeof(float) * MAX_STEP * VOCABULARY);
    referenceLogits(&world.reference, world.text, LONG_BYTES, world.weights.context, expected);
    Model model;
    Error error;
    openModel(&model, VKMQA_TYPE_F32, LONG_BYTES);
    double worst = 0;
    for (uint32_t i = 0, done = 0; i < sizeof(steps) / sizeof(steps[0]); done += steps[i++]) {
        MUST(modelForward(&model, world.text + done, steps[i], steps[i], logits, &error));
        for (size_t e = 0; e < (size_t)steps[i] * VOCABULARY; e++)
            worst = fmax(worst, fabs((double)logits[e] - expected[(size_t)done * VOCABULARY + e]));
    }
    assert_int_equal(model.length, LONG_BYTES);
    // The last of them again, by a prompt of several steps.
    MUST(modelTruncate(&model, 0, &error));
    MUST(prefill(&model, world.text, LONG_BYTES, logits, &error));
    for (size_t e = 0; e < VOCABULARY; e++)
        worst = fmax(worst, fabs((double)logits[e] - expected[(LONG_BYTES - 1) * VOCABULARY + e]));
    modelClose(&model);
    free(logits);
    free(expected);
    print_message("logits of %d tokens differ by at most %.1e\n", LONG_BYTES, worst);
    assert_true(worst < 1e-3);
}

enum { PROMPT = 90, MORE = 80, KEPT = 37 };

static void rolledBackItSaysTheSame(void** state) {
    (void)state;
    static const VkmqaType types[] = {VKMQA_TYPE_F16, VKMQA_TYPE_Q4_0};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        Model model;
        Error error;
        Sampler sampler = {0.8, 7};
        float first[VOCABULARY], logits[VOCABULARY];
        uint8_t text[MORE], again[MORE], rest[MORE], other[MORE];
        openModel(&model, types[i], PROMPT + MORE);
        MUST(prefill(&model, world.text, PROMPT, first, &error));
        memcpy(logits, first, sizeof(logits));
        MUST(generate(&model, &sampler, logits, MORE, text, NULL, &error));

        // Something else is said in between, so that the cache holds other rows behind the prompt.
        MUST(modelTruncate(&model, PROMPT, &error));
        memcpy(logits, first, sizeof(logits));
        sampler = (Sampler){0.8, 8};
        MUST(generate(&model, &sampler, logits, MORE, other, NULL, &error));
        assert_memory_not_equal(text, other, MORE);

        MUST(modelTruncate(&model, PROMPT, &error));
        memcpy(logits, first, sizeof(logits));
        sampler = (Sampler){0.8, 7};
        MUST(generate(&model, &sampler, logits, MORE, again, NULL, &error));
        assert_memory_equal(text, again, MORE);

        // To the middle of what was said: the last kept byte is given again, for its logits.
        sampler = (Sampler){0.8, 7};
        for (int skipped = 0; skipped < KEPT; skipped++)
            sampleByte(&sampler, first); // as many random numbers as before
        MUST(modelTruncate(&model, PROMPT + KEPT - 1, &error));
        MUST(modelForward(&model, text + KEPT - 1, 1, 1, logits, &error));
        MUST(generate(&model, &sampler, logits, MORE - KEPT, rest, NULL, &error));
        assert_memory_equal(text + KEPT, rest, MORE - KEPT);

        // Beyond its end is an error that says so, and changes nothing.
        uint32_t length = model.length;
        assert_false(modelTruncate(&model, length + 1, &error));
        assert_non_null(strstr(error.text, "length"));
        assert_int_equal(model.length, length);
        modelClose(&model);
    }
}

static void misuseIsAnError(void** state) {
    (void)state;
    Model model;
    Error error;
    float logits[VOCABULARY];
    openModel(&model, VKMQA_TYPE_F16, 64); // a page
    MUST(prefill(&model, world.text, 64, logits, &error));
    assert_false(modelForward(&model, world.text, 1, 1, logits, &error));
    assert_non_null(strstr(error.text, "maxSeqLenKv is 64"));
    assert_false(prefill(&model, world.text, 0, logits, &error));
    assert_non_null(strstr(error.text, "empty"));
    modelClose(&model);
}

// ---- files ----

static void writeBad(const uint8_t* bytes, size_t size) {
    FILE* stream = fopen(world.badPath, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    assert_int_equal(fclose(stream), 0);
}

// Reading the bad file fails and says all of the texts.
static void refused(const char* const texts[3]) {
    Weights weights;
    Error error = {""};
    if (weightsRead(world.badPath, &weights, &error))
        fail_msg("a file was read that has to be refused with '%s'", texts[0]);
    print_message("%s\n", error.text);
    assert_non_null(strstr(error.text, world.badPath));
    for (int i = 0; i < 3 && texts[i]; i++)
        if (!strstr(error.text, texts[i]))
            fail_msg("'%s' does not say '%s'", error.text, texts[i]);
    assert_null(weights.data);
}

// The model's file with a text of its header exchanged for another of the same length.
static void writeExchanged(const char* from, const char* to) {
    uint8_t* bytes = malloc(world.fileSize);
    size_t length = strlen(from), at = 8;
    memcpy(bytes, world.file, world.fileSize);
    assert_int_equal(strlen(to), length);
    while (at < world.fileSize - length && memcmp(bytes + at, from, length) != 0)
        at++;
    assert_true(at < world.fileSize - length);
    memcpy(bytes + at, to, length);
    writeBad(bytes, world.fileSize);
    free(bytes);
}

static void badFilesAreRefused(void** state) {
    (void)state;
    size_t header = world.file[0] | (size_t)world.file[1] << 8 | (size_t)world.file[2] << 16;
    static const struct {
        const char *from, *to, *texts[3];
    } exchanges[] = {
        {"layers.1.attention.k.weight\": {\"dtype\": \"F16\", \"shape\": [32, 160]",
         "layers.1.attention.k.weight\": {\"dtype\": \"F16\", \"shape\": [32, 161]",
         {"layers.1.attention.k.weight", "[32, 161]", "[32, 160]"}},
        {"layers.2.mlp_norm.weight\": {\"dtype\": \"F16\", \"shape\": [160]",
         "layers.2.mlp_norm.weight\": {\"dtype\": \"F16\", \"shape\": [320]",
         {"layers.2.mlp_norm.weight", "[320]", "[160]"}},
        {"layers.3.mlp.down.weight", "layers.3.mlp.DOWN.weight", {"layers.3.mlp.down.weight", "missing"}},
        {"layers.3.attention_norm.weight", "layers.3.attention_NORM.weight", {"layers.3.", "3 layers"}},
        {"norm.weight\": {\"dtype\": \"F16\"", "norm.weight\": {\"dtype\": \"I16\"",
         {"layers.0.attention_norm.weight", "I16", "F16, BF16 or F32"}},
        {"\"num_heads_kv\": \"1\"", "\"num_heads_kv\": \"3\"", {"num_heads_q", "8", "3"}},
        {"\"num_heads_q\": \"8\"", "\"num_heads_q\": \"x\"", {"num_heads_q", "'x'"}},
        {"\"num_heads_q\": \"8\"", "\"num_heads_Q\": \"8\"", {"num_heads_q", "train.py"}},
        {"\"context\": \"256\"", "\"context\": \"2.5\"", {"context", "2.5", "whole number"}},
        {"\"data_offsets\": [0, 81920]", "\"data_offsets\": [0, 81922]", {"embedding.weight", "81920 bytes"}},
        {"\"data_offsets\": [0, 81920]", "\"data_offsets\": [-2,81918]", {"embedding.weight", "data_offsets"}},
    };
    for (size_t i = 0; i < sizeof(exchanges) / sizeof(exchanges[0]); i++) {
        writeExchanged(exchanges[i].from, exchanges[i].to);
        refused(exchanges[i].texts);
    }
    const size_t sizes[] = {0, 7, 100, 8 + header - 1, 8 + header, 8 + header + 5000, world.fileSize - 1};
    const char* const texts[][3] = {{"0 bytes"},   {"7 bytes"},
                                    {"truncated"}, {"truncated"},
                                    {"truncated", "embedding.weight"}, {"truncated", "embedding.weight"},
                                    {"truncated"}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        writeBad(world.file, sizes[i]);
        refused(texts[i]);
    }
    writeBad((const uint8_t*)"\10\0\0\0\0\0\0\0{\"a\": 1]", 16);
    refused((const char* const[3]){"JSON"});
    uint8_t* bytes = malloc(world.fileSize);
    memcpy(bytes, world.file, world.fileSize);
    bytes[8 + header + 100] = 0x00; // element 50 of the embedding: an infinity
    bytes[8 + header + 101] = 0x7C;
    writeBad(bytes, world.fileSize);
    refused((const char* const[3]){"element 50", "embedding.weight", "finite"});
    free(bytes);
    unlink(world.badPath);
    refused((const char* const[3]){"cannot be opened"});
    // Nothing of the above is refused for being a copy.
    writeBad(world.file, world.fileSize);
    Weights weights;
    Error error = {""};
    MUST(weightsRead(world.badPath, &weights, &error));
    weightsFree(&weights);
    unlink(world.badPath);
}

static void likelyBytesAreSampledOften(void** state) {
    (void)state;
    float logits[VOCABULARY];
    uint32_t counts[VOCABULARY] = {0};
    for (uint32_t i = 0; i < VOCABULARY; i++)
        logits[i] = -100;
    logits['a'] = logf(6), logits['b'] = logf(3), logits['c'] = 0; // at temperature 1: 0.6, 0.3, 0.1
    Sampler sampler = {1, 3};
    for (uint32_t i = 0; i < 100000; i++)
        counts[sampleByte(&sampler, logits)]++;
    assert_in_range(counts['a'], 59000, 61000);
    assert_in_range(counts['b'], 29000, 31000);
    assert_int_equal(counts['a'] + counts['b'] + counts['c'], 100000);
    sampler.temperature = 0.5; // squares: 36, 9, 1
    memset(counts, 0, sizeof(counts));
    for (uint32_t i = 0; i < 100000; i++)
        counts[sampleByte(&sampler, logits)]++;
    assert_in_range(counts['a'], 77300, 79300);
    sampler.temperature = 0;
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(sampleByte(&sampler, logits), 'a');
}

int main(void) {
    char folder[] = "/tmp/vkmqa-generate-XXXXXX";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(theModelHasLearnt),
        cmocka_unit_test(perplexityIsTheReferences),
        cmocka_unit_test(decodingScoresLikePrefill),
        cmocka_unit_test(logitsAreTheReferences),
        cmocka_unit_test(rolledBackItSaysTheSame),
        cmocka_unit_test(misuseIsAnError),
        cmocka_unit_test(badFilesAreRefused),
        cmocka_unit_test(likelyBytesAreSampledOften),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(world.badPath, sizeof(world.badPath), "%s/bad", folder);
    int failed = cmocka_run_group_tests(tests, setUp, tearDown);
    rmdir(folder);
    return failed != 0;
}

// The command line, and what was measured. The text goes to the standard output, everything else to the error output.
// SPDX-License-Identifier: MIT
#include "generate.h"

#include <errno.h>
#include <math.h>
#include <popt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    char *prompt, *kvType, *model, *perplexity, *device;
    int tokens, window, help;
    long long seed;
    double temperature;
} Options;

static const struct {
    const char* name;
    VkmqaType type;
} kvTypes[] = {{"f32", VKMQA_TYPE_F32},      {"f16", VKMQA_TYPE_F16},   {"bf16", VKMQA_TYPE_BF16},
               {"fp8", VKMQA_TYPE_FP8_E4M3}, {"q8_0", VKMQA_TYPE_Q8_0}, {"q4_0", VKMQA_TYPE_Q4_0}};

static bool findKvType(const char* name, VkmqaType* type, Error* error) {
    if (!name)
        return true; // the library's own default
    for (size_t i = 0; i < sizeof(kvTypes) / sizeof(kvTypes[0]); i++)
        if (strcmp(kvTypes[i].name, name) == 0) {
            *type = kvTypes[i].type;
            return true;
        }
    return explain(error, "--kv-type is '%s'; the types are f32, f16, bf16, fp8, q8_0 and q4_0", name);
}

static bool parseOptions(int argc, const char** argv, Options* options, Error* error) {
    struct poptOption table[] = {
        {"prompt", 0, POPT_ARG_STRING, &options->prompt, 0, "text to go on with (\":hack: n.\")", "TEXT"},
        {"tokens", 0, POPT_ARG_INT, &options->tokens, 0, "bytes to generate (400)", "N"},
        {"kv-type", 0, POPT_ARG_STRING, &options->kvType, 0,
         "type of the cache: f32, f16, bf16, fp8, q8_0, q4_0 (f16)", "TYPE"},
        {"seed", 0, POPT_ARG_LONGLONG, &options->seed, 0, "of the random choices; the same one gives the same text (1)",
         "N"},
        {"temperature", 0, POPT_ARG_DOUBLE, &options->temperature, 0, "0: always the likeliest byte (0.6)", "T"},
        {"window", 0, POPT_ARG_INT, &options->window, 0,
         "bytes back that are seen; 0: all (as many as in training)", "N"},
        {"model", 0, POPT_ARG_STRING, &options->model, 0, "weights (samples/generate/model.safetensors)", "FILE"},
        {"perplexity", 0, POPT_ARG_STRING, &options->perplexity, 0, "score a text instead of generating one", "FILE"},
        {"device", 0, POPT_ARG_STRING, &options->device, 0, "auto, an index, name:TEXT, uuid:HEX or type:KIND (auto)",
         "SPEC"},
        {"help", 'h', POPT_ARG_NONE, &options->help, 0, "print this text and end", NULL},
        POPT_TABLEEND};
    poptContext context = poptGetContext("generate", argc, argv, table, 0);
    poptSetOtherOptionHelp(context, "[OPTION...]\nText from a small transformer, with vkmqa's attention and cache.");
    int code = poptGetNextOpt(context);
    const char* operand = poptPeekArg(context);
    bool good = true;
    if (code < -1)
        good = explain(error, "%s: %s; --help lists the options", poptBadOption(context, POPT_BADOPTION_NOALIAS),
                       poptStrerror(code));
    else if (operand)
        good = explain(error, "'%s' is not an option; a prompt follows --prompt", operand);
    else if (options->tokens < 1 || options->tokens > 1 << 20)
        good = explain(error, "--tokens is %d; give 1 to %d", options->tokens, 1 << 20);
    else if (options->window < -1 || options->window > 1 << 20)
        good = explain(error, "--window is %d; give 0 to %d", options->window, 1 << 20);
    else if (!(options->temperature >= 0 && options->temperature <= 100))
        good = explain(error, "--temperature is %g; give 0 to 100", options->temperature);
    else if (options->help)
        poptPrintHelp(context, stdout, 0);
    poptFreeContext(context);
    return good;
}

static bool readText(const char* path, uint8_t** text, size_t* size, Error* error) {
    FILE* stream = fopen(path, "rb");
    long end = stream && fseek(stream, 0, SEEK_END) == 0 ? ftell(stream) : -1;
    *text = end > 0 ? malloc((size_t)end) : NULL;
    bool good = *text && fseek(stream, 0, SEEK_SET) == 0 && fread(*text, 1, (size_t)end, stream) == (size_t)end;
    *size = good ? (size_t)end : 0;
    if (!good)
        explain(error, "--perplexity is '%s': %s", path, end == 0 ? "the file is empty" : strerror(errno));
    if (stream)
        fclose(stream);
    return good;
}

static const char* promptOf(const Options* options) { return options->prompt ? options->prompt : ":hack: n."; }

static void emit(uint8_t byte) {
    putchar(byte);
    fflush(stdout);
}

static bool runGenerate(Model* model, const Options* options, Error* error) {
    Sampler sampler = {options->temperature, (uint64_t)options->seed};
    float logits[VOCABULARY];
    const char* prompt = promptOf(options);
    size_t promptSize = strlen(prompt);
    uint32_t count = (uint32_t)options->tokens;
    double begin = secondsNow();
    if (!prefill(model, (const uint8_t*)prompt, promptSize, logits, error))
        return false;
    double prompted = secondsNow(), prompting = model->attentionSeconds;
    fputs(prompt, stdout);
    uint8_t* text = malloc(count);
    bool good = text ? generate(model, &sampler, logits, count, text, emit, error) : explain(error, "no memory");
    double seconds = secondsNow() - prompted;
    putchar('\n');
    fflush(stdout);
    free(text);
    if (good)
        fprintf(stderr,
                "%s: prompt of %zu tokens in %.3f s; %u tokens in %.2f s, %.0f tokens/s, %.0f %% of the time in append "
                "and attention; cache of %zu bytes per token\n",
                model->deviceName, promptSize, prompted - begin, count, seconds, count / seconds,
                100 * (model->attentionSeconds - prompting) / seconds, model->bytesPerToken);
    return good;
}

static bool runPerplexity(Model* model, const uint8_t* text, size_t size, Error* error) {
    double loss, begin = secondsNow();
    size_t scored;
    uint32_t context = model->weights->context;
    if (!measureLoss(model, text, size, context, context < MAX_STEP ? context : MAX_STEP, &loss, &scored, error))
        return false;
    printf("loss %.5f nats per byte, perplexity %.4f, over %zu bytes in windows of %u\n", loss, exp(loss), scored,
           context);
    if (model->weights->heldOutLoss > 0)
        printf("the training script measured %.4f over all the text that it held out\n", model->weights->heldOutLoss);
    fprintf(stderr, "%s: %.0f tokens/s; cache of %zu bytes per token\n", model->deviceName,
            (double)scored / (secondsNow() - begin), model->bytesPerToken);
    return true;
}

static bool run(const Options* options, Error* error) {
    ModelOptions modelOptions = {.device = options->device};
    Weights weights = {0};
    Model model = {0};
    uint8_t* text = NULL;
    size_t textSize = 0;
    if (!findKvType(options->kvType, &modelOptions.kvType, error) ||
        (options->perplexity && !readText(options->perplexity, &text, &textSize, error)) ||
        !weightsRead(options->model ? options->model : "samples/generate/model.safetensors", &weights, error)) {
        free(text);
        return false;
    }
    size_t tokens = strlen(promptOf(options)) + (size_t)options->tokens;
    modelOptions.maxTokens = options->perplexity ? weights.context : (uint32_t)tokens;
    modelOptions.window = options->window < 0 ? weights.context : (uint32_t)options->window;
    bool good = modelOpen(&model, &weights, &modelOptions, error);
    if (good)
        good = options->perplexity ? runPerplexity(&model, text, textSize, error) : runGenerate(&model, options, error);
    modelClose(&model);
    weightsFree(&weights);
    free(text);
    return good;
}

int main(int argc, const char** argv) {
    Options options = {.tokens = 400, .window = -1, .seed = 1, .temperature = 0.6};
    Error error = {""};
    int code = !parseOptions(argc, argv, &options, &error) ? 2 : !options.help && !run(&options, &error) ? 1 : 0;
    if (code)
        fprintf(stderr, "generate: %s\n", error.text);
    char* texts[] = {options.prompt, options.kvType, options.model, options.perplexity, options.device};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        free(texts[i]);
    return code;
}

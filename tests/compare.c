#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Errors {
    double count, maxGot, sumGot, maxPlain, sumPlain, maxRounding, sumSquared, sumReference;
    bool poisoned, nan, rowNotZero;
} Errors;

typedef struct Allowance {
    double max, mean;
} Allowance;

double compareMaxNmse(OracleType io, OracleType k, OracleType v) {
    const OracleType types[] = {io, k, v};
    double bound = 1e-10;
    for (int i = 0; i < 3; i++)
        bound = fmax(bound, types[i] == ORACLE_F32 ? 1e-10 : types[i] == ORACLE_BF16 ? 1e-5 : 1e-6);
    return bound;
}

static bool isPoison(OracleType type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (type == ORACLE_F32)
        return bits == COMPARE_POISON;
    const uint16_t half = COMPARE_POISON & 0xFFFF;
    float poison;
    oracleDecode(type, &half, 1, &poison);
    return memcmp(&value, &poison, 4) == 0;
}

static void addRow(const CompareTensor* tensor, size_t row, Errors* errors) {
    bool allZero = true;
    double largest = 0;
    for (size_t i = row * tensor->width; i < (row + 1) * tensor->width; i++) {
        double reference = tensor->reference[i];
        double error = fabs(tensor->got[i] - reference);
        double plainError = fabs(tensor->plain[i] - reference);
        errors->poisoned |= isPoison(tensor->type, tensor->got[i]);
        errors->nan |= isnan(tensor->got[i]);
        errors->maxGot = fmax(errors->maxGot, error);
        errors->sumGot += error;
        errors->maxPlain = fmax(errors->maxPlain, plainError);
        errors->sumPlain += plainError;
        errors->maxRounding =
            fmax(errors->maxRounding, oracleRounding(tensor->type, fabs(reference)));
        errors->sumSquared += error * error;
        errors->sumReference += reference * reference;
        allZero &= reference == 0;
        largest = fmax(largest, fabs((double)tensor->got[i]));
    }
    errors->count += tensor->width;
    errors->rowNotZero |= allZero && largest != 0;
}

static void addErrors(Errors* sum, const Errors* group) {
    sum->count += group->count;
    sum->maxGot = fmax(sum->maxGot, group->maxGot);
    sum->sumGot += group->sumGot;
    sum->maxPlain = fmax(sum->maxPlain, group->maxPlain);
    sum->sumPlain += group->sumPlain;
    sum->maxRounding = fmax(sum->maxRounding, group->maxRounding);
    sum->sumSquared += group->sumSquared;
    sum->sumReference += group->sumReference;
}

static Allowance allowanceOf(const Errors* errors) {
    double rounding = 2 * errors->maxRounding;
    Allowance allowance = {
        .max = 2 * errors->maxPlain + rounding,
        .mean = errors->count > 0 ? 1.5 * errors->sumPlain / errors->count + rounding : 0,
    };
    return allowance;
}

static int ascending(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double median(double* values, size_t count) {
    if (count == 0)
        return 0;
    qsort(values, count, sizeof(double), ascending);
    return values[count / 2];
}

static double nmseOf(const Errors* errors) {
    return errors->sumReference > 0 ? errors->sumSquared / errors->sumReference : 0;
}

// Returns whether these errors are allowed; if not, says why.
static bool judge(const Errors* errors, Allowance allowance, double maxNmse, const char* where,
                  char* text, size_t size) {
    double mean = errors->count > 0 ? errors->sumGot / errors->count : 0;
    // Written so that a NaN anywhere fails.
    if (errors->poisoned)
        snprintf(text, size, "%s: an element was never written", where);
    else if (errors->nan)
        snprintf(text, size, "%s: an element is NaN", where);
    else if (errors->rowNotZero)
        snprintf(text, size, "%s: a row that attends nothing is not zero", where);
    else if (!(errors->maxGot <= allowance.max))
        snprintf(text, size, "%s: max |O-R| %.3g, allowed %.3g (max |P-R| %.3g)", where,
                 errors->maxGot, allowance.max, errors->maxPlain);
    else if (!(mean <= allowance.mean))
        snprintf(text, size, "%s: mean |O-R| %.3g, allowed %.3g (mean |P-R| %.3g)", where, mean,
                 allowance.mean, errors->sumPlain / errors->count);
    else if (!(nmseOf(errors) <= maxNmse))
        snprintf(text, size, "%s: NMSE %.3g, allowed %.3g", where, nmseOf(errors), maxNmse);
    else
        return true;
    return false;
}

CompareResult compareOut(const CompareTensor* tensor) {
    size_t groupCount = (size_t)tensor->batch * tensor->numHeads;
    Errors* groups = calloc(groupCount + 1, sizeof(Errors));
    double* maxima = malloc(sizeof(double) * (groupCount + 1));
    double* means = malloc(sizeof(double) * (groupCount + 1));
    Errors all = {0};
    size_t used = 0;
    for (uint32_t b = 0; b < tensor->batch; b++) {
        for (uint32_t h = 0; h < tensor->numHeads; h++) {
            Errors* group = &groups[b * tensor->numHeads + h];
            for (int32_t t = tensor->cuSeqlensQ[b]; t < tensor->cuSeqlensQ[b + 1]; t++)
                addRow(tensor, (size_t)t * tensor->numHeads + h, group);
            if (group->count > 0) {
                maxima[used] = allowanceOf(group).max;
                means[used++] = allowanceOf(group).mean;
            }
            addErrors(&all, group);
        }
    }
    double medianMax = median(maxima, used);
    double medianMean = median(means, used);

    CompareResult result = {.right = true, .nmse = nmseOf(&all), .maxError = all.maxGot};
    result.meanError = all.count > 0 ? all.sumGot / all.count : 0;
    for (size_t i = 0; i < groupCount && result.right; i++) {
        char where[64];
        snprintf(where, sizeof(where), "sequence %zu, head %zu", i / tensor->numHeads,
                 i % tensor->numHeads);
        Allowance allowance = allowanceOf(&groups[i]);
        allowance.max = fmax(allowance.max, medianMax);
        allowance.mean = fmax(allowance.mean, medianMean);
        result.right =
            judge(&groups[i], allowance, tensor->maxNmse, where, result.text, sizeof(result.text));
    }
    if (result.right)
        result.right = judge(&all, allowanceOf(&all), tensor->maxNmse, "whole tensor", result.text,
                             sizeof(result.text));
    free(groups);
    free(maxima);
    free(means);
    return result;
}

CompareResult compareLse(const CompareTensor* tensor) {
    CompareResult result = {.right = true};
    for (uint32_t b = 0; b < tensor->batch; b++) {
        for (uint32_t h = 0; h < tensor->numHeads; h++) {
            double plainError = 0;
            for (int32_t t = tensor->cuSeqlensQ[b]; t < tensor->cuSeqlensQ[b + 1]; t++) {
                size_t i = (size_t)t * tensor->numHeads + h;
                if (!isinf(tensor->reference[i]))
                    plainError = fmax(plainError, fabs(tensor->plain[i] - tensor->reference[i]));
            }
            for (int32_t t = tensor->cuSeqlensQ[b]; t < tensor->cuSeqlensQ[b + 1]; t++) {
                size_t i = (size_t)t * tensor->numHeads + h;
                double reference = tensor->reference[i];
                double got = tensor->got[i];
                double error = fabs(got - reference);
                double allowed = 2 * plainError + 1e-5 + ldexp(fabs(reference), -21);
                bool right = isinf(reference) ? got == reference : error <= allowed;
                if (right && !isinf(reference))
                    result.maxError = fmax(result.maxError, error);
                if (right || !result.right)
                    continue;
                result.right = false;
                snprintf(result.text, sizeof(result.text),
                         "lse of sequence %u, head %u, query %d: %.9g%s, should be %.9g, allowed "
                         "error %.3g",
                         b, h, t - tensor->cuSeqlensQ[b], got,
                         isPoison(ORACLE_F32, tensor->got[i]) ? " (never written)" : "", reference,
                         allowed);
            }
        }
    }
    return result;
}

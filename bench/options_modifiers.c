// Options of windows, chunks, softcap, ALiBi, sinks, masks, MLA and rotations.
// SPDX-License-Identifier: MIT
#include "options_modifiers.h"
#include "types.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct {
    char *windowLeft, *windowRight, *chunk, *softcap, *mask, *rope, *ropeDim;
    int alibi, sinks, vPrefix, hadamard, batchInvariant;
} raw;

#define FLAG(name, field, text)                                                                    \
    { name, 0, POPT_ARG_NONE, &raw.field, 0, text, NULL }
#define TEXT(name, field, text, value)                                                             \
    { name, 0, POPT_ARG_STRING, &raw.field, 0, text, value }

struct poptOption modifierOptions[] = {
    TEXT("window-left", windowLeft, "a query sees at most N positions before its own", "N"),
    TEXT("window-right", windowRight, "and at most N after its own (with --causal 0)", "N"),
    TEXT("chunk", chunk, "chunked-local attention in chunks of N positions, 0 = off (0)", "N"),
    TEXT("softcap", softcap, "scores become X tanh(score / X), 0 = off (0)", "X"),
    FLAG("alibi", alibi, "scores fall with distance, by the usual slopes"),
    FLAG("sinks", sinks, "a logit per query head in the softmax's denominator"),
    TEXT("mask", mask,
         "random mask bits over the whole context or, tree, over the new tokens (none)",
         "none|full|tree"),
    FLAG("v-prefix", vPrefix, "MLA: V is the first columns of K"),
    TEXT("rope", rope, "append, replay: rotary embedding of K and q (none)",
         "none|neox|interleaved"),
    TEXT("rope-dim", ropeDim,
         "elements that turn (the whole row; with --v-prefix what follows V's columns)", "N"),
    FLAG("hadamard", hadamard, "append, replay, quality: Hadamard rotation of K and q"),
    FLAG("batch-invariant", batchInvariant, "a sequence's bits do not depend on its neighbours"),
    POPT_TABLEEND};

void freeModifiers(void) {
    char* strings[] = {raw.windowLeft, raw.windowRight, raw.chunk,  raw.softcap,
                       raw.mask,       raw.rope,        raw.ropeDim};
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
        free(strings[i]);
    memset(&raw, 0, sizeof(raw)); // for the next command line
}

// The option's value as an index of names[count].
static BenchResult parseChoice(const char* option, const char* text, const char* const* names,
                               uint32_t count, uint32_t* choice) {
    for (*choice = 0; *choice < count; ++*choice)
        if (strcmp(text, names[*choice]) == 0)
            return BENCH_OK;
    return fail(BENCH_USAGE, "%s is '%s'; it is %s, %s or %s", option, text, names[0], names[1],
                names[2]);
}

static BenchResult parseWindow(const char* option, const char* text, VkmqaAttentionFlags flag,
                               Modifiers* m, uint32_t* distance) {
    m->flags |= text ? flag : 0;
    return text ? parseNumber(option, text, 0, INT32_MAX, distance) : BENCH_OK;
}

static BenchResult parseSoftcap(Modifiers* m) {
    char* end;
    double value = raw.softcap ? strtod(raw.softcap, &end) : 0;
    if (raw.softcap && (end == raw.softcap || *end || !(value >= 0 && value <= 1e6)))
        return fail(BENCH_USAGE, "--softcap is '%s'; give a number from 0 to 1e6", raw.softcap);
    m->softcap = (float)value;
    return BENCH_OK;
}

static BenchResult parseModifiers(Modifiers* m) {
    static const char* const masks[] = {"none", "full", "tree"};
    static const char* const styles[] = {"none", "neox", "interleaved"};
    static const VkmqaAttentionFlags maskFlags[] = {0, VKMQA_ATTENTION_MASK_BIT,
                                                    VKMQA_ATTENTION_TREE_MASK_BIT};
    uint32_t mask = 0, style = VKMQA_ROPE_NONE;
    m->flags = (raw.alibi ? VKMQA_ATTENTION_ALIBI_BIT : 0) |
               (raw.sinks ? VKMQA_ATTENTION_SINKS_BIT : 0) |
               (raw.vPrefix ? VKMQA_ATTENTION_V_PREFIX_OF_K_BIT : 0) |
               (raw.hadamard ? VKMQA_ATTENTION_HADAMARD_BIT : 0) |
               (raw.batchInvariant ? VKMQA_ATTENTION_BATCH_INVARIANT_BIT : 0);
    BenchResult result = parseWindow("--window-left", raw.windowLeft,
                                     VKMQA_ATTENTION_WINDOW_LEFT_BIT, m, &m->windowLeft);
    if (result == BENCH_OK)
        result = parseWindow("--window-right", raw.windowRight, VKMQA_ATTENTION_WINDOW_RIGHT_BIT, m,
                             &m->windowRight);
    if (result == BENCH_OK && raw.chunk)
        result = parseNumber("--chunk", raw.chunk, 0, INT32_MAX, &m->chunkSize);
    if (result == BENCH_OK)
        result = parseSoftcap(m);
    if (result == BENCH_OK && raw.mask)
        result = parseChoice("--mask", raw.mask, masks, 3, &mask);
    if (result == BENCH_OK && raw.rope)
        result = parseChoice("--rope", raw.rope, styles, 3, &style);
    if (result == BENCH_OK && raw.ropeDim)
        result = parseNumber("--rope-dim", raw.ropeDim, 2, 576, &m->ropeDim);
    if (result != BENCH_OK)
        return result;
    m->flags |= maskFlags[mask];
    m->ropeStyle = (VkmqaRopeStyle)style;
    return BENCH_OK;
}

static BenchResult checkRope(const Modifiers* m, uint32_t headDimQk) {
    if (!m->ropeDim)
        return BENCH_OK;
    uint32_t most = headDimQk - m->ropeOffset;
    if (m->ropeStyle == VKMQA_ROPE_NONE)
        return fail(BENCH_USAGE,
                    "--rope-dim is %u, but nothing turns; give --rope neox or "
                    "--rope interleaved too",
                    m->ropeDim);
    if (m->ropeDim % 2 || m->ropeDim > most)
        return fail(BENCH_USAGE,
                    "--rope-dim is %u; give an even number from 2 to %u, the elements "
                    "that this head dimension leaves",
                    m->ropeDim, most);
    return BENCH_OK;
}

BenchResult interpretModifiers(Options* o) {
    const Modifiers none = {0};
    BenchResult result = parseModifiers(&o->modifiers);
    if (result != BENCH_OK)
        return result;
    o->modified = memcmp(&o->modifiers, &none, sizeof(none)) != 0;
    uint32_t headDimQk = o->headDimQk ? o->headDimQk : o->preset ? o->preset->headDimQk : 128;
    uint32_t headDimV = o->headDimV ? o->headDimV : o->preset ? o->preset->headDimV : 128;
    Modifiers all = combineModifiers(o, o->preset, headDimV);
    if (!(all.flags & VKMQA_ATTENTION_V_PREFIX_OF_K_BIT))
        return checkRope(&all, headDimQk);
    const char* why =
        raw.vPrefix ? "--v-prefix makes V a part of K" : "the preset's V is a part of K";
    if (headDimV > headDimQk)
        return fail(BENCH_USAGE, "-hd is %u/%u, but %s; give values of at most %u elements",
                    headDimQk, headDimV, why, headDimQk);
    if (all.flags & VKMQA_ATTENTION_HADAMARD_BIT)
        return fail(
            BENCH_USAGE,
            "--hadamard is given, but %s, and V would come out rotated; leave --hadamard out", why);
    if (o->vTypes.count)
        return fail(BENCH_USAGE, "-ctv is '%s', but %s and so has K's type; leave -ctv out",
                    typeTraits((VkmqaType)o->vTypes.values[0])->name, why);
    if (all.ropeStyle != VKMQA_ROPE_NONE && headDimV == headDimQk)
        return fail(BENCH_USAGE, "--rope is '%s', but %s, and all of it: give -hd %u/%u, say",
                    raw.rope, why, headDimQk, headDimQk > 8 ? headDimQk - 8 : 8);
    return checkRope(&all, headDimQk);
}

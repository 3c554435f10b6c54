// Tuning profiles: what vkmqa-bench --tune found to be fastest on one device with one driver. Pure C.
// SPDX-License-Identifier: MIT
//
// Lines of words; # begins a comment:
//   vkmqa-tuning 1
//   library 0.1.0
//   device 00112233445566778899aabbccddeeff     its deviceUUID
//   driver 5 0x00401006                          VkDriverId, driverVersion
//   32:8 128/128 f16/f16 4 stream-r4 256 512
// The last kind: query heads to KV heads (a ratio), head dims of K and V, their types; calls of up to so many rows
// (query tokens x ratio) of a sequence, or "more", the last line of a shape; the kernel; the tokens of its finest
// split; and how many workgroups fill the device.
#include "internal.h"

#include <stdio.h>
#include <string.h>

enum { LINE = 160, WORDS = 8 };

struct Reader {
    const char* text;
    size_t size, at;
    uint32_t number; // of the line, from 1
    char line[LINE];
    char* words[WORDS];
    uint32_t count;
};

// The next line that has words; false at the end, or with the problem said.
static bool next_line(struct Reader* reader, struct VkmqaProblem* problem) {
    while (reader->at < reader->size) {
        uint32_t length = 0;
        ++reader->number;
        reader->count = 0;
        for (; reader->at < reader->size && reader->text[reader->at] != '\n'; ++reader->at) {
            if (length == LINE - 1 || reader->text[reader->at] == 0) {
                vkmqa_problem(problem, "tuningProfile: line %u is no line of a profile", reader->number);
                return false;
            }
            reader->line[length++] = reader->text[reader->at];
        }
        ++reader->at;
        reader->line[length] = 0;
        reader->line[strcspn(reader->line, "#\r")] = 0;
        char* at = reader->line;
        while (*(at += strspn(at, " \t"))) {
            if (reader->count == WORDS) {
                vkmqa_problem(problem, "tuningProfile: line %u has more than %d words", reader->number, WORDS);
                return false;
            }
            reader->words[reader->count++] = at;
            at += strcspn(at, " \t");
            if (*at)
                *at++ = 0;
        }
        if (reader->count)
            return true;
    }
    return false;
}

// A whole number from low to high that ends at `end`.
static bool read_number(const char* text, char end, uint32_t low, uint32_t high, uint32_t* value) {
    uint64_t number = 0;
    uint32_t i = 0;
    for (; text[i] >= '0' && text[i] <= '9' && i < 10; ++i)
        number = number * 10 + (uint32_t)(text[i] - '0');
    *value = (uint32_t)number;
    return i && text[i] == end && number >= low && number <= high;
}
// "A:B" or "A/B".
static bool read_pair(const char* text, char separator, uint32_t high, uint32_t values[2]) {
    const char* second = strchr(text, separator);
    return second && read_number(text, separator, 1, high, &values[0]) &&
           read_number(second + 1, 0, 1, high, &values[1]);
}
static bool read_types(const char* text, VkmqaType types[2]) {
    const char* second = strchr(text, '/');
    types[0] = types[1] = VKMQA_TYPE_DEFAULT;
    for (uint32_t type = 1; second && vkmqa_is_type((VkmqaType)type, false); ++type) {
        const char* name = vkmqa_type_name((VkmqaType)type);
        if (strlen(name) == (size_t)(second - text) && memcmp(text, name, strlen(name)) == 0)
            types[0] = (VkmqaType)type;
        if (strcmp(second + 1, name) == 0)
            types[1] = (VkmqaType)type;
    }
    return types[0] && types[1];
}

struct Line {
    uint32_t heads[2], dims[2];
    VkmqaType types[2];
    struct VkmqaTunedKernel kernel;
};
static bool read_kernel(const struct Reader* reader, struct Line* line, struct VkmqaProblem* problem) {
    char* const* words = reader->words;
    const char* wrong = NULL;
    line->kernel.upTo = UINT32_MAX;
    if (reader->count != 7)
        wrong = "seven words: heads, dims, types, rows, kernel, split and workgroups";
    else if (!read_pair(words[0], ':', 1u << 20, line->heads) || line->heads[0] % line->heads[1])
        wrong = "its first word to be query heads to KV heads, like 32:8";
    else if (!read_pair(words[1], '/', VKMQA_MAX_HEAD_DIM, line->dims))
        wrong = "its second word to be head dims of K and V, like 128/128";
    else if (!read_types(words[2], line->types))
        wrong = "its third word to be types of K and V, like f16/q8_0";
    else if (strcmp(words[3], "more") != 0 && !read_number(words[3], 0, 1, 1u << 30, &line->kernel.upTo))
        wrong = "its fourth word to be a number of rows, or \"more\"";
    else if (strlen(words[4]) >= sizeof line->kernel.name)
        wrong = "its fifth word to be a kernel's name";
    else if (!read_number(words[5], 0, 0, 1u << 20, &line->kernel.splitSize) ||
             (line->kernel.splitSize && line->kernel.splitSize < 64) ||
             (line->kernel.splitSize & (line->kernel.splitSize - 1)))
        wrong = "its sixth word to be the tokens of a split, a power of two from 64 to 1048576, or 0 for the default";
    else if (!read_number(words[6], 0, 0, 1u << 16, &line->kernel.workgroups))
        wrong = "its seventh word to be a number of workgroups up to 65536, or 0 for the default";
    if (wrong)
        vkmqa_problem(problem, "tuningProfile: line %u needs %s", reader->number, wrong);
    else
        memcpy(line->kernel.name, words[4], strlen(words[4]) + 1);
    return !wrong;
}

// The line "NAME VALUE [VALUE]" that the profile must have here. `same` becomes false where it says another thing.
static bool read_key(struct Reader* reader, const char* name, const char* value, const char* second, bool* same,
                     struct VkmqaProblem* problem) {
    if (!next_line(reader, problem)) {
        if (!problem->text[0])
            vkmqa_problem(problem, "tuningProfile: ends before its line \"%s\"", name);
        return false;
    }
    if (strcmp(reader->words[0], name) != 0 || reader->count != (second ? 3u : 2u)) {
        vkmqa_problem(problem, "tuningProfile: line %u is not \"%s %s%s%s\"", reader->number, name, value,
                      second ? " " : "", second ? second : "");
        return false;
    }
    if (strcmp(reader->words[1], value) != 0 || (second && strcmp(reader->words[2], second) != 0))
        *same = false;
    return true;
}

bool vkmqa_read_tuning(const char* text, size_t size, const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                       struct VkmqaTuned* tuned, struct VkmqaProblem* problem) {
    struct Reader reader = {.text = text, .size = size};
    char version[40], uuid[40], driver[16], driverVersion[16];
    bool same = true, format = true;
    *tuned = (struct VkmqaTuned){0};
    problem->text[0] = 0;
    if (size > 1u << 20) {
        vkmqa_problem(problem, "tuningProfileSize is %zu; a profile has at most 1048576 bytes", size);
        return false;
    }
    snprintf(version, sizeof version, "%d.%d.%d", VKMQA_VERSION_MAJOR, VKMQA_VERSION_MINOR, VKMQA_VERSION_PATCH);
    for (uint32_t i = 0; i < 16; ++i)
        snprintf(uuid + 2 * i, 3, "%02x", caps->uuid[i]);
    snprintf(driver, sizeof driver, "%u", caps->driverId);
    snprintf(driverVersion, sizeof driverVersion, "0x%08x", caps->driverVersion);
    if (!read_key(&reader, "vkmqa-tuning", "1", NULL, &format, problem))
        return false;
    if (!format) {
        tuned->foreign = "a format that this version does not know";
        return true;
    }
    bool sameVersion = true, sameDevice = true;
    if (!read_key(&reader, "library", version, NULL, &sameVersion, problem) ||
        !read_key(&reader, "device", uuid, NULL, &sameDevice, problem) ||
        !read_key(&reader, "driver", driver, driverVersion, &same, problem))
        return false;
    while (next_line(&reader, problem)) {
        struct Line line;
        if (!read_kernel(&reader, &line, problem))
            return false;
        if (line.heads[0] / line.heads[1] != shape->ratio || line.dims[0] != shape->headDimQk ||
            line.dims[1] != shape->headDimV || line.types[0] != shape->kType || line.types[1] != shape->vType)
            continue;
        struct VkmqaTunedKernel* last = tuned->count ? &tuned->kernels[tuned->count - 1] : NULL;
        if (last && last->upTo >= line.kernel.upTo) {
            vkmqa_problem(problem, "tuningProfile: line %u has no more rows than the line of its shape before it",
                          reader.number);
            return false;
        }
        if (tuned->count == VKMQA_MAX_CANDIDATES) {
            vkmqa_problem(problem, "tuningProfile: line %u is one more than the %d that a shape may have",
                          reader.number, VKMQA_MAX_CANDIDATES);
            return false;
        }
        tuned->kernels[tuned->count++] = line.kernel;
    }
    if (problem->text[0])
        return false;
    if (tuned->count && tuned->kernels[tuned->count - 1].upTo != UINT32_MAX) {
        vkmqa_problem(problem, "tuningProfile: the last line of %u:%u heads of %u/%u does not say \"more\"",
                      shape->numHeadsQ, shape->numHeadsKv, shape->headDimQk, shape->headDimV);
        return false;
    }
    tuned->foreign = !sameVersion  ? "another version of the library"
                     : !sameDevice ? "another device"
                     : !same       ? "another driver, or another version of it"
                                   : NULL;
    if (tuned->foreign)
        tuned->count = 0;
    return true;
}

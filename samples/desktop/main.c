// The loop, and what the frames took. Keys: up and down double and halve the context, right and left the query heads,
// W switches between slices and whole calls, Escape ends. SPDX-License-Identifier: MIT
//
//   desktop                        until the window is closed
//   desktop --frames N             N frames in slices, then N with whole calls; prints what they took
//           --screenshot FILE.ppm  and a picture of the last one, and where each head was made to look
//           --heads H --context T  to begin with (16, 16384)
#include "desktop.h"

#include <string.h>

#define GLFW_INCLUDE_NONE
#include <GLFW/glfw3.h>

static const double SLICE_SECONDS = 0.004; // a quarter of a frame at 60 Hz

enum { MAX_FRAMES = 10000 };
typedef struct Times {
    uint32_t count;
    double seconds[MAX_FRAMES];
} Times;

static int ascending(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static void printTimes(const char* name, Times* times, uint32_t steps) {
    qsort(times->seconds, times->count, sizeof *times->seconds, ascending);
    printf("%s: %u frames, median %.1f ms, 95 of 100 within %.1f ms, worst %.1f ms; %u steps of attention\n", name,
           times->count, times->seconds[times->count / 2] * 1e3, times->seconds[times->count * 95 / 100] * 1e3,
           times->seconds[times->count - 1] * 1e3, steps);
    fflush(stdout);
}

// A frame; attends: whether attention goes on. Returns its seconds, 0 when there was no image to draw to.
static double frame(Window* window, Model* model, View* view, double sliceSeconds, bool attends, double last,
                    const char* shot) {
    double begin = glfwGetTime();
    VkCommandBuffer commands = windowBeginFrame(window);
    if (!commands)
        return 0;
    windowGuestBegins(window);
    if (attends)
        modelRecord(model, commands, sliceSeconds, window->guestSeconds);
    windowGuestEnds(window);
    viewRecord(view, window, model, commands, last);
    windowEndFrame(window, shot);
    glfwPollEvents();
    // With one frame in flight what counts is when the next one may begin.
    CHECK(vkWaitForFences(window->device, 1, &window->fence, VK_TRUE, UINT64_MAX));
    return glfwGetTime() - begin;
}

static void measure(Window* window, Model* model, View* view, uint32_t frames, const char* shot) {
    static Times times;
    const char* const names[] = {"slices", "whole calls"};
    double last = 0;
    for (int whole = 0; whole < 2; ++whole) {
        for (int i = 0; i < 8 || model->busy; ++i) // the first frames teach what a slice takes
            last = frame(window, model, view, whole ? 0 : SLICE_SECONDS, true, last, NULL);
        times.count = 0;
        uint32_t steps = model->steps;
        while (times.count < frames) {
            last = frame(window, model, view, whole ? 0 : SLICE_SECONDS, true, last, NULL);
            if (last > 0)
                times.seconds[times.count++] = last;
        }
        printTimes(names[whole], &times, model->steps - steps);
        while (model->busy)
            frame(window, model, view, SLICE_SECONDS, true, last, NULL);
    }
    if (!shot)
        return;
    for (uint32_t i = 0; i < model->heads; ++i) // every head's row, of the last step
        frame(window, model, view, 0, false, last, NULL);
    frame(window, model, view, 0, false, last, shot);
    for (uint32_t head = 0; head < model->heads; ++head)
        printf("head %u of %u looks at %.4f\n", head, model->heads, (double)model->looksAt[1 - model->running][head]);
}

// A key's doubling or halving, within bounds; whether anything changed.
static bool adjust(uint32_t* value, int up, int down, uint32_t least, uint32_t most) {
    uint32_t wanted = up ? *value * 2 : down ? *value / 2 : *value;
    bool changes = wanted != *value && wanted >= least && wanted <= most;
    if (changes)
        *value = wanted;
    return changes;
}

static void interact(Window* window, Model* model, View* view) {
    const int keys[] = {GLFW_KEY_UP, GLFW_KEY_DOWN, GLFW_KEY_RIGHT, GLFW_KEY_LEFT, GLFW_KEY_W};
    int was[5] = {0}, pressed[5];
    bool whole = false, wanted = false; // from the next step on
    double last = 0;
    while (!glfwWindowShouldClose(window->glfw) && glfwGetKey(window->glfw, GLFW_KEY_ESCAPE) != GLFW_PRESS) {
        last = frame(window, model, view, whole ? 0 : SLICE_SECONDS, true, last, NULL);
        for (int i = 0; i < 5; ++i) {
            int is = glfwGetKey(window->glfw, keys[i]) == GLFW_PRESS;
            pressed[i] = is && !was[i];
            was[i] = is;
        }
        wanted ^= pressed[4];
        if (!model->busy)
            whole = wanted;
        uint32_t tokens = model->tokens, heads = model->heads;
        bool longer = adjust(&tokens, pressed[0], pressed[1], 1024, MAX_CONTEXT);
        bool more = adjust(&heads, pressed[2], pressed[3], HEADS_KV, MAX_HEADS);
        if (longer || more) {
            CHECK(vkQueueWaitIdle(window->queue));
            modelResize(model, heads, tokens);
        }
        char title[128];
        snprintf(title, sizeof title, "vkmqa: %u heads on %d, %u tokens, %s, %.1f ms", model->heads, HEADS_KV,
                 model->tokens, whole ? "whole calls" : "slices", last * 1e3);
        glfwSetWindowTitle(window->glfw, title);
    }
}

// One of 2, 4, 8 ... within bounds.
static uint32_t readNumber(const char* text, uint32_t least, uint32_t most, bool power) {
    char* end = NULL;
    unsigned long value = text ? strtoul(text, &end, 10) : 0;
    if (!text || *end || value < least || value > most || (power && (value & (value - 1)))) {
        fprintf(stderr, "'%s': give a number%s from %u to %u\n", text ? text : "", power ? ", a power of two," : "", least,
                most);
        exit(2);
    }
    return (uint32_t)value;
}

int main(int count, char** arguments) {
    uint32_t frames = 0, heads = 16, tokens = 16384;
    const char* shot = NULL;
    for (int i = 1; i < count; i += 2) {
        const char* value = i + 1 < count ? arguments[i + 1] : NULL;
        if (!strcmp(arguments[i], "--frames"))
            frames = readNumber(value, 1, MAX_FRAMES, false);
        else if (!strcmp(arguments[i], "--heads"))
            heads = readNumber(value, HEADS_KV, MAX_HEADS, true);
        else if (!strcmp(arguments[i], "--context"))
            tokens = readNumber(value, 1024, MAX_CONTEXT, true);
        else if (!strcmp(arguments[i], "--screenshot") && value)
            shot = value;
        else {
            fprintf(stderr, "usage: desktop [--frames N [--screenshot FILE.ppm]] [--heads H] [--context T]\n");
            return 2;
        }
    }
    if (shot && !frames) {
        fprintf(stderr, "--screenshot %s needs --frames N: the picture is of the last frame\n", shot);
        return 2;
    }
    Window window;
    Model model;
    View view;
    windowOpen(&window);
    modelOpen(&model, &window, heads, tokens);
    viewOpen(&view, &window, &model);
    if (frames)
        measure(&window, &model, &view, frames, shot);
    else
        interact(&window, &model, &view);
    CHECK(vkQueueWaitIdle(window.queue));
    viewClose(&view, &window);
    modelClose(&model);
    windowClose(&window);
    return 0;
}

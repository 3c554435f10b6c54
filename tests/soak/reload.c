// The shared library loaded and unloaded 1000 times, as by a host of plugins; some of the times it opens a device and
// creates an object. Nothing of it may stay.
//   reload LIBRARY [CYCLES]
// SPDX-License-Identifier: MIT
#define _GNU_SOURCE // RTLD_NOLOAD
#include "flat.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vkmqa/vkmqa_runtime.h>

enum { CYCLES = 1000, WORKS_EVERY = 10, SAMPLES_EVERY = 20 }; // cycles

static const long bounds[FLAT_SERIES] = {[FLAT_RESIDENT] = 8192, [FLAT_HEAP] = 64, [FLAT_MAPS] = 4};
static char said[512];

static void note(VkmqaSeverity severity, const char* text, void* user) {
    (void)user;
    if (severity == VKMQA_SEVERITY_ERROR)
        snprintf(said, sizeof(said), "%s", text);
}

static _Noreturn void stop(int code, const char* what, const char* why) {
    fprintf(stderr, "%s%s: %s\n", code == 77 ? "skipped: " : "", what, why);
    exit(code);
}

// C has no cast between object and function pointers.
#define FIND(name)                                                                                 \
    void* name##Symbol = dlsym(library, #name);                                                    \
    __typeof__(&name) name##Call;                                                                  \
    memcpy(&name##Call, &name##Symbol, sizeof(name##Call));                                        \
    if (!name##Symbol)                                                                             \
    stop(1, #name, "not in the library")

static void work(void* library) {
    FIND(vkmqaOpenDevice);
    FIND(vkmqaGetDeviceContext);
    FIND(vkmqaCreateAttention);
    FIND(vkmqaDestroyAttention);
    FIND(vkmqaCreateCommands);
    FIND(vkmqaDestroyCommands);
    FIND(vkmqaCloseDevice);
    const VkmqaDeviceOpenInfo open = {.structSize = sizeof(open), .skipVerification = VK_TRUE, .messageCallback = note};
    const VkmqaAttentionCreateInfo shape = {.structSize = sizeof(shape), .numHeadsQ = 1, .numHeadsKv = 1,
                                            .headDimQk = 16, .pageSize = 16};
    VkmqaDevice device = NULL;
    VkmqaAttention attention = NULL;
    VkmqaCommands commands = NULL;
    if (vkmqaOpenDeviceCall(&open, &device) != VK_SUCCESS)
        stop(1, "opening a device failed", said);
    if (vkmqaCreateAttentionCall(vkmqaGetDeviceContextCall(device), &shape, &attention) != VK_SUCCESS ||
        vkmqaCreateCommandsCall(device, &commands) != VK_SUCCESS)
        stop(1, "creation failed", said);
    vkmqaDestroyCommandsCall(commands);
    vkmqaDestroyAttentionCall(attention);
    vkmqaCloseDeviceCall(device);
}

int main(int count, char** arguments) {
    static Flat flat;
    char text[FLAT_TEXT];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count < 2 || count > 3)
        stop(2, "usage", "reload LIBRARY [CYCLES]");
    const int cycles = count == 3 ? atoi(arguments[2]) : CYCLES;
    for (int cycle = 0; cycle < cycles; cycle++) {
        void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
        if (!library)
            stop(1, "dlopen", dlerror());
        if (cycle % WORKS_EVERY == 0)
            work(library);
        if (dlclose(library) != 0)
            stop(1, "dlclose", dlerror());
        if (dlopen(arguments[1], RTLD_NOW | RTLD_NOLOAD))
            stop(1, arguments[1], "still loaded after dlclose");
        if (cycle % SAMPLES_EVERY == SAMPLES_EVERY - 1)
            flatSample(&flat);
    }
    int grows = !flatJudge(&flat, bounds, text);
    printf("%d cycles\n%s", cycles, text);
    return grows;
}

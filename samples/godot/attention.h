// Causal attention of one sequence over a cache that grows, on a device of vkmqa's or of an engine's. Nothing here
// knows of Godot but the numbers of its errors.
//   attention.c   device, memory, steps
//   engine.c      calls into Godot through gdextension_interface.h
//   extension.c   the class VkmqaAttention: its methods, its signal, its registration
// SPDX-License-Identifier: MIT
#ifndef ATTENTION_H
#define ATTENTION_H

#include <vkmqa/vkmqa_runtime.h>

#include <stdbool.h>
#include <stdint.h>

// Godot's @GlobalScope.Error, of which VkmqaAttention's methods return these.
typedef enum Error {
    ERROR_NONE = 0, // OK
    ERROR_FAILED = 1,
    ERROR_UNAVAILABLE = 2,
    ERROR_UNCONFIGURED = 3,
    ERROR_OUT_OF_MEMORY = 6,
    ERROR_TIMEOUT = 24,
    ERROR_INVALID_PARAMETER = 31,
    ERROR_BUSY = 44,
} Error;

typedef struct Shape {
    int64_t headsQ, headsKv, headDim, maxTokens; // as given, checked by attentionOpen
} Shape;

// A memory that is made anew, larger, when a step needs more.
typedef struct Store {
    VkmqaMemory memory;
    VkDeviceSize size;
} Store;

typedef struct Attention {
    char message[512]; // why the last call failed
    void (*complain)(const char* text, bool error); // what no call can return; may be null
    bool quiet;        // errors go to message alone
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCommands commands;
    uint32_t headsQ, headsKv, headDim, maxTokens;
    Store k, v;                   // the cache: f16, one page of maxTokens
    Store newK, newV, q;          // rows on their way in, f32
    Store metadata, scratch, out; // of the step that runs
    uint32_t tokens;              // in the cache, those of the step that runs included
    uint32_t staged;              // in newK and newV, for the next step
    uint32_t rows;                // query tokens of the step that runs or has run; 0: out holds nothing
    bool busy;
} Attention;

// A VkDevice of somebody else's. deviceAddresses: VK_KHR_buffer_device_address and its feature are known to be enabled.
typedef struct Handles {
    VkInstance instance;
    VkPhysicalDevice physicalDevice;
    VkDevice device;
    VkQueue queue;
    uint32_t family;
    PFN_vkGetInstanceProcAddr getInstanceProcAddr;
    bool deviceAddresses;
} Handles;

// One of handles and selector (vkmqaOpenDevice's) is null.
Error attentionOpen(Attention* attention, const Handles* handles, const char* selector, const Shape* shape);
// Waits for what runs. May be called at any time, and again.
void attentionClose(Attention* attention);
// New tokens for the end of the sequence: k and v are f32 [tokens, headsKv, headDim].
Error attentionAppend(Attention* attention, const float* k, int64_t kCount, const float* v, int64_t vCount);
// Queries of the last tokens: f32 [rows, headsQ, headDim]. Submits and returns.
Error attentionAttend(Attention* attention, const float* q, int64_t count);
// Whether the step has ended, well or not, within so many nanoseconds; its error. ERROR_TIMEOUT: it is still at it.
Error attentionWait(Attention* attention, uint64_t timeoutNs);
// f32 [rows, headsQ, headDim] of the step that has run; null, and a message, when there is none.
const float* attentionOutput(Attention* attention, uint32_t* count);
Error attentionClear(Attention* attention); // forgets all tokens
// Device and kernel, one sentence.
void attentionDescribe(Attention* attention, char* text, size_t size);
// Stores the message and returns the error.
Error attentionFail(Attention* attention, Error error, const char* format, ...);

#endif

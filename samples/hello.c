// Decodes eight tokens with the attention of Falcon-7B, recorded once and replayed. SPDX-License-Identifier: MIT
#include <stdint.h>
#include <stdio.h>
#include <vkmqa/vkmqa_runtime.h>

#define CHECK(call) do { VkResult r = (call); if (r) return fprintf(stderr, #call ": %d\n", r), 1; } while (0)
static void say(VkmqaSeverity severity, const char* text, void* userData) { // why a call failed, in a sentence
    if (severity == VKMQA_SEVERITY_ERROR)
        fprintf(userData, "vkmqa: %s\n", text);
}
enum { HEADS = 71, DIM = 64, CONTEXT = 2048 }; // 71 query heads share one key/value head

int main(void) {
    VkmqaDevice device;
    VkmqaAttention attention;
    VkmqaCommands commands;
    CHECK(vkmqaOpenDevice(&(VkmqaDeviceOpenInfo){.structSize = sizeof(VkmqaDeviceOpenInfo),
                                                 .messageCallback = say, .messageUserData = stderr},
                          &device));
    CHECK(vkmqaDeviceCreateAttention(
        device, &(VkmqaAttentionCreateInfo){.structSize = sizeof(VkmqaAttentionCreateInfo),
                                            .flags = VKMQA_ATTENTION_CAUSAL_BIT, .numHeadsQ = HEADS,
                                            .numHeadsKv = 1, .headDimQk = DIM, .maxSeqLenKv = CONTEXT,
                                            .ioType = VKMQA_TYPE_F32, .kType = VKMQA_TYPE_F16},
        &attention));

    // Ask for sizes, then allocate: the cache of one layer, scratch, the step's metadata, inputs, output.
    VkmqaStep step = {.structSize = sizeof step, .limits = {.batch = 1, .totalQ = 1}};
    VkmqaKvRequirements kvNeeds = {.structSize = sizeof kvNeeds};
    VkmqaBufferRequirements stepNeeds, scratchNeeds;
    CHECK(vkmqaGetKvRequirements(attention, 1, &kvNeeds));
    CHECK(vkmqaGetScratchRequirements(attention, &step.limits, &scratchNeeds));
    CHECK(vkmqaGetStepLayout(attention, &step.limits, &step.layout, &stepNeeds));
    VkmqaMemory k, v, scratch = NULL, metadata, inputs, out;
    CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, kvNeeds.k.size, &k));
    CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, kvNeeds.v.size, &v));
    if (scratchNeeds.size)
        CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, scratchNeeds.size, &scratch));
    CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_UPLOAD, stepNeeds.size, &metadata));
    CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_UPLOAD, (HEADS + 2) * DIM * 4, &inputs));
    CHECK(vkmqaCreateMemory(device, VKMQA_MEMORY_DOWNLOAD, HEADS * DIM * 4, &out));
    step.metadata = vkmqaGetMemoryRange(metadata, 0, 0);
    VkmqaKv kv = {vkmqaGetMemoryRange(k, 0, 0), vkmqaGetMemoryRange(v, 0, 0), .numPages = 1};

    // Record append and attention once. q, the new key and the new value are slices of one buffer.
    CHECK(vkmqaCreateCommands(device, &commands));
    CHECK(vkmqaBeginCommands(commands));
    VkmqaRecorder recorder = vkmqaGetCommandsRecorder(commands);
    CHECK(vkmqaCmdAppendKv(attention, vkmqaGetCommandBuffer(commands),
                           &(VkmqaAppendInfo){.structSize = sizeof(VkmqaAppendInfo), .recorder = recorder,
                                              .step = &step, .kv = &kv,
                                              .newK = vkmqaGetMemoryRange(inputs, HEADS * DIM * 4, DIM * 4),
                                              .newV = vkmqaGetMemoryRange(inputs, (HEADS + 1) * DIM * 4, 0)}));
    CHECK(vkmqaCmdAttention(attention, vkmqaGetCommandBuffer(commands),
                            &(VkmqaAttentionInfo){.structSize = sizeof(VkmqaAttentionInfo),
                                                  .recorder = recorder, .step = &step, .kv = &kv,
                                                  .q = vkmqaGetMemoryRange(inputs, 0, 0),
                                                  .out = vkmqaGetMemoryRange(out, 0, 0),
                                                  .scratch = vkmqaGetMemoryRange(scratch, 0, 0)}));

    // Every token: new inputs, new lengths, the same commands.
    char* words = vkmqaGetMemoryPointer(metadata);
    float *in = vkmqaGetMemoryPointer(inputs), *result = vkmqaGetMemoryPointer(out);
    for (int token = 0; token < 8; ++token) {
        for (int i = 0; i < (HEADS + 2) * DIM; ++i) // equal keys: out is the mean of the values so far
            in[i] = i < (HEADS + 1) * DIM ? 0.25f : (float)token;
        ((int32_t*)(words + step.layout.cuSeqlensQ))[0] = 0;
        ((int32_t*)(words + step.layout.cuSeqlensQ))[1] = 1;     // one query token
        *(int32_t*)(words + step.layout.seqLensKv) = token + 1;   // tokens in the cache, this one included
        *(int32_t*)(words + step.layout.slotMapping) = token;     // where this one goes
        *(uint32_t*)(words + step.layout.status) = 0;             // kernels say here what they did not believe
        CHECK(vkmqaSubmitCommands(commands));
        CHECK(vkmqaWaitCommands(commands, UINT64_MAX));
        printf("token %d: mean of the values %g\n", token, result[HEADS * DIM - 1]);
    }
    vkmqaDestroyCommands(commands);
    VkmqaMemory memories[] = {k, v, scratch, metadata, inputs, out};
    for (int i = 0; i < 6; ++i)
        vkmqaDestroyMemory(memories[i]);
    vkmqaDestroyAttention(attention);
    vkmqaCloseDevice(device);
    return 0;
}

// The device's measured limits: copy, read, f32 multiply-add. Percentages are of these, never of a
// data sheet.
// SPDX-License-Identifier: MIT
#include "problem.h"
#include "shader.h"
#include "bench_spirv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    BenchOp op;
    size_t field; // of Roofs
} roofFields[] = {
    {OP_COPY, offsetof(Roofs, copy)},
    {OP_READ, offsetof(Roofs, read)},
    {OP_FMA, offsetof(Roofs, fma)},
    {OP_MATRIX, offsetof(Roofs, matrix)},
};

static double* roofOf(Session* session, BenchOp op) {
    for (size_t i = 0; i < sizeof(roofFields) / sizeof(roofFields[0]); i++)
        if (roofFields[i].op == op)
            return (double*)((char*)&session->roofs + roofFields[i].field);
    return NULL;
}

void applyRoof(const Session* session, Row* row) {
    const Roofs* roofs = &session->roofs;
    double memory = row->item.op == OP_APPEND ? roofs->copy : fmax(roofs->read, roofs->copy);
    double arithmetic = fmax(roofs->fma, roofs->matrix);
    double memoryTime = memory > 0 ? row->bytes / memory : 0;
    double arithmeticTime = arithmetic > 0 ? row->flops / arithmetic : 0;
    double least = fmax(memoryTime, arithmeticTime);
    if (least <= 0 || row->time.median <= 0)
        return;
    row->percentOfRoof = 100 * least / row->time.median;
    row->roof = memoryTime >= arithmeticTime ? (memory == roofs->copy ? "copy" : "read")
                : arithmetic == roofs->fma   ? "fma"
                                             : "matrix";
}

typedef struct RoofCall {
    Shader shader;
    VkmqaMemory source, target;
    VkDeviceSize bytes; // of source and of target
    uint32_t push[PUSH_WORDS];
    uint32_t groups;
} RoofCall;

static BenchResult recordRoof(void* user, VkCommandBuffer commandBuffer, VkmqaRecorder recorder,
                              uint32_t index) {
    RoofCall* call = user;
    (void)recorder, (void)index;
    recordShader(&call->shader, commandBuffer, 0, call->push, call->groups);
    return BENCH_OK;
}

static bool isCpu(const Session* session) {
    return session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

// One form of the shader; the fastest form is the roof.
static BenchResult tryMemoryForm(Session* session, RoofCall* call, const ShaderInfo* info,
                                 const char* how, Row* row) {
    BenchResult result = createShader(session, info, &call->shader);
    if (result != BENCH_OK)
        return result;
    VkmqaBuffer buffers[] = {vkmqaGetMemoryRange(call->source, 0, call->bytes),
                             vkmqaGetMemoryRange(call->target, 0, 0)};
    setBuffers(&call->shader, 0, buffers);
    Stats stats;
    result = measure(session, recordRoof, call, 1, &stats);
    destroyShader(&call->shader);
    if (result == BENCH_OK && (!row->time.count || stats.median < row->time.median)) {
        row->time = stats;
        snprintf(row->kernel, sizeof(row->kernel), "%s", how);
    }
    return result;
}

static BenchResult measureMemory(Session* session, RoofCall* call, bool write, Row* row) {
    // A driver on the CPU likes workgroups of one vector, a GPU large ones.
    static const uint32_t forms[][2] = {{8, 8}, {64, 4}, {256, 4}}; // lanes, quads of each
    uint32_t first = isCpu(session) ? 0 : 1, end = isCpu(session) ? 2 : 3;
    uint32_t quads = (uint32_t)(call->bytes / 16);
    BenchResult result = BENCH_OK;
    for (uint32_t i = first; result == BENCH_OK && i < end; i++) {
        uint32_t constants[] = {forms[i][0], forms[i][1], write};
        ShaderInfo info = {spirv_roof_memory,
                           sizeof(spirv_roof_memory),
                           "the memory roof's shader",
                           2,
                           1,
                           constants,
                           3};
        char how[48];
        snprintf(how, sizeof(how), "groups of %u", forms[i][0]);
        call->push[0] = quads;
        call->groups = quads / (forms[i][0] * forms[i][1]);
        result = tryMemoryForm(session, call, &info, how, row);
    }
    VkmqaBuffer source = vkmqaGetMemoryRange(call->source, 0, 0);
    VkmqaBuffer target = vkmqaGetMemoryRange(call->target, 0, 0);
    if (result != BENCH_OK || !isCpu(session) || !source.address)
        return result;
    uint32_t constant = write;
    ShaderInfo info = {spirv_roof_memory_uniform,
                       sizeof(spirv_roof_memory_uniform),
                       "the memory roof's shader",
                       2,
                       1,
                       &constant,
                       1};
    call->push[0] = (uint32_t)source.address, call->push[1] = (uint32_t)(source.address >> 32);
    call->push[2] = (uint32_t)target.address, call->push[3] = (uint32_t)(target.address >> 32);
    call->groups = call->push[4] = quads / 32;
    return tryMemoryForm(session, call, &info, "uniform loads", row);
}

static BenchResult runMemoryRoof(Session* session, bool write, Row* row) {
    RoofCall call = {0};
    VkDeviceSize most = session->properties.maxStorageRange & ~(VkDeviceSize)4095;
    call.bytes = session->rotateBytes ? session->rotateBytes : 4 << 20;
    call.bytes = call.bytes > most ? most : call.bytes;
    BenchResult result =
        checkVk(vkmqaCreateMemory(session->device, VKMQA_MEMORY_DEVICE, call.bytes, &call.source),
                "allocating the roof's source");
    if (result == BENCH_OK)
        result = checkVk(vkmqaCreateMemory(session->device, VKMQA_MEMORY_DEVICE,
                                           write ? call.bytes : 4096, &call.target),
                         "allocating the roof's target");
    if (result == BENCH_OK) {
        // Pages that were never written may all be one page of zeros on a CPU.
        uint8_t* bytes = allocate(call.bytes, 1);
        memset(bytes, 0x55, call.bytes);
        result =
            checkVk(vkmqaUpload(call.source, 0, bytes, call.bytes), "filling the roof's source");
        if (result == BENCH_OK && write)
            result = checkVk(vkmqaUpload(call.target, 0, bytes, call.bytes),
                             "filling the roof's target");
        free(bytes);
    }
    if (result == BENCH_OK)
        result = measureMemory(session, &call, write, row);
    if (result == BENCH_OK)
        row->bytes = (double)call.bytes * (write ? 2 : 1);
    if (call.source)
        vkmqaDestroyMemory(call.source);
    if (call.target)
        vkmqaDestroyMemory(call.target);
    return result;
}

static BenchResult runFmaRoof(Session* session, Row* row) {
    const uint32_t perTurn = 8 * 12 * 2; // as written in the shader
    uint32_t groupSize = isCpu(session) ? 8 : 256, turns = isCpu(session) ? 1024 : 128;
    RoofCall call = {.groups = isCpu(session) ? 256 : 8192};
    float factor = 0.5f, summand = 0.25f; // converges: no infinities, no denormals
    call.push[0] = turns;
    memcpy(&call.push[1], &factor, 4);
    memcpy(&call.push[2], &summand, 4);
    ShaderInfo info = {spirv_roof_fma,
                       sizeof(spirv_roof_fma),
                       "the arithmetic roof's shader",
                       1,
                       1,
                       &groupSize,
                       1};
    BenchResult result =
        checkVk(vkmqaCreateMemory(session->device, VKMQA_MEMORY_DEVICE, 256, &call.target),
                "allocating the roof's target");
    if (result == BENCH_OK)
        result = createShader(session, &info, &call.shader);
    if (result == BENCH_OK) {
        VkmqaBuffer target = vkmqaGetMemoryRange(call.target, 0, 256);
        setBuffers(&call.shader, 0, &target);
        result = measure(session, recordRoof, &call, 1, &row->time);
        destroyShader(&call.shader);
    }
    row->flops = (double)call.groups * groupSize * turns * perTurn;
    snprintf(row->kernel, sizeof(row->kernel), "f32 multiply-add");
    if (call.target)
        vkmqaDestroyMemory(call.target);
    return result;
}

BenchResult runRoof(Session* session, const Item* item, Row* row) {
    BenchResult result = item->op == OP_FMA      ? runFmaRoof(session, row)
                         : item->op == OP_MATRIX ? runMatrixRoof(session, item, row)
                                                 : runMemoryRoof(session, item->op == OP_COPY, row);
    if (result != BENCH_OK)
        return result;
    double work = row->flops > 0 ? row->flops : row->bytes;
    *roofOf(session, item->op) = work / row->time.best; // a roof is the most that was ever seen
    return BENCH_OK;
}

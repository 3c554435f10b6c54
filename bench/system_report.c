// --system-report: what a bug report needs, as one Markdown block.
// SPDX-License-Identifier: MIT
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void printLimits(const Session* session) {
    const VkmqaDeviceProperties* d = &session->properties;
    PFN_vkGetPhysicalDeviceProperties getProperties =
        (PFN_vkGetPhysicalDeviceProperties)session->handles.getInstanceProcAddr(
            session->handles.instance, "vkGetPhysicalDeviceProperties");
    VkPhysicalDeviceProperties properties;
    getProperties(session->handles.physicalDevice, &properties);
    const VkPhysicalDeviceLimits* limits = &properties.limits;
    printf("| subgroup size | %u |\n", d->subgroupSize);
    printf("| shared memory | %u bytes |\n", d->sharedMemory);
    printf("| workgroup | %u invocations, %u x %u x %u |\n", limits->maxComputeWorkGroupInvocations,
           limits->maxComputeWorkGroupSize[0], limits->maxComputeWorkGroupSize[1],
           limits->maxComputeWorkGroupSize[2]);
    printf("| push constants | %u bytes |\n", limits->maxPushConstantsSize);
    printf("| storage buffers | %u per stage, %u bytes each, offsets of %u |\n",
           limits->maxPerStageDescriptorStorageBuffers, limits->maxStorageBufferRange,
           (uint32_t)limits->minStorageBufferOffsetAlignment);
    printf("| device addresses | %s |\n", d->deviceAddresses ? "yes" : "no");
    printf("| timestamps | %g ns |\n", (double)d->timestampPeriod);
    printf("| queues | compute family %u, transfer family %u |\n", session->handles.computeFamily,
           session->handles.transferFamily);
}

// What the library would enable here, whether or not this run did.
static void printRequirements(const Session* session) {
    VkmqaDeviceRequirementsInfo info = {
        .structSize = sizeof(info),
        .apiVersion = session->properties.apiVersion,
        .instance = session->handles.instance,
        .physicalDevice = session->handles.physicalDevice,
        .getInstanceProcAddr = session->handles.getInstanceProcAddr,
    };
    VkmqaDeviceRequirements* requirements = allocate(1, sizeof(*requirements));
    requirements->structSize = sizeof(*requirements);
    if (vkmqaGetDeviceRequirements(&info, requirements) == VK_SUCCESS) {
        printf("| extensions used |");
        for (uint32_t i = 0; i < requirements->extensionCount; i++)
            printf(" %s", requirements->extensionNames[i]);
        uint32_t structs = 0;
        const VkBaseInStructure* next =
            requirements->features ? (const VkBaseInStructure*)requirements->features->pNext : NULL;
        for (; next; next = next->pNext)
            structs++;
        printf("%s |\n| feature structs used | %u |\n",
               requirements->extensionCount ? "" : " none beyond the core version", structs);
    }
    free(requirements);
}

// Which kernel each model gets, and whether it computes rightly: creation runs the known-answer test.
static BenchResult printKernels(Session* session) {
    static const struct {
        const char* preset;
        VkmqaType kType;
    } models[] = {
        {"llama2-7b", VKMQA_TYPE_F16},  {"llama3-8b", VKMQA_TYPE_F16},
        {"llama3-8b", VKMQA_TYPE_BF16}, {"llama3-8b", VKMQA_TYPE_FP8_E4M3},
        {"llama3-8b", VKMQA_TYPE_Q8_0}, {"llama3-8b", VKMQA_TYPE_Q4_0},
        {"mqa-32", VKMQA_TYPE_F16},     {"falcon-7b", VKMQA_TYPE_F16},
        {"gemma-2b", VKMQA_TYPE_F16},   {"gemma2-9b", VKMQA_TYPE_F16},
        {"gpt-oss", VKMQA_TYPE_F16},    {"deepseek-mla", VKMQA_TYPE_F16},
    };
    // A CPU would take minutes for each of the longer prefills.
    bool small = session->options->quick || session->properties.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
    uint32_t decodeContext = small ? 1024 : 4096, tokens = small ? 16 : 512, prefillContext = small ? 256 : 2048;
    printf("\n| model | cache | decode kernel at %u | prefill kernel, %u at %u | result "
           "|\n|---|---|---|---|---|\n", decodeContext, tokens, prefillContext);
    BenchResult worst = BENCH_OK;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        const Preset* p = findPreset(models[i].preset);
        Item item = {
            .op = OP_DECODE,
            .model = p->name,
            .numHeadsQ = p->numHeadsQ,
            .numHeadsKv = p->numHeadsKv,
            .headDimQk = p->headDimQk,
            .headDimV = p->headDimV,
            .queryTokens = 1,
            .context = decodeContext,
            .batch = 1,
            .ioType = VKMQA_TYPE_F16,
            .newType = VKMQA_TYPE_F16,
            .kType = models[i].kType,
            .vType = models[i].kType,
            .causal = true,
            .modifiers = p->modifiers,
        };
        Row decode, prefill;
        BenchResult result = runItem(session, &item, &decode);
        item.op = OP_PREFILL;
        item.queryTokens = tokens;
        item.context = prefillContext;
        if (result == BENCH_OK)
            result = runItem(session, &item, &prefill);
        if (result != BENCH_OK)
            return result;
        bool wrong = decode.wrong || prefill.wrong;
        printf("| %s %u:%u d%u | %s | %s, %.3f ms | %s, %.1f ms | %s%s |\n", p->name, p->numHeadsQ,
               p->numHeadsKv, p->headDimQk, typeTraits(item.kType)->name, decode.kernel,
               decode.time.median * 1e3, prefill.kernel, prefill.time.median * 1e3,
               wrong ? "WRONG: " : "ok",
               decode.wrong    ? decode.note
               : prefill.wrong ? prefill.note
                               : "");
        fflush(stdout);
        if (wrong)
            worst = BENCH_WRONG;
    }
    return worst;
}

BenchResult printSystemReport(Session* session) {
    const VkmqaDeviceProperties* d = &session->properties;
    char system[256];
    systemName(system, sizeof(system));
    printf("### vkmqa system report\n\n| | |\n|---|---|\n");
    printf("| vkmqa | %d.%d.%d, Vulkan headers %d |\n", VKMQA_VERSION_MAJOR, VKMQA_VERSION_MINOR,
           VKMQA_VERSION_PATCH, VK_HEADER_VERSION);
    printf("| system | %s |\n", system);
    printf("| device | %s (%s, vendor 0x%04x, device 0x%04x) |\n", d->name, deviceTypeName(d->type),
           d->vendorId, d->deviceId);
    printf("| driver | %s %s (id %u, version 0x%x) |\n", d->driverName, d->driverInfo, d->driverId,
           d->driverVersion);
    printf("| Vulkan | %u.%u.%u |\n", d->apiVersion >> 22 & 0x7F, d->apiVersion >> 12 & 0x3FF,
           d->apiVersion & 0xFFF);
    printf("| memory | %.2f GiB device-local |\n", (double)d->deviceMemory / (1 << 30));
    printLimits(session);
    printRequirements(session);
    return printKernels(session);
}

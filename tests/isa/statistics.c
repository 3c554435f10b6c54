#include "statistics.h"

#include <stdlib.h>
#include <string.h>

const char* const statisticNames[STATISTIC_COLUMNS] = {"regs",  "spills", "shared", "waves",
                                                       "instr", "cycles", "matrix"};

// The drivers' own names; those of one column are added.
static const struct {
    int column;
    const char* name;
} sources[] = {
    // RADV (Mesa src/amd/vulkan)
    {REGISTERS, "VGPRs"},
    {SPILLS, "Spilled VGPRs"},
    {SPILLS, "Spilled SGPRs"},
    {SHARED, "LDS size"},
    {WAVES, "Subgroups per SIMD"},
    {INSTRUCTIONS, "Instructions"}, // and Asahi
    {CYCLES, "Inverse Throughput"},
    // NVK; what it moves from uniform to other registers ("Spills to reg") stays on the chip
    {REGISTERS, "Number of GPRs"},
    {SPILLS, "Spills to memory"},
    {WAVES, "Max warps/SM"},
    {INSTRUCTIONS, "Instruction count"},
    {CYCLES, "Static cycle count"},
    // Asahi
    {REGISTERS, "GPRs"},
    {SPILLS, "Spills"},
    {WAVES, "Threads"},
    {CYCLES, "ALU"},
    // Turnip
    {REGISTERS, "Registers used"},
    {SPILLS, "STP Count"},
    {WAVES, "Max Waves Per Core"},
    {INSTRUCTIONS, "Instruction Count"}, // and ANV
    {CYCLES, "Estimated cycles stalled on SY"},
    // ANV
    {REGISTERS, "Max live registers"},
    {SPILLS, "Spill Count"},
    {CYCLES, "Cycle Count"},
};

// AMD, NVIDIA, Intel.
static const char* const matrixInstructions[] = {"v_wmma", "v_mfma", "v_swmmac", "hmma", "imma", "dpas"};

static uint64_t countMatrixInstructions(const char* text) {
    uint64_t count = 0;
    for (size_t i = 0; i < sizeof(matrixInstructions) / sizeof(matrixInstructions[0]); i++)
        for (const char* at = strstr(text, matrixInstructions[i]); at; at = strstr(at + 1, matrixInstructions[i]))
            count++;
    return count;
}

static void readMatrixInstructions(PFN_vkGetPipelineExecutableInternalRepresentationsKHR get, VkDevice device,
                                   const VkPipelineExecutableInfoKHR* which, Statistics* statistics) {
    enum { MOST = 32 };
    VkPipelineExecutableInternalRepresentationKHR texts[MOST];
    uint32_t count = MOST;
    memset(texts, 0, sizeof(texts));
    for (uint32_t i = 0; i < MOST; i++)
        texts[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR;
    if (get(device, which, &count, texts) < 0)
        return;
    for (uint32_t i = 0; i < count; i++)
        texts[i].pData = malloc(texts[i].dataSize + 1);
    if (get(device, which, &count, texts) >= 0 && count > 0) { // the last one is nearest to the hardware
        const VkPipelineExecutableInternalRepresentationKHR* last = &texts[count - 1];
        ((char*)last->pData)[last->dataSize] = 0;
        statistics->values[MATRIX] = countMatrixInstructions(last->pData);
        statistics->known[MATRIX] = true;
    }
    for (uint32_t i = 0; i < count; i++)
        free(texts[i].pData);
}

uint32_t readStatistics(PFN_vkGetInstanceProcAddr getProc, VkInstance instance, VkDevice device, VkPipeline pipeline,
                        Statistics statistics[MOST_EXECUTABLES]) {
#define CALL(name) ((PFN_##name)getProc(instance, #name))
    enum { MOST = 64 };
    const VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    VkPipelineExecutablePropertiesKHR executables[MOST_EXECUTABLES];
    uint32_t count = MOST_EXECUTABLES;
    for (uint32_t i = 0; i < count; i++)
        executables[i] = (VkPipelineExecutablePropertiesKHR){
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    if (CALL(vkGetPipelineExecutablePropertiesKHR)(device, &info, &count, executables) < 0)
        return 0;
    for (uint32_t e = 0; e < count; e++) {
        Statistics* to = &statistics[e];
        *to = (Statistics){.subgroupSize = executables[e].subgroupSize};
        const VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                                   .pipeline = pipeline, .executableIndex = e};
        VkPipelineExecutableStatisticKHR all[MOST];
        uint32_t statisticCount = MOST;
        for (uint32_t i = 0; i < MOST; i++)
            all[i] = (VkPipelineExecutableStatisticKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
        if (CALL(vkGetPipelineExecutableStatisticsKHR)(device, &which, &statisticCount, all) < 0)
            continue;
        for (uint32_t i = 0; i < statisticCount; i++)
            for (size_t s = 0; s < sizeof(sources) / sizeof(sources[0]); s++)
                if (strcmp(all[i].name, sources[s].name) == 0) {
                    to->values[sources[s].column] +=
                        all[i].format == VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR
                            ? (uint64_t)all[i].value.f64
                            : all[i].value.u64;
                    to->known[sources[s].column] = true;
                }
        readMatrixInstructions(CALL(vkGetPipelineExecutableInternalRepresentationsKHR), device, &which, to);
    }
    return count;
}

bool isWorse(int column, uint64_t value, uint64_t than) {
    if (column == WAVES || column == MATRIX) // the more the better
        return value * 11 < than * 10;
    return column == SPILLS ? value > than : value * 10 > than * 11;
}

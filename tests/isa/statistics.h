// What a compiler says about a pipeline, in one vocabulary for all drivers. SPDX-License-Identifier: MIT
#ifndef STATISTICS_H
#define STATISTICS_H

#include <stdbool.h>
#include <stdint.h>
#include <vulkan/vulkan_core.h>

enum { STATISTIC_COLUMNS = 7, MOST_EXECUTABLES = 8 };
// In print order: registers of a lane, words spilled to memory, bytes of shared memory, waves that fit a core,
// instructions, estimated cycles (comparable within one driver version), matrix instructions.
extern const char* const statisticNames[STATISTIC_COLUMNS];
enum { REGISTERS, SPILLS, SHARED, WAVES, INSTRUCTIONS, CYCLES, MATRIX };

typedef struct Statistics {
    uint32_t subgroupSize;
    uint64_t values[STATISTIC_COLUMNS];
    bool known[STATISTIC_COLUMNS];
} Statistics;

// Of a pipeline created with CAPTURE_STATISTICS and CAPTURE_INTERNAL_REPRESENTATIONS; one entry for each
// executable (drivers may compile several subgroup sizes). Returns their number.
uint32_t readStatistics(PFN_vkGetInstanceProcAddr getProc, VkInstance instance, VkDevice device, VkPipeline pipeline,
                        Statistics statistics[MOST_EXECUTABLES]);
// Whether a value is worse than another by more than a tenth.
bool isWorse(int column, uint64_t value, uint64_t than);

#endif

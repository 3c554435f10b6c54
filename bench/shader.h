// The tool's own small compute shaders: pipelines over storage buffers, recorded next to the library's.
// SPDX-License-Identifier: MIT
#ifndef BENCH_SHADER_H
#define BENCH_SHADER_H

#include "bench.h"

#define SHADER_FUNCTIONS(X)                                                                        \
    X(CreateShaderModule)                                                                          \
    X(DestroyShaderModule)                                                                         \
    X(CreateDescriptorSetLayout)                                                                   \
    X(DestroyDescriptorSetLayout)                                                                  \
    X(CreatePipelineLayout)                                                                        \
    X(DestroyPipelineLayout)                                                                       \
    X(CreateComputePipelines)                                                                      \
    X(DestroyPipeline)                                                                             \
    X(CreateDescriptorPool)                                                                        \
    X(DestroyDescriptorPool)                                                                       \
    X(AllocateDescriptorSets)                                                                      \
    X(UpdateDescriptorSets)                                                                        \
    X(CmdBindPipeline)                                                                             \
    X(CmdBindDescriptorSets)                                                                       \
    X(CmdPushConstants)                                                                            \
    X(CmdDispatch)                                                                                 \
    X(CmdPipelineBarrier)

typedef struct ShaderTable {
#define X(name) PFN_vk##name name;
    SHADER_FUNCTIONS(X)
#undef X
} ShaderTable;

enum { SHADER_MAX_BUFFERS = 4, PUSH_WORDS = 8 };

typedef struct Shader {
    const Session* session;
    VkShaderModule module;
    VkDescriptorSetLayout setLayout;
    VkPipelineLayout layout;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet* sets; // one per set of buffers
    uint32_t bufferCount, setCount;
} Shader;

typedef struct ShaderInfo {
    const uint32_t* code;
    size_t codeBytes; // 0: not built, BENCH_SKIPPED
    const char* name;
    uint32_t bufferCount; // bindings 0, 1, ... of set 0
    uint32_t setCount;
    const uint32_t* constants; // specialisation constants 0, 1, ...
    uint32_t constantCount;
} ShaderInfo;

BenchResult loadShaderTable(Session* session); // session->shaders
BenchResult createShader(const Session* session, const ShaderInfo* info, Shader* shader);
void destroyShader(Shader* shader);
void setBuffers(const Shader* shader, uint32_t set, const VkmqaBuffer* buffers);
// Waits for earlier compute and copies of the command buffer, then dispatches. The shader ends itself where the
// grid, which has two dimensions, goes beyond `groups`.
void recordShader(const Shader* shader, VkCommandBuffer commandBuffer, uint32_t set,
                  const uint32_t push[PUSH_WORDS], uint32_t groups);

#endif

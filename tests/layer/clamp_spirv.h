// What a compute shader takes of a device, read from its SPIR-V and the values of its specialisation constants.
#ifndef LAYER_CLAMP_SPIRV_H
#define LAYER_CLAMP_SPIRV_H

#include <stddef.h>
#include <stdint.h>

#include <vulkan/vulkan_core.h>

typedef struct ClampShader {
    uint32_t version;     // 0x00010300: SPIR-V 1.3
    uint32_t size[3];     // of a workgroup
    uint64_t shared;      // bytes of its variables in workgroup memory
    uint64_t capabilities; // bit k: capability k; above 63 in bit 63
    uint32_t unknown;     // an operation on constants that is not computed here, so that sizes may be wrong; or 0
} ClampShader;

ClampShader clampReadShader(const uint32_t* words, size_t count, const VkSpecializationInfo* values);

#endif

// SPDX-License-Identifier: MIT
#include "vk_table.h"

#include <stddef.h>
#include <string.h>

static VkResult report_missing(const char** missing, const char* name) {
    if (missing)
        *missing = name;
    return VK_ERROR_INCOMPATIBLE_DRIVER;
}

VkResult vkmqa_load_instance(struct VkmqaVk* vk, VkInstance instance,
                             PFN_vkGetInstanceProcAddr getInstanceProcAddr, const char** missing) {
    memset(vk, 0, sizeof(*vk));
    vk->GetInstanceProcAddr = getInstanceProcAddr;
#define LOAD(name)                                                                                 \
    vk->name = (PFN_vk##name)getInstanceProcAddr(instance, "vk" #name);                            \
    if (!vk->name)                                                                                 \
        return report_missing(missing, "vk" #name);
    VKMQA_VK_INSTANCE_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD(name) vk->name = (PFN_vk##name)getInstanceProcAddr(instance, "vk" #name);
    VKMQA_VK_OPTIONAL_INSTANCE_FUNCTIONS(LOAD)
#undef LOAD
    return VK_SUCCESS;
}

VkResult vkmqa_load_device(struct VkmqaVk* vk, VkDevice device, const char** missing) {
#define LOAD(name)                                                                                 \
    vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name);                            \
    if (!vk->name)                                                                                 \
        return report_missing(missing, "vk" #name);
    VKMQA_VK_DEVICE_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD_OPTIONAL(name, alias)                                                                 \
    vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name);                            \
    if (!vk->name)                                                                                 \
        vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #alias);
    VKMQA_VK_OPTIONAL_DEVICE_FUNCTIONS(LOAD_OPTIONAL)
#undef LOAD_OPTIONAL
    return VK_SUCCESS;
}

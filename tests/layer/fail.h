// A driver whose calls fail on demand (VKMQA_LAYER=fail, see layer.h). A place is a call of one entry point from one
// place of the program: its last few return addresses. The test runs a scenario once to learn the places, then again
// and again, each time with one place failing in one of the ways that the specification allows, and looks at what
// is left.
#ifndef LAYER_FAIL_H
#define LAYER_FAIL_H

#include <stdbool.h>
#include <stdint.h>

#include <vulkan/vulkan_core.h>

typedef struct LayerFailPlan {
    uint32_t place; // counted from 0 in the order of first use
    VkResult error;
    bool onwards; // every call that may return this error from there on, or that one call only
} LayerFailPlan;

// The layer exports one, vkmqaLayerFail. Threads may call it.
typedef struct LayerFail {
    // Forgets places and hits; plan null: nothing fails.
    void (*begin)(const LayerFailPlan* plan);
    // Calls count between watch(true) and watch(false).
    void (*watch)(bool on);
    bool (*watching)(void);
    uint32_t (*placeCount)(void);
    const char* (*placeEntry)(uint32_t place); // such as "vkCreateFence"
    // The errors that the entry may return, ended by VK_SUCCESS.
    const VkResult* (*errors)(const char* entry);
    bool (*hit)(void); // whether anything failed
    const char* (*hitEntry)(void); // what failed first
    // Objects made and not destroyed since the process began, by kind: "2 VkFence, 1 VkBuffer"; empty: none.
    const char* (*alive)(void);
    // For functions that are no Vulkan: counts a call, and says whether it has to fail.
    bool (*fails)(const char* entry);
} LayerFail;

#endif

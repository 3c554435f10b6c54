// A driver that loses work, to prove that the tests notice:
//   lose:dispatch  no dispatch is ever recorded
//   lose:second    of the dispatches of a command buffer, every second one is dropped
//   lose:submit    nothing that is submitted is executed; fences are still signalled
#include "layer.h"

#include <string.h>

static enum { DISPATCH, SECOND, SUBMIT } what;
static uint32_t dispatches;

static bool start(const char* how) {
    static const char* const names[] = {"dispatch", "second", "submit"};
    for (int i = 0; i < 3; i++)
        if (strcmp(how, names[i]) == 0) {
            what = i;
            return true;
        }
    return false;
}

static VKAPI_ATTR VkResult VKAPI_CALL beginCommandBuffer(VkCommandBuffer commandBuffer,
                                                         const VkCommandBufferBeginInfo* info) {
    dispatches = 0;
    return LAYER_NEXT(vkBeginCommandBuffer)(commandBuffer, info);
}

static bool loses(void) { return what == DISPATCH || (what == SECOND && dispatches++ % 2 == 1); }

static VKAPI_ATTR void VKAPI_CALL cmdDispatch(VkCommandBuffer commandBuffer, uint32_t x, uint32_t y, uint32_t z) {
    if (!loses())
        LAYER_NEXT(vkCmdDispatch)(commandBuffer, x, y, z);
}

static VKAPI_ATTR void VKAPI_CALL cmdDispatchBase(VkCommandBuffer commandBuffer, uint32_t baseX, uint32_t baseY,
                                                  uint32_t baseZ, uint32_t x, uint32_t y, uint32_t z) {
    if (!loses())
        LAYER_NEXT(vkCmdDispatchBase)(commandBuffer, baseX, baseY, baseZ, x, y, z);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo* submits,
                                                  VkFence fence) {
    return LAYER_NEXT(vkQueueSubmit)(queue, what == SUBMIT ? 0 : count, submits, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL queueSubmit2(VkQueue queue, uint32_t count, const VkSubmitInfo2* submits,
                                                   VkFence fence) {
    return LAYER_NEXT(vkQueueSubmit2)(queue, what == SUBMIT ? 0 : count, submits, fence);
}

static const LayerEntry entries[] = {
    LAYER_ENTRY(vkBeginCommandBuffer, beginCommandBuffer), LAYER_ENTRY(vkCmdDispatch, cmdDispatch),
    LAYER_ENTRY(vkCmdDispatchBase, cmdDispatchBase),       LAYER_ENTRY(vkQueueSubmit, queueSubmit),
    LAYER_ENTRY(vkQueueSubmit2, queueSubmit2),
};

const LayerModule layerLose = {.name = "lose", .start = start, .entries = entries,
                               .entryCount = sizeof(entries) / sizeof(entries[0])};

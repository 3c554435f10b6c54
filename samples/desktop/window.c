// GLFW, a device with one queue, a swapchain, and frames one after another. SPDX-License-Identifier: MIT
#include "desktop.h"

#include <string.h>

#define GLFW_INCLUDE_NONE
#include <GLFW/glfw3.h>

static void createInstance(Window* window) {
    uint32_t count, version;
    const char** names = glfwGetRequiredInstanceExtensions(&count);
    CHECK(vkEnumerateInstanceVersion(&version));
    window->apiVersion = version < VK_API_VERSION_1_3 ? version : VK_API_VERSION_1_3;
    CHECK(vkCreateInstance(&(VkInstanceCreateInfo){
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .enabledExtensionCount = count, .ppEnabledExtensionNames = names,
        .pApplicationInfo = &(VkApplicationInfo){.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                                 .apiVersion = window->apiVersion}}, NULL, &window->instance));
    CHECK(glfwCreateWindowSurface(window->instance, window->glfw, NULL, &window->surface));
}

// The first device with a family that computes and presents to the window.
static void choosePhysicalDevice(Window* window) {
    VkPhysicalDevice devices[16];
    uint32_t count = 16;
    CHECK(vkEnumeratePhysicalDevices(window->instance, &count, devices));
    for (uint32_t i = 0; i < count; ++i) {
        VkQueueFamilyProperties families[16];
        uint32_t familyCount = 16;
        vkGetPhysicalDeviceQueueFamilyProperties(devices[i], &familyCount, families);
        for (uint32_t f = 0; f < familyCount; ++f) {
            VkBool32 presents = VK_FALSE;
            CHECK(vkGetPhysicalDeviceSurfaceSupportKHR(devices[i], f, window->surface, &presents));
            if (presents && (families[f].queueFlags & VK_QUEUE_COMPUTE_BIT) &&
                (families[f].queueFlags & VK_QUEUE_GRAPHICS_BIT)) {
                window->physicalDevice = devices[i];
                window->family = f;
                return;
            }
        }
    }
    fprintf(stderr, "no Vulkan device can show this window\n");
    exit(1);
}

static void createDevice(Window* window) {
    // What vkmqa finds worth having; the application's own needs would go into the same lists.
    window->requirements.structSize = sizeof window->requirements;
    CHECK(vkmqaGetDeviceRequirements(&(VkmqaDeviceRequirementsInfo){
        .structSize = sizeof(VkmqaDeviceRequirementsInfo), .apiVersion = window->apiVersion,
        .instance = window->instance, .physicalDevice = window->physicalDevice,
        .getInstanceProcAddr = vkGetInstanceProcAddr}, &window->requirements));
    const char* extensions[64] = {VK_KHR_SWAPCHAIN_EXTENSION_NAME};
    uint32_t count = 1;
    for (uint32_t i = 0; i < window->requirements.extensionCount && count < 64; ++i)
        extensions[count++] = window->requirements.extensionNames[i];
    const float priority = 1;
    CHECK(vkCreateDevice(window->physicalDevice, &(VkDeviceCreateInfo){
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .pNext = window->requirements.features,
        .queueCreateInfoCount = 1,
        .pQueueCreateInfos = &(VkDeviceQueueCreateInfo){.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                                        .queueFamilyIndex = window->family, .queueCount = 1,
                                                        .pQueuePriorities = &priority},
        .enabledExtensionCount = count, .ppEnabledExtensionNames = extensions}, NULL, &window->device));
    vkGetDeviceQueue(window->device, window->family, 0, &window->queue);
}

static void createSwapchain(Window* window) {
    VkSurfaceCapabilitiesKHR can;
    VkSurfaceFormatKHR formats[32];
    uint32_t count = 32;
    CHECK(vkGetPhysicalDeviceSurfaceCapabilitiesKHR(window->physicalDevice, window->surface, &can));
    CHECK(vkGetPhysicalDeviceSurfaceFormatsKHR(window->physicalDevice, window->surface, &count, formats));
    uint32_t chosen = 0; // 8 bits, not sRGB: colours are written as they are meant
    for (uint32_t i = 0; i < count; ++i)
        if (formats[i].format == VK_FORMAT_B8G8R8A8_UNORM || formats[i].format == VK_FORMAT_R8G8B8A8_UNORM)
            chosen = i;
    int width, height;
    glfwGetFramebufferSize(window->glfw, &width, &height);
    window->format = formats[chosen].format;
    window->extent = can.currentExtent.width != UINT32_MAX ? can.currentExtent
                                                           : (VkExtent2D){(uint32_t)width, (uint32_t)height};
    VkSwapchainKHR old = window->swapchain;
    uint32_t wanted = can.minImageCount + 1;
    CHECK(vkCreateSwapchainKHR(window->device, &(VkSwapchainCreateInfoKHR){
        .sType = VK_STRUCTURE_TYPE_SWAPCHAIN_CREATE_INFO_KHR, .surface = window->surface,
        .minImageCount = can.maxImageCount && wanted > can.maxImageCount ? can.maxImageCount : wanted,
        .imageFormat = formats[chosen].format, .imageColorSpace = formats[chosen].colorSpace,
        .imageExtent = window->extent, .imageArrayLayers = 1,
        .imageUsage = VK_IMAGE_USAGE_TRANSFER_DST_BIT | VK_IMAGE_USAGE_TRANSFER_SRC_BIT,
        .preTransform = can.currentTransform, .compositeAlpha = VK_COMPOSITE_ALPHA_OPAQUE_BIT_KHR,
        .presentMode = VK_PRESENT_MODE_FIFO_KHR, .clipped = VK_TRUE, .oldSwapchain = old}, NULL, &window->swapchain));
    vkDestroySwapchainKHR(window->device, old, NULL);
    window->imageCount = 8;
    VkResult listed = vkGetSwapchainImagesKHR(window->device, window->swapchain, &window->imageCount, window->images);
    CHECK(listed == VK_INCOMPLETE ? VK_ERROR_TOO_MANY_OBJECTS : listed); // of which any may be acquired
}

static uint32_t memoryType(const Window* window, uint32_t bits, VkMemoryPropertyFlags flags) {
    VkPhysicalDeviceMemoryProperties memory;
    vkGetPhysicalDeviceMemoryProperties(window->physicalDevice, &memory);
    for (uint32_t i = 0; i < memory.memoryTypeCount; ++i)
        if ((bits >> i & 1) && (memory.memoryTypes[i].propertyFlags & flags) == flags)
            return i;
    fprintf(stderr, "no memory type\n");
    exit(1);
}

static void createCanvas(Window* window) {
    CHECK(vkCreateImage(window->device, &(VkImageCreateInfo){
        .sType = VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO, .imageType = VK_IMAGE_TYPE_2D,
        .format = VK_FORMAT_R8G8B8A8_UNORM, .extent = {WIDTH, HEIGHT, 1}, .mipLevels = 1, .arrayLayers = 1,
        .samples = VK_SAMPLE_COUNT_1_BIT, .tiling = VK_IMAGE_TILING_OPTIMAL,
        .usage = VK_IMAGE_USAGE_STORAGE_BIT | VK_IMAGE_USAGE_TRANSFER_SRC_BIT}, NULL, &window->canvas));
    VkMemoryRequirements needs;
    vkGetImageMemoryRequirements(window->device, window->canvas, &needs);
    CHECK(vkAllocateMemory(window->device, &(VkMemoryAllocateInfo){
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size,
        .memoryTypeIndex = memoryType(window, needs.memoryTypeBits, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT)}, NULL,
        &window->canvasMemory));
    CHECK(vkBindImageMemory(window->device, window->canvas, window->canvasMemory, 0));
    CHECK(vkCreateImageView(window->device, &(VkImageViewCreateInfo){
        .sType = VK_STRUCTURE_TYPE_IMAGE_VIEW_CREATE_INFO, .image = window->canvas, .viewType = VK_IMAGE_VIEW_TYPE_2D,
        .format = VK_FORMAT_R8G8B8A8_UNORM, .subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}}, NULL,
        &window->canvasView));
}

void windowOpen(Window* window) {
    memset(window, 0, sizeof *window);
    if (!glfwInit() || !glfwVulkanSupported()) {
        fprintf(stderr, "no display, or no Vulkan on it\n");
        exit(77);
    }
    glfwWindowHint(GLFW_CLIENT_API, GLFW_NO_API);
    window->glfw = glfwCreateWindow(WIDTH, HEIGHT, "vkmqa: attention beside rendering", NULL, NULL);
    createInstance(window);
    choosePhysicalDevice(window);
    createDevice(window);
    createSwapchain(window);
    createCanvas(window);
    CHECK(vkCreateCommandPool(window->device, &(VkCommandPoolCreateInfo){
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = window->family}, NULL, &window->pool));
    CHECK(vkAllocateCommandBuffers(window->device, &(VkCommandBufferAllocateInfo){
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO, .commandPool = window->pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY, .commandBufferCount = 1}, &window->commands));
    CHECK(vkCreateFence(window->device, &(VkFenceCreateInfo){.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO,
                                                             .flags = VK_FENCE_CREATE_SIGNALED_BIT}, NULL, &window->fence));
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
    CHECK(vkCreateSemaphore(window->device, &semaphore, NULL, &window->acquired));
    for (int i = 0; i < 8; ++i) // one for each image that may be on its way to the screen
        CHECK(vkCreateSemaphore(window->device, &semaphore, NULL, &window->drawn[i]));
    CHECK(vkCreateQueryPool(window->device, &(VkQueryPoolCreateInfo){
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = 2}, NULL,
        &window->queries));
}

static void toLayout(VkCommandBuffer commands, VkImage image, VkImageLayout from, VkImageLayout to) {
    VkImageMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT, .oldLayout = from, .newLayout = to,
        .srcQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED, .dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED, .image = image,
        .subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}};
    vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, 0, 0, NULL, 0,
                         NULL, 1, &barrier);
}

// Seconds between the timestamps of the frame that has finished.
static double readGuestSeconds(const Window* window) {
    uint64_t ticks[2];
    VkPhysicalDeviceProperties properties;
    if (vkGetQueryPoolResults(window->device, window->queries, 0, 2, sizeof ticks, ticks, 8, VK_QUERY_RESULT_64_BIT))
        return 0;
    vkGetPhysicalDeviceProperties(window->physicalDevice, &properties);
    return (double)(ticks[1] - ticks[0]) * 1e-9 * (double)properties.limits.timestampPeriod;
}

VkCommandBuffer windowBeginFrame(Window* window) {
    CHECK(vkWaitForFences(window->device, 1, &window->fence, VK_TRUE, UINT64_MAX));
    VkResult result = vkAcquireNextImageKHR(window->device, window->swapchain, UINT64_MAX, window->acquired,
                                            VK_NULL_HANDLE, &window->image);
    if (result == VK_ERROR_OUT_OF_DATE_KHR) {
        CHECK(vkQueueWaitIdle(window->queue));
        createSwapchain(window);
        return VK_NULL_HANDLE;
    }
    CHECK(result);
    static bool drawn; // the first frame has no queries to read
    window->guestSeconds = drawn ? readGuestSeconds(window) : 0;
    VkImageLayout canvasWas = drawn ? VK_IMAGE_LAYOUT_GENERAL : VK_IMAGE_LAYOUT_UNDEFINED;
    drawn = true;
    CHECK(vkResetFences(window->device, 1, &window->fence));
    CHECK(vkResetCommandPool(window->device, window->pool, 0));
    CHECK(vkBeginCommandBuffer(window->commands, &(VkCommandBufferBeginInfo){
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO, .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT}));
    vkCmdResetQueryPool(window->commands, window->queries, 0, 2);
    toLayout(window->commands, window->canvas, canvasWas, VK_IMAGE_LAYOUT_GENERAL);
    return window->commands;
}

void windowGuestBegins(Window* window) {
    vkCmdWriteTimestamp(window->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, window->queries, 0);
}
void windowGuestEnds(Window* window) {
    vkCmdWriteTimestamp(window->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, window->queries, 1);
}

// ---- Pictures of what is shown -----------------------------------------------------------------------

typedef struct Picture {
    VkBuffer buffer;
    VkDeviceMemory memory;
} Picture;

static Picture recordPicture(Window* window) {
    Picture picture;
    VkExtent2D extent = window->extent;
    CHECK(vkCreateBuffer(window->device, &(VkBufferCreateInfo){
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = (VkDeviceSize)extent.width * extent.height * 4,
        .usage = VK_BUFFER_USAGE_TRANSFER_DST_BIT}, NULL, &picture.buffer));
    VkMemoryRequirements needs;
    vkGetBufferMemoryRequirements(window->device, picture.buffer, &needs);
    CHECK(vkAllocateMemory(window->device, &(VkMemoryAllocateInfo){
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size,
        .memoryTypeIndex = memoryType(window, needs.memoryTypeBits, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                                                        VK_MEMORY_PROPERTY_HOST_COHERENT_BIT)}, NULL,
        &picture.memory));
    CHECK(vkBindBufferMemory(window->device, picture.buffer, picture.memory, 0));
    VkImage image = window->images[window->image];
    toLayout(window->commands, image, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL);
    vkCmdCopyImageToBuffer(window->commands, image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, picture.buffer, 1,
                           &(VkBufferImageCopy){.imageSubresource = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1},
                                                .imageExtent = {extent.width, extent.height, 1}});
    toLayout(window->commands, image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL);
    vkCmdPipelineBarrier(window->commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                         &(VkMemoryBarrier){.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                            .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                            .dstAccessMask = VK_ACCESS_HOST_READ_BIT}, 0, NULL, 0, NULL);
    return picture;
}

static void writePicture(const Window* window, Picture picture, const char* name) {
    void* mapped;
    FILE* file = fopen(name, "wb");
    if (!file) {
        perror(name);
        exit(1);
    }
    CHECK(vkMapMemory(window->device, picture.memory, 0, VK_WHOLE_SIZE, 0, &mapped));
    fprintf(file, "P6\n%u %u\n255\n", window->extent.width, window->extent.height);
    bool reversed = window->format == VK_FORMAT_B8G8R8A8_UNORM;
    for (size_t i = 0; i < (size_t)window->extent.width * window->extent.height; ++i) {
        const unsigned char* p = (const unsigned char*)mapped + 4 * i;
        const unsigned char rgb[3] = {p[reversed ? 2 : 0], p[1], p[reversed ? 0 : 2]};
        fwrite(rgb, 1, 3, file);
    }
    if (fclose(file)) {
        perror(name);
        exit(1);
    }
    vkDestroyBuffer(window->device, picture.buffer, NULL);
    vkFreeMemory(window->device, picture.memory, NULL);
}

void windowEndFrame(Window* window, const char* shot) {
    VkImage image = window->images[window->image];
    const VkImageSubresourceLayers colour = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1};
    toLayout(window->commands, image, VK_IMAGE_LAYOUT_UNDEFINED, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL);
    toLayout(window->commands, window->canvas, VK_IMAGE_LAYOUT_GENERAL, VK_IMAGE_LAYOUT_GENERAL);
    vkCmdBlitImage(window->commands, window->canvas, VK_IMAGE_LAYOUT_GENERAL, image,
                   VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, 1,
                   &(VkImageBlit){.srcSubresource = colour, .srcOffsets = {{0, 0, 0}, {WIDTH, HEIGHT, 1}},
                                  .dstSubresource = colour,
                                  .dstOffsets = {{0, 0, 0}, {(int32_t)window->extent.width,
                                                             (int32_t)window->extent.height, 1}}}, VK_FILTER_NEAREST);
    Picture picture = {0};
    if (shot)
        picture = recordPicture(window);
    toLayout(window->commands, image, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, VK_IMAGE_LAYOUT_PRESENT_SRC_KHR);
    CHECK(vkEndCommandBuffer(window->commands));
    const VkPipelineStageFlags wait = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    CHECK(vkQueueSubmit(window->queue, 1, &(VkSubmitInfo){
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .waitSemaphoreCount = 1, .pWaitSemaphores = &window->acquired,
        .pWaitDstStageMask = &wait, .commandBufferCount = 1, .pCommandBuffers = &window->commands,
        .signalSemaphoreCount = 1, .pSignalSemaphores = &window->drawn[window->image]}, window->fence));
    if (shot) {
        CHECK(vkWaitForFences(window->device, 1, &window->fence, VK_TRUE, UINT64_MAX));
        writePicture(window, picture, shot);
    }
    VkResult result = vkQueuePresentKHR(window->queue, &(VkPresentInfoKHR){
        .sType = VK_STRUCTURE_TYPE_PRESENT_INFO_KHR, .waitSemaphoreCount = 1,
        .pWaitSemaphores = &window->drawn[window->image], .swapchainCount = 1, .pSwapchains = &window->swapchain,
        .pImageIndices = &window->image});
    if (result != VK_ERROR_OUT_OF_DATE_KHR) // then the next frame makes a new swapchain
        CHECK(result);
}

void windowClose(Window* window) {
    vkDestroyQueryPool(window->device, window->queries, NULL);
    for (int i = 0; i < 8; ++i)
        vkDestroySemaphore(window->device, window->drawn[i], NULL);
    vkDestroySemaphore(window->device, window->acquired, NULL);
    vkDestroyFence(window->device, window->fence, NULL);
    vkDestroyCommandPool(window->device, window->pool, NULL);
    vkDestroyImageView(window->device, window->canvasView, NULL);
    vkDestroyImage(window->device, window->canvas, NULL);
    vkFreeMemory(window->device, window->canvasMemory, NULL);
    vkDestroySwapchainKHR(window->device, window->swapchain, NULL);
    vkDestroyDevice(window->device, NULL);
    vkDestroySurfaceKHR(window->instance, window->surface, NULL);
    vkDestroyInstance(window->instance, NULL);
    glfwDestroyWindow(window->glfw);
    glfwTerminate();
}

// A window that renders every frame while attention over a long context runs in slices beside it. The application owns
// the Vulkan device and its one queue; vkmqa is a guest on both.
//   main.c     options, the loop, what the frames took
//   window.c   GLFW, the device, swapchain and frames: nothing of vkmqa but what the device has to enable
//   model.c    the guest: cache, queries, slices
//   view.c     attention weights and frame times, drawn from GPU buffers without a copy to the host
// SPDX-License-Identifier: MIT
#ifndef DESKTOP_H
#define DESKTOP_H

#include <vulkan/vulkan.h>

#include <vkmqa/vkmqa_runtime.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

// A sample's error handling: say where, and end.
#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        VkResult result_ = (call);                                                                                     \
        if (result_ < 0) {                                                                                             \
            fprintf(stderr, "%s:%d: %s returned %d\n", __FILE__, __LINE__, #call, result_);                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { WIDTH = 640, HEAT_HEIGHT = 256, GRAPH_HEIGHT = 104, HEIGHT = HEAT_HEIGHT + GRAPH_HEIGHT };

// ---- window.c ----

struct GLFWwindow;
typedef struct Window {
    struct GLFWwindow* glfw;
    VkInstance instance;
    VkSurfaceKHR surface;
    VkPhysicalDevice physicalDevice;
    VkDevice device;
    VkQueue queue;
    uint32_t family, apiVersion;
    VkmqaDeviceRequirements requirements; // enabled extensions and features
    VkSwapchainKHR swapchain;
    VkExtent2D extent;
    VkFormat format;
    VkImage images[8];
    VkSemaphore acquired, drawn[8];
    uint32_t imageCount, image; // the frame's
    VkImage canvas;             // WIDTH x HEIGHT, rgba8: what the view draws on, in VK_IMAGE_LAYOUT_GENERAL
    VkImageView canvasView;
    VkDeviceMemory canvasMemory;
    VkCommandPool pool;
    VkCommandBuffer commands;
    VkFence fence;
    VkQueryPool queries; // two timestamps around the guest's work
    double guestSeconds; // of the frame before
} Window;

void windowOpen(Window* window);
// Waits for the frame before and begins the next one; null: no image to draw to, try again.
VkCommandBuffer windowBeginFrame(Window* window);
void windowGuestBegins(Window* window);
void windowGuestEnds(Window* window);
// Shows the canvas. shot: null, or where to write a PPM picture of what is shown.
void windowEndFrame(Window* window, const char* shot);
void windowClose(Window* window);

// ---- model.c ----

enum { TOKENS = 64, HEADS_KV = 2, DIM = 64, MAX_HEADS = 32, MAX_CONTEXT = 65536 };

typedef struct Model {
    VkmqaDevice device; // vkmqa's, on the window's
    VkmqaRecorder recorder;
    VkmqaContext context;
    VkmqaAttention attention;
    uint32_t heads, tokens; // query heads; context in tokens
    VkmqaMemory k, v, scratch, metadata, out, q[2], lse[2]; // q and lse of the step that runs and the one that is shown
    VkmqaStep step;
    VkmqaKv kv;
    uint32_t running;       // index of q and lse
    bool busy;              // a step is under way
    uint64_t done;          // its workgroups recorded
    double correction, predicted;
    uint32_t steps;         // finished
    float looksAt[2][MAX_HEADS]; // the position that each head was made to look at, as a fraction of the context
} Model;

void modelOpen(Model* model, const Window* window, uint32_t heads, uint32_t tokens);
void modelResize(Model* model, uint32_t heads, uint32_t tokens); // the queue is idle
// Records a slice of about so many seconds, or with 0 the whole step. measured: what the last one took.
void modelRecord(Model* model, VkCommandBuffer commands, double seconds, double measured);
void modelClose(Model* model);

// ---- view.c ----

typedef struct View {
    VkDescriptorSetLayout setLayout;
    VkDescriptorPool pool;
    VkDescriptorSet set;
    VkPipelineLayout layout;
    VkPipeline weights, draw;
    VkmqaMemory heat;  // f32 [MAX_HEADS, WIDTH]
    VkmqaMemory times; // f32 [WIDTH] milliseconds of frames, a ring
    uint32_t frame;
} View;

void viewOpen(View* view, const Window* window, const Model* model);
void viewRecord(View* view, const Window* window, const Model* model, VkCommandBuffer commands, double frameSeconds);
void viewClose(View* view, const Window* window);

#endif

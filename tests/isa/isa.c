// What real compilers make of the kernels: creates the pipelines of well-known shapes on whatever device the
// driver shows and prints one line an executable of registers, spills, occupancy and instructions. Nothing
// executes, so it runs where the hardware is a shim: scripts/toolbox run navi31 -- isa ...
//   isa              print the table
//   isa TABLE        print it, and judge by the committed one
//   isa TABLE --update    write it; lines keep their reasons
// A committed line may end in "# reason": why its spills, or its lack of matrix instructions, stay. Judged are the
// lines of the driver version that the table is of; another version is reported. Exit: 0 good, 1 worse, 77 no such
// device. SPDX-License-Identifier: MIT
#include "core/context.h"
#include "device/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "statistics.h"

static PFN_vkGetInstanceProcAddr getProc;
static PFN_vkGetDeviceProcAddr getDeviceProc;
static PFN_vkCreateComputePipelines createPipelines;
static VkInstance instance;
static VkDevice device;
#define CALL(name) ((PFN_##name)getProc(instance, #name))

// ---- What is compiled ------------------------------------------------------------------------------

typedef struct Shape {
    const char* name;
    VkmqaAttentionCreateInfo info;
} Shape;
#define SHAPE(text, heads, headsKv, dim, ...)                                                      \
    {text,                                                                                         \
     {.structSize = sizeof(VkmqaAttentionCreateInfo), .numHeadsQ = heads, .numHeadsKv = headsKv,   \
      .headDimQk = dim, .pageSize = 16, .maxSeqLenKv = 131072, .ioType = VKMQA_TYPE_F16,           \
      __VA_ARGS__}}
#define CAUSAL .flags = VKMQA_ATTENTION_CAUSAL_BIT
#define Q8_0 .vType = VKMQA_TYPE_Q8_0, .kType = VKMQA_TYPE_Q8_0
static const Shape shapes[] = {
    SHAPE("mha-d64", 32, 32, 64, CAUSAL),
    SHAPE("mha-d128", 32, 32, 128, CAUSAL),
    SHAPE("gqa4-d128", 32, 8, 128, CAUSAL),
    SHAPE("gqa8-d64", 64, 8, 64, CAUSAL),
    SHAPE("gqa8-d128", 64, 8, 128, CAUSAL),
    SHAPE("gqa8-d128-q8_0", 64, 8, 128, CAUSAL, Q8_0),
    SHAPE("gqa8-d128-bf16", 64, 8, 128, CAUSAL, .kType = VKMQA_TYPE_BF16, .vType = VKMQA_TYPE_BF16),
    SHAPE("gqa8-d128-window", 64, 8, 128, .softcap = 50, .windowLeft = 1023,
          .flags = VKMQA_ATTENTION_CAUSAL_BIT | VKMQA_ATTENTION_WINDOW_LEFT_BIT),
    SHAPE("mqa32-d128", 32, 1, 128, CAUSAL),
    SHAPE("mqa71-d64", 71, 1, 64, CAUSAL),
    SHAPE("mqa8-d256", 8, 1, 256, CAUSAL),
    SHAPE("mla128", 128, 1, 576, .headDimV = 512,
          .flags = VKMQA_ATTENTION_CAUSAL_BIT | VKMQA_ATTENTION_V_PREFIX_OF_K_BIT),
    SHAPE("subgroup-d128", 32, 8, 128, CAUSAL, .tier = VKMQA_TIER_SUBGROUP),
    SHAPE("portable-d128", 32, 8, 128, CAUSAL, .tier = VKMQA_TIER_PORTABLE),
};

// ---- The committed table ---------------------------------------------------------------------------

enum { MOST_LINES = 200, LINE = 256 };
static char committed[MOST_LINES][LINE]; // the driver, the head, then the lines
static size_t committedCount;
static char driver[3 * LINE]; // the table's first line, for this device

static void readTable(const char* path) {
    FILE* file = fopen(path, "r");
    if (!file)
        return;
    while (committedCount < MOST_LINES && fgets(committed[committedCount], LINE, file)) {
        committed[committedCount][strcspn(committed[committedCount], "\n")] = 0;
        committedCount++;
    }
    fclose(file);
}

// The committed line with this key (shape, kernel, subgroup size), or null.
static const char* findLine(const char* key) {
    for (size_t i = 1; i < committedCount; i++)
        if (strncmp(committed[i], key, strlen(key)) == 0)
            return committed[i];
    return NULL;
}

static void print(FILE* file, const char* key, const Statistics* statistics, const char* old) {
    fputs(key, file);
    for (int c = 0; c < STATISTIC_COLUMNS; c++)
        if (statistics->known[c])
            fprintf(file, " %9llu", (unsigned long long)statistics->values[c]);
        else
            fprintf(file, " %9s", "-");
    const char* reason = old ? strchr(old, '#') : NULL;
    fprintf(file, "%s%s\n", reason ? "  " : "", reason ? reason : "");
}

// The number of ways in which the pipeline is worse than its committed line.
static int judge(const char* key, const Statistics* statistics, const char* old, bool wantsMatrix) {
    int worse = 0;
    const char* at = old ? old + strlen(key) : NULL;
    bool excused = old && strchr(old, '#');
    if (statistics->values[SPILLS] > 0 && !excused)
        worse += printf("  WORSE: %llu spills\n", (unsigned long long)statistics->values[SPILLS]) > 0;
    if (wantsMatrix && statistics->known[MATRIX] && statistics->values[MATRIX] == 0 && !excused)
        worse += printf("  WORSE: no matrix instruction\n") > 0;
    if (!old)
        worse += printf("  WORSE: no such line in the table; update it\n") > 0;
    for (int c = 0; at && c < STATISTIC_COLUMNS; c++) {
        char* end;
        uint64_t than = strtoull(at, &end, 10);
        bool known = end != at;
        at = known ? end : strchr(at, '-') ? strchr(at, '-') + 1 : NULL;
        if (known && !statistics->known[c])
            worse += printf("  WORSE: the driver no longer says %s\n", statisticNames[c]) > 0;
        else if (known && isWorse(c, statistics->values[c], than))
            worse += printf("  WORSE: %s was %llu\n", statisticNames[c], (unsigned long long)than) > 0;
    }
    return worse;
}

// ---- The device ------------------------------------------------------------------------------------

// Every pipeline of the library keeps its statistics.
static VKAPI_ATTR VkResult VKAPI_CALL createWithStatistics(VkDevice owner, VkPipelineCache cache, uint32_t count,
                                                           const VkComputePipelineCreateInfo* infos,
                                                           const VkAllocationCallbacks* allocator,
                                                           VkPipeline* pipelines) {
    VkComputePipelineCreateInfo* copies = malloc(count * sizeof(*copies));
    if (!copies)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    for (uint32_t i = 0; i < count; i++) {
        copies[i] = infos[i];
        copies[i].flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
                           VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR;
    }
    VkResult result = createPipelines(owner, cache, count, copies, allocator, pipelines);
    free(copies);
    return result;
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL deviceProc(VkDevice owner, const char* name) {
    if (strcmp(name, "vkCreateComputePipelines") == 0)
        return (PFN_vkVoidFunction)createWithStatistics;
    return getDeviceProc(owner, name);
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instanceProc(VkInstance owner, const char* name) {
    if (strcmp(name, "vkGetDeviceProcAddr") == 0)
        return (PFN_vkVoidFunction)deviceProc;
    return getProc(owner, name);
}

static void onMessage(VkmqaSeverity severity, const char* text, void* user) {
    (void)severity, (void)user;
    printf("%s\n", text);
}

// Exits with 77 where there is no device with statistics.
static VkmqaContext openContext(void) {
    void* library = dlopen("libvulkan.so.1", RTLD_NOW);
    void* symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    memcpy(&getProc, &symbol, sizeof(symbol)); // ISO C has no cast between the two kinds of pointer
    const VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
    const VkInstanceCreateInfo instanceInfo = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                               .pApplicationInfo = &app};
    VkPhysicalDevice physical;
    uint32_t count = 1;
    if (!getProc || CALL(vkCreateInstance)(&instanceInfo, NULL, &instance) != VK_SUCCESS ||
        CALL(vkEnumeratePhysicalDevices)(instance, &count, &physical) < 0 || count == 0) {
        printf("skipped: no Vulkan device\n");
        exit(77);
    }
    VkPhysicalDeviceDriverProperties driverProperties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                              .pNext = &driverProperties};
    CALL(vkGetPhysicalDeviceProperties2)(physical, &properties);
    snprintf(driver, sizeof(driver), "%s, %s", driverProperties.driverName, driverProperties.driverInfo);
    VkmqaDeviceRequirements requirements = {.structSize = sizeof(requirements)};
    const VkmqaDeviceRequirementsInfo ask = {.structSize = sizeof(ask), .apiVersion = VK_API_VERSION_1_3,
                                             .instance = instance, .physicalDevice = physical,
                                             .getInstanceProcAddr = getProc};
    if (vkmqaGetDeviceRequirements(&ask, &requirements) != VK_SUCCESS)
        exit(1);
    const char* names[64] = {VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME};
    if (requirements.extensionCount + 1 > sizeof(names) / sizeof(names[0]))
        exit(1);
    for (uint32_t i = 0; i < requirements.extensionCount; i++)
        names[i + 1] = requirements.extensionNames[i];
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR statistics = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pNext = requirements.features,
        .pipelineExecutableInfo = VK_TRUE};
    const float priority = 1;
    const VkDeviceQueueCreateInfo queueInfo = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                               .queueCount = 1, .pQueuePriorities = &priority};
    const VkDeviceCreateInfo deviceInfo = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                           .pNext = &statistics,
                                           .queueCreateInfoCount = 1,
                                           .pQueueCreateInfos = &queueInfo,
                                           .enabledExtensionCount = requirements.extensionCount + 1,
                                           .ppEnabledExtensionNames = names};
    if (CALL(vkCreateDevice)(physical, &deviceInfo, NULL, &device) != VK_SUCCESS) {
        printf("skipped: %s has no pipeline statistics\n", properties.properties.deviceName);
        exit(77);
    }
    getDeviceProc = (PFN_vkGetDeviceProcAddr)getProc(instance, "vkGetDeviceProcAddr");
    createPipelines = (PFN_vkCreateComputePipelines)getDeviceProc(device, "vkCreateComputePipelines");
    const VkmqaContextCreateInfo contextInfo = {.structSize = sizeof(contextInfo),
                                                .apiVersion = VK_API_VERSION_1_3,
                                                .instance = instance,
                                                .physicalDevice = physical,
                                                .device = device,
                                                .getInstanceProcAddr = instanceProc,
                                                .enabledExtensionCount = requirements.extensionCount + 1,
                                                .enabledExtensions = names,
                                                .enabledFeatures = requirements.features,
                                                .messageCallback = onMessage,
                                                .runJobs = vkmqa_run_jobs};
    VkmqaContext context;
    if (vkmqaCreateContext(&contextInfo, &context) != VK_SUCCESS)
        exit(1);
    return context;
}

int main(int argc, char** argv) {
    const char* path = argc > 1 ? argv[1] : NULL;
    bool update = argc > 2 && strcmp(argv[2], "--update") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    VkmqaContext context = openContext();
    if (path)
        readTable(path);
    bool judged = path && !update && committedCount && strcmp(committed[0], driver) == 0;
    FILE* file = update ? fopen(path, "w") : stdout;
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file, "%s\n%-18s %-12s %8s", driver, "shape", "kernel", "subgroup");
    for (int c = 0; c < STATISTIC_COLUMNS; c++)
        fprintf(file, " %9s", statisticNames[c]);
    fprintf(file, "\n");
    int worse = 0;
    size_t lines = 2; // with the two above
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        VkmqaAttention attention;
        if (vkmqaCreateAttention(context, &shapes[i].info, &attention) != VK_SUCCESS) {
            worse++;
            continue;
        }
        const struct VkmqaChoice* choice = &attention->choice;
        struct {
            const char* name;
            VkPipeline pipeline;
            bool matrix;
        } pipelines[VKMQA_MAX_CANDIDATES + 2];
        uint32_t count = 0;
        for (; count < choice->count; count++) {
            pipelines[count].name = choice->candidates[count].name;
            pipelines[count].pipeline = attention->attention[count];
            pipelines[count].matrix = choice->candidates[count].matrix.m != 0;
        }
        pipelines[count].name = vkmqaGetKernelName(choice->appendKernel);
        pipelines[count].pipeline = attention->append;
        pipelines[count++].matrix = false;
        pipelines[count].name = "merge";
        pipelines[count].pipeline = attention->merge;
        pipelines[count++].matrix = false;
        for (uint32_t p = 0; p < count; p++) {
            Statistics statistics[MOST_EXECUTABLES];
            uint32_t executables = readStatistics(getProc, instance, device, pipelines[p].pipeline, statistics);
            for (uint32_t e = 0; e < executables; e++) {
                char key[64];
                snprintf(key, sizeof(key), "%-18s %-12s %8u", shapes[i].name, pipelines[p].name,
                         statistics[e].subgroupSize);
                const char* old = findLine(key);
                print(file, key, &statistics[e], old);
                lines++;
                if (judged)
                    worse += judge(key, &statistics[e], old, pipelines[p].matrix);
            }
        }
    }
    if (update)
        fclose(file);
    if (path && !update && !committedCount)
        worse += printf("  WORSE: %s is missing or empty; make it with --update\n", path) > 0;
    else if (path && !update && !judged)
        printf("skipped: reported, not judged: the table is of %s\n", committed[0]);
    if (judged && lines < committedCount) // a driver that says nothing must not pass
        worse += printf("  WORSE: %zu lines of the table have no pipeline; update it\n", committedCount - lines) > 0;
    if (judged)
        printf("%d worse than %s\n", worse, path);
    fflush(stdout);
    _Exit(worse > 0 ? 1 : judged || update || !path ? 0 : 77); // shims do not survive the destruction of a device
}

// Makes two mistakes on purpose, a buffer of size 0 and two fills with no barrier between them, and
// succeeds only if the validation layer reports both. Exit 77: no driver, or no layer.
#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static int sizeReported, hazardReported;

static VKAPI_ATTR VkBool32 VKAPI_CALL onMessage(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                VkDebugUtilsMessageTypeFlagsEXT types,
                                                const VkDebugUtilsMessengerCallbackDataEXT* data,
                                                void* user) {
    (void)severity, (void)types, (void)user;
    const char* id = data->pMessageIdName ? data->pMessageIdName : "";
    if (strncmp(id, "BestPractices-", 14) == 0) // what the tests look for under --validate=best
        printf("%s\n", id);
    sizeReported |= strstr(id, "VUID-VkBufferCreateInfo-size-00912") != NULL;
    hazardReported |= strstr(id, "SYNC-HAZARD-WRITE-AFTER-WRITE") != NULL;
    return VK_FALSE;
}

static PFN_vkGetInstanceProcAddr getProc;
static VkInstance instance;
#define CALL(name) ((PFN_##name)getProc(instance, #name))

// Two fills of one range, recorded without a barrier.
static void recordHazard(VkDevice device, VkPhysicalDevice physical) {
    VkBufferCreateInfo bufferInfo = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = 256,
                                     .usage = VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    VkBuffer buffer;
    CALL(vkCreateBuffer)(device, &bufferInfo, NULL, &buffer);
    VkMemoryRequirements needs;
    CALL(vkGetBufferMemoryRequirements)(device, buffer, &needs);
    VkPhysicalDeviceMemoryProperties memory;
    CALL(vkGetPhysicalDeviceMemoryProperties)(physical, &memory);
    uint32_t type = 0;
    while (type + 1 < memory.memoryTypeCount && !(needs.memoryTypeBits >> type & 1))
        type++;
    VkMemoryAllocateInfo allocateInfo = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                         .allocationSize = needs.size,
                                         .memoryTypeIndex = type};
    VkDeviceMemory allocation;
    CALL(vkAllocateMemory)(device, &allocateInfo, NULL, &allocation);
    CALL(vkBindBufferMemory)(device, buffer, allocation, 0);

    VkCommandPoolCreateInfo poolInfo = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
    VkCommandPool pool;
    CALL(vkCreateCommandPool)(device, &poolInfo, NULL, &pool);
    VkCommandBufferAllocateInfo commandInfo = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                               .commandPool = pool,
                                               .commandBufferCount = 1};
    VkCommandBuffer commands;
    CALL(vkAllocateCommandBuffers)(device, &commandInfo, &commands);
    VkCommandBufferBeginInfo beginInfo = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    CALL(vkBeginCommandBuffer)(commands, &beginInfo);
    CALL(vkCmdFillBuffer)(commands, buffer, 0, 256, 1);
    CALL(vkCmdFillBuffer)(commands, buffer, 0, 256, 2);
    CALL(vkEndCommandBuffer)(commands);

    CALL(vkDestroyCommandPool)(device, pool, NULL);
    CALL(vkDestroyBuffer)(device, buffer, NULL);
    CALL(vkFreeMemory)(device, allocation, NULL);
}

int main(void) {
    void* library = dlopen("libvulkan.so.1", RTLD_NOW);
    if (!library) {
        printf("skipped: no libvulkan.so.1\n");
        return 77;
    }
    void* symbol = dlsym(library, "vkGetInstanceProcAddr");
    memcpy(&getProc, &symbol, sizeof symbol); // ISO C has no cast between the two kinds of pointer
    const char* extension = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
    VkDebugUtilsMessengerCreateInfoEXT messengerInfo = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = onMessage};
    VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                     .apiVersion = VK_API_VERSION_1_1};
    VkInstanceCreateInfo instanceInfo = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                         .pApplicationInfo = &application,
                                         .enabledExtensionCount = 1,
                                         .ppEnabledExtensionNames = &extension};
    uint32_t count = 1;
    VkPhysicalDevice physical;
    if (CALL(vkCreateInstance)(&instanceInfo, NULL, &instance) ||
        CALL(vkEnumeratePhysicalDevices)(instance, &count, &physical) < 0 || count == 0) {
        printf("skipped: no Vulkan device\n");
        return 77;
    }
    VkDebugUtilsMessengerEXT messenger;
    CALL(vkCreateDebugUtilsMessengerEXT)(instance, &messengerInfo, NULL, &messenger);
    float priority = 1;
    VkDeviceQueueCreateInfo queueInfo = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                         .queueCount = 1,
                                         .pQueuePriorities = &priority};
    VkDeviceCreateInfo deviceInfo = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queueInfo};
    VkDevice device;
    if (CALL(vkCreateDevice)(physical, &deviceInfo, NULL, &device)) {
        printf("vkCreateDevice failed\n");
        return 1;
    }
    VkBufferCreateInfo emptyInfo = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                    .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT};
    VkBuffer empty;
    if (CALL(vkCreateBuffer)(device, &emptyInfo, NULL, &empty) == VK_SUCCESS)
        CALL(vkDestroyBuffer)(device, empty, NULL);
    recordHazard(device, physical);
    CALL(vkDestroyDevice)(device, NULL);
    CALL(vkDestroyDebugUtilsMessengerEXT)(instance, messenger, NULL);
    CALL(vkDestroyInstance)(instance, NULL);
    printf("size 0 %s, write after write %s\n", sizeReported ? "reported" : "MISSED",
           hazardReported ? "reported" : "MISSED");
    return sizeReported && hazardReported ? 0 : 1;
}

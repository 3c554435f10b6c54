// The Vulkan loader, opened at run time, and an instance.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#if defined(_WIN32)
static const char* const libraryNames[] = {"vulkan-1.dll"};
#elif defined(__APPLE__)
static const char* const libraryNames[] = {"libvulkan.dylib", "libvulkan.1.dylib",
                                           "/usr/local/lib/libvulkan.dylib", "libMoltenVK.dylib"};
#else
static const char* const libraryNames[] = {"libvulkan.so.1", "libvulkan.so"};
#endif

static void* open_library(const char* name) {
#ifdef _WIN32
    return (void*)LoadLibraryA(name);
#else
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
#endif
}

static void close_library(void* library) {
#ifdef _WIN32
    FreeLibrary((HMODULE)library);
#else
    dlclose(library);
#endif
}

static PFN_vkGetInstanceProcAddr find_get_instance_proc_addr(void* library) {
    PFN_vkGetInstanceProcAddr function;
#ifdef _WIN32
    FARPROC symbol = GetProcAddress((HMODULE)library, "vkGetInstanceProcAddr");
#else
    void* symbol = dlsym(library, "vkGetInstanceProcAddr");
#endif
    // C has no cast between object and function pointers.
    memcpy(&function, &symbol, sizeof(function));
    return function;
}

static VkResult lists_portability(PFN_vkGetInstanceProcAddr getInstanceProcAddr, bool* listed) {
    *listed = false;
    PFN_vkEnumerateInstanceExtensionProperties enumerate =
        (PFN_vkEnumerateInstanceExtensionProperties)getInstanceProcAddr(
            NULL, "vkEnumerateInstanceExtensionProperties");
    if (!enumerate)
        return VK_SUCCESS;
    for (;;) {
        uint32_t count = 0;
        VkResult result = enumerate(NULL, &count, NULL);
        if (result < 0 || count == 0)
            return result < 0 ? result : VK_SUCCESS;
        VkExtensionProperties* extensions = calloc(count, sizeof(*extensions));
        if (!extensions)
            return VK_ERROR_OUT_OF_HOST_MEMORY;
        result = enumerate(NULL, &count, extensions);
        if (result == VK_SUCCESS)
            for (uint32_t i = 0; i < count; i++)
                if (!strcmp(extensions[i].extensionName,
                            VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME))
                    *listed = true;
        free(extensions);
        if (result != VK_INCOMPLETE) // an extension appeared between the two calls
            return result;
    }
}

static VkResult create_instance(const struct VkmqaMessenger* messenger, const char* call,
                                uint32_t maxApiVersion, struct VkmqaLoader* loader) {
    PFN_vkEnumerateInstanceVersion enumerateVersion =
        (PFN_vkEnumerateInstanceVersion)loader->getInstanceProcAddr(NULL,
                                                                    "vkEnumerateInstanceVersion");
    PFN_vkCreateInstance createInstance =
        (PFN_vkCreateInstance)loader->getInstanceProcAddr(NULL, "vkCreateInstance");
    uint32_t version = VK_API_VERSION_1_0;
    if (!createInstance || !enumerateVersion || enumerateVersion(&version) != VK_SUCCESS ||
        version < VK_API_VERSION_1_1)
        return vkmqa_device_fail(messenger, VK_ERROR_INCOMPATIBLE_DRIVER,
                                 "%s: the Vulkan loader is older than Vulkan 1.1; update it", call);
    loader->apiVersion = version < maxApiVersion ? version : maxApiVersion;

    bool portability;
    VkResult result = lists_portability(loader->getInstanceProcAddr, &portability);
    if (result < 0)
        return vkmqa_device_fail(messenger, result,
                                 "%s: vkEnumerateInstanceExtensionProperties returned %s", call,
                                 vkmqa_result_name(result));
    const char* extension = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
    VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
        .pEngineName = "vkmqa",
        .engineVersion = VKMQA_VERSION,
        .apiVersion = loader->apiVersion,
    };
    VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .flags = portability ? VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR : 0,
        .pApplicationInfo = &application,
        .enabledExtensionCount = portability ? 1 : 0,
        .ppEnabledExtensionNames = portability ? &extension : NULL,
    };
    result = createInstance(&info, NULL, &loader->instance);
    if (result < 0) {
        loader->instance = VK_NULL_HANDLE;
        return vkmqa_device_fail(
            messenger, result,
            result == VK_ERROR_INCOMPATIBLE_DRIVER
                ? "%s: vkCreateInstance returned %s: no Vulkan driver; install the one of your GPU"
                : "%s: vkCreateInstance returned %s",
            call, vkmqa_result_name(result));
    }
    const char* missing = "";
    result =
        vkmqa_load_instance(&loader->vk, loader->instance, loader->getInstanceProcAddr, &missing);
    if (result)
        return vkmqa_device_fail(messenger, result, "%s: the Vulkan loader has no %s; update it",
                                 call, missing);
    return VK_SUCCESS;
}

VkResult vkmqa_open_loader(const struct VkmqaMessenger* messenger, const char* call,
                           uint32_t maxApiVersion, struct VkmqaLoader* loader) {
    memset(loader, 0, sizeof(*loader));
    for (size_t i = 0; i < sizeof(libraryNames) / sizeof(libraryNames[0]) && !loader->library; i++)
        loader->library = open_library(libraryNames[i]);
    if (!loader->library)
        return vkmqa_device_fail(messenger, VK_ERROR_INCOMPATIBLE_DRIVER,
                                 "%s: no Vulkan loader (%s) on this machine; install the driver of "
                                 "your GPU or the Vulkan runtime",
                                 call, libraryNames[0]);
    VkResult result;
    loader->getInstanceProcAddr = find_get_instance_proc_addr(loader->library);
    if (loader->getInstanceProcAddr)
        result = create_instance(messenger, call, maxApiVersion, loader);
    else
        result = vkmqa_device_fail(messenger, VK_ERROR_INCOMPATIBLE_DRIVER,
                                   "%s: the Vulkan loader exports no vkGetInstanceProcAddr; "
                                   "reinstall it",
                                   call);
    if (result)
        vkmqa_close_loader(loader);
    return result;
}

void vkmqa_close_loader(struct VkmqaLoader* loader) {
    if (loader->instance) {
        // Not from the table, which may have stayed empty.
        PFN_vkDestroyInstance destroyInstance = (PFN_vkDestroyInstance)loader->getInstanceProcAddr(
            loader->instance, "vkDestroyInstance");
        if (destroyInstance)
            destroyInstance(loader->instance, NULL);
    }
    if (loader->library)
        close_library(loader->library);
    memset(loader, 0, sizeof(*loader));
}

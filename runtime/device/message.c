// Messages, struct sizes and names of results.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void say(const struct VkmqaMessenger* messenger, VkmqaSeverity severity, const char* format,
                va_list arguments) {
    if (!messenger->callback)
        return;
    char text[2048];
    if (vsnprintf(text, sizeof(text), format, arguments) < 0)
        return;
    messenger->callback(severity, text, messenger->userData);
}

void vkmqa_device_say(const struct VkmqaMessenger* messenger, VkmqaSeverity severity,
                      const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(messenger, severity, format, arguments);
    va_end(arguments);
}

VkResult vkmqa_device_fail(const struct VkmqaMessenger* messenger, VkResult result,
                           const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(messenger, VKMQA_SEVERITY_ERROR, format, arguments);
    va_end(arguments);
    return result;
}

const char* vkmqa_result_name(VkResult result) {
    switch ((int)result) {
#define NAME(value)                                                                                \
    case value:                                                                                    \
        return #value;
        NAME(VK_SUCCESS)
        NAME(VK_NOT_READY)
        NAME(VK_TIMEOUT)
        NAME(VK_INCOMPLETE)
        NAME(VK_ERROR_OUT_OF_HOST_MEMORY)
        NAME(VK_ERROR_OUT_OF_DEVICE_MEMORY)
        NAME(VK_ERROR_INITIALIZATION_FAILED)
        NAME(VK_ERROR_DEVICE_LOST)
        NAME(VK_ERROR_MEMORY_MAP_FAILED)
        NAME(VK_ERROR_LAYER_NOT_PRESENT)
        NAME(VK_ERROR_EXTENSION_NOT_PRESENT)
        NAME(VK_ERROR_FEATURE_NOT_PRESENT)
        NAME(VK_ERROR_INCOMPATIBLE_DRIVER)
        NAME(VK_ERROR_TOO_MANY_OBJECTS)
        NAME(VK_ERROR_INVALID_EXTERNAL_HANDLE)
        NAME(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS)
        NAME(VK_ERROR_VALIDATION_FAILED_EXT)
        NAME(VK_ERROR_OUT_OF_POOL_MEMORY)
        NAME(VK_ERROR_FRAGMENTED_POOL)
        NAME(VK_ERROR_FRAGMENTATION)
        NAME(VK_ERROR_UNKNOWN)
#undef NAME
    default:
        return "an undocumented error";
    }
}

static uint32_t struct_size(const void* object) {
    uint32_t size; // the first member of all our structs
    memcpy(&size, object, sizeof(size));
    return size;
}

VkResult vkmqa_read_info(const struct VkmqaMessenger* messenger, const char* call, const char* type,
                         const void* info, void* copy, uint32_t size, uint32_t minSize) {
    struct VkmqaProblem problem;
    if (vkmqa_read_struct(info, copy, size, minSize, type, &problem))
        return VK_SUCCESS;
    return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
}

VkResult vkmqa_check_output(const struct VkmqaMessenger* messenger, const char* call,
                            const char* type, void* target, uint32_t size, uint32_t minSize) {
    struct VkmqaProblem problem;
    if (vkmqa_open_output(target, size, minSize, type, &problem))
        return VK_SUCCESS;
    return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT, "%s: %s", call, problem.text);
}

void vkmqa_write_output(void* target, const void* source, uint32_t size) {
    uint32_t given = struct_size(target);
    memcpy(target, source, size < given ? size : given);
    memcpy(target, &given, sizeof(given));
}

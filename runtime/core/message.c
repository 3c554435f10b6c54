// Messages through the context's callback. SPDX-License-Identifier: MIT
#include "context.h"

#include <stdarg.h>
#include <stdio.h>

static void send(const struct VkmqaContext_T* context, VkmqaSeverity severity, const char* format,
                 va_list arguments) {
    if (!context->messageCallback)
        return;
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    context->messageCallback(severity, text, context->messageUserData);
}

void vkmqa_message(const struct VkmqaContext_T* context, VkmqaSeverity severity,
                   const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    send(context, severity, format, arguments);
    va_end(arguments);
}

VkResult vkmqa_fail(const struct VkmqaContext_T* context, VkResult result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    send(context, VKMQA_SEVERITY_ERROR, format, arguments);
    va_end(arguments);
    return result;
}

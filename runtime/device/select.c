// Which device a selector means.
// SPDX-License-Identifier: MIT
#include "device.h"

#include <stdio.h>
#include <string.h>

// Locale-independent, unlike <ctype.h>.
static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

static bool starts_with(const char* text, const char* prefix) {
    return !strncmp(text, prefix, strlen(prefix));
}

static bool contains(const char* text, const char* part) {
    for (; *text; text++) {
        size_t i = 0;
        while (part[i] && lower(text[i]) == lower(part[i]))
            i++;
        if (!part[i])
            return true;
    }
    return false;
}

static bool equal(const char* a, const char* b) {
    while (*a && lower(*a) == lower(*b))
        a++, b++;
    return *a == *b;
}

static bool parse_uuid(const char* text, uint8_t uuid[16]) {
    uint32_t digits = 0;
    for (; *text; text++) {
        char c = lower(*text);
        if (c == '-')
            continue;
        uint32_t value;
        if (c >= '0' && c <= '9')
            value = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = (uint32_t)(c - 'a') + 10;
        else
            return false;
        if (digits == 32)
            return false;
        uint8_t* byte = &uuid[digits / 2];
        *byte = (uint8_t)(digits % 2 ? *byte << 4 | value : value);
        digits++;
    }
    return digits == 32;
}

static bool parse_index(const char* text, uint32_t* index) {
    if (!*text)
        return false;
    uint64_t value = 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
        if (value > UINT32_MAX)
            return false;
    }
    *index = (uint32_t)value;
    return true;
}

static bool parse_type(const char* text, VkPhysicalDeviceType* type) {
    static const struct {
        const char* name;
        VkPhysicalDeviceType type;
    } types[] = {{"discrete", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU},
                 {"integrated", VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU},
                 {"virtual", VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU},
                 {"cpu", VK_PHYSICAL_DEVICE_TYPE_CPU}};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (equal(text, types[i].name)) {
            *type = types[i].type;
            return true;
        }
    return false;
}

static const char* type_name(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return "cpu";
    default:
        return "other";
    }
}

static uint32_t rank(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 5;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 4;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 3;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return 2;
    default:
        return 1;
    }
}

static bool better(const struct VkmqaPhysical* a, const struct VkmqaPhysical* b) {
    uint32_t rankA = rank(a->properties.type), rankB = rank(b->properties.type);
    if (rankA != rankB)
        return rankA > rankB;
    return a->properties.deviceMemory > b->properties.deviceMemory;
}

static VkResult no_match(const struct VkmqaMessenger* messenger, const char* call,
                         const char* selector, const struct VkmqaPhysical* physicals,
                         uint32_t count) {
    char list[1200] = "";
    size_t length = 0;
    for (uint32_t i = 0; i < count; i++) {
        const VkmqaDeviceProperties* properties = &physicals[i].properties;
        int written = snprintf(list + length, sizeof(list) - length, "%s%s (%u, %s%s)",
                               i ? ", " : "", properties->name, i, type_name(properties->type),
                               physicals[i].usable ? "" : ", unusable");
        if (written < 0 || (size_t)written >= sizeof(list) - length)
            break; // the text ends in the middle of a name
        length += (size_t)written;
    }
    return vkmqa_device_fail(messenger, VK_ERROR_INITIALIZATION_FAILED,
                             "%s: selector \"%.200s\" fits no device; this machine has %s", call,
                             selector, count ? list : "none");
}

VkResult vkmqa_select_physical(const struct VkmqaMessenger* messenger, const char* call,
                               const char* selector, const struct VkmqaPhysical* physicals,
                               uint32_t count, const struct VkmqaPhysical** selected) {
    if (!selector || !*selector)
        selector = "auto";
    const char* colon = strchr(selector, ':');
    const char* value = colon ? colon + 1 : selector;
    const struct VkmqaPhysical* found = NULL;
    uint32_t index;
    uint8_t uuid[16];
    VkPhysicalDeviceType type;

    // A named device is reported as unusable below, rather than passed over.
    if (!strcmp(selector, "auto")) {
        for (uint32_t i = 0; i < count; i++)
            if (physicals[i].usable && (!found || better(&physicals[i], found)))
                found = &physicals[i];
    } else if (starts_with(selector, "name:") && *value) {
        for (uint32_t i = count; i-- > 0;)
            if (contains(physicals[i].properties.name, value))
                found = &physicals[i];
    } else if (starts_with(selector, "uuid:") && parse_uuid(value, uuid)) {
        for (uint32_t i = count; i-- > 0;)
            if (!memcmp(physicals[i].properties.uuid, uuid, sizeof(uuid)))
                found = &physicals[i];
    } else if (starts_with(selector, "type:") && parse_type(value, &type)) {
        for (uint32_t i = 0; i < count; i++)
            if (physicals[i].properties.type == type && physicals[i].usable &&
                (!found || better(&physicals[i], found)))
                found = &physicals[i];
    } else if (parse_index(selector, &index)) {
        found = index < count ? &physicals[index] : NULL;
    } else {
        return vkmqa_device_fail(messenger, VK_ERROR_VALIDATION_FAILED_EXT,
                                 "%s: selector \"%.200s\" is none of auto, INDEX, name:TEXT, "
                                 "uuid:32 hexadecimal digits, "
                                 "type:discrete|integrated|virtual|cpu",
                                 call, selector);
    }
    if (!found)
        return no_match(messenger, call, selector, physicals, count);
    if (!found->usable)
        return vkmqa_device_fail(
            messenger, VK_ERROR_INCOMPATIBLE_DRIVER,
            "%s: %s has Vulkan %u.%u%s; vkmqa needs Vulkan 1.1 and a compute "
            "queue: update the driver or select another device",
            call, found->properties.name, VK_API_VERSION_MAJOR(found->properties.apiVersion),
            VK_API_VERSION_MINOR(found->properties.apiVersion),
            found->properties.apiVersion < VK_API_VERSION_1_1 ? "" : " and no compute queue");
    *selected = found;
    return VK_SUCCESS;
}

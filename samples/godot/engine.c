// SPDX-License-Identifier: MIT
#include "engine.h"

#include <stdio.h>
#include <string.h>

Engine engine;

bool engineLoad(GDExtensionInterfaceGetProcAddress getProcAddress, GDExtensionClassLibraryPtr library) {
    engine.library = library;
#define LOAD(name, type, text)                                                                                         \
    engine.name = (GDExtensionInterface##type)(void (*)(void))getProcAddress(text);                                    \
    if (!engine.name) {                                                                                                \
        fprintf(stderr, "vkmqa_godot: this Godot has no %s; use 4.6 or newer\n", text);                                \
        return false;                                                                                                  \
    }
    ENGINE_FUNCTIONS(LOAD)
#undef LOAD
    return true;
}

StringName engineName(const char* text) {
    StringName name;
    engine.newStringName(&name, text, false);
    return name;
}

void engineConstruct(GDExtensionVariantType type, void* value) {
    engine.constructor(type, 0)(value, NULL);
}

void engineDestroy(GDExtensionVariantType type, void* value) {
    GDExtensionPtrDestructor destroy = engine.destructor(type); // null for plain types
    if (destroy)
        destroy(value);
}

Variant engineVariant(GDExtensionVariantType type, const void* value) {
    Variant variant;
    engine.fromType(type)(&variant, (GDExtensionTypePtr)value);
    return variant;
}

Variant engineCall(GDExtensionObjectPtr object, const char* method, const Variant* arguments, int count) {
    Variant self = engineVariant(GDEXTENSION_VARIANT_TYPE_OBJECT, &object), result;
    StringName name = engineName(method);
    const void* pointers[4] = {NULL};
    for (int i = 0; i < count && i < 4; ++i)
        pointers[i] = &arguments[i];
    GDExtensionCallError error = {GDEXTENSION_CALL_OK, 0, 0};
    engine.variantCall(&self, &name, pointers, count, &result, &error);
    if (error.error != GDEXTENSION_CALL_OK) {
        engine.variantDestroy(&result);
        engine.variantNil(&result);
    }
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name);
    engine.variantDestroy(&self);
    return result;
}

int64_t engineCallInt(GDExtensionObjectPtr object, const char* method, const Variant* arguments, int count) {
    Variant result = engineCall(object, method, arguments, count);
    int64_t value = 0;
    GDExtensionBool truth = false;
    GDExtensionVariantType type = engine.variantType(&result);
    if (type == GDEXTENSION_VARIANT_TYPE_INT)
        engine.toType(type)(&value, &result);
    else if (type == GDEXTENSION_VARIANT_TYPE_BOOL) {
        engine.toType(type)(&truth, &result);
        value = truth;
    }
    engine.variantDestroy(&result);
    return value;
}

GDExtensionObjectPtr engineSingleton(const char* text) {
    StringName name = engineName(text);
    GDExtensionObjectPtr object = engine.singleton(&name);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name);
    return object;
}

GDExtensionObjectPtr engineRenderingDevice(void) {
    GDExtensionObjectPtr server = engineSingleton("RenderingServer"), device = NULL;
    if (!server)
        return NULL;
    Variant result = engineCall(server, "get_rendering_device", NULL, 0);
    if (engine.variantType(&result) == GDEXTENSION_VARIANT_TYPE_OBJECT)
        engine.toType(GDEXTENSION_VARIANT_TYPE_OBJECT)(&device, &result);
    engine.variantDestroy(&result);
    return device;
}

uint64_t engineDriverResource(GDExtensionObjectPtr renderingDevice, int64_t resource) {
    const int64_t index = 0;
    uint64_t rid = 0;
    Variant arguments[3] = {engineVariant(GDEXTENSION_VARIANT_TYPE_INT, &resource),
                            engineVariant(GDEXTENSION_VARIANT_TYPE_RID, &rid),
                            engineVariant(GDEXTENSION_VARIANT_TYPE_INT, &index)};
    uint64_t handle = (uint64_t)engineCallInt(renderingDevice, "get_driver_resource", arguments, 3);
    for (int i = 0; i < 3; ++i)
        engine.variantDestroy(&arguments[i]);
    return handle;
}

// PackedFloat32Array.size and resize, with the hashes of extension_api.json.
static int64_t callFloats(const void* array, const char* method, int64_t hash, const int64_t* argument) {
    StringName name = engineName(method);
    GDExtensionPtrBuiltInMethod call = engine.builtinMethod(GDEXTENSION_VARIANT_TYPE_PACKED_FLOAT32_ARRAY, &name, hash);
    const void* arguments[1] = {argument};
    int64_t result = 0;
    if (call)
        call((GDExtensionTypePtr)array, arguments, &result, argument ? 1 : 0);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name);
    return result;
}

int64_t engineFloatCount(const void* packedFloat32Array) {
    return callFloats(packedFloat32Array, "size", 3173160232, NULL);
}

void engineReturnFloats(void* packedFloat32Array, const float* values, uint32_t count) {
    const int64_t size = count;
    callFloats(packedFloat32Array, "resize", 848867239, &size);
    if (count && engineFloatCount(packedFloat32Array) == size)
        memcpy(engine.floats(packedFloat32Array, 0), values, count * sizeof *values);
}

void engineReturnString(void* string, const char* text) {
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING, string);
    engine.newString(string, text);
}

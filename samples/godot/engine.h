// Calls into Godot, by name and through variants, so that they need no hash but those of two methods of arrays.
// SPDX-License-Identifier: MIT
#ifndef ENGINE_H
#define ENGINE_H

#include <gdextension_interface.h> // of the engine at hand: godot --dump-gdextension-interface

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Opaque values of Godot's, of the sizes that extension_api.json gives for 64-bit builds.
typedef struct Variant { // 40 bytes where real_t is double
    uint64_t words[5];
} Variant;
typedef struct StringName {
    void* data;
} StringName;
typedef struct Packed { // an array such as PackedFloat32Array, or a String
    void* data[2];
} Packed;

// X(member of engine, type without GDExtensionInterface, name of gdextension_interface.h)
#define ENGINE_FUNCTIONS(X)                                                                                            \
    X(constructObject, ClassdbConstructObject2, "classdb_construct_object2")                                           \
    X(registerClass, ClassdbRegisterExtensionClass5, "classdb_register_extension_class5")                              \
    X(registerMethod, ClassdbRegisterExtensionClassMethod, "classdb_register_extension_class_method")                  \
    X(registerSignal, ClassdbRegisterExtensionClassSignal, "classdb_register_extension_class_signal")                  \
    X(unregisterClass, ClassdbUnregisterExtensionClass, "classdb_unregister_extension_class")                          \
    X(singleton, GlobalGetSingleton, "global_get_singleton")                                                           \
    X(setInstance, ObjectSetInstance, "object_set_instance")                                                           \
    X(newStringName, StringNameNewWithLatin1Chars, "string_name_new_with_latin1_chars")                                \
    X(newString, StringNewWithUtf8Chars, "string_new_with_utf8_chars")                                                 \
    X(stringChars, StringToUtf8Chars, "string_to_utf8_chars")                                                          \
    X(floats, PackedFloat32ArrayOperatorIndex, "packed_float32_array_operator_index")                                  \
    X(constFloats, PackedFloat32ArrayOperatorIndexConst, "packed_float32_array_operator_index_const")                  \
    X(printError, PrintErrorWithMessage, "print_error_with_message")                                                   \
    X(printWarning, PrintWarningWithMessage, "print_warning_with_message")                                             \
    X(fromType, GetVariantFromTypeConstructor, "get_variant_from_type_constructor")                                    \
    X(toType, GetVariantToTypeConstructor, "get_variant_to_type_constructor")                                          \
    X(variantType, VariantGetType, "variant_get_type")                                                                 \
    X(variantCall, VariantCall, "variant_call")                                                                        \
    X(variantNil, VariantNewNil, "variant_new_nil")                                                                    \
    X(variantDestroy, VariantDestroy, "variant_destroy")                                                               \
    X(constructor, VariantGetPtrConstructor, "variant_get_ptr_constructor")                                            \
    X(destructor, VariantGetPtrDestructor, "variant_get_ptr_destructor")                                               \
    X(builtinMethod, VariantGetPtrBuiltinMethod, "variant_get_ptr_builtin_method")

typedef struct Engine {
#define MEMBER(name, type, text) GDExtensionInterface##type name;
    ENGINE_FUNCTIONS(MEMBER)
#undef MEMBER
    GDExtensionClassLibraryPtr library;
} Engine;
extern Engine engine;

// False, and a line on stderr, where the engine lacks a function.
bool engineLoad(GDExtensionInterfaceGetProcAddress getProcAddress, GDExtensionClassLibraryPtr library);

StringName engineName(const char* text); // released with engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, ...)
// Makes the default value of a type; releases one. Types without memory of their own need neither.
void engineConstruct(GDExtensionVariantType type, void* value);
void engineDestroy(GDExtensionVariantType type, void* value);
// A value of a type as a variant, to be released with engine.variantDestroy.
Variant engineVariant(GDExtensionVariantType type, const void* value);

// object.method(arguments ...) with arguments that the caller keeps; nil when it could not be called.
Variant engineCall(GDExtensionObjectPtr object, const char* method, const Variant* arguments, int count);
// The same, as an integer or as a bool; 0 when it is none.
int64_t engineCallInt(GDExtensionObjectPtr object, const char* method, const Variant* arguments, int count);
GDExtensionObjectPtr engineSingleton(const char* name); // null where the engine has none
// RenderingServer.get_rendering_device(), which may be null.
GDExtensionObjectPtr engineRenderingDevice(void);
// RenderingDevice.get_driver_resource(resource, RID(), 0)
uint64_t engineDriverResource(GDExtensionObjectPtr renderingDevice, int64_t resource);

int64_t engineFloatCount(const void* packedFloat32Array);
// Replaces a live PackedFloat32Array, a live String.
void engineReturnFloats(void* packedFloat32Array, const float* values, uint32_t count);
void engineReturnString(void* string, const char* text);

#endif

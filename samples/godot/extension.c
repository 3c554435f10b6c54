// The class VkmqaAttention, a Node. SPDX-License-Identifier: MIT
#include "attention.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#define EXPORT __declspec(dllexport)
#else
#include <dlfcn.h>
#define EXPORT __attribute__((visibility("default")))
#endif

static const char CLASS[] = "VkmqaAttention";
static const uint64_t WAIT_NS = 60000000000u;

typedef struct Instance {
    Attention attention;
    GDExtensionObjectPtr object;
    void* loader;  // Vulkan's, as long as a device of the engine's is in use
    bool onEngine; // the device and the queue are those that the engine renders with
} Instance;

static StringName className, processName;

// ---- the engine's device ----

static void complain(const char* text, bool error) {
    if (error)
        engine.printError(text, text, CLASS, "vkmqa", 0, true);
    else
        engine.printWarning(text, text, CLASS, "vkmqa", 0, true);
}

// vkGetInstanceProcAddr of the loader that the engine has loaded: another copy would not know the engine's handles.
static PFN_vkGetInstanceProcAddr openLoader(void** loader) {
    PFN_vkGetInstanceProcAddr function = NULL;
#ifdef _WIN32
    *loader = LoadLibraryA("vulkan-1.dll");
    FARPROC symbol = *loader ? GetProcAddress(*loader, "vkGetInstanceProcAddr") : NULL;
#else
    *loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    void* symbol = *loader ? dlsym(*loader, "vkGetInstanceProcAddr") : NULL;
#endif
    memcpy(&function, &symbol, sizeof function);
    return function;
}

static void closeLoader(Instance* self) {
#ifdef _WIN32
    if (self->loader)
        FreeLibrary(self->loader);
#else
    if (self->loader)
        dlclose(self->loader);
#endif
    self->loader = NULL;
}

static Error noRenderingDevice(Instance* self, const char* method) {
    return attentionFail(&self->attention, ERROR_UNAVAILABLE,
                         "%s: no rendering device; run without --headless and with the Forward+ or Mobile renderer, or "
                         "call create_own_device with a selector such as \"auto\"", method);
}

// Fills handles from RenderingDevice.get_driver_resource.
static Error readHandles(Instance* self, GDExtensionObjectPtr device, Handles* handles) {
    enum { LOGICAL_DEVICE, PHYSICAL_DEVICE, TOPMOST_OBJECT, COMMAND_QUEUE, QUEUE_FAMILY }; // DriverResource
    const int64_t supportsBufferDeviceAddress = 6;                                         // Features
    uint64_t values[5];
    for (int64_t i = 0; i < 5; ++i)
        values[i] = engineDriverResource(device, i);
    if (!values[TOPMOST_OBJECT] || !values[PHYSICAL_DEVICE] || !values[LOGICAL_DEVICE] || !values[COMMAND_QUEUE])
        return attentionFail(&self->attention, ERROR_UNAVAILABLE,
                             "create: the rendering device hands out no Vulkan handles; run with "
                             "--rendering-driver vulkan, or call create_own_device");
    handles->instance = (VkInstance)(uintptr_t)values[TOPMOST_OBJECT];
    handles->physicalDevice = (VkPhysicalDevice)(uintptr_t)values[PHYSICAL_DEVICE];
    handles->device = (VkDevice)(uintptr_t)values[LOGICAL_DEVICE];
    handles->queue = (VkQueue)(uintptr_t)values[COMMAND_QUEUE];
    handles->family = (uint32_t)values[QUEUE_FAMILY];
    Variant feature = engineVariant(GDEXTENSION_VARIANT_TYPE_INT, &supportsBufferDeviceAddress);
    handles->deviceAddresses = engineCallInt(device, "has_feature", &feature, 1);
    engine.variantDestroy(&feature);
    handles->getInstanceProcAddr = openLoader(&self->loader);
    if (!handles->getInstanceProcAddr)
        return attentionFail(&self->attention, ERROR_UNAVAILABLE,
                             "create: the engine does not use the system's Vulkan loader; call create_own_device");
    return ERROR_NONE;
}

// vkmqa submits to the engine's queue, whose lock the engine keeps to itself: only on the thread that renders. The
// engine's device answers nobody else.
static Error checkThread(Instance* self, const char* method) {
    GDExtensionObjectPtr server = engineSingleton("RenderingServer");
    if (!server || engineCallInt(server, "is_on_render_thread", NULL, 0))
        return ERROR_NONE;
    return attentionFail(&self->attention, ERROR_UNAVAILABLE,
                         "%s: this is not the thread that renders; call from the main thread, with "
                         "rendering/driver/threads/thread_model at Safe, or call create_own_device with the selector "
                         "\"name:\" + RenderingServer.get_video_adapter_name()", method);
}

static void destroy(Instance* self) {
    attentionClose(&self->attention);
    closeLoader(self);
    self->onEngine = false;
}

static Shape shapeFrom(const void* const* arguments) {
    return (Shape){*(const int64_t*)arguments[1], *(const int64_t*)arguments[2], *(const int64_t*)arguments[3],
                   *(const int64_t*)arguments[4]};
}

// ---- methods: arguments and result are pointers to values of Godot's types ----

static void create(Instance* self, const void* const* arguments, void* result) {
    GDExtensionObjectPtr device = *(GDExtensionObjectPtr const*)arguments[0];
    Shape shape = shapeFrom(arguments);
    Handles handles = {0};
    destroy(self);
    Error error = device ? ERROR_NONE : noRenderingDevice(self, "create");
    if (!error) {
        self->onEngine = device == engineRenderingDevice();
        error = self->onEngine ? checkThread(self, "create") : ERROR_NONE;
    }
    if (!error)
        error = readHandles(self, device, &handles);
    if (!error)
        error = attentionOpen(&self->attention, &handles, NULL, &shape);
    if (error) {
        self->onEngine = false;
        closeLoader(self);
    }
    *(int64_t*)result = error;
}

// "uuid:HEX" of the engine's physical device.
static Error selectEngineDevice(Instance* self, char* selector, size_t size) {
    GDExtensionObjectPtr device = engineRenderingDevice();
    Handles handles = {0};
    if (!device)
        return noRenderingDevice(self, "create_own_device");
    Error error = checkThread(self, "create_own_device");
    if (!error)
        error = readHandles(self, device, &handles);
    if (error)
        return error;
    PFN_vkGetPhysicalDeviceProperties2 getProperties = (PFN_vkGetPhysicalDeviceProperties2)
        handles.getInstanceProcAddr(handles.instance, "vkGetPhysicalDeviceProperties2");
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    if (getProperties)
        getProperties(handles.physicalDevice, &properties);
    closeLoader(self);
    if (!getProperties)
        return attentionFail(&self->attention, ERROR_UNAVAILABLE,
                             "create_own_device: the engine's instance is older than Vulkan 1.1; give a selector");
    int length = snprintf(selector, size, "uuid:");
    for (size_t i = 0; i < sizeof id.deviceUUID; ++i)
        length += snprintf(selector + length, size - (size_t)length, "%02x", id.deviceUUID[i]);
    return ERROR_NONE;
}

static void createOwnDevice(Instance* self, const void* const* arguments, void* result) {
    Shape shape = shapeFrom(arguments);
    char selector[256] = "";
    destroy(self);
    Error error = ERROR_NONE;
    GDExtensionInt length = engine.stringChars(arguments[0], selector, sizeof selector - 1);
    selector[length > 0 && length < (GDExtensionInt)sizeof selector ? length : 0] = 0;
    if (!selector[0])
        error = selectEngineDevice(self, selector, sizeof selector);
    if (!error)
        error = attentionOpen(&self->attention, NULL, selector, &shape);
    *(int64_t*)result = error;
}

static void append(Instance* self, const void* const* arguments, void* result) {
    int64_t kCount = engineFloatCount(arguments[0]), vCount = engineFloatCount(arguments[1]);
    *(int64_t*)result = attentionAppend(&self->attention, kCount ? engine.constFloats(arguments[0], 0) : NULL, kCount,
                                        vCount ? engine.constFloats(arguments[1], 0) : NULL, vCount);
}

static void attend(Instance* self, const void* const* arguments, void* result) {
    int64_t count = engineFloatCount(arguments[0]);
    Error error = self->onEngine ? checkThread(self, "attend") : ERROR_NONE;
    if (!error)
        error = attentionAttend(&self->attention, count ? engine.constFloats(arguments[0], 0) : NULL, count);
    *(int64_t*)result = error;
}

static void emitFinished(Instance* self, Error error) {
    StringName name = engineName("finished");
    const int64_t value = error;
    Variant arguments[2] = {engineVariant(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name),
                            engineVariant(GDEXTENSION_VARIANT_TYPE_INT, &value)};
    Variant result = engineCall(self->object, "emit_signal", arguments, 2);
    engine.variantDestroy(&result);
    engine.variantDestroy(&arguments[0]);
    engine.variantDestroy(&arguments[1]);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name);
}

static void waitForStep(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    bool ran = self->attention.busy;
    Error error = attentionWait(&self->attention, WAIT_NS);
    if (error == ERROR_TIMEOUT)
        attentionFail(&self->attention, error, "wait: the step is still running after %d s; wait again, or destroy",
                      (int)(WAIT_NS / 1000000000u));
    *(int64_t*)result = error;
    if (ran && !self->attention.busy)
        emitFinished(self, error); // last: a listener may do anything with this object
}

static void isBusy(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    *(GDExtensionBool*)result = self->attention.busy;
}

static void getOutput(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    uint32_t count;
    const float* values = attentionOutput(&self->attention, &count);
    engineReturnFloats(result, values, count);
}

static void getTokens(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    *(int64_t*)result = self->attention.tokens + self->attention.staged;
}

static void clear(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    *(int64_t*)result = attentionClear(&self->attention);
}

static void destroyMethod(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    (void)result;
    destroy(self);
}

static void getMessage(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    engineReturnString(result, self->attention.message);
}

static void getDescription(Instance* self, const void* const* arguments, void* result) {
    (void)arguments;
    char text[512];
    attentionDescribe(&self->attention, text, sizeof text);
    engineReturnString(result, text);
}

// Every frame: has the step ended?
static void process(GDExtensionClassInstancePtr instance, const GDExtensionConstTypePtr* arguments,
                    GDExtensionTypePtr result) {
    (void)arguments;
    (void)result;
    Instance* self = instance;
    if (!self->attention.busy)
        return;
    Error error = attentionWait(&self->attention, 0);
    if (!self->attention.busy)
        emitFinished(self, error);
}

// ---- registration ----

#define BOOL GDEXTENSION_VARIANT_TYPE_BOOL
#define INT GDEXTENSION_VARIANT_TYPE_INT
#define STRING GDEXTENSION_VARIANT_TYPE_STRING
#define OBJECT GDEXTENSION_VARIANT_TYPE_OBJECT
#define FLOATS GDEXTENSION_VARIANT_TYPE_PACKED_FLOAT32_ARRAY
#define NOTHING GDEXTENSION_VARIANT_TYPE_NIL

enum { MAX_ARGUMENTS = 5 };
typedef struct Argument {
    const char* name;
    GDExtensionVariantType type;
} Argument;
typedef struct Method {
    const char* name;
    void (*function)(Instance* self, const void* const* arguments, void* result);
    GDExtensionVariantType result;
    int count;
    Argument arguments[MAX_ARGUMENTS];
} Method;

#define SHAPE {"heads_q", INT}, {"heads_kv", INT}, {"head_dim", INT}, {"max_tokens", INT}
static const Method methods[] = {
    {"create", create, INT, 5, {{"rendering_device", OBJECT}, SHAPE}},
    {"create_own_device", createOwnDevice, INT, 5, {{"selector", STRING}, SHAPE}},
    {"append", append, INT, 2, {{"k", FLOATS}, {"v", FLOATS}}},
    {"attend", attend, INT, 1, {{"q", FLOATS}}},
    {"wait", waitForStep, INT, 0, {{0}}},
    {"is_busy", isBusy, BOOL, 0, {{0}}},
    {"get_output", getOutput, FLOATS, 0, {{0}}},
    {"get_tokens", getTokens, INT, 0, {{0}}},
    {"clear", clear, INT, 0, {{0}}},
    {"destroy", destroyMethod, NOTHING, 0, {{0}}},
    {"get_message", getMessage, STRING, 0, {{0}}},
    {"get_description", getDescription, STRING, 0, {{0}}},
};

static void callByPointers(void* method, GDExtensionClassInstancePtr instance, const GDExtensionConstTypePtr* arguments,
                           GDExtensionTypePtr result) {
    ((const Method*)method)->function(instance, arguments, result);
}

// The same with variants, whose types a script may have got wrong.
static void callByVariants(void* userData, GDExtensionClassInstancePtr instance,
                           const GDExtensionConstVariantPtr* arguments, GDExtensionInt count,
                           GDExtensionVariantPtr result, GDExtensionCallError* error) {
    const Method* method = userData;
    Packed values[MAX_ARGUMENTS], returned;
    const void* pointers[MAX_ARGUMENTS];
    error->error = count < method->count   ? GDEXTENSION_CALL_ERROR_TOO_FEW_ARGUMENTS
                   : count > method->count ? GDEXTENSION_CALL_ERROR_TOO_MANY_ARGUMENTS
                                           : GDEXTENSION_CALL_OK;
    error->expected = method->count;
    for (int i = 0; i < method->count && !error->error; ++i) {
        GDExtensionVariantType type = engine.variantType(arguments[i]), wanted = method->arguments[i].type;
        if (type != wanted && !(wanted == OBJECT && type == NOTHING)) {
            error->error = GDEXTENSION_CALL_ERROR_INVALID_ARGUMENT;
            error->argument = i;
            error->expected = wanted;
        }
    }
    if (error->error)
        return;
    memset(values, 0, sizeof values);
    for (int i = 0; i < method->count; ++i) {
        if (engine.variantType(arguments[i]) != NOTHING)
            engine.toType(method->arguments[i].type)(&values[i], (GDExtensionVariantPtr)arguments[i]);
        pointers[i] = &values[i];
    }
    memset(&returned, 0, sizeof returned);
    if (method->result == STRING || method->result == FLOATS)
        engineConstruct(method->result, &returned);
    method->function(instance, pointers, &returned);
    if (method->result != NOTHING) {
        engine.variantDestroy(result);
        engine.fromType(method->result)(result, &returned);
        engineDestroy(method->result, &returned);
    }
    for (int i = 0; i < method->count; ++i)
        engineDestroy(method->arguments[i].type, &values[i]);
}

static GDExtensionClassInstancePtr recreate(void* userData, GDExtensionObjectPtr object) {
    (void)userData;
    Instance* self = calloc(1, sizeof *self);
    if (!self)
        abort(); // as the engine does
    self->object = object;
    self->attention.complain = complain;
    return self;
}

static GDExtensionObjectPtr construct(void* userData, GDExtensionBool notify) {
    (void)notify; // Node has nothing to do then
    StringName parent = engineName("Node");
    GDExtensionObjectPtr object = engine.constructObject(&parent);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &parent);
    engine.setInstance(object, &className, recreate(userData, object));
    return object;
}

static void release(void* userData, GDExtensionClassInstancePtr instance) {
    (void)userData;
    if (instance)
        destroy(instance);
    free(instance);
}

static GDExtensionClassCallVirtual findVirtual(void* userData, GDExtensionConstStringNamePtr name, uint32_t hash) {
    (void)userData;
    (void)hash;
    return ((const StringName*)name)->data == processName.data ? process : NULL; // equal names share their data
}

// Names and the empty hint that every description of a value has.
typedef struct Description {
    StringName name, none;
    Packed hint;
} Description;

static GDExtensionPropertyInfo describe(Description* description, const char* name, GDExtensionVariantType type) {
    description->name = engineName(name);
    description->none = engineName(type == OBJECT ? "RenderingDevice" : "");
    engine.newString(&description->hint, "");
    return (GDExtensionPropertyInfo){.type = type, .name = &description->name, .class_name = &description->none,
                                     .hint_string = &description->hint, .usage = 6}; // PROPERTY_USAGE_DEFAULT
}

static void forget(Description* description) {
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &description->name);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &description->none);
    engineDestroy(STRING, &description->hint);
}

static void registerMethod(const Method* method) {
    StringName name = engineName(method->name);
    Description descriptions[MAX_ARGUMENTS], resultDescription;
    GDExtensionPropertyInfo arguments[MAX_ARGUMENTS], result = describe(&resultDescription, "", method->result);
    GDExtensionClassMethodArgumentMetadata metadata[MAX_ARGUMENTS] = {GDEXTENSION_METHOD_ARGUMENT_METADATA_NONE};
    for (int i = 0; i < method->count; ++i)
        arguments[i] = describe(&descriptions[i], method->arguments[i].name, method->arguments[i].type);
    engine.registerMethod(engine.library, &className,
                          &(GDExtensionClassMethodInfo){.name = &name,
                                                        .method_userdata = (void*)method,
                                                        .call_func = callByVariants,
                                                        .ptrcall_func = callByPointers,
                                                        .method_flags = GDEXTENSION_METHOD_FLAGS_DEFAULT,
                                                        .has_return_value = method->result != NOTHING,
                                                        .return_value_info = &result,
                                                        .argument_count = (uint32_t)method->count,
                                                        .arguments_info = arguments,
                                                        .arguments_metadata = metadata});
    for (int i = 0; i < method->count; ++i)
        forget(&descriptions[i]);
    forget(&resultDescription);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name);
}

static void initialize(void* userData, GDExtensionInitializationLevel level) {
    (void)userData;
    if (level != GDEXTENSION_INITIALIZATION_SCENE)
        return;
    StringName parent = engineName("Node"), signal = engineName("finished");
    className = engineName(CLASS);
    processName = engineName("_process");
    engine.registerClass(engine.library, &className, &parent,
                         &(GDExtensionClassCreationInfo5){.is_exposed = true,
                                                          .create_instance_func = construct,
                                                          .free_instance_func = release,
                                                          .recreate_instance_func = recreate,
                                                          .get_virtual_func = findVirtual});
    for (size_t i = 0; i < sizeof methods / sizeof *methods; ++i)
        registerMethod(&methods[i]);
    Description description;
    GDExtensionPropertyInfo argument = describe(&description, "error", INT);
    engine.registerSignal(engine.library, &className, &signal, &argument, 1);
    forget(&description);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &signal);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &parent);
}

static void deinitialize(void* userData, GDExtensionInitializationLevel level) {
    (void)userData;
    if (level != GDEXTENSION_INITIALIZATION_SCENE)
        return;
    engine.unregisterClass(engine.library, &className);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &className);
    engineDestroy(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &processName);
}

// Named in vkmqa.gdextension.
EXPORT GDExtensionBool vkmqaGodotInit(GDExtensionInterfaceGetProcAddress getProcAddress,
                                      GDExtensionClassLibraryPtr library, GDExtensionInitialization* initialization);
GDExtensionBool vkmqaGodotInit(GDExtensionInterfaceGetProcAddress getProcAddress, GDExtensionClassLibraryPtr library,
                               GDExtensionInitialization* initialization) {
    if (!engineLoad(getProcAddress, library))
        return false;
    initialization->minimum_initialization_level = GDEXTENSION_INITIALIZATION_SCENE;
    initialization->initialize = initialize;
    initialization->deinitialize = deinitialize;
    return true;
}

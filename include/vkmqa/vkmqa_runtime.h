// vkmqa runtime layer: a device, buffers and submission, for programs that have no Vulkan of their own or import it.
// SPDX-License-Identifier: MIT
//
// Everything here is built from the public core (vkmqa.h) and plain Vulkan 1.1; newer features are used
// where the driver has them and never needed. Conventions of vkmqa.h hold: structSize first, zero means
// default, VkResult everywhere, explanations through the message callback.
//
// Threads: a VkmqaDevice and what was made from it may be used by one thread at a time; recording into
// the command buffers of different VkmqaCommands may run in parallel.
//
// After fork() a Vulkan driver works in the parent only: in the child every call that creates, submits,
// waits or copies returns VK_ERROR_VALIDATION_FAILED_EXT, and destruction frees host memory alone. A child opens a
// device of its own.
#ifndef VKMQA_RUNTIME_H
#define VKMQA_RUNTIME_H

#include <vkmqa/vkmqa.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct VkmqaDevice_T* VkmqaDevice;     // a VkDevice with its queues, opened or imported
typedef struct VkmqaMemory_T* VkmqaMemory;     // a VkBuffer with memory of its own
typedef struct VkmqaCommands_T* VkmqaCommands; // a command buffer with its fence and recorder

// ---- Devices ---------------------------------------------------------------------------------

// A device of this machine.
typedef struct VkmqaDeviceProperties {
    uint32_t structSize;
    uint32_t index; // for the selector "INDEX"
    char name[256];            // VkPhysicalDeviceProperties::deviceName
    char driverName[256];      // VkPhysicalDeviceDriverProperties, empty where the driver does not say
    char driverInfo[256];      // likewise
    uint8_t uuid[16];          // VkPhysicalDeviceIDProperties::deviceUUID
    VkPhysicalDeviceType type; // discrete, integrated ...
    uint32_t vendorId;         // PCI's
    uint32_t deviceId;         // PCI's
    uint32_t apiVersion;       // of Vulkan, that the device has
    uint32_t driverVersion;    // in the driver's own format
    uint32_t driverId;            // VkDriverId, 0 where the driver does not say
    VkDeviceSize deviceMemory;    // bytes of the largest device-local heap
    uint32_t subgroupSize; // by default
    uint32_t sharedMemory;        // bytes per workgroup
    uint32_t maxStorageRange;     // bytes, clamped to 32 bits
    VkBool32 deviceAddresses;     // supported, when listed; enabled, on an opened device
    float timestampPeriod;        // ns per tick; 0 where the queue has no timestamps
} VkmqaDeviceProperties;

// Lists the Vulkan devices of this machine in the loader's order. properties may be null to count;
// otherwise only properties[0].structSize need be set, and it is the array's stride. *count becomes the
// number written. The loader is opened at run time. Errors: VK_ERROR_INCOMPATIBLE_DRIVER where there is no
// Vulkan loader or driver; VK_INCOMPLETE when *count was too small.
VKMQA_API VkResult vkmqaListDevices(uint32_t* count, VkmqaDeviceProperties* properties,
                                    VkmqaMessageCallback messageCallback, void* messageUserData);

// Which device, and how to open it.
typedef struct VkmqaDeviceOpenInfo {
    uint32_t structSize;
    // "auto" (default): the discrete GPU with the most memory, then integrated, virtual, CPU;
    // "INDEX" a decimal index of vkmqaListDevices; "name:TEXT" a part of the name, any case;
    // "uuid:HEX" 32 hexadecimal digits, dashes allowed; "type:discrete|integrated|virtual|cpu".
    // An ambiguous name takes the first. Text that is none of these is VK_ERROR_VALIDATION_FAILED_EXT; one
    // that fits no device VK_ERROR_INITIALIZATION_FAILED, with a message that lists what there is; a device
    // older than Vulkan 1.1 VK_ERROR_INCOMPATIBLE_DRIVER.
    const char* selector;
    VkBool32 portableOnly;         // enable nothing beyond Vulkan 1.1, to see what such a device does
    VkBool32 skipVerification;     // do not run vkmqaVerifyAttention in vkmqaDeviceCreateAttention
    const void* pipelineCacheData; // optional initial contents of the VkPipelineCache
    size_t pipelineCacheSize; // of them, in bytes
    VkmqaMessageCallback messageCallback; // optional
    void* messageUserData; // for it
    // Rendering and other programs go first: the lowest queue priority, and the low global one
    // (VK_EXT_global_priority) where the driver grants it.
    VkBool32 lowPriority;
} VkmqaDeviceOpenInfo;

// Creates an instance, a device with what vkmqaGetDeviceRequirements asks for, a compute queue, a
// transfer queue where there is one of its own, and a context.
VKMQA_API VkResult vkmqaOpenDevice(const VkmqaDeviceOpenInfo* info, VkmqaDevice* device);

// A VkDevice of yours, its queues and what guards them.
typedef struct VkmqaDeviceImportInfo {
    uint32_t structSize;
    // Everything vkmqaCreateContext asks for, and in its words; it holds for the whole device: its allocator for every
    // object, its pipelineCache as it is. Without runJobs and without an allocator, pipelines are compiled on threads
    // that live as long as the creation.
    const VkmqaContextCreateInfo* context;
    // The engine's own queue, or better an asynchronous one of a family without graphics.
    VkQueue computeQueue;
    uint32_t computeFamily; // its family
    uint32_t transferFamily; // transferQueue's family
    VkQueue transferQueue; // for uploads, downloads and offload; default computeQueue
    // Both or none: called around every use that the layer makes of a queue, for those that others use too.
    VkmqaQueueCallback lockQueue;
    VkmqaQueueCallback unlockQueue; // the other one
    void* queueUserData;            // for both
    VkBool32 skipVerification; // as in VkmqaDeviceOpenInfo
    // VkDeviceGroupDeviceCreateInfo::physicalDeviceCount of the device. Groups of several are refused with
    // VK_ERROR_FEATURE_NOT_PRESENT: import a device of one of them. Default 1.
    uint32_t physicalDeviceCount;
} VkmqaDeviceImportInfo;

// This layer on a VkDevice of yours, which must outlive it. An engine that enables too little for the fast kernels
// can have the same GPU as a device of the layer's own: vkmqaOpenDevice with the selector "uuid:HEX" of its
// VkPhysicalDeviceIDProperties::deviceUUID; their memory is not shared.
VKMQA_API VkResult vkmqaImportDevice(const VkmqaDeviceImportInfo* info, VkmqaDevice* device);

// Waits for the device (60 s at most, 600 s on a CPU), destroys it and everything it owns, which an imported VkDevice
// is not: of that it waits for the queues given. Null is ignored. Attention objects must have been destroyed (not
// checked). While caches, memories or commands made from it exist, or work does not end in that time, it sends an error
// message and leaves the device open; close it again.
VKMQA_API void vkmqaCloseDevice(VkmqaDevice device);

// As listed, but for deviceAddresses: whether they are enabled.
VKMQA_API VkResult vkmqaGetDeviceProperties(VkmqaDevice device, VkmqaDeviceProperties* properties);
// The device's context, for the calls of vkmqa.h; it belongs to the device. Null for a wrong handle.
VKMQA_API VkmqaContext vkmqaGetDeviceContext(VkmqaDevice device);

// The Vulkan objects beneath, for programs that outgrow this layer.
typedef struct VkmqaDeviceHandles {
    uint32_t structSize;
    VkInstance instance;             // the layer's own, or the imported one
    VkPhysicalDevice physicalDevice; // of it
    VkDevice device;                 // likewise
    VkQueue computeQueue;            // where commands go
    VkQueue transferQueue;           // where copies go; the same queue where the device has only one
    uint32_t computeFamily;          // of computeQueue
    uint32_t transferFamily;         // of transferQueue
    PFN_vkGetInstanceProcAddr getInstanceProcAddr; // that the rest came from
    VkPipelineCache pipelineCache;   // vkGetPipelineCacheData is worth keeping
} VkmqaDeviceHandles;
// They belong to the device.
VKMQA_API VkResult vkmqaGetDeviceHandles(VkmqaDevice device, VkmqaDeviceHandles* handles);

// vkmqaCreateAttention, then vkmqaVerifyAttention: kernels that answer wrongly on this driver are
// avoided and named in a warning, until a set of kernels passes or none is left
// (VK_ERROR_FEATURE_NOT_PRESENT). The object is destroyed with vkmqaDestroyAttention.
VKMQA_API VkResult vkmqaDeviceCreateAttention(VkmqaDevice device,
                                              const VkmqaAttentionCreateInfo* info,
                                              VkmqaAttention* attention);

// ---- Memory ----------------------------------------------------------------------------------

// Where memory lies.
typedef enum VkmqaMemoryKind {
    VKMQA_MEMORY_DEVICE = 0,   // device-local; filled and read through vkmqaUpload and vkmqaDownload
    VKMQA_MEMORY_UPLOAD = 1,   // host-visible and coherent, mapped, for metadata written every step
    VKMQA_MEMORY_DOWNLOAD = 2, // host-visible and coherent, cached where possible, mapped
    VKMQA_MEMORY_KIND_MAX_ENUM = 0x7FFFFFFF
} VkmqaMemoryKind;

// One VkBuffer with memory of its own: usable as storage, as source and target of copies, and by device
// address where the device has them. Size 0 is an error.
VKMQA_API VkResult vkmqaCreateMemory(VkmqaDevice device, VkmqaMemoryKind kind, VkDeviceSize size,
                                     VkmqaMemory* memory);
// Null is ignored. No pending commands may use it. Under a copy that does not end it is left to vkmqaCloseDevice.
VKMQA_API void vkmqaDestroyMemory(VkmqaMemory memory);
// The range [offset, offset + size) for vkmqa.h's structs; size 0 = to the end. A range outside the
// memory gives an all-zero VkmqaBuffer.
VKMQA_API VkmqaBuffer vkmqaGetMemoryRange(VkmqaMemory memory, VkDeviceSize offset, VkDeviceSize size);
// Host address, or null for VKMQA_MEMORY_DEVICE.
VKMQA_API void* vkmqaGetMemoryPointer(VkmqaMemory memory);

// Copies between host and device memory and waits, through staging buffers and the transfer queue where
// there is one. Any size and any kind of memory that no pending commands use; offsets and sizes are
// multiples of 4 bytes. VK_TIMEOUT as for waits that hang.
VKMQA_API VkResult vkmqaUpload(VkmqaMemory memory, VkDeviceSize offset, const void* data,
                               VkDeviceSize size);
// The other way.
VKMQA_API VkResult vkmqaDownload(VkmqaMemory memory, VkDeviceSize offset, void* data,
                                 VkDeviceSize size);

// ---- Commands --------------------------------------------------------------------------------

// A command buffer, its fence, its VkmqaRecorder (1024 calls) and two timestamps. Begin, record with
// vkmqaCmd calls into vkmqaGetCommandBuffer, submit, wait; it may be submitted again without recording.
// Submissions to one device run in the order they were submitted, see earlier uploads, and are visible to
// the host after the wait. Beginning or submitting while pending is an error; waiting for what was never
// submitted is VK_SUCCESS.
VKMQA_API VkResult vkmqaCreateCommands(VkmqaDevice device, VkmqaCommands* commands);
// Waits if pending, as long as vkmqaCloseDevice, to which it leaves what does not end. Null is ignored.
VKMQA_API void vkmqaDestroyCommands(VkmqaCommands commands);
VKMQA_API VkResult vkmqaBeginCommands(VkmqaCommands commands); // drops what was recorded
// Null outside of begin .. submit.
VKMQA_API VkCommandBuffer vkmqaGetCommandBuffer(VkmqaCommands commands);
// For VkmqaAppendInfo::recorder and its like; it belongs to the commands. Null for a wrong handle.
VKMQA_API VkmqaRecorder vkmqaGetCommandsRecorder(VkmqaCommands commands);
// Ends the recording, where it has not been ended, and submits to the compute queue. Does not wait. Should ending fail,
// the recording is lost; should submitting, it may be submitted again.
VKMQA_API VkResult vkmqaSubmitCommands(VkmqaCommands commands);
// VK_TIMEOUT when it has not finished; VK_ERROR_DEVICE_LOST is sticky for the device.
VKMQA_API VkResult vkmqaWaitCommands(VkmqaCommands commands, uint64_t timeoutNs);
// Time between begin and end on the device, in seconds, of the last finished submission; 0 where the
// queue has no timestamps.
VKMQA_API double vkmqaGetCommandsTime(VkmqaCommands commands);

// Computes vkmqaCmdAttention(info) in slices of about so many seconds (default 0.002), one submission after another,
// each waited for; info->recorder is the commands' own. What else is recorded in the commands is dropped. *correction
// is VkmqaSliceInfo's, 0 at first: timestamps improve it from slice to slice; keep it for the object's next call.
// After a failure out holds anything. VK_TIMEOUT: a slice hangs and is still pending; so the buffers are in use.
VKMQA_API VkResult vkmqaRunAttention(VkmqaCommands commands, VkmqaAttention attention,
                                     const VkmqaAttentionInfo* info, double seconds, double* correction);

#ifdef __cplusplus
}
#endif

#endif

// vkmqaOpenDevice: the selector and the blob of a pipeline cache. The first byte is the selector's length. The mock
// driver ends the process when it is handed a cache whose header is not its own.
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    char selector[64] = "";
    size_t length = size ? data[0] % sizeof(selector) : 0;
    if (size < 1 + length)
        return 0;
    memcpy(selector, data + 1, length);
    const VkmqaDeviceOpenInfo info = {
        .structSize = sizeof(info),
        .selector = length ? selector : NULL,
        .pipelineCacheData = data + 1 + length,
        .pipelineCacheSize = size - 1 - length,
        .portableOnly = data[0] & 0x40,
        .lowPriority = data[0] & 0x80,
        .messageCallback = fuzzMessage,
    };
    VkmqaDevice device = NULL;
    fuzzErrors = 0;
    VkResult result = vkmqaOpenDevice(&info, &device);
    REQUIRE((result == VK_SUCCESS) == (device != NULL), "result %d, device %p", result, (void*)device);
    REQUIRE(result == VK_SUCCESS || fuzzErrors, "result %d without a word", result);
    vkmqaCloseDevice(device);
    return 0;
}

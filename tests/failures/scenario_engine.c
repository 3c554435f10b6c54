#include "engine.h"
#include "failures.h"

#include <string.h>

static Engine engine;

void scenariosOpen(void) {
    uint32_t count = 1;
    harness.properties.structSize = sizeof(harness.properties);
    assert_true(vkmqaListDevices(&count, &harness.properties, harnessMessage, NULL) >= 0);
    engineOpen(&engine, harness.properties.uuid, true);
}

void scenariosClose(void) {
    engineClose(&engine);
}

// Nothing is enabled: the portable kernels, with descriptors that cannot be pushed.
void scenarioEngine(Attempt* attempt) {
    VkmqaContextCreateInfo context;
    VkmqaDeviceImportInfo info = engineImportInfo(&engine, &context);
    const VkAllocationCallbacks allocator = systemAllocator(&engine.allocator);
    const long before = engine.live;
    VkmqaDevice device = NULL;
    context.allocator = &allocator;
    ATTEMPT(vkmqaImportDevice(&info, &device));
    computeOn(attempt, device);
end:
    WATCHED(vkmqaCloseDevice(device));
    if (!attempt->leftAlone && attempt->first != VK_TIMEOUT)
        assert_int_equal(engine.live, before);
    assert_false(engine.locked);
}

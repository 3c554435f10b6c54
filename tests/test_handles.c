// Every function of the headers, asked for nothing and for what is none of the library's objects. No device is needed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include <vkmqa/vkmqa_cache.h>
#include <vkmqa/vkmqa_runtime.h>

static uint64_t foreign[4096]; // larger than any object, and zero where those have their marks

// With two sets of arguments: where they lack (all null) and where only the object is wrong.
typedef struct Arguments {
    void* object;
    bool given;
} Arguments;

#define REJECTS(call) assert_int_equal((call), VK_ERROR_VALIDATION_FAILED_EXT)

static void functionsOfContexts(const Arguments* a) {
    VkmqaContext context = a->object;
    VkmqaRecorder recorder = a->object;
    VkmqaAttentionCreateInfo create = {.structSize = sizeof(create)};
    VkmqaRecorderCreateInfo recorderCreate = {.structSize = sizeof(recorderCreate), .maxCalls = 1};
    VkmqaAttention attention = (VkmqaAttention)foreign;
    VkmqaRecorder made = (VkmqaRecorder)foreign;
    REJECTS(vkmqaCreateAttention(context, a->given ? &create : NULL, a->given ? &attention : NULL));
    REJECTS(vkmqaCreateRecorder(context, a->given ? &recorderCreate : NULL, a->given ? &made : NULL));
    REJECTS(vkmqaResetRecorder(recorder));
    vkmqaDestroyContext(NULL);
    vkmqaDestroyAttention(NULL);
    vkmqaDestroyRecorder(NULL);
}

static void functionsOfAttention(const Arguments* a) {
    VkmqaAttention attention = a->object;
    VkCommandBuffer buffer = a->given ? (VkCommandBuffer)foreign : NULL;
    VkmqaStepLimits limits = {0};
    VkmqaKvRequirements kv = {.structSize = sizeof(kv)};
    VkmqaBufferRequirements requirements = {0};
    VkmqaStepLayout layout = {0};
    VkmqaParametersInfo parameters = {.structSize = sizeof(parameters)};
    VkmqaAppendInfo append = {.structSize = sizeof(append)};
    VkmqaAttentionInfo info = {.structSize = sizeof(info)};
    VkmqaMergeInfo merge = {.structSize = sizeof(merge)};
    VkmqaCompactInfo compact = {.structSize = sizeof(compact)};
    VkmqaSliceInfo slice = {.structSize = sizeof(slice)};
    VkmqaSlices slices = {.structSize = sizeof(slices)};
    VkmqaKernelInfo kernel = {.structSize = sizeof(kernel)};
    VkmqaVerifyInfo verify = {.structSize = sizeof(verify)};
    uint64_t failed;
#define GIVEN(variable) (a->given ? &(variable) : NULL)
    REJECTS(vkmqaGetKvRequirements(attention, 1, GIVEN(kv)));
    REJECTS(vkmqaGetScratchRequirements(attention, GIVEN(limits), GIVEN(requirements)));
    REJECTS(vkmqaGetStepLayout(attention, GIVEN(limits), GIVEN(layout), GIVEN(requirements)));
    REJECTS(vkmqaGetParametersRequirements(attention, GIVEN(requirements)));
    REJECTS(vkmqaWriteParameters(attention, GIVEN(parameters), sizeof(foreign), a->given ? foreign : NULL));
    REJECTS(vkmqaCmdAppendKv(attention, buffer, GIVEN(append)));
    REJECTS(vkmqaCmdAttention(attention, buffer, GIVEN(info)));
    REJECTS(vkmqaCmdAttentionSlice(attention, buffer, GIVEN(info), 0, 1));
    REJECTS(vkmqaCmdMergeStates(attention, buffer, GIVEN(merge)));
    REJECTS(vkmqaCmdCompactKv(attention, buffer, GIVEN(compact)));
    REJECTS(vkmqaGetSliceCount(attention, GIVEN(slice), GIVEN(slices)));
    REJECTS(vkmqaGetKernelInfo(attention, GIVEN(limits), GIVEN(kernel)));
    REJECTS(vkmqaGetVerifyRequirements(attention, GIVEN(requirements)));
    REJECTS(vkmqaVerifyAttention(attention, GIVEN(verify), GIVEN(failed)));
}

static void functionsOfDevices(const Arguments* a) {
    VkmqaDevice device = a->object;
    VkmqaMemory memory = a->object, madeMemory;
    VkmqaCommands commands = a->object, madeCommands;
    VkmqaAttention attention;
    VkmqaDeviceProperties properties = {.structSize = sizeof(properties)};
    VkmqaDeviceHandles handles = {.structSize = sizeof(handles)};
    VkmqaAttentionCreateInfo create = {.structSize = sizeof(create)};
    VkmqaAttentionInfo info = {.structSize = sizeof(info)};
    double correction = 1;
    uint64_t word = 0;
    REJECTS(vkmqaGetDeviceProperties(device, GIVEN(properties)));
    REJECTS(vkmqaGetDeviceHandles(device, GIVEN(handles)));
    REJECTS(vkmqaDeviceCreateAttention(device, GIVEN(create), GIVEN(attention)));
    REJECTS(vkmqaCreateMemory(device, VKMQA_MEMORY_DEVICE, 4, GIVEN(madeMemory)));
    REJECTS(vkmqaUpload(memory, 0, GIVEN(word), 4));
    REJECTS(vkmqaDownload(memory, 0, GIVEN(word), 4));
    REJECTS(vkmqaCreateCommands(device, GIVEN(madeCommands)));
    REJECTS(vkmqaBeginCommands(commands));
    REJECTS(vkmqaSubmitCommands(commands));
    REJECTS(vkmqaWaitCommands(commands, 0));
    REJECTS(vkmqaRunAttention(commands, a->object, GIVEN(info), 0, GIVEN(correction)));
    assert_null(vkmqaGetDeviceContext(device));
    assert_null(vkmqaGetMemoryPointer(memory));
    assert_int_equal(vkmqaGetMemoryRange(memory, 0, 0).size, 0);
    assert_null(vkmqaGetCommandBuffer(commands));
    assert_null(vkmqaGetCommandsRecorder(commands));
    assert_true(vkmqaGetCommandsTime(commands) == 0);
    vkmqaCloseDevice(NULL);
    vkmqaDestroyMemory(NULL);
    vkmqaDestroyCommands(NULL);
}

static void functionsOfCaches(const Arguments* a) {
    VkmqaCache cache = a->object, made;
    VkmqaCacheCreateInfo create = {.structSize = sizeof(create), .attention = a->object};
    VkmqaCacheRequirements requirements = {.structSize = sizeof(requirements)};
    VkmqaCacheState state = {.structSize = sizeof(state)};
    VkmqaSequenceCreateInfo sequenceCreate = {.structSize = sizeof(sequenceCreate)};
    VkmqaSequenceState sequenceState = {.structSize = sizeof(sequenceState)};
    VkmqaSequenceTokens tokens = {0};
    VkmqaShiftInfo shift = {.structSize = sizeof(shift)};
    VkmqaStepBuildInfo build = {.structSize = sizeof(build)};
    VkmqaCacheStep step = {.structSize = sizeof(step)};
    VkmqaSnapshotInfo snapshot = {.structSize = sizeof(snapshot)};
    VkmqaSequence sequence = 0;
    VkCommandBuffer buffer = a->given ? (VkCommandBuffer)foreign : NULL;
    uint32_t count = 0;
    REJECTS(vkmqaGetCacheRequirements(GIVEN(create), GIVEN(requirements)));
    REJECTS(vkmqaCreateCache(GIVEN(create), GIVEN(made)));
    REJECTS(vkmqaGetCacheState(cache, GIVEN(state)));
    REJECTS(vkmqaCreateSequence(cache, GIVEN(sequenceCreate), GIVEN(sequence), GIVEN(count)));
    REJECTS(vkmqaDestroySequence(cache, 1));
    REJECTS(vkmqaGetSequenceState(cache, 1, GIVEN(sequenceState)));
    REJECTS(vkmqaReserveTokens(cache, 1, GIVEN(tokens)));
    REJECTS(vkmqaForkSequence(cache, 1, 0, GIVEN(sequence)));
    REJECTS(vkmqaTruncateSequence(cache, 1, 0));
    REJECTS(vkmqaCmdShiftSequence(cache, buffer, GIVEN(shift)));
    REJECTS(vkmqaBuildStep(cache, GIVEN(build), GIVEN(step)));
    REJECTS(vkmqaCmdUpdateCache(cache, buffer, GIVEN(step)));
    REJECTS(vkmqaDiscardSteps(cache));
    REJECTS(vkmqaOffloadSequence(cache, 1));
    REJECTS(vkmqaRestoreSequence(cache, 1));
    REJECTS(vkmqaOffloadLeastRecent(cache, 1, GIVEN(count)));
    REJECTS(vkmqaPinSequence(cache, 1, VK_TRUE));
    REJECTS(vkmqaFinishTransfers(cache, 0));
    REJECTS(vkmqaSaveSequences(cache, 1, GIVEN(sequence), GIVEN(snapshot)));
    REJECTS(vkmqaLoadSequences(cache, GIVEN(snapshot), GIVEN(count), GIVEN(sequence)));
    assert_null(vkmqaGetCacheLayer(cache, 0));
    vkmqaDestroyCache(NULL);
}

static void everyFunctionRejects(void** state) {
    (void)state;
    const Arguments all[] = {{NULL, false}, {NULL, true}, {foreign, false}, {foreign, true}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        functionsOfContexts(&all[i]);
        functionsOfAttention(&all[i]);
        functionsOfDevices(&all[i]);
        functionsOfCaches(&all[i]);
    }
    VkmqaDeviceRequirementsInfo info = {.structSize = sizeof(info)};
    VkmqaDeviceRequirements requirements = {.structSize = sizeof(requirements)};
    VkmqaContextCreateInfo create = {.structSize = sizeof(create)};
    VkmqaContext context;
    REJECTS(vkmqaGetDeviceRequirements(NULL, &requirements));
    REJECTS(vkmqaGetDeviceRequirements(&info, NULL));
    REJECTS(vkmqaGetDeviceRequirements(&info, &requirements));
    REJECTS(vkmqaCreateContext(NULL, &context));
    REJECTS(vkmqaCreateContext(&create, NULL));
    REJECTS(vkmqaCreateContext(&create, &context));
    REJECTS(vkmqaListDevices(NULL, NULL, NULL, NULL));
    assert_null(vkmqaGetKernelName(UINT32_MAX));
    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) // and none of them has written to it
        assert_int_equal(foreign[i], 0);
}

int main(void) {
    static const struct CMUnitTest tests[] = {cmocka_unit_test(everyFunctionRejects)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

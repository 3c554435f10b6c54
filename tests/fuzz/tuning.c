// VkmqaAttentionCreateInfo::tuningProfile. The first byte chooses a shape, the rest is the profile; what it says goes
// on into the choice of kernels and a plan.
#include "fuzz.h"

#include "core/internal.h"

// Of the head that corpus/tuning begins its profiles with.
static const struct VkmqaCaps caps = {
    .type = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, .driverId = 5, .driverVersion = 0x1006, .uuid = {0xab, 1},
    .apiVersion = VK_API_VERSION_1_3, .deviceAddress = true, .pushDescriptor = true, .storage16 = true,
    .float16 = true, .narrowIntegers = true, .subgroupShuffle = true, .subgroupBallot = true, .subgroupVote = true,
    .subgroupSizeControl = true, .computeFullSubgroups = true, .subgroupSize = 32, .minSubgroupSize = 32,
    .maxSubgroupSize = 32, .maxInvocations = 1024, .maxGroupCount = {65535, 65535, 65535}, .sharedMemory = 32768,
    .storageBuffersPerStage = 16, .maxStorageRange = 1u << 30, .storageAlignment = 64, .matrixCount = 1,
    .matrices = {{16, 16, 16}},
};

static const VkmqaAttentionCreateInfo shapes[] = {
    {.numHeadsQ = 32, .numHeadsKv = 8, .headDimQk = 128, .pageSize = 16},
    {.numHeadsQ = 2, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 32, .kType = VKMQA_TYPE_Q8_0,
     .vType = VKMQA_TYPE_F16, .maxSeqLenKv = 4096},
    {.numHeadsQ = 8, .numHeadsKv = 8, .headDimQk = 8, .kType = VKMQA_TYPE_F32, .pageSize = 1},
};

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0)
        return 0;
    struct VkmqaShape shape;
    struct VkmqaProblem problem;
    REQUIRE(vkmqa_make_shape(&shapes[data[0] % 3], &shape, &problem), "%s", problem.text);
    struct VkmqaTuned tuned;
    bool read = vkmqa_read_tuning((const char*)data + 1, size - 1, &caps, &shape, &tuned, &problem);
    REQUIRE(read || strstr(problem.text, "tuningProfile"), "refused without a word: '%s'", problem.text);
    if (!read || tuned.foreign) {
        REQUIRE(!read || tuned.count == 0, "kernels of another device");
        return 0;
    }
    REQUIRE(tuned.count <= VKMQA_MAX_CANDIDATES, "%u kernels", tuned.count);
    struct VkmqaChoice choice;
    VkResult result = vkmqa_select(&caps, &shape, &tuned, &choice, &problem);
    REQUIRE(result == VK_SUCCESS || strlen(problem.text), "no kernels, without a word");
    if (result != VK_SUCCESS)
        return 0;
    REQUIRE(choice.count && choice.count <= VKMQA_MAX_CANDIDATES, "%u kernels chosen", choice.count);
    for (uint32_t tokens = 1; tokens <= 4096; tokens *= 64) {
        const VkmqaStepLimits given = {.batch = 2, .totalQ = 2 * tokens, .maxSeqLenQ = tokens};
        VkmqaStepLimits limits;
        struct VkmqaPlan plan;
        if (vkmqa_make_limits(&shape, &given, &limits, &problem) &&
            vkmqa_make_plan(&caps, &shape, &choice, &limits, &plan, &problem))
            vkmqa_estimate(&caps, &shape, &choice, &limits, &plan);
    }
    return 0;
}

// Tuning profiles: what is read from them, what is refused, and that kernels follow them and stay right.
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/internal.h"

static const struct VkmqaCaps caps = {.uuid = {0xab, 1}, .driverId = 5, .driverVersion = 0x1006};
#define TEXT_OF(number) #number
#define VERSION(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)
#define LIBRARY "library " VERSION(VKMQA_VERSION_MAJOR, VKMQA_VERSION_MINOR, VKMQA_VERSION_PATCH) "\n"
#define HEAD "vkmqa-tuning 1\n" LIBRARY "device ab010000000000000000000000000000\ndriver 5 0x00001006\n"

static bool readProfile(const char* text, size_t size, struct VkmqaTuned* tuned, struct VkmqaProblem* problem) {
    const VkmqaAttentionCreateInfo info = {.structSize = sizeof(info), .numHeadsQ = 32, .numHeadsKv = 8,
                                           .headDimQk = 128, .pageSize = 16};
    struct VkmqaShape shape;
    assert_true(vkmqa_make_shape(&info, &shape, problem));
    return vkmqa_read_tuning(text, size, &caps, &shape, tuned, problem);
}

static void linesOfTheShapeAreRead(void** state) {
    (void)state;
    static const char text[] = HEAD "# a comment\n\n"
                                    "32:8 64/64 f16/f16 more stream-r1 64 1\n"
                                    "64:16 128/128 f16/f16 4 stream-r4 256 512 # the same ratio\n"
                                    "32:8 128/128 f16/q8_0 more stream-r1 64 1\r\n"
                                    "\t32:8 128/128  f16/f16 more coopmat-t4 128 65536";
    struct VkmqaTuned tuned;
    struct VkmqaProblem problem;
    if (!readProfile(text, strlen(text), &tuned, &problem))
        fail_msg("%s", problem.text);
    assert_null(tuned.foreign);
    assert_int_equal(tuned.count, 2);
    assert_string_equal(tuned.kernels[0].name, "stream-r4");
    assert_int_equal(tuned.kernels[0].upTo, 4);
    assert_int_equal(tuned.kernels[0].splitSize, 256);
    assert_int_equal(tuned.kernels[0].workgroups, 512);
    assert_string_equal(tuned.kernels[1].name, "coopmat-t4");
    assert_int_equal(tuned.kernels[1].upTo, UINT32_MAX);
    assert_int_equal(tuned.kernels[1].workgroups, 65536);
}

static void otherDevicesAreToldApart(void** state) {
    (void)state;
    static const struct {
        const char *text, *foreign;
    } rows[] = {
        {"vkmqa-tuning 2\nwhatever\n", "format"},
        {"vkmqa-tuning 1\nlibrary 9.1.0\ndevice ab010000000000000000000000000000\ndriver 5 0x00001006\n", "library"},
        {"vkmqa-tuning 1\n" LIBRARY "device ab020000000000000000000000000000\ndriver 5 0x00001006\n", "device"},
        {"vkmqa-tuning 1\n" LIBRARY "device ab010000000000000000000000000000\ndriver 6 0x00001006\n", "driver"},
        {"vkmqa-tuning 1\n" LIBRARY "device ab010000000000000000000000000000\ndriver 5 0x00001007\n"
         "32:8 128/128 f16/f16 more stream-r1 64 1\n", "driver"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct VkmqaTuned tuned;
        struct VkmqaProblem problem;
        assert_true(readProfile(rows[i].text, strlen(rows[i].text), &tuned, &problem));
        assert_non_null(tuned.foreign);
        assert_non_null(strstr(tuned.foreign, rows[i].foreign));
        assert_int_equal(tuned.count, 0);
    }
}

static void damageIsNamed(void** state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } rows[] = {
        {"", "ends before"},
        {"vkmqa-tuning", "line 1"},
        {"vkmqa-tuning 1\n", "library"},
        {"vkmqa-tuning 1\nlibrary 0.1.0 x\n", "line 2"},
        {"{\"json\": 1}\n", "line 1"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64\n", "line 5"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64 1 1\n", "line 5"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64 1 1 1\n", "more than 8"},
        {HEAD "32:0 128/128 f16/f16 more stream-r1 64 1\n", "heads"},
        {HEAD "32:7 128/128 f16/f16 more stream-r1 64 1\n", "heads"},
        {HEAD "32 128/128 f16/f16 more stream-r1 64 1\n", "heads"},
        {HEAD "32:8 128/1280 f16/f16 more stream-r1 64 1\n", "dims"},
        {HEAD "32:8 128/128 f16/f17 more stream-r1 64 1\n", "types"},
        {HEAD "32:8 128/128 f16 more stream-r1 64 1\n", "types"},
        {HEAD "32:8 128/128 f16/f16 0 stream-r1 64 1\n", "rows"},
        {HEAD "32:8 128/128 f16/f16 -1 stream-r1 64 1\n", "rows"},
        {HEAD "32:8 128/128 f16/f16 99999999999999999999 stream-r1 64 1\n", "rows"},
        {HEAD "32:8 128/128 f16/f16 more a-kernel-of-a-name-longer-than-any 64 1\n", "kernel"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 63 1\n", "split"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 32 1\n", "split"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 96 1\n", "split"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64 65537\n", "workgroups"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64 1x\n", "workgroups"},
        {HEAD "32:8 128/128 f16/f16 4 stream-r1 64 1\n", "more"},
        {HEAD "32:8 128/128 f16/f16 4 stream-r1 64 1\n32:8 128/128 f16/f16 4 stream-r4 64 1\n", "line 6"},
        {HEAD "32:8 128/128 f16/f16 more stream-r1 64 1\n32:8 128/128 f16/f16 more stream-r4 64 1\n", "line 6"},
        {HEAD "32:8 128/128 f16/f16 1 a 64 1\n32:8 128/128 f16/f16 2 a 64 1\n32:8 128/128 f16/f16 3 a 64 1\n"
              "32:8 128/128 f16/f16 4 a 64 1\n32:8 128/128 f16/f16 5 a 64 1\n32:8 128/128 f16/f16 6 a 64 1\n"
              "32:8 128/128 f16/f16 7 a 64 1\n32:8 128/128 f16/f16 8 a 64 1\n32:8 128/128 f16/f16 more a 64 1\n",
         "line 13 is one more"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct VkmqaTuned tuned;
        struct VkmqaProblem problem;
        // Behind the last byte nothing may be read: a copy of exactly this size, for the sanitizer.
        size_t size = strlen(rows[i].text);
        char* copy = malloc(size ? size : 1);
        memcpy(copy, rows[i].text, size);
        bool read = readProfile(copy, size, &tuned, &problem);
        free(copy);
        if (read)
            fail_msg("profile %zu was taken: %s", i, rows[i].text);
        if (!strstr(problem.text, rows[i].word))
            fail_msg("profile %zu: the message does not speak of %s: \"%s\"", i, rows[i].word, problem.text);
    }
    struct VkmqaTuned tuned;
    struct VkmqaProblem problem;
    char* zeros = calloc(1, 1 << 21);
    assert_false(readProfile(zeros, 1 << 21, &tuned, &problem));
    assert_non_null(strstr(problem.text, "tuningProfileSize"));
    assert_false(readProfile(zeros, 100, &tuned, &problem));
    memset(zeros, 'x', 1000);
    assert_false(readProfile(zeros, 1000, &tuned, &problem));
    free(zeros);
}

// ---- On a device -------------------------------------------------------------------------------------

static size_t writeProfile(char* text, size_t size, const char* lines) {
    const VkmqaDeviceProperties* device = &harness.properties;
    char uuid[33];
    for (int i = 0; i < 16; i++)
        snprintf(uuid + 2 * i, 3, "%02x", device->uuid[i]);
    return (size_t)snprintf(text, size, "vkmqa-tuning 1\nlibrary %d.%d.%d\ndevice %s\ndriver %u 0x%08x\n%s",
                            VKMQA_VERSION_MAJOR, VKMQA_VERSION_MINOR, VKMQA_VERSION_PATCH, uuid, device->driverId,
                            device->driverVersion, lines);
}

static const char* kernelOf(VkmqaAttention attention, uint32_t tokens, VkmqaKernelInfo* info) {
    const VkmqaStepLimits limits = {.batch = 1, .totalQ = tokens, .maxSeqLenKv = 4096};
    info->structSize = sizeof(*info);
    REQUIRE(vkmqaGetKernelInfo(attention, &limits, info));
    return info->name;
}

// Few rows get the kernel of many and the other way round: nobody would choose so, and it must still be right.
static void kernelsFollowTheProfile(void** state) {
    (void)state;
    char lines[256], profile[1024];
    const Model model = {.numHeadsQ = 8, .numHeadsKv = 1, .headDimQk = 64, .headDimV = 64, .pageSize = 16,
                         .io = ORACLE_F16, .k = ORACLE_F16, .v = ORACLE_F16, .causal = true, .maxSeqLenKv = 4096};
    const Batch batch = {5, {{17, 17}, {5, 300}, {1, 333}, {0, 50}, {3, 3}}, .gaps = true};
    const Batch decode = {2, {{1, 700}, {1, 9}}, .gaps = true};
    snprintf(lines, sizeof(lines), "8:1 64/64 f16/f16 16 tile-r8 64 4\n8:1 64/64 f16/f16 more tile-r1 128 2\n");
    VkmqaAttentionCreateInfo info = attentionInfo(&model, VKMQA_TIER_AUTO);
    info.tuningProfile = profile;
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), lines);
    VkmqaAttention attention;
    VkmqaKernelInfo kernel;
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    assert_string_equal(kernelOf(attention, 1, &kernel), "tile-r8");
    assert_non_null(strstr(kernel.reason, "profile"));
    assert_int_equal(kernel.splits, 4); // as many as fill the device of the profile
    assert_string_equal(kernelOf(attention, 2, &kernel), "tile-r8");
    assert_string_equal(kernelOf(attention, 3, &kernel), "tile-r1");
    Problem problems[] = {problemCreate(&model, &batch, 3, true), problemCreate(&model, &decode, 4, true)};
    runProblem(attention, &problems[0], "profile, ragged");
    runProblem(attention, &problems[1], "profile, decode");
    problemDestroy(&problems[0]);
    problemDestroy(&problems[1]);
    vkmqaDestroyAttention(attention);

    // The library's own split and filling stand where the profile says 0.
    info.tuningProfile = NULL;
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    snprintf(lines, sizeof(lines), "8:1 64/64 f16/f16 more %s 0 0\n", kernelOf(attention, 1, &kernel));
    const uint32_t splits = kernel.splits;
    vkmqaDestroyAttention(attention);
    info.tuningProfile = profile;
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), lines);
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    kernelOf(attention, 1, &kernel);
    assert_non_null(strstr(kernel.reason, "profile"));
    assert_int_equal(kernel.splits, splits);
    vkmqaDestroyAttention(attention);
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), "8:1 64/64 f16/f16 more tile-r1 128 2\n");
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    kernelOf(attention, 1, &kernel);
    vkmqaDestroyAttention(attention);

    // What the caller fixes stays fixed, and what the device lacks is left to the table.
    info.avoidKernels = 1ull << kernel.kernel; // tile-r1
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    kernelOf(attention, 1, &kernel);
    assert_null(strstr(kernel.reason, "profile"));
    vkmqaDestroyAttention(attention);
    info.avoidKernels = 0;
    info.splitSize = 128;
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    kernelOf(attention, 1, &kernel);
    assert_null(strstr(kernel.reason, "profile"));
    vkmqaDestroyAttention(attention);
    info.splitSize = 0;
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), "8:1 64/64 f16/f16 more no-such-kernel 64 4\n");
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    vkmqaDestroyAttention(attention);
}

static void messagesSpeakOfTheProfile(void** state) {
    (void)state;
    char profile[1024];
    VkmqaAttentionCreateInfo info = {.structSize = sizeof(info), .numHeadsQ = 8, .numHeadsKv = 1, .headDimQk = 64,
                                     .pageSize = 16, .tuningProfile = profile, .tier = VKMQA_TIER_PORTABLE};
    VkmqaAttention attention;
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), "broken\n");
    harness.message[0] = 0;
    assert_int_equal(vkmqaCreateAttention(harness.context, &info, &attention), VK_ERROR_VALIDATION_FAILED_EXT);
    assert_non_null(strstr(harness.message, "line 5"));
    assert_null(attention);
    info.tuningProfileSize = writeProfile(profile, sizeof(profile), "");
    memcpy(strstr(profile, "device ") + 7, "0123456789abcdef0123456789abcdef", 32);
    harness.message[0] = 0;
    REQUIRE(vkmqaCreateAttention(harness.context, &info, &attention));
    assert_non_null(strstr(harness.message, "another device"));
    vkmqaDestroyAttention(attention);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(linesOfTheShapeAreRead),  cmocka_unit_test(otherDevicesAreToldApart),
    cmocka_unit_test(damageIsNamed),           cmocka_unit_test(kernelsFollowTheProfile),
    cmocka_unit_test(messagesSpeakOfTheProfile),
};

int main(void) {
    harnessOpen();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    harnessClose();
    return failed != 0;
}

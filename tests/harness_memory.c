#include "harness.h"

#include "compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t randomNext(Random* random) {
    uint64_t z = random->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t randomBelow(Random* random, uint32_t bound) {
    return (uint32_t)(randomNext(random) >> 32) % bound;
}

Random randomFor(uint64_t a, uint64_t b, uint64_t c) {
    Random random = {a};
    random.state = randomNext(&random) ^ b * 0xD6E8FEB86659FD93u;
    random.state = randomNext(&random) ^ c * 0xA0761D6478BD642Fu;
    return random;
}

float randomNormal(Random* random) {
    // Four 16-bit uniforms: their sum has variance 4 / 12.
    uint64_t bits = randomNext(random);
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)(bits >> 16 * i & 0xFFFF) / 65535 - 0.5;
    return (float)(sum * sqrt(3));
}

// ---- Memory ------------------------------------------------------------------------------------

void* poisonedBytes(size_t bytes) {
    uint32_t* words = malloc(bytes + 4);
    for (size_t i = 0; i < (bytes + 3) / 4; i++)
        words[i] = COMPARE_POISON;
    return words;
}

// Guard bytes behind the range; none where the tests' layer guards the memory itself.
static VkDeviceSize guardBytes(void) {
    const char* guard = getenv("VKMQA_TEST_GUARD");
    return guard && strcmp(guard, "none") == 0 ? 0 : 256;
}

Guarded guardedCreate(const VkmqaBufferRequirements* requirements) {
    Guarded guarded = {0};
    if (requirements->size == 0)
        return guarded;
    // In front: an odd multiple of the alignment, which exposes code that needs more than it asks for.
    VkDeviceSize alignment = requirements->alignment > 16 ? requirements->alignment : 16;
    VkDeviceSize behind = guardBytes();
    guarded.before = behind ? 3 * alignment : 0;
    VkDeviceSize size = (requirements->size + 3) / 4 * 4;
    VkDeviceSize all = guarded.before + size + behind;
    REQUIRE(vkmqaCreateMemory(harness.device, VKMQA_MEMORY_DEVICE, all, &guarded.memory));
    void* bytes = poisonedBytes(all);
    REQUIRE(vkmqaUpload(guarded.memory, 0, bytes, all));
    free(bytes);
    guarded.range = vkmqaGetMemoryRange(guarded.memory, guarded.before, size);
    return guarded;
}

void guardedDestroy(Guarded* guarded) {
    vkmqaDestroyMemory(guarded->memory);
    memset(guarded, 0, sizeof(*guarded));
}

void guardedUpload(const Guarded* guarded, const void* bytes) {
    if (guarded->memory)
        REQUIRE(vkmqaUpload(guarded->memory, guarded->before, bytes, guarded->range.size));
}

void guardedDownload(const Guarded* guarded, void* bytes) {
    if (guarded->memory)
        REQUIRE(vkmqaDownload(guarded->memory, guarded->before, bytes, guarded->range.size));
}

void guardedCheck(const Guarded* guarded, const char* name) {
    VkDeviceSize bytes = guardBytes();
    if (!guarded->memory || !bytes)
        return;
    VkDeviceSize behind = guarded->before + guarded->range.size;
    uint32_t* words = malloc(guarded->before + bytes);
    REQUIRE(vkmqaDownload(guarded->memory, 0, words, guarded->before));
    REQUIRE(vkmqaDownload(guarded->memory, behind, words + guarded->before / 4, bytes));
    for (size_t i = 0; i < (guarded->before + bytes) / 4; i++)
        if (words[i] != COMPARE_POISON)
            fail_msg("guard word %zu of %s was overwritten with 0x%08x (%s the range)", i, name,
                     words[i], i < guarded->before / 4 ? "before" : "behind");
    free(words);
}

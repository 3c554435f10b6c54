// What C and the compiled shaders must agree on: sizes and offsets of the push constants, the
// specialisation ids and their defaults, the bindings. Read from the embedded SPIR-V itself, so that a
// shader compiled from an older shared.h, or packed differently, is caught without a device.
#include "shared.h"
#include "vkmqa_shader_ids.h"
#include "vkmqa_spirv.inc"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { // SPIR-V's numbers
    OP_EXECUTION_MODE_ID = 331,
    OP_CAPABILITY = 17,
    OP_TYPE_INT = 21,
    OP_TYPE_FLOAT = 22,
    OP_TYPE_VECTOR = 23,
    OP_TYPE_STRUCT = 30,
    OP_TYPE_POINTER = 32,
    OP_SPEC_CONSTANT = 50,
    OP_VARIABLE = 59,
    OP_DECORATE = 71,
    OP_MEMBER_DECORATE = 72,
    DECORATION_SPEC_ID = 1,
    DECORATION_BUILT_IN = 11,
    DECORATION_BINDING = 33,
    DECORATION_DESCRIPTOR_SET = 34,
    DECORATION_OFFSET = 35,
    STORAGE_PUSH_CONSTANT = 9,
    MAGIC = 0x07230203,
    MAX_IDS = 131072,
    MAX_MEMBERS = 32,
};

typedef struct Module {
    const char* name;
    const uint32_t* words;
    size_t count;
} Module;

static const Module modules[] = {
#define MODULE(name, words, count) {#name, words, count},
    VKMQA_SPIRV_LIST(MODULE)
#undef MODULE
};

_Static_assert(sizeof modules / sizeof modules[0] == VKMQA_SHADER_COUNT, "one id per module");

// What a module declares, by SPIR-V id.
typedef struct Declared {
    uint32_t size[MAX_IDS];    // of scalar and vector types
    uint32_t members[MAX_IDS]; // number of members of a struct
    uint32_t member[MAX_IDS][MAX_MEMBERS];
    uint32_t pointee[MAX_IDS]; // of push constant pointers
    int32_t specId[MAX_IDS];   // -1 = none
    uint32_t specDefault[MAX_IDS];
    uint32_t offset[MAX_IDS][MAX_MEMBERS];
    uint32_t pushStruct; // id, 0 = none
    uint32_t bindings;   // bit mask
    bool otherSets;      // a descriptor set that is not 0
} Declared;

static Declared declared; // too large for a stack

typedef void (*Visit)(const uint32_t* instruction, uint32_t opcode, uint32_t length);

static void forEachInstruction(const Module* module, Visit visit) {
    for (size_t at = 5; at < module->count;) {
        uint32_t length = module->words[at] >> 16;
        assert_true(length > 0 && at + length <= module->count);
        visit(&module->words[at], module->words[at] & 0xFFFF, length);
        at += length;
    }
}

static void readDecoration(const uint32_t* word) {
    if (word[2] == DECORATION_SPEC_ID)
        declared.specId[word[1]] = (int32_t)word[3];
    else if (word[2] == DECORATION_BINDING)
        declared.bindings |= 1u << word[3];
    else if (word[2] == DECORATION_DESCRIPTOR_SET)
        declared.otherSets |= word[3] != 0;
}

static void readInstruction(const uint32_t* word, uint32_t opcode, uint32_t length) {
    switch (opcode) {
    case OP_TYPE_INT:
    case OP_TYPE_FLOAT:
        declared.size[word[1]] = word[2] / 8;
        break;
    case OP_TYPE_VECTOR:
        declared.size[word[1]] = declared.size[word[2]] * word[3];
        break;
    case OP_TYPE_STRUCT:
        declared.members[word[1]] = length - 2;
        for (uint32_t i = 0; i < length - 2 && i < MAX_MEMBERS; i++)
            declared.member[word[1]][i] = word[2 + i];
        break;
    case OP_TYPE_POINTER:
        if (word[2] == STORAGE_PUSH_CONSTANT)
            declared.pointee[word[1]] = word[3];
        break;
    case OP_VARIABLE:
        if (word[3] == STORAGE_PUSH_CONSTANT)
            declared.pushStruct = declared.pointee[word[1]];
        break;
    case OP_SPEC_CONSTANT:
        declared.specDefault[word[2]] = word[3];
        break;
    case OP_DECORATE:
        readDecoration(word);
        break;
    case OP_MEMBER_DECORATE:
        if (word[3] == DECORATION_OFFSET && word[2] < MAX_MEMBERS)
            declared.offset[word[1]][word[2]] = word[4];
        break;
    default:
        break;
    }
}

static bool readModule(const Module* module) {
    if (!module->words) { // this compiler could not build it
        print_message("%s: not built\n", module->name);
        return false;
    }
    assert_int_equal(module->words[0], MAGIC);
    assert_true(module->words[3] < MAX_IDS);
    memset(&declared, 0, sizeof declared);
    memset(declared.specId, 0xFF, sizeof declared.specId);
    forEachInstruction(module, readInstruction);
    return true;
}

static bool startsWith(const char* text, const char* prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static size_t pushSizeOf(const char* name) {
    if (startsWith(name, "attn_merge"))
        return sizeof(struct VkmqaMergePush);
    if (startsWith(name, "merge_states"))
        return sizeof(struct VkmqaMergeStatesPush);
    if (startsWith(name, "append"))
        return sizeof(struct VkmqaAppendPush);
    if (startsWith(name, "compact"))
        return sizeof(struct VkmqaCompactPush);
    return sizeof(struct VkmqaAttentionPush);
}

// The structs are one text in both languages: members one after the other without gaps, ending where the
// C struct ends, are the same members. The optimiser takes out members that a kernel does not read, so gaps
// are allowed, but some kernel of each struct must have none.
static void pushConstantsAreTheSame(void** state) {
    (void)state;
    static const size_t structs[] = {sizeof(struct VkmqaAttentionPush), sizeof(struct VkmqaMergePush),
                                     sizeof(struct VkmqaMergeStatesPush), sizeof(struct VkmqaAppendPush),
                                     sizeof(struct VkmqaCompactPush)};
    bool whole[sizeof structs / sizeof structs[0]] = {false};
    for (size_t i = 0; i < VKMQA_SHADER_COUNT; i++) {
        const Module* module = &modules[i];
        if (!readModule(module))
            continue;
        uint32_t id = declared.pushStruct;
        if (id == 0)
            fail_msg("%s: no push constants", module->name);
        // The block holds one struct, or its members directly.
        uint32_t base = 0;
        if (declared.members[id] == 1 && declared.members[declared.member[id][0]] > 0) {
            base = declared.offset[id][0];
            id = declared.member[id][0];
        }
        assert_int_equal(base, 0);
        assert_in_range(declared.members[id], 1, MAX_MEMBERS);
        uint32_t end = 0;
        bool gaps = false;
        for (uint32_t m = 0; m < declared.members[id]; m++) {
            uint32_t offset = declared.offset[id][m], size = declared.size[declared.member[id][m]];
            if (offset < end || offset % size != 0)
                fail_msg("%s: push constant member %u is at byte %u, in C at %u or later", module->name, m,
                         offset, end);
            gaps |= offset != end;
            end = offset + size;
        }
        // C pads the whole to the 8 bytes of its addresses.
        size_t ours = pushSizeOf(module->name), theirs = (end + 7) / 8 * 8;
        if (theirs > ours)
            fail_msg("%s: push constants end at byte %u, in C at %zu", module->name, end, ours);
        for (size_t j = 0; j < sizeof structs / sizeof structs[0]; j++)
            whole[j] |= structs[j] == ours && theirs == ours && !gaps;
    }
    for (size_t j = 0; j < sizeof structs / sizeof structs[0]; j++)
        assert_true(whole[j]);
}

static void specialisationIdsAreTheSame(void** state) {
    (void)state;
    static const struct {
        int32_t id;
        uint32_t value;
    } known[] = {
#define SPEC(id, name, value) {id, value},
        VKMQA_SPEC_LIST(SPEC)
#undef SPEC
    };
    const size_t count = sizeof known / sizeof known[0];
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++)
            assert_int_not_equal(known[i].id, known[j].id);
    for (size_t i = 0; i < VKMQA_SHADER_COUNT; i++) {
        if (!readModule(&modules[i]))
            continue;
        size_t found = 0;
        for (uint32_t id = 0; id < MAX_IDS; id++) {
            if (declared.specId[id] < 0)
                continue;
            size_t k = 0;
            while (k < count && known[k].id != declared.specId[id])
                k++;
            if (k == count)
                fail_msg("%s: specialisation id %d is in no list", modules[i].name,
                         declared.specId[id]);
            // Of id 0 there are two: glslang makes one of its own, 1, for local_size_x_id.
            bool ofWorkgroupSize = known[k].id == 0 && declared.specDefault[id] == 1;
            if (declared.specDefault[id] != known[k].value && !ofWorkgroupSize)
                fail_msg("%s: specialisation id %d defaults to %u, should be %u", modules[i].name,
                         declared.specId[id], declared.specDefault[id], known[k].value);
            found++;
        }
        if (found < 3) // WG_SIZE and some dimension at least: else this reads nothing
            fail_msg("%s: %zu specialisation constants", modules[i].name, found);
    }
}

static void bindingsAreThePortableOnes(void** state) {
    (void)state;
    for (size_t i = 0; i < VKMQA_SHADER_COUNT; i++) {
        if (!readModule(&modules[i]))
            continue;
        bool binds = strstr(modules[i].name, "_bind") != NULL;
        if (declared.otherSets)
            fail_msg("%s: a descriptor set other than 0", modules[i].name);
        if (!binds && declared.bindings != 0)
            fail_msg("%s: descriptors, mask 0x%x, in a kernel of device addresses", modules[i].name,
                     declared.bindings);
        if (binds && (declared.bindings == 0 || declared.bindings >> VKMQA_BIND_COUNT != 0))
            fail_msg("%s: bindings 0x%x", modules[i].name, declared.bindings);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pushConstantsAreTheSame),
        cmocka_unit_test(specialisationIdsAreTheSame),
        cmocka_unit_test(bindingsAreThePortableOnes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

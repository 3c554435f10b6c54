#include "clamp_spirv.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// From the SPIR-V specification.
enum {
    OP_EXECUTION_MODE = 16,
    OP_CAPABILITY = 17,
    OP_TYPE_BOOL = 20,
    OP_TYPE_INT = 21,
    OP_TYPE_FLOAT = 22,
    OP_TYPE_VECTOR = 23,
    OP_TYPE_ARRAY = 28,
    OP_TYPE_STRUCT = 30,
    OP_TYPE_POINTER = 32,
    OP_CONSTANT_TRUE = 41,
    OP_CONSTANT = 43,
    OP_CONSTANT_COMPOSITE = 44,
    OP_SPEC_CONSTANT_TRUE = 48,
    OP_SPEC_CONSTANT_FALSE = 49,
    OP_SPEC_CONSTANT = 50,
    OP_SPEC_CONSTANT_COMPOSITE = 51,
    OP_SPEC_CONSTANT_OP = 52,
    OP_VARIABLE = 59,
    OP_DECORATE = 71,
    OP_EXECUTION_MODE_ID = 331,
    MODE_LOCAL_SIZE = 17,
    MODE_LOCAL_SIZE_ID = 38,
    DECORATION_SPEC_ID = 1,
    DECORATION_BUILT_IN = 11,
    BUILT_IN_WORKGROUP_SIZE = 25,
    STORAGE_WORKGROUP = 4,
    BOOL_BYTES = 4, // drivers may take less
};

typedef struct Id {
    uint32_t value, specId; // of a constant
    bool specialised;
    uint64_t bytes; // of a type, or of what a pointer type points to
} Id;

static uint32_t computed(ClampShader* shader, const Id* ids, uint32_t op, const uint32_t* arguments, uint32_t count) {
    uint32_t a = ids[arguments[0]].value, b = count > 1 ? ids[arguments[1]].value : 0;
    switch (op) {
    case 128: return a + b; // IAdd
    case 130: return a - b;
    case 132: return a * b;
    case 134: return b ? a / b : 0; // UDiv
    case 137: return b ? a % b : 0;
    case 164: case 170: return a == b; // of bools, of integers
    case 165: case 171: return a != b;
    case 166: return a || b;
    case 167: return a && b;
    case 168: return !a;
    case 169: return a ? b : ids[arguments[2]].value; // Select
    case 172: return a > b;
    case 174: return a >= b;
    case 176: return a < b;
    case 178: return a <= b;
    case 194: return b < 32 ? a >> b : 0;
    case 196: return b < 32 ? a << b : 0;
    case 197: return a | b;
    case 198: return a ^ b;
    case 199: return a & b;
    case 200: return ~a;
    default: shader->unknown = op; return 0;
    }
}

static uint32_t given(const Id* id, uint32_t value, const VkSpecializationInfo* values) {
    for (uint32_t i = 0; id->specialised && values && i < values->mapEntryCount; i++)
        if (values->pMapEntries[i].constantID == id->specId)
            memcpy(&value, (const char*)values->pData + values->pMapEntries[i].offset, sizeof(value));
    return value;
}

ClampShader clampReadShader(const uint32_t* words, size_t wordCount, const VkSpecializationInfo* values) {
    ClampShader shader = {.version = words[1], .size = {1, 1, 1}};
    Id* ids = calloc(words[3], sizeof(*ids));
    uint32_t sizeIds[3] = {0}, composite = 0;
    for (size_t at = 5; ids && at < wordCount && words[at] >> 16; at += words[at] >> 16) {
        const uint32_t* o = words + at + 1; // operands: ids, but for the literals of the specification
        const uint32_t count = (words[at] >> 16) - 1;
        switch (words[at] & 0xFFFF) {
        case OP_CAPABILITY: shader.capabilities |= 1ull << (o[0] < 63 ? o[0] : 63); break;
        case OP_EXECUTION_MODE:
            if (o[1] == MODE_LOCAL_SIZE)
                memcpy(shader.size, o + 2, sizeof(shader.size));
            break;
        case OP_EXECUTION_MODE_ID:
            if (o[1] == MODE_LOCAL_SIZE_ID)
                memcpy(sizeIds, o + 2, sizeof(sizeIds));
            break;
        case OP_DECORATE:
            if (o[1] == DECORATION_SPEC_ID) {
                ids[o[0]].specId = o[2];
                ids[o[0]].specialised = true;
            }
            if (o[1] == DECORATION_BUILT_IN && o[2] == BUILT_IN_WORKGROUP_SIZE)
                composite = o[0];
            break;
        case OP_TYPE_BOOL: ids[o[0]].bytes = BOOL_BYTES; break;
        case OP_TYPE_INT:
        case OP_TYPE_FLOAT: ids[o[0]].bytes = o[1] / 8; break;
        case OP_TYPE_VECTOR: ids[o[0]].bytes = ids[o[1]].bytes * o[2]; break;
        case OP_TYPE_ARRAY: ids[o[0]].bytes = ids[o[1]].bytes * ids[o[2]].value; break;
        case OP_TYPE_STRUCT:
            for (uint32_t i = 1; i < count; i++)
                ids[o[0]].bytes += ids[o[i]].bytes;
            break;
        case OP_TYPE_POINTER: ids[o[0]].bytes = ids[o[2]].bytes; break;
        case OP_CONSTANT_TRUE: ids[o[1]].value = 1; break;
        case OP_SPEC_CONSTANT_TRUE: ids[o[1]].value = given(&ids[o[1]], 1, values); break;
        case OP_SPEC_CONSTANT_FALSE: ids[o[1]].value = given(&ids[o[1]], 0, values); break;
        case OP_CONSTANT: ids[o[1]].value = o[2]; break;
        case OP_SPEC_CONSTANT: ids[o[1]].value = given(&ids[o[1]], o[2], values); break;
        case OP_CONSTANT_COMPOSITE:
        case OP_SPEC_CONSTANT_COMPOSITE:
            if (o[1] == composite)
                memcpy(sizeIds, o + 2, sizeof(sizeIds));
            break;
        case OP_SPEC_CONSTANT_OP: ids[o[1]].value = computed(&shader, ids, o[2], o + 3, count - 3); break;
        case OP_VARIABLE:
            if (o[2] == STORAGE_WORKGROUP)
                shader.shared += ids[o[0]].bytes;
            break;
        }
    }
    for (int i = 0; ids && sizeIds[0] && i < 3; i++)
        shader.size[i] = ids[sizeIds[i]].value;
    free(ids);
    return shader;
}

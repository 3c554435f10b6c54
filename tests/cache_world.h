// The world of test_cache: a cache of the library, and beside it a model of what each sequence must hold; and what
// judges the one by the other.
#ifndef CACHE_WORLD_H
#define CACHE_WORLD_H

#include "harness.h"

#include "cache/cache.h"

enum {
    LAYERS = 2,
    HEADS_Q = 4,
    HEADS = 2,
    DIM = 32,
    MOST_PAGES = 128,
    SEQUENCES = 12,
    MOST_TOKENS = 150, // of a sequence
    MOST_NEW = 64,     // of a step
    ROW = HEADS * DIM,
};

typedef struct Kind {
    const char* name;
    OracleType type;
    OracleRopeStyle rope;
    bool hadamard;
    uint32_t pageSize, pages;
    VkmqaCacheFlags flags;
    VkmqaTier tier;
    bool ownBuffers; // made by the caller; then there is no device, and nothing moves to the host
} Kind;

enum { KINDS = 5 };
extern const Kind kinds[KINDS];

// ---- The model -----------------------------------------------------------------------------------

typedef struct Token {
    uint32_t id;
    uint64_t key; // of its rows: what came before it and itself, or anything unique after a shift
    float k[LAYERS][ROW], v[LAYERS][ROW]; // as stored
} Token;

typedef struct ModelSequence {
    bool alive, shifted, offloaded, pinned;
    bool pure; // what stands past its length in its pages was never anybody's
    VkmqaSequence id;
    uint64_t salt;
    uint32_t length;
    Token* tokens; // [MOST_TOKENS]
} ModelSequence;

typedef struct World {
    const Kind* kind;
    Random random;
    uint64_t lastKey;
    VkmqaAttention attention;
    VkmqaCache cache;
    VkmqaCommands commands;
    VkmqaMemory layers[LAYERS][2], step, local; // with ownBuffers
    VkmqaMemory inputs, out, scratch, parameters;
    ModelSequence sequences[SEQUENCES];
    uint32_t counts[16]; // of operations that succeeded
} World;

enum { APPENDED, FULL, FORKED, TRUNCATED, DESTROYED, CREATED, REUSED, SHIFTED, OFFLOADED, RESTORED, SAVED };

enum { Q_BYTES = MOST_NEW * HEADS_Q * DIM * 4, KV_BYTES = MOST_NEW * ROW * 4 };
enum { LAYER_BYTES = 2 * Q_BYTES + 2 * KV_BYTES }; // q, rotated q, k, v

// ---- The model: what every sequence holds ----

// Another token's rows, as they are stored.
void modelAppend(const Kind* kind, ModelSequence* sequence, uint32_t id, uint64_t key);
void modelShift(const Kind* kind, ModelSequence* sequence, uint32_t keep, uint32_t drop);
// The key of a token behind the prefix: equal prefixes have equal rows, which is what makes reuse right.
uint64_t keyOf(const ModelSequence* sequence, uint32_t id);
// New K or V of a token, before rotation.
void sourceRow(uint64_t key, uint32_t layer, bool isV, float* row);

// ---- The cache under test ----

void openWorld(World* world, const Kind* kind, uint64_t seed);
void closeWorld(World* world);
void submit(World* world);
// What is due, submitted, as calls that submit on their own want it.
void flush(World* world);
struct VkmqaSequenceRecord* recordOf(World* world, const ModelSequence* sequence);

// One operation of many, at random (cache_operations.c).
void operate(World* world);
// Destroys all sequences; every page is then free.
void emptyWorld(World* world);
// Append and attention of a step, all layers, of what the world's inputs hold.
void recordLayers(World* world, VkmqaCommands commands, const VkmqaCacheStep* step);

// ---- Checks: each fails the running test ----

// Every page is in exactly one place, and its holders are counted.
void checkBooks(World* world);
// The rows that the device holds are the model's; from then on the model has the device's.
void checkRows(World* world, ModelSequence* sequence);
void checkAllRows(World* world);
// The metadata is what one would write with nothing but the model and the lists of pages at hand.
void checkMetadata(World* world, const VkmqaCacheStep* step, uint32_t count, const uint32_t* who,
                   const VkmqaSequenceTokens* tokens);
// f64 attention over the model's rows, for the new tokens of every sequence of the step.
void checkAttention(World* world, uint32_t count, const uint32_t* who, const VkmqaSequenceTokens* tokens);

#endif

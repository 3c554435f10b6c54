// The facts that the C runtime and the shaders share: specialisation ids, bindings, push constants,
// type numbers. One text for both languages. SPDX-License-Identifier: MIT
//
// C includes it as it is. GLSL includes it after defining VKMQA_GLSL, and expands VKMQA_SPEC_LIST with
// the macro of its choice. Addresses come first in every struct: 8 bytes, uvec2 in GLSL (no Int64
// needed). In kernels with descriptors (VKMQA_BIND) an address field holds, in its low word, the bytes between the bound
// offset (aligned for the device) and the caller's offset.
#ifndef VKMQA_SHARED_H
#define VKMQA_SHARED_H

#ifdef VKMQA_GLSL
#define VKMQA_ADDRESS uvec2
#define VKMQA_UINT uint
#define VKMQA_FLOAT float
#else
#include <stdint.h>
#define VKMQA_ADDRESS uint64_t
#define VKMQA_UINT uint32_t
#define VKMQA_FLOAT float
#endif

// X(id, NAME, default): specialisation constants, the same ids in every kernel. Floats come as their bits.
#define VKMQA_SPEC_LIST(X)                                                                         \
    X(0, WG_SIZE, 64)        /* local_size_x */                                                    \
    X(1, SUBGROUP, 8)        /* lanes of a subgroup */                                             \
    X(2, NUM_HEADS_Q, 8)                                                                           \
    X(3, NUM_HEADS_KV, 1)                                                                          \
    X(4, HEAD_DIM_QK, 64)                                                                          \
    X(5, HEAD_DIM_V, 64)                                                                           \
    X(6, IO_TYPE, 1)         /* q and out */                                                       \
    X(7, K_TYPE, 1)                                                                                \
    X(8, V_TYPE, 1)                                                                                \
    X(9, NEW_TYPE, 1)        /* rows given to append */                                            \
    X(10, PAGE_SHIFT, 4)     /* log2 of tokens per page; VKMQA_CONTIGUOUS = no page table */       \
    X(11, HADAMARD, 1)       /* elements that append mixes, a power of two; 1 = off */             \
    X(12, ROWS, 1)           /* rows of a tile: what one pass over K and V serves */               \
    X(13, CLUSTER, 1)        /* lanes that share one token's row (attn_stream) */                  \
    X(14, BLOCK, 32)         /* tokens of a shared-memory tile (attn_tile, attn_coopmat) */        \
    X(15, SCALE, 0x3F800000) /* factor of the scores */                                            \
    X(16, SOFTCAP, 0)        /* 0 = off */                                                         \
    X(17, WINDOW_LEFT, VKMQA_UNBOUNDED)  /* positions before a row's own that it sees */           \
    X(18, WINDOW_RIGHT, VKMQA_UNBOUNDED) /* and after; causal is 0 */                              \
    X(19, CHUNK, 0)          /* chunked-local attention; 0 = off */                                \
    X(20, MASK_KIND, 0)      /* VKMQA_MASK_* */                                                    \
    X(21, ALIBI, 0)                                                                                \
    X(22, SINKS, 0)                                                                                \
    X(23, V_PREFIX, 0)       /* V is the first elements of each K row */                           \
    X(24, ROPE_STYLE, 0)     /* as VkmqaRopeStyle */                                               \
    X(25, ROPE_DIM, 0)                                                                             \
    X(26, ROPE_OFFSET, 0)                                                                          \
    X(27, MATRIX_M, 16)      /* a tile of the matrix units, M x N x K (attn_coopmat) */            \
    X(28, MATRIX_N, 16)                                                                            \
    X(29, MATRIX_K, 16)                                                                            \
    X(30, COLUMN_GROUPS, 1)  /* subgroups that share a tile's rows */                              \
    X(31, SPREAD_FACTORS, 0) /* row factors go through a whole tile in shared memory */            \
    X(32, HOLD_QUERIES, 1)   /* Q stays in registers; 0 = in shared memory */                      \
    X(33, PREFETCH, 1)       /* K and V wait in registers; 0 = registers are few */               \
    X(34, GRID_WIDTH, 65535) /* workgroups of a row of attention's grid, where it has more than one */

#define VKMQA_CONTIGUOUS 31
#define VKMQA_UNBOUNDED 0xFFFFFFFFu
#define VKMQA_F32 1 // as VkmqaType
#define VKMQA_F16 2
#define VKMQA_BF16 3
#define VKMQA_FP8 4
#define VKMQA_Q8 5
#define VKMQA_Q4 6
#define VKMQA_MASK_NONE 0
#define VKMQA_MASK_FULL 1
#define VKMQA_MASK_TREE 2 // of the last seqLenQ positions
#define VKMQA_ROPE_PAIRS_NEOX 1 // as VkmqaRopeStyle
#define VKMQA_ROPE_PAIRS_INTERLEAVED 2

// The parameters buffer, in words from its start: runtime/core/parameters.c writes it. Scales are pairs
// {scale, 1 / scale} of a KV head; rope is pairs {low, high} of 64-bit fixed-point turns per position.
#define VKMQA_PARAM_SINKS(headsQ, headsKv) 0
#define VKMQA_PARAM_SLOPES(headsQ, headsKv) (headsQ)
#define VKMQA_PARAM_K_SCALES(headsQ, headsKv) (2 * (headsQ))
#define VKMQA_PARAM_V_SCALES(headsQ, headsKv) (2 * (headsQ) + 2 * (headsKv))
#define VKMQA_PARAM_ROPE_MAGNITUDE(headsQ, headsKv) (2 * (headsQ) + 4 * (headsKv))
#define VKMQA_PARAM_ROPE(headsQ, headsKv) (2 * (headsQ) + 4 * (headsKv) + 2)

// Descriptor bindings of kernels with VKMQA_BIND, set 0; shift's are compact's.
//                           attention            append       merge          merge_states   compact
#define VKMQA_BIND_Q 0    // q                    new K        partial out    partial out
#define VKMQA_BIND_K 1    // K                    K            partial (m, l) partial lse    K
#define VKMQA_BIND_V 2    // V                    V                                          V
#define VKMQA_BIND_OUT 3  // out or partial out   new V        out            out
#define VKMQA_BIND_LSE 4  // lse or partial (m,l) rotated q    lse            lse
#define VKMQA_BIND_STEP 5 // step metadata and status everywhere
#define VKMQA_BIND_PARAMS 6
#define VKMQA_BIND_MASK 7 // mask                 q
#define VKMQA_BIND_COUNT 8

#define VKMQA_ABSENT 0xFFFFFFFFu // a word offset: not there

// Bits of the status word, as VkmqaStatusFlagBits.
#define VKMQA_BAD_PAGE 1u
#define VKMQA_BAD_LENGTH 2u
#define VKMQA_BAD_QUERY_RANGE 4u
#define VKMQA_BAD_SLOT 8u
#define VKMQA_BAD_ACCEPTED 16u

// Bits of splitsAndFlags, and of VkmqaMergeStatesPush::flags.
#define VKMQA_WRITE_LSE 1u
#define VKMQA_ADD_SINKS 2u // sinks count here, and not in a later merge

// attn_*.comp. Offsets called "word" count 32-bit words from `step`.
struct VkmqaAttentionPush {
    VKMQA_ADDRESS q;
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS out_; // out, or f32 [splits, totalQ, numHeadsQ, headDimV] when splits > 1
    VKMQA_ADDRESS lse;  // lse, or f32 (m, l) [splits, totalQ, numHeadsQ, 2] when splits > 1
    VKMQA_ADDRESS step;
    VKMQA_ADDRESS params;
    VKMQA_ADDRESS mask;
    VKMQA_UINT cuSeqlensQ; // word
    VKMQA_UINT seqLensKv;  // word
    VKMQA_UINT pageTable;  // word
    VKMQA_UINT status;     // word or VKMQA_ABSENT
    VKMQA_UINT batch;
    VKMQA_UINT totalQ;
    VKMQA_UINT splitsAndFlags; // splits << 2 | flags: 128 bytes are full
    VKMQA_UINT splitTokens;
    VKMQA_UINT maxTokens; // of one sequence: the recorded maximum, and no more than its pages hold
    VKMQA_UINT maxPages; // of a row of pageTable; in a contiguous cache the tokens of a sequence's page
    VKMQA_UINT numPages;
    VKMQA_UINT qTokenStride; // elements
    VKMQA_UINT qHeadStride;
    VKMQA_UINT outTokenStride;
    VKMQA_UINT outHeadStride;
    VKMQA_UINT maskStride; // words
};

// attn_merge.comp
struct VkmqaMergePush {
    VKMQA_ADDRESS parts; // f32 [splits, totalQ, numHeadsQ, headDimV], not normalised
    VKMQA_ADDRESS stats; // f32 (m, l) [splits, totalQ, numHeadsQ, 2]
    VKMQA_ADDRESS out_;
    VKMQA_ADDRESS lse;
    VKMQA_ADDRESS step;
    VKMQA_ADDRESS params;
    VKMQA_UINT cuSeqlensQ;
    VKMQA_UINT seqLensKv;
    VKMQA_UINT batch;
    VKMQA_UINT totalQ;
    VKMQA_UINT splitsAndFlags;
    VKMQA_UINT splitTokens;
    VKMQA_UINT maxTokens;
    VKMQA_UINT outTokenStride;
    VKMQA_UINT outHeadStride;
};

// merge_states.comp
struct VkmqaMergeStatesPush {
    VKMQA_ADDRESS partOut; // io type [parts, totalQ, numHeadsQ, headDimV]
    VKMQA_ADDRESS partLse; // f32 [parts, totalQ, numHeadsQ]
    VKMQA_ADDRESS out_;
    VKMQA_ADDRESS lse;
    VKMQA_ADDRESS params;
    VKMQA_UINT parts;
    VKMQA_UINT totalQ;
    VKMQA_UINT flags;
    VKMQA_UINT outTokenStride;
    VKMQA_UINT outHeadStride;
};

// append_*.comp
struct VkmqaAppendPush {
    VKMQA_ADDRESS newK;
    VKMQA_ADDRESS newV;
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS q;
    VKMQA_ADDRESS rotatedQ;
    VKMQA_ADDRESS step;
    VKMQA_ADDRESS params;
    VKMQA_UINT slotMapping;    // word
    VKMQA_UINT positions;      // word or VKMQA_ABSENT
    VKMQA_UINT queryPositions; // word or VKMQA_ABSENT
    VKMQA_UINT status;         // word or VKMQA_ABSENT
    VKMQA_UINT newTokens;
    VKMQA_UINT totalQ; // 0: no queries to rotate
    VKMQA_UINT numPages;
    VKMQA_UINT kTokenStride; // elements
    VKMQA_UINT kHeadStride;
    VKMQA_UINT vTokenStride;
    VKMQA_UINT vHeadStride;
    VKMQA_UINT qTokenStride;
    VKMQA_UINT qHeadStride;
    VKMQA_UINT rotatedTokenStride;
    VKMQA_UINT rotatedHeadStride;
    VKMQA_UINT pageTokens;
};

// compact.comp
struct VkmqaCompactPush {
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS step;
    VKMQA_UINT cuSeqlensQ; // word
    VKMQA_UINT seqLensKv;
    VKMQA_UINT pageTable;
    VKMQA_UINT cuAccepted;
    VKMQA_UINT accepted;
    VKMQA_UINT status; // word or VKMQA_ABSENT
    VKMQA_UINT batch;
    VKMQA_UINT totalQ;
    VKMQA_UINT maxTokens;
    VKMQA_UINT maxPages; // as in VkmqaAttentionPush
    VKMQA_UINT numPages;
};

// shift.comp
struct VkmqaShiftPush {
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS list; // pages of the sequence
    VKMQA_ADDRESS params;
    VKMQA_UINT first;     // token that moves
    VKMQA_UINT length_;   // tokens of the sequence before anything moves
    VKMQA_UINT distance_; // tokens it moves by, in the list
    VKMQA_UINT turn;      // positions that K turns back by
    VKMQA_UINT chains;
    VKMQA_UINT numPages;
};

#ifndef VKMQA_GLSL
_Static_assert(sizeof(struct VkmqaAttentionPush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaMergePush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaMergeStatesPush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaAppendPush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaShiftPush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaCompactPush) <= 128, "push constants of 128 bytes everywhere");
#endif

#endif

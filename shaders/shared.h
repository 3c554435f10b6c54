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

// X(id, NAME, default): specialisation constants, the same ids in every kernel.
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
    X(11, CAUSAL, 0)                                                                               \
    X(12, ROWS, 1)           /* rows of a tile: what one pass over K and V serves */               \
    X(13, CLUSTER, 1)        /* lanes that share one token's row (attn_stream) */                  \
    X(14, BLOCK, 32)         /* tokens of a shared-memory tile (attn_tile) */

#define VKMQA_CONTIGUOUS 31
#define VKMQA_F32 1 // as VkmqaType
#define VKMQA_F16 2

// Descriptor bindings of kernels with VKMQA_BIND, set 0.
#define VKMQA_BIND_Q 0    // attention: q       append: new K   merge: partial outputs
#define VKMQA_BIND_K 1    // attention: K       append: K       merge: partial (m, l)
#define VKMQA_BIND_V 2    // attention: V       append: V
#define VKMQA_BIND_OUT 3  // attention: out or partial outputs  append: new V   merge: out
#define VKMQA_BIND_LSE 4  // attention: lse or partial (m, l)   merge: lse
#define VKMQA_BIND_STEP 5 // step metadata and status
#define VKMQA_BIND_COUNT 6

#define VKMQA_ABSENT 0xFFFFFFFFu // a word offset: not there

// Bits of the status word, as VkmqaStatusFlagBits.
#define VKMQA_BAD_PAGE 1u
#define VKMQA_BAD_LENGTH 2u
#define VKMQA_BAD_QUERY_RANGE 4u
#define VKMQA_BAD_SLOT 8u

// attn_*.comp. Offsets called "word" count 32-bit words from `step`.
struct VkmqaAttentionPush {
    VKMQA_ADDRESS q;
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS out_; // out, or f32 [splits, totalQ, numHeadsQ, headDimV] when splits > 1
    VKMQA_ADDRESS lse;  // lse, or f32 (m, l) [splits, totalQ, numHeadsQ, 2] when splits > 1
    VKMQA_ADDRESS step;
    VKMQA_UINT cuSeqlensQ; // word
    VKMQA_UINT seqLensKv;  // word
    VKMQA_UINT pageTable;  // word
    VKMQA_UINT status;     // word or VKMQA_ABSENT
    VKMQA_UINT batch;
    VKMQA_UINT totalQ;
    VKMQA_UINT splits;
    VKMQA_UINT splitTokens;
    VKMQA_UINT maxTokens; // of one sequence: the recorded maximum, and no more than its pages hold
    VKMQA_UINT maxPages;
    VKMQA_UINT numPages;
    VKMQA_UINT pageTokens;
    VKMQA_UINT qTokenStride; // elements
    VKMQA_UINT qHeadStride;
    VKMQA_UINT outTokenStride;
    VKMQA_UINT outHeadStride;
    VKMQA_UINT writeLse;
    VKMQA_FLOAT scaleLog2; // scale * log2(e), for exp2
};

// attn_merge.comp
struct VkmqaMergePush {
    VKMQA_ADDRESS parts; // f32 [splits, totalQ, numHeadsQ, headDimV], not normalised
    VKMQA_ADDRESS stats; // f32 (m, l) [splits, totalQ, numHeadsQ, 2]
    VKMQA_ADDRESS out_;
    VKMQA_ADDRESS lse;
    VKMQA_ADDRESS step;
    VKMQA_UINT cuSeqlensQ;
    VKMQA_UINT seqLensKv;
    VKMQA_UINT batch;
    VKMQA_UINT totalQ;
    VKMQA_UINT splitTokens;
    VKMQA_UINT maxTokens;
    VKMQA_UINT outTokenStride;
    VKMQA_UINT outHeadStride;
    VKMQA_UINT writeLse;
    VKMQA_FLOAT scaleLog2;
};

// append_kv.comp
struct VkmqaAppendPush {
    VKMQA_ADDRESS newK;
    VKMQA_ADDRESS newV;
    VKMQA_ADDRESS k;
    VKMQA_ADDRESS v;
    VKMQA_ADDRESS step;
    VKMQA_UINT slotMapping; // word
    VKMQA_UINT status;      // word or VKMQA_ABSENT
    VKMQA_UINT newTokens;
    VKMQA_UINT numPages;
    VKMQA_UINT pageTokens;
    VKMQA_UINT kTokenStride; // elements
    VKMQA_UINT kHeadStride;
    VKMQA_UINT vTokenStride;
    VKMQA_UINT vHeadStride;
};

#ifndef VKMQA_GLSL
_Static_assert(sizeof(struct VkmqaAttentionPush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaMergePush) <= 128, "push constants of 128 bytes everywhere");
_Static_assert(sizeof(struct VkmqaAppendPush) <= 128, "push constants of 128 bytes everywhere");
#endif

#endif

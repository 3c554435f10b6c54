// What the tests of hostile metadata attack, and with what.
#ifndef HOSTILE_H
#define HOSTILE_H

#include "harness.h"

#define F16 ORACLE_F16

static const Model paged = {.numHeadsQ = 8,
                            .numHeadsKv = 2,
                            .headDimQk = 64,
                            .headDimV = 64,
                            .pageSize = 16,
                            .io = F16,
                            .k = F16,
                            .v = F16,
                            .splitSize = 64,
                            .maxSeqLenKv = 512};
static const Model contiguous = {.numHeadsQ = 6,
                                 .numHeadsKv = 1,
                                 .headDimQk = 40,
                                 .headDimV = 24,
                                 .io = F16,
                                 .k = F16,
                                 .v = F16,
                                 .causal = true,
                                 .maxSeqLenKv = 200};
static const Batch batch = {4, {{1, 150}, {5, 90}, {1, 40}, {3, 3}}, .append = false};

typedef struct Attack {
    const char* name;
    // The value of those that end in PAST counts from totalQ, from numPages.
    enum { SEQUENCE_LENGTH, QUERY_START, PAGE, DRAFT, DRAFT_START, QUERY_START_PAST, PAGE_PAST } where;
    uint32_t index; // of the sequence, of cuSeqlensQ, of the page table's entry, of accepted, of cuAccepted
    int32_t value;
    uint32_t status; // bits that must be set
    uint32_t harmed; // bit b: sequence b's output is not determined, or it is left as it is
} Attack;

enum {
    BAD_PAGE = VKMQA_STATUS_PAGE_OUT_OF_RANGE_BIT,
    BAD_LENGTH = VKMQA_STATUS_LENGTH_OUT_OF_RANGE_BIT,
    BAD_QUERY = VKMQA_STATUS_QUERY_RANGE_BIT,
    BAD_SLOT = VKMQA_STATUS_SLOT_OUT_OF_RANGE_BIT,
    BAD_DRAFT = VKMQA_STATUS_ACCEPTED_BIT,
};

#endif

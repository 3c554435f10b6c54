// From recorded maxima to grids and sizes. Pure C: no Vulkan call. SPDX-License-Identifier: MIT
#include "internal.h"

static uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

bool vkmqa_fold_grid(const struct VkmqaCaps* caps, uint64_t count, uint32_t groups[2]) {
    uint64_t x = count < caps->maxGroupCount[0] ? count : caps->maxGroupCount[0];
    uint64_t y = divide_up(count, x);
    if (y > caps->maxGroupCount[1])
        return false;
    groups[0] = (uint32_t)x;
    groups[1] = (uint32_t)y;
    return true;
}

// The fewest rows that take a sequence in one tile, otherwise the most there are.
static uint32_t choose_candidate(const struct VkmqaChoice* choice, uint64_t rowsPerSequence) {
    for (uint32_t i = 0; i < choice->count; ++i)
        if (choice->candidates[i].rows >= rowsPerSequence)
            return i;
    return choice->count - 1;
}

// Room for the tiles of each sequence, see shaders/tile.glsl; exact for a single one.
static uint64_t count_tiles(const struct VkmqaShape* shape, uint32_t rows,
                            const VkmqaStepLimits* limits) {
    uint64_t all = (uint64_t)limits->totalQ * shape->ratio;
    return limits->batch == 1 ? divide_up(all, rows) : all / rows + limits->batch;
}

// Tokens of a split. A splitSize given by the caller is kept, so that results depend on it alone;
// otherwise it is a multiple of the kernel's, so that splitting goes no further than filling the device.
static uint32_t split_tokens(const struct VkmqaShape* shape, const struct VkmqaCandidate* candidate,
                             uint64_t workgroups, uint32_t maxSeqLenKv) {
    if (shape->splitSize)
        return shape->splitSize;
    uint64_t wanted = divide_up(candidate->workgroups, workgroups);
    uint64_t grains = divide_up(maxSeqLenKv, candidate->splitSize);
    uint64_t grainsPerSplit = grains / wanted ? divide_up(grains, wanted) : 1;
    return (uint32_t)(grainsPerSplit * candidate->splitSize);
}

bool vkmqa_make_plan(const struct VkmqaCaps* caps, const struct VkmqaShape* shape,
                     const struct VkmqaChoice* choice, const VkmqaStepLimits* limits,
                     struct VkmqaPlan* plan, struct VkmqaProblem* problem) {
    *plan = (struct VkmqaPlan){0};
    plan->candidate = choose_candidate(choice, (uint64_t)limits->maxSeqLenQ * shape->ratio);
    const struct VkmqaCandidate* candidate = &choice->candidates[plan->candidate];
    uint64_t tiles = count_tiles(shape, candidate->rows, limits);
    plan->tiles = (uint32_t)tiles;
    if (!vkmqa_fold_grid(caps, tiles, plan->groups)) {
        vkmqa_problem(problem, "limits.totalQ is %u: its %llu tiles exceed the device's grid of %u x %u",
                      limits->totalQ, (unsigned long long)tiles, caps->maxGroupCount[0],
                      caps->maxGroupCount[1]);
        return false;
    }
    plan->splitTokens = split_tokens(shape, candidate, tiles * shape->numHeadsKv, limits->maxSeqLenKv);
    plan->splits = (uint32_t)divide_up(limits->maxSeqLenKv, plan->splitTokens);
    uint64_t depth = (uint64_t)plan->splits * shape->numHeadsKv;
    if (depth > caps->maxGroupCount[2]) {
        vkmqa_problem(problem, "numHeadsKv %u times %u splits exceed the device's grid depth of %u; "
                               "use a larger splitSize", shape->numHeadsKv, plan->splits,
                      caps->maxGroupCount[2]);
        return false;
    }
    plan->groups[2] = (uint32_t)depth;
    if (plan->splits == 1)
        return true;
    uint64_t rows = (uint64_t)limits->totalQ * shape->numHeadsQ;
    if (rows * plan->splits > INT32_MAX || !vkmqa_fold_grid(caps, rows, plan->mergeGroups)) {
        vkmqa_problem(problem, "limits.totalQ %u times numHeadsQ %u times %u splits are too many "
                               "partial rows; use a larger splitSize or a smaller totalQ",
                      limits->totalQ, shape->numHeadsQ, plan->splits);
        return false;
    }
    plan->statsOffset = rows * plan->splits * shape->headDimV * 4;
    plan->statsOffset = (plan->statsOffset + 255) & ~(uint64_t)255;
    plan->scratchBytes = plan->statsOffset + rows * plan->splits * 8;
    return true;
}

bool vkmqa_scratch_bound(const struct VkmqaShape* shape, const struct VkmqaChoice* choice,
                         const VkmqaStepLimits* limits, uint64_t* bytes,
                         struct VkmqaProblem* problem) {
    uint64_t most = 0; // partial rows of any call within the limits, over all candidates
    for (uint32_t i = 0; i < choice->count; ++i) {
        const struct VkmqaCandidate* candidate = &choice->candidates[i];
        uint64_t grain = shape->splitSize ? shape->splitSize : candidate->splitSize;
        uint64_t splits = divide_up(limits->maxSeqLenKv, grain);
        uint64_t rows = (uint64_t)limits->totalQ * shape->numHeadsQ, parts;
        if (splits < 2)
            continue;
        if (!vkmqa_multiply(rows, splits, &parts)) {
            vkmqa_problem(problem, "limits.totalQ is %u: its scratch would not fit 64-bit sizes",
                          limits->totalQ);
            return false;
        }
        // With the default splitSize a call of W workgroups makes at most ceil(workgroups / W) splits
        // and has at most W * rows partial rows per split; it is not split when W >= workgroups.
        uint64_t filling = 2 * (uint64_t)candidate->workgroups * candidate->rows;
        if (!shape->splitSize && parts > filling)
            parts = filling;
        if (parts > most)
            most = parts;
    }
    *bytes = most ? ((most * shape->headDimV * 4 + 255) & ~(uint64_t)255) + most * 8 : 0;
    return true;
}

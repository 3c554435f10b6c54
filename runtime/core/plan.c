// From recorded maxima to grids and sizes. Pure C: no Vulkan call. SPDX-License-Identifier: MIT
#include "internal.h"

static uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

// Rows as wide as the device allows, wherever there is more than one: kernels know the width as GRID_WIDTH, since a
// dispatch of a part of the grid cannot ask for it.
bool vkmqa_fold_grid(const struct VkmqaCaps* caps, uint64_t count, uint32_t groups[2]) {
    uint64_t x = count < caps->maxGroupCount[0] ? count : caps->maxGroupCount[0];
    uint64_t y = divide_up(count, x);
    if (y > caps->maxGroupCount[1])
        return false;
    groups[0] = (uint32_t)x;
    groups[1] = (uint32_t)y;
    return true;
}

struct VkmqaBox vkmqa_cut_box(const uint32_t grid[3], uint64_t first, uint64_t end) {
    uint64_t row = grid[0], plane = row * grid[1], left = end - first;
    struct VkmqaBox box = {
        .base = {(uint32_t)(first % row), (uint32_t)(first % plane / row), (uint32_t)(first / plane)},
        .size = {grid[0], grid[1], 1},
    };
    if (first % plane == 0 && left >= plane) { // whole planes
        box.size[2] = (uint32_t)(left / plane);
    } else if (first % row == 0 && left >= row) { // whole rows, to the end of the plane
        uint64_t rows = left / row, room = grid[1] - box.base[1];
        box.size[1] = (uint32_t)(rows < room ? rows : room);
    } else { // to the end of the row
        uint64_t room = row - box.base[0];
        box.size[0] = (uint32_t)(left < room ? left : room);
        box.size[1] = 1;
    }
    box.groups = (uint64_t)box.size[0] * box.size[1] * box.size[2];
    return box;
}

static uint32_t choose_candidate(const struct VkmqaChoice* choice, uint64_t rowsPerSequence) {
    uint32_t i = 0;
    while (i + 1 < choice->count && choice->candidates[i].upTo < rowsPerSequence)
        ++i;
    return i;
}

// Room for the tiles of each sequence, see shaders/tile.glsl; exact for a single one.
static uint64_t count_tiles(const struct VkmqaShape* shape, uint32_t rows,
                            const VkmqaStepLimits* limits) {
    uint64_t all = (uint64_t)limits->totalQ * shape->ratio;
    return limits->batch == 1 ? divide_up(all, rows) : all / rows + limits->batch;
}

// How the KV range is cut: tokens of a split, and the most splits that hold what a sequence's queries see.
// A splitSize given by the caller is kept, so that results depend on it alone; otherwise it is a multiple of
// the kernel's, so that splitting goes no further than filling the device.
struct Cut {
    uint32_t tokens, splits;
};
static struct Cut cut_tokens(const struct VkmqaShape* shape, const struct VkmqaCandidate* candidate,
                             uint64_t workgroups, const VkmqaStepLimits* limits) {
    uint64_t span = vkmqa_span_tokens(shape, limits), whole = limits->maxSeqLenKv;
    uint64_t wanted = divide_up(candidate->workgroups, workgroups);
    uint64_t tokens = candidate->splitSize;
    if (shape->splitSize)
        tokens = shape->splitSize;
    else if (!shape->invariant && wanted == 1)
        tokens = divide_up(whole, tokens) * tokens;
    else if (!shape->invariant)
        tokens *= divide_up(divide_up(span, tokens), wanted);
    // Splits begin at multiples of their size, and what a window lets through may straddle one more.
    uint64_t splits = divide_up(span, tokens) + (span < whole);
    if (splits > divide_up(whole, tokens))
        splits = divide_up(whole, tokens);
    // A merge must not come and go with the recorded maxima where bits are not to depend on them.
    if (shape->invariant && splits == 1 && shape->maxSeqLenKv > tokens)
        splits = 2;
    return (struct Cut){(uint32_t)tokens, (uint32_t)splits};
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
    struct Cut cut = cut_tokens(shape, candidate, tiles * shape->numHeadsKv, limits);
    plan->splitTokens = cut.tokens;
    plan->splits = cut.splits;
    uint64_t depth = (uint64_t)plan->splits * shape->numHeadsKv;
    if (depth > caps->maxGroupCount[2]) {
        vkmqa_problem(problem, "numHeadsKv %u times %u splits exceed the device's grid depth of %u; "
                               "use a larger splitSize", shape->numHeadsKv, plan->splits,
                      caps->maxGroupCount[2]);
        return false;
    }
    plan->groups[2] = (uint32_t)depth;
    plan->end = plan->perDispatch = vkmqa_plan_groups(plan);
    if (plan->splits == 1)
        return true;
    uint64_t rows = (uint64_t)limits->totalQ * shape->numHeadsQ;
    if (rows * plan->splits > INT32_MAX || !vkmqa_fold_grid(caps, rows, plan->mergeGroups)) {
        vkmqa_problem(problem, "limits.totalQ %u times numHeadsQ %u times %u splits are too many "
                               "partial rows; use a larger splitSize or a smaller totalQ",
                      limits->totalQ, shape->numHeadsQ, plan->splits);
        return false;
    }
    plan->mergeGroups[2] = 1;
    plan->statsOffset = rows * plan->splits * shape->headDimV * 4;
    plan->statsOffset = (plan->statsOffset + 255) & ~(uint64_t)255;
    plan->scratchBytes = plan->statsOffset + rows * plan->splits * 8;
    return true;
}

// The most splits of any call within the limits. Adapted splits are no finer than the kernel's and no more than
// fill the device; a window may straddle one more.
static uint64_t most_splits(const struct VkmqaShape* shape, const struct VkmqaCandidate* candidate,
                            const VkmqaStepLimits* limits) {
    uint64_t tokens = shape->splitSize ? shape->splitSize : candidate->splitSize;
    uint64_t whole = divide_up(limits->maxSeqLenKv, tokens);
    uint64_t splits = divide_up(vkmqa_span_tokens(shape, limits), tokens) + 1;
    if (!shape->splitSize && !shape->invariant && splits > candidate->workgroups + 1)
        splits = candidate->workgroups + 1;
    if (splits > whole)
        splits = whole;
    return shape->invariant && splits == 1 && shape->maxSeqLenKv > tokens ? 2 : splits;
}

bool vkmqa_scratch_bound(const struct VkmqaShape* shape, const struct VkmqaChoice* choice,
                         const VkmqaStepLimits* limits, uint64_t* bytes,
                         struct VkmqaProblem* problem) {
    uint64_t most = 0; // partial rows of any call within the limits, over all candidates
    for (uint32_t i = 0; i < choice->count; ++i) {
        const struct VkmqaCandidate* candidate = &choice->candidates[i];
        uint64_t splits = most_splits(shape, candidate, limits);
        uint64_t rows = (uint64_t)limits->totalQ * shape->numHeadsQ;
        if (splits < 2)
            continue;
        uint64_t parts = rows * splits; // at most 2^30 times 2^24
        // Where splits are adapted, a call of W workgroups, W < workgroups, makes at most ceil(workgroups /
        // W) + 1 of them, and has at most W * rows partial rows in each.
        uint64_t filling = 3 * (uint64_t)candidate->workgroups * candidate->rows;
        if (!shape->splitSize && !shape->invariant && parts > filling)
            parts = filling;
        if (parts > most)
            most = parts;
    }
    if (most > UINT64_MAX / 2 / ((uint64_t)shape->headDimV * 4 + 8)) {
        vkmqa_problem(problem, "limits.totalQ is %u: its scratch would not fit 64-bit sizes; use a larger splitSize",
                      limits->totalQ);
        return false;
    }
    *bytes = most ? ((most * shape->headDimV * 4 + 255) & ~(uint64_t)255) + most * 8 : 0;
    return true;
}

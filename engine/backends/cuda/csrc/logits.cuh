// Epilogue PLAIN: logits, and the greedy choice among all of a token's in three steps: a tile's block chooses of its
// rows, the last block of GROUP tiles to end of those, the last of the groups' of theirs. In one step the last block of
// a large vocabulary would read thousands of entries a token alone, long after all others have ended.
#pragma once
#include "tile.cuh"

#define OUTPUT_PARAMETERS float *logits, float *tile_values, int *tile_indices, int *next_tokens
#define OUTPUT_ARGUMENTS logits, tile_values, tile_indices, next_tokens

constexpr int GROUP = 32;

struct Output {
    float* logits;       // [tokens, rows]
    float* tile_values;  // [row tiles + groups, tokens], workspace
    int* tile_indices;   // [row tiles + groups, tokens], workspace
    int* next_tokens;    // [tokens]
};

struct Choice {
    float value;
    int index;
};

// The greater of two values, of equal ones that of the lower index.
DEVICE void choose(Choice& best, Choice other) {
    if (other.value > best.value || (other.value == best.value && other.index < best.index)) best = other;
}

// Of the warp's lanes whose number is the same modulo `lanes`.
DEVICE void choose_of_warp(Choice& best, int lanes) {
    for (int mask = 16; mask >= lanes; mask /= 2) {
        choose(best, {shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)});
    }
}

// The best of entries first .. first + count - 1 for token threadIdx.x, where that is one.
DEVICE Choice choose_of_entries(float* scratch, const Output& output, int first, int count, int tokens) {
    const int token = threadIdx.x % TOKENS, slice = threadIdx.x / TOKENS, lane = threadIdx.x % 32;
    int* scratch_indices = reinterpret_cast<int*>(scratch + PARTS * TOKENS);
    static_assert(2 * PARTS <= INNER_WARPS * TOKEN_STRIDE, "the parts overlay the tile");
    Choice best{-infinity(), 0x7fffffff};
    if (token < tokens) {
#pragma unroll 8
        for (int entry = first + slice; entry < first + count; entry += SLICES) {
            const int place = entry * tokens + token;
            choose(best, {load_relaxed(output.tile_values + place), load_relaxed(output.tile_indices + place)});
        }
    }
    choose_of_warp(best, TOKENS);
    if (lane < TOKENS) {
        const int place = (TOKENS < 32 ? threadIdx.x / 32 : slice) * TOKENS + token;
        scratch[place] = best.value;
        scratch_indices[place] = best.index;
    }
    sync_block();
    best = {-infinity(), 0x7fffffff};
    if (threadIdx.x < tokens) {
        for (int part = 0; part < PARTS; ++part) {
            choose(best, {scratch[part * TOKENS + token], scratch_indices[part * TOKENS + token]});
        }
    }
    return best;
}

DEVICE void write_output(float* tile, Header* header, unsigned* arrivals, int tokens, int rows, const Ahead&,
                         const Output& output) {
    const int lane = threadIdx.x % 32, row_tiles = gridDim.x;
    const int first_row = blockIdx.x * ROWS;
    for (int token = threadIdx.x / 32; token < tokens; token += WARPS) {
        // An index inside the tile even where no value compares greater, as with NaN.
        Choice best{-infinity(), first_row};
        for (int row = lane; row < ROWS && first_row + row < rows; row += 32) {
            const float logit = tile[token * TOKEN_STRIDE + row];
            output.logits[static_cast<long long>(token) * rows + first_row + row] = logit;
            choose(best, {logit, first_row + row});
        }
        choose_of_warp(best, 1);
        if (lane == 0) {
            output.tile_values[blockIdx.x * tokens + token] = best.value;
            output.tile_indices[blockIdx.x * tokens + token] = best.index;
        }
    }
    const int groups = (row_tiles + GROUP - 1) / GROUP, group = blockIdx.x / GROUP;
    const int members = group + 1 < groups ? GROUP : row_tiles - group * GROUP;
    if (!last_arrival(arrivals + row_tiles + group, members, header)) return;
    Choice best = choose_of_entries(tile, output, group * GROUP, members, tokens);
    if (threadIdx.x < tokens) {
        output.tile_values[(row_tiles + group) * tokens + threadIdx.x] = best.value;
        output.tile_indices[(row_tiles + group) * tokens + threadIdx.x] = best.index;
    }
    if (!last_arrival(arrivals + row_tiles + groups, groups, header)) return;
    best = choose_of_entries(tile, output, row_tiles, groups, tokens);
    if (threadIdx.x < tokens) output.next_tokens[threadIdx.x] = best.index;
}

// The part of Y^T = W X^T that one block computes, and how it becomes whole.
//
// A block owns ROWS rows of W (output features) for all TOKENS tokens. Its warps form ROW_WARPS groups of WARP_ROWS
// rows, and in each group INNER_WARPS warps share out the inner dimension; gridDim.y blocks (splits) share it out
// further. Every sum of parts runs in the order of the parts' index, never of their arrival, so that the same input
// gives the same bits; there are no float atomics.
//
// Macros: DTYPE, ROWS, WARP_ROWS, INNER_WARPS, TOKENS.
#pragma once
#include "intrinsics.cuh"

constexpr int ROW_WARPS = ROWS / WARP_ROWS;
constexpr int WARPS = ROW_WARPS * INNER_WARPS;
constexpr int THREADS = 32 * WARPS;
// The tile is [token][row] in float32. Four floats of padding put the eight rows and four token pairs that a warp
// writes at once into 32 different banks, and keep each token's rows 16-byte aligned.
constexpr int TOKEN_STRIDE = ROWS + 4;
constexpr int TILE_FLOATS = TOKENS * TOKEN_STRIDE;
// A loop over what all tiles left for each token: a thread takes one token and every SLICES-th tile, neighbours take
// neighbouring tokens. Of these sums the lanes of a warp with the same token make one, so PARTS remain for each token.
constexpr int SLICES = THREADS / TOKENS;
constexpr int PARTS = TOKENS < 32 ? WARPS : SLICES;
static_assert(ROWS % 16 == 0 && ROWS % WARP_ROWS == 0, "the epilogues read groups of 16 rows");
static_assert((TOKENS & (TOKENS - 1)) == 0 && TOKENS <= THREADS, "a warp's lanes are shared out evenly");

// What lies before all else in shared memory.
struct alignas(16) Header {
    float inverse_rms[TOKENS];
    int positions[TOKENS];  // of the newest token in its sequence; -1 for a padded row
    float square_parts[PARTS * TOKENS];
    int is_last;
};

// True in the last of `expected` blocks to come here, for all its threads: what the others wrote before is then to be
// read with load_relaxed. That block leaves the counter at zero for the next launch.
DEVICE bool last_arrival(unsigned* counter, unsigned expected, Header* header) {
    fence();
    sync_block();
    if (threadIdx.x == 0) {
        const bool is_last = atomic_add(counter, 1u) == expected - 1;
        if (is_last) *counter = 0;
        fence();
        header->is_last = is_last;
    }
    sync_block();
    return header->is_last != 0;
}

DEVICE void add_to(float4& sum, float4 term) {
    sum.x += term.x;
    sum.y += term.y;
    sum.z += term.z;
    sum.w += term.w;
}

// Adds the INNER_WARPS tiles at `tile`, and those of the other splits; the sum replaces the first. True in the block
// that holds it; the others are done. partials: float32 [splits, row tiles, tokens, ROWS]; arrivals: [row tiles].
DEVICE bool combine(float* tile, int tokens, float* partials, unsigned* arrivals, Header* header) {
    constexpr int QUADS = ROWS / 4;
    const int splits = gridDim.y;
    const long long tile_floats = static_cast<long long>(tokens) * ROWS, split_floats = tile_floats * gridDim.x;
    float* own = partials + blockIdx.x * tile_floats;
    sync_block();
    for (int quad = threadIdx.x; quad < tokens * QUADS; quad += THREADS) {
        float* place = tile + quad / QUADS * TOKEN_STRIDE + quad % QUADS * 4;
        float4 sum = *reinterpret_cast<const float4*>(place);
#pragma unroll
        for (int part = 1; part < INNER_WARPS; ++part) {
            add_to(sum, *reinterpret_cast<const float4*>(place + part * TILE_FLOATS));
        }
        float* target = splits == 1 ? place : own + blockIdx.y * split_floats + quad * 4;
        *reinterpret_cast<float4*>(target) = sum;
    }
    if (splits > 1) {
        if (!last_arrival(arrivals + blockIdx.x, splits, header)) return false;
        for (int quad = threadIdx.x; quad < tokens * QUADS; quad += THREADS) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
            for (int split = 0; split < splits; ++split) {
                add_to(sum, load_relaxed_16(own + split * split_floats + quad * 4));
            }
            *reinterpret_cast<float4*>(tile + quad / QUADS * TOKEN_STRIDE + quad % QUADS * 4) = sum;
        }
    }
    sync_block();
    return true;
}

// GEMV: Y[tokens, rows] = X[tokens, inner] W[rows, inner]^T for 1 to 4 tokens on CUDA cores.
//
// Problem. For one token, or a few, every weight is used once or a few times; the plain cores keep up with the memory,
// and the weights go straight to registers without a stop in shared memory.
//
// Grid (row tiles, splits). A block of ROW_WARPS x INNER_WARPS warps owns ROWS rows; a warp takes WARP_ROWS of them and
// walks its part of the split, a lane 16 bytes of each row at a time, neighbouring lanes neighbouring 16 bytes. UNROLL
// x WARP_ROWS such loads of the next step are in flight while the present step is multiplied. The lanes' sums meet in a
// tree of shuffles, the warps' and the splits' as in tile.cuh, and the epilogues are those of the flat GEMM.
//
// Shared memory: Header | INNER_WARPS x [TOKENS][ROWS + 4] float32 | X of the split [TOKENS][columns] T, normalised
// once a block and read by all its warps; the loads of the first step are on their way before X is read.
//
// Bytes: rows x inner x 2 of W once from memory; X, tokens x inner x 2 a row tile, from L2. 32 to 128 bytes in flight a
// thread, 64 KB and more a multiprocessor. Target: 90 % of the measured read bandwidth from 8 MB of weights on.
//
// inner is a multiple of 8 (16-byte rows). Macros: those of tile.cuh, prologue.cuh and epilogue.cuh, UNROLL, BLOCKS
// (a multiprocessor).
#include "intrinsics.cuh"
#include "tile.cuh"
#include "prologue.cuh"
#include "epilogue.cuh"

// What the epilogue reads may wait in registers for the weights only where two steps of these and the sums leave room.
constexpr bool READ_EARLY = WARP_ROWS * (8 * UNROLL + TOKENS) <= 72;

// The weights of one step: chunks of eight columns, 32 x INNER_WARPS chunks from one to the next of a lane.
struct Weights {
    uint4 values[UNROLL][WARP_ROWS];
};

// Without a condition a load, so that all are issued at once: a lane beyond the end reads the last chunk, a row beyond
// the last is read as the last, and neither counts.
DEVICE void load_weights(Weights& step, const DTYPE* weights, int rows, int inner, int first_row, int chunk, int end) {
    const int first_lane = chunk - static_cast<int>(threadIdx.x % 32);
    if (first_lane >= end) return;
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const int place = chunk + i * 32 * INNER_WARPS;
        const int column = 8 * (place < end ? place : end - 1);
#pragma unroll
        for (int r = 0; r < WARP_ROWS; ++r) {
            const int row = first_row + r < rows ? first_row + r : rows - 1;
            step.values[i][r] = load_streaming_16(weights + static_cast<long long>(row) * inner + column);
        }
    }
}

KERNEL KERNEL_BOUNDS(THREADS, BLOCKS) void gemv(const DTYPE* weights, const DTYPE* input, int tokens, int rows,
                                                int inner, float* partials, unsigned* arrivals,
                                                NORM_PARAMETERS OUTPUT_PARAMETERS) {
    const Norm norm{NORM_ARGUMENTS};
    const Output output{OUTPUT_ARGUMENTS};
    Header* header = reinterpret_cast<Header*>(shared_memory());
    float* tile = reinterpret_cast<float*>(shared_memory() + sizeof(Header));
    char* shared_input = reinterpret_cast<char*>(tile + INNER_WARPS * TILE_FLOATS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_warp = warp / INNER_WARPS, inner_warp = warp % INNER_WARPS;
    const int first_row = blockIdx.x * ROWS + row_warp * WARP_ROWS;
    const int chunks = inner / 8;
    const int begin = chunks * blockIdx.y / gridDim.y, end = chunks * (blockIdx.y + 1) / gridDim.y;
    const int count = end - begin;
    constexpr int STEP = 32 * INNER_WARPS * UNROLL;
    int chunk = begin + inner_warp * 32 + lane;

    Weights next;
    load_weights(next, weights, rows, inner, first_row, chunk, end);
    inverse_rms(header, norm, tokens, inner);
    read_positions(header, tokens, output);
    sync_block();
    Ahead ahead;
    if (READ_EARLY) read_ahead(ahead, header, tokens, rows, output);
    for (int token = 0; token < TOKENS; ++token) {
#pragma unroll 4
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const int column = (begin + i) * 8;
            uint4 values = make_uint4(0, 0, 0, 0);
            if (token < tokens) {
                values = normalised(load_16(input + static_cast<long long>(token) * inner + column),
                                    load_scale(norm, column), header->inverse_rms[token]);
            }
            store_16(shared_input + (token * count + i) * 16, values);
        }
    }
    sync_block();

    float sums[WARP_ROWS][TOKENS] = {};
    for (; chunk < end; chunk += STEP) {
        const Weights step = next;
        load_weights(next, weights, rows, inner, first_row, chunk + STEP, end);
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const int place = chunk + i * 32 * INNER_WARPS - begin;
            if (place >= count) break;
            uint4 x[TOKENS];
#pragma unroll
            for (int token = 0; token < TOKENS; ++token) {
                x[token] = load_16(shared_input + (token * count + place) * 16);
            }
            // Two columns at a time: unpacked as a whole, X alone would take a third of the registers.
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
                for (int r = 0; r < WARP_ROWS; ++r) {
                    const unsigned w = word(step.values[i][r], pair);
#pragma unroll
                    for (int token = 0; token < TOKENS; ++token) {
                        sums[r][token] += low_float<DTYPE>(w) * low_float<DTYPE>(word(x[token], pair));
                        sums[r][token] += high_float<DTYPE>(w) * high_float<DTYPE>(word(x[token], pair));
                    }
                }
            }
        }
    }
    // All sums by one mask, then by the next: their shuffles overlap.
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
#pragma unroll
        for (int r = 0; r < WARP_ROWS; ++r) {
#pragma unroll
            for (int token = 0; token < TOKENS; ++token) sums[r][token] += shuffle_xor(sums[r][token], mask);
        }
    }
    if (lane == 0) {
#pragma unroll
        for (int r = 0; r < WARP_ROWS; ++r) {
#pragma unroll
            for (int token = 0; token < TOKENS; ++token) {
                tile[inner_warp * TILE_FLOATS + token * TOKEN_STRIDE + row_warp * WARP_ROWS + r] = sums[r][token];
            }
        }
    }
    if (!READ_EARLY) read_ahead(ahead, header, tokens, rows, output);
    if (combine(tile, tokens, partials, arrivals, header)) {
        write_output(tile, header, arrivals, tokens, rows, ahead, output);
    }
}

// Flat GEMM: Y[tokens, rows] = X[tokens, inner] W[rows, inner]^T for 1 to 64 tokens on tensor cores.
//
// Problem. Decoding multiplies few tokens with large weights, so the time is that of reading W once. An mma of 16x8x16
// with the tokens as its 16 rows would waste most of itself; here W is the 16-row operand and the tokens, padded to
// eight, the 8-column one: Y^T = W X^T. Both lie in memory as the operands want them, nothing is transposed.
//
// Grid (row tiles, splits). A block of ROW_WARPS x INNER_WARPS warps owns ROWS rows and walks its split of the inner
// dimension in tiles of INNER_TILE columns. Of every tile, warp (row group, part) multiplies WARP_ROWS rows with the 16
// columns of steps part, part + INNER_WARPS, ...: at 64 tokens each fragment of X serves WARP_ROWS / 16 row tiles, and
// each fragment of W all tokens. Where row tiles alone would leave multiprocessors idle, splits > 1; see tile.cuh.
//
// Shared memory: Header | STAGES x (W [ROWS][INNER_TILE] T, X [TOKENS][INNER_TILE] T); after the last tile the ring is
// overlaid by INNER_WARPS x [TOKENS][ROWS + 4] float32. The 16-byte chunk c of row r lies at c ^ (r % 8), so neither
// the copies nor ldmatrix, which reads one column of chunks over eight rows, meet a bank twice.
//
// W comes by cp.async in a ring: while one tile is multiplied the next STAGES - 1 are on their way, started before
// anything that depends on the previous kernel is read. X comes from L2 through registers, so that the norm is applied
// once an element and not once a fragment: its loads for the tile STAGES ahead are issued after one multiplication and
// stored after the next, into the slot that the barrier has just freed, so that no tile waits for L2.
//
// Bytes: rows x inner x 2 of W once from memory; X, tokens x inner x 2 a row tile, from L2. With ROWS x INNER_TILE x 2
// = 16 KB a stage, four stages hold 48 KB in flight a block, two blocks a multiprocessor 96 KB.
// Target: 90 % of the measured read bandwidth from 8 MB of weights on.
//
// inner is a multiple of 8 (16-byte rows); no other alignment is needed: columns and rows beyond the ends are zeros.
// Macros: those of tile.cuh, prologue.cuh and epilogue.cuh, INNER_TILE (64 or 128), STAGES, BLOCKS (a multiprocessor).
#include "intrinsics.cuh"
#include "tile.cuh"
#include "prologue.cuh"
#include "epilogue.cuh"

constexpr int CHUNKS = INNER_TILE / 8;
constexpr int ROWS_A_PASS = THREADS / CHUNKS;
constexpr int WEIGHT_BYTES = ROWS * INNER_TILE * 2;
constexpr int STAGE_BYTES = (ROWS + TOKENS) * INNER_TILE * 2;
// What the epilogue reads may wait in registers for the weights only where the sums leave room.
constexpr bool READ_EARLY = TOKENS <= 8;
constexpr int INPUT_PIECES = (TOKENS + ROWS_A_PASS - 1) / ROWS_A_PASS;
static_assert(CHUNKS % 8 == 0 && ROWS_A_PASS % 8 == 0, "the swizzle spans eight chunks and eight rows");
static_assert(ROWS % ROWS_A_PASS == 0, "every thread copies the same number of chunks");
static_assert(INNER_TILE / 16 % INNER_WARPS == 0, "every warp multiplies the same number of steps");
static_assert(WARP_ROWS % 16 == 0 && TOKENS % 8 == 0, "whole fragments");
static_assert(STAGES >= 2, "one tile is multiplied while another is copied");

DEVICE int swizzled(int row, int chunk) { return (row * CHUNKS + (chunk ^ (row % 8))) * 16; }

// What a thread copies of every tile: one chunk of columns of rows and of tokens first, first + ROWS_A_PASS, ...
struct Share {
    int first, chunk;
    int place;             // in a stage's half; the next pass lies THREADS * 16 bytes further on
    const DTYPE* weights;  // of the first row, at the chunk's column in the first tile
    int rows;              // of W from the first row on
    const DTYPE* input;    // of token 0, at column 0
};

// This thread's share of X for one tile, and of the norm's weights.
struct InputPieces {
    uint4 values[INPUT_PIECES];
    uint4 scale;
};

DEVICE void copy_weights(char* stage, const Share& share, int inner, int tile) {
    const int column = tile * INNER_TILE + share.chunk * 8;
#pragma unroll
    for (int pass = 0; pass < ROWS / ROWS_A_PASS; ++pass) {
        const long long offset = static_cast<long long>(pass * ROWS_A_PASS) * inner + tile * INNER_TILE;
        copy_async_16(stage + share.place + pass * THREADS * 16, share.weights + offset,
                      pass * ROWS_A_PASS < share.rows && column < inner);
    }
}

// Without a condition a load; what lies beyond the ends is replaced by zeros when it is stored.
DEVICE void load_input(InputPieces& pieces, const Share& share, const Norm& norm, int tokens, int inner, int tile) {
    const int beyond = tile * INNER_TILE + share.chunk * 8;
    const int column = beyond < inner ? beyond : inner - 8;
    pieces.scale = load_scale(norm, column);
#pragma unroll
    for (int pass = 0; pass < INPUT_PIECES; ++pass) {
        const int token = share.first + pass * ROWS_A_PASS;
        pieces.values[pass] = load_16(share.input + (token < tokens ? token : tokens - 1) * inner + column);
    }
}

DEVICE void store_input(char* stage, const InputPieces& pieces, const Share& share, const Header* header, int tokens,
                        int inner, int tile) {
    const int column = tile * INNER_TILE + share.chunk * 8;
#pragma unroll
    for (int pass = 0; pass < INPUT_PIECES; ++pass) {
        const int token = share.first + pass * ROWS_A_PASS;
        if (token >= TOKENS) continue;
        uint4 values = normalised(pieces.values[pass], pieces.scale, header->inverse_rms[token]);
        if (token >= tokens || column >= inner) values = make_uint4(0, 0, 0, 0);
        store_16(stage + WEIGHT_BYTES + share.place + pass * THREADS * 16, values);
    }
}

KERNEL KERNEL_BOUNDS(THREADS, BLOCKS) void flat_gemm(const DTYPE* weights, const DTYPE* input, int tokens, int rows,
                                                     int inner, float* partials, unsigned* arrivals,
                                                     NORM_PARAMETERS OUTPUT_PARAMETERS) {
    const Norm norm{NORM_ARGUMENTS};
    const Output output{OUTPUT_ARGUMENTS};
    Header* header = reinterpret_cast<Header*>(shared_memory());
    char* ring = shared_memory() + sizeof(Header);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_warp = warp / INNER_WARPS, inner_warp = warp % INNER_WARPS;
    const int tiles = (inner + INNER_TILE - 1) / INNER_TILE;
    const int begin = tiles * blockIdx.y / gridDim.y, end = tiles * (blockIdx.y + 1) / gridDim.y;

    Share share;
    share.first = threadIdx.x / CHUNKS;
    share.chunk = threadIdx.x % CHUNKS;
    share.place = swizzled(share.first, share.chunk);
    share.rows = rows - blockIdx.x * ROWS - share.first;
    share.weights = weights + (static_cast<long long>(blockIdx.x) * ROWS + share.first) * inner + share.chunk * 8;
    share.input = input;

    InputPieces first[STAGES - 1];
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (begin + step < end) copy_weights(ring + step * STAGE_BYTES, share, inner, begin + step);
        copy_async_commit();
    }
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (begin + step < end) load_input(first[step], share, norm, tokens, inner, begin + step);
    }
    inverse_rms(header, norm, tokens, inner);
    read_positions(header, tokens, output);
    sync_block();
    Ahead ahead;
    if (READ_EARLY) read_ahead(ahead, header, tokens, rows, output);
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (begin + step >= end) break;
        store_input(ring + step * STAGE_BYTES, first[step], share, header, tokens, inner, begin + step);
    }

    InputPieces next;
    if (begin + STAGES - 1 < end) load_input(next, share, norm, tokens, inner, begin + STAGES - 1);

    float sums[WARP_ROWS / 16][TOKENS / 8][4] = {};
    int slot = 0, free_slot = STAGES - 1;
    for (int tile = begin; tile < end; ++tile) {
        copy_async_wait<STAGES - 2>();
        sync_block();
        const int next_tile = tile + STAGES - 1;
        if (next_tile < end) copy_weights(ring + free_slot * STAGE_BYTES, share, inner, next_tile);
        copy_async_commit();

        const char* stage = ring + slot * STAGE_BYTES;
#pragma unroll
        for (int step = 0; step < INNER_TILE / 16 / INNER_WARPS; ++step) {
            const int chunk = 2 * (step * INNER_WARPS + inner_warp);
            unsigned x[TOKENS / 8][2];
#pragma unroll
            for (int column = 0; column < TOKENS / 8; ++column) {
                load_matrix_x2(x[column],
                               stage + WEIGHT_BYTES + swizzled(column * 8 + lane % 8, chunk + lane / 8 % 2));
            }
#pragma unroll
            for (int group = 0; group < WARP_ROWS / 16; ++group) {
                unsigned w[4];
                load_matrix_x4(w, stage + swizzled(row_warp * WARP_ROWS + group * 16 + lane % 16, chunk + lane / 16));
#pragma unroll
                for (int column = 0; column < TOKENS / 8; ++column) {
                    mma_16x8x16<DTYPE>(sums[group][column], w, x[column]);
                }
            }
        }
        if (next_tile < end) {
            store_input(ring + free_slot * STAGE_BYTES, next, share, header, tokens, inner, next_tile);
        }
        if (next_tile + 1 < end) load_input(next, share, norm, tokens, inner, next_tile + 1);
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        free_slot = free_slot + 1 == STAGES ? 0 : free_slot + 1;
    }

    if (!READ_EARLY) read_ahead(ahead, header, tokens, rows, output);
    float* tile = reinterpret_cast<float*>(ring);
    sync_block();
#pragma unroll
    for (int group = 0; group < WARP_ROWS / 16; ++group) {
#pragma unroll
        for (int column = 0; column < TOKENS / 8; ++column) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_warp * WARP_ROWS + group * 16 + lane / 4 + i / 2 * 8;
                const int token = column * 8 + lane % 4 * 2 + i % 2;
                tile[inner_warp * TILE_FLOATS + token * TOKEN_STRIDE + row] = sums[group][column][i];
            }
        }
    }
    if (combine(tile, tokens, partials, arrivals, header)) {
        write_output(tile, header, arrivals, tokens, rows, ahead, output);
    }
}

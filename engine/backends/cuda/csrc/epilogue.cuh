// What becomes of a block's whole sums: tile [token][row] in float32 in shared memory, one of five fusions.
//
//   PLAIN     float32 [tokens, rows], and the greedy choice: the greatest logit and its lowest index of a tile, of
//             GROUP tiles by the last of them to end, of all groups by the last of those
//   STORE     T [tokens, rows]
//   RESIDUAL  hidden[tokens, rows] = round(hidden + y), and the sum of squares of the rounded values a tile, from which
//             the next kernel's norm is made
//   SWIGLU    T [tokens, rows / 2] = silu(gate) * up; rows of W interleaved by eight: gate 0-7, up 0-7, gate 8-15, ...
//   QKV       bias, norm of each query and key head, rotary embedding (half-split), queries to T [tokens, heads, ROWS],
//             keys and values into the paged cache T [blocks, 2, kv heads, 16, ROWS]; a tile is a head
//
// A thread takes eight neighbouring rows of a token at a time, 16 bytes of T. What it reads beside the tile it reads
// ahead, and with few tokens before the weights: else another trip to L2 would follow them. Rows of the batch at or
// beyond `tokens` and sequences of length 0 write nothing in QKV; the other fusions know no lengths and write all
// `tokens`.
#pragma once
#include "packed.cuh"
#include "tile.cuh"

#define FUSION_PLAIN 0
#define FUSION_STORE 1
#define FUSION_RESIDUAL 2
#define FUSION_SWIGLU 3
#define FUSION_QKV 4

DEVICE void read_eight(float (&values)[8], const float* tile, int token, int row) {
    const float4* place = reinterpret_cast<const float4*>(tile + token * TOKEN_STRIDE + row);
    const float4 low = place[0], high = place[1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

#if FUSION == FUSION_PLAIN || FUSION == FUSION_STORE || FUSION == FUSION_SWIGLU

struct Ahead {};

#endif

#if FUSION == FUSION_PLAIN

#include "logits.cuh"

#elif FUSION == FUSION_STORE

#define OUTPUT_PARAMETERS DTYPE* out
#define OUTPUT_ARGUMENTS out

struct Output {
    DTYPE* out;  // [tokens, rows]
};

DEVICE void write_output(float* tile, Header*, unsigned*, int tokens, int rows, const Ahead&, const Output& output) {
    constexpr int EIGHTS = ROWS / 8;
    for (int item = threadIdx.x; item < tokens * EIGHTS; item += THREADS) {
        const int token = item / EIGHTS, offset = item % EIGHTS * 8, row = blockIdx.x * ROWS + offset;
        if (row >= rows) continue;
        float values[8];
        read_eight(values, tile, token, offset);
        store_16(output.out + static_cast<long long>(token) * rows + row, pack_eight<DTYPE>(values));
    }
}

#elif FUSION == FUSION_RESIDUAL

#define OUTPUT_PARAMETERS DTYPE *hidden, float *out_squares
#define OUTPUT_ARGUMENTS hidden, out_squares

struct Output {
    DTYPE* hidden;   // [tokens, rows]
    float* squares;  // [row tiles, tokens]
};

constexpr int EIGHTS = ROWS / 8;
static_assert((EIGHTS & (EIGHTS - 1)) == 0, "a row's squares are added by a tree of neighbouring lanes");
constexpr int ITEMS = (TOKENS * EIGHTS + THREADS - 1) / THREADS;

struct Ahead {
    uint4 hidden[ITEMS];
};

DEVICE void read_ahead(Ahead& ahead, const Header*, int tokens, int rows, const Output& output) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
        const int token = item / EIGHTS, row = blockIdx.x * ROWS + item % EIGHTS * 8;
        ahead.hidden[i] = make_uint4(0, 0, 0, 0);
        if (token < tokens && row < rows) {
            ahead.hidden[i] = load_16(output.hidden + static_cast<long long>(token) * rows + row);
        }
    }
}

DEVICE void write_output(float* tile, Header*, unsigned*, int tokens, int rows, const Ahead& ahead,
                         const Output& output) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
        const int token = item / EIGHTS, offset = item % EIGHTS * 8, row = blockIdx.x * ROWS + offset;
        float squares = 0.0f;
        if (token < tokens && row < rows) {
            float values[8], residual[8];
            read_eight(values, tile, token, offset);
            unpack_eight<DTYPE>(residual, ahead.hidden[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) values[j] += residual[j];
            const uint4 rounded = pack_eight<DTYPE>(values);
            store_16(output.hidden + static_cast<long long>(token) * rows + row, rounded);
            unpack_eight<DTYPE>(values, rounded);
#pragma unroll
            for (int j = 0; j < 8; ++j) squares += values[j] * values[j];
        }
#pragma unroll
        for (int mask = EIGHTS / 2; mask > 0; mask /= 2) squares += shuffle_xor(squares, mask);
        if (token < tokens && item % EIGHTS == 0) output.squares[blockIdx.x * tokens + token] = squares;
    }
}

#elif FUSION == FUSION_SWIGLU

#define OUTPUT_PARAMETERS DTYPE* out
#define OUTPUT_ARGUMENTS out

struct Output {
    DTYPE* out;  // [tokens, rows / 2]
};

DEVICE void write_output(float* tile, Header*, unsigned*, int tokens, int rows, const Ahead&, const Output& output) {
    constexpr int SIXTEENS = ROWS / 16;
    constexpr float LOG2_E = 1.4426950408889634f;
    for (int item = threadIdx.x; item < tokens * SIXTEENS; item += THREADS) {
        const int token = item / SIXTEENS, offset = item % SIXTEENS * 16, row = blockIdx.x * ROWS + offset;
        if (row >= rows) continue;
        float gate[8], up[8];
        read_eight(gate, tile, token, offset);
        read_eight(up, tile, token, offset + 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) up[i] *= gate[i] / (1.0f + exp2_approximate(-gate[i] * LOG2_E));
        store_16(output.out + static_cast<long long>(token) * (rows / 2) + row / 2, pack_eight<DTYPE>(up));
    }
}

#elif FUSION == FUSION_QKV

#include "heads.cuh"

#endif

#if FUSION != FUSION_QKV
DEVICE void read_positions(Header*, int, const Output&) {}
#endif

#if FUSION != FUSION_QKV && FUSION != FUSION_RESIDUAL
DEVICE void read_ahead(Ahead&, const Header*, int, int, const Output&) {}
#endif

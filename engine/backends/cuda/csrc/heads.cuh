// Epilogue QKV: a tile is one head of one of the three. Bias, norm of query and key heads, rotation to the token's
// position (half-split: row i turns with row i + ROWS / 2), then to the queries, or to the token's place in the paged
// cache.
//
// Macros BIAS and HEAD_NORM: 1 where the model has them.
#pragma once
#include "packed.cuh"
#include "tile.cuh"

#if BIAS
#define BIAS_PARAMETERS , const DTYPE *bias
#define BIAS_ARGUMENTS bias
#else
#define BIAS_PARAMETERS
#define BIAS_ARGUMENTS nullptr
#endif
#if HEAD_NORM
#define HEAD_NORM_PARAMETERS , const DTYPE *query_norm, const DTYPE *key_norm, float head_norm_epsilon
#define HEAD_NORM_ARGUMENTS query_norm, key_norm, head_norm_epsilon
#else
#define HEAD_NORM_PARAMETERS
#define HEAD_NORM_ARGUMENTS nullptr, nullptr, 0.0f
#endif
#define OUTPUT_PARAMETERS                                                                                            \
    DTYPE *queries, DTYPE *cache, const int *block_tables, const int *lengths, const float *cosines,                 \
        const float *sines, int heads, int kv_heads, int max_blocks BIAS_PARAMETERS HEAD_NORM_PARAMETERS
#define OUTPUT_ARGUMENTS                                                                                             \
    queries, cache, block_tables, lengths, cosines, sines, heads, kv_heads, max_blocks, BIAS_ARGUMENTS,              \
        HEAD_NORM_ARGUMENTS

struct Output {
    DTYPE* queries;           // [tokens, heads, ROWS]
    DTYPE* cache;             // [blocks, 2, kv heads, 16, ROWS]
    const int* block_tables;  // [tokens, max_blocks]
    const int* lengths;       // [tokens], the newest token included; 0: a padded row
    const float* cosines;     // [positions, ROWS / 2]
    const float* sines;       // [positions, ROWS / 2]
    int heads, kv_heads, max_blocks;
    const DTYPE* bias;                   // [rows]
    const DTYPE *query_norm, *key_norm;  // [ROWS]
    float head_norm_epsilon;
};

constexpr int CACHE_BLOCK_TOKENS = 16;

// Positions lead to all else, so they come first; visible after the next barrier.
DEVICE void read_positions(Header* header, int tokens, const Output& output) {
    for (int token = threadIdx.x; token < tokens; token += THREADS) {
        header->positions[token] = output.lengths[token] - 1;
    }
}

DEVICE void add_eight(float (&values)[8], uint4 terms) {
    float added[8];
    unpack_eight<DTYPE>(added, terms);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] += added[i];
}

DEVICE void scale_eight(float (&values)[8], float factor, uint4 weights) {
    float scale[8];
    unpack_eight<DTYPE>(scale, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] *= factor * scale[i];
}

// A thread rotates rows offset .. offset + 7 with those half a head further on; LANES neighbours share a head.
constexpr int HALF = ROWS / 2, LANES = HALF / 8;
constexpr int ITEMS = (TOKENS * LANES + THREADS - 1) / THREADS;
static_assert(THREADS % LANES == 0, "a thread meets the same rows in all its items");

// [0] is of the rows from offset on, [1] of those half a head further; of the angles, of four rows each.
struct Ahead {
    float4 cosines[ITEMS][2], sines[ITEMS][2];
    uint4 bias[2], norm[2];
};

DEVICE void read_ahead(Ahead& ahead, const Header* header, int tokens, int, const Output& output) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS, token = item / LANES;
        // A padded row reads position 0 and uses nothing of it.
        const int position = token < tokens && header->positions[token] > 0 ? header->positions[token] : 0;
        const long long place = static_cast<long long>(position) * HALF + item % LANES * 8;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            ahead.cosines[i][j] = *reinterpret_cast<const float4*>(output.cosines + place + 4 * j);
            ahead.sines[i][j] = *reinterpret_cast<const float4*>(output.sines + place + 4 * j);
        }
    }
    const int offset = threadIdx.x % LANES * 8;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#if BIAS
        ahead.bias[j] = load_16(output.bias + blockIdx.x * ROWS + offset + j * HALF);
#endif
#if HEAD_NORM
        const bool is_query = static_cast<int>(blockIdx.x) < output.heads;
        ahead.norm[j] = load_16((is_query ? output.query_norm : output.key_norm) + offset + j * HALF);
#endif
    }
}

DEVICE void rotate(float& first, float& second, float cosine, float sine) {
    const float before = first;
    first = before * cosine - second * sine;
    second = second * cosine + before * sine;
}

DEVICE void write_output(float* tile, Header* header, unsigned*, int tokens, int rows, const Ahead& ahead,
                         const Output& output) {
    const int head = blockIdx.x;
    const bool is_query = head < output.heads, is_value = head >= output.heads + output.kv_heads;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int item = threadIdx.x + i * THREADS;
        const int token = item / LANES, offset = item % LANES * 8;
        const int position = token < tokens ? header->positions[token] : -1;
        float low[8] = {}, high[8] = {};
        if (position >= 0) {
            read_eight(low, tile, token, offset);
            read_eight(high, tile, token, offset + HALF);
#if BIAS
            add_eight(low, ahead.bias[0]);
            add_eight(high, ahead.bias[1]);
#endif
        }
#if HEAD_NORM
        if (!is_value) {
            float squares = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; ++j) squares += low[j] * low[j] + high[j] * high[j];
#pragma unroll
            for (int mask = LANES / 2; mask > 0; mask /= 2) squares += shuffle_xor(squares, mask);
            const float inverse = rsqrt_approximate(squares / ROWS + output.head_norm_epsilon);
            scale_eight(low, inverse, ahead.norm[0]);
            scale_eight(high, inverse, ahead.norm[1]);
        }
#endif
        if (position < 0) continue;
        if (!is_value) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float4 cosines = ahead.cosines[i][j], sines = ahead.sines[i][j];
                rotate(low[4 * j], high[4 * j], cosines.x, sines.x);
                rotate(low[4 * j + 1], high[4 * j + 1], cosines.y, sines.y);
                rotate(low[4 * j + 2], high[4 * j + 2], cosines.z, sines.z);
                rotate(low[4 * j + 3], high[4 * j + 3], cosines.w, sines.w);
            }
        }
        DTYPE* target;
        if (is_query) {
            target = output.queries + (static_cast<long long>(token) * output.heads + head) * ROWS;
        } else {
            const int kv_head = head - output.heads - (is_value ? output.kv_heads : 0);
            const long long block = output.block_tables[static_cast<long long>(token) * output.max_blocks +
                                                     position / CACHE_BLOCK_TOKENS];
            target = output.cache + (((block * 2 + is_value) * output.kv_heads + kv_head) * CACHE_BLOCK_TOKENS +
                                     position % CACHE_BLOCK_TOKENS) * ROWS;
        }
        store_16(target + offset, pack_eight<DTYPE>(low));
        store_16(target + offset + HALF, pack_eight<DTYPE>(high));
    }
}

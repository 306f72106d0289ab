// One warp's part of decode attention: a walk over cache blocks with the tensor cores, softmax(q K^T) V as two sums.
//
// The query heads of one KV head are the 16 rows of a tile (rows from `group` on are zero and never leave the warp), a
// cache block's 16 tokens are its columns:
//   scores [16 rows, 16 keys] = Q K^T   A: Q, in registers for the whole walk   B: K as it lies in the cache
//   numerator [16 rows, HEAD_DIM] += P V   A: P, which leaves the first product in the order of an A operand   B: V, transposed
//   denominator [16 rows] += P 1        a third product with ones: it sums the rounded P that the numerator saw, and
//                                       leaves the whole row's sum in every lane of the row, without a shuffle
// Unified:      P = 2^(scale q.k log2 e - phi log2 e): no maximum, no rescaling, nothing that one block owes another.
// Synchronised: P = 2^(scale q.k log2 e - running maximum + PEAK), and both sums rescaled where the maximum rises.
#pragma once
#include "intrinsics.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int STAGES = 3;
constexpr int BLOCK_TOKENS = 16;  // tokens of a cache block, and keys of a tile
constexpr int ROW_BYTES = 2 * HEAD_DIM;
constexpr int TILE_BYTES = BLOCK_TOKENS * ROW_BYTES;  // keys, or values, of one cache block and one KV head
constexpr int STAGE_BYTES = 2 * TILE_BYTES;
constexpr int RING_BYTES = STAGES * STAGE_BYTES;  // of one warp
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -3.0e38f;  // below every score, and finite: a difference of two such is a number

// What the 16-bit type of P asks for. PEAK is the exponent of the greatest P of the synchronised walk: fp16 has room
// above 1, and 2^15 there lets terms 2^-40 times the greatest still count, where 2^0 would lose them at 2^-25.
template <class T>
struct Range;
template <>
struct Range<bf16> {
    static constexpr float PEAK = 0.0f;
    static DEVICE float smallest_denominator(int) { return 1e-30f; }
};
template <>
struct Range<fp16> {
    static constexpr float PEAK = 15.0f;
    static DEVICE float smallest_denominator(int keys) { return static_cast<float>(keys) * 0.0009765625f; }
};

// The keys and values of one KV head of one sequence.
struct Context {
    const DTYPE* cache;  // [blocks, 2, kv_heads, BLOCK_TOKENS, HEAD_DIM]
    const int* blocks;   // [ceil(length / BLOCK_TOKENS)]
    int length;          // tokens
    int kv_heads;
    int kv_head;
};

// Lane (g, t) = (lane / 4, lane % 4) holds rows g ([0], [1]) and g + 8 ([2], [3]) as the tensor cores lay them out.
struct Sums {
    float numerator[HEAD_DIM / 8][4];  // columns 8 i + 2 t, 8 i + 2 t + 1
    float denominator[4];              // [0] and [2]; the others repeat them
    float maximum[2];                  // of rows g and g + 8, in powers of two; synchronised only
};

// Byte of a 16-byte chunk in a tile. The XOR spreads one chunk column of 8 rows over all 32 banks (ldmatrix reads that),
// and leaves the 8 chunks of one half row on all 32 banks too (the copies write that): neither has a conflict.
DEVICE int swizzled(int row, int chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4); }

// Begins the copy of one cache block. Tokens beyond the context arrive as zeros, for 0 * NaN would be NaN.
DEVICE void copy_block(char* stage, const Context& context, int index, int physical) {
    constexpr int CHUNKS = ROW_BYTES / 16;
    const int lane = threadIdx.x & 31;
    const int tokens = context.length - index * BLOCK_TOKENS;
    const long long first = (static_cast<long long>(physical) * 2 * context.kv_heads + context.kv_head) * TILE_BYTES;
    const char* keys = reinterpret_cast<const char*>(context.cache) + first;
    const char* values = keys + static_cast<long long>(context.kv_heads) * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < TILE_BYTES / 512; ++i) {
        const int chunk = 32 * i + lane;
        const int row = chunk / CHUNKS;
        const int at = swizzled(row, chunk % CHUNKS);
        copy_async_16(stage + at, keys + 16 * chunk, row < tokens);
        copy_async_16(stage + TILE_BYTES + at, values + 16 * chunk, row < tokens);
    }
}

// The 16 x HEAD_DIM queries as A operands.
DEVICE void load_query(unsigned (&query)[HEAD_DIM / 16][4], const DTYPE* rows, int group) {
    const int g = (threadIdx.x & 31) >> 2;
    const int t = threadIdx.x & 3;
    const unsigned* pairs = reinterpret_cast<const unsigned*>(rows);
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = g + 8 * (i & 1);
            query[k][i] = row < group ? pairs[row * (HEAD_DIM / 2) + 8 * k + t + 4 * (i >> 1)] : 0u;
        }
    }
}

DEVICE void multiply_keys(float (&scores)[2][4], const unsigned (&query)[HEAD_DIM / 16][4], const char* keys) {
    const int lane = threadIdx.x & 31;
    const int key = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
        unsigned b[4];
        load_matrix_x4(b, keys + swizzled(key, 2 * k + ((lane >> 3) & 1)));
        mma_16x8x16<DTYPE>(scores[0], query[k], {b[0], b[1]});
        mma_16x8x16<DTYPE>(scores[1], query[k], {b[2], b[3]});
    }
}

DEVICE void multiply_values(Sums& sums, const unsigned (&p)[4], const char* values) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i) {
        unsigned b[4];
        load_matrix_x4_transposed(b, values + swizzled(lane & 15, 2 * i + (lane >> 4)));
        mma_16x8x16<DTYPE>(sums.numerator[2 * i], p, {b[0], b[1]});
        mma_16x8x16<DTYPE>(sums.numerator[2 * i + 1], p, {b[2], b[3]});
    }
    const unsigned one = pack2<DTYPE>(1.0f, 1.0f);
    mma_16x8x16<DTYPE>(sums.denominator, p, {one, one});
}

// Raises the running maxima to those of the scores, rescales what was summed, and returns what to subtract.
DEVICE void synchronise(Sums& sums, float (&offset)[2], const float (&scores)[2][4], float scale_log2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float greatest = fmaxf(fmaxf(scores[0][2 * half], scores[0][2 * half + 1]),
                               fmaxf(scores[1][2 * half], scores[1][2 * half + 1]));
        greatest = fmaxf(greatest, shuffle_xor(greatest, 1));
        greatest = fmaxf(greatest, shuffle_xor(greatest, 2));
        const float maximum = fmaxf(sums.maximum[half], greatest * scale_log2);
        const float rescale = exp2_approximate(sums.maximum[half] - maximum);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 8; ++i) {
            sums.numerator[i][2 * half] *= rescale;
            sums.numerator[i][2 * half + 1] *= rescale;
        }
        sums.denominator[2 * half] *= rescale;
        sums.denominator[2 * half + 1] *= rescale;
        sums.maximum[half] = maximum;
        offset[half] = maximum - Range<DTYPE>::PEAK;
    }
}

// Sums over the cache blocks begin + warp, begin + warp + WARPS, ... before `end`, through the warp's own ring of STAGES
// stages. `offset` is what the exponents of rows g and g + 8 are lowered by where `Unified`. Ends with no copy in flight.
template <bool Unified>
DEVICE void attend(Sums& sums, const DTYPE* queries, int group, const Context& context, int begin, int end, char* ring,
                   float scale_log2, float (&offset)[2]) {
    const int lane = threadIdx.x & 31;
    // The block table is read one turn ahead of the copy that needs it, so that no copy waits for its address.
    int next = begin + (threadIdx.x >> 5);
    int physical = next < end ? context.blocks[next] : 0;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        const int following = next + WARPS < end ? context.blocks[next + WARPS] : 0;
        if (next < end) copy_block(ring + stage * STAGE_BYTES, context, next, physical);
        copy_async_commit();
        next += WARPS;
        physical = following;
    }

    unsigned query[HEAD_DIM / 16][4];
    load_query(query, queries, group);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums.numerator[i][j] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.denominator[j] = 0.0f;
    sums.maximum[0] = sums.maximum[1] = LOWEST;

    int stage = 0;
    for (int block = begin + (threadIdx.x >> 5); block < end; block += WARPS) {
        copy_async_wait<STAGES - 2>();
        sync_warp();  // the other lanes' copies have landed, and they have read the stage that is filled next
        const int following = next + WARPS < end ? context.blocks[next + WARPS] : 0;
        const int free = stage == 0 ? STAGES - 1 : stage - 1;
        if (next < end) copy_block(ring + free * STAGE_BYTES, context, next, physical);
        copy_async_commit();
        next += WARPS;
        physical = following;

        const char* keys = ring + stage * STAGE_BYTES;
        float scores[2][4] = {};
        multiply_keys(scores, query, keys);
        const int tokens = context.length - block * BLOCK_TOKENS;
        if (tokens < BLOCK_TOKENS) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int key = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
                if (key >= tokens) scores[i >> 2][i & 3] = LOWEST;
            }
        }
        if (!Unified) synchronise(sums, offset, scores, scale_log2);
        unsigned p[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* pair = &scores[i >> 1][2 * (i & 1)];
            p[i] = pack2<DTYPE>(exp2_approximate(fmaf(pair[0], scale_log2, -offset[i & 1])),
                                exp2_approximate(fmaf(pair[1], scale_log2, -offset[i & 1])));
        }
        multiply_values(sums, p, keys + TILE_BYTES);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    sync_warp();
}

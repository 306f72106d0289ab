// RMSNorm where X is read: round(x * inverse_rms * weight), inverse_rms = 1 / sqrt(mean(x^2) + epsilon).
//
// The kernel that wrote X left the sum of squares of each of its row tiles, so nobody reads X twice. Every block sums
// those anew: a few kilobytes from L2 cost less than a kernel between.
//
// Macro NORM: 1 with this norm, 0 with X as it is.
#pragma once
#include "packed.cuh"
#include "tile.cuh"

#if NORM
#define NORM_PARAMETERS \
    const DTYPE *norm_weight, const float *square_partials, int square_tiles, float norm_epsilon,
#define NORM_ARGUMENTS norm_weight, square_partials, square_tiles, norm_epsilon
#else
#define NORM_PARAMETERS
#define NORM_ARGUMENTS
#endif

struct Norm {
    const DTYPE* weight;           // [inner]
    const float* square_partials;  // [square_tiles, tokens]
    int square_tiles;
    float epsilon;
};

// Fills header->inverse_rms; visible after the next barrier. The order of the sum is that of the tile's shape, always.
DEVICE void inverse_rms(Header* header, const Norm& norm, int tokens, int inner) {
#if NORM
    const int token = threadIdx.x % TOKENS, slice = threadIdx.x / TOKENS, lane = threadIdx.x % 32;
    float sum = 0.0f;
    if (token < tokens) {
#pragma unroll 8
        for (int tile = slice; tile < norm.square_tiles; tile += SLICES) {
            sum += norm.square_partials[tile * tokens + token];
        }
    }
#pragma unroll
    for (int mask = 16; mask >= TOKENS; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane < TOKENS) header->square_parts[(TOKENS < 32 ? threadIdx.x / 32 : slice) * TOKENS + token] = sum;
    sync_block();
    if (threadIdx.x < TOKENS) {
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) sum += header->square_parts[part * TOKENS + token];
        header->inverse_rms[token] = rsqrt_approximate(sum / static_cast<float>(inner) + norm.epsilon);
    }
#endif
}

// The norm's weights for eight columns, to be read together with X.
DEVICE uint4 load_scale(const Norm& norm, int column) {
#if NORM
    return load_16(norm.weight + column);
#else
    return make_uint4(0, 0, 0, 0);
#endif
}

DEVICE uint4 normalised(uint4 packed, uint4 scale, float inverse) {
#if NORM
    float values[8], weights[8];
    unpack_eight<DTYPE>(values, packed);
    unpack_eight<DTYPE>(weights, scale);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] *= inverse * weights[i];
    return pack_eight<DTYPE>(values);
#else
    return packed;
#endif
}

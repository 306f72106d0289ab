// The sum of squares of a row of 16-bit values, by one block.
#pragma once
#include "packed.cuh"

// The squares of eight values added to `sum` from left to right.
template <class T>
DEVICE float add_squares(uint4 packed, float sum) {
    float values[8];
    unpack_eight<T>(values, packed);
    for (int i = 0; i < 8; ++i) {
        sum += values[i] * values[i];
    }
    return sum;
}

// Every thread gets the sum of all threads' values, in an order that depends on the block's size alone.
// Uses blockDim.x / 32 floats of shared memory, once.
DEVICE float sum_block(float value) {
    for (int mask = 16; mask > 0; mask /= 2) {
        value += shuffle_xor(value, mask);
    }
    float* warp_sums = reinterpret_cast<float*>(shared_memory());
    if (threadIdx.x % 32 == 0) {
        warp_sums[threadIdx.x / 32] = value;
    }
    sync_block();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
        sum += warp_sums[warp];
    }
    return sum;
}

// RMSNorm of the residual stream, for the steps whose GEMM is cuBLAS's.
//
//   rms_norm          out[m, :] = round(hidden[m, :] * rsqrt(mean(hidden[m, :]^2) + epsilon) * weight)
//   square_partials   partials[0, m] = sum(hidden[m, :]^2): what a fused consumer needs after a cuBLAS producer
//
// hidden, out: DTYPE [M, width]; weight: DTYPE [width]; partials: float [1, M]. width is a multiple of 8.
// Grid (M), a block a row; a thread takes every THREADS-th vector of 8, and rms_norm reads them a second time from L1.
// Shared memory: a float a warp, for the sum.
// Bytes: 2 width M in and as many out (square_partials: in alone); at M = 1 it is the latency of two dependent reads
// of L2 that counts, at M = 64 and width 4096 1 MB: well below a launch's ramp either way.
#include "square_sum.cuh"

template <class T>
DEVICE float sum_of_squares(const T* row, int width) {
    float sum = 0.0f;
    for (int column = 8 * threadIdx.x; column < width; column += 8 * blockDim.x) {
        sum = add_squares<T>(load_16(row + column), sum);
    }
    return sum_block(sum);
}

KERNEL KERNEL_BOUNDS(THREADS, 1) void rms_norm(const DTYPE* hidden, const DTYPE* weight, DTYPE* out, int width,
                                               float epsilon) {
    const long long offset = static_cast<long long>(blockIdx.x) * width;
    const float mean = fast_divide(sum_of_squares(hidden + offset, width), static_cast<float>(width));
    const float inverse_rms = rsqrt_approximate(mean + epsilon);
    for (int column = 8 * threadIdx.x; column < width; column += 8 * blockDim.x) {
        float values[8], weights[8];
        unpack_eight<DTYPE>(values, load_16(hidden + offset + column));
        unpack_eight<DTYPE>(weights, load_16(weight + column));
        for (int i = 0; i < 8; ++i) {
            values[i] = values[i] * inverse_rms * weights[i];
        }
        store_16(out + offset + column, pack_eight<DTYPE>(values));
    }
}

KERNEL KERNEL_BOUNDS(THREADS, 1) void square_partials(const DTYPE* hidden, float* partials, int width) {
    const float sum = sum_of_squares(hidden + static_cast<long long>(blockIdx.x) * width, width);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

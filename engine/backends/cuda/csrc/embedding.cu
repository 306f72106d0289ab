// The embedding of each sequence's last token, and the sum of squares that the first RMSNorm needs.
//
// tokens, lengths: int [M]; table: DTYPE [vocabulary, width]; hidden: DTYPE [M, width]; partials: float [1, M].
// A row of length 0 is padding: its token is not looked at, its hidden values and its sum are 0.
// Grid (M), a block a row; a thread takes every THREADS-th vector of 8. width is a multiple of 8.
// Shared memory: a float a warp, for the sum.
// Bytes: 2 width M in, as many out; a row is read once and by one block, so it goes past L1.
#include "square_sum.cuh"

KERNEL KERNEL_BOUNDS(THREADS, 1) void embed(const int* tokens, const int* lengths, const DTYPE* table, DTYPE* hidden,
                                            float* partials, int width) {
    const int row = blockIdx.x;
    const bool used = lengths[row] > 0;
    const long long source = used ? static_cast<long long>(tokens[row]) * width : 0;
    const long long target = static_cast<long long>(row) * width;
    float sum = 0.0f;
    for (int column = 8 * threadIdx.x; column < width; column += 8 * blockDim.x) {
        const uint4 packed = used ? load_streaming_16(table + source + column) : make_uint4(0, 0, 0, 0);
        store_16(hidden + target + column, packed);
        sum = add_squares<DTYPE>(packed, sum);
    }
    sum = sum_block(sum);
    if (threadIdx.x == 0) {
        partials[row] = sum;
    }
}

// From a plain QKV projection to what attention reads: bias, q/k norm, RoPE, and the append to the paged cache.
//
// qkv: DTYPE [M, heads + 2 kv_heads, HEAD_DIM]; bias: DTYPE, one such row; q_norm, k_norm: DTYPE [HEAD_DIM]; read
// only where has_bias and has_norms say so. cosine, sine: float [positions, HEAD_DIM / 2], half-split: component i
// turns with i + HEAD_DIM / 2. lengths: int [M], the newest token included, which stands at position length - 1. A row
// of length 0 is padding: its q is 0 and nothing is appended. q: DTYPE [M, heads, HEAD_DIM], not scaled; cache:
// DTYPE [blocks, 2, kv_heads, 16, HEAD_DIM], keys then values; block_tables: int [M, max_blocks].
//
// Grid (ceil(row's vectors / THREADS), M). A thread holds 8 components, so a head lies in HEAD_DIM / 8 neighbouring
// lanes of one warp: the norm's sum and RoPE's partner come by shuffles, and a thread past the row's end still takes
// part in them. Everything is in float and rounded once, at the store. No shared memory.
// Bytes: 4 HEAD_DIM (heads + 2 kv_heads) M and the tables: 0.1 us at M = 64; a launch's latency is the target.
#include "packed.cuh"

constexpr int LANES = HEAD_DIM / 8;  // of a head
constexpr int BLOCK_TOKENS = 16;

KERNEL KERNEL_BOUNDS(THREADS, 1) void rotate_and_append(const DTYPE* qkv, const DTYPE* bias, const DTYPE* q_norm,
                                                        const DTYPE* k_norm, const float* cosine, const float* sine,
                                                        const int* lengths, const int* block_tables, DTYPE* q,
                                                        DTYPE* cache, int heads, int kv_heads, int max_blocks,
                                                        float epsilon, int has_bias, int has_norms) {
    const int row = blockIdx.y;
    const int length = lengths[row];
    const int position = length > 0 ? length - 1 : 0;
    const int row_vectors = (heads + 2 * kv_heads) * LANES;
    const int vector = blockIdx.x * blockDim.x + threadIdx.x;
    const bool inside = vector < row_vectors;
    const int head = vector / LANES;
    const int lane = vector % LANES;
    const int column = 8 * lane;
    const bool is_q = head < heads;
    const bool is_value = head >= heads + kv_heads;

    float values[8] = {};
    if (inside && length > 0) {
        unpack_eight<DTYPE>(values, load_16(qkv + 8 * (static_cast<long long>(row) * row_vectors + vector)));
        if (has_bias) {
            float biases[8];
            unpack_eight<DTYPE>(biases, load_16(bias + 8 * vector));
            for (int i = 0; i < 8; ++i) {
                values[i] += biases[i];
            }
        }
    }

    if (has_norms) {
        float sum = 0.0f;
        for (int i = 0; i < 8; ++i) {
            sum += values[i] * values[i];
        }
        for (int mask = LANES / 2; mask > 0; mask /= 2) {
            sum += shuffle_xor(sum, mask);
        }
        if (!is_value) {
            const float inverse_rms = rsqrt_approximate(sum / HEAD_DIM + epsilon);
            float weights[8];
            unpack_eight<DTYPE>(weights, load_16((is_q ? q_norm : k_norm) + column));
            for (int i = 0; i < 8; ++i) {
                values[i] = values[i] * inverse_rms * weights[i];
            }
        }
    }

    float partners[8];
    for (int i = 0; i < 8; ++i) {
        partners[i] = shuffle_xor(values[i], LANES / 2);
    }
    if (!is_value) {
        const bool first_half = lane < LANES / 2;
        const int angle = position * (HEAD_DIM / 2) + column - (first_half ? 0 : HEAD_DIM / 2);
        const float* cosines = cosine + angle;
        const float* sines = sine + angle;
        for (int i = 0; i < 8; i += 4) {
            const float4 c = *reinterpret_cast<const float4*>(cosines + i);
            const float4 s = *reinterpret_cast<const float4*>(sines + i);
            const float c4[4] = {c.x, c.y, c.z, c.w};
            const float s4[4] = {s.x, s.y, s.z, s.w};
            for (int j = 0; j < 4; ++j) {
                const float turn = first_half ? -s4[j] : s4[j];
                values[i + j] = values[i + j] * c4[j] + partners[i + j] * turn;
            }
        }
    }

    if (inside && is_q) {
        store_16(q + (static_cast<long long>(row) * heads + head) * HEAD_DIM + column, pack_eight<DTYPE>(values));
    }
    if (inside && !is_q && length > 0) {
        const long long block = block_tables[row * max_blocks + position / BLOCK_TOKENS];
        const int kv_head = head - heads - (is_value ? kv_heads : 0);
        const long long line = ((2 * block + is_value) * kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        store_16(cache + line * HEAD_DIM + column, pack_eight<DTYPE>(values));
    }
}

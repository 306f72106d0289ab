// Decode attention over the paged KV cache: one new token a sequence, softmax(scale q K^T) V for every query head.
//
// Problem     query [sequences, heads, HEAD_DIM], cache [blocks, 2, kv_heads, 16, HEAD_DIM] reached through
//             block_tables [sequences, max_blocks], lengths [sequences] -> out [sequences, heads, HEAD_DIM], all DTYPE.
//             heads = kv_heads * group, group 1 to 16. A sequence of length 0 is padding: its output is zero.
// Grid        (splits, kv_heads, sequences), 128 threads. A block takes one split of one KV head's context, an equal
//             share of its cache blocks, for all `group` query heads at once, so K and V are read once. The splits in
//             use are the most that leave every warp a cache block, at most gridDim.x; the rest return at once. The
//             four warps of a block take its cache blocks in turn, each through an own ring of copies, and meet only
//             at the end (attention.cuh).
// Shared      [warp][stage][keys, values][16][HEAD_DIM] DTYPE: 4 rings of 3 stages, 96 KiB at HEAD_DIM 128, 48 KiB at
//             64. After a walk the start of a warp's ring holds its sums [group][ROW] float; that of warp 0 holds
//             behind them the block's totals [group][ROW], the rows' flags [16] and whether this block arrived last.
// Workspace   [sequences, kv_heads, splits in use][group][ROW] float: numerators, denominator, maximum (synchronised).
// Bytes       4 * HEAD_DIM * kv_heads * length a sequence (each K and V once) and 32 * HEAD_DIM * heads * splits of the
//             partial sums, which stay in L2. Target: 85 % of the read bandwidth at 4096 tokens and more work items than
//             multiprocessors. In flight a multiprocessor, two stages of each warp: 128 KiB at HEAD_DIM 128 and two
//             blocks, 128 KiB at 64 and four. A tile of 8 KiB costs 33 mma and 256 exponentials, far below the
//             tensor cores' and the exponential units' share of that time.
//
// The splits' sums are added by the last block to arrive, in the order of the splits: the same launch gives the same
// bits. With the unified maximum phi (FlashDecoding++, section 3) they are added as they are: sum_i e^(x_i - phi) v_i
// over all keys, divided once by sum_i e^(x_i - phi), is the softmax for any phi that keeps both sums in range.
//
// When is a row in range? Let P_i = 2^(y_i), rounded to DTYPE, n = length. The result is sum P_i v_i / sum P_i, with the
// same rounded P_i above and below, so a weight's error e_i moves it by at most sum |e_i| max |v_i - result| / sum P_i.
//   Above: a P_i or a sum that overflows is infinite and stays so (infinity, or NaN from infinity - infinity or
//   infinity * 0), so "denominator and numerators finite" means that nothing overflowed. In fp16 that is P_i <= 65504.
//   Below, fp16: |e_i| <= 2^-11 P_i, or 2^-25 where P_i is below the normal range (2^-14). Phi stands for the largest
//   exponent, so the largest term is nominally 1, and we ask denominator >= n 2^-10 of it. Then
//     sum |e_i| / sum P_i <= 2^-11 + n 2^-25 / (n 2^-10) = 2^-11 (1 + 2^-4):
//   what fell below the range adds at most a sixteenth to the error that rounding P makes in any softmax, whatever
//   the true largest term is. And the largest term is at least the mean, 2^-10 > 2^-14: it is a normal number.
//   Below, bf16: P_i has float's exponents, |e_i| <= 2^-8 P_i, or 2^-126 where the exponential became zero;
//   denominator >= 10^-30 keeps n 2^-126 / denominator below 2^-8 up to 300,000 tokens.
// A row that fails is computed again, from the cache, by the block that found it, with the synchronised softmax; only
// that row is written from it. No host is asked, so the launch can stand in a CUDA graph.
#include "attention.cuh"

constexpr int ROW = HEAD_DIM + 8;  // floats of a row of sums: numerators, denominator, maximum, and a shift of 8 banks
constexpr int RESIDENT_BLOCKS = HEAD_DIM == 128 ? 2 : 4;

// Writes a warp's sums to the start of its own ring.
DEVICE void store_sums(float* rows, const Sums& sums, int group) {
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = ((threadIdx.x & 31) >> 2) + 8 * half;
        if (row < group) {
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 8; ++i) {
                *reinterpret_cast<float2*>(rows + row * ROW + 8 * i + 2 * t) =
                    make_float2(sums.numerator[i][2 * half], sums.numerator[i][2 * half + 1]);
            }
            if (t == 0) {
                *reinterpret_cast<float2*>(rows + row * ROW + HEAD_DIM) =
                    make_float2(sums.denominator[2 * half], sums.maximum[half]);
            }
        }
    }
}

template <bool OtherBlocks>
DEVICE float4 read_4(const float* at) {
    return OtherBlocks ? load_relaxed_16(at) : *reinterpret_cast<const float4*>(at);
}

// Adds `count` partial sums, `stride` floats apart, in their order. Every thread adds the denominators and maxima that
// its four columns need once more, which costs a broadcast and saves a barrier.
template <bool Unified, bool OtherBlocks>
DEVICE void merge(float* to, const float* from, int count, int stride, int group) {
    for (int i = threadIdx.x; i < group * (HEAD_DIM / 4); i += THREADS) {
        const int row = i / (HEAD_DIM / 4);
        const int column = 4 * (i % (HEAD_DIM / 4));
        const float* rows = from + row * ROW;
        float maximum = LOWEST;
        if (!Unified) {
#pragma unroll 8
            for (int part = 0; part < count; ++part) {
                maximum = fmaxf(maximum, read_4<OtherBlocks>(rows + part * stride + HEAD_DIM).y);
            }
        }
        float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float denominator = 0.0f;
#pragma unroll 8
        for (int part = 0; part < count; ++part) {
            const float4 numerator = read_4<OtherBlocks>(rows + part * stride + column);
            const float4 state = read_4<OtherBlocks>(rows + part * stride + HEAD_DIM);
            const float weight = Unified ? 1.0f : exp2_approximate(state.y - maximum);
            total.x += weight * numerator.x;
            total.y += weight * numerator.y;
            total.z += weight * numerator.z;
            total.w += weight * numerator.w;
            denominator += weight * state.x;
        }
        *reinterpret_cast<float4*>(to + row * ROW + column) = total;
        if (column == 0) *reinterpret_cast<float2*>(to + row * ROW + HEAD_DIM) = make_float2(denominator, maximum);
    }
}

// Divides and writes the rows of `chosen`, a warp a row. Where `Checked`, rows out of range are flagged, not written.
template <bool Checked>
DEVICE void write_rows(DTYPE* out, const float* totals, int group, unsigned chosen, int keys, unsigned* flags) {
    const int lane = threadIdx.x & 31;
    for (int row = threadIdx.x >> 5; row < group; row += WARPS) {
        if ((chosen >> row & 1u) == 0u) continue;
        const float* sums = totals + row * ROW;
        const float denominator = sums[HEAD_DIM];
        if (Checked) {
            bool outside = !is_finite(denominator) || denominator < Range<DTYPE>::smallest_denominator(keys);
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 32; ++i) outside |= !is_finite(sums[32 * i + lane]);
            outside = vote_any(outside);
            if (lane == 0) flags[row] = outside ? 1u : 0u;
            if (outside) continue;
        }
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 64; ++i) {
            const float2 pair = *reinterpret_cast<const float2*>(sums + 64 * i + 2 * lane);
            // A true division: the reciprocal of a denominator above 2^126 would be flushed to zero.
            reinterpret_cast<unsigned*>(out + row * HEAD_DIM)[32 * i + lane] =
                pack2<DTYPE>(pair.x / denominator, pair.y / denominator);
        }
    }
}

template <bool Unified>
DEVICE void decode(DTYPE* out, const DTYPE* query, const DTYPE* cache, const int* block_tables, const int* lengths,
                   const float* phi, float* workspace, unsigned* counters, unsigned* recomputed, int group,
                   int max_blocks, float scale_log2) {
    const int kv_heads = gridDim.y;
    const int item = blockIdx.z * kv_heads + blockIdx.y;
    const Context context = {cache, block_tables + static_cast<long long>(blockIdx.z) * max_blocks, lengths[blockIdx.z],
                             kv_heads, static_cast<int>(blockIdx.y)};
    const int blocks = (context.length + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const int splits = max(1, min(static_cast<int>(gridDim.x), (blocks + WARPS - 1) / WARPS));
    const int split = blockIdx.x;
    if (split >= splits) return;

    const DTYPE* queries = query + static_cast<long long>(item) * group * HEAD_DIM;
    DTYPE* rows_out = out + static_cast<long long>(item) * group * HEAD_DIM;
    if (context.length <= 0) {
        for (int i = threadIdx.x; i < group * (HEAD_DIM / 2); i += THREADS) reinterpret_cast<unsigned*>(rows_out)[i] = 0u;
        return;
    }

    char* ring = shared_memory() + (threadIdx.x >> 5) * RING_BYTES;
    float* sums_of_warps = reinterpret_cast<float*>(shared_memory());
    float* totals = sums_of_warps + group * ROW;
    unsigned* flags = reinterpret_cast<unsigned*>(totals + group * ROW);
    unsigned* last = flags + 16;

    float offset[2] = {0.0f, 0.0f};
    if (Unified) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = ((threadIdx.x & 31) >> 2) + 8 * half;
            if (row < group) offset[half] = phi[blockIdx.y * group + row] * LOG2_E;
        }
    }
    Sums sums;
    attend<Unified>(sums, queries, group, context, split * blocks / splits, (split + 1) * blocks / splits, ring,
                    scale_log2, offset);
    store_sums(reinterpret_cast<float*>(ring), sums, group);
    sync_block();

    if (splits == 1) {
        merge<Unified, false>(totals, sums_of_warps, WARPS, RING_BYTES / 4, group);
    } else {
        float* parts = workspace + static_cast<long long>(item) * gridDim.x * group * ROW;
        merge<Unified, false>(parts + split * group * ROW, sums_of_warps, WARPS, RING_BYTES / 4, group);
        fence();
        sync_block();
        if (threadIdx.x == 0) {
            *last = atomic_add(counters + item, 1u) == static_cast<unsigned>(splits - 1) ? 1u : 0u;
            if (*last != 0u) counters[item] = 0u;
        }
        sync_block();
        if (*last == 0u) return;
        fence();
        merge<Unified, true>(totals, parts, splits, group * ROW, group);
    }
    sync_block();

    const unsigned all = (1u << group) - 1u;
    write_rows<Unified>(rows_out, totals, group, all, context.length, flags);
    if (!Unified) return;
    sync_block();
    unsigned flagged = 0u;
    for (int row = 0; row < group; ++row) flagged |= flags[row] << row;
    if (flagged == 0u) return;
    sync_block();  // all have read the flags, which lie where the rings are filled again

    attend<false>(sums, queries, group, context, 0, blocks, ring, scale_log2, offset);
    store_sums(reinterpret_cast<float*>(ring), sums, group);
    sync_block();
    merge<false, false>(totals, sums_of_warps, WARPS, RING_BYTES / 4, group);
    sync_block();
    write_rows<false>(rows_out, totals, group, flagged, context.length, flags);
    if (threadIdx.x == 0) {
        unsigned rows = 0u;
        for (int row = 0; row < group; ++row) rows += flagged >> row & 1u;
        atomic_add(recomputed, rows);
    }
}

// phi [heads] float, in units of the scaled logits; scale_log2 = scale * log2 e. `counters` [sequences * kv_heads] is
// zero before the first launch and after every one. `recomputed` grows by one for every row that was computed again.
KERNEL KERNEL_BOUNDS(THREADS, RESIDENT_BLOCKS)
void attention_unified(DTYPE* out, const DTYPE* query, const DTYPE* cache, const int* block_tables, const int* lengths,
                       const float* phi, float* workspace, unsigned* counters, unsigned* recomputed, int group,
                       int max_blocks, float scale_log2) {
    decode<true>(out, query, cache, block_tables, lengths, phi, workspace, counters, recomputed, group, max_blocks,
                 scale_log2);
}

KERNEL KERNEL_BOUNDS(THREADS, RESIDENT_BLOCKS)
void attention_synchronised(DTYPE* out, const DTYPE* query, const DTYPE* cache, const int* block_tables,
                            const int* lengths, float* workspace, unsigned* counters, int group, int max_blocks,
                            float scale_log2) {
    decode<false>(out, query, cache, block_tables, lengths, nullptr, workspace, counters, nullptr, group, max_blocks,
                  scale_log2);
}

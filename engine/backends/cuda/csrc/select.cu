// The next token from float logits [M, vocabulary]: the largest alone, or the largest 64 in order.
//
// A logit and its id make one 64-bit key: the float's bits, made to ascend as unsigned numbers, above the id's
// complement. So keys are distinct, the larger key is the larger logit and among equals (-0 is 0) the lower id, NaN
// lies below -infinity and never wins, the order does not depend on who compares, and a key gives the logit back exactly.
//
//   greedy   tokens[m] = id of the row's largest key (0 where all are NaN)
//   top_k    values[m, :k], ids[m, :k] = the k <= 64 largest, descending
//
// Grid (chunks, M): a block reads its chunk of the row's 16-byte vectors, a thread every THREADS-th; a vector that
// straddles rows (vocabulary % 4 != 0) is read element by element. A block writes its partial, `partials` [M, chunks] or
// [M, chunks, 64], fences and counts itself in `arrivals` [M]; the last of a row merges and sets the counter back to 0.
//
// top_k keeps, in shared memory, the 64 best so far and whatever came since and exceeds the 64th of them; when a tile
// more might not fit (CAPACITY), it reduces that to 64: each warp sorts runs of 64 bitonically, alternately descending
// and ascending, and then run by run the elementwise larger of two such runs, which is bitonic too, is sorted by six
// more steps. In a row in random order a tile seldom passes the threshold, so that the reading dominates.
//
// Shared memory: top_k CAPACITY keys (16 KB), then for both a word a warp and one flag.
// Bytes: 4 vocabulary M (M = 64, 128256: 33 MB, 8 us at 4.3 TB/s), eight blocks an SM with a 16-byte load a thread in
// flight are 32 KB; at M = 1 the latency of two dependent phases.
#include "intrinsics.cuh"

using Key = unsigned long long;

constexpr int KEPT = 64;
constexpr int WARPS = THREADS / 32;
constexpr int VECTOR = 4;
constexpr int TILE = VECTOR * THREADS;
constexpr int CAPACITY = 2048;
static_assert(KEPT + 2 * TILE > CAPACITY && 2 * TILE <= CAPACITY, "two tiles fill the buffer");

DEVICE Key make_key(unsigned bits, unsigned id) {
    if (bits == 0x80000000u) {  // -0
        bits = 0;
    }
    unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN
        ordered = 0;
    }
    return static_cast<Key>(ordered) << 32 | ~id;
}

DEVICE unsigned key_bits(Key key) {
    const unsigned ordered = static_cast<unsigned>(key >> 32);
    return ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
}

DEVICE unsigned key_id(Key key) { return ~static_cast<unsigned>(key); }

DEVICE Key larger(Key a, Key b) { return a > b ? a : b; }

DEVICE Key load_key(const Key* global) {
    const unsigned* words = reinterpret_cast<const unsigned*>(global);
    return static_cast<Key>(load_relaxed(words + 1)) << 32 | load_relaxed(words);
}

// The part of a row that is one block's, in vectors of the whole array.
struct Chunk {
    const float* logits;
    long long row_begin, row_end;  // elements
    long long begin, end;          // vectors
};

DEVICE Chunk own_chunk(const float* logits, int vocabulary) {
    Chunk chunk;
    chunk.logits = logits;
    chunk.row_begin = static_cast<long long>(blockIdx.y) * vocabulary;
    chunk.row_end = chunk.row_begin + vocabulary;
    const long long first = chunk.row_begin / VECTOR;
    const long long last = (chunk.row_end + VECTOR - 1) / VECTOR;
    const long long size = (last - first + gridDim.x - 1) / gridDim.x;
    chunk.begin = first + blockIdx.x * size;
    chunk.end = chunk.begin + size < last ? chunk.begin + size : last;
    return chunk;
}

// Keys of one vector; 0, which is below every key, for what is not the chunk's.
DEVICE void load_keys(const Chunk& chunk, long long vector, Key (&keys)[VECTOR]) {
    const long long element = VECTOR * vector;
    const unsigned id = static_cast<unsigned>(element - chunk.row_begin);
    if (vector < chunk.end && element >= chunk.row_begin && element + VECTOR <= chunk.row_end) {
        const uint4 bits = load_streaming_16(chunk.logits + element);
        keys[0] = make_key(bits.x, id);
        keys[1] = make_key(bits.y, id + 1);
        keys[2] = make_key(bits.z, id + 2);
        keys[3] = make_key(bits.w, id + 3);
        return;
    }
    const unsigned* words = reinterpret_cast<const unsigned*>(chunk.logits);
    for (int i = 0; i < VECTOR; ++i) {
        const bool own = vector < chunk.end && element + i >= chunk.row_begin && element + i < chunk.row_end;
        keys[i] = own ? make_key(words[element + i], id + i) : 0;
    }
}

// Whether this block is the last of its row, after its partial is written; the counter is ready for the next launch.
DEVICE bool arrive_last(unsigned* arrivals, unsigned* flag) {
    fence();
    sync_block();
    if (threadIdx.x == 0) {
        *flag = atomic_add(arrivals + blockIdx.y, 1) == gridDim.x - 1;
        if (*flag) {
            arrivals[blockIdx.y] = 0;
        }
        fence();
    }
    sync_block();
    return *flag != 0;
}

// Every thread gets the largest of all threads' keys.
DEVICE Key largest_of_block(Key key, Key* warp_keys) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const unsigned high = shuffle_xor(static_cast<unsigned>(key >> 32), mask);
        const unsigned low = shuffle_xor(static_cast<unsigned>(key), mask);
        key = larger(key, static_cast<Key>(high) << 32 | low);
    }
    sync_block();
    if (threadIdx.x % 32 == 0) {
        warp_keys[threadIdx.x / 32] = key;
    }
    sync_block();
    for (int warp = 0; warp < WARPS; ++warp) {
        key = larger(key, warp_keys[warp]);
    }
    return key;
}

KERNEL KERNEL_BOUNDS(THREADS, 2048 / THREADS) void greedy(const float* logits, int vocabulary, Key* partials,
                                                          unsigned* arrivals, int* tokens) {
    Key* warp_keys = reinterpret_cast<Key*>(shared_memory());
    unsigned* flag = reinterpret_cast<unsigned*>(warp_keys + WARPS);
    const Chunk chunk = own_chunk(logits, vocabulary);
    Key best = 0;
    for (long long vector = chunk.begin + threadIdx.x; vector < chunk.end; vector += THREADS) {
        Key keys[VECTOR];
        load_keys(chunk, vector, keys);
        best = larger(larger(best, larger(keys[0], keys[1])), larger(keys[2], keys[3]));
    }
    best = largest_of_block(best, warp_keys);
    Key* row_partials = partials + static_cast<long long>(blockIdx.y) * gridDim.x;
    if (threadIdx.x == 0) {
        row_partials[blockIdx.x] = best;
    }
    if (!arrive_last(arrivals, flag)) {
        return;
    }
    best = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) {
        best = larger(best, load_key(row_partials + i));
    }
    best = largest_of_block(best, warp_keys);
    if (threadIdx.x == 0) {
        tokens[blockIdx.y] = static_cast<int>(key_id(best));
    }
}

// One step of a bitonic network on a run of 64 keys, by one warp: lane l compares the l-th pair at `stride`.
DEVICE void exchange(Key* run, int stride, int size, bool descending) {
    const int lane = threadIdx.x % 32;
    const int low = 2 * lane - (lane & (stride - 1));
    const Key a = run[low];
    const Key b = run[low + stride];
    if ((a < b) == (descending == ((low & size) == 0))) {
        run[low] = b;
        run[low + stride] = a;
    }
    sync_warp();
}

// The largest 64 of keys[0, count), descending, to its beginning. All threads call it; it begins and ends in step.
DEVICE void keep_largest(Key* keys, int count) {
    int runs = 1;
    while (runs * KEPT < count) {
        runs *= 2;
    }
    for (int i = count + threadIdx.x; i < runs * KEPT; i += THREADS) {
        keys[i] = 0;
    }
    sync_block();
    const int warp = threadIdx.x / 32;
    for (int run = warp; run < runs; run += WARPS) {
        for (int size = 2; size <= KEPT; size *= 2) {
            for (int stride = size / 2; stride > 0; stride /= 2) {
                // At size 64 `low & size` is 0 throughout: the run goes one way.
                exchange(keys + run * KEPT, stride, size, run % 2 == 0);
            }
        }
    }
    sync_block();
    for (int distance = 1; distance < runs; distance *= 2) {
        for (int pair = warp; 2 * distance * pair < runs; pair += WARPS) {
            Key* run = keys + 2 * distance * pair * KEPT;
            for (int i = threadIdx.x % 32; i < KEPT; i += 32) {
                run[i] = larger(run[i], run[i + distance * KEPT]);
            }
            sync_warp();
            for (int stride = KEPT / 2; stride > 0; stride /= 2) {
                exchange(run, stride, KEPT, pair % 2 == 0);
            }
        }
        sync_block();
    }
}

// The keys seen so far that may be among the 64 largest; each thread holds the same count and threshold.
struct Candidates {
    Key* keys;           // [CAPACITY]
    unsigned* counts;    // [WARPS]
    int count;
    Key threshold;
};

// Adds what exceeds the threshold of a tile. All threads call it.
DEVICE void add(Candidates& candidates, const Key (&keys)[VECTOR]) {
    unsigned own = 0;
    for (int i = 0; i < VECTOR; ++i) {
        own += keys[i] > candidates.threshold;
    }
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    unsigned sum = own;  // of this lane and those below it
    for (int distance = 1; distance < 32; distance *= 2) {
        const unsigned below = shuffle(sum, lane >= distance ? lane - distance : lane);
        sum += lane >= distance ? below : 0;
    }
    if (lane == 31) {
        candidates.counts[warp] = sum;
    }
    sync_block();
    unsigned position = candidates.count + sum - own;
    unsigned total = 0;
    for (int i = 0; i < WARPS; ++i) {
        position += i < warp ? candidates.counts[i] : 0;
        total += candidates.counts[i];
    }
    for (int i = 0; i < VECTOR; ++i) {
        if (keys[i] > candidates.threshold) {
            candidates.keys[position++] = keys[i];
        }
    }
    candidates.count += total;
    sync_block();
    if (candidates.count > CAPACITY - TILE) {
        keep_largest(candidates.keys, candidates.count);
        candidates.count = KEPT;
        candidates.threshold = candidates.keys[KEPT - 1];
        sync_block();
    }
}

KERNEL KERNEL_BOUNDS(THREADS, 6) void top_k(const float* logits, int vocabulary, int k, Key* partials,
                                                         unsigned* arrivals, unsigned* values, int* ids) {
    Key* keys = reinterpret_cast<Key*>(shared_memory());
    unsigned* counts = reinterpret_cast<unsigned*>(keys + CAPACITY);
    unsigned* flag = counts + WARPS;
    const Chunk chunk = own_chunk(logits, vocabulary);
    Candidates candidates = {keys, counts, 0, 0};
    for (long long tile = chunk.begin; tile < chunk.end; tile += THREADS) {
        Key own[VECTOR];
        load_keys(chunk, tile + threadIdx.x, own);
        add(candidates, own);
    }
    keep_largest(keys, candidates.count);
    Key* row_partials = partials + static_cast<long long>(blockIdx.y) * gridDim.x * KEPT;
    if (threadIdx.x < KEPT) {
        row_partials[blockIdx.x * KEPT + threadIdx.x] = keys[threadIdx.x];
    }
    if (!arrive_last(arrivals, flag)) {
        return;
    }
    candidates.count = 0;
    candidates.threshold = 0;
    const int size = gridDim.x * KEPT;
    for (int tile = 0; tile < size; tile += TILE) {
        Key own[VECTOR];
        for (int i = 0; i < VECTOR; ++i) {
            const int index = tile + i * THREADS + threadIdx.x;
            own[i] = index < size ? load_key(row_partials + index) : 0;
        }
        add(candidates, own);
    }
    keep_largest(keys, candidates.count);
    if (threadIdx.x < k) {
        values[blockIdx.y * k + threadIdx.x] = key_bits(keys[threadIdx.x]);
        ids[blockIdx.y * k + threadIdx.x] = static_cast<int>(key_id(keys[threadIdx.x]));
    }
}

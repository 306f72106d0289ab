// What a warp does together: shuffles, votes, matrix loads and products.
#include "runtime.h"

namespace emulated {

namespace {

inline float widen_bits(unsigned bits) {
    const unsigned exponent = bits >> 10 & 31u, mantissa = bits & 1023u, sign = (bits & 0x8000u) << 16;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    // A float32 denormal would be flushed on the way; the difference of two normal ones is exact.
    const float size = __uint_as_float(0x38800000u | mantissa << 13) - __uint_as_float(0x38800000u);
    return __uint_as_float(__float_as_uint(size) | sign);
}

inline float element(bf16, unsigned bits) { return __uint_as_float(bits << 16); }
inline float element(fp16, unsigned bits) { return widen_bits(bits); }

typedef float Row8 __attribute__((vector_size(32)));

template <class T>
void multiply_warp(void** lanes) {
    float a[16][16];
    Row8 b[16], d[16];
    for (unsigned l = 0; l < kWarp; ++l) {
        const auto& lane = *static_cast<const Product*>(lanes[l]);
        const unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
            a[row][column] = element(T{}, lane.a[i] & 0xffffu);
            a[row][column + 1] = element(T{}, lane.a[i] >> 16);
        }
        for (unsigned i = 0; i < 2; ++i) {
            b[2 * t + 8 * i][g] = element(T{}, lane.b[i] & 0xffffu);
            b[2 * t + 8 * i + 1][g] = element(T{}, lane.b[i] >> 16);
        }
    }
    // Products are summed before the accumulator joins them, as the hardware does.
    for (unsigned row = 0; row < 16; ++row) {
        d[row] = Row8{};
        for (unsigned k = 0; k < 16; ++k) d[row] += a[row][k] * b[k];
    }
    for (unsigned l = 0; l < kWarp; ++l) {
        float* mine = static_cast<Product*>(lanes[l])->d;
        const unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < 4; ++i) mine[i] += d[g + i / 2 * 8][2 * t + i % 2];
    }
}

void shuffle_warp(void** lanes) {
    for (unsigned l = 0; l < kWarp; ++l) {
        auto& lane = *static_cast<Exchange*>(lanes[l]);
        lane.result = static_cast<const Exchange*>(lanes[lane.source])->value;
    }
}

void vote_warp(void** lanes) {
    unsigned any = 0;
    for (unsigned l = 0; l < kWarp; ++l) any |= static_cast<const Exchange*>(lanes[l])->value;
    for (unsigned l = 0; l < kWarp; ++l) static_cast<Exchange*>(lanes[l])->result = any;
}

unsigned load_element(const char* row, unsigned column) {
    unsigned short bits;
    __builtin_memcpy(&bits, row + 2 * column, sizeof bits);
    return bits;
}

template <int Matrices, bool Transposed>
void load_warp(void** lanes) {
    const Thread& self = *launch.current;
    const Region& shared = self.block->shared;
    for (unsigned l = 0; l < 8 * Matrices; ++l) {
        const char* row = static_cast<const MatrixRow*>(lanes[l])->row;
        const auto offset = static_cast<long long>(row - shared.start);
        if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
            fail("%s at line %d: the row of lane %u, shared memory + %lld, is not 16-byte aligned", self.waits_in, self.line,
                 l, offset);
        }
        if (!shared.contains(row, 16)) {
            fail("%s at line %d: the row of lane %u is at shared memory + %lld of %zu bytes", self.waits_in, self.line, l,
                 offset, shared.bytes);
        }
        read_16(*launch.current, row, self.waits_in, self.line, true);
    }
    for (unsigned l = 0; l < kWarp; ++l) {
        unsigned* registers = static_cast<const MatrixRow*>(lanes[l])->registers;
        const unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < Matrices; ++i) {
            const auto row = [&](unsigned r) { return static_cast<const MatrixRow*>(lanes[8 * i + r])->row; };
            registers[i] = Transposed ? load_element(row(2 * t), g) | load_element(row(2 * t + 1), g) << 16
                                      : load_element(row(g), 2 * t) | load_element(row(g), 2 * t + 1) << 16;
        }
    }
}

void count_barrier(void**) { ++launch.current->warp->barriers; }

}  // namespace

float widen(fp16 value) { return widen_bits(value.bits); }

fp16 narrow_fp16(float value) {
    const unsigned bits = __float_as_uint(value), size = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    const auto half = [&](unsigned magnitude) { return fp16{static_cast<unsigned short>(sign | magnitude)}; };
    if (size > 0x7f800000u) return {0x7fff};
    if (size >= 0x477ff000u) return half(0x7c00);  // 65520, halfway past the largest, rounds up
    if (size >= 0x38800000u) return half((size + 0xfffu + (size >> 13 & 1u) - (112u << 23)) >> 13);
    const unsigned exponent = size >> 23;
    if (exponent < 102) return half(0);  // below half of the smallest denormal
    const unsigned mantissa = (size & 0x7fffffu) | 0x800000u, shift = 126 - exponent;
    const unsigned kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    return half(kept + (rest > middle || (rest == middle && (kept & 1u) != 0)));
}

void meet_warp(int line) { meet("sync_warp", line, count_barrier, nullptr); }

void shuffle(const char* name, Exchange& lane, int line) { meet(name, line, shuffle_warp, &lane); }

void vote(Exchange& lane, int line) { meet("vote_any", line, vote_warp, &lane); }

void multiply(Product& lane, bf16, int line) { meet("mma_16x8x16", line, multiply_warp<bf16>, &lane); }

void multiply(Product& lane, fp16, int line) { meet("mma_16x8x16", line, multiply_warp<fp16>, &lane); }

void load_matrix(const char* name, MatrixRow& lane, int matrices, bool transposed, int line) {
    const auto complete = matrices == 4 ? (transposed ? load_warp<4, true> : load_warp<4, false>)
                                        : (transposed ? load_warp<2, true> : load_warp<2, false>);
    meet(name, line, complete, &lane);
}

}  // namespace emulated

// Every PTX instruction of the kernels behind a named function, and the two storage types.
//
// This is the device's version. The tests hold a second version with the same names that runs on a CPU, so a kernel
// includes nothing but this header and its own .cuh files and never asks which of the two it got. It needs no other
// header: NVRTC knows neither cuda_bf16.h nor stdint.h. Minimum architecture: sm_80.
//
// Lane l of a warp has g = l / 4 and t = l % 4. Fragments of mma_16x8x16 (d[16,8] += a[16,16] b[16,8]):
//   a[0], a[1]: rows g, g+8 at columns 2t, 2t+1     a[2], a[3]: the same rows at columns 2t+8, 2t+9
//   b[0], b[1]: column g at rows 2t, 2t+1 and 2t+8, 2t+9
//   d[0], d[1]: row g at columns 2t, 2t+1           d[2], d[3]: row g+8 at the same columns
// load_matrix_x4: lane l names row l % 8 of matrix l / 8 (8x8, 16 bytes a row, 16-byte aligned, in shared memory);
// r[i] is then row g, columns 2t, 2t+1 of matrix i; transposed: rows 2t, 2t+1 at column g. _x2 reads the addresses of
// lanes 0-15 alone. So x4 over the quadrants (rows 0-7, rows 8-15, then the same at columns 8-15) gives an A operand.
#pragma once

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define KERNEL_BOUNDS(threads, blocks_per_multiprocessor) __launch_bounds__(threads, blocks_per_multiprocessor)

// Storage only: arithmetic is in float.
struct bf16 {
    unsigned short bits;
};
struct fp16 {
    unsigned short bits;
};

DEVICE float to_float(bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

DEVICE float to_float(fp16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

// Rounds to nearest even; beyond the largest finite value is infinity.
template <class T>
DEVICE T from_float(float value);

template <>
DEVICE bf16 from_float<bf16>(float value) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

template <>
DEVICE fp16 from_float<fp16>(float value) {
    fp16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

// Two rounded values in one register, `low` in the lower half: the order of memory.
template <class T>
DEVICE unsigned pack2(float low, float high);

template <>
DEVICE unsigned pack2<bf16>(float low, float high) {
    unsigned result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

template <>
DEVICE unsigned pack2<fp16>(float low, float high) {
    unsigned result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

template <class T>
DEVICE float low_float(unsigned pair) {
    return to_float(T{static_cast<unsigned short>(pair & 0xffffu)});
}

template <class T>
DEVICE float high_float(unsigned pair) {
    return to_float(T{static_cast<unsigned short>(pair >> 16)});
}

// The block's dynamic shared memory; there is no static one.
DEVICE char* shared_memory() {
    extern __shared__ __align__(16) char block_shared_memory[];
    return block_shared_memory;
}

DEVICE void sync_block() { __syncthreads(); }

DEVICE void sync_warp() { __syncwarp(); }

// Shuffles and votes are of the full warp: every lane must arrive. V is float, int or unsigned.
template <class V>
DEVICE V shuffle_xor(V value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class V>
DEVICE V shuffle(V value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

DEVICE bool vote_any(bool value) { return __any_sync(0xffffffffu, value) != 0; }

DEVICE unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

// 16 bytes from global to shared memory past the registers and L1; where not `valid` 16 zero bytes and no read.
DEVICE void copy_async_16(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// Closes this thread's group of copies; a group may be empty.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `Groups` newest of this thread's groups are in flight. Other threads see the bytes only after
// a barrier that follows.
template <int Groups>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

DEVICE void load_matrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

DEVICE void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

DEVICE void load_matrix_x2(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
}

DEVICE void load_matrix_x2_transposed(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
}

// d += a b, accumulated in float32.
template <class T>
DEVICE void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
DEVICE void mma_16x8x16<bf16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
DEVICE void mma_16x8x16<fp16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// For data that no block writes in this launch and that is read once: it leaves L1 to others.
DEVICE uint4 load_streaming_16(const void* global) {
    uint4 result;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(result.x), "=r"(result.y), "=r"(result.z), "=r"(result.w)
        : "l"(__cvta_generic_to_global(global)));
    return result;
}

DEVICE uint4 load_16(const void* pointer) { return *static_cast<const uint4*>(pointer); }

DEVICE void store_16(void* pointer, uint4 value) { *static_cast<uint4*>(pointer) = value; }

// For what other blocks wrote in this launch, after their fence() and this block's look at their counter.
DEVICE float load_relaxed(const float* global) {
    float result;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];"
                 : "=f"(result)
                 : "l"(__cvta_generic_to_global(global))
                 : "memory");
    return result;
}

DEVICE int load_relaxed(const int* global) {
    int result;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];"
                 : "=r"(result)
                 : "l"(__cvta_generic_to_global(global))
                 : "memory");
    return result;
}

DEVICE unsigned load_relaxed(const unsigned* global) {
    unsigned result;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
                 : "=r"(result)
                 : "l"(__cvta_generic_to_global(global))
                 : "memory");
    return result;
}

// Four floats of a 16-byte aligned address; each float is whole, the four need not be of one moment.
DEVICE float4 load_relaxed_16(const float* global) {
    float4 result;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(result.x), "=f"(result.y), "=f"(result.z), "=f"(result.w)
                 : "l"(__cvta_generic_to_global(global))
                 : "memory");
    return result;
}

// Relaxed, on global memory; returns the value before.
DEVICE unsigned atomic_add(unsigned* global, unsigned value) { return atomicAdd(global, value); }

DEVICE void fence() { __threadfence(); }

// Two units in the last place; denormals become zero; above 128 infinity.
DEVICE float exp2_approximate(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

DEVICE float rsqrt_approximate(float value) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// Two units in the last place; zero where 2^126 < |denominator| < 2^128.
DEVICE float fast_divide(float numerator, float denominator) { return __fdividef(numerator, denominator); }

DEVICE bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

// The names of engine/backends/cuda/csrc/intrinsics.cuh on a CPU: every CUDA thread is a fiber, every warp collective a
// meeting of 32 of them. A kernel's text is the same for both. It includes no header: compile time counts.
//
// `line` parameters say where the kernel's text calls; a meeting of different lines is an error.
#pragma once

#define __device__
#define __host__
#define __global__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define DEVICE inline
#define KERNEL extern "C" inline
#define KERNEL_BOUNDS(threads, blocks_per_multiprocessor)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };

namespace emulated {

struct Index { unsigned x, y, z; };

struct Exchange {  // what a lane brings to a shuffle or vote, and takes from it
    unsigned value;
    unsigned source;
    unsigned result;
};
struct Product {
    float* d;
    const unsigned* a;
    const unsigned* b;
};
struct MatrixRow {
    const char* row;
    unsigned* registers;
};

void meet_block(int line);
void meet_warp(int line);
void shuffle(const char* name, Exchange& lane, int line);
void vote(Exchange& lane, int line);
void multiply(Product& lane, bf16, int line);
void multiply(Product& lane, fp16, int line);
void load_matrix(const char* name, MatrixRow& lane, int matrices, bool transposed, int line);
void copy_async(void* shared, const void* global, bool valid, int line);
void commit_copies();
void wait_for_copies(unsigned groups_in_flight, int line);
void order_memory();  // a call after which another thread may go on
void check_aligned(const void* pointer, unsigned bytes, const char* name, int line);
void before_load_16(const void* pointer, const char* name, int line);
void before_store_16(const void* pointer, const char* name, int line);
unsigned lane_index();

extern char* shared_memory;

template <class To, class From>
inline To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "a register");
    To result;
    __builtin_memcpy(&result, &value, sizeof(result));
    return result;
}

float widen(fp16 value);
fp16 narrow_fp16(float value);

}  // namespace emulated

extern emulated::Index threadIdx, blockIdx, blockDim, gridDim;

extern "C" {
float expf(float) noexcept;
float exp2f(float) noexcept;
float logf(float) noexcept;
float log2f(float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
float tanhf(float) noexcept;
}
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fabsf(float a) { return __builtin_fabsf(a); }
inline float sqrtf(float a) { return __builtin_sqrtf(a); }
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float floorf(float a) { return __builtin_floorf(a); }
inline float ceilf(float a) { return __builtin_ceilf(a); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline unsigned __float_as_uint(float value) { return emulated::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return emulated::bit_cast<int>(value); }
inline float __uint_as_float(unsigned value) { return emulated::bit_cast<float>(value); }
inline float __int_as_float(int value) { return emulated::bit_cast<float>(value); }

inline float to_float(bf16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
inline float to_float(fp16 value) { return emulated::widen(value); }

template <class T>
T from_float(float value);

template <>
inline bf16 from_float<bf16>(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // the NaN that the hardware gives
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline fp16 from_float<fp16>(float value) { return emulated::narrow_fp16(value); }

template <class T>
inline unsigned pack2(float low, float high) {
    return from_float<T>(low).bits | static_cast<unsigned>(from_float<T>(high).bits) << 16;
}

template <class T>
inline float low_float(unsigned pair) { return to_float(T{static_cast<unsigned short>(pair & 0xffffu)}); }

template <class T>
inline float high_float(unsigned pair) { return to_float(T{static_cast<unsigned short>(pair >> 16)}); }

inline char* shared_memory() { return emulated::shared_memory; }

inline void sync_block(int line = __builtin_LINE()) { emulated::meet_block(line); }

inline void sync_warp(int line = __builtin_LINE()) { emulated::meet_warp(line); }

template <class V>
inline V shuffle_xor(V value, int mask, int line = __builtin_LINE()) {
    const unsigned own = emulated::lane_index(), source = own ^ static_cast<unsigned>(mask);
    emulated::Exchange lane{emulated::bit_cast<unsigned>(value), source < 32 ? source : own, 0};
    emulated::shuffle("shuffle_xor", lane, line);
    return emulated::bit_cast<V>(lane.result);
}

template <class V>
inline V shuffle(V value, int source, int line = __builtin_LINE()) {
    emulated::Exchange lane{emulated::bit_cast<unsigned>(value), static_cast<unsigned>(source) & 31u, 0};
    emulated::shuffle("shuffle", lane, line);
    return emulated::bit_cast<V>(lane.result);
}

inline bool vote_any(bool value, int line = __builtin_LINE()) {
    emulated::Exchange lane{value, 0, 0};
    emulated::vote(lane, line);
    return lane.result != 0;
}

inline void copy_async_16(void* shared, const void* global, bool valid = true, int line = __builtin_LINE()) {
    emulated::copy_async(shared, global, valid, line);
}

inline void copy_async_commit() { emulated::commit_copies(); }

template <int Groups>
inline void copy_async_wait(int line = __builtin_LINE()) {
    static_assert(Groups >= 0, "groups in flight");
    emulated::wait_for_copies(Groups, line);
}

inline void load_matrix_x4(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    emulated::MatrixRow lane{static_cast<const char*>(row), r};
    emulated::load_matrix("load_matrix_x4", lane, 4, false, line);
}

inline void load_matrix_x4_transposed(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    emulated::MatrixRow lane{static_cast<const char*>(row), r};
    emulated::load_matrix("load_matrix_x4_transposed", lane, 4, true, line);
}

inline void load_matrix_x2(unsigned (&r)[2], const void* row, int line = __builtin_LINE()) {
    emulated::MatrixRow lane{static_cast<const char*>(row), r};
    emulated::load_matrix("load_matrix_x2", lane, 2, false, line);
}

inline void load_matrix_x2_transposed(unsigned (&r)[2], const void* row, int line = __builtin_LINE()) {
    emulated::MatrixRow lane{static_cast<const char*>(row), r};
    emulated::load_matrix("load_matrix_x2_transposed", lane, 2, true, line);
}

template <class T>
inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    emulated::Product lane{d, a, b};
    emulated::multiply(lane, T{}, line);
}

inline uint4 load_streaming_16(const void* global, int line = __builtin_LINE()) {
    emulated::before_load_16(global, "load_streaming_16", line);
    return *static_cast<const uint4*>(global);
}

inline uint4 load_16(const void* pointer, int line = __builtin_LINE()) {
    emulated::before_load_16(pointer, "load_16", line);
    return *static_cast<const uint4*>(pointer);
}

inline void store_16(void* pointer, uint4 value, int line = __builtin_LINE()) {
    emulated::before_store_16(pointer, "store_16", line);
    *static_cast<uint4*>(pointer) = value;
}

template <class V>
inline V load_relaxed(const V* global, int line = __builtin_LINE()) {
    static_assert(sizeof(V) == 4, "a register");
    emulated::check_aligned(global, 4, "load_relaxed", line);
    emulated::order_memory();
    return *static_cast<const volatile V*>(global);
}

inline float4 load_relaxed_16(const float* global, int line = __builtin_LINE()) {
    emulated::check_aligned(global, 16, "load_relaxed_16", line);
    emulated::order_memory();
    return *reinterpret_cast<const float4*>(global);
}

inline unsigned atomic_add(unsigned* global, unsigned value, int line = __builtin_LINE()) {
    emulated::check_aligned(global, 4, "atomic_add", line);
    emulated::order_memory();
    const unsigned before = *global;
    *global = before + value;
    emulated::order_memory();
    return before;
}

inline void fence() { emulated::order_memory(); }

// Launches flush denormals to zero, inputs and results, as -ftz=true does on the device.
inline float exp2_approximate(float value) { return value < -126.0f ? 0.0f : exp2f(value); }

inline float rsqrt_approximate(float value) { return 1.0f / sqrtf(value); }

inline float fast_divide(float numerator, float denominator) {
    const float size = fabsf(denominator);
    if (size > 0x1p126f && size <= 0x1.fffffep127f) denominator = __uint_as_float(0x7f800000u);  // as __fdividef does
    return numerator / denominator;
}

inline bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

inline float infinity() { return __uint_as_float(0x7f800000u); }

namespace emulated {

// Two characters a parameter for the caller to check: pointer or scalar, then the type.
template <class T> struct Letter { static constexpr char value = '?'; };
template <class T> struct Letter<const T> : Letter<T> {};
template <> struct Letter<float> { static constexpr char value = 'f'; };
template <> struct Letter<int> { static constexpr char value = 'i'; };
template <> struct Letter<unsigned> { static constexpr char value = 'u'; };
template <> struct Letter<long long> { static constexpr char value = 'l'; };
template <> struct Letter<unsigned short> { static constexpr char value = 'h'; };
template <> struct Letter<bf16> { static constexpr char value = 'h'; };
template <> struct Letter<fp16> { static constexpr char value = 'h'; };
template <class T> struct Kind { static constexpr char value = 's'; static constexpr char type = Letter<T>::value; };
template <class T> struct Kind<T*> { static constexpr char value = 'p'; static constexpr char type = Letter<T>::value; };

template <class... A>
struct Parameters {
    char letters[2 * sizeof...(A) + 1] = {};
};

template <class... A>
constexpr Parameters<A...> parameters_of(void (*)(A...)) {
    Parameters<A...> result;
    int i = 0;
    ((result.letters[i] = Kind<A>::value, result.letters[i + 1] = Kind<A>::type, i += 2), ...);
    return result;
}

constexpr int first_of(int threads, int) { return threads; }
constexpr int first_of(int threads) { return threads; }

template <class... A>
inline void invoke(void (*kernel)(A...), void** arguments) {
    // The initialisers of a braced list run from left to right; those of a call in any order.
    struct Call {
        Call(void (*kernel)(A...), A... values) { kernel(values...); }
    };
    Call{kernel, *static_cast<A*>(*arguments++)...};
}

}  // namespace emulated

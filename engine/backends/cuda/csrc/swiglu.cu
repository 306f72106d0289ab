// SwiGLU of a gate/up projection that cuBLAS computed: out = gate / (1 + exp(-gate)) * up, in float, rounded once.
//
// gate_up: DTYPE [M, 2 intermediate], interleaved by 8 (gate 0-7, up 0-7, gate 8-15, ...), as the fused kernels read
// the weights' rows; out: DTYPE [M, intermediate]. A row is a multiple of 8 wide, so rows need no telling apart:
// `vectors` is M intermediate / 8.
//
// Grid (ceil(vectors / THREADS)), a thread a vector of 8 outputs: 32 consecutive bytes in, 16 out. The halves of such a
// sector are two loads, so the first leaves it in L1 for the second. No shared memory.
// Bytes: 6 intermediate M (M = 64, intermediate 14336: 5.5 MB), to run at the bandwidth of L2, where cuBLAS left them.
#include "packed.cuh"

constexpr float LOG2_E = 1.44269504f;

KERNEL KERNEL_BOUNDS(THREADS, 1) void swiglu(const DTYPE* gate_up, DTYPE* out, int vectors) {
    const long long vector = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (vector >= vectors) {
        return;
    }
    float gate[8], up[8];
    unpack_eight<DTYPE>(gate, load_16(gate_up + 16 * vector));
    unpack_eight<DTYPE>(up, load_16(gate_up + 16 * vector + 8));
    for (int i = 0; i < 8; ++i) {
        gate[i] = fast_divide(gate[i], 1.0f + exp2_approximate(-LOG2_E * gate[i])) * up[i];
    }
    store_16(out + 8 * vector, pack_eight<DTYPE>(gate));
}

"""What the device can do at most: bytes a second of a stream that only reads, and of a copy; its matrix rate.

These, measured in the same run, are what decoding is compared with: not the data sheet.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.backends.cuda.kernels import Array, Device, Kernel
from tests.bench.decoding.timing import Timer, in_turns

STREAM_BYTES = 4 << 30
"""Of the stream that is timed: far more than any L2."""
MATRIX_SIZE = 8192
_THREADS = (256, 512, 1024)
_BLOCKS_PER_MULTIPROCESSOR = (2, 4, 8)
_UNROLL = 8  # 16-byte loads in flight a thread
_BYTES_PER_LOAD = 16

# A thread's sum leaves the chip, or the compiler would leave out the loads.
_TEXT = """#include "intrinsics.cuh"
KERNEL KERNEL_BOUNDS(THREADS, 1) void read_stream(const unsigned short* in, unsigned* sums, long long loads) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS, thread = blockIdx.x * THREADS + threadIdx.x;
    unsigned sum = 0;
    long long i = thread;
    for (; i + (UNROLL - 1) * step < loads; i += UNROLL * step) {
        uint4 values[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) values[u] = load_streaming_16(in + 8 * (i + u * step));
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) sum ^= values[u].x ^ values[u].y ^ values[u].z ^ values[u].w;
    }
    for (; i < loads; i += step) {
        const uint4 value = load_streaming_16(in + 8 * i);
        sum ^= value.x ^ value.y ^ value.z ^ value.w;
    }
    sums[thread] = sum;
}
KERNEL KERNEL_BOUNDS(THREADS, 1) void copy_stream(const unsigned short* in, unsigned short* out, long long loads) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS, thread = blockIdx.x * THREADS + threadIdx.x;
    long long i = thread;
    for (; i + (UNROLL - 1) * step < loads; i += UNROLL * step) {
        uint4 values[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) values[u] = load_streaming_16(in + 8 * (i + u * step));
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) store_16(out + 8 * (i + u * step), values[u]);
    }
    for (; i < loads; i += step) store_16(out + 8 * i, load_streaming_16(in + 8 * i));
}
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """How many threads a stream is given."""

    threads: int
    blocks_per_multiprocessor: int

    def read(self, device: Device, source: Array) -> Array:
        """Queues a read of `source`, uint16 and a multiple of 16 bytes, and returns where each thread's xor goes."""
        sums = device.zeros(self._blocks(device) * self.threads, np.uint32)
        self.read_into(device, source, sums)
        return sums

    def read_into(self, device: Device, source: Array, sums: Array) -> None:
        self._launch(device, "read_stream", source, sums)

    def copy(self, device: Device, source: Array, target: Array) -> None:
        """Queues target = source."""
        self._launch(device, "copy_stream", source, target)

    def _launch(self, device: Device, entry: str, source: Array, target: Array) -> None:
        defines = (("THREADS", self.threads), ("UNROLL", _UNROLL))
        kernel = Kernel("stream.cu", entry, defines, self.threads, text=_TEXT)
        loads = np.int64(source.nbytes // _BYTES_PER_LOAD)
        device.launch(kernel, (self._blocks(device), 1, 1), (source, target, loads))

    def _blocks(self, device: Device) -> int:
        return device.multiprocessors * self.blocks_per_multiprocessor


def measure(device: Device, timer: Timer, stream_bytes: int = STREAM_BYTES, size: int = MATRIX_SIZE) -> dict[str, Any]:
    """The best of several launch shapes; a copy's bytes count twice, read and written. Operands are random bits."""
    bits = np.random.default_rng(0).integers(0, 0x4000, (1 << 20) // 2, np.uint16)  # a MiB, finite in both types
    source, target = device.empty(stream_bytes // 2, np.uint16), device.empty(stream_bytes // 2, np.uint16)
    pattern = device.asarray(bits)
    for first in range(0, stream_bytes // 2, len(bits)):
        piece = source[first : first + len(bits)]
        piece[...] = pattern[: piece.shape[0]]
    streams = [Stream(threads, blocks) for threads in _THREADS for blocks in _BLOCKS_PER_MULTIPROCESSOR]
    reads, copies = {}, {}
    for stream in streams:
        sums = stream.read(device, source)
        name = f"{stream.blocks_per_multiprocessor} blocks of {stream.threads} threads a multiprocessor"
        reads[name] = partial(stream.read_into, device, source, sums)
        copies[name] = partial(stream.copy, device, source, target)
    read_taken, copy_taken = (in_turns(contenders, timer, rounds=5) for contenders in (reads, copies))
    best_read, best_copy = min(read_taken, key=read_taken.__getitem__), min(copy_taken, key=copy_taken.__getitem__)
    return {
        "read_gigabytes_per_second": round(stream_bytes / read_taken[best_read].median / 1e9, 1),
        "read_by": best_read,
        "copy_gigabytes_per_second": round(2 * stream_bytes / copy_taken[best_copy].median / 1e9, 1),
        "copy_by": best_copy,
        "stream_bytes": stream_bytes,
        "matrix_teraflops": _matrix_teraflops(device, timer, size),
        "matrix_size": size,
    }


def _matrix_teraflops(device: Device, timer: Timer, size: int) -> float:
    bits = np.random.default_rng(1).integers(0, 1 << 16, (size, size), np.uint16)
    values = bits & 0x807F | 0x3F00  # bf16 of either sign from 0.5 to below 1
    left, right = device.asarray(values), device.asarray(values[::-1].copy())
    out = device.empty((size, size), np.uint16)
    taken = in_turns({"product": lambda: device.matmul("bf16", left, right, out)}, timer, rounds=5)
    return round(2 * size**3 / taken["product"].median / 1e12, 1)

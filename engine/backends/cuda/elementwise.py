"""The kernels that stand beside cuBLAS: embedding, RMSNorm, RoPE with the append to the cache, and SwiGLU.

T is the 16-bit type of weights and activations, `dtype` its name in the sources: bf16 or fp16. Widths are multiples
of 8, the values of a 16-byte access.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.backends.cuda.kernels import DTYPES, HEAD_DIMS, Array, Device, Kernel

_VECTOR = 8
_THREADS = 256
_SUM_BYTES = _THREADS // 32 * 4  # a float a warp


def embed(
    device: Device,
    dtype: str,
    tokens: Array,  # int32 [rows]
    lengths: Array,  # int32 [rows], 0: a padded row, whose hidden values become 0
    table: Array,  # T [vocabulary, hidden]
    hidden: Array,  # T [rows, hidden], written
    square_partials: Array,  # float32 [1, rows], written
) -> None:
    """hidden = table[tokens], with each row's sum of squares."""
    rows, width = _rows_of_vectors("hidden", hidden)
    arguments = (tokens, lengths, table, hidden, square_partials, np.int32(width))
    device.launch(_kernel("embedding.cu", "embed", dtype, _SUM_BYTES), (rows, 1, 1), arguments)


def rms_norm(
    device: Device,
    dtype: str,
    hidden: Array,  # T [rows, hidden]
    weight: Array,  # T [hidden]
    out: Array,  # T [rows, hidden], written
    epsilon: float,
) -> None:
    """out = hidden / sqrt(mean(hidden^2) + epsilon) * weight, in float32, rounded once."""
    rows, width = _rows_of_vectors("hidden", hidden)
    arguments = (hidden, weight, out, np.int32(width), np.float32(epsilon))
    device.launch(_kernel("norm.cu", "rms_norm", dtype, _SUM_BYTES), (rows, 1, 1), arguments)


def square_partials(
    device: Device,
    dtype: str,
    hidden: Array,  # T [rows, hidden]
    partials: Array,  # float32 [1, rows], written
) -> None:
    """Each row's sum of squares, for a consumer with a fused RMSNorm after a producer that leaves none."""
    rows, width = _rows_of_vectors("hidden", hidden)
    kernel = _kernel("norm.cu", "square_partials", dtype, _SUM_BYTES)
    device.launch(kernel, (rows, 1, 1), (hidden, partials, np.int32(width)))


@dataclass(frozen=True, slots=True)
class Attachments:
    """What a model adds to its QKV projection, each of type T; None where it does not.

    Attributes:
        bias: [(heads + 2 kv_heads) * head_dim].
        q_norm, k_norm: RMSNorm weights [head_dim], both or neither.
    """

    bias: Array | None = None
    q_norm: Array | None = None
    k_norm: Array | None = None

    def __post_init__(self) -> None:
        if (self.q_norm is None) != (self.k_norm is None):
            raise ValueError("q_norm and k_norm: one is None, the other is not")


def rotate_and_append(
    device: Device,
    dtype: str,
    qkv: Array,  # T [rows, (heads + 2 kv_heads) * head_dim]
    attachments: Attachments,
    cosine: Array,  # float32 [positions, head_dim / 2]
    sine: Array,  # float32 [positions, head_dim / 2]
    lengths: Array,  # int32 [rows], the newest token included; 0: a padded row, q becomes 0, nothing is appended
    block_tables: Array,  # int32 [rows, max_blocks]
    q: Array,  # T [rows, heads, head_dim], written
    cache: Array,  # T [blocks, 2, kv_heads, 16, head_dim], written at position length - 1
    epsilon: float,
) -> None:
    """Bias, q/k norm and RoPE (half-split) on a plain QKV projection; q to its buffer, k and v to the paged cache.

    Raises ValueError where head_dim is neither 64 nor 128, or qkv's width does not fit q and the cache.
    """
    rows, heads, head_dim = q.shape
    kv_heads = cache.shape[2]
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim: {head_dim}, must be one of {', '.join(map(str, HEAD_DIMS))}")
    width = (heads + 2 * kv_heads) * head_dim
    if qkv.shape[1] != width:
        raise ValueError(f"qkv: rows of {qkv.shape[1]}, {heads} + 2 * {kv_heads} heads of {head_dim} make {width}")
    kernel = _kernel("rope.cu", "rotate_and_append", dtype, 0, head_dim)
    optional = (attachments.bias, attachments.q_norm, attachments.k_norm)
    device.launch(
        kernel,
        (_ceil_divide(width // _VECTOR, _THREADS), rows, 1),
        (
            qkv,
            *(qkv if array is None else array for array in optional),
            cosine,
            sine,
            lengths,
            block_tables,
            q,
            cache,
            np.int32(heads),
            np.int32(kv_heads),
            np.int32(block_tables.shape[1]),
            np.float32(epsilon),
            np.int32(attachments.bias is not None),
            np.int32(attachments.q_norm is not None),
        ),
    )


def swiglu(
    device: Device,
    dtype: str,
    gate_up: Array,  # T [rows, 2 * intermediate], interleaved by 8: gate 0-7, up 0-7, gate 8-15, ...
    out: Array,  # T [rows, intermediate], written
) -> None:
    """out = silu(gate) * up, in float32, rounded once."""
    rows, width = _rows_of_vectors("out", out)
    vectors = rows * width // _VECTOR
    kernel = _kernel("swiglu.cu", "swiglu", dtype)
    device.launch(kernel, (_ceil_divide(vectors, _THREADS), 1, 1), (gate_up, out, np.int32(vectors)))


def instantiations() -> Iterable[Kernel]:
    """Every kernel that this module can launch."""
    for dtype in DTYPES:
        yield _kernel("embedding.cu", "embed", dtype, _SUM_BYTES)
        yield _kernel("norm.cu", "rms_norm", dtype, _SUM_BYTES)
        yield _kernel("norm.cu", "square_partials", dtype, _SUM_BYTES)
        yield _kernel("swiglu.cu", "swiglu", dtype)
        for head_dim in HEAD_DIMS:
            yield _kernel("rope.cu", "rotate_and_append", dtype, 0, head_dim)


def _kernel(source: str, entry: str, dtype: str, shared_bytes: int = 0, head_dim: int | None = None) -> Kernel:
    defines: tuple[tuple[str, str | int], ...] = (("DTYPE", dtype), ("THREADS", _THREADS))
    if head_dim is not None:
        defines = (*defines, ("HEAD_DIM", head_dim))
    return Kernel(source, entry, defines, _THREADS, shared_bytes)


def _rows_of_vectors(name: str, array: Array) -> tuple[int, int]:
    rows, width = array.shape
    if width % _VECTOR:
        raise ValueError(f"{name}: rows of {width} values, must be a multiple of {_VECTOR}")
    return rows, width


def _ceil_divide(value: int, divisor: int) -> int:
    return -(-value // divisor)

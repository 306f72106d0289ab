"""Decode attention over the paged KV cache: its kernels, how the context is split, and the launch.

What the kernels do, and when a row is computed again, stands at the head of csrc/attention.cu.
"""

import math
from collections.abc import Iterable

import numpy as np

from engine.backends.cuda.kernels import DTYPES, HEAD_DIMS, Array, Device, FloatType, Kernel

MAX_GROUP = 16  # query heads of one KV head: the rows of a tensor core tile
BLOCK_TOKENS = 16
_WARPS = 4
_STAGES = 3
_LOG2_E = math.log2(math.e)


class Attention:
    """Launches decode attention for one model on one device; everything that a launch needs is allocated here.

    Args:
        dtype: of queries, cache and output.
        heads, kv_heads, head_dim: of the model; heads / kv_heads is a whole number up to 16.
        max_sequences: the largest batch.
        max_context_tokens: the longest context. It bounds the splits; a launch does not depend on the lengths
            themselves, so it can stand in a CUDA graph.

    Raises:
        ValueError: a shape that the kernels do not serve.
    """

    def __init__(
        self,
        device: Device,
        dtype: FloatType,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        max_sequences: int,
        max_context_tokens: int,
    ) -> None:
        check_shape(dtype, heads, kv_heads, head_dim)
        if max_sequences < 1 or max_context_tokens < 1:
            raise ValueError(
                f"max_sequences and max_context_tokens must be at least 1, got {max_sequences} and {max_context_tokens}"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.max_sequences, self.max_context_tokens = max_sequences, max_context_tokens
        self._device = device
        self._unified = unified_kernel(dtype, head_dim)
        self._synchronised = synchronised_kernel(dtype, head_dim)
        row_floats = head_dim + 8
        parts = max(sequences * self.splits(sequences) for sequences in range(1, max_sequences + 1))
        self._workspace = device.empty(parts * heads * row_floats, np.float32)
        self._counters = device.zeros(max_sequences * kv_heads, np.uint32)
        self._recomputed = device.zeros(1, np.uint32)

    def splits(self, sequences: int) -> int:
        """Into how many blocks' work a context is divided at most, for a batch of this size."""
        return plan_splits(
            self._device.multiprocessors, sequences * self.kv_heads, math.ceil(self.max_context_tokens / BLOCK_TOKENS)
        )

    def launch(
        self,
        out: Array,
        query: Array,
        cache: Array,
        block_tables: Array,
        lengths: Array,
        phi: Array | None,
        sequences: int,
    ) -> None:
        """softmax(query K^T / sqrt(head_dim)) V of the batch's first `sequences` sequences.

        Args:
            out: [at least sequences, heads * head_dim], 16-bit floats; zeros where the length is 0.
            query: [at least sequences, heads, head_dim], rotated, not scaled.
            cache: [blocks, 2, kv_heads, 16, head_dim], keys then values.
            block_tables: int32 [at least sequences, max_blocks], physical blocks in the order of the context.
            lengths: int32 [at least sequences], tokens to attend to, at most max_context_tokens; 0 is padding.
            phi: float32 [heads], the unified maximum in units of the scaled logits; None for the synchronised softmax.

        Raises:
            ValueError: an array of another shape or type.
        """
        self._check(out, query, cache, block_tables, lengths, phi, sequences)
        scalars = (
            np.int32(self.heads // self.kv_heads),
            np.int32(block_tables.shape[1]),
            np.float32(_LOG2_E / math.sqrt(self.head_dim)),
        )
        arrays = (out, query, cache, block_tables, lengths)
        grid = (self.splits(sequences), self.kv_heads, sequences)
        if phi is None:
            self._device.launch(self._synchronised, grid, (*arrays, self._workspace, self._counters, *scalars))
        else:
            self._device.launch(
                self._unified, grid, (*arrays, phi, self._workspace, self._counters, self._recomputed, *scalars)
            )

    def recomputed_rows(self) -> int:
        """Rows (a query head of a sequence) that left the range of the unified maximum since the start, modulo 2^32."""
        return int(self._device.to_host(self._recomputed)[0])

    def _check(
        self,
        out: Array,
        query: Array,
        cache: Array,
        block_tables: Array,
        lengths: Array,
        phi: Array | None,
        sequences: int,
    ) -> None:
        if not 1 <= sequences <= self.max_sequences:
            raise ValueError(f"sequences must be between 1 and {self.max_sequences}, got {sequences}")
        width, pair = self.heads * self.head_dim, (self.kv_heads, BLOCK_TOKENS, self.head_dim)
        rows = min(out.shape[0], query.shape[0], block_tables.shape[0], lengths.shape[0])
        faults = {
            "rows": rows < sequences,
            "out": out.shape[1:] != (width,) or out.dtype != np.uint16,
            "query": query.shape[1:] != (self.heads, self.head_dim) or query.dtype != np.uint16,
            "cache": cache.shape[1:] != (2, *pair) or cache.dtype != np.uint16,
            "block_tables": len(block_tables.shape) != 2 or block_tables.dtype != np.int32,
            "lengths": len(lengths.shape) != 1 or lengths.dtype != np.int32,
            "phi": phi is not None and (phi.shape != (self.heads,) or phi.dtype != np.float32),
        }
        if any(faults.values()):
            names = ", ".join(name for name, wrong in faults.items() if wrong)
            raise ValueError(f"attention of {sequences} sequences: wrong shape or type of {names}")


def plan_splits(multiprocessors: int, items: int, longest_blocks: int) -> int:
    """Splits of each of `items` (sequences x KV heads) contexts of at most `longest_blocks` cache blocks.

    As many as two blocks of threads a multiprocessor take, which is never less than one, and at most as many as give
    every warp a cache block of the longest context.
    """
    return max(1, min(2 * multiprocessors // items, math.ceil(longest_blocks / _WARPS)))


def check_shape(dtype: str, heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises ValueError, naming the limit, for a model that the kernels do not serve."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim must be one of {', '.join(map(str, HEAD_DIMS))}, got {head_dim}")
    if kv_heads < 1 or heads < 1 or heads % kv_heads or heads // kv_heads > MAX_GROUP:
        raise ValueError(
            f"heads must be 1 to {MAX_GROUP} times kv_heads, a whole number, got {heads} heads and {kv_heads} kv_heads"
        )


def unified_kernel(dtype: FloatType, head_dim: int) -> Kernel:
    return _kernel("attention_unified", dtype, head_dim)


def synchronised_kernel(dtype: FloatType, head_dim: int) -> Kernel:
    return _kernel("attention_synchronised", dtype, head_dim)


def instantiations() -> Iterable[Kernel]:
    """Every kernel that a launch can ask for."""
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            yield unified_kernel(dtype, head_dim)
            yield synchronised_kernel(dtype, head_dim)


def _kernel(entry: str, dtype: FloatType, head_dim: int) -> Kernel:
    tile_bytes = BLOCK_TOKENS * head_dim * 2
    return Kernel(
        source="attention.cu",
        entry=entry,
        defines=(("DTYPE", dtype), ("HEAD_DIM", head_dim)),
        threads=32 * _WARPS,
        shared_bytes=_WARPS * _STAGES * 2 * tile_bytes,
    )

"""Batches for decode attention: a paged cache with traps around every context, and what the softmax is in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.attention import BLOCK_TOKENS, Attention
from engine.backends.cuda.kernels import Device, FloatType
from tests.kernels.emulator import Bits, from_bits, to_bits

NAN_BITS = 0x7FFF  # of both types
NO_BLOCK = -(2**20)  # a physical block far before the cache: whoever reads it faults
TOLERANCES: dict[FloatType, float] = {"bf16": 2e-2, "fp16": 2e-3}  # max|error| / max|reference| a row

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One decode step's attention. Everything that no context covers is NaN, or a block that does not exist."""

    dtype: FloatType
    query: Bits  # [sequences, heads, head_dim]
    cache: Bits  # [blocks, 2, kv_heads, BLOCK_TOKENS, head_dim]
    block_tables: npt.NDArray[np.int32]  # [sequences, max_blocks]
    lengths: npt.NDArray[np.int32]  # [sequences]

    @property
    def heads(self) -> int:
        return int(self.query.shape[1])

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    def occupied(self) -> list[int]:
        """Sequences that are not padding."""
        return [sequence for sequence, length in enumerate(self.lengths) if length > 0]

    def logits(self, sequence: int) -> Float64:
        """Scaled logits [heads, length]."""
        keys = self._context(sequence, 0)
        query = from_bits(self.query[sequence], self.dtype).astype(np.float64)
        logits: Float64 = np.einsum("hd,khd->hk", query, keys) / np.sqrt(query.shape[-1])
        return logits

    def reference(self) -> Float64:
        """softmax(q K^T / sqrt(head_dim)) V [sequences, heads, head_dim]; zeros where the length is 0."""
        out = np.zeros(self.query.shape)
        for sequence in self.occupied():
            logits = self.logits(sequence)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[sequence] = weighted(weights, self.values(sequence))
        return out

    def values(self, sequence: int) -> Float64:
        """[length, heads, head_dim]."""
        return self._context(sequence, 1)

    def _context(self, sequence: int, half: int) -> Float64:
        """Keys (0) or values (1) as every query head sees them: [length, heads, head_dim]."""
        length = self.lengths[sequence]
        blocks = self.block_tables[sequence, : -(-length // BLOCK_TOKENS)]
        parts = from_bits(self.cache[blocks, half], self.dtype).astype(
            np.float64
        )  # [blocks, kv_heads, tokens, head_dim]
        tokens = parts.transpose(0, 2, 1, 3).reshape(-1, *parts.shape[1::2])[:length]
        return np.repeat(tokens, self.heads // tokens.shape[1], axis=1)


def make_batch(
    generator: np.random.Generator,
    dtype: FloatType,
    heads: int,
    kv_heads: int,
    head_dim: int,
    lengths: Sequence[int],
    *,
    spread: float = 1.0,
    shift: npt.ArrayLike = 0.0,
    shared_blocks: int = 0,
    value_scale: float = 1.0,
) -> Batch:
    """A batch over shuffled physical blocks.

    Args:
        spread: standard deviation of the scaled logits.
        shift: what to add to all scaled logits of a row, broadcast to [sequences, heads].
        shared_blocks: how many full blocks at the front every sequence shares with the first, where both have them.
    """
    sequences, blocks_of = len(lengths), [-(-length // BLOCK_TOKENS) for length in lengths]
    free = list(generator.permutation(sum(blocks_of) + 3))
    cache = np.full((len(free), 2, kv_heads, BLOCK_TOKENS, head_dim), NAN_BITS, np.uint16)
    tables = np.full((sequences, max(blocks_of) + 2), NO_BLOCK, np.int32)
    for sequence, length in enumerate(lengths):
        shared = min(shared_blocks, length // BLOCK_TOKENS, lengths[0] // BLOCK_TOKENS) if sequence else 0
        tables[sequence, :shared] = tables[0, :shared]
        for index in range(shared, blocks_of[sequence]):
            tables[sequence, index] = free.pop()
            tokens = min(BLOCK_TOKENS, length - index * BLOCK_TOKENS)
            parts = generator.standard_normal((2, kv_heads, tokens, head_dim))
            parts[0, ..., 0] = 1.0  # the query's first element shifts all logits of its row
            parts[1] *= value_scale
            cache[tables[sequence, index], :, :, :tokens] = to_bits(parts, dtype)
    query = generator.standard_normal((sequences, heads, head_dim)) * spread
    query[..., 0] = np.broadcast_to(np.asarray(shift), (sequences, heads)) * np.sqrt(head_dim)
    return Batch(dtype, to_bits(query, dtype), cache, tables, np.array(lengths, np.int32))


def weighted(weights: Float64, values: Float64) -> Float64:
    """[heads, length] and [length, heads, head_dim] -> sums [heads, head_dim]."""
    sums: Float64 = (weights[:, None, :] @ values.transpose(1, 0, 2))[:, 0]
    return sums


class Run:
    """An `Attention` and a batch's arrays on a device."""

    def __init__(self, device: Device, batch: Batch, attention: Attention | None = None) -> None:
        self.batch = batch
        kv_heads, head_dim = batch.cache.shape[2], batch.cache.shape[4]
        self.attention = attention or Attention(
            device,
            batch.dtype,
            batch.heads,
            kv_heads,
            head_dim,
            max_sequences=batch.sequences,
            max_context_tokens=max(1, int(batch.lengths.max())),
        )
        self._device = device
        self._query, self._cache = device.asarray(batch.query), device.asarray(batch.cache)
        self._block_tables, self._lengths = device.asarray(batch.block_tables), device.asarray(batch.lengths)
        self._out = device.empty((batch.sequences, batch.heads * head_dim), np.uint16)

    def __call__(self, phi: npt.ArrayLike | None) -> Bits:
        """One launch -> [sequences, heads, head_dim]. A number is every head's phi, None the synchronised kernel."""
        self._out[...] = NAN_BITS
        values = None if phi is None else np.broadcast_to(np.asarray(phi, np.float32), (self.batch.heads,)).copy()
        device_phi = None if values is None else self._device.asarray(values)
        self.attention.launch(
            self._out, self._query, self._cache, self._block_tables, self._lengths, device_phi, self.batch.sequences
        )
        return self._device.to_host(self._out).reshape(self.batch.query.shape)


def clearly_outside(batch: Batch, phi: float) -> npt.NDArray[np.bool_]:
    """Rows [sequences, heads] that leave the range of P = exp(x - phi) by more than rounding could decide."""
    return _reach(batch, phi, slack=1.02)


def clearly_inside(batch: Batch, phi: float) -> npt.NDArray[np.bool_]:
    """Rows [sequences, heads] that stay in range by more than rounding could decide; padding is one."""
    return ~_reach(batch, phi, slack=0.98)


def _reach(batch: Batch, phi: float, slack: float) -> npt.NDArray[np.bool_]:
    outside = np.zeros((batch.sequences, batch.heads), np.bool_)
    for sequence in batch.occupied():
        with np.errstate(over="ignore", under="ignore"):
            terms = np.exp(batch.logits(sequence) - phi)
            products = np.abs(weighted(terms, batch.values(sequence))).max(axis=1)
        denominator = terms.sum(axis=1)
        if batch.dtype == "fp16":
            above, below = terms.max(axis=1) / 65520, denominator / (batch.lengths[sequence] * 2.0**-10)
        else:
            above, below = np.maximum(denominator, products) / np.finfo(np.float32).max, denominator / 1e-30
        outside[sequence] = (above > slack) | (below < 1 / slack)
    return outside


def errors(batch: Batch, out: Bits) -> Float64:
    """max|error| / max|reference| of every row [sequences, heads]; NaN where out is, infinity where out should be 0."""
    reference = batch.reference()
    error = np.abs(from_bits(out, batch.dtype) - reference).max(axis=-1)
    size = np.abs(reference).max(axis=-1)
    relative: Float64 = np.divide(error, size, out=np.where(error == 0, 0.0, np.inf), where=size > 0)
    return relative

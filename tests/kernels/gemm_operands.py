"""Operands of a segment with known values, its launch on a device, and what float64 makes of the same operands."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.cuda import gemm
from engine.backends.cuda.gemm import Plan, Workspace
from engine.backends.cuda.kernels import Array, Device
from engine.backends.cuda.tiles import Fusion, Segment
from tests.kernels.emulator import Bits, from_bits, to_bits

Float64 = npt.NDArray[np.float64]

# Of max|error| / max|reference| a token.
TOLERANCE = {"bf16": 2e-2, "fp16": 2e-3}
NORM_EPSILON = 1e-5
SPARE_ROWS = 3  # rows of X and of outputs beyond the batch: X's hold NaN, outputs' must stay as they were
CACHE_BLOCK = 16
LONGEST = 70


def model_segment(fusion: Fusion, rows: int, inner: int, dtype: str, **options: Any) -> Segment:
    """A segment of about `rows` rows: QKV takes whole heads, SWIGLU pairs of eight."""
    if fusion is Fusion.QKV:
        head_dim = options.pop("head_dim", 64)
        kv_heads = max(1, rows // head_dim // 4)
        heads = max(1, rows // head_dim - 2 * kv_heads)
        rows = (heads + 2 * kv_heads) * head_dim
        options |= {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    multiple = {Fusion.PLAIN: 1, Fusion.SWIGLU: 16}.get(fusion, 8)
    return Segment(-(-rows // multiple) * multiple, inner, fusion, dtype, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Operands:
    """What a segment is launched on; all values are exactly what the device gets."""

    segment: Segment
    tokens: int
    weights: Bits  # [rows, inner]
    inputs: Bits  # [tokens + SPARE_ROWS, inner]
    norm_weight: Bits  # [inner]
    square_partials: npt.NDArray[np.float32]  # [square_tiles, tokens]
    hidden: Bits  # [tokens + SPARE_ROWS, rows]
    lengths: npt.NDArray[np.int32]  # [tokens]
    block_tables: npt.NDArray[np.int32]  # [tokens, max_blocks]
    cache: Bits
    cosines: npt.NDArray[np.float32]  # [LONGEST, head_dim / 2]
    sines: npt.NDArray[np.float32]
    bias: Bits
    query_norm: Bits
    key_norm: Bits

    @classmethod
    def draw(cls, segment: Segment, tokens: int, seed: int) -> "Operands":
        random = np.random.default_rng(seed)
        dtype = segment.dtype

        def normal(*shape: int, scale: float = 1.0) -> Bits:
            return to_bits(random.normal(scale=scale, size=shape), dtype)

        weights = normal(segment.rows, segment.inner, scale=segment.inner**-0.5)
        inputs = normal(tokens + SPARE_ROWS, segment.inner, scale=3.0)
        inputs[tokens:] = to_bits(np.nan, dtype)
        squares = np.square(from_bits(inputs[:tokens], dtype))
        parts = np.array_split(squares, int(random.integers(1, 5)), axis=1)
        max_blocks = -(-LONGEST // CACHE_BLOCK)
        blocks = tokens * max_blocks
        head_dim = max(2, segment.head_dim)
        angles = np.arange(LONGEST)[:, None] * 1e4 ** (-np.arange(head_dim // 2) * 2 / head_dim)
        lengths = random.integers(1, LONGEST + 1, tokens)
        lengths[random.random(tokens) < 0.2] = 0
        return cls(
            segment,
            tokens,
            weights,
            inputs,
            norm_weight=to_bits(random.uniform(0.5, 1.5, segment.inner), dtype),
            square_partials=np.stack([part.sum(axis=1) for part in parts]).astype(np.float32),
            hidden=normal(tokens + SPARE_ROWS, segment.rows, scale=2.0),
            lengths=lengths.astype(np.int32),
            block_tables=random.permutation(blocks).reshape(tokens, max_blocks).astype(np.int32),
            cache=normal(blocks, 2, max(1, segment.kv_heads), CACHE_BLOCK, head_dim),
            cosines=np.cos(angles).astype(np.float32),
            sines=np.sin(angles).astype(np.float32),
            bias=normal(segment.rows),
            query_norm=to_bits(random.uniform(0.5, 1.5, head_dim), dtype),
            key_norm=to_bits(random.uniform(0.5, 1.5, head_dim), dtype),
        )

    def floats(self, bits: Bits) -> Float64:
        return from_bits(bits, self.segment.dtype).astype(np.float64)

    @cached_property
    def product(self) -> Float64:
        """Y before its epilogue, from X as the norm rounds it.  # [tokens, rows]"""
        inputs = self.floats(self.inputs[: self.tokens])
        if self.segment.norm:
            mean = self.square_partials.astype(np.float64).sum(axis=0) / self.segment.inner
            normalised = inputs / np.sqrt(mean + NORM_EPSILON)[:, None] * self.floats(self.norm_weight)
            inputs = self.floats(to_bits(normalised, self.segment.dtype))
        return np.asarray(inputs @ self.floats(self.weights).T)

    @cached_property
    def swiglu(self) -> Float64:
        pairs = self.product.reshape(self.tokens, -1, 2, 8)
        gate, up = pairs[:, :, 0], pairs[:, :, 1]
        return np.asarray(gate / (1 + np.exp(-gate)) * up).reshape(self.tokens, -1)

    @cached_property
    def heads(self) -> tuple[Float64, Float64, Float64]:
        """Queries, keys and values of every token, rotated to its position.  # [tokens, heads, head_dim] each"""
        segment = self.segment
        rows = self.product + (self.floats(self.bias) if segment.bias else 0)
        all_heads = rows.reshape(self.tokens, -1, segment.head_dim)
        queries, keys, values = np.split(all_heads, (segment.heads, segment.heads + segment.kv_heads), axis=1)
        if segment.head_norm:
            queries, keys = (
                _head_norm(queries, self.floats(self.query_norm)),
                _head_norm(keys, self.floats(self.key_norm)),
            )
        positions = self.lengths - 1
        cosines, sines = self.cosines[positions][:, None], self.sines[positions][:, None]
        return _rotated(queries, cosines, sines), _rotated(keys, cosines, sines), values


def _head_norm(heads: Float64, weight: Float64) -> Float64:
    return np.asarray(heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + NORM_EPSILON) * weight)


def _rotated(heads: Float64, cosines: npt.NDArray[np.float32], sines: npt.NDArray[np.float32]) -> Float64:
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate((first * cosines - second * sines, second * cosines + first * sines), axis=-1)


class Launch:
    """Operands on a device, launched as often as wanted, each time into outputs that are new."""

    def __init__(self, device: Device, plan: Plan, operands: Operands) -> None:
        self._device, self._plan, self._operands = device, plan, operands
        self.workspace = Workspace.allocate(device, [plan])
        self._weights, self._inputs = device.asarray(operands.weights), device.asarray(operands.inputs)
        self._norm = gemm.Norm(
            device.asarray(operands.norm_weight),
            device.asarray(operands.square_partials),
            operands.square_partials.shape[0],
            NORM_EPSILON,
        )

    def arrivals(self) -> npt.NDArray[Any]:
        """The counters, which a launch must leave at zero."""
        return self._device.to_host(self.workspace.arrivals)

    def run(self) -> dict[str, npt.NDArray[Any]]:
        """What the device holds after a launch, by name."""
        output, arrays = _output(self._device, self._plan, self._operands)
        norm = self._norm if self._operands.segment.norm else None
        gemm.launch(
            self._device,
            self._plan,
            self._weights,
            self._inputs,
            self._operands.tokens,
            self.workspace,
            output,
            norm,
        )
        return {name: self._device.to_host(array) for name, array in arrays.items()}


def _output(device: Device, plan: Plan, operands: Operands) -> tuple[gemm.Output, dict[str, Array]]:
    segment, rows_held = operands.segment, operands.tokens + SPARE_ROWS

    def unset(*shape: int, dtype: npt.DTypeLike = np.uint16) -> Array:
        array = device.empty(shape, dtype)
        array[...] = 77
        return array

    match segment.fusion:
        case Fusion.PLAIN:
            plain = gemm.Plain(unset(rows_held, segment.rows, dtype=np.float32), unset(rows_held, dtype=np.int32))
            return plain, {"logits": plain.logits, "next_tokens": plain.next_tokens}
        case Fusion.STORE:
            store = gemm.Store(unset(rows_held, segment.rows))
            return store, {"out": store.out}
        case Fusion.RESIDUAL:
            partials = unset(plan.row_tiles * operands.tokens + SPARE_ROWS, dtype=np.float32)
            residual = gemm.Residual(device.asarray(operands.hidden), partials)
            return residual, {"hidden": residual.hidden, "square_partials": partials}
        case Fusion.SWIGLU:
            swiglu = gemm.SwiGlu(unset(rows_held, segment.rows // 2))
            return swiglu, {"out": swiglu.out}
        case Fusion.QKV:
            qkv = gemm.Qkv(
                unset(rows_held, segment.heads, segment.head_dim),
                device.asarray(operands.cache),
                device.asarray(operands.block_tables),
                device.asarray(operands.lengths),
                device.asarray(operands.cosines),
                device.asarray(operands.sines),
                device.asarray(operands.bias) if segment.bias else None,
                device.asarray(operands.query_norm) if segment.head_norm else None,
                device.asarray(operands.key_norm) if segment.head_norm else None,
                NORM_EPSILON,
            )
            return qkv, {"queries": qkv.queries, "cache": qkv.cache}


def check(results: dict[str, npt.NDArray[Any]], operands: Operands, plan: Plan) -> None:
    """Every output against the float64 reference; everything beside the outputs as it was."""
    segment, tokens = operands.segment, operands.tokens
    match segment.fusion:
        case Fusion.PLAIN:
            logits = results["logits"]
            assert_close(logits[:tokens], operands.product, segment.dtype)
            np.testing.assert_array_equal(results["next_tokens"][:tokens], logits[:tokens].argmax(axis=1))
            _assert_unset(logits[tokens:], results["next_tokens"][tokens:])
        case Fusion.STORE:
            assert_close(operands.floats(results["out"][:tokens]), operands.product, segment.dtype)
            _assert_unset(results["out"][tokens:])
        case Fusion.RESIDUAL:
            hidden = operands.floats(results["hidden"][:tokens])
            assert_close(hidden, operands.floats(operands.hidden[:tokens]) + operands.product, segment.dtype)
            np.testing.assert_array_equal(results["hidden"][tokens:], operands.hidden[tokens:])
            padding = plan.row_tiles * plan.variant.rows - segment.rows
            squares = np.pad(hidden**2, ((0, 0), (0, padding))).reshape(tokens, plan.row_tiles, -1).sum(axis=2).T
            written = results["square_partials"][: plan.row_tiles * tokens].reshape(plan.row_tiles, tokens)
            np.testing.assert_allclose(written, squares, rtol=1e-5)
            _assert_unset(results["square_partials"][plan.row_tiles * tokens :])
        case Fusion.SWIGLU:
            assert_close(operands.floats(results["out"][:tokens]), operands.swiglu, segment.dtype)
            _assert_unset(results["out"][tokens:])
        case Fusion.QKV:
            _check_qkv(results, operands)


def _check_qkv(results: dict[str, npt.NDArray[Any]], operands: Operands) -> None:
    dtype = operands.segment.dtype
    queries, keys, values = operands.heads
    live = np.flatnonzero(operands.lengths)
    assert_close(operands.floats(results["queries"][live]), queries[live], dtype)
    padded = np.setdiff1d(np.arange(operands.tokens + SPARE_ROWS), live)
    _assert_unset(results["queries"][padded])

    positions = operands.lengths[live] - 1
    blocks, offsets = operands.block_tables[live, positions // CACHE_BLOCK], positions % CACHE_BLOCK
    for half, reference in enumerate((keys, values)):
        assert_close(operands.floats(results["cache"][blocks, half, :, offsets]), reference[live], dtype)
    untouched = np.ones(operands.cache.shape[0:1] + operands.cache.shape[3:4], dtype=bool)
    untouched[blocks, offsets] = False
    kept = np.moveaxis(results["cache"], 3, 1)[untouched], np.moveaxis(operands.cache, 3, 1)[untouched]
    np.testing.assert_array_equal(*kept)


def assert_close(actual: npt.NDArray[Any], reference: Float64, dtype: str) -> None:
    """max|error| <= tolerance * max|reference| for each token."""
    values = tuple(range(1, reference.ndim))
    error = np.abs(actual - reference).max(axis=values, initial=0.0)
    limit = TOLERANCE[dtype] * np.abs(reference).max(axis=values, initial=0.0)
    assert np.all(error <= limit), f"tokens {np.flatnonzero(~(error <= limit))}: {error} > {limit}"


def _assert_unset(*arrays: npt.NDArray[Any]) -> None:
    for array in arrays:
        np.testing.assert_array_equal(array, 77)

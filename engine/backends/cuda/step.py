"""The decode step of a whole model: one token for each sequence, from token ids to logits, in launches alone.

A layer is five launches where our products are picked: norm + QKV + RoPE + append, attention, output + residual,
norm + gate/up + SwiGLU, down + residual. Where cuBLAS is picked, norm, RoPE and SwiGLU are launches of their own. Every
operand lies in a buffer that is allocated once, so that the launches can be captured in a CUDA graph: what changes
from step to step (tokens, lengths, block tables) is read from those buffers.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from common.architecture.shape import ModelShape
from engine.backends.cuda import elementwise, gemm
from engine.backends.cuda.attention import Attention
from engine.backends.cuda.dataflow import DataflowTable
from engine.backends.cuda.gemm import Norm, Output, Plan, Workspace
from engine.backends.cuda.kernels import Array, Device, FloatType
from engine.backends.cuda.selection import KEPT, Selection
from engine.backends.cuda.tiles import Fusion, Gemv, Segment, Variant, variants

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Sequences for which launches are prepared; a batch between two of them is padded."""
CUBLAS = "cublas"
"""Its name among the ways to compute a product."""


@dataclass(frozen=True, slots=True)
class LayerArrays:
    """One decoder layer on the device, in the 16-bit type T; matrices are [out, in]."""

    attention_norm: Array  # [hidden]
    qkv: Array  # [(heads + 2 kv_heads) head_dim, hidden]
    qkv_bias: Array | None  # [(heads + 2 kv_heads) head_dim]
    query_norm: Array | None  # [head_dim]
    key_norm: Array | None  # [head_dim]
    attention_output: Array  # [hidden, heads head_dim]
    feed_forward_norm: Array  # [hidden]
    gate_up: Array  # [2 intermediate, hidden], rows interleaved by 8
    down: Array  # [hidden, intermediate]
    cache: Array  # [blocks, 2, kv_heads, 16, head_dim]
    phi: Array | None  # float32 [heads]; None: the synchronised softmax


@dataclass(frozen=True, slots=True)
class ModelArrays:
    """A model on the device."""

    embedding: Array  # T [vocabulary, hidden]
    layers: tuple[LayerArrays, ...]
    norm: Array  # T [hidden]
    head: Array  # T [vocabulary, hidden]; the embedding where they are tied
    cosines: Array  # float32 [positions, head_dim / 2]
    sines: Array  # float32 [positions, head_dim / 2]


@dataclass(frozen=True, slots=True)
class _Plans:
    """How each product runs at one batch size; None is cuBLAS."""

    qkv: Plan | None
    attention_output: Plan | None
    gate_up: Plan | None
    down: Plan | None
    head: Plan | None


class DecodeStep:
    """Launches decode steps of one model.

    Args:
        epsilon: of every RMSNorm.
        max_sequences: the largest batch.
        max_blocks: cache blocks of the longest sequence.

    Raises:
        ValueError: a shape that the kernels do not serve.
    """

    def __init__(
        self,
        device: Device,
        shape: ModelShape,
        dtype: FloatType,
        model: ModelArrays,
        *,
        epsilon: float,
        max_sequences: int,
        max_blocks: int,
        dataflow: DataflowTable,
    ) -> None:
        self.sizes = _sizes(max_sequences)
        rows = self.sizes[-1]
        self._device, self._shape, self._dtype, self.model = device, shape, dtype, model
        self._epsilon = epsilon
        self._attention = Attention(
            device,
            dtype,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            max_sequences=rows,
            max_context_tokens=16 * max_blocks,
        )
        self.segments = _segments(shape, dtype, model)
        self._ways = {
            name: {size: _ways(segment, size, device) for size in self.sizes} for name, segment in self.segments.items()
        }
        self._plans = {
            size: _Plans(**{name: self._chosen(name, size, dataflow) for name in self.segments}) for size in self.sizes
        }
        plans = [plan for sizes in self._ways.values() for ways in sizes.values() for plan in ways.values()]
        self._workspace = Workspace.allocate(device, plans)
        self._selection = Selection(device, rows)
        self.tokens = device.zeros(rows, np.int32)
        self.lengths = device.zeros(rows, np.int32)
        self.block_tables = device.zeros((rows, max_blocks), np.int32)
        self.logits = device.zeros((rows, shape.vocab_size), np.float32)
        self.next_tokens = device.zeros(rows, np.int32)
        self.most_likely = min(KEPT, shape.vocab_size)
        self.top_logits = device.zeros((rows, self.most_likely), np.float32)
        self.top_tokens = device.zeros((rows, self.most_likely), np.int32)
        qkv_size = shape.query_size + 2 * shape.kv_size
        self._hidden = device.zeros((rows, shape.hidden_size), np.uint16)
        self._normed = device.zeros((rows, shape.hidden_size), np.uint16)
        self._qkv = device.zeros((rows, qkv_size), np.uint16)
        self._queries = device.zeros((rows, shape.heads, shape.head_dim), np.uint16)
        self._attended = device.zeros((rows, shape.query_size), np.uint16)
        self._gate_up = device.zeros((rows, 2 * shape.intermediate_size), np.uint16)
        self._inner = device.zeros((rows, shape.intermediate_size), np.uint16)
        tiles = max(plan.row_tiles for plan in plans)
        self._square_partials = device.zeros(tiles * rows, np.float32)

    def size(self, sequences: int) -> int:
        """The least prepared batch size that holds so many sequences."""
        return next(size for size in self.sizes if size >= sequences)

    def load(
        self,
        token_ids: npt.NDArray[np.int64],  # [sequences]
        lengths: npt.NDArray[np.int64],  # [sequences], the new token included
        block_tables: npt.NDArray[np.int64],  # [sequences, blocks]
    ) -> int:
        """Brings a batch to the device, padded; returns the size to launch."""
        sequences, size = len(token_ids), self.size(len(token_ids))
        padded = np.zeros((2, size), np.int32)
        padded[0, :sequences], padded[1, :sequences] = token_ids, lengths
        tables = np.zeros((size, self.block_tables.shape[1]), np.int32)
        tables[:sequences, : block_tables.shape[1]] = block_tables
        self._device.upload(padded[0], self.tokens[:size])
        self._device.upload(padded[1], self.lengths[:size])
        self._device.upload(tables, self.block_tables[:size])
        return size

    def launch(self, size: int) -> None:
        """The step for the batch that was loaded: `logits` and, greedy, `next_tokens`."""
        plans, model = self._plans[size], self.model
        hidden, lengths = self._hidden[:size], self.lengths[:size]
        elementwise.embed(
            self._device, self._dtype, self.tokens[:size], lengths, model.embedding, hidden, self._square_partials
        )
        square_tiles = 1
        for layer in model.layers:
            self._project(size, plans.qkv, layer, square_tiles)
            self._attention.launch(
                self._attended[:size], self._queries[:size], layer.cache, self.block_tables[:size], lengths,
                layer.phi, size,
            )  # fmt: skip
            square_tiles = self._add(
                size, plans.attention_output, layer.attention_output, self._attended, plans.gate_up is not None
            )
            self._activate(size, plans.gate_up, layer, square_tiles)
            last = layer is model.layers[-1]
            consumer = plans.head if last else plans.qkv
            square_tiles = self._add(size, plans.down, layer.down, self._inner, consumer is not None)
        self._choose(size, plans.head, model.head, square_tiles)

    def launch_top(self, size: int) -> None:
        """`top_logits` and `top_tokens` of the step that was launched: each row's `most_likely`, in order."""
        self._selection.top_k(self.logits[:size], self.top_logits[:size], self.top_tokens[:size])

    def launch_product(self, name: str, way: str, size: int, weights: Array) -> None:
        """One product alone, as `launch` has it, with other weights and by a way of one's choice: to be timed.

        Args:
            name: of `segments`.
            way: of `ways`.
        """
        plan = None if way == CUBLAS else self._ways[name][size][way]
        layer = self.model.layers[0]
        if name == "qkv":
            self._project(size, plan, replace(layer, qkv=weights), square_tiles=1)
        elif name == "gate_up":
            self._activate(size, plan, replace(layer, gate_up=weights), square_tiles=1)
        elif name == "head":
            self._choose(size, plan, weights, square_tiles=1)
        else:
            self._add(size, plan, weights, self._inner if name == "down" else self._attended, squares=True)

    def ways(self, name: str, size: int) -> tuple[str, ...]:
        """How a product can run for so many tokens, our tiles first; `launch_product` takes them."""
        return (*self._ways[name][size], CUBLAS)

    def recomputed_rows(self) -> int:
        """Rows of attention that left the range of the unified maximum, since the start."""
        return self._attention.recomputed_rows()

    def _chosen(self, name: str, size: int, dataflow: DataflowTable) -> Plan | None:
        """What the dataflow names for so many tokens, or the nearest to it that can take them; None is cuBLAS."""
        segment, ways = self.segments[name], self._ways[name][size]
        way = dataflow.choice(segment.rows, segment.inner, segment.fusion).variant(size)
        if way == CUBLAS or not ways:
            return None
        # The shipped defaults name an implementation only, and not every one has a tile for every size.
        kind = way.partition("-")[0]
        likely = [plan for other, plan in ways.items() if other.startswith(kind)] or list(ways.values())
        return ways.get(way, likely[0])

    def _project(self, size: int, plan: Plan | None, layer: LayerArrays, square_tiles: int) -> None:
        """Queries to their buffer, keys and values to the cache."""
        tables, lengths, model = self.block_tables[:size], self.lengths[:size], self.model
        if plan is not None:
            output = gemm.Qkv(
                queries=self._queries, cache=layer.cache, block_tables=tables, lengths=lengths,
                cosines=model.cosines, sines=model.sines, bias=layer.qkv_bias,
                query_norm=layer.query_norm, key_norm=layer.key_norm, head_norm_epsilon=self._epsilon,
            )  # fmt: skip
            self._run(plan, layer.qkv, self._hidden, size, output, self._norm(layer.attention_norm, square_tiles))
            return
        self._multiply_normed(size, layer.attention_norm, layer.qkv, self._qkv)
        elementwise.rotate_and_append(
            self._device, self._dtype, self._qkv[:size],
            elementwise.Attachments(layer.qkv_bias, layer.query_norm, layer.key_norm),
            model.cosines, model.sines, lengths, tables, self._queries[:size], layer.cache, self._epsilon,
        )  # fmt: skip

    def _add(self, size: int, plan: Plan | None, weights: Array, inputs: Array, squares: bool) -> int:
        """Adds a product to the residual stream; tiles of its square partials, where the next launch wants them."""
        if plan is not None:
            self._run(plan, weights, inputs, size, gemm.Residual(self._hidden, self._square_partials), None)
            return plan.row_tiles
        hidden = self._hidden[:size]
        self._device.matmul(self._dtype, inputs[:size], weights, hidden, accumulate=True)
        if squares:
            elementwise.square_partials(self._device, self._dtype, hidden, self._square_partials)
        return 1

    def _activate(self, size: int, plan: Plan | None, layer: LayerArrays, square_tiles: int) -> None:
        if plan is not None:
            norm = self._norm(layer.feed_forward_norm, square_tiles)
            self._run(plan, layer.gate_up, self._hidden, size, gemm.SwiGlu(self._inner), norm)
            return
        self._multiply_normed(size, layer.feed_forward_norm, layer.gate_up, self._gate_up)
        elementwise.swiglu(self._device, self._dtype, self._gate_up[:size], self._inner[:size])

    def _choose(self, size: int, plan: Plan | None, head: Array, square_tiles: int) -> None:
        model = self.model
        if plan is not None:
            output = gemm.Plain(self.logits, self.next_tokens)
            self._run(plan, head, self._hidden, size, output, self._norm(model.norm, square_tiles))
            return
        self._multiply_normed(size, model.norm, head, self.logits)
        self._selection.greedy(self.logits[:size], self.next_tokens[:size])

    def _norm(self, weight: Array, square_tiles: int) -> Norm:
        return Norm(weight, self._square_partials, square_tiles, self._epsilon)

    def _run(self, plan: Plan, weights: Array, inputs: Array, size: int, output: Output, norm: Norm | None) -> None:
        gemm.launch(self._device, plan, weights, inputs, size, self._workspace, output, norm)

    def _multiply_normed(self, size: int, norm: Array, weights: Array, out: Array) -> None:
        normed = self._normed[:size]
        elementwise.rms_norm(self._device, self._dtype, self._hidden[:size], norm, normed, self._epsilon)
        self._device.matmul(self._dtype, normed, weights, out[:size])


def _segments(shape: ModelShape, dtype: FloatType, model: ModelArrays) -> dict[str, Segment]:
    """The four products of a layer and the head, by the names of `_Plans`."""
    layer = model.layers[0]
    return {
        "qkv": Segment(
            shape.query_size + 2 * shape.kv_size, shape.hidden_size, Fusion.QKV, dtype, norm=True,
            heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
            bias=layer.qkv_bias is not None, head_norm=layer.query_norm is not None,
        ),
        "attention_output": Segment(shape.hidden_size, shape.query_size, Fusion.RESIDUAL, dtype),
        "gate_up": Segment(2 * shape.intermediate_size, shape.hidden_size, Fusion.SWIGLU, dtype, norm=True),
        "down": Segment(shape.hidden_size, shape.intermediate_size, Fusion.RESIDUAL, dtype),
        "head": Segment(shape.vocab_size, shape.hidden_size, Fusion.PLAIN, dtype, norm=True),
    }  # fmt: skip


def _sizes(max_sequences: int) -> tuple[int, ...]:
    if not 1 <= max_sequences <= BATCH_SIZES[-1]:
        raise ValueError(f"max_sequences: {max_sequences}, must be 1 to {BATCH_SIZES[-1]}")
    below = tuple(size for size in BATCH_SIZES if size < max_sequences)
    return (*below, BATCH_SIZES[len(below)])


def _ways(segment: Segment, size: int, device: Device) -> dict[str, Plan]:
    """Every tile that comes into question for so many tokens, by the name that the dataflow's table has for it."""
    return {way_name(tile): Plan.of(segment, tile, device.multiprocessors) for tile in variants(segment, size)}


def way_name(tile: Variant) -> str:
    """A tile's name in the dataflow's table; that of cuBLAS is CUBLAS."""
    return f"{'gemv' if isinstance(tile, Gemv) else 'flat'}-{tile.rows}"

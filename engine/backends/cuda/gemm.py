"""The products of decoding, Y[tokens, rows] = X[tokens, inner] W[rows, inner]^T, with what stands before and after.

Two kernels of one shape: `Gemv` on CUDA cores for a few tokens, `FlatGemm` on tensor cores for up to 64 with the tokens
padded to 8. Both fuse RMSNorm where X is read and one of five epilogues (csrc/epilogue.cuh) where Y is written.
FlashDecoding++ (arXiv 2311.01282), sections 4 and 5; split-K is beyond the paper, which leaves small N idle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.cuda.kernels import DTYPES, HEAD_DIMS, Array, Device, Kernel
from engine.backends.cuda.tiles import (
    FLAT_TOKENS,
    GEMV_TOKENS,
    Fusion,
    Segment,
    Variant,
    choose_splits,
    variants,
)

_GREEDY_GROUP = 32  # GROUP in csrc/epilogue.cuh


@dataclass(frozen=True, slots=True)
class Plan:
    """A segment on one tile, split over `splits` blocks a row tile: all that a launch needs but the operands."""

    segment: Segment
    variant: Variant
    splits: int
    kernel: Kernel

    @classmethod
    def of(cls, segment: Segment, variant: Variant, multiprocessors: int, splits: int | None = None) -> "Plan":
        """Chooses the splits where none are given.

        Raises ValueError where the tile cannot take the segment.
        """
        if segment.fusion is Fusion.QKV and variant.rows != segment.head_dim:
            raise ValueError(f"rows={variant.rows}: a tile of QKV is one head, so it must be {segment.head_dim}")
        if splits is None:
            splits = choose_splits(segment, variant, multiprocessors)
        if splits < 1:
            raise ValueError(f"splits={splits}: must be at least 1")
        defines: tuple[tuple[str, str | int], ...] = (
            ("DTYPE", segment.dtype),
            ("FUSION", f"FUSION_{segment.fusion.upper()}"),
            ("NORM", int(segment.norm)),
            ("BIAS", int(segment.bias)),
            ("HEAD_NORM", int(segment.head_norm)),
            ("TOKENS", variant.tokens),
            ("ROWS", variant.rows),
            ("WARP_ROWS", variant.warp_rows),
            ("INNER_WARPS", variant.inner_warps),
            ("BLOCKS", variant.blocks),
            *variant.defines,
        )
        shared_bytes = variant.shared_bytes(segment.inner, splits)
        return cls(
            segment, variant, splits, Kernel(variant.source, variant.entry, defines, variant.threads, shared_bytes)
        )

    @property
    def row_tiles(self) -> int:
        """Blocks in x; also the `tiles` of the square partials that RESIDUAL writes."""
        return ceil(self.segment.rows / self.variant.rows)

    @property
    def partial_floats(self) -> int:
        """float32 of workspace for the splits' partial tiles."""
        return self.splits * self.row_tiles * self.variant.rows * self.variant.tokens if self.splits > 1 else 0

    @property
    def greedy_entries(self) -> int:
        """(value, index) pairs of workspace for the greedy choices of tiles and groups of tiles."""
        if self.segment.fusion is not Fusion.PLAIN:
            return 0
        return (self.row_tiles + ceil(self.row_tiles / _GREEDY_GROUP)) * self.variant.tokens

    @property
    def counters(self) -> int:
        """Arrival counters: of each row tile's splits, of each group's tiles, and of the groups."""
        return self.row_tiles + ceil(self.row_tiles / _GREEDY_GROUP) + 1


@dataclass(frozen=True, slots=True)
class Workspace:
    """What blocks of one launch leave for one another; launches in one stream share it. `arrivals` is zero between."""

    partials: Array  # float32 [most partial_floats]
    arrivals: Array  # uint32 [most counters]
    tile_values: Array  # float32 [most greedy_entries]
    tile_indices: Array  # int32 [most greedy_entries]

    @classmethod
    def allocate(cls, device: Device, plans: Sequence[Plan]) -> "Workspace":
        greedy_entries = max(1, *(plan.greedy_entries for plan in plans))
        return cls(
            partials=device.empty(max(1, *(plan.partial_floats for plan in plans)), np.float32),
            arrivals=device.zeros(max(plan.counters for plan in plans), np.uint32),
            tile_values=device.empty(greedy_entries, np.float32),
            tile_indices=device.empty(greedy_entries, np.int32),
        )


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm before the product, from the square sums that the kernel before left."""

    weight: Array  # T [inner]
    square_partials: Array  # float32 [square_tiles, tokens]
    square_tiles: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Plain:
    logits: Array  # float32 [tokens, rows]
    next_tokens: Array  # int32 [tokens], the greatest logit, the lowest index among equals


@dataclass(frozen=True, slots=True)
class Store:
    out: Array  # T [tokens, rows]


@dataclass(frozen=True, slots=True)
class Residual:
    hidden: Array  # T [tokens, rows], added to in place
    square_partials: Array  # float32 [plan.row_tiles, tokens], of the rounded new values


@dataclass(frozen=True, slots=True)
class SwiGlu:
    out: Array  # T [tokens, rows / 2]; the weights' rows as interleave_gate_up orders them


@dataclass(frozen=True, slots=True)
class Qkv:
    """Rows of W: query heads, key heads, value heads. Sequences of length 0 get nothing written."""

    queries: Array  # T [tokens, heads, head_dim]
    cache: Array  # T [blocks, 2, kv_heads, 16, head_dim]
    block_tables: Array  # int32 [tokens, max_blocks]
    lengths: Array  # int32 [tokens], the newest token included
    cosines: Array  # float32 [positions, head_dim / 2]
    sines: Array  # float32 [positions, head_dim / 2]
    bias: Array | None = None  # T [rows]
    query_norm: Array | None = None  # T [head_dim]
    key_norm: Array | None = None  # T [head_dim]
    head_norm_epsilon: float = 0.0


Output = Plain | Store | Residual | SwiGlu | Qkv

_OUTPUTS: dict[Fusion, type[Output]] = {
    Fusion.PLAIN: Plain,
    Fusion.STORE: Store,
    Fusion.RESIDUAL: Residual,
    Fusion.SWIGLU: SwiGlu,
    Fusion.QKV: Qkv,
}


def launch(
    device: Device,
    plan: Plan,
    weights: Array,
    inputs: Array,
    tokens: int,
    workspace: Workspace,
    output: Output,
    norm: Norm | None = None,
) -> None:
    """Computes the segment for `tokens` rows of `inputs` (T [>= tokens, inner]) with `weights` (T [rows, inner]).

    Raises ValueError where tokens or an operand does not fit the plan; nothing is launched then.
    """
    segment, variant = plan.segment, plan.variant
    if not 1 <= tokens <= variant.tokens:
        raise ValueError(f"tokens={tokens}: this tile takes 1 to {variant.tokens}")
    if weights.shape != (segment.rows, segment.inner):
        raise ValueError(f"weights of shape {weights.shape}: must be {(segment.rows, segment.inner)}")
    if inputs.shape[1:] != (segment.inner,) or inputs.shape[0] < tokens:
        raise ValueError(f"inputs of shape {inputs.shape}: must be at least {(tokens, segment.inner)}")
    if not isinstance(output, _OUTPUTS[segment.fusion]):
        needed_type = _OUTPUTS[segment.fusion].__name__
        raise ValueError(f"output of type {type(output).__name__}: {segment.fusion} needs {needed_type}")
    if (norm is not None) != segment.norm:
        raise ValueError(f"norm {'missing' if segment.norm else 'given'}: the segment has norm={segment.norm}")
    for name, array, needed in (
        ("partials", workspace.partials, plan.partial_floats),
        ("arrivals", workspace.arrivals, plan.counters),
        ("tile_values", workspace.tile_values, plan.greedy_entries),
        ("tile_indices", workspace.tile_indices, plan.greedy_entries),
    ):
        if array.shape[0] < needed:
            raise ValueError(f"workspace.{name} of {array.shape[0]}: this plan needs {needed}")
    arguments: list[Array | np.generic] = [
        weights,
        inputs,
        np.int32(tokens),
        np.int32(segment.rows),
        np.int32(segment.inner),
        workspace.partials,
        workspace.arrivals,
    ]
    if norm is not None:
        arguments += [norm.weight, norm.square_partials, np.int32(norm.square_tiles), np.float32(norm.epsilon)]
    arguments += _output_arguments(segment, workspace, output)
    device.launch(plan.kernel, (plan.row_tiles, plan.splits, 1), arguments)


def interleave_gate_up(gate: npt.NDArray[Any], up: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of the SWIGLU segment's weights: gate 0-7, up 0-7, gate 8-15, ...  # [2 * intermediate, inner]

    Raises ValueError where the shapes differ or the intermediate size is no multiple of 8.
    """
    if gate.shape != up.shape or gate.ndim != 2 or gate.shape[0] % 8:
        raise ValueError(
            f"gate of shape {gate.shape}, up of shape {up.shape}: must be equal, with a multiple of 8 rows"
        )
    inner = gate.shape[1]
    return np.stack((gate.reshape(-1, 8, inner), up.reshape(-1, 8, inner)), axis=1).reshape(-1, inner)


def instantiations() -> Iterator[Kernel]:
    """Every kernel that a decode step can ask for; the sizes of a segment decide none of what is compiled."""
    for dtype in DTYPES:
        segments = [
            Segment(2048, 8192, Fusion.RESIDUAL, dtype),
            Segment(16384, 2048, Fusion.SWIGLU, dtype, norm=True),
            Segment(128256, 2048, Fusion.PLAIN, dtype, norm=True),
        ]
        for head_dim in HEAD_DIMS:
            for bias, head_norm in ((False, False), (True, False), (False, True)):
                segments.append(
                    Segment(
                        48 * head_dim, 2048, Fusion.QKV, dtype, norm=True,
                        heads=32, kv_heads=8, head_dim=head_dim, bias=bias, head_norm=head_norm,
                    )
                )  # fmt: skip
        for segment in segments:
            for tokens in (*GEMV_TOKENS, *FLAT_TOKENS):
                for variant in variants(segment, tokens):
                    if variant.tokens == tokens:  # for one token the flat tile is that of eight
                        yield Plan.of(segment, variant, 132).kernel


def _output_arguments(segment: Segment, workspace: Workspace, output: Output) -> list[Array | np.generic]:
    """In the order of OUTPUT_PARAMETERS in csrc/epilogue.cuh."""
    match output:
        case Plain():
            return [output.logits, workspace.tile_values, workspace.tile_indices, output.next_tokens]
        case Store() | SwiGlu():
            return [output.out]
        case Residual():
            return [output.hidden, output.square_partials]
        case Qkv():
            return _qkv_arguments(segment, output)


def _qkv_arguments(segment: Segment, output: Qkv) -> list[Array | np.generic]:
    arguments: list[Array | np.generic] = [
        output.queries,
        output.cache,
        output.block_tables,
        output.lengths,
        output.cosines,
        output.sines,
        np.int32(segment.heads),
        np.int32(segment.kv_heads),
        np.int32(output.block_tables.shape[1]),
    ]
    if segment.bias:
        if output.bias is None:
            raise ValueError("output.bias missing: the segment has bias=True")
        arguments += [output.bias]
    if segment.head_norm:
        if output.query_norm is None or output.key_norm is None:
            raise ValueError("output.query_norm or key_norm missing: the segment has head_norm=True")
        arguments += [output.query_norm, output.key_norm, np.float32(output.head_norm_epsilon)]
    return arguments

"""What decoding multiplies, and the tiles that each of the two kernels can cut it into."""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import ClassVar

from engine.backends.cuda.kernels import DTYPES, HEAD_DIMS, FloatType

FLAT_TOKENS = (8, 16, 32, 64)
GEMV_TOKENS = (1, 2, 4)

# A multiprocessor's share of memory latency times bandwidth, and the streaming that a block's start and end cost, both
# from published H100 constants (1 us is about 32 KB a multiprocessor): a model that ranks splits, not a measurement.
_FULL_SPEED_BYTES = 48 * 1024
_BLOCK_COST_BYTES = 32 * 1024
_MAX_SPLITS = 16
# X of a split in a GEMV block's shared memory: two blocks and their tiles fit an A100's 163 KB.
_GEMV_INPUT_BYTES = 64 * 1024


class Fusion(StrEnum):
    """The epilogue; its operands are the class of the same name below."""

    PLAIN = "plain"
    STORE = "store"
    RESIDUAL = "residual"
    SWIGLU = "swiglu"
    QKV = "qkv"


@dataclass(frozen=True, slots=True)
class Segment:
    """One product of a model's layer, or its head.

    Attributes:
        rows: N, output features; QKV: (heads + 2 kv_heads) * head_dim; SWIGLU: twice the intermediate size.
        inner: K, input features, a multiple of 8: rows of 16-byte pieces.
        norm: RMSNorm is applied where X is read.
        head_dim, heads, kv_heads, bias, head_norm: of QKV alone; head_norm is the norm of each query and key head.

    Raises ValueError where a size does not fit.
    """

    rows: int
    inner: int
    fusion: Fusion
    dtype: FloatType
    norm: bool = False
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    bias: bool = False
    head_norm: bool = False

    def __post_init__(self) -> None:
        if self.inner < 8 or self.inner % 8:
            raise ValueError(f"inner={self.inner}: the kernels read 16 bytes at a time, so it must be a multiple of 8")
        multiple = {Fusion.PLAIN: 1, Fusion.SWIGLU: 16}.get(self.fusion, 8)
        if self.rows < 1 or self.rows % multiple:
            raise ValueError(f"rows={self.rows}: must be a positive multiple of {multiple} for {self.fusion}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: must be bf16 or fp16")
        if self.fusion is not Fusion.QKV:
            return
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim={self.head_dim}: must be one of {HEAD_DIMS}")
        if self.rows != (self.heads + 2 * self.kv_heads) * self.head_dim or self.heads < 1 or self.kv_heads < 1:
            raise ValueError(
                f"rows={self.rows}: must be (heads + 2 kv_heads) * head_dim = "
                f"({self.heads} + 2 * {self.kv_heads}) * {self.head_dim}"
            )


@dataclass(frozen=True, slots=True)
class Tile:
    """What both kernels have in common (csrc/tile.cuh).

    Attributes:
        tokens: the most it takes.
        rows: of W a block owns; for QKV the head dimension.
        warp_rows: of these, rows that one warp takes.
        inner_warps: warps that share out the inner dimension of the same rows.
        blocks: that fit a multiprocessor.
    """

    tokens: int
    rows: int
    warp_rows: int
    inner_warps: int
    blocks: int

    @property
    def threads(self) -> int:
        return 32 * (self.rows // self.warp_rows) * self.inner_warps

    @property
    def _header_bytes(self) -> int:
        warps = self.threads // 32
        parts = warps if self.tokens < 32 else self.threads // self.tokens
        return ceil(4 * ((2 + parts) * self.tokens + 1) / 16) * 16

    @property
    def _sums_bytes(self) -> int:
        return self.inner_warps * self.tokens * (self.rows + 4) * 4


@dataclass(frozen=True, slots=True)
class Gemv(Tile):
    """csrc/gemv.cu: up to 4 tokens on CUDA cores; each lane loads `unroll` x `warp_rows` x 16 bytes at once."""

    unroll: int

    source: ClassVar[str] = "gemv.cu"
    entry: ClassVar[str] = "gemv"

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        return (("UNROLL", self.unroll),)

    @property
    def bytes_in_flight(self) -> int:
        return self.threads * self.unroll * self.warp_rows * 16

    def shared_bytes(self, inner: int, splits: int) -> int:
        return self._header_bytes + self._sums_bytes + self.tokens * ceil(inner / 8 / splits) * 16

    @property
    def step_columns(self) -> int:
        return 8 * 32 * self.inner_warps * self.unroll

    def least_splits(self, inner: int) -> int:
        """As many as X needs to fit shared memory."""
        return ceil(self.tokens * inner * 2 / _GEMV_INPUT_BYTES)


@dataclass(frozen=True, slots=True)
class FlatGemm(Tile):
    """csrc/flat_gemm.cu: up to 64 tokens on tensor cores; `stages` tiles of `inner_tile` columns in a ring."""

    inner_tile: int
    stages: int

    source: ClassVar[str] = "flat_gemm.cu"
    entry: ClassVar[str] = "flat_gemm"

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        return (("INNER_TILE", self.inner_tile), ("STAGES", self.stages))

    @property
    def bytes_in_flight(self) -> int:
        return (self.stages - 1) * self.rows * self.inner_tile * 2

    def shared_bytes(self, inner: int, splits: int) -> int:
        ring_bytes = self.stages * (self.rows + self.tokens) * self.inner_tile * 2
        return self._header_bytes + max(ring_bytes, self._sums_bytes)

    @property
    def step_columns(self) -> int:
        return self.inner_tile

    def least_splits(self, inner: int) -> int:
        return 1


Variant = FlatGemm | Gemv


def choose_splits(segment: Segment, variant: Variant, multiprocessors: int) -> int:
    """How many blocks share a row tile's inner dimension, so that all multiprocessors stream for about equally long.

    Time is that of the fullest multiprocessor: its bytes at the speed that its resident blocks' loads in flight allow,
    a fixed cost a wave of blocks, and once more where partial sums go through the workspace. Fewer splits win a tie.
    """
    row_tiles = ceil(segment.rows / variant.rows)
    steps = ceil(segment.inner / variant.step_columns)
    least = variant.least_splits(segment.inner)

    def cost(splits: int) -> float:
        blocks = ceil(row_tiles * splits / multiprocessors)
        in_flight = min(blocks, variant.blocks) * variant.bytes_in_flight
        block_bytes = variant.rows * 2 * min(segment.inner, ceil(steps / splits) * variant.step_columns)
        if splits > 1:
            block_bytes += variant.rows * variant.tokens * 4 * 2  # its partial sums, written and read
        streaming = blocks * block_bytes / min(1.0, in_flight / _FULL_SPEED_BYTES)
        return streaming + _BLOCK_COST_BYTES * (ceil(blocks / variant.blocks) + (splits > 1))

    return min(range(least, max(least, min(steps, _MAX_SPLITS)) + 1), key=cost)


def variants(segment: Segment, tokens: int) -> list[Variant]:
    """The tiles worth timing for so many tokens, GEMV before flat GEMM, of each the likeliest first; none beyond 64."""
    found: list[Variant] = []
    gemv_tokens = next((most for most in GEMV_TOKENS if tokens <= most), None)
    flat_tokens = next((most for most in FLAT_TOKENS if tokens <= most), None)
    if gemv_tokens is not None:
        found += _gemv_tiles(segment, gemv_tokens)
    if flat_tokens is not None:
        found += _flat_tiles(segment, flat_tokens)
    return found


def _gemv_tiles(segment: Segment, tokens: int) -> list[Variant]:
    # What a thread holds, UNROLL x WARP_ROWS pieces twice and WARP_ROWS x TOKENS sums, must fit its registers.
    unroll = 1 if tokens == 4 else 2
    if segment.fusion is not Fusion.QKV:
        return [
            Gemv(tokens, rows=16, warp_rows=4, inner_warps=2, blocks=2, unroll=unroll),
            Gemv(tokens, rows=32, warp_rows=4, inner_warps=1, blocks=2, unroll=unroll),
        ]
    if segment.head_dim == 64:
        return [Gemv(tokens, rows=64, warp_rows=4, inner_warps=1, blocks=1, unroll=unroll)]
    # Sixteen warps of eight rows: for four tokens they would spill, and the flat GEMM takes those.
    return [] if tokens == 4 else [Gemv(tokens, rows=128, warp_rows=8, inner_warps=1, blocks=1, unroll=1)]


def _flat_tiles(segment: Segment, tokens: int) -> list[Variant]:
    if segment.fusion is Fusion.QKV:
        return [_flat_tile(tokens, segment.head_dim)]
    return [_flat_tile(tokens, rows) for rows in ((64, 32) if tokens < 64 else (64, 128))]


def _flat_tile(tokens: int, rows: int) -> FlatGemm:
    # Sums of at most 64 registers a thread; 8 to 16 KB of weights a stage, and two or three blocks in the 163 KB of an
    # A100 where they fit.
    if rows == 128:
        warp_rows, inner_warps = (32, 2) if tokens == 64 else (64, 4)
        blocks = 2 if tokens <= 16 else 1
        return FlatGemm(tokens, rows, warp_rows, inner_warps, blocks, inner_tile=64, stages=4)
    if tokens == 64:
        return FlatGemm(tokens, rows, warp_rows=32, inner_warps=2, blocks=2, inner_tile=64, stages=4)
    if (tokens, rows) == (32, 64):
        return FlatGemm(tokens, rows, warp_rows=64, inner_warps=4, blocks=3, inner_tile=64, stages=4)
    blocks = 3 if rows == 32 and tokens < 32 else 2
    return FlatGemm(tokens, rows, warp_rows=rows, inner_warps=4, blocks=blocks, inner_tile=128, stages=4)

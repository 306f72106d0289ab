"""What there is to measure, in pieces of a few minutes, the most valuable first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.bench.shapes import SHAPES


class Kind(StrEnum):
    CEILINGS = "ceilings"
    TUNING = "tuning"  # the heuristic dataflow of a shape's products, which all other pieces of the shape use
    SEGMENTS = "segments"  # GEMV, flat GEMM and cuBLAS for each product over the number of tokens
    STEP = "step"  # the whole step and its parts, beside torch in a CUDA graph
    SOFTMAX = "softmax"  # unified against synchronised, beside SDPA and FlashInfer
    DATAFLOW = "dataflow"  # the heuristic against each static one
    TRANSFORMERS = "transformers"  # generate, eager and compiled


ABOUT_SECONDS = {
    Kind.CEILINGS: 30,
    Kind.TUNING: 200,
    Kind.SEGMENTS: 150,
    Kind.STEP: 60,
    Kind.SOFTMAX: 60,
    Kind.DATAFLOW: 60,
    Kind.TRANSFORMERS: 180,
}
"""A piece is not begun where less time is left: guesses on the safe side, compilation included."""

SEGMENT_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
LONG_CONTEXTS = (8192, 16384, 32768)
ALL_BATCHES, ALL_CONTEXTS = (1, 8, 64, 128), (1024, 4096)
_LONG_CONTEXT_SHAPES = ("llama-3.2-1b", "llama-3.1-8b")


@dataclass(frozen=True, slots=True)
class Piece:
    kind: Kind
    shape: str = ""
    batch: int = 0
    context_tokens: int = 0

    @property
    def name(self) -> str:
        parts = [str(self.kind), self.shape]
        if self.batch:
            parts.append(f"batch {self.batch} context {self.context_tokens}")
        return " ".join(part for part in parts if part)


def plan(
    shapes: Iterable[str], batches: Sequence[int], contexts: Sequence[int], between: Sequence[Piece] = ()
) -> list[Piece]:
    """Every step of each shape and one of each comparison, shape by shape; `between`; then the other comparisons.

    transformers is compared at the shortest context alone: compiling takes it longer than all else together.
    """
    chosen = list(dict.fromkeys(shapes))
    cells = [(batch, context) for context in sorted(set(contexts)) for batch in sorted(set(batches))]
    found = [Piece(Kind.CEILINGS)]
    for shape in chosen:
        found += [Piece(Kind.TUNING, shape), Piece(Kind.STEP, shape, *cells[0])]
        found += [Piece(kind, shape, *cells[0]) for kind in (Kind.TRANSFORMERS, Kind.DATAFLOW, Kind.SOFTMAX)]
        found += [Piece(Kind.STEP, shape, *cell) for cell in cells[1:]]
        found.append(Piece(Kind.SEGMENTS, shape))
    found += between
    for shape in chosen:
        found += [Piece(kind, shape, *cell) for cell in cells[1:] for kind in (Kind.SOFTMAX, Kind.DATAFLOW)]
        found += [Piece(Kind.TRANSFORMERS, shape, *cell) for cell in cells[1:] if cell[1] == cells[0][1]]
    return found


def plan_all() -> list[Piece]:
    """All shapes, batches and contexts that the result table has, and the softmax at long contexts."""
    long = [Piece(Kind.SOFTMAX, shape, 1, context) for shape in _LONG_CONTEXT_SHAPES for context in LONG_CONTEXTS]
    return plan(SHAPES, ALL_BATCHES, ALL_CONTEXTS, long)


def numbers(text: str, name: str, most: int) -> list[int]:
    """A list such as 1,8,64. Raises ValueError that names the option."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be whole numbers with commas between, got {text!r}") from None
    if bad := [value for value in values if not 1 <= value <= most]:
        raise ValueError(f"--{name} must be 1 to {most}, got {bad[0]}")
    return values


def shape_names(text: str) -> Iterator[str]:
    """A list of shapes, or all. Raises ValueError that names the option."""
    for name in SHAPES if text == "all" else text.split(","):
        if name not in SHAPES:
            raise ValueError(f"--shape must be one of {', '.join(SHAPES)}, or all, got {name!r}")
        yield name

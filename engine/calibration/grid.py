"""Which lengths and batches a calibration measures, and which of them the fit never sees."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.scheduling import blocks_needed

HELD_OUT_SHARE = 0.2
_LEAST_CELLS = 6
"""Of one batch size, for any of them to be held out."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """Requests of the same lengths that run together."""

    batch: int
    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.input_tokens} in, {self.output_tokens} out, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine can hold at a time."""

    max_batch: int
    max_context_tokens: int
    blocks: int
    block_size: int

    def lacks(self, cell: Cell) -> str | None:
        """Why a cell cannot run; None where it can."""
        tokens = cell.input_tokens + cell.output_tokens
        if cell.batch > self.max_batch:
            return f"PITH_ENGINE_MAX_BATCH is {self.max_batch}"
        if tokens > self.max_context_tokens:
            return f"{tokens:,} tokens are more than the context, {self.max_context_tokens:,}"
        # With one more than they fill, each is admitted without waiting for another to end.
        blocks = cell.batch * (blocks_needed(tokens, self.block_size) + 1)
        if blocks > self.blocks:
            return f"takes {blocks:,} blocks of the KV cache, which has {self.blocks:,}"
        return None


@dataclass(frozen=True, slots=True)
class Split:
    """Cells that the fit sees, and those on which it is judged."""

    fitted: frozenset[Cell]
    held_out: frozenset[Cell]
    """Between others in both lengths, so that the fit interpolates."""
    corners: frozenset[Cell]
    """Of each batch size the cell of the longest input and output, which the fit extrapolates to."""


def split(cells: Iterable[Cell], seed: int) -> Split:
    """A fifth of each batch size's cells, drawn at random among those within the hull of what stays; the corner apart.

    A batch size of fewer than 6 cells is fitted whole.
    """
    everything = frozenset(cells)
    held_out: set[Cell] = set()
    corners: set[Cell] = set()
    for batch in sorted({cell.batch for cell in everything}):
        mine = sorted(cell for cell in everything if cell.batch == batch)
        if len(mine) < _LEAST_CELLS:
            continue
        corner = max(mine, key=lambda cell: (cell.input_tokens * cell.output_tokens, cell.input_tokens))
        mine.remove(corner)
        corners.add(corner)
        hull = _hull([(cell.input_tokens, cell.output_tokens) for cell in mine])
        inside = [cell for cell in mine if (cell.input_tokens, cell.output_tokens) not in hull]
        count = min(round(HELD_OUT_SHARE * (len(mine) + 1)), len(inside))
        held_out.update(random.Random(f"{seed} {batch}").sample(inside, count))
    return Split(everything - held_out - corners, frozenset(held_out), frozenset(corners))


def _hull(points: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Vertices of the convex hull of sorted points (Andrew's monotone chain)."""

    def chain(ordered: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        kept: list[tuple[int, int]] = []
        for point in ordered:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], point) <= 0:
                kept.pop()
            kept.append(point)
        return kept

    return {*chain(points), *chain(reversed(points))}


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

"""What is held out lies between what is fitted; what cannot run is told why."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration.grid import Cell, Room, split

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=7, unique=True)


def grid(inputs: list[int], outputs: list[int], batches: list[int]) -> list[Cell]:
    return [Cell(*cell) for cell in product(batches, inputs, outputs)]


def inside(cell: Cell, others: frozenset[Cell]) -> bool:
    """Whether a cell is in the triangle of some three others of its batch size."""
    points = [(other.input_tokens, other.output_tokens) for other in others if other.batch == cell.batch]
    x, y = cell.input_tokens, cell.output_tokens

    def turn(a: tuple[int, int], b: tuple[int, int]) -> int:
        return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])

    for a, b, c in product(points, repeat=3):
        turns = {(value > 0) - (value < 0) for value in (turn(a, b), turn(b, c), turn(c, a))}
        if turns <= {0, 1} and turns != {0}:
            return True
        if turns == {0} and min(a, b, c) <= (x, y) <= max(a, b, c):
            return True
    return False


@given(LENGTHS, LENGTHS, st.sampled_from([[1], [1, 16], [2, 8, 32]]), st.integers(0, 99), st.integers(100, 10_000))
@settings(deadline=None, max_examples=40)
def test_every_cell_is_fitted_or_judged_and_none_is_both(
    inputs: list[int], outputs: list[int], batches: list[int], seed: int, context: int
) -> None:
    cells = [cell for cell in grid(inputs, outputs, batches) if cell.input_tokens + cell.output_tokens <= context]
    parts = split(cells, seed)
    assert parts.fitted | parts.held_out | parts.corners == set(cells)
    assert len(parts.fitted) + len(parts.held_out) + len(parts.corners) == len(cells)
    assert all(inside(cell, parts.fitted) for cell in parts.held_out)
    for batch in batches:
        mine = sum(cell.batch == batch for cell in cells)
        assert sum(cell.batch == batch for cell in parts.corners) == (mine >= 6)
        assert sum(cell.batch == batch for cell in parts.held_out) <= round(0.2 * mine)


def test_a_fifth_is_held_out_of_the_whole_grid_and_the_longest_apart() -> None:
    lengths = [64 << power for power in range(7)]
    cells = grid(lengths, lengths, [1, 16, 128])
    parts = split(cells, 1)
    assert parts.corners == {Cell(batch, 4096, 4096) for batch in (1, 16, 128)}
    for batch in (1, 16, 128):
        assert sum(cell.batch == batch for cell in parts.held_out) == 10
    assert split(reversed(cells), 1) == parts != split(cells, 2)


ROOM = Room(max_batch=4, max_context_tokens=256, blocks=40, block_size=16)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (Cell(1, 128, 128), None),
        (Cell(4, 64, 80), None),
        (Cell(5, 1, 1), "PITH_ENGINE_MAX_BATCH is 4"),
        (Cell(1, 128, 129), "257 tokens are more than the context, 256"),
        (Cell(4, 65, 80), "takes 44 blocks of the KV cache, which has 40"),
    ],
)
def test_a_cell_that_has_no_room_is_told_why(cell: Cell, why: str | None) -> None:
    assert ROOM.lacks(cell) == why

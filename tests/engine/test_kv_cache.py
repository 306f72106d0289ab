"""The block allocator under any order of requests and returns."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv_cache import BlockAllocator, OutOfBlocksError

BLOCKS = 12


class Allocations(RuleBasedStateMachine):
    """Tables that sequences hold, against what the allocator says is free."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, BLOCKS + 2))
    def allocate(self, count: int) -> None:
        free = self.allocator.free_blocks
        if count > free:
            with pytest.raises(OutOfBlocksError):
                self.allocator.allocate(count)
            assert self.allocator.free_blocks == free
        else:
            table = self.allocator.allocate(count)
            assert len(table) == count
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.allocator.free(table)
        if table:
            free = self.allocator.free_blocks
            with pytest.raises(ValueError, match="not in use"):
                self.allocator.free(table)
            assert self.allocator.free_blocks == free

    @invariant()
    def every_block_is_free_or_held_once(self) -> None:
        held = [block for table in self.tables for block in table]
        assert len(set(held)) == len(held)
        assert set(held) <= set(range(BLOCKS))
        assert self.allocator.free_blocks == BLOCKS - len(held)


TestAllocations = Allocations.TestCase


def test_a_table_with_a_foreign_block_gives_nothing_back() -> None:
    allocator = BlockAllocator(4)
    table = allocator.allocate(2)
    other = next(block for block in range(4) if block not in table)
    with pytest.raises(ValueError, match="not in use"):
        allocator.free([table[0], other])
    with pytest.raises(ValueError, match="twice"):
        allocator.free([table[0], table[0]])
    assert allocator.free_blocks == 2


def test_a_cache_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        BlockAllocator(0)

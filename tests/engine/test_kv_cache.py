"""The block allocator under any order of sequences that begin, grow, share and end."""

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv_cache import BlockAllocator, OutOfBlocksError, extend_block_keys

BLOCKS, BLOCK_SIZE = 8, 2
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


class Sequences(RuleBasedStateMachine):
    """Sequences that write their tokens where the allocator tells them, and must find them there again."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS)
        self.contents: dict[int, list[int]] = {}
        self.sequences: list[tuple[list[int], list[int]]] = []  # tokens, block table

    @rule(tokens=TOKENS)
    def begin(self, tokens: list[int]) -> None:
        keys = keys_of(tokens)
        prefix = self.allocator.cached_prefix(keys)
        needed = -(-len(tokens) // BLOCK_SIZE)
        free = self.allocator.free_blocks - self.allocator.unused(prefix)
        self.allocator.share(prefix)
        assert self.allocator.free_blocks == free
        missing = needed - len(prefix)
        if missing > free:
            with pytest.raises(OutOfBlocksError):
                self.allocator.allocate(missing)
            self.allocator.free(prefix)
            return
        table = prefix + self.allocator.allocate(missing)
        self.write(tokens, table, keys, len(prefix))
        self.sequences.append((tokens, table))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), more=TOKENS)
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        tokens, table = self.sequences[data.draw(st.integers(0, len(self.sequences) - 1))]
        full = len(tokens) // BLOCK_SIZE
        missing = -(-(len(tokens) + len(more)) // BLOCK_SIZE) - len(table)
        if missing <= self.allocator.free_blocks:
            tokens += more
            table += self.allocator.allocate(missing)
            self.write(tokens, table, keys_of(tokens), full)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        _, table = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        others = {block for _, other in self.sequences for block in other}
        free = self.allocator.free_blocks
        assert self.allocator.own_blocks(table) == len(set(table) - others)
        self.allocator.free(table)
        assert self.allocator.free_blocks == free + len(set(table) - others)
        if not others & set(table):
            with pytest.raises(ValueError, match="not in use"):
                self.allocator.free(table)

    @invariant()
    def every_sequence_finds_its_tokens(self) -> None:
        for tokens, table in self.sequences:
            assert [token for block in table for token in self.contents[block]] == tokens

    @invariant()
    def every_block_is_free_or_used(self) -> None:
        used = {block for _, table in self.sequences for block in table}
        assert used <= set(range(BLOCKS))
        assert self.allocator.free_blocks == BLOCKS - len(used)

    def write(self, tokens: list[int], table: list[int], keys: list[bytes], first: int) -> None:
        for index in range(first, len(table)):
            self.contents[table[index]] = tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            if index < len(keys):
                self.allocator.publish(table[index], keys[index])


def keys_of(tokens: Sequence[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_block_keys(keys, tokens, BLOCK_SIZE)
    return keys


TestSequences = Sequences.TestCase


def filled(allocator: BlockAllocator, tokens: Sequence[int]) -> list[int]:
    """A sequence that has come and gone; the blocks that it had."""
    keys = keys_of(tokens)
    table = allocator.allocate(len(keys))
    for block, key in zip(table, keys, strict=True):
        allocator.publish(block, key)
    allocator.free(table)
    return table


def test_keys_depend_on_all_that_came_before() -> None:
    first, second = keys_of([1, 2, 3, 4]), keys_of([5, 6, 3, 4])
    assert first[1] != second[1]
    assert keys_of([1, 2, 3, 4, 5]) == first
    # Grown token by token or at once: the same names.
    grown: list[bytes] = []
    for end in range(5):
        extend_block_keys(grown, [1, 2, 3, 4][:end], BLOCK_SIZE)
    assert grown == first


def test_the_prefix_used_longest_ago_goes_first_and_from_its_end() -> None:
    allocator = BlockAllocator(5)
    old = filled(allocator, [1, 1, 2, 2])
    new = filled(allocator, [3, 3, 4, 4])
    allocator.allocate(1)  # the empty one
    assert allocator.cached_prefix(keys_of([1, 1, 2, 2])) == old
    allocator.allocate(1)
    assert allocator.cached_prefix(keys_of([1, 1, 2, 2])) == old[:1]
    # Used again, it is no longer the oldest.
    allocator.share(old[:1])
    allocator.free(old[:1])
    allocator.allocate(1)
    assert allocator.cached_prefix(keys_of([1, 1, 2, 2])) == old[:1]
    assert allocator.cached_prefix(keys_of([3, 3, 4, 4])) == new[:1]


def test_a_block_that_may_still_be_written_is_not_shared() -> None:
    allocator = BlockAllocator(2)
    table = allocator.allocate(1)
    with pytest.raises(ValueError, match="not full"):
        allocator.share(table)


def test_a_free_block_cannot_be_published() -> None:
    with pytest.raises(ValueError, match="not in use"):
        BlockAllocator(2).publish(0, b"name")


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

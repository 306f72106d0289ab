"""Paged KV cache: which blocks belong to which sequence. The tensors themselves live in the backend."""

from collections.abc import Sequence

BLOCK_SIZE_TOKENS = 16


class OutOfBlocksError(Exception):
    """More blocks were asked for than are free; nothing was taken."""


class BlockAllocator:
    """A free list of block ids `0 … blocks-1`. Not thread-safe: the decode loop alone owns it."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"blocks: {blocks} is not at least 1")
        self.blocks = blocks
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free = list(range(blocks - 1, -1, -1))
        self._used = bytearray(blocks)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` block ids, in the order of the positions that they will hold.

        Raises OutOfBlocksError, with nothing taken, where fewer are free.
        """
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks asked for, {len(self._free)} of {self.blocks} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._used[block] = 1
        return taken

    def free(self, block_table: Sequence[int]) -> None:
        """Gives blocks back. Raises ValueError, with nothing given back, if one of them is not in use."""
        if len(set(block_table)) != len(block_table):
            raise ValueError("a block table names a block twice")
        for block in block_table:
            if not self._used[block]:
                raise ValueError(f"block {block} is not in use")
        for block in reversed(block_table):
            self._used[block] = 0
            self._free.append(block)

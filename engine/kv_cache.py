"""Paged KV cache: which blocks belong to which sequence. The tensors themselves live in the backend.

A full block is named by the hash of its tokens and of all before them, so that sequences that begin alike share
blocks. A shared block is full, and so never written again. Blocks that no sequence uses keep their contents until
their place is needed; then the one used longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

BLOCK_SIZE_TOKENS = 16


class OutOfBlocksError(Exception):
    """More blocks were asked for than are free; nothing was taken."""


def extend_block_keys(keys: list[bytes], token_ids: Sequence[int], block_size: int) -> None:
    """Appends to `keys`, the names of the first blocks of `token_ids`, those of the full blocks that follow.

    The hash is cryptographic: a collision, which a prompt could be made to cause, would show one tenant's context
    to another.
    """
    for end in range((len(keys) + 1) * block_size, len(token_ids) + 1, block_size):
        name = blake2b(keys[-1] if keys else b"", digest_size=16)
        name.update(np.array(token_ids[end - block_size : end], np.int64).tobytes())
        keys.append(name.digest())


class BlockAllocator:
    """The block ids `0 … blocks-1`, who uses them and what they hold. Not thread-safe: the decode loop alone owns it.

    A block is in one of three states: empty; used by one or more sequences; kept, which nobody uses but whose
    contents can be shared again. Empty and kept blocks are free.
    """

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"blocks: {blocks} is not at least 1")
        self.blocks = blocks
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._empty = list(range(blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # the one used longest ago first
        self._users = [0] * blocks
        self._keys: list[bytes | None] = [None] * blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._empty) + len(self._kept)

    def cached_prefix(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix of `keys`. Takes nothing."""
        prefix = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            prefix.append(block)
        return prefix

    def unused(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` no sequence uses: those are free until they are shared."""
        return sum(not self._users[block] for block in blocks)

    def own_blocks(self, block_table: Sequence[int]) -> int:
        """How many blocks of a table become free once it is freed."""
        return sum(self._users[block] == 1 for block in block_table)

    def share(self, blocks: Sequence[int]) -> None:
        """Makes a sequence a further user of blocks that `cached_prefix` has found just now."""
        for block in blocks:
            if self._keys[block] is None:
                raise ValueError(f"block {block} is not full: it may still be written")
        for block in blocks:
            self._kept.pop(block, None)
            self._users[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` block ids to write, in the order of the positions that they will hold.

        Raises OutOfBlocksError, with nothing taken, where fewer are free.
        """
        if count > self.free_blocks:
            raise OutOfBlocksError(f"{count} blocks asked for, {self.free_blocks} of {self.blocks} free")
        taken = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for block in taken:
            self._users[block] = 1
        return taken

    def publish(self, block: int, key: bytes) -> None:
        """Lets others share a block, now full, whose contents `key` names; its user writes it no more.

        Where another block holds the same already, that one stays the one to share.
        """
        if not self._users[block]:
            raise ValueError(f"block {block} is not in use")
        if self._keys[block] is None and key not in self._block_of:
            self._keys[block] = key
            self._block_of[key] = block

    def free(self, block_table: Sequence[int]) -> None:
        """Ends a sequence's use of its blocks. Raises ValueError, with nothing changed, if one is not in use."""
        if len(set(block_table)) != len(block_table):
            raise ValueError("a block table names a block twice")
        for block in block_table:
            if not self._users[block]:
                raise ValueError(f"block {block} is not in use")
        # The last block first: it goes before its prefix, without which it could not be found.
        for block in reversed(block_table):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._keys[block] is None:
                self._empty.append(block)
            else:
                self._kept[block] = None

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        key = self._keys[block]
        assert key is not None
        del self._block_of[key]
        self._keys[block] = None
        return block

"""How much of a day's prompts the prefix cache finds again, against a cache without end and against plain LRU."""

import gzip
import json
import os
from collections import OrderedDict
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.kv_cache import BlockAllocator

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "mooncake_fast25"
TRACES = ["conversation", "synthetic"]

Prompts = Sequence[Sequence[int]]  # names of the blocks of each prompt, each name standing for all before it too


def mooncake(trace: str) -> Prompts:
    """Qin et al., Mooncake (FAST 2025): block hashes of real prompts, 512 tokens a block."""
    path = DATA / f"{trace}_trace.jsonl.gz"
    if not path.exists():
        pytest.skip("needs mooncake_fast25 from PITH_DATA_DIR")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line)["hash_ids"] for line in lines]


def conversations(turns: int = 2000) -> Prompts:
    """Conversations under way at once, each turn beginning with all of the last, under a few system prompts."""
    generator = np.random.default_rng(1)
    names = iter(range(100, 10**9))
    under_way: list[list[int]] = []
    prompts = []
    for _ in range(turns):
        if len(under_way) < 30 or generator.random() < 0.1:
            system = int(generator.integers(3))
            under_way.append([system * 10 + block for block in range(4)])
        one = under_way[int(generator.integers(max(0, len(under_way) - 30), len(under_way)))]
        one += [next(names) for _ in range(generator.integers(1, 6))]
        prompts.append(list(one))
    return prompts


def hits(allocator: BlockAllocator, prompts: Prompts) -> int:
    """Blocks found in the cache, the prompts coming one after another."""
    found = 0
    for names in prompts:
        keys = [name.to_bytes(8) for name in names]
        prefix = allocator.cached_prefix(keys)
        allocator.share(prefix)
        table = prefix + allocator.allocate(len(keys) - len(prefix))
        for block, key in zip(table, keys, strict=True):
            allocator.publish(block, key)
        allocator.free(table)
        found += len(prefix)
    assert allocator.free_blocks == allocator.blocks
    return found


def oracle_hits(prompts: Prompts) -> int:
    """Blocks found by a cache that forgets nothing."""
    known: set[int] = set()
    found = 0
    for names in prompts:
        found += prefix_length(known, names)
        known.update(names)
    return found


def lru_hits(blocks: int, prompts: Prompts) -> int:
    """Blocks found by a cache that drops the block used longest ago, a prompt using its blocks from first to last."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = 0
    for names in prompts:
        found += prefix_length(cache, names)
        for name in names:
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > blocks:
            cache.popitem(last=False)
    return found


def prefix_length(known: Container[int], names: Sequence[int]) -> int:
    return next((index for index, name in enumerate(names) if name not in known), len(names))


def check(prompts: Prompts) -> None:
    distinct = len({name for names in prompts for name in names})
    longest = max(map(len, prompts))
    everything = oracle_hits(prompts)
    assert 0 < everything < sum(map(len, prompts))
    assert hits(BlockAllocator(distinct), prompts) == everything
    for blocks in (longest, distinct // 30, distinct // 10, distinct // 3):
        small = max(blocks, longest)
        assert lru_hits(small, prompts) <= hits(BlockAllocator(small), prompts) <= everything


@pytest.mark.parametrize("trace", TRACES)
def test_on_the_prompts_of_a_real_service(trace: str) -> None:
    check(mooncake(trace))


def test_on_made_up_conversations() -> None:
    check(conversations())

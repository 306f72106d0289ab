"""Stable draws: the same conversation gets the same answer on every router, and no state is kept for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def uniform(purpose: str, *key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments; draws for different purposes are independent."""
    digest = hashlib.blake2b("\x1f".join((purpose, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def pick(shares: Sequence[tuple[str, float]], draw: float) -> str:
    """The name into whose share of [0, 1) the draw falls; rounding leaves the rest to the last."""
    for name, share in shares:
        draw -= share
        if draw < 0:
            return name
    return shares[-1][0]

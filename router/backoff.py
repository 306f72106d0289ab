"""How long to wait before trying again."""

from __future__ import annotations

import random


def backoff_seconds(failures: int, first_seconds: float, longest_seconds: float, rng: random.Random) -> float:
    """Doubles from `first_seconds` with each failure in a row up to `longest_seconds`, then shortened at random by up
    to a half, so that those who failed together do not come back together."""
    doubled = first_seconds * 2.0 ** min(failures - 1, 60)
    return min(longest_seconds, doubled) * rng.uniform(0.5, 1.0)

"""How much work an operator's regular expression can make of a text, known before it is used.

Python's `re` tries one way after the other, and some patterns have exponentially many. So only those are taken whose
ways are few: what repeats does so up to a stated number, and the ways of what stands side by side multiply.
"""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MAX_STEPS = 10_000
"""At one place in a text: ways times what they look at."""

_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_PLAIN = (
    _constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN, _constants.AT, _constants.CATEGORY,
    _constants.RANGE,
)  # fmt: skip


def check_pattern(pattern: str) -> None:
    """Raises ValueError, which names the pattern, where it is none or could take long."""
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if parsed.getwidth()[0] == 0:
        raise ValueError(f"{pattern!r} matches the empty text")
    try:
        ways, longest = _cost(parsed)
    except ValueError as error:
        raise ValueError(f"{pattern!r} {error}") from None
    if ways * longest > MAX_STEPS:
        raise ValueError(
            f"{pattern!r} can take more than {MAX_STEPS:,} steps at one place in a text; lessen how often parts repeat"
        )


def _cost(items: Any) -> tuple[int, int]:
    """Of items one after the other: in how many ways they can match, and how much of a text they look at."""
    ways, longest = 1, 0
    for kind, value in items:
        of_one, length = _cost_of(kind, value)
        ways, longest = _clamped(ways * of_one), longest + length
    return ways, longest


def _cost_of(kind: Any, value: Any) -> tuple[int, int]:
    """Raises ValueError where it is not known."""
    if kind in _PLAIN:
        return 1, 1
    if kind is _constants.SUBPATTERN:
        return _cost(value[3])
    if kind is _constants.BRANCH:
        costs = [_cost(branch) for branch in value[1]]
        return sum(ways for ways, _ in costs), max(longest for _, longest in costs)
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
        return _cost(value[1])
    if kind in _REPEATS:
        least, most, inner = value
        if most is _constants.MAXREPEAT:
            raise ValueError("repeats something without end; say how often at most, as in {1,40}")
        ways, longest = _cost(inner)
        total, of_these = 0, 1
        for times in range(min(most, MAX_STEPS) + 1):
            total += of_these if times >= least else 0
            of_these = _clamped(of_these * ways)
        return _clamped(total), most * longest
    raise ValueError("uses what cannot be bounded, such as a back-reference")


def _clamped(ways: int) -> int:
    return min(ways, MAX_STEPS + 1)

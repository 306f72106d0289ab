"""The directive optimizer: a linear programme a task.

Such a programme has two or three constraints, so its optimum lies at a mix of two or three levels. There are few enough
to look at each, which is exact and, at a task's handful of levels, a hundred times faster than a solver's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

_SLACK = 1e-9
"""By how much a least value that was found may be missed when it is made a constraint."""
_ROUNDING = 1e-12
_LEAST_SHARE = 1e-7
"""What is below is rounding."""

Mix = tuple[tuple[int, float], ...]
"""(place of the candidate, its share)."""


class Candidate(NamedTuple):
    """A level that may be served: its carbon a request and the quality that it surely keeps (L0 keeps all)."""

    directive: str
    grams: float
    quality: float
    late: float = 0.0
    """Share of its answers that come later than they should."""


def solve(
    candidates: Sequence[Candidate], floor: float, most_late: float | None = None
) -> tuple[tuple[str, float], ...]:
    """Shares x that minimise sum(grams x) subject to sum(quality x) >= floor, sum(x) = 1, x >= 0 (SPROUT's LP, its
    quality taken at the lower confidence bound instead of the sample mean, and a task at a time), and to
    sum(late x) <= most_late where that is given. Where no mix that keeps the floor is as early, the earliest are taken,
    and of those the one of least carbon.

    Args:
        candidates: At least L0, whose quality is the baseline's and clears any floor of a valid policy.
        floor: In the unit of `quality`.
        most_late: In the unit of `late`.

    Returns:
        (directive, share), only shares above zero, in the candidates' order.

    Raises:
        ValueError: No mix reaches the floor.
    """
    names, grams, quality, late = zip(*candidates, strict=True)
    if (best := max(quality)) < floor:
        raise ValueError(f"floor {floor} cannot be reached: the best level keeps {best}")
    mix = _least(grams, _keeping(quality, floor))
    if most_late is not None and _mean(late, mix) > most_late:
        earliest = _mean(late, _least(late, _keeping(quality, floor)))
        mix = _least(grams, _keeping_in_time(quality, floor, late, max(most_late, earliest + _SLACK)))
    return tuple([(names[place], share) for place, share in sorted(mix) if share > _LEAST_SHARE])


def _least(cost: Sequence[float], mixes: Iterator[Mix]) -> Mix:
    return min(mixes, key=lambda mix: _mean(cost, mix))


def _mean(values: Sequence[float], mix: Mix) -> float:
    mean = 0.0
    for place, share in mix:
        mean += share * values[place]
    return mean


def _keeping(quality: Sequence[float], floor: float) -> Iterator[Mix]:
    """The vertices of sum(quality x) >= floor: a level that keeps it, or one that does and one that does not, mixed to
    just keep it."""
    below = [place for place, kept in enumerate(quality) if kept < floor]
    for place, kept in enumerate(quality):
        if kept >= floor:
            yield ((place, 1.0),)
            for other in below:
                share = (floor - quality[other]) / (kept - quality[other])
                yield ((place, share), (other, 1.0 - share))


def _keeping_in_time(quality: Sequence[float], floor: float, late: Sequence[float], most_late: float) -> Iterator[Mix]:
    """The vertices where sum(late x) <= most_late holds as well."""
    for mix in _keeping(quality, floor):
        if _mean(late, mix) <= most_late + _ROUNDING:
            yield mix
    # As lateness has an upper limit as quality has a lower one, its negative is kept as quality is.
    for mix in _keeping([-share for share in late], -most_late):
        if _mean(quality, mix) >= floor - _ROUNDING:
            yield mix
    for places in combinations(range(len(quality)), 3):
        shares = _just_meeting(
            [quality[place] for place in places], floor, [late[place] for place in places], most_late
        )
        if shares is not None:
            yield tuple(zip(places, shares, strict=True))


def _just_meeting(
    quality: Sequence[float], floor: float, late: Sequence[float], most_late: float
) -> tuple[float, float, float] | None:
    """The three shares with sum(quality x) = floor and sum(late x) = most_late, by Cramer's rule; None where there are
    none, or not just one."""
    q1, q2 = quality[1] - quality[0], quality[2] - quality[0]
    l1, l2 = late[1] - late[0], late[2] - late[0]
    determinant = q1 * l2 - q2 * l1
    if determinant == 0.0:
        return None
    kept, time = floor - quality[0], most_late - late[0]
    second = (kept * l2 - q2 * time) / determinant
    third = (q1 * time - kept * l1) / determinant
    first = 1.0 - second - third
    # Nearly parallel rows give shares that are mostly rounding, so that what they meet is looked at.
    if min(first, second, third) < 0.0:
        return None
    mix = ((0, first), (1, second), (2, third))
    if _mean(quality, mix) < floor - _SLACK or _mean(late, mix) > most_late + _SLACK:
        return None
    return first, second, third

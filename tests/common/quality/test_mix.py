"""A shift of the task mix is told where it is beyond doubt, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.mix import ALPHA, LEAST_SAMPLES, LEAST_SHIFT, MAX_TENANTS, Part, TaskMix, distance, largest

PARTS = st.dictionaries(st.text(max_size=3), st.builds(Part, st.integers(0, 5_000), st.integers(0, 5_000)), max_size=40)


@given(PARTS)
@settings(deadline=None)
def test_the_lower_bound_lies_between_nothing_and_what_was_seen(parts: dict[str, Part]) -> None:
    observed, lower = distance(parts.values(), 0.005)
    assert 0 <= lower <= observed <= 1 + 1e-12
    swapped = [Part(part.recent, part.before) for part in parts.values()]
    assert distance(swapped, 0.005) == pytest.approx((observed, lower)), "neither day is preferred"
    assert distance(parts.values(), 0.05)[1] >= lower, "with less certainty it is higher"


@given(PARTS, st.integers(2, 20))
@settings(deadline=None)
def test_more_of_the_same_makes_it_surer(parts: dict[str, Part], times: int) -> None:
    more = [Part(part.before * times, part.recent * times) for part in parts.values()]
    observed, lower = distance(parts.values(), 0.005)
    if observed:
        assert distance(more, 0.005)[0] == pytest.approx(observed)
        assert distance(more, 0.005)[1] >= lower - 1e-12


@given(PARTS)
@settings(deadline=None)
def test_tenants_of_few_samples_count_as_one(parts: dict[str, Part]) -> None:
    told = largest(parts)
    assert len(told) <= MAX_TENANTS + 1
    assert sum(part.before for part in told.values()) == sum(part.before for part in parts.values())
    assert sum(part.recent for part in told.values()) == sum(part.recent for part in parts.values())
    assert largest(told).items() == told.items() or len(told) > MAX_TENANTS
    smallest = min((p.before + p.recent for name, p in told.items() if name), default=math.inf)
    assert all(p.before + p.recent <= smallest for name, p in parts.items() if name and name not in told)


def test_a_known_table() -> None:
    """Of 400 and 400: TV = (|0.5 - 0| + |0.5 - 1|) / 2."""
    observed, lower = distance([Part(200, 0), Part(200, 400)], 0.005)
    noise, chance = math.sqrt(0.25 / 400), math.sqrt(math.log(200) / 2 * (2 / 400))
    assert (observed, lower) == (0.5, pytest.approx(0.5 - noise - chance))


@pytest.mark.parametrize(
    ("lengths", "tenants", "trait"),
    [
        ({"8": Part(500, 500)}, {"a": Part(500, 500)}, None),
        ({"8": Part(500, 0), "12": Part(0, 500)}, {"a": Part(500, 500)}, "length"),
        ({"8": Part(500, 500)}, {"a": Part(500, 0), "b": Part(0, 500)}, "tenant"),
        ({"8": Part(500, 400), "12": Part(0, 100)}, {"a": Part(500, 500)}, None),
        # 40 % other tenants are no other task yet.
        ({"8": Part(500, 500)}, {"a": Part(500, 300), "b": Part(0, 200)}, None),
        ({"8": Part(LEAST_SAMPLES - 1, 0), "12": Part(0, 5_000)}, {}, None),
        ({"8": Part(5_000, 0), "12": Part(0, LEAST_SAMPLES)}, {}, "length"),
        ({}, {}, None),
    ],
    ids=[
        "the same",
        "longer",
        "another tenant",
        "somewhat longer",
        "some of another",
        "too few",
        "just enough",
        "none",
    ],
)
def test_what_is_a_shift(lengths: dict[str, Part], tenants: dict[str, Part], trait: str | None) -> None:
    shift = TaskMix(lengths, tenants).shift()
    assert (None if shift is None else shift.trait) == trait


@pytest.mark.parametrize("samples", [60, 300, 3_000])
def test_false_alarms_at_the_least_shift_are_as_rare_as_promised(samples: int) -> None:
    """At a distance of just LEAST_SHIFT, over a dozen lengths."""
    rng = np.random.default_rng(1)
    before = np.full(12, 1 / 12)
    recent = before.copy()
    recent[:6] += LEAST_SHIFT["length"] / 6
    recent[6:] -= LEAST_SHIFT["length"] / 6
    assert np.abs(before - recent).sum() / 2 == pytest.approx(LEAST_SHIFT["length"])
    runs = 400
    alarms = sum(
        TaskMix(
            {
                str(category): Part(int(n), int(m))
                for category, (n, m) in enumerate(
                    zip(rng.multinomial(samples, before), rng.multinomial(samples, recent), strict=True)
                )
            }
        ).shift()
        is not None
        for _ in range(runs)
    )
    assert alarms <= ALPHA * runs

"""Draws are stable, uniform, and independent between purposes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.directives.assign import pick, uniform


def test_a_draw_never_changes() -> None:
    """Pinned: another value would move every conversation to another directive when routers are upgraded."""
    assert uniform("holdback", "default", "request-1") == 0.08081627466395248
    assert uniform("level", "default", "request-1") == 0.7001517634439163


@given(st.text(), st.lists(st.text(), max_size=3))
def test_a_draw_is_in_the_unit_interval(purpose: str, key: list[str]) -> None:
    assert 0 <= uniform(purpose, *key) < 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_the_share_of_draws_below_a_bound_is_the_bound(share: float) -> None:
    count = 20_000
    below = sum(uniform("sample", f"request-{index}") < share for index in range(count))
    assert abs(below / count - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_draws_for_different_purposes_are_independent() -> None:
    count = 20_000
    both = sum(uniform("sample", str(i)) < 0.5 and uniform("holdback", str(i)) < 0.5 for i in range(count))
    assert abs(both / count - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5


def test_parts_of_a_key_do_not_run_together() -> None:
    assert uniform("p", "ab", "c") != uniform("p", "a", "bc")


SHARES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5).map(
    lambda weights: [(f"L{index}", weight / sum(weights)) for index, weight in enumerate(weights)]
)


@given(SHARES, st.floats(0, 1, exclude_max=True))
def test_a_pick_is_where_the_draw_falls(shares: list[tuple[str, float]], draw: float) -> None:
    below = 0.0
    chosen = pick(shares, draw)
    for name, share in shares:
        if name == chosen:
            break
        below += share
    assert below - 1e-9 <= draw < below + dict(shares)[chosen] + 1e-9


def test_picks_follow_the_shares() -> None:
    shares = [("L2", 0.7), ("L1", 0.2), ("L0", 0.1)]
    picked = Counter(pick(shares, uniform("level", str(index))) for index in range(20_000))
    for name, share in shares:
        assert abs(picked[name] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_a_share_of_nothing_is_never_picked() -> None:
    assert pick([("L2", 0.0), ("L0", 1.0)], 0.0) == "L0"

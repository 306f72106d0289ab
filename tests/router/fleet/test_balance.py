"""The least loaded engine is chosen, by reports brought up to date with this router's own requests."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.balance import Candidate, least_loaded


def engine(name: str, reported: int = 0, since_report: int = 0, in_flight: int = 0, capacity: int = 4) -> Candidate:
    return Candidate(name, reported, since_report, in_flight, capacity)


def test_without_candidates_there_is_no_choice() -> None:
    assert least_loaded([]) is None


def test_the_report_counts_whoever_sent_the_requests() -> None:
    assert least_loaded([engine("a", reported=3), engine("b", reported=1)]) == "b"


def test_load_is_a_share_of_capacity() -> None:
    assert least_loaded([engine("a", reported=2, capacity=2), engine("b", reported=3, capacity=8)]) == "b"


def test_requests_that_no_report_has_seen_count_at_once() -> None:
    assert least_loaded([engine("a", since_report=2, in_flight=2), engine("b", reported=1)]) == "b"


def test_requests_that_have_ended_since_the_report_count_no_more() -> None:
    assert least_loaded([engine("a", reported=4, since_report=-4), engine("b", reported=1)]) == "a"


def test_a_report_that_crossed_a_request_cannot_make_an_engine_look_idle() -> None:
    assert least_loaded([engine("a", reported=0, since_report=0, in_flight=3), engine("b", reported=1)]) == "b"


def test_an_engine_that_reports_no_capacity_can_be_chosen() -> None:
    assert least_loaded([engine("a", capacity=0)]) == "a"


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.text("abc", min_size=1, max_size=3),
        reported=st.integers(0, 9),
        since_report=st.integers(-9, 9),
        in_flight=st.integers(0, 9),
        capacity=st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda candidate: candidate.name,
)


@given(candidates, st.randoms())
def test_the_choice_is_a_least_loaded_one_and_does_not_depend_on_the_order(
    engines: list[Candidate], rng: random.Random
) -> None:
    chosen = least_loaded(engines)
    assert min(candidate.load for candidate in engines) == next(c.load for c in engines if c.name == chosen)
    rng.shuffle(engines)
    assert least_loaded(engines) == chosen

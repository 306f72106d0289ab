"""The least loaded engine is chosen, by reports brought up to date with this router's own requests; where grids differ,
the least loaded of the cleanest that have room."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from router.fleet.balance import NEAR, Candidate, expected_grams, least_carbon, least_loaded
from router.optimizer.pricing import EnergyModel


def engine(
    name: str,
    reported: int = 0,
    since_report: int = 0,
    in_flight: int = 0,
    capacity: int = 4,
    waiting: int = 0,
    grams: float = 0.0,
) -> Candidate:
    return Candidate(name, reported, since_report, in_flight, capacity, waiting, grams)


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
        waiting=st.sampled_from((0, 0, 0, 1, 5)),
        grams=st.sampled_from((0.0, 1e-300, 1.0, 1.02, 1.05, 1.06, 2.0, 1e300)) | st.floats(0, 1e9),
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


def test_without_candidates_there_is_no_choice_of_carbon_either() -> None:
    assert least_carbon([]) is None


def test_the_least_carbon_is_chosen_though_it_is_busier() -> None:
    assert least_carbon([engine("a", grams=2.0), engine("b", reported=3, grams=1.0)]) == "b"


@pytest.mark.parametrize(
    "full",
    [
        {"reported": 4},
        {"reported": 3, "since_report": 1},
        {"in_flight": 4},
        {"reported": 1, "waiting": 1},
        {"reported": 1, "capacity": 0},
    ],
)
def test_one_without_room_is_passed_over(full: dict[str, int]) -> None:
    assert least_carbon([engine("a", reported=3, grams=2.0), engine("b", grams=1.0, **full)]) == "a"


def test_where_none_has_room_the_load_decides() -> None:
    assert least_carbon([engine("a", reported=5, grams=1.0), engine("b", reported=4, grams=2.0)]) == "b"


def test_those_that_emit_nearly_as_little_share_by_load() -> None:
    near = [engine("a", reported=2, grams=1.0), engine("b", reported=1, grams=1.05), engine("c", grams=1.06)]
    assert least_carbon(near) == "b"


@given(candidates, st.randoms())
def test_no_engine_without_room_and_no_dirty_one_is_chosen_while_another_is_there(
    engines: list[Candidate], rng: random.Random
) -> None:
    chosen = next(candidate for candidate in engines if candidate.name == least_carbon(engines))
    roomy = [candidate for candidate in engines if candidate.has_room]
    if roomy:
        assert chosen in roomy
        near = [c for c in roomy if c.grams <= NEAR * min(candidate.grams for candidate in roomy)]
        assert chosen in near
        assert chosen.load == min(candidate.load for candidate in near)
    else:
        assert chosen.name == least_loaded(engines)
    rng.shuffle(engines)
    assert least_carbon(engines) == chosen.name


@given(candidates, st.floats(0, 1e9))
def test_where_all_emit_alike_and_have_room_the_load_decides(engines: list[Candidate], grams: float) -> None:
    alike = [replace(candidate, capacity=99, waiting=0, grams=grams) for candidate in engines]
    assert least_carbon(alike) == least_loaded(alike)


def calibrated(max_batch: int = 16, **joules: float) -> EnergyModel:
    measured_at = datetime(2026, 1, 1, tzinfo=UTC)
    return EnergyModel(SweetSpot(**joules), EnergySource.MEASURED, measured_at, None, max_batch, 4096, 4096)


def test_grams_are_those_of_the_energy_at_the_intensity() -> None:
    efficient, plain = calibrated(request_joules=1.8e6), calibrated(request_joules=7.2e6)
    assert expected_grams([(efficient, 300.0), (plain, 100.0)], None) == pytest.approx([150.0, 200.0])


def test_without_a_calibration_of_each_the_intensity_alone_counts() -> None:
    assert expected_grams([(calibrated(request_joules=1.0), 300.0), (None, 100.0)], 4.0) == [300.0, 100.0]


def test_all_are_priced_at_one_batch_and_none_beyond_what_it_measured() -> None:
    """At a batch of its own, the first would be half as dear as it is, beside the other."""
    models = [calibrated(output_shared_joules=8.0), calibrated(max_batch=2, output_shared_joules=2.0)]
    at_four = expected_grams([(model, 100.0) for model in models], 4.0)
    assert at_four == expected_grams([(model, 100.0) for model in models], 2.0)
    for running in (4.0, None):
        one, other = expected_grams([(model, 100.0) for model in models], running)
        assert one == pytest.approx(4 * other)

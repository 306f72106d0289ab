"""The price of lengths is the mean energy of the requests, at one batch for all; nonsense is no energy model."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from router.optimizer.pricing import MAX_COEFFICIENT_JOULES, EnergyModel, Lengths, Price

coefficients = st.floats(0, 1e3)
spots = st.builds(SweetSpot, **{field.name: coefficients for field in fields(SweetSpot)})
requests = st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 100_000)), min_size=1, max_size=30)

SPOT = SweetSpot(output_shared_joules=8.0, input_joules=1.0)
MODEL = EnergyModel(SPOT, EnergySource.MEASURED, datetime(2026, 11, 20, 9, tzinfo=UTC), 2.14, 16, 4096, 2048)


def mean(served: list[tuple[int, int, int]]) -> Lengths:
    lengths = Lengths.of(*served[0])
    for seen, request in enumerate(served[1:], start=2):
        lengths = lengths.toward(Lengths.of(*request), 1 / seen)
    return lengths


@given(spots, requests, st.floats(1, 16))
@settings(deadline=None)
def test_the_price_of_mean_lengths_is_the_mean_of_the_requests_energies(
    spot: SweetSpot, served: list[tuple[int, int]], batch: float
) -> None:
    if not any(getattr(spot, field.name) for field in fields(spot)):
        spot = replace(spot, request_joules=1.0)
    price = Price(replace(MODEL, sweet_spot=spot), batch)
    energies = [spot.energy_joules(n, m, batch) for n, m in served]
    lengths = mean([(n, 0, m) for n, m in served])
    assert price.joules(lengths) == pytest.approx(math.fsum(energies) / len(served), rel=1e-9, abs=1e-9)


def test_the_energy_of_mean_lengths_would_not_do() -> None:
    spot = SweetSpot(pair_joules=1.0)
    lengths = mean([(1_000, 0, 1), (1, 0, 1_000)])
    assert Price(replace(MODEL, sweet_spot=spot)).joules(lengths) == pytest.approx(1_000)
    assert spot.energy_joules(lengths.input_tokens, lengths.output_tokens) == pytest.approx(500.5**2)


@given(spots, st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(deadline=None)
def test_shorter_answers_cost_what_the_model_says_of_them(spot: SweetSpot, n: int, m: int, shorter: int) -> None:
    spot = replace(spot, request_joules=1.0)
    share = shorter / m if m else 0.5
    found = Price(replace(MODEL, sweet_spot=spot), 4.0).joules(Lengths.of(n, 0, m).answered_with(share))
    assert found == pytest.approx(spot.energy_joules(n, share * m, 4.0), rel=1e-9)


def test_cached_input_is_attended_to_and_not_computed_again() -> None:
    def joules(spot: SweetSpot, cached: int) -> float:
        return Price(replace(MODEL, sweet_spot=spot)).joules(Lengths.of(10, cached, 3))

    assert joules(SweetSpot(input_joules=1.0), 4) == 6
    # The last six tokens attend to all ten: all pairs but those among the first four.
    assert joules(SweetSpot(input_squared_joules=1.0), 4) == 100 - 16
    assert joules(SweetSpot(pair_joules=1.0), 4) == 30
    assert joules(SweetSpot(input_joules=1.0), 99) == 0, "more cached than there is"


@pytest.mark.parametrize(
    ("running", "batch", "said"),
    [
        (None, 1.0, "a batch of 1, as no request was seen to run, by"),
        (3.44, 3.44, "a batch of 3.44 by"),
        (40.0, 16.0, "a batch of 16, the largest measured, where 40 run, by"),
    ],
)
def test_the_batch_is_the_present_one_as_far_as_it_was_measured(running: float | None, batch: float, said: str) -> None:
    price, lengths = Price(MODEL, running), Lengths.of(10, 0, 4)
    assert price.batch == batch
    assert price.joules(lengths) == pytest.approx(10 + 4 * 8 / batch)
    assert said in price.words(lengths)


def test_the_words_name_calibration_error_and_what_lies_beyond() -> None:
    price = Price(MODEL, 2.0)
    whole = "priced at a batch of 2 by the calibration of 2026-11-20 (measured energies, held-out error 2.1 %)"
    assert price.words(Lengths.of(4096, 0, 2048)) == whole
    beyond = price.words(Lengths.of(5000, 0, 2049))
    assert beyond == (
        f"{whole}, extrapolated to inputs of 5000 on average where it measured up to 4,096, "
        "extrapolated to outputs of 2049 on average where it measured up to 2,048"
    )
    assert "error unknown" in Price(replace(MODEL, held_out_mape=None), 2.0).words(Lengths.of(1, 0, 1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sweet_spot": SweetSpot()}, "every coefficient is 0"),
        ({"sweet_spot": SweetSpot(pair_joules=2 * MAX_COEFFICIENT_JOULES)}, "pair_joules must be at most"),
        ({"held_out_mape": math.nan}, "held_out_mape must be finite"),
        ({"held_out_mape": -1.0}, "held_out_mape must be finite"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
    ],
)
def test_nonsense_is_no_energy_model(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(MODEL, **changes)


def test_the_largest_coefficients_and_lengths_stay_finite() -> None:
    dearest = SweetSpot(**{field.name: MAX_COEFFICIENT_JOULES for field in fields(SweetSpot)})
    longest = 2**32 - 1
    assert math.isfinite(Price(replace(MODEL, sweet_spot=dearest)).joules(Lengths.of(longest, 0, longest)))

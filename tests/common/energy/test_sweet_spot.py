"""The closed form of the sweet spot against the curve that it is the bottom of."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.sweet_spot import SweetSpot

MODEL = SweetSpot(
    request_joules=2.0,
    request_shared_joules=8.0,
    input_joules=0.02,
    input_squared_joules=1e-5,
    output_joules=0.5,
    output_shared_joules=3.0,
    output_root_joules=0.25,
    pair_joules=4e-4,
    output_squared_joules=2e-4,
)
positive = st.floats(1e-6, 10.0)
models = st.builds(SweetSpot, **{field.name: positive for field in fields(SweetSpot)})
lengths = st.integers(1, 10_000)
batches = st.integers(1, 512)


def test_energy_by_hand() -> None:
    once = 2.0 + 8.0 / 4 + 0.02 * 100 + 1e-5 * 100**2
    token = 0.5 + 3.0 / 4 + 0.25 / 2
    assert MODEL.energy_joules(100, 50, batch=4) == pytest.approx(once + 50 * token + 4e-4 * 5000 + 2e-4 * 2500)


def test_sweet_spot_by_hand() -> None:
    # theta 5, 3, 1 over theta 4 of the paper, at batch 1.
    model = SweetSpot(request_joules=1.0, input_joules=0.01, input_squared_joules=1e-4, output_squared_joules=1e-3)
    assert model.sweet_spot_tokens(100) == pytest.approx(math.sqrt((1.0 + 1.0 + 1.0) / 1e-3))
    assert model.sweet_spot_tokens(0) == pytest.approx(math.sqrt(1000))


@settings(deadline=None)
@given(model=models, n=lengths, batch=batches)
def test_no_length_is_cheaper_a_token_than_the_sweet_spot(model: SweetSpot, n: int, batch: int) -> None:
    best = model.sweet_spot_tokens(n, batch)
    least = model.joules_per_output_token(n, best, batch)
    for factor in (0.01, 0.5, 0.99, 1.01, 2.0, 100.0):
        assert model.joules_per_output_token(n, best * factor, batch) >= least * (1 - 1e-12)
    if model.output_squared_joules * best > 1e-3 * least:
        assert model.joules_per_output_token(n, best * 2, batch) > least


@settings(deadline=None)
@given(model=models, n=lengths, batch=batches)
def test_least_energy_has_the_closed_form(model: SweetSpot, n: int, batch: int) -> None:
    """E_tok(m*) = t0 + t2 n + 2 sqrt(t4 (t1 n^2 + t3 n + t5))."""
    token = model.output_joules + model.output_shared_joules / batch + model.output_root_joules / math.sqrt(batch)
    once = (
        model.request_joules
        + model.request_shared_joules / batch
        + model.input_joules * n
        + model.input_squared_joules * n**2
    )
    closed = token + model.pair_joules * n + 2 * math.sqrt(model.output_squared_joules * once)
    best = model.sweet_spot_tokens(n, batch)
    assert model.joules_per_output_token(n, best, batch) == pytest.approx(closed, rel=1e-9)


@settings(deadline=None)
@given(model=models, n=lengths, m=lengths, batch=batches)
def test_energy_grows_with_lengths_and_falls_with_the_batch(model: SweetSpot, n: int, m: int, batch: int) -> None:
    joules = model.energy_joules(n, m, batch)
    assert model.energy_joules(n + 1, m, batch) > joules
    assert model.energy_joules(n, m + 1, batch) > joules
    # Where a batch shares next to nothing, the difference is below rounding.
    assert model.energy_joules(n, m, batch + 1) <= joules
    assert model.sweet_spot_tokens(n + 1, batch) >= model.sweet_spot_tokens(n, batch)


def test_without_the_quadratic_term_longer_is_always_cheaper() -> None:
    model = replace(MODEL, output_squared_joules=0.0)
    assert model.sweet_spot_tokens(100) == math.inf
    assert model.joules_per_output_token(100, 2000) < model.joules_per_output_token(100, 1000)


def test_token_without_output_costs_nothing_that_could_be_told() -> None:
    with pytest.raises(ZeroDivisionError):
        MODEL.joules_per_output_token(100, 0)


@pytest.mark.parametrize("name", [field.name for field in fields(SweetSpot)])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_impossible_coefficient_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be finite and at least 0"):
        SweetSpot(**{name: value})

"""A workload beside its sweet spot, against the model asked request by request."""

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.workload import NEAR, Workload, beyond, change, saved_share, standing
from tests.common.energy.planted import SHARING, TRUTH

requests = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), min_size=1, max_size=30)
batches = st.integers(1, 100).map(float)


def of(pairs: list[tuple[int, int]], batch: float = 1.0) -> Workload:
    return Workload([n for n, _ in pairs], [m for _, m in pairs], batch)


@settings(deadline=None)
@given(pairs=requests, batch=batches)
def test_energy_is_the_sum_over_requests(pairs: list[tuple[int, int]], batch: float) -> None:
    workload = of(pairs, batch)
    each = [SHARING.energy_joules(n, m, batch) for n, m in pairs]
    assert workload.request_joules(SHARING).tolist() == pytest.approx(each)
    assert workload.joules(SHARING) == pytest.approx(math.fsum(each))
    assert standing(workload, SHARING).joules_per_request == pytest.approx(statistics.fmean(each))


@settings(deadline=None)
@given(pairs=requests, batch=batches)
def test_sweet_spot_is_that_of_each_prompt(pairs: list[tuple[int, int]], batch: float) -> None:
    found = of(pairs, batch).sweet_spot_tokens(SHARING).tolist()
    assert found == pytest.approx([SHARING.sweet_spot_tokens(n, batch) for n, _ in pairs])


@settings(deadline=None)
@given(pairs=requests, batch=batches)
def test_standing_counts_answers_on_each_side(pairs: list[tuple[int, int]], batch: float) -> None:
    found = standing(of(pairs, batch), SHARING)
    answered = [(n, m) for n, m in pairs if m]
    if not answered:
        assert found.shorter_share is found.near_share is found.joules_per_output_token is None
        return
    best = [SHARING.sweet_spot_tokens(n, batch) for n, _ in answered]
    least = [SHARING.joules_per_output_token(n, b, batch) for (n, _), b in zip(answered, best, strict=True)]
    each = [SHARING.joules_per_output_token(n, m, batch) for n, m in answered]
    assert found.shorter_share == pytest.approx(
        statistics.fmean(m < b for (_, m), b in zip(answered, best, strict=True))
    )
    assert found.near_share == pytest.approx(
        statistics.fmean(e <= (1 + NEAR) * b for e, b in zip(each, least, strict=True))
    )
    tokens = sum(m for _, m in answered)
    expected = math.fsum(m * b for (_, m), b in zip(answered, least, strict=True)) / tokens
    assert found.least_joules_per_output_token == pytest.approx(expected)
    assert found.joules_per_output_token is not None
    assert found.joules_per_output_token >= expected * (1 - 1e-9)


def test_workload_at_its_sweet_spot_is_near_it() -> None:
    best = round(TRUTH.sweet_spot_tokens(500))
    found = standing(of([(500, best)] * 3), TRUTH)
    assert found.near_share == 1.0
    assert found.joules_per_output_token == pytest.approx(found.least_joules_per_output_token, rel=1e-4)


def test_without_a_sweet_spot_every_answer_is_before_it() -> None:
    found = standing(of([(10, 10), (10, 10_000)]), replace(TRUTH, output_squared_joules=0.0))
    assert (found.shorter_share, found.near_share, found.least_joules_per_output_token) == (1.0, None, None)


def test_model_without_cost_once_has_its_best_at_the_first_token() -> None:
    model = replace(TRUTH, request_joules=0.0, input_joules=0.0, input_squared_joules=0.0)
    found = standing(of([(10, 1), (10, 1000)]), model)
    assert found.shorter_share == 0.0
    assert found.near_share == 0.5


def test_cap_and_truncation_by_hand() -> None:
    workload = of([(100, 50), (3000, 50), (100, 400), (3000, 400)])
    both = change(workload, TRUTH, cap=200, keep_input=1000)
    assert (both.shortened_answers, both.shortened_prompts, both.output_tokens) == (2, 2, 500)
    after = [TRUTH.energy_joules(n, m) for n, m in [(100, 50), (1000, 50), (100, 200), (1000, 200)]]
    assert both.joules == pytest.approx(sum(after))
    assert both.saved_share == pytest.approx(1 - sum(after) / workload.joules(TRUTH))
    assert both.joules_per_output_token == pytest.approx(sum(after) / 500)
    assert change(workload, TRUTH, cap=200).shortened_prompts == 0
    assert change(workload, TRUTH, cap=1000, keep_input=5000).saved_share == 0


@settings(deadline=None)
@given(pairs=requests, cap=st.integers(1, 3000), keep=st.integers(1, 5000))
def test_shortening_never_costs_and_more_of_it_saves_more(pairs: list[tuple[int, int]], cap: int, keep: int) -> None:
    workload = of(pairs)
    capped, both = change(workload, TRUTH, cap=cap), change(workload, TRUTH, cap=cap, keep_input=keep)
    assert -1e-12 <= capped.saved_share <= both.saved_share + 1e-12 <= 1
    assert change(workload, TRUTH, cap=cap + 1).saved_share <= capped.saved_share + 1e-12


def test_requests_beyond_what_was_measured_are_counted() -> None:
    workload = of([(100, 100), (5000, 100), (100, 5000), (5000, 5000)])
    assert beyond(workload, (1000, 1000)) == 0.75
    assert beyond(workload, (None, 1000)) == 0.5
    assert beyond(workload, (None, None)) == 0


def test_energy_of_nothing_saves_nothing() -> None:
    model = replace(TRUTH, request_joules=0.0)
    nothing = of([(0, 0)])
    assert saved_share(nothing, nothing, model) == 0
    assert change(nothing, model, cap=1).joules_per_output_token is None


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 inputs, but 1 outputs"):
        Workload([1, 2], [1])
    with pytest.raises(ValueError, match="at least 1 request"):
        Workload([], [])

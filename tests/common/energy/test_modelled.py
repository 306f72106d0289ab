import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.architecture.shape import ModelShape
from common.energy.modelled import (
    H100,
    SERVER_CPU,
    DevicePrices,
    Work,
    request_energy_joules,
    step_energy_joules,
)

SMALL = ModelShape(
    hidden_size=128,
    layers=4,
    heads=8,
    kv_heads=2,
    head_dim=16,
    intermediate_size=352,
    vocab_size=512,
    tied_embeddings=True,
)
LLAMA_3_1_8B = ModelShape(4096, 32, 32, 8, 128, 14336, 128256, False)
ONLY_FLOPS = DevicePrices(1.0, 0.0, 0.0, idle_watts=0.0, source="counts FLOPs")
ONLY_BYTES = DevicePrices(0.0, 1.0, 0.0, idle_watts=0.0, source="counts bytes")
ONLY_LAYERS = DevicePrices(0.0, 0.0, 1.0, idle_watts=0.0, source="counts layers dispatched")

works = st.builds(Work, new_tokens=st.integers(1, 300), context_tokens=st.integers(0, 4000))
prices_strategy = st.sampled_from([SERVER_CPU, H100])


def energy(prices: DevicePrices, *work: Work) -> tuple[float, ...]:
    return step_energy_joules(SMALL, prices, work, bytes_per_parameter=4, bytes_per_kv=2)


def request_by_steps(prices: DevicePrices, input_tokens: int, output_tokens: int) -> float:
    steps = [Work(input_tokens, 0)]
    steps += [Work(1, input_tokens + done) for done in range(output_tokens - 1)]
    return math.fsum(joules for work in steps for joules in energy(prices, work))


def request(prices: DevicePrices, input_tokens: int, output_tokens: int) -> float:
    return request_energy_joules(SMALL, prices, input_tokens, output_tokens, 4, 2)


def test_flops_of_a_decode_step_by_hand() -> None:
    layer = 128 * 128 + 128 * 32 + 128 * 32 + 128 * 128 + 3 * 128 * 352
    attention = 4 * 128 * 8  # scores and values over 7 cached tokens and the new one
    assert energy(ONLY_FLOPS, Work(1, 7)) == (4 * (2 * layer + attention) + 2 * 128 * 512,)


def test_prefill_attends_causally_and_computes_one_head() -> None:
    layer = 128 * 128 + 128 * 32 + 128 * 32 + 128 * 128 + 3 * 128 * 352
    attention = 4 * 128 * (1 + 2 + 3)
    assert energy(ONLY_FLOPS, Work(3, 0)) == (4 * (2 * 3 * layer + attention) + 2 * 128 * 512,)


def test_bytes_of_a_decode_step_by_hand() -> None:
    weights = 4 * SMALL.parameters  # tied: the one table is the head
    cache = 2 * 4 * 32 * 2  # keys and values, layers, width, bytes
    assert energy(ONLY_BYTES, Work(1, 7)) == (weights + 8 * cache,)


def test_multi_head_attention_gives_the_flops_of_sweetspot() -> None:
    # 24 d^2 + 4 c d a layer, with a feed-forward of two d x 4d matrices = three of d x 8d/3.
    d = 96
    shape = ModelShape(d, 1, 6, 6, 16, 8 * d // 3, 10, False)
    (joules,) = step_energy_joules(shape, ONLY_FLOPS, [Work(1, 99)], 2, 2)
    head = 2 * d * 10
    assert joules == 24 * d * d + 4 * 100 * d + head


@given(work=st.lists(works, min_size=1, max_size=12), prices=prices_strategy)
def test_parts_sum_to_the_step(work: Sequence[Work], prices: DevicePrices) -> None:
    flops = math.fsum(energy(ONLY_FLOPS, *work))
    bytes_moved = SMALL.weight_bytes_per_step(4) + sum(
        SMALL.kv_bytes_per_token(2) * (part.context_tokens + part.new_tokens) for part in work
    )
    step = (
        prices.joules_per_flop * flops + prices.joules_per_byte * bytes_moved + prices.joules_per_layer * SMALL.layers
    )
    assert math.fsum(energy(prices, *work)) == pytest.approx(step, rel=1e-12)


def test_the_weight_read_is_shared_by_new_tokens() -> None:
    cache = SMALL.kv_bytes_per_token(2)
    prefill, decode = energy(ONLY_BYTES, Work(3, 0), Work(1, 7))
    weights = SMALL.weight_bytes_per_step(4)
    assert prefill - 3 * cache == pytest.approx(0.75 * weights)
    assert decode - 8 * cache == pytest.approx(0.25 * weights)


@given(work=st.lists(works, min_size=2, max_size=12), prices=prices_strategy)
def test_batching_lowers_the_energy_of_every_sequence(work: Sequence[Work], prices: DevicePrices) -> None:
    for alone, together in zip(work, energy(prices, *work), strict=True):
        assert together < energy(prices, alone)[0]


@given(batch=st.integers(1, 64), context=st.integers(0, 2000))
def test_equal_sequences_pay_equally_and_less_in_a_larger_batch(batch: int, context: int) -> None:
    parts = energy(SERVER_CPU, *[Work(1, context)] * batch)
    larger = energy(SERVER_CPU, *[Work(1, context)] * (batch + 1))
    assert len(set(parts)) == 1
    assert larger[0] < parts[0]


@given(work=st.lists(works, min_size=2, max_size=8, unique=True))
def test_order_of_the_sequences_does_not_matter(work: Sequence[Work]) -> None:
    assert energy(H100, *reversed(work)) == tuple(reversed(energy(H100, *work)))


@given(work=works, prices=prices_strategy)
def test_energy_of_a_step_grows_with_new_tokens_and_context(work: Work, prices: DevicePrices) -> None:
    (joules,) = energy(prices, work)
    assert energy(prices, Work(work.new_tokens + 1, work.context_tokens))[0] > joules
    assert energy(prices, Work(work.new_tokens, work.context_tokens + 1))[0] > joules


@given(n=st.integers(1, 500), m=st.integers(1, 80), prices=prices_strategy)
def test_closed_form_is_the_sum_over_steps(n: int, m: int, prices: DevicePrices) -> None:
    assert request(prices, n, m) == pytest.approx(request_by_steps(prices, n, m), rel=1e-12)


@given(n=st.integers(1, 5000), m=st.integers(1, 5000), prices=prices_strategy)
def test_energy_of_a_request_grows_with_input_and_output(n: int, m: int, prices: DevicePrices) -> None:
    assert request(prices, n + 1, m) > request(prices, n, m)
    assert request(prices, n, m + 1) > request(prices, n, m)


def test_an_output_token_costs_more_than_an_input_token() -> None:
    base = request(SERVER_CPU, 100, 100)
    assert request(SERVER_CPU, 100, 101) - base > 2 * (request(SERVER_CPU, 101, 100) - base)


def test_h100_prices_are_of_the_measured_magnitude() -> None:
    # ML.ENERGY leaderboard, Llama-3.1-8B on one H100: 0.455 J an output token at batch 8.
    parts = step_energy_joules(LLAMA_3_1_8B, H100, [Work(1, 600)] * 8, bytes_per_parameter=2, bytes_per_kv=2)
    assert 0.455 / 2 < parts[0] < 0.455 * 2


def test_dispatch_is_paid_once_a_step_and_shared_equally() -> None:
    assert energy(ONLY_LAYERS, Work(50, 0), Work(1, 20)) == (SMALL.layers / 2, SMALL.layers / 2)
    assert request_energy_joules(SMALL, ONLY_LAYERS, 50, 7, 2, 2) == 7 * SMALL.layers


def test_no_work_has_no_parts() -> None:
    assert energy(H100) == ()


@pytest.mark.parametrize(
    ("new_tokens", "context_tokens", "message"),
    [(0, 5, "new_tokens must be at least 1, got 0"), (1, -1, "context_tokens must be at least 0, got -1")],
)
def test_impossible_work_is_refused(new_tokens: int, context_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Work(new_tokens, context_tokens)


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_a_request_without_tokens_is_refused(name: str) -> None:
    tokens = {"input_tokens": 5, "output_tokens": 5} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        request_energy_joules(SMALL, H100, bytes_per_parameter=2, bytes_per_kv=2, **tokens)


@pytest.mark.parametrize("name", ["joules_per_flop", "joules_per_byte", "joules_per_layer", "idle_watts"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_prices_are_refused(name: str, value: float) -> None:
    figures = {"joules_per_flop": 1.0, "joules_per_byte": 1.0, "joules_per_layer": 1.0, "idle_watts": 1.0}
    figures[name] = value
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
        DevicePrices(source="test", **figures)

"""Which token is chosen, and that it depends on nothing but the row's own logits, parameters, seed and index."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import CANDIDATES, History, SamplingBatch, SamplingParams, sample, uniforms
from engine.suppression import Suppression, TokenIndex

DRAWS = 20_000
LOGITS = torch.tensor([1.0, 3.0, -2.0, 2.0, 0.0, 2.5])


def frequencies(params: SamplingParams, logits: torch.Tensor = LOGITS, draws: int = DRAWS) -> npt.NDArray[np.float64]:
    """Shares of the tokens over output indices 0, 1, 2, …"""
    batch = SamplingBatch.of([params] * draws, range(draws))
    return np.bincount(sample(logits.expand(draws, -1), batch), minlength=len(logits)) / draws


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0), [0, 1, 2, 3, 4, 5]),
        (SamplingParams(temperature=0.5), [0, 1, 2, 3, 4, 5]),
        (SamplingParams(temperature=3.0), [0, 1, 2, 3, 4, 5]),
        (SamplingParams(temperature=1.0, top_k=3), [1, 5, 3]),
        (SamplingParams(temperature=2.0, top_k=1), [1]),
        (SamplingParams(temperature=1.0, top_k=99), [0, 1, 2, 3, 4, 5]),
        # Probabilities from the top: 0.441, 0.268, 0.162, 0.060, 0.022, 0.003.
        (SamplingParams(temperature=1.0, top_p=0.40), [1]),
        (SamplingParams(temperature=1.0, top_p=0.60), [1, 5]),
        (SamplingParams(temperature=1.0, top_p=0.85), [1, 5, 3]),
        # Renormalised over three tokens: 0.506, 0.307, 0.186, so that two of them reach 0.8.
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.8), [1, 5]),
        (SamplingParams(temperature=1.0, top_p=1e-9), [1]),
        # Shares of the most probable: 1, 0.607, 0.368, 0.135, 0.050, 0.007.
        (SamplingParams(temperature=1.0, min_p=0.3), [1, 5, 3]),
        (SamplingParams(temperature=1.0, min_p=1.0), [1]),
        # At twice the temperature, their square roots.
        (SamplingParams(temperature=2.0, min_p=0.3), [1, 5, 3, 0]),
        (SamplingParams(temperature=1.0, top_k=2, min_p=0.3), [1, 5]),
        (SamplingParams(temperature=1.0, top_p=0.99, min_p=0.5), [1, 5]),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams, kept: list[int]) -> None:
    expected = np.zeros(len(LOGITS))
    expected[kept] = softmax(LOGITS.double().numpy()[kept] / params.temperature)
    found = frequencies(params)
    assert set(np.flatnonzero(found)) <= set(kept)
    # Four standard deviations of a share.
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0, top_p=0.5), 500),
        (SamplingParams(temperature=1.0, top_k=300), 300),
        (SamplingParams(temperature=1.0, top_k=300, top_p=0.5), 150),
        (SamplingParams(temperature=1.0, top_k=20, top_p=0.5), 10),
        # The least probable candidate is e^-0.00128 of the most probable one: the cut is far beyond the candidates.
        (SamplingParams(temperature=1.0, min_p=0.99501), 501),
        (SamplingParams(temperature=1.0, min_p=0.99905), 96),
    ],
)
def test_limits_hold_in_a_large_even_vocabulary(params: SamplingParams, kept: int) -> None:
    # Falls so slowly that the most likely are known and all are about even.
    logits = -torch.arange(1000) * 1e-5
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    found = frequencies(params, logits[shuffled], draws=5000)
    rank = shuffled[torch.from_numpy(np.flatnonzero(found))]
    # Half of the probability lies a little before the half of the tokens; a few are never drawn.
    assert kept * 0.97 - 1 <= len(rank) <= kept
    assert rank.max() < kept


def kept_by_definition(probabilities: npt.NDArray[np.float64], one: SamplingParams) -> npt.NDArray[np.float64]:
    """The probabilities with 0 for what is left out: everything sorted, the lower id first among equals."""
    order = np.argsort(-probabilities, kind="stable")[: one.top_k or None]
    falling = probabilities[order]
    total = falling.sum() if one.top_k else 1.0
    before = np.cumsum(falling) - falling
    order = order[(before < one.top_p * total) & (falling >= falling[0] * one.min_p)]
    kept = np.zeros_like(probabilities)
    kept[order] = probabilities[order]
    return kept


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    # Of few values there are many equals; of values on both sides of a wide gap, a pivot finds nothing between.
    st.sampled_from(["even", "normal", "few values", "all equal", "two heaps", "one far below"]),
    st.sampled_from([(0, 0.9123), (0, 0.5777), (200, 1.0), (600, 0.7111), (2500, 0.3), (0, 0.999999)]),
    st.sampled_from([0.0, 0.0, 0.97]),
)
def test_a_wide_choice_is_as_if_all_had_been_sorted(
    seed: int, shape: str, limits: tuple[int, float], min_p: float
) -> None:
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal(2000).astype(np.float32) * {"even": 0.01}.get(shape, 0.5)
    if shape == "few values":
        drawn = np.round(drawn * 2)
    elif shape == "all equal":
        drawn[:] = 1
    elif shape == "two heaps":
        drawn[generator.integers(0, 2000, 1000)] -= 60
    elif shape == "one far below":
        drawn[7] = -1e30
    one = SamplingParams(temperature=1.0, top_k=limits[0], top_p=limits[1], min_p=min_p, seed=seed)
    kept = kept_by_definition(softmax(drawn.astype(np.float64)), one)
    if np.count_nonzero(kept) <= CANDIDATES:
        return
    draws = 20
    batch = SamplingBatch.of([one] * draws, range(draws))
    cumulative = np.cumsum(kept)
    expected = np.searchsorted(cumulative, uniforms(batch.seed, batch.output_index) * cumulative[-1], side="right")
    assert sample(torch.from_numpy(drawn).expand(draws, -1), batch).tolist() == expected.tolist()


def test_greedy_takes_the_most_likely_and_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert sample(logits, SamplingBatch.of([SamplingParams()] * 2, [0, 3])).tolist() == [1, 0]


def test_a_tiny_temperature_is_greedy_and_a_huge_one_even() -> None:
    assert frequencies(SamplingParams(temperature=1e-300))[1] == 1
    np.testing.assert_allclose(frequencies(SamplingParams(temperature=1e9)), 1 / 6, atol=0.015)


def test_seeds_differ() -> None:
    batch = SamplingBatch.of([SamplingParams(temperature=1.0, seed=seed) for seed in range(DRAWS)], [0] * DRAWS)
    found = np.bincount(sample(LOGITS.expand(DRAWS, -1), batch), minlength=6) / DRAWS
    np.testing.assert_allclose(found, softmax(LOGITS.double().numpy()), atol=0.015)


def test_uniforms_are_even_independent_and_fixed_for_good() -> None:
    seed = np.repeat(np.arange(200, dtype=np.uint64), 200)
    index = np.tile(np.arange(200, dtype=np.uint64), 200)
    drawn = uniforms(seed, index)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    # 49 degrees of freedom: mean 49, standard deviation 9.9.
    assert ((counts - 800) ** 2 / 800).sum() < 90
    grid = drawn.reshape(200, 200)
    for one, other in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    # A change here would make every resumed answer jump.
    fixed = uniforms(np.array([0, 1, 2**64 - 1], np.uint64), np.array([0, 7, 2**32], np.uint64))
    np.testing.assert_allclose(fixed, FIXED_UNIFORMS, rtol=0, atol=1e-15)


def splitmix64(x: int) -> int:
    """The published finaliser in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


FIXED_UNIFORMS = [
    (splitmix64(splitmix64(seed) ^ index) >> 11) / 2**53 for seed, index in ((0, 0), (1, 7), (2**64 - 1, 2**32))
]

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 12, 200]),
    top_p=st.sampled_from([0.1, 0.7, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.7]),
    logit_bias=st.sampled_from([(), (), ((3, 2.5), (7, -1.0))]),
    suppression=st.sampled_from([None, None, Suppression(TokenIndex([b"", b"a", b"ba", b"c"]), ["a"])]),
    logprobs=st.sampled_from([None, None, 0, 3]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(params, st.integers(0, 2**31)), min_size=1, max_size=8),
    st.sampled_from([11, 400]),
    st.integers(0, 2**32 - 1),
)
def test_a_row_does_not_depend_on_its_neighbours(
    rows: list[tuple[SamplingParams, int]], vocabulary: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed).standard_normal((len(rows), vocabulary))
    logits = torch.from_numpy(drawn.astype(np.float32)) * 3
    histories = [history_of(one) for one, _ in rows]
    together = sample(logits, SamplingBatch.of([one for one, _ in rows], [index for _, index in rows], [*histories]))
    for row, (one, index) in enumerate(rows):
        own = history_of(one)
        alone = sample(logits[row : row + 1], SamplingBatch.of([one], [index], [own]))
        assert alone.tolist() == [together[row]]
        assert (own and own.chosen) == (histories[row] and histories[row].chosen)


def history_of(params: SamplingParams, answer: tuple[int, ...] = ()) -> History | None:
    """After a prompt of the tokens 0 and 4."""
    if not params.depends_on_history:
        return None
    history = History(params, [0, 4])
    for token_id in answer:
        history.push(token_id)
    return history


def chosen_among(params: SamplingParams, answer: tuple[int, ...] = (), logits: torch.Tensor = LOGITS) -> int:
    before = logits.clone()
    (token_id,) = sample(logits[None], SamplingBatch.of([params], [0], [history_of(params, answer)])).tolist()
    assert torch.equal(logits, before)
    return token_id


def test_a_penalty_falls_on_prompt_and_answer_whatever_the_sign() -> None:
    # 3 / 1.1 still leads; 3 / 1.3 does not; 2.5 / 1.3 and 3 / 1.3 leave 2.0 behind, and so on.
    assert chosen_among(SamplingParams(repetition_penalty=1.1), (1,)) == 1
    assert chosen_among(SamplingParams(repetition_penalty=1.3), (1,)) == 5
    assert chosen_among(SamplingParams(repetition_penalty=1.6), (1, 5)) == 3
    # The prompt held tokens 0 and 4.
    assert chosen_among(SamplingParams(repetition_penalty=1.6), logits=torch.tensor([2.0, 1.5, 0, 0, 0, 0])) == 1
    negative = torch.tensor([-2.0, -3.0, -9, -9, -9, -9])
    assert chosen_among(SamplingParams(repetition_penalty=1.6), logits=negative) == 1
    assert chosen_among(SamplingParams(repetition_penalty=0.5), (3,)) == 3
    # However often it occurred, once.
    assert chosen_among(SamplingParams(repetition_penalty=1.1), (1, 1, 1)) == 1


def test_a_bias_is_added_to_the_logits_and_after_the_penalty() -> None:
    assert chosen_among(SamplingParams(logit_bias=((2, 5.1),))) == 2
    assert chosen_among(SamplingParams(logit_bias=((2, 4.9),))) == 1
    assert chosen_among(SamplingParams(logit_bias=((1, -3.4e38), (5, -1.0)))) == 3
    assert chosen_among(SamplingParams(logit_bias=((1, 0.5),), repetition_penalty=1.3), (1,)) == 1


def test_a_suppressed_token_is_never_chosen_unless_there_is_no_other() -> None:
    index = TokenIndex([b"x", b"a", b"b", b"ca", b"", b"c"])
    assert chosen_among(SamplingParams(suppression=Suppression(index, ["a"]))) == 5
    # After "c", an "a" makes the word.
    assert chosen_among(SamplingParams(suppression=Suppression(index, ["ca"])), (5,)) == 5
    assert chosen_among(SamplingParams(suppression=Suppression(index, ["ca"])), (5, 0)) == 1
    everything = Suppression(TokenIndex([b"a"] * 6), ["a"])
    for temperature in (0.0, 1.0):
        assert 0 <= chosen_among(SamplingParams(temperature=temperature, suppression=everything)) < 6


def test_logprobs_are_those_of_the_model_itself() -> None:
    params = SamplingParams(temperature=5.0, logprobs=3, logit_bias=((2, 100.0),), repetition_penalty=2.0)
    history = history_of(params)
    assert sample(LOGITS[None], SamplingBatch.of([params], [0], [history])).tolist() == [2]
    assert history is not None and history.chosen is not None
    expected = np.log(softmax(LOGITS.double().numpy()))
    assert history.chosen.logprob == pytest.approx(expected[2])
    assert [token_id for token_id, _ in history.chosen.alternatives] == [1, 5, 3]
    assert [value for _, value in history.chosen.alternatives] == pytest.approx(expected[[1, 5, 3]])


def test_requests_that_ask_for_nothing_of_it_have_no_history() -> None:
    assert not SamplingParams(temperature=1.0, top_k=5, top_p=0.5, min_p=0.5, seed=3).depends_on_history
    assert SamplingBatch.of([SamplingParams()] * 2, [0, 0], [None, None]).histories == ()

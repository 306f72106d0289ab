from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.drift import MANY_SCORES, DriftDetector


def first_alarm(detector: DriftDetector, stream: Iterable[tuple[float, float]]) -> int | None:
    """How many scores it took to the first alarm."""
    for count, (quality, baseline) in enumerate(stream, start=1):
        if detector.update(quality, baseline):
            return count
    return None


@pytest.mark.parametrize(
    ("quality_chance", "baseline_chance", "floor"),
    [(0.9, 1.0, 0.9), (0.45, 0.5, 0.9), (0.5, 1.0, 0.5)],
)
def test_at_the_floor_the_mean_run_to_an_alarm_is_at_least_one_over_alpha(
    quality_chance: float, baseline_chance: float, floor: float
) -> None:
    alpha, runs = 0.05, []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        draws = rng.random((400, 2)) < (quality_chance, baseline_chance)
        runs.append(first_alarm(DriftDetector(floor, alpha), draws.astype(float).tolist()) or 400)
    standard_error = np.std(runs) / np.sqrt(len(runs))
    assert np.mean(runs) >= 1 / alpha - 3 * standard_error


def test_scores_without_a_lasting_shortfall_raise_no_alarm() -> None:
    draws = (np.random.default_rng(5).random(2000) < 0.99).astype(float)
    assert first_alarm(DriftDetector(0.95, 0.001), ((quality, 1.0) for quality in draws)) is None
    assert first_alarm(DriftDetector(1.0, 0.001), [(1.0, 1.0), (0.0, 0.0)] * 1000) is None


@pytest.mark.parametrize("good", [0, 10, 1000])
def test_a_collapse_is_found_within_twelve_scores_whatever_went_before(good: int) -> None:
    detector = DriftDetector(0.95, 0.001)
    assert first_alarm(detector, [(1.0, 1.0)] * good) is None
    alarm = first_alarm(detector, [(0.0, 1.0)] * 50)
    # Even the boldest bet, 1 + floor a score, needs 11 scores for capital of 1 / alpha.
    assert alarm in (11, 12)


def test_a_drop_to_three_fifths_is_found_within_forty_scores_on_the_mean() -> None:
    delays = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        detector = DriftDetector(0.95, 0.001)
        first_alarm(detector, [(1.0, 1.0)] * 200)
        draws = (rng.random(500) < 0.6).astype(float)
        delays.append(first_alarm(detector, ((quality, 1.0) for quality in draws)) or 500)
    assert np.mean(delays) <= 40


def drop_after(detector: DriftDetector, level: float, share: float, seed: int) -> int | None:
    """Scores from a drop to the alarm, where so much had been established."""
    draws = (np.random.default_rng(seed).random(3000) < share).astype(float)
    return next((n for n, quality in enumerate(draws, start=1) if detector.update(quality, 1.0, level)), None)


def test_a_drop_from_what_was_established_is_found_sooner() -> None:
    def delay(level: float) -> float:
        found = [drop_after(DriftDetector(0.95, 0.01), level, 0.93, seed) for seed in range(40)]
        return float(np.median([3000 if one is None else one for one in found]))

    assert delay(0.97) <= 400 < delay(0.0)


def test_a_drop_that_stays_well_above_the_floor_rarely_raises_an_alarm() -> None:
    alarms = [drop_after(DriftDetector(0.85, 0.01), 0.99, 0.96, seed) for seed in range(20)]
    assert alarms.count(None) >= 17


def alarm_of(draws: Iterable[float], floor: float, level: float, before: int | None) -> int | None:
    """Scores to the first alarm, which throws away as many as these and `before` of them; None: as if it threw none."""
    detector = DriftDetector(floor, 0.01)
    stream = enumerate(draws, start=1)
    scores = (0 if before is None else before + n for n, _ in enumerate(draws, start=1))
    return next(
        (n for (n, q), thrown in zip(stream, scores, strict=False) if detector.update(q, 1.0, level, thrown)), None
    )


def test_thousands_of_scores_at_the_level_that_was_established_are_not_thrown_away() -> None:
    alarms: dict[int | None, int] = {None: 0, MANY_SCORES: 0}
    for seed in range(8):
        draws = (np.random.default_rng(seed).random(20_000) < 0.5).astype(float).tolist()
        for before in alarms:
            alarms[before] += alarm_of(draws, 0.45, 0.5, before) is not None
    assert alarms[MANY_SCORES] <= 1 < 7 <= alarms[None]


def test_a_drop_of_ten_points_after_three_thousand_scores_is_found_within_four_hundred() -> None:
    def delays(before: int | None) -> list[float]:
        drawn = ((np.random.default_rng(seed).random(3000) < 0.86).astype(float).tolist() for seed in range(40))
        return [alarm_of(draws, 0.9, 0.95, before) or np.inf for draws in drawn]

    few, many = delays(None), delays(3000)
    assert np.median(few) < np.median(many) <= 250
    assert max(many) <= 600


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 60)), min_size=1, max_size=8),
    level=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    floor=st.sampled_from([0.3, 0.5, 0.9]),
    before=st.integers(0, 20_000),
)
def test_many_scores_never_bring_an_alarm_forward(
    runs: list[tuple[float, int]], level: float, floor: float, before: int
) -> None:
    """So that the mean run to a false one is what it is without them, or longer."""
    draws = [quality for quality, count in runs for _ in range(count)]
    plain, of_many = alarm_of(draws, floor, level, None), alarm_of(draws, floor, level, before)
    assert of_many is None or (plain is not None and plain <= of_many)
    if before + len(draws) <= MANY_SCORES:
        assert of_many == plain


def test_a_proven_change_is_forgotten_in_time() -> None:
    """Long after, what is above the floor must not be one unlucky streak from an alarm."""
    detector = DriftDetector(0.9, 0.01)
    assert not any(detector.update(float(index % 25 != 0), 1.0, 0.99) for index in range(6000))
    assert not any(detector.update(1.0, 1.0, 0.99) for _ in range(3000))
    assert not any(detector.update(0.0, 1.0, 0.99) for _ in range(6))


def test_after_an_alarm_it_begins_anew() -> None:
    detector = DriftDetector(0.95, 0.001)
    first = first_alarm(detector, [(0.0, 1.0)] * 50)
    assert first_alarm(detector, [(0.0, 1.0)] * 50) == first


@pytest.mark.parametrize(("floor", "alpha"), [(0.0, 0.1), (1.1, 0.1), (float("nan"), 0.1), (0.9, 0.0), (0.9, 1.0)])
def test_parameters_out_of_range_are_refused(floor: float, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"floor|alpha"):
        DriftDetector(floor, alpha)


def test_a_score_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="baseline_quality"):
        DriftDetector(0.9, 0.1).update(1.0, float("nan"))

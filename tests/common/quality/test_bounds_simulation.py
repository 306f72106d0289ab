"""What the bounds promise, by simulation: the small, seeded sister of `tests/bench/bounds.py`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from common.quality.bound import Cell, Floor, FloorKind, PairedScore
from common.quality.confidence import ShareSequence
from common.quality.estimates import Estimates
from tests.bench.betting_streams import ALPHA, DRIFT_ALPHA, FLOOR, Epochs, betting, bound, decayed, draw, first, peeking
from tests.bench.bounds import alarms, false_openings, fixed_size, opened, openings
from tests.bench.score_laws import LAWS
from tests.bench.tenant_bounds import TENANTS, tenant

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CELL = Cell("demo@abc", "qa", "L1")


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("share", [0.93, 0.97])
def test_laws_have_the_share_they_are_asked_for(name: str, share: float) -> None:
    law = LAWS[name]
    chances = law.chances(share)
    assert chances.sum() == pytest.approx(1)
    assert (chances >= 0).all()
    assert chances @ law.quality == pytest.approx(share * (chances @ law.baseline))


@pytest.mark.parametrize("name", LAWS)
def test_the_simulation_opens_and_closes_when_estimates_do(name: str) -> None:
    """On one stream that opens and then collapses, score by score."""
    law = LAWS[name]
    rng = np.random.default_rng(3)
    best = int(np.argmax(law.quality * law.baseline))
    pairs = np.concatenate([np.full(300, best), draw(law, np.full(150, 0.6), rng)])
    at = int(first(betting(law, FLOOR)(pairs[None, :]))[0])
    state = Estimates(lambda cell: (Floor(FLOOR, FloorKind.RELATIVE),), ALPHA, DRIFT_ALPHA)
    sequence = ShareSequence(ALPHA)
    counts = np.zeros((1, len(law.quality)), np.int64)
    for number, pair in enumerate(pairs, start=1):
        quality, baseline = float(law.quality[pair]), float(law.baseline[pair])
        if state.observe(PairedScore(CELL, f"{number:04d}", quality, baseline, "judge", "1", NOW)):
            assert number > at
            return
        sequence.update(quality, baseline)
        counts[0, pair] += 1
        assert (state.settled(CELL, FLOOR, FloorKind.RELATIVE) == "open") == (number >= at)
        if number == 100:
            assert bound(law, counts.astype(float), lower=True)[0] <= sequence.lower + 1e-9
    raise AssertionError("the collapse was not noticed")


def test_a_cell_below_its_floor_is_rarely_open_at_any_time() -> None:
    runs = 100
    found = false_openings(runs, evaluations=4, seed=1)
    assert found["worst_cell"] * runs <= binom.ppf(0.999, runs, ALPHA)
    assert found["family_of_12"] <= sum(found["by_cell"].values())


@pytest.mark.parametrize("fault", [peeking, decayed])
def test_rules_without_a_guarantee_are_told_from_the_one_in_force(fault: object) -> None:
    law, runs = LAWS["L0 right on 90 %"], 100
    pairs = draw(law, np.full((runs, 800), FLOOR - 0.002), np.random.default_rng(5))
    tolerated = binom.ppf(0.999, runs, ALPHA)
    assert betting(law, FLOOR)(pairs).any(1).sum() <= tolerated
    assert fault(law, FLOOR)(pairs).any(1).sum() > tolerated  # type: ignore[operator]


@pytest.mark.parametrize("name", ["L0 always right", "L0 right on 90 %", "items in parts"])
def test_three_points_above_the_floor_it_opens_with_few_more_samples_than_a_fixed_size_test(name: str) -> None:
    law, share = LAWS[name], FLOOR + 0.03
    samples = openings(law, share, runs=200, horizon=4000, seed=2)
    for power in (0.8, 0.9):
        budget = np.quantile(samples, power, method="inverted_cdf")
        assert np.minimum(samples, budget).mean() <= 2.5 * fixed_size(law, share, power)


@pytest.mark.parametrize("name", ["L0 always right", "items in parts"])
def test_a_drop_of_five_points_closes_within_seven_hundred_samples_in_the_median(name: str) -> None:
    law = LAWS[name]
    counts = opened(law, 0.98, 1000, 100, np.random.default_rng(1))
    assert len(counts) >= 90
    found = alarms(law, np.full(1000, 0.93), counts, seed=2)
    assert np.median(found["constant threshold"]) <= 400
    assert np.median(found["in force"]) <= 500
    assert np.median(found["in force"]) < np.median(found["level = floor"])
    without = alarms(law, np.full(1000, 0.98), counts, seed=3)
    assert (without["in force"] <= 1000).mean() <= 0.05


@pytest.mark.parametrize("name", LAWS)
def test_the_simulation_of_tenants_opens_and_closes_when_estimates_do(name: str) -> None:
    """On one stream of two tenants, score by score: one far below the floor, one far above."""
    law, rng = LAWS[name], np.random.default_rng(4)
    its = rng.random(500) < 0.5
    pairs = draw(law, np.where(its, 0.5, 0.99), rng)
    state = Estimates(lambda cell: (Floor(FLOOR, FloorKind.RELATIVE),), ALPHA, DRIFT_ALPHA)
    simulated = {name: Epochs(law, 1) for name in ("low", "high")}
    for number, (low, pair) in enumerate(zip(its, pairs, strict=True)):
        who, quality, baseline = "low" if low else "high", float(law.quality[pair]), float(law.baseline[pair])
        score = PairedScore(CELL, f"{number:04d}", quality, baseline, "judge", "1", NOW, tenant=who)
        if any(start.cell.tenant == who for start in state.observe(score)):
            break
        simulated[who].add(np.zeros(1, np.int64), pair[None])
        for tenant_name, epochs in simulated.items():
            verdict = state.settled(replace(CELL, tenant=tenant_name), FLOOR, FloorKind.RELATIVE)
            assert (verdict == "open") == epochs.opened[0]
            assert (verdict == "closed") == (epochs.closed[0] and not epochs.opened[0])
    assert simulated["low"].closed[0]


def test_a_tenant_of_low_quality_is_closed_by_its_own_bound_where_all_together_are_open() -> None:
    law, runs = LAWS["items in parts"], 100
    low, even, high = (
        tenant(law, next(of for name, of in TENANTS.items() if name.startswith(case)), runs, scores, seed=6)
        for case, scores in (("5 points below", 1500), ("just below", 600), ("3 points above", 1500))
    )
    assert low["ever_open_by_all_together"] > 0.9
    assert low["ever_closed_by_its_own"] > 0.8
    assert low["time_open"] < 0.6 * low["time_open_by_all_together_alone"]
    assert max(of["ever_open_by_its_own"] for of in (low, even)) * runs <= binom.ppf(0.999, runs, ALPHA)
    assert high["ever_open_by_its_own"] > 0.7
    assert high["ever_open_by_all_together"] * runs <= binom.ppf(0.999, runs, ALPHA)

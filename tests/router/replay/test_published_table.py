"""The published policies on the published measurements come out near the published table: so the replay is believed."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from router.replay.demand import PUBLISHED_TASKS, Demand, published_demand, read_load
from router.replay.outcome import Outcome
from router.replay.policies.named import POLICIES
from router.replay.policies.sprout import runs
from router.replay.recordings import RecordedSet
from router.replay.replay import Terms, replay
from router.replay.requests_file import read_requests
from router.replay.trace import read_trace

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs sprout from PITH_DATA_DIR")

PUBLISHED = {
    "US-TEX-ERCO": {"co2_opt": (86.0, 71.1), "static": (49.4, 95.3), "sprout": (52.0, 94.4), "oracle": (64.5, 94.6)},
    "US-CAL-CISO": {"co2_opt": (85.9, 71.1), "static": (47.7, 95.5), "sprout": (58.3, 93.4), "oracle": (72.6, 93.1)},
    "AU-SA": {"co2_opt": (86.0, 71.1), "static": (24.2, 97.7), "sprout": (43.8, 96.8), "oracle": (65.3, 96.3)},
    "NL": {"co2_opt": (85.8, 71.1), "static": (42.9, 96.0), "sprout": (56.3, 92.6), "oracle": (73.4, 93.2)},
    "GB": {"co2_opt": (85.7, 71.1), "static": (41.1, 96.1), "sprout": (57.1, 92.0), "oracle": (72.4, 93.7)},
}
"""Saving and preference, % of base, of the window at hour 800 with xi = 0.1."""
RUNS = {"US-TEX-ERCO": 46, "US-CAL-CISO": 29, "AU-SA": 46, "NL": 40, "GB": 34}
START_HOUR, HOURS = 800, 720
SEEDS = 3


@cache
def measured() -> RecordedSet:
    return read_requests(DATA / "requests_dev.jsonl.gz")


def demand(requests_per_hour: float) -> Demand:
    return published_demand(read_load(DATA / "pai.csv"), measured().tasks, HOURS, requests_per_hour, 0)


def outcome(zone: str, name: str, requests_per_hour: float = 2500, seed: int = 0) -> Outcome:
    trace = read_trace(DATA / "carbon" / f"{zone}_2023_hourly.csv.gz")
    chosen = {name: POLICIES[name]}
    return replay(measured(), trace, START_HOUR, demand(requests_per_hour), chosen, Terms(seed=seed))[name]


def test_the_mix_is_the_published_one() -> None:
    mix = dict(zip(measured().tasks, demand(2500).mix.mean(axis=0).round(3), strict=True))
    assert [mix[task] for task in PUBLISHED_TASKS] == [0.144, 0.159, 0.120, 0.229, 0.195, 0.152]


@pytest.mark.parametrize("zone", PUBLISHED)
def test_the_evaluator_runs_as_often_as_published(zone: str) -> None:
    window = read_trace(DATA / "carbon" / f"{zone}_2023_hourly.csv.gz").g_per_kwh[START_HOUR : START_HOUR + HOURS]
    last, found = 0, 0
    for hour in range(1, HOURS):
        if runs(window, hour, last):
            last, found = hour, found + 1
    assert found == RUNS[zone]


@pytest.mark.parametrize("zone", PUBLISHED)
@pytest.mark.parametrize(("name", "points"), [("co2_opt", 1.0), ("static", 6.0), ("oracle", 1.0)])
def test_policies_that_draw_no_samples_are_near_the_table(zone: str, name: str, points: float) -> None:
    found = outcome(zone, name)
    saving, preference = PUBLISHED[zone][name]
    assert 100 * found.carbon_saving == pytest.approx(saving, abs=points)
    assert found.preference is not None
    assert 100 * found.preference == pytest.approx(preference, abs=0.7)
    assert found.evaluator_grams == 0.0


def test_sprout_is_near_the_table() -> None:
    """Its saving by itself has a standard deviation of several points over what its evaluator happens to draw; how many
    requests there are beside does not matter to that."""
    off = []
    for zone, of in PUBLISHED.items():
        found = [outcome(zone, "sprout", 300, seed) for seed in range(SEEDS)]
        assert [one.evaluator_runs for one in found] == [RUNS[zone]] * SEEDS
        saving = 100 * np.mean([one.carbon_saving_without_evaluator for one in found])
        off.append(abs(saving - of["sprout"][0]))
        assert off[-1] <= 9, zone
        preference = 100 * np.mean([one.preference or np.nan for one in found])
        assert preference == pytest.approx(of["sprout"][1], abs=2.5)
        assert all(one.carbon_saving < one.carbon_saving_without_evaluator for one in found)
    assert np.mean(off) <= 4

"""The published policies and the bound beside them, on requests whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.optimizer.solve import Candidate, solve
from router.replay.demand import Demand
from router.replay.policies.hindsight import Hindsight
from router.replay.policies.interface import Scope
from router.replay.policies.named import POLICIES, check_known
from router.replay.policies.oracle import ranked
from router.replay.policies.published_floor import floor_share, shares
from router.replay.policies.sprout import GRACE_HOURS, MOST_IDLE_HOURS, SAMPLES, runs
from router.replay.recordings import Floats, Quality, RecordedSet
from router.replay.replay import Terms, replay
from router.replay.trace import Year
from tests.router.replay.planted import PREFERENCE, demand, recorded, trace

YEAR = Year(50.0, 450.0, 200.0, "planted")


positive = st.floats(0.01, 1.0)


@given(st.lists(positive, min_size=3, max_size=3), st.lists(positive, min_size=3, max_size=3), st.floats(0.7, 1.0))
@settings(deadline=None)
def test_shares_are_the_linear_programmes_optimum(cost: list[float], liked: list[float], floor: float) -> None:
    grams, quality = np.array(cost), np.array(liked) / sum(liked)
    found = shares(grams, quality, floor)
    least = floor * quality[0]
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all() and np.count_nonzero(found > 1e-6) <= 2
    assert found @ quality >= least - 1e-6
    solved = solve([Candidate(str(i), g, q) for i, (g, q) in enumerate(zip(cost, quality, strict=True))], least)
    assert found @ grams == pytest.approx(sum(share * cost[int(level)] for level, share in solved), rel=1e-5, abs=1e-6)


def test_without_a_loss_allowed_l0_is_served_where_it_is_liked_best() -> None:
    grams, quality = np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.3, 0.2])
    assert shares(grams, quality, floor_share(250.0, YEAR, 0.0)).tolist() == [1.0, 0.0, 0.0]
    assert shares(grams, quality, floor_share(YEAR.least, YEAR, 0.1)).tolist() == [1.0, 0.0, 0.0]
    # Cleaner than the year's least: more than any level keeps is asked for.
    assert shares(grams, quality, floor_share(10.0, YEAR, 0.1)).tolist() == [1.0, 0.0, 0.0]


def test_the_floor_falls_with_the_intensity() -> None:
    assert [floor_share(k, YEAR, 0.1) for k in (50.0, 250.0, 450.0)] == pytest.approx([1.0, 0.95, 0.9])
    flat = Year(100.0, 100.0, 100.0, "flat")
    assert floor_share(100.0, flat, 0.1) == 1.0


def run_hours(window: Floats) -> list[int]:
    hours = [0]
    for hour in range(1, len(window)):
        if runs(window, hour, hours[-1]):
            hours.append(hour)
    return hours


@given(st.lists(st.floats(1.0, 500.0), min_size=20, max_size=300))
@settings(deadline=None)
def test_the_evaluators_trigger_holds_its_rules(values: list[float]) -> None:
    window = np.array(values)
    for last, hour in itertools.pairwise(run_hours(window)):
        idle = hour - last
        assert GRACE_HOURS < idle <= MOST_IDLE_HOURS
        if idle < MOST_IDLE_HOURS:
            assert window[hour] <= window.mean()
            urged = [window[h] * math.exp(0.029 * (h - last)) for h in (hour - 2, hour - 1, hour)]
            assert urged[1] <= urged[0] and urged[2] >= urged[1]


def test_urgency_runs_the_evaluator_while_intensity_still_falls_a_little() -> None:
    steep = 200.0 * 0.9 ** np.arange(10)
    falling = np.concatenate([np.full(20, 300.0), steep, steep[-1] * 0.99 ** np.arange(1, 20)])
    assert run_hours(falling) == [0, 30]


def test_an_even_grid_has_the_evaluator_run_when_it_has_to() -> None:
    assert run_hours(np.full(200, 100.0)) == [0, 72, 144]


def test_sprout_pays_for_all_levels_of_its_samples() -> None:
    of, grid = recorded(1500), trace()
    found = replay(of, grid, 200, demand(96), {"sprout": POLICIES["sprout"]}, Terms())["sprout"]
    judged = [hour for hour, outcome in enumerate(found.hours) if outcome.evaluator_samples]
    window = grid.g_per_kwh[200:296]
    assert judged == run_hours(window)
    assert (found.evaluator_runs, found.evaluator_samples) == (len(judged) - 1, SAMPLES * len(judged))
    kwh = demand(96).mix[judged] @ of.means(of.joules).sum(axis=1) * SAMPLES / 3.6e6
    assert found.evaluator_grams == pytest.approx(kwh @ window[judged], rel=0.05)
    assert found.preference is not None
    assert 0.85 < found.preference < 1.0


def test_oracle_gives_the_lower_level_to_those_that_save_most() -> None:
    own = np.array([[10.0, 1.0, 0.5], [5.0, 1.0, 0.5], [20.0, 1.0, 0.5], [3.0, 1.0, 0.5]])
    mean = own.mean(axis=0)
    assert ranked(own, np.array([0.5, 0.5, 0.0]), mean).tolist() == [1, 0, 1, 0]
    assert ranked(own, np.array([0.0, 1.0, 0.0]), mean).tolist() == [1, 1, 1, 1]
    assert ranked(own, np.array([0.25, 0.0, 0.75]), mean).tolist() == [2, 2, 2, 0]


def test_base_and_co2_opt_are_the_ends() -> None:
    of = recorded()
    found = replay(of, trace(), 0, demand(48), {name: POLICIES[name] for name in ("base", "co2_opt")}, Terms())
    assert (found["base"].carbon_saving, found["base"].preference) == (0.0, 1.0)
    assert found["co2_opt"].directive_mix == {"L0": 0.0, "L1": 0.0, "L2": 1.0}
    # Also where the greatest energy is at the level with the longest name.
    assert found["co2_opt"].carbon_saving == pytest.approx(0.8, abs=0.05)


def test_static_has_one_mix_and_keeps_its_floor() -> None:
    of, grid = recorded(), trace()
    found = replay(of, grid, 100, demand(480), {"static": POLICIES["static"]}, Terms())["static"]
    assert found.preference == pytest.approx(floor_share(grid.year.mean, grid.year, 0.1), abs=0.01)
    by_hour = np.array([hour.actions for hour in found.hours]) / 400
    assert by_hour.std(axis=0).max() < 0.03


def test_static_of_later_windows_goes_by_the_month_before() -> None:
    of, grid = recorded(), trace()
    before = floor_share(float(grid.g_per_kwh[81:801].mean()), grid.year, 0.1)
    at_mean = floor_share(grid.year.mean, grid.year, 0.1)
    grid.g_per_kwh[81:801] += 80
    late = replay(of, grid, 801, demand(150), {"static": POLICIES["static"]}, Terms())["static"]
    early = replay(of, grid, 800, demand(150), {"static": POLICIES["static"]}, Terms())["static"]
    assert late.carbon_saving > early.carbon_saving + 0.05
    assert before == pytest.approx(at_mean, abs=0.02)


def test_oracle_beats_a_blind_mix_at_the_same_shares() -> None:
    of = recorded()
    names = ("sprout", "oracle", "static")
    found = replay(of, trace(), 100, demand(240), {name: POLICIES[name] for name in names}, Terms())
    assert found["oracle"].carbon_saving > found["static"].carbon_saving + 0.05


@pytest.mark.parametrize("scope", [*Scope])
@pytest.mark.parametrize("quality", [*Quality])
@pytest.mark.parametrize("floor", [0.9, 1.0])
def test_hindsight_keeps_the_floors_that_are_reported(quality: Quality, scope: Scope, floor: float) -> None:
    of = recorded()
    terms = Terms(quality=quality, floor=floor, scope=scope)
    found = replay(of, trace(), 100, demand(240, 2000), {"hindsight": POLICIES["hindsight"]}, terms)["hindsight"]
    assert found.carbon_saving > 0.1
    if quality is Quality.PREFERENCE and scope is Scope.WINDOW:
        assert found.preference == pytest.approx(floor, abs=0.01)
        return
    kept = dict(found.task_preference)
    if quality is Quality.ACCURACY:
        kept |= found.accuracy
    if scope is Scope.TASK:
        assert min(one.share for one in kept.values()) == pytest.approx(floor, abs=0.02)
    else:
        assert kept["chat"].share == pytest.approx(floor, abs=0.02)


@pytest.mark.parametrize("scope", [*Scope])
def test_hindsight_is_no_worse_than_any_mix_of_its_kind(scope: Scope) -> None:
    """By brute force over the vertices of a window of two hours and one task."""
    of = recorded()
    only = Demand(np.array([1000, 3000]), np.tile([0.0, 0.0, 1.0], (2, 1)))
    grid, floor = trace(), 0.9
    terms = Terms(floor=floor, scope=scope)
    found = replay(of, grid, 6, only, {"hindsight": POLICIES["hindsight"]}, terms)["hindsight"]
    joules = of.means(of.joules)[2]
    weight = np.array([1000, 3000]) * grid.g_per_kwh[6:8]
    quality = PREFERENCE[2]
    steps = [np.array(x) / 20 for x in itertools.product(range(21), repeat=3) if sum(x) == 20]
    hours = np.array([1000, 3000]) / 4000 if scope is Scope.TASK else np.array([0.5, 0.5])
    best = min(
        weight[0] * (one @ joules) + weight[1] * (other @ joules)
        for one, other in itertools.product(steps, steps)
        if hours[0] * (one @ quality) + hours[1] * (other @ quality) >= floor * quality[0] - 1e-9
    )
    base = weight.sum() * joules[0]
    assert found.carbon_saving >= 1 - best / base - 0.01


def test_hindsight_says_where_no_mix_keeps_the_floor() -> None:
    of = recorded()
    terms = Terms(floor=2.0, scope=Scope.TASK)
    with pytest.raises(ValueError, match=r"floor 2\.0 cannot be kept"):
        replay(of, trace(), 0, demand(4), {"hindsight": Hindsight}, terms)


def test_what_was_not_judged_can_be_replayed_by_carbon_alone() -> None:
    of = recorded(30)
    of.preference[:7] = np.nan
    for name in ("base", "co2_opt"):
        check_known(name, of, Quality.PREFERENCE)
        assert replay(of, trace(), 0, demand(4), {name: POLICIES[name]}, Terms())[name].preference is None
    for name in ("static", "sprout", "oracle", "hindsight"):
        with pytest.raises(ValueError, match=f"policy {name} .* known of 83 of 90 prompts; base and co2_opt can"):
            check_known(name, of, Quality.PREFERENCE)
    graded = graded_only(of)
    check_known("hindsight", graded, Quality.ACCURACY)
    with pytest.raises(ValueError, match="policy sprout"):
        check_known("sprout", graded, Quality.ACCURACY)
    terms = Terms(quality=Quality.ACCURACY, floor=0.9)
    found = replay(graded, trace(), 0, even(graded), {"hindsight": Hindsight}, terms)["hindsight"]
    assert found.preference is None
    assert set(found.accuracy) == {"chat", "sums", "trivia"}


def graded_only(of: RecordedSet) -> RecordedSet:
    of.accuracy[of.task == 0] = np.tile([1.0, 1.0, 0.0], (int((of.task == 0).sum()), 1))
    return of


def even(of: RecordedSet) -> Demand:
    return Demand(np.full(6, 500), np.full((6, len(of.tasks)), 1 / len(of.tasks)))

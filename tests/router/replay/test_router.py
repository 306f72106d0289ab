"""The live router on planted requests: floors hold, evidence is paid for, and what was not judged is not known."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import router.replay.policies.router as module
from router.directives.bounds import Snapshot
from router.directives.decide import Facts, decide
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan
from router.replay.demand import Demand
from router.replay.outcome import Outcome
from router.replay.policies.evaluation import MODEL
from router.replay.policies.interface import Evaluator, Hour, Scope, Served, Setting
from router.replay.policies.named import POLICIES
from router.replay.policies.router import Router
from router.replay.recordings import Ints, Quality, RecordedSet
from router.replay.replay import MeteredEvaluator, Terms, replay
from router.replay.trace import Year
from tests.router.replay.planted import LEVELS, TASKS, demand, recorded, trace

HOURS, REQUESTS = 96, 1000
START_HOUR = 720


def run(terms: Terms, of: RecordedSet | None = None, wanted: Demand | None = None, name: str = "router") -> Outcome:
    if of is None and wanted is None:
        return ordinary(terms, name)
    policies = {name: POLICIES[name]}
    return replay(of or recorded(), trace(), START_HOUR, wanted or demand(HOURS, REQUESTS), policies, terms)[name]


@cache
def ordinary(terms: Terms, name: str) -> Outcome:
    policies = {name: POLICIES[name]}
    return replay(recorded(), trace(), START_HOUR, demand(HOURS, REQUESTS), policies, terms)[name]


@pytest.mark.parametrize("name", ["router", "router_strict"])
@pytest.mark.parametrize("labels", [True, False], ids=["named", "told"])
def test_a_floor_over_the_window_holds(name: str, labels: bool) -> None:
    found = run(Terms(floor=0.9, labels=labels), name=name)
    assert found.preference is not None
    assert found.preference >= 0.9
    assert found.carbon_saving > 0.1


@pytest.mark.parametrize("name", ["router", "router_strict"])
@pytest.mark.parametrize("labels", [True, False], ids=["named", "told"])
def test_a_floor_by_task_holds_for_every_task(name: str, labels: bool) -> None:
    found = run(Terms(floor=0.9, scope=Scope.TASK, labels=labels), name=name)
    assert set(found.task_preference) == set(TASKS)
    for task, kept in found.task_preference.items():
        assert kept.share >= 0.9, task
    assert found.carbon_saving > 0.1


def test_accuracy_holds_by_task_and_what_has_no_grader_goes_by_preference() -> None:
    found = run(Terms(quality=Quality.ACCURACY, floor=0.9, scope=Scope.TASK))
    assert found.accuracy["sums"].share >= 0.9
    assert found.accuracy["trivia"].share >= 0.9
    assert found.task_preference["chat"].share >= 0.9
    late = np.sum([hour.actions for hour in found.hours[48:]], axis=0)
    assert late[0] / late.sum() < 0.75  # trivia loses nothing


def test_over_the_window_what_has_no_grader_keeps_the_floor_by_itself() -> None:
    found = run(Terms(quality=Quality.ACCURACY, floor=0.9))
    assert found.task_preference["chat"].share >= 0.9
    values = [of.value / of.base for of in found.accuracy.values()]
    assert np.mean(values) >= 0.9
    assert found.carbon_saving > 0.1


@pytest.mark.parametrize("scope", list(Scope))
def test_a_budget_saves_more_than_a_floor_that_every_directive_keeps(scope: Scope) -> None:
    terms = Terms(floor=0.9, scope=scope, labels=True)
    mixed, strict = run(terms), run(terms, name="router_strict")
    assert mixed.carbon_saving > strict.carbon_saving + 0.02
    # Of chat and sums no directive keeps the floor.
    assert strict.task_preference["chat"].share == strict.task_preference["sums"].share == 1.0
    assert mixed.task_preference["chat"].share < 1.0


def test_a_days_budget_is_spent_in_the_dirty_hours() -> None:
    found = run(Terms(floor=0.9, labels=True), wanted=Demand(np.full(HOURS, REQUESTS), np.full((HOURS, 3), 1 / 3)))
    settled = range(48, HOURS)
    grid = trace().g_per_kwh[START_HOUR : START_HOUR + HOURS]
    mean = np.mean(grid[48:])
    shortened = [found.hours[hour].actions[1:].sum() for hour in settled]
    dirty = [count for hour, count in zip(settled, shortened, strict=True) if grid[hour] > mean]
    clean = [count for hour, count in zip(settled, shortened, strict=True) if grid[hour] <= mean]
    assert np.mean(dirty) > 1.1 * np.mean(clean)


def test_some_requests_are_held_back_and_tasks_that_are_not_told_stay_at_l0() -> None:
    only = Demand(np.full(60, 3000), np.tile([0.0, 0.0, 1.0], (60, 1)))
    found = run(Terms(floor=0.9, scope=Scope.TASK, labels=True), wanted=only)
    late = np.sum([hour.actions for hour in found.hours[48:]], axis=0)
    assert late[0] / late.sum() == pytest.approx(0.02, abs=0.005)
    # Texts that tell nothing: a floor for every task is one for tasks by name.
    silent = replace(recorded(), texts=tuple(f"{number}" for number in range(600)))
    assert run(Terms(floor=0.9, scope=Scope.TASK), silent, only).directive_mix["L0"] > 0.9
    assert run(Terms(floor=0.9), silent, only).directive_mix["L0"] < 0.9
    # What is told to be of no task may be graded or not.
    graded = Terms(quality=Quality.ACCURACY, floor=0.9)
    assert run(graded, silent, only).directive_mix["L0"] > 0.9


def test_nothing_is_shortened_before_something_was_judged_and_paid_for() -> None:
    found = run(Terms(floor=0.9))
    first = found.hours[0]
    assert first.actions.tolist() == [REQUESTS, 0, 0]
    assert first.evaluator_samples == 0
    judged = next(place for place, hour in enumerate(found.hours) if hour.evaluator_samples)
    assert all(hour.actions[1:].sum() == 0 for hour in found.hours[:judged])
    assert found.carbon_saving < found.carbon_saving_without_evaluator
    assert 0 < found.evaluator_grams < 0.1 * found.base_grams


def test_what_was_not_judged_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: set[int] = set()
    judge = MeteredEvaluator._judged

    def seen(*given: object) -> object:
        judged.update(given[1].tolist())  # type: ignore[attr-defined]
        return judge(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(MeteredEvaluator, "_judged", seen)
    of, wanted, terms = recorded(1500), demand(20, REQUESTS), Terms(floor=0.9)
    known = run(terms, of, wanted)
    others = np.setdiff1d(np.arange(len(of)), sorted(judged))
    assert len(others) > 0.6 * len(of)
    changed = of.preference.copy()
    changed[others] = 1.0 / 3.0
    other = run(terms, replace(of, preference=changed), wanted)
    assert known.directive_mix["L0"] < 0.9
    assert [hour.actions.tolist() for hour in other.hours] == [hour.actions.tolist() for hour in known.hours]


@pytest.mark.parametrize("name", ["router", "router_strict"])
def test_decisions_are_the_same_whatever_the_grid_does_later(name: str) -> None:
    changed, until = trace(), 40
    changed.g_per_kwh[START_HOUR + until :] = 900.0
    policies = {name: POLICIES[name]}
    one, other = (
        replay(recorded(), grid, START_HOUR, demand(72, 600), policies, Terms(floor=0.9))[name]
        for grid in (trace(), changed)
    )
    same = [
        a.actions.tolist() == b.actions.tolist() and a.evaluator_samples == b.evaluator_samples
        for a, b in zip(one.hours, other.hours, strict=True)
    ]
    assert all(same[:until])
    assert not all(same[until:])
    unlike = replace(trace(), year=Year(1.0, 5000.0, 300.0, "another"))
    another = replay(recorded(), unlike, START_HOUR, demand(72, 600), policies, Terms(floor=0.9))[name]
    assert another.carbon_grams == one.carbon_grams


def test_requests_are_served_as_the_live_decision_would(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Snapshot] = []

    def seen(snapshot: Snapshot, *given: object, **named: object) -> Plan:
        plan = make_plan(snapshot, *given, **named)  # type: ignore[arg-type]
        planned.append(replace(snapshot, plan=plan))
        return plan

    served: list[tuple[Ints, Ints]] = []

    class Watched(Router):
        def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
            chosen = super().decide(hour, evaluator)
            assert hour.tasks is not None
            served.append((hour.tasks, chosen))
            return chosen

    monkeypatch.setattr(module, "make_plan", seen)
    policies = {"own": lambda setting, truth: Watched(setting)}
    replay(recorded(), trace(), START_HOUR, demand(30, 5000), policies, Terms(floor=0.85, labels=True))
    mixed = 0
    for snapshot, (tasks, chosen) in list(zip(planned, served, strict=True))[-2:]:
        for place, task in enumerate(TASKS):
            facts = (Facts("", task, MODEL, str(key), str(key)) for key in range(5000))
            live = Counter(decide(one, snapshot, snapshot.plan.made_at).directive.name for one in facts)
            own = chosen[tasks == place]
            for level, name in enumerate(LEVELS):
                assert np.mean(own == level) == pytest.approx(live[name] / 5000, abs=0.05)
                mixed += 0.1 < live[name] / 5000 < 0.9
    assert mixed


def test_hidden_labels_are_not_asked_for_and_one_task_needs_no_telling() -> None:
    shown: list[bool] = []

    class Watched(Router):
        def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
            shown.append(hour.tasks is not None)
            return super().decide(hour, evaluator)

        def observe(self, served: Served) -> None:
            assert np.isnan(served.joules).any()
            super().observe(served)

    def factory(setting: Setting, truth: object) -> Watched:
        return Watched(setting)

    replay(recorded(60), trace(), START_HOUR, demand(6, 100), {"own": factory}, Terms())
    assert shown == [False] * 6
    whole = recorded()
    of = whole.task == 2
    alone = replace(
        whole,
        tasks=("trivia",),
        ids=tuple(np.array(whole.ids)[of]),
        texts=tuple(np.array(whole.texts)[of]),
        task=np.zeros(of.sum(), dtype=np.int64),
        **{name: getattr(whole, name)[of] for name in ("joules", "seconds", "preference", "accuracy")},
        answers={level: ("",) * int(of.sum()) for level in LEVELS},
    )
    found = run(Terms(floor=0.9, scope=Scope.TASK), alone, Demand(np.full(30, REQUESTS), np.ones((30, 1))))
    assert found.directive_mix["L0"] < 0.9


def test_a_seed_gives_the_same_replay_again() -> None:
    terms, short = Terms(floor=0.9), demand(30, 600)
    assert run(terms, wanted=short).carbon_grams == run(terms, wanted=short).carbon_grams
    assert run(terms, wanted=short).carbon_grams != run(replace(terms, seed=1), wanted=short).carbon_grams


def test_extremes_are_no_fault() -> None:
    clean = replace(trace(), g_per_kwh=np.zeros(len(trace())))
    policies = {name: POLICIES[name] for name in ("router", "router_strict")}
    for floor in (0.0, 1.0):
        found = replay(recorded(40), clean, 0, demand(30, 3), policies, Terms(floor=floor))
        assert all(one.requests == 90 for one in found.values())
    strict = run(Terms(floor=1.0, scope=Scope.TASK, labels=True), wanted=demand(30, 600))
    assert strict.task_preference["chat"].share == 1.0

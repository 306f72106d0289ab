"""A replay: what it charges, what it reports, and what a policy gets to see."""

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.carbon.accounting import JOULES_PER_KWH
from router.replay.demand import Demand
from router.replay.outcome import Outcome
from router.replay.policies.interface import FOLDS, MOST_LABELLED, Evaluator, Hour, Judged, Served, Setting
from router.replay.policies.named import POLICIES
from router.replay.recordings import Composite, Course, Ints, RecordedSet
from router.replay.replay import Terms, folds_of, replay
from tests.router.replay.planted import demand, recorded, trace

EMBODIED = 26356.568 / (5 * 365 * 24 * 3600)
"""Grams a second, as published."""


class Scripted:
    """Serves what it is told to, and keeps what it was shown."""

    composites: Sequence[Composite] = ()

    def __init__(
        self,
        choose: Callable[[Hour], Ints] = lambda hour: np.zeros(len(hour.prompts), dtype=np.int64),
        judge: Callable[[Hour, Evaluator], None] = lambda hour, evaluator: None,
        composites: Sequence[Composite] = (),
    ) -> None:
        self.choose, self.judge, self.composites = choose, judge, composites
        self.hours: list[Hour] = []
        self.served: list[Served] = []
        self.setting: Setting | None = None

    def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
        self.hours.append(hour)
        self.judge(hour, evaluator)
        return self.choose(hour)

    def observe(self, served: Served) -> None:
        self.served.append(served)


def run(policy: Scripted, hours: int = 30, of: RecordedSet | None = None, **terms: object) -> Outcome:
    def made(setting: Setting, truth: object) -> Scripted:
        policy.setting = setting
        return policy

    terms_ = Terms(**terms)  # type: ignore[arg-type]
    return replay(of or recorded(), trace(), 100, demand(hours, 50), {"own": made}, terms_)["own"]


def test_carbon_is_energy_by_the_hour_and_the_devices_share_of_its_making() -> None:
    of, policy = recorded(), Scripted(lambda hour: hour.prompts % 3)
    found = run(policy, of=of)
    grams = base = 0.0
    for hour, served in zip(policy.hours, policy.served, strict=True):
        for prompt, action in zip(served.prompts, served.actions, strict=True):
            own, at_l0 = (
                of.joules[prompt, level] / JOULES_PER_KWH * hour.intensity + EMBODIED * of.seconds[prompt, level]
                for level in (action, 0)
            )
            grams, base = grams + own, base + at_l0
    assert found.carbon_grams == pytest.approx(grams)
    assert found.base_grams == pytest.approx(base)
    assert found.carbon_saving == pytest.approx(1 - grams / base)
    assert found.directive_mix == pytest.approx(
        dict(zip(of.levels, np.bincount(np.concatenate([s.actions for s in policy.served])) / 1500, strict=True))
    )


def test_quality_is_a_share_of_l0s_on_the_same_requests() -> None:
    of, policy = recorded(), Scripted(lambda hour: np.where(of_task(hour) == 2, 1, 0))

    def of_task(hour: Hour) -> Ints:
        return of.task[hour.prompts]

    found = run(policy, hours=48, of=of)
    prompts = np.concatenate([served.prompts for served in policy.served])
    trivia = prompts[of.task[prompts] == 2]
    assert found.task_preference["chat"].share == found.accuracy["sums"].share == 1.0
    preferred = of.preference[trivia].sum(axis=0)
    assert found.task_preference["trivia"].share == pytest.approx(preferred[1] / preferred[0])
    graded = of.accuracy[trivia].mean(axis=0)
    kept = found.accuracy["trivia"]
    assert (kept.value, kept.base, kept.share) == pytest.approx((graded[1], graded[0], graded[1] / graded[0]))
    assert set(found.accuracy) == {"sums", "trivia"}
    assert found.preference is not None
    hours = [
        1 + (of.preference[s.prompts, s.actions] - of.preference[s.prompts, 0]).mean() / q0
        for s, q0 in zip(policy.served, demand(48).mix @ np.array([0.55, 0.5, 0.3]), strict=True)
    ]
    assert found.preference == pytest.approx(np.mean(hours))


def test_the_standard_error_counts_prompts_and_not_their_repeats() -> None:
    of = recorded(50)
    brief = Scripted(lambda hour: np.ones(len(hour.prompts), dtype=np.int64))
    short, long = run(brief, 10, of), run(brief, 600, of)
    bootstrapped = []
    rng = np.random.default_rng(3)
    trivia = of.preference[of.task == 2]
    for _ in range(2000):
        drawn = trivia[rng.integers(0, len(trivia), len(trivia))]
        bootstrapped.append(drawn[:, 1].sum() / drawn[:, 0].sum())
    error = long.task_preference["trivia"].share_error
    assert error is not None
    assert error == pytest.approx(np.std(bootstrapped), rel=0.25)
    assert short.task_preference["trivia"].share_error == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("levels", [None, (0, 2)])
def test_evaluator_samples_are_charged_what_was_not_generated_already(levels: Sequence[int] | None) -> None:
    of, judged = recorded(), list[Judged]()

    def judge(hour: Hour, evaluator: Evaluator) -> None:
        if hour.index in (3, 7):
            judged.append(evaluator.judge(policy.hours[1].requests[:20], levels))

    policy = Scripted(lambda hour: hour.prompts % 3, judge)
    found = run(policy, of=of)
    wanted = (0, 1, 2) if levels is None else levels
    grams = 0.0
    for hour in (policy.hours[3], policy.hours[7]):
        for prompt in policy.served[1].prompts[:20]:
            for level in wanted:
                if level != prompt % 3:
                    grams += of.joules[prompt, level] / JOULES_PER_KWH * hour.intensity
                    grams += EMBODIED * of.seconds[prompt, level]
    assert found.evaluator_grams == pytest.approx(grams)
    assert (found.evaluator_runs, found.evaluator_samples) == (2, 40)
    assert found.carbon_saving < found.carbon_saving_without_evaluator
    assert found.carbon_grams == pytest.approx(sum(hour.grams for hour in found.hours))
    one = judged[0]
    assert (one.prompts == policy.served[1].prompts[:20]).all()
    known = np.isin(np.arange(3), wanted)[None, :] | (np.arange(3) == (one.prompts % 3)[:, None])
    assert (np.isnan(one.joules) == ~known).all()
    assert np.array_equal(one.joules[known], of.joules[one.prompts][known])
    expected = np.where(known.all(axis=1)[:, None], of.preference[one.prompts], np.nan)
    assert np.array_equal(one.preference, expected, equal_nan=True)
    assert np.array_equal(one.accuracy, np.where(known, of.accuracy[one.prompts], np.nan), equal_nan=True)


def test_other_work_is_charged_too() -> None:
    def judge(hour: Hour, evaluator: Evaluator) -> None:
        if hour.index == 5:
            evaluator.charge(3.6e6, 100.0)

    found = run(Scripted(judge=judge))
    assert found.evaluator_grams == pytest.approx(trace().g_per_kwh[105] + 100 * EMBODIED)
    assert (found.evaluator_runs, found.evaluator_samples) == (0, 0)
    assert found.carbon_saving_without_evaluator == pytest.approx(0.0, abs=1e-12)


def test_requests_of_this_hour_cannot_be_judged_before_they_are_served() -> None:
    for ahead in (0, 10**9):
        policy = Scripted(judge=lambda hour, evaluator, ahead=ahead: print(evaluator.judge(hour.requests[:1] + ahead)))  # type: ignore[misc]
        with pytest.raises(ValueError, match="earlier hours"):
            run(policy)


def test_a_policy_that_plays_fair_sees_nothing_to_come() -> None:
    of, policy = recorded(), Scripted()
    run(policy, of=of)
    grid = trace()
    for index, hour in enumerate(policy.hours):
        assert hour.tasks is None
        assert np.array_equal(hour.g_per_kwh, grid.g_per_kwh[: 101 + index])
        assert hour.intensity == grid.g_per_kwh[100 + index]
        past = hour.history(72)
        assert (len(past), past[-1]) == (72, (hour.start, hour.intensity))
        with pytest.raises(ValueError, match="read-only"):
            hour.g_per_kwh[0] = 0.0
    assert {field.name for field in fields(Hour)} == {"index", "start", "g_per_kwh", "requests", "prompts", "tasks"}
    assert not {"truth", "trace", "year", "recorded", "demand", "xi"} & {field.name for field in fields(Setting)}
    shown = Scripted()
    run(shown, of=of, labels=True)
    tasks = shown.hours[0].tasks
    assert tasks is not None
    assert np.array_equal(tasks, of.task[shown.hours[0].prompts])


def test_texts_are_known_once_they_are_asked_or_labelled() -> None:
    of = recorded(500)
    known: list[int] = []

    def judge(hour: Hour, evaluator: Evaluator) -> None:
        assert policy.setting is not None
        texts, seen = policy.setting.texts, set[int]()
        for labelled in policy.setting.labelled.values():
            seen |= set(labelled.prompts.tolist())
        for earlier in policy.hours:
            seen |= set(earlier.prompts.tolist())
        for prompt in range(len(of)):
            if prompt in seen:
                assert texts[prompt] == of.texts[prompt]
            else:
                with pytest.raises(LookupError):
                    texts[prompt]
        known.append(len(seen))

    policy = Scripted(judge=judge)
    run(policy, hours=3, of=of)
    assert known[0] < known[-1] < len(of)


def test_labelled_prompts_are_of_other_folds_and_few() -> None:
    of, policy = recorded(600), Scripted()
    run(policy, hours=1, of=of)
    setting = policy.setting
    assert setting is not None
    assert set(setting.labelled) == set(range(FOLDS))
    for fold, labelled in setting.labelled.items():
        assert (setting.folds[labelled.prompts] != fold).all()
        assert np.array_equal(labelled.task, of.task[labelled.prompts])
        assert len(set(labelled.prompts.tolist())) == len(labelled.prompts)
        assert np.bincount(labelled.task).max() == MOST_LABELLED
    assert np.bincount(setting.folds).min() > len(of) / FOLDS / 2


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_folds_are_of_the_text_alone(texts: list[str]) -> None:
    folds = folds_of(texts)
    assert folds.tolist() == [int(folds_of([text])[0]) for text in texts]
    assert ((folds >= 0) & (folds < FOLDS)).all()
    assert folds_of(["Why?", "Why? ", "How?", "\ud800"]).tolist() == [0, 0, 1, 0]


def test_a_composite_costs_what_it_generates_and_is_as_good_as_what_it_serves() -> None:
    of = recorded()

    def cascade(given: RecordedSet) -> Course:
        """Answers briefly twice, and at L0 for every third prompt."""
        disagree = np.arange(len(given)) % 3 == 0
        generated = np.column_stack([disagree, np.ones((len(given), 2), dtype=bool)])
        return Course(generated, np.where(disagree, 0, 1))

    policy = Scripted(lambda hour: np.full(len(hour.prompts), 3), composites=(Composite("cascade", cascade),))
    found = run(policy, of=of)
    assert found.directive_mix == {"L0": 0.0, "L1": 0.0, "L2": 0.0, "cascade": 1.0}
    grams = 0.0
    for hour, served in zip(policy.hours, policy.served, strict=True):
        disagree = served.prompts % 3 == 0
        assert np.array_equal(served.level, np.where(disagree, 0, 1))
        assert np.array_equal(np.isnan(served.joules[:, 0]), ~disagree)
        joules = np.nansum(served.joules, axis=1)
        assert joules == pytest.approx(
            of.joules[served.prompts, 1:].sum(axis=1) + disagree * of.joules[served.prompts, 0]
        )
        grams += (joules / JOULES_PER_KWH * hour.intensity + EMBODIED * np.nansum(served.seconds, axis=1)).sum()
    assert found.carbon_grams == pytest.approx(grams)
    prompts = np.concatenate([served.prompts for served in policy.served])
    chat = prompts[of.task[prompts] == 0]
    right = of.preference[chat, np.where(chat % 3 == 0, 0, 1)].sum() / of.preference[chat, 0].sum()
    assert found.task_preference["chat"].share == pytest.approx(right)


@pytest.mark.parametrize(
    ("composite", "fault"),
    [
        (Composite("L1", lambda of: Course(np.ones((len(of), 3), bool), np.zeros(len(of), int))), "'L1' is taken"),
        (Composite("c", lambda of: Course(np.zeros((len(of), 3), bool), np.zeros(len(of), int))), "what it serves"),
    ],
    ids=["name", "course"],
)
def test_a_composite_must_make_sense(composite: Composite, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        run(Scripted(composites=(composite,)))


@pytest.mark.parametrize("actions", [[3], [-1], [0, 0]], ids=str)
def test_decisions_must_be_actions_of_the_requests(actions: list[int]) -> None:
    def choose(hour: Hour) -> Ints:
        return np.array([*[0] * (len(hour.prompts) - 1), *actions])

    with pytest.raises(ValueError, match="each of 50 requests an action from 0 to 2"):
        run(Scripted(choose))


def test_all_policies_get_the_same_requests_and_a_seed_repeats_them() -> None:
    of = recorded()
    seen: list[list[Ints]] = []
    for choose, seed in (
        (lambda hour: np.zeros(len(hour.prompts), dtype=np.int64), 0),
        (lambda hour: hour.prompts % 3, 0),
        (lambda hour: hour.prompts % 3, 1),
    ):
        policy = Scripted(choose)
        run(policy, of=of, seed=seed)
        seen.append([hour.prompts for hour in policy.hours])
    assert all(np.array_equal(one, other) for one, other in zip(seen[0], seen[1], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(seen[0], seen[2], strict=True))


@pytest.mark.parametrize("start_hour", [-1, 24 * 40 - 5])
def test_a_window_outside_the_trace_is_refused(start_hour: int) -> None:
    with pytest.raises(ValueError, match="must lie within the 960 of the trace"):
        replay(recorded(), trace(), start_hour, demand(6), {"base": POLICIES["base"]}, Terms())


def test_progress_is_told_hour_by_hour() -> None:
    told: list[tuple[str, int]] = []
    chosen = {name: POLICIES[name] for name in ("base", "co2_opt")}
    replay(recorded(), trace(), 0, demand(3), chosen, Terms(), progress=lambda name, done: told.append((name, done)))
    assert told == [(name, done) for name in chosen for done in (1, 2, 3)]


def test_an_hour_of_a_single_request_counts_as_any() -> None:
    few = Demand(np.array([1, 1]), np.tile([0.0, 0.0, 1.0], (2, 1)))
    found = replay(recorded(), trace(), 0, few, {"co2_opt": POLICIES["co2_opt"]}, Terms())["co2_opt"]
    assert found.requests == 2
    assert found.preference is not None
    assert set(found.task_preference) <= {"trivia"}

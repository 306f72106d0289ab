"""PITH on planted requests: floors hold, evidence is paid for, and nothing is known of a prompt but from others."""

from dataclasses import replace

import numpy as np
import pytest

from router.directives.text_features import FeatureTable, features_of
from router.replay.demand import Demand
from router.replay.outcome import Outcome
from router.replay.policies.fold import Fold
from router.replay.policies.interface import FOLDS, Evaluator, Hour, Scope, Setting
from router.replay.policies.named import POLICIES
from router.replay.policies.pith import Pith, agreement
from router.replay.recordings import Floats, Ints, Quality, RecordedSet
from router.replay.replay import Factory, Terms, folds_of, replay
from tests.router.replay.planted import JOULES, demand, recorded, trace

HOURS = 96


def run(terms: Terms, of: RecordedSet | None = None, wanted: Demand | None = None, name: str = "pith") -> Outcome:
    policies: dict[str, Factory] = {name: POLICIES[name]}
    return replay(of or recorded(), trace(), 720, wanted or demand(HOURS), policies, terms)[name]


def one_task(prompts: int = 800) -> RecordedSet:
    """Whose judge prefers L0 to half of the prompts, by pure chance, and to no words of theirs."""
    rng = np.random.default_rng(11)
    joules = np.tile(JOULES[:1], (prompts, 1))
    preference = np.zeros((prompts, 3))
    preference[np.arange(prompts), rng.permutation(np.repeat([0, 0, 1, 2], prompts // 4))] = 1.0
    return RecordedSet(
        ids=tuple(map(str, range(prompts))),
        texts=tuple(f"word{number}a word{number}b word{number}c" for number in range(prompts)),
        tasks=("chat",),
        task=np.zeros(prompts, dtype=np.int64),
        levels=("L0", "L1", "L2"),
        joules=joules,
        seconds=joules / 250.0,
        preference=preference,
        accuracy=np.full((prompts, 3), np.nan),
        answers=dict.fromkeys(("L0", "L1", "L2"), ("",) * prompts),
    )


def test_a_floor_over_the_window_holds_and_saves_near_what_hindsight_does() -> None:
    terms = Terms(floor=0.95, scope=Scope.WINDOW)
    own, most = run(terms), run(terms, name="hindsight")
    assert own.preference is not None
    assert own.preference >= 0.945
    assert own.carbon_saving >= 0.7 * most.carbon_saving
    assert own.evaluator_samples > 0
    assert own.carbon_saving < own.carbon_saving_without_evaluator


def test_a_floor_by_task_holds_for_every_task() -> None:
    found = run(Terms(floor=0.9, scope=Scope.TASK))
    for task, kept in found.task_preference.items():
        assert kept.share >= 0.9 - 0.02, task
    assert found.carbon_saving > 0.2


def test_accuracy_holds_by_task_and_what_has_no_grader_goes_by_preference() -> None:
    found = run(Terms(quality=Quality.ACCURACY, floor=0.9, scope=Scope.TASK))
    assert found.accuracy["sums"].share >= 0.86
    assert found.accuracy["trivia"].share >= 0.9
    assert found.task_preference["chat"].share >= 0.86
    assert found.directive_mix["L2"] > 0.2  # trivia loses nothing


def test_what_is_chance_cannot_be_known_of_a_prompt_although_prompts_recur() -> None:
    """Every prompt comes some fifty times, most are judged: whoever remembered them would shorten half for nothing."""
    wanted = Demand(np.full(HOURS, 400), np.ones((HOURS, 1)))
    found = run(Terms(floor=0.9, scope=Scope.WINDOW), one_task(), wanted)
    assert found.evaluator_samples > 200
    # With chance alone, a tenth of L0's half is lost by a fifth of the requests.
    assert found.directive_mix["L0"] > 0.7
    assert found.preference is not None
    assert found.preference >= 0.87


def test_what_predicts_for_a_prompt_never_saw_a_prompt_of_its_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    of = one_task()
    taught: list[tuple[Fold, set[frozenset[int]]]] = []
    made: list[Fold] = []
    init, teach = Fold.__post_init__, Fold.teach

    def seen_init(fold: Fold) -> None:
        made.append(fold)
        init(fold)

    def seen_teach(fold: Fold, prompts: FeatureTable, class_of: Ints, joules: Floats, quality: Floats) -> None:
        words = prompts.words
        rows = {frozenset(words[[row]].indices.tolist()) for row in range(len(prompts))}
        taught.append((fold, rows))
        teach(fold, prompts, class_of, joules, quality)

    monkeypatch.setattr(Fold, "__post_init__", seen_init)
    monkeypatch.setattr(Fold, "teach", seen_teach)
    run(Terms(floor=0.9), of, Demand(np.full(30, 200), np.ones((30, 1))))
    folds = folds_of(of.texts)
    words_of = [frozenset(features_of(text).buckets.tolist()) for text in of.texts]
    assert len(made) == FOLDS
    assert taught
    for fold, rows in taught:
        own = {words_of[prompt] for prompt in np.flatnonzero(folds == made.index(fold))}
        assert rows
        assert not rows & own


def test_where_no_loss_is_allowed_what_loses_stays_at_l0() -> None:
    found = run(Terms(floor=1.0, scope=Scope.TASK))
    assert found.task_preference["chat"].share >= 0.97
    assert found.task_preference["trivia"].share >= 0.97
    assert found.directive_mix["L1"] > 0.1


def test_nothing_is_shortened_before_something_was_judged_and_paid_for() -> None:
    found = run(Terms(floor=0.95, scope=Scope.WINDOW))
    first, second = found.hours[:2]
    assert first.actions.tolist() == [400, 0, 0]
    assert first.evaluator_samples == 0
    assert second.evaluator_samples > 0
    assert second.actions[0] < 400
    # Judged were requests of the first hour, whose L0 answers were there.
    assert 0 < found.evaluator_grams < 0.2 * found.base_grams


def test_labels_leave_nothing_in_doubt() -> None:
    shown, hidden = (run(Terms(floor=0.9, scope=Scope.TASK, labels=labels)) for labels in (True, False))
    assert shown.carbon_saving == pytest.approx(hidden.carbon_saving, abs=0.05)
    for kept in shown.task_preference.values():
        assert kept.share >= 0.88


def test_a_seed_gives_the_same_replay_again() -> None:
    terms, short = Terms(floor=0.95), demand(30, 200)
    assert run(terms, wanted=short).carbon_grams == run(terms, wanted=short).carbon_grams
    assert run(terms, wanted=short).carbon_grams != run(replace(terms, seed=1), wanted=short).carbon_grams


def test_a_clean_grid_and_few_requests_are_no_fault() -> None:
    clean = replace(trace(), g_per_kwh=np.zeros(len(trace())))
    found = replay(recorded(40), clean, 720, demand(20, 3), {"pith": POLICIES["pith"]}, Terms())["pith"]
    assert found.requests == 60
    # So few that evidence is not worth having.
    assert found.evaluator_samples == 0
    assert found.carbon_saving == 0.0


def test_hidden_labels_are_not_asked_for() -> None:
    class Watched(Pith):
        def __init__(self, setting: Setting) -> None:
            super().__init__(setting)
            self.shown: list[bool] = []

        def decide(self, hour: Hour, evaluator: Evaluator) -> Ints:
            self.shown.append(hour.tasks is not None)
            return super().decide(hour, evaluator)

    made: list[Watched] = []

    def factory(setting: Setting, truth: object) -> Watched:
        made.append(Watched(setting))
        return made[-1]

    replay(recorded(60), trace(), 720, demand(6, 100), {"own": factory}, Terms())
    assert made[0].shown == [False] * 6


def test_the_cascade_serves_a_brief_answer_where_two_agree() -> None:
    of = replace(
        recorded(2),
        texts=("what is the capital of france",) * 6,
        answers={
            "L0": ("Paris is it.",) * 6,
            "L1": ("Paris.", "Paris.", "", "Lyon", "It is Paris", "Nice"),
            "L2": ("Paris", "Lyon", "", "Lyon.", "paris", "Paris"),
        },
    )
    course = agreement(of)
    assert course.served.tolist() == [1, 0, 0, 1, 1, 0]
    assert course.generated.tolist() == [[served == 0, True, True] for served in course.served.tolist()]

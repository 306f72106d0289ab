"""What an evaluation judges next, and that it spends no more than it must."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import Cell, Floor, FloorKind, PairedScore
from common.quality.estimates import Estimates, Verdict
from evaluator.samples import Target
from evaluator.sampling import Batch, Economy, Tally, batches, next_batch, work_waits

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FLOOR = Floor(0.95, FloorKind.RELATIVE)
ECONOMY = Economy(batch_samples=8, run_samples=200, patience_samples=200, maintenance_samples=4)


def target(directive: str, carbon: float | None, task: str = "arithmetic", waiting: int = 1000) -> Target:
    return Target(
        cell=Cell("demo@abc", task, directive),
        floors=(FLOOR,),
        grader="numeric",
        revision=1,
        waiting=waiting,
        relative_carbon=carbon,
    )


L1, L2 = target("L1", 0.4), target("L2", 0.2)


def estimates() -> Estimates:
    return Estimates(lambda cell: (FLOOR,))


def feed(known: Estimates, subject: Target, qualities: Sequence[float], prefix: str = "s") -> list[PairedScore]:
    scores = [
        PairedScore(subject.cell, f"{prefix}{i:05d}", quality, 1.0, "grader:numeric", str(subject.revision), NOW)
        for i, quality in enumerate(qualities)
    ]
    known.observe_all(scores)
    return scores


def opened(subject: Target) -> Estimates:
    known = estimates()
    feed(known, subject, [1.0] * 100)
    assert subject.verdict(known) == "open"
    return known


def closed(subject: Target) -> Estimates:
    known = estimates()
    feed(known, subject, [0.0] * 50)
    assert subject.verdict(known) == "closed"
    return known


class TestOrder:
    def test_least_carbon_comes_first(self) -> None:
        assert next_batch([L1, L2], estimates(), ECONOMY, Tally()) == Batch(L2, 8, 200, is_maintenance=False)

    def test_unknown_carbon_counts_as_that_of_l0(self) -> None:
        dear, unknown = target("L1", 0.9), target("L3", None)
        batch = next_batch([unknown, dear], estimates(), ECONOMY, Tally())
        assert batch is not None and batch.target is dear

    def test_a_closed_directive_gives_way_to_the_next(self) -> None:
        batch = next_batch([L1, L2], closed(L2), ECONOMY, Tally())
        assert batch is not None and batch.target is L1

    def test_nothing_is_judged_once_all_are_closed(self) -> None:
        known = closed(L2)
        feed(known, L1, [0.0] * 50)
        assert batches([L1, L2], known, ECONOMY, Tally()) == []

    def test_what_is_open_for_one_tenant_alone_is_looked_at(self) -> None:
        """Nobody else would notice that it has dropped."""
        known = estimates()
        known.observe_all(
            PairedScore(L2.cell, f"{i:03d}", float(i % 4 == 0), 1.0, "grader:numeric", "1", NOW, tenant=tenant)
            for i in range(500)
            for tenant in ["acme" if i % 4 == 0 else "beta"]
        )
        assert L2.verdict(known) == "closed"
        assert L2.verdicts(known, replace(L2.cell, tenant="acme")) == {FLOOR: "open"}
        look = Batch(L2, 4, 4, is_maintenance=True)
        assert batches([L1, L2], known, ECONOMY, Tally()) == [look, Batch(L1, 8, 196, is_maintenance=False)]
        tally = Tally()
        tally.drawn[L2.cell] = 4
        assert next_batch([L2], known, ECONOMY, tally) is None

    def test_a_dearer_directive_needs_no_evidence_under_an_open_one(self) -> None:
        assert batches([L1, L2], opened(L2), ECONOMY, Tally()) == [Batch(L2, 4, 4, is_maintenance=True)]

    def test_a_cheaper_one_may_still_be_undecided_above_an_open_one(self) -> None:
        found = batches([L1, L2], opened(L1), ECONOMY, Tally())
        assert [(batch.target, batch.is_maintenance) for batch in found] == [(L1, True), (L2, False)]

    def test_one_that_saves_hardly_more_than_what_is_open_is_left_alone(self) -> None:
        found = batches([L1, target("L2", 0.36)], opened(L1), ECONOMY, Tally())
        assert [(batch.target, batch.is_maintenance) for batch in found] == [(L1, True)]

    def test_one_that_stays_undecided_lets_the_next_have_its_turn(self) -> None:
        economy = replace(ECONOMY, patience_samples=20)
        known = estimates()
        feed(known, L2, [1.0] * 19)
        first = next_batch([L1, L2], known, economy, Tally())
        feed(known, L2, [1.0], prefix="more")
        second = next_batch([L1, L2], known, economy, Tally())
        feed(known, L1, [1.0] * 20)
        third = next_batch([L1, L2], known, economy, Tally())
        assert [b and b.target.cell.directive for b in (first, second, third)] == ["L2", "L1", "L2"]

    def test_the_next_one_does_not_use_up_samples_that_the_first_still_waits_for(self) -> None:
        assert batches([L1, replace(L2, waiting=0)], estimates(), ECONOMY, Tally()) == []

    def test_after_a_spell_each_the_one_that_promises_most_goes_on(self) -> None:
        economy = replace(ECONOMY, patience_samples=20)
        known = estimates()
        feed(known, L2, [1.0] * 18 + [0.0] * 2)
        feed(known, L1, [1.0] * 20)
        batch = next_batch([L1, L2], known, economy, Tally())
        assert batch is not None and batch.target is L1

    def test_one_that_is_unlikely_to_clear_its_floor_is_left_alone(self) -> None:
        economy = replace(ECONOMY, patience_samples=100)
        known = estimates()
        feed(known, L2, ([1.0] * 9 + [0.0]) * 15)
        assert L2.verdict(known) == "undecided"
        batch = next_batch([L1, L2], known, economy, Tally())
        assert batch is not None and batch.target is L1
        assert batches([L2], known, economy, Tally()) == []
        assert work_waits([L2], known, economy, NOW, 0.0) == (False, False)
        # Those were scores of another text.
        assert next_batch([replace(L2, revision=2)], known, economy, Tally()) is not None

    def test_thin_cells_of_other_tasks_come_before_those_that_promise_less(self) -> None:
        known = estimates()
        feed(known, L2, ([1.0] * 24 + [0.0]) * 4)
        thin = target("L2", 0.2, task="listing")
        assert [batch.target for batch in batches([L2, thin], known, ECONOMY, Tally())] == [thin, L2]
        dear = target("L2", 0.9, task="listing")
        assert [batch.target for batch in batches([dear, L2], estimates(), ECONOMY, Tally())] == [L2, dear]

    def test_what_answers_users_comes_before_what_is_undecided(self) -> None:
        thin = target("L2", 0.2, task="listing")
        found = batches([thin, L2], opened(L2), ECONOMY, Tally())
        assert [batch.is_maintenance for batch in found] == [True, False]

    def test_scores_of_an_older_revision_decide_nothing(self) -> None:
        edited = replace(L2, revision=2)
        batch = next_batch([edited], closed(L2), ECONOMY, Tally())
        assert batch is not None and not batch.is_maintenance

    def test_what_saves_nothing_is_not_judged(self) -> None:
        assert batches([replace(L2, relative_carbon=1.0)], estimates(), ECONOMY, Tally()) == []
        assert batches([replace(L2, relative_carbon=1.0)], opened(L2), ECONOMY, Tally()) == []

    def test_without_a_floor_there_is_nothing_to_judge(self) -> None:
        assert batches([replace(L2, floors=())], estimates(), ECONOMY, Tally()) == []


class TestBudget:
    def test_is_shared_by_the_directives_of_a_task(self) -> None:
        tally = Tally()
        tally.drawn.update({L1.cell: 100, L2.cell: 97})
        batch = next_batch([L1, L2], estimates(), ECONOMY, tally)
        assert batch is not None and batch.samples == 3
        tally.drawn[L1.cell] += 3
        assert next_batch([L1, L2], estimates(), ECONOMY, tally) is None

    def test_each_task_has_its_own(self) -> None:
        other = target("L2", 0.2, task="listing")
        tally = Tally()
        tally.drawn[L2.cell] = 200
        batch = next_batch([L2, other], estimates(), ECONOMY, tally)
        assert batch is not None and batch.target is other

    def test_what_has_run_dry_is_left_for_the_next(self) -> None:
        tally = Tally()
        tally.dry.add(L2.cell)
        batch = next_batch([L1, L2], estimates(), ECONOMY, tally)
        assert batch is not None and batch.target is L1


class TestMaintenance:
    def test_ends_after_a_few_samples_that_hold_the_floor(self) -> None:
        known, tally = opened(L2), Tally()
        tally.drawn[L2.cell] = 4
        for score in feed(known, L2, [1.0] * 4, prefix="fresh"):
            tally.take(score)
        assert next_batch([L2], known, ECONOMY, tally) is None

    def test_goes_on_while_these_fall_short(self) -> None:
        known, tally = opened(L2), Tally()
        tally.drawn[L2.cell] = 4
        for score in feed(known, L2, [1.0, 1.0, 1.0, 0.0], prefix="fresh"):
            tally.take(score)
        batch = next_batch([L2], known, ECONOMY, tally)
        assert batch is not None and batch.is_maintenance and batch.samples == ECONOMY.batch_samples

    def test_counts_what_opened_the_directive_in_the_same_evaluation(self) -> None:
        tally = Tally()
        tally.drawn[L2.cell] = 80
        assert next_batch([L2], opened(L2), ECONOMY, tally) is None

    @pytest.mark.parametrize(("floor", "falls_short"), [(FloorKind.RELATIVE, False), (FloorKind.ABSOLUTE, True)])
    def test_each_kind_of_floor_has_its_own_measure(self, floor: FloorKind, falls_short: bool) -> None:
        subject, tally = replace(L2, floors=(Floor(0.9, floor),)), Tally()
        for i, quality in enumerate([1.0, 0.0]):  # L0 is wrong where L2 is
            tally.take(PairedScore(subject.cell, f"{i}", quality, quality, "grader:numeric", "1", NOW))
        assert tally.falls_short(subject.cell, subject.floors[0]) is falls_short

    def test_a_directive_open_for_one_policy_and_closed_for_another_leaves_the_next_its_turn(self) -> None:
        subject = replace(L2, floors=(Floor(0.8, FloorKind.RELATIVE), Floor(0.97, FloorKind.RELATIVE)))
        known = estimates()
        feed(known, subject, ([1.0] * 9 + [0.0]) * 40)
        assert list(subject.verdicts(known).values()) == ["open", "closed"]
        looked_at, tried = batches([L1, subject], known, ECONOMY, Tally())
        assert (looked_at.target, looked_at.is_maintenance) == (subject, True)
        assert (tried.target, tried.is_maintenance) == (L1, False)

    def test_a_directive_open_at_one_floor_is_looked_at_though_it_may_never_be_told_of_the_other(self) -> None:
        """As with a quality budget: it answers users at the lower floor, and nobody else would notice that it drops."""
        subject = replace(L2, floors=(Floor(0.8, FloorKind.RELATIVE), FLOOR))
        known = estimates()
        feed(known, subject, ([1.0] * 14 + [0.0]) * 30)
        assert list(subject.verdicts(known).values()) == ["open", "undecided"]
        look = Batch(subject, 4, 4, is_maintenance=True)
        assert batches([L1, subject], known, ECONOMY, Tally()) == [look, Batch(L1, 8, 196, is_maintenance=False)]
        tally = Tally()
        tally.drawn[subject.cell] = 4
        for score in feed(known, subject, [1.0] * 4, prefix="fresh"):
            tally.take(score)
        assert [batch.target for batch in batches([L1, subject], known, ECONOMY, tally)] == [L1]


class TestNarrowing:
    """Of a directive that is open, for as long as more scores pay."""

    def test_follows_the_look_at_it_and_is_counted_beside_it(self) -> None:
        subject = replace(L2, worthwhile=150)
        look = Batch(subject, 4, 4, is_maintenance=True)
        narrowing = Batch(subject, 8, 46, is_maintenance=False, narrows=True)
        assert batches([L1, subject], opened(subject), ECONOMY, Tally()) == [look, narrowing]
        few = replace(subject, waiting=10)
        assert [batch.in_sight for batch in batches([few], opened(few), ECONOMY, Tally())] == [4, 6]

    def test_ends_with_the_last_score_that_pays(self) -> None:
        known, subject, tally = opened(L2), replace(L2, worthwhile=102), Tally()
        tally.drawn[L2.cell] = 4
        assert next_batch([subject], known, ECONOMY, tally) == Batch(subject, 2, 2, is_maintenance=False, narrows=True)
        feed(known, subject, [1.0] * 2, prefix="more")
        assert next_batch([subject], known, ECONOMY, tally) is None

    def test_goes_on_beyond_what_may_be_spent_on_verdicts(self) -> None:
        subject, tally = replace(L2, worthwhile=1000), Tally()
        tally.drawn[L2.cell] = 500
        found = batches([subject], opened(subject), ECONOMY, tally)
        assert found == [Batch(subject, 8, 500, is_maintenance=False, narrows=True)]
        tally.drawn[L2.cell] = 1000
        assert batches([subject], opened(subject), ECONOMY, tally) == [], "what is left waits for the next evaluation"

    def test_waits_until_nothing_is_undecided(self) -> None:
        """Though what is undecided promises nothing, its carbon being unknown."""
        subject, unknown = replace(L1, worthwhile=1000), target("L2", None, task="listing")
        found = batches([subject, L2, unknown], opened(subject), ECONOMY, Tally())
        assert [(batch.target, batch.is_maintenance, batch.narrows) for batch in found] == [
            (subject, True, False),
            (L2, False, False),
            (unknown, False, False),
            (subject, False, True),
        ]

    def test_of_one_that_is_undecided_at_another_floor_samples_are_counted_once(self) -> None:
        subject = replace(L2, floors=(Floor(0.8, FloorKind.RELATIVE), FLOOR), worthwhile=1000)
        known = estimates()
        feed(known, subject, [1.0] * 50)
        assert list(subject.verdicts(known).values()) == ["open", "undecided"]
        found = batches([subject], known, ECONOMY, Tally())
        assert [(batch.in_sight, batch.is_maintenance, batch.narrows) for batch in found] == [
            (4, True, False),
            (196, False, False),
            (750, False, True),
        ]

    @pytest.mark.parametrize("known", [estimates(), closed(L2)])
    def test_is_not_for_what_is_not_open(self, known: Estimates) -> None:
        assert not any(batch.narrows for batch in batches([replace(L2, worthwhile=1000)], known, ECONOMY, Tally()))

    def test_is_not_for_scores_of_an_older_revision(self) -> None:
        edited = replace(L2, worthwhile=1000, revision=2)
        assert not any(batch.narrows for batch in batches([edited], opened(L2), ECONOMY, Tally()))

    def test_takes_older_samples_where_nothing_fresh_is_left(self) -> None:
        subject, tally = replace(L2, worthwhile=1000), Tally()
        tally.stale.add(subject.cell)
        found = batches([subject], opened(subject), ECONOMY, tally)
        assert found == [Batch(subject, 8, 900, is_maintenance=False, narrows=True)]
        tally.dry.add(subject.cell)
        assert batches([subject], opened(subject), ECONOMY, tally) == []

    def test_calls_for_an_evaluation_once_a_batch_pays(self) -> None:
        later = NOW + timedelta(hours=1)
        for worthwhile, waits in ((100, False), (111, False), (112, True)):
            subject = replace(L2, worthwhile=worthwhile)
            assert work_waits([subject], opened(subject), ECONOMY, later, 7200.0) == (waits, False)


class TestWorkWaits:
    def test_a_batch_for_an_undecided_directive(self) -> None:
        assert work_waits([replace(L2, waiting=8)], estimates(), ECONOMY, NOW, 0.0) == (True, False)
        assert work_waits([replace(L2, waiting=7)], estimates(), ECONOMY, NOW, 0.0) == (False, False)

    def test_a_look_at_an_open_directive(self) -> None:
        assert work_waits([replace(L2, waiting=4)], opened(L2), ECONOMY, NOW, 0.0) == (False, True)
        assert work_waits([replace(L2, waiting=3)], opened(L2), ECONOMY, NOW, 0.0) == (False, False)

    def test_none_for_an_open_directive_that_was_looked_at_lately(self) -> None:
        later = NOW + timedelta(hours=1)
        assert work_waits([L2], opened(L2), ECONOMY, later, 7200.0) == (False, False)
        assert work_waits([L2], opened(L2), ECONOMY, later, 3600.0) == (False, True)

    def test_nothing_where_maintenance_is_off(self) -> None:
        economy = replace(ECONOMY, maintenance_samples=0)
        assert work_waits([L2], opened(L2), economy, NOW, 0.0) == (False, False)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Target], dict[Cell, float]]:
    """Targets, and the chance that each directive is right."""
    targets, chance = [], {}
    for task in draw(st.sets(st.sampled_from(["arithmetic", "listing"]), min_size=1)):
        for directive in draw(st.sets(st.sampled_from(["L1", "L2", "L3"]), min_size=1)):
            made = target(
                directive,
                draw(st.none() | st.floats(0.05, 1.5)),
                task=task,
                waiting=draw(st.integers(0, 150)),
            )
            made = replace(made, worthwhile=draw(st.just(0) | st.integers(0, 200)))
            targets.append(made)
            chance[made.cell] = draw(st.sampled_from([0.0, 0.5, 0.9, 0.97, 1.0]))
    return targets, chance


ECONOMIES = st.builds(
    Economy,
    batch_samples=st.integers(5, 40),
    run_samples=st.integers(1, 150),
    patience_samples=st.integers(1, 200),
    maintenance_samples=st.integers(0, 20),
)


@settings(max_examples=40, deadline=None)
@given(world=worlds(), economy=ECONOMIES, evaluations=st.integers(1, 3), coin=st.randoms(use_true_random=False))
def test_an_evaluation_ends_within_its_budget_and_judges_only_what_can_change_a_decision(
    world: tuple[list[Target], dict[Cell, float]], economy: Economy, evaluations: int, coin: random.Random
) -> None:
    targets, chance = world
    known = estimates()
    serial = 0
    for _ in range(evaluations):
        tally = Tally()
        while (batch := next_batch(targets, known, economy, tally)) is not None:
            cell = batch.target.cell
            group = [t for t in targets if t.cell.task == cell.task]
            verdicts: dict[str, Verdict] = {t.cell.directive: t.verdict(known) for t in group}
            carbon = {t.cell.directive: 1.0 if t.relative_carbon is None else t.relative_carbon for t in group}
            assert batch.target.relative_carbon is None or batch.target.relative_carbon < 1
            assert 0 < batch.samples <= min(batch.in_sight, batch.target.waiting)
            assert verdicts[cell.directive] != "closed"
            assert (batch.is_maintenance or batch.narrows) == (verdicts[cell.directive] == "open")
            cheaper = [d for d in verdicts if carbon[d] < carbon[cell.directive]]
            assert "open" not in [verdicts[d] for d in cheaper]
            if batch.narrows:
                bound = known.bound(cell)
                assert bound is not None and bound.samples + batch.in_sight <= batch.target.worthwhile
            elif not batch.is_maintenance:
                # Cheaper ones that are undecided too have had their turn.
                for other in group:
                    theirs = known.bound(other.cell)
                    if other.cell.directive in cheaper and verdicts[other.cell.directive] == "undecided":
                        assert theirs is not None and theirs.samples >= economy.patience_samples
            scores = [
                PairedScore(
                    cell,
                    f"{serial + i:06d}",
                    float(coin.random() < chance[cell]),
                    1.0,
                    "grader:numeric",
                    "1",
                    NOW,
                )
                for i in range(batch.samples)
            ]
            serial += batch.samples
            known.observe_all(scores)
            tally.drawn[cell] += batch.samples
            for score in scores:
                tally.take(score)
            targets = [replace(t, waiting=t.waiting - batch.samples) if t.cell == cell else t for t in targets]
            # Strictly fewer samples wait with every batch, so this loop ends.
            spent = sum(count for c, count in tally.drawn.items() if c.task == cell.task)
            assert batch.narrows or spent <= economy.run_samples

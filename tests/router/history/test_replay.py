"""Histories told from records: every opening and closing, with its cause, whatever the pages."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.levels import L0
from router.directives.policy import Mode, Policy
from router.history.replay import Question
from router.history.step import Cause, PolicyChange, Step
from router.openings import allowing, opening
from router.optimizer.plan import Plan
from router.store.policies import PolicyRevision
from router.store.revisions import Action
from tests.router.history.recorded import CELL, NOON, Life, at, bound, directive, policy, withdrawal

SEED = Life(directives=[directive(0)], policies=[policy(0)])


def told(steps: list[Step]) -> list[tuple[float, Cause, list[tuple[str, bool, bool]]]]:
    return [
        (
            round((step.at - NOON).total_seconds() / 60, 3),
            step.cause,
            [(one.policy.name, one.was_open, one.is_open) for one in step.openings],
        )
        for step in steps
    ]


def test_a_bound_opens_and_age_closes() -> None:
    life = replace(SEED, bounds=[bound(10)])
    (opened,) = life.steps(at(60))
    assert told([opened]) == [(10, Cause.BOUND, [("sums", False, True)])]
    assert opened.record == life.bounds[0]
    assert "clears the floor 0.950" in opened.openings[0].why
    # Its last score is a second older.
    assert len(life.steps(at(70) - timedelta(seconds=1))) == 1
    _, aged = life.steps(at(70))
    assert aged.at == at(70) - timedelta(seconds=1, microseconds=-1)
    assert told([aged]) == [(69.983, Cause.AGE, [("sums", True, False)])]
    assert "3600 s old" in aged.openings[0].why
    assert aged.record == life.bounds[0]


def test_a_newer_bound_keeps_it_open() -> None:
    life = replace(SEED, bounds=[bound(10), bound(50), bound(90, 0.97)])
    assert told(life.steps(at(140))) == [(10, Cause.BOUND, [("sums", False, True)])]
    everything = life.steps(at(140), Question(all_steps=True))
    assert [step.cause for step in everything] == [Cause.BOUND] * 3
    assert [step.openings[0].was_open for step in everything] == [False, True, True]


def test_a_withdrawal_closes_with_its_reason() -> None:
    life = replace(SEED, bounds=[bound(10), withdrawal(20, bound(10)), bound(30, 0.951)])
    opened, closed, reopened = life.steps(at(40))
    assert (opened.cause, closed.cause, reopened.cause) == (Cause.BOUND, Cause.WITHDRAWAL, Cause.BOUND)
    assert closed.record is not None
    assert closed.record.withdrawal is not None
    assert (closed.openings[0].was_open, closed.openings[0].is_open) == (True, False)
    assert reopened.record == life.bounds[2]


def test_an_edit_of_the_text_closes_until_its_own_bound_comes() -> None:
    life = Life([bound(10), bound(30, revision=2)], [directive(0), directive(20, 2)], [policy(0)])
    _, edited, reopened = life.steps(at(40))
    assert (edited.cause, edited.change) == (Cause.DIRECTIVE, life.directives[1])
    assert "the bound is of revision 1, the directive at 2" in edited.openings[0].why
    assert reopened.cause is Cause.BOUND


def test_a_floor_that_is_edited_closes_and_opens() -> None:
    life = Life(
        [bound(10, 0.96)],
        [directive(0)],
        [policy(0), policy(20, 2, floor=0.97), policy(30, 3, Action.ROLLBACK, floor=0.9)],
    )
    _, closed, opened = life.steps(at(40))
    assert told([closed, opened]) == [
        (20, Cause.POLICY, [("sums", True, False)]),
        (30, Cause.POLICY, [("sums", False, True)]),
    ]
    assert closed.change == PolicyChange(life.policies[1], life.policies[0].policy)
    assert closed.openings[0].policy.floor == 0.97
    assert closed.record == life.bounds[0]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (policy(20, 2, Action.DELETE), "policy sums is deleted"),
        (policy(20, 2, mode=Mode.OFF), "policy sums is off"),
        (policy(20, 2, directives=("L2",)), "policy sums does not allow L1 any more"),
        (policy(20, 2, task="lists"), "policy sums decides for task 'sums' no more"),
    ],
    ids=["deleted", "off", "not allowed", "moved"],
)
def test_a_policy_that_lets_go_closes(changed: PolicyRevision, why: str) -> None:
    life = Life([bound(10)], [directive(0)], [policy(0), changed])
    _, closed = life.steps(at(40))
    assert told([closed]) == [(20, Cause.POLICY, [("sums", True, False)])]
    assert closed.openings[0].why == why


def test_a_policy_made_anew_has_nothing_before_it() -> None:
    life = Life([bound(10)], [directive(0)], [policy(0), policy(20, 2, Action.DELETE), policy(30, 3, Action.CREATE)])
    *_, opened = life.steps(at(40))
    assert opened.change == PolicyChange(life.policies[2], None)


def test_a_grader_that_is_edited_closes() -> None:
    life = Life([bound(10)], [directive(0)], [policy(0, grader="numeric"), policy(20, 2, grader="exact")])
    _, closed = life.steps(at(40))
    assert told([closed]) == [(20, Cause.POLICY, [("sums", True, False)])]
    assert "the bound is by grader:numeric, and scores by exact are what counts" in closed.openings[0].why


def test_one_policy_alone() -> None:
    life = replace(SEED, bounds=[bound(10, 0.92)], policies=[policy(0), policy(0, name="lax", task="sums", floor=0.9)])
    # The more specific one decides.
    assert told(life.steps(at(20))) == [(10, Cause.BOUND, [("lax", False, True)])]
    assert life.steps(at(20), Question(policy="sums")) == []
    assert len(life.steps(at(20), Question(policy="lax", all_steps=True))) == 1


def test_a_policy_that_decides_no_more_is_told_of_where_that_closes_something() -> None:
    lax = policy(20, name="lax", task="sums", floor=0.9)
    closed = Life([bound(10)], [directive(0)], [policy(0, floor=0.99), lax])
    assert told(closed.steps(at(40))) == [(20, Cause.POLICY, [("lax", False, True)])]
    opened = Life([bound(10)], [directive(0)], [policy(0), lax])
    assert told(opened.steps(at(40)))[1:] == [(20, Cause.POLICY, [("lax", False, True), ("sums", True, False)])]
    # Alone, what changed is told, whatever it closed.
    gone = Life([bound(10)], [directive(0)], [policy(0, floor=0.99), policy(20, 2, Action.DELETE)])
    assert gone.steps(at(40)) == []
    *_, last = gone.steps(at(40), Question(all_steps=True))
    assert told([last]) == [(20, Cause.POLICY, [("sums", False, False)])]


def test_a_tenants_own_bound_is_a_history_of_its_own() -> None:
    acme = replace(CELL, tenant="acme")
    life = replace(
        SEED,
        bounds=[bound(10), bound(20, 0.5, upper=0.9, cell=acme), bound(30, 0.96, cell=acme)],
        policies=[policy(0), policy(0, name="acme", tenant="acme")],
    )
    first, closed, opened = life.steps(at(40))
    assert told([first]) == [(10, Cause.BOUND, [("acme", False, True), ("sums", False, True)])]
    assert (closed.cell, opened.cell) == (acme, acme)
    assert told([closed, opened]) == [
        (20, Cause.BOUND, [("acme", True, False)]),
        (30, Cause.BOUND, [("acme", False, True)]),
    ]
    assert "tenant acme's own bound" in closed.openings[0].why
    assert [step.cell for step in life.steps(at(40), Question(all_steps=True))] == [CELL, acme, acme]
    # As acme has it, from the first bound of all tenants on; others have nothing of acme's.
    assert [step.cell for step in life.steps(at(40), Question(tenant="acme"))] == [acme] * 3


def test_a_clock_that_was_set_back_loses_nothing() -> None:
    life = replace(SEED, bounds=[bound(30), withdrawal(10, bound(30)), bound(31, 0.97)])
    assert [step.cause for step in life.steps(at(40))] == [Cause.BOUND, Cause.WITHDRAWAL, Cause.BOUND]
    assert [step.at for step in life.steps(at(40))] == [at(30), at(10), at(31)]


# Random lives, of few of everything, so that much of it meets.
CELLS = [Cell("tiny@0", task, name, tenant) for task in ("a", "b") for name in ("L1", "L2") for tenant in ("", "acme")]


@st.composite
def lives(draw: st.DrawFn, distinct: bool) -> Life:
    """Where `distinct`, no two things happen at one time, and no clock is set back."""
    minutes = iter(draw(st.lists(st.integers(0, 3000), min_size=30, max_size=30, unique=distinct)))
    bounds, last = [], {}
    times = [float(next(minutes)) for _ in range(12)]
    for minute in sorted(times) if distinct else times:
        cell = draw(st.sampled_from(CELLS))
        if cell in last and draw(st.integers(0, 3)) == 0:
            record = withdrawal(minute, last[cell])
        else:
            lower = draw(st.sampled_from((0.5, 0.9, 0.96)))
            record = bound(
                minute, lower, cell=cell, revision=draw(st.integers(1, 2)), upper=lower + draw(st.sampled_from((0, 1)))
            )
        last[cell] = record
        bounds.append(record)
    directives = []
    for name in ("L1", "L2"):
        times = [float(next(minutes)) for _ in range(draw(st.integers(0, 3)))]
        for revision, minute in enumerate(sorted(times) if distinct else times, 1):
            action = Action.DELETE if revision > 1 and draw(st.integers(0, 5)) == 0 else Action.UPDATE
            directives.append(directive(minute, revision, name, action))
    policies = []
    for name in ("p", "q", "r"):
        times = [float(next(minutes)) for _ in range(draw(st.integers(0, 4)))]
        for revision, minute in enumerate(sorted(times) if distinct else times, 1):
            action = Action.DELETE if revision > 1 and draw(st.integers(0, 5)) == 0 else Action.UPDATE
            policies.append(
                policy(
                    minute,
                    revision,
                    action,
                    name=name,
                    tenant=draw(st.sampled_from(("", "", "acme"))),
                    task=draw(st.sampled_from(("", "a"))),
                    mode=draw(st.sampled_from((Mode.ON, Mode.SHADOW, Mode.OFF))),
                    floor=draw(st.sampled_from((0.85, 0.95))),
                    directives=draw(st.sampled_from((("L1",), ("L1", "L2")))),
                    grader=draw(st.sampled_from(("", "", "numeric", "exact"))),
                    bound_max_age_seconds=draw(st.sampled_from((3600, 60_000))),
                )
            )
    return Life(bounds, directives, policies)


def as_it_was(life: Life, moment: datetime) -> tuple[Snapshot, set[Cell]]:
    """What decisions depended on, and the cells that had been heard of, from all records up to a moment."""
    newest: dict[Cell, QualityBound | None] = {}
    for record in life.bounds:
        if record.reported_at <= moment:
            newest[record.bound.cell] = None if record.withdrawn else record.bound
    directives = {revision.directive.name: revision for revision in life.directives if revision.key[0] <= moment}
    policies = {revision.policy.name: revision for revision in life.policies if revision.key[0] <= moment}
    snapshot = Snapshot(
        {"L0": L0, **{n: r.directive for n, r in directives.items() if r.action is not Action.DELETE}},
        sorted((r.policy for r in policies.values() if r.action is not Action.DELETE), key=lambda p: p.name),
        {cell: found for cell, found in newest.items() if found is not None},
        Plan({}, NOON),
    )
    return snapshot, set(newest)


@settings(deadline=None, max_examples=150)
@given(lives(distinct=True), st.lists(st.integers(0, 9000), min_size=5, max_size=5))
def test_what_is_told_is_what_was_open(life: Life, moments: list[int]) -> None:
    """After each step, and between them, the openings that were told last are those that a decision had found."""
    steps = life.steps(at(4500), Question(all_steps=True))
    for moment in [*(at(half / 2 + 0.25) for half in moments), at(4500)]:
        snapshot, heard_of = as_it_was(life, moment)
        last: dict[tuple[Cell, str], bool] = {}
        for step in steps:
            if step.at <= moment:
                last.update({(step.cell, one.policy.name): one.is_open for one in step.openings})
        of_own = {cell.tenant for cell in heard_of} - {""}
        for cell in heard_of:
            elsewhere = {tenant for tenant in of_own if replace(cell, tenant=tenant) in heard_of and not cell.tenant}
            deciding: list[Policy] = [
                p
                for p in allowing(snapshot.policies, cell.task, cell.directive, cell.tenant)
                if p.tenant not in elsewhere
            ]
            found = {p.name for p in deciding if opening(snapshot, p, cell, moment)[0] is not None}
            names = {name for (of, name), is_open in last.items() if of == cell and is_open}
            moved = {r.policy.name for r in life.policies if r.policy.tenant in elsewhere}
            assert names - moved == found - moved, (cell, moment)


@settings(deadline=None, max_examples=150)
@given(lives(distinct=False), st.sampled_from((Question(), Question(tenant="acme"), Question(policy="q"))))
def test_each_step_goes_on_from_the_one_before(life: Life, question: Question) -> None:
    everything = life.steps(at(4500), replace(question, all_steps=True))
    assert life.steps(at(4500), question) == [step for step in everything if step.changes_something]
    last: dict[tuple[Cell, str], bool] = {}
    for step in everything:
        for one in step.openings:
            of = (step.cell, one.policy.name)
            assert one.was_open == last.get(of, one.was_open), step
            last[of] = one.is_open
        assert (step.cause is Cause.WITHDRAWAL) <= (step.record is not None and step.record.withdrawn)
        assert not question.policy or {one.policy.name for one in step.openings} == {question.policy}


@settings(deadline=None, max_examples=150)
@given(
    lives(distinct=False),
    st.sampled_from((Question(), Question(tenant="acme"), Question(all_steps=True))),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_pages_tell_the_same(life: Life, question: Question, size: int, most_records: int) -> None:
    pages = list(life.pages(at(4500), question, size, most_records))
    assert all(len(page) <= size for page in pages)
    assert [step for page in pages for step in page] == life.steps(at(4500), question)

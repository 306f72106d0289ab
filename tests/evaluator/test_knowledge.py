"""Several evaluators at one router: whatever they do in which order, a recorded bound rests on all scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PithError
from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, PairedScore, QualityBound
from common.quality.estimates import Estimates
from evaluator.client import SCORES_MOVED, RouterClient
from evaluator.judges.reference import ReferenceJudge
from evaluator.knowledge import Knowledge, Supposition
from evaluator.samples import EvaluationPlan, Target

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CELLS = (Cell("tiny@0", "sums", "L1"), Cell("tiny@0", "sums", "L2"))
FLOORS = (Floor(0.5, FloorKind.RELATIVE), Floor(0.4, FloorKind.ABSOLUTE))
PLAN = EvaluationPlan(
    targets=tuple(
        Target(cell=cell, floors=FLOORS, grader="exact", revision=1, waiting=100, relative_carbon=0.5) for cell in CELLS
    ),
    intensities=(),
    now=NOON,
    last_reported_at=None,
)
PLAN_WITHOUT_TARGETS = replace(PLAN, targets=())
ALPHA, DRIFT_ALPHA = 0.05, 0.05


@dataclass
class Records:
    """What routers of one database have recorded, each time by the clock of one of them."""

    scores: list[PairedScore] = field(default_factory=list)
    by_position: dict[int, Supposition] = field(default_factory=dict)
    in_force: EvaluationPlan = PLAN

    async def plan(self, with_mix: bool = False) -> EvaluationPlan:
        return self.in_force

    async def scores_after(self, position: str) -> tuple[Sequence[PairedScore], str]:
        return self.scores[int(position or 0) :], str(len(self.scores))

    def report(self, supposed: Supposition, at: datetime) -> None:
        """Raises PithError as the router does, where there are others' scores after the position."""
        known, own = int(supposed.position), {_key(score) for score in supposed.scores}
        next_ones = {_key(score) for score in self.scores[known : known + len(own)]}
        if next_ones == own:
            return
        if len(self.scores) != known or own & {_key(score) for score in self.scores}:
            raise PithError(grpc.StatusCode.ABORTED, SCORES_MOVED, "there are others")
        in_order = sorted(supposed.scores, key=lambda score: score.sample_id)
        self.scores.extend(replace(score, scored_at=at) for score in in_order)
        self.by_position[len(self.scores)] = supposed


def _key(score: PairedScore) -> tuple[Cell, str]:
    return score.cell, score.sample_id


@dataclass
class Evaluator:
    records: Records
    knowledge: Knowledge = field(init=False)
    drawn: list[PairedScore] = field(default_factory=list)
    supposed: Supposition | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins with nothing, as a process does."""
        router = cast(RouterClient, self.records)
        self.knowledge = Knowledge(router, ReferenceJudge(), ALPHA, DRIFT_ALPHA)
        self.drawn, self.supposed = [], None


def judge_of(cell: Cell) -> str:
    return ReferenceJudge().name("exact")


def rebuilt(scores: Sequence[PairedScore]) -> tuple[Estimates, tuple[EpochStart, ...]]:
    """From nothing, and the changes that the last of them show."""
    estimates = Estimates(lambda cell: FLOORS, ALPHA, DRIFT_ALPHA, judge_of)
    starts = [start for score in scores for start in estimates.observe(score)]
    return estimates, tuple(start for start in starts if start.reason is not EpochReason.REVISION)


def bounds(estimates: Estimates) -> list[QualityBound | None]:
    cells = [cell for one in CELLS for cell in (one, *sorted(estimates.of_tenants(one), key=lambda c: c.tenant))]
    return [estimates.bound(cell) for cell in cells]


def timeless(found: Sequence[QualityBound | None]) -> list[QualityBound | None]:
    """A report's own scores have the time of the router only once they are recorded."""
    return [bound and replace(bound, updated_at=NOON, since=None) for bound in found]


ACTIONS = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["draw", "draw", "read", "suppose", "suppose", "report", "report", "report", "restart"]),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_evaluators_do_in_whatever_order_bounds_rest_on_all_scores(data: st.DataObject) -> None:
    """They draw the same samples now and then, as when a lease has ended; lose replies; begin anew. Quality drops, and
    the clocks of the routers differ."""
    records = Records()
    evaluators = [Evaluator(records), Evaluator(records)]
    qualities = data.draw(st.lists(st.sampled_from([1.0, 0.0, 0.5]), min_size=1, max_size=6))

    async def act(one: Evaluator, action: str) -> None:
        if action == "draw":
            first, count = data.draw(st.integers(0, 150)), data.draw(st.sampled_from([1, 12, 24]))
            cell = data.draw(st.sampled_from(CELLS))
            quality = qualities[len(records.scores) // 24 % len(qualities)]
            one.supposed = None
            one.drawn = [
                PairedScore(
                    cell, f"s{number:03}", quality, 1.0, judge_of(cell), "1", NOON, tenant=("acme", "other")[number % 2]
                )
                for number in range(first, first + count)
            ]
        elif action == "read":
            await one.knowledge.ensure()
        elif action == "suppose" and one.drawn:
            if one.knowledge.position == "":
                await one.knowledge.ensure()
            one.supposed = await one.knowledge.suppose(one.drawn)
        elif action == "report" and one.supposed is not None and one.supposed.scores:
            try:
                records.report(one.supposed, NOON + timedelta(seconds=data.draw(st.sampled_from([0, 1, -60]))))
            except PithError:
                assert len(records.scores) > int(one.supposed.position), "another has reported since"
                await one.knowledge.ensure()
                one.supposed = None
        elif action == "restart":
            one.start()

    async def run() -> None:
        for index, action in data.draw(st.lists(ACTIONS, min_size=10, max_size=60)):
            await act(evaluators[index], action)
        for one in evaluators:
            await one.knowledge.ensure()

    asyncio.run(run())
    keys = [_key(score) for score in records.scores]
    assert len(keys) == len(set(keys)), "none is recorded twice"
    for position, supposed in records.by_position.items():
        estimates, starts = rebuilt(records.scores[:position])
        assert timeless(bounds(supposed.estimates)) == timeless(bounds(estimates))
        _, earlier = rebuilt(records.scores[: int(supposed.position)])
        assert [(start.cell, start.reason, start.floor) for start in supposed.starts] == [
            (start.cell, start.reason, start.floor) for start in starts[len(earlier) :]
        ]
    estimates, _ = rebuilt(records.scores)
    for one in evaluators:
        assert bounds(one.knowledge.estimates) == bounds(estimates)
        assert one.knowledge.scores == len(records.scores)


async def test_a_drop_that_a_report_shows_is_told_with_it_and_known_once_it_is_recorded() -> None:
    records = Records()
    one, other = Evaluator(records), Evaluator(records)
    for quality, first in ((1.0, 0), (0.0, 40)):
        batch = [
            PairedScore(CELLS[0], f"s{first + n:03}", quality, 1.0, judge_of(CELLS[0]), "1", NOON) for n in range(40)
        ]
        await one.knowledge.ensure()
        supposed = await one.knowledge.suppose(batch)
        assert [(start.cell, start.reason) for start in supposed.starts] == (
            [] if quality else [(CELLS[0], EpochReason.DRIFT)]
        )
        assert one.knowledge.changed_at == {}, "while it is only supposed"
        records.report(supposed, NOON)
    for each in (one, other):
        await each.knowledge.ensure()
        assert each.knowledge.changed_at == {(CELLS[0], judge_of(CELLS[0])): NOON}


async def test_scores_are_taken_in_as_they_were_recorded_whatever_the_clocks_say() -> None:
    """The drop was recorded by a router whose clock is behind."""
    records = Records()
    growing, later = Evaluator(records), Evaluator(records)
    for quality, first, at in ((1.0, 0, NOON), (0.0, 40, NOON - timedelta(minutes=1))):
        records.scores += [
            PairedScore(CELLS[0], f"s{first + n:03}", quality, 1.0, judge_of(CELLS[0]), "1", at) for n in range(40)
        ]
        await growing.knowledge.ensure()
    await later.knowledge.ensure()
    assert (
        growing.knowledge.changed_at
        == later.knowledge.changed_at
        == {(CELLS[0], judge_of(CELLS[0])): NOON - timedelta(minutes=1)}
    )
    assert bounds(growing.knowledge.estimates) == bounds(later.knowledge.estimates)


async def test_a_drop_is_known_after_a_restart_while_no_policy_set_a_floor() -> None:
    """An admin who hears of a drop turns the policy off, and on again some time after the evaluator has been started
    anew: what was known before the drop must open nothing then."""
    floors = (Floor(0.9, FloorKind.RELATIVE),)
    on = replace(PLAN, targets=(replace(PLAN.targets[0], floors=floors),))
    records = Records(in_force=on)
    growing = Evaluator(records)
    for number in range(400):
        # Of five there is one that fails, from the 300th on.
        quality = float(number < 300 or number % 5 > 0)
        records.scores.append(PairedScore(CELLS[0], f"s{number}", quality, 1.0, judge_of(CELLS[0]), "1", NOON))
    await growing.knowledge.ensure()
    assert growing.knowledge.changed_at
    records.in_force = PLAN_WITHOUT_TARGETS
    restarted = Evaluator(records)
    await restarted.knowledge.ensure()
    records.in_force = on
    await restarted.knowledge.refresh()
    await restarted.knowledge.ensure()
    assert restarted.knowledge.changed_at == growing.knowledge.changed_at
    assert bounds(restarted.knowledge.estimates) == bounds(growing.knowledge.estimates)


SCORES = st.builds(
    PairedScore,
    cell=st.sampled_from(CELLS),
    sample_id=st.integers(0, 40).map(str),
    quality=st.sampled_from([0.0, 1.0]),
    baseline_quality=st.just(1.0),
    judge=st.sampled_from([judge_of(CELLS[0]), "another"]),
    revision=st.sampled_from(["1", "1", "1", "2"]),
    scored_at=st.just(NOON),
    tenant=st.sampled_from(["", "acme", "other"]),
)


def everything(estimates: Estimates) -> list[Any]:
    return [
        (
            cell,
            estimates.bound(cell),
            estimates.judges(cell),
            estimates.of_tenants(cell.of_all),
            estimates.drift_alarms(cell),
            [estimates.settled(cell, floor.quality, floor.kind) for floor in FLOORS],
        )
        for one in estimates.cells()
        for cell in (one, replace(one, tenant="acme"), replace(one, tenant="other"))
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(SCORES, max_size=60), st.lists(SCORES, max_size=30), st.lists(SCORES, max_size=60))
def test_what_is_only_supposed_leaves_no_trace(
    before: list[PairedScore], supposed: list[PairedScore], after: list[PairedScore]
) -> None:
    plain = Estimates(lambda cell: FLOORS, ALPHA, DRIFT_ALPHA)
    supposing = Estimates(lambda cell: FLOORS, ALPHA, DRIFT_ALPHA)
    for estimates in (plain, supposing):
        estimates.observe_all(before)
    known = everything(supposing)
    fork, starts = supposing.supposing(supposed)
    assert everything(supposing) == known
    assert supposing.observe_all(after) == plain.observe_all(after)
    assert everything(supposing) == everything(plain)

    again = Estimates(lambda cell: FLOORS, ALPHA, DRIFT_ALPHA)
    again.observe_all(before)
    fork, starts = again.supposing(supposed)
    assert starts == again.observe_all(supposed)
    assert everything(fork) == everything(again)

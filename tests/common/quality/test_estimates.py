from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, PairedScore, QualityBound
from common.quality.estimates import Estimates

START = datetime(2026, 3, 1, tzinfo=UTC)
CELL = Cell("demo@abc", "arithmetic", "L1")
OTHER = Cell("demo@abc", "listing", "L1")
RELATIVE = Floor(0.95, FloorKind.RELATIVE)
ABSOLUTE = Floor(0.9, FloorKind.ABSOLUTE)
LAX = Floor(0.9, FloorKind.RELATIVE)
WEEK_SECONDS = 7 * 86_400.0
NUMERIC, EXACT = "grader:numeric", "grader:exact"


def score(
    index: int,
    quality: float = 1.0,
    baseline: float = 1.0,
    cell: Cell = CELL,
    revision: str = "1",
    judge: str = NUMERIC,
) -> PairedScore:
    at = START + timedelta(minutes=index)
    return PairedScore(cell, f"sample-{index:05}", quality, baseline, judge, revision, at)


def estimates(*floors: Floor) -> Estimates:
    return Estimates(lambda cell: floors or (RELATIVE,))


def fed(scores: list[PairedScore], *floors: Floor) -> tuple[Estimates, tuple[EpochStart, ...]]:
    state = estimates(*floors)
    return state, state.observe_all(scores)


def bound_of(state: Estimates, cell: Cell = CELL) -> QualityBound:
    bound = state.bound(cell)
    assert bound is not None
    return bound


def test_a_directive_without_losses_opens_once_there_is_enough_evidence_and_not_before() -> None:
    verdicts = []
    state = estimates()
    for index in range(100):
        assert state.observe(score(index)) == ()
        verdicts.append(state.settled(CELL, 0.95, FloorKind.RELATIVE))
    opened = verdicts.index("open")
    assert 60 < opened < 80
    assert verdicts == ["undecided"] * opened + ["open"] * (100 - opened)
    bound = bound_of(state)
    assert (bound.cell, bound.share, bound.samples) == (CELL, 1.0, 100)
    assert (bound.judge, bound.revision, bound.updated_at) == ("grader:numeric", "1", score(99).scored_at)
    assert 0.96 < bound.lower < 1 < bound.upper


def test_a_directive_that_cannot_reach_its_floor_is_closed_early_and_stays_closed() -> None:
    state, _ = fed([score(index, quality=float(index % 3 == 0)) for index in range(15)])
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "closed"
    events = state.observe_all([score(index, quality=float(index % 3 == 0)) for index in range(15, 200)])
    assert events == ()
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "closed"
    assert not bound_of(state).is_open(0.95, FloorKind.RELATIVE, score(200).scored_at, WEEK_SECONDS)


def test_a_verdict_turns_exactly_at_the_bounds() -> None:
    state, _ = fed([score(index, quality=float(index % 10 != 0)) for index in range(200)])
    bound = bound_of(state)
    verdicts = {
        floor: state.settled(CELL, floor, FloorKind.RELATIVE)
        for floor in (bound.lower, bound.lower + 0.0005, bound.upper, bound.upper + 0.0005)
    }
    assert list(verdicts.values()) == ["open", "undecided", "undecided", "closed"]


def test_a_share_just_at_its_floor_stays_undecided() -> None:
    state, _ = fed([score(index, quality=float(index % 20 != 0)) for index in range(300)])
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "undecided"


def test_the_kinds_of_floor_are_told_apart() -> None:
    """L0 solves half, the directive the same half: it keeps all of L0's quality, and its own is one half."""
    state, _ = fed([score(index, float(index % 2), float(index % 2)) for index in range(400)])
    bound, now = bound_of(state), score(400).scored_at
    assert bound.share == 1.0
    assert 0.4 < bound.absolute_lower < 0.5 < bound.absolute_upper < 0.6
    assert bound.is_open(0.95, FloorKind.RELATIVE, now, WEEK_SECONDS)
    assert not bound.is_open(0.95, FloorKind.ABSOLUTE, now, WEEK_SECONDS)
    assert bound.is_open(0.4, FloorKind.ABSOLUTE, now, WEEK_SECONDS)
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "open"
    assert state.settled(CELL, 0.95, FloorKind.ABSOLUTE) == "closed"
    assert state.settled(CELL, 0.5, FloorKind.ABSOLUTE) == "undecided"
    assert state.settled(CELL, 0.4, FloorKind.ABSOLUTE) == "open"


def test_a_bound_is_open_at_its_limit_and_up_to_its_age() -> None:
    state, _ = fed([score(index) for index in range(100)])
    bound, now = bound_of(state), score(99).scored_at

    def is_open(floor: float, age_seconds: float) -> bool:
        return bound.is_open(floor, FloorKind.RELATIVE, now + timedelta(seconds=age_seconds), 3600.0)

    assert is_open(bound.lower, 0.0)
    assert is_open(bound.lower, 3600.0)
    assert not is_open(bound.lower, 3601.0)
    assert not is_open(bound.lower + 0.0005, 0.0)
    assert not replace(bound, samples=0).is_open(0.5, FloorKind.RELATIVE, now, 3600.0)
    assert not replace(bound, lower=float("nan")).is_open(0.5, FloorKind.RELATIVE, now, 3600.0)


def test_nothing_is_known_of_a_cell_without_scores() -> None:
    state, _ = fed([score(0)])
    assert state.bound(OTHER) is None
    assert state.settled(OTHER, 0.95, FloorKind.RELATIVE) == "undecided"
    assert state.cells() == (CELL,)
    assert state.drift_alarms(OTHER) == 0


def test_a_drop_closes_an_open_directive_at_once_and_it_may_open_again() -> None:
    good = [score(index) for index in range(100)]
    state, _ = fed(good)
    drop = [score(index, quality=0.0) for index in range(100, 115)]
    events = state.observe_all(drop)
    assert [(event.cell, event.reason, event.floor) for event in events] == [(CELL, EpochReason.DRIFT, RELATIVE)]
    alarm = drop.index(next(one for one in drop if one.scored_at == events[0].at))
    assert alarm < 12
    assert bound_of(state).samples == len(drop) - alarm - 1  # none of those before the alarm
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) != "open"
    assert state.drift_alarms(CELL) == 1
    state, events = fed([*good, *drop[: alarm + 1]])
    assert len(events) == 1
    assert state.bound(CELL) is None
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "undecided"
    state.observe_all([score(index) for index in range(200, 300)])
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "open"


def test_a_drop_below_an_absolute_floor_is_found_though_the_baseline_drops_too() -> None:
    state, _ = fed([score(index) for index in range(100)], ABSOLUTE)
    assert state.settled(CELL, 0.9, FloorKind.ABSOLUTE) == "open"
    events = state.observe_all([score(index, 0.0, 0.0) for index in range(100, 115)])
    assert [(event.reason, event.floor) for event in events] == [(EpochReason.DRIFT, ABSOLUTE)]


def test_a_change_that_stays_above_the_floor_closes_nothing() -> None:
    state, _ = fed([score(index) for index in range(600)], ABSOLUTE)
    cleared = bound_of(state).lower
    events = state.observe_all([score(index, quality=float(index % 20 != 0)) for index in range(600, 3000)])
    assert events == ()
    assert bound_of(state).upper < cleared  # the change was seen
    assert state.settled(CELL, 0.9, FloorKind.ABSOLUTE) == "open"


def test_thousands_of_scores_are_thrown_away_only_for_what_is_surer() -> None:
    """A drop that closes what rests on some hundreds of scores is told of some thousands too, a little later."""

    def delay(before: int) -> int:
        state, events = fed([score(index, quality=float(index % 25 != 0)) for index in range(before)], LAX)
        assert events == ()
        drop = [score(before + index, quality=float(index % 4 != 0)) for index in range(600)]
        return next(n for n, one in enumerate(drop, start=1) if state.observe(one))

    assert delay(500) < delay(3000) <= 100


def test_a_floor_that_is_asked_for_again_is_watched_anew() -> None:
    """Not by what was seen before nobody asked for it: that was not looked at meanwhile."""
    floors = [LAX]
    state = Estimates(lambda cell: floors)
    serial = iter(range(10_000))

    def take(*qualities: float) -> list[EpochStart]:
        return [event for quality in qualities for event in state.observe(score(next(serial), quality))]

    assert take(*[1.0] * 300, *[0.0] * 4) == []  # a little more, and it would close
    floors[:] = []
    assert take(*[1.0] * 300) == []
    floors[:] = [LAX]
    assert take(*[1.0] * 2, *[0.0] * 4) == []
    assert state.settled(CELL, LAX.quality, LAX.kind) == "open"
    assert take(*[0.0] * 8) != []


def test_a_floor_that_was_never_cleared_raises_no_alarm() -> None:
    """At a share of 0.93 a strict policy must not throw away what a lax one lives on."""
    lax = Floor(0.85, FloorKind.RELATIVE)
    state, events = fed([score(index, quality=float(index % 14 != 0)) for index in range(600)], RELATIVE, lax)
    assert events == ()
    assert state.settled(CELL, lax.quality, lax.kind) == "open"
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) != "open"


def test_what_fell_below_one_floor_opens_again_at_a_lower_one_by_what_it_keeps_now() -> None:
    """A mean may rest on the bound's number itself, so that what was established before is not held on to."""
    lax = Floor(0.8, FloorKind.RELATIVE)
    state, events = fed([score(index) for index in range(300)], RELATIVE, lax)
    assert events == ()
    (event,) = state.observe_all([score(index, quality=float(index % 8 != 0)) for index in range(300, 1_200)])
    assert (event.reason, event.floor) == (EpochReason.DRIFT, RELATIVE)
    assert bound_of(state).lower <= 0.875
    assert state.settled(CELL, lax.quality, lax.kind) == "open"


def test_a_directive_that_has_become_better_gets_another_chance() -> None:
    state, _ = fed([score(index, quality=0.0) for index in range(30)])
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "closed"
    events = state.observe_all([score(index) for index in range(30, 400)])
    assert {event.reason for event in events} == {EpochReason.CONTRADICTION}
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "open"


def test_another_revision_begins_anew() -> None:
    state, _ = fed([score(index) for index in range(100)])
    (event,) = state.observe(score(100, revision="2"))
    assert event == EpochStart(CELL, NUMERIC, EpochReason.REVISION, score(100).scored_at)
    bound = bound_of(state)
    assert (bound.samples, bound.revision) == (1, "2")
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "undecided"
    assert state.drift_alarms(CELL) == 0


def test_the_judge_that_is_asked_for_has_the_say() -> None:
    """Two policies name different graders for one task, and their samples take turns."""
    judge = NUMERIC
    state = Estimates(lambda cell: (RELATIVE,), judge_of=lambda cell: judge)
    state.observe_all(
        score(2 * index + turn, quality=1.0 - turn, judge=(NUMERIC, EXACT)[turn])
        for index in range(100)
        for turn in (0, 1)
    )
    assert state.judges(CELL) == (NUMERIC, EXACT)
    assert (bound_of(state).judge, bound_of(state).samples) == (NUMERIC, 100)
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "open"
    judge = EXACT
    assert (bound_of(state).judge, bound_of(state).samples) == (EXACT, 100)
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "closed"
    judge = "grader:item_set"
    assert state.bound(CELL) is None
    assert state.settled(CELL, 0.95, FloorKind.RELATIVE) == "undecided"
    assert state.drift_alarms(CELL) == 0


def test_where_no_judge_is_asked_for_the_latest_has_the_say() -> None:
    state, _ = fed([score(0, judge=NUMERIC), score(2, judge=EXACT), score(1, judge=NUMERIC)])
    assert bound_of(state).judge == EXACT


def test_a_straggler_of_an_earlier_revision_has_no_effect() -> None:
    state, _ = fed([score(index, revision="2") for index in range(10, 90)])
    before = bound_of(state)
    assert state.observe(score(5, quality=0.0, revision="1")) == ()
    assert bound_of(state) == before


def test_a_sample_may_be_scored_again_at_a_new_revision() -> None:
    state, _ = fed([score(0)])
    again = replace(score(1, revision="2"), sample_id=score(0).sample_id)
    assert [event.reason for event in state.observe(again)] == [EpochReason.REVISION]
    assert bound_of(state).samples == 1


qualities = st.sampled_from([0.0, 0.5, 1.0])
histories = st.lists(
    st.tuples(qualities, qualities, st.sampled_from([CELL, OTHER]), st.integers(1, 12), st.sampled_from("1112")),
    max_size=25,
).map(
    lambda runs: [
        score(100 * run + index, quality, baseline, cell, revision)
        for run, (quality, baseline, cell, count, revision) in enumerate(runs)
        for index in range(count)
    ]
)


def snapshot(state: Estimates) -> list[tuple[Cell, object, int, object]]:
    floors = [(floor, FloorKind(kind)) for floor in (0.5, 0.9, 0.95) for kind in FloorKind]
    return [
        (cell, state.bound(cell), state.drift_alarms(cell), [state.settled(cell, *floor) for floor in floors])
        for cell in state.cells()
    ]


@settings(max_examples=40, deadline=None)
@given(histories, st.lists(st.integers(0, 300), max_size=4), st.data())
def test_a_rebuilt_state_equals_the_one_that_grew(
    history: list[PairedScore], cuts: list[int], data: st.DataObject
) -> None:
    grown, one_by_one, rebuilt = (estimates(RELATIVE, ABSOLUTE) for _ in range(3))
    bounds = [0, *sorted(min(cut, len(history)) for cut in cuts), len(history)]
    grown_events = [
        event
        for start, end in pairwise(bounds)
        for event in grown.observe_all(data.draw(st.permutations(history[start:end])))
    ]
    single_events = [event for one in history for event in one_by_one.observe(one)]
    rebuilt_events = rebuilt.observe_all(reversed(history))
    assert snapshot(grown) == snapshot(one_by_one) == snapshot(rebuilt)
    assert grown_events == single_events == list(rebuilt_events)


def test_a_rebuilt_state_equals_the_one_that_grew_to_thousands() -> None:
    """Whose detectors go by the number of scores."""
    noise = random.Random(3)
    history = [score(index, float(noise.random() < (0.96 if index < 2500 else 0.86))) for index in range(3200)]
    grown, rebuilt = estimates(LAX), estimates(LAX)
    grown_events = [event for at in range(0, 3200, 7) for event in grown.observe_all(history[at : at + 7])]
    assert [event.reason for event in grown_events] == [EpochReason.DRIFT]
    assert grown_events == list(rebuilt.observe_all(reversed(history)))
    assert snapshot(grown) == snapshot(rebuilt)
    # What will be known with more is known without their being taken in.
    more = [score(index, 1.0) for index in range(3200, 3300)]
    supposed, events = grown.supposing(more)
    assert list(events) == list(grown.observe_all(more))
    assert snapshot(supposed) == snapshot(grown)


@settings(max_examples=30, deadline=None)
@given(histories)
def test_a_score_counts_once(history: list[PairedScore]) -> None:
    once, twice = estimates(), estimates()
    once.observe_all(history)
    for one in history:
        twice.observe(one)
        assert twice.observe(replace(one, quality=1.0 - one.quality)) == ()
    twice.observe_all(history)
    assert snapshot(twice) == snapshot(once)


@settings(max_examples=40, deadline=None)
@given(histories, histories, st.randoms(use_true_random=False))
def test_the_scores_of_another_judge_change_nothing(
    mine: list[PairedScore], others: list[PairedScore], order: random.Random
) -> None:
    theirs = [replace(one, judge=EXACT) for one in others]
    alone, together = (
        Estimates(lambda cell: (RELATIVE, ABSOLUTE), judge_of=lambda cell: NUMERIC) for _ in ("alone", "together")
    )
    queues = [list(reversed(mine)), list(reversed(theirs))]
    events = []
    while any(queues):
        queue = order.choice([queue for queue in queues if queue])
        events += [event for event in together.observe(queue.pop()) if event.judge == NUMERIC]
    events_alone = [event for one in mine for event in alone.observe(one)]
    assert events == events_alone
    of_mine = {one.cell for one in mine}
    assert {facts[0]: facts for facts in snapshot(together) if facts[0] in of_mine} == {
        facts[0]: facts for facts in snapshot(alone)
    }


@settings(max_examples=30, deadline=None)
@given(histories)
def test_cells_do_not_touch_one_another(history: list[PairedScore]) -> None:
    together, _ = fed(history)
    alone, _ = fed([one for one in history if one.cell == CELL])
    assert together.bound(CELL) == alone.bound(CELL)
    assert together.drift_alarms(CELL) == alone.drift_alarms(CELL)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"quality": 1.01}, "quality"),
        ({"baseline_quality": float("nan")}, "baseline_quality"),
        ({"scored_at": datetime(2026, 3, 1)}, "scored_at"),
    ],
)
def test_a_score_out_of_range_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must"):
        replace(score(0), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, -1.0, 1.1, float("nan")])
def test_a_floor_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^floor must"):
        Floor(value, FloorKind.RELATIVE)

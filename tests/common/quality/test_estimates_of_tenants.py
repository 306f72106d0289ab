"""Each tenant's own estimate beside that of all tenants."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality import estimates as module
from common.quality.bound import Cell, EpochReason, EpochStart, Floor, FloorKind, PairedScore, QualityBound
from common.quality.estimates import Estimates

START = datetime(2026, 3, 1, tzinfo=UTC)
CELL = Cell("demo@abc", "qa", "L1")
LISTS = Cell("demo@abc", "lists", "L1")
ACME, BETA = replace(CELL, tenant="acme"), replace(CELL, tenant="beta")
FLOOR = Floor(0.95, FloorKind.RELATIVE)
ABSOLUTE = Floor(0.9, FloorKind.ABSOLUTE)


def score(
    index: int,
    quality: float = 1.0,
    tenant: str = "acme",
    baseline: float = 1.0,
    cell: Cell = CELL,
    revision: str = "1",
) -> PairedScore:
    at = START + timedelta(minutes=index)
    return PairedScore(cell, f"sample-{index:05}", quality, baseline, "judge", revision, at, tenant=tenant)


def in_turn(count: int, **quality_of: float) -> list[PairedScore]:
    """So many scores of each tenant."""
    tenants = list(quality_of)
    return [
        score(index, quality_of[tenants[index % len(tenants)]], tenants[index % len(tenants)])
        for index in range(count * len(tenants))
    ]


def estimates(*floors: Floor) -> Estimates:
    return Estimates(lambda cell: (floors or (FLOOR,)) if not cell.tenant else ())


def bound_of(state: Estimates, cell: Cell) -> QualityBound:
    bound = state.bound(cell)
    assert bound is not None
    return bound


def verdict(state: Estimates, cell: Cell) -> str:
    return state.settled(cell, FLOOR.quality, FLOOR.kind)


def test_a_tenants_scores_are_its_own_evidence_and_that_of_all() -> None:
    state = estimates()
    state.observe_all(in_turn(100, acme=1.0, beta=0.8))
    assert state.of_tenants(CELL) == (ACME, BETA)
    assert state.cells() == (CELL,)
    assert (bound_of(state, CELL).samples, bound_of(state, CELL).share) == (200, pytest.approx(0.9))
    own = bound_of(state, BETA)
    assert (own.cell, own.samples, own.share) == (BETA, 100, pytest.approx(0.8))
    assert (own.since, own.updated_at) == (score(1).scored_at, score(199).scored_at)
    assert [verdict(state, cell) for cell in (CELL, ACME, BETA)] == ["closed", "open", "closed"]


def test_where_all_scores_are_of_one_tenant_it_has_nothing_of_its_own() -> None:
    state = estimates()
    state.observe_all(score(index) for index in range(100))
    assert state.of_tenants(CELL) == ()
    state.observe(score(100, tenant="beta"))
    assert state.of_tenants(CELL) == (ACME, BETA)
    assert bound_of(state, ACME).samples == 100


def test_scores_of_no_tenant_count_for_all_alone() -> None:
    state = estimates()
    state.observe_all(in_turn(50, acme=1.0) + [score(index, tenant="") for index in range(50, 60)])
    assert state.of_tenants(CELL) == (ACME,)
    assert (bound_of(state, CELL).samples, bound_of(state, ACME).samples) == (60, 50)


def test_a_drop_of_one_tenant_ends_its_own_epoch() -> None:
    """Among many others', which hide it."""
    state = estimates()
    state.observe_all(in_turn(400, acme=1.0, **{f"t{index}": 1.0 for index in range(19)}))
    drop = [
        replace(one, quality=0.0 if one.tenant == "acme" else 1.0, scored_at=one.scored_at + timedelta(days=9))
        for one in in_turn(20, acme=1.0, **{f"t{index}": 1.0 for index in range(19)})
    ]
    drop = [replace(one, sample_id=f"late-{one.sample_id}") for one in drop]
    starts = state.observe_all(drop)
    assert [(start.cell, start.reason, start.floor) for start in starts] == [(ACME, EpochReason.DRIFT, FLOOR)]
    assert (verdict(state, CELL), verdict(state, ACME)) == ("open", "closed")
    assert bound_of(state, CELL).samples == 20 * 420
    assert bound_of(state, ACME).samples < 20, "none of those before the alarm"


def test_a_drop_of_all_ends_what_was_known_of_tenants_and_leaves_closed_what_is_closed() -> None:
    state = estimates()
    tenants = [replace(CELL, tenant=f"t{index}") for index in range(19)]
    state.observe_all(in_turn(100, beta=0.5, **{cell.tenant: 1.0 for cell in tenants}))
    state.observe_all(score(index) for index in range(2500, 2540))
    assert [verdict(state, cell) for cell in (CELL, *tenants, BETA)] == ["open"] * 20 + ["closed"]
    assert verdict(state, ACME) == "undecided"
    before = bound_of(state, BETA)
    # Of none that has an open estimate of its own.
    starts = state.observe_all(score(index, quality=0.0, tenant="new") for index in range(3000, 3020))
    gone = [start.cell for start in starts if start.reason is EpochReason.DRIFT]
    assert gone == [CELL, *tenants, ACME]
    assert {start.floor for start in starts if start.reason is EpochReason.DRIFT} == {FLOOR}
    assert state.bound(tenants[0]) is None and state.bound(ACME) is None
    assert bound_of(state, BETA) == before
    state.observe_all(score(index, tenant="t0") for index in range(4000, 4100))
    assert verdict(state, tenants[0]) == "open"


def test_a_new_text_ends_the_epochs_of_all_tenants_at_once() -> None:
    state = estimates()
    state.observe_all(in_turn(100, acme=1.0, beta=0.5))
    starts = state.observe(score(500, tenant="beta", revision="2"))
    assert starts == (EpochStart(CELL, "judge", EpochReason.REVISION, score(500).scored_at),)
    assert state.bound(ACME) is None
    assert (bound_of(state, BETA).samples, bound_of(state, BETA).revision) == (1, "2")
    assert state.observe(score(400, tenant="acme", revision="1")) == ()
    assert state.bound(ACME) is None, "a straggler of the past begins nothing"


def test_each_judge_has_its_own() -> None:
    state = Estimates(lambda cell: (FLOOR,), judge_of=lambda cell: "" if cell.tenant else "judge")
    state.observe_all(in_turn(20, acme=1.0, beta=1.0))
    state.observe_all(
        replace(score(index, 0.0), sample_id=f"other-{index}", judge="other") for index in range(100, 130)
    )
    assert (bound_of(state, ACME).judge, bound_of(state, ACME).samples) == ("judge", 20)


def test_of_many_tenants_those_with_most_scores_have_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TENANTS", 2)
    state = estimates()
    state.observe_all(in_turn(10, acme=1.0, beta=1.0))
    state.observe_all(score(index) for index in range(20, 40))
    gamma = replace(CELL, tenant="gamma")
    state.observe_all(score(index, tenant="gamma") for index in range(100, 120))
    assert state.of_tenants(CELL) == (ACME, BETA), "twice as many are not enough, or places would change all the time"
    state.observe(score(120, tenant="gamma"))
    assert state.of_tenants(CELL) == (ACME, gamma)
    assert state.bound(BETA) is None
    assert bound_of(state, gamma).samples == 1, "what was not kept is not known"
    assert bound_of(state, CELL).samples == 61
    state.observe_all(score(index, tenant="beta") for index in range(200, 232))
    assert state.of_tenants(CELL) == (ACME, gamma)
    state.observe(score(232, tenant="beta"))
    assert state.of_tenants(CELL) == (ACME, BETA)


qualities = st.sampled_from([0.0, 0.5, 1.0])
histories = st.lists(
    st.tuples(
        qualities,
        qualities,
        st.sampled_from([CELL, LISTS]),
        st.sampled_from(["", "acme", "beta", "gamma", "delta"]),
        st.integers(1, 14),
        st.sampled_from("1112"),
    ),
    max_size=25,
).map(
    lambda runs: [
        score(100 * run + index, quality, tenant, baseline, cell, revision)
        for run, (quality, baseline, cell, tenant, count, revision) in enumerate(runs)
        for index in range(count)
    ]
)


def known(state: Estimates, cells: tuple[Cell, ...]) -> list[object]:
    floors = [(floor, FloorKind(kind)) for floor in (0.5, 0.9, 0.95) for kind in FloorKind]
    return [
        (cell, state.bound(cell), state.drift_alarms(cell), [state.settled(cell, *floor) for floor in floors])
        for cell in cells
    ]


@settings(max_examples=60, deadline=None)
@given(histories)
def test_whose_the_scores_are_changes_nothing_for_all_tenants(history: list[PairedScore]) -> None:
    told, untold = estimates(FLOOR, ABSOLUTE), estimates(FLOOR, ABSOLUTE)
    starts = [start for start in told.observe_all(history) if not start.cell.tenant]
    assert starts == list(untold.observe_all(replace(one, tenant="") for one in history))
    assert known(told, told.cells()) == known(untold, untold.cells())


@settings(max_examples=60, deadline=None)
@given(histories)
def test_a_tenants_estimate_is_what_its_own_scores_alone_make_of_it(history: list[PairedScore]) -> None:
    """While nothing ends the epoch of all tenants."""
    history = [replace(one, revision="1") for one in history]
    state, alone = estimates(FLOOR, ABSOLUTE), estimates(FLOOR, ABSOLUTE)
    if any(not start.cell.tenant and start.reason is EpochReason.DRIFT for start in state.observe_all(history)):
        return
    alone.observe_all(one for one in history if one.tenant == "acme")
    for cell in alone.cells():
        own = replace(cell, tenant="acme")
        bound = bound_of(state, own) if alone.bound(cell) is not None else None
        assert alone.bound(cell) == (bound and replace(bound, cell=cell))
        assert state.drift_alarms(own) == alone.drift_alarms(cell)


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(1, 3), st.integers(0, 300))
def test_a_rebuilt_state_equals_the_one_that_grew(history: list[PairedScore], places: int, cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_TENANTS", places)
        grown, rebuilt = estimates(FLOOR, ABSOLUTE), estimates(FLOOR, ABSOLUTE)
        starts = [*grown.observe_all(history[:cut])]
        supposed, to_come = grown.supposing(history[cut:])
        starts += grown.observe_all(history[cut:])
        assert starts[len(starts) - len(to_come) :] == list(to_come)
        assert known(supposed, grown.cells()) == known(grown, grown.cells())
        assert starts == list(rebuilt.observe_all(reversed(history)))
    for cell in grown.cells():
        assert grown.of_tenants(cell) == rebuilt.of_tenants(cell)
        assert len(grown.of_tenants(cell)) <= places
        everyone = tuple(replace(cell, tenant=tenant) for tenant in ("", "acme", "beta", "gamma", "delta"))
        assert known(grown, everyone) == known(rebuilt, everyone)

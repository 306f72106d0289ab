"""A policy against recorded requests: decisions are those of the router, figures find what would have been."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.router.v1 import directives_pb2, generation_pb2, policies_pb2

from common.carbon.intensity import SignalKind
from common.clock import ManualClock
from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell, QualityBound
from router.convert import timestamp
from router.directives.bounds import Snapshot
from router.directives.decide import Facts, Reason, decide
from router.directives.levels import L0, SEEDED
from router.directives.policy import Mode, Policy
from router.ledger import LedgerEntry
from router.optimizer.costs import CostBook
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan
from router.replay.estimate import MIN_REQUESTS, Exchange, Served, simulated_grams
from router.replay.recorded import CellCost, Recorded
from router.replay.simulate import Simulator
from router.replay.simulation import Simulation
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.quality import QualityRepository, Reporter
from tests.postgres import on_both_databases
from tests.router.admin_client import MODEL, AdminClient, faults
from tests.router.ledger_entries import GRID, UNKNOWN, entry, record
from tests.router.running import Running, ask

pb: Any = policies_pb2
GRAMS_PER_JOULE = 1e-4


@pytest.fixture
def admin(client: AdminClient) -> Any:
    return client.policies


@pytest.fixture
async def now(clock: ManualClock) -> Any:
    """Noon, of the second day of the test."""
    await clock.advance(timedelta(hours=36).total_seconds())
    return clock.now()


def cost(joules: float) -> dict[str, Any]:
    grams = joules * GRAMS_PER_JOULE
    return {"energy": Energy(joules, EnergySource.MODELLED), "operational_grams": grams, "embodied_grams": 0.0}


def at_l0(number: int, joules: float = 10.0, **changes: Any) -> LedgerEntry:
    served = {"directive": "L0", "planned": "L0", "reason": Reason.NONE_OPEN.value, "eligible": False}
    return entry(number, request_id=f"l0-{number}", **{**served, **cost(joules), **changes})


def at_l1(number: int, joules: float = 5.0, **changes: Any) -> LedgerEntry:
    return entry(number, request_id=f"l1-{number}", **{**cost(joules), **changes})


async def open_l1(database: Database, keeper: SnapshotKeeper, now: Any, *tasks: str) -> None:
    bounds = [
        QualityBound(Cell(MODEL, task, "L1"), 0.97, 1.0, 0.99, 0.9, 200, "grader:numeric", "1", now)
        for task in tasks or ("sums",)
    ]
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds(bounds, Reporter("e"), now)
    await keeper.refresh()


async def simulate(admin: Any, **fields: Any) -> Any:
    window = {name: fields.pop(name) for name in ("start_time", "end_time") if name in fields}
    policy = {"name": "default", "mode": pb.MODE_ON, "floor": 0.95, "directives": ["L1", "L2"], "holdback_share": 0.0}
    return await admin.Simulate(pb.SimulateRequest(policy=pb.Policy(**{**policy, **fields}), **window))


def served(reply: Any) -> dict[tuple[str, str], int]:
    names = generation_pb2.DecisionReason
    return {
        (row.directive, names.Name(row.reason).removeprefix("DECISION_REASON_")): row.requests for row in reply.served
    }


async def test_what_was_in_force_saves_nothing(admin: Any, database: Database, now: Any) -> None:
    await record(database, *(at_l0(number, 1.0 + number, started_at=now - timedelta(hours=1)) for number in range(50)))
    reply = await simulate(admin)
    assert served(reply) == {("L0", "NONE_OPEN"): 50}
    assert reply.recorded_grams == pytest.approx(sum(range(1, 51)) * GRAMS_PER_JOULE)
    for interval, value in ((reply.simulated_grams, reply.recorded_grams), (reply.saving, 0.0)):
        assert (interval.value, interval.lower, interval.upper) == pytest.approx((value, value, value))
        assert interval.confidence == 0.95
    assert (reply.requests, reply.requests_without_energy) == (50, 0)


async def test_models_that_directives_name_are_taken_to_be_there(
    client: AdminClient, admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    """Though no engine of any is: what they will answer is what is asked."""
    directive = directives_pb2.Directive(name="small", model="small@0123456789ab")
    await admin.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=directive))
    bound = QualityBound(Cell(MODEL, "sums", "small"), 0.97, 1.0, 0.99, 0.9, 200, "grader:numeric", "1", now)
    async with database.changing() as connection:
        await QualityRepository(connection).add_bounds([bound], Reporter("e"), now)
    await keeper.refresh()
    await record(database, *(at_l0(number, started_at=now - timedelta(hours=1)) for number in range(50)))
    reply = await simulate(admin, directives=["small"])
    assert served(reply) == {("small", "PLANNED"): 50}
    said = "engines of the models that its directives name accept requests"
    assert said in list(reply.assumptions)
    # Nothing of the kind where the policy has no such directive.
    assert said not in list((await simulate(admin)).assumptions)


@on_both_databases
async def test_a_directive_of_half_the_cost_saves_half_of_what_it_is_served_for(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    at = {"started_at": now - timedelta(hours=1)}
    await record(
        database,
        *(at_l0(number, 10.0, **at) for number in range(80)),
        *(at_l1(number, 5.0, **at) for number in range(20)),
        # Nothing is open for lists.
        *(at_l0(number, 10.0, task="lists", **at) for number in range(100, 140)),
    )
    reply = await simulate(admin)
    assert served(reply) == {("L0", "NONE_OPEN"): 40, ("L1", "PLANNED"): 100}
    assert reply.recorded_grams == pytest.approx(1300 * GRAMS_PER_JOULE)
    assert reply.simulated_grams.value == pytest.approx(900 * GRAMS_PER_JOULE)
    assert reply.saving.value == pytest.approx(1 - 900 / 1300)
    assert "delta method" in reply.saving.method
    said = " ".join(reply.assumptions)
    assert "the 80 requests with another directive than recorded emit their recorded carbon times the ratio" in said
    assert "bounds, plan and costs are those known now" in said
    # Of one tenant's task alone.
    lists = await simulate(admin, name="new", tenant="acme", task="lists")
    assert (lists.requests, lists.saving.value) == (40, 0.0)


async def test_the_interval_holds_what_it_turned_out_to_be(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    random = np.random.default_rng(3)
    at = {"started_at": now - timedelta(hours=1)}
    old, new = random.gamma(4.0, 10.0, 400), random.gamma(4.0, 5.0, 100)
    await record(
        database,
        *(at_l0(number, float(joules), **at) for number, joules in enumerate(old)),
        *(at_l1(number, float(joules), **at) for number, joules in enumerate(new)),
    )
    reply = await simulate(admin)
    truth = (random.gamma(4.0, 5.0, 400).sum() + new.sum()) * GRAMS_PER_JOULE
    grams = reply.simulated_grams
    assert grams.lower < truth < grams.upper
    assert 0.02 < (grams.upper - grams.lower) / grams.value < 0.4
    saving = reply.saving
    assert saving.lower == pytest.approx(1 - grams.upper / reply.recorded_grams)
    assert saving.lower < saving.value < saving.upper


async def test_nothing_is_made_up_of_a_directive_that_was_never_served(
    client: AdminClient, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    await record(database, *(at_l0(number, 10.0, started_at=now - timedelta(hours=1)) for number in range(50)))
    client.costs.observe(Cell(MODEL, "sums", "L0"), 10.0, 1.0)
    reply = await simulate(client.policies)
    assert served(reply) == {("L1", "PLANNED"): 50}
    assert reply.recorded_grams > 0
    assert not reply.HasField("simulated_grams")
    assert not reply.HasField("saving")
    (said,) = (text for text in reply.assumptions if "not known" in text)
    assert "fewer than 10 requests" in said
    assert "L1 for task 'sums'" in said
    assert f"{500 * GRAMS_PER_JOULE * 0.224:.4g} g" in said


async def test_unknown_energy_is_in_no_sum(admin: Any, database: Database, now: Any) -> None:
    at = {"started_at": now - timedelta(hours=1)}
    await record(database, *(at_l0(number, **at, **UNKNOWN) for number in range(3)))
    reply = await simulate(admin)
    assert (reply.requests, reply.requests_without_energy, reply.recorded_grams) == (3, 3, 0.0)
    assert not reply.HasField("simulated_grams")
    await record(database, at_l0(9, 10.0, **at))
    reply = await simulate(admin)
    assert (reply.requests, reply.requests_without_energy) == (4, 3)
    assert reply.simulated_grams.value == pytest.approx(10.0 * GRAMS_PER_JOULE)
    assert "the energy of 3 requests is unknown: they are in no sum" in list(reply.assumptions)


@on_both_databases
async def test_only_requests_that_the_policy_would_decide_for(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    at = {"started_at": now - timedelta(hours=1)}
    await record(
        database,
        *(at_l0(number, **at) for number in range(5)),
        *(at_l0(number, tenant="other", **at) for number in range(10, 17)),
        *(at_l0(number, task="lists", **at) for number in range(20, 31)),
        at_l0(40, evaluation_sample_id="s1", **at),
    )
    assert (await simulate(admin)).requests == 23
    assert (await simulate(admin, name="new", task="lists")).requests == 11
    assert (await simulate(admin, name="new", tenant="other")).requests == 7
    more_specific = pb.Policy(name="p", tenant="other", floor=0.9, directives=["L1"])
    await admin.CreatePolicy(pb.CreatePolicyRequest(policy=more_specific))
    assert (await simulate(admin)).requests == 16
    # In place of the one of its name, it leaves room.
    assert (await simulate(admin, name="p", tenant="", task="lists")).requests == 11
    # Of two of one match, the first by name decides.
    assert (await simulate(admin, name="z")).requests == 0
    assert (await simulate(admin, name="a")).requests == 16


async def test_the_window_is_the_last_week_unless_another_is_named(admin: Any, database: Database, now: Any) -> None:
    days = [0.5, 1.0, 2.0, 6.9, 7.1, 30.0]
    await record(
        database,
        *(at_l0(number, started_at=now - timedelta(days=back)) for number, back in enumerate(days)),
        at_l0(99, started_at=now + timedelta(seconds=1)),
    )

    def stamp(back: float) -> Timestamp:
        return timestamp(now - timedelta(days=back))

    assert (await simulate(admin)).requests == 4
    assert (await simulate(admin, start_time=stamp(31))).requests == 6
    assert (await simulate(admin, end_time=stamp(1))).requests == 3, "the week before the end, which is exclusive"
    assert (await simulate(admin, start_time=stamp(2), end_time=stamp(1))).requests == 1
    assert (await simulate(admin, end_time=Timestamp(seconds=-62_135_596_800 + 3600))).requests == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"floor": 0.0}, "policy.floor"),
        ({"directives": ["L9"]}, "policy.directives[0]"),
        ({"directives": ["L0"]}, "policy.directives[0]"),
        ({"start_time": Timestamp(seconds=2**60)}, "start_time"),
        ({"start_time": Timestamp(seconds=5), "end_time": Timestamp(seconds=5)}, "start_time"),
    ],
)
async def test_a_faulty_request_is_refused_by_field(admin: Any, fields: Any, field: str) -> None:
    assert set(await faults(simulate(admin, **fields))) == {field}


async def test_who_was_left_alone_stays_so(admin: Any, database: Database, keeper: SnapshotKeeper, now: Any) -> None:
    await open_l1(database, keeper, now)
    at = {"started_at": now - timedelta(hours=1)}
    await record(
        database,
        *(at_l0(number, reason=Reason.OPT_OUT.value, **at) for number in range(3)),
        *(at_l0(number, reason=Reason.LEFT_ALONE.value, **at) for number in range(10, 15)),
        at_l0(20, **at),
    )
    reply = await simulate(admin)
    assert served(reply) == {("L0", "OPT_OUT"): 3, ("L0", "LEFT_ALONE"): 5, ("L1", "PLANNED"): 1}
    assert any("those left alone then (5) would be again" in text for text in reply.assumptions)
    nobody = await simulate(admin, leave_alone=pb.LeaveAlone())
    assert served(nobody) == {("L1", "PLANNED"): 9}


async def test_mode_share_and_holdback_are_the_routers(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    await record(database, *(at_l0(number, started_at=now - timedelta(hours=1)) for number in range(400)))
    shadow = await simulate(admin, mode=pb.MODE_SHADOW)
    assert served(shadow) == {("L0", "SHADOW"): 400}
    assert shadow.saving.value == 0.0
    assert any("simulate it in mode on" in text for text in shadow.assumptions)
    assert served(await simulate(admin, mode=pb.MODE_OFF)) == {("L0", "MODE_OFF"): 400}
    mixed = served(await simulate(admin, traffic_share=0.5, holdback_share=0.2))
    assert set(mixed) == {("L0", "OUTSIDE_SHARE"), ("L0", "HOLDBACK"), ("L1", "PLANNED")}
    assert 150 < mixed["L0", "OUTSIDE_SHARE"] < 250
    assert 20 < mixed["L0", "HOLDBACK"] < 60


@on_both_databases
async def test_a_budget_is_spent_day_by_day(admin: Any, database: Database, keeper: SnapshotKeeper, now: Any) -> None:
    """Two days of a hundred requests of a gram each."""
    midnight = now.replace(hour=0)
    joules = 1 / GRAMS_PER_JOULE
    await record(
        database,
        *(at_l0(number, joules, started_at=midnight - timedelta(minutes=1 + number)) for number in range(100)),
        *(at_l0(number, joules, started_at=midnight + timedelta(minutes=number - 100)) for number in range(100, 200)),
    )
    refuse = pb.CarbonBudget(grams_per_day=29.5, when_spent=pb.WHEN_SPENT_REFUSE)
    reply = await simulate(admin, carbon_budget=refuse)
    assert served(reply) == {("L0", "NONE_OPEN"): 60, ("L0", "BUDGET_SPENT"): 140}
    assert reply.simulated_grams.value == pytest.approx(60.0)
    assert reply.saving.value == pytest.approx(0.7)
    assert "140 requests would be refused and emit nothing" in list(reply.assumptions)
    # Tightened, requests outside of the share of traffic get the directive too.
    await open_l1(database, keeper, now)
    await record(
        database, *(at_l1(number, joules / 2, started_at=now - timedelta(days=3)) for number in range(MIN_REQUESTS))
    )
    tighten = {"carbon_budget": pb.CarbonBudget(grams_per_day=50), "traffic_share": 0.0}
    reply = await simulate(admin, start_time=timestamp(midnight - timedelta(days=1)), **tighten)
    assert served(reply) == {("L0", "OUTSIDE_SHARE"): 100, ("L1", "BUDGET_SPENT"): 100}
    assert reply.simulated_grams.value == pytest.approx(150.0)


@on_both_databases
async def test_requests_under_another_signal_are_left_out(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    marginal = {"intensity": replace(GRID, kind=SignalKind.MARGINAL), "operational_grams": 1e6}
    await record(
        database,
        *(at_l0(number, started_at=now - timedelta(hours=1)) for number in range(20)),
        *(at_l1(number, started_at=now - timedelta(hours=1)) for number in range(20)),
        *(at_l0(number, started_at=now - timedelta(hours=2), **marginal) for number in range(30, 37)),
        at_l0(40, started_at=now - timedelta(hours=2), **UNKNOWN),
        at_l0(41, started_at=now - timedelta(minutes=1), task="lists", **marginal),
    )
    reply = await simulate(admin, task="sums")
    assert (reply.requests, reply.requests_without_energy) == (41, 1)
    assert reply.recorded_grams == pytest.approx(300 * GRAMS_PER_JOULE)
    assert (
        "7 requests whose carbon was counted as marginal, lifecycle are left out: that of the newest is counted as "
        "average, lifecycle, and the two are never added"
    ) in list(reply.assumptions)
    # Of every task, the newest is another's.
    assert (await simulate(admin)).requests == 9


async def test_of_too_many_requests_the_newest_are_looked_at(
    database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await record(database, *(at_l0(number, started_at=now - timedelta(minutes=number)) for number in range(1, 31)))
    simulator = Simulator(database, CostBook(), lambda cost: None, most_requests=10)
    candidate, start = replace(keeper.snapshot.policies[0], mode=Mode.ON), now - timedelta(days=1)
    found = await simulator.simulate(candidate, start, now, keeper.snapshot, now)
    assert found.requests == 10
    assert "only the newest 10 requests were looked at, since 2026-01-02T11:49:00" in found.assumptions[-1]
    whole = await simulator.simulate(candidate, now - timedelta(minutes=10), now, keeper.snapshot, now)
    assert whole.requests == 10
    assert not any("newest" in text for text in whole.assumptions)


async def test_a_whole_router_would_decide_again_as_it_did(router: Running) -> None:
    """Without conversations, traits and floors of callers, all that decisions depend on is recorded."""
    await router.policy(directives=["L1"], traffic_share=0.7, holdback_share=0.3)
    await router.open()
    answers = [await router.generation.Generate(ask(request_id=f"r{number}")) for number in range(40)]
    await router.router.ledger.flush()
    await router.clock.advance(1)
    policy = await router.policies.GetPolicy(pb.GetPolicyRequest(name="acme-qa"))
    reply = await router.policies.Simulate(pb.SimulateRequest(policy=policy))
    decisions = Counter((answer.started.decision.directive, answer.started.decision.reason) for answer in answers)
    assert {(row.directive, row.reason): row.requests for row in reply.served} == decisions
    assert len(decisions) == 3
    carbon = [answer.finished.carbon for answer in answers]
    assert reply.recorded_grams == pytest.approx(sum(c.operational_grams + c.embodied_grams for c in carbon))
    assert reply.saving.value == pytest.approx(0.0, abs=1e-12)


def _snapshot(policy: Policy, now: Any) -> Snapshot:
    bounds = [
        QualityBound(Cell(MODEL, "sums", name), lower, 1.0, 0.99, 0.9, 200, "judge", "1", now)
        for name, lower in (("L1", 0.97), ("L2", 0.9))
    ]
    return Snapshot({d.name: d for d in (L0, *SEEDED)}, (policy,), {b.cell: b for b in bounds}, Plan({}, now))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["sums", "lists"]), st.sampled_from(["L0", "L1", "L2"]), st.floats(0.1, 100.0)),
        max_size=40,
    ),
    st.floats(0, 1),
    st.floats(0, 0.5),
)
def test_each_request_gets_what_the_router_would_have_given_it(
    requests: list[tuple[str, str, float]], traffic_share: float, holdback_share: float
) -> None:
    now = ManualClock().now()
    policy = Policy("p", mode=Mode.ON, floor=0.93, directives=("L1", "L2"), traffic_share=traffic_share,
                    holdback_share=holdback_share)  # fmt: skip
    snapshot = _snapshot(policy, now)
    snapshot = replace(snapshot, plan=make_plan(snapshot, CostBook(), lambda cost: cost.energy_joules, now, None))
    rows = [
        Recorded("acme", f"r{n}", task, MODEL, name, 1, "planned", grams, now)
        for n, (task, name, grams) in enumerate(requests)
    ]
    # L1 costs half of L0, L2 a fifth, without any spread.
    costs: dict[Served, CellCost] = {
        (Cell(MODEL, task, name), 1): CellCost(100, 100 * mean, 100 * mean**2)
        for task in ("sums", "lists")
        for name, mean in (("L0", 10.0), ("L1", 5.0), ("L2", 2.0))
    }
    simulation = Simulation(policy, (policy,), snapshot, costs, CostBook(), now)
    simulation.add(rows)
    found = simulation.result()
    relative = {"L0": 1.0, "L1": 0.5, "L2": 0.2}
    expected = 0.0
    for row in rows:
        decision = decide(Facts("acme", row.task, MODEL, row.request_id, row.request_id), snapshot, now)
        assert row.grams is not None
        expected += row.grams * relative[decision.directive.name] / relative[row.directive]
    assert found.requests == sum(count for _, _, count in found.served) == len(rows)
    if rows:
        assert found.simulated_grams is not None
        assert found.simulated_grams.value == pytest.approx(expected)
        assert found.simulated_grams.lower <= found.simulated_grams.value <= found.simulated_grams.upper


def _cost(joules: Sequence[float]) -> CellCost:
    return CellCost(len(joules), math.fsum(joules), math.fsum(j * j for j in joules))


async def test_a_quality_budget_mixes_and_one_over_the_day_is_simulated_as_one_of_each_task(
    admin: Any, database: Database, keeper: SnapshotKeeper, now: Any
) -> None:
    await open_l1(database, keeper, now)
    await record(
        database, *(at_l0(number, 1.0, started_at=now - timedelta(hours=1 + number % 5)) for number in range(200))
    )
    alone = await simulate(admin, floor=0.98)
    assert served(alone) == {("L0", "NONE_OPEN"): 200}
    said = {}
    for scope in (pb.QualityBudget.SCOPE_TASK, pb.QualityBudget.SCOPE_DAY):
        budget = pb.QualityBudget(directive_floor=0.9, scope=scope)
        reply = await simulate(admin, floor=0.98, quality_budget=budget)
        # A binomial of 200 at two thirds has a deviation of 7.
        assert 110 < served(reply)["L1", "PLANNED"] < 160
        said[scope] = [text for text in reply.assumptions if "simulated as one of each task" in text]
    assert [len(found) for found in said.values()] == [0, 1]


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of a thousand simulated worlds, in which what would have been is known."""
    random = np.random.default_rng(11)
    old: Served = (Cell(MODEL, "sums", "L0"), 1)
    new: Served = (Cell(MODEL, "sums", "L1"), 1)
    covered, worlds = 0, 1_000
    for _ in range(worlds):
        served_old, served_new = random.gamma(3.0, 4.0, 60), random.gamma(3.0, 2.0, 25)
        factors = random.choice([1.0, 3.0], 60)
        grams = served_old * factors
        truth = 7.0 + (random.gamma(3.0, 2.0, 60) * factors).sum()
        exchange = Exchange(old, new, grams.sum(), (grams**2).sum())
        interval = simulated_grams(7.0, [exchange], {old: _cost(served_old), new: _cost(served_new)})
        assert interval is not None
        covered += interval.lower <= truth <= interval.upper
    # It errs to the wide side; far wider would be of no use.
    assert 0.94 <= covered / worlds <= 0.995


def test_too_few_requests_of_a_cell_say_nothing() -> None:
    old: Served = (Cell(MODEL, "sums", "L0"), 1)
    new: Served = (Cell(MODEL, "sums", "L1"), 2)
    exchange = Exchange(old, new, 10.0, 50.0)
    many, few, free = _cost([1.0] * MIN_REQUESTS), _cost([1.0] * (MIN_REQUESTS - 1)), _cost([0.0] * MIN_REQUESTS)
    assert simulated_grams(1.0, [exchange], {old: many, new: many}) is not None
    for costs in ({old: many, new: few}, {old: few, new: many}, {old: many}, {old: many, new: free}):
        assert simulated_grams(1.0, [exchange], costs) is None
    # Another revision of the directive is another text.
    assert simulated_grams(1.0, [exchange], {old: many, (new[0], 1): many}) is None

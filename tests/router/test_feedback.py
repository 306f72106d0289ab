"""Service Feedback over gRPC: an evaluator learns what to judge, draws samples, and reports what it found."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from pith.router.v1 import directives_pb2, feedback_pb2, policies_pb2

from common.clock import ManualClock
from common.quality.bound import Cell
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.quality import QualityRepository
from router.store.samples import SampleRepository
from tests.postgres import on_both_databases
from tests.router.admin_client import MODEL, AdminClient, faults, refused
from tests.router.quality_reports import bound, draw, keep, report, score, scored

pb: Any = feedback_pb2
admin_pb: Any = policies_pb2


async def all_scores(evaluator: Any) -> list[tuple[str, str, float]]:
    reply = await evaluator.ListScores(pb.ListScoresRequest())
    return [(s.sample_id, s.score.directive, s.score.quality) for s in reply.scores]


async def add_policy(client: AdminClient, name: str, **fields: Any) -> Any:
    given = {"floor": 0.9, "mode": admin_pb.MODE_ON, "directives": ["L1"], **fields}
    return await client.policies.CreatePolicy(admin_pb.CreatePolicyRequest(policy=admin_pb.Policy(name=name, **given)))


async def test_nothing_to_judge_without_samples(evaluator: Any, clock: ManualClock) -> None:
    plan = await evaluator.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
    assert list(plan.targets) == []
    assert plan.now.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()
    assert not plan.HasField("last_reported_at")
    hours = [point.at.ToSeconds() for point in plan.intensities]
    assert (len(hours), hours) == (72, sorted(hours))
    assert {point.g_per_kwh for point in plan.intensities} == {100.0}


def floors(target: pb.EvaluationPlan.Target) -> list[tuple[str, float]]:
    return [(admin_pb.FloorKind.Name(f.kind).removeprefix("FLOOR_KIND_"), f.quality) for f in target.floors]


async def test_of_several_graders_one_that_samples_come_with_counts(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 1)
    await add_policy(client, "a", tenant="acme", grader="exact", sample_share=0.0)
    await add_policy(client, "b", tenant="other", grader="numeric")
    await add_policy(client, "c", tenant="third", grader="item_set")
    plan = await evaluator.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
    assert {t.cell.directive: t.grader for t in plan.targets} == {"L1": "numeric", "L2": ""}


@on_both_databases
async def test_a_target_has_the_floors_of_all_its_policies_and_what_waits(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 5)
    await keep(database, clock, 2, prefix="ungraded", grader="")
    await keep(database, clock, 2, prefix="other", task="lists")
    await add_policy(client, "for-acme", tenant="acme", floor=0.97, grader="numeric", task="sums")
    await add_policy(
        client, "absolute", tenant="other", floor=0.6, floor_kind=admin_pb.FLOOR_KIND_ABSOLUTE, directives=["L1"]
    )
    await add_policy(client, "off", tenant="third", floor=1.0, mode=admin_pb.MODE_OFF)
    client.costs.observe(Cell(MODEL, "sums", "L0"), 10.0, 1.0)
    for _ in range(2_000):
        client.costs.observe(Cell(MODEL, "sums", "L1"), 4.0, 0.4)
    drawn = await draw(evaluator, 2)
    await report(evaluator, scores=[scored(sample_id) for sample_id in drawn], bounds=[bound(clock)])

    plan = await evaluator.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
    targets = {(t.cell.task, t.cell.directive): t for t in plan.targets}
    assert set(targets) == {("lists", "L1"), ("lists", "L2"), ("sums", "L1"), ("sums", "L2")}
    brief = targets["sums", "L1"]
    assert brief.cell.model == MODEL
    assert floors(brief) == [("ABSOLUTE", 0.6), ("RELATIVE", 0.95), ("RELATIVE", 0.97)]
    assert (brief.grader, brief.directive_revision, brief.samples_waiting) == ("numeric", 1, 3)
    assert brief.relative_carbon == pytest.approx(0.4, rel=0.01)
    assert brief.bound.lower == 0.97
    other = targets["lists", "L2"]
    assert floors(other) == [("RELATIVE", 0.95)]
    assert (other.grader, other.samples_waiting) == ("", 2)
    assert not other.HasField("relative_carbon")
    assert not other.HasField("bound")
    assert ("ABSOLUTE", 0.6) in floors(targets["lists", "L1"])
    assert plan.last_reported_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()


async def test_a_policy_that_another_hides_asks_for_nothing(
    client: AdminClient, evaluator: Any, database: Database, clock: ManualClock
) -> None:
    """The default is for any task; one that is off for sums takes its place there."""
    await keep(database, clock, 1)
    await add_policy(client, "no-sums", task="sums", mode=admin_pb.MODE_OFF)
    plan = await evaluator.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
    assert list(plan.targets) == []


@on_both_databases
async def test_a_drawn_sample_is_what_was_kept(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 1)
    request = pb.DrawSamplesRequest(model=MODEL, task="sums", directives=["L1"], count=1, evaluator="e1")
    (sample,) = (await evaluator.DrawSamples(request)).samples
    assert (sample.sample_id, sample.model, sample.task) == ("s0", MODEL, "sums")
    assert [(m.role, m.content) for m in sample.messages] == [(1, "Be kind."), (2, "2 + 2?")]
    assert (sample.sampling.seed, sample.sampling.temperature) == (7, 0.5)
    assert (sample.limits.max_output_tokens, sample.reference, sample.grader) == (99, "4", "numeric")
    assert [(a.directive, a.directive_revision, a.text, a.output_tokens) for a in sample.answers] == [
        ("L0", 1, "2 + 2 = 4", 9)
    ]
    assert sample.served_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()


@on_both_databases
async def test_a_lease_keeps_others_off_until_it_ends(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 3)
    assert await draw(evaluator, 2) == ["s0", "s1"]
    assert await draw(evaluator, name="e2", lease=Duration(seconds=30)) == ["s2"]
    await clock.advance(31)
    assert await draw(evaluator, name="e2") == ["s2"]
    await clock.advance(600)
    assert await draw(evaluator, name="e2") == ["s0", "s1", "s2"]


@on_both_databases
async def test_a_draw_for_a_trial_takes_what_can_be_graded_and_leaves_it_as_it_is(
    evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 3)
    await keep(database, clock, 5, prefix="ungraded", grader="")
    held = await draw(evaluator, 2)
    await report(evaluator, scores=[scored(held[0])])
    for model in (MODEL, "tiny", ""):
        assert await draw(evaluator, directives=[], model=model) == ["s0", "s1", "s2"]
    assert await draw(evaluator, directives=[], model="huge") == []
    assert await draw(evaluator, directives=[], task="lists") == []
    # Nobody's lease began or ended by it.
    assert await draw(evaluator, name="e2") == ["s2"]


@on_both_databases
async def test_a_report_opens_a_directive_at_once(
    client: AdminClient, evaluator: Any, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await keep(database, clock, 3)
    await add_policy(client, "strict", tenant="acme", floor=0.99)
    drawn = await draw(evaluator, 2)
    answers = [pb.Answer(directive="L1", directive_revision=1, text="4", output_tokens=2)]
    changes = await report(
        evaluator, scores=[scored(sample_id, answers=answers) for sample_id in drawn], bounds=[bound(clock)]
    )
    assert changes == [("L1", "default", True)]
    assert keeper.snapshot.bounds[Cell(MODEL, "sums", "L1")].lower == 0.97
    assert await all_scores(evaluator) == [("s0", "L1", 1.0), ("s1", "L1", 1.0)]
    assert await draw(evaluator) == ["s2"]
    async with database.reading() as connection:
        (sample,) = await SampleRepository(connection).get_many(["s0"])
    assert [(answer.directive, answer.text) for answer in sample.answers] == [("L0", "2 + 2 = 4"), ("L1", "4")]


@on_both_databases
async def test_a_report_closes_a_directive_at_once(
    client: AdminClient, evaluator: Any, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await add_policy(client, "lax", tenant="acme", floor=0.5)
    assert await report(evaluator, bounds=[bound(clock)]) == [("L1", "default", True), ("L1", "lax", True)]
    await clock.advance(60)
    assert await report(evaluator, bounds=[bound(clock, lower=0.9)]) == [("L1", "default", False)]
    await clock.advance(60)
    cell = pb.Cell(model=MODEL, task="sums", directive="L1")
    drop = pb.Withdrawal(cell=cell, judge="grader:exact", reason=pb.WITHDRAWAL_REASON_DRIFT)
    assert await report(evaluator, withdrawals=[drop]) == [("L1", "lax", False)]
    assert keeper.snapshot.bounds == {}
    await clock.advance(60)
    assert await report(evaluator, bounds=[bound(clock)]) == [("L1", "default", True), ("L1", "lax", True)]


async def test_an_absolute_floor_is_held_against_the_mean(
    client: AdminClient, evaluator: Any, clock: ManualClock
) -> None:
    kind = admin_pb.FLOOR_KIND_ABSOLUTE
    await add_policy(client, "a", tenant="acme", floor=0.9, floor_kind=kind)
    reply = await evaluator.ReportQuality(
        pb.ReportQualityRequest(evaluator="e1", bounds=[bound(clock, lower=0.1, absolute_lower=0.91)])
    )
    (change,) = reply.changes
    assert (change.policy, change.open, change.floor_kind) == ("a", True, kind)


@on_both_databases
async def test_a_repeated_report_changes_nothing(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 2)
    drawn = await draw(evaluator)
    answers = [pb.Answer(directive="L1", directive_revision=1, text="4", output_tokens=2)]
    given = {"scores": [scored(drawn[0], answers=answers), scored(drawn[1])], "bounds": [bound(clock)]}
    assert await report(evaluator, **given) == [("L1", "default", True)]
    await clock.advance(3600)
    assert await report(evaluator, **given) == []
    assert len(await all_scores(evaluator)) == 2
    async with database.reading() as connection:
        assert len(await QualityRepository(connection).history(Cell(MODEL, "sums", "L1"))) == 1


@on_both_databases
async def test_reports_at_once_count_once(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 2)
    drawn = await draw(evaluator)
    given = {"scores": [scored(sample_id) for sample_id in drawn], "bounds": [bound(clock)]}
    changes = await asyncio.gather(*(report(evaluator, **given) for _ in range(4)))
    assert len(await all_scores(evaluator)) == 2
    assert [("L1", "default", True)] in changes


@on_both_databases
async def test_a_reported_sample_is_free_for_what_it_still_lacks(
    evaluator: Any, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 2)
    await draw(evaluator, directives=["L1", "L2"])
    await report(evaluator, scores=[scored("s0")])
    assert await draw(evaluator, name="e2", directives=["L1", "L2"]) == ["s0"]


@on_both_databases
async def test_a_lost_lease_records_nothing_of_the_report(
    evaluator: Any, database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    await keep(database, clock, 3)
    await draw(evaluator, 1, lease=Duration(seconds=10))
    await draw(evaluator, 2, lease=Duration(seconds=100))
    given = {"scores": [scored("s1"), scored("s0")], "bounds": [bound(clock)]}
    await clock.advance(10)
    error = await refused(report(evaluator, **given), "FAILED_PRECONDITION", "LEASE_LOST")
    assert error.metadata == {"sample_id": "s0"}
    assert await all_scores(evaluator) == []
    assert keeper.snapshot.bounds == {}
    other = report(evaluator, "e2", scores=[scored("s1")])
    assert "not this evaluator's" in (await refused(other, "FAILED_PRECONDITION", "LEASE_LOST")).message
    await report(evaluator, scores=[scored("s1")])


async def test_an_unknown_sample_is_not_found(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 1)
    await draw(evaluator)
    call = report(evaluator, scores=[scored("s0"), scored("nobody")])
    error = await refused(call, "NOT_FOUND", "RESOURCE_NOT_FOUND")
    assert error.metadata == {"resource": "sample", "name": "nobody"}
    assert await all_scores(evaluator) == []


async def test_a_bound_of_another_revision_opens_nothing(
    client: AdminClient, evaluator: Any, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    assert await report(evaluator, bounds=[bound(clock)]) == [("L1", "default", True)]
    directive = await client.directives.GetDirective(directives_pb2.GetDirectiveRequest(name="L1"))
    directive.text = "Short"
    await client.directives.UpdateDirective(directives_pb2.UpdateDirectiveRequest(directive=directive))
    await clock.advance(1)
    assert await report(evaluator, bounds=[bound(clock)]) == []
    await clock.advance(1)
    assert await report(evaluator, bounds=[bound(clock, directive_revision=2)]) == [("L1", "default", True)]
    await clock.advance(1)
    assert await report(evaluator, bounds=[bound(clock)]) == []
    assert keeper.snapshot.bounds[Cell(MODEL, "sums", "L1")].revision == "2"


@on_both_databases
async def test_pages_of_scores_hold_everything_once(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 7)
    names = await draw(evaluator)
    await clock.advance(5)
    await report(evaluator, scores=[scored(name, score(), score("L2", quality=0.5)) for name in names])
    for size in (1, 2, 3, 5, 14, 99):
        found: list[Any] = []
        token = ""
        while True:
            reply = await evaluator.ListScores(pb.ListScoresRequest(page_size=size, page_token=token))
            assert len(reply.scores) <= size
            found += reply.scores
            assert len(found) <= 14
            token = reply.next_page_token
            if not token:
                break
        assert len({(s.sample_id, s.score.directive) for s in found}) == len(found) == 14
    assert (found[0].cell.model, found[0].cell.task, found[0].cell.directive) == (MODEL, "sums", "L1")
    assert found[0].scored_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()
    assert (found[0].score.judge, found[0].score.baseline_quality) == ("grader:numeric", 1.0)


async def test_a_policy_may_have_answers_compared_and_needs_no_reference(
    evaluator: Any, client: AdminClient, database: Database, clock: ManualClock
) -> None:
    await keep(database, clock, 3, grader="pairwise", reference="")
    await add_policy(client, "compared", grader="pairwise")
    (target,) = (await evaluator.GetEvaluationPlan(pb.GetEvaluationPlanRequest())).targets
    assert (target.grader, target.samples_waiting) == ("pairwise", 3)
    assert len(await draw(evaluator)) == 3


async def test_what_was_compared_comes_back(evaluator: Any, database: Database, clock: ManualClock) -> None:
    await keep(database, clock, 2, grader="pairwise", reference="")
    first, second = await draw(evaluator)
    compared = pb.Comparison(characters=7, baseline_characters=0, shown_first=1.0, shown_second=0.25)
    given = score(judge="pairwise:judge@0123/prompt-1", quality=0.63, baseline_quality=0.5, comparison=compared)
    await report(evaluator, scores=[scored(first, given), scored(second)])
    reply = await evaluator.ListScores(pb.ListScoresRequest())
    found = {one.sample_id: one.score for one in reply.scores}
    assert found[first] == given
    assert not found[second].HasField("comparison")


async def test_a_made_up_page_token_of_scores(evaluator: Any) -> None:
    assert set(await faults(evaluator.ListScores(pb.ListScoresRequest(page_token="nonsense")))) == {"page_token"}


async def test_only_evaluators_may(client: AdminClient) -> None:
    _, feedback, _ = client.as_role("client")
    call = feedback.GetEvaluationPlan(pb.GetEvaluationPlanRequest())
    await refused(call, "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")

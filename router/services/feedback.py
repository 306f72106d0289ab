"""Service Feedback: samples out to evaluators, scores and quality bounds in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from pith.router.v1 import feedback_pb2 as pb
from pith.router.v1 import feedback_pb2_grpc

from common.auth import Role
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from common.errors import failed_precondition, not_found
from common.grpc_server import Context
from common.quality.bound import Cell
from router import convert, pagination, policy_messages, quality_messages
from router.directives.decide import Snapshot
from router.directives.levels import L0
from router.directives.policy import Policy
from router.feedback_limits import check_draw, check_report
from router.openings import allowing, deciding, is_open
from router.optimizer.costs import Cost, CostBook
from router.samples import Score
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.quality import QualityRepository, Reporter
from router.store.samples import Lease, SampleRepository

SERVICE = pb.DESCRIPTOR.services_by_name["Feedback"]
ROLES = {method.name: {Role.EVALUATOR} for method in SERVICE.methods}

INTENSITY_HOURS = 72
DEFAULT_LEASE_SECONDS = 600.0
DEFAULT_SCORES_PAGE = 500
MAX_SCORES_PAGE = 5_000
_BEFORE_ALL = 0


class FeedbackService(feedback_pb2_grpc.FeedbackServicer):
    """All state is in the database, so that an evaluator can be replaced at any moment.

    Args:
        grams: Carbon of a request at the present intensity; None where that is unknown.
        rng: Draws the samples of a trial.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        costs: CostBook,
        grams: Callable[[Cost], float | None],
        intensities: IntensityProvider,
        rng: random.Random | None = None,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._costs = costs
        self._grams = grams
        self._intensities = intensities
        self._rng = rng or random.Random()

    async def GetEvaluationPlan(self, request: pb.GetEvaluationPlanRequest, context: Context) -> pb.EvaluationPlan:
        async with self._database.reading() as connection:
            samples = SampleRepository(connection)
            gradable, scored = await samples.gradable(), await samples.scored()
            last_reported_at = await QualityRepository(connection).last_scored_at()
        now, snapshot = self._clock.now(), self._keeper.snapshot
        plan = pb.EvaluationPlan(now=convert.timestamp(now))
        for cell, policies in _allowed(snapshot, gradable).items():
            target = self._target(cell, policies, snapshot)
            of_revision = scored.get((cell, target.directive_revision), 0)
            target.samples_waiting = gradable.get((cell.model, cell.task), 0) - of_revision
            plan.targets.append(target)
        for at, g_per_kwh in self._intensities.history(now, INTENSITY_HOURS):
            plan.intensities.add(at=convert.timestamp(at), g_per_kwh=g_per_kwh)
        if last_reported_at is not None:
            plan.last_reported_at.CopyFrom(convert.timestamp(last_reported_at))
        return plan

    async def DrawSamples(self, request: pb.DrawSamplesRequest, context: Context) -> pb.DrawSamplesResponse:
        directives = self._keeper.snapshot.directives
        check_draw(request, directives)
        if not request.directives:
            async with self._database.reading() as connection:
                drawn = await SampleRepository(connection).draw_any(
                    request.task, request.count, self._rng, request.model
                )
            return pb.DrawSamplesResponse(samples=map(convert.from_sample, drawn))
        lease_seconds = DEFAULT_LEASE_SECONDS
        if request.HasField("lease"):
            lease_seconds = request.lease.ToNanoseconds() / 1e9
        served_after = convert.moment(request.served_after) if request.HasField("served_after") else None
        async with self._database.writing() as connection:
            drawn = await SampleRepository(connection).draw(
                request.model,
                request.task,
                {name: directives[name].revision for name in request.directives},
                request.count,
                request.evaluator,
                self._clock.now(),
                lease_seconds,
                served_after,
            )
        return pb.DrawSamplesResponse(samples=map(convert.from_sample, drawn))

    async def ReportQuality(self, request: pb.ReportQualityRequest, context: Context) -> pb.ReportQualityResponse:
        now = self._clock.now()
        check_report(request, now)
        sample_ids = [entry.sample_id for entry in request.scores]
        bounds = [convert.to_bound(message) for message in request.bounds]
        withdrawals = [quality_messages.to_withdrawal(message, now) for message in request.withdrawals]
        before = self._keeper.snapshot
        async with self._database.changing() as connection:
            samples, quality = SampleRepository(connection), QualityRepository(connection)
            leases = await samples.leases(sample_ids)
            scored, answered = await quality.scored(sample_ids), await samples.answered(sample_ids)
            for entry in request.scores:
                if entry.sample_id not in leases:
                    raise not_found("sample", entry.sample_id)
                # A repeated report finds all recorded and its leases ended, and that is no fault.
                if not (_keys(entry, entry.scores) <= scored and _keys(entry, entry.answers) <= answered):
                    _check_lease(leases[entry.sample_id], entry.sample_id, request.evaluator, now)
            await samples.add_answers(
                [(entry.sample_id, convert.to_answer(answer)) for entry in request.scores for answer in entry.answers]
            )
            await quality.add_scores([score for entry in request.scores for score in _scores(entry, leases, now)])
            await samples.release(sample_ids, request.evaluator)
            revisions = {d.name: str(d.revision) for d in await DirectiveRepository(connection).all()}
            # One of an earlier revision would put the present one's out of force.
            current = [bound for bound in bounds if revisions.get(bound.cell.directive) == bound.revision]
            by = Reporter(request.evaluator, request.code_revision)
            await quality.withdraw(withdrawals, by)
            await quality.add_bounds(current, by, now)
        await self._keeper.refresh()
        cells = dict.fromkeys((*(bound.cell for bound in bounds), *(start.cell for start in withdrawals)))
        return pb.ReportQualityResponse(changes=_changes(before, self._keeper.snapshot, cells, now))

    async def ListScores(self, request: pb.ListScoresRequest, context: Context) -> pb.ListScoresResponse:
        after = pagination.read_token("scores", request.page_token, _BEFORE_ALL)
        size = pagination.page_size(request.page_size, DEFAULT_SCORES_PAGE, MAX_SCORES_PAGE)
        async with self._database.reading() as connection:
            found = await QualityRepository(connection).scores_after(after, size + 1)
        page = found[:size]
        return pb.ListScoresResponse(
            scores=[convert.from_score(score) for _, score in page],
            next_page_token=pagination.write_token("scores", page[-1][0]) if len(found) > size else "",
        )

    def _target(self, cell: Cell, policies: Sequence[Policy], snapshot: Snapshot) -> pb.EvaluationPlan.Target:
        floors = sorted({(policy.floor_kind, policy.floor) for policy in policies})
        bound = snapshot.bounds.get(cell)
        # Samples carry the grader of their policy, and only those of this one are judged: one that keeps some is first.
        graded = sorted((p for p in policies if p.grader), key=lambda policy: policy.sample_share == 0)
        return pb.EvaluationPlan.Target(
            cell=convert.from_cell(cell),
            floors=[
                pb.EvaluationPlan.Floor(quality=quality, kind=policy_messages.from_floor_kind(kind))
                for kind, quality in floors
            ],
            grader=graded[0].grader if graded else "",
            directive_revision=snapshot.directives[cell.directive].revision,
            relative_carbon=self._relative_carbon(cell),
            bound=convert.from_bound(bound) if bound else None,
        )

    def _relative_carbon(self, cell: Cell) -> float | None:
        predicted = self._costs.predicted(cell.model, cell.task, (cell.directive, L0.name))
        cost, baseline = predicted.get(cell.directive), predicted.get(L0.name)
        if cost is None or baseline is None:
            return None
        grams, baseline_grams = self._grams(cost), self._grams(baseline)
        return grams / baseline_grams if grams is not None and baseline_grams else None


def _allowed(snapshot: Snapshot, seen: Iterable[tuple[str, str]]) -> dict[Cell, list[Policy]]:
    """The policies that allow each cell's directive, of every (model, task) that was seen or has a bound."""
    allowed: dict[Cell, list[Policy]] = {}
    for model, task in sorted({*seen, *((cell.model, cell.task) for cell in snapshot.bounds)}):
        for policy in deciding(snapshot.policies, task):
            for name in policy.directives:
                if name in snapshot.directives:
                    allowed.setdefault(Cell(model, task, name), []).append(policy)
    return allowed


def _keys(entry: pb.SampleScores, judged: Iterable[pb.Score | pb.Answer]) -> set[tuple[str, str, int]]:
    return {(entry.sample_id, one.directive, one.directive_revision) for one in judged}


def _check_lease(lease: Lease, sample_id: str, evaluator: str, now: datetime) -> None:
    if lease.holder != evaluator or lease.until is None or lease.until <= now:
        held = "has run out" if lease.holder == evaluator else "is not this evaluator's"
        raise failed_precondition("LEASE_LOST", f"the lease of sample {sample_id} {held}", {"sample_id": sample_id})


def _scores(entry: pb.SampleScores, leases: Mapping[str, Lease], now: datetime) -> list[Score]:
    lease = leases[entry.sample_id]
    return [
        Score(
            cell=Cell(lease.model, lease.task, score.directive),
            directive_revision=score.directive_revision,
            sample_id=entry.sample_id,
            quality=score.quality,
            baseline_quality=score.baseline_quality,
            judge=score.judge,
            scored_at=now,
            comparison=convert.to_comparison(score.comparison) if score.HasField("comparison") else None,
        )
        for score in entry.scores
    ]


def _changes(
    before: Snapshot, after: Snapshot, cells: Mapping[Cell, object], now: datetime
) -> list[pb.ReportQualityResponse.Change]:
    changes = []
    for cell in cells:
        for policy in allowing(after.policies, cell.task, cell.directive):
            opened = is_open(after, policy, cell, now)
            if opened != is_open(before, policy, cell, now):
                changes.append(
                    pb.ReportQualityResponse.Change(
                        cell=convert.from_cell(cell),
                        policy=policy.name,
                        open=opened,
                        floor_kind=policy_messages.from_floor_kind(policy.floor_kind),
                    )
                )
    return changes

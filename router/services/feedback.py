"""Service Feedback: samples out to evaluators, scores and quality bounds in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pith.router.v1 import feedback_pb2 as pb
from pith.router.v1 import feedback_pb2_grpc

from common.auth import Role
from common.carbon.intensity import IntensityProvider
from common.clock import Clock
from common.errors import aborted, failed_precondition, not_found
from common.grpc_server import Context
from common.quality.bound import Cell
from common.quality.sample_size import worthwhile_pairs
from router import convert, pagination, policy_messages, quality_messages
from router.directives.bounds import Snapshot
from router.directives.decide import Accepting, no_other_model
from router.directives.levels import L0
from router.directives.policy import Policy, counting_grader, deciding
from router.feedback_limits import check_draw, check_report
from router.openings import allowing, is_open
from router.optimizer.costs import Cost, CostBook
from router.samples import Score
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.mix import MixRepository
from router.store.quality import QualityRepository, Reporter
from router.store.samples import Lease, SampleRepository

SERVICE = pb.DESCRIPTOR.services_by_name["Feedback"]
ROLES = {method.name: {Role.EVALUATOR} for method in SERVICE.methods}

INTENSITY_HOURS = 72
DEFAULT_LEASE_SECONDS = 600.0
DEFAULT_SCORES_PAGE = 500
MAX_SCORES_PAGE = 5_000
_BEFORE_ALL = 0
_MOST_REQUESTS = 1e12
"""That samples may stand for: a share of next to none would have them stand for more than there are numbers."""


class FeedbackService(feedback_pb2_grpc.FeedbackServicer):
    """All state is in the database, so that an evaluator can be replaced at any moment.

    Args:
        grams: Carbon of a request at the present intensity; None where that is unknown.
        accepting: The models that some engine accepts requests for.
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
        accepting: Accepting = no_other_model,
        rng: random.Random | None = None,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._costs = costs
        self._grams = grams
        self._intensities = intensities
        self._accepting = accepting
        self._rng = rng or random.Random()

    async def GetEvaluationPlan(self, request: pb.GetEvaluationPlanRequest, context: Context) -> pb.EvaluationPlan:
        async with self._database.reading() as connection:
            samples = SampleRepository(connection)
            gradable, scored = await samples.gradable(), await samples.scored()
            quality = QualityRepository(connection)
            last_reported_at, withdrawn = await quality.last_scored_at(), await quality.mix_withdrawals()
            now = self._clock.now()
            mixes = await MixRepository(connection).mixes(now) if request.with_mix else {}
        snapshot, accepting = self._keeper.snapshot, {"", *self._accepting()}
        plan = pb.EvaluationPlan(now=convert.timestamp(now))
        graders: dict[tuple[str, str], list[str]] = {}
        for model, task, grader in gradable:
            graders.setdefault((model, task), []).append(grader)
        for cell, policies in _allowed(snapshot, graders).items():
            target = self._target(cell, policies, snapshot)
            target.samples_waiting = sum(
                gradable[cell.model, cell.task, grader] - scored.get((cell, target.directive_revision, grader), 0)
                for grader in graders.get((cell.model, cell.task), ())
                # Without a grader none is judged: all of them wait for one. A model that is away answers none.
                if target.grader in ("", grader) and snapshot.directives[cell.directive].model in accepting
            )
            kept = gradable.get((cell.model, cell.task, target.grader), 0)
            target.worthwhile_samples = max(
                (
                    worthwhile_pairs(min(kept / policy.sample_share, _MOST_REQUESTS))
                    for policy in policies
                    if policy.quality_budget is not None and policy.grader == target.grader and policy.sample_share > 0
                ),
                default=0,
            )
            if cell in mixes and target.HasField("bound"):
                target.mix.CopyFrom(quality_messages.from_mix(mixes[cell]))
            plan.targets.append(target)
        plan.withdrawals.extend(quality_messages.from_withdrawal(start) for start, _ in withdrawn.values())
        for at, g_per_kwh in self._intensities.history(now, INTENSITY_HOURS):
            plan.intensities.add(at=convert.timestamp(at), g_per_kwh=g_per_kwh)
        if last_reported_at is not None:
            plan.last_reported_at.CopyFrom(convert.timestamp(last_reported_at))
        return plan

    async def DrawSamples(self, request: pb.DrawSamplesRequest, context: Context) -> pb.DrawSamplesResponse:
        snapshot = self._keeper.snapshot
        directives = snapshot.directives
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
        graders = {counting_grader(allowing(snapshot.policies, request.task, name)) for name in request.directives}
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
                # Those of others would be refused, and be out of reach until their lease ends.
                graders - {""},
            )
        return pb.DrawSamplesResponse(samples=map(convert.from_sample, drawn))

    async def ReportQuality(self, request: pb.ReportQualityRequest, context: Context) -> pb.ReportQualityResponse:
        now = self._clock.now()
        check_report(request, now)
        sample_ids = [entry.sample_id for entry in request.scores]
        known = pagination.read_token("scores", request.position, _BEFORE_ALL, "position")
        bounds = [convert.to_bound(message) for message in request.bounds]
        withdrawals = [quality_messages.to_withdrawal(message, now) for message in request.withdrawals]
        before = self._keeper.snapshot
        async with self._database.changing() as connection:
            samples, quality = SampleRepository(connection), QualityRepository(connection)
            leases = await samples.leases(sample_ids)
            for sample_id in sample_ids:
                if sample_id not in leases:
                    raise not_found("sample", sample_id)
            given = [score for entry in request.scores for score in _scores(entry, leases, now)]
            position = await _recorded_at(quality, known, given) if request.position else None
            if position is None:
                scored, answered = await quality.scored(sample_ids), await samples.answered(sample_ids)
                for entry in request.scores:
                    # A repeated report finds all recorded and its leases ended, and that is no fault.
                    if not (_keys(entry, entry.scores) <= scored and _keys(entry, entry.answers) <= answered):
                        _check_lease(leases[entry.sample_id], entry.sample_id, request.evaluator, now)
                await samples.add_answers(
                    [(entry.sample_id, convert.to_answer(one)) for entry in request.scores for one in entry.answers]
                )
                await quality.add_scores(given)
                position = await quality.last_position()
                await samples.release(sample_ids, request.evaluator)
                revisions = {d.name: str(d.revision) for d in await DirectiveRepository(connection).all()}
                # One of an earlier revision would put the present one's out of force.
                current = [bound for bound in bounds if revisions.get(bound.cell.directive) == bound.revision]
                by = Reporter(request.evaluator, request.code_revision, position if request.position else None)
                await quality.withdraw(withdrawals, by)
                await quality.add_bounds(current, by, now)
        await self._keeper.refresh()
        cells = dict.fromkeys((*(bound.cell for bound in bounds), *(start.cell for start in withdrawals)))
        return pb.ReportQualityResponse(
            changes=_changes(before, self._keeper.snapshot, cells, now),
            position=pagination.write_token("scores", position),
        )

    async def ListScores(self, request: pb.ListScoresRequest, context: Context) -> pb.ListScoresResponse:
        after = pagination.read_token("scores", request.page_token, _BEFORE_ALL)
        size = pagination.page_size(request.page_size, DEFAULT_SCORES_PAGE, MAX_SCORES_PAGE)
        async with self._database.reading() as connection:
            quality = QualityRepository(connection)
            found, withdrawn = await quality.scores_after(after, size + 1), await quality.mix_withdrawals()
        page = found[:size]
        # Whoever gave them: a judge that comes to count again would else go by them.
        last_outdated: dict[Cell, int] = {}
        for (cell, _), (_, position) in withdrawn.items():
            last_outdated[cell] = max(position, last_outdated.get(cell, 0))
        return pb.ListScoresResponse(
            scores=[
                convert.from_score(score, outdated=place <= last_outdated.get(score.cell, 0)) for place, score in page
            ],
            next_page_token=pagination.write_token("scores", page[-1][0]) if len(found) > size else "",
            position=pagination.write_token("scores", page[-1][0] if page else after),
        )

    def _target(self, cell: Cell, policies: Sequence[Policy], snapshot: Snapshot) -> pb.EvaluationPlan.Target:
        # With a quality budget both: what clears the floor itself is worth more to a mix than what is only open.
        floors = sorted({(p.floor_kind, floor) for p in policies for floor in (p.opening_floor, p.floor)})
        bound = snapshot.bounds.get(cell)
        return pb.EvaluationPlan.Target(
            cell=convert.from_cell(cell),
            floors=[
                pb.EvaluationPlan.Floor(quality=quality, kind=policy_messages.from_floor_kind(kind))
                for kind, quality in floors
            ],
            grader=counting_grader(policies),
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


async def _recorded_at(quality: QualityRepository, known: int, given: Sequence[Score]) -> int | None:
    """Where a report is recorded already that rests on the scores up to `known` and gives these; None where it is new.

    Raises:
        PithError: ABORTED, there are scores that it does not rest on; or its own are others', or fewer than it knows.
    """
    own = {_facts(score) for score in given}
    after = await quality.scores_after(known, len(own) + 1)
    next_ones = after[: len(own)]
    if own and {_facts(score) for _, score in next_ones} == own:
        return next_ones[-1][0]
    scored = await quality.scored({score.sample_id for score in given})
    of_others = {(score.sample_id, score.cell.directive, score.directive_revision) for score in given} & scored
    last = await quality.last_position()
    if after or of_others or last < known:
        raise aborted(
            "SCORES_MOVED",
            "there are scores that the report does not rest on",
            {"position": pagination.write_token("scores", last)},
        )
    return None


def _facts(score: Score) -> Score:
    """What an evaluator says of it."""
    return replace(score, scored_at=datetime.min, tenant="")


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
        for policy in allowing(after.policies, cell.task, cell.directive, cell.tenant):
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

"""A router that answers by a seeded coin: real gRPC, its state in memory, in its tests' hands."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import grpc
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import feedback_pb2, feedback_pb2_grpc, generation_pb2, generation_pb2_grpc, policies_pb2

from common.clock import ManualClock
from common.errors import STATUS_DETAILS_KEY, PithError, aborted, failed_precondition, to_status, unavailable
from evaluator.convert import from_time

MODEL = "demo@abc"
RIGHT, WRONG = "Answer: 7", "Answer: 8"
JOULES = {"L0": 10.0, "L1": 4.0, "L2": 2.0, "trial": 3.0}
GRAMS_PER_JOULE = 0.1


@dataclass
class FakeTarget:
    task: str
    directive: str
    floor: float | None = 0.95
    absolute_floor: float | None = None
    relative_carbon: float | None = None
    grader: str = "numeric"
    revision: int = 1
    worthwhile: int = 0

    def floors(self) -> list[feedback_pb2.EvaluationPlan.Floor]:
        kinds = {policies_pb2.FLOOR_KIND_RELATIVE: self.floor, policies_pb2.FLOOR_KIND_ABSOLUTE: self.absolute_floor}
        return [
            feedback_pb2.EvaluationPlan.Floor(quality=quality, kind=kind)
            for kind, quality in kinds.items()
            if quality is not None
        ]


def targets(*tasks: str) -> list[FakeTarget]:
    """L1 and L2 for each task."""
    return [
        FakeTarget(task, directive, relative_carbon=carbon)
        for task in tasks
        for directive, carbon in (("L1", 0.4), ("L2", 0.2))
    ]


# L2 skips the steps that arithmetic needs; a record is copied as well in few words as in many.
RIGHT_IN_FEW_WORDS = {("arithmetic", "L2"): 0.3, ("arithmetic", "L1"): 0.3}


@dataclass
class FakeSample:
    message: feedback_pb2.Sample
    leased_until: datetime | None = None


@dataclass
class FakeRouter(feedback_pb2_grpc.FeedbackServicer, generation_pb2_grpc.GenerationServicer):
    """Its L0 and directives are right with the probabilities of `right`, by (task, directive), 1 where unnamed."""

    clock: ManualClock
    targets: list[FakeTarget]
    right: dict[tuple[str, str], float] = field(default_factory=dict)
    energy_known: bool = True
    signal_kind: energy_pb2.SignalKind.ValueType = energy_pb2.SIGNAL_KIND_AVERAGE
    intensities: list[tuple[datetime, float]] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self.samples: dict[str, FakeSample] = {}
        self.scores: list[feedback_pb2.ListScoresResponse.ScoredSample] = []
        self.bounds: dict[tuple[str, str], feedback_pb2.QualityBound] = {}
        self.reports: list[feedback_pb2.ReportQualityRequest] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.generations: Counter[tuple[str, str]] = Counter()
        self.generation_requests: list[generation_pb2.GenerateRequest] = []
        self.last_reported_at: datetime | None = None
        # Errors that the next calls of a method answer with; None lets one through.
        self.faults: dict[str, list[PithError | None]] = {}
        # Reports of which the reply is lost after they were recorded.
        self.lost_replies = 0
        # Where set, generations wait for it, once so many have been let through.
        self.gate: asyncio.Event | None = None
        self.gate_after = 0
        self.at_gate = asyncio.Event()
        self.waiting = 0
        self.port = 0
        self._kept: dict[str, generation_pb2.GenerateResponse] = {}
        self._server: grpc.aio.Server | None = None
        self._serial = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        feedback_pb2_grpc.add_FeedbackServicer_to_server(self, self._server)
        generation_pb2_grpc.add_GenerationServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, task: str, count: int, directive: str = "L0", reference: str = "7") -> None:
        """Has users served, each with a question whose right answer is known."""
        for _ in range(count):
            sample_id = f"{task}-{self._serial:05d}"
            self._serial += 1
            message = feedback_pb2.Sample(
                sample_id=sample_id,
                model=MODEL,
                task=task,
                messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=f"{sample_id}: 3 + 4?")],
                sampling=text_pb2.Sampling(temperature=0.5, seed=self._serial),
                limits=text_pb2.Limits(max_output_tokens=99),
                reference=reference,
                grader=next((t.grader for t in self.targets if t.task == task), "numeric"),
                served_at=from_time(self.clock.now()),
            )
            message.answers.append(self._answer(message, directive))
            self.samples[sample_id] = FakeSample(message)

    def open_directives(self) -> Mapping[str, list[str]]:
        """By task, what the router would serve by the bounds it has."""
        found: dict[str, list[str]] = {}
        for target in self.targets:
            bound = self.bounds.get((target.task, target.directive))
            if bound is not None and bound.lower >= (target.floor or 0.0):
                found.setdefault(target.task, []).append(target.directive)
        return found

    def leased(self) -> int:
        """How many samples somebody holds."""
        now = self.clock.now()
        return sum(s.leased_until is not None and s.leased_until > now for s in self.samples.values())

    async def GetEvaluationPlan(self, request: Any, context: Any) -> feedback_pb2.EvaluationPlan:
        await self._fault("GetEvaluationPlan", context)
        plan = feedback_pb2.EvaluationPlan(now=from_time(self.clock.now()))
        if self.last_reported_at is not None:
            plan.last_reported_at.CopyFrom(from_time(self.last_reported_at))
        for at, g_per_kwh in self.intensities:
            if at <= self.clock.now():
                plan.intensities.add(at=from_time(at), g_per_kwh=g_per_kwh)
        for target in self.targets:
            plan.targets.add(
                cell=feedback_pb2.Cell(model=MODEL, task=target.task, directive=target.directive),
                floors=target.floors(),
                relative_carbon=target.relative_carbon,
                grader=target.grader,
                directive_revision=target.revision,
                samples_waiting=len(self._waiting(target.task, target.directive)),
                worthwhile_samples=target.worthwhile,
            )
        return plan

    async def DrawSamples(self, request: Any, context: Any) -> feedback_pb2.DrawSamplesResponse:
        await self._fault("DrawSamples", context)
        now = self.clock.now()
        if not request.directives:
            return feedback_pb2.DrawSamplesResponse(samples=self._any(request))
        (directive,) = request.directives
        free = [
            sample
            for sample in self._waiting(request.task, directive)
            if (sample.leased_until is None or sample.leased_until <= now)
            and not (
                request.HasField("served_after")
                and sample.message.served_at.ToNanoseconds() <= request.served_after.ToNanoseconds()
            )
        ]
        drawn = sorted(free, key=lambda sample: hashlib.sha256(sample.message.sample_id.encode()).digest())
        drawn = drawn[: request.count]
        for sample in drawn:
            sample.leased_until = now + timedelta(seconds=request.lease.seconds)
        return feedback_pb2.DrawSamplesResponse(samples=[sample.message for sample in drawn])

    def _any(self, request: Any) -> list[feedback_pb2.Sample]:
        """For a trial."""
        fitting = [s.message for s in self.samples.values() if s.message.task == request.task]
        if request.model not in ("", MODEL, MODEL.partition("@")[0]):
            return []
        return random.Random(self.seed).sample(fitting, min(request.count, len(fitting)))

    async def ReportQuality(self, request: Any, context: Any) -> feedback_pb2.ReportQualityResponse:
        await self._fault("ReportQuality", context)
        for reported in request.scores:
            if reported.sample_id not in self.samples:
                await _abort(context, failed_precondition("LEASE_LOST", "unknown sample"))
        reported_ids = {reported.sample_id for reported in request.scores}
        if not {score.sample_id for score in self.scores[int(request.position) :]} <= reported_ids:
            await _abort(context, aborted("SCORES_MOVED", "there are others"))
        now = self.clock.now()
        self.reports.append(request)
        known = {(s.sample_id, s.cell.directive, s.score.directive_revision) for s in self.scores}
        for reported in request.scores:
            sample = self.samples[reported.sample_id]
            sample.message.answers.extend(reported.answers)
            sample.leased_until = None
            for score in reported.scores:
                cell = feedback_pb2.Cell(model=MODEL, task=sample.message.task, directive=score.directive)
                if (reported.sample_id, score.directive, score.directive_revision) not in known:
                    self.scores.append(
                        feedback_pb2.ListScoresResponse.ScoredSample(
                            cell=cell, sample_id=reported.sample_id, score=score, scored_at=from_time(now)
                        )
                    )
                    self.last_reported_at = now
        for bound in request.bounds:
            self.bounds[bound.cell.task, bound.cell.directive] = bound
        for cell in (withdrawal.cell for withdrawal in request.withdrawals):
            self.bounds.pop((cell.task, cell.directive), None)
            self.withdrawn.append((cell.task, cell.directive))
        if self.lost_replies:
            self.lost_replies -= 1
            await _abort(context, unavailable("DATABASE", "the reply is lost"))
        return feedback_pb2.ReportQualityResponse(position=str(len(self.scores)))

    async def ListScores(self, request: Any, context: Any) -> feedback_pb2.ListScoresResponse:
        await self._fault("ListScores", context)
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size, 50)
        return feedback_pb2.ListScoresResponse(
            scores=self.scores[begin:end],
            next_page_token=str(end) if end < len(self.scores) else "",
            position=str(min(end, len(self.scores))),
        )

    async def Generate(self, request: Any, context: Any) -> generation_pb2.GenerateResponse:
        if self.gate is not None and self.generations.total() >= self.gate_after:
            self.at_gate.set()
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        await self._fault("Generate", context)
        if request.request_id not in self._kept:
            self._kept[request.request_id] = self._generate(request)
        return self._kept[request.request_id]

    def _generate(self, request: Any) -> generation_pb2.GenerateResponse:
        sample = self.samples[request.evaluation.sample_id].message
        directive = "trial" if request.evaluation.HasField("candidate") else request.evaluation.directive
        self.generations[sample.task, directive] += 1
        self.generation_requests.append(request)
        answer = self._answer(sample, directive)
        reply = generation_pb2.GenerateResponse(text=answer.text)
        reply.started.decision.directive = directive
        reply.finished.reason = text_pb2.FINISH_REASON_STOP
        reply.finished.usage.output_tokens = answer.output_tokens
        if self.energy_known:
            joules = JOULES[directive]
            reply.finished.energy.joules = joules
            reply.finished.carbon.operational_grams = joules * GRAMS_PER_JOULE
            reply.finished.carbon.embodied_grams = 0.5
            reply.finished.carbon.intensity.kind = self.signal_kind
            reply.finished.carbon.intensity.scope = energy_pb2.EMISSION_SCOPE_DIRECT
        return reply

    def _answer(self, sample: feedback_pb2.Sample, directive: str) -> feedback_pb2.Answer:
        chance = self.right.get((sample.task, directive), 1.0)
        is_right = random.Random(f"{self.seed}/{sample.sample_id}/{directive}").random() < chance
        revision = next((t.revision for t in self.targets if (t.task, t.directive) == (sample.task, directive)), 1)
        return feedback_pb2.Answer(
            directive=directive,
            directive_revision=revision,
            text=RIGHT if is_right else WRONG,
            output_tokens=int(JOULES[directive] * 10),
        )

    def _waiting(self, task: str, directive: str) -> list[FakeSample]:
        revision = next(t.revision for t in self.targets if (t.task, t.directive) == (task, directive))
        scored = {
            s.sample_id for s in self.scores if s.cell.directive == directive and s.score.directive_revision == revision
        }
        return [
            sample
            for sample in self.samples.values()
            if sample.message.task == task and sample.message.sample_id not in scored
        ]

    async def _fault(self, method: str, context: Any) -> None:
        faults = self.faults.get(method)
        fault = faults.pop(0) if faults else None
        if fault is not None:
            await _abort(context, fault)


async def _abort(context: Any, error: PithError) -> None:
    status = to_status(error)
    await context.abort(error.code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))

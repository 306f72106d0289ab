"""Does an evaluator that never rests make the router slower?

    python -m tests.bench.evaluator_load --json tests/bench/results/evaluator-load-DATE.json

Router, engine and evaluator as processes, the demo model, and traffic at a fixed modest rate: Decide, which no engine
has a part in, and Generate. Four arms take turns, in an order that rotates:

- idle: nothing but the traffic;
- idle again: the same, and its ratio to the first is what noise alone does here;
- saturated: RunEvaluation without a pause, at the pace that is allowed, on a backlog of samples that does not run dry;
- busy engine: the engine answers as many prompts at a time and a minute as the evaluator may have answered, from a
  client of its own that goes past router and evaluator. What saturated adds to that is the router's and evaluator's.

Each percentile is of one arm of one round; ratios are taken within the round; reported are median and quartiles over
rounds. Services deploy apart: where there are two cores, router and clients have one of them, engine and evaluator the
other. The engine answers users and evaluator alike, since nothing sets one aside: that is contention for the engine,
shown apart (its queue and its own time), and `overhead` is what an answer took beyond what the engine says it took.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2, inference_pb2_grpc
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.clock import SystemClock
from deploy.stack import START_SECONDS, Stack
from engine.demo.tasks import TASKS, examples
from evaluator.config import EvaluatorConfig
from evaluator.pace import Pace
from tests.bench import machine

ARMS = ("idle", "saturated", "busy engine", "idle again")
RATIOS = ("saturated_to_busy_engine", "saturated_to_idle", "idle_again_to_idle")
TENANT, SERVED, BACKLOG = "bench", "served", "backlog"
DECIDES_PER_SECOND, ANSWERS_PER_SECOND = 50.0, 3.0
MAX_OUTPUT_TOKENS = 48
CONCURRENCY = 4
"""The evaluator's, as it comes."""
EVALUATOR = {
    # Short evaluations, so that one that has begun is soon over; the next is asked for at once.
    "PITH_EVALUATOR_RUN_SAMPLES": "24",
    "PITH_EVALUATOR_CONCURRENCY": str(CONCURRENCY),
    "PITH_EVALUATOR_PATIENCE_SAMPLES": "1000000",
    # It does nothing that it is not asked for.
    "PITH_EVALUATOR_GRACE_SECONDS": "86400",
    "PITH_EVALUATOR_UNDECIDED_MAX_IDLE_SECONDS": "604800",
    "PITH_EVALUATOR_MAX_IDLE_SECONDS": "604800",
    "PITH_EVALUATOR_POLL_SECONDS": "3600",
}


@dataclass(slots=True)
class Measured:
    """One arm of one round; all in seconds."""

    decide: list[float] = field(default_factory=list)
    generate: list[float] = field(default_factory=list)
    overhead: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    samples_scored: int = 0
    router_cpu_seconds: float = 0.0
    phase_seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        return {
            "decide_p50_ms": _milliseconds(self.decide, 50),
            "decide_p99_ms": _milliseconds(self.decide, 99),
            "overhead_p50_ms": _milliseconds(self.overhead, 50),
            "overhead_p90_ms": _milliseconds(self.overhead, 90),
            "generate_p50_ms": _milliseconds(self.generate, 50),
            "engine_p50_ms": _milliseconds(self.engine, 50),
            "engine_queue_p50_ms": _milliseconds(self.queue, 50),
            "router_cpu_share": self.router_cpu_seconds / self.phase_seconds,
            "samples_scored_per_second": self.samples_scored / self.phase_seconds,
        }


def _milliseconds(seconds: Sequence[float], percentile: float) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1e3, 4)


class Load:
    """Users, and whoever keeps the evaluator busy."""

    def __init__(
        self,
        router: grpc.aio.Channel,
        evaluator: grpc.aio.Channel,
        engine: grpc.aio.Channel,
        router_pid: int,
        pace: Pace,
        seed: int,
    ) -> None:
        self._generation = generation_pb2_grpc.GenerationStub(router)
        self._policies = policies_pb2_grpc.PoliciesStub(router)
        self._feedback = feedback_pb2_grpc.FeedbackStub(router)
        self._evaluation = evaluation_pb2_grpc.EvaluationStub(evaluator)
        self._inference = inference_pb2_grpc.InferenceStub(engine)
        self._router_pid = router_pid
        self._pace = pace
        self._generator = random.Random(seed)
        self._prompts = examples(TASKS[0], "test", seed)

    async def prepare(self, samples: int) -> None:
        """Policies, and a backlog of samples by way of outcomes that are reported, which costs no engine anything."""
        for task in (SERVED, BACKLOG):
            policy = policies_pb2.Policy(
                name=task,
                tenant=TENANT,
                task=task,
                mode=policies_pb2.MODE_ON,
                floor=0.95,
                directives=["L1", "L2"],
                sample_share=float(task == BACKLOG),
                holdback_share=0.0,
                grader="exact" if task == BACKLOG else "",
            )
            await self._policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=policy, reason="benchmark"))
        at_once = asyncio.Semaphore(8)

        async def keep_one() -> None:
            async with at_once:
                request = self._request(BACKLOG)
                # What nobody answers: both answers score 0, so that no directive is ever settled.
                request.reference = "neither this nor that"
                decided = await self._generation.Decide(generation_pb2.DecideRequest(request=request))
                assert decided.sample_wanted, "the policy keeps every request"
                outcome = generation_pb2.ReportOutcomeRequest(
                    decision_id=decided.decision_id,
                    usage=text_pb2.Usage(prompt_tokens=10, output_tokens=10),
                    finish_reason=text_pb2.FINISH_REASON_STOP,
                    request=request,
                )
                await self._generation.ReportOutcome(outcome)

        await asyncio.gather(*(keep_one() for _ in range(samples)))
        while await self.backlog() < samples:  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def backlog(self) -> int:
        """Samples that lack a score, of the directive that is being judged."""
        plan = await self._feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
        return min((target.samples_waiting for target in plan.targets if target.cell.task == BACKLOG), default=0)

    async def measure(self, seconds: float, arm: str) -> Measured:
        """One arm: whoever is to be at work is so before it begins, and has ended before the next one."""
        measured = Measured()
        stop = asyncio.Event()
        at_work = asyncio.Event()
        others = {"saturated": self._saturate, "busy engine": self._occupy}
        at_it = asyncio.create_task(others[arm](stop, at_work)) if arm in others else None
        if at_it is not None:
            waiting = asyncio.create_task(at_work.wait())
            await asyncio.wait({waiting, at_it}, return_when=asyncio.FIRST_COMPLETED)
        before = await self._scored()
        cpu_seconds, began = self._router_cpu_seconds(), time.perf_counter()
        await asyncio.gather(
            self._at_rate(DECIDES_PER_SECOND, seconds, self._decide, measured),
            self._at_rate(ANSWERS_PER_SECOND, seconds, self._answer, measured),
        )
        measured.phase_seconds = time.perf_counter() - began
        measured.router_cpu_seconds = self._router_cpu_seconds() - cpu_seconds
        stop.set()
        if at_it is not None:
            await at_it
        measured.samples_scored = await self._scored() - before
        return measured

    async def _saturate(self, stop: asyncio.Event, at_work: asyncio.Event) -> None:
        while not stop.is_set():
            done = 0
            async for progress in self._evaluation.RunEvaluation(evaluation_pb2.RunEvaluationRequest()):
                done = progress.samples_done
                if done:
                    at_work.set()
            if not done:
                raise RuntimeError("the backlog has run dry, so that nothing is saturated: --samples")

    async def _occupy(self, stop: asyncio.Event, at_work: asyncio.Event) -> None:
        async def one_after_another() -> None:
            while not stop.is_set():
                messages = text_pb2.Messages(messages=self._request(BACKLOG).messages)
                limits = text_pb2.Limits(max_output_tokens=MAX_OUTPUT_TOKENS)
                await self._pace.turn()
                async for _ in self._inference.StreamGenerate(
                    inference_pb2.GenerateRequest(messages=messages, limits=limits)
                ):
                    at_work.set()

        await asyncio.gather(*(one_after_another() for _ in range(CONCURRENCY)))

    def _router_cpu_seconds(self) -> float:
        """Of the process and its threads so far, as Linux counts them."""
        # The second field is a name in parentheses, which may hold spaces.
        fields = Path(f"/proc/{self._router_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _scored(self) -> int:
        status: evaluation_pb2.Status = await self._evaluation.GetStatus(evaluation_pb2.GetStatusRequest())
        return int(status.samples_scored)

    async def _at_rate(self, per_second: float, seconds: float, call: Any, measured: Measured) -> None:
        """Calls at random moments, as many for each arm, whether or not earlier ones have been answered."""
        moments = sorted(self._generator.uniform(0, seconds) for _ in range(round(per_second * seconds)))
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for moment in moments:
                await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
                group.create_task(call(measured))

    async def _decide(self, measured: Measured) -> None:
        request = generation_pb2.DecideRequest(request=self._request(SERVED))
        began = time.perf_counter()
        await self._generation.Decide(request)
        measured.decide.append(time.perf_counter() - began)

    async def _answer(self, measured: Measured) -> None:
        request = self._request(SERVED)
        began = time.perf_counter()
        reply = await self._generation.Generate(request)
        took = time.perf_counter() - began
        timings = reply.finished.timings
        engine = timings.first_token_seconds + timings.decode_seconds
        measured.generate.append(took)
        measured.engine.append(engine)
        measured.overhead.append(took - engine)
        measured.queue.append(timings.queue_seconds)

    def _request(self, task: str) -> generation_pb2.GenerateRequest:
        return generation_pb2.GenerateRequest(
            tenant=TENANT,
            task=task,
            messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content=next(self._prompts).prompt)],
            limits=text_pb2.Limits(max_output_tokens=MAX_OUTPUT_TOKENS),
        )


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes that are started within have that core alone; None: as they come."""
    if core is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


async def run(rounds: int, seconds: float, samples: int, answers_per_minute: int, seed: int) -> dict[str, Any]:
    """Starts all, measures, and stops all; the result as it is written down."""
    cores = sorted(os.sched_getaffinity(0))
    ours, theirs = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    measured: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="pith-bench-") as folder:
        paced = EVALUATOR | {"PITH_EVALUATOR_ANSWERS_PER_MINUTE": str(answers_per_minute)}
        stack = Stack(Path(folder), settings={"evaluator": paced, "engine": {"OMP_NUM_THREADS": "1"}})
        try:
            with on_core(theirs):
                stack.start_service("engine")
                stack.start_service("evaluator")
            with on_core(ours):
                stack.start_service("router")
                async with (
                    grpc.aio.insecure_channel(stack.addresses["router"]) as router,
                    grpc.aio.insecure_channel(stack.addresses["evaluator"]) as evaluator,
                    grpc.aio.insecure_channel(stack.addresses["engine"]) as engine,
                ):
                    async with asyncio.timeout(START_SECONDS):
                        await asyncio.gather(router.channel_ready(), evaluator.channel_ready())
                        await stack.engine_ready()
                    pace = Pace(answers_per_minute, SystemClock())
                    load = Load(router, evaluator, engine, stack.process("router").pid, pace, seed)
                    await load.prepare(samples)
                    await load.measure(2.0, "saturated")  # warms all of them up
                    for number in track(range(rounds), "rounds"):
                        order = [ARMS[(number + place) % len(ARMS)] for place in range(len(ARMS))]
                        arms = {arm: await load.measure(seconds, arm) for arm in order}
                        measured.append({arm: arms[arm].figures() for arm in ARMS})
                    left = await load.backlog()
        finally:
            await stack.stop()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.description(),
        "load_average_at_the_end": os.getloadavg(),
        "cores": "router and clients on one, engine and evaluator on another" if ours is not None else "one for all",
        "seed": seed,
        "rounds": rounds,
        "seconds_an_arm": seconds,
        "evaluator_answers_per_minute": answers_per_minute,
        "decides_per_second": DECIDES_PER_SECOND,
        "answers_per_second": ANSWERS_PER_SECOND,
        "backlog": {"before": samples, "after": left},
        "by_arm": {arm: _spread(measured, lambda one, arm=arm: one[arm]) for arm in ARMS},
        "saturated_to_busy_engine": _spread(measured, lambda one: _ratios(one["saturated"], one["busy engine"])),
        "saturated_to_idle": _spread(measured, lambda one: _ratios(one["saturated"], one["idle"])),
        "idle_again_to_idle": _spread(measured, lambda one: _ratios(one["idle again"], one["idle"])),
        "by_round": measured,
    }


def _ratios(of: dict[str, float], to: dict[str, float]) -> dict[str, float]:
    return {name: of[name] / to[name] for name in to if to[name] > 0 and not name.startswith("samples")}


def _spread(rounds: Sequence[Any], of: Any) -> dict[str, dict[str, float]]:
    """Lower quartile, median and upper quartile over the rounds, by figure."""
    found = [of(one) for one in rounds]
    names = [name for name in found[0] if all(name in one for one in found)]
    spread = {}
    for name in names:
        low, middle, high = np.percentile([one[name] for one in found], (25, 50, 75))
        spread[name] = {"q1": round(low, 4), "median": round(middle, 4), "q3": round(high, 4)}
    return spread


def _table(result: dict[str, Any]) -> Table:
    table = Table(
        "figure", *ARMS, *(name.replace("_to_", " / ") for name in RATIOS), title="median (quartiles) over rounds"
    )
    for name in result["by_arm"]["idle"]:
        cells = [_cell(result["by_arm"][arm].get(name)) for arm in ARMS]
        ratios = [_cell(result[which].get(name)) for which in RATIOS]
        table.add_row(name, *cells, *ratios)
    return table


def _cell(spread: dict[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.3g} ({spread['q1']:.3g}-{spread['q3']:.3g})"


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Each has all three arms.")] = 10,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long traffic goes on in an arm.")] = 5.0,
    samples: Annotated[int, typer.Option(min=100, help="That wait for the evaluator at the beginning.")] = 1_500,
    answers_per_minute: Annotated[
        int, typer.Option(min=0, help="Of the evaluator; 0: as fast as it goes.")
    ] = EvaluatorConfig.model_fields["answers_per_minute"].default,
    seed: Annotated[int, typer.Option(help="Of prompts and moments.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes the result.")] = None,
) -> None:
    """Compares the router's latencies with and without a saturated evaluator."""
    command = f"python -m tests.bench.evaluator_load --rounds {rounds} --seconds {seconds:g} --samples {samples}"
    command += f" --answers-per-minute {answers_per_minute} --seed {seed}"
    result = {"command": command} | asyncio.run(run(rounds, seconds, samples, answers_per_minute, seed))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.print(_table(result))
    console.print({key: result[key] for key in ("command", "machine", "cores", "backlog", "load_average_at_the_end")})


if __name__ == "__main__":
    typer.run(main)

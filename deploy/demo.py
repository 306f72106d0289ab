"""`make demo`: a simulated day served twice on this machine, as an operator would introduce Pith.

On the first day the policies are in mode SHADOW: every request is served without a directive while the evaluator judges
what directives would do. On the second day the same requests come at the same hours, and the policies are ON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from google.protobuf import field_mask_pb2, timestamp_pb2
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import (
    feedback_pb2,
    feedback_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.clock import Clock, clock_from_spec
from deploy.day import DAY_SECONDS, TENANT, Outcome, Request, plan_day, serve_day
from deploy.picture import draw
from deploy.report import Bound, DemoResult, Evaluations, Event, as_json, as_tables
from deploy.stack import Stack, StackError, cancel_on_sigterm
from engine.demo.tasks import GRADERS, TASKS

FOLDER = Path(".pith/demo")
FIRST_DAY = datetime(2026, 6, 1, tzinfo=UTC)
FLOOR = 0.95
OPENING_SECONDS = 20.0
"""Wall time before the first day begins, in which the services start."""

EVALUATOR = {
    # A day goes by in minutes.
    "PITH_EVALUATOR_ANSWERS_PER_MINUTE": "0",
    # In simulated seconds. A look every ten minutes, and evidence within two hours while something is undecided: the
    # defaults are made for weeks of traffic.
    "PITH_EVALUATOR_POLL_SECONDS": "600",
    "PITH_EVALUATOR_GRACE_SECONDS": "3600",
    "PITH_EVALUATOR_UNDECIDED_MAX_IDLE_SECONDS": "7200",
    "PITH_EVALUATOR_MAX_IDLE_SECONDS": "21600",
}


def main() -> None:
    arguments = _arguments()
    console = Console()
    try:
        result = asyncio.run(_run(arguments.requests, arguments.day_seconds, arguments.seed, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    except (StackError, grpc.aio.AioRpcError) as error:
        details = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        console.print(f"[red]The demo failed:[/] {details}")
        sys.exit(2)
    (FOLDER / "report.json").write_text(json.dumps(as_json(result), indent=2) + "\n")
    draw(result, FOLDER / "report.png")
    _print(result, console)
    if result.below_floor():
        console.print(f"[red]Below its floor: {', '.join(result.below_floor())}[/]")
        sys.exit(1)


async def _run(requests: int, day_seconds: float, seed: int, console: Console) -> DemoResult:
    cancel_on_sigterm()
    shutil.rmtree(FOLDER, ignore_errors=True)
    factor = DAY_SECONDS / day_seconds
    opening = datetime.now(UTC) + timedelta(seconds=OPENING_SECONDS)
    spec = f"scaled:{FIRST_DAY.isoformat()}@{opening.isoformat()}:{factor}"
    clock = clock_from_spec(spec)
    stack = Stack(FOLDER, spec, {"evaluator": EVALUATOR})
    day = plan_day(requests, seed)
    try:
        with console.status("Starting router, engine and evaluator"):
            await stack.start()
        addresses = ", ".join(f"{name} {address}" for name, address in stack.addresses.items())
        console.print(f"Serving on loopback: {addresses}; logs in {FOLDER}/")
        async with (
            grpc.aio.insecure_channel(stack.addresses["router"]) as router,
            grpc.aio.insecure_channel(stack.addresses["evaluator"]) as evaluator,
        ):
            return await _two_days(day, clock, stack, router, evaluator, console)
    finally:
        await stack.stop()


async def _two_days(
    day: Sequence[Request],
    clock: Clock,
    stack: Stack,
    router: grpc.aio.Channel,
    evaluator: grpc.aio.Channel,
    console: Console,
) -> DemoResult:
    policies = policies_pb2_grpc.PoliciesStub(router)
    created = [await _create_policy(policies, task) for task in TASKS]
    events: list[Event] = []
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        first = max(FIRST_DAY, clock.now())
        bars = [progress.add_task(name, total=len(day), note="") for name in ("directives off", "policy on")]
        watcher = asyncio.create_task(_watch_bounds(router, first, clock, events, progress))
        baseline = await serve_day("off", day, first, clock, router, _Ticker(progress, bars[0], clock))

        for policy in created:
            policy.mode = policies_pb2.MODE_ON
            await policies.UpdatePolicy(
                policies_pb2.UpdatePolicyRequest(
                    policy=policy,
                    update_mask=field_mask_pb2.FieldMask(paths=["mode"]),
                    reason="second day of the demo",
                )
            )
        # The same hours as on the first day, so that the grid is the same; the night's first minutes may be over.
        second = first + timedelta(days=max(1, (clock.now() - first) // timedelta(days=1)))
        pith = await serve_day("on", day, second, clock, router, _Ticker(progress, bars[1], clock))
        watcher.cancel()
    stack.check()

    status: evaluation_pb2.Status = await evaluation_pb2_grpc.EvaluationStub(evaluator).GetStatus(
        evaluation_pb2.GetStatusRequest()
    )
    reports = reports_pb2_grpc.ReportsStub(router)
    report = await reports.GetReport(reports_pb2.GetReportRequest())
    start_time = timestamp_pb2.Timestamp()
    start_time.FromDatetime(second)
    second_day = await reports.GetReport(reports_pb2.GetReportRequest(start_time=start_time))
    plan: feedback_pb2.EvaluationPlan = await feedback_pb2_grpc.FeedbackStub(router).GetEvaluationPlan(
        feedback_pb2.GetEvaluationPlanRequest()
    )
    by_hour = {point.at.ToDatetime(UTC).hour: point.g_per_kwh for point in plan.intensities}
    return DemoResult(
        baseline=baseline,
        pith=pith,
        floors=dict.fromkeys(TASKS, FLOOR),
        bounds=await _bounds(reports),
        evaluations=Evaluations(
            runs=status.evaluations,
            samples=status.samples_scored,
            carbon_grams=report.evaluation.operational_grams + report.evaluation.embodied_grams,
            energy_joules=report.evaluation.energy_joules,
        ),
        intensity=[by_hour[(second.hour + hour) % 24] for hour in range(24)],
        zone="DEMO-SOLAR",
        events=events,
        counterfactual=_counterfactual(second_day),
    )


async def _create_policy(policies: policies_pb2_grpc.PoliciesAsyncStub, task: str) -> policies_pb2.Policy:
    """A policy a task, since each task's answers are checked by another grader."""
    created: policies_pb2.Policy = await policies.CreatePolicy(
        policies_pb2.CreatePolicyRequest(
            policy=policies_pb2.Policy(
                name=f"demo-{task}",
                tenant=TENANT,
                task=task,
                mode=policies_pb2.MODE_SHADOW,
                floor=FLOOR,
                floor_kind=policies_pb2.FLOOR_KIND_RELATIVE,
                directives=["L1", "L2"],
                sample_share=1.0,
                holdback_share=0.02,
                grader=GRADERS[task],
            ),
            reason="demo",
        )
    )
    return created


async def _watch_bounds(
    router: grpc.aio.Channel,
    start: datetime,
    clock: Clock,
    events: list[Event],
    progress: Progress,
) -> None:
    """Tells of directives that open or close, as they do."""
    reports = reports_pb2_grpc.ReportsStub(router)
    before: dict[tuple[str, str], bool] = {}
    while True:
        for bound in await _bounds(reports):
            key = (bound.task, bound.directive)
            if bound.open != before.get(key, False):
                verb = "opens" if bound.open else "closes"
                kept = f"keeps ≥ {bound.lower:.3f} after {bound.samples} pairs"
                line = f"{bound.task}/{bound.directive} {verb}: {kept}"
                days, rest = divmod((clock.now() - start).total_seconds(), DAY_SECONDS)
                events.append(Event(int(days) + 1, rest / 3600, bound.task, bound.directive, bound.open, line))
                progress.console.print(f"day {int(days) + 1} {clock.now():%H:%M}  {line}")
            before[key] = bound.open
        await asyncio.sleep(0.5)


async def _bounds(reports: reports_pb2_grpc.ReportsAsyncStub) -> list[Bound]:
    reply: reports_pb2.ListBoundsResponse = await reports.ListBounds(reports_pb2.ListBoundsRequest(page_size=500))
    return [
        Bound(
            task=entry.bound.cell.task,
            directive=entry.bound.cell.directive,
            lower=entry.bound.lower,
            upper=entry.bound.upper,
            share=entry.bound.share if entry.bound.HasField("share") else None,
            samples=entry.bound.samples,
            open=f"demo-{entry.bound.cell.task}" in entry.open_for,
        )
        for entry in reply.bounds
        if not entry.bound.cell.tenant
    ]


def _counterfactual(report: reports_pb2.Report) -> dict[str, float | int | str] | None:
    if not report.HasField("counterfactual") or not report.counterfactual.held_back_requests:
        return None
    saving = report.counterfactual.saving
    return {
        "saving": saving.value,
        "lower": saving.lower,
        "upper": saving.upper,
        "confidence": saving.confidence,
        "method": saving.method,
        "held_back_requests": report.counterfactual.held_back_requests,
    }


class _Ticker:
    """Moves a progress bar and shows the simulated time."""

    def __init__(self, progress: Progress, bar: TaskID, clock: Clock) -> None:
        self._progress, self._bar, self._clock = progress, bar, clock
        self._grams = 0.0

    def __call__(self, outcome: Outcome) -> None:
        self._grams += outcome.carbon_grams or 0.0
        note = f"{self._clock.now():%H:%M}  {self._grams * 1e3:8.3f} mg CO2e"
        self._progress.update(self._bar, advance=1, note=note)


def _print(result: DemoResult, console: Console) -> None:
    console.print()
    console.print(*as_tables(result), sep="\n")
    evaluations = result.evaluations
    console.print(
        f"The evaluator ran {evaluations.runs} times, scored {evaluations.samples} samples and spent "
        f"{(evaluations.carbon_grams or 0) * 1e3:.3f} mg CO2e over both days, all charged to the second."
    )
    saving = result.carbon_saving
    console.print(
        f"[bold]Carbon saved: {saving.value:.1%}, {saving.confidence:.0%} interval {saving.lower:.1%} to "
        f"{saving.upper:.1%}[/] (energy modelled, grid stylised: a demonstration)"
    )
    console.print(f"Interval: {saving.method}.", style="dim")
    if result.counterfactual:
        estimate = result.counterfactual
        console.print(
            f"Estimated from {estimate['held_back_requests']} requests held back at random, as in production: "
            f"{estimate['saving']:.1%} ({estimate['lower']:.1%} to {estimate['upper']:.1%}); too large by what a "
            "fuller batch would have spared them"
        )
    console.print(f"Numbers: {FOLDER / 'report.json'}   Picture: {FOLDER / 'report.png'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_800, help="requests a day (default %(default)s)")
    parser.add_argument("--day-seconds", type=float, default=120.0, help="wall seconds of a day (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and arrival times (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.requests < 1:
        parser.error(f"--requests {arguments.requests}: at least 1")
    if not 1 <= arguments.day_seconds <= 86_400:
        parser.error(f"--day-seconds {arguments.day_seconds}: 1 to 86400")
    return arguments


if __name__ == "__main__":
    main()

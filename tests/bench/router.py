"""What the router adds: to a decision, to a plan, to an RPC, to a stream's messages.

    python -m tests.bench.router --json tests/bench/results/router-DATE.json    # make bench-router

- decide: the pure function, in this process, over 20 tasks x 5 levels x 4 models in one action set, every bound in
  force.
- decide, task told: the same on a text of 64 to 4,096 characters, in English or Japanese, whose task, lengths and best
  level are told first (`tests.bench.told_decision`).
- traits: the scan of a prompt's text that comes before it, on prompts of 64 to 4,096 characters.
- plan: 200 tasks x 5 levels x 4 models in one action set, the models' engines in 3 zones.
- Decide over gRPC: the router's process beside an echo that reads nothing (`tests.bench.bare`), the same bytes asked.
- stream: an engine's 256 deltas an answer through the router beside a proxy that relays bytes unread.
- memory: resident bytes of the router's process over 100,000 decisions.

Pairs take turns, the first of each round changing; a ratio is taken within its round, and reported are median and
quartiles over rounds. Client and servers share the machine's cores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from pith.router.v1 import generation_pb2
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.quality.bound import Cell, QualityBound
from deploy.stack import ROOT, Stack
from router.directives.bounds import Snapshot
from router.directives.compile import Turn
from router.directives.decide import Facts, decide
from router.directives.levels import L0, Directive
from router.directives.policy import Mode, Policy
from router.directives.traits import traits_of
from router.optimizer.costs import Cost, CostBook
from router.optimizer.plan import Plan
from router.optimizer.problem import make_plan
from tests.bench import machine
from tests.bench.bare import DELTAS, MODEL, as_they_are
from tests.bench.told_decision import time_told

LEVELS = tuple(f"L{level}" for level in range(1, 5))
"""Beside L0."""
MODELS = tuple(f"model-{number}@{number:012d}" for number in range(4))
"""The first is asked for; the others answer in its place, under directives of their own."""
ZONES_G_PER_KWH = (30.0, 200.0, 450.0)
"""In which the models' engines stand, in turn."""
ACTIONS = (
    *(Directive(name, f"Be brief, as {name} says") for name in LEVELS),
    *(
        Directive(f"m{number}-{name}", f"Be brief, as {name} says" if name in LEVELS else "", model=model)
        for number, model in enumerate(MODELS[1:], 1)
        for name in ("L0", *LEVELS)
    ),
)
"""Beside L0: every level of every model."""
AT_ONCE = 32
"""Calls in flight."""
MEMORY_DECISIONS = 100_000

app = typer.Typer(add_completion=False)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def snapshot(tasks: int) -> Snapshot:
    """Every action of every task judged; each task's floor is cleared by some."""
    rng = random.Random(0)
    bounds = {}
    for task in range(tasks):
        for action in ACTIONS:
            lower = rng.uniform(0.85, 1.05)
            cell = Cell(MODELS[0], f"task-{task}", action.name)
            bounds[cell] = QualityBound(cell, lower, lower + 0.05, lower + 0.02, 0.5, 500, "grader:exact", "1", NOW)
    directives = {one.name: one for one in (L0, *ACTIONS)}
    names = tuple(action.name for action in ACTIONS)
    policy = Policy("default", mode=Mode.ON, floor=0.95, directives=names, bound_max_age_seconds=10**9)
    return Snapshot(directives, (policy,), bounds, Plan({}, NOW))


def costs(tasks: int) -> CostBook:
    named = {action.name: action for action in ACTIONS}
    book = CostBook(directive_of=named.get)
    for task in range(tasks):
        for place, name in enumerate((L0.name, *named)):
            joules = 100.0 / (1 + place % 5) / (1 + place // 5)
            for _ in range(30):
                book.observe(Cell(MODELS[0], f"task-{task}", name), joules, joules / 100)
    return book


def planned(known: Snapshot, book: CostBook) -> Plan:
    grid = dict(zip(MODELS, itertools.cycle(ZONES_G_PER_KWH), strict=False))

    def grams(cost: Cost) -> float:
        return cost.energy_joules / 3.6e6 * grid[cost.model] + cost.busy_seconds * 1.7e-4

    return make_plan(known, book, grams, NOW, grid[MODELS[0]], accepting=MODELS)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(middle), "quartile_1": float(low), "quartile_3": float(high), "p99": _p99(values)}


def _p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99))


def in_force() -> Snapshot:
    """20 tasks, planned for."""
    known = snapshot(20)
    return Snapshot(known.directives, known.policies, known.bounds, planned(known, costs(20)))


def time_decide(count: int) -> dict[str, Any]:
    known = in_force()
    rng = random.Random(1)
    seconds, served = [], set()
    for number in range(count):
        facts = Facts("shop", f"task-{rng.randrange(20)}", MODELS[0], f"conversation-{number}", f"r-{number}")
        begun = time.perf_counter()
        decision = decide(facts, known, NOW, accepting=lambda: MODELS)
        seconds.append(time.perf_counter() - begun)
        served.add(decision.directive.name)
    return {
        "tasks": 20,
        "levels": 5,
        "models": 4,
        "decisions": count,
        "directives_served": sorted(served),
        "microseconds": {name: value * 1e6 for name, value in quantiles(seconds).items()},
    }


def time_traits(count: int) -> dict[str, Any]:
    rng = random.Random(2)
    words = ["the", "report", "of", "energy", "in", "Berlin", "please", "compare", "42", "lines", "answer", "why"]
    by_length = {}
    for characters in (64, 512, 4096):
        seconds = []
        for _ in range(count):
            text = " ".join(rng.choices(words, k=characters // 5))[:characters]
            turns = (Turn("user", text),)
            begun = time.perf_counter()
            traits_of(turns)
            seconds.append(time.perf_counter() - begun)
        by_length[characters] = {name: value * 1e6 for name, value in quantiles(seconds).items()}
    return {"microseconds_by_characters": by_length}


def time_plan(rounds: int) -> dict[str, Any]:
    known, book = snapshot(200), costs(200)
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        planned(known, book)
        seconds.append(time.perf_counter() - begun)
    return {
        "tasks": 200,
        "levels": 5,
        "models": 4,
        "zones": 3,
        "milliseconds": {name: value * 1e3 for name, value in quantiles(seconds).items()},
    }


@contextmanager
def bare(what: str, port: int, *more: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.bench.bare", what, str(port), *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise RuntimeError(f"{what} ended with code {process.wait()}")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def decide_request(number: int) -> bytes:
    request = generation_pb2.GenerateRequest(
        request_id=f"bench-{number}",
        tenant="shop",
        task="counting",
        messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content="Count the lines with bus. " * 8)],
    )
    return generation_pb2.DecideRequest(request=request).SerializeToString()


async def calls_a_second(channel: grpc.aio.Channel, seconds: float, numbers: Iterator[int]) -> float:
    call = channel.unary_unary("/pith.router.v1.Generation/Decide", as_they_are, as_they_are)
    until = time.perf_counter() + seconds

    async def ask() -> int:
        count = 0
        while time.perf_counter() < until:
            await call(decide_request(next(numbers)))
            count += 1
        return count

    begun = time.perf_counter()
    done = sum(await asyncio.gather(*(ask() for _ in range(AT_ONCE))))
    return done / (time.perf_counter() - begun)


async def messages_a_second(
    channel: grpc.aio.Channel, path: str, make: Callable[[int], bytes], seconds: float, numbers: Iterator[int]
) -> float:
    call = channel.unary_stream(path, as_they_are, as_they_are)
    until = time.perf_counter() + seconds

    async def read() -> int:
        count = 0
        while time.perf_counter() < until:
            async for _ in call(make(next(numbers))):
                count += 1
        return count

    begun = time.perf_counter()
    done = sum(await asyncio.gather(*(read() for _ in range(8))))
    return done / (time.perf_counter() - begun)


def generate_request(number: int) -> bytes:
    return generation_pb2.GenerateRequest(
        request_id=f"stream-{number}",
        tenant="shop",
        task="counting",
        messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content="Count the lines with bus. " * 8)],
    ).SerializeToString()


def engine_request(number: int) -> bytes:
    messages = text_pb2.Messages(
        messages=[text_pb2.Message(role=text_pb2.ROLE_USER, content="Count the lines with bus. " * 8)]
    )
    return inference_pb2.GenerateRequest(request_id=f"stream-{number}", messages=messages).SerializeToString()


async def in_turns(
    rounds: int, ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]], what: str
) -> dict[str, Any]:
    """Rates of both, and quartiles of ours to theirs within a round."""
    rates: dict[str, list[float]] = {"router": [], "bare": []}
    for number in track(range(rounds), description=what, console=Console(stderr=True)):
        for name in ("router", "bare") if number % 2 else ("bare", "router"):
            rates[name].append(await (ours if name == "router" else theirs)())
    ratios = [own / bare_ for own, bare_ in zip(rates["router"], rates["bare"], strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {
        "rounds": rounds,
        "router_a_second": statistics.median(rates["router"]),
        "bare_a_second": statistics.median(rates["bare"]),
        "ratio": {"median": middle, "quartile_1": low, "quartile_3": high},
    }


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def over_grpc(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    ports = _free_ports(3)
    numbers = iter(range(10**9))
    result: dict[str, Any] = {}
    with bare("engine", ports[0]) as engine, bare("echo", ports[1]) as echo, bare("proxy", ports[2], engine) as proxy:
        settings = {"router": {"PITH_ROUTER_ENGINES": json.dumps([f"bare={engine}"])}}
        stack = Stack(folder, settings=settings)
        stack.start_service("router")
        try:
            await stack.serving("router")
            await stack.engine_ready()
            async with (
                grpc.aio.insecure_channel(stack.addresses["router"]) as router,
                grpc.aio.insecure_channel(echo) as bare_echo,
                grpc.aio.insecure_channel(proxy) as bare_proxy,
            ):
                result["decide_rpc"] = await in_turns(
                    rounds,
                    lambda: calls_a_second(router, seconds, numbers),
                    lambda: calls_a_second(bare_echo, seconds, numbers),
                    "Decide beside an echo",
                )
                result["stream"] = {"deltas_an_answer": DELTAS, "model": MODEL} | await in_turns(
                    rounds,
                    lambda: messages_a_second(
                        router, "/pith.router.v1.Generation/StreamGenerate", generate_request, seconds, numbers
                    ),
                    lambda: messages_a_second(
                        bare_proxy, "/pith.engine.v1.Inference/StreamGenerate", engine_request, seconds, numbers
                    ),
                    "stream beside a byte proxy",
                )
                result["memory"] = await memory(router, stack.process("router").pid, numbers)
        finally:
            await stack.stop()
    return result


async def memory(router: grpc.aio.Channel, pid: int, numbers: Iterator[int]) -> dict[str, Any]:
    """Resident bytes after each tenth of the decisions."""
    call = router.unary_unary("/pith.router.v1.Generation/Decide", as_they_are, as_they_are)
    resident = [resident_bytes(pid)]
    for _ in track(range(10), description="memory", console=Console(stderr=True)):
        for _ in range(MEMORY_DECISIONS // 10 // AT_ONCE):
            await asyncio.gather(*(call(decide_request(next(numbers))) for _ in range(AT_ONCE)))
        resident.append(resident_bytes(pid))
    return {"decisions": MEMORY_DECISIONS // 10 // AT_ONCE * AT_ONCE * 10, "resident_bytes": resident}


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each target its name, what was measured, the limit, and whether it is met."""
    told = result["decide_told"]
    slowest = max(of["median"] for of in told["microseconds_by_text"].values())
    resident = result["memory"]["resident_bytes"]
    found = [
        ("decide, task given, median", result["decide"]["microseconds"]["median"], "at most", 40.0, "us"),
        ("decide, task and lengths told, median", told["microseconds"]["median"], "at most", 300.0, "us"),
        ("the same, median of the slowest texts", slowest, "at most", 300.0, "us"),
        ("plan over 4 models in 3 zones, median", result["plan"]["milliseconds"]["median"], "at most", 100.0, "ms"),
        ("Decide over gRPC, of an echo's rate", result["decide_rpc"]["ratio"]["median"], "at least", 0.65, ""),
        ("stream, of a byte proxy's messages/s", result["stream"]["ratio"]["median"], "at least", 0.7, ""),
        # What a router holds for its callers is there after the first tenths.
        ("memory over the second half of 100,000 decisions", resident[-1] / resident[5] - 1, "at most", 0.02, "share"),
    ]
    return [
        {
            "target": name,
            "measured": measured,
            "limit": f"{side} {limit:g} {unit}".strip(),
            "met": bool(measured <= limit if side == "at most" else measured >= limit),
        }
        for name, measured, side, limit, unit in found
    ]


def table(found: Sequence[dict[str, Any]]) -> Table:
    shown = Table("target", "measured", "limit", "met")
    for row in found:
        shown.add_row(row["target"], f"{row['measured']:.3g}", row["limit"], "yes" if row["met"] else "NO")
    return shown


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Of each pair over gRPC; at least 10 for what is reported.")] = 11,
    seconds: Annotated[float, typer.Option(help="Of each turn.")] = 4.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where the result goes.")] = None,
) -> None:
    """Measures and prints; a second time with --json PATH, to keep."""
    result: dict[str, Any] = {
        "command": f"python -m tests.bench.router --rounds {rounds} --seconds {seconds:g}",
        "machine": machine.description(),
        "decide": time_decide(20_000),
        "decide_told": time_told(
            in_force(), [f"task-{task}" for task in range(20)], (L0.name, *LEVELS), MODELS[:1], NOW, 1_000, quantiles
        ),
        "traits": time_traits(2_000),
        "plan": time_plan(5),
    }
    with tempfile.TemporaryDirectory(prefix="pith-bench-") as folder:
        result |= asyncio.run(over_grpc(Path(folder), rounds, seconds))
    result["targets"] = targets(result)
    print(json.dumps(result, indent=1))
    Console().print(table(result["targets"]))
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()

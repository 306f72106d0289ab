"""`python -m tests.bench.engine`: the engine's speed against transformers', measured in turns within one run.

Ours is the decode loop called directly, and an engine in a process of its own through gRPC. The client of that one
runs here, on the same cores: its work counts as a cost of gRPC, which is more than a client elsewhere would cost.
One by one stands for transformers at any concurrency: how many wait does not change its speed.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from tests.bench import machine, report
from tests.bench.ours import DirectLoop, Latencies, answer_through_grpc
from tests.bench.peers import Transformers
from tests.bench.served import ServedEngine, served_engine
from tests.bench.workload import CONCURRENCIES, BenchModel, Request, demo_model, llama_100m, output_tokens, requests

STATIC_BATCH = 16
Contender = Callable[[], Awaitable[list[Request]]]
"""Answers a round's requests, and returns those that it has answered."""


class Contest:
    """Everyone who is measured on one model, loaded and ready."""

    def __init__(self, model: BenchModel, threads: int, served: ServedEngine) -> None:
        self.model = model
        self._loop = DirectLoop(model, threads)
        self._peer = Transformers(model, threads)
        self._served = served
        self.latencies = {concurrency: Latencies() for concurrency in CONCURRENCIES}
        self.speeds: dict[int, dict[str, list[float]]] = {one: defaultdict(list) for one in CONCURRENCIES}

    async def warm_up(self, seed: int) -> None:
        """A round that does not count."""
        for concurrency in CONCURRENCIES:
            asked = [Request(one.prompt_token_ids, 8) for one in requests(self.model, concurrency, seed, -1)[:16]]
            for contender in self._contenders(concurrency, asked, asked, Latencies()).values():
                await contender()

    async def run_round(self, number: int, seed: int, advance: Callable[[], None]) -> None:
        """Whoever began the last round comes last in this one."""
        for concurrency in CONCURRENCIES:
            asked = requests(self.model, concurrency, seed, number)
            alone = requests(self.model, 1, seed, number)
            contenders = list(self._contenders(concurrency, asked, alone, self.latencies[concurrency]).items())
            turn = number % len(contenders)
            for name, contender in contenders[turn:] + contenders[:turn]:
                began_seconds = time.perf_counter()
                answered = await contender()
                speed = output_tokens(answered) / (time.perf_counter() - began_seconds)
                self.speeds[concurrency][name].append(speed)
                advance()
        # At 16 as at 1; measured there, within the same round.
        self.speeds[16][report.ONE_BY_ONE].append(self.speeds[1][report.ONE_BY_ONE][-1])

    def _contenders(
        self, concurrency: int, asked: list[Request], alone: list[Request], latencies: Latencies
    ) -> dict[str, Contender]:
        async def loop() -> list[Request]:
            self._loop.answer(asked, concurrency)
            return asked

        async def grpc() -> list[Request]:
            await answer_through_grpc(self._served, asked, concurrency, latencies)
            return asked

        async def one_by_one() -> list[Request]:
            self._peer.answer(alone, 1)
            return alone

        async def static() -> list[Request]:
            batches = asked[: STATIC_BATCH * self.model.static_batches]
            self._peer.answer(batches, STATIC_BATCH)
            return batches

        peer: dict[str, Contender]
        peer = {report.ONE_BY_ONE: one_by_one} if concurrency == 1 else {report.STATIC: static}
        return {report.LOOP: loop, report.GRPC: grpc} | peer

    def result(self) -> dict[str, Any]:
        return {
            "name": self.model.name,
            "requests_per_round": self.model.requests,
            "static_batches_per_round": self.model.static_batches,
            "measured": [
                report.measured(concurrency, self.speeds[concurrency], self.latencies[concurrency])
                for concurrency in CONCURRENCIES
            ],
        }


async def bench(rounds: int, threads: int, seed: int, quick: bool, console: Console) -> list[dict[str, Any]]:
    """Result by model."""
    results = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        for make in (llama_100m, demo_model):
            model = make(Path(folder), quick)
            task = progress.add_task(model.name, total=rounds * len(CONCURRENCIES) * 3)
            async with AsyncExitStack() as stack:
                served = await stack.enter_async_context(
                    served_engine(model.directory, threads=threads, log_level="warning")
                )
                contest = Contest(model, threads, served)
                await contest.warm_up(seed)
                for number in range(rounds):
                    await contest.run_round(number, seed, lambda task=task: progress.advance(task))  # type: ignore[misc]
                results.append(contest.result())
    return results


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch, on both sides.")] = 2,
    seed: Annotated[int, typer.Option(help="Of prompts and lengths.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="16 requests a round at 16 at once, not 48.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes the result.")] = None,
) -> None:
    """Measures the engine's speed and latency, and prints them beside transformers'."""
    console = Console()
    result = {
        "command": f"python -m tests.bench.engine --rounds {rounds} --threads {threads} --seed {seed}"
        + (" --quick" if quick else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.description(),
        "rounds": rounds,
        "threads": threads,
        "seed": seed,
        "models": asyncio.run(bench(rounds, threads, seed, quick, console)),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    report.print_result(result, console)


if __name__ == "__main__":
    typer.run(main)

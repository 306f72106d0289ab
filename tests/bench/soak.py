"""`python -m tests.bench.soak`: hours of clients of all kinds; memory must stay flat and every block come back."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2, inference_pb2_grpc

from tests.bench import machine
from tests.bench.served import ROOT, ServedEngine, served_engine

DEMO_MODEL = ROOT / "engine" / "demo" / "model"
DEMO_VOCABULARY = 1149
DEMO_END_TOKEN = 1
CLIENTS = 24
"""More than a batch holds, so that some always wait."""
KV_CACHE_BYTES = 8 << 20
"""128 blocks: too few for a full batch of long answers, so that blocks are preempted and evicted all the time."""
PREFIX_TOKENS = (40, 100, 160, 250)
MAX_GROWTH = 0.01
"""Of resident memory, over the second half of the run."""
IDLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The engine at one moment of the run."""

    seconds: float
    resident_mebibytes: float
    free_blocks: int
    running: int
    waiting: int


class Clients:
    """Requests without end, every one drawn from one seeded generator a client."""

    def __init__(self, engine: ServedEngine, seed: int, until_seconds: float) -> None:
        """`until_seconds`: when to stop, on the monotonic clock."""
        self.outcomes: Counter[str] = Counter()
        self._engine = engine
        self._seed = seed
        self._until_seconds = until_seconds
        generator = random.Random(seed)
        self._prefixes = [_tokens(generator, count) for count in PREFIX_TOKENS]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(self._client(random.Random(f"{self._seed} {client}")))

    async def _client(self, generator: random.Random) -> None:
        while time.monotonic() < self._until_seconds:
            request = self._request(generator)
            fate = generator.choices(("reads", "cancels", "vanishes"), (5, 5, 1))[0]
            leaves_after = generator.randint(0, 5)
            try:
                async with grpc.aio.insecure_channel(self._engine.address) as channel:
                    own = fate == "vanishes"
                    inference = inference_pb2_grpc.InferenceStub(channel) if own else self._engine.inference
                    self.outcomes[await _answer(inference, request, fate, leaves_after)] += 1
            except grpc.aio.AioRpcError as fault:
                self.outcomes[f"failed: {fault.code().name}"] += 1

    def _request(self, generator: random.Random) -> inference_pb2.GenerateRequest:
        prompt = _tokens(generator, int(2 ** generator.uniform(0, 8)))
        if generator.random() < 0.5:
            prompt = generator.choice(self._prefixes) + prompt
        sampled = generator.random() < 0.5
        return inference_pb2.GenerateRequest(
            token_ids=text_pb2.TokenIds(ids=prompt),
            limits=text_pb2.Limits(
                max_output_tokens=int(2 ** generator.uniform(0, 9)),
                stop=[generator.choice(("e", "1", "th", "\n"))] if generator.random() < 0.25 else [],
            ),
            sampling=text_pb2.Sampling(
                temperature=0.9 if sampled else 0.0,
                top_p=0.95 if sampled else 0.0,
                # Half of the answers go on to their limit.
                logit_bias={DEMO_END_TOKEN: -100.0} if generator.random() < 0.5 else {},
                logprobs=2 if generator.random() < 0.1 else None,
                seed=generator.getrandbits(64),
            ),
        )


async def _answer(
    inference: inference_pb2_grpc.InferenceAsyncStub,
    request: inference_pb2.GenerateRequest,
    fate: str,
    leaves_after: int,
) -> str:
    """Reads an answer as far as its client's fate has it; how it ended. For who vanishes, the channel closes next."""
    stream = inference.StreamGenerate(request)
    messages = 0
    while fate == "reads" or messages <= leaves_after:
        event = await stream.read()
        if event is grpc.aio.EOF:
            return "read to the end"
        messages += 1
    if fate == "cancels":
        stream.cancel()
        return "cancelled"
    return "vanished"


def _tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(2, DEMO_VOCABULARY) for _ in range(count)]


async def _watch(engine: ServedEngine, began_seconds: float, interval_seconds: float, samples: list[Sample]) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        samples.append(await _sample(engine, began_seconds))
        one = samples[-1]
        print(
            f"{one.seconds:6.0f} s  {one.resident_mebibytes:7.1f} MiB  {one.free_blocks:4d} blocks free  "
            f"{one.running} running  {one.waiting} waiting",
            flush=True,
        )


async def _sample(engine: ServedEngine, began_seconds: float) -> Sample:
    load = await engine.load()
    return Sample(
        seconds=round(time.monotonic() - began_seconds, 1),
        resident_mebibytes=round(engine.resident_bytes / 2**20, 2),
        free_blocks=load.kv_blocks_free,
        running=load.running,
        waiting=load.waiting,
    )


async def _until_idle(engine: ServedEngine) -> dict[str, int]:
    """The load after the last request; as it is after `IDLE_SECONDS` where something is left."""
    for _ in range(int(IDLE_SECONDS)):
        load = await engine.load()
        if not (load.running or load.waiting) and load.kv_blocks_free == load.kv_blocks_total:
            break
        await asyncio.sleep(1)
    return {
        "running": load.running,
        "waiting": load.waiting,
        "blocks_free": load.kv_blocks_free,
        "blocks": load.kv_blocks_total,
    }


def _growth(samples: list[Sample]) -> dict[str, float]:
    """A line through resident memory over the second half of the run."""
    half = [one for one in samples if one.seconds >= samples[-1].seconds / 2]
    seconds = np.array([one.seconds for one in half])
    resident = np.array([one.resident_mebibytes for one in half])
    slope = float(np.polyfit(seconds, resident, 1)[0]) if len(half) > 1 else 0.0
    return {
        "mebibytes_per_hour": slope * 3600,
        "share_of_resident": slope * float(seconds[-1] - seconds[0]) / float(resident.mean()),
        "spread_mebibytes": float(resident.max() - resident.min()),
    }


async def soak(minutes: float, seed: int, interval_seconds: float) -> dict[str, Any]:
    """Runs the clients against a fresh engine with the demo model; what came of it."""
    async with served_engine(DEMO_MODEL, kv_cache_bytes=KV_CACHE_BYTES, log_level="warning") as engine:
        began_seconds = time.monotonic()
        samples: list[Sample] = []
        clients = Clients(engine, seed, began_seconds + minutes * 60)
        watch = asyncio.create_task(_watch(engine, began_seconds, interval_seconds, samples))
        try:
            await clients.run()
        finally:
            watch.cancel()
        samples.append(await _sample(engine, began_seconds))
        output_tokens = (await engine.load()).output_tokens_total
        left = await _until_idle(engine)
    growth = _growth(samples)
    returned = left["blocks_free"] == left["blocks"] and not left["running"] and not left["waiting"]
    failed = any(outcome.startswith("failed") for outcome in clients.outcomes)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.description(),
        "minutes": minutes,
        "seed": seed,
        "clients": CLIENTS,
        "outcomes": dict(clients.outcomes),
        "output_tokens": output_tokens,
        "afterwards": left,
        "second_half": growth,
        "passed": returned and not failed and growth["share_of_resident"] <= MAX_GROWTH,
        "samples": [asdict(one) for one in samples],
    }


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long the clients run.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the clients' requests.")] = 1,
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds between samples.")] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes the result.")] = None,
) -> None:
    """Soaks an engine; exit code 1 where blocks are missing, a request failed, or memory grew."""
    result = {"command": f"python -m tests.bench.soak --minutes {minutes:g} --seed {seed}"}
    result |= asyncio.run(soak(minutes, seed, interval))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    typer.run(main)

"""Real engines as processes, lost within an answer: another goes on with it, and nobody can tell from the text."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc
from pith.router.v1 import generation_pb2

from tests.engine.tiny_model import write_model
from tests.router.running import Running, ask, running

pytestmark = pytest.mark.timeout(300)

TOKENS = 2000
"""So many take seconds: an engine that is killed after some of them is killed within the answer."""
REQUEST: dict[str, Any] = {
    "sampling": text_pb2.Sampling(temperature=1.0, repetition_penalty=1.1, seed=11),
    "limits": text_pb2.Limits(max_output_tokens=TOKENS),
}


@dataclass
class EngineProcess:
    process: subprocess.Popen[str]
    address: str

    async def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        await asyncio.to_thread(self.process.wait)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Without an end token, answers are exactly as long as asked for.
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", seed=1, max_position_embeddings=8192, eos_token_id=None
    )


@contextmanager
def processes(model_path: Path, count: int) -> Iterator[dict[str, EngineProcess]]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PITH_")},
        "PITH_ENGINE_LISTEN": "127.0.0.1:0",
        "PITH_ENGINE_MODEL_PATH": str(model_path),
        "PITH_ENGINE_MAX_OUTPUT_TOKENS": str(TOKENS),
        "PITH_ENGINE_DRAIN_SECONDS": "0",
    }
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "engine"], env=environment, stderr=subprocess.PIPE, text=True
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            started.append(process)
        engines = {}
        for name, process in zip("abc", started, strict=False):
            lines = map(json.loads, process.stderr or ())
            port = next(line["port"] for line in lines if line["event"] == "listening")
            engines[name] = EngineProcess(process, f"127.0.0.1:{port}")
        yield engines


async def answering(router: Running) -> str:
    """The engine that the only request is at."""
    while True:
        for engine in await router.engines():
            if engine.in_flight:
                return str(engine.name)


def interrupted(router: Running, outcome: str) -> float | None:
    registry = router.router.metrics.registry
    return registry.get_sample_value("pith_router_interrupted_answers_total", {"outcome": outcome})


async def billed_once(router: Running, requests: int) -> None:
    report = await router.report()
    assert (report.total.requests, report.total.requests_without_energy) == (requests, 0)


def check_account(resumed: generation_pb2.Finished, undisturbed: generation_pb2.Finished) -> None:
    assert resumed.reason == undisturbed.reason == text_pb2.FINISH_REASON_LENGTH
    assert resumed.usage.prompt_tokens == undisturbed.usage.prompt_tokens
    assert resumed.usage.output_tokens == undisturbed.usage.output_tokens == TOKENS
    assert resumed.energy.source == resumed.carbon.energy_source == energy_pb2.ENERGY_SOURCE_MODELLED
    # Each token once, and what was there already brought to the cache of one engine more.
    assert resumed.energy.joules == pytest.approx(undisturbed.energy.joules, rel=0.1)


async def test_a_stream_goes_on_though_two_of_three_engines_are_lost(tmp_path: Path, model_path: Path) -> None:
    with processes(model_path, 3) as engines:
        async with running(tmp_path, engines, default_deadline_seconds=100) as router:
            whole = await router.generation.Generate(ask(**REQUEST))
            stream = aiter(router.generation.StreamGenerate(ask(request_id="r1", **REQUEST)))
            first = (await anext(stream)).started.engine
            events = [await anext(stream) for _ in range(3)]
            await engines[first].end(signal.SIGKILL)
            while interrupted(router, "resumed") != 1:
                events.append(await anext(stream))
            # It drains, and cuts off what has not ended by then.
            await engines[await answering(router)].end(signal.SIGTERM)
            events += [event async for event in stream]
            assert interrupted(router, "resumed") == 2
            *deltas, end = events
            token_ids: list[int] = []
            for event in deltas:
                assert event.WhichOneof("event") == "delta" and event.delta.offset == len(token_ids)
                token_ids += event.delta.token_ids
            assert len(token_ids) == TOKENS
            assert "".join(event.delta.text for event in deltas) == whole.text
            check_account(end.finished, whole.finished)
            assert end.finished.timings.decode_seconds > end.finished.timings.first_token_seconds > 0
            again = await router.generation.Generate(ask(request_id="r1", **REQUEST))
            assert (again.text, again.started.replayed) == (whole.text, True)
            await billed_once(router, 2)


async def test_a_unary_caller_does_not_notice_a_lost_engine(tmp_path: Path, model_path: Path) -> None:
    with processes(model_path, 2) as engines:
        async with running(tmp_path, engines, default_deadline_seconds=100) as router:
            whole = await router.generation.Generate(ask(**REQUEST))
            reply = asyncio.ensure_future(router.generation.Generate(ask(**REQUEST)))
            name = await answering(router)
            engine, made_before = engines[name], TOKENS if name == whole.started.engine else 0
            async with grpc.aio.insecure_channel(engine.address) as channel:
                control = control_pb2_grpc.ControlStub(channel)
                loads = aiter(control.WatchLoad(control_pb2.WatchLoadRequest(interval=Duration(nanos=50_000_000))))
                # About half of the energy is that of the engine that is lost.
                while (await anext(loads)).output_tokens_total < made_before + TOKENS // 2:
                    pass
            await engine.end(signal.SIGKILL)
            resumed = await reply
            assert resumed.text == whole.text
            assert (interrupted(router, "resumed"), interrupted(router, "lost")) == (1, None)
            check_account(resumed.finished, whole.finished)
            await billed_once(router, 2)

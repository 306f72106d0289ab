"""Draining, and `python -m engine` as a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.engine.v1 import control_pb2, inference_pb2_grpc

from engine.backends.loading import memory_bytes
from tests.engine.tiny_model import write_model
from tests.integration.served_engine import (
    TIMEOUT_SECONDS,
    endless,
    fault_of,
    read_all,
    request_of,
    serving,
    started_and_first_delta,
)


async def test_a_drain_lets_answers_end_and_takes_no_more(model_path: Path) -> None:
    async with serving(model_path) as served:
        check = health_pb2.HealthCheckRequest(service="pith.engine.v1.Inference")
        assert (await served.health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
        stream = await endless(served, "last")
        drain = served.control.Drain(control_pb2.DrainRequest())
        watch = served.health.Watch(check)
        async for told in watch:
            if told.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
        while not (await served.control.GetLoad(control_pb2.GetLoadRequest())).draining:
            pass
        fault = await fault_of(served.inference.Generate(request_of()))
        assert (fault.code, fault.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not drain.done()
        await served.control.Abort(control_pb2.AbortRequest(request_id="last"))
        assert (await read_all(stream))[-1].HasField("finished")
        assert (await drain).finished == 1


@asynccontextmanager
async def engine_process(model_path: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "engine",
        env={"PITH_ENGINE_MODEL_PATH": str(model_path), "OMP_NUM_THREADS": "1", "PATH": ""} | environment,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_process_serves_when_it_is_ready_and_drains_on_sigterm(model_path: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/engine.sock"
    async with (
        engine_process(model_path, PITH_ENGINE_LISTEN=address, PITH_ENGINE_MAX_OUTPUT_TOKENS="500") as process,
        grpc.aio.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        told = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=TIMEOUT_SECONDS)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        stream = inference_pb2_grpc.InferenceStub(channel).StreamGenerate(request_of(tokens=500))
        await started_and_first_delta(stream)
        process.send_signal(signal.SIGTERM)
        events = await read_all(stream)
        assert events[-1].finished.usage.output_tokens == 500
        assert await process.wait() == 0


async def test_a_cache_that_memory_has_no_room_for_is_refused_in_one_line(model_path: Path) -> None:
    async with engine_process(model_path, PITH_ENGINE_KV_CACHE_BYTES=str(10**16)) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 1
    (line,) = stderr.decode().splitlines()
    assert f"kv_cache_bytes {10**16} is more than the memory there is" in line


@pytest.mark.parametrize(("told", "limited"), [("4096\n", True), ("max\n", False), (None, False)])
def test_a_containers_memory_is_what_its_limit_says(tmp_path: Path, told: str | None, limited: bool) -> None:
    limit = tmp_path / "memory.max"
    if told is not None:
        limit.write_text(told)
    assert (memory_bytes(limit) == 4096) == limited
    assert memory_bytes(limit) <= memory_bytes(tmp_path / "none")


async def test_a_broken_model_is_refused_in_one_line(model_path: Path, tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    async with engine_process(tmp_path) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 1
    lines = stderr.decode().splitlines()
    assert len(lines) == 1 and str(tmp_path / "model.safetensors") in lines[0] and "truncated" in lines[0]

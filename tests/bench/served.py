"""An engine in a process of its own, as an operator starts it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 120.0
STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """Where it listens, and clients of it."""

    pid: int
    address: str
    inference: inference_pb2_grpc.InferenceAsyncStub
    control: control_pb2_grpc.ControlAsyncStub

    async def load(self) -> control_pb2.Load:
        return await self.control.GetLoad(control_pb2.GetLoadRequest())

    @property
    def resident_bytes(self) -> int:
        """Memory of the process, as Linux counts it."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"the engine, process {self.pid}, has ended")


@asynccontextmanager
async def served_engine(model_path: Path, **settings: str | int) -> AsyncIterator[ServedEngine]:
    """Starts an engine, waits until it serves, and stops it at the end; `settings` as in EngineConfig.

    Raises AioRpcError where it does not come up; what it says goes to standard error.
    """
    address = f"127.0.0.1:{_free_port()}"
    settings = {"listen": address, "model_path": str(model_path), **settings}
    environment = {f"PITH_ENGINE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine"),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            control = control_pb2_grpc.ControlStub(channel)
            await control.GetModelInfo(control_pb2.GetModelInfoRequest(), wait_for_ready=True, timeout=START_SECONDS)
            yield ServedEngine(process.pid, address, inference_pb2_grpc.InferenceStub(channel), control)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

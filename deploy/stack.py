"""The three services as processes on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.router.v1 import reports_pb2, reports_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "engine" / "demo" / "model"
DEMO_ZONE = ROOT / "deploy" / "demo_zone.csv"
START_SECONDS = 90.0
STOP_SECONDS = 15.0


class StackError(Exception):
    """A service did not start or died; the message says which, and the end of its log."""


@dataclass
class Stack:
    """Starts engine, router and evaluator, each as an operator would, by environment; logs go to `folder`.

    Args:
        folder: Holds the database, the outbox and the logs.
        settings: More environment, by service name.
        ports: Ports by service name; those not named are free ones.
    """

    folder: Path
    clock: str = "system"
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses = {
            name: f"127.0.0.1:{self.ports.get(name) or _free_port()}" for name in ("engine", "router", "evaluator")
        }

    async def start(self) -> None:
        """Starts all three and returns once each reports SERVING and the router has found the engine.

        Raises:
            StackError: One of them ended, or did not serve in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, environment in self._environments().items():
            self.start_service(name, environment)
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(*(self.serving(name) for name in self.addresses))
                await self.engine_ready()
        except TimeoutError:
            tails = "\n".join(self._tail(name) for name in self.addresses)
            raise StackError(f"not all serve after {START_SECONDS:.0f} s; {tails}") from None

    def start_service(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        environment = environment or self._environments()[name]
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", name],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C is for the driver, which then stops the services in order.
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def check(self) -> None:
        """Raises StackError where a service has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StackError(f"{name} ended with code {process.returncode}; {self._tail(name)}")

    async def stop(self) -> dict[str, int]:
        """Has each drain, clients before servers, and returns their exit codes; kills what does not end."""
        codes: dict[str, int] = {}
        for name in ("evaluator", "router", "engine"):
            process = self._processes.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = await asyncio.to_thread(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = await asyncio.to_thread(process.wait)
        return codes

    def _environments(self) -> dict[str, dict[str, str]]:
        common = {"PITH_CLOCK": self.clock, "PYTHONUNBUFFERED": "1"}
        own = {
            "engine": {
                "PITH_ENGINE_LISTEN": self.addresses["engine"],
                "PITH_ENGINE_MODEL_PATH": str(DEMO_MODEL),
            },
            "router": {
                "PITH_ROUTER_LISTEN": self.addresses["router"],
                "PITH_ROUTER_DATABASE_URL": f"sqlite:///{self.folder / 'router.db'}",
                "PITH_ROUTER_OUTBOX_PATH": str(self.folder / "outbox.jsonl"),
                "PITH_ROUTER_ENGINES": json.dumps([f"engine-1={self.addresses['engine']}"]),
                "PITH_ROUTER_INTENSITY": f"profile:{DEMO_ZONE}",
            },
            "evaluator": {
                "PITH_EVALUATOR_LISTEN": self.addresses["evaluator"],
                "PITH_EVALUATOR_ROUTER": self.addresses["router"],
            },
        }
        return {name: {**common, **own[name], **self.settings.get(name, {})} for name in own}

    async def engine_ready(self) -> None:
        """Returns once the router sends requests to the engine."""
        async with grpc.aio.insecure_channel(self.addresses["router"]) as channel:
            reports = reports_pb2_grpc.ReportsStub(channel)
            while True:
                self.check()
                reply = await reports.ListEngines(reports_pb2.ListEnginesRequest())
                if any(engine.state == reports_pb2.ENGINE_STATE_READY for engine in reply.engines):
                    return
                await asyncio.sleep(0.1)

    async def serving(self, name: str) -> None:
        """Returns once its health service says SERVING."""
        async with grpc.aio.insecure_channel(self.addresses[name]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while True:
                self.check()
                try:
                    reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.aio.AioRpcError:
                    pass  # not listening yet
                await asyncio.sleep(0.1)

    def _tail(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-8:]
        return f"the end of {self.log(name)}:\n" + "\n".join(lines)


def cancel_on_sigterm() -> None:
    """Has SIGTERM cancel the current task, so that a driver that is terminated stops its services as on Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

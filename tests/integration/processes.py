"""The services as processes, with what they say on stderr."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class ServiceProcess:
    """A service that listens. `lines` grows while it runs, and is whole when the `async with` block has ended."""

    process: asyncio.subprocess.Process
    port: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def environment(service: str, **settings: Any) -> dict[str, str]:
    """Of a process that is told nothing but `settings`, named as in its configuration."""
    ambient = {key: value for key, value in os.environ.items() if not key.startswith("PITH_")}
    told = {f"PITH_{service.upper()}_{name.upper()}": str(value) for name, value in settings.items()}
    return ambient | {"OMP_NUM_THREADS": "1"} | told


@asynccontextmanager
async def listening(
    service: str, *arguments: str, module: str = "", more: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[ServiceProcess]:
    """Runs until the block ends; the block begins when it listens. Fails with what it said where it does not.

    Args:
        module: run instead of the service's own.
        more: environment beyond the service's settings.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module or service, *arguments),
        cwd=ROOT,
        env=environment(service, **settings) | dict(more or {}),
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stderr is not None
    it = ServiceProcess(process)

    async def read_one() -> bool:
        assert process.stderr is not None
        line = (await process.stderr.readline()).decode()
        it.lines.append(line)
        return line != ""

    async def read_on() -> None:
        while await read_one():
            pass

    try:
        while not it.port:
            assert await read_one(), "".join(it.lines)
            said = json.loads(it.lines[-1]) if it.lines[-1].startswith("{") else {}
            it.port = said["port"] if said.get("event") == "listening" else 0
        reading = asyncio.create_task(read_on())
        try:
            yield it
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def refusal(service: str, *arguments: str, **settings: Any) -> tuple[int, list[str]]:
    """Exit code, and lines on stderr, of a service that does not start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", service, *arguments),
        cwd=ROOT,
        env=environment(service, **settings),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().splitlines()

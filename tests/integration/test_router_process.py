"""`python -m router` as a process: starts alone, says where it listens, and stops when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("PITH_")},
        "PITH_ROUTER_LISTEN": "127.0.0.1:0",
        "PITH_ROUTER_DATABASE_URL": f"sqlite:///{folder / 'data' / 'router.db'}",
        "PITH_ROUTER_OUTBOX_PATH": str(folder / "outbox.jsonl"),
        **settings,
    }


@contextmanager
def process(folder: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "router"], env=environment(folder, **settings), stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def test_it_serves_without_any_engine_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    with process(tmp_path, PITH_ROUTER_ENGINES='["127.0.0.1:1"]') as router:
        assert router.stderr is not None
        listening = next(event for event in map(json.loads, router.stderr) if event["event"] == "listening")
        assert listening["service"] == "router"
        with grpc.insecure_channel(f"127.0.0.1:{listening['port']}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="pith.router.v1.Generation")
            while health.Check(request, timeout=10).status != health_pb2.HealthCheckResponse.SERVING:
                pass
        router.send_signal(signal.SIGTERM)
        assert router.wait(30) == 0
    assert (tmp_path / "data" / "router.db").exists()


def test_a_wrong_setting_is_named_and_nothing_starts(tmp_path: Path) -> None:
    with process(tmp_path, PITH_ROUTER_INTENSITY="guess", PITH_ROUTER_PUE="0.5") as router:
        assert router.stderr is not None
        said = router.stderr.read()
        assert router.wait(30) == 2
    assert "intensity" in said and "pue" in said
    assert not (tmp_path / "data").exists()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with process(tmp_path) as first:
        assert first.stderr is not None
        port = next(e["port"] for e in map(json.loads, first.stderr) if e["event"] == "listening")
        with process(tmp_path / "second", PITH_ROUTER_LISTEN=f"127.0.0.1:{port}") as second:
            assert second.stderr is not None
            assert f"cannot listen on 127.0.0.1:{port}" in second.stderr.read()
            assert second.wait(30) == 1


def test_it_imports_neither_torch_nor_another_service() -> None:
    code = (
        "import sys, router.__main__\n"
        "sys.exit(str(sorted({'torch', 'engine', 'evaluator', 'tokenizers'} & set(sys.modules))) "
        "if {'torch', 'engine', 'evaluator', 'tokenizers'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""TLS between the three services as processes, and what they refuse to start with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1 import generation_pb2_grpc, reports_pb2, reports_pb2_grpc
from structlog.testing import capture_logs

from common.client_tls import ClientTls
from common.grpc_client import connect
from tests.certificates import Authority, Files
from tests.integration.processes import ServiceProcess, listening, refusal
from tests.router.fake_engine import FakeEngine
from tests.router.running import ask, running

pytestmark = pytest.mark.timeout(300)

TIMEOUT = 30.0
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.json"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(json.dumps([{"sha256": digest, "role": "admin", "name": "ops", "tenant": "acme"}]))
    return file


def server_settings(files: Files, authority: Authority) -> dict[str, Any]:
    return {"tls_certificate": files.certificate, "tls_key": files.key, "tls_client_ca": authority.certificate}


def client_settings(prefix: str, files: Files, authority: Authority) -> dict[str, Any]:
    return {
        f"{prefix}_tls_ca": authority.certificate,
        f"{prefix}_tls_certificate": files.certificate,
        f"{prefix}_tls_key": files.key,
    }


@dataclass
class Services:
    engine: ServiceProcess
    router: ServiceProcess
    evaluator: ServiceProcess


async def start(stack: AsyncExitStack, folder: Path, model_path: Path, authority: Authority, tokens: Path) -> Services:
    """All three, with mTLS at each door, tokens, and the router's door beyond loopback."""
    files = {name: authority.sign(name) for name in ("engine", "router", "evaluator")}
    engine = await stack.enter_async_context(
        listening(
            "engine",
            listen="127.0.0.1:0",
            model_path=model_path,
            kv_cache_bytes=16 << 20,
            **server_settings(files["engine"], authority),
        )
    )
    router = await stack.enter_async_context(
        listening(
            "router",
            listen="0.0.0.0:0",
            tokens_file=tokens,
            database_url=f"sqlite:///{folder}/router.db",
            outbox_path=folder / "outbox.jsonl",
            engines=json.dumps([engine.address]),
            **server_settings(files["router"], authority),
            **client_settings("engine", files["router"], authority),
        )
    )
    evaluator = await stack.enter_async_context(
        listening(
            "evaluator",
            listen="127.0.0.1:0",
            router=router.address,
            token="secret",
            **server_settings(files["evaluator"], authority),
            **client_settings("router", files["evaluator"], authority),
        )
    )
    return Services(engine, router, evaluator)


async def check(address: str, tls: ClientTls | None) -> grpc.StatusCode:
    async with connect(address, tls=tls, max_attempts=1) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_an_answer_and_an_evaluation_cross_three_doors_that_ask_for_certificates(
    stack: AsyncExitStack, tmp_path: Path, model_path: Path, tokens_file: Path
) -> None:
    authority = Authority(tmp_path)
    services = await start(stack, tmp_path, model_path, authority, tokens_file)
    shop = authority.sign("shop")
    mutual = ClientTls(authority.certificate, shop.certificate, shop.key)
    stranger = Authority(tmp_path, "other").sign("stranger")
    for service in (services.engine, services.router, services.evaluator):
        assert await check(service.address, mutual) is grpc.StatusCode.OK
        assert await check(service.address, None) is grpc.StatusCode.UNAVAILABLE
        assert await check(service.address, ClientTls(authority.certificate)) is grpc.StatusCode.UNAVAILABLE
        strange = ClientTls(authority.certificate, stranger.certificate, stranger.key)
        assert await check(service.address, strange) is grpc.StatusCode.UNAVAILABLE

    channel = await stack.enter_async_context(connect(services.router.address, tls=mutual, token="secret"))
    reports = reports_pb2_grpc.ReportsStub(channel)
    while True:
        (engine,) = (await reports.ListEngines(reports_pb2.ListEnginesRequest(), timeout=TIMEOUT)).engines
        if engine.state == reports_pb2.ENGINE_STATE_READY:
            break
    request = ask(model="")
    request.limits.max_output_tokens = 4
    reply = await generation_pb2_grpc.GenerationStub(channel).Generate(request, timeout=TIMEOUT)
    assert reply.finished.usage.output_tokens == 4

    channel = await stack.enter_async_context(connect(services.evaluator.address, tls=mutual))
    # Serving means that it has asked the router for what was scored so far.
    async for told in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT):
        if told.status == SERVING:
            break
    evaluation = evaluation_pb2_grpc.EvaluationStub(channel)
    status = await evaluation.GetStatus(evaluation_pb2.GetStatusRequest(), timeout=TIMEOUT)
    assert status.last_fault == ""


async def test_an_engine_of_another_authority_is_not_sent_to(tmp_path: Path, stack: AsyncExitStack) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    files = authority.sign("evaluator")  # any service will do: the handshake comes first
    door = await stack.enter_async_context(
        listening("evaluator", router="127.0.0.1:1", listen="127.0.0.1:0", **server_settings(files, authority))
    )
    for trusted in (other, authority):
        settings = client_settings("engine", authority.sign("router"), trusted)
        async with running(tmp_path, {"e": cast("FakeEngine", door)}, ready=False, **settings) as router:
            while True:
                (engine,) = await router.engines()
                if engine.fault != "not reached yet":
                    break
        assert engine.state == reports_pb2.ENGINE_STATE_UNREACHABLE
        assert engine.fault.startswith("UNAVAILABLE" if trusted is other else "UNIMPLEMENTED")


async def test_the_routers_renewed_certificate_is_shown_when_it_connects_anew(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    door = await stack.enter_async_context(
        listening(
            "evaluator",
            router="127.0.0.1:1",
            listen="127.0.0.1:0",
            **server_settings(authority.sign("evaluator"), authority),
        )
    )
    settings = client_settings("engine", other.sign("router"), authority)
    with capture_logs() as logs:
        async with running(tmp_path, {"e": cast("FakeEngine", door)}, ready=False, **settings) as router:

            async def fault() -> str:
                (engine,) = await router.engines()
                return str(engine.fault)

            while not (await fault()).startswith("UNAVAILABLE"):
                pass
            (tmp_path / "router.key").write_text("half a key")
            while not any(entry["event"].startswith("certificate not renewed") for entry in logs):
                await fault()
            authority.sign("router")
            # The door has no engine behind it, but it opens.
            while not (await fault()).startswith("UNIMPLEMENTED"):
                pass


@pytest.mark.parametrize("service", ["router", "engine", "evaluator"])
async def test_beyond_loopback_takes_tls_or_a_word(
    service: str, tmp_path: Path, model_path: Path, tokens_file: Path, stack: AsyncExitStack
) -> None:
    settings = {
        "router": {"database_url": f"sqlite:///{tmp_path}/router.db", "outbox_path": tmp_path / "outbox.jsonl"},
        "engine": {"model_path": model_path, "kv_cache_bytes": 16 << 20},
        "evaluator": {"router": "127.0.0.1:1"},
    }[service]
    code, lines = await refusal(service, listen="0.0.0.0:0", tokens_file=tokens_file, **settings)
    (line,) = lines
    assert code == 2 and "listen = '0.0.0.0:0': is beyond loopback; set tls_certificate and tls_key" in line
    code, lines = await refusal(service, "--insecure", listen="0.0.0.0:0", **settings)
    (line,) = lines
    assert code == 2 and "set tokens_file" in line
    door = await stack.enter_async_context(
        listening(service, "--insecure", listen="0.0.0.0:0", tokens_file=tokens_file, **settings)
    )
    assert await check(door.address, None) is grpc.StatusCode.OK


async def test_an_unknown_argument_is_refused() -> None:
    code, lines = await refusal("evaluator", "--insecur")
    assert code == 2
    assert lines[-1] == "python -m evaluator: error: unrecognized arguments: --insecur"

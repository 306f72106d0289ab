"""Membership over real gRPC: engines are found, watched, lost and found again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from common.auth import Authenticator
from common.client_tls import ClientTls
from common.clock import ManualClock
from common.config import ServiceConfig
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from router.fleet.engines import Engines
from router.fleet.view import EngineState
from tests.certificates import Authority
from tests.router.fake_engine import DIGEST, IDENTITY, FakeEngine
from tests.router.fleet.conftest import Fleet


async def test_an_engine_is_reached_and_shown_with_model_and_load(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    (view,) = engines.views()
    assert (view.name, view.address, view.state, view.fault) == ("a", fake.address, EngineState.READY, "")
    assert view.model is not None and view.model.model_digest == DIGEST
    assert view.load is not None and view.load.max_running == 4


async def test_load_reports_are_followed(fleet: Fleet) -> None:
    idle, busy = FakeEngine(), FakeEngine()
    engines = await fleet.start(busy, idle)
    await busy.report(running=4, waiting=1)
    await fleet.until(lambda: [v.load.running for v in engines.views() if v.load] == [4, 0])
    chosen = engines.choose("small")
    assert chosen is not None and chosen.name == "b"


async def test_own_requests_spread_before_any_report_sees_them(fleet: Fleet) -> None:
    engines = await fleet.start(FakeEngine(), FakeEngine())
    names = []
    for _ in range(4):
        engine = engines.choose("small")
        assert engine is not None
        engine.begin()
        names.append(engine.name)
    assert names == ["a", "b", "a", "b"]
    assert [view.in_flight for view in engines.views()] == [2, 2]


async def test_own_requests_that_a_report_has_seen_are_not_counted_twice(fleet: Fleet) -> None:
    mine, others = FakeEngine(), FakeEngine()
    engines = await fleet.start(mine, others)
    for _ in range(2):
        engine = engines.choose("small", excluding={"b"})
        assert engine is not None
        engine.begin()
    await others.report(running=3)
    await mine.report(running=2)
    await fleet.until(lambda: [view.load.running for view in engines.views() if view.load] == [2, 3])
    chosen = engines.choose("small")
    assert chosen is not None and chosen.name == "a"


async def test_a_model_is_known_by_name_by_identity_or_as_any(fleet: Fleet) -> None:
    engines = await fleet.start(FakeEngine(), FakeEngine(model="large", digest="f" * 64))
    for model, name in (("small", "a"), (IDENTITY, "a"), ("large", "b"), ("large@ffffffffffff", "b"), ("", "a")):
        engine = engines.choose(model)
        assert engine is not None and engine.name == name, model
    assert engines.choose("small@000000000000") is None
    assert engines.identity("small") == IDENTITY
    assert engines.identity("unknown") == ""


async def test_a_draining_engine_gets_nothing(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    await fake.report(draining=True)
    await fleet.until(lambda: engines.views()[0].state is EngineState.DRAINING)
    assert engines.choose("small") is None


async def test_a_lost_engine_is_said_and_found_again(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    await fake.stop()
    await fleet.until(lambda: engines.ready == 0)
    (view,) = engines.views()
    assert view.state is EngineState.UNREACHABLE and view.load is None
    assert "UNAVAILABLE" in view.fault
    assert engines.choose("small") is None
    assert engines.identity("small") == IDENTITY, "what it served is still known"
    await fake.start()
    await fleet.until(lambda: engines.ready == 1)
    assert engines.views()[0].fault == ""


async def test_an_engine_that_comes_back_with_another_model_is_asked_anew(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    await fake.stop()
    fake.info.model_digest = "f" * 64
    await fake.start()
    await fleet.until(lambda: engines.ready == 1 and engines.identity("small") != IDENTITY)
    assert engines.identity("small") == "small@ffffffffffff"
    assert engines.choose(IDENTITY) is None


async def test_what_is_absent_is_told_from_what_does_not_exist(fleet: Fleet) -> None:
    fake = FakeEngine()
    engines = await fleet.start(fake)
    assert engines.absent("unknown").code is grpc.StatusCode.NOT_FOUND
    await fake.stop()
    await fleet.until(lambda: engines.ready == 0)
    away = engines.absent("small")
    assert (away.code, away.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
    assert away.retry_after_seconds


async def test_an_engine_that_was_never_reached_might_serve_any_model() -> None:
    engines = Engines({"a": "127.0.0.1:1"}, ManualClock())
    engines.start()
    try:
        assert engines.absent("unknown").code is grpc.StatusCode.UNAVAILABLE
        assert Engines({}, ManualClock()).absent("unknown").code is grpc.StatusCode.UNAVAILABLE
        assert engines.views()[0].state is EngineState.UNREACHABLE
    finally:
        await engines.close()


async def test_an_engine_that_asks_for_a_certificate_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.sign("server")
    config = ServiceConfig(
        listen="127.0.0.1:0",
        tls_certificate=files.certificate,
        tls_key=files.key,
        tls_client_ca=authority.certificate,
    )
    server = GrpcServer(config, Authenticator(None), Metrics("test"))
    lost = asyncio.Event()
    engines = Engines(
        {"a": f"127.0.0.1:{await server.start()}"},
        ManualClock(),
        tls=ClientTls(authority.certificate),
        on_change=lost.set,
    )
    engines.start()
    try:
        await lost.wait()
        (view,) = engines.views()
        assert view.state is EngineState.UNREACHABLE
        assert "PITH_ROUTER_ENGINE_TLS_CERTIFICATE and PITH_ROUTER_ENGINE_TLS_KEY" in view.fault
    finally:
        await engines.close()
        await server.drain(grace_seconds=0)

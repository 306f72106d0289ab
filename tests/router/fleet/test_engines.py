"""Membership over real gRPC: engines are found, watched, lost and found again."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from common.auth import Authenticator
from common.carbon.daily_profile import ConstantIntensity
from common.client_tls import ClientTls
from common.clock import ManualClock
from common.config import ServiceConfig
from common.energy.sweet_spot import SweetSpot
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from router.fleet.engines import Engines
from router.fleet.view import EngineState
from router.zones import Zones
from tests.certificates import Authority
from tests.router.fake_engine import DIGEST, IDENTITY, FakeEngine, energy_model
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


async def test_of_several_models_the_identity_is_that_of_the_engine_that_would_be_asked(fleet: Fleet) -> None:
    busy = FakeEngine()
    engines = await fleet.start(busy, FakeEngine(model="large", digest="f" * 64))
    assert engines.identity("") == IDENTITY
    await busy.report(running=4, waiting=1)
    await fleet.until(lambda: [view.load.running for view in engines.views() if view.load] == [4, 0])
    assert engines.identity("") == "large@ffffffffffff"


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


@pytest.fixture
def zones(fleet: Fleet) -> Zones:
    """The default's grid is twice as clean as that of the zone "far"."""
    return Zones(ConstantIntensity("HERE", 100.0), {"far": ConstantIntensity("FAR", 200.0)}, fleet.clock)


def chosen(engines: Engines) -> str:
    engine = engines.choose("")
    assert engine is not None
    return engine.name


async def test_of_two_zones_the_clean_one_is_chosen_until_it_is_full(fleet: Fleet, zones: Zones) -> None:
    far, here = FakeEngine(), FakeEngine()
    far.info.zone = "far"
    engines = await fleet.start(far, here, zones=zones)
    names = []
    for _ in range(6):
        engine = engines.choose("")
        assert engine is not None
        engine.begin()
        names.append(engine.name)
    assert names == ["b", "b", "b", "b", "a", "a"]
    assert [view.zone for view in engines.views()] == ["far", ""]
    assert (engines.zone("a"), engines.zone("b"), engines.zone("nobody")) == ("far", "", "")


async def test_a_clean_engine_that_serves_another_model_is_no_candidate(fleet: Fleet, zones: Zones) -> None:
    far, here = FakeEngine(), FakeEngine(model="large", digest="f" * 64)
    far.info.zone = "far"
    engines = await fleet.start(far, here, zones=zones)
    engine = engines.choose("small")
    assert engine is not None and engine.name == "a"
    assert engines.identity("") == "large@ffffffffffff", "any model: that of the engine that would be asked"


async def test_within_one_zone_the_load_decides_whatever_engines_cost(fleet: Fleet, zones: Zones) -> None:
    dear, cheap = calibrated(input_joules=50.0), calibrated()
    dear.info.zone = cheap.info.zone = "far"
    engines = await fleet.start(dear, cheap, zones=zones)
    assert chosen(engines) == "a"
    # Today's choice, also where the other would run it at once.
    await dear.report(running=0, waiting=1)
    await cheap.report(running=3)
    await fleet.until(lambda: [v.load.running for v in engines.views() if v.load] == [0, 3])
    assert chosen(engines) == "a"


async def test_between_zones_what_engines_cost_counts_where_all_are_calibrated(fleet: Fleet, zones: Zones) -> None:
    far, here = calibrated(), calibrated(input_joules=50.0)
    far.info.zone = "far"
    engines = await fleet.start(far, here, zones=zones)
    assert chosen(engines) == "a"
    await far.stop()
    await fleet.until(lambda: engines.ready == 1)
    far.info.ClearField("energy_model")
    await far.start()
    await fleet.until(lambda: engines.ready == 2)
    assert chosen(engines) == "b", "by the intensity alone"


async def test_between_zones_what_different_models_cost_does_not_count(fleet: Fleet, zones: Zones) -> None:
    """Where a request names none: else the smallest would answer all of them."""
    far, here = calibrated(), calibrated("large", "f" * 64, input_joules=50.0)
    far.info.zone = "far"
    assert chosen(await fleet.start(far, here, zones=zones)) == "b"


async def test_an_engine_without_work_does_not_look_dear(fleet: Fleet, zones: Zones) -> None:
    """At its own batch of 1, a token at the clean engine would cost four times what it costs at the busy one."""
    far, here = calibrated(), calibrated()
    for fake in (far, here):
        fake.info.energy_model.input_joules = 0.0
    far.info.zone = "far"
    engines = await fleet.start(far, here, zones=zones)
    far.load.max_running = 16
    await far.report(running=8)
    await fleet.until(lambda: [v.load.running for v in engines.views() if v.load] == [8, 0])
    await fleet.clock.advance(1000)
    assert chosen(engines) == "b"


async def test_a_zone_that_is_not_there_is_the_defaults(fleet: Fleet, zones: Zones) -> None:
    lost, far = FakeEngine(), FakeEngine()
    lost.info.zone, far.info.zone = "x" * 999, "far"
    with structlog.testing.capture_logs() as logs:
        engines = await fleet.start(lost, far, zones=zones)
    assert [view.zone for view in engines.views()] == ["", "far"]
    assert chosen(engines) == "a"
    (said,) = [line for line in logs if "zone" in line]
    assert (said["engine"], said["zone"]) == ("a", "x" * 128)


def calibrated(model: str = "small", digest: str = DIGEST, **fields: Any) -> FakeEngine:
    fake = FakeEngine(model=model, digest=digest)
    fake.info.energy_model.CopyFrom(energy_model(**fields))
    return fake


async def test_requests_are_priced_by_their_engines_model_at_the_batch_that_it_reports(fleet: Fleet) -> None:
    fake = calibrated(max_batch=8)
    engines = await fleet.start(fake, FakeEngine(model="large", digest="f" * 64))
    price = engines.price(IDENTITY)
    assert price is not None and price.running is None
    assert price.model.sweet_spot == SweetSpot(input_joules=1.0, output_shared_joules=10.0)
    assert (price.model.source.value, price.model.held_out_mape, price.model.max_batch) == ("MEASURED", 2.1, 8)
    for running, seconds in ((2, 10.0), (6, 10.0), (0, 500.0)):
        await fake.report(running=running)
        await fleet.until(lambda n=running: [v.load.running for v in engines.views()[:1] if v.load] == [n])
        await fleet.clock.advance(seconds)
    price = engines.price(IDENTITY)
    assert price is not None and price.batch == pytest.approx(4, rel=0.02)
    for unknown in ("large@ffffffffffff", "small", "", "other@1"):
        assert engines.price(unknown) is None


async def test_an_engine_that_is_lost_runs_nothing_and_keeps_its_say(fleet: Fleet) -> None:
    fake = calibrated()
    engines = await fleet.start(fake)
    await fake.report(running=4)
    await fleet.until(lambda: [v.load.running for v in engines.views() if v.load] == [4])
    await fleet.clock.advance(10)
    await fake.stop()
    await fleet.until(lambda: engines.views()[0].load is None)
    await fleet.clock.advance(60)
    assert (price := engines.price(IDENTITY)) is not None and price.batch == pytest.approx(4)
    await fleet.clock.advance(1e7)
    assert (price := engines.price(IDENTITY)) is not None and price.running is None


async def test_of_several_engines_the_model_measured_last_stands_for_all(fleet: Fleet) -> None:
    old, new, plain = calibrated(), calibrated(input_joules=7.0), FakeEngine()
    new.info.energy_model.measured_at.CopyFrom(Timestamp(seconds=1_800_000_000))
    engines = await fleet.start(new, old, plain)
    for fake, running in ((old, 2), (new, 6), (plain, 10)):
        await fake.report(running=running)
    await fleet.until(lambda: [v.load.running for v in engines.views() if v.load] == [6, 2, 10])
    await fleet.clock.advance(5)
    price = engines.price(IDENTITY)
    assert price is not None and price.model.sweet_spot.input_joules == 7.0
    assert price.running == pytest.approx(6), "of all that share the requests"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"output_joules": -1.0}, "output_joules must be finite and at least 0, got -1.0"),
        ({"pair_joules": math.nan}, "pair_joules must be finite and at least 0, got nan"),
        ({"request_joules": math.inf}, "request_joules must be finite and at least 0, got inf"),
        ({"output_squared_joules": 1e308}, "output_squared_joules must be at most 1e+09, got 1e+308"),
        ({"source": 99}, "source must say how the energies are known, got 99"),
        ({"held_out_mape": math.nan}, "held_out_mape must be finite and at least 0, got nan"),
        ({"measured_at": Timestamp(seconds=2**62)}, "Timestamp is not valid"),
    ],
)
async def test_a_model_that_is_nonsense_is_said_once_and_not_used(
    fleet: Fleet, fields: dict[str, Any], named: str
) -> None:
    fake = calibrated(**fields)
    with structlog.testing.capture_logs() as logs:
        engines = await fleet.start(fake)
        for _ in range(2):
            await fake.stop()
            await fleet.until(lambda: engines.ready == 0)
            await fake.start()
            await fleet.until(lambda: engines.ready == 1)
    assert engines.price(IDENTITY) is None
    said = [line for line in logs if line["event"] == "the engine's energy model is not used"]
    assert [(line["log_level"], line["engine"], line["model"]) for line in said] == [("warning", "a", IDENTITY)]
    assert named in said[0]["fault"]


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        (("max_batch",), "max_batch must be at least 1, got 0"),
        (("measured_at",), "measured_at is missing"),
        (("source",), "source must say how the energies are known, got 0"),
        (("input_joules", "output_shared_joules"), "every coefficient is 0: a request would cost nothing"),
    ],
)
async def test_a_model_with_gaps_is_not_used(fleet: Fleet, absent: tuple[str, ...], named: str) -> None:
    fake = calibrated()
    for field in absent:
        fake.info.energy_model.ClearField(field)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        engines = await fleet.start(fake, calibrated(input_joules=3.0))
    assert [line["fault"] for line in logs if "fault" in line] == [named]
    price = engines.price(IDENTITY)
    assert price is not None and price.model.sweet_spot.input_joules == 3.0, "the other engine's"


async def test_a_calibration_that_comes_or_goes_is_told(fleet: Fleet) -> None:
    told: list[None] = []
    fake = FakeEngine()
    engines = await fleet.start(fake, on_energy_model=lambda: told.append(None))
    seen = [len(told)]
    for message in (energy_model(), energy_model(), energy_model(input_joules=2.0), None):
        await fake.stop()
        await fleet.until(lambda: engines.ready == 0)
        fake.info.ClearField("energy_model")
        if message is not None:
            fake.info.energy_model.CopyFrom(message)
        await fake.start()
        await fleet.until(lambda: engines.ready == 1)
        seen.append(len(told))
    assert seen == [0, 1, 1, 2, 3]

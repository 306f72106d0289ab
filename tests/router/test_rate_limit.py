"""What a tenant may ask of one router: never more than its limits say, and never less."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2

from common.clock import ManualClock
from common.errors import PithError, from_rpc_error
from router.rate_limit import RateLimiter, TenantLimit
from tests.router.fake_engine import FakeEngine, delta, refuse, stall
from tests.router.running import Running, ask, running


class Steps(ManualClock):
    """Time that a test that awaits nothing moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def admitted(limiter: RateLimiter, tenant: str = "acme") -> bool:
    try:
        with limiter.request(tenant):
            return True
    except PithError:
        return False


@settings(deadline=None)
@given(
    rate=st.integers(1, 10_000),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 100)), min_size=1, max_size=200),
)
@example(rate=1, gaps=[0.0, 40.0, 40.0])  # longer than most waits, shorter than a bucket takes to be full
def test_in_no_interval_more_is_admitted_than_the_burst_and_the_rate_allow(rate: int, gaps: Sequence[float]) -> None:
    clock, limit = Steps(), TenantLimit(rate)
    limiter = RateLimiter(clock, limit)
    times = []
    for gap in gaps:
        clock.seconds += gap
        if admitted(limiter):
            times.append(clock.seconds)
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            allowed = limit.burst_requests + rate / 60 * (times[last] - begin)
            assert last - first + 1 <= allowed + 1e-5


@settings(deadline=None)
@given(rate=st.integers(1, 10_000), start=st.floats(0, 1e9), late=st.lists(st.floats(0, 2), min_size=1, max_size=200))
@example(rate=3, start=1.179, late=[0.0] * 20)  # seconds that do not add up exactly
def test_a_client_that_keeps_to_the_rate_is_never_refused(rate: int, start: float, late: Sequence[float]) -> None:
    clock = Steps()
    clock.seconds = start
    limiter = RateLimiter(clock, TenantLimit(rate))
    for pause in late:
        assert admitted(limiter)
        clock.seconds += 60 / rate * (1 + pause)


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (6, 1), (60, 10), (600, 100)])
def test_a_sixth_of_a_minute_may_come_at_once(rate: int, burst: int) -> None:
    limiter = RateLimiter(Steps(), TenantLimit(rate))
    assert [admitted(limiter) for _ in range(burst + 1)] == [True] * burst + [False]


def test_who_waits_as_long_as_it_is_told_is_let_in() -> None:
    clock = Steps()
    limiter = RateLimiter(clock, TenantLimit(6))
    assert admitted(limiter)
    clock.seconds = 2.5
    with pytest.raises(PithError) as refused, limiter.request("acme"):
        pass
    error = refused.value
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert error.quota is not None
    assert (error.quota.subject, error.quota.description) == ("tenant:acme", "more than 6 requests a minute")
    assert error.retry_after_seconds == pytest.approx(7.5)
    clock.seconds += 7.5
    assert admitted(limiter)


def test_limits_of_a_tenant_go_before_the_defaults_one_by_one() -> None:
    limiter = RateLimiter(Steps(), TenantLimit(6, 1))
    limiter.put_limits({"big": TenantLimit(12, 0), "wide": TenantLimit(0, 2)})
    assert limiter.limit("acme") == TenantLimit(6, 1)
    assert limiter.limit("big") == TenantLimit(12, 1)
    assert limiter.limit("wide") == TenantLimit(6, 2)
    assert [admitted(limiter, "big") for _ in range(3)] == [True, True, False]
    limiter.put_limits({})
    assert not admitted(limiter, "big"), "what it has used up stays used up"
    assert admitted(limiter, "acme"), "one tenant's requests are not another's"


def test_only_so_many_are_in_flight_and_a_refused_one_uses_up_nothing() -> None:
    told: list[str] = []
    limiter = RateLimiter(Steps(), TenantLimit(12, 1), told.append)
    with limiter.request("acme"):
        assert not admitted(limiter)
        assert admitted(limiter, "other")
    assert admitted(limiter), "of two a burst, the refused one was none"
    assert not admitted(limiter)
    assert told == ["concurrent_requests", "requests_per_minute"]


def test_without_limits_nothing_is_refused_or_remembered() -> None:
    limiter = RateLimiter(Steps(), TenantLimit())
    assert all(admitted(limiter, f"t{n % 10}") for n in range(1_000))
    assert limiter.tenants == 0


def test_tenants_that_are_idle_are_forgotten() -> None:
    clock = Steps()
    limiter = RateLimiter(clock, TenantLimit(1))
    for n in range(1_000):
        clock.seconds += 1
        admitted(limiter, "busy")
        assert admitted(limiter, f"t{n}")
        assert limiter.tenants <= 61
    assert not admitted(limiter, "t999"), "one that is not idle is not forgotten"


# Through the router.


def limited(folder: Path, engine: FakeEngine, **settings: object):  # type: ignore[no-untyped-def]  # a context manager
    return running(folder, {"e1": engine}, tenant_concurrent_requests=1, **settings)


async def refused(call: object) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call  # type: ignore[misc]
    return from_rpc_error(error.value)


def is_rate_limit(error: PithError) -> bool:
    return (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


async def test_the_rate_holds_for_answers_streams_decisions_and_repeats(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, tenant_requests_per_minute=24) as router:
        generation = router.generation
        await generation.Generate(ask(request_id="a"))
        await generation.Generate(ask(request_id="a"))
        async for _ in generation.StreamGenerate(ask()):
            pass
        await generation.Decide(generation_pb2.DecideRequest(request=ask()))
        for call in (
            generation.Generate(ask(request_id="a")),
            generation.Generate(ask(request_id="b")),
            generation.StreamGenerate(ask()).read(),
            generation.Decide(generation_pb2.DecideRequest(request=ask())),
        ):
            error = await refused(call)
            assert is_rate_limit(error), error
            assert error.quota is not None and error.quota.subject == "tenant:acme"
            assert error.retry_after_seconds == pytest.approx(2.5)
        await generation.Generate(ask(tenant="other"))
        evaluation = generation_pb2.EvaluationPurpose(sample_id="s", directive="L0")
        await generation.Generate(ask(evaluation=evaluation))
        count = router.router.metrics.registry.get_sample_value(
            "pith_router_refused_requests_total", {"limit": "requests_per_minute"}
        )
        assert count == 4
        await router.clock.advance(2.5)
        await generation.Generate(ask(request_id="b"))
        assert len(engine.requests) == 5


async def test_outcomes_and_ratings_are_calls_too(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, tenant_requests_per_minute=24) as router:
        generation, caller = router.generation, (("x-tenant", "acme"),)
        await generation.Generate(ask(request_id="a"))
        decided = await generation.Decide(generation_pb2.DecideRequest(request=ask()))
        rating = generation_pb2.RateAnswerRequest(request_id="a", rating=1)
        outcome = generation_pb2.ReportOutcomeRequest(
            decision_id=decided.decision_id, usage=text_pb2.Usage(output_tokens=1)
        )
        await generation.RateAnswer(rating, metadata=caller)
        await generation.ReportOutcome(outcome, metadata=caller)
        assert is_rate_limit(await refused(generation.RateAnswer(rating, metadata=caller)))
        assert is_rate_limit(await refused(generation.ReportOutcome(outcome, metadata=caller)))


async def test_a_faulty_request_is_no_request(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, tenant_requests_per_minute=6) as router:
        error = await refused(router.generation.Generate(ask(floor=7)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        await router.generation.Generate(ask())


async def _slot_is_free(router: Running, engine: FakeEngine) -> None:
    """The next request is answered; who was cut off may still be on its way out."""
    engine.script = FakeEngine().script
    while True:
        try:
            await router.generation.Generate(ask())
            return
        except grpc.aio.AioRpcError as error:
            assert is_rate_limit(from_rpc_error(error))


async def test_a_stream_is_in_flight_until_it_has_ended(tmp_path: Path, engine: FakeEngine) -> None:
    go = asyncio.Event()
    async with limited(tmp_path, engine) as router:
        engine.script = stall("started", delta("one"), until=go)
        stream = router.generation.StreamGenerate(ask())
        await stream.read()
        error = await refused(router.generation.Generate(ask()))
        assert is_rate_limit(error) and error.quota is not None
        assert error.quota.description == "1 requests are in flight, as many as may be at once"
        go.set()
        while await stream.read() is not grpc.aio.EOF:
            pass
        await _slot_is_free(router, engine)


async def test_a_cancelled_stream_is_no_longer_in_flight(tmp_path: Path, engine: FakeEngine) -> None:
    async with limited(tmp_path, engine) as router:
        engine.script = stall("started", delta("one"))
        stream = router.generation.StreamGenerate(ask())
        await stream.read()
        await stream.read()
        stream.cancel()
        await engine.cancelled.wait()
        await _slot_is_free(router, engine)


async def test_a_cancelled_call_is_no_longer_in_flight(tmp_path: Path, engine: FakeEngine) -> None:
    async with limited(tmp_path, engine) as router:
        engine.script = stall("started")
        call = router.generation.Generate(ask())
        await engine.asked.wait()
        call.cancel()
        await engine.cancelled.wait()
        await _slot_is_free(router, engine)


async def test_a_failed_request_is_no_longer_in_flight(tmp_path: Path, engine: FakeEngine) -> None:
    async with limited(tmp_path, engine) as router:
        engine.script = refuse(grpc.StatusCode.INVALID_ARGUMENT)
        error = await refused(router.generation.Generate(ask()))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        await _slot_is_free(router, engine)
        engine.script = refuse(grpc.StatusCode.INTERNAL, after=("started", delta("one")))
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in router.generation.StreamGenerate(ask()):
                pass
        await _slot_is_free(router, engine)


async def test_a_request_that_is_in_flight_already_gives_its_slot_back(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, tenant_concurrent_requests=2) as router:
        engine.script = stall("started", delta("one"))
        first = router.generation.StreamGenerate(ask(request_id="a"))
        await first.read()
        for _ in range(3):
            error = await refused(router.generation.Generate(ask(request_id="a")))
            assert error.reason == "REQUEST_IN_FLIGHT"
        first.cancel()
        await engine.cancelled.wait()


async def test_a_client_that_is_gone_is_no_longer_in_flight(tmp_path: Path, engine: FakeEngine) -> None:
    async with limited(tmp_path, engine) as router:
        engine.script = stall("started", delta("one"))
        async with grpc.aio.insecure_channel(router.address) as channel:
            stream = channel.unary_stream(
                "/pith.router.v1.Generation/StreamGenerate",
                request_serializer=generation_pb2.GenerateRequest.SerializeToString,
            )(ask())
            await stream.read()
        await engine.cancelled.wait()
        await _slot_is_free(router, engine)


async def test_a_deadline_that_passes_ends_the_flight(tmp_path: Path, engine: FakeEngine) -> None:
    async with limited(tmp_path, engine) as router:
        engine.script = stall("started", delta("one"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.generation.Generate(ask(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await _slot_is_free(router, engine)

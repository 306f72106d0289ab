"""Who may call the router and for whom: tokens that come, expire and go, and limits of tenants, on every router."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import text_pb2
from pith.router.v1 import (
    access_pb2,
    access_pb2_grpc,
    feedback_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from structlog.testing import capture_logs

from common.auth import Authenticator, Role
from common.clock import ManualClock
from common.config import ServiceConfig
from common.errors import PithError, from_rpc_error
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from router.convert import timestamp
from router.services import access
from router.services.access import AccessService
from router.snapshot import SnapshotKeeper
from router.store.database import Database, StoreUnavailable
from tests.router.fake_engine import FakeEngine, delta, stall
from tests.router.running import Running, ask, running

pb: Any = access_pb2
CLIENT = pb.TOKEN_ROLE_CLIENT


def tokens_file(folder: Path, **holders: str) -> Path:
    """Of tokens that are called as their holders, each with the role after it."""
    path = folder / "tokens.json"
    entries = [
        {"sha256": sha256(name.encode()).hexdigest(), "role": role, "name": name, "tenant": "acme"}
        for name, role in holders.items()
    ]
    path.write_text(json.dumps(entries))
    return path


class Callers:
    """Stubs of a router's services, by token."""

    def __init__(self, router: Running, channels: AsyncExitStack) -> None:
        self.router = router
        self._channels = channels

    async def by(self, token: str) -> Any:
        channel = await self._channels.enter_async_context(connect(self.router.address, token=token, max_attempts=1))
        stubs = (
            access_pb2_grpc.AccessStub,
            generation_pb2_grpc.GenerationStub,
            policies_pb2_grpc.PoliciesStub,
            feedback_pb2_grpc.FeedbackStub,
            reports_pb2_grpc.ReportsStub,
        )
        return SimpleNamespace(**{name: rpc for stub in stubs for name, rpc in vars(stub(channel)).items()})


@asynccontextmanager
async def guarded(folder: Path, engine: FakeEngine, **settings: Any) -> AsyncIterator[tuple[Callers, Any]]:
    """A router that asks for tokens, and its first admin's stubs."""
    settings.setdefault("tokens_file", folder / "tokens.json")
    if not settings["tokens_file"].exists():
        tokens_file(folder, root="admin")
    async with AsyncExitStack() as channels:
        router = await channels.enter_async_context(running(folder, {"e1": engine}, ready=False, **settings))
        callers = Callers(router, channels)
        root = await callers.by("root")
        while not any(
            e.state == reports_pb2.ENGINE_STATE_READY
            for e in (await root.ListEngines(reports_pb2.ListEnginesRequest())).engines
        ):
            pass
        yield callers, root


async def create(root: Any, name: str = "shop", role: int = CLIENT, **fields: Any) -> str:
    reply = await root.CreateToken(pb.CreateTokenRequest(name=name, role=role, **fields))
    return str(reply.secret)


async def revoke(root: Any, name: str = "shop") -> Any:
    return await root.RevokeToken(pb.RevokeTokenRequest(name=name))


async def refused(call: Awaitable[Any]) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def unknown(error: PithError) -> bool:
    return (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")


async def until_refused(call: Callable[[], Awaitable[Any]]) -> PithError:
    """Calls on until a change has come there."""
    while True:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)


async def until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError:
            continue


async def test_a_token_is_told_once_and_only_its_hash_is_kept(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (callers, root):
        reply = await root.CreateToken(pb.CreateTokenRequest(name="shop", role=CLIENT, tenant="acme"))
        secret, token = reply.secret, reply.token
        assert secret.startswith("pith_") and len(secret) == 48
        assert (token.name, token.role, token.tenant, token.created_by) == ("shop", CLIENT, "acme", "root")
        assert token.created_at == timestamp(callers.router.clock.now())
        assert not token.HasField("expires_at") and not token.HasField("revoked_at")
        listed = await root.ListTokens(pb.ListTokensRequest())
        assert list(listed.tokens) == [token]
        digest = sha256(secret.encode()).hexdigest()
        assert secret not in str(listed) and digest not in str(listed)
        shop = await callers.by(secret)
        reply = await shop.Generate(ask(tenant=""))
        assert reply.text == "Hello, world."
    # SQLite's files, with the log that changes are written ahead to.
    on_disk = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("router.db*")))  # noqa: ASYNC240
    assert digest.encode() in on_disk and secret.encode() not in on_disk and secret[5:].encode() not in on_disk


async def test_secrets_are_all_of_the_bytes_that_were_drawn(
    database: Database, keeper: SnapshotKeeper, clock: ManualClock
) -> None:
    rng = random.Random(7)
    server = GrpcServer(ServiceConfig(listen="127.0.0.1:0"), Authenticator(None), Metrics("test"))
    server.add(
        AccessService(database, keeper, clock, Authenticator(None), rng.randbytes), access.SERVICE, roles=access.ROLES
    )
    port = await server.start()
    async with connect(f"127.0.0.1:{port}") as channel:
        stub: Any = access_pb2_grpc.AccessStub(channel)
        given = [await create(stub, f"t{n}") for n in range(3)]
    await server.drain(grace_seconds=0)
    rng = random.Random(7)
    assert given == [f"pith_{base64.urlsafe_b64encode(rng.randbytes(32)).decode().rstrip('=')}" for _ in range(3)]


async def test_every_fault_of_a_token_is_named(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (callers, root):
        now = callers.router.clock.now()
        for request, fields in (
            (pb.CreateTokenRequest(name="a b", tenant="\n", expires_at=timestamp(now)), "name role tenant expires_at"),
            (pb.CreateTokenRequest(name="x" * 65, role=99, tenant="t" * 129), "name role tenant"),
            (pb.CreateTokenRequest(name="x", role=CLIENT, expires_at=Timestamp(seconds=1 << 60)), "expires_at"),
        ):
            error = await refused(root.CreateToken(request))
            assert error.code is grpc.StatusCode.INVALID_ARGUMENT
            assert [violation.field for violation in error.violations] == fields.split()
        assert not (await root.ListTokens(pb.ListTokensRequest())).tokens


async def test_a_name_is_taken_for_good(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (_, root):
        await create(root)
        await revoke(root)
        error = await refused(create(root))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")


async def test_names_of_the_tokens_file_are_taken_and_not_revoked_here(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (_, root):
        error = await refused(create(root, "root"))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")
        assert "tokens file" in error.message
        assert not (await root.ListTokens(pb.ListTokensRequest())).tokens
        error = await refused(revoke(root, "root"))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IN_USE")
        assert "is of the tokens file; taken out of there" in error.message


async def test_a_revoked_token_is_refused_at_once_and_its_stream_goes_on(tmp_path: Path, engine: FakeEngine) -> None:
    go = asyncio.Event()
    async with guarded(tmp_path, engine) as (callers, root):
        shop = await callers.by(await create(root, tenant="acme"))
        engine.script = stall("started", delta("one"), until=go)
        stream = shop.StreamGenerate(ask())
        await stream.read()
        revoked = await revoke(root)
        assert (revoked.revoked_by, revoked.revoked_at) == ("root", timestamp(callers.router.clock.now()))
        assert unknown(await refused(shop.Generate(ask())))
        go.set()
        while (message := await stream.read()) is not grpc.aio.EOF:
            last = message
        assert last.HasField("finished")
        await callers.router.clock.advance(60)
        assert await revoke(root) == revoked, "a second time changes nothing"
        error = await refused(revoke(root, "nobody"))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_token_expires_on_the_service_clock(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (callers, root):
        clock = callers.router.clock
        expires_at = timestamp(clock.now() + timedelta(seconds=60))
        shop = await callers.by(await create(root, tenant="acme", expires_at=expires_at))
        await clock.advance(59)
        await shop.Generate(ask())
        await clock.advance(1)
        error = await refused(shop.Generate(ask()))
        assert unknown(error) and error.message == "the token has expired"
        (listed,) = (await root.ListTokens(pb.ListTokensRequest())).tokens
        assert listed.expires_at == expires_at


async def test_tokens_are_listed_by_name_a_page_at_a_time(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (_, root):
        for name in ("c", "a", "B"):
            await create(root, name)
        await revoke(root, "a")
        first = await root.ListTokens(pb.ListTokensRequest(page_size=2))
        second = await root.ListTokens(pb.ListTokensRequest(page_size=2, page_token=first.next_page_token))
        assert [token.name for token in (*first.tokens, *second.tokens)] == ["B", "a", "c"]
        assert not second.next_page_token
        error = await refused(root.ListTokens(pb.ListTokensRequest(page_token="x")))
        assert error.violations[0].field == "page_token"


async def test_every_router_takes_tokens_in_and_refuses_what_another_revoked(
    tmp_path: Path, engine: FakeEngine
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shared = {"database_url": f"sqlite:///{tmp_path / 'router.db'}", "tokens_file": tokens_file(tmp_path, root="admin")}
    async with guarded(here, engine, **shared) as (_, root), guarded(there, engine, **shared) as (others, _):
        shop = await others.by(await create(root, tenant="acme"))
        await until_answered(lambda: shop.Generate(ask()))
        await root.SetTenantLimits(
            pb.SetTenantLimitsRequest(limits=pb.TenantLimits(tenant="acme", requests_per_minute=1))
        )
        error = await until_refused(lambda: shop.Generate(ask()))
        assert error.reason == "RATE_LIMITED"
        await revoke(root)
        while not unknown(await until_refused(lambda: shop.Generate(ask()))):
            pass


class Outage:
    """Databases that can be made to go away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.refused = asyncio.Event()
        reading = Database.reading

        @asynccontextmanager
        async def maybe(database: Database) -> AsyncIterator[Any]:
            if self.down:
                self.refused.set()
                raise StoreUnavailable("connection refused")
            async with reading(database) as connection:
                yield connection

        monkeypatch.setattr(Database, "reading", maybe)


async def test_known_tokens_go_on_working_while_the_database_is_down(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch)
    async with guarded(tmp_path, engine) as (callers, root):
        shop = await callers.by(await create(root, tenant="acme"))
        outage.down = True
        await outage.refused.wait()
        await shop.Generate(ask())
        # Written, but not read again: what is revoked then goes once the database can be read.
        await revoke(root)
        await shop.Generate(ask())
        outage.down = False
        assert unknown(await until_refused(lambda: shop.Generate(ask())))


async def test_a_change_that_could_not_be_read_at_first_is_read_later(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away after the change counter was read and before the tokens are."""
    outage = Outage(monkeypatch)
    async with guarded(tmp_path, engine) as (callers, root):
        shop = await callers.by(await create(root, tenant="acme"))
        keeper = callers.router.router._keeper
        keeper._listeners.insert(0, lambda: _set(outage))
        await revoke(root)
        await shop.Generate(ask())
        keeper._listeners.pop(0)
        outage.down = False
        assert unknown(await until_refused(lambda: shop.Generate(ask())))


async def _set(outage: Outage) -> None:
    outage.down = True


async def test_only_admins_may_call_access(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (callers, root):
        for role in Role:
            caller = await callers.by(await create(root, role.value, pb.TokenRole.Value(f"TOKEN_ROLE_{role.name}")))
            calls = [
                caller.CreateToken(pb.CreateTokenRequest(name=f"by-{role}", role=pb.TOKEN_ROLE_ADMIN)),
                caller.ListTokens(pb.ListTokensRequest()),
                caller.SetTenantLimits(pb.SetTenantLimitsRequest(limits=pb.TenantLimits(tenant="t"))),
                caller.ListTenantLimits(pb.ListTenantLimitsRequest()),
                caller.EraseTenantText(pb.EraseTenantTextRequest(tenant="t")),
                caller.RevokeToken(pb.RevokeTokenRequest(name=role.value)),
            ]
            assert len(calls) == len(access.SERVICE.methods)
            for call in calls:
                if role is Role.ADMIN:
                    await call
                else:
                    error = await refused(call)
                    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
        names = [token.name for token in (await root.ListTokens(pb.ListTokensRequest())).tokens]
        assert names == sorted([*Role, "by-admin"])


async def test_a_client_speaks_for_its_own_tenant_only_whatever_it_says(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (callers, root):
        shop = await callers.by(await create(root, "shop", tenant="acme"))
        thief = await callers.by(await create(root, "thief", tenant="other"))
        await shop.Generate(ask(request_id="r1", tenant=""))
        decided = await shop.Decide(generation_pb2.DecideRequest(request=ask(tenant="", model="mine")))
        rating = generation_pb2.RateAnswerRequest(request_id="r1", rating=1.0)
        foreign = generation_pb2.RateAnswerRequest(request_id="r1", rating=0.0, tenant="acme")
        for call in (
            thief.Generate(ask(request_id="r1")),
            thief.StreamGenerate(ask(request_id="r1")).read(),
            thief.Decide(generation_pb2.DecideRequest(request=ask())),
            thief.RateAnswer(foreign),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
        # Named as its own, another's request is not there.
        assert (await refused(thief.RateAnswer(rating))).code is grpc.StatusCode.NOT_FOUND
        outcome = generation_pb2.ReportOutcomeRequest(decision_id=decided.decision_id, seconds=1.0)
        outcome.usage.output_tokens = 1
        outcome.finish_reason = text_pb2.FINISH_REASON_STOP
        assert (await refused(thief.ReportOutcome(outcome))).code is grpc.StatusCode.NOT_FOUND
        await shop.ReportOutcome(outcome)
        await shop.RateAnswer(rating)
        reply = await thief.Generate(ask(request_id="r1", tenant=""))
        assert not reply.started.replayed, "the same id of another tenant is another request"
        assert (await root.Generate(ask(request_id="r1"))).started.replayed, "an admin may name any"


async def test_a_token_that_is_taken_out_of_the_file_is_refused_without_a_restart(
    tmp_path: Path, engine: FakeEngine
) -> None:
    path = tokens_file(tmp_path, root="admin", shop="client")
    async with guarded(tmp_path, engine) as (callers, _):
        shop = await callers.by("shop")
        await shop.Generate(ask())
        tokens_file(tmp_path, root="admin", new="client")
        assert unknown(await until_refused(lambda: shop.Generate(ask())))
        path.write_text("[")
        new = await callers.by("new")
        await new.Generate(ask())


async def test_without_a_tokens_file_a_router_stays_open_and_says_so(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        stub: Any = access_pb2_grpc.AccessStub(router.channel)
        with capture_logs() as logs:
            await create(stub)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "a token was made, but without tokens_file every caller is an admin"
        ]
        await router.generation.Generate(ask())


async def test_limits_of_a_tenant_are_in_force_at_once(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}, tenant_requests_per_minute=6) as router:
        stub: Any = access_pb2_grpc.AccessStub(router.channel)
        limits = pb.TenantLimits(tenant="acme", requests_per_minute=12, concurrent_requests=5)
        given = await stub.SetTenantLimits(pb.SetTenantLimitsRequest(limits=limits))
        assert (given.requests_per_minute, given.concurrent_requests, given.updated_by) == (12, 5, "local")
        other = pb.TenantLimits(tenant="Other", concurrent_requests=1)
        await stub.SetTenantLimits(pb.SetTenantLimitsRequest(limits=other))
        first = await stub.ListTenantLimits(pb.ListTenantLimitsRequest(page_size=1))
        second = await stub.ListTenantLimits(pb.ListTenantLimitsRequest(page_size=1, page_token=first.next_page_token))
        assert [own.tenant for own in (*first.limits, *second.limits)] == ["Other", "acme"]
        assert list(second.limits) == [given]
        for _ in range(2):
            await router.generation.Generate(ask())
        assert (await refused(router.generation.Generate(ask()))).reason == "RATE_LIMITED"
        await stub.SetTenantLimits(pb.SetTenantLimitsRequest(limits=pb.TenantLimits(tenant="acme")))
        assert len((await stub.ListTenantLimits(pb.ListTenantLimitsRequest())).limits) == 1
        await router.clock.advance(20)
        await router.generation.Generate(ask())
        assert (await refused(router.generation.Generate(ask()))).reason == "RATE_LIMITED", "the default's burst is 1"
        error = await refused(
            stub.SetTenantLimits(
                pb.SetTenantLimitsRequest(
                    limits=pb.TenantLimits(requests_per_minute=1_000_001, concurrent_requests=100_001)
                )
            )
        )
        assert [violation.field.removeprefix("limits.") for violation in error.violations] == [
            "tenant", "requests_per_minute", "concurrent_requests",
        ]  # fmt: skip


async def test_tokens_and_limits_outlive_a_restart(tmp_path: Path, engine: FakeEngine) -> None:
    async with guarded(tmp_path, engine) as (_, root):
        secret = await create(root, tenant="acme")
        await root.SetTenantLimits(
            pb.SetTenantLimitsRequest(limits=pb.TenantLimits(tenant="acme", requests_per_minute=6))
        )
    async with guarded(tmp_path, engine) as (callers, _):
        shop = await callers.by(secret)
        await shop.Generate(ask())
        assert (await refused(shop.Generate(ask()))).reason == "RATE_LIMITED"

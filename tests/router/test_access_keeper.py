"""Tokens and limits of tenants are in force at once, on every router, through outages and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.router.v1 import access_pb2_grpc

from common.errors import PithError, from_rpc_error
from router.convert import timestamp
from router.store.database import Database, StoreUnavailable
from tests.router.fake_engine import FakeEngine, delta, stall
from tests.router.guarded import create, guarded, pb, refused, revoke, tokens_file, unknown
from tests.router.running import ask, running


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

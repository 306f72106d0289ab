"""Tokens are made, listed and revoked, and say who may call the router and for whom."""

from __future__ import annotations

import base64
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from pith.common.v1 import text_pb2
from pith.router.v1 import access_pb2_grpc, generation_pb2
from structlog.testing import capture_logs

from common.auth import Authenticator, Role
from common.clock import ManualClock
from common.config import ServiceConfig
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from router.convert import timestamp
from router.services import access
from router.services.access import AccessService
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from tests.router.fake_engine import FakeEngine
from tests.router.guarded import CLIENT, create, guarded, pb, refused, revoke
from tests.router.running import ask, running


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


async def test_without_a_tokens_file_a_router_stays_open_and_says_so(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, {"e1": engine}) as router:
        stub: Any = access_pb2_grpc.AccessStub(router.channel)
        with capture_logs() as logs:
            await create(stub)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "a token was made, but without tokens_file every caller is an admin"
        ]
        await router.generation.Generate(ask())

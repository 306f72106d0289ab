"""A whole router that asks for tokens, and callers by theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from pith.router.v1 import (
    access_pb2,
    access_pb2_grpc,
    feedback_pb2_grpc,
    generation_pb2_grpc,
    policies_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)

from common.errors import PithError, from_rpc_error
from common.grpc_client import connect
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, running

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

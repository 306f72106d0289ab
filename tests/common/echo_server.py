"""A service made up for the tests of the server, and what it is like to be its client."""

from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from io import StringIO
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from common.auth import Role, TokenEntry
from common.grpc_server import GrpcServer
from common.metrics import Metrics


def _make_service() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="pith_test/echo.proto", package="pith_test", syntax="proto3")
    note = file.message_type.add(name="Note")
    note.field.add(name="text", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    service = file.service.add(name="Echo")
    for name, streams in (("Say", False), ("Later", False), ("Count", True), ("Watch", True)):
        service.method.add(
            name=name, input_type=".pith_test.Note", output_type=".pith_test.Note", server_streaming=streams
        )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("pith_test.Echo")


ECHO = _make_service()
Note: Any = message_factory.GetMessageClass(ECHO.methods_by_name["Say"].input_type)
ROLES = {"Say": {Role.CLIENT}, "Later": {Role.CLIENT}, "Count": {Role.CLIENT}, "Watch": {Role.ENGINE}}
SAY = "/pith_test.Echo/Say"

Handler = Callable[[Any, Any], Awaitable[Any]]


class Echo:
    """Each test puts in the handlers that it is about."""

    def __init__(self, say: Handler | None = None, count: Any = None, watch: Any = None) -> None:
        if say is not None:
            self._say = say
        if count is not None:
            self._count = count
        if watch is not None:
            self._watch = watch

    async def Say(self, request: Any, context: Any) -> Any:
        return await self._say(request, context)

    async def Count(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for note in self._count(request, context):
            yield note

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for note in self._watch(request, context):
            yield note

    async def _say(self, request: Any, context: Any) -> Any:
        return Note(text=request.text)


class Served:
    def __init__(self, server: GrpcServer, channel: grpc.aio.Channel, metrics: Metrics, log: StringIO) -> None:
        self.server = server
        self.channel = channel
        self.log = log
        self._metrics = metrics
        self.say = self._unary("Say")
        self.later = self._unary("Later")
        self.count = self._stream("Count")
        self.watch = self._stream("Watch")

    def metrics(self) -> str:
        return generate_latest(self._metrics.registry).decode()

    def handled(self, method: str, code: str) -> float:
        labels = {"method": f"/pith_test.Echo/{method}", "code": code}
        return self._metrics.registry.get_sample_value("pith_grpc_requests_total", labels) or 0.0

    def in_flight(self, method: str) -> float | None:
        return self._metrics.registry.get_sample_value(
            "pith_grpc_requests_in_flight", {"method": f"/pith_test.Echo/{method}"}
        )

    async def failure(self, call: Awaitable[Any]) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        return failed.value

    def _unary(self, name: str) -> Any:
        return self.channel.unary_unary(
            f"/pith_test.Echo/{name}",
            request_serializer=Note.SerializeToString,
            response_deserializer=Note.FromString,
        )

    def _stream(self, name: str) -> Any:
        return self.channel.unary_stream(
            f"/pith_test.Echo/{name}",
            request_serializer=Note.SerializeToString,
            response_deserializer=Note.FromString,
        )


Serve = Callable[..., Awaitable[Served]]


async def health_of(served: Served, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(served.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(reply.status)


def token_entry(token: str, role: Role) -> TokenEntry:
    return TokenEntry(sha256=sha256(token.encode()).hexdigest(), role=role, tenant="acme", name=f"{role}-1")

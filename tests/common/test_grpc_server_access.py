"""Who is let in, and what anyone may ask: tokens and roles, health, reflection."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.auth import Role, current_request
from common.errors import from_rpc_error
from tests.common.echo_server import SAY, Echo, Note, Serve, health_of, token_entry


async def test_tokens_decide_who_may_call(serve: Serve) -> None:
    principals = []

    async def say(request: Any, context: Any) -> Any:
        principals.append(current_request().principal)  # type: ignore[union-attr]
        return Note()

    tokens = [token_entry("c", Role.CLIENT), token_entry("e", Role.EVALUATOR), token_entry("a", Role.ADMIN)]
    served = await serve(Echo(say), tokens)

    def as_(token: str) -> Any:
        return served.say(Note(), metadata=(("authorization", f"Bearer {token}"),))

    assert (await served.failure(served.say(Note()))).code() is grpc.StatusCode.UNAUTHENTICATED
    error = from_rpc_error(await served.failure(as_("wrong")))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    error = from_rpc_error(await served.failure(as_("e")))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.metadata == {"role": "evaluator", "needed": "admin, client"}
    assert principals == []
    await as_("c")
    await as_("a")
    assert [(p.role, p.tenant) for p in principals] == [(Role.CLIENT, "acme"), (Role.ADMIN, "acme")]


async def test_the_token_is_checked_before_the_bytes_are_decoded(serve: Serve) -> None:
    served = await serve(Echo(), [token_entry("c", Role.CLIENT)])
    failed = await served.failure(served.channel.unary_unary(SAY)(b"\xff\xff"))
    assert failed.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_reflection_ask_for_no_token(serve: Serve) -> None:
    served = await serve(Echo(), [token_entry("c", Role.CLIENT)])
    assert await health_of(served) == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    reply = await call.read()
    names = {service.name for service in reply.list_services_response.service}
    assert {"pith_test.Echo", "grpc.health.v1.Health"} <= names


async def test_reflection_can_be_turned_off(serve: Serve) -> None:
    served = await serve(Echo(), reflection=False)
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert (await served.failure(call.read())).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_says_whether_each_service_serves(serve: Serve) -> None:
    served = await serve(Echo())
    statuses = health_pb2.HealthCheckResponse
    assert await health_of(served, "pith_test.Echo") == statuses.SERVING
    await served.server.set_serving(False)
    assert await health_of(served, "pith_test.Echo") == statuses.NOT_SERVING
    assert await health_of(served) == statuses.NOT_SERVING

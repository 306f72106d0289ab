"""One call's way through a server: what interceptors would do in a chain, which costs a grpc.aio server a third of
its rate. Request id, caller and role, deadline, metrics, access log, and errors with details.
"""

import asyncio
import inspect
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from common.auth import REQUEST_ID_KEY, Authenticator, Principal, RequestContext, Role, enter_request
from common.config import ServiceConfig
from common.errors import (
    STATUS_DETAILS_KEY,
    PithError,
    deadline_exceeded,
    internal,
    permission_denied,
    to_status,
    unavailable,
    undecodable,
)
from common.metrics import Metrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}").fullmatch
_ANONYMOUS = Principal("anonymous", Role.CLIENT, "")
# A client's own timer fires before the server's and cancels the call, so a call cancelled this close to its
# deadline is counted as DEADLINE_EXCEEDED.
_DEADLINE_SLACK_SECONDS = 0.05


@dataclass
class Door:
    """What all calls of a server have to pass, and what it knows of those inside.

    Attributes:
        draining: A drain has begun: no more watches are let in.
        closed: No calls are.
        watches: The task of each, and what ends it.
    """

    config: ServiceConfig
    auth: Authenticator
    metrics: Metrics
    # Bound at once: a logger that is not looks itself up at every line.
    log: Any = field(default_factory=lambda: structlog.get_logger("grpc").bind())
    draining: bool = False
    closed: bool = False
    watches: dict[asyncio.Task[Any] | None, asyncio.Timeout] = field(default_factory=dict)


class Rpc:
    """One RPC: what is constant about it, and the way through the wrapper that each call takes."""

    def __init__(
        self,
        door: Door,
        method: MethodDescriptor,
        handler: Callable[[Message, Any], Any],
        roles: Collection[Role] | None,
        watch: bool,
    ) -> None:
        self.door = door
        self.handler = handler
        self.generator = inspect.isasyncgenfunction(handler)
        self.roles = None if roles is None else frozenset({*roles, Role.ADMIN})
        self.watch = watch
        self.name = f"/{method.containing_service.full_name}/{method.name}"
        self.request_type = message_factory.GetMessageClass(method.input_type)
        self.metrics = door.metrics.rpc(self.name)

    async def unary(self, raw: bytes, context: Context) -> bytes:
        call = _Call(self, context)
        try:
            async with asyncio.timeout(call.admit()) as call.timeout:
                reply = encode(await self.handler(call.decode(raw), context))
        except BaseException as error:
            await call.fail(error)
        call.finish(context.code() or grpc.StatusCode.OK)
        return reply

    async def stream(self, raw: bytes, context: Context) -> None:
        call = _Call(self, context)
        try:
            async with asyncio.timeout(call.admit()) as call.timeout:
                task = asyncio.current_task()
                if self.watch:
                    self.door.watches[task] = call.timeout
                call.replies = replies = _Replies(context)
                try:
                    await self._relay(call.decode(raw), context, replies)
                finally:
                    self.door.watches.pop(task, None)
        except BaseException as error:
            await call.fail(error)
        call.finish(context.code() or grpc.StatusCode.OK)

    async def _relay(self, request: Message, context: Context, replies: "_Replies") -> None:
        if not self.generator:
            await self.handler(request, replies)
            return
        # A cancel while a message is written reaches the generator only by closing it; left to the garbage
        # collector, its `finally` (abort the engine, free the cache) would run at some later time.
        async with aclosing(self.handler(request, context)) as messages:
            async for message in messages:
                await replies.write(encode(message))


class _Replies:
    """The messages of a stream on their way out; to a handler that writes them itself, all of its context.

    gRPC knows that the initial metadata are out once the first write has returned. A status sent before, because a
    drain or a deadline cut that write short, would send them again: gRPC refuses, and the client is told nothing.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._first: asyncio.Future[None] | None = None

    async def write(self, message: Any) -> None:
        if self._first is not None:
            await self._context.write(message)
            return
        self._first = asyncio.ensure_future(self._context.write(message))
        # Where nobody waits any more, its failure is nobody's concern.
        self._first.add_done_callback(lambda first: first.cancelled() or first.exception())
        await asyncio.shield(self._first)

    async def begun(self) -> None:
        """Returns once a status may be sent."""
        if self._first is not None:
            await asyncio.wait({self._first})


class _Call:
    """One call on its way through the wrapper."""

    def __init__(self, rpc: Rpc, context: Context) -> None:
        self.began = time.monotonic()
        self.rpc = rpc
        self.context = context
        self.deadline: float | None = None
        self.timeout: asyncio.Timeout | None = None
        self.replies: _Replies | None = None
        self.principal = _ANONYMOUS
        self.notes: Mapping[str, str] = {}
        self.metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        given = self.metadata.get(REQUEST_ID_KEY)
        self.request_id = given if isinstance(given, str) and _REQUEST_ID(given) else secrets.token_hex(16)
        rpc.metrics.started()
        context.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id),))

    def admit(self) -> float | None:
        """Lets the caller in or raises; returns after how many seconds the wrapper must end the call.

        None where gRPC does that, at the client's own deadline, or for a watch without one.
        """
        rpc = self.rpc
        if rpc.door.closed or (rpc.watch and rpc.door.draining):
            raise _draining()
        if rpc.roles is not None:
            self.principal = rpc.door.auth.authenticate(self.metadata)
            if self.principal.role not in rpc.roles:
                raise permission_denied(self.principal.role, rpc.roles)
        config = rpc.door.config
        asked: float | None = self.context.time_remaining()
        allowed = asked
        if not rpc.watch:
            allowed = min(config.default_deadline_seconds if asked is None else asked, config.max_deadline_seconds)
        if allowed is not None:
            self.deadline = self.began + allowed
        request = RequestContext(self.request_id, self.principal, self.deadline)
        self.notes = request.notes
        enter_request(request)
        if asked == 0:
            raise deadline_exceeded()
        return None if allowed == asked else allowed

    def decode(self, raw: bytes) -> Message:
        try:
            return self.rpc.request_type.FromString(raw)
        except DecodeError:
            raise undecodable(self.rpc.request_type.DESCRIPTOR.full_name) from None

    async def fail(self, error: BaseException) -> NoReturn:
        """Ends the call with the status that `error` deserves."""
        if isinstance(error, asyncio.CancelledError):
            late = self.deadline is not None and time.monotonic() > self.deadline - _DEADLINE_SLACK_SECONDS
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
            raise error
        if isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
            # The handler's own abort, or the client went away while a message was being written.
            self.finish(self.context.code() or grpc.StatusCode.CANCELLED)
            raise error
        cause = None
        if isinstance(error, TimeoutError) and self.timeout is not None and self.timeout.expired():
            told = _draining() if self.rpc.watch else deadline_exceeded()
        elif isinstance(error, PithError):
            told = error
        else:
            told = internal(f"internal error; the log has it under request id {self.request_id}")
            cause = error
        self.finish(told.code, cause, told)
        status = to_status(told)
        trailers = ((STATUS_DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, self.request_id))
        if self.replies is not None:
            await self.replies.begun()
        await self.context.abort(told.code, status.message, trailers)

    def finish(self, code: grpc.StatusCode, cause: Exception | None = None, told: PithError | None = None) -> None:
        """Counts and logs the call, before its caller learns the outcome."""
        seconds = time.monotonic() - self.began
        rpc = self.rpc
        rpc.metrics.finished(code, seconds)
        log = rpc.door.log
        write = log.error if cause is not None else log.debug if rpc.roles is None else log.info
        # Names of fields and of reasons only: what was said stays between caller and service.
        why = {} if told is None else {"reason": told.reason, "fields": [fault.field for fault in told.violations]}
        write(
            "call",
            method=rpc.name,
            code=code.name,
            seconds=round(seconds, 6),
            request_id=self.request_id,
            tenant=self.principal.tenant,
            caller=self.principal.name,
            exc_info=cause,
            **self.notes,
            **why,
        )


def encode(reply: Any) -> bytes:
    return reply if type(reply) is bytes else reply.SerializeToString()


def _draining() -> PithError:
    return unavailable("DRAINING", "the service is draining")

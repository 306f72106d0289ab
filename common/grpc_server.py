"""A gRPC server: one wrapper around each handler, health, reflection, limits, and a drain that loses nothing.

The wrapper does in one place what interceptors would do in a chain, which costs a grpc.aio server a third of
its rate: request id, caller and role, deadline, metrics, access log, and errors with details.
"""

import asyncio
import inspect
import re
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, suppress
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

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
    unimplemented,
)
from common.metrics import Metrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}").fullmatch
_ANONYMOUS = Principal("anonymous", Role.CLIENT, "")
# A client's own timer fires before the server's and cancels the call, so a call cancelled this close to its
# deadline is counted as DEADLINE_EXCEEDED.
_DEADLINE_SLACK_SECONDS = 0.05
_WATCH_END_SECONDS = 1.0


class GrpcServer:
    """A server of one or more services.

        server = GrpcServer(config, Authenticator.from_file(config.tokens_file), metrics)
        server.add(GenerationService(...), generation_pb2.DESCRIPTOR.services_by_name["Generation"],
                   roles={"Generate": {Role.CLIENT}, "StreamGenerate": {Role.CLIENT}})
        port = await server.start()
        await server.set_serving(True)
        await run_until_signalled(server)

    A handler is a method of a servicer: `async def M(self, request, context) -> Response`, or for a stream an
    async generator, which cleans up in `finally`. A response may be the encoded bytes of its message: they go
    out as they are. It raises PithError for what the caller should know; anything else becomes INTERNAL, and
    only the log has its cause. `current_request()` of common.auth tells it the request id, the caller and the
    deadline; `context` is grpc.aio's own.
    """

    def __init__(self, config: ServiceConfig, auth: Authenticator, metrics: Metrics) -> None:
        self._config = config
        self._auth = auth
        self._metrics = metrics
        self._log = structlog.get_logger("grpc")
        self._services: list[str] = []
        self._watches: dict[asyncio.Task[Any] | None, asyncio.Timeout] = {}
        self._draining = False
        self._closed = False
        self._hurried = asyncio.Event()
        self._lag_watch: asyncio.Task[None] | None = None
        self._port: int | None = None
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", config.max_message_bytes),
                # A second process on the same port is a mistake, not a second worker.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
            ]
        )
        self._health = health.aio.HealthServicer()
        checks = health_pb2.DESCRIPTOR.services_by_name["Health"]
        self.add(self._health, checks, roles={m.name: None for m in checks.methods}, watches={"Watch"})

    def add(
        self,
        servicer: object,
        descriptor: ServiceDescriptor,
        *,
        roles: Mapping[str, Collection[Role] | None],
        watches: Collection[str] = (),
    ) -> None:
        """Registers a service; before `start`.

        Args:
            servicer: has a method for each RPC; one that is missing, or left as in the generated base class,
                answers UNIMPLEMENTED.
            descriptor: such as `generation_pb2.DESCRIPTOR.services_by_name["Generation"]`.
            roles: who may call each RPC, besides ADMIN; None asks for no token.
            watches: streams that last as long as their client wants: no deadline is set for them, and a drain
                ends them with UNAVAILABLE instead of waiting.
        Raises:
            ValueError: an RPC without an entry in `roles`, or an entry for no RPC.
            TypeError: a handler that is neither a coroutine function nor an async generator function.
        """
        names = {method.name for method in descriptor.methods}
        if names != set(roles):
            raise ValueError(f"{descriptor.full_name}: roles must name each of {sorted(names)}, not {sorted(roles)}")
        if not names >= set(watches):
            raise ValueError(f"{descriptor.full_name}: watches {sorted(watches)} must be among {sorted(names)}")
        handlers = {
            method.name: self._wrap(servicer, method, roles[method.name], method.name in watches)
            for method in descriptor.methods
        }
        generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self._services.append(descriptor.full_name)

    async def start(self) -> int:
        """Listens, with health NOT_SERVING until `set_serving`; returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        if self._config.reflection:
            reflection.enable_server_reflection([*self._services, reflection.SERVICE_NAME], self._server)
        try:
            # TLS would be chosen here.
            self._port = self._server.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.listen}") from error
        await self.set_serving(False)
        await self._server.start()
        self._lag_watch = asyncio.create_task(self._metrics.watch_event_loop())
        self._log.info("listening", address=self._config.listen, port=self._port)
        return self._port

    async def set_serving(self, serving: bool) -> None:
        """Sets health of the server ("") and of each of its services; ignored once a drain has begun."""
        statuses = health_pb2.HealthCheckResponse
        for name in ("", *self._services):
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    async def drain(self, grace_seconds: float | None = None) -> None:
        """Stops: NOT_SERVING, a delay for load balancers, no new calls, time for those in flight.

        Args:
            grace_seconds: until calls in flight are cancelled; default `drain_seconds`. Calling again with
                less cuts it short.
        """
        if not self._draining:
            self._draining = True
            # Without a delay, nothing that comes from here on could still be meant for this server.
            self._closed = not self._config.drain_delay_seconds
            self._log.info("draining")
            await self._health.enter_graceful_shutdown()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.drain_delay_seconds):
                    await self._hurried.wait()
            self._closed = True
            now = asyncio.get_running_loop().time()
            ending = {task for task in self._watches if task is not None}
            for watch in self._watches.values():
                watch.reschedule(now)
            if ending:
                # Their status has to be on its way before the port closes; whoever does not read it is not waited for.
                await asyncio.wait(ending, timeout=_WATCH_END_SECONDS)
        else:
            self._hurried.set()
        await self._server.stop(self._config.drain_seconds if grace_seconds is None else grace_seconds)
        if self._lag_watch is not None:
            lag_watch, self._lag_watch = self._lag_watch, None
            lag_watch.cancel()
            await asyncio.wait({lag_watch})
            self._log.info("stopped")

    def _wrap(
        self, servicer: object, method: MethodDescriptor, roles: Collection[Role] | None, watch: bool
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        if method.client_streaming:
            raise TypeError(f"{method.full_name}: streams of requests are not supported")
        handler = getattr(servicer, method.name, None)
        if not (inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)):
            if handler is not None and not handler.__module__.endswith("_pb2_grpc"):
                raise TypeError(f"{method.full_name}: {handler!r} must be async")
            handler = _not_yet(method.name)
        rpc = _Rpc(self, method, handler, roles, watch)
        # Decoding and encoding are the wrapper's: what fails inside grpc reaches the caller as UNKNOWN with a
        # Python exception's text. Health.Watch writes messages itself, hence a serializer all the same.
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(rpc.stream, response_serializer=_encode)
        return grpc.unary_unary_rpc_method_handler(rpc.unary)


class _Rpc:
    """One RPC: what is constant about it, and the way through the wrapper that each call takes."""

    def __init__(
        self,
        server: GrpcServer,
        method: MethodDescriptor,
        handler: Callable[[Message, Context], Any],
        roles: Collection[Role] | None,
        watch: bool,
    ) -> None:
        self.server = server
        self.handler = handler
        self.generator = inspect.isasyncgenfunction(handler)
        self.roles = None if roles is None else frozenset({*roles, Role.ADMIN})
        self.watch = watch
        self.name = f"/{method.containing_service.full_name}/{method.name}"
        self.request_type = message_factory.GetMessageClass(method.input_type)
        self.metrics = server._metrics.rpc(self.name)

    async def unary(self, raw: bytes, context: Context) -> bytes:
        call = _Call(self, context)
        try:
            async with asyncio.timeout(call.admit()) as call.timeout:
                reply = _encode(await self.handler(call.decode(raw), context))
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
                    self.server._watches[task] = call.timeout
                try:
                    await self._relay(call.decode(raw), context)
                finally:
                    self.server._watches.pop(task, None)
        except BaseException as error:
            await call.fail(error)
        call.finish(context.code() or grpc.StatusCode.OK)

    async def _relay(self, request: Message, context: Context) -> None:
        if not self.generator:
            await self.handler(request, context)
            return
        # A cancel while a message is written reaches the generator only by closing it; left to the garbage
        # collector, its `finally` (abort the engine, free the cache) would run at some later time.
        async with aclosing(self.handler(request, context)) as replies:
            async for reply in replies:
                await context.write(_encode(reply))


class _Call:
    """One call on its way through the wrapper."""

    def __init__(self, rpc: _Rpc, context: Context) -> None:
        self.began = time.monotonic()
        self.rpc = rpc
        self.context = context
        self.deadline: float | None = None
        self.timeout: asyncio.Timeout | None = None
        self.principal = _ANONYMOUS
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
        if rpc.server._closed or (rpc.watch and rpc.server._draining):
            raise _draining()
        if rpc.roles is not None:
            self.principal = rpc.server._auth.authenticate(self.metadata)
            if self.principal.role not in rpc.roles:
                raise permission_denied(self.principal.role, rpc.roles)
        config = rpc.server._config
        asked: float | None = self.context.time_remaining()
        allowed = asked
        if not rpc.watch:
            allowed = min(config.default_deadline_seconds if asked is None else asked, config.max_deadline_seconds)
        if allowed is not None:
            self.deadline = self.began + allowed
        enter_request(RequestContext(self.request_id, self.principal, self.deadline))
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
        await self.context.abort(told.code, status.message, trailers)

    def finish(self, code: grpc.StatusCode, cause: Exception | None = None, told: PithError | None = None) -> None:
        """Counts and logs the call, before its caller learns the outcome."""
        seconds = time.monotonic() - self.began
        rpc = self.rpc
        rpc.metrics.finished(code, seconds)
        log = rpc.server._log
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
            **why,
        )


def _encode(reply: Any) -> bytes:
    return reply if type(reply) is bytes else reply.SerializeToString()


def _draining() -> PithError:
    return unavailable("DRAINING", "the service is draining")


def _not_yet(name: str) -> Callable[[Message, Context], Awaitable[NoReturn]]:
    async def handler(_request: Message, _context: Context) -> NoReturn:
        raise unimplemented(name)

    return handler


async def run_until_signalled(server: GrpcServer) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short."""
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, lambda: (second if first.is_set() else first).set())
    # The handlers stay: a signal that comes while the service puts its affairs in order must not kill it.
    await first.wait()
    drain = asyncio.create_task(server.drain())
    hurry = asyncio.create_task(second.wait())
    await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        await server.drain(grace_seconds=0)
    await drain
    hurry.cancel()

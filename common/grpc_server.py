"""A gRPC server: one wrapper around each handler, health, reflection, limits, TLS, and a drain that loses nothing."""

import asyncio
import gc
import inspect
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from common.auth import Authenticator, Role
from common.config import ServiceConfig
from common.errors import unimplemented
from common.grpc_call import Context, Door, Rpc, encode
from common.metrics import Metrics
from common.server_tls import ServerTls

__all__ = ["Context", "GrpcServer", "run_until_signalled"]

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
        self._door = Door(config, auth, metrics)
        self._metrics = metrics
        self._log = self._door.log
        self._services: list[str] = []
        self._hurried = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._port: int | None = None
        self._tls: ServerTls | None = None
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
            CertificateError: the certificate or its key cannot be used any more.
        """
        if self._config.reflection:
            reflection.enable_server_reflection([*self._services, reflection.SERVICE_NAME], self._server)
        try:
            self._port = self._open_port()
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.listen}") from error
        await self.set_serving(False)
        await self._server.start()
        watches = (self._metrics.watch_event_loop(), self._door.auth.watch())
        self._background = [asyncio.create_task(watch) for watch in watches]
        self._log.info("listening", address=self._config.listen, port=self._port, tls=self._tls is not None)
        return self._port

    def _open_port(self) -> int:
        config = self._config
        if config.tls_certificate is None or config.tls_key is None:
            return self._server.add_insecure_port(config.listen)
        self._tls = tls = ServerTls(config.tls_certificate, config.tls_key, config.tls_client_ca)
        expiry = self._metrics.gauge(
            "tls_certificate_expiry_timestamp",
            "When the certificate that is served expires, Unix time.",
            unit="seconds",
        )
        expiry.set_function(lambda: tls.expires_at)
        return self._server.add_secure_port(config.listen, tls.credentials())

    async def set_serving(self, serving: bool) -> None:
        """Sets health of the server ("") and of each of its services; ignored once a drain has begun."""
        statuses = health_pb2.HealthCheckResponse
        for name in ("", *self._services):
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    @property
    def draining(self) -> bool:
        """A drain has begun."""
        return self._door.draining

    async def drain(self, grace_seconds: float | None = None) -> None:
        """Stops: NOT_SERVING, a delay for load balancers, no new calls, time for those in flight.

        Args:
            grace_seconds: until calls in flight are cancelled; default `drain_seconds`. Calling again with
                less cuts it short.
        """
        if not self._door.draining:
            self._door.draining = True
            # Without a delay, nothing that comes from here on could still be meant for this server.
            self._door.closed = not self._config.drain_delay_seconds
            self._log.info("draining")
            await self._health.enter_graceful_shutdown()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.drain_delay_seconds):
                    await self._hurried.wait()
            self._door.closed = True
            now = asyncio.get_running_loop().time()
            ending = {task for task in self._door.watches if task is not None}
            for watch in self._door.watches.values():
                watch.reschedule(now)
            if ending:
                # Their status has to be on its way before the port closes; whoever does not read it is not waited for.
                await asyncio.wait(ending, timeout=_WATCH_END_SECONDS)
        else:
            self._hurried.set()
        await self._server.stop(self._config.drain_seconds if grace_seconds is None else grace_seconds)
        if self._background:
            background, self._background = self._background, []
            for task in background:
                task.cancel()
            await asyncio.wait(background)
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
        rpc = Rpc(self._door, method, handler, roles, watch)
        # Decoding and encoding are the wrapper's: what fails inside grpc reaches the caller as UNKNOWN with a
        # Python exception's text. Health.Watch writes messages itself, hence a serializer all the same.
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(rpc.stream, response_serializer=encode)
        return grpc.unary_unary_rpc_method_handler(rpc.unary)


def _not_yet(name: str) -> Callable[[Message, Context], Awaitable[NoReturn]]:
    async def handler(_request: Message, _context: Context) -> NoReturn:
        raise unimplemented(name)

    return handler


async def run_until_signalled(server: GrpcServer) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short."""
    # What there is by now stays: a collection that walks through all modules holds the event loop for some 80 ms.
    gc.collect()
    gc.freeze()
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

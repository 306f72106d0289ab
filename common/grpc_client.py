"""The one place where channels are made: limits, keepalive, retries, and the metadata every call carries."""

import json
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from common.auth import REQUEST_ID_KEY, TENANT_KEY, current_request
from common.client_tls import ClientTls

Metadatum = tuple[str, str | bytes]


def connect(
    target: str,
    *,
    token: str | None = None,
    tenant: str | None = None,
    tls: ClientTls | None = None,
    max_attempts: int = 3,
    max_message_bytes: int = 16 << 20,
) -> grpc.aio.Channel:
    """A channel for generated stubs. It connects when first used, and again when the connection was lost.

    Each call carries the id of the request in hand (`common.auth.current_request`), if there is one.
    Deadlines are the caller's: pass `timeout` with each call.

    Args:
        target: HOST:PORT, unix:PATH or a gRPC name such as dns:///router:7600 (balanced over all addresses).
        token: bearer token.
        tenant: the tenant to act for at a service that asks for no token.
        tls: None: in the clear, the token too.
        max_attempts: tries of a call that fails with UNAVAILABLE before its first message, 1 to 5.
        max_message_bytes: largest message, each way.
    Raises:
        CertificateError: a file of `tls` cannot be used.
    """
    options = _options(max_attempts, max_message_bytes)
    if tls is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        channel = grpc.aio.secure_channel(target, tls.credentials(), options=[*options, *tls.options])
    fixed: list[Metadatum] = []
    if token is not None:
        fixed.append(("authorization", f"Bearer {token}"))
    if tenant is not None:
        fixed.append((TENANT_KEY, tenant))
    return _Channel(channel, tuple(fixed))


def _options(max_attempts: int, max_message_bytes: int) -> list[tuple[str, Any]]:
    service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if max_attempts > 1:
        service_config["methodConfig"] = [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": max_attempts,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.enable_retries", int(max_attempts > 1)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Finds a dead peer within 40 s while calls are open; the server allows pings this often.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC's own 120 s would let a peer that is back wait long to be found.
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


class _Channel(grpc.aio.Channel):
    """Adds the metadata in the call itself: an interceptor would wrap every call in a task of its own."""

    def __init__(self, inner: grpc.aio.Channel, fixed: tuple[Metadatum, ...]) -> None:
        self._inner = inner
        self._fixed = fixed

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_metadata(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_metadata(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_metadata(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_metadata(self._inner.stream_stream(*args, **kwargs))

    def _with_metadata(self, multicallable: Any) -> Any:
        fixed = self._fixed

        def call(*args: Any, metadata: Iterable[Metadatum] | None = None, **kwargs: Any) -> Any:
            carried = fixed if metadata is None else (*fixed, *metadata)
            request = current_request()
            if request is not None and all(key != REQUEST_ID_KEY for key, _ in carried):
                carried = (*carried, (REQUEST_ID_KEY, request.request_id))
            return multicallable(*args, metadata=carried or None, **kwargs)

        return call

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

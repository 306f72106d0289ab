"""Prometheus metrics of a service, on a port of their own."""

import asyncio
import threading
import time
from collections.abc import Sequence
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

_LATENCY_BUCKETS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip


class Metrics:
    """The registry of one service: what gRPC and the event loop do, and what the service itself counts.

    Args:
        service: "router", "engine" or "evaluator"; the service's own metrics are named `pith_<service>_…`.
    """

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self._service = service
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        ProcessCollector(namespace="pith", registry=self.registry)
        self._handled = Counter("pith_grpc_requests", "Finished calls.", ("method", "code"), registry=self.registry)
        self._latency = Histogram(
            "pith_grpc_request_duration",
            "Wall time in the handler; a stream's from first to last message.",
            ("method",),
            unit="seconds",
            buckets=_LATENCY_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "pith_grpc_requests_in_flight", "Calls being handled.", ("method",), registry=self.registry
        )
        self._loop_lag = Gauge(
            "pith_event_loop_lag",
            "How late the event loop ran a timer that was due: the wait every call has before its handler.",
            unit="seconds",
            registry=self.registry,
        )

    def rpc(self, method: str) -> "RpcMetrics":
        """The metrics of one RPC, by full name ("/pith.router.v1.Generation/Generate"), looked up once."""
        return RpcMetrics(method, self._handled, self._latency.labels(method), self._in_flight.labels(method))

    def counter(self, name: str, help: str, *, unit: str, labels: Sequence[str] = ()) -> Counter:
        """A counter named `pith_<service>_<name>_<unit>_total`, such as name "served", unit "tokens"."""
        return Counter(name, help, labels, namespace="pith", subsystem=self._service, unit=unit, registry=self.registry)

    def gauge(self, name: str, help: str, *, unit: str, labels: Sequence[str] = ()) -> Gauge:
        """A gauge named `pith_<service>_<name>_<unit>`."""
        return Gauge(name, help, labels, namespace="pith", subsystem=self._service, unit=unit, registry=self.registry)

    def histogram(
        self, name: str, help: str, *, unit: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        """A histogram named `pith_<service>_<name>_<unit>`; `buckets` are upper bounds in that unit."""
        return Histogram(
            name,
            help,
            labels,
            namespace="pith",
            subsystem=self._service,
            unit=unit,
            buckets=buckets,
            registry=self.registry,
        )

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Serves /metrics from a thread; returns the port, which 0 leaves to the system.

        Raises:
            OSError: the port is taken, or not ours to take.
        """
        try:
            self._server = start_http_server(port, host, self.registry)
        except OSError as fault:
            raise OSError(fault.errno, f"metrics_port {port}: {fault.strerror}") from None
        return self._server[0].server_port

    def close(self) -> None:
        """Stops serving; harmless when it does not."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join()

    async def watch_event_loop(self, period_seconds: float = 0.25) -> None:
        """Measures the running loop's lag until cancelled."""
        while True:
            due = time.monotonic() + period_seconds
            await asyncio.sleep(period_seconds)
            self._loop_lag.set(max(0.0, time.monotonic() - due))


class RpcMetrics:
    """Count by code, latency and calls in flight of one RPC."""

    __slots__ = ("_by_code", "_handled", "_in_flight", "_latency", "_method")

    def __init__(self, method: str, handled: Counter, latency: Histogram, in_flight: Gauge) -> None:
        self._method = method
        self._handled = handled
        self._latency = latency
        self._in_flight = 0
        in_flight.set_function(lambda: self._in_flight)
        self._by_code: dict[grpc.StatusCode, Counter] = {}

    def started(self) -> None:
        self._in_flight += 1

    def finished(self, code: grpc.StatusCode, seconds: float) -> None:
        self._in_flight -= 1
        self._latency.observe(seconds)
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._handled.labels(self._method, code.name)
        counter.inc()

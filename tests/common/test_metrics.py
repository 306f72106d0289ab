"""Metrics: names carry their unit, and the page can be read over HTTP."""

import asyncio
import time
import urllib.request

import grpc
import pytest

from common.metrics import Metrics


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def test_a_service_counts_in_names_with_units() -> None:
    metrics = Metrics("router")
    metrics.counter("served", "Tokens of answers.", unit="tokens", labels=("tenant",)).labels("acme").inc(7)
    metrics.gauge("power", "Power of the engines.", unit="watts").set(250)
    metrics.histogram("plan_duration", "Time to solve a plan.", unit="seconds", buckets=(0.1, 1)).observe(0.5)
    port = metrics.serve(0)
    try:
        text = page(port)
    finally:
        metrics.close()
    assert 'pith_router_served_tokens_total{tenant="acme"} 7.0' in text
    assert "pith_router_power_watts 250.0" in text
    assert 'pith_router_plan_duration_seconds_bucket{le="0.1"} 0.0' in text
    assert 'pith_router_plan_duration_seconds_bucket{le="1.0"} 1.0' in text
    assert "pith_process_resident_memory_bytes" in text


def test_closing_frees_the_port_and_may_be_repeated() -> None:
    metrics = Metrics("router")
    port = metrics.serve(0)
    metrics.close()
    metrics.close()
    again = Metrics("router")
    assert again.serve(port) == port
    again.close()


def test_a_taken_port_is_an_error() -> None:
    first, second = Metrics("router"), Metrics("engine")
    port = first.serve(0)
    try:
        with pytest.raises(OSError, match=f"metrics_port {port}: .* in use"):
            second.serve(port)
    finally:
        first.close()


def test_a_call_is_counted_by_code_and_leaves_the_gauge() -> None:
    metrics = Metrics("router")
    rpc = metrics.rpc("/pith.router.v1.Generation/Generate")

    def sample(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"method": "/pith.router.v1.Generation/Generate", **labels})

    rpc.started()
    rpc.started()
    assert sample("pith_grpc_requests_in_flight") == 2
    rpc.finished(grpc.StatusCode.OK, 0.2)
    rpc.finished(grpc.StatusCode.NOT_FOUND, 0.3)
    assert sample("pith_grpc_requests_in_flight") == 0
    assert sample("pith_grpc_requests_total", code="OK") == 1
    assert sample("pith_grpc_requests_total", code="NOT_FOUND") == 1
    assert sample("pith_grpc_request_duration_seconds_sum") == pytest.approx(0.5)


def test_two_services_in_one_process_do_not_share_a_registry() -> None:
    for service in ("router", "router"):
        Metrics(service).counter("served", "Tokens.", unit="tokens")


async def test_a_blocked_event_loop_shows_as_lag() -> None:
    metrics = Metrics("router")
    watch = asyncio.create_task(metrics.watch_event_loop(period_seconds=0.01))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the fault that the gauge is for
    await asyncio.sleep(0.001)
    lag = metrics.registry.get_sample_value("pith_event_loop_lag_seconds")
    watch.cancel()
    assert lag is not None and lag >= 0.15

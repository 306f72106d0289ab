"""What the engine counts for Prometheus, beside what every service does."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from common.metrics import Metrics
from engine.engine import Load
from engine.request import Finished

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class DeviceTotals(Collector):
    """What the device has done since the start, at each scrape."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load

    def collect(self) -> Iterable[CounterMetricFamily]:
        load = self._load()
        seconds = CounterMetricFamily(
            "pith_engine_device_seconds", "Time in which steps ran, and in which none did.", labels=("state",)
        )
        seconds.add_metric(("busy",), load.busy_seconds)
        seconds.add_metric(("idle",), load.idle_seconds)
        joules = CounterMetricFamily(
            "pith_engine_idle_energy_joules", "Energy without steps, where known.", labels=("source",)
        )
        if load.idle_energy is not None:
            joules.add_metric((load.idle_energy.source,), load.idle_energy.joules)
        return seconds, joules


class EngineMetrics:
    """Tokens, energy and latencies of answers, and the load at each scrape."""

    def __init__(self, metrics: Metrics, load: Callable[[], Load]) -> None:
        self._answers = metrics.counter("finished", "Answers by how they ended.", unit="answers", labels=("reason",))
        self._prompt = metrics.counter("prompt", "Prompt tokens of finished answers.", unit="tokens")
        self._cached = metrics.counter("cached", "Prompt tokens that the cache had already.", unit="tokens")
        self._preempted = metrics.counter(
            "preempted", "Times that finished answers had given their blocks back.", unit="answers"
        )
        self._output = metrics.counter("output", "Output tokens of finished answers.", unit="tokens")
        self._energy = metrics.counter(
            "energy", "Energy of finished answers, where known.", unit="joules", labels=("source",)
        )
        self._queue = metrics.histogram(
            "queue", "From arrival to the first prefill step.", unit="seconds", buckets=_SECONDS
        )
        self._first_token = metrics.histogram(
            "first_token", "From arrival to the first output token.", unit="seconds", buckets=_SECONDS
        )
        for name, help_text, unit, read in (
            ("running", "Requests that decode.", "requests", lambda: load().running),
            ("waiting", "Requests that wait.", "requests", lambda: load().waiting),
            ("kv_cache_free", "Free blocks of the KV cache.", "blocks", lambda: load().free_blocks),
        ):
            metrics.gauge(name, help_text, unit=unit).set_function(read)
        metrics.registry.register(DeviceTotals(load))

    def finished(self, finished: Finished) -> None:
        self._answers.labels(finished.reason).inc()
        self._prompt.inc(finished.prompt_tokens)
        self._cached.inc(finished.cached_tokens)
        self._preempted.inc(finished.preemptions)
        own_tokens = finished.output_tokens - finished.resumed_tokens
        self._output.inc(own_tokens)
        self._queue.observe(finished.queue_seconds)
        if own_tokens:
            self._first_token.observe(finished.first_token_seconds)
        if finished.energy is not None:
            self._energy.labels(finished.energy.source).inc(finished.energy.joules)

"""The grid among the metrics: how old the intensity in force is, and how its live source does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from common.carbon.intensity import IntensityProvider
from common.carbon.polled import PolledIntensity
from common.clock import Clock


class IntensityMetrics(Collector):
    """Reads a provider when it is asked; does no I/O. What a declared grid cannot have is not there."""

    def __init__(self, intensities: IntensityProvider, clock: Clock) -> None:
        self._intensities = intensities
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        now = self._clock.now()
        age = GaugeMetricFamily(
            "pith_router_intensity_age_seconds",
            "Since the carbon intensity in force was observed; of an annual mean, since the last observation.",
        )
        age.add_metric((), self._intensities.current(now).age_seconds(now))
        families: Sequence[Metric] = (age,)
        if isinstance(self._intensities, PolledIntensity):
            outages = CounterMetricFamily(
                "pith_router_intensity_outages", "Outages of the live source of carbon intensity."
            )
            outages.add_metric((), self._intensities.outages)
            polls = CounterMetricFamily(
                "pith_router_intensity_polls",
                "Times that source was asked, by what came of it: ok, timeout, refused, limited, failed, malformed, "
                "stale.",
                labels=("result",),
            )
            for result, count in sorted(self._intensities.polls.items()):
                polls.add_metric((result,), count)
            families = (age, outages, polls)
        return families

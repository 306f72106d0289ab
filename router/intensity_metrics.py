"""The grid among the metrics: how old the intensity in force is, and how its live source does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from common.carbon.polled import PolledIntensity
from common.clock import Clock
from router.zones import Zones


class IntensityMetrics(Collector):
    """Reads providers when it is asked; does no I/O. What a declared grid cannot have is not there. Samples of the
    default grid have no label `zone`."""

    def __init__(self, zones: Zones, clock: Clock) -> None:
        self._zones = zones
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        now = self._clock.now()
        age = GaugeMetricFamily(
            "pith_router_intensity_age_seconds",
            "Since the carbon intensity in force was observed; of an annual mean, since the last observation.",
            labels=("zone",),
        )
        outages = CounterMetricFamily(
            "pith_router_intensity_outages", "Outages of the live source of carbon intensity.", labels=("zone",)
        )
        polls = CounterMetricFamily(
            "pith_router_intensity_polls",
            "Times that source was asked, by what came of it: ok, timeout, refused, limited, failed, malformed, stale.",
            labels=("result", "zone"),
        )
        for zone, provider in ((None, self._zones.default), *self._zones.by_zone.items()):
            # A family may have samples without one of its labels: those of the default.
            of: Sequence[str] = () if zone is None else (zone,)
            age.add_metric(of, provider.current(now).age_seconds(now))
            if isinstance(provider, PolledIntensity):
                outages.add_metric(of, provider.outages)
                for result, count in sorted(provider.polls.items()):
                    polls.add_metric((result, *of), count)
        return [family for family in (age, outages, polls) if family.samples]

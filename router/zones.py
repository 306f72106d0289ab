"""The grid zones that engines stand in: a provider of intensity for each, and one for engines that name none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from common.carbon.intensity import Intensity, IntensityProvider
from common.carbon.polled import PolledIntensity
from common.carbon.specification import provider_from_spec
from common.clock import Clock
from router.config import RouterConfig

LOOK: Final = timedelta(seconds=1)
"""How old a look at the intensities may be for choosing an engine: they change by the hour, requests come faster."""

log = structlog.get_logger("carbon")


class Zones:
    """Intensities by zone, all of one signal as far as their lines tell. The zone "" is the default's, which also
    answers for every zone that is not here.

    Args:
        clock: The service's.
    """

    def __init__(self, default: IntensityProvider, by_zone: Mapping[str, IntensityProvider], clock: Clock) -> None:
        self.default = default
        self._by_zone = dict(sorted(by_zone.items()))
        self._clock = clock
        self._looked_at = datetime.min.replace(tzinfo=UTC)
        self._seen: Mapping[str, Intensity | None] = {}

    @property
    def by_zone(self) -> Mapping[str, IntensityProvider]:
        """Without the default."""
        return self._by_zone

    def __contains__(self, zone: object) -> bool:
        """The default is not named."""
        return zone in self._by_zone

    def of(self, zone: str) -> IntensityProvider:
        return self._by_zone.get(zone, self.default)

    def current(self, zone: str) -> Intensity | None:
        """In force there now, or the last that is known; None where the provider fails, which no one should."""
        try:
            return self.of(zone).current(self._clock.now())
        except Exception as error:
            log.warning("no intensity", zone=zone, fault=str(error))
            return None

    def comparable(self, zones: Iterable[str]) -> Mapping[str, float] | None:
        """gCO2eq/kWh by zone, of the default or of zones that are here, looked at a moment ago; None where they cannot
        be compared: one is unknown, or what stands in for a live grid that was never heard counts other emissions."""
        now = self._clock.now()
        if not self._looked_at <= now < self._looked_at + LOOK:
            self._seen = {zone: self.current(zone) for zone in ("", *self._by_zone)}
            self._looked_at = now
        found: dict[str, float] = {}
        signal = None
        for zone in zones:
            intensity = self._seen[zone]
            if intensity is None or (signal is not None and signal != (intensity.kind, intensity.scope)):
                return None
            signal = (intensity.kind, intensity.scope)
            found[zone] = intensity.g_per_kwh
        return found

    async def start(self) -> None:
        """Live grids are asked, all at once; returns when each has answered or was given time to."""
        await asyncio.gather(*(provider.start() for provider in self._live()))

    async def close(self) -> None:
        await asyncio.gather(*(provider.close() for provider in self._live()))

    def _live(self) -> Iterable[PolledIntensity]:
        """Zones may share one."""
        providers = (self.default, *self._by_zone.values())
        return dict.fromkeys(provider for provider in providers if isinstance(provider, PolledIntensity))


def zones_of(config: RouterConfig, clock: Clock) -> Zones:
    """As configured. A grid that is named several times is asked once."""
    made = {config.intensity: provider_from_spec(config.intensity, settings=config.provider_settings, clock=clock)}
    for zone, spec in config.zone_specs.items():
        if spec not in made:
            made[spec] = provider_from_spec(spec, settings=config.zone_settings(zone), clock=clock)
    return Zones(made[config.intensity], {zone: made[spec] for zone, spec in config.zone_specs.items()}, clock)

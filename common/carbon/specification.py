"""Providers by the line that configuration names them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common.carbon import electricity_maps, uk_carbon_intensity
from common.carbon.csv_intensity import EXPIRES_AFTER_SECONDS, CsvIntensity
from common.carbon.daily_profile import ConstantIntensity, read_daily_profile
from common.carbon.electricity_maps import ElectricityMaps
from common.carbon.intensity import IntensityProvider, Scope, Signal
from common.carbon.observation_file import ObservationFile
from common.carbon.parsing import parse_g_per_kwh, parse_scope
from common.carbon.polled import PolledIntensity
from common.carbon.source import Source
from common.carbon.uk_carbon_intensity import UkCarbonIntensity
from common.carbon.zones import nearest_zone_intensity, zone_intensity
from common.clock import Clock, SystemClock

SPEC_FORMS = (
    "zone:CODE, constant:ZONE:G_PER_KWH[:SCOPE], profile:PATH, csv:PATH:ZONE:COLUMN[:SCOPE], "
    "electricitymaps:ZONE[:SCOPE] or uk[:REGION]"
)


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What a line has no room for. Units are in the names; the last four are for live sources alone.

    keep_path: File of a live source's last good observations; None keeps none.
    """

    expires_after_seconds: float = EXPIRES_AFTER_SECONDS
    timeout_seconds: float = 10.0
    electricity_maps_url: str = electricity_maps.URL
    electricity_maps_token: str = field(default="", repr=False)
    uk_carbon_intensity_url: str = uk_carbon_intensity.URL
    keep_path: Path | None = None


DEFAULTS = ProviderSettings()
ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def provider_from_spec(
    spec: str,
    base: Path | None = None,
    *,
    settings: ProviderSettings = DEFAULTS,
    clock: Clock | None = None,
) -> IntensityProvider:
    """Make the provider that a configuration names in one line.

    Forms: `zone:CODE` (an annual mean, see common/carbon/zones.csv), `constant:ZONE:G_PER_KWH[:SCOPE]`, `profile:PATH`,
    `csv:PATH:ZONE:COLUMN[:SCOPE]`, and live `electricitymaps:ZONE[:SCOPE]` and `uk[:REGION]`, each a PolledIntensity
    that its owner starts and closes. SCOPE is direct or lifecycle; where absent, lifecycle for Electricity Maps, as the
    API has it, and direct for the others. The signal is AVERAGE. A relative PATH is taken from `base`, or from the
    working directory without one. `clock` is a live source's (default: wall time), and that by which a csv that has
    ended says so (default: it does not).

    Raises ValueError that names the fault, and OSError where a file cannot be read.
    """
    folder = base or Path()
    match spec.split(":"):
        case ["zone", zone] if zone:
            return zone_intensity(zone)
        case ["constant", zone, value, *scope] if zone and len(scope) <= 1:
            g_per_kwh = parse_g_per_kwh(value, f"{spec!r}: G_PER_KWH")
            return ConstantIntensity(zone, g_per_kwh, scope=_scope(scope, spec, "direct"))
        case ["profile", path] if path:
            return read_daily_profile(folder / path)
        case ["csv", path, zone, column, *scope] if path and zone and column and len(scope) <= 1:
            return CsvIntensity(
                folder / path,
                zone,
                column,
                scope=_scope(scope, spec, "direct"),
                expires_after_seconds=settings.expires_after_seconds,
                clock=clock,
            )
        case ["electricitymaps", zone, *scope] if zone and len(scope) <= 1:
            maps = ElectricityMaps(
                zone,
                _scope(scope, spec, "lifecycle"),
                settings.electricity_maps_token,
                url=settings.electricity_maps_url,
                timeout_seconds=settings.timeout_seconds,
            )
            return _polled(maps, settings, clock)
        case ["uk", *region] if len(region) <= 1:
            try:
                uk = UkCarbonIntensity(
                    _region(region[0]) if region else None,
                    url=settings.uk_carbon_intensity_url,
                    timeout_seconds=settings.timeout_seconds,
                )
            except ValueError:
                regions = uk_carbon_intensity.REGIONS
                raise ValueError(
                    f"{spec!r}: REGION must be {regions.start} to {regions.stop - 1}, got {region[0]!r}"
                ) from None
            return _polled(uk, settings, clock)
        case _:
            raise ValueError(f"intensity provider must be {SPEC_FORMS}, got {spec!r}")


def signal_of(provider: IntensityProvider) -> Signal:
    """What grams count by a provider of `provider_from_spec`; by a live one, whenever its source was heard."""
    return provider.signal if isinstance(provider, PolledIntensity) else provider.current(ANY_TIME).signal


def is_live(spec: str) -> bool:
    """Whether its values come over the network."""
    return spec.partition(":")[0] in ("electricitymaps", "uk")


def _polled(source: Source, settings: ProviderSettings, clock: Clock | None) -> PolledIntensity:
    return PolledIntensity(
        source,
        nearest_zone_intensity(source.zone),
        clock or SystemClock(),
        expires_after_seconds=settings.expires_after_seconds,
        kept=None if settings.keep_path is None else ObservationFile(settings.keep_path, source),
    )


def _region(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no number")
    return int(text)


def _scope(given: list[str], spec: str, default: str) -> Scope:
    return parse_scope(given[0] if given else default, f"{spec!r}: SCOPE")

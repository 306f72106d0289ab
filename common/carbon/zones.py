"""Annual means of zones, for who has no live feed: countries, the European Union and the world (zones.csv)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources

from common.carbon.daily_profile import ConstantIntensity
from common.carbon.intensity import Scope
from common.carbon.parsing import parse_g_per_kwh, parse_scope

WORLD = "WORLD"


@dataclass(frozen=True, slots=True)
class ZoneMean:
    """Mean intensity of the electricity that a zone generates in a year, in gCO2eq/kWh.

    zone: ISO 3166-1 alpha-2 code of a country (XK: Kosovo), EU or WORLD.
    """

    zone: str
    name: str
    year: int
    g_per_kwh: float
    scope: Scope
    source: str


@cache
def zone_means() -> Mapping[str, ZoneMean]:
    """The table, by zone."""
    text = resources.files("common.carbon").joinpath("zones.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["zone"]: ZoneMean(
            zone=row["zone"],
            name=row["name"],
            year=int(row["year"]),
            g_per_kwh=parse_g_per_kwh(row["g_per_kwh"], f"zones.csv: g_per_kwh of {row['zone']}"),
            scope=parse_scope(row["scope"], f"zones.csv: scope of {row['zone']}"),
            source=row["source"],
        )
        for row in rows
    }


def zone_intensity(zone: str) -> ConstantIntensity:
    """The annual mean of a zone at every hour; its source names year and origin.

    Raises ValueError where the table does not have the zone.
    """
    mean = zone_means().get(zone)
    if mean is None:
        names = {known.name.upper(): code for code, known in zone_means().items()}
        named = get_close_matches(zone.upper(), names, n=1, cutoff=0.8)
        near = [names[named[0]]] if named else get_close_matches(zone.upper(), zone_means(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"zone {zone!r} must be an ISO 3166-1 alpha-2 code of the table of annual means, EU or WORLD{hint}"
        )
    source = f"{mean.source}, mean of {mean.year}"
    return ConstantIntensity(mean.zone, mean.g_per_kwh, scope=mean.scope, source=source)


def nearest_zone_intensity(zone: str) -> ConstantIntensity:
    """The annual mean of the zone, of its country where it is a part such as US-CAL-CISO, or else of the world."""
    country = zone.partition("-")[0]
    return zone_intensity(next(known for known in (zone, country, WORLD) if known in zone_means()))

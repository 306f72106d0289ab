"""How far do forecasts of carbon intensity miss, beside persistence and the same hour of yesterday?

    OMP_NUM_THREADS=1 python -m tests.bench.forecast --json tests/bench/results/forecast-DATE.json

Rolling origin over a year of each zone (2023, Electricity Maps): every origin sees the days before it and nothing else,
and the origins, a prime number of hours apart, meet every hour of day and day of week. The forecast's constants were
chosen on 30 zones of another year (2022) in another revision and scope of the data; three of them are zones here.

A zone's gain is 1 - MAE / the smaller of the two baselines' MAE: which it is, is known after the whole year only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.carbon.forecast import forecast
from common.carbon.hours import HOUR
from tests.bench.machine import description

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "carbon_em_hpe"
YEAR = 2023
LEADS = 48
FIRST_ORIGIN_HOURS = 28 * 24
CONFIDENCE = 0.8
# Scope, days of history, hours between origins.
RUNS = (
    ("direct", 90, 31),
    ("lifecycle", 90, 61),
    ("direct", 28, 61),
    ("direct", 14, 61),
    ("direct", 7, 61),
    ("direct", 2, 61),
)
_COLUMNS = {"direct": "(direct)", "lifecycle": "(LCA)"}

Floats = NDArray[np.float64]
Observations = list[tuple[datetime, float]]


@dataclass(frozen=True, slots=True)
class Zone:
    """Mean absolute errors in gCO2eq/kWh and what the intervals did, each by lead: [48]."""

    origins: int
    forecast: Floats
    persistence: Floats
    yesterday: Floats
    covered: Floats
    width: Floats
    pinball: Floats
    """Mean of the two ends' pinball losses."""


def read(zone: str, scope: str) -> Observations:
    """Every hour of the year that has an observation."""
    with gzip.open(DATA / f"{zone}_{YEAR}_hourly.csv.gz", "rt", encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        (column,) = [name for name in rows.fieldnames or () if name.endswith(_COLUMNS[scope])]
        return [
            (datetime.fromisoformat(row["Datetime (UTC)"]).replace(tzinfo=UTC), float(row[column]))
            for row in rows
            if row[column]
        ]


def judge(observations: Observations, days: int, stride: int) -> Zone:
    """Forecasts from every `stride`-th hour and the `days` before it.

    Raises ValueError where the observations are not hourly, without gaps.
    """
    values = np.array([value for _, value in observations])
    if any(later[0] - earlier[0] != HOUR for earlier, later in pairwise(observations)):
        raise ValueError("the observations must be hourly, without gaps")
    origins = range(FIRST_ORIGIN_HOURS, len(values) - LEADS, stride)
    lead = np.arange(LEADS)
    columns: list[list[Floats]] = [[], [], [], [], [], []]
    tail = (1 - CONFIDENCE) / 2
    for origin in origins:
        history = observations[max(0, origin + 1 - 24 * days) : origin + 1]
        found = [interval for _, interval in forecast(history, observations[origin][0], LEADS, CONFIDENCE)]
        value, lower, upper = (np.array([getattr(one, end) for one in found]) for end in ("value", "lower", "upper"))
        true = values[origin + 1 : origin + 1 + LEADS]
        outcomes = (
            np.abs(true - value),
            np.abs(true - values[origin]),
            np.abs(true - values[origin - 23 + lead % 24]),
            ((lower <= true) & (true <= upper)).astype(float),
            upper - lower,
            (_pinball(true - lower, tail) + _pinball(true - upper, 1 - tail)) / 2,
        )
        for column, outcome in zip(columns, outcomes, strict=True):
            column.append(outcome)
    return Zone(len(origins), *(np.mean(column, axis=0) for column in columns))


def summary(zones: dict[str, Zone], until: int) -> dict[str, float]:
    """Over leads 1 to `until`, averaged over zones."""
    mae, persistence, yesterday = (
        np.array([getattr(zone, name)[:until].mean() for zone in zones.values()])
        for name in ("forecast", "persistence", "yesterday")
    )
    better = np.minimum(persistence, yesterday)
    return {
        "mae_g_per_kwh": mae.mean(),
        "persistence_g_per_kwh": persistence.mean(),
        "yesterday_g_per_kwh": yesterday.mean(),
        "better_in_each_zone_g_per_kwh": better.mean(),
        "gain": 1 - mae.mean() / better.mean(),
        "mean_of_zones_gains": float(np.mean(1 - mae / better)),
        "gain_over_the_better_of_the_means": 1 - mae.mean() / min(persistence.mean(), yesterday.mean()),
        "covered": float(np.mean([zone.covered[:until].mean() for zone in zones.values()])),
        "width_g_per_kwh": float(np.mean([zone.width[:until].mean() for zone in zones.values()])),
        "pinball_g_per_kwh": float(np.mean([zone.pinball[:until].mean() for zone in zones.values()])),
    }


def _pinball(above: Floats, level: float) -> Floats:
    return np.maximum(level * above, (level - 1) * above)


def _judge_zone(job: tuple[str, str, int, int]) -> Zone:
    zone, scope, days, stride = job
    return judge(read(zone, scope), days, stride)


def _document(zones: dict[str, Zone], scope: str, days: int, stride: int) -> dict[str, Any]:
    by_zone = {}
    for name, zone in zones.items():
        mae, persistence, yesterday = (
            float(of[:24].mean()) for of in (zone.forecast, zone.persistence, zone.yesterday)
        )
        by_zone[name] = {
            "origins": zone.origins,
            "mae_g_per_kwh": mae,
            "persistence_g_per_kwh": persistence,
            "yesterday_g_per_kwh": yesterday,
            "gain": 1 - mae / min(persistence, yesterday),
            "mae_to_48_g_per_kwh": float(zone.forecast.mean()),
            "covered": float(zone.covered[:24].mean()),
            "covered_to_48": float(zone.covered.mean()),
            "width_g_per_kwh": float(zone.width[:24].mean()),
        }
    by_lead = {
        name: [float(np.mean([getattr(zone, name)[lead] for zone in zones.values()])) for lead in range(LEADS)]
        for name in ("forecast", "persistence", "yesterday", "covered", "width", "pinball")
    }
    return {
        "scope": scope,
        "history_days_at_most": days,
        "hours_between_origins": stride,
        "leads_1_to_24": summary(zones, 24),
        "leads_1_to_48": summary(zones, 48),
        "zones": by_zone,
        "by_lead": by_lead,
    }


def _print(document: dict[str, Any]) -> None:
    to24, to48, by_lead = document["leads_1_to_24"], document["leads_1_to_48"], document["by_lead"]
    title = f"{document['scope']}, {document['history_days_at_most']} days of history, MAE in g/kWh, leads 1 to 24"
    table = Table(title=title, title_justify="left")
    for heading in ("zone", "persistence", "yesterday", "forecast", "gain", "covered", "width"):
        table.add_column(heading, justify="left" if heading == "zone" else "right")
    for name, zone in document["zones"].items():
        table.add_row(
            name,
            *(f"{zone[f'{key}_g_per_kwh']:.2f}" for key in ("persistence", "yesterday", "mae")),
            f"{zone['gain']:.1%}",
            f"{zone['covered']:.1%}",
            f"{zone['width_g_per_kwh']:.1f}",
        )
    for label, found in (("mean", to24), ("mean, 1 to 48", to48)):
        table.add_row(
            label,
            *(f"{found[f'{key}_g_per_kwh']:.2f}" for key in ("persistence", "yesterday", "mae")),
            f"{found['gain']:.1%}",
            f"{found['covered']:.1%}",
            f"{found['width_g_per_kwh']:.1f}",
        )
    Console(width=110).print(table)
    at = ", ".join(
        f"lead {lead}: {by_lead['forecast'][lead - 1]:.2f} g/kWh, {by_lead['covered'][lead - 1]:.1%} covered"
        for lead in (1, 6, 12, 24, 48)
    )
    print(f"mean of the zones' gains {to24['mean_of_zones_gains']:.1%}; {at}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    given = parser.parse_args(arguments)
    names = sorted(path.name.removesuffix(f"_{YEAR}_hourly.csv.gz") for path in DATA.glob(f"*_{YEAR}_hourly.csv.gz"))
    if not names:
        print(f"{DATA} is absent; set PITH_DATA_DIR to the data folder", file=sys.stderr)
        return 1
    jobs = [(name, *run) for run in RUNS for name in names]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        judged = list(track(pool.map(_judge_zone, jobs), total=len(jobs), description="zones"))
    by_run = {
        run: dict(zip(names, judged[at * len(names) : (at + 1) * len(names)], strict=True))
        for at, run in enumerate(RUNS)
    }
    documents = [_document(zones, *run) for run, zones in by_run.items()]
    for document in documents:
        _print(document)
    if given.json:
        command = " ".join(["python -m tests.bench.forecast", *(sys.argv[1:] if arguments is None else arguments)])
        whole = {
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": description(),
            "data": f"carbon_em_hpe, {YEAR}, {len(names)} zones",
            "confidence": CONFIDENCE,
            "runs": documents,
        }
        given.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

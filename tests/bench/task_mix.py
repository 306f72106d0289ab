"""How often is a change of the task mix told where there is none, and how soon where there is one?

    OMP_NUM_THREADS=1 python -m tests.bench.task_mix --json tests/bench/results/task-mix-DATE.json

Simulations of the rule that `common.quality.mix` follows, on samples kept of a task's requests:

(a) noise: two days of one mix, of eight lengths or twenty tenants.
(b) rhythm and churn: clients' request rates of ServeGen's two 14-day traces stand for tenants; their lengths are those
    that its clients of deepseek-r1 have in each quarter of the day, by rank of traffic (two traces pieced together,
    since none has both). An epoch's scores are gathered on a day, and every hour until the traces end its mix is held
    against the last 24 h, as `router.store.mix` does: how many looks, and how many epochs, end in an alarm. Nobody
    planted a shift there, but clients do come and go: that is why tenants have a limit of their own, and the same looks
    are also counted with 1/4 for both.
(c) power: so many hours after a shift of so much of the requests to another length (total variation distance) the alarm
    comes, looked at every hour. Runs that have none within two days count as none.

(b) needs --data, and is left out where it is absent.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.quality.mix import ALPHA, LEAST_SHIFT, Part, TaskMix, distance, largest
from tests.bench.machine import description

Floats = NDArray[np.float64]
LENGTHS = 8
CHARACTERS_PER_TOKEN = 4
MAX_LOG2 = 24
HOURS_PER_DAY = 24


def parts(before: NDArray[np.int64], recent: NDArray[np.int64]) -> dict[str, Part]:
    return {
        str(number): Part(int(n), int(m)) for number, (n, m) in enumerate(zip(before, recent, strict=True)) if n or m
    }


def noise(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for samples in (60, 200, 1000, 5000):
        for trait, categories in (("lengths", LENGTHS), ("tenants", 20)):
            alarms = 0
            for _ in range(runs):
                shares = rng.dirichlet(np.ones(categories))
                days = rng.multinomial(samples, shares), rng.multinomial(samples, shares)
                alarms += TaskMix(**{trait: parts(*days)}).shift() is not None
            found.append({"trait": trait, "samples_a_day": samples, "alarms": alarms / runs})
    return found


def rates(archive: Path, model: str) -> Floats:
    """[hours, clients], requests in each hour."""
    by_client = {}
    with tarfile.open(archive) as files:
        for member in files:
            name = Path(member.name)
            if name.parent.name == model and name.name.endswith("-trace.csv") and (file := files.extractfile(member)):
                rows = [line.split(",") for line in file.read().decode().splitlines()]
                by_client[name.name] = {float(row[0]): float(row[1] or 0) for row in rows}
    times = sorted({at for of_client in by_client.values() for at in of_client})
    windows = np.array([[by_client[c].get(at, 0.0) for c in sorted(by_client)] for at in times])  # [windows, clients]
    per_hour = round(3600 / (times[1] - times[0]))
    whole = len(times) // per_hour * per_hour
    hourly: Floats = windows[:whole].reshape(-1, per_hour, windows.shape[1]).sum(axis=1)
    return hourly


def lengths(archive: Path) -> Floats:
    """[clients, quarters of the day, lengths], shares; the client of most traffic first."""
    found, traffic = {}, {}
    with tarfile.open(archive) as files:
        for member in files:
            file, name = files.extractfile(member), Path(member.name).name
            if file is None:
                continue
            client = name.split("-")[1]
            if name.endswith("-trace.csv"):
                lines = file.read().decode().splitlines()
                traffic[client] = sum(float(line.split(",")[1] or 0) for line in lines)
            elif name.endswith("-dataset.json"):
                shares = np.zeros((4, MAX_LOG2 + 1))
                for quarter, (_, one) in enumerate(sorted(json.load(file).items(), key=lambda item: float(item[0]))):
                    for tokens, share in ast.literal_eval(one["input_tokens"]).items() if one else ():
                        shares[quarter, int(np.log2(max(tokens * CHARACTERS_PER_TOKEN, 1)))] += share
                # A quarter without requests of the client: as it is otherwise.
                shares[shares.sum(axis=1) == 0] = shares.sum(axis=0)
                if shares.sum():
                    found[client] = shares / shares.sum(axis=1, keepdims=True)
    return np.array([found[client] for client in sorted(found, key=lambda client: -traffic[client])])


def rhythm(data: Path, samples_a_day: int, rng: np.random.Generator) -> dict[str, Any]:
    of_client = lengths(data / "servegen" / "deepseek-r1.tar.gz")
    document: dict[str, Any] = {}
    for model in ("m-small", "m-large"):
        hourly = rates(data / "servegen" / "m-small_m-large_traces.tar.gz", model)
        shares = of_client[np.argsort(np.argsort(-hourly.sum(axis=0))) % len(of_client)]  # [clients, quarters, lengths]
        quarters = np.arange(len(hourly)) % HOURS_PER_DAY // 6
        of_hour = np.einsum("hc,chl->hl", hourly, shares[:, quarters])  # [hours, lengths]
        looks = epochs = 0
        alarms = {"length": 0, "tenant": 0, "tenant, at 1/4": 0}
        ended = {"any": 0, "length": 0}
        for begin in range(0, len(hourly) - 3 * HOURS_PER_DAY, 6):
            epochs += 1
            seen = set()
            for now in range(begin + 2 * HOURS_PER_DAY, len(hourly)):
                days = (now - begin) // HOURS_PER_DAY - 1
                both = [
                    [
                        rng.multinomial(samples_a_day, day / day.sum())
                        for end in (now - days * HOURS_PER_DAY, now)
                        for day in [kept[end - HOURS_PER_DAY : end].sum(axis=0)]
                    ]
                    for kept in (of_hour, hourly)
                ]
                looks += 1
                by_length, by_tenant = parts(*both[0]), parts(*both[1])
                for trait, mix in (("length", TaskMix(lengths=by_length)), ("tenant", TaskMix(tenants=by_tenant))):
                    if mix.shift() is not None:
                        alarms[trait] += 1
                        seen.add(trait)
                lower = distance(largest(by_tenant).values(), ALPHA / 2)[1]
                alarms["tenant, at 1/4"] += lower >= 0.25
            ended["any"] += bool(seen)
            ended["length"] += "length" in seen
        document[model] = {
            "clients": hourly.shape[1],
            "samples_a_day": samples_a_day,
            "looks": looks,
            "alarms_of_looks": {name: count / looks for name, count in alarms.items()},
            "epochs": epochs,
            "epochs_with_an_alarm": {name: count / epochs for name, count in ended.items()},
        }
    return document


def power(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for samples in (100, 300, 1000, 5000):
        for shift in (0.2, 0.3, 0.4, 0.5, 0.7, 1.0):
            hours: list[float] = []
            for _ in range(runs):
                before = np.append(rng.dirichlet(np.ones(LENGTHS)), 0.0)
                after = np.append(before[:-1] * (1 - shift), shift)
                day = rng.multinomial(samples, before)
                per_hour = rng.poisson(samples / HOURS_PER_DAY, size=3 * HOURS_PER_DAY)
                kept = [
                    rng.multinomial(count, before if hour < HOURS_PER_DAY else after)
                    for hour, count in enumerate(per_hour)
                ]
                alarm = (
                    hour - HOURS_PER_DAY
                    for hour in range(HOURS_PER_DAY + 1, 3 * HOURS_PER_DAY + 1)
                    if TaskMix(lengths=parts(day, np.sum(kept[hour - HOURS_PER_DAY : hour], axis=0))).shift()
                )
                hours.append(next(alarm, float("inf")))
            told = [hour for hour in hours if hour <= 2 * HOURS_PER_DAY]
            found.append(
                {
                    "samples_a_day": samples,
                    "shift": shift,
                    "told_within_a_day": sum(hour <= HOURS_PER_DAY for hour in hours) / runs,
                    "told_within_two_days": len(told) / runs,
                    "median_hours": float(np.median(hours)) if len(told) > runs / 2 else None,
                }
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PITH_DATA_DIR", "../shared/data")))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    document: dict[str, Any] = {
        "command": " ".join(["python -m tests.bench.task_mix", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": description(),
        "least_shift": dict(LEAST_SHIFT),
        "alpha": ALPHA,
        "noise": noise(given.runs, rng),
        "power": power(max(given.runs // 5, 20), rng),
        "rhythm": [rhythm(given.data, samples, rng) for samples in (300, 3000)]
        if (given.data / "servegen").exists()
        else None,
    }
    for name in ("noise", "power", "rhythm"):
        print(name, json.dumps(document[name], indent=1))
    if given.json:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rounds become medians, ratios and percentiles; those become tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.ours import Latencies

LEAST_RATIO = {1: 1.1, 16: 1.5}
"""Target of the loop's speed over the better peer's, by concurrency."""
MOST_GRPC_COST = 0.10
LOOP, GRPC, ONE_BY_ONE, STATIC = "loop", "gRPC", "transformers one by one", "transformers static 16"


def measured(concurrency: int, rounds: Mapping[str, Sequence[float]], latencies: Latencies) -> dict[str, Any]:
    """rounds: output tokens a second of each who was measured, a number a round."""
    speeds = {name: np.array(values) for name, values in rounds.items()}
    peer = np.maximum.reduce([values for name, values in speeds.items() if name not in (LOOP, GRPC)])
    ratio, cost = spread(speeds[LOOP] / peer), spread(1 - speeds[GRPC] / speeds[LOOP])
    return {
        "concurrency": concurrency,
        "output_tokens_per_second": {name: float(np.median(values)) for name, values in speeds.items()},
        "loop_over_better_peer": ratio,
        "grpc_over_better_peer": spread(speeds[GRPC] / peer),
        "grpc_cost": cost,
        "targets_met": {
            f"loop at least {LEAST_RATIO[concurrency]} x the better peer": ratio["median"] >= LEAST_RATIO[concurrency],
            f"gRPC costs at most {MOST_GRPC_COST:.0%}": cost["median"] <= MOST_GRPC_COST,
        },
        "first_token_seconds": _percentiles(latencies.first_token),
        "between_deltas_seconds": _percentiles(latencies.between_deltas),
        "between_tokens_seconds": _percentiles(latencies.between_tokens),
        "rounds": {name: values.round(2).tolist() for name, values in speeds.items()},
    }


def spread(values: Any) -> dict[str, float]:
    """Median and quartiles of a figure that every round has."""
    low, median, high = np.percentile(values, (25, 50, 75)).round(4).tolist()
    return {"median": median, "low_quartile": low, "high_quartile": high}


def print_result(result: Mapping[str, Any], console: Console) -> None:
    speed = Table(title="Output tokens a second, medians", box=box.SIMPLE)
    for column in ("model", "at once", LOOP, GRPC, "one by one", "static 16", "loop / better peer", "cost of gRPC"):
        speed.add_column(column, justify="left" if column == "model" else "right")
    latency = Table(title="Through gRPC, milliseconds: p50 / p90 / p99", box=box.SIMPLE)
    for column in ("model", "at once", "first token", "between deltas", "between tokens"):
        latency.add_column(column, justify="left" if column == "model" else "right")
    for model in result["models"]:
        for one in model["measured"]:
            rates = one["output_tokens_per_second"]
            row = (model["name"], str(one["concurrency"]))
            speed.add_row(
                *row,
                *(f"{rates[name]:,.0f}" if name in rates else "" for name in (LOOP, GRPC, ONE_BY_ONE, STATIC)),
                _with_quartiles(one["loop_over_better_peer"], "{:.2f}"),
                _with_quartiles(one["grpc_cost"], "{:.1%}"),
            )
            kinds = ("first_token_seconds", "between_deltas_seconds", "between_tokens_seconds")
            latency.add_row(*row, *(" / ".join(f"{1e3 * one[kind][p]:.1f}" for p in one[kind]) for kind in kinds))
    console.print(speed)
    console.print(latency)
    versions = ", ".join(f"{name} {version}" for name, version in result["machine"]["versions"].items())
    console.print(f"{result['machine']['processor']}, {result['machine']['cores']} cores, {versions}")
    console.print(f"{result['command']}: {result['rounds']} rounds, threads {result['threads']}, seed {result['seed']}")
    for model in result["models"]:
        for one in model["measured"]:
            for target, met in one["targets_met"].items():
                console.print(
                    f"{'met   ' if met else 'MISSED'} {model['name']}, {one['concurrency']} at once: {target}"
                )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """Seconds by percentile."""
    found = np.percentile(values, (50, 90, 99)).round(6).tolist()
    return dict(zip(("p50", "p90", "p99"), found, strict=True))


def _with_quartiles(figure: Mapping[str, float], form: str) -> str:
    median, low, high = (form.format(figure[name]) for name in ("median", "low_quartile", "high_quartile"))
    return f"{median} [{low}, {high}]"

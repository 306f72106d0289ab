"""A world whose truth is known: tasks whose answers a directive shortens by a law, and what requests cost there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.energy.sweet_spot import SweetSpot
from router.diagnosis.evidence import Evidence, Pairs, learn
from router.diagnosis.law import Law
from router.diagnosis.log import Log, LoggedRequest

ENERGY = SweetSpot(request_joules=3.0, input_joules=0.05, output_joules=5.0)
LAW = Law(ENERGY, "planted")
EXTRA = 18.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Answers of about `tokens`; with the directive, of kept (m / tokens)^slope x tokens."""

    tokens: float
    kept: float
    slope: float
    dispersion: float
    input_tokens: int = 60

    def mean(self, before: Array) -> Array:
        shortened: Array = self.kept * self.tokens * (before / self.tokens) ** self.slope
        return shortened


@dataclass(frozen=True)
class Served:
    """The same requests without the directive and with it."""

    task: str
    inputs: Array
    before: Array
    after: Array

    def joules(self, answers: Array, extra: float = 0.0) -> Array:
        each = zip(self.inputs + extra, answers, strict=True)
        return np.array([ENERGY.energy_joules(n, m) for n, m in each])


TASKS: Mapping[str, Task] = {
    "chat": Task(400, 0.4, 0.8, 0.5),
    "lookup": Task(120, 0.15, 0.3, 0.9),
    "sums": Task(200, 0.3, 0.6, 0.6),
    "facts": Task(250, 0.12, 0.4, 0.8),
}


def serve(name: str, task: Task, requests: int, generator: np.random.Generator) -> Served:
    before = np.maximum(1.0, np.round(generator.lognormal(np.log(task.tokens), 0.8, requests)))
    after = generator.gamma(1 / task.dispersion, task.dispersion * task.mean(before))
    inputs = np.maximum(1.0, np.round(generator.lognormal(np.log(task.input_tokens), 0.5, requests)))
    return Served(name, inputs, before, np.maximum(1.0, np.round(after)))


def log_of(served: Sequence[Served], *, energy: bool = False) -> Log:
    log = Log()
    for part in served:
        for n, m, joules in zip(part.inputs, part.before, part.joules(part.before), strict=True):
            log.append(LoggedRequest(int(n), int(m), part.task, energy_joules=float(joules) if energy else None))
    return log


def evidence_of(served: Sequence[Served], directive: str = "brief") -> Evidence:
    return learn(
        {
            (part.task, directive): Pairs(part.before.tolist(), part.after.tolist(), [EXTRA] * len(part.before))
            for part in served
        },
        "planted",
    )


def saved(served: Sequence[Served]) -> float:
    """The truth: share of the energy."""
    before = sum(part.joules(part.before).sum() for part in served)
    after = sum(part.joules(part.after, EXTRA).sum() for part in served)
    return float(1 - after / before)


def log_file(folder: Path, requests: int = 300) -> Path:
    """A log of "chat" and "lookup", without energies."""
    generator = np.random.default_rng(5)
    path = folder / "log.csv"
    lines = ["input_tokens,output_tokens,task"]
    for name in ("chat", "lookup"):
        part = serve(name, TASKS[name], requests, generator)
        lines += [f"{n:.0f},{m:.0f},{name}" for n, m in zip(part.inputs, part.before, strict=True)]
    path.write_text("\n".join([*lines, ""]))
    return path


def evidence_file(folder: Path, requests: int = 60) -> Path:
    """Requests of every task, answered with and without one directive."""
    generator = np.random.default_rng(6)
    path = folder / "evidence.jsonl"
    lines: list[dict[str, Any]] = []
    for name, task in TASKS.items():
        part = serve(name, task, requests, generator)
        for n, before, after in zip(part.inputs, part.before, part.after, strict=True):
            variants = {
                "L0": {"input_tokens": n, "output_tokens": before},
                "brief": {"input_tokens": n + EXTRA, "output_tokens": after},
            }
            lines.append({"task": name, "variants": variants})
    path.write_text("\n".join([*map(json.dumps, lines), ""]))
    return path

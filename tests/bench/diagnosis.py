"""Does a diagnosis hold what the replay later finds? Measured on the requests that SPROUT's authors published.

    python -m tests.bench.diagnosis --json tests/bench/results/diagnosis-DATE.json
    python -m tests.bench.diagnosis --published        # the rows of router/diagnosis/published.py

Each prompt was answered at L0, L1 and L2, so what a log would have cost with a directive is known: the recorded
energies of the same prompts. In every split some prompts are evidence and others the log, of which the diagnosis sees
task, lengths and energy at L0 alone; it is asked for a 95 % interval. Output tokens are recorded for one task only: for
all, they are reckoned from the energy by the published law (5.87 J an output token, 0.045 J an input token, 3 J a
request), which for that task is within 2 % in the mean; input tokens from the prompt's characters.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from common.energy.sweet_spot import SweetSpot
from router.diagnosis.diagnose import diagnose
from router.diagnosis.evidence import CHARACTERS_PER_TOKEN, EXTRA_INPUT_TOKENS, Evidence, Pairs, learn, read_evidence
from router.diagnosis.law import Law
from router.diagnosis.log import Log, LoggedRequest
from router.diagnosis.published import LOG_SHARES_BY_MODEL
from tests.bench.machine import description

DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout" / "requests_dev.jsonl.gz"
LAW = Law(
    SweetSpot(request_joules=3.0, output_joules=5.87, input_joules=0.045),
    "published: Llama-2-13B, one request at a time",
)
DIRECTIVES = ("L1", "L2")
TOTAL = "all"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """What was published, an entry a prompt."""

    tasks: NDArray[np.str_]
    inputs: NDArray[np.float64]
    joules: NDArray[np.float64]  # [prompts, levels]
    tokens: NDArray[np.float64]  # [prompts, levels]

    def of(self, task: str) -> Rows:
        return np.nonzero(self.tasks == task)[0]


def read_prompts(path: Path = DATA) -> Prompts:
    tasks, inputs, joules = [], [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            tasks.append(request["task"])
            inputs.append(len(request["prompt"]) / CHARACTERS_PER_TOKEN)
            variants = request["variants"]
            joules.append([variants[f"13b/{level}"]["energy_kwh"] * 3.6e6 for level in ("L0", *DIRECTIVES)])
    extra = (0.0, EXTRA_INPUT_TOKENS, EXTRA_INPUT_TOKENS)
    tokens = [
        [LAW.output_tokens(j, n + d) for j, d in zip(each, extra, strict=True)]
        for each, n in zip(joules, inputs, strict=True)
    ]
    return Prompts(np.array(tasks), np.array(inputs), np.array(joules), np.array(tokens))


def evidence_of(prompts: Prompts, rows: Rows, tasks: Sequence[str]) -> Evidence:
    pairs = {}
    for task in tasks:
        its = rows[prompts.tasks[rows] == task]
        for level, directive in enumerate(DIRECTIVES, 1):
            before, after = prompts.tokens[its, 0].tolist(), prompts.tokens[its, level].tolist()
            pairs[task, directive] = Pairs(before, after)
    return learn(pairs, "a split")


def log_of(prompts: Prompts, rows: Rows, *, energy: bool = True) -> Log:
    return Log(
        [
            LoggedRequest(
                round(prompts.inputs[row]),
                round(prompts.tokens[row, 0]),
                str(prompts.tasks[row]),
                energy_joules=float(prompts.joules[row, 0]) if energy else None,
            )
            for row in rows
        ]
    )


@dataclass
class Tally:
    """How often the intervals of one kind held the truth, and how wide they were."""

    inside: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def document(self) -> dict[str, float | int]:
        return {
            "intervals": len(self.inside),
            "coverage": round(float(np.mean(self.inside)), 4),
            "mean_width_points": round(100 * float(np.mean(self.widths)), 2),
            "mean_error_points": round(100 * float(np.mean(np.abs(self.errors))), 2),
            "mean_bias_points": round(100 * float(np.mean(self.errors)), 2),
        }


Split = Callable[[np.random.Generator, Prompts, Sequence[str]], tuple[Rows, Rows]]
"""(evidence, log)."""


def halves(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """At random within every task."""
    return _split(generator, prompts, tasks, lambda count: np.zeros(count), 0.5)


def small_evidence(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """As a trial of 40 requests a task has it."""
    rows = [generator.permutation(prompts.of(task)) for task in tasks]
    return np.concatenate([its[:40] for its in rows]), np.concatenate([its[40:] for its in rows])


def short_to_long(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """Long answers are rare in the evidence: odds from 9:1 for it to 1:9 by the answer's rank."""
    return _split(generator, prompts, tasks, lambda count: np.linspace(0.4, -0.4, count), 0.5)


def long_to_short(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """The other way round."""
    return _split(generator, prompts, tasks, lambda count: np.linspace(-0.4, 0.4, count), 0.5)


def shorter_half_to_longer(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """The evidence has no answer as long as any of the log: all of it extrapolates. 70 % of each half, at random."""
    return _apart(generator, prompts, tasks, longer=False)


def longer_half_to_shorter(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """The other way round."""
    return _apart(generator, prompts, tasks, longer=True)


def other_mix(generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str]) -> tuple[Rows, Rows]:
    """The log keeps 5 to 100 % of each task's half."""
    known, asked = halves(generator, prompts, tasks)
    kept = [its[: max(10, int(len(its) * generator.uniform(0.05, 1)))] for its in _by_task(prompts, asked, tasks)]
    return known, np.concatenate(kept)


def _split(
    generator: np.random.Generator,
    prompts: Prompts,
    tasks: Sequence[str],
    lean: Callable[[int], NDArray[np.float64]],
    share: float,
) -> tuple[Rows, Rows]:
    known, asked = [], []
    for task in tasks:
        its = prompts.of(task)
        its = its[np.argsort(prompts.tokens[its, 0], kind="stable")]
        taken = generator.random(len(its)) < share + lean(len(its))
        known.append(its[taken])
        asked.append(its[~taken])
    return np.concatenate(known), np.concatenate(asked)


def _apart(
    generator: np.random.Generator, prompts: Prompts, tasks: Sequence[str], *, longer: bool
) -> tuple[Rows, Rows]:
    known, asked = [], []
    for task in tasks:
        its = prompts.of(task)
        its = its[np.argsort(prompts.tokens[its, 0], kind="stable")]
        short, long = its[: len(its) // 2], its[len(its) // 2 :]
        one, other = (long, short) if longer else (short, long)
        known.append(generator.choice(one, int(0.7 * len(one)), replace=False))
        asked.append(generator.choice(other, int(0.7 * len(other)), replace=False))
    return np.concatenate(known), np.concatenate(asked)


def _by_task(prompts: Prompts, rows: Rows, tasks: Sequence[str]) -> list[Rows]:
    return [rows[prompts.tasks[rows] == task] for task in tasks]


def realised(prompts: Prompts, rows: Rows, level: int) -> float:
    return 1 - float(prompts.joules[rows, level].sum() / prompts.joules[rows, 0].sum())


def held(
    prompts: Prompts, split: Split, splits: int, seed: int, name: str, *, energy: bool = True
) -> dict[str, dict[str, float | int]]:
    """Tallies by task, and of all requests, L1's and L2's together."""
    tasks = sorted(set(prompts.tasks.tolist()))
    generator = np.random.default_rng(seed)
    tallies: dict[str, Tally] = {}
    for number in track(range(splits), name, disable=not sys.stderr.isatty()):
        known, asked = split(generator, prompts, tasks)
        found = diagnose(
            log_of(prompts, asked, energy=energy),
            [evidence_of(prompts, known, tasks)],
            LAW,
            holdback_share=0.0,
            seed=seed + number,
        )
        parts = [(TOTAL, asked, found.savings)]
        parts += [(one.task, asked[prompts.tasks[asked] == one.task], one.savings) for one in found.tasks]
        for part, rows, savings in parts:
            for level, saving in enumerate(savings, 1):
                _count(tallies.setdefault(part, Tally()), saving.share, realised(prompts, rows, level))
    return _documents(tallies)


def strange_tasks(prompts: Prompts, splits: int, seed: int) -> dict[str, dict[str, float | int]]:
    """Every task as one that the evidence, halves of the other five, does not know."""
    tasks = sorted(set(prompts.tasks.tolist()))
    generator = np.random.default_rng(seed)
    tallies: dict[str, Tally] = {}
    for number in track(range(splits), "unknown task", disable=not sys.stderr.isatty()):
        known, asked = halves(generator, prompts, tasks)
        for task in tasks:
            rows = asked[prompts.tasks[asked] == task]
            evidence = evidence_of(prompts, known, [other for other in tasks if other != task])
            found = diagnose(log_of(prompts, rows), [evidence], LAW, holdback_share=0.0, seed=seed + number)
            for level, saving in enumerate(found.savings, 1):
                for part in (TOTAL, task):
                    _count(tallies.setdefault(part, Tally()), saving.share, realised(prompts, rows, level))
    return _documents(tallies)


def _count(tally: Tally, share: Any, truth: float) -> None:
    tally.inside.append(share.lower <= truth <= share.upper)
    tally.widths.append(share.upper - share.lower)
    tally.errors.append(share.value - truth)


def _documents(tallies: dict[str, Tally]) -> dict[str, dict[str, float | int]]:
    return {part: tallies[part].document() for part in sorted(tallies)}


def other_models() -> dict[str, Any]:
    """Each of seven published (model, wording) pairs foretold from Llama-2-13B's, the spread from the others."""
    from scipy.special import stdtrit

    names = [name for name in LOG_SHARES_BY_MODEL if not name.startswith("Llama-2-13B")]
    measured = next(share for name, share in LOG_SHARES_BY_MODEL.items() if name not in names)
    inside = {}
    for name in names:
        others = [share for other, share in LOG_SHARES_BY_MODEL.items() if other != name]
        deviation = float(np.std(others, ddof=1)) * 2**0.5
        half = float(stdtrit(len(others) - 1, 0.975)) * deviation
        inside[name] = abs(LOG_SHARES_BY_MODEL[name] - measured) <= half
    return {"inside": inside, "coverage": sum(inside.values()) / len(inside)}


def print_published(path: Path = DATA) -> None:
    def short(number: float) -> float:
        return float(f"{number:.4g}")

    for effect in read_evidence(path, LAW).effects:
        numbers = (effect.center, effect.intercept, effect.slope)
        rest = (effect.dispersion, effect.shortest_tokens, effect.longest_tokens, effect.extra_input_tokens)
        covariance = tuple(map(short, effect.covariance))
        row = (effect.task, effect.directive, effect.requests, *map(short, numbers), covariance, *map(short, rest))
        print(f"    {row},")


SPLITS: dict[str, Split] = {
    "random halves": halves,
    "40 requests of evidence a task": small_evidence,
    "another mix of tasks": other_mix,
    "evidence leans to short answers": short_to_long,
    "evidence leans to long answers": long_to_short,
    "evidence the shorter half, log the longer": shorter_half_to_longer,
    "evidence the longer half, log the shorter": longer_half_to_shorter,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--published", action="store_true")
    given = parser.parse_args()
    if given.published:
        print_published()
        return
    prompts = read_prompts()
    found: dict[str, Any] = {
        name: held(prompts, split, given.splits, given.seed, name) for name, split in SPLITS.items()
    }
    found["random halves, log without energies"] = held(
        prompts, halves, given.splits, given.seed, "without energies", energy=False
    )
    found["task unknown to the evidence"] = strange_tasks(prompts, given.splits, given.seed)
    print(f"{'':44} {'coverage':>9} {'width':>7} {'error':>7}   tasks: least coverage, mean width")
    for name, parts in found.items():
        whole = parts[TOTAL]
        tasks = [part for key, part in parts.items() if key != TOTAL]
        least, width = min(part["coverage"] for part in tasks), np.mean([part["mean_width_points"] for part in tasks])
        print(
            f"{name:44} {whole['coverage']:9.3f} {whole['mean_width_points']:7.1f} {whole['mean_error_points']:7.2f}"
            f"   {least:.3f} {width:.1f}"
        )
    models = other_models()
    print(f"published effect, another model: {models['coverage']:.2f} of {len(models['inside'])}")
    if given.json:
        asked = f"--splits {given.splits} --seed {given.seed} --json {given.json}"
        document = {
            "command": f"python -m tests.bench.diagnosis {asked}",
            "machine": description(),
            "confidence": 0.95,
            "splits": given.splits,
            "seed": given.seed,
            "prompts": len(prompts.tasks),
            "kinds": {name: " ".join((split.__doc__ or "").split()) for name, split in SPLITS.items()},
            "results": found,
            "other_models": models,
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

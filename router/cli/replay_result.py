"""What a replay found, as a document and in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.cli.output import console, details, dim, printable, table
from router.cli.units import UNKNOWN, count, grams, percent

if TYPE_CHECKING:
    from router.replay.outcome import Kept, Outcome
    from router.replay.recordings import RecordedSet


def document(outcome: Outcome) -> dict[str, Any]:
    return {
        "requests": outcome.requests,
        "carbon_grams": outcome.carbon_grams,
        "base_carbon_grams": outcome.base_grams,
        "carbon_saving": outcome.carbon_saving,
        "carbon_saving_without_evaluator": outcome.carbon_saving_without_evaluator,
        "preference": outcome.preference,
        "preference_by_task": _kept(outcome.task_preference),
        "accuracy": _kept(outcome.accuracy),
        "directive_mix": dict(outcome.directive_mix),
        "evaluator_runs": outcome.evaluator_runs,
        "evaluator_samples": outcome.evaluator_samples,
        "evaluator_carbon_grams": outcome.evaluator_grams,
    }


def _kept(by_task: Mapping[str, Kept]) -> dict[str, Any]:
    return {
        task: {
            "value": kept.value,
            "base": kept.base,
            "share": kept.share,
            "share_standard_error": kept.share_error,
        }
        for task, kept in by_task.items()
    }


def print_result(
    requests: Path,
    recorded: RecordedSet,
    found: Mapping[str, Outcome],
    notes: Sequence[str],
    plot: Path | None,
) -> None:
    out = console()
    first = next(iter(found.values()))
    prompts = f"{count(len(recorded))} prompts of {printable(str(requests))}"
    out.print(f"{count(first.requests)} requests, drawn from {prompts}, in {count(len(first.hours))} hours:")
    out.print(details([("CO2e at L0", grams(first.base_grams))]))
    out.print()
    headings = ("POLICY", "CO2E", "SAVED", "BEFORE EVALUATOR", "PREFERENCE", "EVALUATIONS", "JUDGED")
    rows = [
        (
            name,
            grams(outcome.carbon_grams),
            percent(outcome.carbon_saving),
            percent(outcome.carbon_saving_without_evaluator),
            percent(outcome.preference),
            count(outcome.evaluator_runs),
            count(outcome.evaluator_samples),
        )
        for name, outcome in found.items()
    ]
    out.print(table(headings, rows, right=headings[1:]))
    out.print()
    directives = list(dict.fromkeys(name for outcome in found.values() for name in outcome.directive_mix))
    mixes = [
        (name, *(percent(outcome.directive_mix[d]) if d in outcome.directive_mix else "" for d in directives))
        for name, outcome in found.items()
    ]
    out.print(table(("REQUESTS", *map(printable, directives)), mixes, right=[*map(printable, directives)]))
    for title, of in (("PREFERENCE KEPT", "task_preference"), ("ACCURACY KEPT", "accuracy")):
        tasks = [task for task in recorded.tasks if any(task in getattr(o, of) for o in found.values())]
        if tasks:
            out.print()
            kept = [
                (name, *(_share(getattr(outcome, of).get(task)) for task in tasks)) for name, outcome in found.items()
            ]
            out.print(table((title, *map(_name, tasks)), kept, right=[*map(_name, tasks)]))
    out.print()
    for note in notes:
        out.print(dim(printable(note)), soft_wrap=True)
    if plot is not None:
        out.print(f"Drawn in {printable(str(plot))}.")


def _name(task: str) -> str:
    return printable(task) or "(no task)"


def _share(kept: Kept | None) -> str:
    return UNKNOWN if kept is None else percent(kept.share)

"""`pithctl evaluate pairs`: what a judge's pairwise preferences say at equal length. Runs here; no service is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.energy_model import Seed, interval_document, needs_analysis
from router.cli.failures import LocalError
from router.cli.output import console, details, dim, print_document, printable, table
from router.cli.units import count, percent

if TYPE_CHECKING:
    from common.quality.interval import Interval
    from common.quality.preferences import Pair, Preference, Preferences

MOST_PAIRS = 200_000
_FIELDS = ("instruction", "generator_1", "generator_2")


def register(app: typer.Typer) -> None:
    command(app, "pairs")(pairs)


def pairs(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines, plain or .gz: instruction, generator_1, generator_2, preference (1 to 2; 2 = the second "
            "wins), output_1 and output_2 or chars_1 and chars_2; where it is known, first (1 or 2: shown first).",
        ),
    ],
    seed: Seed = 0,
) -> None:
    """Weighs pairwise judgements at equal length. And at balanced order, where it is known which was shown first."""
    given = read_pairs(file)
    with needs_analysis():
        import numpy as np

        from common.quality.preferences import estimate
    found = estimate(given, np.random.default_rng(seed))
    if session.as_json:
        print_document(_document(found))
    else:
        _print(found)


def read_pairs(file: Path) -> Sequence[Pair]:
    """Raises LocalError that names the line and the field."""
    from router.diagnosis.lines import LogError, json_objects, opened

    with needs_analysis():
        from common.quality.preferences import Pair
    found: list[Pair] = []
    try:
        with opened(file) as lines:
            for number, row in json_objects(file, lines):
                try:
                    found.append(_pair(Pair, row))
                except ValueError as error:
                    raise LocalError([f"{file}:{number}: {error}"]) from None
                if len(found) > MOST_PAIRS:
                    raise LocalError([f"{file} has more than {MOST_PAIRS:,} pairs"])
    except LogError as error:
        raise LocalError(list(error.faults)) from None
    if not found:
        raise LocalError([f"{file} has no pairs"])
    return found


def _pair(make: type[Pair], row: Mapping[str, Any]) -> Pair:
    instruction, generator_1, generator_2 = (_text(row, name) for name in _FIELDS)
    if "preference" not in row:
        raise ValueError("has no preference")
    preference = row["preference"]
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not 1 <= preference <= 2:
        raise ValueError(f"preference must be 1 to 2 (2 = the second wins, 1.5 a tie), got {preference!r}")
    first = row.get("first")
    if first is not None and (isinstance(first, bool) or first not in (1, 2)):
        raise ValueError(f"first must be 1 or 2, got {first!r}")
    return make(instruction, generator_1, generator_2, _chars(row, 1), _chars(row, 2), float(preference) - 1.0, first)


def _text(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise ValueError(f"has no {name}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{name} must be a text, got {value!r:.60}")
    return str(value)


def _chars(row: Mapping[str, Any], which: int) -> int:
    output, chars = row.get(f"output_{which}"), row.get(f"chars_{which}")
    if isinstance(output, str):
        return len(output)
    if output is not None:
        raise ValueError(f"output_{which} must be a text, got {output!r:.60}")
    if isinstance(chars, int) and not isinstance(chars, bool):
        return chars
    if chars is not None:
        raise ValueError(f"chars_{which} must be a whole number, got {chars!r:.60}")
    raise ValueError(f"has neither output_{which} nor chars_{which}")


def _document(found: Preferences) -> dict[str, Any]:
    """Of each generator_2; beside it each generator_1 that it stood against, where there are several."""
    of_generator: dict[str, list[Preference]] = {}
    for one in found.generators:
        of_generator.setdefault(one.generator_2, []).append(one)
    generators: dict[str, Any] = {}
    for name, against in of_generator.items():
        each = {one.generator_1: _figures(one) for one in against}
        generators[name] = next(iter(each.values())) if len(each) == 1 else {"against": each}
    return {
        "generators": generators,
        "generator_1": sorted({one.generator_1 for one in found.generators}),
        "judge": {
            "length_slope": None if found.length_slope is None else interval_document(found.length_slope),
            "position": None if found.position is None else interval_document(found.position),
        },
        "chosen_by_cross_validation": {"penalty": found.penalty, "scale_characters": found.scale_characters},
        "confidence": found.generators[0].raw.confidence,
        "methods": {"raw": found.generators[0].raw.method, "corrected": found.generators[0].corrected.method},
    }


def _figures(one: Preference) -> dict[str, Any]:
    return {
        "raw": one.raw.value,
        "raw_interval": [one.raw.lower, one.raw.upper],
        "corrected": one.corrected.value,
        "interval": [one.corrected.lower, one.corrected.upper],
        "n": one.pairs,
        "against": one.generator_1,
    }


def _print(found: Preferences) -> None:
    out = console()
    rows = [
        (
            printable(one.generator_2),
            printable(one.generator_1),
            count(one.pairs),
            _range(one.raw),
            _range(one.corrected),
        )
        for one in sorted(found.generators, key=lambda one: -one.corrected.value)
    ]
    headings = ("GENERATOR", "AGAINST", "PAIRS", "PREFERRED AS JUDGED", "AT EQUAL LENGTH")
    out.print(table(headings, rows, right=headings[2:]))
    out.print()
    facts = []
    if found.length_slope is not None:
        facts.append(("length", f"log-odds a 1,000 characters more: {_log_odds(found.length_slope)}"))
    if found.position is not None:
        facts.append(("position", f"log-odds for the one shown first: {_log_odds(found.position)}"))
    else:
        facts.append(("position", "not known: no order, or always the same (field first)"))
    out.print(details(facts))
    raw, corrected = found.generators[0].raw, found.generators[0].corrected
    out.print(dim(f"As judged: {raw.method}. At equal length: {corrected.method}. Intervals are 95 %."))


def _range(found: Interval) -> str:
    return f"{percent(found.value)} ({100 * found.lower:.1f}-{100 * found.upper:.1f})"


def _log_odds(found: Interval) -> str:
    return f"{found.value:+.2f} ({found.lower:+.2f} to {found.upper:+.2f})"

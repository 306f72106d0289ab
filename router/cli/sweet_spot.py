"""`pithctl energy sweet-spot`: where a workload stands, and what shorter answers or prompts would move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.energy.grid import MAX_BATCH
from router.cli.command import Session, command
from router.cli.energy_model import (
    MODELLED_NOTE,
    EnergyModel,
    Seed,
    beyond_note,
    interval_document,
    needs_analysis,
    read_model,
    tokens_text,
)
from router.cli.failures import LocalError
from router.cli.output import console, details, dim, print_document, printable, table
from router.cli.units import count, joules, percent

if TYPE_CHECKING:
    from common.energy.workload import Change, Standing, Workload
    from common.quality.interval import Interval

_CAVEATS = (
    "A cap cuts the end of an answer off; it does not have the same said in fewer words.",
    "A prompt without its oldest part may be answered worse.",
    "Energy is modelled from the lengths; every prompt counts as computed in full, also where a cache held part of it.",
)


def register(app: typer.Typer) -> None:
    command(app, "sweet-spot")(sweet_spot)


def sweet_spot(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Request log, .csv or .jsonl (.gz): input_tokens, output_tokens, or the Azure trace's columns.",
        ),
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            metavar="FILE",
            help="A grid that `energy fit` reads, what it printed with --json, or an engine's calibration (.json).",
        ),
    ],
    batch: Annotated[
        float | None,
        typer.Option("--batch", min=1, max=MAX_BATCH, metavar="COUNT", help="How many sequences decode together."),
    ] = None,
    caps: Annotated[
        list[int] | None,
        typer.Option(
            "--cap",
            min=1,
            metavar="TOKENS",
            help="Cut answers off there; repeatable.  [default: this log's median and 90th percentile]",
        ),
    ] = None,
    kept: Annotated[
        list[int] | None,
        typer.Option(
            "--keep-input",
            min=1,
            metavar="TOKENS",
            help="Drop the oldest of longer prompts; repeatable.  [default: as for --cap]",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    seed: Seed = 0,
) -> None:
    """Shows a workload beside its sweet spot. And what shorter answers or prompts would move."""
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter("must end in .png, .svg or .pdf", param_hint="--plot")
    with needs_analysis():
        from common.energy.workload import beyond, standing

        source = read_model(model, seed=seed)
        if batch is None and source.falls_with_batch:
            raise typer.BadParameter(
                f"is needed: energy by {model} falls with the batch; say how many sequences decode together",
                param_hint="--batch",
            )
        # Without a term that falls with it, any batch is as good.
        workload = _workload(file, batch or (source.batches[1] if source.batches else 1.0))
        wanted = _wanted(workload, caps, kept)
        changes = [_change(workload, source, cap, keep) for cap, keep in wanted]
        stands = standing(workload, source.model)
        outside = beyond(workload, (source.longest_input, source.longest_output))
        if plot is not None:
            from router.cli.sweet_spot_plot import draw

            draw(plot, workload, source, file.name, caps or [])
    notes = [*_notes(source, workload, outside), *_CAVEATS]
    if session.as_json:
        print_document(_document(file, model, workload, source, stands, outside, changes, notes, plot))
    else:
        _print(file, workload, source, stands, changes, notes, plot)


Saving = tuple["Change", "Interval | None"]
"""What is moved, and how sure its saved share is; None without the model's measurements."""


def _workload(file: Path, batch: float) -> Workload:
    from common.energy.workload import Workload
    from router.diagnosis.lines import LogError
    from router.diagnosis.log import read_log

    try:
        log = read_log(file)
    except LogError as error:
        raise LocalError(error.faults) from None
    return Workload(log.input_tokens, log.output_tokens, batch)


def _wanted(
    workload: Workload, caps: Sequence[int] | None, kept: Sequence[int] | None
) -> list[tuple[int | None, int | None]]:
    """Caps and truncations to try: those asked for, and both together where one of each is."""
    if not caps and not kept:
        caps, kept = _percentiles(workload.output_tokens), _percentiles(workload.input_tokens)
    alone: list[tuple[int | None, int | None]] = [(cap, None) for cap in caps or ()]
    alone += [(None, keep) for keep in kept or ()]
    return [*alone, *([(caps[0], kept[0])] if caps and kept and len(caps) == len(kept) == 1 else ())]


def _percentiles(tokens: Any) -> list[int]:
    import numpy as np

    return [int(end) for end in np.unique(np.round(np.quantile(tokens, (0.5, 0.9))))[::-1] if end >= 1]


def _change(workload: Workload, source: EnergyModel, cap: int | None, keep: int | None) -> Saving:
    from common.energy.workload import change, saved_share

    found = change(workload, source.model, cap=cap, keep_input=keep)
    if source.bootstrap is None:
        return found, None
    after = workload.changed(cap=cap, keep_input=keep)
    return found, source.bootstrap.figure(lambda model: saved_share(workload, after, model))


def _notes(source: EnergyModel, workload: Workload, outside: float) -> list[str]:
    """What weakens what is said."""
    notes = [MODELLED_NOTE] if source.modelled else []
    if not source.model.output_squared_joules:
        notes.append("By this model a longer answer is always cheaper a token: there is no sweet spot.")
    if outside:
        notes.append(beyond_note(source, outside))
    if source.longest_input is None:
        notes.append("The measurements are not known to tell inputs: what a prompt costs may be in no figure here.")
    if source.batches is None:
        notes.append("What was measured is not known: some of these figures may be far beyond it.")
    elif not source.batches[0] <= workload.batch <= source.batches[1]:
        least, most = source.batches
        measured_batch = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        notes.append(f"The measurements are of batch {measured_batch}, not {workload.batch:g}.")
    return notes


def _document(
    file: Path,
    model: Path,
    workload: Workload,
    source: EnergyModel,
    stands: Standing,
    outside: float,
    changes: Sequence[Saving],
    notes: Sequence[str],
    plot: Path | None,
) -> dict[str, Any]:
    n, tokens, sure = _typical(workload, source)
    return {
        "file": str(file),
        "model": {"file": str(model), "coefficients": asdict(source.model), "batch": workload.batch},
        "requests": len(workload),
        "output_tokens": workload.total_output_tokens,
        **asdict(stands),
        "beyond_measured_share": outside,
        "median_input_tokens": n,
        "sweet_spot_tokens": (
            interval_document(sure) if sure else {"value": tokens if tokens != float("inf") else None}
        ),
        "changes": [
            {
                **asdict(change),
                "saved_share": {"value": change.saved_share} if sure is None else interval_document(sure),
            }
            for change, sure in changes
        ],
        "notes": list(notes),
        "plot": None if plot is None else str(plot),
    }


def _typical(workload: Workload, source: EnergyModel) -> tuple[float, float, Interval | None]:
    """The median input, m* there, and how sure that is."""
    import numpy as np

    n = float(np.median(workload.input_tokens))
    sure = source.bootstrap.sweet_spot_tokens(n, workload.batch) if source.bootstrap else None
    return n, source.model.sweet_spot_tokens(n, workload.batch), sure


def _print(
    file: Path,
    workload: Workload,
    source: EnergyModel,
    stands: Standing,
    changes: Sequence[Saving],
    notes: Sequence[str],
    plot: Path | None,
) -> None:
    from common.energy.workload import NEAR

    out = console()
    out.print(f"{count(len(workload))} requests of {printable(str(file))}:")
    n, tokens, sure = _typical(workload, source)
    spread = f" (95 % interval {tokens_text(sure.lower)} to {tokens_text(sure.upper)})" if sure else ""
    shorter, near = stands.shorter_share, stands.near_share
    facts = [
        ("output tokens", _lengths(workload.output_tokens)),
        ("input tokens", _lengths(workload.input_tokens)),
        ("energy", f"{joules(stands.joules_per_request)} a request, {joules(stands.joules_per_output_token)} a token"),
        ("sweet spot", f"{tokens_text(tokens)} output tokens{spread} at {n:,.0f} input tokens"),
    ]
    if shorter is not None:
        facts.append(("before, after it", f"{percent(shorter)} of the answers, {percent(1 - shorter)}"))
    least, each = stands.least_joules_per_output_token, stands.joules_per_output_token
    if least and each and near is not None:
        facts.append(("a token at it", f"{joules(least)}; here one costs {each / least:.3g} times that"))
        facts.append(("near it", f"{percent(near)} of the answers: a token costs up to {100 * NEAR:g} % more"))
    out.print(details(facts))
    out.print()
    _print_changes(workload, changes)
    for note in notes:
        out.print(dim(note), soft_wrap=True)
    if plot is not None:
        out.print(f"Drawn in {printable(str(plot))}.")


def _print_changes(workload: Workload, changes: Sequence[Saving]) -> None:
    headings: tuple[str, ...] = ("WHAT", "ANSWERS CUT", "PROMPTS CUT", "OUTPUT TOKENS", "A TOKEN", "ENERGY SAVED")
    if all(sure for _, sure in changes):
        headings = (*headings, "95 % INTERVAL")
    rows = [
        (
            _what(change),
            percent(change.shortened_answers / len(workload)),
            percent(change.shortened_prompts / len(workload)),
            percent(change.output_tokens / workload.total_output_tokens - 1 if workload.total_output_tokens else None),
            joules(change.joules_per_output_token),
            percent(change.saved_share),
            *((f"{percent(sure.lower)} - {percent(sure.upper)}",) if sure else ()),
        )
        for change, sure in changes
    ]
    console().print(table(headings, rows, right=headings[1:]))


def _what(change: Change) -> str:
    parts = []
    if change.cap is not None:
        parts.append(f"cap {change.cap:,}")
    if change.keep_input is not None:
        parts.append(f"keep {change.keep_input:,} of the input")
    return " and ".join(parts)


def _lengths(tokens: Any) -> str:
    import numpy as np

    median, most = np.quantile(tokens, (0.5, 0.9))
    return f"median {median:,.0f}, 90th percentile {most:,.0f}, mean {np.mean(tokens):,.0f}"

"""`pithctl diagnose`: what directives would save on a request log. Runs here; no router is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.energy.grid import MAX_BATCH
from router.cli.command import Session, command
from router.cli.energy_model import beyond_note, interval_document, needs_analysis, read_model
from router.cli.failures import LocalError
from router.cli.output import coloured, console, details, dim, print_document, printable, table
from router.cli.units import UNKNOWN, count, joules, percent

if TYPE_CHECKING:
    from router.diagnosis.diagnose import Band, Diagnosis, Saving, TaskDiagnosis
    from router.diagnosis.log import Log
    from router.diagnosis.verdict import Verdict

_MOST_TASKS = 30
"""In the table; JSON has all."""
_COLOURS = {"saves": "green", "unsure": "yellow", "quality": "red", "hardly": "dim", "unknown": "yellow"}
_NO_TASK = "(no task)"

CAVEATS = (
    "Where nothing is said of quality, the evaluator must find out: what it closes saves nothing.",
    "Nor do requests that policies leave alone (structured output, tools, explicit length): the log does not tell.",
    "The evaluator's own energy is not deducted: the fewer the requests, the more it takes of what they save.",
    "Every prompt counts as computed in full, also where a cache held part of it.",
    "The intervals do not count the energy law's own error.",
    "A share of energy is the same share of carbon, as long as directives are in force at clean and dirty hours alike.",
)


def register(app: typer.Typer) -> None:
    command(app, "diagnose")(diagnose)


def diagnose(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Request log, .csv or .jsonl (.gz): input_tokens, output_tokens[, task, energy_joules], or the Azure "
            "trace's columns.",
        ),
    ],
    evidence: Annotated[
        Path | None,
        typer.Option(
            "--evidence",
            metavar="FILE",
            help="Requests answered with and without directives, .jsonl (.gz): task, variants {L0: {output_tokens}, "
            "...}.  [default: published measurements]",
        ),
    ] = None,
    energy: Annotated[
        Path | None,
        typer.Option(
            "--energy",
            metavar="FILE",
            help="What `energy fit --json` printed, or an engine's calibration (.json).  [default: fitted to the log's "
            "energies, else an assumption]",
        ),
    ] = None,
    batch: Annotated[
        float | None,
        typer.Option(
            "--batch", min=1, max=MAX_BATCH, metavar="COUNT", help="How many sequences decode together.  [default: any]"
        ),
    ] = None,
    floor: Annotated[
        float, typer.Option("--floor", min=0, max=1, metavar="SHARE", help="Of L0's quality that must be kept.")
    ] = 0.95,
    holdback: Annotated[
        float,
        typer.Option(
            "--holdback", min=0, max=0.5, metavar="SHARE", help="Of requests that stay at L0 to compare with."
        ),
    ] = 0.02,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="NUMBER", help="Of the intervals' draws.")] = 0,
) -> None:
    """Shows what directives would save on a request log.

    The log is taken to be of requests without a directive. Savings are shares of its energy; 95 % of such intervals
    hold what serving the same requests with the directive would have saved.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter("must end in .png, .svg or .pdf", param_hint="--plot")
    if energy is not None and ".csv" in energy.suffixes:
        raise typer.BadParameter(
            f"{energy} is a grid; give what is printed by: pithctl energy fit {energy} --json", param_hint="--energy"
        )
    with needs_analysis():
        from router.diagnosis import diagnose as diagnosis
        from router.diagnosis.evidence import read_evidence
        from router.diagnosis.law import assumed_law, law_of_log, read_law
        from router.diagnosis.lines import LogError
        from router.diagnosis.log import read_log
        from router.diagnosis.published import PUBLISHED
        from router.diagnosis.verdict import verdict

        try:
            log = read_log(file)
            law = read_law(energy, batch) if energy else law_of_log(log) or assumed_law(batch)
            # An assumed law is of some device; it cannot tell how long the answer was that took so much energy.
            own = [read_evidence(evidence, None if law.assumed else law)] if evidence else []
            found = diagnosis.diagnose(log, [*own, PUBLISHED], law, floor=floor, holdback_share=holdback, seed=seed)
        except LogError as error:
            raise LocalError(error.faults) from None
        except ValueError as error:
            raise LocalError([f"{file}: {error}"]) from None
        verdicts = {task.task: verdict(task, floor) for task in found.tasks}
        beyond = _beyond(log, energy) if energy else []
        if plot is not None:
            from router.cli.diagnose_plot import draw

            draw(plot, found, file.name)
    notes = [*beyond, *_advice(found, batch), *found.notes, *CAVEATS]
    if session.as_json:
        print_document(_document(file, found, verdicts, notes, plot))
    else:
        _print(file, found, verdicts, notes, plot)


def _print(file: Path, found: Diagnosis, verdicts: dict[str, Verdict], notes: Sequence[str], plot: Path | None) -> None:
    out = console()
    out.print(f"{count(found.requests)} requests of {printable(str(file))}, taken to be served without a directive:")
    n, m = found.input_tokens / found.requests, found.output_tokens / found.requests
    out.print(
        details(
            [
                ("lengths", f"{n:,.0f} input and {m:,.0f} output tokens in the mean"),
                ("energy", _energy(found)),
                ("load", _load(found)),
                ("effects", "; ".join(dict.fromkeys(_sources(found)))),
            ]
        )
    )
    out.print()
    _print_tasks(found)
    out.print()
    for task in found.tasks[:_MOST_TASKS]:
        said = verdicts[task.task]
        out.print(f"{_name(task)}: ", end="")
        out.print(coloured(f"{said.sentence}.", _COLOURS[said.outlook.value]), soft_wrap=True)
    if len(found.tasks) > 1:
        out.print()
        changed = {task: directive for task, directive in found.mix.directives.items() if directive != "L0"}
        out.print(
            f"Where no published quality speaks against it: {_share(found.mix.share)} of all energy, "
            f"{count(len(changed))} of {count(len(found.tasks))} tasks under a directive."
        )
    out.print()
    _print_bands(found)
    for note in notes:
        out.print(dim(f"{note[0].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"), soft_wrap=True)
    if plot is not None:
        out.print(f"Drawn in {printable(str(plot))}.")


def _print_tasks(found: Diagnosis) -> None:
    names = [saving.directive for saving in found.savings]
    headings = (
        "TASK",
        "REQUESTS",
        "INPUT",
        "OUTPUT",
        "OF ALL ENERGY",
        "OF IT ANSWERS",
        *(f"{printable(n)} SAVES" for n in names),
    )
    rows = [
        (
            _name(task),
            count(task.requests),
            f"{task.input_tokens:,.0f}",
            f"{task.output_tokens:,.0f}",
            percent(task.energy_share),
            _range(task.answers_share),
            *(_saving(saving) for saving in task.savings),
        )
        for task in found.tasks[:_MOST_TASKS]
    ]
    n, m = found.input_tokens / found.requests, found.output_tokens / found.requests
    footer = ("all", count(found.requests), f"{n:,.0f}", f"{m:,.0f}", percent(1.0), "", *map(_saving, found.savings))
    whole = [footer] if len(found.tasks) > 1 else []
    console().print(table(headings, rows, right=headings[1:], footer=whole))
    if len(found.tasks) > _MOST_TASKS:
        console().print(dim(f"{count(len(found.tasks) - _MOST_TASKS)} more tasks are in the sums; --json has all."))


def _print_bands(found: Diagnosis) -> None:
    rows = [
        (_band(band), count(band.requests), percent(band.requests / found.requests), percent(band.energy_share))
        for band in found.bands
    ]
    headings = ("ANSWERS", "REQUESTS", "OF REQUESTS", "OF ENERGY")
    console().print(table(headings, rows, right=headings[1:]))


def _band(band: Band) -> str:
    if band.below is None:
        return f"{band.least:,} tokens and more"
    return f"below {band.below:,} tokens" if band.least == 0 else f"{band.least:,} to {band.below - 1:,} tokens"


def _energy(found: Diagnosis) -> str:
    if found.recorded_joules is None:
        return found.law.source
    return f"{joules(found.recorded_joules)} recorded; by lengths: {found.law.source}"


def _load(found: Diagnosis) -> str:
    law = found.law
    if not law.depends:
        return "as it was where the energies were measured"
    if law.fewest == law.most:
        return f"{law.batch:g} sequences decode together"
    return f"not known: figures are for {law.batch:g} sequences at a time, intervals for {law.fewest:g} to {law.most:g}"


def _advice(found: Diagnosis, batch: float | None) -> list[str]:
    said: list[str] = []
    if batch is not None and not found.law.depends:
        said.append("--batch makes no difference by this energy law")
    if found.law.fewest != found.law.most:
        said.append("--batch, or --energy of your own device, makes these intervals narrower")
    if any(task.savings and not all(s.known and _own(found, s) for s in task.savings) for task in found.tasks):
        said.append(
            "--evidence of your own model makes intervals narrower: 40 requests of a task, answered with and without "
            "directives, are a start"
        )
    return said


def _beyond(log: Log, energy: Path) -> list[str]:
    """Whether the log goes beyond what its energy law was fitted to."""
    from common.energy.workload import Workload, beyond

    model = read_model(energy, seed=0)
    outside = beyond(Workload(log.input_tokens, log.output_tokens), (model.longest_input, model.longest_output))
    return [beyond_note(model, outside)] if outside else []


def _own(found: Diagnosis, saving: Saving) -> bool:
    return saving.evidence != found.evidence[-1]


def _sources(found: Diagnosis) -> list[str]:
    return [saving.evidence for task in found.tasks for saving in task.savings if saving.evidence]


def _name(task: TaskDiagnosis) -> str:
    return printable(task.task) or _NO_TASK


def _saving(saving: Saving) -> str:
    return UNKNOWN if saving.share is None else _share(saving.share)


def _share(share: Any) -> str:
    from router.diagnosis.verdict import span

    return span(share)


def _range(ends: tuple[float, float]) -> str:
    least, most = (f"{100 * end:.0f}" for end in ends)
    return f"{least} %" if least == most else f"{least} to {most} %"


def _document(
    file: Path, found: Diagnosis, verdicts: dict[str, Verdict], notes: Sequence[str], plot: Path | None
) -> dict[str, Any]:
    law = found.law
    return {
        "file": str(file),
        "requests": found.requests,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "energy": {
            "recorded_joules": found.recorded_joules,
            "law": law.source,
            "assumed": law.assumed,
            "batch": law.batch,
            "batches": [law.fewest, law.most],
        },
        "evidence": list(found.evidence),
        "floor": found.floor,
        "holdback_share": found.holdback_share,
        "savings": [_saving_document(saving) for saving in found.savings],
        "mix": {"directives": dict(found.mix.directives), "saved_share": interval_document(found.mix.share)},
        "tasks": [
            {
                "task": task.task,
                "requests": task.requests,
                "input_tokens": task.input_tokens,
                "output_tokens": task.output_tokens,
                "energy_share": task.energy_share,
                "answers_share": list(task.answers_share),
                "savings": [_saving_document(saving) for saving in task.savings],
                "outlook": verdicts[task.task].outlook.value,
                "verdict": verdicts[task.task].sentence,
            }
            for task in found.tasks
        ],
        "answers": [
            {
                "least_tokens": band.least,
                "below_tokens": band.below,
                "requests": band.requests,
                "energy_share": band.energy_share,
            }
            for band in found.bands
        ],
        "notes": list(notes),
        "plot": None if plot is None else str(plot),
    }


def _saving_document(saving: Saving) -> dict[str, Any]:
    quality = saving.quality
    return {
        "directive": saving.directive,
        "saved_share": None if saving.share is None else interval_document(saving.share),
        "task_known": saving.known,
        "evidence": saving.evidence,
        "extrapolated_share": saving.extrapolated_share,
        "published_quality": None
        if quality is None
        else {"before": quality.before, "after": quality.after, "kept": quality.kept, "judged": quality.judged},
    }

"""`pithctl quality plan`: how many samples a floor needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_task
from router.cli.energy_model import Seed, needs_analysis
from router.cli.failures import CallError
from router.cli.floors import opening_floor
from router.cli.output import console, dim, print_document, printable, table
from router.cli.units import UNKNOWN, count, joules, percent

if TYPE_CHECKING:
    from common.quality.sample_size import SampleSize

_STATUS_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Question:
    """One floor of one directive."""

    task: str
    directive: str
    model: str
    policy: str
    floor: float
    share: float | None
    samples: int
    is_open: bool
    is_outdated: bool = False
    """Whether it is closed although its bound clears the floor: the scores are of an earlier text or judge, or old."""


def register(app: typer.Typer) -> None:
    command(app, "plan")(plan)


def plan(
    session: Session,
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Default: every task.", autocompletion=complete_task)
    ] = "",
    floor: Annotated[
        float | None,
        typer.Option(
            "--floor", metavar="SHARE", help="Share of L0's quality to keep.  [default: of the policies; 0.95]"
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--share", metavar="SHARE", help="What it truly keeps of L0's quality. No service is asked then."),
    ] = None,
    baseline: Annotated[float, typer.Option("--baseline", metavar="QUALITY", help="L0's own quality.")] = 1.0,
    gained: Annotated[
        float, typer.Option("--gained", metavar="SHARE", help="How often it is right where L0 is wrong.")
    ] = 0.0,
    alpha: Annotated[float, typer.Option("--alpha", metavar="CHANCE", help="Error probability of a bound.")] = 0.05,
    joules_per_sample: Annotated[
        float | None,
        typer.Option(
            "--joules",
            min=0.0,
            metavar="JOULES",
            help="Of judging a sample.  [default: of an answer that the evaluator had generated]",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Says how many samples a floor needs. By task and directive from the samples so far; with --share, for any."""
    with needs_analysis():
        import numpy as np

        from common.quality.sample_size import Assumption, simulate

    def needed(share: float, floor: float) -> SampleSize | None:
        """None where the floor is not cleared however long one looks."""
        try:
            assumed = Assumption(share, baseline, gained)
            found = simulate(assumed, floor, alpha, np.random.default_rng(seed)) if share > floor else None
        except ValueError as error:
            raise typer.BadParameter(_as_options(str(error))) from None
        return found

    _check(floor, alpha, joules_per_sample)
    if share is not None:
        questions: Sequence[_Question] = [_Question("", "", "", "", floor or 0.95, share, 0, False)]
    else:
        questions = [question for question in _of_router(session, floor) if task in ("", question.task)]
        if joules_per_sample is None:
            joules_per_sample = _joules_of_evaluator(session)
    # What keeps more than L0 is planned as if it kept as much: the assumption knows no more.
    most_share = 1 + gained * (1 - baseline) / baseline if baseline > 0 else 1.0
    answers = [
        (
            question,
            None
            if question.share is None or question.is_open or question.is_outdated
            else needed(question.share if share is not None else min(question.share, most_share), question.floor),
        )
        for question in questions
    ]
    if session.as_json:
        print_document({"alpha": alpha, "plans": [_document(q, found, joules_per_sample) for q, found in answers]})
    else:
        _print(answers, joules_per_sample, task)


def _as_options(fault: str) -> str:
    """By the name that the command line has for the field."""
    field, rest = fault.split(" ", 1)
    return f"--{field.removesuffix('_quality')} {rest}"


def _check(floor: float | None, alpha: float, joules_per_sample: float | None) -> None:
    if floor is not None and not 0 < floor <= 1:
        raise typer.BadParameter(f"must be in (0, 1], got {floor!r}", param_hint="--floor")
    if not 0 < alpha < 1:
        raise typer.BadParameter(f"must be in (0, 1), got {alpha!r}", param_hint="--alpha")
    if joules_per_sample is not None and not math.isfinite(joules_per_sample):
        raise typer.BadParameter(f"must be finite, got {joules_per_sample!r}", param_hint="--joules")


def _of_router(session: Session, floor: float | None) -> Iterable[_Question]:
    """Each bound of all tenants at each relative floor of the policies it decides for; with `floor`, at that one.

    With a quality budget two: what clears the floor by itself is worth more to a mix than what is only open.
    """
    from pith.router.v1.policies_pb2 import FLOOR_KIND_ABSOLUTE, ListPoliciesRequest
    from pith.router.v1.reports_pb2 import ListBoundsRequest

    from router.cli.document import value

    with session.router() as router:
        pages = router.pages(router.reports.ListBounds, ListBoundsRequest(page_size=500))
        bounds = [bound for page in pages for bound in page.bounds if not bound.bound.cell.tenant]
        policy_pages = router.pages(router.policies.ListPolicies, ListPoliciesRequest(page_size=500))
        policies = {policy.name: policy for page in policy_pages for policy in page.policies}
    for listed in bounds:
        bound, cell = listed.bound, listed.bound.cell
        known = (cell.task, cell.directive, cell.model)
        reached = (value(bound, "share"), bound.samples)
        if floor is not None:
            yield _Question(*known, "", floor, *reached, bound.lower >= floor)
            continue
        for name in (*listed.open_for, *listed.closed_for):
            policy = policies.get(name)
            if policy is not None and policy.floor_kind != FLOOR_KIND_ABSOLUTE:
                counts, opens_at = name in listed.open_for, opening_floor(policy)
                for least in sorted({opens_at, policy.floor}):
                    cleared = bound.lower >= least
                    is_open = counts and (cleared or least == opens_at)
                    yield _Question(*known, name, least, *reached, is_open, cleared and not counts)


def _joules_of_evaluator(session: Session) -> float | None:
    """Mean energy of an answer generated to be judged, of which a sample needs one at least; None: not known."""
    from dataclasses import replace

    from pith.evaluator.v1.evaluation_pb2 import GetStatusRequest

    from router.cli.document import value

    timeout = min(session.timeout_seconds or _STATUS_SECONDS, _STATUS_SECONDS)
    with replace(session, timeout_seconds=timeout).evaluator() as evaluator:
        try:
            status = evaluator.call(evaluator.evaluation.GetStatus, GetStatusRequest())
        except CallError:
            return None
    energy = value(status, "energy_joules")
    return energy / status.answers_generated if energy is not None and status.answers_generated else None


def _document(question: _Question, found: SampleSize | None, joules_per_sample: float | None) -> dict[str, Any]:
    from common.quality.sample_size import QUANTILES

    mean = None if found is None else found.mean
    return {
        "task": question.task,
        "directive": question.directive,
        "model": question.model,
        "policy": question.policy,
        "floor": question.floor,
        "share": question.share,
        "samples": question.samples,
        "verdict": _verdict(question, found),
        "samples_needed": None
        if found is None
        else {"mean": mean, **{f"p{100 * at:.0f}": of for at, of in zip(QUANTILES, found.quantiles, strict=True)}},
        "cleared_within": None if found is None else {"samples": found.most, "chance": found.cleared},
        "energy_joules": None if mean is None or joules_per_sample is None else mean * joules_per_sample,
    }


def _verdict(question: _Question, found: SampleSize | None) -> str:
    if question.is_open:
        return "open"
    if question.is_outdated:
        return "outdated"
    if question.share is None:
        return "unknown"
    return "never" if found is None else "in_sight"


def _print(answers: Sequence[tuple[_Question, SampleSize | None]], joules_per_sample: float | None, task: str) -> None:
    out = console()
    if not answers:
        of_task = f" for a floor of task {printable(task)}" if task else ""
        out.print(f"No directive has been judged yet{of_task}: name what it may keep with --share.")
        return
    words = {
        "open": "open already",
        "outdated": "anew: its scores no longer count",
        "unknown": "L0 scored nothing",
        "never": "never: it keeps less than the floor",
    }
    rows = []
    for question, found in answers:
        named = question.task or question.directive
        cells = [question.task or "any", question.directive, question.policy] if named else []
        cells += [percent(question.floor), percent(question.share)]
        if named:
            cells.append(count(question.samples))
        if found is None:
            rows.append((*cells, words[_verdict(question, found)], "", ""))
            continue
        low, middle, high = (f"over {count(found.most)}" if at is None else count(round(at)) for at in found.quantiles)
        energy = UNKNOWN if found.mean is None or joules_per_sample is None else joules(found.mean * joules_per_sample)
        rows.append((*cells, middle, low if low == high else f"{low} - {high}", energy))
    headings = ["FLOOR", "KEEPS", "NEEDED", "8 OF 10 BETWEEN", "ENERGY"]
    if answers[0][0].directive:
        headings = ["TASK", "DIRECTIVE", "POLICY", "FLOOR", "KEEPS", "SAMPLES", *headings[2:]]
    out.print(table(tuple(headings), rows, right=("FLOOR", "KEEPS", "SAMPLES", "NEEDED", "ENERGY")))
    out.print(dim("NEEDED: samples in all (the median), each judged at L0 too, if it truly keeps so much and answers"))
    out.print(dim("are either right or wrong; a judge's comparisons may need more. ENERGY: of the mean number."))

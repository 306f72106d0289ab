"""`pithctl quality history`: why directives opened and closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_directive, complete_policy, complete_task, complete_tenant
from router.cli.output import coloured, console, details, print_document, printable
from router.cli.units import UNKNOWN, at_least, count, percent, span

if TYPE_CHECKING:
    from pith.router.v1.feedback_pb2 import QualityBound, Withdrawal
    from pith.router.v1.policies_pb2 import Policy
    from pith.router.v1.reports_pb2 import QualityStep
    from rich.text import Text

_PAGE_SIZE = 500
_DONE = {"create": "created", "update": "changed", "delete": "deleted", "rollback": "rolled back"}
# What an opening of a directive depends on in a policy, and how it is called.
_TERMS = {
    "mode": "mode",
    "floor": "floor",
    "quality_budget": "quality budget",
    "directives": "directives",
    "tenant": "tenant",
    "task": "task",
    "bound_max_age_seconds": "greatest age of a bound",
    "grader": "grader",
}


def register(app: typer.Typer) -> None:
    command(app, "history")(history)


def history(
    session: Session,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="Default: every task.", autocompletion=complete_task)
    ] = None,
    directive: Annotated[
        str,
        typer.Option("--directive", metavar="NAME", help="Default: every one.", autocompletion=complete_directive),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="A name, or NAME@DIGEST.  [default: every model]")
    ] = "",
    tenant: Annotated[
        str,
        typer.Option(
            "--tenant",
            metavar="TENANT",
            help="What was open for its requests, by its own bounds or those of all.  [default: each bound by itself]",
            autocompletion=complete_tenant,
        ),
    ] = "",
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="NAME", help="What concerns this one.  [default: all]", autocompletion=complete_policy
        ),
    ] = "",
    all_steps: Annotated[bool, typer.Option("--all", help="Also steps that opened and closed nothing.")] = False,
) -> None:
    """Tells why directives opened and closed, oldest first. By which evaluator, judge, scores and code."""
    from pith.router.v1.reports_pb2 import ListQualityHistoryRequest

    from router.cli.document import as_document, moment

    request = ListQualityHistoryRequest(
        page_size=_PAGE_SIZE,
        model=model,
        task=task,
        directive=directive,
        tenant=tenant,
        policy=policy,
        all_steps=all_steps,
    )
    with session.router() as router:
        steps = [step for page in router.pages(router.reports.ListQualityHistory, request) for step in page.steps]
    if session.as_json:
        print_document({"steps": [as_document(step) for step in steps]})
        return
    out = console()
    if not steps:
        asked = any((task is not None, directive, model, tenant, policy))
        of_these = " of what these options name" if asked else ""
        if all_steps:
            out.print(f"Nothing{of_these} has happened yet.")
        else:
            out.print(f"Nothing{of_these} has opened or closed; --all tells what else happened.")
        return
    models = {step.cell.model for step in steps}
    if len(models) == 1:
        out.print(f"Of {printable(*models)}:")
    out.print(details((moment(step, "time"), _told(step, several=len(models) > 1)) for step in steps))


def _told(step: QualityStep, *, several: bool) -> Text:
    """What happened to one cell: the outcome, then why, then what it rests on."""
    from rich.text import Text

    cell = step.cell
    place = f"{cell.directive} of {f'task {cell.task}' if cell.task else 'requests without a task'}"
    place += f" for tenant {cell.tenant}" if cell.tenant else ""
    place += f" on {cell.model}" if several else ""
    lines = [Text.assemble(coloured(f"{place}: ", "bold"), Text("; ").join(_outcomes(step)))]
    lines += [coloured(line, "") for line in (*_causes(step), *_evidence(step))]
    return Text("\n").join(lines)


def _outcomes(step: QualityStep) -> Iterator[Text]:
    openings = sorted(step.openings, key=lambda one: one.open == one.was_open)
    for one in openings:
        stays = "" if one.open != one.was_open else "still "
        words, style = ("open", "green") if one.open else ("closed", "red")
        words = {"open": "opened", "closed": "closed"}[words] if not stays else words
        yield coloured(f"{stays}{words} for policy {one.policy} ({_terms(one)})", "dim" if stays else style)
    if not openings:
        yield coloured("no policy allows it", "dim")


def _terms(opening: QualityStep.Opening) -> str:
    from router.cli.document import word

    floor = _floor(opening.floor, word(opening, "floor_kind"))
    return f"floor {floor}" if word(opening, "mode") == "on" else f"floor {floor}, {word(opening, 'mode')}"


def _floor(floor: float, kind: str) -> str:
    return f"{100 * floor:g} %{' absolute' if kind == 'absolute' else ''}"


def _causes(step: QualityStep) -> Iterator[str]:
    """What happened, a sentence a line."""
    from router.cli.document import word

    cause = word(step, "cause")
    if cause == "withdrawal":
        yield _withdrawn(step.withdrawal, step.cell.task)
    elif cause == "directive":
        revision = step.directive
        name, number = revision.directive.name, revision.directive.revision
        yield _by(revision.directive.updated_by, revision.action, f"directive {name}", number, revision.reason)
        if revision.action != "delete":
            yield f"Scores of other revisions of {name} say nothing about revision {number}."
    elif cause == "policy":
        changed = step.policy.policy
        differences = ", ".join(_differences(step))
        yield _by(
            changed.updated_by,
            step.policy.action,
            f"policy {changed.name}",
            changed.revision,
            step.policy.reason,
            f": {differences}" if differences else "",
        )
    elif cause == "age":
        longest = (
            f"{span(one.bound_max_age_seconds)} for policy {one.policy}"
            for one in step.openings
            if one.open != one.was_open
        )
        yield f"No newer scores came, and the last may be as old as {', '.join(longest)}."
    yield from dict.fromkeys(_sentence(one.explanation) for one in step.openings if _needs_words(step, one))


def _needs_words(step: QualityStep, opening: QualityStep.Opening) -> bool:
    """Whether cause and evidence do not tell yet why it opened or closed."""
    from router.cli.document import word

    cause = word(step, "cause")
    if opening.open == opening.was_open or (cause == "age" and not opening.open):
        return False
    # That of all tenants may decide instead of its own, and the other way round.
    return bool(step.cell.tenant) or not (opening.open or cause == "withdrawal")


def _by(who: str, action: str, what: str, revision: int, reason: str, differences: str = "") -> str:
    why = f' Reason given: "{reason}".' if reason else ""
    return f"{who or 'Somebody'} {_DONE.get(action, action)} {what}, now at revision {revision}{differences}.{why}"


def _differences(step: QualityStep) -> Iterator[str]:
    """Terms of the policy that are not what they were."""
    now = step.policy.policy
    before = step.policy_before if step.HasField("policy_before") else None
    if step.policy.action == "delete":
        return
    for field, name in _TERMS.items():
        new, old = _term(now, field), None if before is None else _term(before, field)
        if old is None and new:
            yield f"{name} {new}"
        elif old is not None and old != new:
            yield f"{name} {old or 'none'} -> {new or 'none'}"


def _term(policy: Policy, field: str) -> str:
    from router.cli.document import word

    value: Any = getattr(policy, field)
    if field == "floor":
        return _floor(value, word(policy, "floor_kind"))
    if field == "quality_budget":
        if not policy.HasField("quality_budget"):
            return ""
        return f"mean of each {word(value, 'scope')} with directives of {_floor(value.directive_floor, 'relative')}"
    if field == "mode":
        return word(policy, field)
    if field == "directives":
        return ", ".join(value)
    return span(value) if field == "bound_max_age_seconds" else str(value)


def _withdrawn(withdrawal: Withdrawal, task: str) -> str:
    from router.cli.document import word

    reason, floor = word(withdrawal, "reason"), withdrawal.floor
    below = ""
    if withdrawal.HasField("floor"):
        absolute = word(floor, "kind") == "absolute"
        below = f" below {100 * floor.quality:g} %{'' if absolute else ' of that of L0'}"
    words = {
        "revision": "its text is another one",
        "judge": "the scores of another judge count from now on",
        "drift": f"quality fell{below} (drift)",
        "contradiction": "no single share agrees with all scores, so quality has changed (contradiction)",
        "task_mix": f"what is asked for under task {task or 'none'} is no longer what the scores are of (task mix)",
    }.get(reason, reason)
    return f"The bound was withdrawn: {words}. Only fresh scores can open it again."


def _evidence(step: QualityStep) -> Iterator[str]:
    """What it rests on, or last rested on."""
    from router.cli.document import moment, word

    if not step.HasField("evidence"):
        yield "Nothing is known of its quality."
        return
    evidence = step.evidence
    bound = evidence.bound
    gone = word(step, "cause") == "withdrawal"
    absolute = any(word(one, "floor_kind") == "absolute" for one in step.openings)
    yield f"{'Until then' if gone else 'Known'}: {_shares(bound, absolute, of_tenant=bool(step.cell.tenant))}"
    code = f"code {evidence.code_revision}" if evidence.code_revision else "code unknown"
    upto = f", all scores up to number {evidence.position} known" if evidence.position else ""
    times = f" from {moment(bound, 'since')} to" if bound.HasField("since") else " up to"
    # Of a withdrawal the time of the last score gave way to its own.
    since = "" if gone else f"{times} {moment(bound, 'updated_at')}"
    yield (
        f"By evaluator {evidence.evaluator or UNKNOWN}, {code}; scores of revision {bound.directive_revision}"
        f"{since}{upto}."
    )


def _shares(bound: QualityBound, absolute: bool, *, of_tenant: bool) -> str:
    from router.cli.document import value, word

    whose = ""
    if of_tenant:
        whose = f" for tenant {bound.cell.tenant}" if bound.cell.tenant else " for all tenants together"
    share = value(bound, "share")
    mean = f", and its mean quality is at least {at_least(bound.absolute_lower)}" if absolute else ""
    corrected = word(bound, "method") == "length_corrected"
    how = ", at equal length and balanced order" if corrected else ""
    kind = "asymptotic, " if corrected else ""
    raw = ""
    if bound.HasField("raw"):
        given = percent(value(bound.raw, "share"))
        raw = f" As the judge gave it: at least {at_least(bound.raw.lower)} (estimate {given})."
    return (
        f"{bound.cell.directive} keeps at least {at_least(bound.lower)} of L0's quality{whose}{how} ({kind}estimate "
        f"{percent(share)}, {count(bound.samples)} answers judged by {bound.judge}){mean}.{raw}"
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."

"""`pithctl policy`: what may be done for whom, and what quality must be kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from common.quality.graders import GRADERS
from common.quality.pairwise import PAIRWISE
from router.cli import editor, resource, revisions
from router.cli.change import NONE
from router.cli.command import Session, command
from router.cli.completion import complete_directive, complete_task, complete_tenant
from router.cli.failures import CallError, ExitCode
from router.cli.files import located, read_manifest
from router.cli.findings import all_findings, grave, print_findings
from router.cli.floors import floor_words
from router.cli.output import console, print_document
from router.cli.resource import Kind
from router.cli.times import parse_span
from router.cli.units import count, grams

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Finding, Policy
    from rich.text import Text

    from router.cli.connection import Connection

_GRADERS = f"{', '.join(sorted(GRADERS))} or {PAIRWISE}"

app = typer.Typer(help="What may be done for whom, and what quality must be kept.")


def _seconds(text: str) -> int:
    return round(_span(text))


def _span(text: str) -> float:
    try:
        return parse_span(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _latency(text: str) -> Any:
    return NONE if text == "none" else _span(text)


def _number(text: str) -> Any:
    try:
        return NONE if text == "none" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor none") from None


_FIELDS = {
    "tenant": Annotated[
        str | None,
        typer.Option(
            "--tenant", metavar="TENANT", help="For whom; empty is everybody.", autocompletion=complete_tenant
        ),
    ],
    "task": Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="For which task; empty is any.", autocompletion=complete_task),
    ],
    "mode": Annotated[
        Literal["off", "shadow", "on"] | None,
        typer.Option(
            "--mode", help="Serve at L0, or decide and record but serve at L0, or serve what is decided.  [new: shadow]"
        ),
    ],
    "traffic_share": Annotated[
        float | None,
        typer.Option("--traffic-share", metavar="SHARE", help="Of conversations that it acts on, 0 to 1.  [new: 1]"),
    ],
    "floor": Annotated[
        float | None, typer.Option("--floor", metavar="SHARE", help="Least quality to keep, above 0 and at most 1.")
    ],
    "floor_kind": Annotated[
        Literal["relative", "absolute"] | None,
        typer.Option("--floor-kind", help="Of L0's quality on the same prompts, or quality itself.  [new: relative]"),
    ],
    "quality_budget__directive_floor": Annotated[
        float | None,
        typer.Option(
            "--directive-floor",
            parser=_number,
            metavar="SHARE",
            help="Requests keep the floor in the mean, each directive only this; none: each keeps the floor.  "
            "[new: none]",
        ),
    ],
    "quality_budget__scope": Annotated[
        Literal["task", "day"] | None,
        typer.Option(
            "--quality-budget-scope",
            help="Mean of each task's requests, or of all of a day (UTC).  [with --directive-floor: task]",
        ),
    ],
    "directives": Annotated[
        list[str] | None,
        typer.Option(
            "--directive",
            metavar="NAME",
            help="May be used; repeatable, an empty one clears the list.",
            autocompletion=complete_directive,
        ),
    ],
    "holdback_share": Annotated[
        float | None,
        typer.Option(
            "--holdback-share", metavar="SHARE", help="Served at L0 to tell the savings by, 0 to 0.5.  [new: 0.02]"
        ),
    ],
    "sample_share": Annotated[
        float | None,
        typer.Option("--sample-share", metavar="SHARE", help="Kept as samples for the evaluator, 0 to 1.  [new: 0.05]"),
    ],
    "grader": Annotated[
        str | None,
        typer.Option("--grader", metavar="NAME", help=f"{_GRADERS}; empty leaves samples ungraded."),
    ],
    "bound_max_age_seconds": Annotated[
        int | None,
        typer.Option(
            "--bound-max-age",
            parser=_seconds,
            metavar="SPAN",
            help="Older bounds count as unknown, e.g. 12h.  [new: 7d]",
        ),
    ],
    "latency__seconds": Annotated[
        float | None,
        typer.Option(
            "--latency",
            parser=_latency,
            metavar="SPAN",
            help="Answers are to be whole within this, e.g. 2s; none: no concern.  [new: none]",
        ),
    ],
    "latency__share": Annotated[
        float | None,
        typer.Option(
            "--latency-share", metavar="SHARE", help="Of requests that must be as fast.  [with --latency: 0.95]"
        ),
    ],
    "carbon_budget__grams_per_day": Annotated[
        float | None,
        typer.Option(
            "--carbon-budget-grams",
            parser=_number,
            metavar="GRAMS",
            help="CO2e a day (UTC), over all routers; none: no budget.  [new: none]",
        ),
    ],
    "carbon_budget__when_spent": Annotated[
        Literal["tighten", "refuse"] | None,
        typer.Option(
            "--when-spent",
            help="Then, for the rest of the day: least carbon for every request, or none served.  [new: tighten]",
        ),
    ],
    "leave_alone__traits": Annotated[
        list[str] | None,
        typer.Option(
            "--leave-alone",
            metavar="TRAIT",
            help="Requests served as they came: structured_output, tools, explicit_length, code, opt_out; repeatable, "
            "an empty one clears the list.  [new: all of them]",
        ),
    ],
}


_MEANINGS = {
    "tenant, task": "for whom and for what; empty is any",
    "mode": "off (serve at L0), shadow (decide and record, but serve at L0), on (serve what is decided)",
    "traffic_share": "of conversations that it acts on, 0 to 1",
    "floor, floor_kind": "least quality to keep, above 0 and at most 1; relative to L0's, or absolute",
    "directives": "that may be used beside L0",
    "holdback_share": "of requests served at L0 to tell the savings by, 0 to 0.5",
    "sample_share": "of requests whose text is kept for the evaluator, 0 to 1",
    "grader": f"of samples: {_GRADERS}; empty leaves them ungraded",
    "bound_max_age_seconds": "older quality bounds count as unknown",
    "latency": "this share of requests (above 0, below 1) is to be answered whole within these seconds",
    "carbon_budget": "grams of CO2e a day (UTC); when_spent is tighten or refuse",
    "leave_alone": "requests with any of these traits are served as they came; [] for none, without it all five",
    "quality_budget": "requests keep the floor in the mean, each directive only directive_floor; scope is task or day",
}


def _row(policy: Policy) -> Sequence[str]:
    from router.cli.document import word

    return (
        policy.name,
        policy.tenant or "any",
        policy.task or "any",
        word(policy, "mode"),
        floor_words(policy),
        ", ".join(policy.directives) or "-",
        str(policy.revision),
    )


def _facts(policy: Policy) -> Iterable[tuple[str, str | Text]]:
    from router.cli.document import word, words_of

    yield "name", policy.name
    yield "tenant", policy.tenant or "any"
    yield "task", policy.task or "any"
    yield "mode", word(policy, "mode")
    yield "floor", floor_words(policy)
    yield "directives", ", ".join(policy.directives) or "-"
    yield "traffic share", f"{policy.traffic_share:g}" if policy.HasField("traffic_share") else "1"
    yield "holdback share", f"{policy.holdback_share:g}" if policy.HasField("holdback_share") else "0.02"
    yield "sample share", f"{policy.sample_share:g}" if policy.HasField("sample_share") else "0.05"
    yield "grader", policy.grader or "-"
    yield "bound max age", f"{count(policy.bound_max_age_seconds)} s"
    latency, budget = policy.latency, policy.carbon_budget
    yield "latency", f"{latency.share:.4g} within {latency.seconds:g} s" if policy.HasField("latency") else "-"
    spent = f"{grams(budget.grams_per_day)} CO2e a day, then {word(budget, 'when_spent')}"
    yield "carbon budget", spent if policy.HasField("carbon_budget") else "-"
    traits = words_of(policy.leave_alone.DESCRIPTOR.fields_by_name["traits"])
    alone = ", ".join(traits[trait] for trait in policy.leave_alone.traits) or "none"
    yield "left alone", alone if policy.HasField("leave_alone") else "all traits"


def _findings(router: Connection, policy: Policy) -> Sequence[Finding]:
    """Those about a policy that acts."""
    from router.cli.document import word

    if word(policy, "mode") == "off":
        return ()
    return [found for found in all_findings(router) if policy.name in (found.subject, *found.others)]


KIND = Kind(
    noun="policy",
    plural="policies",
    options=_FIELDS,
    meanings=_MEANINGS,
    headings=("NAME", "TENANT", "TASK", "MODE", "FLOOR", "DIRECTIVES", "REVISION"),
    right=("REVISION",),
    row=_row,
    facts=_facts,
    in_force="In force on every router within 5 s.",
    once_deleted="Its requests fall to the next one that matches, or to none.",
    findings=_findings,
)
resource.register(app, KIND)
editor.register(app, KIND)
revisions.register(app, KIND)


@command(app, "check")
def check(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", help="As if it were applied, as apply takes it; - is stdin.", show_default=False
        ),
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 7 if there is a warning or a conflict, else with 0.")
    ] = False,
) -> None:
    """Shows what is wrong with the policies taken together, such as contradictions."""
    from router.cli.document import as_document

    findings = _checked(session, file)
    if session.as_json:
        print_document({"findings": [as_document(finding) for finding in findings]})
    elif findings:
        print_findings(findings, console())
    else:
        console().print("Nothing is wrong with the policies taken together.")
    if exit_code and grave(findings):
        raise typer.Exit(ExitCode.FOUND)


def _checked(session: Session, file: str | None) -> Sequence[Finding]:
    """Of what is in force, or would be once the file were applied."""
    from pith.router.v1.policies_pb2 import ApplyRequest, CheckPoliciesRequest

    if file is None:
        with session.router() as router:
            return router.call(router.policies.CheckPolicies, CheckPoliciesRequest()).findings
    manifest = read_manifest(file)
    request = ApplyRequest(directives=manifest.directives, policies=manifest.policies, validate_only=True)
    with session.router() as router:
        try:
            return router.call(router.policies.Apply, request).findings
        except CallError as failure:
            raise located(failure, file, manifest) from None

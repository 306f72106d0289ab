"""`pithctl explain`: what would be decided for a request, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_task, complete_tenant
from router.cli.output import coloured, console, details, dim, print_document, table
from router.cli.units import at_least, grams, joules, percent

if TYPE_CHECKING:
    from pith.router.v1.generation_pb2 import Decision


def register(app: typer.Typer) -> None:
    command(app, "explain")(explain)


def explain(
    session: Session,
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Task of the request.", autocompletion=complete_task)
    ] = "",
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="Default: the token's.", autocompletion=complete_tenant)
    ] = "",
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the user says.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Default: the router's.")] = "",
    conversation_id: Annotated[
        str, typer.Option("--conversation", metavar="ID", help="By which a class that is split is divided.")
    ] = "",
    floor: Annotated[
        float | None, typer.Option("--floor", metavar="SHARE", help="A floor for this request, above the policy's.")
    ] = None,
    opt_out: Annotated[bool, typer.Option("--opt-out", help="As if the caller wanted no directive.")] = False,
) -> None:
    """Shows what would be decided for a request, and why. Nothing is generated or recorded."""
    from pith.common.v1.text_pb2 import ROLE_USER, Message
    from pith.router.v1.generation_pb2 import GenerateRequest
    from pith.router.v1.policies_pb2 import ExplainRequest

    from router.cli.document import as_document, value

    request = GenerateRequest(
        task=task,
        tenant=tenant,
        model=model,
        conversation_id=conversation_id,
        floor=floor,
        opt_out=opt_out,
        messages=[Message(role=ROLE_USER, content=prompt)] if prompt else [],
    )
    with session.router() as router:
        reply = router.call(router.policies.Explain, ExplainRequest(request=request))
    if session.as_json:
        print_document(as_document(reply))
        return
    out = console()
    out.print(details(_decision(reply.decision)))
    if reply.steps:
        out.print()
        out.print(details((f"{index}.", step) for index, step in enumerate(reply.steps, start=1)))
    if reply.candidates:
        rows = [
            (
                candidate.directive,
                coloured("open", "green") if candidate.open else coloured("closed", "red"),
                "-" if candidate.directive == "L0" else at_least(value(candidate, "bound")),
                grams(value(candidate, "predicted_grams")),
                joules(candidate.predicted_energy.joules if candidate.HasField("predicted_energy") else None),
                percent(candidate.planned_share),
                candidate.why,
            )
            for candidate in reply.candidates
        ]
        out.print()
        amounts = ("BOUND", "PREDICTED CO2e", "PREDICTED ENERGY", "PLANNED SHARE")
        out.print(table(("DIRECTIVE", "STATE", *amounts, "WHY"), rows, right=amounts))
        if priced := [(one.directive, one.priced_by) for one in reply.candidates if one.priced_by]:
            out.print()
            out.print(dim("Predicted energy is modelled, from:"))
            out.print(details(priced))
    else:
        out.print(dim("No directive is a candidate."))


def reason_words(decision: Decision) -> str:
    """The decision's reason in words, e.g. "none open"."""
    from router.cli.document import word

    return word(decision, "reason").replace("_", " ")


def _decision(decision: Decision) -> list[tuple[str, str]]:
    from router.cli.document import value

    lines = [("directive", decision.directive), ("reason", reason_words(decision))]
    if decision.explanation:
        lines.append(("", decision.explanation))
    if decision.model:
        lines.append(("answered by", decision.model))
    lines.append(
        ("policy", f"{decision.policy}, revision {decision.policy_revision}" if decision.policy else "none matches")
    )
    if decision.planned_directive and decision.planned_directive != decision.directive:
        lines.append(("planned", decision.planned_directive))
    if decision.HasField("floor"):
        lines.append(("bound", f"{at_least(value(decision, 'bound'))} against a floor of {percent(decision.floor)}"))
    return lines

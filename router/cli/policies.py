"""`pithctl policy`: what may be done for whom, and what quality must be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from router.cli.command import Session, command
from router.cli.edit import Etag, Reason, Yes, confirm, require_given, set_given
from router.cli.output import console, details, print_document, table
from router.cli.times import parse_span
from router.cli.units import count

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Policy

app = typer.Typer(help="The policies: what may be done for whom, and what quality must be kept.")


def _seconds(text: str) -> int:
    try:
        return round(parse_span(text).total_seconds())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]
_FIELDS = {
    "tenant": Annotated[str | None, typer.Option("--tenant", metavar="TENANT", help="For whom; empty is everybody.")],
    "task": Annotated[str | None, typer.Option("--task", metavar="TASK", help="For which task; empty is any.")],
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
    "directives": Annotated[
        list[str] | None,
        typer.Option("--directive", metavar="NAME", help="May be used; repeatable, an empty one clears the list."),
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
        typer.Option("--grader", metavar="NAME", help="numeric, exact or item_set; empty leaves samples ungraded."),
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
}


@command(app, "list")
def list_(session: Session) -> None:
    """Lists the policies."""
    from pith.router.v1.policies_pb2 import ListPoliciesRequest

    from router.cli.document import as_document, word

    with session.router() as router:
        pages = router.pages(router.policies.ListPolicies, ListPoliciesRequest(page_size=500))
        found = [policy for page in pages for policy in page.policies]
    if session.as_json:
        print_document({"policies": [as_document(policy) for policy in found]})
        return
    rows = [
        (
            p.name,
            p.tenant or "any",
            p.task or "any",
            word(p, "mode"),
            _floor(p),
            ", ".join(p.directives) or "-",
            str(p.revision),
        )
        for p in found
    ]
    headings = ("NAME", "TENANT", "TASK", "MODE", "FLOOR", "DIRECTIVES", "REVISION")
    console().print(table(headings, rows, right=("REVISION",)))


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Shows a policy."""
    from pith.router.v1.policies_pb2 import GetPolicyRequest

    with session.router() as router:
        found = router.call(router.policies.GetPolicy, GetPolicyRequest(name=name))
    _print(session, found)


@command(app, "create", fields=_FIELDS)
def create(session: Session, given: dict[str, Any], name: Name, reason: Reason = "") -> None:
    """Creates a policy; in force on every router within 5 s."""
    from pith.router.v1.policies_pb2 import CreatePolicyRequest, Policy

    policy = Policy(name=name)
    set_given(policy, {"mode": "shadow", "floor_kind": "relative"})
    set_given(policy, given)
    with session.router() as router:
        request = CreatePolicyRequest(policy=policy, reason=reason)
        created = router.call(router.policies.CreatePolicy, request)
    _print(session, created)


@command(app, "update", fields=_FIELDS)
def update(session: Session, given: dict[str, Any], name: Name, etag: Etag = None, reason: Reason = "") -> None:
    """Changes what is given of a policy; in force on every router within 5 s."""
    from google.protobuf.field_mask_pb2 import FieldMask
    from pith.router.v1.policies_pb2 import GetPolicyRequest, UpdatePolicyRequest

    require_given(given)
    with session.router() as router:
        policy = router.call(router.policies.GetPolicy, GetPolicyRequest(name=name))
        changed = set_given(policy, given)
        if changed:
            policy.etag = etag or policy.etag
            request = UpdatePolicyRequest(policy=policy, update_mask=FieldMask(paths=changed), reason=reason)
            policy = router.call(router.policies.UpdatePolicy, request)
    _print(session, policy, "" if changed else "It is so already: nothing was changed.")


@command(app, "delete")
def delete(session: Session, name: Name, yes: Yes = False, etag: Etag = None, reason: Reason = "") -> None:
    """Deletes a policy; its requests fall to the next one that matches, or to none."""
    from pith.router.v1.policies_pb2 import DeletePolicyRequest, GetPolicyRequest

    from router.cli.document import word

    with session.router() as router:
        found = router.call(router.policies.GetPolicy, GetPolicyRequest(name=name))
        confirm(f"Delete policy {name} (revision {found.revision}, mode {word(found, 'mode')})?", yes=yes)
        request = DeletePolicyRequest(name=name, etag=etag or found.etag, reason=reason)
        router.call(router.policies.DeletePolicy, request)
    if session.as_json:
        print_document({"deleted": name})
    else:
        console().print(f"Policy {name} is deleted.")


@command(app, "history")
def history(session: Session, name: Name) -> None:
    """Lists a policy's revisions, newest first: who, when, why."""
    from pith.router.v1.policies_pb2 import ListPolicyRevisionsRequest

    from router.cli.document import as_document, moment, word

    with session.router() as router:
        request = ListPolicyRevisionsRequest(name=name, page_size=500)
        pages = router.pages(router.policies.ListPolicyRevisions, request)
        found = [revision for page in pages for revision in page.revisions]
    if session.as_json:
        print_document({"revisions": [as_document(revision) for revision in found]})
        return
    rows = [
        (
            str(r.policy.revision),
            moment(r.policy, "updated_at"),
            r.policy.updated_by or "-",
            r.action,
            word(r.policy, "mode"),
            _floor(r.policy),
            ", ".join(r.policy.directives) or "-",
            r.reason or "-",
        )
        for r in found
    ]
    headings = ("REVISION", "WHEN", "BY", "ACTION", "MODE", "FLOOR", "DIRECTIVES", "REASON")
    console().print(table(headings, rows, right=("REVISION",)))


@command(app, "rollback")
def rollback(
    session: Session,
    name: Name,
    revision: Annotated[
        int, typer.Argument(metavar="REVISION", min=1, max=2**32 - 1, help="Whose content to take; see history.")
    ],
    etag: Etag = None,
    reason: Reason = "",
) -> None:
    """Makes an older revision's content the newest revision."""
    from pith.router.v1.policies_pb2 import GetPolicyRequest, RollbackPolicyRequest

    with session.router() as router:
        present = etag or router.call(router.policies.GetPolicy, GetPolicyRequest(name=name)).etag
        request = RollbackPolicyRequest(name=name, revision=revision, etag=present, reason=reason)
        policy = router.call(router.policies.RollbackPolicy, request)
    _print(session, policy)


def _floor(policy: Policy) -> str:
    from router.cli.document import word

    return f"{policy.floor:g} {word(policy, 'floor_kind')}"


def _print(session: Session, policy: Policy, remark: str = "") -> None:
    from router.cli.document import as_document, moment, word

    if session.as_json:
        print_document(as_document(policy))
        return
    out = console()
    if remark:
        out.print(remark)
    out.print(
        details(
            [
                ("name", policy.name),
                ("tenant", policy.tenant or "any"),
                ("task", policy.task or "any"),
                ("mode", word(policy, "mode")),
                ("floor", _floor(policy)),
                ("directives", ", ".join(policy.directives) or "-"),
                ("traffic share", f"{policy.traffic_share:g}" if policy.HasField("traffic_share") else "1"),
                ("holdback share", f"{policy.holdback_share:g}" if policy.HasField("holdback_share") else "0.02"),
                ("sample share", f"{policy.sample_share:g}" if policy.HasField("sample_share") else "0.05"),
                ("grader", policy.grader or "-"),
                ("bound max age", f"{count(policy.bound_max_age_seconds)} s"),
                ("revision", str(policy.revision)),
                ("updated", f"{moment(policy, 'updated_at')} by {policy.updated_by or 'unknown'}"),
                ("etag", policy.etag),
            ]
        )
    )

"""`pithctl export` and `pithctl apply`: all directives and policies as one file, for review, and back again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.change import Reason, Yes, confirm
from router.cli.command import Session, command
from router.cli.differences import by_field, painted, unified
from router.cli.failures import CallError, ExitCode, LocalError
from router.cli.files import located, read_manifest, write_whole
from router.cli.findings import print_findings
from router.cli.output import console, print_document

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import ApplyRequest, ApplyResponse
    from rich.console import Console


_HEADER = """\
# Directives and policies of Pith. See what a change of this file would do, then do it:
#   pithctl apply FILE --dry-run
#   pithctl apply FILE --reason TEXT
"""


def register(app: typer.Typer) -> None:
    command(app, "export")(export)
    command(app, "apply")(apply)
    command(app, "import", hidden=True)(apply)


def export(
    session: Session,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of printing.")
    ] = None,
    with_etags: Annotated[
        bool, typer.Option("--with-etags", help="So that apply refuses to overwrite what has changed since.")
    ] = False,
) -> None:
    """Prints all directives and policies as YAML, for apply. L0, which cannot change, is left out."""
    from router.cli import directives, policies
    from router.cli.document import as_document
    from router.cli.manifest_text import write

    with session.router() as router:
        found = [d for d in directives.KIND.all(router) if d.name != "L0"], policies.KIND.all(router)
    text = _HEADER + write(*found, with_etags=with_etags)
    if output not in (None, "-"):
        write_whole(output, text)
    if session.as_json:
        print_document(
            {kind: [as_document(r) for r in each] for kind, each in zip(("directives", "policies"), found, strict=True)}
        )
    elif output in (None, "-"):
        sys.stdout.write(text)
    else:
        console().print(f"{len(found[0])} directives and {len(found[1])} policies are in {output}.", soft_wrap=True)


def apply(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="As export writes it; - is stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="With --dry-run: end with 7 if anything would change, else with 0.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete the directives and policies that FILE lacks.")] = False,
    yes: Yes = False,
    reason: Reason = "",
) -> None:
    """Makes directives and policies what a file says. All or nothing; shows the change first, and asks."""
    from pith.router.v1.policies_pb2 import ApplyRequest

    if exit_code and not dry_run:
        raise typer.BadParameter("goes with --dry-run", param_hint="--exit-code")
    manifest = read_manifest(file)
    if prune and not (manifest.directives or manifest.policies):
        raise LocalError([f"{file} names nothing: with --prune, all would be deleted"])
    request = ApplyRequest(
        directives=manifest.directives, policies=manifest.policies, prune=prune, validate_only=True, reason=reason
    )
    with session.router() as router:
        try:
            planned = router.call(router.policies.Apply, request)
            if not dry_run and planned.changes:
                if not (yes and session.as_json):
                    _print(planned, console(stderr=session.as_json))
                if not yes and file == "-":
                    raise LocalError(["nobody can be asked while the manifest comes from stdin"], next_step="add --yes")
                confirm(f"Make {_count(planned)}?", yes=yes)
                done = router.call(router.policies.Apply, _as_shown(request, planned))
            else:
                done = planned
        except CallError as failure:
            raise located(failure, file, manifest) from None
    made = not dry_run and bool(planned.changes)
    if session.as_json:
        print_document({"applied": made, **_document(done)})
    elif made:
        console().print(f"{_count(done)} made: in force on every router within 5 s.")
    else:
        _print(done, console())
        console().print(
            f"{_count(done)} would be made." if done.changes else "It is so already: there is nothing to change."
        )
    if exit_code and done.changes:
        raise typer.Exit(ExitCode.FOUND)


def _as_shown(request: ApplyRequest, planned: ApplyResponse) -> ApplyRequest:
    """The request, to be refused if anything that it changes is no longer what was shown."""
    from pith.router.v1.policies_pb2 import ApplyRequest

    wish = ApplyRequest()
    wish.CopyFrom(request)
    wish.validate_only = False
    changes: Any = planned.changes
    for kind in ("directive", "policy"):
        before = [getattr(change, f"{kind}_before") for change in changes if change.HasField(f"{kind}_before")]
        etags = {resource.name: resource.etag for resource in before}
        for resource in wish.directives if kind == "directive" else wish.policies:
            resource.etag = resource.etag or etags.get(resource.name, "")
    return wish


def _sides(change: Any) -> tuple[str, Any, Any]:
    """ "directive" or "policy", before and after."""
    noun = "directive" if change.HasField("directive_before") or change.HasField("directive_after") else "policy"
    before, after = (
        getattr(change, f"{noun}_{side}") if change.HasField(f"{noun}_{side}") else None for side in ("before", "after")
    )
    return noun, before, after


def _print(reply: ApplyResponse, out: Console) -> None:
    """The changes as diffs, and what the router finds wrong with the outcome."""
    from router.cli.manifest_text import text_of

    for change in reply.changes:
        noun, *sides = _sides(change)
        labels = [_label(noun, side, word) for side, word in zip(sides, ("absent", "deleted"), strict=True)]
        for line in painted(unified(*("" if side is None else text_of(side) for side in sides), *labels)):
            out.print(line, soft_wrap=True)
    if reply.findings:
        print_findings(reply.findings, out)


def _label(noun: str, resource: Any, otherwise: str) -> str:
    return otherwise if resource is None else f"{noun} {resource.name}, revision {resource.revision}"


def _document(reply: ApplyResponse) -> dict[str, Any]:
    from router.cli.document import as_document

    changes = []
    for change in reply.changes:
        noun, before, after = _sides(change)
        action = "create" if before is None else "delete" if after is None else "update"
        name = (before if after is None else after).name
        changes.append({"kind": noun, "name": name, "action": action, "changes": by_field(before, after)})
    return {"changes": changes, "findings": [as_document(finding) for finding in reply.findings]}


def _count(reply: ApplyResponse) -> str:
    return "1 change" if len(reply.changes) == 1 else f"{len(reply.changes)} changes"

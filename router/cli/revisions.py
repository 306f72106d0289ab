"""A resource's past: `history`, `diff` and `rollback`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from router.cli.change import Etag, Reason
from router.cli.command import Session, command
from router.cli.differences import by_field, painted, unified
from router.cli.failures import CallError
from router.cli.output import console, print_document, printable, table
from router.cli.resource import Kind, Name, print_changed

_Number = typer.Argument(metavar="[REVISION]", min=1, max=2**32 - 1, help="See history.", show_default=False)


def register(app: typer.Typer, kind: Kind) -> None:
    """Adds history, diff and rollback."""

    @command(app, "history", words=f"Lists a {kind.noun}'s revisions, newest first: who, when, why.")
    def history(session: Session, name: Name) -> None:
        from router.cli.document import as_document, moment

        with session.router() as router:
            found = kind.revisions(router, name)
        if session.as_json:
            print_document({"revisions": [as_document(revision) for revision in found]})
            return
        rows = [
            (
                str(content.revision),
                moment(content, "updated_at"),
                content.updated_by or "-",
                revision.action,
                ", ".join(_changed(kind, found, index)) or "-",
                revision.reason or "-",
            )
            for index, revision in enumerate(found)
            for content in [getattr(revision, kind.noun)]
        ]
        headings = ("REVISION", "WHEN", "BY", "ACTION", "CHANGED", "REASON")
        console().print(table(headings, rows, right=("REVISION",)))

    @command(
        app,
        "diff",
        words=f"Shows what a revision of a {kind.noun} changed: the newest against the one before; with one revision, "
        "what has changed since; with two, the first against the second.",
    )
    def diff(
        session: Session,
        name: Name,
        first: Annotated[int | None, _Number] = None,
        second: Annotated[int | None, _Number] = None,
    ) -> None:
        with session.router() as router:
            found = kind.revisions(router, name)
        newest = found[0]
        new = newest if second is None else _numbered(kind, found, name, second, session.router_address)
        if first is not None:
            old = _numbered(kind, found, name, first, session.router_address)
        else:
            old = found[1] if len(found) > 1 else None
        before, after = (None if r is None else _content(kind, r) for r in (old, new))
        if session.as_json:
            sides = [None if r is None else getattr(r, kind.noun).revision for r in (old, new)]
            print_document({"name": name, "from": sides[0], "to": sides[1], "changes": by_field(before, after)})
            return
        lines = unified(_text(before), _text(after), _label(kind, name, old), _label(kind, name, new))
        out = console()
        for line in painted(lines):
            out.print(line, soft_wrap=True)
        if not lines:
            out.print("They are the same.")

    @command(
        app,
        "rollback",
        words=f"Makes an older revision's content the newest revision of a {kind.noun}, also of one that is deleted. "
        f"{kind.in_force}",
    )
    def rollback(
        session: Session,
        name: Name,
        revision: Annotated[
            int, typer.Argument(metavar="REVISION", min=1, max=2**32 - 1, help="Whose content to take; see history.")
        ],
        etag: Etag = None,
        reason: Reason = "",
    ) -> None:
        with session.router() as router:
            # Of the history, which one that is deleted has as well.
            present = etag or getattr(kind.revisions(router, name)[0], kind.noun).etag
            restored = kind.call(router, "Rollback", name=name, revision=revision, etag=present, reason=reason)
            print_changed(session, kind, router, restored, kind.once_changed)


def _content(kind: Kind, revision: Any) -> Any:
    """What the revision says; None where it is that there is nothing any more."""
    return None if revision.action == "delete" else getattr(revision, kind.noun)


def _changed(kind: Kind, found: list[Any], index: int) -> Iterable[str]:
    """Fields in which a revision differs from the one before (the next in the list); none for the first, which is all
    new, and for a deletion."""
    content, before = (None if i >= len(found) else _content(kind, found[i]) for i in (index, index + 1))
    return () if content is None or before is None else by_field(before, content)


def _numbered(kind: Kind, found: list[Any], name: str, number: int, address: str) -> Any:
    revision = next((r for r in found if getattr(r, kind.noun).revision == number), None)
    if revision is None:
        from common.errors import not_found

        raise CallError(not_found(f"revision of {kind.noun}", f"{name}/{number}"), "router", address)
    return revision


def _text(content: Any) -> str:
    from router.cli.manifest_text import text_of

    return "" if content is None else text_of(content)


def _label(kind: Kind, name: str, revision: Any) -> str:
    if revision is None:
        return "nothing"
    from router.cli.document import moment

    content = getattr(revision, kind.noun)
    by = f" by {content.updated_by}" if content.updated_by else ""
    why = f": {revision.reason}" if revision.reason else ""
    label = (
        f"{kind.noun} {name}, revision {content.revision} ({revision.action} {moment(content, 'updated_at')}{by}){why}"
    )
    return printable(label).replace("\n", " ")

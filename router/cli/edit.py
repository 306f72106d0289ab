"""How a directive or a policy is changed from options: what was given, what differs, and a question before a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]
Etag = Annotated[
    str | None,
    typer.Option(
        "--etag", metavar="ETAG", help="Only if it still has this etag (see show --json).  [default: the present one]"
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def set_given(resource: Message, given: Mapping[str, Any]) -> list[str]:
    """Sets the fields whose value is not None; returns the names of those that differ from before, in order.

    Enum values are words. A list replaces the whole list; an empty string in it stands for nothing, so that [""]
    clears it.
    """
    from router.cli.document import number

    changed = []
    for name, value in given.items():
        if value is None:
            continue
        before = getattr(resource, name)
        field = resource.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            items = [item for item in value if item != ""]
            if items != list(before):
                changed.append(name)
                del before[:]
                before.extend(items)
            continue
        if field.enum_type is not None:
            value = number(resource, name, value)
        if before != value or (field.has_presence and not resource.HasField(name)):
            changed.append(name)
            try:
                setattr(resource, name, value)
            except ValueError:
                raise typer.BadParameter(f"{value} is too large for {name}") from None
    return changed


def require_given(given: Mapping[str, Any]) -> None:
    """Refuses, as a usage error, an update that names nothing to change."""
    if all(value is None for value in given.values()):
        raise typer.BadParameter("nothing to change was given")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on stderr, so that stdout stays the result's; anything but yes ends the command."""
    if not yes:
        typer.confirm(question, abort=True, err=True)

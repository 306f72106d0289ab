"""How a directive or a policy is changed from options: what was given, what differs, and a question before a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

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


NONE: Final = object()
"""What an option's value is where its field shall be absent."""


def set_given(resource: Message, given: Mapping[str, Any]) -> list[str]:
    """Sets the fields whose value is not None; returns the names of those that differ from before, in order.

    Keys are fields, "latency__share" that of a part. Enum values are words. A list replaces the whole list; an empty
    string in it stands for nothing, so that [""] clears it. NONE makes a field, or the part that it belongs to, absent.

    Raises:
        BadParameter: a value that the field cannot have.
    """
    before = type(resource)()
    before.CopyFrom(resource)
    for key, value in given.items():
        if value is None:
            continue
        *outer, name = key.split("__")
        if value is NONE:
            resource.ClearField((outer or [name])[0])
            continue
        part = resource
        for step in outer:
            part = getattr(part, step)
            part.SetInParent()
        try:
            _set(part, name, value)
        except ValueError as error:
            raise typer.BadParameter(f"{key.replace('__', '.')}: {error}") from None
    fields = dict.fromkeys(key.split("__")[0] for key, value in given.items() if value is not None)
    return [name for name in fields if _differs(before, resource, name)]


def _set(message: Any, name: str, value: Any) -> None:
    """Raises ValueError, which says what the field may be."""
    from router.cli.document import number, words

    field = message.DESCRIPTOR.fields_by_name[name]
    if field.enum_type is not None:
        chosen = [value] if isinstance(value, str) else [word for word in value if word]
        for word in chosen:
            if word not in words(message, name):
                raise ValueError(f"is {word!r}; must be one of {', '.join(words(message, name))}")
        value = [number(message, name, word) for word in chosen]
        value = value if field.is_repeated else value[0]
    if field.is_repeated:
        del getattr(message, name)[:]
        getattr(message, name).extend(item for item in value if item != "")
    elif field.message_type is not None:
        message.ClearField(name)
        variables = dict(item for item in value if item)
        if variables:
            getattr(message, name).update(variables)
    else:
        try:
            setattr(message, name, value)
        except ValueError:
            raise ValueError(f"{value} is too large") from None


def _differs(one: Message, other: Message, name: str) -> bool:
    has_presence = one.DESCRIPTOR.fields_by_name[name].has_presence
    return bool(
        getattr(one, name) != getattr(other, name) or (has_presence and one.HasField(name) != other.HasField(name))
    )


def require_given(given: Mapping[str, Any]) -> None:
    """Refuses, as a usage error, an update that names nothing to change."""
    if all(value is None for value in given.values()):
        raise typer.BadParameter("nothing to change was given")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on stderr, so that stdout stays the result's; anything but yes ends the command."""
    if not yes:
        typer.confirm(question, abort=True, err=True)

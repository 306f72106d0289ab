"""What differs between two texts or two resources: as a unified diff for people, by field for programs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from router.cli.output import coloured

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.text import Text

_STYLES = {"---": "bold", "+++": "bold", "@@": "cyan", "-": "red", "+": "green"}


def unified(before: str, after: str, old: str, new: str) -> list[str]:
    """Lines of a unified diff between texts called `old` and `new`; none where they are the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), old, new, lineterm="")
    return list(lines)


def painted(lines: Iterable[str]) -> Iterable[Text]:
    """The lines, coloured as diffs are."""
    for line in lines:
        yield coloured(line, next((style for sign, style in _STYLES.items() if line.startswith(sign)), ""))


def by_field(before: Message | None, after: Message | None) -> dict[str, Any]:
    """{field: {"before", "after"}} of the fields that differ, but for those that every change changes."""
    from router.cli.document import as_document
    from router.cli.manifest import OUTPUT_ONLY

    old, new = (None if message is None else as_document(message) for message in (before, after))
    return {
        name: {"before": old and old[name], "after": new and new[name]}
        for name in (new or old or {})
        if name not in OUTPUT_ONLY and (old and old[name]) != (new and new[name])
    }

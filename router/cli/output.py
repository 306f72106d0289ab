"""What pithctl prints: JSON for programs; tables for people, folded on a terminal and whole lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# Wide enough that nothing is folded or cut where no terminal sets a width.
_PIPE_COLUMNS = 100_000
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def print_document(document: Mapping[str, Any]) -> None:
    """One JSON document, indented."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def print_line(document: Mapping[str, Any]) -> None:
    """One JSON document on one line, for commands that print several; flushed, as a reader waits for it."""
    print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


def printable(text: str) -> str:
    """The text without control characters, by which what a model or a user wrote could steer a terminal."""
    return text.translate(_CONTROL)


def console(*, stderr: bool = False) -> Console:
    """A console on stdout that takes text as it is: what looks like markup in a directive is the directive's.

    Args:
        stderr: on that instead, for what a person must see while stdout is a program's.
    """
    from rich.console import Console

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else _PIPE_COLUMNS
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def dim(text: str) -> Text:
    return coloured(text, "dim")


def coloured(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(printable(text), style=style)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    footer: Iterable[Sequence[str | Text]] = (),
) -> RenderableType:
    """A table; the columns named in `right` are aligned right, `footer` rows stand out below the others."""
    from router.cli.tables import FittingTable

    return FittingTable(headings, _cells(rows), right, _cells(footer))


def details(pairs: Iterable[tuple[str, str | Text]]) -> RenderableType:
    """Names and values, a line each; a long value folds beside its name."""
    from router.cli.tables import Facts

    return Facts([(name, _cell(value)) for name, value in pairs])


def _cells(rows: Iterable[Sequence[str | Text]]) -> list[list[Text]]:
    return [[*map(_cell, row)] for row in rows]


def _cell(value: str | Text) -> Text:
    return coloured(value, "") if isinstance(value, str) else value

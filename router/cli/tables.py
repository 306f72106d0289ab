"""Tables that fit their terminal: narrower gaps, then folded text, then a block of lines for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.text import Text

_GAPS = (2, 1)
# A column of text may be folded to this, or to its longest word if that is shorter.
_LEAST_COLUMNS = 16


class FittingTable:
    """Rows below headings. Lines end where their text ends.

    Args:
        right: headings of the columns that are aligned right; they are never folded.
        footer: rows that stand out below the others.
    """

    def __init__(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[Text]],
        right: Sequence[str],
        footer: Sequence[Sequence[Text]],
    ) -> None:
        self._headings = headings
        self._rows = rows
        self._footer = footer
        self._justify: list[JustifyMethod] = ["right" if heading in right else "left" for heading in headings]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        natural = [self._width(column, "\n") for column in range(len(self._headings))]
        least = [
            min(width, max(cell_len(heading), min(_LEAST_COLUMNS, self._width(column, None))))
            if self._justify[column] == "left"
            else width
            for column, (heading, width) in enumerate(zip(self._headings, natural, strict=True))
        ]
        fits = [gap for widths in (natural, least) for gap in _GAPS if sum(widths) <= _room(options, widths, gap)]
        if not fits:
            yield from self._blocks(console, options)
            return
        gap = fits[0]
        widths = _shrunk(natural, least, _room(options, natural, gap))
        yield from _lines(console, [Text(heading) for heading in self._headings], widths, self._justify, gap, "bold")
        for row in self._rows:
            yield from _lines(console, row, widths, self._justify, gap)
        for row in self._footer:
            yield from _lines(console, row, widths, self._justify, gap, "bold")

    def _width(self, column: int, separator: str | None) -> int:
        """Of the column's widest line, or with None for separator of its widest word."""
        cells = [row[column].plain for row in (*self._rows, *self._footer)]
        return max(
            cell_len(piece) for cell in [self._headings[column], *cells] for piece in cell.split(separator) or [""]
        )

    def _blocks(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for index, row in enumerate((*self._rows, *self._footer)):
            if index:
                yield Text()
            pairs = [(heading, cell) for heading, cell in zip(self._headings, row, strict=True) if cell.plain]
            yield from Facts(pairs).__rich_console__(console, options)


class Facts:
    """Names and values, a line each; a long value folds beside its name."""

    def __init__(self, pairs: Sequence[tuple[str, Text]]) -> None:
        self._pairs = pairs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        name_width = max((cell_len(name) for name, _ in self._pairs), default=0)
        widths = (name_width, max(1, options.max_width - name_width - _GAPS[0]))
        for name, value in self._pairs:
            yield from _lines(console, [Text(name, style="bold"), value], widths, ("left", "left"), _GAPS[0])


def _room(options: ConsoleOptions, columns: Sequence[int], gap: int) -> int:
    return options.max_width - gap * (len(columns) - 1)


def _shrunk(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths that fit: the widest column gives way first, none below its least."""
    widths = list(natural)
    while sum(widths) > room:
        widest = max((c for c in range(len(widths)) if widths[c] > least[c]), key=lambda c: widths[c])
        widths[widest] -= 1
    return widths


def _lines(
    console: Console,
    cells: Sequence[Text],
    widths: Sequence[int],
    justify: Sequence[JustifyMethod],
    gap: int,
    style: str = "",
) -> Iterator[Text]:
    """The lines of one row."""
    folded = [cell.wrap(console, width, overflow="fold") for cell, width in zip(cells, widths, strict=True)]
    for index in range(max(map(len, folded))):
        line = Text(style=style)
        for column, (pieces, width) in enumerate(zip(folded, widths, strict=True)):
            piece = pieces[index] if index < len(pieces) else Text()
            piece.rstrip()
            blank = " " * (width - piece.cell_len)
            line.append_text(Text(" " * gap if column else ""))
            line.append_text(Text.assemble(blank, piece) if justify[column] == "right" else Text.assemble(piece, blank))
        line.rstrip()
        yield line

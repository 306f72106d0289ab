"""Tables that fit: nothing is lost and no line is too long, whatever the width."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from router.cli.output import details, table

# Headings, rows, and which headings are aligned right.
Content = tuple[list[str], list[list[str]], list[str]]
words = st.text("abcdefgh", min_size=1, max_size=10)
cells = st.lists(words, max_size=5).map(" ".join)


def drawn(renderable: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False, color_system=None).print(renderable)
    return file.getvalue().splitlines()


@st.composite
def tables(draw: st.DrawFn) -> Content:
    headings = draw(st.lists(st.text("ABCDEF", min_size=1, max_size=8), min_size=1, max_size=7, unique=True))
    row = st.lists(cells, min_size=len(headings), max_size=len(headings))
    return headings, draw(st.lists(row, max_size=4)), draw(st.lists(st.sampled_from(headings), unique=True))


@settings(deadline=None)
@given(tables(), st.integers(24, 200))
def test_no_line_is_too_long_and_no_word_is_lost(
    given_: tuple[list[str], list[list[str]], list[str]], width: int
) -> None:
    headings, rows, right = given_
    lines = drawn(table(headings, rows, right=right), width)
    assert all(len(line) <= width and line == line.rstrip() for line in lines)
    letters = sorted("".join(re.findall("[a-h]", "".join(lines))))
    assert letters == sorted("".join(re.findall("[a-h]", "".join(map("".join, rows)))))


def test_a_table_that_fits_is_aligned() -> None:
    rows = [["a", "1", "x"], ["bbb", "1,000", "y z"]]
    assert drawn(table(["NAME", "N", "TEXT"], rows, right=["N"], footer=[["total", "1,001", ""]]), 80) == [
        "NAME       N  TEXT",
        "a          1  x",
        "bbb    1,000  y z",
        "total  1,001",
    ]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (22, ["NAME      N  TEXT", "abc   1,000  two words"]),
        (20, ["NAME     N TEXT", "abc  1,000 two words"]),
        (19, ["NAME      N  TEXT", "abc   1,000  two", "             words"]),
        (16, ["NAME     N TEXT", "abc  1,000 two", "           words"]),
        (12, ["NAME  abc", "N     1,000", "TEXT  two", "      words"]),
    ],
)
def test_gaps_narrow_then_text_folds_then_rows_become_blocks(width: int, lines: list[str]) -> None:
    assert drawn(table(["NAME", "N", "TEXT"], [["abc", "1,000", "two words"]], right=["N"]), width) == lines


def test_details_fold_beside_their_name() -> None:
    assert drawn(details([("a", "one two three"), ("long", "x")]), 13) == ["a     one two", "      three", "long  x"]

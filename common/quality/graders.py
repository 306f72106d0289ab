"""Graders: the quality of an answer, in [0, 1], against a reference.

What is graded is the text after the last "Answer:" (in any case) where there is one, else the whole text; the
reference is read the same way. So an answer that shows its steps gets the grade of one that does not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Protocol

_MARKER = re.compile(r"\banswer\s*:", re.IGNORECASE)
# A digit after a letter belongs to a name (CO2, v1.2); a minus after a word joins or subtracts (3-4).
_NUMBER = re.compile(
    r"(?:(?<![\w)\]%−-])(?P<minus>[-−]))?\$?"
    r"(?<!\w)(?<!\w\.)(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
)
_QUOTES = " \"'`“”„‘’‚«»*"  # with the asterisks of **Answer:**, which stand around an answer as quotes do
_FINAL_PUNCTUATION = ".,;:!?"
_BULLET = re.compile(r"^(?:[-*•]|[0-9]+[.)])\s+")


class Grader(Protocol):
    """Returns the quality of answer, in [0, 1]; raises ValueError for a reference that it cannot use."""

    def __call__(self, answer: str, reference: str) -> float: ...


def numeric(answer: str, reference: str) -> float:
    """1.0 where the last number of the graded text equals that of the reference, else 0.0.

    Understood are a sign, thousands separators, decimals, "$" before and "%" after (both without effect on
    the value), and GSM8K's "####", after which alone numbers count. 18, 18.0 and $18. are equal; 45% and 0.45
    are not.
    Raises ValueError where the reference holds no number.
    """
    expected = _last_number(reference)
    if expected is None:
        raise ValueError(f"reference must hold a number, got {reference!r}")
    return float(_last_number(answer) == expected)


def exact(answer: str, reference: str) -> float:
    """1.0 where graded text and reference are equal once normalised, else 0.0.

    Normalised are Unicode form (NFKC), case, whitespace, surrounding quotes and final punctuation.
    Raises ValueError where the reference is blank.
    """
    expected = _normalised(_graded_text(reference))
    if not expected:
        raise ValueError("reference must not be blank")
    return float(_normalised(_graded_text(answer)) == expected)


def item_set(answer: str, reference: str) -> float:
    """1.0 where both list the same items in any order, else 0.0; an answer that repeats an item gets 0.0.

    Items stand apart by commas or line breaks and are compared as by `exact`, bullets left out. "none" stands
    for the empty set. Raises ValueError where the reference is blank or repeats an item.
    """
    expected = _items(reference)
    if not expected:
        raise ValueError("reference must list items or say none, got a blank one")
    if len(set(expected)) < len(expected):
        raise ValueError(f"reference must not repeat an item, got {reference!r}")
    return float(sorted(_items(answer)) == sorted(expected))


GRADERS: Mapping[str, Grader] = MappingProxyType({"numeric": numeric, "exact": exact, "item_set": item_set})


def grade(name: str, answer: str, reference: str) -> float:
    """Quality of answer by the grader of that name.

    Raises ValueError for an unknown name or a reference that the grader cannot use.
    """
    grader = GRADERS.get(name)
    if grader is None:
        raise ValueError(f"grader must be one of {', '.join(sorted(GRADERS))}, got {name!r}")
    return grader(answer, reference)


def _graded_text(text: str) -> str:
    return _MARKER.split(text)[-1]


def _last_number(text: str) -> Decimal | None:
    numbers = list(_NUMBER.finditer(_graded_text(text).rpartition("####")[2]))
    if not numbers:
        return None
    last = numbers[-1]
    value = Decimal(last["digits"].replace(",", ""))
    return -value if last["minus"] else value


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    collapsed = " ".join(folded.split())
    # What consists of punctuation alone ("?") is its own answer.
    return collapsed.lstrip(_QUOTES).rstrip(_QUOTES + _FINAL_PUNCTUATION) or collapsed


def _items(text: str) -> list[str]:
    pieces = re.split(r"[,\n]", _graded_text(text))
    items = [_normalised(_BULLET.sub("", piece.strip())) for piece in pieces]
    return [item for item in items if item.strip(_QUOTES + _FINAL_PUNCTUATION)]

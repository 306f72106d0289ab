"""The items of a list: these and no others, or at least these."""

from __future__ import annotations

import re

from common.quality.graders.aliases import Wording
from common.quality.graders.normalisation import FINAL_PUNCTUATION, QUOTES, graded_text, normalised, words

_SEPARATOR = re.compile(r"[,\n，、]")
_BULLET = re.compile(r"^(?:[-*•]|[0-9]{1,9}[.)])\s+")


def item_set(answer: str, reference: str, prompt: str = "") -> float:
    """1.0 where both list the same items in any order, else 0.0; an answer that repeats an item gets 0.0.

    Items stand apart by commas or line breaks and are compared as by `exact`, bullets left out. "none" stands
    for the empty set. Raises ValueError where the reference is blank or repeats an item.
    """
    return float(sorted(_items(answer)) == sorted(_distinct_items(reference)))


def required_items(answer: str, reference: str, prompt: str = "") -> float:
    """The share of the reference's items that the answer holds anywhere, in [0, 1]; 1.0 where none is missing.

    Items stand apart by commas or line breaks and count as whole words, as names do by `alias`. What else the answer
    says costs nothing, so a long one has more chances. Raises ValueError where the reference is blank, or has an
    item twice or one without letter and digit.
    """
    required = [words(item) for item in _distinct_items(reference)]
    if not all(required):
        raise ValueError(f"reference must list items with a letter or digit each, got {reference!r}")
    wording = Wording(answer)
    return sum(wording.holds(item) for item in required) / len(required)


def _distinct_items(reference: str) -> list[str]:
    items = _items(reference)
    if not items:
        raise ValueError("reference must list items or say none, got a blank one")
    if len(set(items)) < len(items):
        raise ValueError(f"reference must not repeat an item, got {reference!r}")
    return items


def _items(text: str) -> list[str]:
    pieces = _SEPARATOR.split(graded_text(text))
    items = [normalised(_BULLET.sub("", piece.strip())) for piece in pieces]
    return [item for item in items if item.strip(QUOTES + FINAL_PUNCTUATION)]

"""Any of several names of the right answer."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from common.quality.graders.normalisation import composed, graded_text, words

_PARAGRAPH_END = re.compile(r"(?<=[^:\s])[^\S\n]{0,9}\n[^\S\n]{0,9}\n\s*")


def alias(answer: str, reference: str, prompt: str = "") -> float:
    """1.0 where the decisive part of the answer holds one of the names in the reference, ";" between them, else 0.0.

    Decisive is the first paragraph, with what a colon at its end leads to, of the graded text. A name counts as whole
    words that follow one another, by `words`; spaces and hyphens between them do not matter (Spiderman, Spider-Man).

    What remains of the bias of containment: a paragraph that names many things holds the right one more often, by luck
    or because it says "or"; grading against other prompts' references shows by how much. An answer that comes to the
    point after its first paragraph gets 0. Raises ValueError where the reference holds no name.
    """
    names = aliases_of(reference)
    wording = Wording(decisive_part(answer))
    return float(any(wording.holds(name) for name in names))


def aliases_of(reference: str) -> list[list[str]]:
    """The words of each name, no two alike. Raises ValueError where there is none."""
    found = dict.fromkeys(tuple(words(name)) for name in graded_text(reference).split(";"))
    names = [list(name) for name in found if name]
    if not names:
        raise ValueError(f"reference must hold a name, got {reference!r}")
    return names


def decisive_part(answer: str) -> str:
    return _PARAGRAPH_END.split(graded_text(composed(answer)).strip(), maxsplit=1)[0]


class Wording:
    """A text in which names are looked for: its words without the spaces between them, except between digits."""

    def __init__(self, text: str) -> None:
        self._joined, self._starts, self._ends = _join(words(text))

    def holds(self, name: Sequence[str]) -> bool:
        """Whether a name, given by its words, stands there as whole words."""
        wanted, _, _ = _join(name)
        following = 0
        while following < len(self._starts):
            at = self._joined.find(wanted, self._starts[following])
            if at < 0:
                return False
            # From start to start, so that "bbbbb" is not searched for "bb" at every letter.
            following = bisect_left(self._starts, at)
            if self._starts[following : following + 1] == [at]:
                if at + len(wanted) in self._ends:
                    return True
                following += 1
        return False


def _join(parts: Sequence[str]) -> tuple[str, list[int], set[int]]:
    pieces: list[str] = []
    starts: list[int] = []
    ends: set[int] = set()
    at = 0
    for part in parts:
        # 1 and 2 are not 12.
        if pieces and pieces[-1][-1].isdigit() and part[0].isdigit():
            pieces.append(" ")
            at += 1
        starts.append(at)
        pieces.append(part)
        at += len(part)
        ends.add(at)
    return "".join(pieces), starts, ends

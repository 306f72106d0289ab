"""What people say of answers: raters who compare two, blind, and users who rate the one that they got."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from router.directives.compile import Turn
from router.samples import Score


class Choice(Enum):
    """Which of the two answers of a review is the better one."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"

    def preference(self, *, shown_first: bool) -> float:
        """For the directive's answer, which was shown first or second: 0, 1/2 or 1."""
        if self is Choice.TIE:
            return 0.5
        return float((self is Choice.FIRST) == shown_first)


@dataclass(frozen=True, slots=True)
class Review:
    """Two answers to one prompt, as a rater is shown them: nothing here tells which is L0's."""

    review_id: str
    task: str
    turns: tuple[Turn, ...]
    first: str
    second: str

    @property
    def bytes(self) -> int:
        """Of its text."""
        return sum(len(text.encode()) for text in (self.first, self.second, *(turn.content for turn in self.turns)))


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A rater's choice, beside the judge's score of the same pair."""

    review_id: str
    score: Score
    rater: str
    preference: float
    """For the directive's answer: 0, 1/2 or 1."""
    reviewed_at: datetime

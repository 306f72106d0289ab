"""The contract of a language model that compares two answers, and the ways in which it can fail to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from evaluator.judges.judge_prompt import JudgePrompt


class Failure(StrEnum):
    """Why there is no verdict."""

    UNREACHABLE = "unreachable"
    """It cannot be reached, or fails inside."""
    TIMEOUT = "timeout"
    LIMITED = "limited"
    """It has too much to do."""
    REFUSED = "refused"
    """It lets nobody in, or is not there: so it will be for the next call."""
    REJECTED = "rejected"
    """It takes no such request, e.g. one that is too long for it."""
    MALFORMED = "malformed"
    """Its reply is not what such a service sends."""
    UNPARSABLE = "unparsable"
    """Its reply is sound and names no choice."""
    BUDGET = "budget"
    """Nothing more may be spent on judging today."""
    QUEUE = "queue"
    """More wait for it than may."""
    PAUSED = "paused"
    """It is left alone for a while after it failed."""


class JudgeError(Exception):
    """No verdict. The message is for people, and holds nothing that the model or the other side wrote.

    retry_after_seconds: how long the other side wants to be left alone, where it said.
    """

    def __init__(self, failure: Failure, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the answer shown first is preferred, in [0, 1]; a tie is 1/2."""

    first: float
    model: str
    """Which model said so."""


class JudgeModel(Protocol):
    """Compares two answers. One call is one question: no retries of its own.

    Attributes:
        way: How the model is asked, and how its reply is read: scores by another way are those of another judge.
    """

    way: str

    async def identify(self) -> str:
        """The model that answers at present: name, and digest where it has one. Raises JudgeError."""
        ...

    async def choose(self, prompt: JudgePrompt) -> Verdict:
        """Raises JudgeError."""
        ...

    async def close(self) -> None: ...

"""The contract of a judge."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from common.quality.pairwise import Comparison
from evaluator.samples import Sample


@dataclass(frozen=True, slots=True)
class Judgement:
    """Quality of an answer and of the L0 answer to the same prompt, both in [0, 1], by one judge."""

    quality: float
    baseline_quality: float
    judge: str
    comparison: Comparison | None = None
    """What was said in which order, where the answers were compared with one another."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """Why there is no judgement."""

    reason: str


class Judge(Protocol):
    """Never guesses: what cannot be judged stays unscored, with a reason."""

    def refusal(self, sample: Sample) -> Unscored | None:
        """Why the sample cannot be judged, told before an answer is paid for; None where it can."""
        ...

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        """Judges the texts of a directive's answer and of L0's."""
        ...

    def judges(self, grader: str) -> bool:
        """Whether samples of this grader can be judged at all, at present."""
        ...

    def name(self, grader: str) -> str:
        """The name under which scores by this grader are kept at present; empty where that is not known yet."""
        ...

    async def prepare(self, graders: Collection[str]) -> None:
        """Learns what `name` and `judges` say of these. Raises nothing: who cannot be reached cannot judge."""
        ...

    async def close(self) -> None:
        """Lets go of its connections."""
        ...

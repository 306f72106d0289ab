"""Judges by the right answer, where the caller gave one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from common.quality.graders import GRADERS, grade, judge_name
from common.quality.pairwise import PAIRWISE
from evaluator.judges.base import Judgement, Unscored
from evaluator.samples import Sample


class ReferenceJudge:
    """Holds answer and baseline against the sample's reference, by the grader that its policy names."""

    def judges(self, grader: str) -> bool:
        return grader in GRADERS

    def name(self, grader: str) -> str:
        return judge_name(grader) if grader not in ("", PAIRWISE) else ""

    async def prepare(self, graders: Collection[str]) -> None:
        """It knows all of it already."""

    async def close(self) -> None:
        """It holds nothing open."""

    def refusal(self, sample: Sample) -> Unscored | None:
        if not sample.reference:
            return Unscored("no reference")
        try:
            # A reference that cannot grade itself cannot grade an answer.
            grade(sample.grader, sample.reference, sample.reference, _prompt(sample))
        except ValueError as error:
            # Graders name the reference in full; a log should not.
            return Unscored(str(error).partition(", got ")[0] if sample.grader in GRADERS else str(error))
        return None

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        refusal = self.refusal(sample)
        if refusal is not None:
            return refusal
        # Long answers take a while; the loop has other things to do.
        quality, baseline_quality = await asyncio.to_thread(_grades, sample, (answer, baseline))
        return Judgement(quality, baseline_quality, judge_name(sample.grader))


def _grades(sample: Sample, answers: Sequence[str]) -> list[float]:
    prompt = _prompt(sample)
    return [grade(sample.grader, answer, sample.reference, prompt) for answer in answers]


def _prompt(sample: Sample) -> str:
    """All that the user said: a follow-up ("Are you sure?") is about options that stand further up."""
    return "\n\n".join(turn.content for turn in sample.turns if turn.role == "user")

"""Judges by the right answer, where the caller gave one."""

from __future__ import annotations

from common.quality.graders import GRADERS, grade
from evaluator.judges.base import Judgement, Unscored
from evaluator.samples import Sample


class ReferenceJudge:
    """Holds answer and baseline against the sample's reference, by the grader that its policy names."""

    def judges(self, grader: str) -> bool:
        return grader in GRADERS

    def refusal(self, sample: Sample) -> Unscored | None:
        if not sample.reference:
            return Unscored("no reference")
        try:
            # A reference that cannot grade itself cannot grade an answer.
            grade(sample.grader, sample.reference, sample.reference)
        except ValueError as error:
            # Graders name the reference in full; a log should not.
            return Unscored(str(error).partition(", got ")[0] if sample.grader in GRADERS else str(error))
        return None

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        refusal = self.refusal(sample)
        if refusal is not None:
            return refusal
        return Judgement(
            quality=grade(sample.grader, answer, sample.reference),
            baseline_quality=grade(sample.grader, baseline, sample.reference),
            judge=judge_name(sample.grader),
        )


def judge_name(grader: str) -> str:
    """The name under which a grader's scores are kept."""
    return f"grader:{grader}"

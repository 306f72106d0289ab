"""All judges that there are, as one: each sample goes to the one that knows its grader."""

from __future__ import annotations

from collections.abc import Collection

from common.quality.pairwise import PAIRWISE
from evaluator.judges.base import Judge, Judgement, Unscored
from evaluator.samples import Sample

_NOBODY = Unscored(f"no judge is set up for grader {PAIRWISE!r}: set judge_engine or judge_url")


class Panel:
    """Has answers compared where that is what the grader says, and held against the reference where it says anything
    else.

    Args:
        pairwise: None where no language model is set up.
    """

    def __init__(self, reference: Judge, pairwise: Judge | None) -> None:
        self._reference = reference
        self._pairwise = pairwise

    def judges(self, grader: str) -> bool:
        judge = self._judge(grader)
        return judge is not None and judge.judges(grader)

    def name(self, grader: str) -> str:
        judge = self._judge(grader)
        return "" if judge is None else judge.name(grader)

    async def prepare(self, graders: Collection[str]) -> None:
        for judge in self._all():
            await judge.prepare(graders)

    def refusal(self, sample: Sample) -> Unscored | None:
        judge = self._judge(sample.grader)
        return _NOBODY if judge is None else judge.refusal(sample)

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        judge = self._judge(sample.grader)
        return _NOBODY if judge is None else await judge.judge(sample, answer, baseline)

    async def close(self) -> None:
        for judge in self._all():
            await judge.close()

    def _judge(self, grader: str) -> Judge | None:
        return self._pairwise if grader == PAIRWISE else self._reference

    def _all(self) -> Collection[Judge]:
        return [judge for judge in (self._reference, self._pairwise) if judge is not None]

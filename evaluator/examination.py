"""From a sample to a judgement: the answers that are missing are generated, and both are judged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import PithError
from evaluator.client import RouterClient
from evaluator.judges.base import Judge, Judgement, Unscored
from evaluator.pace import Pace
from evaluator.samples import L0, L0_REVISION, Answer, Sample, Target
from evaluator.spending import Spending


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of one sample, and the answers that it took."""

    sample: Sample
    result: Judgement | Unscored
    generated: tuple[Answer, ...] = ()


class Examiner:
    """Examines samples, so many at a time.

    Args:
        pace: of answers that are generated.
        spending: where generated answers are added up.
    """

    def __init__(
        self, router: RouterClient, judge: Judge, concurrency: int, pace: Pace, spending: Sequence[Spending]
    ) -> None:
        self._router = router
        self._judge = judge
        self._slots = asyncio.Semaphore(concurrency)
        self._pace = pace
        self._spending = spending

    async def examine_all(self, target: Target, samples: Sequence[Sample]) -> list[Examined]:
        """In the order of the samples. An answer that cannot be had leaves its sample unscored."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._examine(target, sample)) for sample in samples]
        return [task.result() for task in tasks]

    async def _examine(self, target: Target, sample: Sample) -> Examined:
        texts: list[str] = []
        generated: list[Answer] = []
        async with self._slots:
            for directive, revision in ((L0, L0_REVISION), (target.cell.directive, target.revision)):
                answer = sample.answer(directive, revision)
                if answer is None:
                    try:
                        answer = await self._generate(sample, directive, revision)
                    except PithError as error:
                        return Examined(sample, Unscored(f"no answer: {error}"))
                    generated.append(answer)
                texts.append(answer.text)
        baseline, text = texts
        return Examined(sample, await self._judge.judge(sample, text, baseline), tuple(generated))

    async def _generate(self, sample: Sample, directive: str, revision: int) -> Answer:
        await self._pace.turn()
        generated = await self._router.generate(sample, directive, revision)
        for spending in self._spending:
            spending.add(generated)
        return generated.answer

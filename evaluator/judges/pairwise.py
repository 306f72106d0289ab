"""Judging by comparison: a language model is shown both answers, in both orders, and says which it prefers."""

from __future__ import annotations

import random
from collections.abc import Collection

import structlog

from common.clock import Clock
from common.metrics import Metrics
from common.quality.pairwise import BASELINE_QUALITY, MAX_COMPARED_CHARACTERS, PAIRWISE, Comparison
from evaluator.client import back_off_seconds
from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.budget import JudgeBudget
from evaluator.judges.judge_model import Failure, JudgeError, JudgeModel, Verdict
from evaluator.judges.judge_prompt import judge_prompt, wording
from evaluator.judges.queue import JudgeQueue
from evaluator.samples import Sample

MAX_WAIT_SECONDS = 60.0
"""Between two tries; one who asks for more is left alone, and the sample unscored."""
MAX_PAUSE_SECONDS = 3600.0
_NAME_CHARACTERS = 100

_MAY_PASS = frozenset({Failure.UNREACHABLE, Failure.TIMEOUT, Failure.LIMITED})
_ASK_ONCE_MORE = frozenset({Failure.MALFORMED, Failure.UNPARSABLE})
# What one comparison met, the next one would.
_OF_THE_JUDGE = _MAY_PASS | {Failure.REFUSED}
# What this comparison met, it would meet again.
_OF_THE_SAMPLE = _ASK_ONCE_MORE | {Failure.REJECTED}
_REMEMBERED_SAMPLES = 10_000


class PairwiseJudge:
    """Quality is the preference for the directive's answer, the mean over both orders; L0's is 1/2 (`Comparison`).

    What needs no opinion costs no call: equal texts are a tie, and a blank answer loses against one that is not.
    Whatever else has no verdict in both orders stays unscored: after one more question where the reply could not be
    used, and after `attempts` tries where the judge could not be had. A judge that cannot be had is then left alone for
    a minute, twice as long each time it happens again, up to an hour, or for as long as it asks. A sample that it could
    not judge is not put to it again while the process runs: nothing new would come of the answers that this takes.

    Args:
        clock: what tries and pauses wait on; wall time outside of tests.
        max_characters: of each answer and of the conversation that the judge is shown.
        rng: draws the marks that keep answers from passing for instructions: nobody should be able to foresee them.
    """

    def __init__(
        self,
        model: JudgeModel,
        budget: JudgeBudget,
        queue: JudgeQueue,
        clock: Clock,
        *,
        attempts: int,
        max_characters: int,
        rng: random.Random,
        metrics: Metrics,
    ) -> None:
        self._model = model
        self._budget = budget
        self._queue = queue
        self._clock = clock
        self._attempts = attempts
        self._max_characters = max_characters
        self._asked = wording(model.way, max_characters)
        self._rng = rng
        self._metrics = _JudgeMetrics(metrics)
        self._name = ""
        self._pauses = 0
        self._paused_until = -1.0
        self._pause_reason = ""
        self._given_up: dict[str, None] = {}
        """Samples, the oldest first."""
        self._log = structlog.get_logger("judge")

    def judges(self, grader: str) -> bool:
        return grader == PAIRWISE and self._unavailable() is None

    def name(self, grader: str) -> str:
        return self._name if grader == PAIRWISE else ""

    async def prepare(self, graders: Collection[str]) -> None:
        if PAIRWISE in graders and self._unavailable() is None:
            try:
                self._know(_name(await self._persistently_identified(), self._asked))
            except JudgeError as fault:
                self._note(fault)

    def refusal(self, sample: Sample) -> Unscored | None:
        if not sample.turns:
            return Unscored("no conversation to judge an answer to")
        if sample.sample_id in self._given_up:
            return Unscored("the judge could not judge them before")
        reason = self._unavailable()
        return None if reason is None else Unscored(reason)

    async def judge(self, sample: Sample, answer: str, baseline: str) -> Judgement | Unscored:
        if (refusal := self.refusal(sample)) is not None:
            return refusal
        try:
            if (settled := _settled(answer, baseline)) is not None:
                name = self._name or _name(await self._persistently_identified(), self._asked)
                shown_first = shown_second = settled
            else:
                async with self._queue.place():
                    name, shown_first, shown_second = await self._in_both_orders(sample, answer, baseline)
        except JudgeError as fault:
            self._note(fault)
            if fault.failure in _OF_THE_SAMPLE:
                self._give_up(sample)
            return Unscored(f"the judge: {fault}")
        self._know(name)
        # A blank answer has no length to be liked or disliked for.
        characters, baseline_characters = (
            min(len(text), MAX_COMPARED_CHARACTERS) if text.strip() else 0 for text in (answer, baseline)
        )
        comparison = Comparison(characters, baseline_characters, shown_first, shown_second)
        return Judgement(comparison.quality, BASELINE_QUALITY, name, comparison)

    async def close(self) -> None:
        await self._model.close()

    async def _in_both_orders(self, sample: Sample, answer: str, baseline: str) -> tuple[str, float, float]:
        """Name of the judge, and preference for `answer` when it was shown first and second. Raises JudgeError."""
        first = await self._verdict(sample, answer, baseline)
        second = await self._verdict(sample, baseline, answer)
        if first.model != second.model:
            raise JudgeError(Failure.MALFORMED, "another model answered between the two orders")
        self._pauses = 0
        return _name(first.model, self._asked), first.first, 1 - second.first

    async def _verdict(self, sample: Sample, first: str, second: str) -> Verdict:
        failed = unusable = 0
        while True:
            # Who waited in the queue need not find out again what the one before found out.
            if (reason := self._unavailable()) is not None:
                raise JudgeError(Failure.PAUSED, reason)
            # A prompt of its own, with another mark: the same one might be misread in the same way.
            prompt = judge_prompt(sample.turns, first, second, self._max_characters, self._rng)
            try:
                verdict = await self._model.choose(prompt)
            except JudgeError as fault:
                self._metrics.calls.labels(fault.failure).inc()
                if fault.failure in _ASK_ONCE_MORE and unusable == 0:
                    unusable += 1
                elif fault.failure in _MAY_PASS and failed + 1 < self._attempts:
                    failed += 1
                    await self._wait(failed, fault)
                else:
                    raise
                self._metrics.retries.inc()
            else:
                self._metrics.calls.labels("verdict").inc()
                return verdict

    async def _persistently_identified(self) -> str:
        failed = 0
        while True:
            try:
                return await self._model.identify()
            except JudgeError as fault:
                failed += 1
                if fault.failure not in _MAY_PASS or failed >= self._attempts:
                    raise
                await self._wait(failed, fault)

    async def _wait(self, failed: int, fault: JudgeError) -> None:
        if fault.retry_after_seconds is not None and fault.retry_after_seconds > MAX_WAIT_SECONDS:
            raise fault
        await self._clock.sleep(max(back_off_seconds(failed), fault.retry_after_seconds or 0.0))

    def _unavailable(self) -> str | None:
        if self._clock.monotonic() < self._paused_until:
            return f"the judge is left alone for a while: {self._pause_reason}"
        return self._budget.refusal()

    def _know(self, name: str) -> None:
        if name != self._name:
            self._name = name
            # What one could not judge, another may.
            self._given_up.clear()

    def _give_up(self, sample: Sample) -> None:
        self._given_up[sample.sample_id] = None
        if len(self._given_up) > _REMEMBERED_SAMPLES:
            del self._given_up[next(iter(self._given_up))]

    def _note(self, fault: JudgeError) -> None:
        """Leaves the judge alone for a while where it is at fault; the log has it once a pause."""
        if fault.failure not in _OF_THE_JUDGE or self._clock.monotonic() < self._paused_until:
            return
        self._pauses += 1
        seconds = min(60.0 * 2 ** min(self._pauses - 1, 16), MAX_PAUSE_SECONDS)
        seconds = max(seconds, fault.retry_after_seconds or 0.0)
        self._paused_until = self._clock.monotonic() + seconds
        self._pause_reason = str(fault)
        self._log.warning("the judge is left alone", failure=fault.failure, reason=str(fault), pause_seconds=seconds)


def _settled(answer: str, baseline: str) -> float | None:
    """The preference for the answer where it needs no opinion."""
    if answer.strip() == baseline.strip():
        return 0.5
    if not answer.strip():
        return 0.0
    if not baseline.strip():
        return 1.0
    return None


def _name(model: str, asked: str) -> str:
    # As the router takes names: one that it refuses would keep every score from it.
    legible = "".join(c if c.isprintable() else "?" for c in model[:_NAME_CHARACTERS])
    return f"{PAIRWISE}:{legible}/prompt-{asked}"


class _JudgeMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.calls = metrics.counter(
            "judge", "Questions to the judge by what came of them.", unit="calls", labels=("result",)
        )
        self.retries = metrics.counter("judge_retries", "Questions that were asked again.", unit="calls")

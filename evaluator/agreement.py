"""Looks, again and again, how far judges agree with people and with users, and raises an alarm where they do not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from common.clock import Clock
from common.errors import PithError
from common.metrics import Metrics
from common.quality.agreement import (
    PeopleAgreement,
    ThumbsAgreement,
    disagrees,
    people_agreement,
    thumbs_agreement,
)
from common.quality.interval import Interval
from evaluator.review_client import ReviewClient


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was found at one look, by judge and task."""

    people: tuple[PeopleAgreement, ...]
    thumbs: tuple[ThumbsAgreement, ...]


class AgreementWatch:
    """Reads what the router keeps of people and users, and sets the alarms.

    Args:
        limit: of the disagreement, 1 - kappa.
        period_seconds: between two looks, on the clock.
    """

    def __init__(
        self, reviews: ReviewClient, limit: float, period_seconds: float, clock: Clock, metrics: Metrics
    ) -> None:
        self.limit = limit
        self._reviews = reviews
        self._period_seconds = period_seconds
        self._clock = clock
        self._alarms = metrics.gauge(
            "judge_disagreement",
            "1 where people, or users' thumbs, disagree with a judge beyond the limit; absent where that is not known.",
            unit="alarm",
            labels=("task", "judge", "source"),
        )
        self._raised: dict[tuple[str, str, str], bool] = {}
        self._log = structlog.get_logger("agreement")

    async def run(self) -> None:
        """Looks until cancelled. A fault is logged, never raised."""
        while True:
            try:
                await self.look()
            except PithError as fault:
                self._log.warning("agreement is not known", fault=str(fault))
            except Exception as fault:
                self._log.error("agreement is not known", exc_info=fault)
            await self._clock.sleep(self._period_seconds)

    async def look(self) -> Agreement:
        """Raises PithError where the router cannot be reached."""
        # Before the totals: then these have every pair that a review is of.
        reviews = await self._reviews.reviews()
        totals = await self._reviews.totals()
        rated = await self._reviews.rated()
        found = await asyncio.to_thread(lambda: Agreement(people_agreement(reviews, totals), thumbs_agreement(rated)))
        self._set_alarms(found)
        return found

    def alarm(self, kappa: Interval | None) -> bool:
        return disagrees(kappa, self.limit) is True

    def _set_alarms(self, found: Agreement) -> None:
        kappas = {(one.task, one.judge, "people"): one.kappa for one in found.people}
        kappas |= {(one.task, one.judge, "thumbs"): one.kappa for one in found.thumbs if not one.directive}
        known = {labels: self.alarm(kappa) for labels, kappa in kappas.items() if kappa is not None}
        for labels in self._raised.keys() - known.keys():
            self._alarms.remove(*labels)
        for labels, raised in known.items():
            self._alarms.labels(*labels).set(raised)
            if raised and not self._raised.get(labels, False):
                task, judge, source = labels
                kappa = kappas[labels]
                self._log.warning(
                    "people disagree with a judge",
                    task=task,
                    judge=judge,
                    source=source,
                    kappa=None if kappa is None else round(kappa.value, 3),
                    limit=self.limit,
                )
        self._raised = known

"""Which requests were seen: the same one again gets the answer that was given, and is never billed twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from common.clock import Clock
from common.errors import aborted, already_exists

REMEMBERED_FOR = timedelta(hours=24)
"""How long a request id is taken: the contract's promise."""

_OVERHEAD_BYTES = 1_000
"""Of a kept answer beside its text: what stands around it in memory, roughly."""

Answer = TypeVar("Answer")
Key = tuple[str, str]
"""(tenant, request_id)"""


class Answers(Generic[Answer]):
    """Requests in flight, answers that are kept, and ids whose answers are no longer.

    Bounded by age (on the router's clock) and by size: the oldest go first. An id that is forgotten before its time can
    be answered again, but enters the ledger no second time, whose key it is.

    Args:
        keep_seconds: How long an answer is kept.
        max_bytes: Of all kept answers.
        max_ids: Ids remembered.
    """

    def __init__(self, clock: Clock, keep_seconds: float, max_bytes: int, max_ids: int) -> None:
        self._clock = clock
        self._keep_for = timedelta(seconds=keep_seconds)
        self._max_bytes = max_bytes
        self._max_ids = max_ids
        self._in_flight: set[Key] = set()
        # Both in order of time, the oldest first.
        self._kept: OrderedDict[Key, tuple[datetime, int, Answer]] = OrderedDict()
        self._kept_bytes = 0
        self._answered: OrderedDict[Key, datetime] = OrderedDict()

    def remember(self, answered: Iterable[Key]) -> None:
        """Ids whose answers are not here: of before this process began, or another's. The oldest come first."""
        now = self._clock.now()
        self._answered.update((key, now) for key in answered)
        self._forget()

    def begin(self, key: Key) -> Answer | None:
        """The kept answer; or None, and the request is in flight until `finish` or `release`.

        Raises:
            PithError: ABORTED (REQUEST_IN_FLIGHT), ALREADY_EXISTS (REQUEST_ANSWERED).
        """
        self._forget()
        if key in self._in_flight:
            raise aborted("REQUEST_IN_FLIGHT", f"request {key[1]!r} is being answered")
        kept = self._kept.get(key)
        if kept is not None:
            return kept[2]
        if key in self._answered:
            raise already_exists("request", key[1], reason="REQUEST_ANSWERED")
        self._in_flight.add(key)
        return None

    def finish(self, key: Key, answer: Answer, size_bytes: int) -> None:
        """The request was answered."""
        self._in_flight.discard(key)
        now = self._clock.now()
        size_bytes += _OVERHEAD_BYTES
        self._kept[key] = (now, size_bytes, answer)
        self._kept_bytes += size_bytes
        self._answered[key] = now
        self._forget()

    def answered(self, key: Key) -> bool:
        """Whether the request is known to have been answered."""
        self._forget()
        return key in self._answered

    def forget(self, tenant: str, before: datetime) -> None:
        """Drops what the tenant was answered before a moment. Its ids stay taken."""
        for key, (at, size_bytes, _) in list(self._kept.items()):
            if key[0] == tenant and at < before:
                del self._kept[key]
                self._kept_bytes -= size_bytes

    def release(self, key: Key) -> None:
        """The request failed: its id is free again. Without effect after `finish`."""
        self._in_flight.discard(key)

    def _forget(self) -> None:
        now = self._clock.now()
        while self._kept:
            key, (at, size_bytes, _) = next(iter(self._kept.items()))
            if now - at < self._keep_for and self._kept_bytes <= self._max_bytes:
                break
            del self._kept[key]
            self._kept_bytes -= size_bytes
        while self._answered:
            key, at = next(iter(self._answered.items()))
            if now - at < REMEMBERED_FOR and len(self._answered) <= self._max_ids:
                break
            del self._answered[key]

"""Answers on their way from the decode loop to the clients: one hand-over a step, deltas coalesced by time."""

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.request import Finished, Update
from engine.sampling import TokenLogprob


class DecodingError(Exception):
    """The decode loop could not go on with this answer; the log has the cause."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer."""

    text: str
    token_ids: tuple[int, ...]
    offset: int
    """Index of the first of `token_ids` among the answer's output tokens."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, where they are asked for."""


class AnswerStream:
    """One answer, as far as its client has not taken it yet. Lives on the event loop.

    What waits is merged, so that a slow client gets larger deltas; the request's output limit bounds it.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._offset = 0
        self._finished: Finished | None = None
        self._not_before = -math.inf
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    def go_on_from(self, output_tokens: int) -> None:
        """The first delta to come begins after this many tokens of the answer, which its client has."""
        self._offset = output_tokens

    def push(self, update: Update) -> None:
        self._text += update.text
        self._token_ids += update.token_ids
        self._logprobs += update.logprobs
        self._finished = update.finished
        self._changed.set()
        if update.failed or update.finished is not None:
            self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def next(self) -> Delta | Finished:
        """The next event: deltas, the first at once, later ones a window apart, the last with the end; then Finished.

        Raises DecodingError in place of Finished. Nothing follows either.
        """
        await self._changed.wait()
        await self._ended_by(self._not_before)
        if self._token_ids or self._text:
            self._not_before = asyncio.get_running_loop().time() + self._window_seconds
            return self._take()
        if self._finished is None:
            raise DecodingError
        return self._finished

    async def _ended_by(self, moment: float) -> None:
        """Waits for the end of the answer, at the latest until `moment` of the event loop's clock."""
        if self.ended or moment <= asyncio.get_running_loop().time():
            return
        try:
            async with asyncio.timeout_at(moment):
                await self._ended.wait()
        except TimeoutError:
            pass

    def _take(self) -> Delta:
        delta = Delta(self._text, tuple(self._token_ids), self._offset, tuple(self._logprobs))
        self._offset += len(self._token_ids)
        self._text = ""
        self._token_ids = []
        self._logprobs = []
        if not self.ended:
            self._changed.clear()
        return delta


class Handover:
    """Carries what the decode loop's thread makes to the event loop: at most one wake-up is under way at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[Sequence[Update]], None]) -> None:
        """`receive` gets the updates, in order, on the event loop."""
        self._loop = loop
        self._receive = receive
        self._lock = threading.Lock()
        self._under_way: list[Update] = []

    def __call__(self, updates: Sequence[Update]) -> None:
        with self._lock:
            wake = not self._under_way
            self._under_way.extend(updates)
        if wake and updates:
            self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        with self._lock:
            updates, self._under_way = self._under_way, []
        self._receive(updates)

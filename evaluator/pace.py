"""How fast the evaluator may go: its calls come to the same router as the users'."""

from __future__ import annotations

from common.clock import Clock


class Pace:
    """Lets callers through one by one, in the order in which they came, so many a minute and no burst after a rest.

    Args:
        per_minute: 0: at once.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = clock.monotonic()

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        now = self._clock.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._seconds
        if turn > now:
            await self._clock.sleep(turn - now)

"""A circuit breaker: an engine that keeps failing is left alone for a while, then tried with one request."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Closed until `threshold` faults come in a row; then open for `cooldown_seconds`; then one request may probe.

    The probe's success closes it, its fault opens it anew, and a probe that says nothing of the engine (its client went
    away) makes room for another. What counts as a fault is the caller's to say: see `router.fleet.dispatch`.

    Args:
        monotonic: wall seconds, since an engine's recovery does not follow simulated time.
    """

    def __init__(
        self,
        threshold: int = 5,
        cooldown_seconds: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._cooldown_seconds = cooldown_seconds
        self._monotonic = monotonic
        self._faults = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Open, or open and being probed."""
        return self._open_until is not None

    @property
    def allows(self) -> bool:
        """Whether a request may be sent now."""
        if self._open_until is None:
            return True
        return not self._probing and self._monotonic() >= self._open_until

    def begin(self) -> bool:
        """A request is sent; whether it is the probe. What it says is handed to the method that ends it."""
        self._probing = self.is_open
        return self._probing

    def succeed(self) -> None:
        """A request was answered."""
        self.reset()

    def fail(self, probe: bool) -> None:
        """A request met a fault of the engine."""
        self._faults += 1
        # Requests that were sent before it opened end one by one: they do not prolong the pause.
        if probe or (not self.is_open and self._faults >= self._threshold):
            self._open_until = self._monotonic() + self._cooldown_seconds
            self._probing = False

    def abandon(self, probe: bool) -> None:
        """A request ended without saying anything of the engine."""
        if probe:
            self._probing = False

    def reset(self) -> None:
        """The engine works, or is a new one at the same address."""
        self._faults = 0
        self._open_until = None
        self._probing = False

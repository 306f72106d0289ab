"""The decode loop, in a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from common.energy.reading import Energy
from engine.batching import ContinuousBatch
from engine.request import GenerationRequest, Update

IDLE_STEP_SECONDS = 1.0
"""Without requests, how often the loop brings idle time and its energy up to date: a counter of energy is read by the
loop's thread alone."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The decode loop after its last step."""

    running: int
    free_blocks: int
    output_tokens: int
    """Since the start."""
    busy_seconds: float
    """In which steps ran, since the start."""
    idle_seconds: float
    """In which none did."""
    idle_energy: Energy | None
    """Of the idle time; None where unknown."""


class Worker:
    """Runs a ContinuousBatch. Its methods may be called from any thread, and take effect before the next step."""

    def __init__(self, batch: ContinuousBatch, deliver: Callable[[Sequence[Update]], None]) -> None:
        """`deliver` is called from the decode loop's thread, once a step, and must not block."""
        self._batch = batch
        self._deliver = deliver
        self._log = structlog.get_logger("worker")
        self._wake = threading.Condition()
        self._submitted: list[GenerationRequest] = []
        self._aborted: list[int] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self.occupancy = self._observe()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop after the step in hand, and returns once it has ended. Requests left over get nothing more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: GenerationRequest) -> None:
        with self._wake:
            self._submitted.append(request)
            self._wake.notify()

    def abort(self, key: int) -> None:
        """Stops a request; its last update says ABORTED. Nothing happens where it has ended already."""
        with self._wake:
            self._aborted.append(key)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not (self._stopping or self._submitted or self._aborted or self._busy()):
                    self._wake.wait(IDLE_STEP_SECONDS)
                if self._stopping:
                    return
                submitted, self._submitted = self._submitted, []
                aborted, self._aborted = self._aborted, []
            updates: list[Update] = []
            try:
                for request in submitted:
                    self._batch.submit(request)
                for key in aborted:
                    updates += self._batch.abort(key)
                updates += self._batch.step()
            except Exception:
                # The loop outlives whatever went wrong in one step: those in it fail, those to come are served.
                self._log.exception("decoding failed")
                updates += self._batch.abandon()
            self.occupancy = self._observe()
            self._deliver(updates)

    def _busy(self) -> bool:
        return self._batch.running > 0 or self._batch.waiting > 0

    def _observe(self) -> Occupancy:
        batch = self._batch
        return Occupancy(
            running=batch.running,
            free_blocks=batch.allocator.free_blocks,
            output_tokens=batch.output_tokens,
            busy_seconds=batch.busy_seconds,
            idle_seconds=batch.idle_seconds,
            idle_energy=batch.idle_energy,
        )

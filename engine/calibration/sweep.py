"""Measures a calibration's cells through the engine's own decode loop."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.cuda.cupy_device import OutOfDeviceMemoryError
from engine.batching import ContinuousBatch
from engine.calibration.grid import Cell
from engine.calibration.rows import GridFile
from engine.energy_counters import EnergyCounter
from engine.request import GenerationRequest
from engine.sampling import SamplingParams

NO_ROOM = (MemoryError, torch.OutOfMemoryError, OutOfDeviceMemoryError)
_WARM_UP_TOKENS = 8
"""Output of the batch that brings new shapes to the device before they are measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one window has shown."""

    joules_per_request: float
    seconds: float


class Window:
    """One decode loop, from which nothing else is asked meanwhile, and the counter of its device."""

    def __init__(
        self,
        batch: ContinuousBatch,
        counter: EnergyCounter | None,
        vocabulary: int,
        generator: np.random.Generator,
        now_seconds: Callable[[], float],
        least_seconds: float,
    ) -> None:
        """
        Args:
            batch: without end tokens, so that every answer is as long as asked for.
            counter: None where there is none: then the batch's own meter says what its answers took.
            generator: draws the prompts, of ids below `vocabulary`, so that none begins as another does.
            least_seconds: at least so long lie between two readings; 0: as long as one batch takes.
        """
        self._batch = batch
        self._counter = counter
        self._vocabulary = vocabulary
        self._generator = generator
        self._now_seconds = now_seconds
        self._least_seconds = least_seconds
        self._keys = itertools.count()
        self._warm: set[tuple[int, int]] = set()

    def measure(self, cell: Cell) -> Reading:
        """Reads the counter around whole batches, as many as fill the window.

        What the device draws without work is in it: while a request is served, it is drawn for that request.

        Raises OSError where the counter cannot be read or stands still, and one of NO_ROOM where memory is out.
        """
        if (shape := (cell.batch, cell.input_tokens)) not in self._warm:
            self._run(cell, min(cell.output_tokens, _WARM_UP_TOKENS))
            self._warm.add(shape)
        before_joules = self._counted()
        began_seconds = self._now_seconds()
        charged_joules, requests, seconds = 0.0, 0, 0.0
        while not requests or seconds < self._least_seconds:
            charged_joules += self._run(cell, cell.output_tokens)
            requests += cell.batch
            seconds = self._now_seconds() - began_seconds
        joules = charged_joules if self._counter is None else self._counted() - before_joules
        if not 0 < joules < math.inf:
            raise OSError(f"counted {joules:g} J in {seconds:.3g} s of work")
        return Reading(joules / requests, seconds)

    def abandon(self) -> None:
        """Forgets the requests of a cell that has failed."""
        self._batch.abandon()

    def _counted(self) -> float:
        return 0.0 if self._counter is None else self._counter.joules()

    def _run(self, cell: Cell, output_tokens: int) -> float:
        """One batch from its first step to its last; what its answers are charged."""
        for _ in range(cell.batch):
            self._batch.submit(
                GenerationRequest(
                    key=next(self._keys),
                    prompt_token_ids=self._generator.integers(self._vocabulary, size=cell.input_tokens).tolist(),
                    sampling=SamplingParams(),
                    max_output_tokens=output_tokens,
                    stop=(),
                    arrived_seconds=self._now_seconds(),
                )
            )
        joules = 0.0
        while self._batch.running or self._batch.waiting:
            for update in self._batch.step():
                if (finished := update.finished) is None:
                    continue
                if (finished.output_tokens, finished.cached_tokens) != (output_tokens, 0):
                    raise RuntimeError(
                        f"{cell}: {finished.output_tokens} tokens came in place of {output_tokens}, and "
                        f"{finished.cached_tokens} of the prompt from the cache in place of 0"
                    )
                joules += 0.0 if finished.energy is None else finished.energy.joules
        return joules


@dataclass(frozen=True, slots=True)
class Swept:
    """How a sweep ended."""

    left: int
    """Windows that are still to be measured, when the time was up."""
    discarded: dict[Cell, str]
    """Cells that could not be measured, with the reason."""


def sweep(
    cells: Sequence[Cell],
    repeats: int,
    window: Window,
    grid: GridFile,
    until_seconds: float,
    now_seconds: Callable[[], float],
    say: Callable[[str], None],
) -> Swept:
    """Measures, in this order, what the grid does not have yet, and keeps each as it comes.

    The first measurement of a process warms the device up. In a new grid it is the first row; else it is dropped.

    Raises GridFileError where the grid cannot be written.
    """
    planned = [cell for turn in range(repeats) for cell in cells if grid.windows(cell) <= turn]
    discarded: dict[Cell, str] = {}

    def measured(cell: Cell) -> Reading | None:
        try:
            return window.measure(cell)
        except (OSError, *NO_ROOM) as fault:
            window.abandon()
            discarded[cell] = " ".join(str(fault).split()) or type(fault).__name__
            say(f"{cell}: discarded: {discarded[cell]}")
            return None

    warm = False
    for done, cell in enumerate(planned):
        if now_seconds() >= until_seconds:
            return Swept(len(planned) - done, discarded)
        if cell in discarded:
            continue
        if not warm:
            if (reading := measured(cell)) is None:
                continue
            if not grid.rows:
                grid.add(cell, reading.joules_per_request, reading.seconds)
            warm = True
        if (reading := measured(cell)) is not None:
            grid.add(cell, reading.joules_per_request, reading.seconds)
            say(f"[{done + 1}/{len(planned)}] {cell}: {reading.joules_per_request:.4g} J, {reading.seconds:.1f} s")
    return Swept(0, discarded)

"""Energy of the steps, shared among the sequences that each step served; an estimate of what a lost engine spent."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from common.architecture.shape import ModelShape
from common.energy.calibration import Calibration
from common.energy.modelled import DevicePrices, Work, request_energy_joules, step_energy_joules
from common.energy.reading import Energy, EnergySource
from common.energy.sweet_spot import SweetSpot
from engine.energy_counters import EnergyCounter
from engine.request import Finished


class Meter(Protocol):
    """Attributes energy to sequences, a step at a time."""

    @property
    def source(self) -> EnergySource:
        """How the energy of a sequence is known."""

    @property
    def idle_watts(self) -> float | None:
        """Power without work, which is charged to no request; None where unknown."""

    def idle(self) -> None:
        """Nothing has run since the last step: the energy since then is no sequence's."""

    def idle_energy(self, idle_seconds: float) -> Energy | None:
        """Of all the time without steps since the start, which is `idle_seconds`; None where unknown."""

    def step(self, work: Sequence[Work]) -> Sequence[float | None]:
        """Joules of each sequence in the step that has just ended, in the order of `work`; None where unknown."""


class ModelledMeter:
    """Computes energy from the model's shape and the device's prices: MODELLED."""

    source = EnergySource.MODELLED

    def __init__(
        self, shape: ModelShape, prices: DevicePrices, bytes_per_parameter: float, bytes_per_kv: float
    ) -> None:
        self._shape = shape
        self._prices = prices
        self._bytes_per_parameter = bytes_per_parameter
        self._bytes_per_kv = bytes_per_kv

    @property
    def idle_watts(self) -> float:
        return self._prices.idle_watts

    def idle(self) -> None:
        pass

    def idle_energy(self, idle_seconds: float) -> Energy:
        return Energy(self.idle_watts * idle_seconds, EnergySource.MODELLED)

    def step(self, work: Sequence[Work]) -> Sequence[float]:
        return step_energy_joules(self._shape, self._prices, work, self._bytes_per_parameter, self._bytes_per_kv)

    def alone_joules(self, prompt_tokens: int, output_tokens: int) -> float:
        """Joules of an answer that shares its steps with no other; both counts are at least 1."""
        return request_energy_joules(
            self._shape, self._prices, prompt_tokens, output_tokens, self._bytes_per_parameter, self._bytes_per_kv
        )


class CountedMeter:
    """Shares what a counter has counted among the sequences, in proportion to what `model` says of them: ATTRIBUTED.

    What the sequences are given and `idle_joules` add up to what the counter has counted. A counter that moves more
    seldom than steps end gives a step the energy of those before it; over an answer's many steps that evens out.
    """

    source = EnergySource.ATTRIBUTED
    idle_watts = None

    def __init__(self, counter: EnergyCounter, model: ModelledMeter) -> None:
        self.idle_joules: float | None = 0.0
        """Counted while nothing ran; None once a reading has failed."""
        self._counter = counter
        self._model = model
        self._counted_joules: float | None = counter.joules()

    def idle(self) -> None:
        joules = self._since_last_reading()
        self.idle_joules = None if joules is None or self.idle_joules is None else self.idle_joules + joules

    def idle_energy(self, idle_seconds: float) -> Energy | None:
        """The counter is read for it alone."""
        return None if self.idle_joules is None else Energy(self.idle_joules, EnergySource.MEASURED)

    def step(self, work: Sequence[Work]) -> Sequence[float | None]:
        joules = self._since_last_reading()
        if joules is None:
            return [None] * len(work)
        shares = self._model.step(work)
        if not sum(shares):  # prices may all be 0
            shares = [float(one.new_tokens) for one in work]
        per_share = joules / sum(shares)
        return [share * per_share for share in shares]

    def _since_last_reading(self) -> float | None:
        """None where this reading or the last has failed, or the counter has fallen: what passed between cannot be told
        apart."""
        before = self._counted_joules
        try:
            self._counted_joules = self._counter.joules()
        except OSError:
            self._counted_joules = None
        if before is None or self._counted_joules is None:
            return None
        joules = self._counted_joules - before
        # A driver that starts anew counts from 0 again.
        return joules if 0 <= joules < math.inf else None


class CalibratedMeter:
    """Prices steps by what this model took on this device when its counter could be read: MODELLED.

    A step costs the difference that it makes to E(n, m). The first piece of a prompt pays, with its own tokens, for
    what comes once in a request and for the first output token, which no step of its own brings; so the steps of an
    answer add up to the calibration's energy of it, where t2 = 2 t4. Which of the tokens before it were prompt a step
    does not show: it costs the mean of what it would if all were and if none was.
    """

    source = EnergySource.MODELLED

    def __init__(self, calibrated: SweetSpot, model: ModelledMeter) -> None:
        """`model` says what the device draws without work."""
        self.idle_watts = model.idle_watts
        self.idle = model.idle
        self.idle_energy = model.idle_energy
        self._calibrated = calibrated

    def step(self, work: Sequence[Work]) -> Sequence[float]:
        return [self._joules(one, len(work)) for one in work]

    def _joules(self, work: Work, batch: int) -> float:
        energy_joules, before = self._calibrated.energy_joules, work.context_tokens
        after = before + work.new_tokens
        if work.begins:
            # What the cache held of the prompt is not computed again.
            return energy_joules(after, 1, batch) - energy_joules(before, 0, batch) + energy_joules(0, 0, batch)
        if work.new_tokens > 1:
            return energy_joules(after, 0, batch) - energy_joules(before, 0, batch)
        after_prompt = energy_joules(after, 1, batch) - energy_joules(after, 0, batch)
        after_answer = energy_joules(0, after + 1, batch) - energy_joules(0, after, batch)
        return (after_prompt + after_answer) / 2


def choose_meter(counter: EnergyCounter | None, model: ModelledMeter, calibration: Calibration | None = None) -> Meter:
    """The strongest claim that this machine allows: its counter, else what one has shown before, else the model."""
    if counter is not None:
        return CountedMeter(counter, model)
    if calibration is not None and calibration.source is EnergySource.MEASURED:
        return CalibratedMeter(calibration.model, model)
    return model


def with_resumed_part(own: Finished, model: ModelledMeter) -> Finished:
    """The account of a whole answer, from that of the part which was decoded here.

    What the part before took died with its engine. The model says how the two parts compare where each runs alone; what
    this part took, in its batch and on this device, is scaled by that. The part before counts once, whether one engine
    or several made it, and without what an engine had decoded but not sent.

    Where nothing was decoded here there is no rate to go by: the part before is taken to have run alone, and its time
    on the device is left out.
    """
    if not own.resumed_tokens:
        return own
    energy, own_tokens = own.energy, own.output_tokens - own.resumed_tokens
    resumed_joules = model.alone_joules(own.prompt_tokens, own.resumed_tokens)
    if not own_tokens:
        return replace(own, energy=energy and energy + Energy(resumed_joules, EnergySource.MODELLED))
    own_joules = model.alone_joules(own.prompt_tokens + own.resumed_tokens, own_tokens)
    # Prices may all be 0.
    share = 1 + (resumed_joules / own_joules if own_joules else own.resumed_tokens / own_tokens)
    return replace(
        own,
        energy=energy and Energy(energy.joules * share, EnergySource.MODELLED),
        busy_seconds=own.busy_seconds * share,
    )

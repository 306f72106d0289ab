"""Energy of the steps, shared among the sequences that each step served."""

from collections.abc import Sequence
from typing import Protocol

from common.architecture.shape import ModelShape
from common.energy.modelled import DevicePrices, Work, step_energy_joules
from common.energy.reading import EnergySource


class Meter(Protocol):
    """Attributes energy to sequences, a step at a time."""

    source: EnergySource

    @property
    def idle_watts(self) -> float | None:
        """Power without work, which is charged to no request; None where unknown."""

    def idle(self) -> None:
        """Nothing has run since the last step: the energy since then is no sequence's."""

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

    def step(self, work: Sequence[Work]) -> Sequence[float]:
        return step_energy_joules(self._shape, self._prices, work, self._bytes_per_parameter, self._bytes_per_kv)

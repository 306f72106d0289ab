"""What evaluation itself has cost: it is charged to the product."""

from __future__ import annotations

from common.carbon.intensity import Signal
from common.metrics import Metrics
from evaluator.samples import Generated


class Spending:
    """Sums over generated answers; None while no answer's figure was known, never 0 for unknown. Grams under several
    signals are never added: those told of are under the newest answer's.

    metrics: counted there too; the answers whose energy is unknown have a counter of their own.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.answers = 0
        self.energy_joules: float | None = None
        self._grams: dict[Signal, float] = {}
        self._signal: Signal | None = None
        self._metrics = None if metrics is None else _Counters(metrics)

    @property
    def carbon_grams(self) -> float | None:
        return None if self._signal is None else self._grams[self._signal]

    def add(self, generated: Generated) -> None:
        self.answers += 1
        if generated.energy_joules is not None:
            self.energy_joules = (self.energy_joules or 0.0) + generated.energy_joules
        if generated.carbon_grams is not None and generated.signal is not None:
            self._signal = generated.signal
            self._grams[self._signal] = self._grams.get(self._signal, 0.0) + generated.carbon_grams
        if self._metrics is not None:
            self._metrics.add(generated)


class _Counters:
    def __init__(self, metrics: Metrics) -> None:
        self._answers = metrics.counter("generated", "Answers generated to be judged.", unit="answers")
        self._unknown = metrics.counter(
            "energy_unknown", "Of these, answers whose energy is not known.", unit="answers"
        )
        self._energy = metrics.counter("energy", "Energy of generated answers, where known.", unit="joules")
        self._carbon = metrics.counter(
            "carbon",
            "Emissions of generated answers, where known; not to be added over signals.",
            unit="grams",
            labels=("signal",),
        )

    def add(self, generated: Generated) -> None:
        self._answers.inc()
        if generated.energy_joules is None:
            self._unknown.inc()
        else:
            self._energy.inc(generated.energy_joules)
        if generated.carbon_grams is not None and generated.signal is not None:
            self._carbon.labels(str(generated.signal)).inc(generated.carbon_grams)

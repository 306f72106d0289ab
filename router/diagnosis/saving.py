"""What the recorded requests of one task would have cost with a directive, drawn as often as it takes to be sure. Pure.

A request of n input and m output tokens cost E(n, m), by the law or as recorded; with a directive of d input tokens and
an effect mu(m) it would have cost E(n + d, m') with m' about mu(m). Draws spread by what is not known: the effect's
parameters; the answers' own scatter, which a gamma distribution of the sum carries, as lengths are positive and skewed;
and where the task or the model is none that the evidence is of, tasks' and models' differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from common.energy.sweet_spot import SweetSpot
from router.diagnosis.effect import Effect, draw_parameters, mean_tokens
from router.diagnosis.log import Log

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

MIN_TASKS: Final = 3
"""That an effect must be known of before it says anything of another task."""
_BANDS_AN_OCTAVE: Final = 16
_EXACT_TOKENS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Requests of one task, their answers sorted into bands of output tokens: one length, or a few per cent wide."""

    inputs: Vector  # [requests]
    outputs: Vector  # [requests]
    joules: Vector | None  # [requests]
    """As recorded; None where the law shall say them."""
    band: NDArray[np.int64]  # [requests]
    tokens: Vector  # [bands]
    """Mean output tokens."""

    @classmethod
    def of(cls, log: Log, rows: NDArray[np.int64] | slice, *, recorded: bool) -> Lengths:
        """Of some of a log's requests.

        Args:
            recorded: Whether their energies count as recorded. The law says then how they would have changed.
        """
        import numpy as np

        outputs = np.frombuffer(log.output_tokens, np.int64)[rows].astype(float)
        key = np.where(
            outputs < _EXACT_TOKENS,
            outputs,
            np.round(_EXACT_TOKENS + _BANDS_AN_OCTAVE * np.log2(np.maximum(outputs, 1) / _EXACT_TOKENS)),
        )
        _, band, count = np.unique(key, return_inverse=True, return_counts=True)
        return cls(
            inputs=np.frombuffer(log.input_tokens, np.int64)[rows].astype(float),
            outputs=outputs,
            joules=np.frombuffer(log.energy_joules, np.float64)[rows] if recorded else None,
            band=band,
            tokens=np.bincount(band, outputs) / count,
        )

    def weights(self, model: SweetSpot, batch: float) -> Vector:
        """Joules that were recorded for one by the law.  # [requests]"""
        import numpy as np

        if self.joules is None:
            return np.ones_like(self.inputs)
        by_law = cast("Any", model).energy_joules(self.inputs, self.outputs, batch)
        found: Vector = np.divide(self.joules, by_law, out=np.zeros_like(self.joules), where=by_law > 0)
        return found

    def joules_beside(self, weights: Vector) -> float:
        """What was recorded of requests that cost nothing by the law: no directive changes it."""
        return 0.0 if self.joules is None else float(self.joules[weights == 0].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """Energy of a task's requests as a quadratic in their answers' lengths: fixed + linear m + square m^2."""

    fixed: float
    linear: Vector  # [bands]
    linear_square: Vector  # [bands]
    """Sum of the squares."""
    square: Vector  # [bands]

    @classmethod
    def of(cls, lengths: Lengths, model: SweetSpot, batch: float, extra_input_tokens: float = 0.0) -> Cost:
        import numpy as np

        law, n, w = cast("Any", model), lengths.inputs + extra_input_tokens, lengths.weights(model, batch)
        fixed = law.energy_joules(n, 0.0, batch)
        linear = w * (law.energy_joules(n, 1.0, batch) - fixed - model.output_squared_joules)

        def by_band(values: Vector) -> Vector:
            return np.asarray(np.bincount(lengths.band, values, len(lengths.tokens)), np.float64)

        return cls(
            fixed=float((w * fixed).sum()) + lengths.joules_beside(w),
            linear=by_band(linear),
            linear_square=by_band(linear**2),
            square=by_band(w * model.output_squared_joules),
        )

    def of_answers(self, tokens: Any, dispersion: float = 0.0) -> Any:
        """Energy of the answers alone, `fixed` aside; of each draw, for tokens of [draws, bands]."""
        return tokens @ self.linear + (1 + dispersion) * (tokens**2 @ self.square)


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What is unknown once for all tasks: draws of standard variables.  # [draws]"""

    model: Vector
    """How another model differs: t."""
    task_mean: Vector
    """Standard normal: where the mean over all tasks lies."""
    generator_seed: int

    @classmethod
    def draw(cls, draws: int, transfer_freedom: int, seed: int) -> Common:
        import numpy as np

        generator = np.random.default_rng([seed, 0])
        return cls(generator.standard_t(transfer_freedom, draws), generator.standard_normal(draws), seed)


def energy_without(lengths: Lengths, model: SweetSpot, batch: float) -> tuple[float, float]:
    """Joules of the requests as they were, and of that, what their answers took."""
    cost = Cost.of(lengths, model, batch)
    answers = float(cost.of_answers(lengths.tokens))
    return cost.fixed + answers, answers


def energy_with(
    lengths: Lengths,
    model: SweetSpot,
    batch: float,
    known: Effect | None,
    others: Sequence[Effect],
    transfer_deviation: float,
    common: Common,
    place: Sequence[int],
) -> Vector:
    """Joules that the requests would have taken with a directive.  # [draws]

    Args:
        known: Its effect on this task; None where that is not known.
        others: Its effects on other tasks, MIN_TASKS of them at least where `known` is None.
        transfer_deviation: As `Evidence` has it.
        place: Tells the task and the directive from others: their draws are independent, and the same at any batch.
    """
    import numpy as np

    generator = np.random.default_rng([common.generator_seed, *place])
    draws = len(common.model)
    stranger = np.exp(transfer_deviation * common.model)

    def bounded(joules: Vector, shown: float) -> Vector:
        # Tails of differences between models and tasks know no end; that a directive to be brief lengthens answers is
        # believed only as far as evidence shows it.
        return np.minimum(joules, max(shown, float(cost.of_answers(lengths.tokens))))

    if known is not None:
        cost = Cost.of(lengths, model, batch, known.extra_input_tokens)
        mean = mean_tokens(known, lengths.tokens, draw_parameters(known, draws, generator))
        joules = cost.of_answers(mean, known.dispersion)
        scatter = _scatter(cost, mean_tokens(known, lengths.tokens), known.dispersion)
        if transfer_deviation:
            joules = bounded(stranger * joules, float(joules.mean()))
        return cost.fixed + _scattered(joules, scatter, generator)
    extra = sum(effect.extra_input_tokens for effect in others) / len(others)
    cost = Cost.of(lengths, model, batch, extra)
    foretold = [(effect, mean_tokens(effect, lengths.tokens)) for effect in others]
    each = np.array([cost.of_answers(mean, effect.dispersion) for effect, mean in foretold])
    scatter = float(np.mean([_scatter(cost, mean, effect.dispersion) for effect, mean in foretold]))
    if not (each > 0).all():
        return np.full(draws, cost.fixed)
    # A further task is to those known as they are to one another. What answers keep is a share, so the spread is taken
    # of its logit: a normal distribution whose mean and variance are known from so few, which makes it a t.
    whole = max(float(cost.of_answers(lengths.tokens)), 1.25 * float(each.max()))
    logits, freedom = np.log(each / (whole - each)), len(each) - 1
    deviation = float(logits.std(ddof=1)) * np.sqrt(freedom / generator.chisquare(freedom, draws))
    mean = common.task_mean / math.sqrt(len(each))
    drawn = logits.mean() + deviation * (mean + generator.standard_normal(draws))
    joules = bounded(stranger * whole / (1 + np.exp(-np.clip(drawn, -50, 50))), float(each.max()))
    return cost.fixed + _scattered(joules, scatter, generator)


def _scatter(cost: Cost, mean: Vector, dispersion: float) -> float:
    """Variance of the answers' energy that single answers' lengths make."""
    per_token = cost.linear + 2 * cost.square * mean
    inflation = (per_token / cost.linear) ** 2 if (cost.linear > 0).all() else 1.0
    return dispersion * float((mean**2 * cost.linear_square * inflation).sum())


def _scattered(joules: Vector, variance: float, generator: Any) -> Vector:
    if variance <= 0:
        return joules
    found: Vector = generator.gamma(joules**2 / variance, variance / joules)
    return found

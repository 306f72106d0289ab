"""Preferences between pairs of answers, freed of the judge's liking for long answers and for the one shown first.

A judge says how far it prefers answer 2 to answer 1 of one instruction, y in [0, 1], a tie being 1/2. With d the
difference of their lengths in characters, o = +1 where answer 2 was shown first and -1 where answer 1 was,

    logit E[y] = strength of (generator 1, generator 2) + u of the instruction + slope l(d) + position o

with l(d) the term of `length_term` and u normal about 0: some instructions favour answer 2 whoever wrote it. The
preference at equal length and balanced order is what remains with d = 0, as the mean over u and both o. That is the
idea of the length-controlled AlpacaEval (Dubois et al., COLM 2024), with two differences. Slope and position are those
of the judge, one for all generators: with one a generator, a model that always answers briefly has no contrast to learn
it from. And instructions have a random effect in place of a difficulty known beforehand; it is integrated out
(Gauss-Hermite), since effects that were estimated one by one would bias the slope away from 0.

The term's form and the slopes' ridge penalty are chosen by cross-validation, as `length_term` says. It is brought to a
size of at most 1 here, so that under each of the penalties the form next to linear is one next to nothing: the simplest
model corrects nothing. Intervals are those
of maximum likelihood with the sandwich variance over instructions: asymptotic, and they say nothing about looking
often; `corrected` has bounds that may be looked at. y need not be 0 or 1: the logistic model is then a
quasi-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.quality.confidence import ShareSequence
from common.quality.interval import Interval
from common.quality.length_term import FOLDS, LINEAR, PENALTIES, SCALES, Floats, length_term, sigmoid, simplest

MAX_CHARACTERS = 10_000_000
CHARACTERS_PER_UNIT = 1_000.0
CONFIDENCE = 0.95
RAW_METHOD = "betting confidence sequence for the mean preference, anytime-valid"
CORRECTED_METHOD = "logistic model at equal length and balanced order, sandwich variance over instructions, asymptotic"

_Z = 1.959963984540054
_WEAK_PENALTY = 1e-2
"""Keeps a generator that won or lost every pair at a finite strength, and u of a finite spread."""
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(11)
_LOG_NODE_WEIGHTS = np.log(_NODE_WEIGHTS / _NODE_WEIGHTS.sum())

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """One judgement.

    Raises ValueError, naming the field, for a preference outside [0, 1], lengths below 0 or above MAX_CHARACTERS, or
    a `first` that is neither 1 nor 2.
    """

    instruction: str
    generator_1: str
    generator_2: str
    chars_1: int
    chars_2: int
    preference: float
    """For answer 2."""
    first: int | None = None
    """Which answer the judge was shown first; None where that is not known."""

    def __post_init__(self) -> None:
        if not 0 <= self.preference <= 1:  # also false for NaN
            raise ValueError(f"preference must be in [0, 1], got {self.preference!r}")
        for name in ("chars_1", "chars_2"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_CHARACTERS:
                raise ValueError(f"{name} must be 0 to {MAX_CHARACTERS:,}, got {value!r}")
        if self.first not in (None, 1, 2):
            raise ValueError(f"first must be 1 or 2, got {self.first!r}")


@dataclass(frozen=True, slots=True)
class Preference:
    """How far generator 2 is preferred to generator 1, in [0, 1]."""

    generator_1: str
    generator_2: str
    pairs: int
    raw: Interval
    corrected: Interval


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a judge's pairs say, of generators and of itself."""

    generators: tuple[Preference, ...]
    """In order of first appearance; those against themselves last."""
    length_slope: Interval | None
    """Log-odds for the longer answer a 1,000 characters that it is longer, at the typical (root mean square)
    difference. None where all pairs are of equal length."""
    position: Interval | None
    """Log-odds for the answer shown first; None where the order is not known of every pair, or was always the same."""
    penalty: float
    """Ridge penalty that was chosen."""
    scale_characters: float | None
    """s; None where the term is as good as linear."""


def estimate(pairs: Sequence[Pair], rng: np.random.Generator) -> Preferences:
    """Preferences of every (generator 1, generator 2) that occurs, raw and corrected, with 95 % intervals.

    Raises ValueError without pairs.
    """
    if not pairs:
        raise ValueError("pairs must not be empty")
    # Answers of one generator are even whatever a judge says, and would only teach the model its chance.
    contests = [pair for pair in pairs if pair.generator_1 != pair.generator_2]
    even = _against_themselves([pair for pair in pairs if pair.generator_1 == pair.generator_2], rng)
    if not contests:
        return Preferences(even, None, None, penalty=0.0, scale_characters=None)
    data = _Data(contests)
    penalty, scale = _choose(data, rng)
    model = _Model(data, scale, penalty)
    parameters = model.fit()
    covariance = model.covariance(parameters)
    generators = []
    for index, (generator_1, generator_2) in enumerate(data.generators):
        chosen = data.preference[data.generator == index]
        corrected = _on_logit_scale(*model.corrected(parameters, index), covariance)
        # A file may be sorted by what matters; the sequence wants an order that tells nothing.
        raw = _raw(rng.permutation(chosen))
        generators.append(Preference(generator_1, generator_2, len(chosen), raw, corrected))
    # A slope that the penalty has drawn to 0 would tell of the penalty, in an interval that the truth need not be in.
    free = _Model(data, scale, PENALTIES[-1])
    slopes = free.fit(start=parameters)
    spread = free.covariance(slopes)
    return Preferences(
        generators=(*generators, *even),
        length_slope=free.slope("length", slopes, spread, free.length_per_unit),
        position=free.slope("position", slopes, spread, 1.0),
        penalty=penalty,
        scale_characters=model.scale_characters if scale != LINEAR else None,
    )


def _against_themselves(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Preference, ...]:
    preferences: dict[str, list[float]] = {}
    for pair in pairs:
        preferences.setdefault(pair.generator_1, []).append(pair.preference)
    corrected = Interval(0.5, 0.5, 0.5, CONFIDENCE, "a generator against itself: even by definition")
    return tuple(
        Preference(name, name, len(found), _raw(rng.permutation(found)), corrected)
        for name, found in preferences.items()
    )


class _Data:
    """Pairs as arrays."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        generators = {
            pair: index for index, pair in enumerate(dict.fromkeys((p.generator_1, p.generator_2) for p in pairs))
        }
        instructions = {name: index for index, name in enumerate(dict.fromkeys(p.instruction for p in pairs))}
        # An instruction's pairs stand together, so that sums over them are those of a slice.
        pairs = sorted(pairs, key=lambda pair: instructions[pair.instruction])
        self.generator: Ints = np.array([generators[pair.generator_1, pair.generator_2] for pair in pairs])
        self.instruction: Ints = np.array([instructions[pair.instruction] for pair in pairs])
        self.begins: Ints = np.searchsorted(self.instruction, np.arange(len(instructions)))
        """Where each instruction's pairs begin, [instructions]."""
        self.generators = tuple(generators)
        self.instructions = len(instructions)
        self.preference: Floats = np.array([pair.preference for pair in pairs], dtype=np.float64)
        self.longer: Floats = np.array([pair.chars_2 - pair.chars_1 for pair in pairs], dtype=np.float64)
        """d, [pairs]."""
        known = all(pair.first is not None for pair in pairs)
        order = np.array([1.0 if pair.first == 2 else -1.0 for pair in pairs])
        self.order: Floats | None = order if known and np.ptp(order) > 0 else None
        """o, [pairs]."""
        self.typical_characters = math.sqrt(float(np.mean(self.longer**2)))


class _Model:
    """Parameters: strength of each generator, the slopes, and the spread of u where instructions come again.

    Without that u cannot be told from chance, and the model is that of its mean.
    """

    def __init__(self, data: _Data, scale: float, penalty: float) -> None:
        self._data = data
        self._scale = scale
        self.scale_characters = scale * data.typical_characters
        columns: dict[str, Floats] = {}
        if data.typical_characters > 0:
            columns["length"] = length_term(data.longer, data.typical_characters, scale) / scale
        if data.order is not None:
            columns["position"] = data.order
        self._names = tuple(columns)
        self._generators = len(data.generators)
        self._has_spread = data.instructions < len(data.preference)
        strengths = np.eye(self._generators)[data.generator]
        # The spread's column is empty: what it adds to a level differs by node.
        last = [np.zeros(len(data.longer))] if self._has_spread else []
        self._design: Floats = np.column_stack([strengths, *columns.values(), *last])  # [pairs, parameters]
        weak = [_WEAK_PENALTY] * (self._generators + self._has_spread)
        self._ridge = np.array([*weak[: self._generators], *[penalty] * len(columns), *weak[self._generators :]])

    def fit(self, seen: NDArray[np.bool_] | None = None, start: Floats | None = None) -> Floats:
        """The parameters, from the instructions that are seen, [instructions]; from all without.

        Args:
            start: Parameters that are not far off.
        """
        chosen = np.ones(self._data.instructions, dtype=bool) if seen is None else seen

        of_pairs = chosen[self._data.instruction]

        def objective(parameters: Floats) -> tuple[float, Floats]:
            log_likelihood, by_level, by_spread = self._of_pairs(parameters)
            ridge = self._ridge * parameters
            gradient = ridge - self._design[of_pairs].T @ by_level[of_pairs]
            if self._has_spread:
                gradient[-1] -= by_spread[of_pairs].sum()
            return float(ridge @ parameters / 2 - log_likelihood[chosen].sum()), gradient

        if start is None:
            start = np.zeros(len(self._ridge))
            if self._has_spread:
                start[-1] = 1.0
        return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B").x)

    def log_likelihood(self, parameters: Floats) -> Floats:
        """Of each instruction's pairs, [instructions]."""
        return self._of_pairs(parameters)[0]

    def _of_pairs(self, parameters: Floats) -> tuple[Floats, Floats, Floats]:
        """Log-likelihood of the instructions, [instructions]; its derivatives by each pair's level and by the spread at
        each pair, [pairs]."""
        data = self._data
        spread = parameters[-1] if self._has_spread else 0.0
        logits = (self._design @ parameters)[:, None] + spread * _NODES  # [pairs, nodes]
        of_pair = data.preference[:, None] * logits - np.logaddexp(0, logits)
        at_node = np.add.reduceat(of_pair, data.begins) + _LOG_NODE_WEIGHTS  # [instructions, nodes]
        log_likelihood = np.logaddexp.reduce(at_node, axis=1)
        posterior = np.exp(at_node - log_likelihood[:, None])
        residual = posterior[data.instruction] * (data.preference[:, None] - sigmoid(logits))  # [pairs, nodes]
        return log_likelihood, residual.sum(axis=1), residual @ _NODES

    def _scores(self, parameters: Floats) -> Floats:
        """Gradient of each instruction's log-likelihood, [instructions, parameters]."""
        _, by_level, by_spread = self._of_pairs(parameters)
        of_pairs = self._design * by_level[:, None]
        if self._has_spread:
            of_pairs[:, -1] = by_spread
        return np.add.reduceat(of_pairs, self._data.begins)

    def covariance(self, parameters: Floats) -> Floats:
        """H^-1 (sum over instructions of score score^T) H^-1, H the negative Hessian."""
        scores = self._scores(parameters)
        hessian = np.diag(self._ridge)
        size = 1e-4
        for index in range(len(parameters)):
            moved = np.zeros_like(parameters)
            moved[index] = size
            up, down = (self._scores(parameters + sign * moved).sum(axis=0) for sign in (1, -1))
            hessian[index] -= (up - down) / (2 * size)
        inverse = np.linalg.pinv((hessian + hessian.T) / 2)
        instructions = len(scores)
        # Means of few are further from the truth than their spread tells.
        few = instructions / max(instructions - 1, 1)
        return np.asarray(inverse @ (few * scores.T @ scores) @ inverse)

    def corrected(self, parameters: Floats, generator: int) -> tuple[float, Floats]:
        """A generator's preference at d = 0, over u and both orders, and its gradient, [parameters]."""
        spread = parameters[-1] if self._has_spread else 0.0
        place = self._generators + self._names.index("position") if "position" in self._names else None
        position = parameters[place] if place is not None else 0.0
        sides = np.array([[1.0], [-1.0]])
        level = sigmoid(parameters[generator] + spread * _NODES + position * sides)  # [sides, nodes]
        weights = np.exp(_LOG_NODE_WEIGHTS) / 2
        slope = weights * level * (1 - level)
        gradient = np.zeros_like(parameters)
        gradient[generator] = slope.sum()
        if place is not None:
            gradient[place] = (slope * sides).sum()
        if self._has_spread:
            gradient[-1] = (slope * _NODES).sum()
        return float((weights * level).sum()), gradient

    @property
    def length_per_unit(self) -> float:
        """What a slope of 1 is a 1,000 characters, at the typical difference."""
        typical = self._data.typical_characters or CHARACTERS_PER_UNIT
        return float(length_term(np.array(typical), typical, self._scale)) / self._scale / typical * CHARACTERS_PER_UNIT

    def slope(self, name: str, parameters: Floats, covariance: Floats, factor: float) -> Interval | None:
        if name not in self._names:
            return None
        index = self._generators + self._names.index(name)
        value, half = parameters[index] * factor, _Z * math.sqrt(covariance[index, index]) * abs(factor)
        return Interval(float(value), float(value - half), float(value + half), CONFIDENCE, CORRECTED_METHOD)


def _choose(data: _Data, rng: np.random.Generator) -> tuple[float, float]:
    """The simplest penalty and scale that is within one standard error of the likeliest on unseen instructions."""
    fold = rng.permutation(data.instructions) % FOLDS
    unseen_of: dict[tuple[float, float], Floats] = {}
    near = None
    for penalty in PENALTIES:
        for scale in SCALES if data.typical_characters > 0 else SCALES[:1]:
            model = _Model(data, scale, penalty)
            unseen = np.zeros(data.instructions)
            near = model.fit(start=near)
            for held_out in range(FOLDS):
                unseen[fold == held_out] = model.log_likelihood(model.fit(fold != held_out, near))[fold == held_out]
            unseen_of[penalty, scale] = unseen
    return simplest(unseen_of)


def _on_logit_scale(value: float, gradient: Floats, covariance: Floats) -> Interval:
    """The interval of a probability, made where it is nearer to normal and cannot leave (0, 1)."""
    slope = value * (1 - value)
    half = _Z * math.sqrt(max(0.0, float(gradient @ covariance @ gradient))) / slope
    logit = math.log(value / (1 - value))
    lower, upper = (float(sigmoid(np.array(logit + side * half))) for side in (-1, 1))
    return Interval(value, lower, upper, CONFIDENCE, CORRECTED_METHOD)


def _raw(preferences: Floats) -> Interval:
    sequence = ShareSequence((1 - CONFIDENCE) / 2, limit=1.0)
    for preference in preferences:
        sequence.update(float(preference), 1.0)
    value = float(preferences.mean())
    # Bounds are of the past as well; the mean of all may have left them by a hair.
    return Interval(value, min(sequence.lower, value), max(sequence.upper, value), CONFIDENCE, RAW_METHOD)

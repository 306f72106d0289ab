"""Ridge regression on a prompt's features: fitted in the space of the prompts, applied as a sum of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

from router.directives.text_features import FeatureTable, TextFeatures

Floats = NDArray[np.float64]

STRENGTHS: Final = ((0.3, 1.0), (3.0, 3.0), (30.0, 10.0), (1000.0, 100.0))
"""Penalties of words and surface that a fit chooses from, the last of which leaves hardly more than the mean."""
LEAST_PROMPTS: Final = 2
_FURTHEST: Final = 3.0
"""Surface counts beyond so many standard deviations of those seen count as these."""


@dataclass(frozen=True, slots=True, eq=False)
class TextRegression:
    """Linear in the words of a prompt and its standardised surface, for several targets at once.

    Attributes:
        words: [BUCKETS, targets].
        surface: [surface, targets].
        intercept: [targets].
        centre, scale: Of the surface as fitted, [surface].
    """

    words: Floats
    surface: Floats
    intercept: Floats
    centre: Floats
    scale: Floats

    def predict(self, prompts: FeatureTable, more: Floats | None = None) -> Floats:
        """[prompts, targets]. `more` are the further surface columns that the fit had, [prompts, more]."""
        columns = prompts.surface if more is None else np.hstack([prompts.surface, more])
        standard = np.clip((columns - self.centre) / self.scale, -_FURTHEST, _FURTHEST)
        return np.asarray(self.intercept + prompts.words @ self.words + standard @ self.surface)

    def predict_one(self, prompt: TextFeatures, more: Floats | None = None) -> Floats:
        """[targets]; the same as `predict` on a table of one row, in microseconds. `more` is [more]."""
        columns = prompt.surface if more is None else np.concatenate([prompt.surface, more])
        standard = ((columns - self.centre) / self.scale).clip(-_FURTHEST, _FURTHEST)
        value = self.intercept + standard @ self.surface
        if len(prompt.buckets):
            value = value + self.words[prompt.buckets].sum(axis=0) / np.sqrt(len(prompt.buckets))
        return np.asarray(value)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A regression, and what it says of each prompt that it was fitted to as if that one had been left out.

    Attributes:
        held_out: [prompts, targets].
    """

    regression: TextRegression
    held_out: Floats


def fit(
    prompts: FeatureTable,
    targets: Floats,
    more: Floats | None = None,
    strengths: Sequence[tuple[float, float]] = STRENGTHS,
) -> Fit:
    """Fits the targets, [prompts, targets], with the penalties of least squared error on left-out prompts.

    With K the kernel of words and surface, each divided by its penalty, H = K (K + I)^-1 + 1/n maps centred targets
    to fitted values; the prediction for a prompt left out is y - (y - Hy) / (1 - diag H).

    Raises ValueError for fewer than two prompts.
    """
    if len(prompts) < LEAST_PROMPTS:
        raise ValueError(f"prompts must be at least {LEAST_PROMPTS}, got {len(prompts)}")
    columns = prompts.surface if more is None else np.hstack([prompts.surface, more])
    centre, spread = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(spread > 1e-9, spread, np.inf)
    standard = np.clip((columns - centre) / scale, -_FURTHEST, _FURTHEST)
    word_kernel = (prompts.words @ prompts.words.T).toarray()
    surface_kernel = standard @ standard.T / standard.shape[1]
    intercept = targets.mean(axis=0)
    centred = targets - intercept
    # Targets of different size count alike.
    size = np.maximum(centred.std(axis=0), 1e-12)
    best: tuple[float, Floats, Floats, float, float] | None = None
    identity = np.eye(len(prompts))
    for on_words, on_surface in strengths:
        inverse = _inverse(word_kernel / on_words + surface_kernel / on_surface + identity)
        dual = inverse @ centred
        # y - Hy = (K + I)^-1 y, and 1 - diag H is that matrix' diagonal.
        left_out = dual / (np.diag(inverse) - 1.0 / len(prompts)).clip(1e-6)[:, None]
        error = float(((left_out / size) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, dual, left_out, on_words, on_surface)
    assert best is not None
    _, dual, left_out, on_words, on_surface = best
    regression = TextRegression(
        np.asarray(prompts.words.T @ dual) / on_words,
        standard.T @ dual / (standard.shape[1] * on_surface),
        intercept,
        centre,
        scale,
    )
    return Fit(regression, targets - left_out)


def _inverse(matrix: Floats) -> Floats:
    """Of a symmetric matrix whose eigenvalues are at least 1, in a third of the work of a general one."""
    factor, _ = dpotrf(matrix, lower=1)
    half, _ = dpotri(factor, lower=1)
    lower = np.tril(half)
    return np.asarray(lower + np.tril(lower, -1).T)

"""Where a workload stands against the sweet spot, and what shorter answers or prompts would move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from common.energy.design import TERMS, Array
from common.energy.sweet_spot import SweetSpot

NEAR = 0.1
"""A token costs at most this share more than at the sweet spot: "near" it, whose bottom is flat."""


class Workload:
    """Requests by their lengths, all decoded in batches of one size.

    Args:
        input_tokens: of each request.
        output_tokens: of each; 0 where it ended before its first token.
        batch: sequences that decode together.

    Raises ValueError without requests or with lists of different lengths.
    """

    def __init__(self, input_tokens: ArrayLike, output_tokens: ArrayLike, batch: float = 1.0) -> None:
        self.input_tokens: Array = np.asarray(input_tokens, dtype=np.float64)
        self.output_tokens: Array = np.asarray(output_tokens, dtype=np.float64)
        if len(self.input_tokens) != len(self.output_tokens):
            raise ValueError(f"{len(self.input_tokens)} inputs, but {len(self.output_tokens)} outputs")
        if len(self.input_tokens) == 0:
            raise ValueError("a workload needs at least 1 request, got 0")
        self.batch = batch
        # Energy is linear in the coefficients, so that these sums price the workload under any of them.
        self._sums = [float(column.sum()) for column in self._columns(self.output_tokens)]

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def total_output_tokens(self) -> int:
        return int(self.output_tokens.sum())

    def changed(self, *, cap: int | None = None, keep_input: int | None = None) -> Workload:
        """With answers cut off after `cap` tokens, and prompts whose oldest part is dropped down to `keep_input`."""
        return Workload(
            self.input_tokens if keep_input is None else np.minimum(self.input_tokens, keep_input),
            self.output_tokens if cap is None else np.minimum(self.output_tokens, cap),
            self.batch,
        )

    def joules(self, model: SweetSpot) -> float:
        """Of all requests."""
        coefficients: tuple[float, ...] = astuple(model)
        return sum(coefficient * total for coefficient, total in zip(coefficients, self._sums, strict=True))

    def request_joules(self, model: SweetSpot) -> Array:
        """Of each request.  # [requests]"""
        return self._energies(self.output_tokens, model)

    def sweet_spot_tokens(self, model: SweetSpot) -> Array:
        """m*(n) of each request's prompt; infinite where longer is always cheaper a token.  # [requests]"""
        if model.output_squared_joules == 0:
            return np.full(len(self), np.inf)
        # What remains of a request's energy without its output is what it costs once.
        once = self._energies(np.zeros(len(self)), model)
        return np.sqrt(once / model.output_squared_joules)

    def _energies(self, output_tokens: Array, model: SweetSpot) -> Array:
        joules = np.zeros(len(self))
        for coefficient, column in zip(astuple(model), self._columns(output_tokens), strict=True):
            if coefficient:
                joules += coefficient * column
        return joules

    def _columns(self, output_tokens: Array) -> Iterator[Array]:
        """By coefficient, one at a time: a log may have millions of requests."""
        batch = np.full(len(self), self.batch)
        return (TERMS[field.name](self.input_tokens, output_tokens, batch) for field in fields(SweetSpot))


@dataclass(frozen=True, slots=True)
class Standing:
    """A workload beside its sweet spot. Shares are of the requests that had output."""

    joules_per_request: float
    joules_per_output_token: float | None
    """Of all; None where no request had output."""
    least_joules_per_output_token: float | None
    """Had every answer ended at m*(n) of its prompt, the same tokens in all: the least that this mix of prompts
    allows. None also where m* is infinite."""
    shorter_share: float | None
    """Of requests with fewer output tokens than m*(n)."""
    near_share: float | None
    """Of requests whose token costs at most NEAR more than at m*(n). None where m* is infinite."""


def standing(workload: Workload, model: SweetSpot) -> Standing:
    """Where the workload stands under the model."""
    joules = workload.request_joules(model)
    answered = workload.output_tokens > 0
    each = float(joules.mean())
    if not answered.any():
        return Standing(each, None, None, None, None)
    tokens, best = workload.output_tokens[answered], workload.sweet_spot_tokens(model)[answered]
    shorter = float(np.mean(tokens < best))
    per_token = float(joules.sum() / tokens.sum())
    if not np.isfinite(best).all():
        return Standing(each, per_token, None, shorter, None)
    # With nothing that a request costs once m* is 0, where the cost of a token is a limit: that of one token is near.
    at_best = Workload(workload.input_tokens[answered], np.maximum(best, 1.0), workload.batch)
    least = at_best.request_joules(model) / at_best.output_tokens
    near = float(np.mean(joules[answered] / tokens <= (1 + NEAR) * least))
    return Standing(each, per_token, float((least * tokens).sum() / tokens.sum()), shorter, near)


@dataclass(frozen=True, slots=True)
class Change:
    """What a cap or a truncation moves, with no other effect than on lengths."""

    cap: int | None
    keep_input: int | None
    shortened_answers: int
    shortened_prompts: int
    output_tokens: int
    joules: float
    saved_share: float
    """Of the workload's energy."""
    joules_per_output_token: float | None


def change(workload: Workload, model: SweetSpot, *, cap: int | None = None, keep_input: int | None = None) -> Change:
    """What the cap and the truncation move under the model."""
    after = workload.changed(cap=cap, keep_input=keep_input)
    joules = after.joules(model)
    return Change(
        cap=cap,
        keep_input=keep_input,
        shortened_answers=int(np.sum(after.output_tokens < workload.output_tokens)),
        shortened_prompts=int(np.sum(after.input_tokens < workload.input_tokens)),
        output_tokens=after.total_output_tokens,
        joules=joules,
        saved_share=saved_share(workload, after, model),
        joules_per_output_token=joules / after.total_output_tokens if after.total_output_tokens else None,
    )


def saved_share(before: Workload, after: Workload, model: SweetSpot) -> float:
    """Of the energy of `before`; 0 where that is 0."""
    joules = before.joules(model)
    return 1 - after.joules(model) / joules if joules else 0.0


def beyond(workload: Workload, limits: Sequence[float | None]) -> float:
    """The share of requests with more input or output tokens than were measured, where that is known."""
    outside = np.zeros(len(workload), dtype=bool)
    for tokens, limit in zip((workload.input_tokens, workload.output_tokens), limits, strict=True):
        if limit is not None:
            outside |= tokens > limit
    return float(outside.mean())

"""What a grid's carbon intensity will be, from its own past and nothing else.

Three layers, each of which the next only corrects:

1. The daily profile: the mean of the last seven days at the same hour, drawn towards yesterday, and shifted by how far
   the present hour is from its own profile; the shift fades with the lead.
2. A ridge regression of the profile's past errors, all leads at once, on what is known at the origin: the last day's
   deviations, the profile's shape, hour and day of the week. Its penalty grows as the history gets shorter, so that
   little history leaves the profile as it is.
3. The interval: quantiles of past errors of the same lead, made without the sixth of the past that they fall in
   (conformal prediction by cross-validation), those of about the same hour of day and of recent weeks counting most.

The constants were chosen once, on another year, revision and signal of such data than tests/bench/forecast.py has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from common.carbon.hours import HOUR, hour_start
from common.carbon.intensity import check_g_per_kwh
from common.quality.interval import Interval

Floats = NDArray[np.float64]

MOST_FORECAST_HOURS = 48
LEAST_HISTORY_HOURS = 48
"""Observed hours below which nothing is said: without two days there is no error to make an interval of."""
MOST_HISTORY_HOURS = 90 * 24
"""What is older is not looked at."""
MOST_AGE_HOURS = 24
"""Nothing is said where the last observation is older."""

_DAY, _WEEK = 24, 7 * 24
_YESTERDAY = 0.3
"""How far the profile is drawn from the week's mean to yesterday."""
_FADE = -0.2
"""Power of the lead with which the present hour's deviation fades."""
_RIDGE = 0.1
_RIDGE_DAYS = 90
"""The penalty is _RIDGE (a share of the features' variance) for so many days, and grows with the square of fewer."""
_LEAST_RIDGE_DAYS = 7
"""Days of origins below which the profile stays uncorrected."""
_BIAS_DAYS = 30
"""The profile's mean error is believed by days / (days + this)."""
_BLOCKS = 6
"""Parts of the past, of which each is forecast by a regression on the others."""
_RECENT_DAYS = 45.0
"""After so many days an error counts 1/e."""
_NEAR_HOURS = 7
"""Errors made from an hour of day this far away do not count."""
_WIDER_DAYS = 2.0
"""Intervals from `days` of history are 1 + this / days as wide: few past errors understate those to come."""
_FEW_DAYS = 14
_POOLED_WIDER_DAYS = 6.0
"""The same for less than _FEW_DAYS of history, where the errors of all leads stand for each,"""
_GROWTH = 0.35
"""as if they grew with this power of the lead."""
_LEAST_ERRORS = 48
"""Of each lead, or else they are pooled likewise: gaps may have taken them."""
_LINEAR_GAP_HOURS = 6
_LEAST_OBSERVED = 0.75
"""Origins with a smaller share of observed hours around them teach nothing."""


@dataclass(frozen=True, slots=True)
class _Past:
    """Hourly values without gaps, as shares of their largest, and which of them were observed."""

    last: datetime
    g_per_kwh: float
    """The largest; 1 where all are 0."""
    shares: Floats  # [hours], oldest first
    observed: NDArray[np.bool_]  # [hours]


@dataclass(frozen=True, slots=True)
class _Outlook:
    """Of the leads 1, 2, ... after the last observation, in the same shares."""

    shares: Floats  # [leads]
    errors: Floats  # [origins, leads]: observed less forecast
    known: Floats  # [origins, leads]: 1 where there is an observation to have an error, else 0
    ages: Floats  # [origins]: hours since
    method: str


def forecast(
    history: Sequence[tuple[datetime, float]], now: datetime, hours: int = 24, confidence: float = 0.8
) -> Sequence[tuple[datetime, Interval]]:
    """Forecasts the `hours` whole hours after that of `now`: (start of the hour, gCO2eq/kWh).

    Args:
        history: (moment, gCO2eq/kWh) in any order; several of one hour are averaged, hours may be missing, and what
            is after `now` is not looked at. Eight days say much more than two, 90 more than eight.
        hours: 1 to 48.
        confidence: of the interval, whose lower end is never below 0.
    Returns:
        As many as `hours`, or none where fewer than 48 hours were observed or the last of them is over 24 h old.
    Raises:
        ValueError: names the argument, its fault and the limit.
    """
    if now.tzinfo is None:
        raise ValueError(f"now must carry a time zone, got {now.isoformat()}")
    if not 1 <= hours <= MOST_FORECAST_HOURS:
        raise ValueError(f"hours must be 1 to {MOST_FORECAST_HOURS}, got {hours!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence!r}")
    past = _past(history, now)
    if past is None:
        return []
    age = round((hour_start(now) - past.last) / HOUR)
    if age > MOST_AGE_HOURS:
        return []
    found = _outlook(past, age + hours)
    below, above = _error_range(found, len(past.shares), confidence)
    # A regression that has met a spike may go anywhere; the grid does not go far from where it has been.
    least, most = past.shares.min(), past.shares.max()
    room = (most - least) / 4
    share = np.clip(found.shares, max(0.0, least - room), most + room)
    value = past.g_per_kwh * share
    lower = past.g_per_kwh * np.clip(share + np.minimum(below, 0), 0, None)
    upper = past.g_per_kwh * (share + np.maximum(above, 0))
    return [
        (
            past.last + (lead + 1) * HOUR,
            Interval(float(value[lead]), float(lower[lead]), float(upper[lead]), confidence, found.method),
        )
        for lead in range(age, age + hours)
    ]


def _past(history: Sequence[tuple[datetime, float]], now: datetime) -> _Past | None:
    """None where too few hours were observed."""
    by_hour: dict[int, list[float]] = {}
    until = now.timestamp()
    for index, (moment, g_per_kwh) in enumerate(history):
        if moment.tzinfo is None:
            raise ValueError(f"history[{index}]: the moment must carry a time zone, got {moment.isoformat()}")
        seconds = moment.timestamp()
        if seconds > until:
            continue
        try:
            check_g_per_kwh(g_per_kwh)
        except ValueError as error:
            raise ValueError(f"history[{index}]: {error}") from None
        by_hour.setdefault(int(seconds // 3600), []).append(g_per_kwh)
    if not by_hour:
        return None
    last = max(by_hour)
    first = min(hour for hour in by_hour if hour > last - MOST_HISTORY_HOURS)
    values = np.full(last - first + 1, np.nan)
    for hour, found in by_hour.items():
        if hour >= first:
            # Sorted, so that the order in which they came changes no bit of the sum.
            values[hour - first] = sum(value / len(found) for value in sorted(found))
    observed = np.isfinite(values)
    if observed.sum() < LEAST_HISTORY_HOURS:
        return None
    largest = float(np.nanmax(values)) or 1.0
    return _Past(datetime.fromtimestamp(last * 3600, UTC), largest, _without_gaps(values / largest, observed), observed)


def _without_gaps(values: Floats, observed: NDArray[np.bool_]) -> Floats:
    """Short gaps as a line, longer ones as the day before; both ends are observed."""
    filled = values.copy()
    at = np.flatnonzero(observed)
    for before, after in pairwise(at):
        if after - before - 1 > _LINEAR_GAP_HOURS:
            for hour in range(before + 1, after):
                filled[hour] = filled[hour - _DAY] if hour >= _DAY else filled[hour - 1]
        elif after - before > 1:
            filled[before : after + 1] = np.linspace(values[before], values[after], after - before + 1)
    return filled


def _outlook(past: _Past, leads: int) -> _Outlook:
    values, hours = past.shares, len(past.shares)
    days = min(7, hours // _DAY - 1)
    # The origins are the hours that have `days` whole days up to and with them. A day's column 0 is the hour of day
    # that follows the origin, its column 23 that of the origin.
    week = sliding_window_view(values, days * _DAY).reshape(-1, days, _DAY)  # [origins, days, 24]
    mean = week.mean(axis=1)  # [origins, 24]
    yesterday = week[:, -1]
    profile = mean + _YESTERDAY * (yesterday - mean)
    usual = week[:, :-1, -1].mean(axis=1) if days > 1 else yesterday[:, -1]
    shift = (1 - _YESTERDAY) * (yesterday[:, -1] - usual)  # [origins]
    lead = np.arange(1, leads + 1)
    base = profile[:, (lead - 1) % _DAY] + shift[:, None] * lead**_FADE  # [origins, leads]
    origins = len(base)
    begin = hours - origins  # index of the first origin
    padded = np.concatenate([values, np.full(leads, np.nan)])
    seen = np.concatenate([past.observed.astype(float), np.zeros(leads)])
    errors = np.nan_to_num(sliding_window_view(padded, leads)[begin + 1 : hours + 1] - base)
    known = sliding_window_view(seen, leads)[begin + 1 : hours + 1]
    ages = np.arange(origins - 1, -1, -1, dtype=float)
    profiled = _Outlook(base[-1], errors, known, ages, f"daily profile of {days} days; interval of its past errors")
    taught = origins - leads  # the first so many origins have all their leads behind them
    if days < 7 or taught < _LEAST_RIDGE_DAYS * _DAY:
        return profiled
    around = np.convolve(past.observed, np.ones(_DAY))[begin:hours][:taught] + known[:taught].sum(axis=1)
    weight = (around >= _LEAST_OBSERVED * (_DAY + leads)).astype(float)
    if weight.sum() < _LEAST_RIDGE_DAYS * _DAY:
        return profiled
    deviation = yesterday - mean
    # An error weighs by how restless the grid was: else the few wildest days would decide alone.
    restless = np.abs(deviation[:taught]).mean(axis=1)
    weight /= restless + np.median(restless) / 2 + 1e-9
    features, penalty = _features(past.last, deviation, mean)
    correction, left = _ridge(features, penalty, errors[:taught], weight / weight.sum())
    method = f"daily profile with ridge correction, {round(hours / _DAY)} days; interval of cross-validated errors"
    return _Outlook(base[-1] + correction, left, known[:taught], ages[:taught], method)


def _features(last: datetime, deviation: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """What is known at each origin, the last of which is the hour `last`, and each feature's share of the penalty.

    Returns:
        [origins, features] and [features].
    """
    hour = last.timestamp() // 3600 + np.arange(1 - len(mean), 1)
    angle = 2 * np.pi * hour / _DAY
    harmonics = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)
    groups = (
        (deviation, 1.0),
        (mean - mean.mean(axis=1, keepdims=True), 3.0),
        (harmonics, 1.0),
        (harmonics * deviation[:, -1:], 2.0),
        (harmonics * deviation.mean(axis=1, keepdims=True), 2.0),
        ((hour[:, None] // _DAY % 7 == np.arange(7)).astype(float), 3.0),
    )
    penalty = np.concatenate([np.full(group.shape[1], share) for group, share in groups])
    return np.concatenate([group for group, _ in groups], axis=1), penalty


def _ridge(features: Floats, penalty: Floats, errors: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Regresses the profile's errors on the features of their origins.

    Args:
        features: [origins, features]; the last row is the present's, without errors.
        penalty: [features], shares of the ridge.
        errors: [taught, leads]; of the first origins.
        weight: [taught], with sum 1.
    Returns:
        The correction for the last row, [leads], and what it leaves of each past error where the regression was
        made without the part of the past that the error is in, [taught, leads].
    """
    taught = len(errors)
    days = taught / _DAY
    centre = weight @ features[:taught]
    known = features[:taught] - centre
    spread = np.sqrt(weight @ known**2)
    # A feature that has never moved says nothing, whatever it does now.
    scale = np.where(spread > 1e-9, spread, np.inf)
    known = known / scale
    present = (features[-1] - centre) / scale
    bias = weight @ errors
    weighted = known * weight[:, None]
    gram, moments = weighted.T @ known, weighted.T @ (errors - bias)
    ridge = np.diag(_RIDGE * (_RIDGE_DAYS / days) ** 2 * penalty)
    believed = days / (days + _BIAS_DAYS)
    correction = believed * bias + present @ np.linalg.solve(gram + ridge, moments)
    left = np.empty_like(errors)
    for part in np.array_split(np.arange(taught), _BLOCKS):
        block = slice(part[0], part[-1] + 1)
        without = gram - weighted[block].T @ known[block]
        solved = np.linalg.solve(without + ridge, moments - weighted[block].T @ (errors[block] - bias))
        left[block] = errors[block] - believed * bias - known[block] @ solved
    return correction, left


def _error_range(found: _Outlook, hours: int, confidence: float) -> tuple[Floats, Floats]:
    """What to add to a forecast for the ends of its interval, [leads] each: weighted quantiles of its past errors."""
    weight = np.exp(-found.ages / (_RECENT_DAYS * _DAY))
    tail = (1 - confidence) / 2
    apart = np.abs((found.ages + _DAY / 2) % _DAY - _DAY / 2)
    near = np.flatnonzero(apart < _NEAR_HOURS)
    if hours < _FEW_DAYS * _DAY or found.known[near].sum(axis=0).min() < _LEAST_ERRORS:
        growth = np.arange(1, found.errors.shape[1] + 1) ** _GROWTH
        pooled = (found.errors / growth).reshape(-1, 1)
        low, high = _quantiles(pooled, (found.known * weight[:, None]).reshape(-1, 1), tail)
        growth *= 1 + _POOLED_WIDER_DAYS * _DAY / hours
        return growth * low, growth * high
    closeness = weight[near] * (1 - apart[near] / _NEAR_HOURS)
    low, high = _quantiles(found.errors[near], found.known[near] * closeness[:, None], tail)
    wider = 1 + _WIDER_DAYS * _DAY / hours
    return wider * low, wider * high


def _quantiles(values: Floats, weight: Floats, tail: float) -> tuple[Floats, Floats]:
    """The values that leave `tail` of the weight below and above, a column each; both arguments [rows, columns]."""
    order = np.argsort(values, axis=0)
    ranked = np.take_along_axis(values, order, axis=0)
    below = np.cumsum(np.take_along_axis(weight, order, axis=0), axis=0)
    total = below[-1]
    low = np.argmax(below >= tail * total, axis=0)
    high = np.argmax(below >= (1 - tail) * total, axis=0)
    columns = np.arange(values.shape[1])
    return ranked[low, columns], ranked[high, columns]

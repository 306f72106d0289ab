"""How many samples pay."""

import numpy as np

from router.optimizer.evidence import MOST_GROWTH, MOST_JUDGED, PILOT_SAMPLES, samples_wanted


def wanted(have: float, worth: float, cost: float, expected: float = 1e6) -> int:
    return int(samples_wanted(np.array([have]), np.array([expected]), np.array([worth]), np.array([cost]))[0])


def test_every_class_has_a_pilot() -> None:
    assert wanted(0, 0.0, np.inf) == PILOT_SAMPLES
    assert wanted(PILOT_SAMPLES - 30, 0.0, 1.0) == 30


def test_more_as_long_as_a_sample_is_worth_more_than_it_costs() -> None:
    assert wanted(400, 0.9, 1.0) == 0
    assert wanted(400, 1.1, 1.0) == 0  # too few to teach anew for
    assert wanted(400, 4.0, 1.0) == 400
    assert wanted(400, 1e9, 1.0) == MOST_GROWTH * 400
    assert wanted(400, np.inf, 1.0) == MOST_GROWTH * 400


def test_no_more_than_a_small_share_of_all_requests() -> None:
    assert wanted(0, 0.0, 1.0, expected=400) == MOST_JUDGED * 400
    assert wanted(0, np.inf, 1.0, expected=10) == 0
    assert wanted(400, np.inf, 1.0, expected=10_000) == MOST_JUDGED * 10_000 - 400
    assert wanted(400, np.inf, 1.0, expected=2_000) == 0


def test_what_cannot_be_had_is_not_wanted() -> None:
    assert wanted(400, 5.0, np.inf) == 0

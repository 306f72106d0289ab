"""What the router's own policy decides does not hang on what it could not know."""

from dataclasses import replace

import numpy as np

from router.replay.outcome import Outcome
from router.replay.policies.named import POLICIES
from router.replay.replay import Terms, replay
from router.replay.trace import Trace, Year
from tests.router.replay.planted import demand, recorded, trace

HOURS, CHANGED = 60, 36
"""Of the window; and the hour of it from which on the grid is another one."""
START_HOUR = 100


def outcome(grid: Trace, labels: bool = False) -> Outcome:
    terms = Terms(floor=0.95, labels=labels)
    return replay(recorded(), grid, START_HOUR, demand(HOURS), {"pith": POLICIES["pith"]}, terms)["pith"]


def test_decisions_are_the_same_whatever_the_grid_does_later() -> None:
    known, other = outcome(trace()), trace()
    other.g_per_kwh[START_HOUR + CHANGED :] = 900.0
    changed = outcome(other)
    same = [np.array_equal(a.actions, b.actions) for a, b in zip(known.hours, changed.hours, strict=True)]
    assert all(same[:CHANGED])
    judged = [[hour.evaluator_samples for hour in one.hours[:CHANGED]] for one in (known, changed)]
    assert judged[0] == judged[1]
    assert not all(same[CHANGED:])
    # There was something to decide before.
    assert sum(hour.actions[1:].sum() for hour in known.hours[:CHANGED]) > 0


def test_the_years_extremes_are_not_looked_at() -> None:
    another = replace(trace(), year=Year(1.0, 5000.0, 300.0, "another"))
    assert outcome(another).carbon_grams == outcome(trace()).carbon_grams


def test_its_evaluator_is_paid_for() -> None:
    found = outcome(trace())
    assert found.evaluator_samples > 0
    assert found.carbon_saving < found.carbon_saving_without_evaluator
    assert found.hours[0].evaluator_samples == 0

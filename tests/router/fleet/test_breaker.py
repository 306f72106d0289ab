"""The breaker opens after faults in a row, probes after its cooldown, and closes on success."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.breaker import Breaker


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def broken(time: Time) -> Breaker:
    breaker = Breaker(threshold=3, cooldown_seconds=5, monotonic=time)
    for _ in range(3):
        breaker.fail(breaker.begin())
    return breaker


def test_faults_in_a_row_open_it() -> None:
    breaker = Breaker(threshold=3, cooldown_seconds=5, monotonic=Time())
    breaker.fail(breaker.begin())
    breaker.fail(breaker.begin())
    assert breaker.allows and not breaker.is_open
    breaker.fail(breaker.begin())
    assert breaker.is_open and not breaker.allows


def test_a_success_between_starts_the_count_anew() -> None:
    breaker = Breaker(threshold=2, cooldown_seconds=5, monotonic=Time())
    for _ in range(10):
        breaker.fail(breaker.begin())
        breaker.begin()
        breaker.succeed()
    assert not breaker.is_open


def test_after_the_cooldown_one_request_probes() -> None:
    time = Time()
    breaker = broken(time)
    time.seconds += 4.9
    assert not breaker.allows
    time.seconds += 0.1
    assert breaker.allows and breaker.is_open
    assert breaker.begin() is True
    assert not breaker.allows, "one probe at a time"


def test_a_good_probe_closes_it_and_a_bad_one_opens_it_for_another_cooldown() -> None:
    time = Time()
    good, bad = broken(time), broken(time)
    time.seconds += 5
    good.begin()
    good.succeed()
    assert good.allows and not good.is_open
    bad.fail(bad.begin())
    assert not bad.allows
    time.seconds += 5
    assert bad.allows


def test_a_probe_whose_client_went_away_makes_room_for_another() -> None:
    time = Time()
    breaker = broken(time)
    time.seconds += 5
    probe = breaker.begin()
    breaker.abandon(probe)
    assert breaker.allows


def test_late_faults_of_requests_from_before_do_not_prolong_the_pause() -> None:
    time = Time()
    breaker = Breaker(threshold=2, cooldown_seconds=5, monotonic=time)
    sent = [breaker.begin() for _ in range(4)]
    breaker.fail(sent[0])
    breaker.fail(sent[1])
    time.seconds += 4
    breaker.fail(sent[2])
    breaker.abandon(sent[3])
    time.seconds += 1
    assert breaker.allows


@given(st.lists(st.sampled_from(["fail", "succeed", "abandon", "wait"]), max_size=60))
def test_it_never_blocks_for_longer_than_the_cooldown(steps: list[str]) -> None:
    """Whatever happens, an engine is tried again one cooldown after the last request to it ended."""
    time = Time()
    breaker = Breaker(threshold=2, cooldown_seconds=5, monotonic=time)
    for step in steps:
        if step == "wait":
            time.seconds += 3
        elif breaker.allows:
            probe = breaker.begin()
            if step == "fail":
                breaker.fail(probe)
            elif step == "succeed":
                breaker.succeed()
            else:
                breaker.abandon(probe)
    time.seconds += 5
    assert breaker.allows

"""A live source as a provider: what stands in an outage, for how long, and what is said of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.carbon import polled
from common.carbon.daily_profile import ConstantIntensity
from common.carbon.intensity import Scope, Signal, SignalKind
from common.carbon.observation_file import ObservationFile
from common.carbon.observations import Observation
from common.carbon.polled import PolledIntensity
from common.carbon.source import SourceError
from common.clock import ManualClock
from tests.common.carbon.grid_api import TOKEN

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DIRECT = Signal(SignalKind.AVERAGE, Scope.DIRECT)
FALLBACK = ConstantIntensity("WORLD", 473.0, scope=Scope.LIFECYCLE, source="a year's mean")

Fetch = Callable[[datetime, datetime], Sequence[Observation]]


def by_hour(now: datetime, _since: datetime) -> list[Observation]:
    """A day of observations, the present hour's included: 100 and the hour."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    return [Observation(hour - back * HOUR, 100.0 + (hour - back * HOUR).hour) for back in reversed(range(24))]


def down(_now: datetime, _since: datetime) -> Sequence[Observation]:
    raise SourceError("failed", "HTTP 500")


class Scripted:
    """A source that does what its script says."""

    name, zone, signal = "Grid", "DE", DIRECT

    def __init__(self, fetch: Fetch) -> None:
        self.script = fetch
        self.asked: list[tuple[datetime, datetime]] = []
        self.closed = False

    async def fetch(self, now: datetime, since: datetime) -> Sequence[Observation]:
        self.asked.append((now, since))
        return self.script(now, since)

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def started(
    source: Scripted, clock: ManualClock, kept: ObservationFile | None = None, **kinds: Any
) -> AsyncIterator[PolledIntensity]:
    provider = PolledIntensity(source, FALLBACK, clock, kept=kept, **kinds)
    await provider.start()
    try:
        await clock.asleep()
        yield provider
    finally:
        await provider.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON + timedelta(minutes=10))


async def test_what_was_fetched_is_in_force(clock: ManualClock) -> None:
    source = Scripted(by_hour)
    async with started(source, clock) as provider:
        intensity = provider.current(clock.now())
        assert (intensity.g_per_kwh, intensity.zone, intensity.source) == (112.0, "DE", "Grid")
        assert (intensity.signal, intensity.observed_at, provider.fault) == (DIRECT, NOON, "")
        assert provider.history(clock.now(), 2) == [(NOON - HOUR, 111.0), (NOON, 112.0)]
        assert provider.current(NOON - timedelta(minutes=1)).g_per_kwh == 111.0
        for _ in range(100):
            provider.current(clock.now())
        assert len(source.asked) == 1
    assert source.closed


async def test_a_forecast_is_no_observation_even_once_its_hour_has_come(clock: ManualClock) -> None:
    source = Scripted(lambda now, since: [Observation(NOON, 112.0), Observation(NOON + HOUR, 1.0)])
    async with started(source, clock) as provider:
        source.script = down
        await clock.advance(3600)
        assert provider.current(clock.now()).g_per_kwh == 112.0


async def test_an_estimate_says_so(clock: ManualClock) -> None:
    async with started(Scripted(lambda now, since: [Observation(NOON, 90.0, estimated=True)]), clock) as provider:
        assert provider.current(clock.now()).source == "Grid, estimated"


async def test_before_the_first_answer_the_fallback_says_what_it_is(clock: ManualClock) -> None:
    async with started(Scripted(down), clock) as provider:
        intensity = provider.current(clock.now())
        assert (intensity.g_per_kwh, intensity.zone, intensity.source) == (473.0, "WORLD", "a year's mean")
        assert intensity.scope is Scope.LIFECYCLE  # its own: nobody takes its grams for direct ones
        assert provider.history(clock.now(), 24) == []
        assert provider.fault == "HTTP 500"


async def test_in_an_outage_the_last_value_stands_and_ages_then_the_mean_takes_over(clock: ManualClock) -> None:
    source = Scripted(by_hour)
    async with started(source, clock, expires_after_seconds=3 * 3600.0) as provider:
        source.script = down
        await clock.advance(2 * 3600 + 50 * 60)  # 15:00
        intensity = provider.current(clock.now())
        assert (intensity.g_per_kwh, intensity.age_seconds(clock.now()), intensity.source) == (112.0, 3 * 3600, "Grid")
        await clock.advance(1)
        mean = provider.current(clock.now())
        assert (mean.g_per_kwh, mean.observed_at, mean.source) == (
            111.5,
            NOON,
            "Grid, mean of what was seen in the last year",
        )
        assert (mean.signal, mean.zone) == (DIRECT, "DE")
        source.script = by_hour
        await clock.advance(900)
        assert provider.current(clock.now()).g_per_kwh == 115.0


async def test_hours_that_were_missed_are_asked_for_again(clock: ManualClock) -> None:
    source = Scripted(by_hour)
    async with started(source, clock):
        assert source.asked[0][1] == NOON - timedelta(days=365)
        source.script = down
        await clock.advance(3 * 86400)
        assert source.asked[-1][1] == NOON - timedelta(days=1)


async def test_it_asks_once_an_hour_when_the_hours_value_is_there(clock: ManualClock) -> None:
    source = Scripted(by_hour)
    async with started(source, clock):
        await clock.advance(3 * 3600)
        assert [now for now, _ in source.asked[1:]] == [NOON + hour * HOUR + timedelta(minutes=1) for hour in (1, 2, 3)]


async def test_it_looks_again_soon_for_a_value_that_is_late(clock: ManualClock) -> None:
    source = Scripted(lambda now, since: by_hour(min(now, NOON), since))
    async with started(source, clock):
        await clock.advance(51 * 60 + 600)
        minutes = [round((now - NOON) / timedelta(minutes=1)) for now, _ in source.asked]
        assert minutes == [10, 61, 66, 71]


async def test_after_faults_it_waits_longer_and_longer_up_to_a_limit(clock: ManualClock) -> None:
    source = Scripted(down)
    async with started(source, clock):
        await clock.advance(4000)
        times = [now for now, _ in source.asked]
        waits = [round((later - earlier).total_seconds()) for earlier, later in pairwise(times)]
        assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


async def test_a_source_that_asks_for_time_is_given_it(clock: ManualClock) -> None:
    def limited(_now: datetime, _since: datetime) -> Sequence[Observation]:
        raise SourceError("limited", "HTTP 429: too many requests", retry_after_seconds=5000.0)

    source = Scripted(limited)
    async with started(source, clock) as provider:
        await clock.advance(4999)
        assert len(source.asked) == 1
        source.script = by_hour
        await clock.advance(1)
        assert len(source.asked) == 2 and provider.fault == ""


async def test_an_outage_is_worth_one_line_when_it_begins_and_one_when_it_ends(clock: ManualClock) -> None:
    faults = [
        SourceError("timeout", "no answer within 10 s"),
        SourceError("refused", "HTTP 401: the token is not accepted for this"),
        RuntimeError(f"header auth-token: {TOKEN}"),
        SourceError("limited", "HTTP 429: too many requests"),
    ]

    def failing(_now: datetime, _since: datetime) -> Sequence[Observation]:
        raise faults[(len(source.asked) - 2) % len(faults)]

    source = Scripted(by_hour)
    with capture_logs() as logs:
        async with started(source, clock) as provider:
            source.script = failing
            await clock.advance(3600)
            assert provider.fault != "" and TOKEN not in provider.fault
            source.script = by_hour
            await clock.advance(900)
            assert provider.fault == ""
            assert provider.outages == 1
            source.script = down
            await clock.advance(3600)
            assert provider.outages == 2
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("no fresh carbon intensity", "warning"),
        ("carbon intensity is fresh again", "info"),
        ("no fresh carbon intensity", "warning"),
    ]
    assert logs[0]["fault"] == "no answer within 10 s"
    assert re.fullmatch(r"\d+ g/kWh in .+ \(.+\)", logs[0]["in_force"])
    assert datetime.fromisoformat(logs[0]["last_seen"]) < clock.now()
    assert logs[1]["away_seconds"] > 0
    assert TOKEN not in str(logs)
    assert provider.polls["ok"] == 2
    assert {name for name, count in provider.polls.items() if count} == {
        "ok",
        "timeout",
        "refused",
        "failed",
        "limited",
    }


async def test_a_source_that_answers_with_nothing_new_is_away_too(clock: ManualClock) -> None:
    source = Scripted(by_hour)
    with capture_logs() as logs:
        async with started(source, clock, expires_after_seconds=7200.0) as provider:
            source.script = lambda now, since: by_hour(NOON, since)
            await clock.advance(6600)
            assert provider.fault == ""
            await clock.advance(3600)
            assert provider.fault == "it answers, with nothing new"
            assert (provider.polls["stale"] > 1, provider.outages) == (True, 1)
    assert len(logs) == 1


async def test_a_start_waits_little_for_a_source_that_hangs(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Scripted):
        async def fetch(self, now: datetime, since: datetime) -> Sequence[Observation]:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(polled, "PATIENCE_SECONDS", 0.0)
    provider = PolledIntensity(Hanging(by_hour), FALLBACK, clock)
    await provider.start()
    assert provider.current(clock.now()).zone == "WORLD"
    assert provider.fault == "not asked yet"
    await provider.close()


async def test_a_restart_in_an_outage_has_what_was_kept(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "intensity.json"
    source = Scripted(by_hour)
    async with started(source, clock, ObservationFile(path, source)):
        pass
    await clock.advance(3600)
    dead = Scripted(down)
    async with started(dead, clock, ObservationFile(path, dead)) as provider:
        intensity = provider.current(clock.now())
        assert (intensity.g_per_kwh, intensity.observed_at, intensity.source) == (112.0, NOON, "Grid")
        assert len(provider.history(clock.now(), 48)) == 24
        assert provider.fault == "HTTP 500"


async def test_what_was_kept_of_another_signal_is_left_alone(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "intensity.json"
    source = Scripted(by_hour)
    async with started(source, clock, ObservationFile(path, source)):
        pass
    other = Scripted(down)
    other.signal = Signal(SignalKind.AVERAGE, Scope.LIFECYCLE)  # type: ignore[misc]
    async with started(other, clock, ObservationFile(path, other)) as provider:
        assert provider.current(clock.now()).source == "a year's mean"


moments = st.integers(-3 * 86400, 3 * 86400).map(lambda seconds: NOON + timedelta(seconds=seconds))
answers = st.one_of(
    st.lists(st.builds(Observation, moments, st.floats(0, 1e6), st.booleans()), max_size=8),
    st.sampled_from([None, 7, [None], "grid", [NOON]]),
    st.sampled_from(["timeout", "refused", "limited", "failed", "malformed"]).map(
        lambda kind: SourceError(kind, "x", 9e9)
    ),
    st.sampled_from([ValueError(TOKEN), RecursionError(), OSError(28, "no space"), TimeoutError(), KeyError()]),
)


@settings(deadline=None, max_examples=60)
@given(script=st.lists(st.tuples(answers, st.integers(0, 90_000)), min_size=1, max_size=6))
async def test_whatever_the_source_does_there_is_an_intensity_and_none_from_the_future(script: list[Any]) -> None:
    clock = ManualClock(NOON - timedelta(days=2))
    source = Scripted(down)
    provider = PolledIntensity(source, FALLBACK, clock)
    for answer, seconds in script:

        def act(_now: datetime, _since: datetime, answer: Any = answer) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        source.script = act
        await provider.poll()
        starts = [one.start for one in answer if isinstance(one, Observation)] if isinstance(answer, list) else []
        await clock.advance(seconds)
        now = clock.now()
        for moment in (now, now - HOUR, now - timedelta(days=400), *(start for start in starts if start <= now)):
            intensity = provider.current(moment)
            assert intensity.observed_at <= moment
            assert intensity.signal == (DIRECT if intensity.zone == "DE" else FALLBACK.current(moment).signal)
            history = provider.history(moment, 1000)
            assert all(start <= moment for start, _ in history)
        assert TOKEN not in provider.fault
    assert sum(provider.polls.values()) == len(script)

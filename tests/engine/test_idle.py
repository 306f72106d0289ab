"""Idle time and its energy: with what requests are charged they add up to all that there was, whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.energy.modelled import SERVER_CPU
from common.energy.reading import Energy, EnergySource
from common.scheduling import SchedulingLimits
from engine.batching import ContinuousBatch
from engine.config import EngineConfig
from engine.energy_counters import EnergyCounter
from engine.engine import Engine, Load
from engine.metering import CountedMeter, Meter
from engine.request import Finished, GenerationRequest, Update
from engine.sampling import SamplingParams
from engine.worker import Worker
from tests.engine.test_batching import END, RecordingBackend, Tokens
from tests.engine.test_metering import MODEL, Dial
from tests.engine.tiny_model import write_model

LIMITS = SchedulingLimits(max_batch=3, max_step_tokens=10)
AMOUNTS = st.floats(0, 1e4)


class Day:
    """Time that a test moves; the counter moves with it, by powers of the test's choice."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.seconds = 5000.0

    def pass_(self, seconds: float, joules: float) -> None:
        self.seconds += seconds
        self.dial.reading += joules

    def __call__(self) -> float:
        return self.seconds


class WorkingBackend(RecordingBackend):
    """Steps take time and energy."""

    def __init__(self, day: Day, costs: Callable[[], tuple[float, float]]) -> None:
        super().__init__()
        self._day, self._costs = day, costs

    def _run(self, *arguments: object) -> object:  # type: ignore[override]
        self._day.pass_(*self._costs())
        return super()._run(*arguments)  # type: ignore[arg-type]


def batch_of(backend: RecordingBackend, meter: Meter, now_seconds: Callable[[], float]) -> ContinuousBatch:
    return ContinuousBatch(backend, Tokens(), meter, LIMITS, frozenset([END]), now_seconds)  # type: ignore[arg-type]


def ask(key: int, tokens: int) -> GenerationRequest:
    return GenerationRequest(key, [1 + key % 40, 2, 3], SamplingParams(seed=key), tokens, (), 0.0)


@settings(deadline=None)
@given(
    st.data(),
    st.lists(st.sampled_from(("submit", "abort", "wait", "step", "step", "step")), max_size=60),
)
def test_requests_and_idleness_add_up_to_the_counters_total_and_to_the_time(
    data: st.DataObject, schedule: list[str]
) -> None:
    dial = Dial()
    day = Day(dial)
    batch = batch_of(
        WorkingBackend(day, lambda: (data.draw(AMOUNTS), data.draw(AMOUNTS))), CountedMeter(dial, MODEL), day
    )
    finished: list[Finished] = []
    keys = itertools.count()
    told = (0.0, 0.0, 0.0)

    def take(updates: list[Update]) -> None:
        nonlocal told
        finished.extend(update.finished for update in updates if update.finished is not None)
        assert batch.idle_energy is not None and batch.idle_energy.source is EnergySource.MEASURED
        now = (batch.busy_seconds, batch.idle_seconds, batch.idle_energy.joules)
        assert all(before <= after for before, after in zip(told, now, strict=True)), "totals never fall"
        told = now

    for event in schedule:
        if event == "submit":
            batch.submit(ask(next(keys), data.draw(st.integers(1, 8))))
        elif event == "abort":
            take(batch.abort(data.draw(st.integers(0, 10))))
        elif event == "wait":
            day.pass_(data.draw(AMOUNTS), data.draw(AMOUNTS))
        else:
            take(batch.step())
    while batch.running or batch.waiting:
        take(batch.step())
    take(batch.step())

    assert batch.busy_seconds + batch.idle_seconds == pytest.approx(day.seconds - 5000, rel=1e-6, abs=1e-6)
    assert sum(one.busy_seconds for one in finished) == pytest.approx(batch.busy_seconds, rel=1e-6, abs=1e-6)
    assert batch.idle_energy is not None
    charged = sum(one.energy.joules for one in finished if one.energy is not None)
    assert charged + batch.idle_energy.joules == pytest.approx(dial.reading - 1000, rel=1e-6, abs=1e-6)


def test_only_what_passes_without_requests_is_idle_energy() -> None:
    dial = Dial()
    day = Day(dial)
    batch = batch_of(WorkingBackend(day, lambda: (2.0, 100.0)), CountedMeter(dial, MODEL), day)
    day.pass_(30, 7)
    batch.submit(ask(0, 1))
    (update,) = batch.step()
    day.pass_(10, 1)
    assert batch.step() == []
    assert update.finished is not None
    assert update.finished.energy == Energy(100.0, EnergySource.ATTRIBUTED)
    assert (batch.busy_seconds, batch.idle_seconds) == (2.0, 40.0)
    assert batch.idle_energy == Energy(8.0, EnergySource.MEASURED)


def test_where_no_counter_is_idle_energy_is_modelled() -> None:
    day = Day(Dial())
    batch = batch_of(RecordingBackend(), MODEL, day)
    day.pass_(100, 0)
    batch.step()
    assert batch.idle_energy == Energy(100 * SERVER_CPU.idle_watts, EnergySource.MODELLED)


@pytest.mark.parametrize("reading", [999.0, float("nan"), float("inf")])
def test_a_counter_that_falls_or_reads_nonsense_leaves_idle_energy_unknown(reading: float) -> None:
    dial = Dial()
    day = Day(dial)
    batch = batch_of(WorkingBackend(day, lambda: (1.0, 5.0)), CountedMeter(dial, MODEL), day)
    dial.reading = reading
    batch.step()
    assert batch.idle_energy is None
    dial.reading = 1.0
    day.pass_(9, 9)
    batch.step()
    assert (batch.idle_energy, batch.idle_seconds) == (None, 9.0)
    batch.submit(ask(0, 1))
    (update,) = batch.step()
    assert update.finished is not None
    assert update.finished.energy == Energy(5.0, EnergySource.ATTRIBUTED), "from one good reading to the next"


class Ticking:
    """A counter that moves by 1 J at each reading."""

    def __init__(self) -> None:
        self.readings = 0

    def joules(self) -> float:
        self.readings += 1
        return float(self.readings)


def counted_by(counter: EnergyCounter, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Engine:
    monkeypatch.setattr("engine.engine.find_counter", lambda device: counter)
    return Engine(EngineConfig(model_path=write_model(folder / "tiny", eos_token_id=None), kv_cache_bytes=1 << 20))


async def test_totals_go_on_while_an_engine_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.worker.IDLE_STEP_SECONDS", 0.0)
    counter = Ticking()
    engine = counted_by(counter, monkeypatch, tmp_path)
    engine.start(lambda finished: None)
    try:
        first = engine.load()
        seen: list[Load] = [first]
        while len(seen) < 5:
            load = engine.load()
            if load != seen[-1]:
                seen.append(load)
    finally:
        engine.stop()
    assert [load.busy_seconds for load in seen] == [0.0] * 5
    for before, after in itertools.pairwise(seen):
        assert before.idle_seconds < after.idle_seconds
        assert before.idle_energy is not None and after.idle_energy is not None
        assert before.idle_energy.joules < after.idle_energy.joules
    assert {load.instance_id for load in seen} == {first.instance_id}


async def test_a_start_is_told_from_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (counted_by(Ticking(), monkeypatch, tmp_path) for _ in range(2))
    ids = set()
    for engine in (first, second):
        engine.start(lambda finished: None)
        ids.add(engine.load().instance_id)
        engine.stop()
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)


def test_a_counter_that_breaks_while_nothing_runs_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.worker.IDLE_STEP_SECONDS", 0.0)

    class Breaking(Ticking):
        def joules(self) -> float:
            if super().joules() == 3:
                raise ValueError("planted")
            return float(self.readings)

    counter = Breaking()
    backend, meter = RecordingBackend(), CountedMeter(counter, MODEL)
    day = Day(Dial())
    answered: list[Update] = []
    worker = Worker(batch_of(backend, meter, day), answered.extend)
    worker.start()
    while counter.readings < 10:
        pass
    worker.submit(ask(0, 1))
    while not answered:
        pass
    worker.stop()
    assert answered[0].finished is not None

"""The parts of a counted energy add up to the whole, and a resumed answer's to the account of all of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.architecture.shape import ModelShape
from common.energy.modelled import SERVER_CPU, DevicePrices, Work, request_energy_joules
from common.energy.reading import Energy, EnergySource
from engine.config import EngineConfig
from engine.engine import Engine
from engine.metering import CountedMeter, ModelledMeter, choose_meter, with_resumed_part
from engine.request import Finished, FinishReason
from engine.sampling import SamplingParams
from tests.engine.tiny_model import write_model

SHAPE = ModelShape(
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=100,
    tied_embeddings=True,
)
MODEL = ModelledMeter(SHAPE, SERVER_CPU, 4, 4)
WORK = st.lists(st.builds(Work, st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=5)


class Dial:
    """A counter that stands where the test puts it."""

    def __init__(self) -> None:
        self.reading = 1000.0
        self.fails = False

    def joules(self) -> float:
        if self.fails:
            raise OSError("planted")
        return self.reading


@given(st.lists(st.tuples(st.one_of(st.none(), WORK), st.floats(0, 1e6)), max_size=20))
def test_sequences_and_idleness_share_all_that_is_counted(day: list[tuple[list[Work] | None, float]]) -> None:
    dial = Dial()
    meter = CountedMeter(dial, MODEL)
    given_joules = 0.0
    for work, joules in day:
        dial.reading += joules
        if work is None:
            meter.idle()
        else:
            parts = meter.step(work)
            assert len(parts) == len(work)
            given_joules += sum(part for part in parts if part is not None)
    assert meter.idle_joules is not None
    assert given_joules + meter.idle_joules == pytest.approx(dial.reading - 1000, rel=1e-9, abs=1e-6)
    idle_joules = sum(joules for work, joules in day if work is None)
    assert meter.idle_joules == pytest.approx(idle_joules, rel=1e-9, abs=1e-6)


def test_the_share_of_a_sequence_is_that_of_the_model() -> None:
    dial = Dial()
    meter = CountedMeter(dial, MODEL)
    dial.reading += 50
    work = [Work(100, 0), Work(1, 60), Work(1, 0)]
    modelled = MODEL.step(work)
    assert meter.step(work) == pytest.approx([50 * part / sum(modelled) for part in modelled])
    assert meter.source == EnergySource.ATTRIBUTED


def test_without_prices_new_tokens_share() -> None:
    dial = Dial()
    meter = CountedMeter(dial, ModelledMeter(SHAPE, DevicePrices(0, 0, 0, 0, "none"), 4, 4))
    dial.reading += 8
    assert meter.step([Work(3, 0), Work(1, 9)]) == [6, 2]


def test_what_a_failed_reading_hides_is_unknown_and_what_follows_is_known_again() -> None:
    dial = Dial()
    meter = CountedMeter(dial, MODEL)
    dial.fails = True
    assert meter.step([Work(1, 0)]) == [None]
    dial.fails = False
    dial.reading += 10
    assert meter.step([Work(1, 0)]) == [None]
    dial.reading += 4
    assert meter.step([Work(1, 0)]) == [pytest.approx(4)]
    assert meter.idle_joules == 0
    dial.fails = True
    meter.idle()
    assert meter.idle_joules is None


def test_a_machine_without_a_counter_is_modelled() -> None:
    assert choose_meter(None, MODEL) is MODEL
    assert choose_meter(Dial(), MODEL).source == EnergySource.ATTRIBUTED


def account(resumed_tokens: int, own_tokens: int, energy: Energy | None, busy_seconds: float = 3.0) -> Finished:
    return Finished(
        reason=FinishReason.STOP,
        stop="",
        prompt_tokens=7,
        cached_tokens=0,
        output_tokens=resumed_tokens + own_tokens,
        queue_seconds=0.5,
        first_token_seconds=1.0,
        decode_seconds=2.0,
        busy_seconds=busy_seconds,
        energy=energy,
        resumed_tokens=resumed_tokens,
    )


def alone(prompt_tokens: int, output_tokens: int) -> float:
    return request_energy_joules(SHAPE, SERVER_CPU, prompt_tokens, output_tokens, 4, 4)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(EnergySource))
def test_the_part_that_died_costs_what_the_part_decoded_here_says(
    resumed_tokens: int, own_tokens: int, source: EnergySource
) -> None:
    """Alone it costs what the model says; in a batch, where a step is shared by eight, an eighth of that."""
    own_joules = alone(7 + resumed_tokens, own_tokens)
    for share in (1, 8):
        own = account(resumed_tokens, own_tokens, Energy(own_joules / share, source), busy_seconds=own_joules)
        whole = with_resumed_part(own, MODEL)
        expected = own_joules + alone(7, resumed_tokens)
        assert whole.energy is not None
        assert (whole.energy.joules, whole.energy.source) == (pytest.approx(expected / share), EnergySource.MODELLED)
        assert whole.busy_seconds == pytest.approx(expected)
        assert replace(whole, energy=own.energy, busy_seconds=own.busy_seconds) == own


def test_an_answer_that_was_not_resumed_is_accounted_for_as_it_is() -> None:
    own = account(0, 5, Energy(2.0, EnergySource.MEASURED))
    assert with_resumed_part(own, MODEL) == own


def test_a_part_that_is_unknown_leaves_the_whole_unknown() -> None:
    assert with_resumed_part(account(3, 5, None), MODEL).energy is None
    assert with_resumed_part(account(3, 0, None), MODEL).energy is None


def test_where_nothing_was_decoded_here_the_part_before_is_taken_to_have_run_alone() -> None:
    whole = with_resumed_part(account(3, 0, Energy(0.0, EnergySource.ATTRIBUTED), busy_seconds=0.0), MODEL)
    assert (whole.energy, whole.busy_seconds) == (Energy(alone(7, 3), EnergySource.MODELLED), 0.0)


def test_without_prices_tokens_tell_the_parts_apart() -> None:
    free = ModelledMeter(SHAPE, DevicePrices(0, 0, 0, 0, "none"), 4, 4)
    whole = with_resumed_part(account(6, 2, Energy(1.0, EnergySource.ATTRIBUTED)), free)
    assert (whole.energy, whole.busy_seconds) == (Energy(4.0, EnergySource.MODELLED), 12.0)


async def test_an_engine_counts_its_own_part_and_tells_its_client_of_all(tmp_path: Path) -> None:
    engine = Engine(EngineConfig(model_path=write_model(tmp_path / "tiny", eos_token_id=None), kv_cache_bytes=1 << 20))
    counted: list[Finished] = []
    engine.start(counted.append)
    try:
        with engine.place("") as place:
            request = engine.request(place, [1, 2, 3], SamplingParams(), 9, ())
            engine.submit(place, replace(request, resumed_token_ids=[97, 98, 99], delivered_bytes=3))
            while not isinstance(told := await place.stream.next(), Finished):
                pass
    finally:
        engine.stop()
    (own,) = counted
    assert own.energy is not None and told.energy is not None
    assert told.energy.joules > 1.3 * own.energy.joules
    assert told.busy_seconds > 1.3 * own.busy_seconds

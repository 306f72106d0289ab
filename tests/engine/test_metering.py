"""The parts of a counted energy add up to the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.architecture.shape import ModelShape
from common.energy.modelled import SERVER_CPU, DevicePrices, Work
from common.energy.reading import EnergySource
from engine.metering import CountedMeter, ModelledMeter, choose_meter

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

"""What an answer costs where no counter can be read: by an earlier calibration, else by prices assumed."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.energy.modelled import H100, SERVER_CPU, Work
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from engine.calibration import file as calibration_file
from engine.config import EngineConfig
from engine.engine import Engine
from engine.metering import CalibratedMeter, CountedMeter, choose_meter
from engine.request import Finished
from engine.sampling import SamplingParams
from tests.common.energy.test_calibration import CALIBRATION
from tests.engine.test_metering import MODEL, Dial
from tests.engine.tiny_model import write_model

COST = st.floats(0, 10)


@st.composite
def models(draw: st.DrawFn) -> SweetSpot:
    """Those in which an output token's attention costs the same whoever wrote what it attends to."""
    pair_joules = draw(COST)
    return SweetSpot(*(draw(COST) for _ in range(7)), pair_joules=pair_joules, output_squared_joules=pair_joules / 2)


@given(models(), st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 8))
@settings(deadline=None)
def test_an_answers_steps_add_up_to_its_calibrated_energy(
    model: SweetSpot, pieces: list[int], output_tokens: int, batch: int
) -> None:
    """But for the first output token's attention, of which the first piece pays for what itself holds."""
    meter = CalibratedMeter(model, MODEL)
    pieces = [tokens + 1 for tokens in pieces]  # a later piece of one token would pass for an output token
    joules, context = 0.0, 0
    for step, new_tokens in enumerate([*pieces, *[1] * (output_tokens - 1)]):
        parts = meter.step([Work(new_tokens, context, begins=step == 0)] * batch)
        assert len(parts) == batch and len(set(parts)) == 1 and parts[0] >= 0
        joules += parts[0]
        context += new_tokens
    left_out = model.pair_joules * sum(pieces[1:])
    whole = model.energy_joules(sum(pieces), output_tokens, batch)
    assert joules == pytest.approx(whole - left_out, rel=1e-6, abs=1e-6)


def test_a_counter_is_preferred_then_what_one_has_shown_then_the_model() -> None:
    modelled = replace(CALIBRATION, source=EnergySource.MODELLED)
    assert isinstance(choose_meter(Dial(), MODEL, CALIBRATION), CountedMeter)
    assert isinstance(choose_meter(None, MODEL, CALIBRATION), CalibratedMeter)
    assert choose_meter(None, MODEL, CALIBRATION).source == EnergySource.MODELLED
    assert choose_meter(None, MODEL, modelled) is MODEL is choose_meter(None, MODEL, None)
    assert choose_meter(None, MODEL, CALIBRATION).idle_watts == MODEL.idle_watts


async def answered(engine: Engine, prompt: list[int]) -> Finished:
    with engine.place("") as place:
        engine.submit(place, engine.request(place, prompt, SamplingParams(), 9, ()))
        while not isinstance(finished := await place.stream.next(), Finished):
            pass
    return finished


async def test_an_engine_without_a_counter_goes_by_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.engine.find_counter", lambda device: None)
    config = EngineConfig(
        model_path=write_model(tmp_path / "tiny", eos_token_id=None),
        kv_cache_bytes=1 << 20,
        cache_directory=tmp_path / "cache",
        backend="torch_cpu",
    )
    plain = Engine(config).card
    assert plain.calibration is None
    model = SweetSpot(request_joules=100.0, output_joules=10.0, input_joules=2.0)
    calibration = replace(CALIBRATION, model=model, model_digest=plain.digest, device=plain.device)
    calibration_file.save(calibration, config.cache_directory)
    engine = Engine(config)
    assert engine.card.calibration == calibration
    engine.start(lambda finished: None)
    try:
        # The second finds all of its prompt in the cache but what was not a full block.
        finished = [await answered(engine, [1 + token % 7 for token in range(40)]) for _ in range(2)]
    finally:
        engine.stop()
    assert finished[0].cached_tokens == 0 < finished[1].cached_tokens
    for one in finished:
        assert one.energy is not None
        assert one.energy.joules == pytest.approx(100 + 9 * 10 + 2 * (40 - one.cached_tokens))
        assert one.energy.source == EnergySource.MODELLED
    # Another device's is not this one's; a damaged one is told and left.
    assert Engine(config.model_copy(update={"threads": 2})).card.calibration is None
    (file,) = config.cache_directory.glob("energy-*")
    file.write_text("{}")
    with capture_logs() as logged:
        assert Engine(config).card.calibration is None
    (warning,) = [line for line in logged if line["log_level"] == "warning"]
    assert warning["event"] == "calibration not used" and str(file) in warning["why"]


def test_a_gpu_is_not_priced_as_a_cpu() -> None:
    told = EngineConfig(model_path=Path())
    assert (told.prices("cuda"), told.prices("torch_cpu")) == (H100, SERVER_CPU)
    some = EngineConfig(model_path=Path(), joules_per_byte=1e-9, idle_watts=0).prices("cuda")
    assert (some.joules_per_flop, some.joules_per_byte, some.idle_watts) == (H100.joules_per_flop, 1e-9, 0)
    assert some.source.startswith("configuration of joules_per_byte, idle_watts; the rest: assumption for an H100")

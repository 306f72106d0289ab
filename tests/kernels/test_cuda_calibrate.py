"""Calibration of a GPU, with the emulated device and a made-up NVML."""

import json
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from common.energy.modelled import H100
from common.energy.reading import EnergySource
from engine.calibrate import calibrate, load_subject
from engine.calibration.options import GPU_LENGTHS, Options
from engine.engine import Engine
from tests.engine.test_energy_counters import Nvml
from tests.kernels.test_cuda_engine import emulated_gpu, settings

__all__ = ["emulated_gpu"]


@pytest.mark.usefixtures("emulated_gpu")
def test_a_gpu_is_measured_by_its_counter_and_known_again_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvml = Nvml(0)
    millijoules = count(1000, 1000)
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: next(millijoules))
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    config = settings(tmp_path)
    subject = load_subject(config)
    assert (subject.source, subject.lengths, subject.window_seconds) == (EnergySource.MEASURED, GPU_LENGTHS, 5)
    assert subject.prices == H100.source

    options = Options(inputs=(3, 5, 8), outputs=(2, 3), batches=(1, 2), json=True)
    subject = replace(subject, window_seconds=0.0)
    capsys.readouterr()  # what loading has logged
    assert calibrate(config, subject, options, 0.0, lambda: 0.0) == 0
    told = json.loads(capsys.readouterr().out)
    # A reading to the next, whatever was done between, is a joule; a request's is its share.
    assert told["source"] == "MEASURED" and told["cells"] + len(told["held_out"]) + len(told["corners"]) == 12
    assert told["model"]["request_shared_joules"] + told["model"]["request_joules"] > 0
    assert Engine(config).card.energy_source == EnergySource.ATTRIBUTED

    monkeypatch.setitem(sys.modules, "pynvml", None)
    card = Engine(config).card
    assert card.calibration is not None and card.calibration.source == EnergySource.MEASURED
    assert card.calibration.device == card.device == subject.device
    assert (card.energy_source, card.idle_watts) == (EnergySource.MODELLED, H100.idle_watts)

"""Calibration on a device that is made up, whose energies follow coefficients that the fit must find."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from common.energy.modelled import Work
from common.energy.reading import Energy, EnergySource
from common.energy.sweet_spot import SweetSpot
from common.scheduling import SchedulingLimits
from engine.backends.base import DecodeBatch, PrefillBatch
from engine.batching import ContinuousBatch
from engine.calibrate import Subject, calibrate
from engine.calibration import file as calibration_file
from engine.calibration.grid import Cell, Room, split
from engine.calibration.options import FAILED, REFUSED, UNFINISHED, Options
from engine.config import EngineConfig
from engine.energy_counters import EnergyCounter
from engine.tokenizer import Detokenizer

VOCABULARY = 1000
BLOCKS, BLOCK_SIZE = 2000, 16
TRUTH = SweetSpot(
    request_joules=0.7,
    input_joules=0.003,
    input_squared_joules=2e-6,
    output_joules=0.02,
    output_shared_joules=0.5,
    # An output token's attention costs the same whoever wrote what it attends to.
    pair_joules=8e-6,
    output_squared_joules=4e-6,
)
LENGTHS, BATCHES = (8, 16, 32, 64, 128), (1, 4, 16)
OPTIONS = Options(inputs=LENGTHS, outputs=LENGTHS, batches=BATCHES, json=True)
CELLS = [Cell(batch, inputs, outputs) for batch in BATCHES for inputs in LENGTHS for outputs in LENGTHS]


class Instant:
    """A backend that answers token 0."""

    name, device, block_size, bytes_per_parameter, bytes_per_kv = "fake", "none", BLOCK_SIZE, 4, 4
    blocks = BLOCKS

    def __init__(self, most_prompt_tokens: int) -> None:
        self._most_prompt_tokens = most_prompt_tokens

    def prefill(self, batch: PrefillBatch) -> npt.NDArray[np.int64]:
        if len(batch.token_ids) > self._most_prompt_tokens:
            raise MemoryError("planted: no room")
        return np.zeros(len(batch.new_tokens), np.int64)

    def decode(self, batch: DecodeBatch) -> npt.NDArray[np.int64]:
        return np.zeros(len(batch.token_ids), np.int64)

    def warm_up(self, max_batch: int) -> None:
        pass


class Tokens:
    def detokenizer(self) -> Detokenizer:
        return Detokenizer([b"x"] * VOCABULARY, False)


class Device:
    """Draws what TRUTH says, a step at a time: both the decode loop's meter and the counter."""

    source, idle_watts = EnergySource.MODELLED, 0.0

    def __init__(self) -> None:
        self.drawn_joules = 1e6
        self.readings = 0
        self.fails: frozenset[int] = frozenset()
        self.stands_still = False

    def joules(self) -> float:
        self.readings += 1
        if self.readings in self.fails:
            raise OSError("planted")
        return 1e6 if self.stands_still else self.drawn_joules

    def idle(self) -> None:
        pass

    def idle_energy(self, idle_seconds: float) -> Energy | None:
        return None

    def step(self, work: Sequence[Work]) -> Sequence[float]:
        parts = [self._joules(one, len(work)) for one in work]
        self.drawn_joules += sum(parts)
        return parts

    @staticmethod
    def _joules(work: Work, batch: int) -> float:
        if work.context_tokens:  # TRUTH's difference between m and m - 1, by n + m - 2 tokens before
            each = TRUTH.output_joules + TRUTH.output_shared_joules / batch
            return each + TRUTH.output_squared_joules * (2 * work.context_tokens + 3)
        return TRUTH.energy_joules(work.new_tokens, 1, batch)


class Ticks:
    """A clock that moves by a second at every look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


class Bench:
    """Calibrates the device, as one process after another would."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.device = Device()
        self.cache = folder / "cache"
        self.grid = folder / "grid.csv"
        self.most_prompt_tokens = 1 << 30
        self.said: list[str] = []
        self._capsys = capsys
        self._config = EngineConfig(model_path=folder, cache_directory=self.cache)

    def run(self, counter: EnergyCounter | None = None, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Exit status, and what came on stdout."""
        loop = ContinuousBatch(
            Instant(self.most_prompt_tokens),
            Tokens(),  # type: ignore[arg-type]
            self.device,
            SchedulingLimits(16, 1 << 20),
            frozenset(),
            Ticks(),
        )
        subject = Subject(
            model_digest="digest",
            device="made up",
            vocabulary=VOCABULARY,
            room=Room(16, 512, BLOCKS, BLOCK_SIZE),
            batch=loop,
            counter=counter,
            lengths=LENGTHS,
            window_seconds=0.5,
            prices="a guess",
        )
        options = replace(OPTIONS, **{"grid": self.grid} | changes)
        status = calibrate(self._config, subject, options, 0.0, Ticks())
        told = self._capsys.readouterr()
        self.said = told.err.splitlines()
        return status, json.loads(told.out) if told.out else {}

    def rows(self) -> list[dict[str, str]]:
        with self.grid.open() as lines:
            return list(csv.DictReader(lines))


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def cells_of(values: Sequence[dict[str, Any]]) -> set[Cell]:
    return {Cell(one["batch"], one["input_tokens"], one["output_tokens"]) for one in values}


def test_the_truth_is_found_and_kept(bench: Bench) -> None:
    status, told = bench.run(bench.device)
    assert status == 0
    kept = calibration_file.load(bench.cache, "digest", "made up")
    assert kept is not None
    assert asdict(kept.model) == pytest.approx(asdict(TRUTH), rel=1e-6, abs=1e-12)
    assert (kept.source, kept.max_batch, kept.max_input_tokens, kept.max_output_tokens) == ("MEASURED", 16, 128, 128)
    assert kept.held_out_mape == pytest.approx(0, abs=1e-6) and kept.corner_mape == pytest.approx(0, abs=1e-6)
    assert told["model"] == asdict(kept.model) and told["file"] == str(next(bench.cache.iterdir()))
    held_out, corners = cells_of(told["held_out"]), cells_of(told["corners"])
    assert corners == {Cell(batch, 128, 128) for batch in BATCHES}
    assert len(held_out) == 15 and not held_out & corners and kept.cells == 75 - 15 - 3
    forms = {(row["form"], row["fitted_on"], row["batch"]): row for row in told["errors"]}
    assert set(forms) == {
        (form, fitted_on, batch)
        for form in ("sweet_spot", "nm", "linear")
        for batch in (None, *BATCHES)
        for fitted_on in ({"all batches"} if batch is None else {"all batches", f"batch {batch}"})
    }
    for name in ("nm", "linear"):
        assert forms[name, "all batches", None]["held_out_mape"] > 5
    # A request's joules, each cell once; the first row is the warm-up.
    measured = {(row["input_tokens"], row["output_tokens"], row["batch"]): row for row in bench.rows()[1:]}
    assert len(measured) == len(bench.rows()) - 1 == 75
    for cell in CELLS:
        row = measured[str(cell.input_tokens), str(cell.output_tokens), str(cell.batch)]
        truth = TRUTH.energy_joules(cell.input_tokens, cell.output_tokens, cell.batch)
        assert float(row["gpu_energy_j"]) == pytest.approx(truth)


def test_the_fit_never_sees_what_is_held_out_nor_the_corners(bench: Bench) -> None:
    bench.run(bench.device)
    parts = split(CELLS, OPTIONS.seed)
    rows = bench.rows()
    for row in rows[1:]:
        cell = Cell(int(row["batch"]), int(row["input_tokens"]), int(row["output_tokens"]))
        factor = 10 if cell in parts.held_out else 4 if cell in parts.corners else 1
        row["gpu_energy_j"] = repr(float(row["gpu_energy_j"]) * factor)
    with bench.grid.open("w") as lines:
        writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    readings = bench.device.readings
    status, told = bench.run(bench.device)
    # Nor is it newer for having been fitted again.
    assert told["measured_at"] == max(row["measured_at"] for row in rows)
    # All was there: nothing is measured again. So wrong a fit is not kept, the one before is.
    assert (status, bench.device.readings, told["file"]) == (FAILED, readings, None)
    assert "not kept, and what was kept before stays: it misses by 90.0 %" in bench.said[-1]
    kept = calibration_file.load(bench.cache, "digest", "made up")
    assert kept is not None and kept.held_out_mape == pytest.approx(0, abs=1e-6)
    assert told["model"] == pytest.approx(asdict(TRUTH), rel=1e-6, abs=1e-12)
    assert told["held_out_mape"] == pytest.approx(90) and told["corner_mape"] == pytest.approx(75)
    for row in told["errors"]:
        if row["form"] == "sweet_spot":
            assert (row["held_out_mape"], row["corner_mape"]) == (pytest.approx(90), pytest.approx(75))


def test_another_run_goes_on_where_the_time_was_up(bench: Bench) -> None:
    statuses = []
    while not statuses or statuses[-1] == UNFINISHED:
        statuses.append(bench.run(bench.device, limit_seconds=400.0, repeats=2)[0])
        if statuses[-1]:
            assert "windows are left; call again" in bench.said[-1] and not list(bench.cache.iterdir())
    assert len(statuses) > 2 and statuses[-1] == 0
    times = [Cell(int(row["batch"]), int(row["input_tokens"]), int(row["output_tokens"])) for row in bench.rows()[1:]]
    assert len(times) == 150 and len(set(times[:75])) == len(set(times[75:])) == 75
    assert times[:75] != sorted(times[:75])
    kept = calibration_file.load(bench.cache, "digest", "made up")
    assert kept is not None and kept.held_out_mape == pytest.approx(0, abs=1e-6)


def test_a_reading_that_fails_costs_its_cell_alone_and_is_told(bench: Bench) -> None:
    bench.device.fails = frozenset({10, 21})  # of a cell that begins and of one that ends
    status, told = bench.run(bench.device)
    assert status == 0
    discarded = cells_of(told["not_measured"])
    assert len(discarded) == 2 and {one["reason"] for one in told["not_measured"]} == {"planted"}
    assert all(f"{cell}: discarded: planted" in bench.said for cell in discarded)
    assert len(bench.rows()) == 1 + 73
    assert told["held_out_mape"] == pytest.approx(0, abs=1e-6)
    bench.device.fails = frozenset()
    assert bench.run(bench.device)[1]["not_measured"] == []
    assert len(bench.rows()) == 1 + 75


def test_a_counter_that_stands_still_is_no_energy_of_0(bench: Bench) -> None:
    bench.device.stands_still = True
    status, told = bench.run(bench.device)
    assert (status, told) == (FAILED, {})
    assert "discarded: counted 0 J in" in "\n".join(bench.said) and "nothing to fit" in bench.said[-1]
    assert not list(bench.cache.iterdir()) and not bench.grid.exists()


def test_what_the_device_has_no_room_for_is_told_and_the_rest_goes_on(bench: Bench) -> None:
    bench.most_prompt_tokens = 16 * 64
    status, told = bench.run(bench.device)
    assert status == 0
    assert cells_of(told["not_measured"]) == {cell for cell in CELLS if cell.batch * cell.input_tokens > 16 * 64}
    assert {one["reason"] for one in told["not_measured"]} == {"planted: no room"}
    assert told["held_out_mape"] == pytest.approx(0, abs=1e-6)


def test_cells_that_cannot_run_are_skipped_with_the_reason(bench: Bench) -> None:
    status, told = bench.run(bench.device, inputs=(16, 64, 400), outputs=(16, 200), batches=(1, 2, 17))
    assert status == FAILED
    assert "16 in, 16 out, batch 17: skipped: PITH_ENGINE_MAX_BATCH is 16" in bench.said
    assert "400 in, 200 out, batch 1: skipped: 600 tokens are more than the context, 512" in bench.said
    assert len(told["not_measured"]) == 6 + 2
    # Too few of one batch size to hold any out.
    assert (told["cells"], told["held_out_mape"], told["corner_mape"]) == (10, None, None)
    assert bench.said[-1].endswith("too few cells of any batch size to hold some out, so its error is not known")
    assert told["file"] is None and not list(bench.cache.iterdir())
    assert bench.run(bench.device, batches=(17,)) == (REFUSED, {})
    assert bench.said[-1] == "engine calibrate: no cell can run"


def test_without_a_counter_it_is_modelled_and_loudly_so(bench: Bench) -> None:
    status, told = bench.run(None)
    assert status == 0 and told["source"] == "MODELLED"
    assert bench.said[0].startswith("MODELLED, NOT MEASURED: no energy counter") and "(a guess)" in bench.said[0]
    assert {row["source"] for row in bench.rows()} == {"MODELLED"}
    assert told["model"] == pytest.approx(asdict(TRUTH), rel=1e-6, abs=1e-12)
    # What was modelled does not become part of what is measured.
    assert bench.run(bench.device) == (FAILED, {})
    assert "source is 'MODELLED', of this engine 'MEASURED'" in bench.said[-1]


def test_batches_are_repeated_until_the_window_is_full(bench: Bench) -> None:
    few: dict[str, Any] = {"inputs": (16, 32), "outputs": (16,), "batches": (4,)}
    bench.run(bench.device, window_seconds=100.0, **few)
    for row in bench.rows():
        assert 100 <= float(row["seconds"]) < 110
        assert float(row["gpu_energy_j"]) == pytest.approx(TRUTH.energy_joules(int(row["input_tokens"]), 16, 4))


def test_without_scipy_the_grid_is_kept_for_the_fit_elsewhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.calibrate.find_spec", lambda name: None)
    assert bench.run(bench.device, grid=None) == (REFUSED, {})
    assert "scipy" in bench.said[-1] and bench.device.readings == 0
    assert bench.run(bench.device) == (FAILED, {})
    assert bench.said[-1].endswith(f"pithctl energy fit {bench.grid}")
    assert len(bench.rows()) == 76


def test_a_result_that_cannot_be_kept_is_an_error(bench: Bench) -> None:
    bench.cache.write_text("")
    assert bench.run(bench.device) == (REFUSED, {})
    assert "cannot be written" in bench.said[-1] and "PITH_ENGINE_CACHE_DIRECTORY" in bench.said[-1]
    assert bench.device.readings == 0

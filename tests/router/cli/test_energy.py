"""`pithctl energy`: fits and workloads, from files alone."""

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.energy.calibration import Calibration
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from tests.common.energy.planted import SHARING, TRUTH, measured
from tests.common.energy.recorded import DATA, wilkins
from tests.router.cli.cases_of_energy import grid_file, log_file
from tests.router.cli.conftest import Pithctl


@pytest.fixture
def grid(tmp_path: Path) -> str:
    return str(grid_file(tmp_path))


@pytest.fixture
def shared_grid(tmp_path: Path) -> str:
    """Of a device whose energy falls with the batch."""
    return str(grid_file(tmp_path, name="shared.csv", shared=True))


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(log_file(tmp_path))


def test_fit_tells_errors_coefficients_and_intervals(command_line: Pithctl, grid: str) -> None:
    found = command_line("energy", "fit", grid, "--json").document
    assert (found["measurements"], found["first_row"]) == (25, "left out as warm-up")
    assert found["measured"]["batch"] == [1, 1]
    for model in ("linear", "nm", "sweet_spot"):
        assert 0 < found["models"][model]["mape"] <= found["models"][model]["leave_one_out_mape"]
    sweet_spot = found["models"]["sweet_spot"]
    for name, value in sweet_spot["coefficients"].items():
        interval = sweet_spot["intervals"][name]
        assert interval["lower"] <= getattr(TRUTH, name) <= interval["upper"]
        assert interval["lower"] <= value <= interval["upper"]
        assert interval["confidence"] == 0.95
    assert sweet_spot["not_told_apart"] == ["request_shared_joules", "output_shared_joules", "output_root_joules"]
    model = SweetSpot(**sweet_spot["coefficients"])
    for spot in found["sweet_spot_tokens"]:
        assert spot["value"] == pytest.approx(model.sweet_spot_tokens(spot["input_tokens"], spot["batch"]))


def test_first_row_can_be_kept_and_the_fit_tied(command_line: Pithctl, grid: str) -> None:
    kept = command_line("energy", "fit", grid, "--keep-first-row", "--json").document
    assert (kept["measurements"], kept["first_row"]) == (26, "kept")
    tied = command_line("energy", "fit", grid, "--tied", "--json").document["models"]["sweet_spot"]
    assert tied["tied"] is True
    assert tied["coefficients"]["pair_joules"] == pytest.approx(2 * tied["coefficients"]["output_squared_joules"])


def test_batch_terms_are_fitted_where_there_are_batches(command_line: Pithctl, shared_grid: str) -> None:
    found = command_line("energy", "fit", shared_grid, "--json").document
    coefficients = found["models"]["sweet_spot"]["coefficients"]
    assert set(coefficients) == set(asdict(SHARING))
    assert {spot["batch"] for spot in found["sweet_spot_tokens"]} == {1, 16}
    assert "m/√B" in command_line("energy", "fit", shared_grid).out


def test_missing_sweet_spot_is_said(command_line: Pithctl, tmp_path: Path) -> None:
    path = tmp_path / "linear.csv"
    flat = SweetSpot(request_joules=5.0, input_joules=0.1, output_joules=1.0)
    rows = [f"{row.input_tokens},{row.output_tokens},{row.joules}" for row in measured(flat)]
    path.write_text("\n".join(["input_tokens,output_tokens,gpu_energy_j", *rows]))
    assert "m² term is 0 in this fit: m* is infinite" in command_line("energy", "fit", str(path)).out
    found = command_line("energy", "fit", str(path), "--json").document
    assert found["models"]["sweet_spot"]["coefficients"]["output_squared_joules"] == pytest.approx(0, abs=1e-9)
    assert all(spot["value"] is None for spot in found["sweet_spot_tokens"])


def test_answers_of_one_length_have_no_sweet_spot_to_name(command_line: Pithctl, tmp_path: Path) -> None:
    path = tmp_path / "batches.csv"
    rows = [
        f"{row.output_tokens},{row.joules},{row.batch}" for row in measured(SHARING, outputs=(600,), batches=(1, 8))
    ]
    path.write_text("\n".join(["output_tokens,gpu_energy_j,batch", *rows]))
    found = command_line("energy", "fit", str(path), "--json").document
    assert found["sweet_spot_tokens"] == []
    assert found["measured"]["input_tokens"] is None
    assert "output_squared_joules" in found["models"]["sweet_spot"]["not_told_apart"]
    said = command_line("energy", "fit", str(path)).out
    assert "no sweet spot to name" in said
    assert "not known" in said


def test_same_seed_gives_the_same_document(command_line: Pithctl, grid: str) -> None:
    first, same, other = (command_line("energy", "fit", grid, "--json", "--seed", seed).out for seed in "112")
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", ":1: has no column output_tokens"),
        ("input_tokens,output_tokens,gpu_energy_j\n1,1,1\n5,zero,3\n", ":3: output_tokens must be a number"),
        ("input_tokens,output_tokens,gpu_energy_j\n1,1,1\n5,5,3\n", ": a fit needs at least 2 measurements, got 1"),
    ],
)
def test_file_that_is_no_grid_is_refused(command_line: Pithctl, tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    result = command_line("energy", "fit", str(path))
    assert result.code == 2
    assert result.out == ""
    assert f"Error: {path}{fault}" in result.err
    error = command_line("energy", "fit", str(path), "--json").error
    assert error["faults"][0].startswith(f"{path}{fault}")


def test_missing_files_are_named(command_line: Pithctl, grid: str, log: str) -> None:
    for arguments in (("fit", "/no/such.csv"), ("sweet-spot", log, "--model", "/no/such.json")):
        result = command_line("energy", *arguments)
        assert result.code == 2
        assert "/no/such" in result.err
        assert "cannot be read" in result.err
    assert command_line("energy", "sweet-spot", "/no/log.csv", "--model", grid).code == 2


def test_library_that_is_not_installed_is_one_line(grid: str) -> None:
    program = (
        "import sys; sys.modules['scipy'] = None; from router.cli.main import main;"
        f"sys.exit(main(['energy', 'fit', {grid!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Error: this needs scipy, which is not installed"
    assert "pip install 'pith[cli,analysis]'" in done.stderr


def sweet_spot(command_line: Pithctl, *arguments: str) -> Any:
    result = command_line("energy", "sweet-spot", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return result.document


def test_workload_is_priced_by_the_fitted_model(command_line: Pithctl, grid: str, log: str) -> None:
    found = sweet_spot(command_line, log, "--model", grid)
    model = SweetSpot(**found["model"]["coefficients"])
    lengths = [(100 + 40 * index, 5 + 8 * index) for index in range(100)]
    total = sum(model.energy_joules(n, m) for n, m in lengths)
    assert found["joules_per_request"] == pytest.approx(total / 100)
    assert found["joules_per_output_token"] == pytest.approx(total / found["output_tokens"])
    shorter = sum(m < model.sweet_spot_tokens(n) for n, m in lengths)
    assert found["shorter_share"] == pytest.approx(shorter / 100)
    assert found["least_joules_per_output_token"] < found["joules_per_output_token"]
    assert found["sweet_spot_tokens"]["lower"] < found["sweet_spot_tokens"]["value"]


def test_caps_and_truncations_come_from_the_log_where_none_is_named(command_line: Pithctl, grid: str, log: str) -> None:
    changes = sweet_spot(command_line, log, "--model", grid)["changes"]
    assert [(change["cap"], change["keep_input"]) for change in changes] == [
        (718, None),
        (401, None),
        (None, 3664),
        (None, 2080),
    ]
    for change in changes:
        assert 0 < change["saved_share"]["lower"] <= change["saved_share"]["value"] <= change["saved_share"]["upper"]


def test_cap_and_truncation_are_tried_apart_and_together(command_line: Pithctl, grid: str, log: str) -> None:
    capped, kept, both = sweet_spot(
        command_line, log, "--model", grid, "--cap", "205", "--keep-input", "1100"
    )["changes"]  # fmt: skip
    assert (capped["shortened_answers"], capped["shortened_prompts"]) == (74, 0)
    assert (kept["shortened_answers"], kept["shortened_prompts"]) == (0, 74)
    assert both["saved_share"]["value"] > max(capped["saved_share"]["value"], kept["saved_share"]["value"])
    two = sweet_spot(command_line, log, "--model", grid, "--cap", "205", "--cap", "100")["changes"]
    assert [change["cap"] for change in two] == [205, 100]


def test_cap_is_said_to_cut_answers(command_line: Pithctl, grid: str, log: str) -> None:
    said = command_line("energy", "sweet-spot", log, "--model", grid, "--cap", "205").out
    assert "A cap cuts the end of an answer off" in said
    assert "74.0 %" in said


def test_printed_fit_prices_as_its_grid_does_but_knows_no_intervals(
    command_line: Pithctl, grid: str, log: str, tmp_path: Path
) -> None:
    fitted = tmp_path / "fit.json"
    fitted.write_text(command_line("energy", "fit", grid, "--json").out)
    by_grid, by_fit = (sweet_spot(command_line, log, "--model", str(file)) for file in (grid, fitted))
    assert by_fit["joules_per_request"] == pytest.approx(by_grid["joules_per_request"])
    assert by_fit["beyond_measured_share"] == by_grid["beyond_measured_share"]
    assert set(by_fit["changes"][0]["saved_share"]) == {"value"}
    assert "95 % INTERVAL" not in command_line("energy", "sweet-spot", log, "--model", str(fitted)).out


def test_calibration_of_an_engine_is_a_model_too(command_line: Pithctl, log: str, tmp_path: Path) -> None:
    calibrated = tmp_path / "calibration.json"
    made = Calibration(
        model=SHARING,
        source=EnergySource.MODELLED,
        model_digest="0123",
        device="cpu",
        measured_at=datetime(2026, 11, 21, tzinfo=UTC),
        cells=40,
        held_out_mape=3.0,
        corner_mape=None,
        max_batch=8,
        max_input_tokens=1000,
        max_output_tokens=500,
    )
    calibrated.write_text(made.to_json())
    found = sweet_spot(command_line, log, "--model", str(calibrated), "--batch", "16")
    assert found["model"]["coefficients"] == asdict(SHARING)
    assert found["model"]["batch"] == 16
    assert found["beyond_measured_share"] == pytest.approx(0.77)
    assert any("batch 1 to 8, not 16" in note for note in found["notes"])
    assert any("MODELLED, NOT MEASURED" in note for note in found["notes"])


def test_energies_that_were_computed_are_never_called_measured(
    command_line: Pithctl, grid: str, log: str, tmp_path: Path
) -> None:
    """An engine without a counter writes its grid and its calibration too."""
    header, *rows = Path(grid).read_text().splitlines()
    for source in ("MODELLED", "MEASURED"):
        of_engine = tmp_path / f"{source}.csv"
        of_engine.write_text("\n".join([f"{header},source", *(f"{row},{source}" for row in rows), ""]))
        fitted = command_line("energy", "fit", str(of_engine), "--json")
        assert fitted.document["energy_source"] == source
        of_fit = tmp_path / f"{source}.json"
        of_fit.write_text(fitted.out)
        told = [
            "MODELLED, NOT MEASURED" in said.out
            for said in (
                command_line("energy", "fit", str(of_engine)),
                command_line("energy", "sweet-spot", log, "--model", str(of_engine)),
                command_line("energy", "sweet-spot", log, "--model", str(of_fit)),
            )
        ]
        assert told == [source == "MODELLED"] * 3
        assert ("a fit, modelled" in command_line("diagnose", log, "--energy", str(of_fit)).out) == told[0]
    assert command_line("energy", "fit", grid, "--json").document["energy_source"] is None


def test_batch_must_be_said_where_energy_falls_with_it(command_line: Pithctl, shared_grid: str, log: str) -> None:
    refused = command_line("energy", "sweet-spot", log, "--model", shared_grid)
    assert refused.code == 2
    assert "--batch" in refused.err
    alone, many = (
        sweet_spot(command_line, log, "--model", shared_grid, "--batch", batch)["joules_per_request"]
        for batch in ("1", "16")
    )
    assert many < alone / 2


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_is_drawn(command_line: Pithctl, grid: str, log: str, tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / f"drawn.{suffix}"
    result = command_line("energy", "sweet-spot", log, "--model", grid, "--plot", str(plot), "--cap", "200")
    assert f"Drawn in {plot}" in result.out
    assert plot.read_bytes()[:4] in (b"\x89PNG", b"%PDF", b"<?xm")


def test_plot_that_cannot_be_made_is_refused(command_line: Pithctl, grid: str, log: str, tmp_path: Path) -> None:
    arguments = ("energy", "sweet-spot", log, "--model", grid, "--plot")
    assert "must end in .png, .svg or .pdf" in command_line(*arguments, "plot.bmp").err
    unwritable = command_line(*arguments, str(tmp_path / "no" / "plot.png"))
    assert (unwritable.code, unwritable.out) == (1, "")
    assert "cannot be written" in unwritable.err
    silent = tmp_path / "silent.csv"
    silent.write_text("input_tokens,output_tokens\n100,0\n")
    result = command_line("energy", "sweet-spot", str(silent), "--model", grid, "--plot", str(tmp_path / "x.png"))
    assert "nothing to draw" in result.err


def test_plot_without_a_sweet_spot_and_with_equal_requests(command_line: Pithctl, tmp_path: Path) -> None:
    fitted, log = tmp_path / "fit.json", tmp_path / "log.csv"
    fitted.write_text(json.dumps({"models": {"sweet_spot": {"coefficients": {"output_joules": 2.0}}}}))
    log.write_text("input_tokens,output_tokens\n" + "100,50\n" * 3)
    plot = tmp_path / "drawn.png"
    found = sweet_spot(command_line, str(log), "--model", str(fitted), "--plot", str(plot))
    assert plot.exists()
    assert (found["joules_per_request"], found["sweet_spot_tokens"]["value"]) == (100.0, None)
    assert any("always cheaper a token" in note for note in found["notes"])
    assert any("What was measured is not known" in note for note in found["notes"])


def test_log_that_cannot_be_used_names_line_and_field(command_line: Pithctl, grid: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n1,2\n1,-2\n")
    result = command_line("energy", "sweet-spot", str(path), "--model", grid)
    assert result.code == 2
    assert f"{path}:3: output_tokens" in result.err


@pytest.mark.parametrize(("model", "limit"), [("Llama-2-7b", 7.0), ("Mistral-7B", 7.0), ("falcon-40b", 8.5)])
def test_grids_of_wilkins(command_line: Pithctl, model: str, limit: float) -> None:
    models = command_line("energy", "fit", str(wilkins(model)), "--json").document["models"]
    assert models["sweet_spot"]["leave_one_out_mape"] <= limit
    assert models["linear"]["leave_one_out_mape"] >= 3 * models["sweet_spot"]["leave_one_out_mape"]


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_azure_traces(command_line: Pithctl, tmp_path: Path, grid: str, kind: str) -> None:
    trace = DATA / "azure_llm_2023" / f"AzureLLMInferenceTrace_{kind}.csv.gz"
    if not trace.exists():
        pytest.skip("needs azure_llm_2023 from PITH_DATA_DIR")
    found = sweet_spot(command_line, str(trace), "--model", grid, "--plot", str(tmp_path / "drawn.png"))
    assert found["requests"] > 8000
    assert all(0 < change["saved_share"]["value"] < 1 for change in found["changes"])

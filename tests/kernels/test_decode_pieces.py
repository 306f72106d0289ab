"""What the benchmark of decoding does apart from measuring: its plan, its budget, its result file and its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench import decode, decode_table
from tests.bench.decoding.pieces import ABOUT_SECONDS, Kind, Piece, numbers, plan, plan_all, shape_names
from tests.bench.decoding.results import Results, ResultsError, default_file
from tests.bench.shapes import SHAPES

SETTINGS = {"device": "gpu", "kernels": "v1", "dtype": "bf16", "seed": 1}


def open_results(file: Path, settings: dict[str, Any] = SETTINGS) -> Results:
    return Results.open(file, "decode", settings, "python -m tests.bench.decode", {})


def test_the_plan_begins_with_what_is_worth_most() -> None:
    names = [piece.name for piece in plan_all()]
    assert names[:3] == ["ceilings", "tuning llama-3.2-1b", "step llama-3.2-1b batch 1 context 1024"]
    assert len(names) == len(set(names))
    shapes = [piece.shape for piece in plan_all() if piece.kind is Kind.TUNING]
    assert shapes == list(SHAPES)
    cells = {(piece.batch, piece.context_tokens) for piece in plan_all() if piece.kind is Kind.STEP}
    assert cells == {(batch, context) for batch in (1, 8, 64, 128) for context in (1024, 4096)}
    assert "softmax llama-3.2-1b batch 1 context 32768" in names
    assert max(ABOUT_SECONDS.values()) < 540


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: numbers("1,x", "batch", 8), "--batch must be whole numbers with commas between, got '1,x'"),
        (lambda: numbers("", "context", 8), "--context must be whole numbers"),
        (lambda: numbers("1,9", "batch", 8), "--batch must be 1 to 8, got 9"),
        (lambda: numbers("0", "batch", 8), "--batch must be 1 to 8, got 0"),
        (lambda: list(shape_names("llama-3.2-1b,gpt")), "--shape must be one of llama-3.2-1b, .*, or all, got 'gpt'"),
    ],
)
def test_bad_options_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class Clock:
    """Each piece takes a hundred seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.measured: list[str] = []

    def measure(self, piece: Piece) -> dict[str, Any]:
        self.seconds += 100
        self.measured.append(piece.name)
        if piece.kind is Kind.SEGMENTS:
            raise RuntimeError("CUDA error:\n an illegal address")
        return {"value": len(self.measured)}

    def run(self, file: Path, pieces: list[Piece], budget_seconds: float, *, retry_failed: bool = False) -> int:
        results = open_results(file)
        return decode.run(
            pieces, self.measure, results, budget_seconds, lambda: self.seconds, lambda line: None,
            retry_failed=retry_failed,
        )  # fmt: skip


def test_a_run_stops_within_its_budget_and_the_next_goes_on(tmp_path: Path) -> None:
    pieces = plan(["llama-3.2-1b"], [1, 8], [1024])
    file, clock = tmp_path / "new" / "gpu.json", Clock()
    left = clock.run(file, pieces, 540)
    # 100 s a piece: the fourth, transformers, may begin with 240 s left, the sixth not with 40.
    assert clock.measured == [piece.name for piece in pieces[:5]]
    assert left == len(pieces) - 5
    kept = json.loads(file.read_text())
    assert list(kept["pieces"]) == clock.measured
    assert clock.run(file, pieces, 10_000) == 0
    assert clock.measured == [piece.name for piece in pieces]
    kept = json.loads(file.read_text())
    assert kept["pieces"]["segments llama-3.2-1b"]["failed"] == "RuntimeError: CUDA error: an illegal address"
    assert [piece["run"] for piece in kept["pieces"].values()] == [0] * 5 + [1] * (len(pieces) - 5)
    assert clock.run(file, pieces, 10_000) == 0
    assert len(clock.measured) == len(pieces)
    assert clock.run(file, pieces, 10_000, retry_failed=True) == 0
    assert clock.measured[len(pieces) :] == ["segments llama-3.2-1b"]
    assert [path.name for path in file.parent.iterdir()] == ["gpu.json"]


def test_a_file_of_other_kernels_or_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    open_results(file).add("ceilings", {"value": 1}, 3.0)
    for name, value in {"device": "H100", "kernels": "v2", "dtype": "fp16", "seed": 2}.items():
        with pytest.raises(ResultsError, match=f"was measured with {name} .*: name another"):
            open_results(file, SETTINGS | {name: value})
    for text in ("", "[]", "{", '{"format": 1}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ResultsError, match=r"gpu\.json is (damaged|no result file)"):
            open_results(file)


def test_a_file_that_cannot_be_written_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.json"
    results = open_results(file)
    results.add("ceilings", {"value": 1}, 3.0)
    before = file.read_text()

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ResultsError, match=r"gpu\.json cannot be written: No space left on device"):
        results.add("step", {"value": 2}, 3.0)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_the_default_file_is_of_the_device_and_the_day(tmp_path: Path) -> None:
    name = default_file("NVIDIA H100 80GB HBM3", tmp_path).name
    assert name.startswith("nvidia-h100-80gb-hbm3-20") and name.endswith(".json")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no NVIDIA driver on this machine"),
        (["--batch", "0"], "--batch must be 1 to 1024, got 0"),
        (["--shape", "gpt"], "--shape must be one of"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.setattr("tests.bench.decoding.gpu.find_device", lambda: "no NVIDIA driver on this machine")
    assert decode.main([*arguments, "--json", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"tests.bench.decode: {reason}")
    assert (said.err.count("\n"), said.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_without_result_files_the_table_says_so(tmp_path: Path) -> None:
    assert decode_table.render(decode_table.read(tmp_path)) == "Not yet measured on a GPU."
    (tmp_path / "engine-cpu.json").write_text('{"command": "another benchmark"}')
    assert decode_table.render(decode_table.read(tmp_path)) == "Not yet measured on a GPU."

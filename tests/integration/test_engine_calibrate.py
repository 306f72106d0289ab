"""`python -m engine calibrate` as a process, and the engine that tells of what it has found."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from pathlib import Path
from typing import Any

import grpc
from pith.common.v1 import energy_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc

from engine.energy_counters import find_rapl
from tests.integration.processes import ROOT, environment, listening
from tests.integration.served_engine import TIMEOUT_SECONDS

DEMO_MODEL = ROOT / "engine" / "demo" / "model"
SMALL_GRID = ("--input", "16,32,64", "--output", "16,32,64", "--batch", "1,4")


async def started(*arguments: str, **settings: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "calibrate", *arguments),
        cwd=ROOT,
        env=environment("engine", **settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def model_info(**settings: Any) -> control_pb2.ModelInfo:
    """What an engine tells of itself."""
    async with (
        listening("engine", listen="127.0.0.1:0", **settings) as engine,
        grpc.aio.insecure_channel(engine.address) as channel,
    ):
        info = await control_pb2_grpc.ControlStub(channel).GetModelInfo(
            control_pb2.GetModelInfoRequest(), timeout=TIMEOUT_SECONDS, wait_for_ready=True
        )
    (serving,) = (json.loads(line) for line in engine.lines if '"serving"' in line)
    source = energy_pb2.EnergySource.Name(info.energy_model.source).removeprefix("ENERGY_SOURCE_")
    assert serving["calibration"] == f"{source}, of {info.energy_model.measured_at.ToDatetime():%Y-%m-%d}"
    return info


async def test_a_calibration_that_was_killed_goes_on_and_its_engine_tells_the_result(tmp_path: Path) -> None:
    grid, cache = tmp_path / "grid.csv", tmp_path / "cache"
    settings = {"model_path": DEMO_MODEL, "cache_directory": cache}
    arguments = (*SMALL_GRID, "--grid", str(grid))

    killed = await started(*arguments, "--window-seconds", "1", **settings)
    assert killed.stderr is not None
    while not (line := (await killed.stderr.readline()).decode()).startswith("[2/"):
        assert line, "it ended before its second cell"
    killed.kill()
    await killed.communicate()
    measured = grid.read_text().splitlines()
    assert 1 + 3 <= len(measured) < 1 + 19 and not list(cache.iterdir())

    process = await started(*arguments, "--json", **settings)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    source = "MODELLED" if find_rapl() is None else "MEASURED"
    assert told["source"] == source and f"{source}" in err.decode().splitlines()[-1]
    assert ("MODELLED, NOT MEASURED" in err.decode()) == (source == "MODELLED")
    lines = grid.read_text().splitlines()
    assert lines[: len(measured)] == measured and len(lines) == 1 + 19
    assert {row["source"] for row in csv.DictReader(lines)} == {source}
    assert (told["cells"], len(told["held_out"]), len(told["corners"])) == (12, 4, 2)
    if source == "MODELLED":  # without noise; a noisy machine's counter is no test's business
        assert told["held_out_mape"] < 3

    info = await model_info(**settings)
    model = info.energy_model
    assert info.HasField("energy_model") and info.model_digest == told["model_digest"]
    assert model.source == energy_pb2.EnergySource.Value(f"ENERGY_SOURCE_{source}")
    for name, value in told["model"].items():
        assert getattr(model, name) == value
    assert model.held_out_mape == told["held_out_mape"]
    assert (model.max_batch, model.max_input_tokens, model.max_output_tokens) == (4, 64, 64)
    assert model.measured_at.ToDatetime().isoformat()[:19] == told["measured_at"][:19]


async def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    process = await started("--input", "2048", model_path=DEMO_MODEL, cache_directory=tmp_path / "cache")
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    lines = err.decode().splitlines()
    assert "2048 in, 32 out, batch 1: skipped: 2,080 tokens are more than the context, 2,048" in lines
    assert lines[-1] == "engine calibrate: no cell can run"
    assert not (tmp_path / "cache").exists()

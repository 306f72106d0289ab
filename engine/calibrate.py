"""`python -m engine calibrate`: measures what a request costs on this device by its lengths and batch, and fits it."""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product

import numpy as np

from common.clock import clock_from_spec
from common.config import load
from common.energy.calibration import Calibration
from common.energy.reading import EnergySource
from common.logging import configure
from common.scheduling import SchedulingLimits
from engine.backends.cuda.cupy_device import DeviceError
from engine.backends.loading import load_backend
from engine.batching import ContinuousBatch
from engine.calibration import file as calibration_file
from engine.calibration.file import CalibrationFileError
from engine.calibration.grid import Cell, Room, split
from engine.calibration.options import (
    BATCHES,
    CPU_LENGTHS,
    FAILED,
    GPU_LENGTHS,
    INTERRUPTED,
    REFUSED,
    UNFINISHED,
    Options,
    parse,
)
from engine.calibration.rows import GridFile, GridFileError
from engine.calibration.sweep import Window, sweep
from engine.config import EngineConfig
from engine.energy_counters import EnergyCounter, find_counter
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.metering import ModelledMeter
from engine.tokenizer import Tokenizer
from engine.weights import ModelError, model_digest, read_config

_WINDOW_SECONDS = {"nvml": 5.0, "rapl": 1.0, None: 0.0}
"""NVML's counter moves every 20 to 100 ms, RAPL's every one; the model needs no time at all."""
_WORST_KEPT_MAPE = 25.0
"""A fit that misses unseen cells by more, in percent, is no price; a router without one goes by what it observes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is calibrated: a model on a device, loaded and warm."""

    model_digest: str
    device: str
    vocabulary: int
    room: Room
    batch: ContinuousBatch
    counter: EnergyCounter | None
    lengths: tuple[int, ...]
    """Of inputs and outputs, where none are given."""
    window_seconds: float
    """Where none is given."""
    prices: str
    """Where the assumed prices come from, which stand in for a counter."""

    @property
    def source(self) -> EnergySource:
        return EnergySource.MODELLED if self.counter is None else EnergySource.MEASURED


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    began_seconds = time.monotonic()
    options = parse(arguments)
    config = load(EngineConfig)
    configure("engine", config.log_level, config.log_format)
    try:
        # As in serving: see engine/__main__.py.
        with ThreadPoolExecutor(max_workers=1) as loading:
            subject = loading.submit(load_subject, config).result()
        return calibrate(config, subject, options, began_seconds, time.monotonic)
    except (ModelError, DeviceError) as fault:
        _say(f"engine calibrate: {fault}")
        return FAILED
    except KeyboardInterrupt:
        kept = f"; {options.grid} has what was measured" if options.grid else ""
        _say(f"engine calibrate: stopped{kept}")
        return INTERRUPTED


def load_subject(config: EngineConfig) -> Subject:
    """Raises ModelError or DeviceError, in one line, where the model cannot be served."""
    model = read_config(config.model_path)
    tokenizer = Tokenizer(config.model_path, model.shape.vocab_size)
    digest = model_digest(config.model_path)
    backend = load_backend(config, model, tokenizer, digest)
    on_gpu = backend.name == "cuda"
    counter = find_counter(f"cuda:{config.gpu}" if on_gpu else "cpu")
    prices = config.prices(backend.name)
    meter = ModelledMeter(model.shape, prices, backend.bytes_per_parameter, backend.bytes_per_kv)
    limits = SchedulingLimits(config.max_batch, config.max_step_tokens)
    context_tokens = min(model.max_context_tokens, config.max_context_tokens or model.max_context_tokens)
    return Subject(
        model_digest=digest,
        device=backend.device,
        vocabulary=model.shape.vocab_size,
        room=Room(
            config.max_batch,
            min(context_tokens, backend.blocks * BLOCK_SIZE_TOKENS),
            backend.blocks,
            backend.block_size,
        ),
        # Without end tokens every answer is as long as asked for.
        batch=ContinuousBatch(backend, tokenizer, meter, limits, frozenset(), time.monotonic),
        counter=counter,
        lengths=GPU_LENGTHS if on_gpu else CPU_LENGTHS,
        window_seconds=_WINDOW_SECONDS[None if counter is None else "nvml" if on_gpu else "rapl"],
        prices=prices.source,
    )


def calibrate(
    config: EngineConfig,
    subject: Subject,
    options: Options,
    began_seconds: float,
    now_seconds: Callable[[], float],
) -> int:
    """Measures, fits, reports on stdout, and stores the calibration; returns the exit status."""
    fits_here = find_spec("scipy") is not None
    if not fits_here and options.grid is None:
        _say("engine calibrate: scipy, which does the fit, is not installed: install it, or keep the grid with --grid")
        return REFUSED
    cells, skipped = _cells(subject, options)
    for cell, reason in skipped.items():
        _say(f"{cell}: skipped: {reason}")
    if not cells:
        _say("engine calibrate: no cell can run")
        return REFUSED
    try:
        # Measuring takes long: not in vain.
        calibration_file.check_writable(config.cache_directory)
    except CalibrationFileError as fault:
        _say(f"engine calibrate: {fault}; PITH_ENGINE_CACHE_DIRECTORY says where")
        return REFUSED
    if subject.counter is None:
        _say(
            "MODELLED, NOT MEASURED: no energy counter on this machine can be read. These coefficients restate "
            f"assumed prices ({subject.prices})."
        )
    else:
        _say("MEASURED: the counter counts all that the device does; leave it to this process meanwhile.")
    window_seconds = subject.window_seconds if options.window_seconds is None else options.window_seconds
    generator = np.random.default_rng(options.seed)
    window = Window(subject.batch, subject.counter, subject.vocabulary, generator, now_seconds, window_seconds)
    try:
        clock = clock_from_spec(config.clock)
        grid = GridFile(options.grid, subject.source, subject.device, subject.model_digest, clock)
        swept = sweep(
            cells, options.repeats, window, grid, began_seconds + options.limit_seconds, now_seconds, _say
        )  # fmt: skip
    except GridFileError as fault:
        _say(f"engine calibrate: {fault}")
        return FAILED
    if swept.left:
        _say(f"engine calibrate: {options.limit_seconds:g} s are over, {swept.left} windows are left; call again")
        return UNFINISHED
    if not fits_here:
        _say(f"engine calibrate: scipy, for the fit, is not installed; elsewhere: pithctl energy fit {options.grid}")
        return FAILED
    return _report(config, subject, options, grid, {**skipped, **swept.discarded}, now_seconds() - began_seconds)


def _cells(subject: Subject, options: Options) -> tuple[list[Cell], dict[Cell, str]]:
    """What is measured, in random order so that a drift of the device meets all alike, and what cannot run."""
    batches = options.batches or sorted({min(batch, subject.room.max_batch) for batch in BATCHES})
    chosen = sorted(
        Cell(batch, inputs, outputs)
        for batch, inputs, outputs in product(
            batches, options.inputs or subject.lengths, options.outputs or subject.lengths
        )
    )
    skipped = {cell: reason for cell in chosen if (reason := subject.room.lacks(cell)) is not None}
    cells = [cell for cell in chosen if cell not in skipped]
    random.Random(options.seed).shuffle(cells)
    return cells, skipped


def _report(
    config: EngineConfig,
    subject: Subject,
    options: Options,
    grid: GridFile,
    unmeasured: dict[Cell, str],
    seconds: float,
) -> int:
    from engine.calibration.report import judge, rows, table  # scipy, which a GPU's image may lack

    measured = grid.measurements()
    parts = split(measured, options.seed)
    try:
        fitted, errors = judge(measured, parts)
    except ValueError as fault:
        _say(f"engine calibrate: nothing to fit: {fault}")
        return FAILED
    one_model = errors[0]
    calibration = Calibration(
        model=fitted.model,
        source=subject.source,
        model_digest=subject.model_digest,
        device=subject.device,
        measured_at=grid.measured_at(),
        cells=len(parts.fitted),
        held_out_mape=one_model.held_out,
        corner_mape=one_model.corner,
        max_batch=max(cell.batch for cell in parts.fitted),
        max_input_tokens=max(cell.input_tokens for cell in parts.fitted),
        max_output_tokens=max(cell.output_tokens for cell in parts.fitted),
    )
    refusal, file = _refusal(calibration), None
    if refusal is None:
        try:
            file = calibration_file.save(calibration, config.cache_directory)
        except CalibrationFileError as fault:
            _say(f"engine calibrate: {fault}")
            return FAILED
    if options.json:
        values = json.loads(calibration.to_json()) | {
            "errors": rows(errors),
            "held_out": [asdict(cell) for cell in sorted(parts.held_out)],
            "corners": [asdict(cell) for cell in sorted(parts.corners)],
            "not_measured": [asdict(cell) | {"reason": reason} for cell, reason in sorted(unmeasured.items())],
            "command": options.command,
            "seconds": round(seconds, 1),
            "file": None if file is None else str(file),
        }
        print(json.dumps(values, indent=1))
    else:
        print(_text(calibration, table(errors), len(parts.held_out), len(parts.corners)))
    if refusal is not None:
        _say(f"engine calibrate: not kept, and what was kept before stays: {refusal}")
        return FAILED
    _say(f"engine calibrate: {calibration.source}, {seconds:.0f} s, kept in {file}")
    return 0


def _refusal(calibration: Calibration) -> str | None:
    """Why a fit is not to be priced by; None where it may be."""
    if calibration.held_out_mape is None:
        return "too few cells of any batch size to hold some out, so its error is not known"
    if calibration.held_out_mape > _WORST_KEPT_MAPE:
        missed = f"{calibration.held_out_mape:.1f} % on cells that the fit has not seen"
        return f"it misses by {missed}; at most {_WORST_KEPT_MAPE:g} %"
    return None


def _text(calibration: Calibration, errors: str, held_out: int, corners: int) -> str:
    coefficients = "\n".join(f"  {name:<24}{value:.6g}" for name, value in asdict(calibration.model).items())
    return (
        f"{calibration.device}, {calibration.source}: {calibration.cells} cells fitted, {held_out} held out, "
        f"{corners} at the far corner\n\n{errors}\n\njoules of a request, one model over all batches\n{coefficients}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""Files that hold an energy model, or measurements that one is fitted to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.energy.grid import MAX_TOKENS
from common.energy.reading import EnergySource
from router.cli.failures import ExitCode, LocalError
from router.cli.units import percent

if TYPE_CHECKING:
    from common.energy.bootstrap import Bootstrap
    from common.energy.fit import Fit
    from common.energy.grid import Measurement
    from common.energy.sweet_spot import SweetSpot
    from common.quality.interval import Interval

Seed = Annotated[int, typer.Option("--seed", min=0, metavar="NUMBER", help="Of the bootstrap's draws.")]


MODELLED_NOTE = "MODELLED, NOT MEASURED: these energies restate assumed prices; no counter was read."


@contextmanager
def needs_analysis() -> Iterator[None]:
    """What is imported within comes with an extra. Raises LocalError where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("numpy", "scipy", "matplotlib"):
            raise
        raise LocalError(
            [f"this needs {package}, which is not installed"],
            next_step="install Pith with its extra: pip install 'pith[cli,analysis]'",
            exit_code=ExitCode.OTHER,
        ) from None


def measurements_of(file: Path, *, keep_first_row: bool) -> tuple[Measurement, ...]:
    """Raises LocalError for a file that cannot be read or used."""
    from common.energy.grid import GridError, read

    try:
        return read(file, keep_first_row=keep_first_row)
    except GridError as error:
        raise LocalError(error.faults) from None
    except OSError as error:
        raise LocalError([f"{file} cannot be read: {error.strerror}"]) from None


def fit_of(file: Path, measurements: Sequence[Measurement], *, tied: bool = False) -> Fit:
    """SweetSpot's. Raises LocalError where there is too little to fit."""
    from common.energy.fit import fit

    try:
        return fit(measurements, tied=tied)
    except ValueError as error:
        raise LocalError([f"{file}: {error}"]) from None


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """A model with what is known of its making; None stands for what is not."""

    model: SweetSpot
    longest_input: float | None
    """That was measured; beyond, the model extrapolates."""
    longest_output: float | None
    batches: tuple[float, float] | None
    """The least and the largest that were measured."""
    bootstrap: Bootstrap | None
    """Needs the measurements themselves."""
    modelled: bool
    """Whether it is known to restate assumed prices, and not what a counter has shown."""

    @property
    def falls_with_batch(self) -> bool:
        model = self.model
        return bool(model.request_shared_joules or model.output_shared_joules or model.output_root_joules)


def read_model(file: Path, *, seed: int) -> EnergyModel:
    """The model of a grid (CSV), of what `pithctl energy fit --json` printed, or of an engine's calibration (JSON).

    Raises LocalError.
    """
    if file.suffix.lower() != ".json":
        return _fitted(file, seed)
    from router.diagnosis.law import read_law
    from router.diagnosis.lines import LogError

    try:
        model = read_law(file).model
    except LogError as error:
        raise LocalError(error.faults) from None
    document = json.loads(file.read_text(encoding="utf-8"))
    if "format" in document:
        lengths = {name: [1, document[f"max_{name}"]] for name in ("input_tokens", "output_tokens", "batch")}
        return _with_range(model, lengths, None, document["source"] == "MODELLED")
    return _with_range(model, document.get("measured"), None, document.get("energy_source") == "MODELLED")


def _fitted(file: Path, seed: int) -> EnergyModel:
    import numpy as np

    from common.energy.bootstrap import Bootstrap

    measurements = measurements_of(file, keep_first_row=False)
    fit = fit_of(file, measurements)
    modelled = source_of(measurements) == "MODELLED"
    return _with_range(fit.model, range_of(measurements), Bootstrap(fit, np.random.default_rng(seed)), modelled)


def _with_range(model: SweetSpot, measured: Any, bootstrap: Bootstrap | None, modelled: bool) -> EnergyModel:
    _, longest_input = _ends(measured, "input_tokens") or (None, None)
    _, longest_output = _ends(measured, "output_tokens") or (None, None)
    return EnergyModel(model, longest_input, longest_output, _ends(measured, "batch"), bootstrap, modelled)


def beyond_note(model: EnergyModel, outside: float) -> str:
    """That so large a share of a log's requests is longer than what the model was fitted to."""
    measured = {"input": model.longest_input, "output": model.longest_output}
    longest = " and ".join(f"{tokens:,.0f} {name}" for name, tokens in measured.items() if tokens is not None)
    return f"{percent(outside)} of the requests are longer than what was measured ({longest} tokens)."


def _ends(measured: Any, name: str) -> tuple[float, float] | None:
    """Where a file was made by hand it need not have them."""
    match measured.get(name) if isinstance(measured, dict) else None:
        case [int() | float() as least, int() | float() as most] if 0 <= least <= most <= MAX_TOKENS:
            return float(least), float(most)
    return None


def source_of(measurements: Sequence[Measurement]) -> EnergySource | None:
    """The weakest of what the file says; None where it says none."""
    told = [measurement.source for measurement in measurements if measurement.source is not None]
    return reduce(EnergySource.weaker, told) if told else None


def range_of(measurements: Sequence[Measurement]) -> dict[str, list[float] | None]:
    """Least and largest of what was measured; None where it is not known."""
    inputs = [measurement.input_tokens for measurement in measurements if measurement.input_tokens is not None]
    outputs = [measurement.output_tokens for measurement in measurements]
    batches = [measurement.batch for measurement in measurements]
    return {
        "input_tokens": [min(inputs), max(inputs)] if inputs else None,
        "output_tokens": [min(outputs), max(outputs)],
        "batch": [min(batches), max(batches)],
    }


def interval_document(found: Interval) -> dict[str, Any]:
    """JSON has no infinity: null stands for it."""
    ends = {"value": found.value, "lower": found.lower, "upper": found.upper}
    finite = {name: end if math.isfinite(end) else None for name, end in ends.items()}
    return {**finite, "confidence": found.confidence, "method": found.method}


def tokens_text(tokens: float) -> str:
    """A number of tokens, which may be infinite."""
    return f"{tokens:,.0f}" if math.isfinite(tokens) else "infinite"

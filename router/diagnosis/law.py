"""Which energy law a diagnosis goes by: one that was fitted or calibrated, or an assumption that says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from common.energy.calibration import Calibration
from common.energy.grid import MAX_BATCH
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from router.diagnosis.lines import LogError
from router.diagnosis.log import Log
from router.optimizer.pricing import check_coefficients

MOST_BATCH: Final = 64.0
"""Up to which an unknown load is taken to go."""
LEAST_TO_FIT: Final = 200
MOST_TO_FIT: Final = 5_000
_LEAST_VARIATION: Final = 0.1
_MOST_ERROR: Final = 0.5
MOST_FILE_BYTES: Final = 1 << 24

ASSUMED: Final = SweetSpot(output_joules=0.0665, output_shared_joules=3.16, input_joules=0.0193)
"""Joules of an 8B model on an H100. Only their ratios matter: savings are shares."""
ASSUMED_SOURCE: Final = (
    "assumed, an 8B model on an H100: 0.0665 J + 3.16 J / batch an output token (a fit to the ML.ENERGY leaderboard, "
    "Llama-3.1-8B) and 0.0193 J an input token (2 FLOP a parameter at 1.2 pJ)"
)


@dataclass(frozen=True, slots=True)
class Law:
    """Energy of a request by its lengths, and how many requests a batch is taken to have."""

    model: SweetSpot
    source: str
    fewest: float = 1.0
    most: float = 1.0
    """Requests in a batch; equal where that is known, or makes no difference."""
    assumed: bool = False

    @property
    def depends(self) -> bool:
        """Whether the batch makes a difference."""
        model = self.model
        return model.request_shared_joules + model.output_shared_joules + model.output_root_joules > 0

    @property
    def batch(self) -> float:
        """In the middle, by ratio."""
        return math.sqrt(self.fewest * self.most)

    @property
    def batches(self) -> tuple[float, ...]:
        """The middle, and the ends where there are any."""
        return (self.batch,) if self.fewest == self.most else (self.batch, self.fewest, self.most)

    def output_tokens(self, joules: float, input_tokens: float) -> float:
        """Of the answer that has cost so much, at least 1: the law, solved for them. Raises ValueError where output
        tokens cost nothing by it."""
        once = self.model.energy_joules(input_tokens, 0.0, self.batch)
        square = self.model.output_squared_joules
        slope = self.model.energy_joules(input_tokens, 1.0, self.batch) - once - square
        if slope + square <= 0:
            raise ValueError("by the energy law, output tokens cost nothing")
        rest = max(0.0, joules - once)
        tokens = 2 * rest / (slope + math.sqrt(slope**2 + 4 * square * rest)) if rest else 0.0
        return max(1.0, tokens)


def law_of(
    model: SweetSpot, source: str, batch: float | None, most: float = MOST_BATCH, *, assumed: bool = False
) -> Law:
    """The law at a batch size, or where that is None, at any from 1 to `most` if it makes a difference."""
    if batch is not None:
        return Law(model, source, batch, batch, assumed)
    law = Law(model, source, assumed=assumed)
    return replace(law, most=max(1.0, most)) if law.depends else law


def assumed_law(batch: float | None = None) -> Law:
    return law_of(ASSUMED, ASSUMED_SOURCE, batch, assumed=True)


def law_of_log(log: Log) -> Law | None:
    """The law that the log's own energies follow, at the loads that they were recorded at: least squares in shares of
    what the law says, no coefficient below 0.

    None where not every request's energy is recorded and above 0, there are fewer than LEAST_TO_FIT, answers' lengths
    hardly differ from one another or go with the prompts', or energies hardly follow lengths.
    """
    import numpy as np
    from scipy.optimize import nnls

    joules = np.frombuffer(log.energy_joules, np.float64)
    if len(log) < LEAST_TO_FIT or not (joules > 0).all():
        return None
    step = -(-len(log) // MOST_TO_FIT)
    joules = joules[::step]
    n = np.frombuffer(log.input_tokens, np.int64)[::step].astype(float)
    m = np.frombuffer(log.output_tokens, np.int64)[::step].astype(float)
    others = np.stack([np.ones_like(n), n], axis=1)
    apart = m - others @ np.linalg.lstsq(others, m, rcond=None)[0]
    if apart.std() < _LEAST_VARIATION * m.mean():
        return None
    terms = {
        "request_joules": np.ones_like(n),
        "input_joules": n,
        "output_joules": m,
        "pair_joules": n * m,
        "output_squared_joules": m**2,
    }
    columns = np.stack([*terms.values()], axis=1)
    size = np.maximum(columns.mean(axis=0), 1e-300)
    said = np.full_like(joules, joules.mean())
    # In shares of what the fit says: in shares of what was recorded, noise would draw it down.
    for _ in range(5):
        found, _ = nnls(columns / size / said[:, None], joules / said)
        said = np.maximum(columns @ (found / size), 1e-3 * joules.mean())
    error = float(np.abs(joules / said - 1).mean())
    model = SweetSpot(**dict(zip(terms, (found / size).tolist(), strict=True)))
    if error > _MOST_ERROR or model.output_joules + model.output_squared_joules == 0:
        return None
    source = f"fitted to this log's energies, {100 * error:.0f} % off in the mean"
    return Law(model, source)


def read_law(path: str | Path, batch: float | None = None) -> Law:
    """Of a file that `pithctl energy fit --json` or `python -m engine calibrate` has written.

    Raises LogError where it cannot be read or is neither.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MOST_FILE_BYTES + 1).decode()
        if len(text) > MOST_FILE_BYTES:
            raise ValueError(f"must have at most {MOST_FILE_BYTES:,} bytes")
        found = json.loads(text)
        if isinstance(found, dict) and "format" in found:
            calibration = Calibration.from_json(text)
            check_coefficients(calibration.model)
            source = f"{path.name}: {calibration.device}, {calibration.source.value.lower()}"
            return law_of(calibration.model, source, batch, calibration.max_batch)
        model = SweetSpot(**_coefficients(found))
        check_coefficients(model)
        modelled = ", modelled" if found.get("energy_source") == EnergySource.MODELLED else ""
        return law_of(model, f"{path.name}: a fit{modelled}", batch, _most_measured(found))
    except OSError as error:
        raise LogError([f"{path} cannot be read: {error.strerror}"]) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise LogError([f"{path}: {_fault(error)}"]) from None


def _coefficients(found: Any) -> dict[str, float]:
    for name in ("models", "sweet_spot", "coefficients"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError(
            "has no models.sweet_spot.coefficients, as pithctl energy fit --json writes them, and no format"
        )
    known = SweetSpot.__dataclass_fields__
    for name, value in found.items():
        if name not in known:
            raise ValueError(f"models.sweet_spot.coefficients.{name} is unknown")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"models.sweet_spot.coefficients.{name} must be a number, got {value!r}")
    return {name: float(value) for name, value in found.items()}


def _most_measured(found: Any) -> float:
    """The largest batch that the fit has seen, as it may say."""
    ends = found.get("measured")
    ends = ends.get("batch") if isinstance(ends, dict) else None
    if not (isinstance(ends, list) and ends and isinstance(ends[-1], int | float)):
        return MOST_BATCH
    if not 1 <= ends[-1] <= MAX_BATCH:
        raise ValueError(f"measured.batch must be from 1 to {MAX_BATCH:,}, got {ends[-1]:g}")
    return float(ends[-1])


def _fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON"
    return str(error)

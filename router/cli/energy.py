"""`pithctl energy`: the energy model of a device from its measurements. Runs here; no router is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import sweet_spot
from router.cli.command import Session, command
from router.cli.energy_model import (
    MODELLED_NOTE,
    Seed,
    fit_of,
    interval_document,
    measurements_of,
    needs_analysis,
    range_of,
    source_of,
    tokens_text,
)
from router.cli.output import coloured, console, dim, print_document, printable, table
from router.cli.units import count, joules

if TYPE_CHECKING:
    from common.energy.bootstrap import Bootstrap
    from common.energy.fit import Fit
    from common.quality.interval import Interval

app = typer.Typer(help="Energy by lengths: a device's fit, a workload's sweet spot.")

# Field of SweetSpot: the paper's name of it, what it multiplies, and in words.
TERMS = {
    "request_joules": ("θ5", "1", "a request"),
    "request_shared_joules": ("", "1/B", "a request, shared by its batch"),
    "input_joules": ("θ3", "n", "an input token"),
    "input_squared_joules": ("θ1", "n²", "attention of the prefill"),
    "output_joules": ("θ0", "m", "an output token"),
    "output_shared_joules": ("", "m/B", "an output token, shared by its batch"),
    "output_root_joules": ("", "m/√B", "an output token, by the root of its batch"),
    "pair_joules": ("θ2", "n m", "an output token's attention to an input token"),
    "output_squared_joules": ("θ4", "m²", "output tokens' attention to one another"),
}


@app.callback()
def _energy() -> None:
    """Energy by lengths: a device's fit, a workload's sweet spot."""


@command(app, "fit")
def fit_(
    session: Session,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV or .csv.gz: input_tokens, output_tokens, gpu_energy_j[, batch]."),
    ],
    tied: Annotated[
        bool, typer.Option("--tied", help="Hold θ2 = 2 θ4: attention costs the same to input and output.")
    ] = False,
    keep_first_row: Annotated[
        bool, typer.Option("--keep-first-row", help="Do not take the first row for warm-up.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Fits energy per output token to measurements. Two simpler models are fitted to compare.

    Errors are in percent of the measured energy, on the measurements and on each by a fit to the others.
    Coefficients are joules of a request; divided by its output tokens they make the energy of one.
    """
    with needs_analysis():
        import numpy as np

        from common.energy.bootstrap import Bootstrap
        from common.energy.fit import Form, fit

        measurements = measurements_of(file, keep_first_row=keep_first_row)
        found = fit_of(file, measurements, tied=tied)
        fits = {form: found if form is Form.SWEET_SPOT else fit(measurements, form=form) for form in Form}
        bootstrap = Bootstrap(found, np.random.default_rng(seed))
        spots = [(n, batch, bootstrap.sweet_spot_tokens(n, batch)) for n, batch in _places(found)]
    if session.as_json:
        first_row = "kept" if keep_first_row else "left out as warm-up"
        print_document({"file": str(file), "first_row": first_row, **_document(fits, bootstrap, spots)})
    else:
        _print(file, keep_first_row, fits, bootstrap, spots)


# Here, for the help lists commands in this order.
sweet_spot.register(app)

Spot = tuple[float, float, "Interval"]
"""Input tokens, batch, and m* there."""


def _places(fit: Fit) -> list[tuple[float, float]]:
    """Where to name the sweet spot: inputs over the measured range, at the least and the largest batch.

    Nowhere without the m² term, which makes it.
    """
    if "output_squared_joules" not in fit.coefficients:
        return []
    inputs = sorted({measurement.input_tokens or 0.0 for measurement in fit.measurements})
    chosen = sorted({inputs[round(part * (len(inputs) - 1) / 4)] for part in range(5)})
    batches = {measurement.batch for measurement in fit.measurements}
    return [(n, batch) for batch in sorted({min(batches), max(batches)}) for n in chosen]


def _document(fits: dict[Any, Fit], bootstrap: Bootstrap, spots: Sequence[Spot]) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {
        form.value: {
            "mape": fit.mape,
            "leave_one_out_mape": fit.leave_one_out_mape,
            "coefficients": dict(fit.coefficients),
        }
        for form, fit in fits.items()
    }
    own = next(fit for fit in fits.values() if fit.form.value == "sweet_spot")
    models["sweet_spot"] |= {
        "tied": own.tied,
        "intervals": {name: interval_document(bootstrap.coefficient(name)) for name in own.coefficients},
        "not_told_apart": [name for name in TERMS if name not in own.coefficients],
    }
    return {
        "measurements": len(own.measurements),
        "measured": range_of(own.measurements),
        "energy_source": source_of(own.measurements),
        "units": {
            "mape": "percent of the energy per output token",
            "coefficients": "joules of a request, which its output tokens divide",
            "sweet_spot_tokens": "output tokens; null is infinite, and none are named where no m² term was fitted",
        },
        "loss": "mean of ((estimate - measured) / measured)^2",
        "models": models,
        "sweet_spot_tokens": [
            {"input_tokens": n, "batch": batch, **interval_document(tokens)} for n, batch, tokens in spots
        ],
    }


def _print(file: Path, keep_first_row: bool, fits: dict[Any, Fit], bootstrap: Bootstrap, spots: Sequence[Spot]) -> None:
    out = console()
    own = next(fit for fit in fits.values() if fit.form.value == "sweet_spot")
    without = "" if keep_first_row else ", without the first row, the warm-up"
    out.print(f"{count(len(own.measurements))} measurements of {printable(str(file))}{without}:")
    if source_of(own.measurements) == "MODELLED":
        out.print(coloured(MODELLED_NOTE, "yellow"))
    ranges = range_of(own.measurements)
    named = {"input_tokens": "n, input tokens", "output_tokens": "m, output tokens", "batch": "B, batch"}
    out.print(dim("; ".join(f"{named[name]}: {_range(ends)}" for name, ends in ranges.items())))
    out.print()
    headings = ("ENERGY PER OUTPUT TOKEN", "ERROR", "LEFT OUT", "TERMS OF A REQUEST")
    rows = [
        (
            form.value,
            f"{fit.mape:.1f} %",
            f"{fit.leave_one_out_mape:.1f} %",
            ", ".join(TERMS[name][1] for name in TERMS if name in fit.coefficients),
        )
        for form, fit in fits.items()
    ]
    out.print(table(headings, rows, right=("ERROR", "LEFT OUT")))
    out.print(dim("Mean absolute errors; LEFT OUT: of each measurement by a fit to the others."))
    out.print()
    coefficients = [_coefficient(name, bootstrap) for name in TERMS if name in own.coefficients]
    right = ("COSTS", "95 % INTERVAL")
    out.print(table(("", "TERM", *right, "WHAT"), coefficients, right=right))
    missing = [TERMS[name][1] for name in TERMS if name not in own.coefficients]
    if missing:
        out.print(dim(f"These measurements cannot tell these terms from the others: {', '.join(missing)}."))
    out.print()
    _print_spots(own, spots)


def _print_spots(fit: Fit, spots: Sequence[Spot]) -> None:
    out = console()
    model = fit.model
    if not spots:
        out.print("Without the m² term there is no sweet spot to name: it takes answers of several lengths.")
        return
    if not model.output_squared_joules:
        out.print("The m² term is 0 in this fit: m* is infinite, a longer answer is always cheaper a token.")
        return
    several = len({batch for _, batch, _ in spots}) > 1
    headings = ("n", *(("B",) if several else ()), "m*", "95 % INTERVAL", "A TOKEN THERE")
    rows = [
        (
            f"{n:,.4g}",
            *((f"{batch:,.4g}",) if several else ()),
            tokens_text(tokens.value),
            f"{tokens_text(tokens.lower)} - {tokens_text(tokens.upper)}",
            joules(model.joules_per_output_token(n, tokens.value, batch)) if tokens.value else "",
        )
        for n, batch, tokens in spots
    ]
    out.print("The sweet spot m*: output tokens at which one costs least, after n input tokens.")
    out.print(table(headings, rows, right=headings))


def _coefficient(name: str, bootstrap: Bootstrap) -> tuple[str, ...]:
    paper, term, words = TERMS[name]
    found = bootstrap.coefficient(name)
    return paper, term, joules(found.value), f"{joules(found.lower)} - {joules(found.upper)}", words


def _range(ends: list[float] | None) -> str:
    if ends is None:
        return "not known"
    least, largest = (f"{end:,.6g}" for end in ends)
    return least if least == largest else f"{least} to {largest}"

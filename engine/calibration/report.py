"""How well energy models predict the cells that they have not seen: SweetSpot's, and beside it linear and n m."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from common.energy.fit import Fit, Form, fit, mape
from common.energy.grid import Measurement
from engine.calibration.grid import Cell, Split


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute percentage errors of one form, in percent; None where there is no such cell.

    They are those of a request's energy, and so of the energy per output token.
    """

    form: Form
    fitted_on: str
    """"all batches": one model; "batch B": a model of its own."""
    batch: int | None
    """Whose cells it is judged on; None: all."""
    fitted: float | None
    held_out: float | None
    corner: float | None


def judge(measured: Mapping[Cell, Measurement], split: Split) -> tuple[Fit, tuple[Errors, ...]]:
    """The fit of SweetSpot's form to the cells that are to be fitted, of all batch sizes, and every form's errors.

    Raises ValueError where fewer than two cells are left to fit.
    """
    batches = sorted({cell.batch for cell in measured})
    whole: Fit | None = None
    errors: list[Errors] = []
    for form in reversed(Form):
        model = fit(_of(measured, split.fitted), form=form)
        whole = whole or model
        errors.append(_errors(model, "all batches", None, measured, split))
        if len(batches) > 1:
            errors += [_errors(model, "all batches", batch, measured, split) for batch in batches]
            for batch in batches:
                mine = _of(measured, split.fitted, batch)
                if len(mine) > 1:
                    errors.append(_errors(fit(mine, form=form), f"batch {batch}", batch, measured, split))
    assert whole is not None
    return whole, tuple(errors)


def table(errors: Sequence[Errors]) -> str:
    """The errors for people to read."""
    lines = [f"{'model':<12}{'fitted on':<14}{'judged on':<12}{'fitted':>9}{'held out':>10}{'corner':>9}"]
    for row in errors:
        judged = "all" if row.batch is None else f"batch {row.batch}"
        figures = "".join(
            f"{'-' if value is None else f'{value:.2f} %':>{width}}"
            for value, width in ((row.fitted, 9), (row.held_out, 10), (row.corner, 9))
        )
        lines.append(f"{row.form:<12}{row.fitted_on:<14}{judged:<12}{figures}")
    return "\n".join(lines)


def rows(errors: Sequence[Errors]) -> list[dict[str, object]]:
    """The errors for `--json`; the names say the unit."""
    return [
        {
            name if name in ("form", "fitted_on", "batch") else f"{name}_mape": value
            for name, value in asdict(row).items()
        }
        for row in errors
    ]


def _errors(
    model: Fit, fitted_on: str, batch: int | None, measured: Mapping[Cell, Measurement], split: Split
) -> Errors:
    parts = [_of(measured, cells, batch) for cells in (split.fitted, split.held_out, split.corners)]
    fitted, held_out, corner = (mape(model, part) if part else None for part in parts)
    return Errors(model.form, fitted_on, batch, fitted, held_out, corner)


def _of(measured: Mapping[Cell, Measurement], cells: Iterable[Cell], batch: int | None = None) -> list[Measurement]:
    return [measured[cell] for cell in sorted(cells) if batch in (None, cell.batch)]

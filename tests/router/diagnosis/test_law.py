"""Energy laws: read from files, fitted to a log, and solved for the length of an answer."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.energy.calibration import Calibration
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from router.diagnosis.law import LEAST_TO_FIT, MOST_BATCH, Law, assumed_law, law_of_log, read_law
from router.diagnosis.lines import LogError
from router.diagnosis.log import Log, LoggedRequest


def fitted(folder: Path, document: object) -> Path:
    path = folder / "fit.json"
    path.write_text(json.dumps(document))
    return path


def test_a_fit_is_read_with_the_batches_that_it_has_seen(tmp_path: Path) -> None:
    coefficients = {"output_joules": 0.1, "output_shared_joules": 3.0, "input_joules": 0.02}
    document = {"models": {"sweet_spot": {"coefficients": coefficients}}, "measured": {"batch": [1, 16]}}
    law = read_law(fitted(tmp_path, document))
    assert asdict(law.model) == asdict(SweetSpot(**coefficients))
    assert (law.batches, law.assumed) == ((4.0, 1.0, 16.0), False)
    assert read_law(fitted(tmp_path, document), 5.0).batches == (5.0,)
    document["measured"] = {"batch": None}
    assert read_law(fitted(tmp_path, document)).most == MOST_BATCH
    document["models"]["sweet_spot"]["coefficients"] = {"output_joules": 0.1}  # type: ignore[index]
    assert read_law(fitted(tmp_path, document)).batches == (1.0,)


def test_a_calibration_is_read(tmp_path: Path) -> None:
    calibration = Calibration(
        model=SweetSpot(output_joules=0.1, output_shared_joules=3.0),
        source=EnergySource.MEASURED,
        model_digest="sha256:abc",
        device="H100",
        measured_at=datetime(2026, 11, 21, tzinfo=UTC),
        cells=50,
        held_out_mape=2.0,
        corner_mape=None,
        max_batch=32,
        max_input_tokens=4096,
        max_output_tokens=4096,
    )
    path = tmp_path / "calibration.json"
    path.write_text(calibration.to_json())
    law = read_law(path)
    assert (law.model, law.fewest, law.most) == (calibration.model, 1.0, 32.0)
    assert "H100, measured" in law.source


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "has no models.sweet_spot.coefficients"),
        ('{"models": {"sweet_spot": {"coefficients": {}}}}', "has no models.sweet_spot.coefficients"),
        ('{"models": {"sweet_spot": {"coefficients": {"theta": 1}}}}', "coefficients.theta is unknown"),
        ('{"models": {"sweet_spot": {"coefficients": {"output_joules": "1"}}}}', "output_joules must be a number"),
        ('{"models": {"sweet_spot": {"coefficients": {"output_joules": -1}}}}', "output_joules must be finite and at"),
        ('{"models": {"sweet_spot": {"coefficients": {"output_joules": 0}}}}', "every coefficient is 0"),
        ('{"models": {"sweet_spot": {"coefficients": {"output_joules": 1e308}}}}', "must be at most 1e+09"),
        ('{"models": {"sweet_spot": {"coefficients": {"output_joules": 1%s}}}}' % ("0" * 400), "too large"),
        (
            '{"models": {"sweet_spot": {"coefficients": {"output_joules": 1}}}, "measured": {"batch": [1, Infinity]}}',
            "measured.batch must be from 1 to",
        ),
        ('{"format": 9}', "is no calibration of format 1"),
    ],
)
def test_files_that_are_no_law(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(LogError) as caught:
        read_law(path)
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)
    path.write_bytes(b"\xff")
    with pytest.raises(LogError, match="is not UTF-8"):
        read_law(path)
    with pytest.raises(LogError, match="cannot be read"):
        read_law(tmp_path / "none.json")


@given(
    st.builds(
        SweetSpot,
        request_joules=st.floats(0, 100),
        input_joules=st.floats(0, 1),
        output_joules=st.floats(0.01, 10),
        output_shared_joules=st.floats(0, 10),
        pair_joules=st.floats(0, 1e-3),
        output_squared_joules=st.floats(0, 1e-2),
    ),
    st.floats(0, 10_000),
    st.floats(1, 10_000),
    st.floats(1, 64),
)
@hypothesis_settings(deadline=None)
def test_the_length_of_an_answer_follows_from_its_energy(
    model: SweetSpot, inputs: float, outputs: float, batch: float
) -> None:
    law = Law(model, "", batch, batch)
    joules = model.energy_joules(inputs, outputs, batch)
    assert law.output_tokens(joules, inputs) == pytest.approx(outputs, rel=1e-6)
    assert law.output_tokens(0.0, inputs) == 1


def test_no_length_follows_where_answers_cost_nothing() -> None:
    with pytest.raises(ValueError, match="output tokens cost nothing"):
        Law(SweetSpot(input_joules=1.0), "").output_tokens(5.0, 5.0)


def recorded(model: SweetSpot, noise: float, requests: int = 1_000, *, answers: float = 0.8) -> Log:
    generator = np.random.default_rng(1)
    log = Log()
    for _ in range(requests):
        n, m = int(generator.lognormal(5, 1)) + 1, int(generator.lognormal(5, answers)) + 1
        joules = model.energy_joules(n, m) * generator.gamma(1 / noise**2, noise**2)
        log.append(LoggedRequest(n, m, energy_joules=joules))
    return log


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_a_log_with_energies_tells_its_own_law(noise: float) -> None:
    """Noise draws a fit in shares of what was recorded down, by a quarter here; this one stays."""
    truth = SweetSpot(request_joules=5.0, input_joules=0.2, output_joules=1.5)
    log = recorded(truth, noise)
    law = law_of_log(log)
    assert law
    assert not law.assumed
    whole, answers = {}, {}
    for model in (truth, law.model):
        each = [(model.energy_joules(r.input_tokens, r.output_tokens), r) for r in log]
        whole[model] = sum(joules for joules, _ in each)
        answers[model] = sum(joules - model.energy_joules(r.input_tokens, 0) for joules, r in each)
    assert whole[law.model] == pytest.approx(whole[truth], rel=0.06)
    assert answers[law.model] == pytest.approx(answers[truth], rel=0.06)


def test_a_log_that_cannot_tell_does_not() -> None:
    truth = SweetSpot(request_joules=5.0, input_joules=0.2, output_joules=1.5)
    log = recorded(truth, 0.02)
    assert law_of_log(Log(log[: LEAST_TO_FIT - 1])) is None
    assert law_of_log(Log([*log, LoggedRequest(5, 5)])) is None
    assert law_of_log(recorded(truth, 0.02, answers=0.0)) is None
    assert law_of_log(recorded(truth, 2.0)) is None
    assert law_of_log(recorded(SweetSpot(input_joules=1.0), 0.02)) is None


def test_the_assumption_says_that_it_is_one() -> None:
    law = assumed_law()
    assert law.assumed
    assert law.source.startswith("assumed")
    assert (law.fewest, law.batch, law.most) == (1.0, 8.0, 64.0)
    # Published for one request at a time: 5.86 to 5.89 J an output token and 0.03 to 0.06 J an input token.
    alone = (law.model.output_joules + law.model.output_shared_joules) / law.model.input_joules
    assert 5.86 / 0.06 < alone < 5.89 / 0.03

"""Files of recorded requests: what is read of them, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.diagnosis.lines import LogError
from router.replay.recordings import RecordedSet
from router.replay.requests_file import read_requests
from tests.router.replay.planted import COLUMNS, SAMPLED, ledger_file, recorded, requests_file, rows

VARIANTS = {
    "L0": {"energy_joules": 900, "seconds": 4, "answer": "It is 42."},
    "L1": {"energy_joules": 90, "seconds": 1},
}


def written(folder: Path, *found: Mapping[str, Any], name: str = "requests.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return path


@pytest.mark.parametrize("name", ["requests.jsonl", "requests.jsonl.gz"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    of = recorded(20)
    found = read_requests(requests_file(tmp_path, of, name))
    assert (found.ids, found.texts, found.tasks, found.levels) == (of.ids, of.texts, of.tasks, of.levels)
    for one, other in (
        (found.task, of.task),
        (found.joules, of.joules),
        (found.seconds, of.seconds),
        (found.preference, of.preference),
        (found.accuracy, of.accuracy),
    ):
        assert one == pytest.approx(other, nan_ok=True)
    assert found.checkable.tolist() == [False, True, True]
    assert found.answers["L1"][0] == "nothing"


def test_tasks_of_the_published_set_have_their_graders(tmp_path: Path) -> None:
    rows = [
        {"task": "math", "prompt": "6 x 7?", "reference": "#### 42", "variants": VARIANTS},
        {"task": "alpaca", "prompt": "Say 42.", "reference": "42", "variants": VARIANTS},
        {"task": "own", "grader": "exact", "reference": "It is 42.", "variants": VARIANTS},
    ]
    found = read_requests(written(tmp_path, *rows))
    assert found.accuracy.tolist() == pytest.approx(np.array([[1, 0], [np.nan, np.nan], [1, 0]]), nan_ok=True)
    assert np.isnan(found.preference).all()
    assert found.ids == ("1", "2", "3")


def test_the_model_with_the_most_levels_is_replayed(tmp_path: Path) -> None:
    of = recorded(5)
    more = rows(of)
    for row in more:
        row["variants"]["7b/L0"] = {"energy_joules": 1, "seconds": 1}
        row["variants"]["8b/L9"] = {"energy_joules": 1, "seconds": 1}
    assert read_requests(written(tmp_path, *more)).levels == ("L0", "L1", "L2")


GOOD: dict[str, Any] = {"task": "t", "variants": VARIANTS}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"task": "t"}, "variants must be an object of objects"),
        ({"task": "t", "variants": {}}, "variants must be an object of objects"),
        ({"task": "t", "variants": {"L0": 5}}, "variants must be an object of objects"),
        ({"task": 5, "variants": VARIANTS}, "task must be text, got int"),
        (GOOD | {"grader": "best"}, "grader must be one of alias, choice, exact"),
        (GOOD | {"variants": {"L0": {"seconds": 1}}}, "variants.L0: energy_joules or energy_kwh must be there"),
        (GOOD | {"variants": {"L0": {"energy_kwh": 1}}}, "variants.L0: seconds must be there"),
        (
            GOOD | {"variants": {"L0": {"energy_joules": -1, "seconds": 1}}},
            "variants.L0.energy_joules must be a finite",
        ),
        (GOOD | {"variants": {"L0": {"energy_joules": True, "seconds": 1}}}, "variants.L0.energy_joules must be"),
        (
            GOOD | {"variants": {"L0": {"energy_kwh": 1, "seconds": float("inf")}}},
            "variants.L0.seconds must be a finite",
        ),
        (GOOD | {"variants": {"L0": VARIANTS["L0"]}}, "variants: must have L0, L1, has no L1"),
        (GOOD | {"grader": "choice", "reference": "Z", "prompt": "(A) x (B) y"}, "reference: "),
    ],
    ids=range(12),
)
def test_faults_have_their_line(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    path = written(tmp_path, GOOD, row)
    with pytest.raises(LogError) as refused:
        read_requests(path)
    assert refused.value.faults[0].startswith(f"{path}:2: ")
    assert fault in refused.value.faults[0]


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        ("", "r.jsonl", "holds no request"),
        ("{\n", "r.jsonl", "r.jsonl:1: is not JSON"),
        ("", "r.txt", "its name must end in one of .csv, .csv.gz, .jsonl, .jsonl.gz"),
        (json.dumps({"variants": {"L1": VARIANTS["L1"]}}), "r.jsonl", "variants: must have L0"),
    ],
    ids=["empty", "torn", "name", "baseline"],
)
def test_what_is_no_file_of_requests_is_named(tmp_path: Path, text: str, name: str, fault: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LogError) as refused:
        read_requests(tmp_path / name)
    assert fault in str(refused.value)


def test_at_most_five_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(LogError) as refused:
        read_requests(written(tmp_path, *[{"task": "t"}] * 9))
    assert len(refused.value.faults) == 5


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_of_a_ledger_is_replayed_what_was_answered_at_all_levels(tmp_path: Path, kind: str) -> None:
    path = ledger_file(tmp_path, SAMPLED) if kind == "csv" else written(tmp_path, *SAMPLED, name="ledger.jsonl")
    found: RecordedSet = read_requests(path)
    assert (found.ids, found.levels, found.tasks) == (("s1", "s2"), ("L0", "L2"), ("faq", "sums"))
    assert found.joules.tolist() == [[800.0, 80.0], [600.0, 90.0]]
    assert found.seconds == pytest.approx(found.joules / 100)
    assert np.isnan(found.preference).all() and np.isnan(found.accuracy).all()
    assert found.notes == (
        f"{path.name} is a ledger: of its 5 prompts, 2 were answered at each of L0, L2; what another directive would "
        "have made of the others is not known, and they are left out.",
        "A ledger holds no judgements: preference and accuracy are not known.",
        f"Rows of {path.name} without energy are left out: 1.",
    )


def test_a_ledger_without_counterfactuals_is_replayed_at_l0_alone(tmp_path: Path) -> None:
    found = read_requests(ledger_file(tmp_path, SAMPLED[:2]))
    assert (found.levels, found.joules.tolist()) == (("L0",), [[1000.0]])
    assert "of its 2 prompts, 0 were answered at each of L0, L2; the 1 that were answered at L0" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("request_id,directive\n", "energy_joules, busy_seconds must be among the columns"),
        ("task,requests,operational_grams\n", "holds sums of requests, as `pithctl report --csv` prints them"),
        (f"{','.join(COLUMNS)}\n", "has no request at L0 whose energy is known"),
        (f"{','.join(COLUMNS)}\na,r,t,L1,,5,5,\n", "has no request at L0 whose energy is known"),
        (f"{','.join(COLUMNS)}\na,r,t,L0,,-5,5,\n", ":2: energy_joules must be a finite number of at least 0 or blank"),
        (f"{','.join(COLUMNS)}\na,,t,L0,,5,5,\n", ":2: request_id and directive must be there"),
        (f"{','.join(COLUMNS)}\na,r\n", ":2: must have 8 columns, got 2"),
    ],
    ids=["columns", "sums", "empty", "baseline", "negative", "id", "short"],
)
def test_what_is_no_ledger_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(text)
    with pytest.raises(LogError) as refused:
        read_requests(path)
    assert fault in str(refused.value)

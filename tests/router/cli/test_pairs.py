"""`pithctl evaluate pairs`: the file that it reads, and what it says of several first generators."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.router.cli.conftest import Pithctl

ROW = {"instruction": "q", "generator_1": "a", "generator_2": "b", "preference": 2, "chars_1": 3, "chars_2": 5}


def written(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ({**ROW, "preference": None}, "preference must be 1 to 2 (2 = the second wins, 1.5 a tie), got None"),
        ({**ROW, "preference": 0.5}, "got 0.5"),
        ({**ROW, "preference": True}, "got True"),
        ('{"instruction": "q", "generator_1": "a", "generator_2": "b", "preference": NaN, "chars_1": 1}', "got nan"),
        ({**ROW, "chars_1": None}, "has neither output_1 nor chars_1"),
        ({**ROW, "chars_2": "5"}, "chars_2 must be a whole number"),
        ({**ROW, "chars_2": -1}, "chars_2 must be 0 to"),
        ({**ROW, "output_1": 7}, "output_1 must be a text"),
        ({**ROW, "instruction": ["q"]}, "instruction must be a text"),
        ({**ROW, "generator_2": ""}, "generator_2 must be a text"),
        ({**ROW, "first": 3}, "first must be 1 or 2, got 3"),
        ({key: value for key, value in ROW.items() if key != "generator_1"}, "has no generator_1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(row: Any, said: str, tmp_path: Path, command_line: Pithctl) -> None:
    file = written(tmp_path / "pairs.jsonl", ROW, row)
    result = command_line("evaluate", "pairs", file)
    assert result.code == 2
    assert f"{file}:2: " in result.err and said in result.err
    assert result.out == ""


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path: Path, command_line: Pithctl) -> None:
    assert "cannot be read" in command_line("evaluate", "pairs", str(tmp_path / "none.jsonl")).err
    assert "has no pairs" in command_line("evaluate", "pairs", written(tmp_path / "empty.jsonl")).err


def test_outputs_count_as_their_characters_and_gz_is_read(tmp_path: Path, command_line: Pithctl) -> None:
    rows = [{**ROW, "instruction": str(number), "preference": 1 + number % 2} for number in range(20)]
    texts = [
        {key: value for key, value in row.items() if not key.startswith("chars")}
        | {"output_1": "日本語", "output_2": "12345"}
        for row in rows
    ]
    plain = command_line("evaluate", "pairs", written(tmp_path / "plain.jsonl", *rows), "--json").document
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, texts)).encode()))
    assert command_line("evaluate", "pairs", str(packed), "--json").document == plain


def test_several_first_generators_are_kept_apart(tmp_path: Path, command_line: Pithctl) -> None:
    rows = [
        {**ROW, "instruction": str(number), "generator_1": against, "preference": preference}
        for number in range(12)
        for against, preference in (("weak", 2), ("strong", 1))
    ]
    found = command_line("evaluate", "pairs", written(tmp_path / "pairs.jsonl", *rows), "--json").document
    against = found["generators"]["b"]["against"]
    assert (against["weak"]["raw"], against["strong"]["raw"]) == (1.0, 0.0)
    assert found["generator_1"] == ["strong", "weak"]

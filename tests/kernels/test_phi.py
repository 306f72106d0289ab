import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.cuda.phi import LogitStatistics, PhiError, PhiTable, choose, summarise_row

DIGEST = "0123456789abcdef" * 4
TABLE = PhiTable(DIGEST, "bf16", ((1.5, -2.0), None, (0.1, 3.25)))


def statistics(highest: list[list[float]], lowest: list[list[float]]) -> LogitStatistics:
    return LogitStatistics(np.array(highest), np.array(lowest), rows=1000)


def test_a_row_is_summarised_by_its_maximum_and_the_logarithm_of_its_mean_exponential() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [-700.0, -700.0, -700.0], [900.0, 0.0, -900.0]])
    maximum, log_mean = summarise_row(logits)
    assert maximum.tolist() == [3.0, -700.0, 900.0]
    expected = [math.log((math.exp(1) + math.exp(2) + math.exp(3)) / 3), -700.0, 900.0 - math.log(3)]
    np.testing.assert_allclose(log_mean, expected, rtol=1e-12)


def test_one_row_in_a_hundred_thousand_does_not_decide() -> None:
    rows = np.zeros((100_001, 1, 1))
    rows[0], rows[1] = 500.0, -500.0
    recorded = LogitStatistics.of_rows(rows, rows)
    assert (recorded.highest[0, 0], recorded.lowest[0, 0], recorded.rows) == (0.0, 0.0, 100_001)


@pytest.mark.parametrize(
    "maxima, log_means",
    [
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 5))),
        (np.zeros((0, 3, 4)), np.zeros((0, 3, 4))),
        (np.full((1, 1, 1), np.inf), np.zeros((1, 1, 1))),
    ],
)
def test_rows_that_say_nothing_are_refused(maxima: np.ndarray, log_means: np.ndarray) -> None:
    with pytest.raises(ValueError, match="maxima and log_means"):
        LogitStatistics.of_rows(maxima, log_means)


@given(highest=st.floats(-300, 300), width=st.floats(0, 16), dtype=st.sampled_from(["bf16", "fp16"]))
def test_the_chosen_phi_keeps_the_recorded_rows_in_range(highest: float, width: float, dtype: Any) -> None:
    chosen = choose(statistics([[highest]], [[highest - width]]), DIGEST, dtype).of_layer(0)
    assert chosen is not None
    assert chosen.dtype == np.float32
    greatest_term, mean_term = highest - float(chosen[0]), highest - width - float(chosen[0])
    if dtype == "fp16":
        room_above, room_below = math.log(65504) - greatest_term, mean_term - math.log(2.0**-10)
    else:
        # 2^17 keys of the greatest term, with values of 1000.
        largest_sum = math.log(float(np.finfo(np.float32).max)) - math.log(2**17 * 1000)
        room_above, room_below = largest_sum - greatest_term, mean_term - math.log(1e-30)
    assert min(room_above, room_below) > 0.99
    assert room_above == pytest.approx(room_below, abs=0.05)


def test_a_layer_with_one_head_out_of_range_is_synchronised_and_the_others_are_not() -> None:
    highest, lowest = [[5.0, 5.0], [5.0, 40.0], [-90.0, 90.0]], [[0.0, 0.0], [0.0, 0.0], [-95.0, 85.0]]
    table = choose(statistics(highest, lowest), DIGEST, "fp16")
    assert [layer is None for layer in table.layers] == [False, True, False]
    assert table.of_layer(1) is None
    assert [layer is None for layer in choose(statistics(highest, lowest), DIGEST, "bf16").layers] == [False] * 3


def test_a_stored_table_is_read_back_for_its_model_and_type_alone(tmp_path: Path) -> None:
    assert PhiTable.load(tmp_path / "absent", DIGEST, "bf16", 3, 2) is None
    file = TABLE.save(tmp_path / "made" / "here")
    assert PhiTable.load(file.parent, DIGEST, "bf16", 3, 2) == TABLE
    assert PhiTable.load(file.parent, DIGEST, "fp16", 3, 2) is None
    assert PhiTable.load(file.parent, "f" * 64, "bf16", 3, 2) is None
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\ufffd" + text,
        lambda text: "[" * 100_000,
        lambda text: text.replace(DIGEST, "f" * 64),
        lambda text: text.replace('"bf16"', '"fp16"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace("null, ", ""),
        lambda text: text.replace("1.5, ", ""),
        lambda text: text.replace("1.5", "NaN"),
        lambda text: text.replace("1.5", "1e39"),
        lambda text: text.replace("1.5", '"1.5"'),
        lambda text: text.replace("null", "7"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_error(tmp_path: Path, damage: Any) -> None:
    file = TABLE.save(tmp_path)
    file.write_text(damage(file.read_text()), encoding="utf-8")
    with pytest.raises(PhiError) as caught:
        PhiTable.load(tmp_path, DIGEST, "bf16", 3, 2)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_a_damaged_file(tmp_path: Path) -> None:
    file = TABLE.save(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PhiError, match="is damaged"):
        PhiTable.load(tmp_path, DIGEST, "bf16", 3, 2)


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file")
    with pytest.raises(PhiError, match="cannot be written"):
        TABLE.save(in_the_way)
    with pytest.raises(PhiError, match="cannot be read"):
        PhiTable.load(in_the_way, DIGEST, "bf16", 3, 2)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    file = TABLE.save(tmp_path)
    before = json.loads(file.read_text())
    with pytest.raises(ValueError, match="JSON"):
        PhiTable(DIGEST, "bf16", ((math.nan, 0.0),)).save(tmp_path)
    assert json.loads(file.read_text()) == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

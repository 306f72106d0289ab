"""The command line: what is wrong is named with its limit."""

import math
import shlex
from pathlib import Path

import pytest

from engine.calibration.options import REFUSED, Options, parse


def test_what_is_not_said_suits_the_device() -> None:
    assert parse([]) == Options(command="python -m engine calibrate")
    said = ["--input", "512, 64,64", "--batch", "16", "--grid", "my grid.csv", "--limit-seconds", "480", "--json"]
    options = parse(said)
    assert (options.inputs, options.outputs, options.batches) == ((64, 512), None, (16,))
    assert (options.grid, options.limit_seconds, options.json) == (Path("my grid.csv"), 480, True)
    assert shlex.split(options.command) == ["python", "-m", "engine", "calibrate", *said]
    assert parse(["--grid", "g"]).limit_seconds == math.inf


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--input", "64,x"], "argument --input: '64,x' must be whole numbers from 1 to 1,048,576 with commas between"),
        (["--output", "0"], "argument --output: '0' must be"),
        (["--batch", "1,1025"], "argument --batch: '1,1025' must be whole numbers from 1 to 1,024"),
        (["--batch", ""], "argument --batch: ''"),
        (["--window-seconds", "0"], "argument --window-seconds: '0' must be a number of seconds above 0"),
        (["--window-seconds", "nan"], "argument --window-seconds: 'nan'"),
        (["--repeats", "0"], "argument --repeats: '0' must be a whole number from 1 to 100"),
        (["--seed", "-1"], "argument --seed: '-1' must be a whole number"),
        (["--limit-seconds", "5"], "--limit-seconds needs --grid"),
        (["--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_a_bad_argument_is_named_with_its_limit(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == REFUSED
    assert fault in capsys.readouterr().err

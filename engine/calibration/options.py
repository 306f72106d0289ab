"""The command line of `python -m engine calibrate`."""

import math
import shlex
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FAILED, REFUSED, UNFINISHED, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses."""
PROGRAM = "python -m engine calibrate"
GPU_LENGTHS = tuple(1 << power for power in range(6, 13))
CPU_LENGTHS = tuple(1 << power for power in range(5, 10))
BATCHES = (1, 16, 128)
_MOST_TOKENS, _MOST_BATCH, _MOST_REPEATS = 1 << 20, 1024, 100
_MOST_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure; None is what suits the device."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    window_seconds: float | None = None
    repeats: int = 1
    seed: int = 1
    grid: Path | None = None
    limit_seconds: float = math.inf
    json: bool = False
    command: str = ""
    """As it was called, for the result."""


def parse(arguments: Sequence[str]) -> Options:
    """--help and bad arguments end the process."""
    parser = ArgumentParser(
        prog=PROGRAM,
        formatter_class=RawDescriptionHelpFormatter,
        description="Measures what a request costs on this device by its input, output and batch, with the model and "
        "settings that\nPITH_ENGINE_* names, fits the energy model, and keeps it: an engine that starts with the same "
        "model on the same\ndevice tells its routers. A fifth of the cells, and the corner of the longest, are held "
        "out; the fit is judged by them.",
        epilog=f"exit status: 0 done, {FAILED} failed, {REFUSED} refused, {UNFINISHED} stopped by --limit-seconds: "
        "call again with the same --grid",
        allow_abbrev=False,
    )
    tokens, seconds = _numbers(_MOST_TOKENS), _seconds
    parser.add_argument(
        "--input", dest="inputs", type=tokens, metavar="N,...",
        help=f"input tokens; default: {_list(CPU_LENGTHS)}, on a GPU {_list(GPU_LENGTHS)}",
    )  # fmt: skip
    parser.add_argument(
        "--output", dest="outputs", type=tokens, metavar="M,...", help="output tokens; default: as of --input"
    )
    parser.add_argument(
        "--batch", dest="batches", type=_numbers(_MOST_BATCH), metavar="B,...",
        help=f"requests at a time; default: {_list(BATCHES)}, as far as PITH_ENGINE_MAX_BATCH allows",
    )  # fmt: skip
    parser.add_argument(
        "--window-seconds", type=seconds, metavar="S",
        help="least time between two readings of the counter; default: 5 on a GPU, 1 on a CPU",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_whole(1, _MOST_REPEATS), default=1, metavar="R", help="windows of every cell; default: 1"
    )
    parser.add_argument(
        "--seed", type=_whole(0, 2**63), default=1, help="of prompts, order and held-out cells; default: 1"
    )
    parser.add_argument(
        "--grid", type=Path, metavar="FILE", help="CSV that keeps what is measured, and that another run goes on with"
    )
    parser.add_argument(
        "--limit-seconds", type=seconds, default=math.inf, metavar="S",
        help="start no cell after so long, loading included; needs --grid",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    command = shlex.join([*PROGRAM.split(), *arguments])
    options = Options(**vars(parser.parse_args(arguments)), command=command)
    if options.grid is None and options.limit_seconds < math.inf:
        parser.error("--limit-seconds needs --grid: else what is measured is lost")
    return options


def _numbers(most: int) -> Callable[[str], tuple[int, ...]]:
    def numbers(text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(_is_whole(part, 1, most) for part in parts):
            raise ArgumentTypeError(f"{text!r} must be whole numbers from 1 to {most:,} with commas between")
        return tuple(sorted({int(part) for part in parts}))

    return numbers


def _whole(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not _is_whole(text, least, most):
            raise ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most:,}")
        return int(text)

    return whole


def _is_whole(text: str, least: int, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise ArgumentTypeError(f"{text!r} must be a number of seconds above 0 and at most {_MOST_SECONDS:,}")
    return seconds


def _list(values: Sequence[int]) -> str:
    return ",".join(map(str, values))

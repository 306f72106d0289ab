"""`python -m tests.bench.decode`: decode steps on a GPU, beside torch, transformers and FlashInfer, in pieces.

Every piece goes into the result file as soon as it is measured, and a run skips what is there: stop it whenever you
like and call it again. `--budget-seconds` stops it before a piece that would not end in time.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from engine.backends.cuda.dataflow import kernels_version
from engine.backends.cuda.kernels import FloatType
from tests.bench import decode_table
from tests.bench.decoding import gpu
from tests.bench.decoding.measure import Bench, DeviceLostError
from tests.bench.decoding.pieces import ABOUT_SECONDS, Piece, numbers, plan, plan_all, shape_names
from tests.bench.decoding.results import Results, ResultsError, default_file
from tests.bench.shapes import SHAPES

REFUSED = 2
_MOST_BATCH, _MOST_CONTEXT = 1024, 32768


def chosen_pieces(everything: bool, shape: str, batch: str, context: str) -> list[Piece]:
    """Raises ValueError that names the option."""
    if everything:
        return plan_all()
    names = list(shape_names(shape))
    return plan(names, numbers(batch, "batch", _MOST_BATCH), numbers(context, "context", _MOST_CONTEXT))


def run(
    pieces: Sequence[Piece],
    measure: Callable[[Piece], dict[str, Any]],
    results: Results,
    budget_seconds: float,
    now: Callable[[], float],
    say: Callable[[str], None],
    *,
    retry_failed: bool = False,
) -> int:
    """Measures what the file does not have yet, in order, while the time is enough for the next; returns what is left.

    A piece that fails is kept with its reason, and the next is measured.
    """
    began = now()
    left = [piece for piece in pieces if not results.finished(piece.name, retry_failed=retry_failed)]
    while left:
        piece, piece_began = left[0], now()
        remaining = budget_seconds - (piece_began - began)
        if remaining < ABOUT_SECONDS[piece.kind]:
            say(f"stopped: {remaining:.0f} s left, and {piece.name} may take {ABOUT_SECONDS[piece.kind]} s")
            break
        lost = False
        try:
            result = measure(piece)
        except Exception as error:  # whatever a kernel or a library raises belongs to this piece alone
            result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}
            lost = isinstance(error, DeviceLostError)
        took = now() - piece_began
        results.add(piece.name, result, took)
        outcome = next((f"{key}: {result[key]}" for key in ("failed", "left_out") if key in result), "measured")
        say(f"{piece.name}, {took:.0f} s: {outcome}")
        left.pop(0)
        if lost:
            say("stopped: the device answers no more in this process; call again")
            break
    return len(left)


def main(arguments: Sequence[str]) -> int:
    """Measures decode steps on the GPU and writes each piece to the result file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decode", description=main.__doc__)
    parser.add_argument("--shape", default="all", help="shapes of tests.bench.shapes with commas between, or all")
    parser.add_argument("--batch", default="1,8,64", help="batch sizes with commas between")
    parser.add_argument("--context", default="1024,4096", help="contexts in tokens with commas between")
    parser.add_argument(
        "--all", action="store_true", help="all that the result table has, whatever the three above say"
    )
    parser.add_argument("--json", type=Path, help="by default tests/bench/results/<device>-<date>.json")
    parser.add_argument("--dtype", choices=get_args(FloatType), default="bf16")
    parser.add_argument("--seed", type=int, default=1, help="of weights, keys, values and the order of cache blocks")
    parser.add_argument("--budget-seconds", type=float, default=540, help="stops before a piece that would end later")
    parser.add_argument("--retry-failed", action="store_true", help="measures failed pieces again")
    options = parser.parse_args(arguments)
    try:
        pieces = chosen_pieces(options.all, options.shape, options.batch, options.context)
        device = gpu.require()
        settings = {
            "device": device.name,
            "kernels": kernels_version(),
            "dtype": options.dtype,
            "seed": options.seed,
        }
        file = options.json or default_file(device.name)
        command = shlex.join(["python", "-m", "tests.bench.decode", *arguments])
        results = Results.open(file, "decode", settings, command, gpu.description(device))
        with gpu.machine(device) as machine:
            bench = Bench(machine, SHAPES, cast(FloatType, options.dtype), options.seed, results.pieces)
            left = run(
                pieces, bench.measure, results, options.budget_seconds, time.monotonic, print_now,
                retry_failed=options.retry_failed,
            )  # fmt: skip
    except (ValueError, gpu.NoGpuError, ResultsError) as error:
        print(f"tests.bench.decode: {error}", file=sys.stderr)
        return REFUSED
    print_now(decode_table.render([results.values]))
    print_now(f"{file}: {len(pieces) - left} of {len(pieces)} pieces")
    return 0


def print_now(line: str) -> None:
    """At once, also into a pipe: a run that is cut off has said how far it came."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

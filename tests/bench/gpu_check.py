"""`python -m tests.bench.gpu_check`: every kernel test on the GPU, then some of them under compute-sanitizer.

The tests are those that make their device by `tests.kernels.devices.make_device`. Each file is a piece: it goes into
the result file as soon as it is done, and a run skips what is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from engine.backends.cuda.cupy_device import find_device
from engine.backends.cuda.dataflow import kernels_version
from tests.bench.decoding.results import Results, ResultsError, default_file
from tests.kernels.devices import DEVICE_VARIABLE

REFUSED, FAILED = 2, 1
CHECKOUT = Path(__file__).parents[2]
TESTS = CHECKOUT / "tests" / "kernels"
LEAST_SECONDS = 60
"""A piece is not begun with less time left, and is stopped where the time ends."""
# What all else stands on comes first: the intrinsics, then attention and the products.
_FIRST = ("test_emulator.py", "test_attention.py", "test_gemm.py", "test_epilogues.py")
SANITIZED = {
    "test_attention.py": "repeated or equal_logits",
    "test_gemm.py": "share_a_workspace or leave_the_counters",
    "test_epilogues.py": "equal_logits or padded_rows",
    "test_select.py": "row_of_nan",
    "test_elementwise.py": "row_of_zeros",
}
"""Tests of small shapes, by file: a sanitizer makes a kernel many times slower."""
_MAKES_DEVICE = re.compile(r"^from tests\.kernels\.devices import .*\bmake_device\b", re.MULTILINE)
_SANITIZER = "compute-sanitizer"
_FAULT_FOUND = 86  # the exit code that the sanitizer is told to end with


@dataclass(frozen=True, slots=True)
class Check:
    """A test file, whole, or the tests that `select` names under one of the sanitizer's tools."""

    file: str
    tool: str = ""
    select: str = ""

    @property
    def name(self) -> str:
        return f"{self.tool} {self.file}" if self.tool else self.file


def all_checks(folder: Path = TESTS) -> list[Check]:
    using = [path.name for path in sorted(folder.glob("test_*.py")) if _MAKES_DEVICE.search(path.read_text("utf-8"))]
    files = [name for name in _FIRST if name in using] + [name for name in using if name not in _FIRST]
    tools = [Check(name, tool, select) for tool in ("memcheck", "racecheck") for name, select in SANITIZED.items()]
    return [Check(name) for name in files] + [check for check in tools if check.file in using]


def run_check(check: Check, seconds: float, folder: Path = TESTS) -> dict[str, Any]:
    """Runs a check in a process of its own, which a fault of the device then ends: counts, and failures with reasons.

    pyproject's settings do not hold: they name plugins that a machine with a GPU may not have.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(folder / check.file), "-q", "--tb=short", f"--junitxml={report}"]
        command += ["-c", os.devnull, "--rootdir", str(CHECKOUT), "--import-mode=importlib", "-p", "no:cacheprovider"]
        if check.select:
            command += ["-k", check.select]
        if check.tool:
            if shutil.which(_SANITIZER) is None:
                return {"left_out": f"{_SANITIZER} is not on PATH"}
            command = [_SANITIZER, "--tool", check.tool, "--error-exitcode", str(_FAULT_FOUND), *command]
        environment = {**os.environ, DEVICE_VARIABLE: "cuda"}
        try:
            ended = subprocess.run(
                command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"ran past {seconds:.0f} s"}
        result = _counts(report) if report.exists() else {}
    output = ended.stdout + ended.stderr
    if ended.returncode == _FAULT_FOUND:
        found = [line for line in output.splitlines() if line.startswith("=========")]
        return {**result, "failed": f"{check.tool} found faults", "found": found[:40]}
    if ended.returncode != 0:
        return {**result, "failed": f"pytest ended with {ended.returncode}", "end": output.splitlines()[-30:]}
    return result


def _counts(report: Path) -> dict[str, Any]:
    """What pytest's report says: how many passed and were skipped, and the first line of every failure."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = {
        case.get("name", ""): (fault.get("message") or "").splitlines()[:1]
        for case in cases
        for fault in [*case.findall("failure"), *case.findall("error")]
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - skipped - len(failures), "skipped": skipped, "failures": failures}


def run(
    checks: Sequence[Check],
    execute: Callable[[Check, float], dict[str, Any]],
    results: Results,
    budget_seconds: float,
    now: Callable[[], float],
    say: Callable[[str], None],
    *,
    retry_failed: bool = False,
) -> int:
    """Runs what the file does not have yet while there is time; returns how many are left."""
    began = now()
    left = [check for check in checks if not results.finished(check.name, retry_failed=retry_failed)]
    while left:
        check, check_began = left[0], now()
        if (remaining := budget_seconds - (check_began - began)) < LEAST_SECONDS:
            say(f"stopped: {remaining:.0f} s left")
            break
        result = execute(check, remaining)
        results.add(check.name, result, now() - check_began)
        counts = f"{result.get('passed', 0)} passed, {result.get('skipped', 0)} skipped"
        say(f"{check.name}, {now() - check_began:.0f} s: {result.get('failed') or result.get('left_out') or counts}")
        for test, reason in result.get("failures", {}).items():
            say(f"  {test}: {' '.join(reason)}")
        for line in result.get("found", []):
            say(f"  {line}")
        left.pop(0)
    return len(left)


def main(arguments: Sequence[str]) -> int:
    """Runs every kernel test on the GPU; the exit code is 1 where one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_check", description=main.__doc__)
    parser.add_argument("--budget-seconds", type=float, default=540, help="stops then; call again for the rest")
    parser.add_argument("--json", type=Path, help="by default tests/bench/results/<device>-kernels-<date>.json")
    parser.add_argument("--retry-failed", action="store_true", help="runs failed files again")
    options = parser.parse_args(arguments)
    device = find_device()
    if isinstance(device, str):
        print(f"tests.bench.gpu_check: {device}", file=sys.stderr)
        return REFUSED
    file = options.json or default_file(f"{device.name} kernels")
    settings = {"device": device.name, "kernels": kernels_version()}
    command = shlex.join(["python", "-m", "tests.bench.gpu_check", *arguments])
    checks = all_checks()
    try:
        results = Results.open(file, "gpu_check", settings, command, {"python": platform.python_version()})
        left = run(
            checks, run_check, results, options.budget_seconds, time.monotonic,
            lambda line: print(line, flush=True), retry_failed=options.retry_failed,
        )  # fmt: skip
    except ResultsError as error:
        print(f"tests.bench.gpu_check: {error}", file=sys.stderr)
        return REFUSED
    failed = [name for name, result in results.pieces.items() if "failed" in result]
    print(f"{file}: {len(checks) - left} of {len(checks)} done, {len(failed)} failed")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

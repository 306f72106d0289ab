"""A running set of fake services, and `pithctl` pointed at it."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from router.cli.main import main
from tests.router.cli.fake_services import FakeServices


@dataclass(frozen=True)
class Result:
    """What one command line came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """stdout as a JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> Any:
        """stderr as the JSON document of an error."""
        return json.loads(self.err)["error"]


Pithctl = Callable[..., Result]


@pytest.fixture
def fake() -> Iterator[FakeServices]:
    with FakeServices() as services:
        yield services


@pytest.fixture
def environment(fake: FakeServices) -> dict[str, str]:
    """For a pithctl in a process of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PITHCTL_", "COLUMNS"))}
    return {**plain, "PITHCTL_ROUTER": fake.address, "PITHCTL_EVALUATOR": fake.address}


@pytest.fixture
def pithctl(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pithctl:
    """Runs a command line in this process: pithctl("policy", "list", stdin="")."""
    monkeypatch.setenv("PITHCTL_ROUTER", fake.address)
    monkeypatch.setenv("PITHCTL_EVALUATOR", fake.address)
    monkeypatch.delenv("PITHCTL_TOKEN", raising=False)

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return run

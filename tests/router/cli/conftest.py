"""Services that run, real ones and fakes, and `pithctl` pointed at them."""

import functools
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from tests.router.cli.fake_services import FakeServices
from tests.router.cli.world import ADMIN, World, running_world


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> Iterator[None]:
    """A shell has what it runs in the background ignore them; so would the processes that tests start, and wait for."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
    return {**clean_environment(), "PITHCTL_ROUTER": fake.address, "PITHCTL_EVALUATOR": fake.address}


def clean_environment() -> dict[str, str]:
    """This process's, without what would change what pithctl does."""
    ours = ("PITHCTL_", "COLUMNS", "VISUAL", "EDITOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pithctl:
    """Runs a command line in this process: command_line("policy", "list", stdin="", PITHCTL_ROUTER=...)."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)

    def run(*arguments: str, stdin: str = "", **variables: str) -> Result:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return run


@pytest.fixture
def pithctl(fake: FakeServices, command_line: Pithctl) -> Pithctl:
    """Runs a command line against the fake services."""
    return functools.partial(command_line, PITHCTL_ROUTER=fake.address, PITHCTL_EVALUATOR=fake.address)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A router and an evaluator that run."""
    with running_world(tmp_path) as world:
        yield world


@pytest.fixture
def admin(world: World, command_line: Pithctl) -> Pithctl:
    """Runs a command line against them, as an admin; admin("policy", "list", code=0) expects that exit code."""

    def run(*arguments: str, code: int = 0, **more: str) -> Result:
        variables = {"PITHCTL_ROUTER": world.router.address, "PITHCTL_EVALUATOR": world.evaluator_address}
        result = command_line(*arguments, **{**variables, "PITHCTL_TOKEN": ADMIN, **more})
        assert result.code == code, result
        return result

    return run

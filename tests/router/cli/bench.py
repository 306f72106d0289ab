"""What the cases of `test_every_command` are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.router.cli.conftest import Pithctl
from tests.router.cli.world import World

WISH = """
directives:
  - name: terse
    text: |-
      Be terse.
policies:
  - {name: sums, task: sums, mode: on, floor: 0.9, directives: [terse]}
"""


@dataclass(frozen=True)
class Bench:
    """What a case holds in its hands."""

    world: World
    run: Pithctl
    folder: Path

    def text(self, *arguments: str, **more: Any) -> str:
        """What it printed for people; nothing went wrong, and nothing is JSON."""
        result = self.run(*arguments, **more)
        assert not result.out.startswith("{"), result
        return result.out

    def document(self, *arguments: str, **more: Any) -> Any:
        """The one JSON document that it printed, with nothing beside it on stderr."""
        result = self.run(*arguments, "--json", **more)
        assert result.err == "", result
        return result.document

    def file(self, text: str) -> str:
        path = self.folder / "manifest.yaml"
        path.write_text(text)
        return str(path)

    def editor(self, script: str) -> str:
        """An $EDITOR that runs a line of shell on its file, $1."""
        path = self.folder / "editor.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)


Case = Callable[[Bench], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """The case of the command that its name says: tenant_limits_set is of `tenant limits set`, and __ stands for -."""
    CASES[function.__name__.strip("_").replace("__", "-").replace("_", " ")] = function
    return function


def judged(bench: Bench) -> None:
    """Samples that the evaluator can grade: the engine says the same with and without a directive, and it is right."""
    bench.world.policy(grader="exact", sample_share=1.0, holdback_share=0.5)
    bench.world.ask(12, reference="Hello, world.")

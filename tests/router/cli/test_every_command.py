"""Every command of pithctl, as text and as JSON, against a router and an evaluator that run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from router.cli.main import app
from tests.router.cli import (
    cases_of_access,
    cases_of_diagnosis,
    cases_of_directives,
    cases_of_energy,
    cases_of_outcomes,
    cases_of_pairs,
    cases_of_policies,
    cases_of_quality,
    cases_of_replay,
    cases_of_reviews,
    cases_of_tasks,
)
from tests.router.cli.bench import CASES, Bench
from tests.router.cli.conftest import Pithctl, Result
from tests.router.cli.world import ADMIN, CLIENT, World

MODULES = (
    cases_of_access,
    cases_of_diagnosis,
    cases_of_directives,
    cases_of_energy,
    cases_of_outcomes,
    cases_of_pairs,
    cases_of_policies,
    cases_of_quality,
    cases_of_replay,
    cases_of_reviews,
    cases_of_tasks,
)
"""Where the cases are; importing them has put them in CASES."""


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name))


def test_every_command_has_a_case() -> None:
    assert sorted(leaves(typer.main.get_command(app))) == sorted(CASES)


@pytest.mark.parametrize("command", sorted(leaves(typer.main.get_command(app))))
def test_command(command: str, world: World, admin: Pithctl, tmp_path: Path) -> None:
    CASES[command](Bench(world, admin, tmp_path))


@pytest.mark.parametrize("command", sorted(leaves(typer.main.get_command(app))))
def test_command_has_help_and_takes_the_shared_options(command: str, command_line: Pithctl) -> None:
    result = command_line(*command.split(), "--help")
    assert result.code == 0
    for option in ("--router", "--token", "--ca", "--certificate", "--key", "--timeout", "--json"):
        assert option in result.out


def test_faults_are_json_too_and_alone_on_stderr(world: World, admin: Pithctl) -> None:
    for arguments, code in (("policy show nobody", 3), ("policy create x --floor 7", 2), ("apply /no/such.yaml", 2)):
        result: Result = admin(*arguments.split(), "--json", code=code)
        assert result.out == ""
        assert json.loads(result.err)["error"]["exit_code"] == code


def test_commands_of_admins_are_closed_to_others(world: World, admin: Pithctl) -> None:
    assert "PITHCTL_TOKEN" in admin("policy", "list", code=6, PITHCTL_TOKEN=CLIENT).err
    assert "PITHCTL_TOKEN" in admin("policy", "list", code=6, PITHCTL_TOKEN="nobody's").err
    assert admin("policy", "list", "--token", ADMIN, PITHCTL_TOKEN=CLIENT).code == 0

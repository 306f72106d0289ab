"""What the shell is told on Tab, by the protocol of each shell, in a process as a shell starts it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.router.cli.conftest import clean_environment
from tests.router.cli.world import ADMIN, World

PITHCTL = [sys.executable, "-m", "router.cli.main"]


def environment(world: World | None) -> dict[str, str]:
    address = world.router.address if world else "127.0.0.1:1"
    # The shell is the one that is named, not the one that happens to run the tests: that may be none.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    return {**clean_environment(), **named, "PITHCTL_ROUTER": address, "PITHCTL_TOKEN": ADMIN}


def offered(shell: str, line: str, world: World | None) -> tuple[str, str]:
    """stdout and stderr for a line with the cursor at its end."""
    words = line.split(" ")
    told = {
        "_PITHCTL_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(PITHCTL, env={**environment(world), **told}, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("shell", "line", "expected"),
    [
        ("bash", "pithctl pol", "policy"),
        ("bash", "pithctl policy show ac", "acme-qa"),
        ("zsh", "pithctl policy show ac", "acme-qa"),
        ("fish", "pithctl policy show ac", "acme-qa"),
        ("bash", "pithctl policy create x --mode sh", "shadow"),
        ("bash", "pithctl directive edit L", "L2"),
        ("bash", "pithctl policy update default --directive ", "L1"),
        ("bash", "pithctl explain --task q", "qa"),
        ("bash", "pithctl report --tenant a", "acme"),
        ("bash", "pithctl simulate d", "default"),
        ("bash", "pithctl token revoke c", "ci"),
    ],
)
def test_names_are_offered(world: World, admin: object, shell: str, line: str, expected: str) -> None:
    world.policy()
    admin("token", "create", "ci")  # type: ignore[operator]
    out, err = offered(shell, line, world)
    assert expected in out
    assert err == ""


def test_options_before_and_after_the_command_count(world: World) -> None:
    world.policy()
    line = f"pithctl --router {world.router.address} policy show --token {ADMIN} ac"
    assert "acme-qa" in offered("bash", line, None)[0]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_router_that_is_away_is_no_noise(shell: str) -> None:
    out, err = offered(shell, "pithctl policy show ", None)
    assert err == ""
    assert "cannot reach" not in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_for_each_shell_can_be_had(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PITHCTL, "--show-completion", shell], env=environment(None), capture_output=True, text=True, check=True
    )
    assert "pithctl" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


def test_completion_is_installed_where_the_shell_reads_it(tmp_path: Path) -> None:
    subprocess.run(
        [*PITHCTL, "--install-completion", "bash"],
        env={**environment(None), "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert "pithctl" in (tmp_path / ".bashrc").read_text()


def test_bash_completes_a_name(world: World, tmp_path: Path) -> None:
    """In a bash that has sourced the script."""
    world.policy()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "pithctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m router.cli.main "$@"\n')
    program.chmod(0o755)
    script = "source <(pithctl --show-completion bash); COMP_WORDS=(pithctl policy show a); COMP_CWORD=3;"
    script += ' _pithctl_completion pithctl; echo "${COMPREPLY[*]}"'
    path = f"{bin_folder}:{clean_environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**environment(world), "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "acme-qa"

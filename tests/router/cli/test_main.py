"""The program as a whole: help, shared options, errors and exit codes."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from pith.router.v1.directives_pb2 import Directive

from common.errors import FieldViolation, PithError, invalid_argument, quota_exceeded
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices

COMMANDS = (
    *("policy", "directive", "export", "apply", "diagnose", "replay", "simulate", "explain", "report"),
    *("carbon", "quality", "evaluate", "status", "top", "engines", "chat", "energy", "token", "tenant", "task"),
)
LONG_TEXT = " ".join(f"word{index}" for index in range(120))


def test_help_names_every_command_and_the_exit_codes(pithctl: Pithctl) -> None:
    result = pithctl("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"  {command}  " in result.out
    assert "3 not found" in result.out
    assert "PITHCTL_ROUTER" in result.out
    assert "  import  " not in result.out
    # Whole sentences: what does not fit is cut with dots.
    assert "..." not in result.out.partition("Commands:")[2]


def test_no_arguments_show_the_help(pithctl: Pithctl) -> None:
    assert pithctl().out == pithctl("--help").out


def test_help_loads_nothing_heavy() -> None:
    """--help must start within 0.3 s; what would make it slow is loaded by the commands that need it."""
    program = (
        "import sys; from router.cli.main import main; code = main(['--help']);"
        "heavy = {'grpc', 'google.protobuf', 'rich', 'pydantic', 'numpy', 'torch', 'sqlalchemy'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["polcy"], ["policy"], ["policy", "show"], ["engines", "--nonsense"]])
def test_wrong_usage_says_where_help_is(pithctl: Pithctl, arguments: list[str]) -> None:
    result = pithctl(*arguments)
    assert result.code == 2
    assert result.err.startswith("Error: ")
    assert "--help" in result.err
    as_json = pithctl("--json", *arguments)
    assert as_json.code == 2
    assert as_json.error["code"] == "USAGE"
    assert as_json.out == ""


def test_options_stand_before_or_after_the_command_and_the_later_wins(
    command_line: Pithctl, fake: FakeServices
) -> None:
    assert command_line("engines", PITHCTL_ROUTER="127.0.0.1:1").code == 5
    assert command_line("--router", fake.address, "engines").code == 0
    assert command_line("engines", "--router", fake.address).code == 0
    assert command_line("--router", "127.0.0.1:2", "engines", "--router", fake.address).code == 0
    assert command_line("--json", "engines", "--router", fake.address).document == {"engines": []}
    assert command_line("engines", "--json", "--router", fake.address).document == {"engines": []}


def test_token_goes_along_as_bearer(pithctl: Pithctl, fake: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.token = "secret"
    refused = pithctl("engines")
    assert refused.code == 6
    assert "PITHCTL_TOKEN" in refused.err
    assert pithctl("--token", "secret", "engines").code == 0
    assert pithctl("engines", "--token", "secret").code == 0
    monkeypatch.setenv("PITHCTL_TOKEN", "secret")
    assert pithctl("engines").code == 0


@pytest.mark.parametrize("token", ["two words\n", "", "schlüssel"])
def test_token_that_cannot_travel_is_refused(pithctl: Pithctl, fake: FakeServices, token: str) -> None:
    result = pithctl("--token", token, "engines")
    assert result.code == 2
    assert "--token" in result.err
    assert fake.requests == []


def test_argument_that_is_not_utf8_is_refused(environment: dict[str, str], fake: FakeServices) -> None:
    command = [sys.executable, "-m", "router.cli.main", "policy", "show", b"\xff"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr
    assert fake.requests == []


def test_unreachable_router_is_named_with_how_to_set_it(pithctl: Pithctl) -> None:
    result = pithctl("policy", "list", "--router", "127.0.0.1:1")
    assert result.code == 5
    assert "cannot reach the router at 127.0.0.1:1" in result.err
    assert "--router or PITHCTL_ROUTER" in result.err
    assert "Traceback" not in result.err
    error = pithctl("policy", "list", "--router", "127.0.0.1:1", "--json").error
    assert (error["code"], error["service"], error["address"]) == ("UNAVAILABLE", "router", "127.0.0.1:1")
    assert error["exit_code"] == 5


def test_unreachable_evaluator_is_named(pithctl: Pithctl) -> None:
    result = pithctl("evaluate", "--evaluator", "127.0.0.1:1")
    assert result.code == 5
    assert "cannot reach the evaluator at 127.0.0.1:1" in result.err
    assert "PITHCTL_EVALUATOR" in result.err


def test_call_that_takes_too_long_ends_with_its_deadline(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.hang = True
    result = pithctl("engines", "--timeout", "0.1")
    assert result.code == 5
    assert "--timeout" in result.err


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.ABORTED, 4),
        (grpc.StatusCode.ALREADY_EXISTS, 4),
        (grpc.StatusCode.FAILED_PRECONDITION, 4),
        (grpc.StatusCode.UNAVAILABLE, 5),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 5),
        (grpc.StatusCode.UNAUTHENTICATED, 6),
        (grpc.StatusCode.PERMISSION_DENIED, 6),
        (grpc.StatusCode.UNIMPLEMENTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_exit_code_follows_the_status(
    pithctl: Pithctl, fake: FakeServices, code: grpc.StatusCode, exit_code: int
) -> None:
    fake.failure = PithError(code, "SOME_REASON", "what went wrong", retry_after_seconds=1.5)
    result = pithctl("engines")
    assert result.code == exit_code
    assert result.out == ""
    assert "try again in 1.5 s" in result.err
    error = pithctl("engines", "--json").error
    assert error["code"] == code.name
    assert error["reason"] == "SOME_REASON"
    assert error["exit_code"] == exit_code
    assert error["retry_after_seconds"] == 1.5


def test_each_faulty_field_has_a_line(pithctl: Pithctl, fake: FakeServices) -> None:
    faults = [FieldViolation("policy.floor", "is 7"), FieldViolation("policy.directives[2]", "is [unknown]")]
    fake.failure = invalid_argument(faults)
    result = pithctl("policy", "create", "p", "--floor", "7")
    assert result.err.splitlines() == [
        "Error: policy.floor (--floor): is 7",
        "Error: policy.directives[2] (--directive): is [unknown]",
    ]
    violations = pithctl("policy", "create", "p", "--json").error["violations"]
    assert violations == [{"field": fault.field, "description": fault.description} for fault in faults]


def test_piped_output_is_plain_and_its_lines_are_whole(environment: dict[str, str], fake: FakeServices) -> None:
    fake.directives["L1"] = Directive(name="L1", text=LONG_TEXT)
    command = [sys.executable, "-m", "router.cli.main", "directive", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert any(LONG_TEXT in line for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_terminal_output_folds_and_loses_nothing(environment: dict[str, str], fake: FakeServices) -> None:
    fake.directives["L1"] = Directive(name="L1", text=LONG_TEXT)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "router.cli.main", "directive", "show", "L1"]
    # Rich takes a dumb terminal to have 80 columns, and gives it no colours.
    with subprocess.Popen(command, stdout=theirs, env={**environment, "TERM": "dumb"}) as process:
        os.close(theirs)
        pieces = []
        # Reading a terminal whose other end has closed is an error on Linux.
        while True:
            try:
                pieces.append(os.read(ours, 65536))
            except OSError:
                break
            if not pieces[-1]:
                break
        assert process.wait() == 0
    os.close(ours)
    lines = b"".join(pieces).decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert LONG_TEXT in " ".join(" ".join(lines).split())


def test_markup_and_control_characters_show_as_they_are(pithctl: Pithctl, fake: FakeServices) -> None:
    text = "[bold]Be [/] brief[0] :smile:"
    fake.directives["[red]"] = Directive(name="[red]", text=text + "\x1b[2J")
    for command in (["directive", "list"], ["directive", "show", "[red]"]):
        result = pithctl(*command)
        assert text + "�[2J" in result.out
        assert "\x1b" not in result.out
    assert pithctl("directive", "show", "[red]", "--json").document["text"] == text + "\x1b[2J"


def test_reader_that_stops_early_is_no_failure_with_a_traceback(
    environment: dict[str, str], fake: FakeServices
) -> None:
    fake.directives.update({f"D{index}": Directive(name=f"D{index}", text="x" * 1000) for index in range(200)})
    script = f"{sys.executable} -m router.cli.main directive list --json | head -c 10"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""


def test_entry_point_is_declared() -> None:
    import tomllib

    root = Path(__file__).parents[3]
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["pithctl"] == "router.cli.main:main"


def test_json_keeps_other_scripts_than_latin(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.directives["L1"] = Directive(name="L1", text="短く答えて")
    result = pithctl("directive", "show", "L1", "--json")
    assert "短く答えて" in result.out
    assert json.loads(result.out)["text"] == "短く答えて"


def test_budgets_that_are_spent_say_when_there_is_more(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.failure = quota_exceeded("CARBON_BUDGET_SPENT", "policy:acme-qa", "500 g of 500 g are spent", 40_000)
    result = pithctl("chat", "--once", "Hello")
    assert result.code == 5
    assert "policy:acme-qa: 500 g of 500 g are spent" in result.err
    assert "try again in 11 h 6 min" in result.err

"""The `pithctl` program: its commands, the options they share, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from router.cli import chat, directives, engines, explain, policies, quality, report
from router.cli.command import STREAM_SECONDS, UNARY_SECONDS, Session, checked_token
from router.cli.failures import ExitCode, print_usage_error

_EPILOG = """\b
Every command takes these options too, after its name.
Exit codes: 0 done; 2 wrong usage or an invalid value; 3 not found;
4 conflict (changed meanwhile, exists already, in use);
5 unreachable, overloaded or too slow; 6 token missing or not allowed;
130 interrupted; 1 anything else.
"""

# Plain help: Rich's would double the time that --help takes, and takes text in brackets for its markup.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, epilog=_EPILOG)
app.add_typer(directives.app, name="directive")
app.add_typer(policies.app, name="policy")
explain.register(app)
report.register(app)
quality.register(app)
engines.register(app)
chat.register(app)


@app.callback()
def _options(
    ctx: typer.Context,
    router: Annotated[
        str, typer.Option("--router", envvar="PITHCTL_ROUTER", metavar="ADDRESS", help="Address of the router.")
    ] = "127.0.0.1:7400",
    evaluator: Annotated[
        str,
        typer.Option("--evaluator", envvar="PITHCTL_EVALUATOR", metavar="ADDRESS", help="Address of the evaluator."),
    ] = "127.0.0.1:7600",
    token: Annotated[
        str | None, typer.Option("--token", envvar="PITHCTL_TOKEN", metavar="TOKEN", help="Bearer token.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.001,
            help=f"Deadline of a call.  [default: {UNARY_SECONDS:g}; {STREAM_SECONDS:g} for streams]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; errors too, on stderr.")] = False,
) -> None:
    """Administers Pith: directives, policies, what they save, and at which quality."""
    ctx.obj = Session(router, evaluator, checked_token(token), timeout, as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        _require_text(given)
        return int(app(given, prog_name="pithctl", standalone_mode=False) or ExitCode.OK)
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        program = "pithctl" if context is None else context.command_path
        print_usage_error(error.format_message(), program=program, as_json="--json" in given)
        return ExitCode.INVALID
    except typer.Abort:
        print("\nNot confirmed: nothing was changed.", file=sys.stderr)
        return ExitCode.OTHER


def _require_text(arguments: Sequence[str]) -> None:
    """Refuses arguments that were not UTF-8: no message of the contract could carry them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(f"{argument!r} is not UTF-8") from None


if __name__ == "__main__":
    sys.exit(main())

"""The `pithctl` program: its commands, the options they share, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from router.cli import (
    apply,
    carbon,
    chat,
    diagnose,
    directives,
    energy,
    engines,
    evaluate,
    explain,
    policies,
    quality,
    replay,
    report,
    review,
    simulate,
    status,
    tasks,
    tenants,
    tokens,
    top,
)
from router.cli.command import DEFAULT_EVALUATOR, DEFAULT_ROUTER, STREAM_SECONDS, UNARY_SECONDS, checked_token
from router.cli.failures import ExitCode, print_usage_error

_EPILOG = """\b
Every command takes these options too, after its name.
Exit codes: 0 done; 2 wrong usage or an invalid value; 3 not found;
4 conflict (changed meanwhile, exists already, in use);
5 unreachable, overloaded, too slow, or beyond a rate or carbon budget;
6 token missing or not allowed; 7 with --exit-code: something to change
or to mend; 130 interrupted; 1 anything else.
"""

# Plain help: Rich's would double the time that --help takes, and takes text in brackets for its markup.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, epilog=_EPILOG)
# In the order of the help: what is wished, what comes of it, how it is, who may.
app.add_typer(policies.app, name="policy")
app.add_typer(directives.app, name="directive")
app.add_typer(tasks.app, name="task")
for part in (apply, diagnose, replay, simulate, explain, report, carbon, status, top, engines, chat, review):
    part.register(app)
app.add_typer(quality.app, name="quality")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(energy.app, name="energy")
app.add_typer(tokens.app, name="token")
app.add_typer(tenants.app, name="tenant")


@app.callback()
def _options(
    router: Annotated[
        str, typer.Option("--router", envvar="PITHCTL_ROUTER", metavar="ADDRESS", help="Address of the router.")
    ] = DEFAULT_ROUTER,
    evaluator: Annotated[
        str,
        typer.Option("--evaluator", envvar="PITHCTL_EVALUATOR", metavar="ADDRESS", help="Address of the evaluator."),
    ] = DEFAULT_EVALUATOR,
    token: Annotated[
        str | None, typer.Option("--token", envvar="PITHCTL_TOKEN", metavar="TOKEN", help="Bearer token.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", envvar="PITHCTL_CA", metavar="FILE", help="Certificates to trust (PEM); asks for TLS."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", envvar="PITHCTL_CERTIFICATE", metavar="FILE", help="Certificate to show (PEM), for mTLS."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", envvar="PITHCTL_KEY", metavar="FILE", help="Its private key (PEM).")
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
    # Commands read these with `session_of`; a token that cannot travel is a fault of any of them.
    checked_token(token)


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

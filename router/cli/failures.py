"""What went wrong in a call, what to do about it, and the exit code that says so to a script."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from router.cli.output import printable
from router.cli.units import span

if TYPE_CHECKING:
    from common.errors import PithError


class ExitCode(IntEnum):
    """What pithctl ends with."""

    OK = 0
    OTHER = 1
    INVALID = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    NOT_ALLOWED = 6
    FOUND = 7
    """With --exit-code: there is something to change, or to mend."""


_EXIT_CODES: Mapping[str, ExitCode] = {
    "INVALID_ARGUMENT": ExitCode.INVALID,
    "OUT_OF_RANGE": ExitCode.INVALID,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "ABORTED": ExitCode.CONFLICT,
    "ALREADY_EXISTS": ExitCode.CONFLICT,
    "FAILED_PRECONDITION": ExitCode.CONFLICT,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": ExitCode.UNAVAILABLE,
    "UNAUTHENTICATED": ExitCode.NOT_ALLOWED,
    "PERMISSION_DENIED": ExitCode.NOT_ALLOWED,
}


class LocalError(Exception):
    """Something that was given cannot be used, as was found before anything was sent or changed.

    Args:
        lines: what is wrong, a fault a line.
        next_step: what to do now.
        exit_code: what pithctl ends with.
    """

    def __init__(
        self, lines: Sequence[str], *, next_step: str | None = None, exit_code: ExitCode = ExitCode.INVALID
    ) -> None:
        super().__init__("; ".join(lines))
        self.lines = list(lines)
        self.next_step = next_step
        self.exit_code = exit_code

    def document(self) -> dict[str, Any]:
        return {
            "code": self.exit_code.name,
            "message": str(self),
            "faults": self.lines,
            "next_step": self.next_step,
            "exit_code": int(self.exit_code),
        }


class CallError(Exception):
    """A call to a service failed.

    Attributes:
        advice: what to do now, where the command knows better than the error tells.

    Args:
        error: what the service, or gRPC itself, said.
        service: "router" or "evaluator".
        address: where it was looked for.
        tls: whether TLS was spoken.
    """

    def __init__(self, error: PithError, service: str, address: str, *, tls: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.service = service
        self.address = address
        self.tls = tls
        self.advice: str | None = None
        self.exit_code = _EXIT_CODES.get(error.code.name, ExitCode.OTHER)

    @property
    def unreachable(self) -> bool:
        """Nothing that speaks gRPC answered: a service of ours would have given a reason."""
        return self.error.code.name == "UNAVAILABLE" and self.error.reason == "UNSPECIFIED"

    @property
    def summary(self) -> str:
        if self.unreachable:
            cause = self.error.message.rpartition(": ")[2]
            return f"cannot reach the {self.service} at {self.address} ({cause})"
        if self.error.code.name == "DEADLINE_EXCEEDED":
            return f"the {self.service} at {self.address} did not answer in time"
        return self.error.message or self.error.code.name

    @property
    def next_step(self) -> str | None:
        """What to do now, as far as the error tells."""
        if self.advice is not None:
            return self.advice
        code, facts = self.error.code.name, self.error.metadata
        kind, name = facts.get("resource", ""), facts.get("name", "NAME")
        listed = {
            "policy": "pithctl policy list",
            "directive": "pithctl directive list",
            "revision of policy": f"pithctl policy history {name.partition('/')[0]}",
            "revision of directive": f"pithctl directive history {name.partition('/')[0]}",
            "token": "pithctl token list",
            "model": "pithctl engines",
        }
        if self.unreachable:
            named = f"start it, or name its address with --{self.service} or PITHCTL_{self.service.upper()}"
            if self.tls:
                return f"{named}; with TLS, --ca must name who signed its certificate, which must be for that address"
            return f"{named}; if it speaks TLS, name who signed its certificate with --ca or PITHCTL_CA"
        if self.error.reason == "ETAG_MISMATCH":
            return "somebody else has changed it: look at it again with show, then repeat the command if it still holds"
        if self.error.reason == "RESOURCE_EXISTS":
            # What cannot be changed: tokens, and the baseline.
            fixed = kind not in ("policy", "directive") or name == "L0"
            return "choose another name" if fixed else f"change it with: pithctl {kind} update {name}"
        if self.error.reason == "IN_USE" and facts.get("used_by") in ("every policy", "the tokens file"):
            return None
        if self.error.reason == "IN_USE":
            return "take it out of them first: pithctl policy update POLICY --directive ..., naming those that stay"
        if self.error.retry_after_seconds is not None:
            return f"try again in {_wait(self.error.retry_after_seconds)}"
        return {
            "NOT_FOUND": f"see what there is with: {listed[kind]}" if kind in listed else None,
            "DEADLINE_EXCEEDED": "allow more time with --timeout SECONDS",
            "UNAUTHENTICATED": "give a token with --token or PITHCTL_TOKEN",
            "PERMISSION_DENIED": "use the token of a role that may (--token or PITHCTL_TOKEN)",
            "UNIMPLEMENTED": f"the {self.service} at {self.address} does not offer this; is it of the same version?",
        }.get(code)

    def document(self) -> dict[str, Any]:
        error = self.error
        return {
            "code": error.code.name,
            "reason": error.reason,
            "message": self.summary,
            "violations": [{"field": v.field, "description": v.description} for v in error.violations],
            "metadata": dict(error.metadata),
            "retry_after_seconds": error.retry_after_seconds,
            "next_step": self.next_step,
            "service": self.service,
            "address": self.address,
            "exit_code": int(self.exit_code),
        }


def print_failure(failure: CallError | LocalError, *, as_json: bool, options: Mapping[str, str]) -> None:
    """Tells of the failure on stderr.

    Args:
        failure: what happened.
        as_json: as a document {"error": ...}, else in lines.
        options: the command's options by the name of the field that they set, for the lines about fields.
    """
    if as_json:
        print(json.dumps({"error": failure.document()}, ensure_ascii=False), file=sys.stderr)
        return
    for line in failure.lines if isinstance(failure, LocalError) else _lines(failure, options):
        print(f"Error: {printable(line)}", file=sys.stderr)
    if failure.next_step is not None:
        print(f"  {printable(failure.next_step)}", file=sys.stderr)


def _wait(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else span(seconds)


def _lines(failure: CallError, options: Mapping[str, str]) -> list[str]:
    lines = []
    for violation in failure.error.violations:
        option = _option(violation.field, options)
        lines.append(f"{violation.field}{f' ({option})' if option else ''}: {violation.description}")
    # The message of a BadRequest only repeats the first field.
    return lines or [failure.summary]


def _option(field: str, options: Mapping[str, str]) -> str | None:
    """The option for a field such as "policy.latency.seconds" or "policy.directives[2]"."""
    path = re.sub(r"\[[^]]*]", "", field).split(".")
    ends = [".".join(path[start:]) for start in range(len(path))]
    return next((options[end] for end in ends if end in options), None)


def print_usage_error(message: str, *, program: str, as_json: bool) -> None:
    """Tells on stderr of a command line that `program` ("pithctl policy show") does not understand."""
    next_step = f"see: {program} --help"
    if as_json:
        document = {"code": "USAGE", "message": message, "next_step": next_step, "exit_code": int(ExitCode.INVALID)}
        print(json.dumps({"error": document}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"Error: {printable(message)}\n  {next_step}", file=sys.stderr)

"""What a directive and a policy may say. Checked once, where they enter."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Sequence

from google.protobuf.message import Message
from pith.router.v1 import directives_pb2, policies_pb2

from common.errors import Violations
from common.limits import MAX_ID_CHARACTERS, check_stop, check_suppressed_words
from common.quality.graders import GRADERS
from router.directives.levels import L0, MAX_TEXT_CHARACTERS, NAME_PATTERN

MAX_OUTPUT_TOKENS = 1_000_000
MAX_HISTORY_MESSAGES = 10_000
MAX_DIRECTIVES = 32
MAX_HOLDBACK_SHARE = 0.5
MAX_BOUND_AGE_SECONDS = 366 * 24 * 3600
MAX_REVISION = 2**31 - 1
"""The largest that the database holds."""


def check_directive(faults: Violations, message: directives_pb2.Directive) -> None:
    check_name(faults, "directive.name", message.name)
    faults.require(
        message.name != L0.name, "directive.name", f"is {L0.name}, which is no directive and cannot be changed"
    )
    check_text(faults, "directive.text", message.text)
    _check_enum(faults, "directive", message, "placement")
    _check_whole(faults, "directive.max_output_tokens", message.max_output_tokens, MAX_OUTPUT_TOKENS)
    _check_whole(faults, "directive.history_messages", message.history_messages, MAX_HISTORY_MESSAGES)
    check_stop(faults, "directive.stop", message.stop)
    check_suppressed_words(faults, "directive.suppressed_words", message.suppressed_words)


def check_policy(faults: Violations, message: policies_pb2.Policy, known: Collection[str]) -> None:
    """`known` are the names of the directives that exist."""
    check_name(faults, "policy.name", message.name)
    for field in ("tenant", "task"):
        check_text(faults, f"policy.{field}", getattr(message, field), MAX_ID_CHARACTERS)
    _check_enum(faults, "policy", message, "mode")
    _check_enum(faults, "policy", message, "floor_kind")
    _check_share(faults, "policy.traffic_share", message.traffic_share, 1.0)
    _check_share(faults, "policy.holdback_share", message.holdback_share, MAX_HOLDBACK_SHARE)
    _check_share(faults, "policy.sample_share", message.sample_share, 1.0)
    # A comparison with NaN is never true.
    faults.require(0 < message.floor <= 1, "policy.floor", f"is {message.floor:g}; must be above 0 and at most 1")
    check_directives(faults, "policy.directives", message.directives, known)
    faults.require(
        message.grader == "" or message.grader in GRADERS,
        "policy.grader",
        f"is {_clipped(message.grader)}; must be one of {', '.join(sorted(GRADERS))}, or empty",
    )
    _check_whole(faults, "policy.bound_max_age_seconds", message.bound_max_age_seconds, MAX_BOUND_AGE_SECONDS)


def check_directives(faults: Violations, field: str, names: Sequence[str], known: Collection[str]) -> None:
    if not faults.require(len(names) <= MAX_DIRECTIVES, field, f"has {len(names):,} names; at most {MAX_DIRECTIVES}"):
        return
    for index, name in enumerate(names):
        at = f"{field}[{index}]"
        if name == L0.name:
            faults.add(at, f"is {L0.name}, which is always allowed and must not be named")
        elif name not in known:
            faults.add(at, f"is {_clipped(name)}, which does not exist; must be one of {', '.join(sorted(known))}")
        elif name in names[:index]:
            faults.add(at, f"is {name} again; each may be named once")


def check_name(faults: Violations, field: str, name: str) -> None:
    faults.require(
        NAME_PATTERN.fullmatch(name) is not None,
        field,
        f"is {_clipped(name)}; must be 1 to 64 letters (A to Z, a to z), digits, '.', '_' or '-'",
    )


def check_text(faults: Violations, field: str, text: str, most: int = MAX_TEXT_CHARACTERS) -> None:
    if len(text) > most:
        faults.add(field, f"has {len(text):,} characters; at most {most:,}")
    for index, character in enumerate(text[:most]):
        if unicodedata.category(character) == "Cc":
            faults.add(field, f"has the control character U+{ord(character):04X} at {index}; none is allowed")
            return


def _check_share(faults: Violations, field: str, share: float, most: float) -> None:
    if not math.isfinite(share) or not 0 <= share <= most:
        faults.add(field, f"is {share:g}; must be in [0, {most:g}]")


def _check_whole(faults: Violations, field: str, value: int, most: int) -> None:
    faults.require(value <= most, field, f"is {value:,}; at most {most:,}")


def _check_enum(faults: Violations, prefix: str, message: Message, field: str) -> None:
    value = getattr(message, field)
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert enum is not None
    known = enum.values_by_number
    names = ", ".join(known[number].name for number in sorted(known) if number)
    faults.require(value in known, f"{prefix}.{field}", f"is {value}; must be one of {names}")


def _clipped(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")

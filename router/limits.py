"""What a directive and a policy may say. Checked once, where they enter."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Sequence

from google.protobuf.message import Message
from pith.router.v1 import directives_pb2, generation_pb2, policies_pb2

from common.errors import Violations
from common.limits import MAX_ID_CHARACTERS, check_stop, check_suppressed_words, check_template_variables
from common.model_identity import MODEL_IDENTITY
from common.quality.graders import GRADERS
from common.quality.pairwise import PAIRWISE
from router.directives.levels import L0, MAX_TEXT_CHARACTERS, NAME_PATTERN
from router.directives.policy import LatencyObjective, Trait
from router.directives.wording import faults_of

MAX_OUTPUT_TOKENS = 1_000_000
MAX_MODEL_CHARACTERS = 256
MAX_HISTORY_MESSAGES = 10_000
MAX_DIRECTIVES = 32
MAX_HOLDBACK_SHARE = 0.5
MAX_BOUND_AGE_SECONDS = 366 * 24 * 3600
MAX_LATENCY_SECONDS = 3_600
DEFAULT_LATENCY_SHARE = LatencyObjective(seconds=1.0).share
_LISTED = 20

MAX_REVISION = 2**31 - 1
"""The largest that the database holds."""


def check_directive(faults: Violations, message: directives_pb2.Directive, at: str = "directive") -> None:
    """`at` is where the message stands in its request."""
    check_name(faults, f"{at}.name", message.name)
    faults.require(message.name != L0.name, f"{at}.name", f"is {L0.name}, which is no directive and cannot be changed")
    check_content(faults, message, at)


def check_content(faults: Violations, message: directives_pb2.Directive, at: str) -> None:
    """All of a directive but its name, which one that is only tried need not have."""
    check_text(faults, f"{at}.text", message.text)
    _check_wording(faults, f"{at}.text", message.text)
    _check_enum(faults, at, message, "placement")
    _check_native(faults, message, at)
    _check_whole(faults, f"{at}.max_output_tokens", message.max_output_tokens, MAX_OUTPUT_TOKENS)
    _check_whole(faults, f"{at}.history_messages", message.history_messages, MAX_HISTORY_MESSAGES)
    check_stop(faults, f"{at}.stop", message.stop)
    check_suppressed_words(faults, f"{at}.suppressed_words", message.suppressed_words)
    if message.model:
        check_model_identity(faults, f"{at}.model", message.model)


def check_model_identity(faults: Violations, field: str, model: str) -> None:
    """As cells name it."""
    check_text(faults, field, model, MAX_MODEL_CHARACTERS)
    is_one = MODEL_IDENTITY.fullmatch(model) is not None
    faults.require(is_one, field, f"is {_clipped(model)}; must be name@digest, as `pithctl engines` shows it")


def _check_wording(faults: Violations, field: str, text: str) -> None:
    # What is too long is refused as such, and need not be read to its end.
    for fault in faults_of(text[:MAX_TEXT_CHARACTERS]):
        faults.add(field, str(fault))


def _check_native(faults: Violations, message: directives_pb2.Directive, at: str) -> None:
    variables, field = message.template_variables, f"{at}.template_variables"
    native = message.placement == directives_pb2.PLACEMENT_NATIVE
    if native:
        faults.require(not message.text, f"{at}.text", "must be empty with PLACEMENT_NATIVE, which adds no text")
        faults.require(len(variables.fields) > 0, field, "is empty; PLACEMENT_NATIVE needs at least one variable")
    elif variables.fields:
        faults.add(field, "needs PLACEMENT_NATIVE")
    if check_template_variables(faults, field, variables):
        for name in sorted(variables.fields):
            text = variables.fields[name].string_value
            check_text(faults, f"{field}[{_clipped(name)}]", text)
            _check_wording(faults, f"{field}[{_clipped(name)}]", text)


def check_policy(faults: Violations, message: policies_pb2.Policy, known: Collection[str], at: str = "policy") -> None:
    """`known` are the names of the directives that exist, `at` is where the message stands in its request."""
    check_name(faults, f"{at}.name", message.name)
    for field in ("tenant", "task"):
        check_text(faults, f"{at}.{field}", getattr(message, field), MAX_ID_CHARACTERS)
    _check_enum(faults, at, message, "mode")
    _check_enum(faults, at, message, "floor_kind")
    _check_share(faults, f"{at}.traffic_share", message.traffic_share, 1.0)
    _check_share(faults, f"{at}.holdback_share", message.holdback_share, MAX_HOLDBACK_SHARE)
    _check_share(faults, f"{at}.sample_share", message.sample_share, 1.0)
    # A comparison with NaN is never true.
    faults.require(0 < message.floor <= 1, f"{at}.floor", f"is {message.floor:g}; must be above 0 and at most 1")
    check_directives(faults, f"{at}.directives", message.directives, known)
    judged_by = sorted({*GRADERS, PAIRWISE})
    faults.require(
        message.grader in ("", *judged_by),
        f"{at}.grader",
        f"is {_clipped(message.grader)}; must be one of {', '.join(judged_by)}, or empty",
    )
    _check_whole(faults, f"{at}.bound_max_age_seconds", message.bound_max_age_seconds, MAX_BOUND_AGE_SECONDS)
    if message.HasField("latency"):
        _check_latency(faults, message.latency, f"{at}.latency")
    if message.HasField("carbon_budget"):
        _check_carbon_budget(faults, message.carbon_budget, f"{at}.carbon_budget")
    if message.HasField("quality_budget"):
        _check_quality_budget(faults, message, f"{at}.quality_budget")
    check_traits(faults, f"{at}.leave_alone.traits", message.leave_alone.traits)


def _check_latency(faults: Violations, message: policies_pb2.LatencyObjective, at: str) -> None:
    # A comparison with NaN is never true.
    faults.require(
        0 < message.seconds <= MAX_LATENCY_SECONDS,
        f"{at}.seconds",
        f"is {message.seconds:g}; must be above 0 and at most {MAX_LATENCY_SECONDS:,}",
    )
    # 0 stands for the default.
    faults.require(
        0 <= message.share < 1,
        f"{at}.share",
        f"is {message.share:g}; must be above 0 and below 1, or 0 for the default of {DEFAULT_LATENCY_SHARE:g}",
    )


def _check_carbon_budget(faults: Violations, message: policies_pb2.CarbonBudget, at: str) -> None:
    grams = message.grams_per_day
    faults.require(
        math.isfinite(grams) and grams > 0, f"{at}.grams_per_day", f"is {grams:g}; must be a finite number above 0"
    )
    _check_enum(faults, at, message, "when_spent")


def _check_quality_budget(faults: Violations, policy: policies_pb2.Policy, at: str) -> None:
    budget = policy.quality_budget
    # A floor that is at fault is reported by itself.
    most = policy.floor if 0 < policy.floor <= 1 else 1.0
    faults.require(
        0 < budget.directive_floor < most,
        f"{at}.directive_floor",
        f"is {budget.directive_floor:g}; must be above 0 and below the policy's floor, {most:g}",
    )
    faults.require(
        policy.floor_kind != policies_pb2.FLOOR_KIND_ABSOLUTE,
        at,
        "needs the floor_kind FLOOR_KIND_RELATIVE; the policy's is FLOOR_KIND_ABSOLUTE",
    )
    _check_enum(faults, at, budget, "scope")


def check_traits(faults: Violations, field: str, traits: Sequence[int]) -> None:
    if not faults.require(len(traits) <= len(Trait), field, f"has {len(traits):,} traits; at most {len(Trait)}"):
        return
    known: dict[int, str] = {number: name for name, number in generation_pb2.Trait.items() if number}
    for index, trait in enumerate(traits):
        at = f"{field}[{index}]"
        if trait not in known:
            faults.add(at, f"is {trait}; must be one of {', '.join(known.values())}")
        elif trait in traits[:index]:
            faults.add(at, f"is {known[trait]} again; each may be named once")


def check_directives(faults: Violations, field: str, names: Sequence[str], known: Collection[str]) -> None:
    if not faults.require(len(names) <= MAX_DIRECTIVES, field, f"has {len(names):,} names; at most {MAX_DIRECTIVES}"):
        return
    for index, name in enumerate(names):
        at = f"{field}[{index}]"
        if name == L0.name:
            faults.add(at, f"is {L0.name}, which is always allowed and must not be named")
        elif name not in known:
            faults.add(at, f"is {_clipped(name)}, which does not exist; must be one of {_listed(known)}")
        elif name in names[:index]:
            faults.add(at, f"is {name} again; each may be named once")


def _listed(known: Collection[str]) -> str:
    # A request may hold tens of thousands of such faults.
    shown = sorted(known)[:_LISTED]
    return ", ".join(shown) + (f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else "")


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

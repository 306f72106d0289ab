"""What a caller may report of an answer: its outcome, and a rating."""

from __future__ import annotations

import math
import unicodedata

from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import generation_pb2

from common.errors import PithError, Violations
from router.seal import SealedDecision
from router.validation import RequestLimits, check, check_id

MAX_OUTCOME_TOKENS = 100_000_000
MAX_OUTCOME_SECONDS = 24 * 3600.0
"""As long as a decision is valid."""
MAX_OUTCOME_JOULES = 1e9
"""More than a device of 10 kW uses in that time."""
MAX_COMMENT_CHARACTERS = 1_000


def check_outcome(request: generation_pb2.ReportOutcomeRequest, limits: RequestLimits) -> None:
    """Raises PithError INVALID_ARGUMENT that names every field at fault."""
    faults = Violations()
    faults.require(request.decision_id != "", "decision_id", "is empty")
    _check_usage(faults, request)
    if request.HasField("energy"):
        _check_amount(faults, "energy.joules", request.energy.joules, MAX_OUTCOME_JOULES)
        known = {*energy_pb2.EnergySource.values()} - {energy_pb2.ENERGY_SOURCE_UNSPECIFIED}
        faults.require(
            request.energy.source in known,
            "energy.source",
            f"is {int(request.energy.source)}; must be one of "
            + ", ".join(energy_pb2.EnergySource.Name(source) for source in sorted(known)),
        )
    for field in ("seconds", "busy_seconds"):
        _check_amount(faults, field, getattr(request, field), MAX_OUTCOME_SECONDS)
    faults.require(
        request.finish_reason in text_pb2.FinishReason.values(),
        "finish_reason",
        f"is {int(request.finish_reason)}; must be one of {', '.join(text_pb2.FinishReason.keys())}",
    )
    check_id(faults, "model", request.model)
    if request.HasField("request"):
        try:
            check(request.request, limits)
        except PithError as error:
            for violation in error.violations:
                faults.add(f"request.{violation.field}", violation.description)
    faults.raise_if_any()


def check_match(request: generation_pb2.ReportOutcomeRequest, decision: SealedDecision) -> None:
    """An outcome must be of the request that was decided on; raises PithError INVALID_ARGUMENT where it is not."""
    faults = Violations()
    faults.require(
        request.model != "" or decision.model != "", "model", "is empty, and the request that was decided on names none"
    )
    if request.HasField("request"):
        asked = request.request
        faults.require(
            asked.request_id in ("", decision.request_id), "request.request_id", "is not the one that was decided on"
        )
        faults.require(asked.tenant in ("", decision.tenant), "request.tenant", "is not the one that was decided for")
        # Empty: it may have been told from the text.
        faults.require(asked.task in ("", decision.task), "request.task", "is not the one that was decided for")
    faults.raise_if_any()


def check_rating(request: generation_pb2.RateAnswerRequest) -> None:
    """Raises PithError INVALID_ARGUMENT that names every field at fault."""
    faults = Violations()
    faults.require(request.request_id != "", "request_id", "is empty")
    check_id(faults, "request_id", request.request_id)
    check_id(faults, "tenant", request.tenant)
    # A comparison with NaN is never true.
    faults.require(0 <= request.rating <= 1, "rating", f"is {request.rating:g}; must be in [0, 1]")
    size = len(request.comment)
    faults.require(
        size <= MAX_COMMENT_CHARACTERS, "comment", f"has {size:,} characters; at most {MAX_COMMENT_CHARACTERS:,}"
    )
    for index, character in enumerate(request.comment[:MAX_COMMENT_CHARACTERS]):
        if unicodedata.category(character) == "Cc" and character != "\n":
            faults.add(
                "comment", f"has the control character U+{ord(character):04X} at {index}; only new lines are allowed"
            )
            break
    faults.raise_if_any()


def _check_usage(faults: Violations, request: generation_pb2.ReportOutcomeRequest) -> None:
    if not faults.require(request.HasField("usage"), "usage", "is missing; tokens of prompt and answer are needed"):
        return
    usage = request.usage
    for field in ("prompt_tokens", "output_tokens"):
        tokens = getattr(usage, field)
        faults.require(tokens <= MAX_OUTCOME_TOKENS, f"usage.{field}", f"is {tokens:,}; at most {MAX_OUTCOME_TOKENS:,}")
    faults.require(
        usage.cached_tokens <= usage.prompt_tokens,
        "usage.cached_tokens",
        f"is {usage.cached_tokens:,}, more than the {usage.prompt_tokens:,} tokens of the prompt",
    )


def _check_amount(faults: Violations, field: str, value: float, most: float) -> None:
    faults.require(
        math.isfinite(value) and 0 <= value <= most, field, f"is {value:g}; must be finite and in [0, {most:,.0f}]"
    )

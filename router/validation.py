"""What a request for an answer must satisfy before anything is done for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2

from common.errors import Violations
from common.limits import (
    MAX_ID_CHARACTERS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    check_stop,
    check_suppressed_words,
)
from router.directives.levels import NAME_PATTERN
from router.limits import check_content, check_model_identity, check_traits

MAX_REFERENCE_CHARACTERS = 8_192
MAX_OTHER_MODELS = 32

_ROLES = {text_pb2.ROLE_SYSTEM, text_pb2.ROLE_USER, text_pb2.ROLE_ASSISTANT}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the operator allows."""

    max_messages: int
    max_prompt_characters: int


def check(request: generation_pb2.GenerateRequest, limits: RequestLimits, *, messages_needed: bool = True) -> None:
    """Raises PithError INVALID_ARGUMENT that names every field at fault.

    Args:
        messages_needed: False for an explanation, which needs none.
    """
    faults = Violations()
    for field in ("request_id", "tenant", "task", "conversation_id", "model"):
        check_id(faults, field, getattr(request, field))
    if request.messages or messages_needed:
        _check_messages(faults, request.messages, limits)
    if request.HasField("sampling"):
        _check_sampling(faults, request.sampling)
    if request.HasField("limits"):
        check_stop(faults, "limits.stop", request.limits.stop)
    if request.HasField("floor"):
        faults.require(0 < request.floor <= 1, "floor", f"is {request.floor:g}; must be above 0 and at most 1")
    if request.traits:
        check_traits(faults, "traits", request.traits)
    if len(request.reference) > MAX_REFERENCE_CHARACTERS:
        faults.add("reference", f"has {len(request.reference):,} characters; at most {MAX_REFERENCE_CHARACTERS:,}")
    if request.HasField("evaluation"):
        purpose = request.evaluation
        faults.require(purpose.sample_id != "", "evaluation.sample_id", "is empty")
        check_id(faults, "evaluation.sample_id", purpose.sample_id)
        if purpose.HasField("candidate"):
            faults.require(purpose.directive == "", "evaluation.directive", "must be empty beside a candidate")
            check_content(faults, purpose.candidate, "evaluation.candidate")
        else:
            faults.require(
                NAME_PATTERN.fullmatch(purpose.directive) is not None,
                "evaluation.directive",
                "must be 1 to 64 letters, digits, '.', '_' or '-'",
            )
    faults.raise_if_any()


def check_other_models(models: Sequence[str]) -> None:
    """Raises PithError INVALID_ARGUMENT: of those that a caller with engines of its own can have answer."""
    if not models:
        return
    faults = Violations()
    if len(models) > MAX_OTHER_MODELS:
        faults.add("other_models", f"has {len(models):,} entries; at most {MAX_OTHER_MODELS}")
    for index, model in enumerate(models[:MAX_OTHER_MODELS]):
        check_model_identity(faults, f"other_models[{index}]", model)
    faults.raise_if_any()


def check_id(faults: Violations, field: str, value: str) -> None:
    if len(value) > MAX_ID_CHARACTERS:
        faults.add(field, f"has {len(value):,} characters; at most {MAX_ID_CHARACTERS}")
    elif not value.isprintable():
        faults.add(field, "has control or other unprintable characters")


def _check_messages(faults: Violations, messages: Sequence[text_pb2.Message], limits: RequestLimits) -> None:
    # What a fault says is put together only where there is one: this is done for every request.
    count = len(messages)
    if count == 0:
        faults.add("messages", "is empty; at least one message is needed")
        return
    if count > limits.max_messages:
        faults.add("messages", f"has {count:,} messages; at most {limits.max_messages:,}")
        return
    characters = 0
    for index, message in enumerate(messages):
        size = len(message.content)
        characters += size
        if size == 0:
            faults.add(f"messages[{index}].content", "is empty")
        if message.role not in _ROLES:
            faults.add(
                f"messages[{index}].role",
                f"is {int(message.role)}; must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT",
            )
    last = messages[-1].role
    if last in _ROLES and last != text_pb2.ROLE_USER:
        faults.add(f"messages[{count - 1}].role", "must be ROLE_USER: the last message is what is answered")
    if characters > limits.max_prompt_characters:
        faults.add("messages", f"hold {characters:,} characters; at most {limits.max_prompt_characters:,}")


def _check_sampling(faults: Violations, sampling: text_pb2.Sampling) -> None:
    for name, lowest, highest in (
        ("temperature", 0.0, MAX_TEMPERATURE),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
        ("logprobs", 0, MAX_LOGPROBS),
    ):
        value = getattr(sampling, name)
        field = f"sampling.{name}"
        if not math.isfinite(value):
            faults.add(field, f"is {value}; must be a finite number")
        # 0 stands for the default, whatever the least value is.
        elif value != 0 and not lowest <= value <= highest:
            faults.add(field, f"is {value:g}; must be in [{lowest:g}, {highest:g}]")
    biases = sampling.logit_bias
    if faults.require(
        len(biases) <= MAX_LOGIT_BIASES,
        "sampling.logit_bias",
        f"has {len(biases):,}; at most {MAX_LOGIT_BIASES:,}, and no more than the vocabulary has tokens",
    ):
        for token, bias in biases.items():
            faults.require(math.isfinite(bias), f"sampling.logit_bias[{token}]", f"is {bias}; must be a finite number")
    check_suppressed_words(faults, "sampling.suppressed_words", sampling.suppressed_words)

"""Between the wire and the engine: requests checked at the door, events turned into messages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, inference_pb2

from common.energy.reading import EnergySource
from common.errors import Violations, not_found, unimplemented
from engine.engine import Load, ModelCard
from engine.request import Finished
from engine.sampling import SamplingParams
from engine.stream import Delta

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_REQUEST_ID_CHARACTERS = 128
MAX_TEMPERATURE = 10.0

_ROLES = {text_pb2.ROLE_SYSTEM: "system", text_pb2.ROLE_USER: "user", text_pb2.ROLE_ASSISTANT: "assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's input, not tokenised yet: the one of the three that `field` names."""

    field: str
    messages: Sequence[Mapping[str, str]] = ()
    """{role, content}"""
    text: str = ""
    token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    prompt: Prompt
    sampling: SamplingParams
    max_output_tokens: int
    stop: tuple[str, ...]


def asked(request: inference_pb2.GenerateRequest, card: ModelCard, max_prompt_characters: int, seed: int) -> Asked:
    """Checks a request without tokenising it. `seed` is for a request that names none.

    Raises PithError: NOT_FOUND for another model, INVALID_ARGUMENT with every faulty field, UNIMPLEMENTED for a field
    that this engine does not serve yet.
    """
    if request.model and request.model != card.name:
        raise not_found("model", request.model)
    faults = Violations()
    faults.require(
        len(request.request_id) <= MAX_REQUEST_ID_CHARACTERS,
        "request_id",
        f"has {len(request.request_id)} characters; at most {MAX_REQUEST_ID_CHARACTERS}",
    )
    prompt = _prompt(request, card, max_prompt_characters, faults)
    _check_sampling(request.sampling, card.shape.vocab_size, faults)
    _check_stop(request.limits.stop, faults)
    faults.raise_if_any()
    _refuse_what_is_not_served_yet(request)
    return Asked(
        prompt=prompt,
        sampling=SamplingParams(
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            top_p=request.sampling.top_p or 1.0,
            seed=request.sampling.seed if request.sampling.HasField("seed") else seed,
        ),
        max_output_tokens=request.limits.max_output_tokens or card.default_output_tokens,
        stop=tuple(request.limits.stop),
    )


def _prompt(request: inference_pb2.GenerateRequest, card: ModelCard, max_characters: int, faults: Violations) -> Prompt:
    field = request.WhichOneof("input")
    if field == "messages":
        return Prompt(field, messages=_messages(request.messages.messages, card, max_characters, faults))
    if field == "text":
        if faults.require(len(request.text) > 0, field, "is empty; at least 1 character"):
            _check_characters(field, len(request.text), max_characters, card, faults)
        return Prompt(field, text=request.text)
    if field == "token_ids":
        return Prompt(field, token_ids=_token_ids(request.token_ids.ids, card, faults))
    faults.add("input", "is missing; one of messages, text, token_ids")
    return Prompt("input")


def _messages(
    messages: Sequence[text_pb2.Message], card: ModelCard, max_characters: int, faults: Violations
) -> list[Mapping[str, str]]:
    field = "messages"
    faults.require(card.accepts_messages, field, "the model has no chat template; send text or token_ids")
    if not faults.require(len(messages) > 0, field, "is empty; at least 1 message"):
        return []
    # A message takes a token at least.
    if not faults.require(
        len(messages) < card.max_context_tokens,
        field,
        f"has {len(messages)} messages; fewer than the context's {card.max_context_tokens} tokens",
    ):
        return []
    characters = sum(len(message.content) for message in messages)
    _check_characters(field, characters, max_characters, card, faults)
    for index, message in enumerate(messages):
        faults.require(
            message.role in _ROLES,
            f"messages.messages[{index}].role",
            f"is {message.role}; one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT",
        )
        faults.require(
            len(message.content) > 0, f"messages.messages[{index}].content", "is empty; at least 1 character"
        )
    return [{"role": _ROLES.get(message.role, ""), "content": message.content} for message in messages]


def _check_characters(field: str, characters: int, limit: int, card: ModelCard, faults: Violations) -> None:
    faults.require(
        characters <= limit,
        field,
        f"has {characters} characters; no more than {limit} fit into the context's {card.max_context_tokens} tokens",
    )


def _token_ids(ids: Sequence[int], card: ModelCard, faults: Violations) -> Sequence[int]:
    field = "token_ids.ids"
    if not faults.require(len(ids) > 0, field, "is empty; at least 1 token"):
        return ()
    # Counted before it is looked at: a huge list must not hold the event loop.
    if not check_prompt_tokens(field, len(ids), card, faults):
        return ()
    highest = max(ids)
    faults.require(
        highest < card.shape.vocab_size,
        field,
        f"holds {highest}; ids are below the vocabulary's {card.shape.vocab_size}",
    )
    return list(ids)


def check_prompt_tokens(field: str, tokens: int, card: ModelCard, faults: Violations) -> bool:
    """A prompt must have a token, and leave room for one in the context."""
    limit = card.max_context_tokens - 1
    return faults.require(0 < tokens <= limit, field, f"has {tokens} tokens; from 1 to {limit}")


def _check_sampling(sampling: text_pb2.Sampling, vocabulary: int, faults: Violations) -> None:
    def within(name: str, value: float, low: float, high: float) -> None:
        # Written so that NaN fails.
        faults.require(low <= value <= high, f"sampling.{name}", f"is {value}; from {low:g} to {high:g}")

    within("temperature", sampling.temperature, 0, MAX_TEMPERATURE)
    within("top_p", sampling.top_p, 0, 1)
    within("min_p", sampling.min_p, 0, 1)
    faults.require(
        0 <= sampling.repetition_penalty < math.inf,
        "sampling.repetition_penalty",
        f"is {sampling.repetition_penalty}; finite and at least 0",
    )
    biases = len(sampling.logit_bias)
    if not faults.require(
        biases <= vocabulary, "sampling.logit_bias", f"has {biases} entries; the vocabulary has {vocabulary}"
    ):
        return
    for token_id, bias in sampling.logit_bias.items():
        if token_id >= vocabulary or not math.isfinite(bias):
            faults.add("sampling.logit_bias", f"[{token_id}] is {bias}; finite, for ids below {vocabulary}")
            break


def _check_stop(stop: Sequence[str], faults: Violations) -> None:
    faults.require(len(stop) <= MAX_STOP_STRINGS, "limits.stop", f"has {len(stop)} strings; at most {MAX_STOP_STRINGS}")
    for index, one in enumerate(stop[:MAX_STOP_STRINGS]):
        faults.require(
            0 < len(one) <= MAX_STOP_CHARACTERS,
            f"limits.stop[{index}]",
            f"has {len(one)} characters; from 1 to {MAX_STOP_CHARACTERS}",
        )


def _refuse_what_is_not_served_yet(request: inference_pb2.GenerateRequest) -> None:
    sampling = request.sampling
    asked_for = {
        "resume": request.HasField("resume"),
        "sampling.min_p": sampling.min_p != 0,
        "sampling.repetition_penalty": sampling.repetition_penalty not in (0, 1),
        "sampling.logit_bias": bool(sampling.logit_bias),
        "sampling.suppressed_words": bool(sampling.suppressed_words),
        "sampling.logprobs": sampling.HasField("logprobs"),
    }
    for field, present in asked_for.items():
        if present:
            raise unimplemented(field)


def delta_message(delta: Delta) -> text_pb2.Delta:
    return text_pb2.Delta(text=delta.text, token_ids=delta.token_ids, offset=delta.offset)


def finished_message(finished: Finished) -> inference_pb2.Finished:
    energy = finished.energy
    return inference_pb2.Finished(
        reason=text_pb2.FinishReason.Value(f"FINISH_REASON_{finished.reason}"),
        stop=finished.stop,
        usage=text_pb2.Usage(
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens,
        ),
        timings=text_pb2.Timings(
            queue_seconds=finished.queue_seconds,
            first_token_seconds=finished.first_token_seconds,
            decode_seconds=finished.decode_seconds,
        ),
        energy=None if energy is None else energy_pb2.Energy(joules=energy.joules, source=_source(energy.source)),
        busy_seconds=finished.busy_seconds,
    )


def model_info_message(card: ModelCard, version: str) -> control_pb2.ModelInfo:
    return control_pb2.ModelInfo(
        model=card.name,
        model_digest=card.digest,
        architecture=card.architecture,
        parameters=card.shape.parameters,
        vocabulary_size=card.shape.vocab_size,
        max_context_tokens=card.max_context_tokens,
        max_output_tokens=card.max_output_tokens,
        backend=card.backend,
        device=card.device,
        version=version,
        energy_source=_source(card.energy_source),
        idle_watts=card.idle_watts,
        accepts_messages=card.accepts_messages,
    )


def load_message(load: Load, max_running: int, max_waiting: int) -> control_pb2.Load:
    return control_pb2.Load(
        running=load.running,
        waiting=load.waiting,
        max_running=max_running,
        max_waiting=max_waiting,
        kv_blocks_free=load.free_blocks,
        kv_blocks_total=load.blocks,
        output_tokens_total=load.output_tokens,
        requests_total=load.requests,
        draining=load.draining,
    )


def _source(source: EnergySource) -> energy_pb2.EnergySource.ValueType:
    return energy_pb2.EnergySource.Value(f"ENERGY_SOURCE_{source}")

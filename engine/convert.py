"""Between the wire and the engine: requests checked at the door, events turned into messages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from google.protobuf.struct_pb2 import Struct
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, inference_pb2

from common.energy.calibration import Calibration
from common.energy.reading import Energy, EnergySource
from common.errors import Violations, not_found
from common.limits import (
    MAX_ID_CHARACTERS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_SUPPRESSED_WORDS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    check_stop,
    check_suppressed_words,
    check_template_variables,
)
from engine.engine import Load, ModelCard
from engine.request import Finished
from engine.sampling import SamplingParams, TokenLogprob
from engine.stream import Delta
from engine.tokenizer import TemplateValue

MAX_EXACT_INTEGER = 2**53
"""The largest up to which a double tells every whole number apart."""

_ROLES = {text_pb2.ROLE_SYSTEM: "system", text_pb2.ROLE_USER: "user", text_pb2.ROLE_ASSISTANT: "assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's input, not tokenised yet: the one of the three that `field` names."""

    field: str
    messages: Sequence[Mapping[str, str]] = ()
    """{role, content}"""
    text: str = ""
    token_ids: Sequence[int] = ()
    template_variables: Mapping[str, TemplateValue] | None = None
    """Beside the chat template's own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    prompt: Prompt
    sampling: SamplingParams
    max_output_tokens: int
    stop: tuple[str, ...]
    suppressed_words: tuple[str, ...]
    resumed_token_ids: Sequence[int]
    """What an engine that died has answered already; it counts towards max_output_tokens."""
    delivered_bytes: int


def asked(request: inference_pb2.GenerateRequest, card: ModelCard, max_prompt_characters: int, seed: int) -> Asked:
    """Checks a request without tokenising it. `seed` is for a request that names none.

    Raises PithError: NOT_FOUND for another model, INVALID_ARGUMENT with every faulty field.
    """
    if request.model and request.model != card.name:
        raise not_found("model", request.model)
    faults = Violations()
    faults.require(
        len(request.request_id) <= MAX_ID_CHARACTERS,
        "request_id",
        f"has {len(request.request_id)} characters; at most {MAX_ID_CHARACTERS}",
    )
    prompt = _prompt(request, card, max_prompt_characters, faults)
    _check_sampling(request.sampling, card.shape.vocab_size, faults)
    check_stop(faults, "limits.stop", request.limits.stop)
    resumed_token_ids = _resumed_token_ids(request, card, faults)
    faults.raise_if_any()
    return Asked(
        prompt=prompt,
        sampling=SamplingParams(
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            top_p=request.sampling.top_p or 1.0,
            min_p=request.sampling.min_p,
            seed=request.sampling.seed if request.sampling.HasField("seed") else seed,
            repetition_penalty=request.sampling.repetition_penalty or 1.0,
            logit_bias=tuple(sorted(request.sampling.logit_bias.items())),
            logprobs=request.sampling.logprobs if request.sampling.HasField("logprobs") else None,
        ),
        max_output_tokens=request.limits.max_output_tokens or card.default_output_tokens,
        stop=tuple(request.limits.stop),
        suppressed_words=tuple(request.sampling.suppressed_words),
        resumed_token_ids=resumed_token_ids,
        delivered_bytes=request.resume.delivered_bytes,
    )


def _prompt(request: inference_pb2.GenerateRequest, card: ModelCard, max_characters: int, faults: Violations) -> Prompt:
    field = request.WhichOneof("input")
    if field == "messages":
        variables = request.messages.template_variables
        few = check_template_variables(faults, f"{field}.template_variables", variables)
        return Prompt(
            field,
            messages=_messages(request.messages.messages, card, max_characters, faults),
            template_variables=_template_variables(variables) if few else None,
        )
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


def _template_variables(variables: Struct) -> dict[str, TemplateValue]:
    """Whole numbers, which a Struct holds as floats, as the integers that templates print; others are left out."""
    values: dict[str, TemplateValue] = {}
    for name, value in variables.fields.items():
        kind = value.WhichOneof("kind")
        if kind == "bool_value":
            values[name] = value.bool_value
        elif kind == "string_value":
            values[name] = value.string_value
        elif kind == "number_value":
            number = value.number_value
            values[name] = int(number) if number.is_integer() and abs(number) <= MAX_EXACT_INTEGER else number
    return values


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
    if sampling.repetition_penalty != 0:
        within("repetition_penalty", sampling.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
    within("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    # A request's and its directive's.
    check_suppressed_words(
        faults, "sampling.suppressed_words", sampling.suppressed_words, most=2 * MAX_SUPPRESSED_WORDS
    )
    biases, limit = len(sampling.logit_bias), min(vocabulary, MAX_LOGIT_BIASES)
    if not faults.require(biases <= limit, "sampling.logit_bias", f"has {biases} entries; at most {limit}"):
        return
    for token_id, bias in sampling.logit_bias.items():
        if token_id >= vocabulary or not math.isfinite(bias):
            faults.add("sampling.logit_bias", f"[{token_id}] is {bias}; finite, for ids below {vocabulary}")
            break


def _resumed_token_ids(request: inference_pb2.GenerateRequest, card: ModelCard, faults: Violations) -> Sequence[int]:
    if not request.HasField("resume"):
        return ()
    resume = request.resume
    faults.require(
        request.WhichOneof("input") in (None, "token_ids"), "resume", "needs the prompt as token_ids, not as text"
    )
    faults.require(request.sampling.HasField("seed"), "sampling.seed", "is missing; resume needs the answer's")
    faults.require(
        resume.model_digest == card.digest,
        "resume.model_digest",
        f"is {resume.model_digest[:64]!r}; the loaded model's is {card.digest}",
    )
    most = min(
        request.limits.max_output_tokens or card.default_output_tokens,
        card.max_output_tokens,
        card.max_context_tokens - len(request.token_ids.ids),
    )
    field = "resume.token_ids"
    if not faults.require(
        len(resume.token_ids) <= most, field, f"has {len(resume.token_ids)} tokens; the answer may have {most}"
    ):
        return ()
    highest = max(resume.token_ids, default=0)
    faults.require(
        highest < card.shape.vocab_size,
        field,
        f"holds {highest}; ids are below the vocabulary's {card.shape.vocab_size}",
    )
    return list(resume.token_ids)


def delta_message(delta: Delta) -> text_pb2.Delta:
    return text_pb2.Delta(
        text=delta.text,
        token_ids=delta.token_ids,
        offset=delta.offset,
        logprobs=[logprob_message(one) for one in delta.logprobs],
    )


def logprob_message(logprob: TokenLogprob) -> text_pb2.TokenLogprob:
    alternatives = (
        text_pb2.TokenLogprob.Alternative(token_id=token_id, logprob=value) for token_id, value in logprob.alternatives
    )
    return text_pb2.TokenLogprob(logprob=logprob.logprob, alternatives=alternatives)


def finished_message(finished: Finished) -> inference_pb2.Finished:
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
        energy=None if finished.energy is None else _energy(finished.energy),
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
        accepts_logprobs=True,
        accepts_resume=True,
        template_variables=card.template_variables,
        energy_model=None if card.calibration is None else _energy_model(card.calibration),
        zone=card.zone,
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
        instance_id=load.instance_id,
        busy_seconds_total=load.busy_seconds,
        idle_seconds_total=load.idle_seconds,
        idle_energy_total=None if load.idle_energy is None else _energy(load.idle_energy),
    )


def _energy(energy: Energy) -> energy_pb2.Energy:
    return energy_pb2.Energy(joules=energy.joules, source=_source(energy.source))


def _energy_model(calibration: Calibration) -> energy_pb2.EnergyModel:
    message = energy_pb2.EnergyModel(
        **asdict(calibration.model),
        source=_source(calibration.source),
        held_out_mape=calibration.held_out_mape,
        max_batch=calibration.max_batch,
        max_input_tokens=calibration.max_input_tokens,
        max_output_tokens=calibration.max_output_tokens,
    )
    message.measured_at.FromDatetime(calibration.measured_at)
    return message


def _source(source: EnergySource) -> energy_pb2.EnergySource.ValueType:
    return energy_pb2.EnergySource.Value(f"ENERGY_SOURCE_{source}")
